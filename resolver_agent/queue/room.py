"""Waiting rooms: addresses where clients of a server that is away are kept waiting, and then forwarded to the new one.

A room listens and does not accept. The kernel completes the connection, so the client believes that the server is slow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import socket
import struct
import time

from resolver_agent.queue.forwarder import Forwarder, Room, Target
from resolver_agent.system import threads

_log = logging.getLogger(__name__)

_BACKLOG = 4096
_QUEUE_LENGTH, _QUEUE_LIMIT = 24, 28  # of a listening socket's struct tcp_info; see tcp_get_info() in Linux


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoomState:
    """What became of those who came to a room since it was opened.

    ``waiting`` connections are not accepted yet, of at most ``backlog``. ``forwarded`` ones reached the server,
    ``failed`` ones were accepted and did not. ``longest_wait_s`` is the longest time that one of them had waited when
    it was accepted.
    """

    waiting: int = 0
    backlog: int = 0
    forwarded: int = 0
    failed: int = 0
    longest_wait_s: float = 0.0


class Rooms:
    """All rooms of an agent, by name. Its methods belong to one thread, and none blocks.

    Before the first room is opened it has no file, and before the first is forwarded no thread.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}
        self._gone: dict[str, RoomState] = {}
        self._forwarder: Forwarder | None = None

    def open(self, name: str, address: str, port: int) -> str | None:
        """Let connections to an IPv4 address wait from now on; return why that cannot be, None when it is so.

        A room that is open there stays as it is. One that is forwarding, or is about to close, keeps its place and
        lets newcomers wait again.
        """
        if (room := self._rooms.get(name)) is not None and not room.is_closed:
            if (room.address, room.port) != (address, port):
                self.close(name)
            elif room.target is None or self._reopen(room):
                return None
        try:
            if self._forwarder is None:
                self._forwarder = Forwarder()
            listener = _listen(address, port)
        except OSError as error:
            return _why_not(error, address, port)
        if room is not None:
            self._add_up(room)
        self._rooms[name] = Room(name=name, address=address, port=port, listener=listener)
        return None

    def forward(self, name: str, host: str, port: int) -> None:
        """Forward what waits in a room, and what comes, to a server from now on; nothing if there is no such room.

        Raises:
            ValueError: ``host`` is no IP address, or leads to a room.
        """
        target = _target(host, port)
        if any((host, port) == (one.address, one.port) and not one.is_closed for one in self._rooms.values()):
            raise ValueError(f"{host}:{port} is a waiting room")
        room = self._rooms.get(name)
        if room is None or self._forwarder is None:
            return
        with self._forwarder.lock:
            if room.is_closed:
                return
            room.target, room.until = target, None
            try:
                self._forwarder.add(room)
            except RuntimeError:
                _log.error("what waits for %s cannot be forwarded: no thread can be started", name)
                self._close(room)

    def close(self, name: str, *, after_s: float = 0.0) -> None:
        """Stop listening and reset what was not accepted; what is forwarded goes on.

        A room that is forwarding goes on accepting for ``after_s`` first.
        """
        room = self._rooms.get(name)
        if room is None or self._forwarder is None:
            return
        with self._forwarder.lock:
            if after_s > 0 and room.target is not None:
                room.until = time.monotonic() + after_s
            else:
                self._close(room)
        self._forwarder.wake()

    def close_all(self) -> None:
        """Close every room, and whoever is not forwarded yet, at once; what is forwarded goes on."""
        for name in self._rooms:
            self.close(name)
        if self._forwarder is not None:
            self._forwarder.drop()

    def is_open(self, name: str) -> bool:
        """Whether a room is open. It is not from ``close`` on, although it may go on accepting."""
        room = self._rooms.get(name)
        return room is not None and not room.is_closed and room.until is None

    def state(self, name: str) -> RoomState:
        """Return what became of those who came to a room since it was opened last."""
        room = self._rooms.get(name)
        if room is None or self._forwarder is None:
            return RoomState()
        waiting = backlog = 0
        with self._forwarder.lock, contextlib.suppress(OSError):  # the socket is closed
            if not room.is_closed:
                told = room.listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                (waiting,) = struct.unpack_from("=I", told, _QUEUE_LENGTH)
                (backlog,) = struct.unpack_from("=I", told, _QUEUE_LIMIT)
        return RoomState(
            waiting=waiting,
            backlog=backlog,
            forwarded=room.forwarded,
            failed=room.failed,
            longest_wait_s=room.longest_wait_s,
        )

    @property
    def totals(self) -> dict[str, RoomState]:
        """The same by name, with what became of those who came to earlier rooms of that name."""
        return {name: _sum(self._gone.get(name, RoomState()), self.state(name)) for name in self._rooms}

    async def stop(self, *, within_s: float = 3.0) -> None:
        """Close every room, let what is forwarded end for so long, and then end it."""
        self.close_all()
        if self._forwarder is None:
            return
        if (thread := self._forwarder.end(within_s=within_s)) is not None:
            with contextlib.suppress(threads.NoThreadError):  # it ends all the same
                await threads.call(thread.join, within_s + 1)

    def _add_up(self, room: Room) -> None:
        """Keep the numbers of a room in whose place another one comes."""
        ended = RoomState(forwarded=room.forwarded, failed=room.failed, longest_wait_s=room.longest_wait_s)
        self._gone[room.name] = _sum(self._gone.get(room.name, RoomState()), ended)

    def _reopen(self, room: Room) -> bool:
        """Let newcomers wait again in a room that was forwarding; report whether that was in time."""
        if self._forwarder is None:
            return False
        with self._forwarder.lock:
            if room.is_closed:
                return False
            self._add_up(room)
            room.target = room.until = None
            room.forwarded, room.failed, room.longest_wait_s, room.has_warned = 0, 0, 0.0, False
        self._forwarder.wake()
        return True

    def _close(self, room: Room) -> None:
        """Close a room; the forwarder's lock is held."""
        if room.is_closed:
            return
        room.is_closed = True
        if room.is_handed:  # its thread may be about to accept, and must not meet another file of the same number
            with contextlib.suppress(OSError):
                room.listener.shutdown(socket.SHUT_RDWR)
        else:
            room.listener.close()


def _sum(before: RoomState, now: RoomState) -> RoomState:
    return dataclasses.replace(
        now,
        forwarded=before.forwarded + now.forwarded,
        failed=before.failed + now.failed,
        longest_wait_s=max(before.longest_wait_s, now.longest_wait_s),
    )


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _why_not(error: OSError, address: str, port: int) -> str:
    where = f"{address}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use, as when PostgreSQL listens on all addresses (listen_addresses)"
    return f"{where}: {os.strerror(error.errno) if error.errno else 'no IPv4 address'}"


def _target(host: str, port: int) -> Target:
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror:
        raise ValueError(f"{host!r} is no IP address") from None
    family, _, _, _, address = found[0]
    where = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    return family, address, where  # type: ignore[return-value]  # what these families have
