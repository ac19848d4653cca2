"""The control socket: one line of JSON asks, one line answers.

The server runs in the agent's loop. The client needs the standard library only, so that it starts quickly. Whoever can
connect may look; what changes something is for those whom the kernel names (SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import grp
import inspect
import json
import logging
import os
import pwd
import socket
import stat
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resolver_agent import background

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    Handlers = Mapping[str, Callable[[dict[str, Any]], "dict[str, Any] | Awaitable[dict[str, Any]]"]]

_log = logging.getLogger(__name__)

SOCKET_NAME = "control.sock"

_MODE = 0o660
_GUARDED = frozenset({"pre-promote"})
_BACKLOG_PAUSE_S = 0.02
_ENDED = "the agent ended before it answered"


class ControlError(Exception):
    """The agent could not be asked, or cannot be made to listen; the message names the socket and the mend."""


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the kernel saw it connect."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}"


@contextlib.asynccontextmanager
async def serve(
    handlers: Handlers,
    *,
    path: str,
    passed: socket.socket | None,
    request_timeout_s: float = 5.0,
) -> AsyncIterator[None]:
    """Answer requests on systemd's socket where it ``passed`` one, else on one of our own at ``path``.

    A socket of our own replaces what a killed agent left there; the caller holds the agent's lock. A client that takes
    ``request_timeout_s`` to ask, or to read the answer, is cut off.

    A handler gets the request, with the ``Peer`` that asks as its "peer". It may be a coroutine function; how long the
    answer may take is then its own affair, and others are answered meanwhile.

    Raises:
        ControlError: the socket cannot be made.
    """
    socket_file = passed.getsockname() if passed is not None else path

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled, because the agent ends, this task must not say so: asyncio of Python 3.11 would log it.
        quiet = contextlib.suppress(OSError, asyncio.TimeoutError, asyncio.CancelledError, ValueError)
        with quiet, contextlib.ExitStack() as end:
            end.callback(writer.transport.abort)  # close() alone would wait for ever for a client that does not read
            line = await asyncio.wait_for(reader.readline(), request_timeout_s)
            peer = _peer(writer.get_extra_info("socket"))
            writer.write(json.dumps(await _answer(handlers, line, peer, socket_file)).encode() + b"\n")
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
    """Return the agent's answer to ``command``; all in all within ``timeout_s``.

    Raises:
        ControlError: there is no agent, or it did not answer in time, or not what was asked.
    """
    deadline = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            _connect(connection, path, deadline)
            connection.settimeout(_left_s(deadline))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            line = _read_line(connection, deadline)
        answer = json.loads(line)
    except OSError as error:
        raise ControlError(_words(path, error)) from error
    except ValueError as error:
        raise ControlError(f"{path}: what answers there is no agent") from error
    if not isinstance(answer, dict) or "error" in answer:
        fault = answer.get("error") if isinstance(answer, dict) else answer
        raise ControlError(f"{path}: the agent answered: {fault}")
    return answer


def _connect(connection: socket.socket, path: str, deadline: float) -> None:
    while True:
        connection.settimeout(_left_s(deadline))
        try:
            connection.connect(path)
        except BlockingIOError:  # the queue of a listener that does not accept is full
            time.sleep(_BACKLOG_PAUSE_S)
        else:
            return


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        connection.settimeout(_left_s(deadline))
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, _ENDED)
        line += received
    return bytes(line)


def _left_s(deadline: float) -> float:
    """Return the seconds left; to ``settimeout`` 0 would mean not to wait, and less is refused."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


async def _answer(handlers: Handlers, line: bytes, peer: Peer, socket_file: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError:
        return {"error": "expected one line of JSON"}
    command = str(request.get("command")) if isinstance(request, dict) else ""
    if command not in handlers:
        return {"error": f"unknown command; known are {', '.join(sorted(handlers))}"}
    try:
        refusal = await background.call(_refusal, command, peer, socket_file) if command in _GUARDED else None
        if refusal is not None:
            _log.warning("%s", refusal)
            return {"error": refusal}
        answer = handlers[command](request | {"peer": peer})
        return await answer if inspect.isawaitable(answer) else answer
    except Exception as error:  # noqa: BLE001 -- whoever asks for nonsense is told so, as is whoever meets a defect
        _log.exception("the request %r cannot be answered", command)
        return {"error": repr(error)}


def _peer(connection: socket.socket) -> Peer:
    credentials = struct.Struct("iII")
    return Peer(*credentials.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)))


def _refusal(command: str, peer: Peer, socket_file: str) -> str | None:
    """Return why the peer may not ask this, None where it may. To look up a user's groups may block."""
    if peer.uid in (0, os.geteuid()):
        return None
    try:
        found = Path(socket_file).stat()
        if not found.st_mode & stat.S_IWOTH:  # the kernel itself has let in nobody but owner and group
            return None
        gid = found.st_gid
        if gid == peer.gid or gid in os.getgrouplist(pwd.getpwuid(peer.uid).pw_name, peer.gid):
            return None
        allowed = f"a member of the socket's group, {grp.getgrgid(gid).gr_name}"
    except (OSError, KeyError):  # no such file, user or group
        allowed = "a member of the socket's group"
    return f"{peer} may not ask for {command}: do it as root, or as {allowed}"


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
        errno.ECONNRESET: _ENDED,
        errno.EPIPE: _ENDED,
        errno.ECONNREFUSED: "nobody listens there any more: the agent has ended; start it",
        errno.EACCES: "you may not ask the agent: do it as root, or as a member of the socket's group",
    }
    return f"{path}: {hints.get(error.errno or 0, error.strerror or error)}"
