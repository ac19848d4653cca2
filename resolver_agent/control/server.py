"""The control socket: one line of JSON asks, one line answers.

The server runs in the agent's loop. Every client that can connect may read. A command that changes something is
accepted only from root, the agent's own user and the socket's group, as the kernel reports the client (SO_PEERCRED).

Connections are bounded, and a new one always gets in, at the cost of the oldest that keeps the agent waiting: silent
clients can neither use up the process's file descriptors nor keep out Patroni's hooks.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import grp
import inspect
import json
import logging
import os
import pwd
import resource
import socket
import stat
import struct
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resolver_agent.control.client import ControlError
from resolver_agent.system import threads
from resolver_agent.system.foreign import read_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    Answer = dict[str, Any] | bytes
    Handlers = Mapping[str, Callable[[dict[str, Any]], Answer | Awaitable[Answer]]]

_log = logging.getLogger(__name__)

_MODE = 0o660
_HOOKS = frozenset({"before-stop", "before-stop-cancel", "pre-promote", "pre-promote-cancel"})
_GUARDED = _HOOKS | {"pin", "unpin", "pause", "resume"}

_CONNECTIONS_MAX, _CONNECTIONS_MIN = 64, 8
_SHARE = 8
"""The connections are at most this part of the file descriptors: the nodes and the hosts file need the others."""

_USERS = 4
"""One user may have this part of the connections."""

_REQUEST_LIMIT = 65536
_NO_DESCRIPTOR_PAUSE_S = 0.05
_SAME_REFUSAL_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """The client, as the kernel saw it connect. A process of another container has the number 0."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid else "a process of another container"
        return f"{process} of user {self.uid}"


class _State(IntEnum):
    """What a connection waits for, from the one that is dropped first to the one that never is."""

    ASKING = 0
    READING = 1
    ANSWERED = 2
    HOOK = 3


@dataclasses.dataclass(slots=True, kw_only=True)
class _Connection:
    peer: Peer
    task: asyncio.Task[None]
    state: _State = _State.ASKING


@contextlib.asynccontextmanager
async def serve(
    handlers: Handlers,
    *,
    path: str,
    passed: socket.socket | None,
    ask_timeout_s: float = 2.0,
    read_timeout_s: float = 5.0,
) -> AsyncIterator[None]:
    """Answer requests on the socket that systemd ``passed``, or on a new one at ``path``.

    A new socket replaces one that a killed agent left; the caller holds the agent's lock. A client that takes longer
    than ``ask_timeout_s`` to ask, or than ``read_timeout_s`` to read the answer, is disconnected.

    A handler gets the request, with the client's ``Peer`` as "peer", and returns plain data, or bytes of JSON. If it is
    a coroutine function, it bounds its own time, and other clients are answered meanwhile. Any other one has its turn,
    also if it returns an awaitable.

    Raises:
        ControlError: the socket cannot be made.
    """
    listener = passed if passed is not None else _listen(path)
    file = path if passed is None else str(passed.getsockname())
    server = _Server(handlers, listener, file=file, ask_timeout_s=ask_timeout_s, read_timeout_s=read_timeout_s)
    try:
        yield
    finally:
        await server.close()
        if passed is None:  # systemd's outlives the agent: its use starts a stopped one
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 -- quick, and pathlib's would block as well


