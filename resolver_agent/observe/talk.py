"""What agents say to each other by LISTEN and NOTIFY over one connection to a primary: what to ask, and what it means.

It reads and writes nothing itself: ``probe`` does, between its own statements.

Anybody who may connect may also NOTIFY. A message counts only if its sender's session is still there and belongs to
the role of ours. Where others send too much, we stop listening for a while.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import re
from typing import TYPE_CHECKING, NamedTuple

from psycopg import pq

from resolver_agent.system.clock import boottime
from resolver_agent.system.foreign import plain
from resolver_agent.system.pacing import backoff_s

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

CHANNEL = "resolver_agent"

LIMIT = 1024
"""The longest message, in characters."""

QUIET_S = 60.0
"""How long nobody is listened to on a server where too much was sent, or where LISTEN does not work."""

_FIRST_RETRY_S = 1.0
"""How soon a LISTEN that failed is tried again, at first."""

_NEVER_WORKS = ("0A000", "25006", "42501")
"""SQLSTATE of a LISTEN that will not work soon: it is not supported, the server is a standby, or it is forbidden."""

_IN_THE_WAY = ("55P03", "57014")
"""SQLSTATE of a NOTIFY that only took too long: ``lock_timeout`` or ``statement_timeout``."""

_SAY_FOR_S = 2.0
"""How long a message is tried to be sent; after that it is of no use."""

_BURST, _PER_S = 500, 20
"""How many notifications may come at once, and how many a second for long."""

_OUTBOX = 64
_MAX_PEERS = 1000
_PIDS = re.compile(rb"(?:[1-9][0-9]{0,9}(?: [1-9][0-9]{0,9})*)?")
_MAX_INT4 = 2**31 - 1

# Servers before version 14 have no such parameter.
_LISTEN = (
    b"SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings"
    b" WHERE name OPERATOR(pg_catalog.=) 'idle_session_timeout'; LISTEN " + CHANNEL.encode()
)

# Those who NOTIFY commit one after the other. One of them may wait for its standbys, and probes would wait for it too.
# So ours is given up soon, and tried again after the probe.
_NOTIFY = (
    b"SELECT pg_catalog.set_config('lock_timeout', '200', true), pg_catalog.pg_notify('" + CHANNEL.encode() + b"', $1)"
)

# The user of a session is the one that logged in, whatever SET ROLE or SET SESSION AUTHORIZATION did since.
_PEERS = b"""\
SELECT pg_catalog.string_agg(found.pid::pg_catalog.text, ' ')
  FROM (SELECT other.pid
          FROM pg_catalog.pg_stat_activity AS other
          JOIN pg_catalog.pg_stat_activity AS own
            ON own.usesysid OPERATOR(pg_catalog.=) other.usesysid AND own.datid OPERATOR(pg_catalog.=) other.datid
         WHERE own.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
           AND other.pid OPERATOR(pg_catalog.<>) own.pid
         LIMIT %d) AS found""" % (_MAX_PEERS + 1)


class Statement(NamedTuple):
    """A statement of the talk, and its parameter if it has one."""

    sql: bytes
    parameter: bytes | None = None


class _Said(NamedTuple):
    """A message, and when it was to be sent, in seconds of CLOCK_BOOTTIME."""

    message: bytes
    at: float


class _Hears(enum.Enum):
    NOT = enum.auto()
    SOON = enum.auto()
    NOW = enum.auto()


class Talk:
    """The talk over the connections to one server, one connection after the other.

    ``on_message`` is called in the event loop with the sender's process number and what it said. ``name`` is the
    server's, for the log. ``on_ready`` is called when ``following()`` may have a statement.
    """

    def __init__(self, name: str, on_message: Callable[[int, str], None]) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self._name = name
        self._on_message = on_message
        self._quiet_until = 0.0
        self._failures = 0
        self._warned = False
        self._allowed, self._allowed_at = float(_BURST), 0.0
        self._clear()

    def _clear(self) -> None:
        self._hears = _Hears.NOT
        self._own_pid = 0
        self._asked = b""
        self._value: bytes | None = None
        self._failed = ""
        self._outbox: list[_Said] = []
        self._saying: _Said | None = None
        self._others_first = False
        self._inbox: list[tuple[int, str]] = []
        self._unchecked = 0
        """How many of the inbox came before the question under way, which tells whether their senders count."""
        self._askers: list[asyncio.Future[frozenset[int] | None]] = []
        self._waiting: list[asyncio.Future[frozenset[int] | None]] = []

    @property
    def on(self) -> bool:
        """Whether others may be heard over the connection."""
        return self._hears is not _Hears.NOT

    def begin(self, own_pid: int) -> None:
        """Listen from now on, if not done yet: the server has just said that it is a primary."""
        if self._hears is _Hears.NOT and boottime() >= self._quiet_until:
            self._hears, self._own_pid = _Hears.SOON, own_pid

    def end(self) -> None:
        """Forget what was going on: the connection is closed."""
        askers = self._askers + self._waiting
        self._clear()
        for asker in askers:
            _answer(asker, None)

    def give_up(self, words: str) -> None:
        """Do not listen for a while, on this connection and the next ones."""
        self._quiet_until = boottime() + QUIET_S
        _log.log(
            logging.DEBUG if self._warned else logging.WARNING,
            "%s: %s; not listening to other agents there for %g s",
            self._name,
            words,
            QUIET_S,
        )
        self._warned = True

    def say(self, payload: str) -> None:
        """Send a message to everybody who listens, right after the statement under way."""
        try:
            message = payload.encode()
        except UnicodeEncodeError:
            message = b""
        if not message or len(payload) > LIMIT or b"\0" in message:
            _log.debug("%s: not a message: %.40r", self._name, payload)
        elif not self.on or len(self._outbox) >= _OUTBOX:
            _log.debug("%s: a message is dropped: %s", self._name, "too many" if self.on else "no open talk")
        else:
            self._outbox.append(_Said(message, boottime()))
            self.on_ready()

    async def peers(self, *, within_s: float) -> frozenset[int] | None:
        """Return the process numbers of the other sessions of our role; None if that cannot be told in time."""
        if not self.on:
            return None
        asker: asyncio.Future[frozenset[int] | None] = asyncio.get_running_loop().create_future()
        self._askers.append(asker)
        self.on_ready()
        try:
            await asyncio.wait({asker}, timeout=within_s)
            return asker.result() if asker.done() else None
        finally:
            asker.cancel()
            if asker in self._askers:
                self._askers.remove(asker)

    def heard(self, notice: pq.PGnotify) -> bool:
        """Take a notification; return False if there have been too many."""
        now = boottime()
        self._allowed = min(_BURST, self._allowed + (now - self._allowed_at) * _PER_S) - 1
        self._allowed_at = now
        if self._allowed < 0:
            self._allowed = float(_BURST)
            return False
        if self.on and notice.relname == CHANNEL.encode() and notice.be_pid != self._own_pid:
            try:
                payload = notice.extra.decode() if len(notice.extra) <= 4 * LIMIT else ""
            except UnicodeDecodeError:
                payload = ""
            if payload and len(payload) <= LIMIT and len(self._inbox) < _BURST:
                self._inbox.append((notice.be_pid, payload))
        return True

    def following(self) -> Statement | None:
        """Return the statement to send now, if there is one; none may be under way."""
        if self._hears is _Hears.SOON:
            statement = Statement(_LISTEN)
        elif self._outbox and not (self._others_first and (self._inbox or self._askers)):
            self._saying = self._outbox.pop(0)
            statement = Statement(_NOTIFY, self._saying.message)
        elif self._inbox or self._askers:
            statement = Statement(_PEERS)
            self._others_first = False
            self._unchecked = len(self._inbox)
            self._waiting, self._askers = self._askers, []
        else:
            return None
        self._asked, self._value, self._failed = statement.sql, None, ""
        return statement

    def take(self, result: pq.abc.PGresult) -> int:
        """Take a result of the statement under way; return the bytes of its values."""
        if result.status == pq.ExecStatus.FATAL_ERROR:
            self._failed = plain((result.error_field(pq.DiagnosticField.SQLSTATE) or b"?")[:5])
        elif result.status == pq.ExecStatus.TUPLES_OK and (result.ntuples, result.nfields) == (1, 1):
            self._value = result.get_value(0, 0) or b""
            return len(self._value)
        return 0

    def done(self) -> None:
        """Take the end of the statement under way."""
        if self._failed:
            _log.debug("%s: SQLSTATE %s from %.40r", self._name, self._failed, self._asked)
        if self._asked == _LISTEN:
            if self._failed:
                self._deaf()
            else:
                self._hears, self._failures = _Hears.NOW, 0
        elif self._asked == _NOTIFY:
            if self._failed:
                self._unsaid()
        elif self._asked == _PEERS:
            self._checked(None if self._failed else _pids(self._value))

    def _deaf(self) -> None:
        """Try to listen again later: most reasons pass."""
        self._failures += 1
        wait_s = backoff_s(self._failures, first_s=_FIRST_RETRY_S, max_s=QUIET_S)
        if self._failed in _NEVER_WORKS:
            wait_s = QUIET_S
        self._hears, self._quiet_until = _Hears.NOT, boottime() + wait_s
        _log.log(
            logging.WARNING if self._failures == 1 and self._failed != "25006" else logging.DEBUG,
            "%s: LISTEN failed (SQLSTATE %s); not listening to other agents there for %g s",
            self._name,
            self._failed,
            wait_s,
        )
        self._drop()

    def _unsaid(self) -> None:
        """Say again what could not be said, for a while; what has come meanwhile is looked at in between."""
        assert self._saying is not None  # noqa: S101 -- its statement has just ended
        if self._failed in _IN_THE_WAY and boottime() - self._saying.at < _SAY_FOR_S:
            self._outbox.insert(0, self._saying)
            self._others_first = True
        else:
            _log.warning("%s: a message to other agents is lost: SQLSTATE %s", self._name, self._failed)

    def _drop(self) -> None:
        self._outbox.clear()
        askers, self._askers = self._askers, []
        for asker in askers:
            _answer(asker, None)

    def _checked(self, pids: frozenset[int] | None) -> None:
        messages, self._inbox = self._inbox[: self._unchecked], self._inbox[self._unchecked :]
        loop = asyncio.get_running_loop()
        for pid, payload in messages:
            if pids is not None and pid in pids:
                loop.call_soon(self._on_message, pid, payload)
        waiting, self._waiting = self._waiting, []
        for asker in waiting:
            _answer(asker, pids)


def _answer(asker: asyncio.Future[frozenset[int] | None], pids: frozenset[int] | None) -> None:
    if not asker.done():
        asker.set_result(pids)


def _pids(value: bytes | None) -> frozenset[int] | None:
    """Return the process numbers in an answer; None if it is not one that PostgreSQL gives, or has too many."""
    if value is None or not _PIDS.fullmatch(value):
        return None
    found = frozenset(map(int, value.split()))
    return found if len(found) <= _MAX_PEERS and max(found, default=0) <= _MAX_INT4 else None
