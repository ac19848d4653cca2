"""Planned work on a server under a real Patroni: no statement fails, and each waits a few seconds at most."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.support.agent_state import wait_until
from tests.integration.support.cluster import at_once
from tests.integration.support.waiting import Clients
from tests.unit.metrics.builders import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.support.patroni_cluster import PatroniCluster

pytestmark = pytest.mark.usefixtures("before_stop")

ROOMS = r"127\.\d+\.0\.2"


def prepare(patroni: PatroniCluster, **settings: object) -> PatroniCluster:
    """Start the agents, set both hooks, and create what the clients use."""
    for machine in patroni.machines.values():
        hooks = {name: patroni.hook(machine, name) for name in ("pre_promote", "before_stop")}
        patroni.reconfigure(machine, postgresql=hooks)
    at_once(lambda machine: patroni.start_agent(machine, **settings), patroni.machines.values())
    for agent in patroni.agents.values():
        agent.wait_for_line("the local role is ", timeout_s=60)
    patroni.run_sql(patroni.machines["wk1-1"], "CREATE TABLE marks (id bigint PRIMARY KEY)")
    patroni.run_sql(patroni.machines["cn-1"], "CREATE EXTENSION dblink")
    for primary, standby in patroni.groups.values():
        standby.server.wait_for_replay(of=primary.server)
    return patroni


def switch_over(patroni: PatroniCluster) -> None:
    """Make the standby of wk1 its primary."""
    patroni.switch_over(patroni.machines["wk1-2"])


def restart(patroni: PatroniCluster) -> None:
    """Restart the primary of wk1, as ``patronictl restart`` does."""
    primary = patroni.machines["wk1-1"]
    status, answer = patroni.rest(primary, "POST", "/restart", {}, timeout_s=60)
    assert status == 200, answer
    patroni.wait_for_primary(primary)


@pytest.mark.parametrize("work", [switch_over, restart])
def test_no_statement_fails(patroni: PatroniCluster, work: Callable[[PatroniCluster], None]) -> None:
    """While the server behind a name is switched over or restarted, statements wait; what was acknowledged is there."""
    prepare(patroni)
    clients = Clients(patroni, patroni.machines["cn-1"], "wk1")
    agent = patroni.agents["cn-1"]
    with clients.at_work():
        clients.wait_for_progress()
        work(patroni)
        clients.wait_for_progress()
    assert clients.failed == []
    primary = next(one for one in patroni.groups["wk1"] if not one.server.is_in_recovery)
    rows = patroni.run_sql(primary, "SELECT id FROM marks")
    assert clients.written <= {id_ for (id_,) in rows}
    agent.wait_for_line(rf"wk1 → {ROOMS}")
    agent.wait_for_target("wk1", primary.address)
    line = agent.wait_for_line(r"wk1: the stop of .* is over")
    assert " 0 failed" in line
    assert max(clients.waits_s) < 15


def test_reads_on_a_standby(patroni: PatroniCluster) -> None:
    """Reads through a coordinator's standby wait, too, until the worker has a standby again."""
    prepare(patroni)
    clients = Clients(patroni, patroni.machines["cn-2"], "wk1", reads=True)
    with clients.at_work():
        clients.wait_for_progress()
        switch_over(patroni)
        clients.wait_for_progress()
    assert clients.failed == []
    patroni.agents["cn-2"].wait_for_target("wk1", patroni.machines["wk1-1"].address)


def test_a_standby_is_restarted(patroni: PatroniCluster) -> None:
    """Reads through a coordinator's standby wait while the worker's standby restarts."""
    prepare(patroni)
    clients = Clients(patroni, patroni.machines["cn-2"], "wk1", reads=True)
    standby = patroni.machines["wk1-2"]
    with clients.at_work():
        clients.wait_for_progress()
        status, answer = patroni.rest(standby, "POST", "/restart", {}, timeout_s=60)
        assert status == 200, answer
        clients.wait_for_progress()
    assert clients.failed == []


def test_status_shows_the_window(patroni: PatroniCluster) -> None:
    """While statements wait ``status`` says so, and for whom; afterwards how long they waited."""
    prepare(patroni)
    primary, standby = patroni.groups["wk1"]
    machine = patroni.machines["cn-1"]

    def queue() -> dict[str, Any]:
        found: dict[str, Any] = patroni.ask_agent(machine, "status", timeout_s=10)["queue"]
        return found

    clients = Clients(patroni, machine, "wk1")
    with clients.at_work():
        clients.wait_for_progress()
        patroni.rest(primary, "POST", "/switchover", {"leader": primary.name, "candidate": standby.name}, timeout_s=60)
        seen = patroni.agents["cn-1"].wait_for_line("wk1:queued|alert: wk1 ")
        assert seen
        clients.wait_for_progress()
    [past] = wait_until(lambda: queue()["past"])
    assert queue()["open"] == []
    assert (past["name"], past["node"], past["failed"]) == ("wk1", f"{primary.address}:{patroni.site.port}", 0)
    assert past["forwarded"] >= 1
    counted = Metrics(patroni.ask_agent(machine, "metrics", timeout_s=10)["text"])
    assert counted.value("queue_windows_total", name="wk1") == 1
    assert counted.value("queue_forwarded_connections_total", name="wk1") == past["forwarded"]
    assert counted.value("queue_failed_connections_total", name="wk1") == 0
    assert counted.value("queue_waiting_connections", name="wk1") == 0
    assert counted.value("queue_longest_wait_seconds", name="wk1") == pytest.approx(past["longest_wait_s"], abs=0.01)
    assert counted.value("holds_leader_lock") == 1
    assert {one["node"] for one in counted.labels("patroni_up")} == {one["node"] for one in counted.labels("node_fit")}


def test_switched_off(patroni: PatroniCluster) -> None:
    """With ``queue.planned`` at 0 the hook returns at once, and names move as without a queue."""
    prepare(patroni, queue={"planned": "0s"})
    begun = time.monotonic()
    status, text = patroni.rest(patroni.machines["wk1-1"], "GET", "/patroni")
    assert status == 200, text
    switch_over(patroni)
    agent = patroni.agents["wk1-1"]
    agent.wait_for_line("before-stop answered .*queue.planned is 0")
    patroni.agents["cn-1"].wait_for_target("wk1", patroni.machines["wk1-2"].address)
    assert not [line for line in patroni.agents["cn-1"].lines if "127.77." in line]
    assert time.monotonic() - begun < 60
