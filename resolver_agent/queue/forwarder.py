"""The thread that accepts what waits in rooms and forwards it to servers, as plain bytes.

Everything here runs in that thread, except for the methods that say so. No call in it blocks but the wait for events.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import resource
import selectors
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

from resolver_agent.queue.splice import Flow, Pipes
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

_log = logging.getLogger(__name__)

CONNECT_S = 5.0
"""How long an attempt to connect to the server may take."""

RETRY_S = 2.0
"""How long after its acceptance a client's connection to the server is attempted again when it failed."""

_RETRY_AFTER_S = (0.02, 0.05, 0.1, 0.2)
_DIALS = 64  # attempts under way at once: a server's own backlog may be short
_PAUSE_S = 0.1
_FILES = 6  # of one connection at most: two sockets, and two pipes when both directions are stuck
_SHARE = 0.75  # of the process's files: the agent itself must always be able to write the hosts file
_DEFECTS = 20
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_BUFFER = 128 * 1024  # the kernel doubles it; by itself it gives a slow reader up to 10 MB, which count as ours
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
_LAST_DATA_RECEIVED = 52  # of struct tcp_info, in ms; see <linux/tcp.h>

Target = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int], str]
"""An address family, a socket address in it, and the same in words."""


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Room:
    """A listening socket and what became of those who came to it.

    The forwarder's lock guards ``target``, ``until``, ``is_closed`` and ``is_handed``. ``target`` is where to forward,
    None: not now. ``until`` is the monotonic time at which it is closed. A room that ``is_handed`` is in the
    forwarder's list, and then the forwarder alone closes the socket.
    """

    name: str
    address: str
    port: int
    listener: socket.socket
    target: Target | None = None
    until: float | None = None
    is_closed: bool = False
    is_handed: bool = False
    is_watched: bool = False
    has_warned: bool = False
    forwarded: int = 0
    failed: int = 0
    longest_wait_s: float = 0.0


class _Pair:
    """A client, and the connection to the server for it."""

    def __init__(self, room: Room, client: socket.socket, target: Target, now: float) -> None:
        self.room = room
        self.client = client
        self.target = target
        self.since = now
        self.due = now  # when to try to connect, or to give the attempt under way up
        self.attempts = 0
        self.server: socket.socket | None = None
        self.flows: tuple[Flow, Flow] | None = None  # from the client, from the server
        self.is_over = False


