"""The watch over a real Patroni with a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any

from resolver_agent.config.load import parse
from resolver_agent.config.model import Config, Node
from resolver_agent.patroni.watch import PatroniWatch
from resolver_agent.routing.observation import PatroniStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import PatroniCluster

off_loop = asyncio.to_thread
"""Clusters block: a test changes one in a thread while a watch runs."""

CALM_S, INTERVAL_S, API_TIMEOUT_S = 0.5, 0.2, 1.0


class Sight:
    """A watch over the group ``wk1`` of a cluster; only the first node is in its configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.changed = asyncio.Event()
        self.watch = PatroniWatch(changed=self.changed, calm_s=CALM_S, gone_after_s=1.0, patience_s=0.0)
        self.watch.watch(config)

    @property
    def hosts(self) -> list[str]:
        """The hosts of wk1, members that joined included."""
        return [one.host for one in self.watch.extended(self.config).groups[0].nodes]

    @property
    def status(self) -> PatroniStatus:
        """Patroni's status of wk1."""
        return self.watch.statuses.get("wk1", PatroniStatus())

    @property
    def leader(self) -> str | None:
        """The leader of wk1."""
        return self.status.leader.host if self.status.leader else None

    def leads(self, machine: Machine) -> bool | None:
        """Return whether the Patroni on a machine last reported to hold the leader lock."""
        claim = self.watch.claim(node_of(machine))
        return claim.leads if claim is not None else None

    async def until(self, condition: Callable[[], object], *, timeout_s: float = 30.0) -> None:
        """Wait until a condition holds; its change must set the event."""
        while not condition():
            await asyncio.wait_for(self.changed.wait(), timeout_s)
            self.changed.clear()
            self.watch.check()

    async def until_alerts(self, *texts: str, timeout_s: float = 30.0) -> None:
        """Wait until these are the alerts. An alert need not set the event when it begins or ends."""
        deadline = time.monotonic() + timeout_s
        while (found := [alert.text for alert in self.watch.alerts]) != list(texts):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.02)
            self.watch.check()


def node_of(machine: Machine) -> Node:
    """Return the node of a machine's server."""
    return Node(machine.address, machine.server.port)


@contextlib.asynccontextmanager
async def watching(patroni: PatroniCluster) -> AsyncIterator[Sight]:
    """Watch ``wk1``, given by its first node."""
    first, _ = patroni.groups["wk1"]
    text = f"""
        fallback: none
        names:
          wk1: {{nodes: [{first.address}], patroni: {{port: {patroni.rest_port}, networks: [127.0.0.0/8]}}}}
        port: {first.server.port}
        interval: {INTERVAL_S * 1000:.0f}ms
        timeout: {API_TIMEOUT_S * 1000:.0f}ms
    """
    sight = Sight(parse(text, path="test", hostname="test"))
    try:
        yield sight
    finally:
        await sight.watch.close()


def in_loop(test: Callable[[PatroniCluster], Coroutine[Any, Any, None]]) -> Callable[[PatroniCluster], None]:
    """Run a test in an event loop of its own, and check that it leaves no task behind."""

    @functools.wraps(test)
    def run(patroni: PatroniCluster) -> None:
        async def guarded() -> None:
            await asyncio.wait_for(test(patroni), 120)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(guarded())

    return run


def forget(patroni: PatroniCluster, machine: Machine) -> None:
    """Let a member expire now, as it does ``ttl`` after its last update."""
    patroni.etcd.delete(f"/service/wk1/members/{machine.name}")


@in_loop
async def test_a_replica_comes_and_goes(patroni: PatroniCluster) -> None:
    """A replica becomes a node without an edit when Patroni lists it, is excluded by its tag, and leaves in the end."""
    first, second = patroni.groups["wk1"]
    [(system_id,)] = first.server.run_sql("SELECT system_identifier FROM pg_control_system()")
    async with watching(patroni) as sight:
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        await sight.until(lambda: sight.status == PatroniStatus(leader=node_of(first), system_id=system_id))

        await off_loop(lambda: patroni.reconfigure(second, tags={"noloadbalance": True}))
        excluded = {node_of(second): f"{second.address} is tagged noloadbalance"}
        await sight.until(lambda: sight.status.excluded == excluded)
        await off_loop(lambda: patroni.reconfigure(second, tags={"noloadbalance": False}))
        await sight.until(lambda: not sight.status.excluded)

        await off_loop(patroni.stop_patroni, second)
        await off_loop(forget, patroni, second)
        await sight.until(lambda: sight.hosts == [first.address])
        assert sight.leader == first.address

        await off_loop(patroni.start_patroni, second)
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        await sight.until(lambda: not sight.status.excluded)


@in_loop
async def test_the_lock_at_a_switchover(patroni: PatroniCluster) -> None:
    """The status and each node's own claim follow the leader lock."""
    first, second = patroni.groups["wk1"]
    async with watching(patroni) as sight:
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        sight.watch.own([node_of(first), node_of(second)])
        await sight.until(lambda: (sight.leads(first), sight.leads(second)) == (True, False))
        await off_loop(patroni.switch_over, second)
        await sight.until(lambda: (sight.leads(first), sight.leads(second)) == (False, True))
        await sight.until(lambda: sight.leader == second.address and not sight.status.excluded)


@in_loop
async def test_two_primaries(patroni: PatroniCluster) -> None:
    """A deposed primary that runs on under a hung Patroni claims nothing: the status has its successor."""
    first, second = patroni.groups["wk1"]
    async with watching(patroni) as sight:
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        await sight.until(lambda: sight.leader == first.address)
        await off_loop(patroni.pause_patroni, first)
        await off_loop(patroni.expire_lock, "wk1")
        await off_loop(patroni.wait_for_primary, second)
        assert not first.server.is_in_recovery
        sight.watch.hurry(["wk1"])
        await sight.until(lambda: sight.leader == second.address)
        await sight.until_alerts(f"Patroni at {first.address} cannot be asked: no answer within {API_TIMEOUT_S:g} s")

        await off_loop(patroni.resume_patroni, first)
        await off_loop(patroni.wait_for_standby, first)
        await sight.until(lambda: not sight.status.excluded)
        await sight.until_alerts()
        assert sight.leader == second.address


@in_loop
async def test_patroni_away(patroni: PatroniCluster) -> None:
    """While no Patroni answers there is no status, and the nodes stay; the status returns with Patroni."""
    first, second = patroni.groups["wk1"]
    async with watching(patroni) as sight:
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        await sight.until(lambda: sight.leader == first.address)
        for machine in (first, second):
            patroni.pause_patroni(machine)
        await sight.until(lambda: not sight.watch.statuses)
        assert sight.hosts == [first.address, second.address]
        for machine in (first, second):
            patroni.resume_patroni(machine)
        await sight.until(lambda: sight.leader is not None)
