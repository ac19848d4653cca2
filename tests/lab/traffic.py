"""Clients that write and read through the coordinators all the time, and their results."""

from __future__ import annotations

import abc
import collections
import contextlib
import dataclasses
import http
import itertools
import threading
import time
from typing import TYPE_CHECKING

import psycopg

from resolver_agent.citus import session as citus_session
from tests.lab.account import LATE_S, Account
from tests.lab.waiting import wait_while

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

    from tests.lab.lab import Lab
    from tests.lab.node import Node

_THINK_S = 0.02
_RETRY_S = 0.05
_PATIENCE_S = 3.0
"""After so long a client gives up its session, as applications do: nobody says that a server has lost its power."""

_SAID_S = 0.5
_HOOK_S = 3.0  # the limit of Patroni's hook
_RECOVERY_S = 90.0  # longer than a period of 2PC recovery
_READ_ONLY = "25006"
_ROWS = 8  # enough that there are some on each worker
_WRITE = "INSERT INTO accounts SELECT id, 0 FROM generate_series(%(first)s, %(first)s + %(rows)s - 1) AS id"
_WRITTEN = "SELECT id / %(rows)s, count(*) FROM accounts WHERE id >= %(first)s GROUP BY 1"
_TOTAL = "SELECT count(*), sum(balance) FROM accounts WHERE id <= 1000"


@dataclasses.dataclass(frozen=True, slots=True)
class _Fault:
    begun: float
    ended: float
    error: psycopg.Error


class _Client(threading.Thread, abc.ABC):
    """A client that repeats an action through one coordinator, and opens a new session when that fails.

    Attributes:
        successes: when an action succeeded (seconds since the epoch).
        faults: what failed.
    """

    role: str
    """What libpq asks for: Patroni calls a server primary that is yet to be promoted."""

    def __init__(self, lab: Lab, *, patience_s: float) -> None:
        super().__init__(daemon=True)
        self._lab = lab
        self._patience_s = patience_s
        self.ended = threading.Event()
        self.successes: list[float] = []
        self.faults: list[_Fault] = []

    def run(self) -> None:
        """Repeat the action until the end."""
        while not self.ended.wait(_RETRY_S):
            node = self._coordinator()
            if node is None:
                continue
            begun = time.time()
            try:
                with self._lab.connect(node, connect_timeout=2, target_session_attrs=self.role) as session:
                    stays = True
                    while stays and not self.ended.wait(_THINK_S):
                        begun = time.time()
                        with citus_session.ended_after(self._patience_s, session):
                            stays = self.do(session)
                        self.successes.append(time.time())
            except psycopg.Error as error:
                self.faults.append(_Fault(begun, time.time(), error))

    @abc.abstractmethod
    def do(self, session: psycopg.Connection) -> bool:
        """Do it once, and return whether to go on in this session."""

    def wait_for_success(self, *, timeout_s: float = 60) -> None:
        """Wait until an action succeeds that began after this call."""
        wanted = len(self.successes) + 2

        def fault() -> str | None:
            return f"{self!r} is without success: {self.said()}" if len(self.successes) < wanted else None

        wait_while(fault, timeout_s=timeout_s)

    def longest_gap_s(self) -> float:
        """Return the longest time between two successes."""
        return max(after - before for before, after in itertools.pairwise(self.successes))

    def said(self) -> Mapping[str, int]:
        """Return how often each error occurred."""
        return collections.Counter(" ".join(str(fault.error).split()) for fault in self.faults)

    @abc.abstractmethod
    def suits(self, node: Node) -> bool:
        """Whether to use this coordinator, as its Patroni reports, which load balancers ask.

        Raises:
            OSError: no answer.
        """

    def _says_yes(self, node: Node, path: str) -> bool:
        return self._lab.rest(node, "GET", path, timeout_s=1) == http.HTTPStatus.OK

    def _coordinator(self) -> Node | None:
        for node in self._lab.groups["cn"]:
            with contextlib.suppress(OSError):
                if self.suits(node):
                    return node
        return None


class Writer(_Client):
    """Writes to several workers in each transaction.

    Attributes:
        acknowledged: the first ids of the transactions that were.
        first: the lowest of all ids.
    """

    role = "read-write"

    def __init__(self, lab: Lab, *, patience_s: float) -> None:
        super().__init__(lab, patience_s=patience_s)
        self.first = time.time_ns() // 1000 * _ROWS
        self._next = itertools.count(self.first, _ROWS)
        self.acknowledged: set[int] = set()

    def suits(self, node: Node) -> bool:
        """Whether it is the primary."""
        return self._says_yes(node, "/primary")

    def do(self, session: psycopg.Connection) -> bool:
        """Commit one transaction."""
        first = next(self._next)
        session.execute(_WRITE, {"first": first, "rows": _ROWS})
        self.acknowledged.add(first)
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Read:
    begun: float
    ended: float
    coordinator: str
    standby: bool
    served: Mapping[str, bool]
    total: tuple[int, int]


