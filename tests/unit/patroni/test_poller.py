"""Which node is asked what and when, and the effect of silence, invalid answers and foreign Patronis on a group."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import PatroniStatus
from resolver_agent.system.clock import boottime
from tests.unit.builders import node
from tests.unit.patroni.builders import (
    INTERVAL_S,
    LEISURE_S,
    TIMEOUT_S,
    A,
    B,
    C,
    Rest,
    config,
    group,
    in_loop,
    watching,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from resolver_agent.config.model import Node


@in_loop
async def test_nonsense_removes_nobody() -> None:
    """Empty lists change nothing, however long they last, and are an alert."""
    rest = Rest(A, B, C, leader=A)
    async with watching(rest, gone_after_s=0.0, patience_s=0.0) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C])
        rest.members = []
        await rest.until_asked(A, "/cluster", times=3)
        assert sight.hosts == [A, B, C]
        assert [alert.key for alert in sight.watch.alerts] == ["wk1:members"]


@in_loop
async def test_another_node_is_asked_for_the_members() -> None:
    """A node whose list fails is not asked again at once, and a new member is still found through another node."""
    rest = Rest(A, B, C, leader=A)
    rest.no_list = {A}
    async with watching(rest) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C])
        await rest.until_asked(B, "/cluster", times=3)
        assert rest.asked.count((A, "/cluster")) == 1


@in_loop
async def test_silence() -> None:
    """When Patroni falls silent, its statuses expire one by one. The nodes stay, and each failure is an alert."""
    rest = Rest(A, B, C, leader=A)
    rest.members[1]["state"] = "stopping"
    async with watching(rest, gone_after_s=0.0, patience_s=0.3) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C] and sight.leader == A)
        assert sight.watch.statuses["wk1"].excluded == {node(B): f"{B} is stopping, says Patroni"}
        assert list(sight.watch.alerts) == []
        rest.down = {A, B, C}
        await sight.until(lambda: sight.leader is None)
        await sight.until(lambda: not sight.watch.statuses)
        while len(sight.watch.alerts) < 3:
            await rest.until_asked_anybody()
        assert sight.hosts == [A, B, C]
        assert {alert.text for alert in sight.watch.alerts} == {
            f"Patroni at {host} cannot be asked: Connection refused" for host in (A, B, C)
        }
        rest.down = set()
        await sight.until(lambda: sight.leader == A)
        for host in (B, C):
            await rest.until_asked(host, "/leader", times=2)
        assert list(sight.watch.alerts) == []


@in_loop
async def test_silence_revokes_no_tag() -> None:
    """When lists stop coming, states expire. Tags stay until a list comes without them, also through a reload."""
    rest = Rest(A, B, C, leader=A)
    rest.members[1]["state"] = "stopping"
    rest.members[2]["tags"] = {"noloadbalance": True}
    tagged = {node(C): f"{C} is tagged noloadbalance"}

    def excluded() -> Mapping[Node, str]:
        return sight.watch.statuses.get("wk1", PatroniStatus()).excluded

    async with watching(rest, patience_s=0.0) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C])
        await sight.until(lambda: excluded() == {node(B): f"{B} is stopping, says Patroni", **tagged})
        rest.down = {A, B, C}
        await sight.until(lambda: excluded() == tagged)
        sight.watch.watch(sight.config)
        await rest.until_asked(A, "/leader", times=3)
        assert sight.watch.statuses == {"wk1": PatroniStatus(excluded=tagged)}
        rest.members[2]["tags"] = {}
        rest.down = set()
        await sight.until(lambda: node(B) in excluded() and node(C) not in excluded())


@in_loop
async def test_a_tag_that_other_settings_told() -> None:
    """Where the operator changes ``patroni`` of a name, tags that the old one told expire as states do."""
    rest = Rest(A, B, leader=A)
    rest.members[1]["tags"] = {"noloadbalance": True}
    async with watching(rest) as sight:
        await sight.until(lambda: sight.leader == A and sight.watch.statuses["wk1"].excluded)
        rest.down = {A, B}
        made = group()
        assert made.patroni is not None
        other = dataclasses.replace(made.patroni, networks=())
        rest.apis.append(other)
        sight.watch.watch(config(dataclasses.replace(made, patroni=other)))
        assert sight.watch.statuses["wk1"].excluded == {node(B): f"{B} is tagged noloadbalance"}
        await sight.until(lambda: not sight.watch.statuses)


@in_loop
async def test_a_hung_api_costs_only_itself() -> None:
    """A hung API has one request at a time; its node's claim expires, and the others are asked as before."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, patience_s=0.0) as sight:
        await sight.until(lambda: sight.leader == A)
        rest.hung[A] = threading.Event()
        rest.leaders = {B}
        while not rest.at_once[A]:
            await rest.until_asked(B, "/leader")
        await rest.until_asked(B, "/leader", times=10)
        await sight.until(lambda: sight.leader == B)
        await rest.until_asked(B, "/leader", times=5)
        assert rest.at_once[A] == rest.most_at_once == 1
        assert [alert.text for alert in sight.watch.alerts] == [
            f"Patroni at {A} cannot be asked: no answer within {TIMEOUT_S:g} s"
        ]
        rest.hung.pop(A).set()
        await rest.until_asked(A, "/leader", times=2)
        assert list(sight.watch.alerts) == []


