"""Scenarios of an agent and its host, while the cluster goes on; as in ``cluster_scenarios``."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests.lab import layers
from tests.lab.cluster_scenarios import FENCE
from tests.lab.health import settle
from tests.lab.waiting import wait_while

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.lab import Lab
    from tests.lab.node import Node

_HOSTS = "/etc/hosts"
_CONFIG = "/etc/resolver-agent.yml"
_CLOCK = "/run/clock"
_SOURCE = Path(__file__).with_name("clock.c")
_ALERT_S = 30
_VERSION = "resolver_agent/__init__.py"


def agent_killed(lab: Lab) -> None:
    """Agents are killed, and systemd starts them again."""
    for coordinator in lab.groups["cn"]:
        before, pid = coordinator.host.read(_HOSTS), coordinator.status["pid"]
        mark = coordinator.host.mark()
        coordinator.host.run("systemctl", "kill", "--signal=KILL", "resolver-agent.service")
        coordinator.host.wait_for("^Started ", after=mark)
        settle(lab)
        assert coordinator.status["pid"] != pid
        assert coordinator.host.read(_HOSTS) == before


def agent_stopped(lab: Lab) -> None:
    """Without agents the names stay as they are, and when the agents start there is nothing to change."""
    for coordinator in lab.groups["cn"]:
        before = coordinator.host.read(_HOSTS)
        coordinator.host.run("systemctl", "stop", "resolver-agent.socket", "resolver-agent.service")
        assert coordinator.host.read(_HOSTS) == before
        coordinator.host.run("systemctl", "start", "resolver-agent.socket", "resolver-agent.service")
        settle(lab)
        assert coordinator.host.read(_HOSTS) == before


def agent_reloaded(lab: Lab) -> None:
    """A reload applies a good configuration; it refuses a faulty one, with an alert until that is fixed."""
    reader, standby = lab.standby("cn"), lab.standby("wk1")
    pid, good = reader.status["pid"], reader.host.read(_CONFIG)
    mark = reader.host.mark()
    reader.host.write(_CONFIG, good + b"failback_delay: soon\n")
    reader.host.run("systemctl", "reload", "resolver-agent")
    reader.host.wait_for("the configuration stays as it was", after=mark)
    assert reader.names["wk1"] == standby.address

    more = yaml.safe_load(good)
    more["names"]["wk1-ro"] = {"nodes": [node.address for node in lab.groups["wk1"]], "route": "standby"}
    reader.host.write(_CONFIG, yaml.safe_dump(more).encode())
    reader.host.run("systemctl", "reload", "resolver-agent")
    reader.wait_for_names({"wk1-ro": standby.address, "wk1": standby.address})
    settle(lab)

    reader.host.write(_CONFIG, good)
    reader.host.run("systemctl", "reload", "resolver-agent")
    settle(lab)
    assert reader.status["pid"] == pid


def agent_upgraded(lab: Lab) -> None:
    """The next version is installed over the running one, node by node, and then the old one again."""
    path = lab.checkout / _VERSION
    old = lab.nodes["cn1"].status["version"]
    path.write_text(path.read_text().replace(old, f"{old}.post1"))
    for node in lab.groups["cn"]:
        node.provision("install.sh")
        settle(lab)
        assert node.status["version"] == f"{old}.post1"
    path.write_text(path.read_text().replace(f"{old}.post1", old))
    lab.at_once(lambda node: node.provision("install.sh"), lab.groups["cn"])
    settle(lab)
    assert {node.status["version"] for node in lab.nodes.values()} == {old}


def promotion_without_agent(lab: Lab) -> None:
    """A coordinator is promoted while its agent is stopped: the hook starts it by its socket."""
    new = lab.standby("cn")
    new.host.run("systemctl", "stop", "resolver-agent.service")
    mark = new.host.mark()
    lab.switch_over("cn")
    new.host.wait_for("a promotion is announced", after=mark)
    settle(lab, {"cn": new})


def hosts_trampled(lab: Lab) -> None:
    """The hosts file is rewritten without the names: they are restored, and the other new lines stay."""
    for coordinator in lab.groups["cn"]:
        before = coordinator.names
        coordinator.host.write(_HOSTS, b"127.0.0.1\tlocalhost\n192.168.56.1\tgateway\n")
        coordinator.wait_for_names({name: before[name] for name in lab.groups})
        assert coordinator.names["gateway"] == "192.168.56.1"
        coordinator.host.write(_HOSTS, coordinator.host.read(_HOSTS).replace(b"192.168.56.1\tgateway\n", b""))
    settle(lab)


def hosts_immutable(lab: Lab) -> None:
    """The hosts file cannot be changed while a name should move."""
    reader = lab.standby("cn")
    hosts = f"{reader.disk}{_HOSTS}"  # from outside, as a container may not do that
    lab.ground.run("chattr", "+i", hosts)
    _miss_a_change(lab, reader, lambda: lab.ground.run("chattr", "-i", hosts))


def disk_full(lab: Lab) -> None:
    """The disk that the hosts file is on is full while a name should move."""
    reader = lab.standby("cn")
    reader.host.run("sh", "-c", "cat /dev/zero >/srv/hog || :")
    _miss_a_change(lab, reader, lambda: reader.host.run("rm", "/srv/hog"))


def _miss_a_change(lab: Lab, reader: Node, restore: Callable[[], object]) -> None:
    """Stop a worker's standby: the failed write of the fence is an alert, and the name is fenced once it works."""
    standby, before = lab.standby("wk1"), reader.host.read(_HOSTS)

    def unsaid() -> str | None:
        alerts = str(reader.status["alerts"])  # the journal may be on the same disk
        return None if "cannot be written" in alerts else f"on {reader!r} there are the alerts {alerts}"

    standby.host.run("systemctl", "stop", "patroni")
    wait_while(unsaid, timeout_s=_ALERT_S)
    assert reader.host.read(_HOSTS) == before
    restore()
    reader.wait_for_names({"wk1": FENCE})
    standby.host.run("systemctl", "start", "patroni")
    settle(lab)


def clock_jump(lab: Lab) -> None:
    """A coordinator's clock is set an hour ahead, and then an hour back; each time it is promoted or deposed.

    Containers have the machine's clock, so a library shows another one to the agent, to Patroni and to PostgreSQL.
    """
    node = lab.standby("cn")
    library = lab.checkout / "clock.so"
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", f'-DCLOCK="{_CLOCK}"', f"-o{library}", str(_SOURCE)]
    subprocess.run(command, check=True)
    preload = f"[Service]\nEnvironment=LD_PRELOAD={layers.SOURCES / library.name}\n"
    services = ("patroni.service", "resolver-agent.service")
    with node.drop_in(services[0], preload), node.drop_in(services[1], preload):
        node.host.run("systemctl", "restart", *services)
        settle(lab)
        for ahead_s in (3600, -3600):
            node.host.write(_CLOCK, str(ahead_s).encode())
            assert abs(_seconds_ahead(lab, node) - ahead_s) < 60
            for group in ("cn", "wk1"):
                _, new = lab.switch_over(group)
                settle(lab, {group: new})
    node.host.run("rm", _CLOCK)
    node.host.run("systemctl", "restart", *services)
    settle(lab)


def _seconds_ahead(lab: Lab, node: Node) -> float:
    """Return by how much a node's PostgreSQL is ahead of this process."""
    with lab.connect(node) as session:
        [(now,)] = session.execute("SELECT EXTRACT(epoch FROM clock_timestamp())").fetchall()
    return float(now) - time.time()
