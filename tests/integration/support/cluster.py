"""A cluster on machines: pairs of servers with names and agents; restored for each test."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import yaml

from resolver_agent.control import client
from resolver_agent.demo.postgres import Postgres, Site
from resolver_agent.hosts import block
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import Target, TargetKind
from tests.integration.support.agent_process import Agent
from tests.integration.support.machine import CHECKOUT, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from psycopg.abc import Params
    from psycopg.abc import QueryNoTemplate as Query
    from typing_extensions import Self

    from resolver_agent.demo.binaries import Binaries

ADDRESSES = {
    "cn": ["127.0.41.1", "127.0.41.2"],
    "wk1": ["127.0.42.1", "127.0.42.2"],
    "wk2": ["127.0.43.1", "127.0.43.2"],
}
DATABASE = "app"
_ASKED_S = 60.0
_ROOM_BYTES = 4 << 30


class Cluster:
    """Groups of two machines with a PostgreSQL server each; a context manager. Nothing runs before ``restore()``.

    ``restore()`` takes everything to how it was made, whatever happened since: ``cn-1``, ``wk1-1`` and ``wk2-1`` are
    primaries, ``cn-2``, ``wk1-2`` and ``wk2-2`` their standbys, no agent runs, and each hosts file has the block that
    an agent would leave. The servers have a database ``app``, and the agents' role.

    Attributes:
        site: holds all of it.
        machines: by name.
        groups: the two machines of each group.
        agents: those that were started, by the name of their machine.
    """

    config = ""
    """What is added to the servers' postgresql.conf."""

    def __init__(self, groups: Collection[str] = tuple(ADDRESSES)) -> None:
        """Make these groups of ADDRESSES."""
        self.addresses = {name: ADDRESSES[name] for name in groups}
        self.machines: dict[str, Machine] = {}
        self.agents: dict[str, Agent] = {}
        self._listeners: dict[str, socket.socket] = {}
        self._sessions: list[psycopg.Connection] = []

    def __enter__(self) -> Self:
        def launcher(name: str, address: str) -> Sequence[str]:
            self.machines[name] = Machine(name, address, site=self.site)
            return self.machines[name].as_postgres

        with contextlib.ExitStack() as stack:
            self.site = stack.enter_context(Site(launcher=launcher, parent=in_memory()))
            servers = self.site.groups(self.addresses, config=self.config)
            self.groups = {name: [self.machines[one.name] for one in pair] for name, pair in servers.items()}
            self._lead()
            self._fill([pair[0] for pair in servers.values()])
            for primary, standby in servers.values():
                standby.wait_for_replay(of=primary)
            self._save()
            stack.callback(self.down)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def restore(self) -> None:
        """Take everything to how it was made, and start the servers."""
        self.down()
        at_once(_reset, self.machines.values())
        self._lead()
        self._start()

    @contextlib.contextmanager
    def as_made(self) -> Iterator[None]:
        """Start everything in its initial state."""
        self.restore()
        try:
            yield
        finally:
            self.down()

    def down(self) -> None:
        """Kill everything, and close all sessions."""
        for session in self._sessions:
            session.close()
        for machine in self.machines.values():
            machine.kill()
        for agent in self.agents.values():
            agent.wait()
        for listener in self._listeners.values():
            listener.close()
        self._sessions.clear()
        self.agents.clear()
        self._listeners.clear()

    def start_agent(self, machine: Machine, **settings: object) -> Agent:
        """Start the agent of a machine, as root, with the control socket that systemd would hold; settings win."""
        if machine.name in self.agents:
            self.kill_agent(machine)
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

    def start_agent_when_asked(self, machine: Machine, **settings: object) -> Agent:
        """Wait for a connection to a machine's control socket, and start its agent then, as systemd does."""
        asked, _, _ = select.select([self._listeners[machine.name]], [], [], _ASKED_S)
        assert asked, f"no client asked the agent of {machine!r}"
        return self.start_agent(machine, **settings)

    def configure(self, machine: Machine, **settings: object) -> Path:
        """Write the configuration of a machine's agent, and return its path."""
        defaults = {
            "fallback": "none",
            "names": {name: {"nodes": nodes} | self._settings_of_names() for name, nodes in self.addresses.items()},
            "postgresql": {"user": "resolver_agent", "dbname": "postgres"},
            "local": {"host": str(machine.server.socket_dir), "user": local_user(self.site.binaries)},
            "port": self.site.port,
            "runtime_dir": str(self.control_path(machine).parent),
            "state_dir": str(machine.folder / "state"),
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
        """Return the path of a machine's control socket; the servers' user may connect to it."""
        return Path(client.socket_path(str(machine.folder / "run")))

    def ask_agent(self, machine: Machine, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer of a machine's agent over its control socket."""
        return client.ask(str(self.control_path(machine)), command, **arguments)

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

    def _settings_of_names(self) -> dict[str, object]:
        """Return the settings of every name other than its nodes."""
        return {}

    def _start(self) -> None:
        """Start the servers and wait until the standbys stream."""
        at_once(lambda machine: machine.server.start(), self.machines.values())
        for primary, standby in self.groups.values():
            standby.server.wait_for_stream(primary.server)

    def _fill(self, primaries: list[Postgres]) -> None:
        """Create what the databases are to have."""

        def fill(server: Postgres) -> None:
            server.run_sql(f"CREATE DATABASE {DATABASE}")
            self._run_role_sql(server, "postgres")

        at_once(fill, primaries)

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
                        kind=TargetKind.SELF if name == own else TargetKind(role.value),
                        wanted_role=None if name == own else role,
                        primary=addresses[0],
                    )
                    for name, addresses in self.addresses.items()
                ]
                machine.lead({})
                machine.hosts_file.write_bytes(block.render(machine.hosts_file.read_bytes(), targets))

    def _save(self) -> None:
        at_once(lambda machine: machine.server.stop(), self.machines.values())
        for machine in self.machines.values():
            machine.server.data.rename(_saved(machine))

    def _listen(self, path: Path) -> socket.socket:
        path.parent.mkdir(exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        os.chown(path, -1, self.site.binaries.credentials["group"])
        path.chmod(0o660)
        listener.listen()
        return listener


def local_user(binaries: Binaries) -> str:
    """Return the role of an agent on its own server: before PostgreSQL 15 only a superuser may flush."""
    return "resolver_agent_local" if binaries.version >= 15 else "postgres"


def in_memory() -> Path | None:
    """Return a folder in memory with room for several clusters: on a busy disk copies take ten times as long."""
    folder = Path("/dev/shm")  # noqa: S108 -- no file there has a predictable name
    if not folder.is_dir():
        return None
    room = os.statvfs(folder)
    return folder if room.f_bavail * room.f_frsize > _ROOM_BYTES and not room.f_flag & os.ST_NOEXEC else None


def _saved(machine: Machine) -> Path:
    return machine.server.folder / "saved"


def _reset(machine: Machine) -> None:
    data = machine.server.data
    shutil.rmtree(data, ignore_errors=True)
    shutil.rmtree(machine.folder / "run", ignore_errors=True)
    machine.server.log.unlink(missing_ok=True)
    subprocess.run(["cp", "-a", _saved(machine), data], check=True)


def at_once(do: Callable[[Any], object], what: Iterable[Any]) -> None:
    """Do something with all of these in parallel."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(do, what))
