"""The windows of one agent: what comes of announced stops, and of names that cannot wait."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, cast

import pytest

from resolver_agent.citus.session import Databases
from resolver_agent.queue import hold
from resolver_agent.queue.message import Kind, Message, parse
from resolver_agent.queue.windows import Windows
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import Target, TargetKind
from resolver_agent.system.clock import boottime
from tests.unit.builders import Agent, config, dead, group, node, primary, standby
from tests.unit.patroni.builders import in_loop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Node
    from resolver_agent.observe.observer import Observer
    from resolver_agent.queue.room import Rooms
    from resolver_agent.routing.observation import Window

OLD, NEW = "10.0.1.1", "10.0.1.2"
STOP = "0123456789abcdef"


class NoRooms:
    """Rooms that can never be opened: PostgreSQL listens on all addresses."""

    def open(self, _name: str, address: str, port: int) -> str | None:
        """Return why there is no room."""
        return f"{address}:{port} is in use"

    def close_all(self) -> None:
        """Close nothing."""


class Seen:
    """An observer that has seen what an agent has."""

    def __init__(self, agent: Agent) -> None:
        self.config = agent.config
        self.local = agent.local
        self.changed = asyncio.Event()
        self.windows: Mapping[str, Window] = {}
        self.rooms: Mapping[str, str] = {}
        self.no_room: Mapping[str, str] = {}
        self.said: list[Kind] = []

    def say(self, _over: Node, payload: str) -> None:
        """Take a message."""
        message = parse(payload)
        assert message is not None
        self.said.append(message.kind)


def on_coordinator(*, unplanned_s: float = 0.0) -> Agent:
    """Return an agent beside the primary coordinator; the primary of wk1 is OLD."""
    made = Agent(config(group("cn", "10.0.0.1"), group("wk1", OLD, NEW, unplanned_s=unplanned_s)))
    made.see({"10.0.0.1": primary(), OLD: primary(), NEW: standby()})
    return made.see_local(primary(), address="10.0.0.1").decide()


def beside(agent: Agent) -> tuple[Windows, Seen]:
    """Return the windows of an agent after a round, and what it observes."""
    seen = Seen(agent)
    made = Windows(cast("Observer", seen), rooms=cast("Rooms", NoRooms()))
    made._looked_in = (agent.local.role_seen.identity if agent.local.role_seen is not None else None, seen.config)
    made._look_at = boottime() + 3600  # it is known already where this server coordinates
    made._databases, made._knows_databases = ("postgres",), True
    made.track(agent.decision, written=True, flushed=True)
    return made, seen


@in_loop
async def test_the_first_round_without_a_primary_knows_that_there_is_no_room() -> None:
    """A name must not lead to a room that could not be opened: not for one round either."""
    agent = on_coordinator(unplanned_s=30.0)
    made, seen = beside(agent)
    agent.wait(0.1).see({OLD: dead()}).decide()
    assert agent.address() == "127.77.0.2"
    assert not made.prepare(agent.decision)
    agent.no_room = dict(seen.no_room)
    assert agent.decide().address() == OLD


@in_loop
async def test_a_reload_that_removes_the_name_of_a_stop() -> None:
    """Nothing is held back for a name that is gone, and the rounds go on."""
    agent = on_coordinator()
    made, seen = beside(agent)
    made.hear(node(OLD), Message(kind=Kind.LEAVES, id=STOP, node=str(node(OLD)), wait_s=5.0))
    assert set(seen.windows) == {"wk1"}
    agent.config = seen.config = config(group("cn", "10.0.0.1"))
    made.track(agent.decide().decision, written=True, flushed=True)
    assert made._holding is None
    assert not seen.windows


@in_loop
async def test_a_program_that_reads_the_log_finds_the_name(caplog: pytest.LogCaptureFixture) -> None:
    """The name is in a field of its own, as in ``status``."""
    agent = on_coordinator(unplanned_s=30.0)
    made, _ = beside(agent)
    made.prepare(agent.wait(0.1).see({OLD: dead()}).decide().decision)
    [record] = caplog.records
    assert "there is no waiting room" in record.getMessage()
    assert vars(record)["name_"] == "wk1"


@in_loop
async def test_a_stop_of_the_local_server_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held back for another server is given up when the local one stops, and the other is told at once."""

    def until_aborted(*_: object, abort: threading.Event, **_more: object) -> hold.Held:
        assert abort.wait(10)
        return hold.Held()

    monkeypatch.setattr(hold, "hold", until_aborted)
    agent = on_coordinator()
    made, seen = beside(agent)
    made.hear(node(OLD), Message(kind=Kind.LEAVES, id=STOP, node=str(node(OLD)), wait_s=5.0))
    made.track(agent.decision, written=True, flushed=True)
    assert made._holding is not None
    assert made._holding.result is not None
    made.give_up(None)
    await made._holding.result
    made.track(agent.decision, written=True, flushed=True)
    assert seen.said == [Kind.HELD, Kind.CLEAR]


@in_loop
async def test_nothing_is_held_back_on_a_server_that_stops_itself() -> None:
    """A stop that is announced after that of the local server closes no gate there, and is not delayed by it."""
    agent = on_coordinator()
    made, seen = beside(agent)
    made.give_up(agent.local.role_seen.identity if agent.local.role_seen is not None else None)
    made.hear(node(OLD), Message(kind=Kind.LEAVES, id=STOP, node=str(node(OLD)), wait_s=5.0))
    made.track(agent.decision, written=True, flushed=True)
    assert made._holding is None
    assert seen.said == [Kind.HELD, Kind.CLEAR]


