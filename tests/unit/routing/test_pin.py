"""Pins and pauses: the rows M, and the rules whatever the operator decides."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.config.model import Fallback, Node, Route
from resolver_agent.hosts import block
from resolver_agent.routing.observation import NodeState, PatroniStatus, Pin, Role
from resolver_agent.routing.pin import canonical
from resolver_agent.routing.state import FENCE, Code, TargetKind
from tests.unit.builders import (
    FOREIGN,
    Agent,
    config,
    dead,
    group,
    node,
    primary,
    rejecting,
    standby,
    unreachable,
)
from tests.unit.routing.builders import code
from tests.unit.routing.test_properties import (
    EVENTS,
    EVERYWHERE,
    HERE,
    OWN,
    WK1,
    WK2,
    Event,
    Forgetful,
    World,
    addresses,
    happen,
    worlds,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from resolver_agent.routing.observation import Observation

    Seen = dict[str | Node, Observation]

CN1, CN2 = "10.0.0.1", "10.0.0.2"
A, B, C = "10.0.1.1", "10.0.1.2", "10.0.1.3"
ELSEWHERE = "10.9.9.9"
"""An address where no node is known."""


def agent(
    role: Callable[[], Observation] = primary,
    *,
    fallback: Fallback = Fallback.NONE,
    seen: Seen | None = None,
    unplanned_s: float = 0.0,
) -> Agent:
    """Return an agent beside a server of this role; the primary of wk1 is A, and B and C are its standbys."""
    made = Agent(config(group("cn", CN1, CN2), group("wk1", A, B, C, unplanned_s=unplanned_s), fallback=fallback))
    made.see({CN1: role(), A: primary(), B: standby(), C: standby(), **(seen or {})})
    return made.see_local(role(), address=CN1).decide()


def then(one: Agent, seen: Seen, *, after_s: float = 0.1) -> Agent:
    """See this a while later, and decide."""
    one.wait(after_s).see(seen)
    return one.see_local(primary() if one.decision.role is Role.PRIMARY else standby(), address=CN1).decide()


PINNED: dict[str, tuple[Agent, str, Seen, str]] = {
    "M1 to another standby": (agent(standby), C, {}, C),
    "M1 to a standby that is dead": (agent(standby), C, {C: dead()}, C),
    "M1 to a standby that lags": (agent(standby), C, {C: standby(lsn=1)}, C),
    "M1 to its primary, which is lost": (agent(), A, {A: dead()}, A),
    "M1 to its primary, with fallback": (agent(standby, fallback=Fallback.PRIMARY), A, {}, A),
    "M1 to one of several primaries": (agent(), B, {B: primary(timeline=8)}, B),
    "M1 to an address of no node": (agent(), ELSEWHERE, {A: dead()}, ELSEWHERE),
    "M1 to an address of no node, for reads": (agent(standby), ELSEWHERE, {}, ELSEWHERE),
    "M3 its server is a standby": (agent(), B, {}, A),
    "M3 its server returns as a standby": (agent(), A, {A: standby(started=1)}, FENCE),
    "M3 its server is a standby, and dead": (agent(), B, {B: dead(), A: dead()}, A),
    "M4 its server is dead, and another is promoted": (agent(), A, {A: dead(), B: primary(timeline=8)}, B),
    "M4 another one, and no node at the address": (agent(), ELSEWHERE, {}, A),
    "M5 its standby is promoted": (agent(standby), B, {A: dead(), B: primary(timeline=8)}, C),
    "M5 it is the primary": (agent(standby), A, {}, B),
    "M6 it was never seen": (agent(standby, seen={C: rejecting()}), C, {}, B),
    "M6 it was never seen as a primary": (agent(seen={C: rejecting()}), C, {A: dead()}, A),
    "M6 it is of another cluster": (agent(standby, seen={C: standby(system_id=FOREIGN)}), C, {}, B),
    "M6 it is a loopback address": (agent(), "127.0.0.1", {A: dead()}, A),
    "M6 it is a node of another name": (agent(), CN1, {A: dead()}, A),
}


@pytest.mark.parametrize(("one", "address", "seen", "expected"), PINNED.values(), ids=PINNED)
def test_pinned(one: Agent, address: str, seen: Seen, expected: str) -> None:
    """A pinned name, when this is seen: it leads there, or does what it does without the pin, and why is an alert."""
    then(one.pin(address), seen)
    assert one.address() == expected, one.leads()
    counts = expected == address
    assert ("wk1:pinned" in one.alerts, "wk1:pin" in one.alerts) == (counts, not counts), one.alerts
    assert (one.decision.pins["wk1"] is None) is counts
    if counts:
        assert code(one) is Code.PINNED


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.1.1", "10.0.1.1"),
        ("::ffff:10.0.1.1", "10.0.1.1"),
        ("FD00:0::1", "fd00::1"),
        *(
            (nobody, None)
            for nobody in ("", "wk1", "10.0.1", "0.0.0.0", "::", FENCE, "224.0.0.1", "fe80::1%eth0", "10.0.0.0/8")
        ),
    ],
)
def test_one_spelling_of_an_address(address: str, expected: str | None) -> None:
    """A server cannot be reached under another spelling, where what is known of it would not count."""
    assert canonical(address) == expected


def test_m3_a_primary_beside_the_last_known_one_that_goes_into_recovery() -> None:
    """R2: also a name that only its pin has led to a server leaves it when that is seen in recovery, for good."""
    one = then(agent().pin(B), {B: primary(timeline=8)})
    assert one.address() == B
    assert then(one, {A: dead(), B: standby(started=1)}).address() == A
    assert then(one, {B: dead()}).address() == A
    assert one.decision.pins["wk1"] == f"{B} was last seen in recovery"


def test_a_server_at_two_addresses() -> None:
    """A name may be pinned to the other address of its primary."""
    one = agent()
    seen = one.states[node(A)].role_seen
    assert seen is not None
    one.states[node(B)] = NodeState().after(dataclasses.replace(seen, address=B))
    assert one.pin(B).decide().address() == B


def test_m4_ends_a_pin_for_good() -> None:
    """When the new primary cannot be seen, nobody goes back to the server that it has replaced."""
    for address in (A, ELSEWHERE):
        one = agent() if address == A else agent(seen={A: unreachable()})
        one = then(one.pin(address), {A: unreachable(), B: standby()})
        assert one.address() == address
        assert then(one, {A: unreachable(), B: primary(timeline=8)}, after_s=10.5).address() == B
        assert one.decision.overtaken == {"wk1": address}
        for _ in range(3):
            one.wait(10.5)
            assert then(one, {A: unreachable(), B: rejecting()}).address() == B
        assert not one.pins


def test_m6_a_node_that_is_not_known_there_any_more() -> None:
    """A pin to a node is none by force: it does not count where nobody knows a node of the group."""
    one = then(agent().pin(A), {})
    assert code(one) is Code.PINNED
    one.config = config(group("cn", CN1, CN2), group("wk1", B, C))
    then(one, {B: unreachable(), C: unreachable()})
    assert one.decision.pins["wk1"] == f"{A} is not known to be one of its nodes"


def test_a_pinned_name_lets_no_other_fall_back() -> None:
    """With `fallback: all` the others stay on their standbys while a pinned one's server is down."""
    other, of_other = "10.0.2.1", "10.0.2.2"
    names = group("cn", CN1, CN2), group("wk1", A, B), group("wk2", other, of_other)
    one = Agent(config(*names, fallback=Fallback.ALL))
    one.see({CN1: standby(), A: primary(), B: standby(), other: primary(), of_other: standby()})
    one.see_local(standby(), address=CN1).decide()
    one.pin(B)
    then(one, {B: dead()})
    assert (one.address("wk1"), one.address("wk2")) == (B, of_other)


