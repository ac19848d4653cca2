"""The lab comes up as a cluster that works, by the scripts that Vagrant runs."""

from __future__ import annotations

import re
import select
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.lab.health import settle

if TYPE_CHECKING:
    from tests.lab.lab import Lab

UNITS = ("patroni.service", "resolver-agent.service", "resolver-agent.socket")


def test_names_and_roles(lab: Lab) -> None:
    """Every group has a primary and a standby, and every node's names point to nodes of its own role."""
    primaries = {group: lab.primary(group) for group in lab.groups}
    standbys = {group: lab.standby(group) for group in lab.groups}
    for node in lab.nodes.values():
        wanted = primaries if node is primaries[node.group] else standbys
        names = {group: one.address for group, one in wanted.items()} | {node.group: node.address}
        assert names.items() <= node.names.items()
        assert {name: node.resolve(name) for name in names} == {name: [address] for name, address in names.items()}


def test_standbys_serve_the_standby(lab: Lab) -> None:
    """A read through the coordinator's standby is served by worker standbys alone, one through its primary by none."""
    workers = ("wk1", "wk2")
    assert lab.serving(lab.standby("cn")) == {lab.standby(group).name: True for group in workers}
    assert lab.serving(lab.primary("cn")) == {lab.primary(group).name: False for group in workers}
    with lab.connect(lab.standby("cn")) as session:
        assert session.execute("SELECT count(*), sum(balance) FROM accounts").fetchall() == [(1000, 100_000)]


def test_nothing_is_wrong(lab: Lab) -> None:
    """No agent has an alert, doctor finds nothing, and Patroni and systemd accept their configuration."""
    settle(lab)
    for node in (lab.primary("cn"), lab.standby("cn"), lab.standby("wk1")):
        assert node.host.run("resolver-agent", "doctor") == "nothing is wrong here\n"
    validate = ("/opt/patroni/bin/patroni", "--validate-config", "--ignore-listen-port", "/etc/patroni.yml")
    assert node.host.run(*validate) == ""
    assert node.host.run("systemd-analyze", "verify", "--man=no", *UNITS) == ""
    assert node.host.run("systemctl", "is-system-running") == "running\n"


def test_sandbox(lab: Lab) -> None:
    """The agents run in the sandbox of the installed unit, which by systemd's measure leaves little exposed."""
    for node in lab.nodes.values():
        said = node.host.run("systemd-analyze", "security", "--no-pager", UNITS[1])
        exposure = re.search(r"Overall exposure level for resolver-agent.service: ([\d.]+) ", said)
        assert exposure is not None
        assert float(exposure[1]) <= 2.1
        pid = node.host.show(UNITS[1], "MainPID")["MainPID"]
        confined = dict(line.split(":\t", 1) for line in node.host.read(f"/proc/{pid}/status").decode().splitlines())
        assert confined["NoNewPrivs"] == "1"
        assert confined["Seccomp"] == "2"  # filtered
        assert int(confined["CapEff"], 16) == 1 << 1  # DAC_OVERRIDE


def test_provisioned_again(lab: Lab) -> None:
    """When the scripts are run again they change nothing, and report that."""
    said = [*lab.at_once(lambda node: node.provision("install.sh"), lab.nodes.values()), *lab.provision()]
    assert [each.splitlines()[-1].rpartition(": ")[2] for each in said] == ["done, nothing changed"] * len(said)
    assert "changed: " not in "".join(said)


def test_network_is_cut_and_restored(lab: Lab) -> None:
    """Two nodes that are cut off from each other get nothing, not even a refusal; the others still answer."""
    one, two = lab.primary("cn"), lab.standby("cn")
    other = lab.primary("wk1")
    knock = ("bash", "-c", f"exec 3<>/dev/tcp/{other.address}/5432")
    lab.cut(one, other)
    with pytest.raises(RuntimeError, match="exited with 124"):
        one.host.run("timeout", "1", *knock)
    two.host.run(*knock)
    lab.reconnect(one, other)
    one.host.run(*knock)


def test_power_is_lost_and_back(lab: Lab) -> None:
    """A node that loses its power sends nothing; booted again, it serves as before."""
    standby, coordinator = lab.standby("wk1"), lab.standby("cn")
    mark = coordinator.host.mark()
    with lab.connect(standby) as session:
        standby.lose_power()
        coordinator.host.wait_for(rf"alert: wk1 → {standby.address} \(held", after=mark)
        assert select.select([session.fileno()], [], [], 0)[0] == []
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        lab.connect(standby, connect_timeout=2)

    standby.boot()
    settle(lab)
    assert lab.serving(coordinator)[standby.name]