class _Server:
    """Accepts and answers connections from its creation to ``close()``."""

    def __init__(
        self, handlers: Handlers, listener: socket.socket, *, file: str, ask_timeout_s: float, read_timeout_s: float
    ) -> None:
        self._handlers = handlers
        self._listener = listener
        self._file = file
        self._ask_timeout_s = ask_timeout_s
        self._read_timeout_s = read_timeout_s
        self._open: dict[socket.socket, _Connection] = {}  # oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._limit = _most_connections()
        self._turn = asyncio.Lock()
        self._computing: asyncio.Future[Answer] | None = None
        self._refused: dict[int, float] = {}
        self._resume: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        self._loop.add_reader(listener, self._accept_some)

    async def close(self) -> None:
        """Stop listening, and end all connections at once."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        await asyncio.sleep(0)  # an answer that is ready is sent
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept_some(self) -> None:
        """Accept a few connections: between two turns of the loop, in which those that have asked are read."""
        for number in range(max(1, self._limit // _USERS // 2)):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor, no memory: the listener stays readable
                if number:  # without a descriptor this is no sign of another client
                    return
                self._make_room()
                if self._resume is None:
                    _log.warning("a client of the control socket has to wait: %s", error.strerror or error)
                self._loop.remove_reader(self._listener)
                self._resume = self._loop.call_later(
                    _NO_DESCRIPTOR_PAUSE_S, self._loop.add_reader, self._listener, self._accept_some
                )
                return
            self._resume = None
            self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        """Converse over a new connection, or refuse it where no other one of its user's may be dropped."""
        try:
            peer = _peer(connection)
            connection.setblocking(False)  # noqa: FBT003
            users = collections.Counter(one.peer.uid for one in self._open.values())
            if users[peer.uid] >= self._limit // _USERS:
                room = self._make_room(peer.uid)
            else:
                room = len(self._open) < self._limit or self._make_room()
            if not room:
                connection.send(b'{"error": "too many requests at a time: try again"}\n')
                connection.close()
                return
        except OSError:
            connection.close()
            return
        task = self._loop.create_task(self._converse(connection, peer))
        self._open[connection] = _Connection(peer=peer, task=task)
        self._tasks.add(task)
        task.add_done_callback(partial(self._end, connection))

    def _end(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        """Close a connection, also one that was dropped before its task began."""
        self._tasks.discard(task)
        self._open.pop(connection, None)
        connection.close()

    def _make_room(self, uid: int | None = None) -> bool:
        """Drop the oldest connection that waits, of this user or of the one who has most; False if none can go."""
        users = collections.Counter(one.peer.uid for one in self._open.values())
        waiting = [
            (one.state, -users[one.peer.uid], number, connection)
            for number, (connection, one) in enumerate(self._open.items())
            if one.state is not _State.HOOK and uid in (None, one.peer.uid)
        ]
        if not waiting:
            return False
        dropped = min(waiting, key=lambda one: (one[1], one[0], one[2]))[3]
        self._open.pop(dropped).task.cancel()
        return True

    async def _converse(self, connection: socket.socket, peer: Peer) -> None:
        """Read a request and answer it."""
        try:
            with self._limited(self._ask_timeout_s):
                line = await self._read_line(connection)
            if line:
                answer = await self._answer(connection, line, peer)
                told = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self._note(connection, _State.READING)
                with self._limited(self._read_timeout_s):
                    await self._loop.sock_sendall(connection, told + b"\n")
        except OSError:
            pass
        except Exception:  # noqa: BLE001 -- it concerns this client alone
            _log.exception("a client of the control socket could not be answered")

    @contextlib.contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """End a connection after so many seconds. ``wait_for`` may swallow a cancellation (before Python 3.12)."""
        task = asyncio.current_task()
        timer = self._loop.call_later(seconds, task.cancel) if task is not None else None
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    async def _read_line(self, connection: socket.socket) -> bytes:
        """Return the request; what is longer than any request is cut, and then is no JSON."""
        line = bytearray()
        while b"\n" not in line and len(line) < _REQUEST_LIMIT:
            received = await self._loop.sock_recv(connection, _REQUEST_LIMIT)
            if not received:
                break
            line += received
        return bytes(line)

    def _note(self, connection: socket.socket, state: _State) -> None:
        if connection in self._open:
            self._open[connection].state = state

    async def _answer(self, connection: socket.socket, line: bytes, peer: Peer) -> Answer:
        try:
            request = read_json(line)
        except ValueError:
            return {"error": "expected one line of JSON"}
        command = request.get("command") if isinstance(request, dict) else None
        if not isinstance(command, str) or command not in self._handlers:
            return {"error": f"unknown command; known are {', '.join(sorted(self._handlers))}"}
        self._note(connection, _State.HOOK if command in _HOOKS else _State.ANSWERED)
        handler = self._handlers[command]
        try:
            if command in _GUARDED and (refusal := await self._refuse(command, peer)) is not None:
                return {"error": refusal}
            if inspect.iscoroutinefunction(handler):
                answer: Answer = await handler(request | {"peer": peer})
                return answer
            return await self._compute(handler, request | {"peer": peer})
        except Exception as error:  # noqa: BLE001 -- the client gets every error, even that of a defect
            _log.exception("the request %s cannot be answered", command)
            return {"error": f"it cannot answer ({type(error).__name__}): its log says more"}

    async def _compute(self, handler: Callable[[dict[str, Any]], Any], request: dict[str, Any]) -> Answer:
        """Call a handler, and then leave the processor to the agent for as long as it took, however often clients ask.

        There is never a second computation beside one whose client was dropped.
        """
        async with self._turn:
            if self._computing is not None:
                await asyncio.wait({self._computing})
            begun = self._loop.time()
            answer: Answer | Awaitable[Answer] = handler(request)
            if inspect.isawaitable(answer):
                self._computing = asyncio.ensure_future(answer)
                answer = await asyncio.shield(self._computing)
            await asyncio.sleep(self._loop.time() - begun)
        return answer

    async def _refuse(self, command: str, peer: Peer) -> str | None:
        """Return why the peer may not use this command, None where it may. A refusal is logged once a minute."""
        if peer.uid in (0, os.geteuid()):
            return None
        refusal = await threads.call(_refusal, command, peer, self._file)
        now = self._loop.time()
        if refusal is not None and now - self._refused.get(peer.uid, -_SAME_REFUSAL_S) >= _SAME_REFUSAL_S:
            self._refused[peer.uid] = now
            _log.warning("%s", refusal)
        return refusal


def _most_connections() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return _CONNECTIONS_MAX
    return min(_CONNECTIONS_MAX, max(_CONNECTIONS_MIN, descriptors // _SHARE))


def _peer(connection: socket.socket) -> Peer:
    credentials = struct.Struct("iII")
    return Peer(*credentials.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)))


def _refusal(command: str, peer: Peer, socket_file: str) -> str | None:
    """Return why the peer may not use this command, None where it may. The lookup of a user's groups may block."""
    try:
        found = Path(socket_file).stat()
        if not found.st_mode & stat.S_IWOTH:  # the kernel itself admits only owner and group
            return None
        gid = found.st_gid
        if gid == peer.gid or gid in os.getgrouplist(pwd.getpwuid(peer.uid).pw_name, peer.gid):
            return None
        allowed = f"a member of the socket's group, {grp.getgrgid(gid).gr_name}"
    except (OSError, KeyError, ValueError):  # no such file, user or group; or an abstract socket
        allowed = "a member of the socket's group"
    return f"{peer} may not ask for {command}: do it as root, or as {allowed}"


def _listen(path: str) -> socket.socket:
    """Return a listening socket at ``path`` that only its owner and group could ever connect to."""
    temporary = f"{path}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o777 & ~_MODE)  # a chmod afterwards would follow a link that took the socket's place
    try:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        listener.bind(temporary)
        listener.listen(socket.SOMAXCONN)
        Path(temporary).rename(path)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise ControlError(f"{path}: the control socket cannot be made: {error.strerror or error}") from error
    finally:
        os.umask(mask)
    return listener
