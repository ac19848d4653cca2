"""What the watch knows from Patroni at any time: leaders, members, and the local node's claim."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.config.model import Route
from resolver_agent.patroni.watch import PatroniWatch
from resolver_agent.system.clock import boottime
from tests.unit.builders import node
from tests.unit.patroni.builders import (
    INTERVAL_S,
    LEISURE_S,
    SYSTEM_ID,
    TIMEOUT_S,
    A,
    B,
    C,
    D,
    Rest,
    config,
    group,
    in_loop,
    row,
    watching,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.patroni.client import Reply


@in_loop
async def test_the_leader_and_a_change_of_it() -> None:
    """The status follows the lock from one node to the other."""
    rest = Rest(A, B, leader=A)
    async with watching(rest) as sight:
        await sight.until(lambda: sight.leader == A)
        assert sight.watch.statuses["wk1"].system_id == SYSTEM_ID
        rest.leaders = {B}
        await sight.until(lambda: sight.leader == B)
        rest.leaders = {A, B}
        await sight.until(lambda: sight.leader is None)
        rest.leaders = {A}
        await sight.until(lambda: sight.leader == A)


@in_loop
async def test_nothing_new_is_no_news() -> None:
    """An unchanged answer sets no event, and the same objects are returned."""
    rest = Rest(A, B, C, leader=A)
    rest.members[1]["tags"] = {"noloadbalance": True}
    async with watching(rest) as sight:
        await sight.until(
            lambda: sight.hosts == [A, B, C] and sight.leader == A and sight.watch.statuses["wk1"].excluded
        )
        await rest.until_asked(C, "/leader", times=2)
        sight.changed.clear()
        status, extended = sight.watch.statuses["wk1"], sight.watch.extended(sight.config)
        await rest.until_asked(C, "/leader", times=5)
        assert not sight.changed.is_set()
        assert sight.watch.statuses["wk1"] is status
        assert sight.watch.extended(sight.config) is extended


@in_loop
async def test_without_new_members_the_configuration_is_the_same() -> None:
    """Without members to add, the configuration is returned as the same object."""
    async with watching(Rest(A, B, leader=A)) as sight:
        await sight.until(lambda: sight.watch.heard_all)
        assert sight.watch.extended(sight.config) is sight.config


@in_loop
async def test_a_member_joins_and_leaves() -> None:
    """A new replica becomes a node without an edit, is asked itself, and leaves when it is no longer listed."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, gone_after_s=0.2) as sight:
        await sight.until(lambda: sight.leader == A)
        assert sight.hosts == [A, B]
        rest.members.append(row(C))
        await sight.until(lambda: sight.hosts == [A, B, C])
        rest.leaders = {C}
        await sight.until(lambda: sight.leader == C)
        gone_at = boottime()
        rest.members.pop()
        await sight.until(lambda: sight.hosts == [A, B])
        assert boottime() - gone_at >= 0.2
        rest.asked.clear()
        await rest.until_asked(A, "/leader", times=3)
        assert (C, "/leader") not in rest.asked


@in_loop
async def test_a_group_in_a_hurry() -> None:
    """All nodes of the group are asked now and every interval while it is urgent, and no other node is."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, group(), group("wk2", C), calm_s=LEISURE_S) as sight:
        await sight.until(lambda: sight.leader == A and sight.watch.heard_all)
        rest.asked.clear()
        sight.watch.hurry(["wk1"])
        await rest.until_asked(A, "/leader", times=3)
        await rest.until_asked(B, "/leader", times=3)
        assert {host for host, _ in rest.asked} == {A, B}
        sight.watch.hurry([])
        await sight.watch.ask_own(within_s=1)
        await asyncio.sleep(3 * INTERVAL_S)
        rest.asked.clear()
        await asyncio.sleep(5 * INTERVAL_S)
        assert rest.asked == []


@in_loop
async def test_the_own_node() -> None:
    """The local node is asked every interval, and its claim has the time at which it was asked."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, calm_s=LEISURE_S) as sight:
        assert sight.watch.claim(node(B)) is None
        sight.watch.own([node(B)])
        await sight.until(lambda: sight.watch.claim(node(B)) is not None)
        asked_at = boottime()
        rest.leaders = {B}
        await sight.until(lambda: sight.claims(B))
        claim = sight.watch.claim(node(B))
        assert claim is not None
        assert asked_at - INTERVAL_S <= claim.at <= boottime()
        assert sight.watch.claim(node(D)) is None


