"""How Patroni's answers are combined: the leader, excluded members, and who joins and leaves."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Group, Node, Route
from resolver_agent.patroni.membership import (
    MOST_MEMBERS,
    Answer,
    Member,
    Placement,
    find_scope,
    find_status,
    place,
    remember,
    scope_alerts,
)
from resolver_agent.routing.observation import PatroniStatus
from tests.unit.builders import node
from tests.unit.patroni.builders import API, SYSTEM_ID, A, B, C, D, group

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NOW = 1000.0


def claims(*, scope: str = "wk1", age_s: float = 0.5, counts_s: float = 3.0) -> Answer:
    """Return an answer, some seconds old, of a node whose own Patroni holds the lock."""
    at = NOW - age_s
    return Answer(at=at, until=at + counts_s, leads=True, scope=scope, system_id=SYSTEM_ID)


def denies(*, scope: str = "wk1") -> Answer:
    """Return an answer of a node whose own Patroni does not hold the lock."""
    return Answer(at=NOW, until=NOW + 3, leads=False, scope=scope, system_id=SYSTEM_ID)


@pytest.mark.parametrize(
    ("answers", "leader"),
    [
        pytest.param({A: claims(), B: denies()}, A, id="one claims it"),
        pytest.param({B: claims()}, B, id="the other is silent: a hung Patroni on a deposed primary"),
        pytest.param({A: claims(age_s=2.9), B: denies()}, A, id="the claim still counts"),
        pytest.param({A: claims(age_s=3.0), B: denies()}, None, id="the claim is too old"),
        pytest.param({A: claims(age_s=3.0), B: claims()}, B, id="the old claim gives way to the fresh one"),
        pytest.param({A: claims(age_s=6.0, counts_s=7.0)}, A, id="asked at leisure, it counts for longer"),
        pytest.param({A: claims(), B: claims()}, None, id="two claim it"),
        pytest.param({A: claims(age_s=2.9), B: claims()}, None, id="two claim it, one a moment ago"),
        pytest.param({A: denies(), B: denies()}, None, id="no node claims it"),
        pytest.param({}, None, id="no node answers"),
        pytest.param({A: claims(scope="other"), B: denies()}, None, id="a foreign claim"),
        pytest.param({A: claims(scope="other"), B: claims()}, B, id="a foreign claim and one of ours"),
    ],
)
def test_who_leads(answers: Mapping[str, Answer], leader: str | None) -> None:
    """The leader is the only node that claims the lock now; its Patroni names the database cluster."""
    status = find_status({node(host): one for host, one in answers.items()}, "wk1", {}, now=NOW)
    expected = PatroniStatus(leader=node(leader), system_id=SYSTEM_ID) if leader else PatroniStatus()
    assert status == expected


@pytest.mark.parametrize(
    ("known", "scopes", "asked_all", "scope", "alerts"),
    [
        pytest.param(None, {A: "wk1", B: "wk1"}, True, "wk1", set(), id="all agree"),
        pytest.param(None, {A: "wk1"}, True, "wk1", set(), id="the other does not answer"),
        pytest.param(None, {A: "wk1"}, False, None, set(), id="the other is yet to be asked"),
        pytest.param(None, {A: "wk1", B: "wk2"}, True, None, {"wk1:scopes"}, id="they do not agree"),
        pytest.param("wk1", {A: "wk1", B: "wk2"}, True, "wk1", {f"wk1:{B}:5432:scope"}, id="a foreign one"),
        pytest.param("wk1", {B: "wk2"}, True, "wk1", {f"wk1:{B}:5432:scope"}, id="only a foreign one answers"),
        pytest.param("wk1", {}, True, "wk1", set(), id="no node answers"),
        pytest.param(None, {}, True, None, set(), id="no node has ever answered"),
    ],
)
def test_which_patroni_cluster_a_group_is(
    known: str | None, scopes: Mapping[str, str], *, asked_all: bool, scope: str | None, alerts: set[str]
) -> None:
    """The system identifier that all agree on counts from then on, so a foreign Patroni takes no name over."""
    answers = {node(host): claims(scope=one) for host, one in scopes.items()}
    assert find_scope(known, answers, asked_all=asked_all) == scope
    assert {alert.key for alert in scope_alerts("wk1", scope, answers)} == alerts


def test_without_agreement_no_claim_counts() -> None:
    """Claims of two Patroni clusters settle nothing until it is known which one is the group's."""
    assert find_status({node(A): claims(), node(B): denies(scope="x")}, None, {}, now=NOW) == PatroniStatus()


