"""Scenarios of a cluster. Each starts with a healthy lab and ends with one.

Each step waits for its event: what the agents report, what the names are, and which servers answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab.health import settle
from tests.lab.lab import Lab
from tests.lab.waiting import wait_while

if TYPE_CHECKING:
    from tests.lab.node import Node

FENCE = "255.255.255.255"
_FAILOVER_S = 60  # Patroni's ttl is 20 s
_REFUSAL_S = 30


def worker_switchover(lab: Lab) -> None:
    """Patroni swaps the roles of a worker's nodes."""
    _, new = lab.switch_over("wk1")
    settle(lab, {"wk1": new})


def planned_work(lab: Lab) -> None:
    """Patroni swaps the roles of a worker's nodes, and restarts the primary of another: connections wait meanwhile."""
    coordinator = lab.primary("cn")
    coordinator.host.run("systemctl", "reload", "resolver-agent")  # it looks for databases with workers at once
    if lab.citus:
        wait_while(lambda: not coordinator.status["queue"]["coordinates"], timeout_s=_REFUSAL_S)
    for work, group in ((_switch_over, "wk1"), (Lab.restart, "wk2")):
        mark = coordinator.host.mark()
        primary = work(lab, group)
        coordinator.host.wait_for(f"{group}: the stop of", after=mark)
        settle(lab, {group: primary})


def _switch_over(lab: Lab, group: str) -> Node:
    return lab.switch_over(group)[1]


def worker_power_loss(lab: Lab) -> None:
    """A worker's primary loses its power, its standby is promoted, and it returns."""
    old, new = lab.primary("wk1"), lab.standby("wk1")
    coordinator, reader = lab.primary("cn"), lab.standby("cn")
    mark = coordinator.host.mark()
    old.lose_power()
    _wait_until_held(coordinator, old, after=mark)
    coordinator.wait_for_names({"wk1": new.address}, timeout_s=_FAILOVER_S)
    reader.wait_for_names({"wk1": FENCE})
    assert lab.serving(coordinator) == {new.name: False, lab.primary("wk2").name: False}
    old.boot()
    settle(lab, {"wk1": new})


def worker_standby_stopped(lab: Lab) -> None:
    """A worker's standby is stopped and started: reads through it fail at once, and return with it."""
    standby, reader = lab.standby("wk1"), lab.standby("cn")
    mark = standby.host.mark()
    standby.host.run("systemctl", "stop", "patroni")
    reader.wait_for_names({"wk1": FENCE})
    standby.host.wait_for("is dead", after=mark)
    assert standby.names["wk1"] == standby.address
    standby.host.run("systemctl", "start", "patroni")
    settle(lab)
    assert reader.names["wk1"] == standby.address


def worker_standby_power_loss(lab: Lab) -> None:
    """A worker's standby loses its power and returns: no evidence shows that it is gone, so its name is held."""
    standby, reader = lab.standby("wk1"), lab.standby("cn")
    mark = reader.host.mark()
    standby.lose_power()
    _wait_until_held(reader, standby, after=mark)
    standby.boot()
    settle(lab)


def worker_restarted(lab: Lab) -> None:
    """Both servers of a worker are stopped; the last primary comes up as a standby, and is fenced until promoted."""
    primary, standby, coordinator = lab.primary("wk1"), lab.standby("wk1"), lab.primary("cn")
    for node in (standby, primary):
        node.host.run("systemctl", "stop", "patroni")
    mark = coordinator.host.mark()
    settings = primary.host.read("/etc/patroni.yml")
    # Otherwise it may be promoted before an agent has asked it again.
    primary.host.write("/etc/patroni.yml", settings + b"tags: {nofailover: true}\n")
    primary.host.run("systemctl", "start", "patroni")
    coordinator.host.wait_for("wk1 → fenced", after=mark)
    primary.host.write("/etc/patroni.yml", settings)
    primary.host.run("systemctl", "reload", "patroni")
    coordinator.wait_for_names({"wk1": primary.address})  # otherwise the standby may be promoted, as long as it may not
    standby.host.run("systemctl", "start", "patroni")
    settle(lab, {"wk1": primary})


def coordinator_switchover(lab: Lab) -> None:
    """Patroni swaps the roles of the coordinators."""
    new = lab.standby("cn")
    mark = new.host.mark()
    lab.switch_over("cn")
    new.host.wait_for("a promotion is announced", after=mark)
    settle(lab, {"cn": new})


def coordinator_power_loss(lab: Lab) -> None:
    """The primary coordinator loses its power, its standby is promoted, and it returns."""
    old, new = lab.primary("cn"), lab.standby("cn")
    mark = new.host.mark()
    old.lose_power()
    new.host.wait_for("a promotion is announced", after=mark, timeout_s=_FAILOVER_S)
    new.wait_for_names({name: lab.primary(name).address for name in ("wk1", "wk2")})
    old.boot()
    settle(lab, {"cn": new})


