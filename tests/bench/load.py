"""Clients of a Citus cluster: writers that follow the primary, and sessions that stay through a promotion."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from resolver_agent.citus import session as citus_session
from tests.integration.support.citus_cluster import DATABASE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import CitusPatroniCluster

_THINK_S = 0.01
_RETRY_S = 0.05
_PATIENCE_S = 3.0
"""After so long a writer gives up its session, as applications do: a deposed primary's never answers again."""

_LEDGER = (
    "CREATE TABLE ledger (part int, id bigint, PRIMARY KEY (part, id))",
    "SELECT create_distributed_table('ledger', 'part', shard_count => 2)",
)
_PARTS = """
    SELECT DISTINCT ON (nodename) nodename, part, shard_name('ledger', shardid)
    FROM generate_series(0, 99) AS part, get_shard_id_for_distribution_column('ledger', part) AS shardid
    JOIN pg_dist_shard_placement USING (shardid)
    ORDER BY nodename, part
"""
_PREPARED_BEFORE = """
    SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database() AND prepared < to_timestamp(%s)
"""
_IDS = sql.SQL("SELECT id FROM {}")
_TERMINATE = "SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) AS pid"
_STARTUP = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'"
_WAITS = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The rows on the workers: which acknowledged transactions miss a row, and which have one row only."""

    lost: frozenset[int]
    half: frozenset[int]


class Ledger:
    """A table where each transaction writes a row on either worker, and the commits that clients were told of.

    ``acknowledged`` has the time (seconds since the epoch) at which COMMIT returned, by number of the transaction.
    """

    def __init__(self, cluster: CitusPatroniCluster, coordinator: Machine) -> None:
        """Create the table."""
        self._cluster = cluster
        self._numbers = itertools.count()
        self.acknowledged: dict[int, float] = {}
        for statement in _LEDGER:
            cluster.run_sql(coordinator, statement)
        found = {name: (part, shard) for name, part, shard in cluster.run_sql(coordinator, _PARTS)}
        self.workers = {name: cluster.groups[name][0] for name in found}
        self._parts = [part for part, _ in found.values()]
        self._shards = {name: shard for name, (_, shard) in found.items()}
        assert len(self.workers) == 2, found

    def write(self, session: psycopg.Connection) -> None:
        """Commit one transaction that both workers have to prepare."""
        with session.transaction():
            number = self._insert(session)
        self.acknowledged[number] = time.time()

    def write_in_doubt(self, coordinator: Machine, standby: Machine, cut_off: Collection[str]) -> None:
        """Commit one transaction that these workers have prepared, and that can no longer be committed there.

        The client is told that it has committed, and so it has. Its session waits until a standby that has the commit
        record replays it; meanwhile the sessions of Citus on those workers end.
        """
        with connect(self._cluster, coordinator) as session:
            session.execute("SET synchronous_commit = remote_apply")
            session.execute("BEGIN")
            number = self._insert(session)
            remote = self._cluster.sessions_of(session)
            # Frozen, not paused by SQL: Patroni would resume it.
            [(replay,)] = standby.server.run_sql(_STARTUP)
            os.kill(replay, signal.SIGSTOP)
            try:
                session.pgconn.send_query(b"COMMIT")
                session.pgconn.flush()
                coordinator.server.wait_until(_WAITS, [session.info.backend_pid])
                for name in cut_off:
                    self.workers[name].server.run_sql(_TERMINATE, [remote[self.workers[name].name]])
            finally:
                os.kill(replay, signal.SIGCONT)
            result = session.pgconn.get_result()
            assert result is not None
            assert result.command_status == b"COMMIT", result.error_message
            while session.pgconn.get_result() is not None:
                pass
            self.acknowledged[number] = time.time()

    def prepared_before(self, at: float) -> int:
        """Return how many transactions that were prepared on the workers before ``at`` still are."""
        return sum(self._cluster.run_sql(worker, _PREPARED_BEFORE, [at])[0][0] for worker in self.workers.values())

    def account(self) -> Account:
        """Compare the rows on the workers, asked directly, with the acknowledged ones. No client may be writing."""
        found = [
            {number for (number,) in self._cluster.run_sql(worker, _IDS.format(sql.Identifier(self._shards[name])))}
            for name, worker in self.workers.items()
        ]
        whole = frozenset.intersection(*map(frozenset, found))
        return Account(lost=frozenset(self.acknowledged) - whole, half=frozenset.union(*map(frozenset, found)) - whole)

    def longest_gap_s(self, since: float, until: float) -> float:
        """Return the longest time without an acknowledgement that begins or ends between two times."""
        times = sorted(self.acknowledged.values())
        return max(after - before for before, after in itertools.pairwise(times) if after > since and before < until)

    def _insert(self, session: psycopg.Connection) -> int:
        number = next(self._numbers)
        for part in self._parts:
            session.execute("INSERT INTO ledger VALUES (%s, %s)", [part, number])
        return number


class Client(threading.Thread):
    """A thread with a session. While another thread has ``turn`` it does nothing."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.turn = threading.Lock()
        self.ended = threading.Event()

    def end(self) -> None:
        """End it, and wait for that."""
        self.ended.set()
        self.join()