@pytest.mark.parametrize(
    ("member", "exclusion"),
    [
        *(
            pytest.param(Member(node(B), state), "", id=state)
            for state in ("running", "streaming", "stopped", "starting")
        ),
        *(
            pytest.param(Member(node(B), state), f"{B} is {state}, says Patroni", id=state)
            for state in (
                "in archive recovery",
                "initializing new cluster",
                "initdb failed",
                "running custom bootstrap script",
                "custom bootstrap failed",
                "creating replica",
                "starting after custom bootstrap",
                "start failed",
                "restarting",
                "restart failed",
                "stopping",
                "stop failed",
                "crashed",
                "unknown",
            )
        ),
        pytest.param(Member(node(B), ""), f"{B} is in no state, says Patroni", id="no state"),
        pytest.param(Member(node(B), noloadbalance=True), f"{B} is tagged noloadbalance", id="tagged"),
        pytest.param(Member(node(B), "crashed", noloadbalance=True), f"{B} is tagged noloadbalance", id="both"),
    ],
)
def test_who_is_no_read_target(member: Member, exclusion: str) -> None:
    """Read targets run, stream, or were being started, and are not tagged; any other member is excluded."""
    excluded = {node(B): exclusion} if exclusion else {}
    placed = place([group()], {"wk1": [member]}, {}, before={})
    assert placed == {"wk1": Placement(excluded=excluded, tagged=excluded if member.noloadbalance else {})}
    assert find_status({}, "wk1", placed["wk1"].excluded, now=NOW) == PatroniStatus(excluded=excluded)


OUTSIDE = (
    "it is neither in nodes nor in networks; add it to names.wk1.nodes, or its network to names.wk1.patroni.networks"
)


def no_networks(made: Group) -> Group:
    """Return the group with an API that may add no members."""
    return dataclasses.replace(made, patroni=dataclasses.replace(API, networks=()))


IGNORED_KEY, IGNORED = "wk1:{}:member", "wk1: Patroni's member {} is ignored: {}"


