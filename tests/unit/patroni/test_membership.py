"""What Patroni's answers come to, by tables; and whom the watch asks when, of a Patroni that is a class here."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.config.model import Config, Group, Node, PatroniApi, Route
from resolver_agent.patroni.client import ApiError, Leadership, Reply, read_leadership, read_members
from resolver_agent.patroni.membership import (
    Answer,
    Member,
    Placement,
    find_scope,
    find_word,
    place,
    remember,
    scope_alerts,
)
from resolver_agent.patroni.watch import PatroniWatch
from resolver_agent.routing.observation import PatroniWord
from resolver_agent.system.clock import boottime
from tests.unit import builders
from tests.unit.builders import node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping

A, B, C, D = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"
API = PatroniApi(port=8008)
SYSTEM_ID = 7300000000000000001
NOW = 1000.0


def group(name: str = "wk1", *hosts: str, route: Route = Route.FOLLOW, patroni: bool = True) -> Group:
    """Return a name, the nodes behind it, and whether they have Patroni."""
    made = builders.group(name, *(hosts or (A, B)), route=route)
    return dataclasses.replace(made, patroni=API if patroni else None)


def claims(*, scope: str = "wk1", age_s: float = 0.5, counts_s: float = 3.0) -> Answer:
    """Return the answer, some seconds ago, of a node whose own Patroni holds the lock."""
    at = NOW - age_s
    return Answer(at=at, until=at + counts_s, leads=True, scope=scope, system_id=SYSTEM_ID)


def denies(*, scope: str = "wk1") -> Answer:
    """Return the answer of a node whose own Patroni does not hold the lock."""
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
        pytest.param({A: denies(), B: denies()}, None, id="nobody claims it"),
        pytest.param({}, None, id="nobody answers"),
        pytest.param({A: claims(scope="other"), B: denies()}, None, id="a foreign claim"),
        pytest.param({A: claims(scope="other"), B: claims()}, B, id="a foreign claim beside ours"),
    ],
)
def test_who_leads(answers: Mapping[str, Answer], leader: str | None) -> None:
    """The leader is the only node that claims the lock now; its Patroni tells which database cluster it is."""
    word = find_word({node(host): one for host, one in answers.items()}, "wk1", {}, now=NOW)
    expected = PatroniWord(leader=node(leader), system_id=SYSTEM_ID) if leader else PatroniWord()
    assert word == expected


@pytest.mark.parametrize(
    ("known", "scopes", "asked_all", "scope", "alerts"),
    [
        pytest.param(None, {A: "wk1", B: "wk1"}, True, "wk1", set(), id="all agree"),
        pytest.param(None, {A: "wk1"}, True, "wk1", set(), id="the other does not answer"),
        pytest.param(None, {A: "wk1"}, False, None, set(), id="the other is yet to be asked"),
        pytest.param(None, {A: "wk1", B: "wk2"}, True, None, {"wk1:scopes"}, id="they do not agree"),
        pytest.param("wk1", {A: "wk1", B: "wk2"}, True, "wk1", {f"wk1:{B}:5432:scope"}, id="a foreign one"),
        pytest.param("wk1", {B: "wk2"}, True, "wk1", {f"wk1:{B}:5432:scope"}, id="only a foreign one answers"),
        pytest.param("wk1", {}, True, "wk1", set(), id="nobody answers"),
        pytest.param(None, {}, True, None, set(), id="nobody has ever answered"),
    ],
)
def test_which_patroni_cluster_a_group_is(
    known: str | None, scopes: Mapping[str, str], *, asked_all: bool, scope: str | None, alerts: set[str]
) -> None:
    """A foreign cluster's Patroni takes no name over: whom all agree on counts, and then nobody else."""
    answers = {node(host): claims(scope=one) for host, one in scopes.items()}
    assert find_scope(known, answers, asked_all=asked_all) == scope
    assert {alert.key for alert in scope_alerts("wk1", scope, answers)} == alerts


def test_without_agreement_no_claim_counts() -> None:
    """Claims of two Patroni clusters settle nothing while it is not known which one is the group's."""
    assert find_word({node(A): claims(), node(B): denies(scope="x")}, None, {}, now=NOW) == PatroniWord()


