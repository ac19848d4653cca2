"""Opens connections with libpq, in threads of their own and outside Python's global interpreter lock.

psycopg calls libpq with the lock held. A server may make one such call take as long as it likes: it asks for SCRAM with
millions of iterations, or for a slow key exchange. With the lock held, that would stop the event loop for every server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import functools
import os
import queue
import select
import socket
import sys
import termios
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from resolver_agent.system import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LIMIT_BYTES = 12 << 10
"""How much a server may send before a session begins: parameters and notices take 1 KiB or 2."""

_TLS_LIMIT_BYTES = 64 << 10
"""How much it may send as a TLS handshake: certificates, and the names of the authorities that it accepts."""

_LIMIT_READS = 512

_RECEIVE_BYTES = 8 << 10
"""The size of the socket's receive buffer; the kernel doubles it.

One call of libpq reads until the buffer is empty once it holds 32 KiB of an unfinished message. Against a fast sender
this has no end, so it must never come to hold as much.
"""

_IDLE_PRIORITY = 19
_NO_RENEGOTIATION = 1 << 30
"""OpenSSL's ``SSL_OP_NO_RENEGOTIATION``: TLS 1.2 lets a server begin another handshake at any time."""

_NO_CLEANUP = 0x00080000
"""OpenSSL's ``OPENSSL_INIT_NO_ATEXIT``."""

STILL_AT_WORK = "libpq has not finished the log-in begun before: it asks for too much work (SCRAM iterations, TLS)"


class Unconnected(NamedTuple):
    """Why there is no connection, in libpq's words, and which server was asked; ``host`` may be a socket's folder."""

    text: str
    host: str = ""
    port: str = ""
    user: str = ""


class Attempt:
    """One attempt to connect. ``run()`` is for a thread of its own, ``abandon()`` for any other thread."""

    def __init__(self, keywords: Mapping[str, str]) -> None:
        self._keywords = keywords
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._socket: socket.socket | None = None
        self._inode: int | None = None
        self._abandoned = False

    def run(self) -> pq.abc.PGconn | Unconnected:
        """Return the connection, in non-blocking mode, or why there is none. It raises nothing."""
        with self._lock:
            self._thread = threading.get_native_id()
        try:
            found = self._connect()
        except (psycopg.Error, OSError, MemoryError) as error:
            found = Unconnected(str(error) or "out of memory")
        with self._lock:
            self._thread = None  # the kernel may give its number to another thread
            if self._socket is not None:
                self._socket.close()
            if self._abandoned and not isinstance(found, Unconnected):
                found.finish()
                return Unconnected("abandoned")
        return found

    def abandon(self) -> None:
        """End the attempt: at once where it waits for the server; where libpq computes, some time at low priority."""
        with self._lock:
            self._abandoned = True
            with contextlib.suppress(OSError):
                if self._socket is not None:
                    self._socket.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                if self._thread is not None:
                    os.setpriority(os.PRIO_PROCESS, self._thread, _IDLE_PRIORITY)

    def _connect(self) -> pq.abc.PGconn | Unconnected:
        pgconn = pq.PGconn.connect_start(make_conninfo(**self._keywords).encode())
        try:
            fault = self._establish(pgconn)
        except BaseException:
            pgconn.finish()
            raise
        if fault is None:
            pgconn.nonblocking = 1
            return pgconn
        where = (pgconn.hostaddr or pgconn.host, pgconn.port, pgconn.user)
        pgconn.finish()
        return Unconnected(fault, *(value.decode(errors="replace") for value in where))

    def _establish(self, pgconn: pq.abc.PGconn) -> str | None:
        """Wait and call libpq by turns until the connection is ready, and return what went wrong, if anything."""
        state, left_bytes, left_tls_bytes = int(pq.PollingStatus.WRITING), LIMIT_BYTES, _TLS_LIMIT_BYTES
        if pgconn.status == pq.ConnStatus.BAD:
            return _message(pgconn)
        for _ in range(_LIMIT_READS):
            if not self._hold(pgconn.socket):
                return "abandoned"
            waiting = select.poll()
            waiting.register(pgconn.socket, select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT)
            waiting.poll()
            if pgconn.status == pq.ConnStatus.SSL_STARTUP:
                left_tls_bytes -= unread_bytes(pgconn.socket)
            else:
                left_bytes -= unread_bytes(pgconn.socket)
            if left_bytes < 0 or left_tls_bytes < 0:
                break
            state = _LIBPQ.poll(pgconn)
            if state == pq.PollingStatus.OK:
                _LIBPQ.forbid_renegotiation(pgconn)
                return None
            if state == pq.PollingStatus.FAILED:
                return _message(pgconn)
        return "it sends too much before a session begins"

    def _hold(self, descriptor: int) -> bool:
        """Keep a duplicate of the socket that libpq uses now; return False if the attempt was abandoned."""
        inode = os.fstat(descriptor).st_ino
        if inode != self._inode:  # libpq opens another one to try without TLS
            duplicate = socket.socket(fileno=os.dup(descriptor))
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            with self._lock:
                if self._socket is not None:
                    self._socket.close()
                self._socket, self._inode = duplicate, inode
        return not self._abandoned


