"""What a coordinator primary does before another primary stops: hold new statements back while others end.

Sessions stop caching connections (*uncache*), commands that began with cached ones end (*grow out*), new statements
wait at the gate, and what is under way on the server that stops ends (*drain*). Then the names lead to the waiting
room, and everything is given back before the gate opens: only statements for that server wait from there on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING

import psycopg

from resolver_agent.citus import flush, session
from resolver_agent.config.model import Node
from resolver_agent.queue import drain
from resolver_agent.queue.gate import MOST_S, Gate, GateError, UnderWay, prepared

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from resolver_agent.config.model import Config
    from resolver_agent.queue.drain import Open

_ALONE_S = 2.0
_GROW_OUT_S = 1.0
_CLOSE_S = 1.0
_WITHOUT_ROOM_S = 5.0
_MARGIN_S = 3.0
_JOINING_S = 0.5

_COORDINATES = """
SELECT EXISTS (SELECT FROM pg_dist_local_group WHERE groupid = 0)
       AND EXISTS (SELECT FROM pg_dist_node WHERE groupid <> 0)
"""
_FAULTS = (flush.FlushError, GateError, psycopg.Error, OSError)


class HoldError(Exception):
    """It could not even begin: nothing was changed. The message has the reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class Leaving:
    """A primary that is about to stop: the name of its group, its host as configured, its IP address and port."""

    name: str
    host: str
    address: str
    port: int


@dataclasses.dataclass(slots=True)
class Held:
    """How it went.

    Attributes:
        uncached: no session cached a connection meanwhile.
        uncache_ms: how long each step took; ``closed_ms`` is from closing the gate to its opening.
        left: in words, what was not waited for, or not long enough; shortened.
        left_count: how much that is.
        fault: why a step failed or was left out; None if all is well.
    """

    uncached: bool = False
    uncache_ms: float = 0.0
    grow_out_ms: float = 0.0
    gate_ms: float = 0.0
    drain_ms: float = 0.0
    closed_ms: float = 0.0
    left: tuple[str, ...] = ()
    left_count: int = 0
    fault: str | None = None

    def __str__(self) -> str:
        words = (
            f"statements were held at the gate for {self.closed_ms:.0f} ms, after {self.uncache_ms:.0f} ms to close "
            f"cached connections and {self.grow_out_ms:.0f} ms to grow out; {self.drain_ms:.0f} ms to drain"
        )
        left = f"; not ended: {'; '.join(self.left)}" if self.left else ""
        return f"{words}{left}{f'; {self.fault}' if self.fault else ''}"

    def add_fault(self, words: str) -> None:
        """Add a fault to those before."""
        self.fault = words if self.fault is None else f"{self.fault}; {words}"


def coordinated_databases(config: Config) -> session.Databases:
    """Return ``session.databases()``, with those alone in which the local server is a coordinator with workers.

    A database that does not answer, as while a gate is closed in it, is among the ``faults``.

    Raises:
        psycopg.Error: the local server could not be asked.
    """
    found = session.databases(config)
    asked = {database: session.holds(config, database, _COORDINATES) for database in found.with_citus}
    return dataclasses.replace(
        found,
        with_citus=tuple(database for database, answer in asked.items() if answer is True),
        faults={**found.faults, **{name: answer for name, answer in asked.items() if isinstance(answer, str)}},
    )