@pytest.mark.parametrize(
    ("member", "bench"),
    [
        *(pytest.param(Member(node(B), state), "", id=state) for state in ("running", "streaming")),
        *(
            pytest.param(Member(node(B), state), f"{B} is {state}, says Patroni", id=state)
            for state in (
                "in archive recovery",
                "initializing new cluster",
                "initdb failed",
                "running custom bootstrap script",
                "custom bootstrap failed",
                "creating replica",
                "starting",
                "starting after custom bootstrap",
                "start failed",
                "restarting",
                "restart failed",
                "stopping",
                "stopped",
                "stop failed",
                "crashed",
                "unknown",
            )
        ),
        pytest.param(Member(node(B), ""), f"{B} is in no state, says Patroni", id="no state"),
        pytest.param(Member(node(B), noloadbalance=True), f"{B} is tagged noloadbalance", id="tagged"),
        pytest.param(Member(node(B), "stopped", noloadbalance=True), f"{B} is tagged noloadbalance", id="both"),
    ],
)
def test_who_is_no_read_target(member: Member, bench: str) -> None:
    """Read targets are running or streaming, and not tagged; what else Patroni says of a member benches it."""
    benched = {node(B): bench} if bench else {}
    placed = place([group()], {"wk1": [member]}, {}, before={})
    assert placed == {"wk1": Placement(benched=benched)}
    assert find_word({}, "wk1", placed["wk1"].benched, now=NOW) == PatroniWord(benched=benched)


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
            {node("wk2"): "that is a name which this agent manages"},
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
            id="a name that leads to the loopback",
        ),
        pytest.param(
            [group("wk1", "127.0.2.1", "127.0.2.2")],
            [node("127.0.2.3")],
            {},
            ["127.0.2.3"],
            {},
            id="all on the loopback",
        ),
        pytest.param([group()], [node("pg-3")], {"pg-3": {C}}, ["pg-3"], {}, id="a new one by name"),
        pytest.param([group()], [node("pg-3")], {}, [], {}, id="a name that is yet to be looked up"),
        pytest.param(
            [group()],
            [node("pg-3")],
            {"pg-3": set()},
            [],
            {node("pg-3"): "pg-3 cannot be resolved, so that nobody knows whether it is a node already"},
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
            {node(C): "pg-2 cannot be resolved, so that nobody knows whether it is a node already"},
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
            ["pg-3"],
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
    """Members join the nodes in an order that is the same everywhere, and no server ever twice; the rest is said."""
    known = {host: frozenset(found) for host, found in addresses.items()}
    placed = place(groups, {"wk1": map(Member, members)}, known, before={})["wk1"]
    assert placed.joined == tuple(map(node, joined))
    assert {alert.key: alert.text for alert in placed.alerts} == {
        IGNORED_KEY.format(member): IGNORED.format(member, why) for member, why in ignored.items()
    }


def test_a_member_that_two_names_list() -> None:
    """The first name in the configured order has it, and the second says so."""
    both = {name: [Member(node(D))] for name in ("wk2", "wk1")}
    placed = place([group(), group("wk2", C)], both, {}, before={})
    assert placed["wk1"] == Placement(joined=(node(D),))
    assert (placed["wk2"].joined, [alert.text for alert in placed["wk2"].alerts]) == (
        (),
        [f"wk2: Patroni's member {node(D)} is ignored: it is a node of wk1"],
    )


def test_a_benched_node_in_another_spelling() -> None:
    """What is said of a member holds for the node that it is."""
    member = Member(node("pg-2"), noloadbalance=True)
    placed = place([group()], {"wk1": [member]}, {"pg-2": frozenset([B])}, before={})["wk1"]
    assert placed.benched == {node(B): "pg-2 is tagged noloadbalance"}


@pytest.mark.parametrize(
    "addresses", [{}, {"pg-9": frozenset[str]()}], ids=["a new name is yet to be looked up", "it cannot be resolved"]
)
def test_who_has_joined_stays(addresses: Mapping[str, frozenset[str]]) -> None:
    """A name that a reload adds and that is not resolved throws nobody out."""
    placed = place(
        [group("wk1", A, "pg-9")], {"wk1": [Member(node(C))]}, addresses, before={"wk1": Placement(joined=(node(C),))}
    )
    assert placed["wk1"] == Placement(joined=(node(C),))


def test_a_double_that_is_found_out_leaves() -> None:
    """A node that turns out to be a configured one under another name is one node at once."""
    before = {"wk1": Placement(joined=(node("pg-2"),))}
    placed = place([group()], {"wk1": [Member(node("pg-2"))]}, {"pg-2": frozenset([B])}, before=before)
    assert placed["wk1"] == Placement()


def test_a_member_leaves_after_a_while() -> None:
    """A member that answers no longer list stays for a minute of answers, and one that is back stays for good."""
    known: dict[Node, Member] = {}
    listed = {0.0: (A, B, C), 10.0: (A, B), 69.9: (A, C), 70.0: (A,), 129.9: (A,), 130.0: (A,)}
    expected = {0.0: {A, B, C}, 10.0: {A, B, C}, 69.9: {A, B, C}, 70.0: {A, B, C}, 129.9: {A, C}, 130.0: {A}}
    for now, hosts in listed.items():
        known = remember(known, (Member(node(host)) for host in hosts), now=now, gone_after_s=60.0)
        assert {one.host for one in known} == expected[now], now


def test_a_minute_without_answers_removes_nobody() -> None:
    """The first answer after a long silence begins the minute: nothing else has said that a member is gone."""
    known = remember({}, [Member(node(A)), Member(node(B))], now=0.0, gone_after_s=60.0)
    known = remember(known, [Member(node(A))], now=1000.0, gone_after_s=60.0)
    assert set(known) == {node(A), node(B)}


def cluster_body(*members: Mapping[str, Any]) -> bytes:
    """Return what GET /cluster answers."""
    return json.dumps({"members": members, "scope": "wk1"}).encode()


def row(host: str, **more: Any) -> dict[str, Any]:
    """Return a member as Patroni 4.1 lists it."""
    return {
        "name": host,
        "role": "replica",
        "state": "streaming",
        "api_url": f"http://{host}:8008/patroni",
        "host": host,
        "port": 5432,
        "timeline": 1,
        "lag": 0,
        **more,
    }


@pytest.mark.parametrize(
    ("listed", "members"),
    [
        pytest.param([row(A)], [Member(node(A), "streaming")], id="usual"),
        pytest.param(
            [row(A, tags={"noloadbalance": True})], [Member(node(A), "streaming", noloadbalance=True)], id="tag"
        ),
        pytest.param([row(A, tags={"noloadbalance": False})], [Member(node(A), "streaming")], id="tagged with false"),
        pytest.param([row(A, tags={"nofailover": True})], [Member(node(A), "streaming")], id="another tag"),
        pytest.param([row(A, tags=None)], [Member(node(A), "streaming")], id="no tags"),
        pytest.param([row("FD00:0::1")], [Member(node("fd00::1"), "streaming")], id="the usual spelling of an address"),
        pytest.param([row("PG-1.example.com")], [Member(node("pg-1.example.com"), "streaming")], id="and of a name"),
        pytest.param(
            [row("0.0.0.0")],
            [
                Member(
                    node("0.0.0.0"),
                    "streaming",
                    fault="'0.0.0.0' is no server's address, expected one that can be connected to",
                )
            ],
            id="a host that is none",
        ),
        pytest.param(
            [row(A), {"name": "new", "role": "replica", "state": "creating replica"}],
            [Member(node(A), "streaming")],
            id="one that has not said where it is",
        ),
    ],
)
def test_reading_members(listed: list[dict[str, Any]], members: list[Member]) -> None:
    """Members are read from Patroni's list, in the agent's own spelling."""
    assert read_members(Reply(200, cluster_body(*listed))) == tuple(members)


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        pytest.param(503, b"", "HTTP status 503 to GET /cluster", id="503"),
        pytest.param(302, cluster_body(row(A)), "HTTP status 302 to GET /cluster", id="a redirect"),
        pytest.param(200, b"", "what answers is not Patroni: no JSON object", id="no body"),
        pytest.param(200, b"<html>", "what answers is not Patroni: no JSON object", id="HTML"),
        pytest.param(200, b"\xff\xfe", "what answers is not Patroni: no JSON object", id="bytes"),
        pytest.param(200, b"[" * 100_000, "what answers is not Patroni: no JSON object", id="deep"),
        pytest.param(200, b"[]", "what answers is not Patroni: no JSON object", id="a list"),
        pytest.param(200, b"{}", "the list of members is empty, or none", id="no list"),
        pytest.param(200, b'{"members": {}}', "the list of members is empty, or none", id="a map"),
        pytest.param(200, cluster_body(), "the list of members is empty, or none", id="empty"),
        pytest.param(200, cluster_body(*[row(A)] * 101), "the list of members is empty, or none", id="endless"),
        *(
            pytest.param(200, cluster_body(row(A), wrong), "the list of members is not as Patroni writes it", id=name)
            for name, wrong in {
                "host is a number": row(B) | {"host": 3},
                "port is text": row(B, port="5432"),
                "port is too high": row(B, port=65536),
                "no state": {key: value for key, value in row(B).items() if key != "state"},
                "state cannot be printed": row(B, state="run\nning"),
                "half a character": row(B, state="\ud800"),
                "tags are a list": row(B, tags=["noloadbalance"]),
            }.items()
        ),
        pytest.param(
            200, b'{"members": [7]}', "the list of members is not as Patroni writes it", id="a member is a number"
        ),
    ],
)
def test_nonsense_instead_of_members(status: int, body: bytes, fault: str) -> None:
    """Whatever is not as Patroni writes it is no list at all: it changes nothing."""
    with pytest.raises(ApiError) as raised:
        read_members(Reply(status, body))
    assert str(raised.value) == fault