@in_loop
async def test_a_claim_of_the_own_node_is_news() -> None:
    """The local claim sets the event even where the group's cluster is unknown; another node's claim does not."""
    rest = Rest(A, B)
    rest.scopes = {A: "other"}
    async with watching(rest) as sight:
        sight.watch.own([node(B)])
        await rest.until_asked(A, "/leader", times=2)
        await sight.until(lambda: sight.claims(B) is False)
        sight.changed.clear()
        rest.leaders = {A}
        await rest.until_asked(A, "/leader", times=2)
        assert sight.claims(A)
        assert not sight.changed.is_set()
        rest.leaders = {B}
        await sight.until(lambda: sight.claims(B))
        assert sight.watch.statuses == {}


@in_loop
async def test_asking_the_own_node_now() -> None:
    """A caller that needs the claim now gets it, or waits no longer than its time limit."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, calm_s=LEISURE_S) as sight:
        await sight.until(lambda: sight.watch.heard_all)
        sight.watch.own([node(A)])
        begun = boottime()
        await sight.watch.ask_own(within_s=5)
        claim = sight.watch.claim(node(A))
        assert claim is not None
        assert (claim.leads, claim.at >= begun) == (True, True)
        rest.hung[A] = threading.Event()
        begun = boottime()
        await sight.watch.ask_own(within_s=0.05)
        assert 0.05 <= boottime() - begun < TIMEOUT_S


@in_loop
async def test_groups_without_patroni_are_never_asked() -> None:
    """Neither for leaders nor for members."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, group(), group("wk2", C, patroni=False)) as sight:
        sight.watch.own([node(C)])
        sight.watch.hurry(["wk2"])
        await sight.watch.ask_own(within_s=1)
        await rest.until_asked(A, "/leader", times=5)
        assert C not in {host for host, _ in rest.asked}
        assert set(sight.watch.statuses) == {"wk1"}


@in_loop
async def test_one_node_behind_two_names() -> None:
    """The node is asked once for both names, and both have the status."""
    rest = Rest(A, B, C, leader=A)
    async with watching(rest, group(), group("wk1-ro", A, B, route=Route.STANDBY)) as sight:
        await sight.until(lambda: set(sight.watch.statuses) == {"wk1", "wk1-ro"} and sight.hosts == [A, B, C])
        await sight.until(lambda: len(sight.watch.extended(sight.config).groups[1].nodes) == 3)
        rest.asked.clear()
        await rest.until_asked(A, "/leader", times=4)
        assert rest.asked.count((B, "/leader")) <= 5


@in_loop
async def test_a_word_that_expires_between_two_turns() -> None:
    """Reading the status changes nothing; the next tick reports once that it has expired."""
    rest = Rest(A, B, leader=A)
    rest.members[1]["state"] = "stopping"
    async with watching(rest, calm_s=0.2) as sight:
        await sight.until(lambda: sight.leader == A and sight.watch.statuses["wk1"].excluded)
        sight.changed.clear()
        sight.watch.tick(boottime())
        assert (sight.leader, sight.changed.is_set()) == (A, False)
        time.sleep(0.2 + TIMEOUT_S + 0.01)  # noqa: ASYNC251 -- no node is asked meanwhile
        assert (sight.leader, sight.changed.is_set()) == (None, False)
        sight.watch.tick(boottime())
        assert (sight.leader, sight.changed.is_set()) == (None, True)
        status = sight.watch.statuses.get("wk1")
        sight.changed.clear()
        sight.watch.tick(boottime())
        assert (sight.watch.statuses.get("wk1") is status, sight.changed.is_set()) == (True, False)


@in_loop
async def test_a_reload() -> None:
    """Nodes that stay keep what is known of them; removed nodes are no longer asked; new ones are."""
    rest = Rest(A, B, C, leader=A)
    async with watching(rest) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C] and sight.leader == A)
        rest.down = {A, B, C}
        sight.config = config(group("wk1", B, A), group("wk2", D))
        status = sight.watch.statuses["wk1"]
        sight.watch.watch(sight.config)
        assert sight.hosts == [B, A, C]
        assert sight.watch.statuses["wk1"] is status
        await rest.until_asked(D, "/leader")
        rest.members = [row(D)]
        sight.config = config(group("wk2", D))
        sight.watch.watch(sight.config)
        assert sight.watch.statuses == {}
        await rest.until_asked(D, "/cluster")
        rest.asked.clear()
        await rest.until_asked(D, "/leader", times=3)
        assert {host for host, _ in rest.asked} == {D}


