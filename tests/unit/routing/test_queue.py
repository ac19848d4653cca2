"""When a name queues: the rows Q, and the rules through all of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.config.model import Fallback, Route
from resolver_agent.routing.observation import Role, Stage
from resolver_agent.routing.queue import room_address
from resolver_agent.routing.state import FENCE, TargetKind
from tests.unit.builders import (
    Agent,
    config,
    dead,
    group,
    node,
    not_serving,
    primary,
    rejecting,
    standby,
    unreachable,
)
from tests.unit.routing.test_properties import EVENTS, EVERYWHERE, HERE, OWN, WK1, WK2, World, happen, variant

if TYPE_CHECKING:
    from collections.abc import Callable

    from resolver_agent.config.model import Node
    from resolver_agent.routing.observation import Observation

OLD, NEW, THIRD = "10.0.1.1", "10.0.1.2", "10.0.1.3"
ROOM = "127.77.0.2"
UNPLANNED_S = 30.0


def agent(
    role: Callable[..., Observation] = primary, *, fallback: Fallback = Fallback.NONE, unplanned_s: float = 0.0
) -> Agent:
    """Return an agent beside a server of this role; the primary of wk1 is OLD, and NEW its standby."""
    made = Agent(config(group("cn", "10.0.0.1"), group("wk1", OLD, NEW, unplanned_s=unplanned_s), fallback=fallback))
    made.see({"10.0.0.1": role(), OLD: primary(), NEW: standby()})
    return made.see_local(role(), address="10.0.0.1").decide()


def gone(*, after_s: float = 0.1) -> Callable[[Agent], object]:
    """Have OLD stop: its sessions end, and it refuses connections."""
    return lambda one: one.wait(after_s).see({OLD: dead()})


def seen(what: dict[str | Node, Observation], *, after_s: float = 0.1) -> Callable[[Agent], object]:
    """Have nodes asked a while later."""
    return lambda one: one.wait(after_s).see(dict(what))


PLANNED: dict[str, tuple[Agent, list[Callable[[Agent], object]], str]] = {
    "Q1 its server is still there": (agent(), [], "queued"),
    "Q1 its server has stopped": (agent(), [gone()], "queued"),
    "Q1 its server starts again": (agent(), [gone(), seen({OLD: not_serving()})], "queued"),
    "Q1 its server is silent": (agent(), [seen({OLD: unreachable()}, after_s=4)], "queued"),
    "Q1 the next one is not promoted yet": (agent(), [gone(), seen({NEW: standby()}, after_s=2)], "queued"),
    "Q1 a standby's name that fell back to it": (
        agent(standby, fallback=Fallback.PRIMARY).wait(0.1).see({NEW: dead()}).decide(),
        [gone()],
        "queued",
    ),
    "Q1 not a standby's name that is on its standby": (agent(standby, fallback=Fallback.PRIMARY), [gone()], NEW),
    "Q2 it comes back as a standby first": (agent(), [gone(), seen({OLD: standby(started=1)})], "queued"),
    "Q2 a standby's name whose standby was promoted": (
        agent(standby),
        [gone(), seen({NEW: primary(timeline=8)})],
        "queued",
    ),
    "Q4 another primary": (agent(), [gone(), seen({NEW: primary(timeline=8)})], NEW),
    "Q4 the same server, restarted": (agent(), [gone(), seen({OLD: primary(started=1)})], OLD),
    "Q4 another primary while the old one is silent": (agent(), [seen({NEW: primary(timeline=8)}, after_s=4)], NEW),
    "Q4 a standby's name whose old primary is a standby now": (
        agent(standby),
        [gone(), seen({NEW: primary(timeline=8)}), seen({OLD: standby(started=1), NEW: primary(timeline=8)})],
        OLD,
    ),
    "Q4 a standby's name that fell back to it, and it is a standby now": (
        agent(standby, fallback=Fallback.PRIMARY).wait(0.1).see({NEW: dead()}).decide(),
        [gone(), seen({OLD: standby(started=1), NEW: rejecting()})],
        OLD,
    ),
    "Q5 it does not stop": (agent(), [seen({OLD: primary()}, after_s=5), seen({NEW: standby()})], OLD),
    "Q6 nobody is promoted": (agent(), [gone(), seen({NEW: standby()}, after_s=15)], OLD),
    "Q6 a standby's name without a standby": (
        agent(standby),
        [gone(), seen({NEW: primary(timeline=8)}), seen({NEW: primary(timeline=8)}, after_s=15)],
        FENCE,
    ),
    "Q7 there is no room": (agent(), [lambda one: one.no_room.update(wk1="in use"), gone()], OLD),
}


@pytest.mark.parametrize(("one", "events", "expected"), PLANNED.values(), ids=PLANNED)
def test_planned(one: Agent, events: list[Callable[[Agent], object]], expected: str) -> None:
    """A name whose server was announced to stop, after these events with a decision after each."""
    one.stops(OLD).decide()
    for event in events:
        event(one)
        one.see_local(primary() if one.decision.role is Role.PRIMARY else standby(), address="10.0.0.1").decide()
    assert one.address() == (ROOM if expected == "queued" else expected), one.leads()


def test_a_stop_that_is_called_off_is_noticed_although_nothing_else_changes() -> None:
    """Q5: the next probe after the hook's time ends it, also where all servers answer as ever."""
    one = agent().stops(OLD).decide()
    addresses = []
    for _ in range(6):
        one.wait(1).see({"10.0.0.1": primary(), OLD: primary(), NEW: standby()})
        addresses.append(one.see_local(primary(), address="10.0.0.1").decide().address())
    assert addresses == [ROOM] * 4 + [OLD] * 2


