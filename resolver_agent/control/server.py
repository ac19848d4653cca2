"""The control socket: one line of JSON asks, one line answers.

The server runs in the agent's loop. Every client that can connect may read. A command that changes something is
accepted only from root, the agent's own user and the socket's group, as the kernel reports the client (SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resolver_agent.control.client import ControlError
from resolver_agent.system import threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    Handlers = Mapping[str, Callable[[dict[str, Any]], "dict[str, Any] | Awaitable[dict[str, Any]]"]]

_log = logging.getLogger(__name__)

_MODE = 0o660
_GUARDED = frozenset({"pre-promote"})


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """The client, as the kernel saw it connect."""

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
    """Answer requests on the socket that systemd ``passed``, or on a new one at ``path``.

    A new socket replaces one that a killed agent left; the caller holds the agent's lock. A client that takes longer
    than ``request_timeout_s`` to ask, or to read the answer, is disconnected.

    A handler gets the request, with the client's ``Peer`` as "peer". It may be a coroutine function; then it bounds its
    own time, and other clients are answered meanwhile.

    Raises:
        ControlError: the socket cannot be made.
    """
    socket_file = passed.getsockname() if passed is not None else path

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The agent's end cancels this task; asyncio of Python 3.11 would log the CancelledError.
        quiet = contextlib.suppress(OSError, asyncio.TimeoutError, asyncio.CancelledError, ValueError)
        with quiet, contextlib.ExitStack() as end:
            end.callback(writer.transport.abort)  # close() alone would wait for ever for a client that does not read
            line = await asyncio.wait_for(reader.readline(), request_timeout_s)
            peer = _peer(writer.get_extra_info("socket"))
            writer.write(json.dumps(await _answer(handlers, line, peer, socket_file)).encode() + b"\n")
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), request_timeout_s)

    # Python 3.13 would unlink systemd's socket, whose use starts a stopped agent.
    keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    server = await asyncio.start_unix_server(answer, sock=passed if passed is not None else _listen(path), **keep)
    try:
        yield
    finally:
        server.close()
        if passed is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 -- quick, and pathlib's would block as well


async def _answer(handlers: Handlers, line: bytes, peer: Peer, socket_file: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError:
        return {"error": "expected one line of JSON"}
    command = str(request.get("command")) if isinstance(request, dict) else ""
    if command not in handlers:
        return {"error": f"unknown command; known are {', '.join(sorted(handlers))}"}
    try:
        refusal = await threads.call(_refusal, command, peer, socket_file) if command in _GUARDED else None
        if refusal is not None:
            _log.warning("%s", refusal)
            return {"error": refusal}
        answer = handlers[command](request | {"peer": peer})
        return await answer if inspect.isawaitable(answer) else answer
    except Exception as error:  # noqa: BLE001 -- the client gets every error, even that of a defect
        _log.exception("the request %r cannot be answered", command)
        return {"error": repr(error)}


def _peer(connection: socket.socket) -> Peer:
    credentials = struct.Struct("iII")
    return Peer(*credentials.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)))


def _refusal(command: str, peer: Peer, socket_file: str) -> str | None:
    """Return why the peer may not use this command, None where it may. The lookup of a user's groups may block."""
    if peer.uid in (0, os.geteuid()):
        return None
    try:
        found = Path(socket_file).stat()
        if not found.st_mode & stat.S_IWOTH:  # the kernel itself admits only owner and group
            return None
        gid = found.st_gid
        if gid == peer.gid or gid in os.getgrouplist(pwd.getpwuid(peer.uid).pw_name, peer.gid):
            return None
        allowed = f"a member of the socket's group, {grp.getgrgid(gid).gr_name}"
    except (OSError, KeyError):  # no such file, user or group
        allowed = "a member of the socket's group"
    return f"{peer} may not ask for {command}: do it as root, or as {allowed}"


def _listen(path: str) -> socket.socket:
    """Return a listening socket at ``path`` that only its owner and group could ever connect to."""
    temporary = f"{path}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        listener.bind(temporary)
        # No client can connect before listen().
        Path(temporary).chmod(_MODE)
        listener.listen()
        Path(temporary).rename(path)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise ControlError(f"{path}: the control socket cannot be made: {error.strerror or error}") from error
    return listener