class Reader(_Client):
    """Reads from all workers, and stays with a promoted coordinator for one more read.

    Attributes:
        reads: the answers while the role of the coordinator stayed the same.
    """

    role = "standby"

    def __init__(self, lab: Lab, *, patience_s: float) -> None:
        super().__init__(lab, patience_s=patience_s)
        self.reads: list[_Read] = []

    def suits(self, node: Node) -> bool:
        """Whether it is a replica, and not one that holds the leader lock."""
        return self._says_yes(node, "/replica") and not self._says_yes(node, "/primary")

    def do(self, session: psycopg.Connection) -> bool:
        """Read once."""
        before, begun = _is_standby(session), time.time()
        served: dict[str, bool] = dict(session.execute("SELECT DISTINCT address, standby FROM serving").fetchall())
        [total] = session.execute(_TOTAL).fetchall()
        ended, after = time.time(), _is_standby(session)
        if before is after:
            self.reads.append(_Read(begun, ended, session.info.host, after, served, total))
        return after


class Traffic:
    """A writer and a reader at work, who give up a session after ``patience_s``; a context manager.

    With ``by_role`` reads are to be served by servers of the coordinator's own role, as they are with names.

    Attributes:
        account: the results; after the context.
    """

    account: Account

    def __init__(self, lab: Lab, event: str, *, patience_s: float = _PATIENCE_S, by_role: bool = True) -> None:
        self._lab = lab
        self._event = event
        self._by_role = by_role
        clients = Writer(lab, patience_s=patience_s), Reader(lab, patience_s=patience_s)
        self._writer, self._reader = self._clients = clients

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            self.wait_for_success()
            stack.pop_all()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait_for_success()
        finally:
            self._end()
        if kind is None:
            self.account = self._take_stock()

    def wait_for_success(self) -> None:
        """Wait until each of them has succeeded with an action that began after this call."""
        for client in self._clients:
            client.wait_for_success()

    def _end(self) -> None:
        for client in self._clients:
            client.ended.set()
        for client in self._clients:
            client.join()

    def _take_stock(self) -> Account:
        lost, half = self._missing()
        misrouted = sorted(self._misrouted(), reverse=True)
        return Account(
            event=self._event,
            writes=len(self._writer.successes),
            reads=len(self._reader.successes),
            write_gap_s=self._writer.longest_gap_s(),
            read_gap_s=self._reader.longest_gap_s(),
            failed=[f"{client!r}: {fault.error}" for client in self._clients for fault in client.faults],
            lost=lost,
            half=half,
            late_ms=1000 * max((late_s for late_s, *_ in misrouted if late_s > 0), default=0.0),
            misrouted=[
                f"{1000 * late_s:.0f} ms late: {what}"
                for late_s, standby, what in misrouted
                if late_s > LATE_S[standby]
            ],
        )

    def _missing(self) -> tuple[int, int]:
        """Return how many transactions are lost, and how many are half there; wait for those in doubt."""
        acknowledged, deadline = self._writer.acknowledged, time.monotonic() + _RECOVERY_S
        while True:
            with self._lab.connect(self._lab.primary("cn")) as session:
                asked = {"first": self._writer.first, "rows": _ROWS}
                found = {number * _ROWS: rows for number, rows in session.execute(_WRITTEN, asked)}
            lost = sum(found.get(first) != _ROWS for first in acknowledged)
            # postgres_fdw has its servers commit one after the other.
            half = sum(self._lab.citus and found[first] != _ROWS for first in found.keys() - acknowledged)
            if not (lost or half) or time.monotonic() > deadline:
                return lost, half
            time.sleep(_RETRY_S)

    def _misrouted(self) -> Iterator[tuple[float, bool, str]]:
        """Yield the statements that reached a server for its former role.

        Each is the delay (in seconds), whether the server is a standby now, and the statement.
        """
        nodes = {node.address: node for node in self._lab.nodes.values()}
        changes = {node: node.role_changes for node in nodes.values()}
        to_standby = sorted(at for found in changes.values() for at, standby in found if standby)
        for fault in self._writer.faults:
            if fault.error.sqlstate == _READ_ONLY:
                # A server reports its role a moment after others can see it.
                since = max((at for at in to_standby if at <= fault.ended + _SAID_S), default=0.0)
                yield fault.begun - since, True, f"a write: {fault.error}"
        for read in self._reader.reads:
            if read.total != (1000, 100_000):
                yield float("inf"), read.standby, f"a read with the result {read.total}"
            if not self._by_role:
                continue
            own = changes[nodes[read.coordinator]]
            if read.standby and any(read.begun <= at <= read.ended + _HOOK_S for at, to in own if not to):
                continue  # by rule R4 names point to primaries before the coordinator is one
            # Until a coordinator's agent has seen that it is a standby, its names keep their targets.
            demoted_at = max((at for at, to in own if read.standby and to and at <= read.ended), default=0.0)
            for address, standby in read.served.items():
                if standby is not read.standby:
                    at, to = max(
                        (each for each in changes[nodes[address]] if each[0] <= read.ended), default=(0.0, standby)
                    )
                    # As above: it may have become so just now.
                    late_s = read.begun - max(at, demoted_at) if to is standby else 0.0
                    yield late_s, standby, f"a read served by {nodes[address]!r}: {read}"


def _is_standby(session: psycopg.Connection) -> bool:
    [(standby,)] = session.execute("SELECT pg_is_in_recovery()").fetchall()
    return bool(standby)
