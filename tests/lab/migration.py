"""From names in ``pg_dist_node`` to the controller of the well-known article, and from that to names."""

from __future__ import annotations

import http
import json
import shutil
from typing import TYPE_CHECKING, Any

import yaml

from tests.integration.support import controller
from tests.lab import layers
from tests.lab.waiting import wait_while

if TYPE_CHECKING:
    from tests.lab.lab import Lab
    from tests.lab.node import Node

_AGENT = ("resolver-agent.socket", "resolver-agent.service")
_CONFIG = "/etc/resolver-agent.yml"
_PATRONI = "/etc/patroni.yml"
_SCRIPT = "/run/metadata.sql"
_LOOP_S = 0.5
_FOLLOWED_S = 30
_CHANGE_S = 200  # it tries for three minutes
_HOOKS = ("pre_promote", "before_stop")
_INTERVALS = ("citus.recover_2pc_interval", "citus.defer_shard_delete_interval")
_NODES = "SELECT nodename FROM pg_dist_node ORDER BY groupid"


class Migration:
    """Changes who sees to it that coordinators reach the primaries of the workers: the agents, or controllers.

    It begins with the agents, as the lab does. The order of the steps is that of systemd/README.md.
    """

    def __init__(self, lab: Lab) -> None:
        """Plan it."""
        self._lab = lab
        self._patroni = {node: node.host.read(_PATRONI) for node in lab.nodes.values()}
        self._program = lab.checkout / "controller.py"
        self._names: dict[str, Any] = {}

    def to_controllers(self) -> None:
        """Put addresses into the metadata, uninstall the agents, and start the controllers."""
        lab = self._lab
        self._change_metadata("to_addresses", [lab.primary(group).address for group in lab.groups])
        lab.at_once(self._without_agent, lab.nodes.values())
        shutil.copy(controller.__file__, self._program)
        lab.at_once(self._start_controller, lab.groups["cn"])

    def follow(self) -> None:
        """Swap the roles of a worker's nodes: the controllers put the new primary into the metadata.

        It waits for the standby, too: an agent that starts without one fences the name on the coordinator's standby.
        """
        old, new = self._lab.switch_over("wk1")

        def fault() -> str | None:
            found = self._metadata()
            if found[1] != new.address:
                return f"pg_dist_node has {found}, not {new!r}"
            is_fit = self._lab.rest(old, "GET", "/synchronous") == http.HTTPStatus.OK
            return None if is_fit else f"{old!r} is no synchronous standby yet"

        wait_while(fault, timeout_s=_FOLLOWED_S)

    def to_names(self) -> None:
        """Start the agents with what is imported, stop the controllers, and put names into the metadata."""
        lab = self._lab
        one, other = lab.groups["cn"]
        imported = one.host.run("resolver-agent", "import", _PATRONI).replace("<ADDRESS>", other.address)
        self._names = yaml.safe_load(imported)["names"]
        lab.at_once(self._with_agent, lab.nodes.values())
        for coordinator in lab.groups["cn"]:
            coordinator.host.run("systemctl", "stop", "controller.service")
        self._change_metadata("to_names", list(lab.groups))
        self._program.unlink()

    def _change_metadata(self, script: str, expected: list[str]) -> None:
        """Run a script of doctor's on the primary coordinator, and restart the agents, which flushes."""
        coordinator = self._lab.primary("cn")
        report = json.loads(coordinator.host.run("sh", "-c", "resolver-agent doctor --json || :"))
        assert report[script], report
        coordinator.host.write(_SCRIPT, report[script].encode())
        psql = ("psql", "--no-psqlrc", "--quiet", f"--file={_SCRIPT}")
        coordinator.host.run("runuser", "--user=postgres", "--", *psql, timeout_s=_CHANGE_S)
        self._lab.at_once(_restart_agent, self._lab.nodes.values())
        found = self._metadata()
        assert found == expected, found

    def _metadata(self) -> list[str]:
        with self._lab.connect(self._lab.primary("cn")) as session:
            return [host for (host,) in session.execute(_NODES)]

    def _without_agent(self, node: Node) -> None:
        settings = yaml.safe_load(self._patroni[node])
        server = settings["postgresql"]
        for key in _HOOKS:
            del server[key]
        for key in _INTERVALS:
            del server["parameters"][key]
        if node.group == "cn":
            settings["citus"] = self._section()
        _apply(node, _PATRONI, yaml.safe_dump(settings).encode(), "patroni.service")
        node.host.run("systemctl", "disable", "--now", *_AGENT)
        node.host.run("resolver-agent", "remove")
        assert not self._lab.groups.keys() & node.names.keys()

    def _section(self) -> dict[str, Any]:
        workers = [
            {"groupid": number, "nodes": [f"{node.address}:{self._lab.port}" for node in nodes]}
            for number, nodes in enumerate(self._lab.groups.values())
            if number
        ]
        return {"loop_wait": _LOOP_S, "databases": [self._lab.database], "workers": workers}

    def _start_controller(self, node: Node) -> None:
        mark = node.host.mark()
        command = ("/opt/resolver-agent/bin/python", str(layers.SOURCES / self._program.name), _PATRONI)
        node.host.run("systemd-run", "--quiet", "--unit=controller", "--uid=postgres", *command)
        node.host.wait_for("^done$", after=mark, unit="controller.service")

    def _with_agent(self, node: Node) -> None:
        """Configure the agent with the names that the file of a coordinator gives, and start it."""
        settings = yaml.safe_load(node.host.read(_CONFIG))
        assert self._names == settings["names"]
        node.host.run("systemctl", "enable", "--now", *_AGENT)
        node.wait_for_names({node.group: node.address})
        _apply(node, _PATRONI, self._patroni[node], "patroni.service")


def _apply(node: Node, path: str, content: bytes, unit: str) -> None:
    node.host.write(path, content)
    node.host.run("systemctl", "reload", unit)


def _restart_agent(node: Node) -> None:
    mark = node.host.mark()
    node.host.run("systemctl", "restart", _AGENT[1])
    node.host.wait_for("flushed the connections", after=mark)