@in_loop
async def test_a_reload_in_the_middle_of_a_promotion() -> None:
    """A holder of the lock stays the holder until it is asked again, also with another timeout."""
    rest = Rest(A, B, leader=A)
    async with watching(rest) as sight:
        await sight.until(lambda: sight.leader == A)
        sight.watch.own([node(A)])
        rest.hung[A] = threading.Event()
        rest.timeouts_s.append(2 * TIMEOUT_S)
        sight.config = dataclasses.replace(sight.config, timeout_s=2 * TIMEOUT_S)
        sight.watch.watch(sight.config)
        assert (sight.claims(A), sight.leader) == (True, A)
        rest.leaders = set()
        rest.hung.pop(A).set()
        await sight.until(lambda: sight.claims(A) is False)


@in_loop
async def test_a_name_that_gets_other_nodes() -> None:
    """A name whose nodes were all replaced is a new group: it keeps neither members nor the Patroni cluster."""
    rest = Rest(A, B, C, leader=A)
    async with watching(rest) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C])
        rest.scopes, rest.leaders, rest.members = {D: "new"}, {D}, [row(D)]
        sight.config = config(group("wk1", D))
        sight.watch.watch(sight.config)
        assert sight.hosts == [D]
        await sight.until(lambda: sight.leader == D)
        assert list(sight.watch.alerts) == []


class Dns:
    """Names and their addresses, with the interface of ``socket.getaddrinfo``."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.addresses = dict(addresses)
        self.hung = threading.Event()

    def __call__(self, host: str, _port: None, **_: object) -> list[Any]:
        """Look up a name; for one without an address, hang or fail."""
        assert threading.current_thread() is not threading.main_thread()
        if not self.addresses[host]:
            self.hung.wait(10)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.addresses[host], 0))]


@in_loop
async def test_members_and_nodes_by_name() -> None:
    """Names are looked up off the loop before a member joins, and one server is one node."""
    rest = Rest("pg-1", "pg-2", "pg-3", leader="db-1")
    dns = Dns({"db-1": A, "db-2": B, "pg-1": A, "pg-2": B, "pg-3": C})
    async with watching(rest, group("wk1", "db-1", "db-2"), getaddrinfo=dns) as sight:
        await sight.until(lambda: sight.hosts == ["db-1", "db-2", C])


@in_loop
async def test_a_look_up_that_hangs() -> None:
    """No member joins while it may already be a node; statuses go on, and a failed lookup is reported when it comes."""
    rest = Rest(A, B, C, leader=A)
    dns = Dns({"db-2": ""})
    async with watching(rest, group("wk1", A, "db-2"), getaddrinfo=dns) as sight:
        await sight.until(lambda: sight.leader == A)
        await rest.until_asked(A, "/cluster", times=3)
        assert (sight.hosts, sight.watch.alerts) == ([A, "db-2"], ())
        dns.hung.set()
        while not sight.watch.alerts:
            await rest.until_asked(A, "/leader")
        assert {alert.key for alert in sight.watch.alerts} == {f"wk1:{B}:5432:member", f"wk1:{C}:5432:member"}


@in_loop
async def test_very_many_groups() -> None:
    """Calm nodes are asked at most a hundred times a second, and so are urgent groups."""
    groups = [group(f"wk{i}", f"10.1.{i}.1", f"10.1.{i}.2") for i in range(200)]
    rest = Rest()
    rest.down = {one.host for each in groups for one in each.nodes}
    async with watching(rest, *groups, calm_s=0.01) as sight:
        begun = boottime()
        await rest.until_asked_anybody(times=60)
        assert boottime() - begun >= 0.4
        sight.watch.hurry([each.name for each in groups])
        begun = boottime()
        await rest.until_asked_anybody(times=120)  # of both kinds, and what a busy machine is behind with
        assert boottime() - begun >= 0.35


@in_loop
async def test_a_defect_is_not_hidden() -> None:
    """An exception that ends a task is raised where the watch is checked, and waiters are woken to check it."""

    def broken(*_: object) -> Reply:
        raise ZeroDivisionError

    changed = asyncio.Event()
    watch = PatroniWatch(changed=changed, fetch=broken)
    watch.watch(config())
    await asyncio.wait_for(changed.wait(), 5)
    with pytest.raises(ZeroDivisionError):
        watch.check()
    await watch.close()
