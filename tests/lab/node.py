"""One host of the lab: switched on and off, and queried."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resolver_agent.control import client
from tests.lab import layers
from tests.lab.waiting import wait_while

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.integration.support.systemd_host import Container, SystemdHost
    from tests.lab.lab import Lab

DEADLINE_S = 120


class Node:
    """One host of a lab.

    Attributes:
        name: its host name.
        group: the name in pg_dist_node that it is behind.
        address: its IP address.
        disk: where its file system is in the lab's ground, whether it is on or off.
    """

    def __init__(self, name: str, address: str, *, group: str, lab: Lab) -> None:
        """Plan it; it is off."""
        self.name = name
        self.address = address
        self.group = group
        self.disk = Path("/mnt", name, "root")
        self._lab = lab
        self._container: Container | None = None
        self._host: SystemdHost | None = None

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"

    @property
    def is_on(self) -> bool:
        """Whether it has booted."""
        return self._host is not None

    @property
    def host(self) -> SystemdHost:
        """What runs there: commands, files, units and the journal."""
        assert self._host is not None, f"{self!r} is off"
        return self._host

    @property
    def names(self) -> dict[str, str]:
        """The hosts file's addresses by name."""
        lines = [line.partition("#")[0].split() for line in self.host.read("/etc/hosts").decode().splitlines()]
        return {name: address for address, *names in filter(None, lines) for name in names}

    @property
    def is_standby(self) -> bool:
        """Whether its PostgreSQL is in recovery."""
        with self._lab.connect(self) as session:
            return session.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)

    @property
    def status(self) -> dict[str, Any]:
        """The status of its agent."""
        return client.ask(client.socket_path(str(self.host.root / "run/resolver-agent")), "status")

    @property
    def role_changes(self) -> list[tuple[float, bool]]:
        """When its PostgreSQL took each role (seconds since the epoch), and whether that was a standby's."""
        return [
            (float(line.split()[0]), re.search("read.only", line) is not None)  # until PostgreSQL 13 "read only"
            for line in self._lab.journal(self, "--unit=patroni.service", "--output=short-unix").splitlines()
            if "LOG:  database system is ready to accept " in line
        ]

    def resolve(self, name: str) -> list[str]:
        """Return a name's addresses there, from the C library."""
        found = self.host.run("sh", "-c", 'getent ahostsv4 "$1" || :', "sh", name)
        return list(dict.fromkeys(line.split()[0] for line in found.splitlines()))

    def wait_for_names(self, names: Mapping[str, str], *, timeout_s: float = 30) -> None:
        """Wait until its hosts file has these addresses for these names."""

        def fault() -> str | None:
            seen = self.names
            return None if names.items() <= seen.items() else f"on {self!r} the names are {seen}, not {dict(names)}"

        wait_while(fault, timeout_s=timeout_s)

    def boot(self) -> None:
        """Switch it on, and wait until all that starts at boot has started."""
        self._container = self._lab.start_container(self.name)
        self._container.leader()
        self._lab.ground.plug(self.name)
        self._host = self._container.booted()

    def lose_power(self) -> None:
        """Switch it off at once: no other node is notified, and nothing is closed or written any more."""
        if self._container is not None:
            if self._host is not None and self._container.runs:
                self._lab.ground.unplug(self.name)
            self._container.kill()
        self._host = self._container = None

    def shut_down(self) -> None:
        """Shut it down in order."""
        self.host.run("systemctl", "poweroff", "--no-block")
        assert self._container is not None
        self._container.wait(timeout_s=DEADLINE_S)
        self._host = self._container = None

    @contextlib.contextmanager
    def drop_in(self, unit: str, text: str) -> Iterator[None]:
        """Add this to a unit's settings. The unit is not restarted."""
        folder = f"/run/systemd/system/{unit}.d"
        self.host.run("mkdir", "-p", folder)
        self.host.write(f"{folder}/lab.conf", text.encode())
        self.host.run("systemctl", "daemon-reload")
        yield
        self.host.run("rm", "-r", folder)
        self.host.run("systemctl", "daemon-reload")

    def provision(self, script: str, *arguments: str) -> str:
        """Run one of Vagrant's scripts, and return its output."""
        path = layers.SOURCES / "vagrant/provision" / script
        settings = [f"{key}={value}" for key, value in layers.PIP.items()]
        return self.host.run("env", *settings, "bash", str(path), *arguments, timeout_s=DEADLINE_S)
