"""A Citus cluster whose metadata holds names."""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING

from resolver_agent.demo.postgres import Postgres, Site
from tests.integration.support.cluster import DATABASE, Cluster, at_once

if TYPE_CHECKING:
    import psycopg
    from psycopg.abc import QueryNoTemplate as Query

    from tests.integration.support.machine import Machine

__all__ = ["DATABASE", "CitusCluster", "citus_version", "why_no_citus", "workers_have_metadata"]

# A session that sets synchronous_commit to on waits for a standby that does not exist when it commits: after it has
# prepared its transaction on the workers and written its own commit record, and before it has the workers commit.
_CONFIG = """
shared_preload_libraries = citus
citus.defer_shard_delete_interval = -1
citus.node_conninfo = 'sslmode=prefer'
citus.recover_2pc_interval = -1
citus.shard_count = 4
log_line_prefix = '%m [%p] %a: '
max_connections = 100
max_logical_replication_workers = 8
max_prepared_transactions = 100
max_worker_processes = 24
synchronous_commit = local
synchronous_standby_names = nobody
wal_level = logical
"""

_TABLES = """
CREATE TABLE regions (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE accounts (id bigint PRIMARY KEY, region int NOT NULL, balance bigint NOT NULL);
CREATE TABLE orders (id bigint PRIMARY KEY, account bigint NOT NULL, amount bigint NOT NULL);
SELECT create_reference_table('regions');
SELECT create_distributed_table('accounts', 'id');
SELECT create_distributed_table('orders', 'id', colocate_with => 'none');
INSERT INTO regions SELECT i, 'region ' || i FROM generate_series(0, 3) AS i;
INSERT INTO accounts SELECT i, i % 4, 100 FROM generate_series(1, 400) AS i;
INSERT INTO orders SELECT i, 1 + i % 400, i FROM generate_series(1, 800) AS i;
"""
_SERVING = "SELECT DISTINCT host(inet_server_addr()) FROM accounts"
_SESSIONS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND client_port = ANY(%s)"
_COMMITS = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s"
_PREPARED = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid"


@functools.cache
def citus_version() -> tuple[int, ...]:
    """Return the version of Citus of the PostgreSQL that tests run on, such as (13, 2); () where there is none."""
    with Site() as site:
        server = site.primary("asked", "127.0.40.1")
        found = server.run_sql("SELECT default_version FROM pg_available_extensions WHERE name = 'citus'")
    return tuple(int(part) for part in found[0][0].split("-")[0].split(".")) if found else ()


def workers_have_metadata() -> bool:
    """Report whether workers have the metadata, and so the tables, of the coordinator: since Citus 11."""
    return citus_version() >= (11,)


def why_no_citus() -> str | None:
    """Return why the PostgreSQL that tests run on cannot have Citus, or None where it can."""
    return None if citus_version() else "citus is not in pg_available_extensions of the PostgreSQL in use"


class CitusCluster(Cluster):
    """The groups ``cn``, ``wk1`` and ``wk2``, as the metadata in the database ``app`` calls them.

    There are a distributed table ``accounts`` (of 400 ``id`` from 1 on, with ``region`` and a ``balance`` of 100), a
    distributed table ``orders`` that is not colocated (two for each ``account``), and a reference table ``regions``.
    Citus does no recovery and no clean-up by its own clock.
    """

    config = _CONFIG

    def serving(self, session: psycopg.Connection) -> set[str]:
        """Return the names of the machines that serve a session's reads, as they report themselves."""
        names = {machine.address: machine.name for machine in self.machines.values()}
        return {names[address] for (address,) in session.execute(_SERVING)}

    def sessions_of(self, session: psycopg.Connection) -> dict[str, list[int]]:
        """Return a session's connections to workers: the process ids on each machine that has any."""
        ports = _tcp_ports(session.info.backend_pid)
        found = {
            machine.name: [one for (one,) in self.run_sql(machine, _SESSIONS, [ports])]
            for pair in (self.groups["wk1"], self.groups["wk2"])
            for machine in pair
            if machine.server.is_running
        }
        return {name: pids for name, pids in found.items() if pids}

    def wait_for_sessions(self, session: psycopg.Connection, names: set[str]) -> None:
        """Wait until a session has connections to these worker machines only: closed ones end after it."""
        deadline = time.monotonic() + 10
        while (found := self.sessions_of(session)).keys() != names:
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    def prepared(self, machine: Machine) -> list[str]:
        """Return the identifiers of the transactions that are prepared on a machine."""
        return [gid for (gid,) in self.run_sql(machine, _PREPARED)]

    def commit_in_doubt(self, coordinator: Machine, *statements: Query) -> psycopg.Connection:
        """Run statements in a transaction that stops in the middle of its COMMIT, and return its session.

        It is prepared on the workers, and its commit record is on the coordinator and its standby: it has committed,
        and only the second half of COMMIT, or recovery, can commit it on the workers. The session waits until its
        server ends, or ``release()``. Statements must write on both workers, or Citus has no need to prepare.
        """
        session = self.connect(coordinator)
        session.execute("SET synchronous_commit = on")
        session.execute("BEGIN")
        for statement in statements:
            session.execute(statement)
        session.pgconn.send_query(b"COMMIT")
        session.pgconn.flush()
        coordinator.server.wait_until(_COMMITS, [session.info.backend_pid])
        for pair in self.groups.values():
            up = [one.server for one in pair if one.server.is_running]
            standbys = [one for one in up if one.is_in_recovery]
            for standby in standbys:
                standby.wait_for_replay(of=next(one for one in up if one not in standbys))
        return session

    def release(self, coordinator: Machine) -> None:
        """Let every transaction that waits in ``commit_in_doubt`` go on, and no later one wait there."""
        coordinator.server.set(synchronous_standby_names="")

    def _fill(self, primaries: list[Postgres]) -> None:
        super()._fill(primaries)

        def fill(server: Postgres) -> None:
            server.run_sql("CREATE EXTENSION citus", dbname=DATABASE)
            self._run_role_sql(server, DATABASE)

        at_once(fill, primaries)
        coordinator, port = self.machines["cn-1"], self.site.port
        self.run_sql(coordinator, "SELECT citus_set_coordinator_host('cn', %s)", [port])
        for worker in ("wk1", "wk2"):
            self.run_sql(coordinator, "SELECT citus_add_node(%s, %s)", [worker, port])
        for statement in filter(str.strip, _TABLES.split(";")):
            self.run_sql(coordinator, statement)


def _tcp_ports(pid: int) -> list[int]:
    """Return the local ports of a process's TCP connections. Before Citus 11 no session says on whose behalf it is."""
    inodes = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(path.readlink()))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].partition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in inodes]