@in_loop
async def test_a_claim_counts_for_as_long_as_it_was_meant_to() -> None:
    """When a node that is asked every interval falls silent, its claim expires after interval + timeout."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, calm_s=LEISURE_S) as sight:
        sight.watch.hurry(["wk1"])
        await sight.until(lambda: sight.leader == A)
        await rest.until_asked(A, "/leader", times=2)
        rest.down = {A}
        down_at = boottime()
        await sight.until(lambda: sight.leader is None)
        assert TIMEOUT_S - 5 * INTERVAL_S <= boottime() - down_at <= 2 * (TIMEOUT_S + INTERVAL_S)


@in_loop
async def test_a_claim_that_was_made_at_leisure() -> None:
    """A node that was asked seldom, and then misses a request that is urgent, loses its claim."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, calm_s=LEISURE_S) as sight:
        await sight.until(lambda: sight.leader == A and sight.watch.heard_all)
        rest.hung[A] = threading.Event()
        rest.leaders = {B}
        sight.watch.hurry(["wk1"])
        await sight.until(lambda: sight.leader == B)


@in_loop
async def test_refreshing_the_own_node_while_it_is_being_asked() -> None:
    """The pending answer may be older than the reason for the refresh, so another request follows at once."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, calm_s=LEISURE_S, getaddrinfo=None) as sight:
        await sight.until(lambda: sight.watch.heard_all)
        sight.watch.watch(dataclasses.replace(sight.config, interval_s=LEISURE_S))
        rest.hung[A] = threading.Event()
        sight.watch.own([node(A)])
        sight.watch.refresh_own()
        await rest.until_asked(A, "/leader")
        sight.watch.refresh_own()
        rest.hung.pop(A).set()
        await rest.until_asked(A, "/leader")


@in_loop
async def test_the_own_node_is_spared_the_list() -> None:
    """The local API is asked for its claim all the time, so the other nodes are asked for the members."""
    rest = Rest(A, B, leader=A)
    async with watching(rest) as sight:
        sight.watch.own([node(A)])
        await rest.until_asked(B, "/cluster", times=3)
        assert rest.asked.count((A, "/cluster")) == 0
        rest.down = {B}
        await rest.until_asked(A, "/cluster")


@in_loop
async def test_a_foreign_patroni() -> None:
    """Another cluster's Patroni at one of the addresses is an alert, whatever it claims; its claim is one too."""
    rest = Rest(A, B, leader=A)
    async with watching(rest) as sight:
        await sight.until(lambda: sight.leader == A)
        rest.scopes, rest.leaders = {B: "other"}, {A, B}
        await rest.until_asked(B, "/leader", times=2)
        assert sight.leader == A
        assert sight.watch.claim(node(B)) is None
        rest.leaders = {B}
        await sight.until(lambda: sight.leader is None)
        assert [alert.key for alert in sight.watch.alerts] == [f"wk1:{B}:5432:scope"]


@in_loop
async def test_patroni_of_two_clusters_from_the_start() -> None:
    """The first answer is not trusted: there is no status, no member joins, and that is an alert."""
    rest = Rest(A, B, C, leader=A)
    rest.scopes = {B: "other"}
    async with watching(rest) as sight:
        for host in (A, B):
            await rest.until_asked(host, "/leader", times=3)
        assert (sight.watch.statuses, sight.hosts, sight.watch.heard_all) == ({}, [A, B], True)
        assert [alert.key for alert in sight.watch.alerts] == ["wk1:scopes"]
        assert (A, "/cluster") not in rest.asked
        rest.scopes = {}
        await sight.until(lambda: sight.leader == A and sight.hosts == [A, B, C])


@in_loop
async def test_the_leader_of_a_standby_cluster() -> None:
    """It holds the leader lock, but its server stays in recovery: neither it nor the group has a leader."""
    rest = Rest(A, B, leader=A)
    rest.is_standby_cluster, rest.said = True, {A: {"role": "standby_leader"}, B: {"role": "replica"}}
    async with watching(rest) as sight:
        await rest.until_asked(A, "/leader", times=2)
        assert (sight.claims(A), sight.leader) == (False, None)
        assert {path for _, path in rest.asked} <= {"/leader", "/cluster"}


@in_loop
async def test_a_lock_holder_in_recovery() -> None:
    """A replica that has just taken the lock is to be promoted, unless its cluster is a standby cluster."""
    rest = Rest(A, B, leader=A)
    rest.said = {A: {"role": "replica"}}
    async with watching(rest) as sight:
        await sight.until(lambda: sight.claims(A) and sight.leader == A)
        rest.is_standby_cluster = True
        await sight.until(lambda: sight.leader is None)
        assert sight.claims(A) is False


@in_loop
async def test_patroni_paused_without_its_dcs() -> None:
    """What it says of the lock is a guess: its last claim expires as if it were silent, and that is an alert."""
    rest = Rest(A, B, leader=A)
    rest.said = {A: {"role": "primary", "pause": True}}
    async with watching(rest, patience_s=0.0) as sight:
        await sight.until(lambda: sight.leader == A)
        rest.said[A]["cluster_unlocked"] = True
        await sight.until(lambda: sight.leader is None)
        why = "it is paused and does not reach its DCS, so it cannot tell who holds the leader lock"
        assert [alert.text for alert in sight.watch.alerts] == [f"Patroni at {A} cannot be asked: {why}"]
        del rest.said[A]["cluster_unlocked"]
        await sight.until(lambda: sight.leader == A)


@in_loop
async def test_no_thread_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that cannot be made is an alert, and the next one is made."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, patience_s=0.0) as sight:
        await sight.until(lambda: sight.leader == A)
        with monkeypatch.context() as patch:

            def start(_: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", start)
            await sight.until(lambda: sight.leader is None)
            assert {alert.text for alert in sight.watch.alerts} == {
                f"Patroni at {host} cannot be asked: this node has no thread for it" for host in (A, B)
            }
        await sight.until(lambda: sight.leader == A)