def leader_body(scope: str = "wk1", **more: Any) -> bytes:
    """Return what GET /leader answers."""
    return json.dumps({"state": "running", "patroni": {"version": "4.1.5", "scope": scope}, **more}).encode()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        pytest.param(
            200,
            leader_body(database_system_identifier=str(SYSTEM_ID)),
            Leadership(leads=True, scope="wk1", system_id=SYSTEM_ID),
            id="holds it",
        ),
        pytest.param(503, leader_body(), Leadership(leads=False, scope="wk1", system_id=None), id="does not"),
        pytest.param(
            503,
            leader_body(database_system_identifier=""),
            Leadership(leads=False, scope="wk1", system_id=None),
            id="no database yet",
        ),
        pytest.param(404, leader_body(), "HTTP status 404 to GET /leader", id="404"),
        pytest.param(301, leader_body(), "HTTP status 301 to GET /leader", id="a redirect"),
        pytest.param(200, b"", "what answers is not Patroni: no JSON object", id="no body"),
        pytest.param(200, b"OK", "what answers is not Patroni: no JSON object", id="another server's word"),
        pytest.param(200, b"{}", "what answers is not Patroni", id="no scope"),
        pytest.param(200, b'{"patroni": []}', "what answers is not Patroni", id="a list for a map"),
        pytest.param(200, leader_body("a\x1b[31m"), "what answers is not Patroni", id="a scope that cannot be printed"),
        pytest.param(
            200,
            leader_body(database_system_identifier="x"),
            "what answers is not Patroni",
            id="an identifier that is none",
        ),
    ],
)
def test_reading_the_leader_lock(status: int, body: bytes, told: Leadership | str) -> None:
    """The status is the lock, but only with a body that says it is Patroni's."""
    if isinstance(told, Leadership):
        assert read_leadership(Reply(status, body)) == told
    else:
        with pytest.raises(ApiError) as raised:
            read_leadership(Reply(status, body))
        assert str(raised.value) == told


