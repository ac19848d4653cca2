"""An application host beside a cluster under Patroni: no PostgreSQL, an agent, PgBouncers, and loops that connect."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import sys
from typing import TYPE_CHECKING, Any

import yaml

from resolver_agent.control import client
from tests.integration.support.agent_process import Agent
from tests.integration.support.agent_state import wait_until
from tests.integration.support.cluster import DATABASE
from tests.integration.support.machine import CHECKOUT, Machine

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

    from tests.integration.support.patroni_cluster import PatroniCluster

ADDRESS = "127.0.44.1"
_CONNINFO = "host={host} port={port} dbname={dbname} user=postgres connect_timeout=40"
_PGBOUNCER = """\
[databases]
* = host=cn port={port} user=postgres
[pgbouncer]
listen_addr = {address}
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
logfile = {folder}/log
pidfile = {folder}/pid
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One connection and its question; times are of CLOCK_MONOTONIC. ``server`` is None where it failed."""

    begun: float
    ended: float
    server: str | None = None
    in_recovery: bool | None = None
    error: str = ""


class Loop:
    """A loop that connects anew all the time, as a process on the application host."""

    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def attempts(self) -> list[Attempt]:
        """What came of every attempt that has ended."""
        whole = self._log.read_text(errors="replace").rpartition("\n")[0]
        return [Attempt(**json.loads(line)) for line in whole.splitlines() if line.startswith("{")]

    def reached(self, address: str, *, since: float, timeout_s: float = 60.0) -> Attempt:
        """Wait for the first attempt that met the server at ``address`` and ended after ``since``, and return it."""

        def found() -> Attempt | None:
            return next((one for one in self.attempts if one.server == address and one.ended > since), None)

        try:
            attempt: Attempt = wait_until(found, timeout_s=timeout_s)
        except AssertionError:
            raise AssertionError(self.attempts[-3:]) from None
        return attempt


class ApplicationHost:
    """A machine in the site of a cluster, without a PostgreSQL server; a context manager.

    Its agent has the names ``cn`` for writes and ``cn-ro`` for reads.
    """

    def __init__(self, cluster: PatroniCluster) -> None:
        self.cluster = cluster
        # The folder may be there from an earlier test.
        shutil.rmtree(cluster.site.folder / "machine-app", ignore_errors=True)
        self.machine = Machine("app", ADDRESS, site=cluster.site)
        self._closing = contextlib.ExitStack()
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.kill()
        self._closing.close()

    @property
    def control_path(self) -> str:
        """The agent's control socket."""
        return client.socket_path(str(self.machine.folder / "run"))

    def start_agent(self, **settings: object) -> Agent:
        """Start the agent, and wait until its names are right; settings win."""
        nodes = {
            "nodes": self.cluster.addresses["cn"],
            "patroni": {"port": self.cluster.rest_port},
            "postgresql": {"user": "resolver_agent", "dbname": "postgres"},  # as the agents of that cluster
        }
        defaults = {
            "fallback": "primary",
            "names": {"cn": {**nodes, "route": "primary"}, "cn-ro": {**nodes, "route": "standby"}},
            "local": "off",
            "postgresql": {"user": "of_another_cluster", "dbname": "other"},
            "port": self.cluster.site.port,
            "runtime_dir": str(self.machine.folder / "run"),
            "state_dir": str(self.machine.folder / "state"),
        }
        path = self.machine.folder / "resolver-agent.yml"
        path.write_text(yaml.safe_dump(defaults | settings, sort_keys=False))
        agent = self._closing.enter_context(
            Agent(
                path,
                hosts_file=self.machine.hosts_file,
                env={"PYTHONPATH": str(CHECKOUT)},
                launcher=self.machine.launcher,
                cwd=self.machine.folder,
            )
        )
        agent.wait_for_line("cn-ro → ", timeout_s=30)
        return agent

    def ask_agent(self, command: str) -> dict[str, Any]:
        """Return the agent's answer over its control socket."""
        return client.ask(self.control_path, command, timeout_s=10)

    def start_pgbouncer(self, **settings: object) -> int:
        """Start a PgBouncer that connects to ``cn``, and return its port once it listens."""
        with socket.socket() as probe:
            probe.bind((ADDRESS, 0))
            port = int(probe.getsockname()[1])
        folder = self.machine.folder / f"pgbouncer-{port}"
        folder.mkdir()
        path = folder / "pgbouncer.ini"
        text = _PGBOUNCER.format(port=self.cluster.site.port, address=ADDRESS, listen=port, folder=folder)
        path.write_text(text + "".join(f"{key} = {value}\n" for key, value in settings.items()))
        user = self.cluster.site.binaries.credentials
        os.chown(folder, user["user"], user["group"])
        self._start("pgbouncer", path, log=folder / "output", as_postgres=True)
        wait_until(lambda: _listens(port))
        return port

    def connect_anew(self, host: str = "cn", port: int | None = None) -> Loop:
        """Start a loop that connects to ``host``, or to a PgBouncer here, and wait for its first answer."""
        self._started += 1
        log = self.machine.folder / f"loop-{self._started}.log"
        conninfo = _CONNINFO.format(host=host, port=port or self.cluster.site.port, dbname=DATABASE)
        self._start(
            *(sys.executable, "-m", "tests.integration.support.application_client", conninfo),
            log=log,
            env={"PYTHONPATH": str(CHECKOUT)},
        )
        loop = Loop(log)
        wait_until(lambda: any(one.server for one in loop.attempts), timeout_s=30)
        return loop

    def _start(self, *command: str | Path, **options: Any) -> None:
        """Start a process here, which ends with the host."""
        process = self.machine.start(*command, **options)
        self._closing.callback(process.wait)
        self._closing.callback(process.kill)

    def connect_over_pgbouncer(self, **settings: object) -> Loop:
        """Start a PgBouncer, and a loop that connects to it."""
        return self.connect_anew(ADDRESS, self.start_pgbouncer(**settings))


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((ADDRESS, port), 1.0):
        return True
    return False