@in_loop
async def test_a_name_that_queues_goes_on_when_its_stop_is_announced_again() -> None:
    """The second announcement of a stop neither takes the name out of its room nor lets it wait longer."""
    agent = on_coordinator()
    made, seen = beside(agent)
    made._databases = ()
    made.hear(node(OLD), Message(kind=Kind.LEAVES, id=STOP, node=str(node(OLD)), wait_s=5.0))
    made.hear(node(OLD), Message(kind=Kind.OTHERS, id=STOP))
    first = seen.windows["wk1"]
    made.hear(node(OLD), Message(kind=Kind.LEAVES, id=STOP[::-1], node=str(node(OLD)), wait_s=5.0))
    again = seen.windows["wk1"]
    assert (again.id, again.stage, again.until) == (STOP[::-1], first.stage, first.until)


@in_loop
async def test_a_name_that_is_pinned_or_paused_holds_nothing_back() -> None:
    """It stays on the server that stops, so nobody waits at a gate, and the other agent is told at once."""
    for agent in (on_coordinator().pin(OLD).decide(), on_coordinator().paused().decide()):
        made, seen = beside(agent)
        made.hear(node(OLD), Message(kind=Kind.LEAVES, id=STOP, node=str(node(OLD)), wait_s=5.0))
        made.track(agent.decision, written=True, flushed=True)
        assert (made._holding, seen.windows, seen.said) == (None, {}, [Kind.CLEAR])


@in_loop
async def test_a_name_that_is_pinned_while_its_server_stops() -> None:
    """What was held back for it is given up."""
    agent = on_coordinator()
    made, seen = beside(agent)
    made.hear(node(OLD), Message(kind=Kind.LEAVES, id=STOP, node=str(node(OLD)), wait_s=5.0))
    assert set(seen.windows) == {"wk1"}
    made.track(agent.pin(OLD).decide().decision, written=True, flushed=True)
    assert (made._holding, seen.windows) == (None, {})
    made.track(agent.decision, written=True, flushed=True)
    assert seen.said == [Kind.HELD, Kind.CLEAR]


@in_loop
async def test_an_agent_that_is_killed_lets_nobody_wait_longer() -> None:
    """A name that a killed agent left in its room waits for the rest of its time, and then no more."""
    agent = on_coordinator()
    left = Target(name="wk1", address="127.77.0.2", kind=TargetKind.QUEUED, wanted_role=Role.PRIMARY, primary=OLD)
    for age_s, expected_s in ((0.0, 15.0), (6.0, 9.0), (60.0, 0.0)):
        seen = Seen(agent)
        made = Windows(cast("Observer", seen), rooms=cast("Rooms", NoRooms()))
        made.resume([left], agent.config, age_s=age_s)
        window = seen.windows["wk1"]
        assert window.until - window.since == pytest.approx(expected_s)


@in_loop
async def test_a_database_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is known of it stays, it is asked again soon, and the log says it once, and once when it is over."""
    caplog.set_level(logging.INFO)
    agent = on_coordinator()
    made, seen = beside(agent)
    answers = [
        Databases((), {"postgres": "no answer within 1 s"}),
        Databases((), {"postgres": "no"}),
        Databases((), {}),
    ]
    monkeypatch.setattr(hold, "coordinated_databases", lambda _config: answers.pop(0))
    known, due_s = [], []
    while answers:
        made._look_at = 0.0
        seen.changed.clear()
        made.track(agent.decision, written=True, flushed=True)
        await seen.changed.wait()
        made.track(agent.decision, written=True, flushed=True)
        known.append(made.status(boottime()).coordinates)
        due_s.append(round(made._look_at - boottime()))
    assert known == [("postgres",), ("postgres",), ()]
    assert due_s == [2, 4, 60]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@in_loop
async def test_an_agent_that_has_just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that is announced before it knows its part waits for it, and then it does its part."""
    looking = threading.Event()

    def late(_config: object) -> Databases:
        assert looking.wait(10)
        return Databases(("postgres",), {})

    monkeypatch.setattr(hold, "coordinated_databases", late)
    monkeypatch.setattr(hold, "hold", lambda *_, **_more: hold.Held())
    agent = on_coordinator()
    seen = Seen(agent)
    made = Windows(cast("Observer", seen), rooms=cast("Rooms", NoRooms()))
    made.hear(node(OLD), Message(kind=Kind.LEAVES, id=STOP, node=str(node(OLD)), wait_s=5.0))
    made.track(agent.decision, written=True, flushed=True)
    assert (seen.said, dict(seen.windows)) == ([Kind.HELD], {})
    seen.changed.clear()
    looking.set()
    await seen.changed.wait()
    made.track(agent.decision, written=True, flushed=True)
    assert (seen.said, set(seen.windows)) == ([Kind.HELD, Kind.HELD], {"wk1"})
    made.track(agent.decision, written=True, flushed=True)
    assert made._holding is not None


@in_loop
async def test_an_agent_that_never_knows_where_it_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it any longer when the hook of the stop has ended, nor at all after a minute."""
    monkeypatch.setattr(hold, "coordinated_databases", lambda _config: Databases((), {"postgres": "no"}))
    agent = on_coordinator()
    seen = Seen(agent)
    made = Windows(cast("Observer", seen), rooms=cast("Rooms", NoRooms()))
    made.hear(node(OLD), Message(kind=Kind.LEAVES, id=STOP, node=str(node(OLD)), wait_s=0.0))
    made.track(agent.decision, written=True, flushed=True)
    assert set(seen.windows) == {"wk1"}
    for _ in range(6):
        made._stops.clear()
        seen.changed.clear()
        made._look_at = 0.0
        made.track(agent.decision, written=True, flushed=True)
        await seen.changed.wait()
    made.track(agent.decision, written=True, flushed=True)
    assert made._knows_its_part