class Rest:
    """The REST APIs beside some nodes; with the interface of ``fetch``. All of it may be changed at any time."""

    def __init__(self, *members: str, leader: str | None = None) -> None:
        self.leaders = {leader}
        self.members = [row(host) for host in members]
        self.scopes: dict[str, str] = {}
        self.down: set[str] = set()
        self.no_list: set[str] = set()
        self.hung: dict[str, threading.Event] = {}
        self.asked: list[tuple[str, str]] = []
        self.at_once: collections.Counter[str] = collections.Counter()
        self.most_at_once = 0
        self.timeouts_s = [TIMEOUT_S]
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def __call__(self, host: str, api: PatroniApi, path: str, timeout_s: float) -> Reply:
        """Answer a request."""
        assert threading.current_thread() is not threading.main_thread()
        assert api == API
        assert timeout_s in self.timeouts_s
        self.asked.append((host, path))
        self.at_once[host] += 1
        self.most_at_once = max(self.most_at_once, self.at_once[host])
        try:
            self._loop.call_soon_threadsafe(self._news.set)
            if host in self.hung:
                assert self.hung[host].wait(10)
            return self._answer(host, path)
        finally:
            self.at_once[host] -= 1

    def _answer(self, host: str, path: str) -> Reply:
        if host in self.down or (path == "/cluster" and host in self.no_list):
            raise ApiError("Connection refused")
        if path == "/cluster":
            return Reply(200, cluster_body(*self.members))
        leads = host in self.leaders
        body = leader_body(self.scopes.get(host, "wk1"), database_system_identifier=str(SYSTEM_ID))
        return Reply(200 if leads else 503, body)

    async def until_asked(self, host: str, path: str, *, times: int = 1) -> None:
        """Wait until a node has been asked so many times from now on."""
        since = len(self.asked)
        while self.asked[since:].count((host, path)) < times:
            await self.until_asked_anybody()

    async def until_asked_anybody(self, *, times: int = 1) -> None:
        """Wait until so many requests have been made from now on."""
        until = len(self.asked) + times
        while len(self.asked) < until:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 5)


