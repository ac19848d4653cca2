"""The control socket: one line of JSON asks, one line answers.

The server runs in the agent's loop. The client needs the standard library only, so that it starts quickly.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

_log = logging.getLogger(__name__)

SOCKET_NAME = "control.sock"

_MODE = 0o660


class ControlError(Exception):
    """The agent could not be asked, or cannot be made to listen; the message names the socket and the mend."""


@contextlib.asynccontextmanager
async def serve(
    handlers: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]],
    *,
    path: str,
    passed: socket.socket | None,
    request_timeout_s: float = 5.0,
) -> AsyncIterator[None]:
    """Answer requests on systemd's socket where it ``passed`` one, else on one of our own at ``path``.

    A socket of our own replaces what a killed agent left there; the caller holds the agent's lock. A client that takes
    ``request_timeout_s`` to ask, or to read the answer, is cut off.

    Raises:
        ControlError: the socket cannot be made.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.TimeoutError, ValueError), contextlib.ExitStack() as end:
            end.callback(writer.transport.abort)  # close() alone would wait for ever for a client that does not read
            line = await asyncio.wait_for(reader.readline(), request_timeout_s)
            writer.write(json.dumps(_answer(handlers, line)).encode() + b"\n")
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), request_timeout_s)

    # Python 3.13 would unlink systemd's socket, through which a stopped agent is started.
    keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    server = await asyncio.start_unix_server(answer, sock=passed if passed is not None else _listen(path), **keep)
    try:
        yield
    finally:
        server.close()
        if passed is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 -- quick, and pathlib's is no more asynchronous


def ask(path: str, command: str, *, timeout_s: float = 5.0, **arguments: Any) -> dict[str, Any]:
    """Return the agent's answer to ``command``.

    Raises:
        ControlError: there is no agent, or it did not answer in time, or not what was asked.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        answer = json.loads(line)
    except OSError as error:
        raise ControlError(_words(path, error)) from error
    except ValueError as error:
        raise ControlError(f"{path}: the agent ended before it answered") from error
    if not isinstance(answer, dict) or "error" in answer:
        fault = answer.get("error") if isinstance(answer, dict) else answer
        raise ControlError(f"{path}: the agent answered: {fault}")
    return answer


def _answer(handlers: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]], line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError:
        return {"error": "expected one line of JSON"}
    handler = handlers.get(str(request.get("command"))) if isinstance(request, dict) else None
    if handler is None:
        return {"error": f"unknown command; known are {', '.join(sorted(handlers))}"}
    try:
        return handler(request)
    except Exception as error:  # noqa: BLE001 -- whoever asks for nonsense is told so, as is whoever meets a defect
        _log.exception("the request %r cannot be answered", request["command"])
        return {"error": repr(error)}


def _listen(path: str) -> socket.socket:
    """Return a listening socket at ``path`` that was never open to more than its owner and group."""
    temporary = f"{path}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        listener.bind(temporary)
        # Nobody can connect before listen().
        Path(temporary).chmod(_MODE)
        listener.listen()
        Path(temporary).rename(path)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise ControlError(f"{path}: the control socket cannot be made: {error.strerror or error}") from error
    return listener


def _words(path: str, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"{path}: the agent does not answer; see its log"
    hints = {
        errno.ENOENT: "there is no such socket: is the agent running, with this runtime_dir?",
        errno.ECONNREFUSED: "nobody listens there any more: the agent has ended; start it",
        errno.EACCES: "you may not ask the agent: do it as root, or as a member of the socket's group",
    }
    return f"{path}: {hints.get(error.errno or 0, error.strerror)}"