class Writer(Client):
    """An application that writes to the primary that Patroni reports, and reconnects when that fails."""

    def __init__(self, cluster: CitusPatroniCluster, ledger: Ledger) -> None:
        super().__init__()
        self._cluster, self._ledger = cluster, ledger

    def run(self) -> None:
        """Write until the end."""
        while not self.ended.wait(_RETRY_S):
            primary = self._primary()
            if primary is None:
                continue
            with contextlib.suppress(psycopg.Error), connect(self._cluster, primary) as session:
                while not self.ended.wait(_THINK_S):
                    with self.turn, citus_session.ended_after(_PATIENCE_S, session):
                        self._ledger.write(session)

    def _primary(self) -> Machine | None:
        for machine in self._cluster.groups["cn"]:
            with contextlib.suppress(OSError):
                if self._cluster.rest(machine, "GET", "/primary", timeout_s=1.0)[0] == 200:
                    return machine
        return None


class Resident(Client):
    """A session that is opened on a standby and stays: it reads, and writes as soon as it can.

    Attributes:
        reads: how many reads there were before the promotion, by the name of the machines that served them.
        misrouted: reads after the promotion that a worker's standby served.
        writes: how many transactions it has committed.
        lost: whether the session has ended by itself.
        faults: the errors of its statements.
    """

    def __init__(self, cluster: CitusPatroniCluster, ledger: Ledger, machine: Machine) -> None:
        """Open the session, and let Citus connect to the workers for it."""
        super().__init__()
        self._cluster, self._ledger = cluster, ledger
        self._standbys = {cluster.groups[name][1].name for name in ledger.workers}
        self._session = connect(cluster, machine)
        self.reads: collections.Counter[str] = collections.Counter()
        self.misrouted: list[str] = []
        self.writes = 0
        self.lost = False
        self.faults: list[str] = []
        self.step()

    def run(self) -> None:
        """Read, and write if possible, until the end or until the session is lost."""
        while not self.ended.wait(_THINK_S):
            with self.turn:
                self.step()

    def step(self) -> None:
        """Do so once."""
        try:
            asked = self._session.execute("SELECT pg_is_in_recovery()").fetchone()
            if asked == (True,):
                self.reads.update(self._cluster.serving(self._session))
                return
            self._ledger.write(self._session)
            self.writes += 1
            if misrouted := self._standbys & self._cluster.serving(self._session):
                self.misrouted.append(f"a read after the promotion was served by {', '.join(misrouted)}")
        except psycopg.Error as error:
            self.faults.append(" ".join(str(error).split()))
            if self._session.closed:
                self.lost = True
                self.ended.set()

    def end(self) -> None:
        """End it, and close the session."""
        self.ended.set()
        if self.ident is not None:
            self.join()
        self._session.close()


@contextlib.contextmanager
def writing(cluster: CitusPatroniCluster, ledger: Ledger, count: int) -> Iterator[list[Writer]]:
    """Run this many writers."""
    writers = [Writer(cluster, ledger) for _ in range(count)]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.end()


@contextlib.contextmanager
def quiet(clients: Collection[Client]) -> Iterator[None]:
    """Pause clients once each has finished its current transaction."""
    with contextlib.ExitStack() as turns:
        for client in clients:
            turns.enter_context(client.turn)
        yield


def connect(cluster: CitusPatroniCluster, machine: Machine) -> psycopg.Connection:
    """Open a session of an application on a machine."""
    return psycopg.connect(
        host=machine.address,
        port=cluster.site.port,
        user="postgres",
        dbname=DATABASE,
        connect_timeout=2,
        autocommit=True,
    )