@pytest.mark.parametrize(
    ("groups", "members", "addresses", "joined", "ignored"),
    [
        pytest.param([group()], [node(A), node(B)], {}, [], {}, id="all are configured"),
        pytest.param([group()], [node(D), node(B), node(C), node(A)], {}, [C, D], {}, id="new ones, sorted"),
        pytest.param(
            [group()],
            [Node(C, 5433)],
            {},
            [],
            {Node(C, 5433): "all nodes behind a name need the same port, and here that is 5432"},
            id="another port",
        ),
        pytest.param(
            [group()],
            [Node(A, 5433)],
            {},
            [],
            {Node(A, 5433): "all nodes behind a name need the same port, and here that is 5432"},
            id="a configured host, another port",
        ),
        pytest.param(
            [group(), group("wk2", C)], [node(C)], {}, [], {node(C): "it is a node of wk2"}, id="another name's node"
        ),
        pytest.param(
            [group(), group("wk2", C, patroni=False)],
            [node(C)],
            {},
            [],
            {node(C): "it is a node of wk2"},
            id="a node of a name without Patroni",
        ),
        pytest.param(
            [group(), group("wk1-ro", A, B, C, route=Route.STANDBY)],
            [node(C)],
            {},
            [C],
            {},
            id="a name of another route",
        ),
        pytest.param(
            [group(), group("wk2", C)],
            [node("wk2")],
            {},
            [],
            {node("wk2"): "its host is a name that this agent manages"},
            id="a managed name",
        ),
        pytest.param(
            [group()], [node("127.0.0.1")], {}, [], {node("127.0.0.1"): "it is at a loopback address"}, id="loopback"
        ),
        pytest.param(
            [group()],
            [node("pg-3")],
            {"pg-3": {"127.0.1.1"}},
            [],
            {node("pg-3"): "it is at a loopback address"},
            id="a name that resolves to the loopback",
        ),
        pytest.param(
            [group("wk1", "127.0.2.1", "127.0.2.2")],
            [node("127.0.2.3")],
            {},
            ["127.0.2.3"],
            {},
            id="all on the loopback",
        ),
        pytest.param([group()], [node("pg-3")], {"pg-3": {C}}, [C], {}, id="a new one by name"),
        pytest.param(
            [group()],
            [node("pg-3")],
            {"pg-3": {"192.0.2.3", C, D}},
            [C],
            {},
            id="a new one by name, with more addresses",
        ),
        pytest.param([group()], [node("192.0.2.3")], {}, [], {node("192.0.2.3"): OUTSIDE}, id="outside all networks"),
        pytest.param([group()], [node("fd01::3")], {}, [], {node("fd01::3"): OUTSIDE}, id="outside all, by IPv6"),
        pytest.param([group()], [node("fd00::3")], {}, ["fd00::3"], {}, id="inside one, by IPv6"),
        pytest.param(
            [group()],
            [node("pg-3")],
            {"pg-3": {"192.0.2.3", "fd00::3%eth0"}},
            [],
            {node("pg-3"): OUTSIDE},
            id="a name that resolves to the outside",
        ),
        pytest.param(
            [no_networks(group())],
            [node(A), node(C)],
            {},
            [],
            {node(C): OUTSIDE},
            id="no networks: configured nodes only",
        ),
        pytest.param(
            [no_networks(group()), group("wk2", D)], [node(C)], {}, [], {node(C): OUTSIDE}, id="another name's networks"
        ),
        pytest.param([group()], [node("pg-3")], {}, [], {}, id="a name that is yet to be looked up"),
        pytest.param(
            [group()],
            [node("pg-3")],
            {"pg-3": set()},
            [],
            {node("pg-3"): "pg-3 cannot be resolved, so the agent cannot tell whether it is a node already"},
            id="a name that cannot be resolved",
        ),
        pytest.param([group()], [node("pg-2")], {"pg-2": {B}}, [], {}, id="a configured address by name"),
        pytest.param(
            [group("wk1", "pg-1", "pg-2")], [node(B)], {"pg-1": {A}, "pg-2": {B}}, [], {}, id="and the reverse"
        ),
        pytest.param(
            [group("wk1", "pg-1", "pg-2")],
            [node("pg-2.example.com")],
            {"pg-1": {A}, "pg-2": {B, "fd00::2"}, "pg-2.example.com": {"fd00::2"}},
            [],
            {},
            id="two names of one address",
        ),
        pytest.param(
            [group("wk1", "pg-1", "pg-2")], [node("pg-2")], {}, [], {}, id="a configured name needs no address"
        ),
        pytest.param(
            [group("wk1", "pg-1", "pg-2")],
            [node(C)],
            {"pg-1": {A}},
            [],
            {},
            id="a configured name is yet to be looked up",
        ),
        pytest.param(
            [group("wk1", "pg-1", "pg-2")],
            [node(C)],
            {"pg-1": {A}, "pg-2": set()},
            [],
            {node(C): "pg-2 cannot be resolved, so the agent cannot tell whether it is a node already"},
            id="a configured name cannot be resolved",
        ),
        pytest.param(
            [group(), group("wk2", "pg-9")], [node(C)], {"pg-9": set()}, [C], {}, id="another name's cannot be resolved"
        ),
        pytest.param(
            [group(), group("wk2", "pg-9")],
            [node(C)],
            {"pg-9": {C}},
            [],
            {node(C): "it is a node of wk2"},
            id="another name's node by its address",
        ),
        pytest.param(
            [group()],
            [node("pg-3"), node("pg-3.example.com")],
            {"pg-3": {C}, "pg-3.example.com": {C}},
            [C],
            {},
            id="a new one by two names",
        ),
    ],
)
def test_who_joins(
    groups: list[Group],
    members: list[Node],
    addresses: Mapping[str, Iterable[str]],
    joined: list[str],
    ignored: Mapping[Node, str],
) -> None:
    """Members join in an order that is the same on every node, and no server joins twice; the rest is reported."""
    known = {host: frozenset(found) for host, found in addresses.items()}
    placed = place(groups, {"wk1": map(Member, members)}, known, before={})["wk1"]
    assert placed.joined == tuple(map(node, joined))
    assert {alert.key: alert.text for alert in placed.alerts} == {
        IGNORED_KEY.format(member): IGNORED.format(member, why) for member, why in ignored.items()
    }


