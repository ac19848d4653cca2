"""The cluster of vagrant/lab.yml on containers instead of virtual machines, made by the same scripts.

They boot systemd, and each has an address of its own in a network that they share. Needs root, and Debian's
systemd-container and nftables.
"""

from __future__ import annotations

import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import yaml

from tests.integration.support.machine import http_request
from tests.integration.support.systemd_host import CHECKOUT, Container
from tests.lab import layers
from tests.lab.ground import DATA, Ground
from tests.lab.node import DEADLINE_S, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

_T = TypeVar("_T")
REST_PORT = 8008
_POSTGRES = (Path("/usr/lib/postgresql/15"), Path("/usr/share/postgresql/15"))
_CITUS = "usr/share/postgresql/*/extension/citus.control"
_NETWORK = """\
[Match]
Name=host0

[Network]
Address={address}
LinkLocalAddressing=no
"""


class Lab:
    """A cluster of six nodes; a context manager.

    PostgreSQL runs under Patroni, with an agent on each. There is a table ``accounts``, whose rows are on workers, and
    a view ``serving`` of who reads them. Citus distributes it where this machine's PostgreSQL has that, or the one in
    RESOLVER_AGENT_LAB_ROOT; elsewhere the coordinator reaches the workers by postgres_fdw, by the same names.

    Attributes:
        nodes: by name.
        groups: the nodes behind each name in pg_dist_node.
        etcd: the nodes that it runs on.
        citus: whether it has Citus.
        port: PostgreSQL's, on each node.
        database: the users' own.
        ground: its network and its disks.
        checkout: the sources that it is made of, a copy that a test may change.
    """

    def __init__(self, *, citus: bool = True, etcd_nodes: int = 1) -> None:
        """Plan it; without ``citus`` there is none even where this machine has it."""
        self._etcd_nodes = etcd_nodes
        self._plan = yaml.safe_load((CHECKOUT / "vagrant/lab.yml").read_text())
        self.port: int = self._plan["port"]
        self.database: str = self._plan["database"]
        self.nodes = {
            name: Node(name, address, group=group, lab=self)
            for group, members in self._plan["names"].items()
            for name, address in members.items()
        }
        self.groups = {
            group: [node for node in self.nodes.values() if node.group == group] for group in self._plan["names"]
        }
        self.etcd = [self.nodes[name] for name in self._plan["etcd"][:etcd_nodes]]
        root = layers.own_root()
        there = any(root.glob(_CITUS)) if root else (_POSTGRES[1] / "extension/citus.control").exists()
        self.citus = citus and there
        # Citus needs the PostgreSQL that it was built for.
        self._binds = [] if root or not self.citus else [f"--bind-ro={path}" for path in _POSTGRES]

    def __enter__(self) -> Self:
        lower, self._wheels = layers.installed()
        network, _, prefix = self._plan["network"].partition("/")
        with contextlib.ExitStack() as stack:
            self._threads = stack.enter_context(ThreadPoolExecutor(len(self.nodes)))
            # All containers are started by one thread, as they end with the one that started them.
            self._starter = stack.enter_context(ThreadPoolExecutor(1))
            self.ground = stack.enter_context(Ground(f"{network.rpartition('.')[0]}.1/{prefix}"))
            for node in self.nodes.values():
                stack.callback(node.lose_power)
            self.checkout = layers.copy_checkout(self.ground.folder / "checkout")
            installed = self.ground.folder / "installed"
            layers.install(installed, lower, wheels=self._wheels, checkout=self.checkout)
            for node in self.nodes.values():
                disk = self.ground.outside(self.ground.lay(node.name, [installed, *lower]))
                (disk / "etc/hostname").write_text(f"{node.name}\n")
                if not self.citus:
                    for control in disk.glob(_CITUS):
                        control.unlink()
                network_file = disk / "etc/systemd/network/10-lab.network"
                network_file.write_text(_NETWORK.format(address=f"{node.address}/{prefix}"))
            try:
                self.at_once(lambda node: node.boot(), self.nodes.values())
                self.provision()
            except Exception as error:
                raise RuntimeError(f"the lab did not come up; its journals are in {self.save_journals()}") from error
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def provision(self) -> list[str]:
        """Run the scripts, as Vagrant does when all are up, and return what they print."""

        def configure(node: Node) -> str:
            return node.provision("configure.sh", node.name, str(self._etcd_nodes))

        said = self.at_once(configure, self.nodes.values())
        *_, last = self.nodes.values()
        return [*said, last.provision("cluster.sh", str(DEADLINE_S))]

    def primary(self, group: str) -> Node:
        """Return the node of a group that takes writes."""
        return next(node for node in self.groups[group] if node.is_on and not node.is_standby)

    def standby(self, group: str) -> Node:
        """Return the first node of a group that is in recovery."""
        return next(node for node in self.groups[group] if node.is_on and node.is_standby)

    def roles(self) -> dict[Node, bool | None]:
        """Return whether each node is a standby, and None where none answers."""

        def role(node: Node) -> bool | None:
            try:
                return node.is_standby
            except psycopg.Error:
                return None

        return dict(zip(self.nodes.values(), self.at_once(role, self.nodes.values()), strict=True))

    def rest(self, node: Node, method: str, path: str, body: object = None, *, timeout_s: float = 60) -> int:
        """Return the HTTP status of a node's Patroni.

        Raises:
            OSError: no answer.
        """
        with self.ground.entered():
            return http_request(node.address, REST_PORT, method, path, body, timeout_s=timeout_s)[0]

    def switch_over(self, group: str) -> tuple[Node, Node]:
        """Have Patroni swap the roles of a group, and return the old primary and the new one."""
        old, new = self.primary(group), self.standby(group)
        status = self.rest(old, "POST", "/switchover", {"leader": old.name, "candidate": new.name})
        assert status == 200, f"Patroni on {old!r} answered the switchover with {status}"
        return old, new

    def restart(self, group: str) -> Node:
        """Have Patroni restart the primary of a group, and return it."""
        node = self.primary(group)
        status = self.rest(node, "POST", "/restart", {})
        assert status == 200, f"Patroni on {node!r} answered the restart with {status}"
        return node

    def connect(self, node: Node, **keywords: Any) -> psycopg.Connection:
        """Open a session on a node as the lab's user, from outside; in autocommit mode."""
        where: dict[str, Any] = {
            "host": node.address,
            "port": self.port,
            "user": "app",
            "password": self._plan["password"],
            "dbname": self.database,
            "connect_timeout": 5,
        }
        with self.ground.entered():
            return psycopg.connect(**(where | keywords), autocommit=True)

    def serving(self, coordinator: Node) -> dict[str, bool]:
        """Return which nodes serve a read through a coordinator, and whether they were standbys then."""
        names = {node.address: node.name for node in self.nodes.values()}
        with self.connect(coordinator) as session:
            return {names[address]: standby for address, standby in session.execute("SELECT DISTINCT * FROM serving")}

    def cut(self, one: Node, other: Node) -> None:
        """Drop all packets between two nodes."""
        self.ground.cut(one.address, other.address)

    def reconnect(self, one: Node, other: Node) -> None:
        """Stop dropping them."""
        self.ground.reconnect(one.address, other.address)

    def start_container(self, machine: str) -> Container:
        """Start the container of a node."""
        return self._starter.submit(
            Container,
            machine,
            f"--directory=/mnt/{machine}/root",
            f"--bind=/mnt/{machine}/data:{DATA}",
            f"--bind-ro={self.checkout}:{layers.SOURCES}",
            f"--bind-ro={self._wheels}:{layers.WHEELS}",
            "--network-bridge=lab",
            *self._binds,
            launcher=self.ground.launcher,
        ).result()

    def at_once(self, do: Callable[[Node], _T], nodes: Iterable[Node]) -> list[_T]:
        """Do something with all of these nodes in parallel."""
        return list(self._threads.map(do, nodes))

    def journal(self, node: Node, *options: str) -> str:
        """Return what journalctl has of a node, of all its boots, whether it is on or off."""
        folder = f"--directory={node.disk}/var/log/journal"
        return self.ground.run("journalctl", folder, "--no-pager", "--quiet", *options)

    def save_journals(self) -> Path:
        """Write the journals of all nodes, of all their boots, to a new folder, and return its path."""
        folder = Path(tempfile.mkdtemp(prefix="lab-journals-"))
        for node in self.nodes.values():
            (folder / f"{node.name}.log").write_text(self.journal(node, "--output=short-precise"))
        return folder