def test_draining_moves_nothing() -> None:
    """While statements under way end, the name stays."""
    assert agent().stops(OLD, stage=Stage.DRAINING).decide().address() == OLD


WHERE_READS_GO = pytest.mark.parametrize(
    ("fallback", "others", "expected"),
    [
        (Fallback.NONE, {}, ROOM),
        (Fallback.NONE, {THIRD: standby()}, THIRD),
        (Fallback.PRIMARY, {}, OLD),
    ],
    ids=["alone", "another standby", "fallback"],
)


def reads_from_new(fallback: Fallback, others: dict[str | Node, Observation]) -> Agent:
    """Return an agent on a coordinator's standby, whose reads of wk1 are on NEW."""
    one = Agent(config(group("cn", "10.0.0.1"), group("wk1", NEW, THIRD, OLD), fallback=fallback))
    one.see({"10.0.0.1": standby(), OLD: primary(), NEW: standby(), THIRD: dead(), **others})
    assert one.see_local(standby(), address="10.0.0.1").decide().address() == NEW
    return one


@WHERE_READS_GO
def test_a_standby_stops(fallback: Fallback, others: dict[str | Node, Observation], expected: str) -> None:
    """Reads leave a standby before it stops: for another one, for the primary, or else they queue."""
    one = reads_from_new(fallback, others)
    assert one.stops(NEW).decide().address() == expected
    one.wait(0.1).see({NEW: standby(started=1)}).decide()
    if expected == ROOM:
        assert one.address() == NEW


@WHERE_READS_GO
def test_a_standby_that_refuses_the_login_stops(
    fallback: Fallback, others: dict[str | Node, Observation], expected: str
) -> None:
    """What is not known of it keeps no reads there, and makes none wait, when it stops as announced."""
    one = reads_from_new(fallback, {})
    one.wait(4).see({"10.0.0.1": standby(), OLD: primary(), NEW: rejecting(), THIRD: dead(), **others})
    assert one.see_local(standby(), address="10.0.0.1").decide().address() == NEW
    assert one.stops(NEW).decide().address() == expected