class Forwarder:
    """Forwards what comes to the rooms that are handed to it. Its thread begins with the first and ends with the last.

    Raises:
        OSError: the process or the system is short of files.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._rooms: list[Room] = []
        self._thread: threading.Thread | None = None
        self._end_at: float | None = None
        self._drops = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._pipes = Pipes()
        self._pairs: dict[_Pair, None] = {}
        self._dialling: dict[_Pair, None] = {}
        self._undialled: dict[_Pair, None] = {}
        self._most = 0
        self._paused_until = 0.0
        self._failures = 0
        self._said: set[str] = set()

    def add(self, room: Room) -> None:
        """Forward what comes to a room from now on. Called by other threads, with the lock held.

        Raises:
            RuntimeError: no thread can be started now.
        """
        self._end_at = None
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
            thread.start()  # it needs the lock first
            self._thread = thread
        if not room.is_handed:
            room.is_handed = True
            self._rooms.append(room)
        self.wake()

    def end(self, *, within_s: float) -> threading.Thread | None:
        """End all connections after so long, and return the thread if there is one. Called by other threads."""
        with self.lock:
            self._end_at = time.monotonic() + within_s
            self.wake()
            return self._thread

    def drop(self) -> None:
        """Close the clients of closed rooms that have no connection to the server yet. Called by other threads."""
        self._drops = True
        self.wake()

    def wake(self) -> None:
        """Have the thread look at the rooms again. Called by other threads."""
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while self._guarded_turn():
            pass

    def _guarded_turn(self) -> bool:
        try:
            more = self._turn()
        except Exception as error:  # noqa: BLE001 -- clients must not hang because of a defect
            self._failures += 1
            self._defect(error)
            if self._failures >= _DEFECTS:
                self._give_up()
            time.sleep(_PAUSE_S)
            return True
        self._failures = 0
        return more

    def _turn(self) -> bool:
        """Wait for events once and serve them; report whether there may be more to do."""
        if not self._most:
            self._most = max(1, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _SHARE) // _FILES)
        now = time.monotonic()
        if self._end_at is not None and now >= self._end_at:
            self._end_all(self._pairs)
        if self._drops:
            self._drops = False
            self._end_all([pair for pair in self._pairs if pair.flows is None and pair.room.is_closed], failed=True)
        with self.lock:
            self._tend(now)
            if not self._rooms and not self._pairs:
                self._thread = None
                self._pipes.close()
                return False
        for key, events in self._selector.select(self._timeout(now)):
            if key.fd == self._wake:
                os.eventfd_read(self._wake)
            elif isinstance(key.data, Room):
                self._accept(key.data)
            elif not key.data.is_over:
                self._attend(key.data, key.fileobj, events)
        self._dial_due()
        return True

    def _tend(self, now: float) -> None:
        """Watch the rooms where a connection may be accepted now, and let go of those that are done; lock held."""
        may_accept = now >= self._paused_until and self._has_space()
        for room in tuple(self._rooms):
            room.is_closed = room.is_closed or (room.until is not None and now >= room.until)
            is_done = room.is_closed or room.target is None
            if room.is_watched and (is_done or not may_accept):
                room.is_watched = False
                self._selector.unregister(room.listener)
            elif may_accept and not (room.is_watched or is_done):
                self._selector.register(room.listener, selectors.EVENT_READ, room)
                room.is_watched = True
            if is_done:
                self._rooms.remove(room)
                room.is_handed = False
            if room.is_closed:
                room.listener.close()

    def _has_space(self) -> bool:
        return len(self._dialling) < _DIALS and len(self._pairs) < self._most

    def _timeout(self, now: float) -> float | None:
        """Return for how long to wait for events, in seconds; None: until there are some."""
        due = [pair.due for pair in self._dialling]
        if len(self._dialling) < _DIALS:
            due += [pair.due for pair in self._undialled]
        due += [room.until for room in self._rooms if room.until is not None]
        if self._end_at is not None:
            due.append(self._end_at)
        if self._rooms and self._paused_until > now:
            due.append(self._paused_until)
        return max(0.0, min(due) - now) if due else None

    def _accept(self, room: Room) -> None:
        """Accept what waits in a room, as long as there is space."""
        while self._has_space():
            now = time.monotonic()
            with self.lock:
                if room.is_closed or room.target is None:
                    return
                try:
                    client, _ = room.listener.accept()
                except BlockingIOError:
                    return
                except OSError as error:  # short of files or memory; or that client has gone
                    if error.errno != errno.ECONNABORTED:
                        self._paused_until = now + _PAUSE_S
                    return
                pair = _Pair(room, client, room.target, now)
            self._pairs[pair] = None
            try:
                client.setblocking(False)  # noqa: FBT003 -- the name says what it is
                room.longest_wait_s = max(room.longest_wait_s, _silent_s(client))
                _set_options(client)
                self._dial(pair, now)
            except Exception as error:  # noqa: BLE001 -- it concerns this client alone
                self._fail(pair, error)

    def _dial_due(self) -> None:
        """Attempt the connections whose time it is, and give up the attempts that take too long."""
        now = time.monotonic()
        for waiting in (self._dialling, self._undialled):
            for pair in [pair for pair in waiting if pair.due <= now]:
                self._redial(pair, now)

    def _redial(self, pair: _Pair, now: float) -> None:
        try:
            if pair.server is not None:
                self._missed(pair, errno.ETIMEDOUT)
            elif len(self._dialling) < _DIALS:
                self._dial(pair, now)
        except Exception as error:  # noqa: BLE001 -- it concerns this client alone
            self._fail(pair, error)

    def _dial(self, pair: _Pair, now: float) -> None:
        """Begin an attempt to connect to the server."""
        self._undialled.pop(pair, None)
        pair.target = pair.room.target or pair.target  # it may lead to another server by now
        pair.attempts += 1
        family, address, _ = pair.target
        try:
            pair.server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._paused_until = now + _PAUSE_S
            self._missed(pair, error.errno)
            return
        self._dialling[pair] = None
        pair.due = now + CONNECT_S
        _set_options(pair.server)
        code = pair.server.connect_ex(address)
        if code in (0, errno.EINPROGRESS):
            self._selector.register(pair.server, selectors.EVENT_WRITE, pair)
        else:
            self._missed(pair, code)

    def _missed(self, pair: _Pair, code: int | None) -> None:
        """An attempt failed: try again later, or close the client."""
        self._dialling.pop(pair, None)
        if pair.server is not None:
            self._close(pair.server)
            pair.server = None
        now = time.monotonic()
        if now - pair.since >= RETRY_S:
            self._fail(pair, OSError(code, os.strerror(code or 0)))
            return
        pair.due = now + _RETRY_AFTER_S[min(pair.attempts, len(_RETRY_AFTER_S)) - 1]
        self._undialled[pair] = None

    def _attend(self, pair: _Pair, ready: object, events: int) -> None:
        """Serve one of the two sockets of a connection, which is ready for something."""
        try:
            if pair.flows is None:
                self._connected(pair)
                return
            from_client, from_server = pair.flows
            outward, inward = (from_client, from_server) if ready is pair.client else (from_server, from_client)
            if events & selectors.EVENT_READ and outward.reads:
                outward.pump()
            if events & selectors.EVENT_WRITE and inward.writes:
                inward.pump()
            self._await(pair)
        except Exception as error:  # noqa: BLE001 -- it concerns this connection alone
            if pair.flows is None:
                self._fail(pair, error)
                return
            if not isinstance(error, OSError) or error.errno in _SHORT:
                self._defect(error)
            self._end(pair)  # a side is broken, which ends the other

    def _connected(self, pair: _Pair) -> None:
        """The attempt to connect has a result: forward from now on, or try again."""
        server = pair.server
        if server is None:
            return
        if code := server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._missed(pair, code)
            return
        del self._dialling[pair]
        pair.room.forwarded += 1
        pair.flows = (Flow(pair.client, server, self._pipes), Flow(server, pair.client, self._pipes))
        pair.flows[0].pump()
        self._await(pair)

    def _await(self, pair: _Pair) -> None:
        """Wait for exactly what a connection can go on with; end it when both directions are over."""
        if pair.flows is None or pair.server is None:
            return
        outward, inward = pair.flows
        if outward.is_over and inward.is_over:
            self._end(pair)
            return
        self._watch(pair, pair.client, reads=outward.reads, writes=inward.writes)
        self._watch(pair, pair.server, reads=inward.reads, writes=outward.writes)

    def _watch(self, pair: _Pair, one: socket.socket, *, reads: bool, writes: bool) -> None:
        events = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if writes else 0)
        key = self._selector.get_map().get(one)
        if key is None:
            if events:
                self._selector.register(one, events, pair)
        elif not events:  # epoll would go on to report that it is hung up
            self._selector.unregister(one)
        elif key.events != events:
            self._selector.modify(one, events, pair)

    def _fail(self, pair: _Pair, error: Exception) -> None:
        """Close a client that could not be forwarded; the first of a room is logged."""
        room = pair.room
        room.failed += 1
        self._end(pair)
        if not isinstance(error, OSError):
            self._defect(error)
        elif not room.has_warned:
            room.has_warned = True
            words = plain(error.strerror or str(error))
            _log.warning(
                "a connection that waited for %s could not be forwarded to %s: %s", room.name, pair.target[2], words
            )

    def _end(self, pair: _Pair) -> None:
        pair.is_over = True
        for group in (self._pairs, self._dialling, self._undialled):
            group.pop(pair, None)
        for flow in pair.flows or ():
            flow.end()
        for one in (pair.client, pair.server):
            if one is not None:
                self._close(one)

    def _close(self, one: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it is not watched
            self._selector.unregister(one)
        one.close()

    def _end_all(self, pairs: Iterable[_Pair], *, failed: bool = False) -> None:
        for pair in tuple(pairs):
            pair.room.failed += failed
            with contextlib.suppress(Exception):  # the others all the same
                self._end(pair)

    def _give_up(self) -> None:
        """Close everything: clients that get an error are better off than clients that hang."""
        with self.lock:
            for room in self._rooms:
                room.is_closed = True
                with contextlib.suppress(OSError):
                    room.listener.shutdown(socket.SHUT_RDWR)
        self._end_all(self._pairs)

    def _defect(self, error: Exception) -> None:
        """Log an unexpected error, once."""
        words = plain(f"{type(error).__name__}: {error}")
        if words not in self._said and len(self._said) < _DEFECTS:
            self._said.add(words)
            _log.error("forwarding met an unexpected error", exc_info=error)


def _set_options(one: socket.socket) -> None:
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    for option, value in _KEEPALIVE:
        one.setsockopt(socket.IPPROTO_TCP, option, value)


def _silent_s(one: socket.socket) -> float:
    """Return for how long a connection has brought nothing: a client says something at once, and then waits."""
    told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (silent_ms,) = struct.unpack_from("=I", told, _LAST_DATA_RECEIVED)
    return float(silent_ms) / 1000
