"""An application host while the coordinator is switched over, or loses its power: connects wait, and succeed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.queue.test_switchover import prepare
from tests.integration.support.application_host import ApplicationHost
from tests.unit.metrics.builders import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.support.patroni_cluster import PatroniCluster

ROOM = r"cn → 127\.\d+\.0\.1 "


@pytest.fixture
def host(patroni: PatroniCluster) -> Iterator[ApplicationHost]:
    """Start the nodes' agents with both hooks, and make an application host; its agent is for the test to start."""
    prepare(patroni)
    with ApplicationHost(patroni) as made:
        yield made


@pytest.mark.usefixtures("before_stop")
def test_a_planned_switchover_of_the_coordinator(host: ApplicationHost) -> None:
    """Not one new connection fails, and each reaches the primary; PgBouncer follows once it looks the name up again."""
    old, new = host.cluster.groups["cn"]
    agent = host.start_agent()
    writes, reads = host.connect_anew("cn"), host.connect_anew("cn-ro")
    pooled = host.connect_over_pgbouncer(dns_max_ttl=1, server_login_retry=1)
    begun = time.monotonic()
    host.cluster.switch_over(new)
    for loop in (writes, pooled):
        loop.reached(new.address, since=begun)
    reads.reached(old.address, since=begun)
    agent.wait_for_line(ROOM)
    agent.wait_for_target("cn", new.address)
    agent.wait_for_target("cn-ro", old.address, timeout_s=30)
    for loop in (writes, reads):
        assert [one.error for one in loop.attempts if one.error] == []
        assert max(one.ended - one.begun for one in loop.attempts) < 15
    assert not any(one.in_recovery for one in writes.attempts)
    counted = Metrics(host.ask_agent("metrics")["text"])
    assert counted.value("queue_windows_total", name="cn") == 1
    assert counted.value("queue_failed_connections_total", name="cn") == 0


def test_a_power_loss_of_the_coordinator(host: ApplicationHost) -> None:
    """With ``queue.unplanned`` connections wait from the moment of the loss until Patroni has promoted the other."""
    old, new = host.cluster.groups["cn"]
    agent = host.start_agent(queue={"unplanned": "60s"})
    writes, pooled = host.connect_anew("cn"), host.connect_over_pgbouncer(dns_max_ttl=1, server_login_retry=1)
    begun = time.monotonic()
    host.cluster.fail_over(new)
    first = writes.reached(new.address, since=begun)
    pooled.reached(new.address, since=begun)
    agent.wait_for_line(ROOM)
    failed = [one for one in writes.attempts if one.error and one.begun < first.begun]
    # Those that began before the agent had seen that the server is gone; afterwards they wait.
    assert all(one.begun - begun < 2 for one in failed)
    assert not any(one.server == old.address for one in writes.attempts if one.begun > first.ended)