def hold(
    config: Config,
    databases: tuple[str, ...],
    *,
    leaving: Callable[[], tuple[Leaving, ...]],
    to_room: Callable[[], bool],
    abort: threading.Event,
    forwarded: threading.Event,
    drain_s: float,
) -> Held:
    """Do all of it; for a thread of its own.

    Args:
        config: the agent's.
        databases: those in which the local server is a coordinator, of ``coordinated_databases()``.
        leaving: the primaries that stop; asked again while draining, because another one may join.
        to_room: blocks until their names lead to the waiting room, on disk; False if there is no room.
        abort: set: undo everything at once.
        forwarded: set when the names lead to running servers again, on disk. No flush may be waited for before that:
            flushes wait for the end of this call. Without a room the gate stays closed until then, 5 s at most.
        drain_s: how long to wait for what is under way.

    Raises:
        HoldError: it could not begin; nothing was changed.
    """
    held = Held()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(flush.alone(_ALONE_S))
            one = _Hold(config, stack, held, leaving=leaving, drain_s=drain_s, abort=abort)
            one.begin(databases)
        except _FAULTS as error:
            raise HoldError(_words(error)) from error
        try:
            for step in (one.uncache, one.grow_out, one.close, one.drain):
                if not one.attempt(step):
                    break
            if not (abort.is_set() or one.attempt(to_room)):
                one.wait_for(forwarded)
        finally:
            one.undo()
    return held