INTERVAL_S, TIMEOUT_S, CALM_S = 0.02, 1.0, 0.05
LEISURE_S = 3600.0


class Sight:
    """A watch, and what it is given to see."""

    def __init__(self, rest: Rest, config: Config, **settings: Any) -> None:
        self.config = config
        self.changed = asyncio.Event()
        self.watch = PatroniWatch(changed=self.changed, fetch=rest, **{"calm_s": CALM_S, **settings})
        self.watch.watch(config)

    @property
    def hosts(self) -> list[str]:
        """The hosts behind wk1, with those that joined."""
        return [one.host for one in self.watch.extended(self.config).groups[0].nodes]

    @property
    def leader(self) -> str | None:
        """Who leads wk1."""
        word = self.watch.words.get("wk1", PatroniWord())
        return word.leader.host if word.leader else None

    def claims(self, host: str) -> bool | None:
        """Report what a node's own Patroni said last of the leader lock."""
        claim = self.watch.claim(node(host))
        return claim.leads if claim is not None else None

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds; whatever makes it hold has to be told as a change."""
        while not condition():
            await asyncio.wait_for(self.changed.wait(), 5)
            self.changed.clear()
            self.watch.check()


def config(*groups: Group) -> Config:
    """Return a configuration in which time passes quickly."""
    made = builders.config(*(groups or (group(),)))
    return dataclasses.replace(made, interval_s=INTERVAL_S, timeout_s=TIMEOUT_S)


@contextlib.asynccontextmanager
async def watching(rest: Rest, *groups: Group, **settings: Any) -> AsyncIterator[Sight]:
    """Watch some groups, by default wk1 alone, with its nodes A and B."""
    sight = Sight(rest, config(*groups), **settings)
    try:
        yield sight
        sight.watch.check()
    finally:
        for hung in rest.hung.values():
            hung.set()
        await sight.watch.close()


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in an event loop of its own, and see to it that it leaves no task behind."""

    @functools.wraps(test)
    def run() -> None:
        async def guarded() -> None:
            await asyncio.wait_for(test(), 30)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(guarded())

    return run


@in_loop
async def test_the_leader_and_a_change_of_it() -> None:
    """The word follows the lock from one node to the other."""
    rest = Rest(A, B, leader=A)
    async with watching(rest) as sight:
        await sight.until(lambda: sight.leader == A)
        assert sight.watch.words["wk1"].system_id == SYSTEM_ID
        rest.leaders = {B}
        await sight.until(lambda: sight.leader == B)
        rest.leaders = {A, B}
        await sight.until(lambda: sight.leader is None)
        rest.leaders = {A}
        await sight.until(lambda: sight.leader == A)


@in_loop
async def test_nothing_new_is_no_news() -> None:
    """What is merely said again sets no event, and the same objects are given out."""
    rest = Rest(A, B, C, leader=A)
    rest.members[1]["tags"] = {"noloadbalance": True}
    async with watching(rest) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C] and sight.leader == A and sight.watch.words["wk1"].benched)
        await rest.until_asked(C, "/leader", times=2)
        sight.changed.clear()
        word, extended = sight.watch.words["wk1"], sight.watch.extended(sight.config)
        await rest.until_asked(C, "/leader", times=5)
        assert not sight.changed.is_set()
        assert sight.watch.words["wk1"] is word
        assert sight.watch.extended(sight.config) is extended


@in_loop
async def test_without_new_members_the_configuration_is_the_same() -> None:
    """Who has nothing to add gives back what was given."""
    async with watching(Rest(A, B, leader=A)) as sight:
        await sight.until(lambda: sight.watch.heard_all)
        assert sight.watch.extended(sight.config) is sight.config


