"""A Citus cluster whose metadata holds names: six machines with a real server each, and real agents where wanted."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import yaml

from resolver_agent import control, hostsfile
from resolver_agent.model import Role, Standing, Target
from resolver_agent.throwaway import Postgres, Site
from tests.integration.agent_process import Agent
from tests.integration.machine import CHECKOUT, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from psycopg.abc import Params
    from psycopg.abc import QueryNoTemplate as Query
    from typing_extensions import Self

ADDRESSES = {
    "cn": ["127.0.41.1", "127.0.41.2"],
    "wk1": ["127.0.42.1", "127.0.42.2"],
    "wk2": ["127.0.43.1", "127.0.43.2"],
}
DATABASE = "app"

# A session that sets synchronous_commit to on waits for a standby that does not exist when it commits: after it has
# prepared its transaction on the workers and written its own commit record, and before it has the workers commit.
CONFIG = """
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
_SESSIONS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database()
    AND application_name ~ ('^citus_internal gpid=\\d+' || lpad(%s::text, 10, '0') || '$')
"""
_COMMITS = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s"
_PREPARED = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid"


def why_no_citus() -> str | None:
    """Return why the PostgreSQL that tests run on cannot have Citus, or None where it can."""
    with Site() as site:
        server = site.primary("asked", "127.0.40.1")
        found = server.run_sql("SELECT name FROM pg_available_extensions WHERE name = 'citus'")
        return None if found else f"citus is not in pg_available_extensions of {site.binaries}"


class CitusCluster:
    """The groups ``cn``, ``wk1`` and ``wk2``, two machines each; a context manager.

    In the database ``app`` there are a distributed table ``accounts`` (of 400 ``id`` from 1 on, with ``region`` and a
    ``balance`` of 100), a distributed table ``orders`` that is not colocated (two for each ``account``), and a
    reference table ``regions``. Citus does no recovery and no clean-up by its own clock.

    ``restore()`` takes everything back to how it was made: ``cn-1``, ``wk1-1`` and ``wk2-1`` are primaries, ``cn-2``,
    ``wk1-2`` and ``wk2-2`` their standbys, no agent runs, and each hosts file has the block that an agent would leave.

    Attributes:
        site: holds all of it.
        machines: by name.
        groups: the two machines of each group.
        agents: those that were started, by the name of their machine.
    """

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.agents: dict[str, Agent] = {}
        self._listeners: dict[str, socket.socket] = {}
        self._sessions: list[psycopg.Connection] = []

    def __enter__(self) -> Self:
        def launcher(name: str, address: str) -> Sequence[str]:
            self.machines[name] = Machine(name, address, site=self.site)
            return self.machines[name].as_postgres

        with contextlib.ExitStack() as stack:
            self.site = stack.enter_context(Site(launcher=launcher))
            servers = self.site.groups(ADDRESSES, config=CONFIG)
            self.groups = {name: [self.machines[one.name] for one in pair] for name, pair in servers.items()}
            self._lead()
            self._make(primaries=[pair[0] for pair in servers.values()])
            for primary, standby in servers.values():
                standby.wait_for_replay(of=primary)
            self._save()
            stack.callback(self._leave)
            self.restore()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def restore(self) -> None:
        """Take everything back to how it was made, whatever happened since."""
        self._leave()
        _at_once(self._restore, self.machines.values())
        self._lead()
        for primary, standby in self.groups.values():
            standby.server.wait_for_stream(primary.server)

    def start_agent(self, machine: Machine, **settings: object) -> Agent:
        """Start the agent of a machine, as root, with the control socket that systemd would hold; settings win."""
        config = self.configure(machine, **settings)
        if machine.name not in self._listeners:
            self._listeners[machine.name] = self._listen(self.control_path(machine))
        self.agents[machine.name] = Agent(
            config,
            hosts_file=machine.hosts_file,
            env={"PYTHONPATH": str(CHECKOUT)},
            launcher=machine.launcher,
            cwd=machine.folder,
            listener=self._listeners[machine.name],
        )
        return self.agents[machine.name]

    def configure(self, machine: Machine, **settings: object) -> Path:
        """Write the configuration of a machine's agent, and return its path."""
        defaults = {
            "fallback": "none",
            "names": {name: {"nodes": [one.address for one in pair]} for name, pair in self.groups.items()},
            "postgresql": {"user": "resolver_agent", "dbname": "postgres"},
            "local": {"host": str(machine.server.socket_dir)},
            "port": self.site.port,
            "runtime_dir": str(self.control_path(machine).parent),
        }
        path = machine.folder / "resolver-agent.yml"
        path.write_text(yaml.safe_dump(defaults | settings, sort_keys=False))
        return path

    def stop_agent(self, machine: Machine) -> int:
        """Stop the agent of a machine as systemd does, and return its exit code."""
        return self.agents.pop(machine.name).stop()

    def kill_agent(self, machine: Machine) -> None:
        """Kill the agent of a machine (SIGKILL)."""
        agent = self.agents.pop(machine.name)
        agent.process.kill()
        agent.wait()

    def control_path(self, machine: Machine) -> Path:
        """Return the path of a machine's control socket, which the servers' user may connect to."""
        return machine.folder / "run" / control.SOCKET_NAME

    def ask_agent(self, machine: Machine, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer of a machine's agent over its control socket."""
        return control.ask(str(self.control_path(machine)), command, **arguments)

    def connect(self, machine: Machine, **keywords: Any) -> psycopg.Connection:
        """Open a session on a machine in the database ``app`` and autocommit mode, which ends with ``restore()``."""
        where: dict[str, Any] = {
            "host": machine.address,
            "port": self.site.port,
            "user": "postgres",
            "dbname": DATABASE,
        }
        session = psycopg.connect(**(where | keywords), autocommit=True)
        self._sessions.append(session)
        return session

    def run_sql(self, machine: Machine, query: Query, params: Params | None = None) -> list[tuple[Any, ...]]:
        """Run a statement as superuser in the database ``app`` of a machine, and return its rows."""
        return machine.server.run_sql(query, params, dbname=DATABASE)

    def serving(self, session: psycopg.Connection) -> set[str]:
        """Return the names of the machines that serve a session's reads, by their own word."""
        names = {machine.address: machine.name for machine in self.machines.values()}
        return {names[address] for (address,) in session.execute(_SERVING)}

    def sessions_of(self, session: psycopg.Connection) -> dict[str, list[int]]:
        """Return which connections to workers a session has open: the process ids on each machine that has any."""
        pid = session.info.backend_pid
        found = {
            machine.name: [one for (one,) in self.run_sql(machine, _SESSIONS, [pid])]
            for pair in (self.groups["wk1"], self.groups["wk2"])
            for machine in pair
            if machine.server.is_running
        }
        return {name: pids for name, pids in found.items() if pids}

    def prepared(self, machine: Machine) -> list[str]:
        """Return the identifiers of the transactions that are prepared on a machine."""
        return [gid for (gid,) in self.run_sql(machine, _PREPARED)]

    def commit_in_doubt(self, coordinator: Machine, *statements: Query) -> psycopg.Connection:
        """Run statements in a transaction that stops in the middle of its COMMIT, and return its session.

        It is prepared on the workers, and its commit record is on the coordinator and its standby: it has committed,
        and only the second half of COMMIT, or recovery, can tell the workers so. The session waits until its server
        ends, or ``release()``. Statements must write on both workers, or Citus has no need to prepare.
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
            primary = next(one for one in up if not one.is_in_recovery)
            for standby in up:
                if standby is not primary:
                    standby.wait_for_replay(of=primary)
        return session

    def release(self, coordinator: Machine) -> None:
        """Let every transaction that waits in ``commit_in_doubt`` go on, and no later one wait there."""
        coordinator.server.set(synchronous_standby_names="")

    def _leave(self) -> None:
        for session in self._sessions:
            session.close()
        for agent in self.agents.values():
            agent.process.kill()
            agent.wait()
        for listener in self._listeners.values():
            listener.close()
        self._sessions.clear()
        self.agents.clear()
        self._listeners.clear()

    def _make(self, primaries: list[Postgres]) -> None:
        """Create the role, the extension, the metadata and the tables."""

        def prepare(server: Postgres) -> None:
            server.run_sql(f"CREATE DATABASE {DATABASE}")
            server.run_sql("CREATE EXTENSION citus", dbname=DATABASE)
            for database in ("postgres", DATABASE):
                self._run_role_sql(server, database)

        _at_once(prepare, primaries)
        coordinator, port = self.machines["cn-1"], self.site.port
        self.run_sql(coordinator, "SELECT citus_set_coordinator_host('cn', %s)", [port])
        for worker in ("wk1", "wk2"):
            self.run_sql(coordinator, "SELECT citus_add_node(%s, %s)", [worker, port])
        for statement in filter(str.strip, _TABLES.split(";")):
            self.run_sql(coordinator, statement)

    def _run_role_sql(self, server: Postgres, database: str) -> None:
        self.machines[server.name].run(
            *(self.site.binaries.folder / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1"),
            *("-h", server.socket_dir, "-p", str(server.port), "-U", "postgres", "-d", database),
            *("-f", CHECKOUT / "systemd" / "role.sql"),
            as_postgres=True,
        )

    def _lead(self) -> None:
        """Give every machine the block that its agent would leave."""
        for own, pair in self.groups.items():
            for number, (machine, role) in enumerate(zip(pair, (Role.PRIMARY, Role.STANDBY), strict=True)):
                targets = [
                    Target(
                        name=name,
                        address=addresses[number],
                        standing=Standing.SELF if name == own else Standing(role.value),
                        wish=None if name == own else role,
                        primary=addresses[0],
                    )
                    for name, addresses in ADDRESSES.items()
                ]
                machine.lead({})
                machine.hosts_file.write_bytes(hostsfile.render(machine.hosts_file.read_bytes(), targets))

    def _save(self) -> None:
        _at_once(lambda machine: machine.server.stop(), self.machines.values())
        for machine in self.machines.values():
            machine.server.data.rename(_saved(machine))

    def _restore(self, machine: Machine) -> None:
        machine.kill()
        server = machine.server
        shutil.rmtree(server.data, ignore_errors=True)
        shutil.rmtree(machine.folder / "run", ignore_errors=True)
        server.log.unlink(missing_ok=True)
        subprocess.run(["cp", "-a", _saved(machine), server.data], check=True)
        server.start()

    def _listen(self, path: Path) -> socket.socket:
        path.parent.mkdir(exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        os.chown(path, -1, self.site.binaries.credentials["group"])
        path.chmod(0o660)
        listener.listen()
        return listener


def _saved(machine: Machine) -> Path:
    return machine.server.folder / "saved"


def _at_once(do: Callable[[Any], object], what: Iterable[Any]) -> None:
    with ThreadPoolExecutor() as threads:
        list(threads.map(do, what))