class _Hold:
    """The steps, and what they need: sessions that were opened, and have run a query, before the gate closed."""

    def __init__(
        self,
        config: Config,
        stack: contextlib.ExitStack,
        held: Held,
        *,
        leaving: Callable[[], tuple[Leaving, ...]],
        drain_s: float,
        abort: threading.Event,
    ) -> None:
        self._config = config
        self._stack = stack
        self._held = held
        self._leaving = leaving
        self._drain_s = drain_s
        self._abort = abort
        self._lock_s = min(drain_s + _CLOSE_S + _WITHOUT_ROOM_S, MOST_S)
        self._session_s = self._lock_s + 2 * config.timeout_s + _GROW_OUT_S + _MARGIN_S
        self._gates: list[Gate] = []
        self._servers: dict[Leaving, psycopg.Connection | str] = {}
        self._flushed_at = self._closed_at = time.monotonic()

    def begin(self, databases: tuple[str, ...]) -> None:
        """Open all sessions."""
        self._own = self._stack.enter_context(session.connect(self._config, limit_s=self._session_s))
        self._own.execute("SELECT 1")
        for database in databases:
            gate = prepared(self._config, database, lock_s=self._lock_s, limit_s=self._session_s)
            self._gates.append(self._stack.enter_context(gate))
        self.join(within_s=self._config.timeout_s)

    def attempt(self, step: Callable[[], bool | None]) -> bool:
        """Do a step, unless all is to end at once, and return whether the next one may follow."""
        if self._abort.is_set():
            return False
        try:
            return step() is not False
        except Exception as error:  # noqa: BLE001 -- whatever it is, everything has to be undone
            self._held.add_fault(_words(error))
            return False

    def join(self, *, within_s: float) -> None:
        """Open a session on each server that stops and has none yet."""
        for one in self._leaving():
            if one in self._servers:
                continue
            opened = drain.connect(
                self._config, Node(one.host, one.port), one.address, within_s=within_s, limit_s=self._session_s
            )
            try:
                server = self._stack.enter_context(opened)
                drain.left(server)
                self._servers[one] = server
            except psycopg.Error as error:
                self._lose(one, error)

    def uncache(self) -> None:
        """Flush, and have sessions cache nothing, where connection slots suffice."""
        begun = time.monotonic()
        short = self._short_of_slots()
        flushed = flush.flush(self._config, uncached=short is None)
        if flushed is None:
            raise flush.FlushError("Citus is not loaded")
        self._flushed_at = time.monotonic()
        fault = short or flushed.cached
        if fault is not None:
            self._held.add_fault(f"connections stay cached: {fault}")
        self._held.uncached = fault is None
        self._held.uncache_ms = _since(begun)

    def _short_of_slots(self) -> str | None:
        """Return why connections stay cached: uncached, each active session may need one slot more on a server.

        The connection that it has just closed may still take one there.
        """
        active = sum(one.active for one in self._under_way())
        for one, server in self._servers.items():
            if isinstance(server, str):
                return server
            free = drain.free_slots(server)
            if free < active:
                return f"{one.host} has {free} free connection slots for {active} active sessions of the coordinator"
        return None

    def grow_out(self) -> None:
        """Wait until no command is under way that began before the flush was confirmed: it has not seen the flush."""
        begun = time.monotonic()
        while time.monotonic() - begun < _GROW_OUT_S and not self._abort.is_set():
            asked_at = time.monotonic()
            if not any(one.active and one.age_s > asked_at - self._flushed_at for one in self._under_way()):
                break
            time.sleep(drain.POLL_S)
        self._held.grow_out_ms = _since(begun)

    def close(self) -> None:
        """Close the gates; nobody waits before the first of them is closed."""
        deadline = time.monotonic() + _CLOSE_S  # for all: a request must not outlast its keeper
        for gate in self._gates:
            if self._abort.is_set():
                return
            gate.keep(within_s=deadline - time.monotonic())
        self._closed_at = time.monotonic()
        for gate in self._gates:
            if self._abort.is_set():
                return
            gate.close(within_s=_CLOSE_S)
        self._held.gate_ms = _since(self._closed_at)

    def drain(self) -> None:
        """Wait until only those are at work that are not waited for."""
        begun, quiet = time.monotonic(), 0
        node_ids = {gate.node_id for gate in self._gates}
        while not self._abort.is_set():
            self.join(within_s=_JOINING_S)
            under_way = self._under_way()
            # Taken after the answer: nobody who began after the flush may count as one who began before.
            flushed_s = time.monotonic() - self._flushed_at
            rest = drain.rest(under_way, self._open(), flushed_s=flushed_s, node_ids=node_ids)
            quiet = 0 if rest.awaited else quiet + 1
            over = quiet >= drain.QUIET or time.monotonic() - begun > self._drain_s
            fault = next((gate.fault or "it has opened by itself" for gate in self._gates if not gate.closed), None)
            if over or fault:
                # What is not known does not count as left to its fate: the agent there waits for it.
                unknown = tuple(server for server in self._servers.values() if isinstance(server, str))
                self._held.left, self._held.left_count = rest.words + unknown, rest.count
                if fault:
                    self._held.add_fault(f"the gate did not stay closed: {fault}")
                break
            time.sleep(drain.POLL_S)
        self._held.drain_ms = _since(begun)

    def wait_for(self, forwarded: threading.Event) -> None:
        """Keep the gate closed, because there is no room where statements could wait."""
        deadline = time.monotonic() + _WITHOUT_ROOM_S
        while time.monotonic() < deadline and all(gate.closed for gate in self._gates) and not self._abort.is_set():
            if forwarded.wait(drain.POLL_S):
                return

    def undo(self) -> None:
        """Give back and flush, then open the gates, then confirm: so connections are cached again at once."""
        value = None
        try:
            value = flush.give_back(self._own)
        except flush.FlushError as error:
            self._held.add_fault(str(error))
        were_closed = any(gate.closed for gate in self._gates)
        for gate in self._gates:
            gate.open()
        if were_closed:
            self._held.closed_ms = _since(self._closed_at)
        try:
            if value is not None:
                flush.confirm(self._config, value)
            else:
                flush.flush(self._config)
        except flush.FlushError as error:
            self._held.add_fault(str(error))

    def _under_way(self) -> list[UnderWay]:
        """Return who is at work on this server; each gate knows who is inside it."""
        found = [one for gate in self._gates for one in gate.under_way()]
        inside = {one.pid for one in found if one.inside}
        return [dataclasses.replace(one, inside=one.pid in inside) for one in {one.pid: one for one in found}.values()]

    def _open(self) -> list[Open]:
        found: list[Open] = []
        for one, server in self._servers.items():
            if not isinstance(server, str):
                try:
                    found += drain.left(server)
                except psycopg.Error as error:
                    self._lose(one, error)
        return found

    def _lose(self, one: Leaving, error: psycopg.Error) -> None:
        self._servers[one] = f"{one.host} cannot be asked: {session.words(error)}"


def _since(begun: float) -> float:
    return round((time.monotonic() - begun) * 1000, 1)


def _words(error: Exception) -> str:
    return session.words(error) if isinstance(error, psycopg.Error) else str(error)