def test_m7_a_pin_for_reads_is_none_for_writes() -> None:
    """When the local server is promoted the name moves to the primary, wherever it was pinned for reads."""
    for address in (C, ELSEWHERE):
        one = then(agent(standby).pin(address), {})
        assert one.address() == address
        one.assumed = Role.PRIMARY
        assert then(one, {}).address() == A
        assert one.decision.pins["wk1"] == "it was pinned as one that wants a standby"
        one.assumed = None
        assert then(one, {}).address() == address


def test_m8_a_name_that_queues_is_pinned_when_it_leads_to_a_server() -> None:
    """What waits for the next server gets it; from then on the pin counts."""
    one = agent(seen={B: primary(timeline=8)}).see({B: dead()}).decide()
    one.stops(A).decide()
    assert one.target() is not None
    room = one.address()
    one.pin(A)
    then(one, {A: dead()})
    assert one.address() == room
    assert one.decision.pins["wk1"] == "connections wait for its next server"
    then(one, {A: primary(started=1)})
    assert code(one) is Code.PRIMARY
    assert code(then(one, {})) is Code.PINNED


def test_a_stop_does_not_move_a_pinned_name() -> None:
    """No window of the queue moves a name off its pinned server, nor does a pause let it."""
    pinned, paused = agent().pin(A).decide().stops(A), agent().paused().decide().stops(A)
    for one in (pinned, paused):
        assert then(one, {A: dead()}).address() == A
        then(one, {A: dead()}, after_s=15)
        assert one.address() == A
    assert "wk1:waited" not in pinned.alerts