class Connector:
    """Opens connections for tasks of an event loop, one at a time for each address."""

    def __init__(self) -> None:
        self._left: dict[_Key, asyncio.Future[pq.abc.PGconn | Unconnected]] = {}

    async def connect(self, keywords: Mapping[str, str], *, within_s: float) -> pq.abc.PGconn | Unconnected | None:
        """Return a connection in non-blocking mode, why there is none, or None if there was no answer in time.

        An attempt that is abandoned while libpq computes cannot be stopped: until it has ended, no other one begins.
        """
        key = _key(keywords)
        if key in self._left:
            left = self._left[key]
            await asyncio.wait({left}, timeout=within_s)
            if not left.done():
                return Unconnected(STILL_AT_WORK)
        attempt = Attempt(keywords)
        running = threads.start(attempt.run)
        taken = False
        try:
            await asyncio.wait({running}, timeout=within_s)
            taken = running.done()
            return running.result() if taken else None
        except threads.NoThreadError as error:
            return Unconnected(error.strerror or str(error))
        finally:
            if not taken:
                attempt.abandon()
                self._left[key] = running
                running.add_done_callback(functools.partial(self._ended, key))

    def _ended(self, key: _Key, running: asyncio.Future[pq.abc.PGconn | Unconnected]) -> None:
        del self._left[key]
        found = running.result()
        if not isinstance(found, Unconnected):
            found.finish()


_Key = tuple[str, str]
_at_work: dict[_Key, threading.Thread] = {}


def connect(keywords: Mapping[str, str], *, within_s: float) -> psycopg.Connection:
    """Return a session in autocommit mode: for callers outside the event loop.

    Raises:
        psycopg.OperationalError: there was no answer in time, or another one than a session.
    """
    key, attempt = _key(keywords), Attempt(keywords)
    before = _at_work.get(key)
    if before is not None:
        before.join(within_s)
        if before.is_alive():
            raise psycopg.OperationalError(STILL_AT_WORK)
    results: queue.SimpleQueue[pq.abc.PGconn | Unconnected] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: results.put(attempt.run()), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no thread
        raise psycopg.OperationalError(str(error)) from error
    _at_work[key] = thread
    try:
        found = results.get(timeout=within_s)
    except BaseException as error:
        attempt.abandon()
        if isinstance(error, queue.Empty):
            raise psycopg.OperationalError(f"no answer within {within_s:g} s") from None
        raise
    if isinstance(found, Unconnected):
        raise psycopg.OperationalError(f"connection failed: {found.text}")
    connection = psycopg.Connection(found)
    connection.autocommit = True
    return connection


class _Libpq:
    """The calls through which a server can make libpq compute: by ctypes, which releases the lock."""

    def __init__(self) -> None:
        # dlsym() also looks in the libraries that psycopg's module was linked with: its own libpq and OpenSSL.
        by_python = sys.modules.get("psycopg.pq._pq_ctypes")
        path = by_python.libname if by_python is not None else sys.modules[pq.PGconn.__module__].__file__
        library = ctypes.CDLL(path)
        self._poll = library.PQconnectPoll
        self._poll.argtypes = [ctypes.c_void_p]
        self._ssl: Callable[[int | None], int | None] = library.PQgetssl
        library.PQgetssl.argtypes, library.PQgetssl.restype = [ctypes.c_void_p], ctypes.c_void_p
        self._set_options: Any = getattr(library, "SSL_set_options", None)  # None where it has no OpenSSL of today
        if self._set_options is not None:
            self._set_options.argtypes, self._set_options.restype = [ctypes.c_void_p, ctypes.c_uint64], ctypes.c_uint64

        # At the end of the process OpenSSL would clean up under a thread that still computes, which crashes. It takes
        # this option before its first use only.
        init: Any = getattr(library, "OPENSSL_init_crypto", None)
        if init is not None:
            init.argtypes = [ctypes.c_uint64, ctypes.c_void_p]
            init(_NO_CLEANUP, None)

    def poll(self, pgconn: pq.abc.PGconn) -> int:
        """Do the next step of connecting, and return what to wait for, as ``PollingStatus``."""
        return int(self._poll(_pointer(pgconn)))

    def forbid_renegotiation(self, pgconn: pq.abc.PGconn) -> None:
        """Refuse another TLS handshake: it would be computed where the session is read, in the event loop."""
        ssl = self._ssl(_pointer(pgconn))
        if ssl is not None and self._set_options is not None:
            self._set_options(ssl, _NO_RENEGOTIATION)


def _pointer(pgconn: pq.abc.PGconn) -> int | None:
    pointer: int | None = pgconn.pgconn_ptr  # type: ignore[attr-defined]  # psycopg's protocol leaves it out
    return pointer


_LIBPQ = _Libpq()


def unread_bytes(descriptor: int) -> int:
    """Return how many bytes have arrived at a socket and were not read yet."""
    count = bytearray(4)
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)


def _key(keywords: Mapping[str, str]) -> _Key:
    return keywords.get("hostaddr") or keywords.get("host", ""), keywords.get("port", "")


def _message(pgconn: pq.abc.PGconn) -> str:
    return pgconn.error_message.decode(errors="backslashreplace").strip()
