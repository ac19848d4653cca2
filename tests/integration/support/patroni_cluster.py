"""Clusters under a real Patroni on every machine, with a real etcd; plain PostgreSQL, or Citus."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import yaml

from resolver_agent.demo import postgres
from resolver_agent.demo.postgres import Postgres, Site
from tests.integration.support.citus_cluster import CitusCluster
from tests.integration.support.cluster import ADDRESSES, Cluster, at_once
from tests.integration.support.etcd import Etcd
from tests.integration.support.machine import CHECKOUT, PATRONI, http_request

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from tests.integration.support.machine import Machine

_DEADLINE_S = 60.0
_POLL_S = 0.02

# Patroni takes no shorter times. What it gives servers on their command line has to be said here, whatever their own
# configuration says: max_prepared_transactions and so on.
_DYNAMIC: dict[str, Any] = {
    "ttl": 20,
    "loop_wait": 1,
    "retry_timeout": 3,
    "postgresql": {
        "use_pg_rewind": True,
        "parameters": {
            "max_connections": 100,
            "max_prepared_transactions": 100,
            "max_worker_processes": 24,
            "wal_level": "logical",
        },
    },
}


@functools.cache
def patroni_version() -> tuple[int, ...]:
    """Return the version of the Patroni that tests run, such as (4, 1, 5)."""
    said = subprocess.run([PATRONI, "-m", "patroni", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in re.findall(r"\d+", said))


@functools.cache
def why_no_patroni() -> str | None:
    """Return why Patroni cannot run the PostgreSQL that tests run on, or None where it can."""
    with Site() as site:
        missing = [name for name in ("pg_controldata", "pg_rewind") if not (site.binaries.folder / name).exists()]
    return f"Patroni needs {' and '.join(missing)}, which the PostgreSQL in use lacks" if missing else None


class Patroni(Cluster):
    """What Patroni adds to a cluster: it starts the servers, and decides who is primary.

    Each group is a Patroni cluster (``scope``) of its name, each machine a member of its name, with the configuration
    in ``config_path()``. Every Patroni runs as the servers' user, on its machine.

    Attributes:
        etcd: what the Patronis keep their locks in.
        rest_port: the TCP port of Patroni's REST API, on every machine's address.
        patronis: the processes, by the name of their machine.
    """

    def __init__(self, groups: Collection[str] = tuple(ADDRESSES)) -> None:
        """Make these groups of ADDRESSES."""
        super().__init__(groups)
        self.patronis: dict[str, subprocess.Popen[bytes]] = {}

    def down(self) -> None:
        """Kill everything, etcd too, and close all sessions."""
        super().down()
        for process in self.patronis.values():
            process.wait()
        self.patronis.clear()
        self.etcd.kill()

    def config_path(self, machine: Machine) -> Path:
        """Return the path of a machine's patroni.yml; its folder belongs to Patroni."""
        return machine.folder / "patroni" / "patroni.yml"

    def log(self, machine: Machine) -> str:
        """Return what Patroni on a machine has logged since ``restore()``."""
        return self.config_path(machine).with_name("log").read_text(errors="replace")

    def wait_for_log(self, machine: Machine, pattern: str, *, since: int = 0) -> None:
        """Wait until Patroni on a machine has logged a match, from character ``since`` of its log on."""
        self._wait(
            lambda: re.search(pattern, self.log(machine)[since:]) is not None, f"{machine!r} did not say {pattern!r}"
        )

    def start_patroni(self, machine: Machine) -> None:
        """Start Patroni, which then starts its server."""
        if machine.name in self.patronis:
            self.patronis[machine.name].wait(_DEADLINE_S)
        path = self.config_path(machine)
        self.patronis[machine.name] = machine.start(
            *(PATRONI, "-m", "patroni", path),
            log=path.with_name("log"),
            as_postgres=True,
            env={"HOME": str(path.parent)},
        )

    def stop_patroni(self, machine: Machine) -> None:
        """Stop Patroni, which stops its server first and gives back the leader lock (SIGTERM)."""
        process = self.patronis.pop(machine.name)
        process.terminate()
        process.wait(_DEADLINE_S)

    def pause_patroni(self, machine: Machine) -> None:
        """Freeze Patroni but not its server: it is a primary without supervision (SIGSTOP)."""
        self.patronis[machine.name].send_signal(signal.SIGSTOP)

    def resume_patroni(self, machine: Machine) -> None:
        """Let a paused Patroni go on."""
        self.patronis[machine.name].send_signal(signal.SIGCONT)

    def reconfigure(self, machine: Machine, **sections: Mapping[str, Any]) -> None:
        """Set keys in sections of a machine's patroni.yml, and have a running Patroni take them in."""
        path = self.config_path(machine)
        config = yaml.safe_load(path.read_text())
        for name, settings in sections.items():
            config.setdefault(name, {}).update(settings)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        if machine.name in self.patronis:
            since = len(self.log(machine))
            self.rest(machine, "POST", "/reload")
            self.wait_for_log(machine, "Reloading PostgreSQL configuration", since=since)

    def hook(self, machine: Machine, name: str = "pre_promote") -> str:
        """Return a line that we give for patroni.yml, for this checkout's program and the agent of a machine."""
        text = (CHECKOUT / "systemd" / "patroni-hooks.yml").read_text()
        line: str = yaml.safe_load(text)["postgresql"][name]
        command = name.replace("_", "-")
        installed = f"/usr/local/bin/resolver-agent {command}"
        assert installed in line
        ours = f"env PYTHONPATH={CHECKOUT} {sys.executable} -m resolver_agent.cli {command}"
        return line.replace(installed, f"{ours} --socket {self.control_path(machine)}")

    def rest(
        self, machine: Machine, method: str, path: str, body: object = None, *, timeout_s: float = 30.0
    ) -> tuple[int, Any]:
        """Return the status and the answer of a machine's REST API, parsed where it is JSON.

        Raises:
            OSError: no answer.
        """
        status, text = http_request(machine.address, self.rest_port, method, path, body, timeout_s=timeout_s)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def members(self, group: str) -> dict[str, dict[str, Any]]:
        """Return the members of a group by name, from the first Patroni of it that answers."""
        for machine in self.groups[group]:
            try:
                _, answer = self.rest(machine, "GET", "/cluster", timeout_s=2.0)
            except OSError:
                continue
            return {member["name"]: member for member in answer["members"]}
        raise AssertionError(f"no Patroni of {group} answers")

    def lock_holder(self, group: str) -> Machine | None:
        """Return the machine that holds a group's leader lock in etcd."""
        name = self.etcd.get(f"{self._dcs_path(group)}/leader")
        return None if name is None else self.machines[name]

    def expire_lock(self, group: str) -> None:
        """Let a group's leader lock expire now, as it does ``ttl`` after its holder's last update."""
        self.etcd.delete(f"{self._dcs_path(group)}/leader")

    def switch_over(self, machine: Machine) -> None:
        """Make a standby its group's primary in Patroni's orderly way, and wait until the group is whole again."""
        group = self.group_of(machine)
        leader = self.lock_holder(group)
        assert leader is not None
        wanted = {"leader": leader.name, "candidate": machine.name}
        status, answer = self.rest(leader, "POST", "/switchover", wanted, timeout_s=_DEADLINE_S)
        assert status == 200, answer
        self.wait_for_primary(machine)
        self.wait_for_standby(leader)

    def fail_over(self, machine: Machine) -> None:
        """Cut the power of a group's primary, let its lock expire, and wait until ``machine`` is the primary."""
        group = self.group_of(machine)
        leader = self.lock_holder(group)
        assert leader is not None
        leader.kill()
        self.expire_lock(group)
        self.wait_for_primary(machine)

    def wait_for_primary(self, machine: Machine) -> None:
        """Wait until Patroni reports that a machine holds its group's lock, and its server takes writes."""
        self._wait(
            lambda: self._is(machine, "/primary") and not machine.server.is_in_recovery, f"{machine!r} is no primary"
        )

    def wait_for_standby(self, machine: Machine) -> None:
        """Wait until Patroni reports a machine's server as up, and it streams from the lock holder of its group."""

        def streams() -> bool:
            leader = self.lock_holder(self.group_of(machine))
            return leader is not None and machine.server.streams_from(leader.server)

        self._wait(lambda: self._is(machine, "/patroni") and streams(), f"{machine!r} is no streaming standby")

    def _save(self) -> None:
        super()._save()
        for name, server in self.site.servers.items():
            self.site.servers[name] = _Supervised(server)
        self.rest_port = postgres.free_port()
        self.etcd = Etcd(self.site)

    def _start(self) -> None:
        self.etcd.start(anew=True)
        for group, pair in self.groups.items():
            self.etcd.put(f"{self._dcs_path(group)}/config", json.dumps(_DYNAMIC))
            for machine in pair:
                self._configure_patroni(machine)
        for number, wait in enumerate((self.wait_for_primary, self.wait_for_standby)):
            machines = [pair[number] for pair in self.groups.values()]
            at_once(self.start_patroni, machines)
            at_once(wait, machines)

    def _settings_of_names(self) -> dict[str, object]:
        return {"patroni": {"port": self.rest_port}}

    def _configure_patroni(self, machine: Machine) -> None:
        server, path = machine.server, self.config_path(machine)
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        os.chown(path.parent, server.binaries.credentials["user"], server.binaries.credentials["group"])
        path.write_text(yaml.safe_dump(self._patroni_config(machine), sort_keys=False))

    def _dcs_path(self, group: str) -> str:
        """Return the key in etcd under which a group's Patroni keeps everything."""
        return f"/service/{group}"

    def _patroni_config(self, machine: Machine) -> dict[str, Any]:
        server, path = machine.server, self.config_path(machine)
        rest, listen = f"{machine.address}:{self.rest_port}", f"{machine.address}:{server.port}"
        return {
            "scope": self.group_of(machine),
            "name": machine.name,
            "etcd3": {"host": self.etcd.endpoint},
            "restapi": {"listen": rest, "connect_address": rest},
            "postgresql": {
                "listen": listen,
                "connect_address": listen,
                "data_dir": str(server.data),
                "bin_dir": str(server.binaries.folder),
                "pgpass": str(path.with_name("pgpass")),
                "authentication": {who: {"username": "postgres"} for who in ("superuser", "replication", "rewind")},
                "pg_hba": ["local all,replication all trust", "host all,replication all all trust"],
                "basebackup": ["no-sync", {"checkpoint": "fast"}],
                "parameters": {"unix_socket_directories": str(server.socket_dir)},
            },
            "tags": {},
        }

    def group_of(self, machine: Machine) -> str:
        """Return the name of the group that a machine is in."""
        return next(name for name, pair in self.groups.items() if machine in pair)

    def _is(self, machine: Machine, path: str) -> bool:
        return bool(self.rest(machine, "GET", path, timeout_s=2.0)[0] == 200)

    def _wait(self, condition: Callable[[], bool], fault: str) -> None:
        """Wait until a condition holds; while a server does not answer, it does not."""

        def holds() -> bool:
            with contextlib.suppress(OSError, psycopg.OperationalError):
                return condition()
            return False

        deadline = time.monotonic() + _DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, "\n".join([fault, *self._logs()])
            time.sleep(_POLL_S)

    def _logs(self, lines: int = 20) -> list[str]:
        paths = [self.config_path(machine).with_name("log") for machine in self.machines.values()]
        return [
            "\n  ".join([str(path), *path.read_text(errors="replace").splitlines()[-lines:]])
            for path in paths
            if path.exists()
        ]


class PatroniCluster(Patroni):
    """Plain PostgreSQL under Patroni."""


class CitusPatroniCluster(Patroni, CitusCluster):
    """Citus under Patroni."""


class _Supervised(Postgres):
    """A server that Patroni starts and stops."""

    def __init__(self, server: Postgres) -> None:
        super().__init__(server.name, server.address, port=server.port, folder=server.folder, binaries=server.binaries)

    @property
    def is_running(self) -> bool:
        """Reports whether the postmaster lives."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            return (Path("/proc") / str(pid) / "cwd").readlink() == self.data
        except (OSError, ValueError):
            return False

    def reload(self) -> None:
        """Make the server read its configuration files again."""
        self.run_sql("SELECT pg_reload_conf()")