def test_m9_the_own_name_cannot_be_pinned() -> None:
    """R3: the local server's own name leads to the local server."""
    one = agent(seen={CN2: standby()})
    one.pin(CN2, "cn")
    assert then(one, {}).address("cn") == CN1
    assert one.decision.pins["cn"] == "it is the local server's own name"
    assert "cn:pin" in one.alerts


def test_m10_it_ends_by_itself() -> None:
    """When the time is over, the name does what it does without the pin, at the moment that the decision gives."""
    one = agent(standby).pin(C, for_s=2.5)
    assert one.decide().decision.recheck_at <= one.now + 2.5
    assert one.address() == C
    then(one, {A: primary(), B: standby(), C: standby()}, after_s=2.4)
    assert one.address() == C
    assert one.decision.recheck_at == pytest.approx(one.now + 0.1)
    then(one, {A: primary(), B: standby(), C: standby()})
    assert (one.decision.pins, one.alerts) == ({}, set())
    then(one, {A: primary(), B: standby(), C: standby()}, after_s=10)
    assert one.address() == B


def test_a_name_that_nobody_manages() -> None:
    """A pin of a name that a reload took away is an alert, and nothing else."""
    one = agent()
    one.pins["gone"] = Pin(address=A, wanted_role=Role.PRIMARY, until=one.now + 60, told="until noon")
    assert one.decide().address() == A
    text = "gone is pinned to 10.0.1.1 until noon, but the pin does not count: no such name is managed"
    assert [alert.text.partition("; ")[0] for alert in one.decision.alerts] == [text]


PAUSED: dict[str, tuple[Agent, Seen, str]] = {
    "M2 its standby is dead": (agent(standby), {B: dead()}, B),
    "M2 its standby is dead, with fallback": (agent(standby, fallback=Fallback.PRIMARY), {B: dead(), C: dead()}, B),
    "M2 its primary is lost, and it would queue": (agent(unplanned_s=30), {A: dead()}, A),
    "M2 it is fenced": (agent(standby, seen={B: dead(), C: dead()}), {B: standby(started=1)}, FENCE),
    "M2 several other primaries": (
        agent(),
        {A: dead(), B: primary(timeline=8), C: primary(timeline=9)},
        A,
    ),
    "M3 its primary is in recovery": (agent(), {A: standby(started=1)}, FENCE),
    "M4 another one is promoted": (agent(), {A: dead(), B: primary(timeline=8)}, B),
    "M4 it was fenced": (agent(seen={A: standby()}), {A: primary(started=1)}, A),
    "M5 its standby is promoted": (agent(standby), {A: dead(), B: primary(timeline=8)}, C),
    "M6 its server is of another cluster": (agent(standby), {B: standby(system_id=FOREIGN, started=1)}, C),
}


@pytest.mark.parametrize(("one", "seen", "expected"), PAUSED.values(), ids=PAUSED)
def test_paused(one: Agent, seen: Seen, expected: str) -> None:
    """A paused name, when this is seen."""
    before = one.paused().decide().address()
    assert "paused" in one.alerts
    then(one, seen)
    assert one.address() == expected, one.leads()
    if expected == before:
        assert code(one) in (Code.HELD, Code.FENCED)
        assert "paused, otherwise" in one.leads()


def test_m3_a_pause_after_its_primary_was_removed() -> None:
    """R2: once every other server was seen in recovery, the last known primary is taken for one of them."""
    one = agent().paused().decide()
    one.config = config(one.config.groups[0], group("wk1", B, C))
    assert then(one, {B: standby(), C: standby()}).address() == FENCE