@in_loop
async def test_a_member_joins_and_leaves() -> None:
    """A new replica becomes a node without an edit, is asked itself, and leaves when it is not listed any more."""
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
async def test_nonsense_removes_nobody() -> None:
    """Lists that are empty change nothing, however long that lasts, and are an alert."""
    rest = Rest(A, B, C, leader=A)
    async with watching(rest, gone_after_s=0.0, patience_s=0.0) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C])
        rest.members = []
        await rest.until_asked(A, "/cluster", times=3)
        assert sight.hosts == [A, B, C]
        assert [alert.key for alert in sight.watch.alerts] == ["wk1:members"]


@in_loop
async def test_another_node_is_asked_for_the_members() -> None:
    """One whose list fails is not asked again at once, and is no reason to miss a new member."""
    rest = Rest(A, B, C, leader=A)
    rest.no_list = {A}
    async with watching(rest) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C])
        await rest.until_asked(B, "/cluster", times=3)
        assert rest.asked.count((A, "/cluster")) == 1


@in_loop
async def test_silence() -> None:
    """Without Patroni its words go away after a while, one by one. The nodes stay, and what fails is an alert each."""
    rest = Rest(A, B, C, leader=A)
    rest.members[1]["state"] = "stopped"
    async with watching(rest, gone_after_s=0.0, patience_s=0.3) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C] and sight.leader == A)
        assert sight.watch.words["wk1"].benched == {node(B): f"{B} is stopped, says Patroni"}
        assert list(sight.watch.alerts) == []
        rest.down = {A, B, C}
        await sight.until(lambda: sight.leader is None)
        await sight.until(lambda: not sight.watch.words)
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
async def test_a_hung_api_costs_only_itself() -> None:
    """It has one request at a time; its node's claim expires, and the others are asked as before."""
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
async def test_a_group_in_a_hurry() -> None:
    """All its nodes are asked now and every interval while it is named, and nobody else is."""
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
async def test_a_claim_counts_for_as_long_as_it_was_meant_to() -> None:
    """Asked every interval, the claim of a node that falls silent is over when interval and timeout are."""
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
    """A node that does not answer in a hurry has lost what it claimed when it was asked seldom."""
    rest = Rest(A, B, leader=A)
    async with watching(rest, calm_s=LEISURE_S) as sight:
        await sight.until(lambda: sight.leader == A and sight.watch.heard_all)
        rest.hung[A] = threading.Event()
        rest.leaders = {B}
        sight.watch.hurry(["wk1"])
        await sight.until(lambda: sight.leader == B)


@in_loop
async def test_the_own_node() -> None:
    """It is asked every interval, and its claim is known with the time at which it was asked."""
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
    """Also where it makes no word, as here where nobody knows which cluster is the right one; another node's is not."""
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
        assert sight.watch.words == {}


@in_loop
async def test_asking_the_own_node_now() -> None:
    """Whoever needs the claim now gets it, or waits no longer than it wants to."""
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
async def test_refreshing_the_own_node_while_it_is_being_asked() -> None:
    """The answer under way may be older than the reason to ask, so that another follows at once."""
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
    """Its API is asked for its claim all the time, so that the others say who the members are."""
    rest = Rest(A, B, leader=A)
    async with watching(rest) as sight:
        sight.watch.own([node(A)])
        await rest.until_asked(B, "/cluster", times=3)
        assert rest.asked.count((A, "/cluster")) == 0
        rest.down = {B}
        await rest.until_asked(A, "/cluster")


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
        assert set(sight.watch.words) == {"wk1"}


@in_loop
async def test_one_node_behind_two_names() -> None:
    """It is asked once for both, and both have the word."""
    rest = Rest(A, B, C, leader=A)
    async with watching(rest, group(), group("wk1-ro", A, B, route=Route.STANDBY)) as sight:
        await sight.until(lambda: set(sight.watch.words) == {"wk1", "wk1-ro"} and sight.hosts == [A, B, C])
        await sight.until(lambda: len(sight.watch.extended(sight.config).groups[1].nodes) == 3)
        rest.asked.clear()
        await rest.until_asked(A, "/leader", times=4)
        assert rest.asked.count((B, "/leader")) <= 5