UNPLANNED: dict[str, tuple[dict[str | Node, Observation], float, str]] = {
    "Q3 killed": ({OLD: dead()}, 0.1, ROOM),
    "Q3 silent for long": ({OLD: unreachable()}, 4.0, ROOM),
    "Q3 killed, and starts again": ({OLD: not_serving()}, 4.0, ROOM),
    "Q3 returned as a standby": ({OLD: standby(started=1)}, 0.1, ROOM),
    "silent for a moment": ({OLD: unreachable()}, 0.1, OLD),
    "refuses the login": ({OLD: rejecting()}, 4.0, OLD),
    "Q4 another primary": ({OLD: dead(), NEW: primary(timeline=8)}, 0.1, NEW),
}


@pytest.mark.parametrize(("what", "after_s", "expected"), UNPLANNED.values(), ids=UNPLANNED)
def test_unplanned(what: dict[str | Node, Observation], after_s: float, expected: str) -> None:
    """A name whose primary is lost without an announcement, with ``queue.unplanned``."""
    one = agent(unplanned_s=UNPLANNED_S).wait(after_s).see({NEW: standby()}).see(what)
    one.see_local(primary(), address="10.0.0.1")
    assert one.decide().decide().address() == expected, one.leads()


@pytest.mark.parametrize("fallback", [Fallback.NONE, Fallback.PRIMARY])
def test_reads_do_not_wait_for_a_lost_primary_beside_a_standby(fallback: Fallback) -> None:
    """The last primary returns as a standby, and nobody is seen in its place: reads go there at once."""
    one = agent(standby, fallback=fallback, unplanned_s=UNPLANNED_S).wait(0.1).see({NEW: dead()}).decide()
    one.wait(0.1).see({NEW: rejecting(), OLD: dead()}).see_local(standby(), address="10.0.0.1").decide()
    assert one.address() != OLD
    one.wait(0.1).see({OLD: standby(started=1)}).see_local(standby(), address="10.0.0.1").decide()
    assert one.address() == OLD, one.leads()


def test_unplanned_has_a_limit() -> None:
    """Q6: after ``unplanned`` the name does what it does without a queue, with an alert."""
    one = agent(unplanned_s=UNPLANNED_S).wait(1).see({OLD: dead()}).see_local(primary(), address="10.0.0.1").decide()
    assert "wk1:queued" in one.alerts
    lost_at = one.now
    assert one.decision.recheck_at <= lost_at + UNPLANNED_S
    for waited_s, expected in ((UNPLANNED_S - 0.1, ROOM), (UNPLANNED_S, OLD)):
        one.now = lost_at + waited_s
        one.see({OLD: dead(), NEW: standby()}).see_local(primary(), address="10.0.0.1").decide()
        assert one.address() == expected
    assert {"wk1:waited", "wk1:held"} <= one.alerts


def test_unplanned_has_a_limit_over_restarts() -> None:
    """An agent that is killed while a name queues does not have it wait for the whole time again."""
    one = agent(unplanned_s=UNPLANNED_S).wait(1).see({OLD: dead()}).see_local(primary(), address="10.0.0.1").decide()
    lost_at = one.now
    one.wait(UNPLANNED_S - 0.1).restart(written_at=lost_at)
    for waited_s, expected in ((UNPLANNED_S - 0.1, ROOM), (UNPLANNED_S, OLD)):
        one.now = lost_at + waited_s
        one.see({OLD: dead(), NEW: standby()}).see_local(primary(), address="10.0.0.1").decide()
        assert one.address() == expected


def test_alert_of_a_stop_in_vain() -> None:
    """Q6: nobody took the place of the server that stopped, and that is an alert until somebody does."""
    one = agent().stops(OLD).wait(15).see({OLD: dead(), NEW: standby()}).see_local(primary(), address="10.0.0.1")
    assert "wk1:waited" in one.decide().alerts
    one.wait(1).see({NEW: primary(timeline=8)}).see_local(primary(), address="10.0.0.1")
    assert "wk1:waited" not in one.decide().alerts


def test_off_by_default() -> None:
    """Without ``queue.unplanned`` a name is held on a dead primary, as ever."""
    assert agent().wait(0.1).see({OLD: dead()}).decide().address() == OLD