def test_a_paused_name_remembers_that_its_server_is_a_standby_now() -> None:
    """R2: the block says so, and a later run that cannot ask it keeps writes off it."""
    one = agent(standby, fallback=Fallback.PRIMARY, seen={B: dead(), C: dead()})
    assert one.address() == A
    one.patroni = {"wk1": PatroniStatus(excluded={node(A): "tagged noloadbalance"})}
    then(one.paused(), {A: standby(started=1), B: primary(timeline=8)})
    target = one.target()
    assert target is not None
    assert (target.address, target.kind) == (A, TargetKind.STANDBY)
    one.restart().see(dict.fromkeys((A, B, C), unreachable())).see({CN1: primary()}).see_local(primary(), address=CN1)
    assert one.decide().address() == B


def test_a_pause_delays_no_promotion() -> None:
    """R4: when the local server is about to be promoted, its names leave the standbys, paused or not."""
    one = agent(standby).paused().decide()
    assert one.address() == B
    one.assumed = Role.PRIMARY
    assert then(one, {}).address() == A


def test_a_pause_over_a_restart() -> None:
    """After a restart a name stays where it is, but not for writes on what the block calls a standby."""
    for role, expected in ((standby, B), (primary, FENCE)):
        one = agent(standby).paused().decide().restart()
        one.see(dict.fromkeys((A, B, C), rejecting())).see({CN1: role()}).see_local(role(), address=CN1)
        assert one.decide().address() == (expected if role is standby else A)


def test_m10_a_pause_ends_by_itself() -> None:
    """When the time is over, names move again, at the moment that the decision gives."""
    one = agent(standby).paused(for_s=2.0)
    then(one, {B: dead()})
    assert (one.address(), one.decision.recheck_at <= one.now + 1.9) == (B, True)
    then(one, {A: primary(), C: standby()}, after_s=1.9)
    assert one.address() == C
    assert one.alerts == set()


def test_a_pause_that_is_ended_while_nothing_else_happens() -> None:
    """Names move in the next round, also where nothing new was seen for long."""
    one = then(agent(standby).paused(), {B: dead()})
    for _ in range(3):
        assert one.decide().address() == B
    one.pause = None
    assert one.decide().address() == C


def test_pins_within_a_pause() -> None:
    """A pause holds what nobody has pinned."""
    one = agent(standby).paused().pin(C)
    assert then(one, {}).address() == C
    one.pins.clear()
    assert then(one, {}).address() == C


ADDRESSES = st.sampled_from([*WK1, *WK1, *WK2, HERE, ELSEWHERE])
NAMES = st.sampled_from(["cn", "cn-rw", "cn-ro", "wk1", "wk1", "wk1-ro", "wk2", "wk2-rw"])
BY_HAND = st.one_of(
    st.tuples(st.just("pin"), NAMES, ADDRESSES, st.sampled_from([1.0, 60.0])),
    st.tuples(st.just("pin"), NAMES, ADDRESSES, st.sampled_from([1.0, 60.0])),
    st.tuples(st.just("unpin"), NAMES),
    st.tuples(st.just("pause"), st.sampled_from([0.0, 1.0, 60.0])),
)
HISTORIES = st.lists(
    st.lists(st.one_of(EVENTS, EVENTS, EVENTS, BY_HAND), min_size=1, max_size=3), min_size=4, max_size=12
)
WORLDS = worlds()


def apply(world: World, event: Event) -> None:
    """Apply one event: what the operator does, or anything else."""
    one = world.agent
    match event:
        case ("pin", str(name), str(address), float(seconds)):
            one.pin(address, name, for_s=seconds)
        case ("unpin", str(name)):
            one.pins.pop(name, None)
        case ("pause", float(seconds)):
            one.paused(for_s=seconds)
        case ("pin that is over", str(name), str(address), _):
            one.pin(address, name, for_s=-1)
        case ("pause that is over", _):
            one.paused(for_s=-1)
        case ("nothing",):
            pass
        case _:
            happen(world, event)


def live(world: World, history: list[list[Event]], check: Callable[[], None]) -> None:
    """Apply a history, with a decision and a check after each batch of events, and before each restart."""
    for batch in history:
        for event in batch:
            if event == ("agent restarts",):
                world.agent.decide()
                check()
            apply(world, event)
        world.agent.decide()
        check()


