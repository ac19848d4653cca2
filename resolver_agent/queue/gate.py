"""Gate: statements of one database that have not begun wait; those that have begun go on.

Every distributed statement locks ``pg_dist_node`` (ACCESS SHARE) before it chooses a connection, and keeps that lock to
the end of its transaction. While a request for ACCESS EXCLUSIVE waits, a transaction that has the lock goes on, and one
that has not waits behind the request. Two sessions close the gate: the *keeper* holds ACCESS SHARE inside one running
statement, so the *request* of the other is not granted; a lock that was granted would be replayed by standbys, and hang
them.

It opens by itself if this process is killed (the server notices that the request's client is gone) or stopped
(``lock_timeout``). A new session's first query waits at the gate, too: open no session in that database meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg.rows import class_row

from resolver_agent.citus import session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.config.model import Config

FUNCTIONS = ("resolver_agent.close_gate", "resolver_agent.keep_gate", "resolver_agent.under_way")
"""The functions of ``systemd/role.sql`` that a gate needs, in every database that has Citus."""

MOST_S = 15.0
"""How long ``resolver_agent.close_gate()`` lasts at most."""

_POLL_S = 0.002
_OPEN_S = 1.0

# Some of them are not there in every version. An idle session must not be ended, nor a statement that waits.
_SETTINGS = """
SELECT set_config(name, CASE name WHEN 'client_connection_check_interval' THEN %s
                                   WHEN 'lock_timeout' THEN %s ELSE '0' END, false)
  FROM pg_settings
 WHERE name IN ('client_connection_check_interval', 'idle_in_transaction_session_timeout', 'idle_session_timeout',
                'lock_timeout', 'statement_timeout', 'transaction_timeout')
"""
_WARM = "SELECT FROM pg_dist_node LIMIT 1"
_UNDER_WAY = """
SELECT pid, active, inside, extract(epoch FROM clock_timestamp() - since)::float8 AS age_s
  FROM resolver_agent.under_way() WHERE since IS NOT NULL AND pid <> ALL(%s)
"""
_HAS_LOCK = """
SELECT EXISTS (SELECT FROM pg_locks
                WHERE pid = %s AND relation = 'pg_dist_node'::regclass AND mode = %s AND granted = %s)
"""
# Part of the name of each connection that Citus opens from here, since Citus 11.
_NODE_ID = "SELECT to_regproc('citus_backend_gpid') IS NOT NULL"
_GPID = "SELECT citus_backend_gpid() / 10000000000"


class GateError(Exception):
    """The gate could not be closed; the message has the reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class UnderWay:
    """A client session that runs a command, or is idle in a transaction, for ``age_s`` seconds.

    ``inside``: it has used a distributed table in its transaction, so it goes on while the gate is closed.
    """

    pid: int
    active: bool
    inside: bool
    age_s: float


class Gate:
    """The gate of one database. Its sessions are open and have run a query; ``prepared()`` makes it."""

    def __init__(
        self, keeper: psycopg.Connection, request: psycopg.Connection, watch: psycopg.Connection, *, lock_s: float
    ) -> None:
        self._watch = watch
        self._keeper = _Statement(keeper, "SELECT resolver_agent.keep_gate()")
        self._request = _Statement(request, "SELECT resolver_agent.close_gate()")
        for connection, check_interval in ((watch, "0"), (keeper, "0"), (request, "100ms")):
            connection.execute(_SETTINGS, (check_interval, f"{int(lock_s * 1000)}ms"))
            connection.execute(_WARM)
        for function in FUNCTIONS:
            fault = session.fault_of(watch, function)
            if fault is not None:
                raise GateError(fault)
        [(has_gpid,)] = watch.execute(_NODE_ID)
        self.node_id: int | None = watch.execute(_GPID).fetchall()[0][0] if has_gpid else None
        self.under_way()

    @property
    def closed(self) -> bool:
        """Whether it is closed: it may have opened by itself."""
        return self._request.runs

    @property
    def fault(self) -> str | None:
        """Why it has opened by itself, or could not be closed."""
        return self._request.fault or self._keeper.fault

    def keep(self, *, within_s: float) -> None:
        """Have the keeper take its lock; nobody waits for that yet.

        Raises:
            GateError: it did not get the lock in time.
            psycopg.Error: the server could not be asked.
        """
        self._start(self._keeper, "AccessShareLock", granted=True, within_s=within_s)

    def close(self, *, within_s: float) -> None:
        """Close it, when it is kept.

        Raises:
            GateError: it could not be closed in time.
            psycopg.Error: the server could not be asked.
        """
        self._start(self._request, "AccessExclusiveLock", granted=False, within_s=within_s)

    def open(self) -> None:
        """Open it, if it is closed: the request goes first, so that it is never granted. It raises nothing."""
        for statement in (self._request, self._keeper):
            if statement.runs:
                with contextlib.suppress(psycopg.Error):
                    self._watch.execute("SELECT pg_cancel_backend(%s::int4)", (statement.pid,))
            statement.end(within_s=_OPEN_S)

    def under_way(self) -> list[UnderWay]:
        """Return who is at work on the whole server, without the gate's own sessions.

        Raises:
            psycopg.Error: the server could not be asked.
        """
        ours = [self._keeper.pid, self._request.pid]
        return self._watch.cursor(row_factory=class_row(UnderWay)).execute(_UNDER_WAY, (ours,)).fetchall()

    def _start(self, statement: _Statement, mode: str, *, granted: bool, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        statement.start()
        while self._watch.execute(_HAS_LOCK, (statement.pid, mode, granted)).fetchone() != (True,):
            if not statement.runs:
                raise GateError(f"the gate did not close: {statement.fault}")
            if time.monotonic() > deadline:
                raise GateError(f"the gate did not close within {within_s:g} s")
            time.sleep(_POLL_S)


@contextlib.contextmanager
def prepared(config: Config, database: str, *, lock_s: float, limit_s: float) -> Iterator[Gate]:
    """Open the sessions of a gate, for ``limit_s`` at most; it is opened in the end.

    It opens by itself ``lock_s`` after it was closed, ``MOST_S`` at most.

    Raises:
        GateError: it cannot be closed here, with the fix.
        psycopg.Error: the server could not be asked.
    """
    with contextlib.ExitStack() as stack:
        keeper, request, watch = (
            stack.enter_context(session.connect(config, dbname=database, limit_s=limit_s)) for _ in range(3)
        )
        gate = Gate(keeper, request, watch, lock_s=lock_s)
        stack.callback(gate.open)
        yield gate


class _Statement:
    """A statement that runs in a thread until it is cancelled."""

    def __init__(self, connection: psycopg.Connection, query: str) -> None:
        self.pid = connection.info.backend_pid
        self.fault: str | None = None
        self._connection = connection
        self._query = query
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            raise GateError(f"no thread: {error}") from error

    def end(self, *, within_s: float) -> None:
        """Wait until it has ended; after this time take its connection away."""
        if self._thread.ident is None:
            return
        self._thread.join(within_s)
        if self.runs:
            with (
                contextlib.suppress(OSError, psycopg.Error),
                socket.socket(fileno=os.dup(self._connection.fileno())) as ours,
            ):
                ours.shutdown(socket.SHUT_RDWR)
            self._thread.join(within_s)

    def _run(self) -> None:
        try:
            self._connection.execute(self._query.encode())
            self.fault = "it has ended"
        except psycopg.errors.QueryCanceled:
            pass
        except psycopg.Error as error:
            self.fault = session.words(error)