def test_a_restart_remembers_that_a_name_queued() -> None:
    """The block has the room, and what the name wanted; without a window it resolves to a server, or is fenced."""
    one = agent().stops(OLD).wait(0.1).see({OLD: dead()}).decide().restart()
    target = one.target()
    assert target is not None
    assert (target.kind, target.address, target.wanted_role, target.primary) == (
        TargetKind.QUEUED,
        ROOM,
        Role.PRIMARY,
        OLD,
    )
    one.see({"10.0.0.1": primary(), OLD: dead(), NEW: standby()}).see_local(primary(), address="10.0.0.1")
    assert one.decide().address() == OLD
    one.see({NEW: primary(timeline=8)})
    assert one.decide().address() == NEW


def test_a_room_at_another_address() -> None:
    """The name leads to the address at which its room is open."""
    one = agent().stops(OLD)
    one.rooms["wk1"] = "127.78.0.2"
    assert one.decide().address() == "127.78.0.2"


def test_rooms_of_many_names() -> None:
    """Every name has a room of its own, none of them PostgreSQL's usual loopback address."""
    rooms = [room_address(index, attempt) for index in range(2500) for attempt in (0, 15)]
    assert rooms[0] == "127.77.0.1"
    assert len({*rooms}) == 5000


STOPS = st.tuples(st.just("stop"), st.sampled_from([*WK1, *WK2]), st.sampled_from(Stage))
QUEUE_EVENTS = st.one_of(EVENTS, EVENTS, EVENTS, STOPS, st.tuples(st.just("no room"), st.booleans()))


@given(
    st.sampled_from(Fallback),
    st.sampled_from([0.0, UNPLANNED_S]),
    st.lists(st.lists(QUEUE_EVENTS, min_size=1, max_size=3), min_size=4, max_size=12),
)
def test_rules_hold(fallback: Fallback, unplanned_s: float, history: list[list[tuple[object, ...]]]) -> None:
    """R2 and R3 hold through every stop, and a name queues only with a window or ``unplanned``, within its limit."""
    plain = variant(fallback)
    groups = tuple(
        dataclasses.replace(one, queue=dataclasses.replace(one.queue, unplanned_s=unplanned_s)) for one in plain.groups
    )
    world = World(Agent(dataclasses.replace(plain, groups=groups)))
    world.see_local(standby())
    for host in EVERYWHERE:
        world.see(host, standby() if host == HERE else primary() if host in (WK1[0], WK2[0]) else standby())
    world.agent.decide()
    queued_since: dict[str, float] = {}
    for batch in history:
        for event in batch:
            _happen(world, event)
        world.agent.decide()
        _check(world, queued_since)


def _happen(world: World, event: tuple[object, ...]) -> None:
    one = world.agent
    match event:
        case ("stop", str(host), Stage() as stage):
            state = one.states.get(node(host))
            names = [each.name for each in one.config.groups if node(host) in each.nodes]
            if state is not None and state.role_seen is not None:
                for name in names:
                    one.stops(host, name, stage=stage)
        case ("no room", bool(none)):
            one.no_room = {each.name: "in use" for each in one.config.groups} if none else {}
        case ("reload", _):
            pass
        case ("agent restarts",):
            one.decide()
            happen(world, event)
        case _:
            happen(world, event)


def _check(world: World, queued_since: dict[str, float]) -> None:
    one = world.agent
    promoted = Role.PRIMARY in (world.local_role, one.assumed) or one.holds_lock
    for each in one.config.groups:
        target = one.target(each.name)
        if each.name == OWN:
            assert one.address(OWN) == HERE
        elif target is not None and target.kind is TargetKind.QUEUED:
            window = one.windows.get(each.name)
            since = queued_since.setdefault(each.name, one.now)
            planned = window is not None and window.stage is Stage.ROOM and one.now < window.until
            assert planned or one.now < since + each.queue.unplanned_s + 0.01, one.leads(each.name)
            assert each.name not in one.no_room
        else:
            queued_since.pop(each.name, None)
            bound = each.route is Route.PRIMARY or (each.route is Route.FOLLOW and promoted)
            if bound and target is not None and target.address != FENCE:
                assert world.last_role.get(target.address) is not Role.STANDBY, one.leads(each.name)