@given(WORLDS, HISTORIES)
def test_rules_hold(world: World, history: list[list[Event]]) -> None:
    """R2, R3, R4, and that no reader meets a primary against ``fallback``, whatever is pinned and paused."""
    world.see_local(standby())
    world.see(HERE, standby())
    world.agent.decide()

    def check() -> None:
        one = world.agent
        promoted = Role.PRIMARY in (world.local_role, one.assumed) or one.holds_lock
        assert one.address(OWN) == HERE
        for each in one.config.groups:
            target = one.target(each.name)
            if target is None or target.address == FENCE or each.name == OWN:
                continue
            if each.route is Route.PRIMARY or (each.route is Route.FOLLOW and promoted):
                assert world.last_role.get(target.address) is not Role.STANDBY, one.leads(each.name)
            pins = one.decision.pins.get(each.name, "none")
            if pins is None:
                assert target.address == one.pins[each.name].address
                if target.wanted_role is Role.STANDBY and one.config.fallback is Fallback.NONE:
                    assert world.last_role.get(target.address) is not Role.PRIMARY, one.leads(each.name)
        assert block.recall(block.render(b"", one.decision.targets)) == one.decision.targets

    live(world, history, check)


@given(WORLDS, HISTORIES)
def test_writes_go_to_no_primary_beside_the_accepted_one(world: World, history: list[list[Event]]) -> None:
    """Where one primary is accepted, no name that wants it leads to another server."""

    def check() -> None:
        one = world.agent
        for each in one.config.groups:
            target, view = one.target(each.name), one.decision.views[each.name]
            if target is None or target.wanted_role is not Role.PRIMARY or target.kind is TargetKind.SELF:
                continue
            if view.primary.reason.code in (Code.PRIMARY, Code.LEADER):
                assert target.address == view.primary.address, one.leads(each.name)

    live(world, history, check)


@given(WORLDS, HISTORIES)
def test_nothing_by_hand_changes_nothing(world: World, history: list[list[Event]]) -> None:
    """Once all pins and pauses are over, and servers are seen in calm, names are where they are without them."""
    other = World(Agent(world.agent.config))
    live(world, history, lambda: None)
    one = world.agent
    one.wait(61)
    for each in (world, other):
        each.agent.config, each.agent.now = one.config, one.now
        each.agent.patroni, each.agent.assumed, each.agent.holds_lock = {}, None, False
        each.started = world.started + 1
        for _ in range(12):
            each.see_local(primary())
            for host in EVERYWHERE:
                first = host in (HERE, WK1[0], WK2[0])
                each.see(host, primary() if first else standby())
            each.agent.wait(1).decide()
    assert one.decision.pins == {}
    assert addresses(one) == addresses(other.agent)


@given(WORLDS, HISTORIES)
def test_what_is_over_changes_nothing(world: World, history: list[list[Event]]) -> None:
    """With pins and pauses whose time is over, each decision is the one without any."""
    other = copy.deepcopy(world)
    told: list[list[object]] = [[], []]
    for each, decisions, changed in (
        (world, told[0], {"pin": "pin that is over", "pause": "pause that is over"}),
        (other, told[1], dict.fromkeys(("pin", "unpin", "pause"), "nothing")),
    ):

        def check(one: Agent = each.agent, decisions: list[object] = decisions) -> None:
            decisions.append(one.decision)

        def instead(event: Event, changed: dict[str, str] = changed) -> Event:
            what = changed.get(str(event[0]))
            return event if what is None else ("nothing",) if what == "nothing" else (what, *event[1:])

        live(each, [[instead(event) for event in batch] for batch in history], check)
    assert told[0] == told[1]


@given(WORLDS, HISTORIES)
def test_an_agent_that_reuses_views_decides_the_same(world: World, history: list[list[Event]]) -> None:
    """As one that never does, with pins and pauses that come and go."""
    other = copy.deepcopy(world)
    other.agent.__class__ = Forgetful
    told: list[list[object]] = []
    for each in (world, other):
        decisions: list[object] = []

        def check(one: Agent = each.agent, decisions: list[object] = decisions) -> None:
            made = one.decision
            reasons = [target.reason for target in made.targets]
            decisions.append((made.targets, reasons, made.alerts, made.pins, made.paused, made.recheck_at))

        live(each, history, check)
        told.append(decisions)
    assert told[0] == told[1]