@in_loop
async def test_a_foreign_patroni() -> None:
    """The Patroni of another cluster at one of the addresses is an alert, whatever it claims; so is its claim."""
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
    """Nobody is believed for answering first: there is no word, no member joins, and that is an alert."""
    rest = Rest(A, B, C, leader=A)
    rest.scopes = {B: "other"}
    async with watching(rest) as sight:
        for host in (A, B):
            await rest.until_asked(host, "/leader", times=3)
        assert (sight.watch.words, sight.hosts, sight.watch.heard_all) == ({}, [A, B], True)
        assert [alert.key for alert in sight.watch.alerts] == ["wk1:scopes"]
        assert (A, "/cluster") not in rest.asked
        rest.scopes = {}
        await sight.until(lambda: sight.leader == A and sight.hosts == [A, B, C])


@in_loop
async def test_a_word_that_expires_between_two_turns() -> None:
    """To ask for it changes nothing; that it has expired is told by the next tick, once."""
    rest = Rest(A, B, leader=A)
    rest.members[1]["state"] = "stopped"
    async with watching(rest, calm_s=0.2) as sight:
        await sight.until(lambda: sight.leader == A and sight.watch.words["wk1"].benched)
        sight.changed.clear()
        sight.watch.tick(boottime())
        assert (sight.leader, sight.changed.is_set()) == (A, False)
        time.sleep(0.2 + TIMEOUT_S + 0.01)  # noqa: ASYNC251 -- so that nobody is asked meanwhile
        assert (sight.leader, sight.changed.is_set()) == (None, False)
        sight.watch.tick(boottime())
        assert (sight.leader, sight.changed.is_set()) == (None, True)
        word = sight.watch.words.get("wk1")
        sight.changed.clear()
        sight.watch.tick(boottime())
        assert (sight.watch.words.get("wk1") is word, sight.changed.is_set()) == (True, False)


@in_loop
async def test_a_reload() -> None:
    """What is known of what stays is kept; who goes is not asked any more; who comes is."""
    rest = Rest(A, B, C, leader=A)
    async with watching(rest) as sight:
        await sight.until(lambda: sight.hosts == [A, B, C] and sight.leader == A)
        rest.down = {A, B, C}
        sight.config = config(group("wk1", B, A), group("wk2", D))
        word = sight.watch.words["wk1"]
        sight.watch.watch(sight.config)
        assert sight.hosts == [B, A, C]
        assert sight.watch.words["wk1"] is word
        await rest.until_asked(D, "/leader")
        rest.members = [row(D)]
        sight.config = config(group("wk2", D))
        sight.watch.watch(sight.config)
        assert sight.watch.words == {}
        await rest.until_asked(D, "/cluster")
        rest.asked.clear()
        await rest.until_asked(D, "/leader", times=3)
        assert {host for host, _ in rest.asked} == {D}


@in_loop
async def test_a_reload_in_the_middle_of_a_promotion() -> None:
    """Whoever was said to hold the lock is so until asked again, also with another time limit."""
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
    """A name of which no node stays is a new group: neither members nor Patroni's cluster are those of the old."""
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
        """Look up a name; one without an address never ends, or is not there."""
        assert threading.current_thread() is not threading.main_thread()
        if not self.addresses[host]:
            self.hung.wait(10)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.addresses[host], 0))]


@in_loop
async def test_members_and_nodes_by_name() -> None:
    """Names are looked up off the loop before anybody joins, and one server is one node."""
    rest = Rest("pg-1", "pg-2", "pg-3", leader="db-1")
    dns = Dns({"db-1": A, "db-2": B, "pg-1": A, "pg-2": B, "pg-3": C})
    async with watching(rest, group("wk1", "db-1", "db-2"), getaddrinfo=dns) as sight:
        await sight.until(lambda: sight.hosts == ["db-1", "db-2", "pg-3"])


@in_loop
async def test_a_look_up_that_hangs() -> None:
    """Nobody joins while it may be a node already; the words go on, and the failure is said when it comes."""
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
    """Calm nodes are asked no more than a hundred times a second, and groups in a hurry likewise."""
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
    """What ends a task is raised where the watch is checked, and whoever waits for news is woken to do so."""

    def broken(*_: object) -> Reply:
        raise ZeroDivisionError

    changed = asyncio.Event()
    watch = PatroniWatch(changed=changed, fetch=broken)
    watch.watch(config())
    await asyncio.wait_for(changed.wait(), 5)
    with pytest.raises(ZeroDivisionError):
        watch.check()
    await watch.close()