def test_a_member_that_two_names_list() -> None:
    """The first name in the configured order gets the member, and the second reports it."""
    both = {name: [Member(node(D))] for name in ("wk2", "wk1")}
    placed = place([group(), group("wk2", C)], both, {}, before={})
    assert placed["wk1"] == Placement(joined=(node(D),))
    assert (placed["wk2"].joined, [alert.text for alert in placed["wk2"].alerts]) == (
        (),
        [f"wk2: Patroni's member {node(D)} is ignored: it is a node of wk1"],
    )


def test_an_excluded_node_in_another_spelling() -> None:
    """A member's exclusion applies to its node in any spelling."""
    member = Member(node("pg-2"), noloadbalance=True)
    placed = place([group()], {"wk1": [member]}, {"pg-2": frozenset([B])}, before={})["wk1"]
    assert placed.excluded == {node(B): "pg-2 is tagged noloadbalance"}


@pytest.mark.parametrize(
    "addresses", [{}, {"pg-9": frozenset[str]()}], ids=["a new name is yet to be looked up", "it cannot be resolved"]
)
def test_who_has_joined_stays(addresses: Mapping[str, frozenset[str]]) -> None:
    """A name that a reload adds and that cannot be resolved yet removes no member."""
    placed = place(
        [group("wk1", A, "pg-9")], {"wk1": [Member(node(C))]}, addresses, before={"wk1": Placement(joined=(node(C),))}
    )
    assert placed["wk1"] == Placement(joined=(node(C),))


def test_a_double_that_is_found_out_leaves() -> None:
    """A member that turns out to be a configured node under another name is merged with it at once."""
    before = {"wk1": Placement(joined=(node("pg-2"),))}
    placed = place([group()], {"wk1": [Member(node("pg-2"))]}, {"pg-2": frozenset([B])}, before=before)
    assert placed["wk1"] == Placement()


def test_a_member_leaves_after_a_while() -> None:
    """A member missing from the answers leaves after a minute of answers; one that is back stays."""
    known: dict[Node, Member] = {}
    listed = {0.0: (A, B, C), 10.0: (A, B), 69.9: (A, C), 70.0: (A,), 129.9: (A,), 130.0: (A,)}
    expected = {0.0: {A, B, C}, 10.0: {A, B, C}, 69.9: {A, B, C}, 70.0: {A, B, C}, 129.9: {A, C}, 130.0: {A}}
    for now, hosts in listed.items():
        known = remember(known, (Member(node(host)) for host in hosts), now=now, gone_after_s=60.0)
        assert {one.host for one in known} == expected[now], now


def test_a_minute_without_answers_removes_nobody() -> None:
    """The first answer after a long silence starts the minute: only answers show that a member is gone."""
    known = remember({}, [Member(node(A)), Member(node(B))], now=0.0, gone_after_s=60.0)
    known = remember(known, [Member(node(A))], now=1000.0, gone_after_s=60.0)
    assert set(known) == {node(A), node(B)}


def test_members_that_change_with_every_answer() -> None:
    """There are never more than a list may have, and those of the last answer are among them."""
    known: dict[Node, Member] = {}
    for turn in range(20):
        listed = [Member(node(f"10.0.{turn}.{number}")) for number in range(60)]
        known = remember(known, listed, now=float(turn), gone_after_s=60.0)
        assert len(known) <= MOST_MEMBERS
        assert {member.node for member in listed} <= known.keys()


def test_a_network_that_is_taken_away() -> None:
    """A member that has joined leaves with the network that let it in."""
    before = {"wk1": Placement(joined=(node(C),))}
    placed = place([no_networks(group())], {"wk1": [Member(node(C))]}, {}, before=before)["wk1"]
    assert (placed.joined, [alert.text for alert in placed.alerts]) == (
        (),
        [f"wk1: Patroni's member {node(C)} is ignored: {OUTSIDE}"],
    )


def test_very_many_members_that_are_ignored() -> None:
    """Ten have an alert of their own, and one alert says how many more there are."""
    members = [Member(node(f"192.0.2.{number}")) for number in range(1, 51)]
    alerts = place([group()], {"wk1": members}, {}, before={})["wk1"].alerts
    assert len(alerts) == 11
    assert (alerts[-1].key, alerts[-1].text) == ("wk1:member", "wk1: 40 more members of Patroni are ignored")