def network_cut(lab: Lab) -> None:
    """The primary coordinator and a worker's primary are cut off from each other for a while; all others are not."""
    coordinator, worker = lab.primary("cn"), lab.primary("wk1")
    mark = coordinator.host.mark()
    lab.cut(coordinator, worker)
    _wait_until_held(coordinator, worker, after=mark)
    assert lab.roles()[worker] is False
    lab.reconnect(coordinator, worker)
    settle(lab, {"cn": coordinator, "wk1": worker})


def etcd_lost(lab: Lab) -> None:
    """Without etcd Patroni demotes all primaries; when etcd returns, even late, there are primaries again."""
    lab.at_once(lambda keeper: keeper.host.run("systemctl", "stop", "etcd"), lab.etcd)
    for node in lab.nodes.values():
        first = {group: members[0].address for group, members in lab.groups.items()}
        node.wait_for_names(first | {node.group: node.address}, timeout_s=_FAILOVER_S)
    lab.at_once(_start_etcd_too_early, lab.etcd)
    settle(lab)


def patroni_restarted(lab: Lab) -> None:
    """Patroni is killed on a coordinator, which later becomes the primary.

    The Patroni that starts with PostgreSQL running no longer knows a setting that the agent's value overrides.
    """
    node = lab.standby("cn")
    mark = node.host.mark()
    node.host.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "patroni")
    node.host.wait_for("^Started ", after=mark, unit="patroni.service")
    settle(lab)
    lab.switch_over("cn")
    settle(lab, {"cn": node})
    lab.switch_over("cn")
    if lab.citus:
        node.host.wait_for("alert: no configuration file sets citus.node_conninfo", after=mark)
    node.host.run("systemctl", "reload", "patroni")
    lab.switch_over("wk1")  # a flush, which checks it again
    settle(lab)


def split_brain(lab: Lab) -> None:
    """A coordinator's Patroni is killed; its PostgreSQL runs on as a primary, next to the one promoted instead."""
    old, new = lab.primary("cn"), lab.standby("cn")
    worker = lab.primary("wk1")
    mark, there = new.host.mark(), worker.host.mark()
    with old.drop_in("patroni.service", "[Service]\nRestart=no\n"):
        old.host.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "patroni")
        new.host.wait_for("a promotion is announced", after=mark, timeout_s=_FAILOVER_S)
        worker.wait_for_names({"cn": new.address})
        worker.host.wait_for("several primaries", after=there)
        assert lab.roles()[old] is False
        if lab.citus:
            old.host.run("systemctl", "restart", "resolver-agent")  # recovery would be its first action
            _wait_until_recovery_is_refused(old)
    old.host.run("systemctl", "start", "patroni")
    settle(lab, {"cn": new})


def reboots(lab: Lab) -> None:
    """Each node is rebooted in turn."""
    for node in lab.nodes.values():
        node.shut_down()
        node.boot()
        settle(lab)


def power_cut(lab: Lab) -> None:
    """All nodes lose their power at once, and are started one after the other, the first one first."""
    lab.at_once(lambda node: node.lose_power(), lab.nodes.values())
    for node in lab.nodes.values():
        node.boot()
    settle(lab)


def shut_down(lab: Lab) -> None:
    """All nodes are shut down at once, and started one after the other, the last one first."""
    lab.at_once(lambda node: node.shut_down(), lab.nodes.values())
    for node in reversed(lab.nodes.values()):
        node.boot()
    settle(lab)


def _start_etcd_too_early(keeper: Node) -> None:
    """Start etcd before its address exists, as happens at a boot, and add the address when etcd has failed."""
    mark = keeper.host.mark()
    # A connection starts the holder of the socket, and gets no answer. A service that ended would be started too often.
    squat = ("systemd-run", "--quiet", "--unit=squatter", f"--socket-property=ListenStream={keeper.address}:2379")
    keeper.host.run(*squat, "--property=PartOf=squatter.socket", "sleep", "infinity")
    keeper.host.run("systemctl", "start", "--no-block", "etcd")
    keeper.host.wait_for("address already in use", after=mark, unit="etcd.service")
    keeper.host.run("systemctl", "stop", "squatter.socket")


def _wait_until_held(watcher: Node, node: Node, *, after: str) -> None:
    """Wait until a node does not answer, and check that its name still points there: silence moves nothing (R1)."""
    watcher.host.wait_for(rf"{node.address}:\d+ is unreachable", after=after)
    watcher.host.wait_for(rf"alert: {node.group} → {node.address} \(held", after=after)
    assert watcher.names[node.group] == node.address


def _wait_until_recovery_is_refused(deposed: Node) -> None:
    """Wait until a new agent reports that it blocks 2PC recovery, by rule R6, and check that none has run."""

    def fault() -> str | None:
        recovery = deposed.status["recovery"]
        assert recovery["age_s"] is None, f"2PC recovery ran on {deposed!r}, which was deposed: {recovery}"
        refused = "is not the accepted primary" in (recovery["hindered"] or "")
        return None if refused else f"on {deposed!r} 2PC recovery stands like this: {recovery}"

    wait_while(fault, timeout_s=_REFUSAL_S)
