"""The announcement of the local server's stop: who is told what, and when."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
from typing import TYPE_CHECKING, cast

import pytest

from resolver_agent.queue import evidence, own_stop
from resolver_agent.queue.message import Kind, Message, parse
from resolver_agent.queue.own_stop import OwnStop
from resolver_agent.routing.decision import Decision
from tests.unit.builders import Agent, config, group, node, primary, standby
from tests.unit.patroni.builders import in_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from resolver_agent.config.model import Node
    from resolver_agent.observe.observer import Observer
    from resolver_agent.queue.windows import Windows
    from resolver_agent.routing.observation import Identity

HERE, OTHER = "10.0.1.1", "10.0.1.2"
PID = 4711
"""The process of the session of the only other agent, on the primary."""


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Told:
    """An observer whose sessions reach one other agent, whose ``answer()`` to a message comes in the next turn."""

    def __init__(self, agent: Agent) -> None:
        self.config = dataclasses.replace(agent.config, citus=False)
        self.own = {"wk1": node(HERE)}
        self.local = agent.local
        self.decision = agent.decision
        self.said: list[Kind] = []
        self.answer: Callable[[Message], None] = lambda _: None
        self.meanwhile: Callable[[], object] = lambda: None
        self.others: frozenset[int] | None = frozenset({PID})

    def say(self, _over: Node, payload: str) -> None:
        """Take a message."""
        message = parse(payload)
        assert message is not None
        self.said.append(message.kind)
        asyncio.get_running_loop().call_soon(self.answer, message)

    async def peers(self, _over: Node, *, within_s: float) -> frozenset[int] | None:
        """Return the other agent's process."""
        assert within_s > 0
        self.meanwhile()
        return self.others


class NoWindows:
    """The windows of an agent that has none."""

    def give_up(self, run: Identity | None) -> None:
        """Take that the local server stops."""

    def take_back(self) -> None:
        """Take that it does not."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of the announcements."""
    made = Clock()
    monkeypatch.setattr(own_stop, "boottime", made)
    return made


@pytest.fixture
def told() -> Told:
    """Return the observer of an agent beside the primary of wk1."""
    return beside_the_primary()


def beside_the_primary() -> Told:
    """Return the observer of an agent beside the primary of wk1."""
    agent = Agent(config(group("wk1", HERE, OTHER))).see({HERE: primary(), OTHER: standby()})
    return Told(agent.see_local(primary(), address=HERE).decide())


def announcer(told: Told) -> OwnStop:
    """Return what announces the stop of the primary of wk1."""
    return OwnStop(cast("Observer", told), cast("Windows", NoWindows()), decision=lambda: told.decision)


async def no_round(_done: Callable[[], bool], _within_s: float) -> None:
    """Wait for rounds of an agent that has none."""


def takes(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float) -> None:
    """Have it take so long to find out that a stop may wait."""

    async def why_not_wait(*_: object, within_s: float, **_more: object) -> None:
        assert within_s >= seconds
        clock.now += seconds

    monkeypatch.setattr(evidence, "why_not_wait", why_not_wait)


@in_loop
async def test_slow_evidence_takes_no_time_from_the_answers(
    told: Told, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy server may take long to tell that its stop is planned: the coordinators are waited for all the same."""
    takes(monkeypatch, clock, 0.9)
    stop = announcer(told)
    heard: list[Kind] = []

    def answer(message: Message) -> None:
        if message.kind is Kind.LEAVES:
            stop.hear(PID, Message(kind=Kind.HELD, id=message.id, coordinator=True))
            asyncio.get_running_loop().call_soon(clear, message.id)

    def clear(name: str) -> None:
        heard.extend(told.said)
        stop.hear(PID, Message(kind=Kind.CLEAR, id=name))

    told.answer = answer
    answered = await asyncio.wait_for(stop.leave(within_s=5.0, wait_for=no_round), 5)
    assert (heard, told.said) == ([Kind.LEAVES], [Kind.LEAVES, Kind.OTHERS])
    assert answered.waited_for == ("1 of 1 agents",)


@in_loop
async def test_a_reload_while_the_agents_are_counted(told: Told, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is no node of any name any more is announced as the one that it was when its stop began."""
    takes(monkeypatch, clock, 0.0)
    stop = announcer(told)
    told.meanwhile = told.own.clear
    told.answer = lambda message: stop.hear(PID, Message(kind=Kind.CLEAR, id=message.id))
    answered = await asyncio.wait_for(stop.leave(within_s=5.0, wait_for=no_round), 5)
    assert (told.said, answered.why) == ([Kind.LEAVES, Kind.OTHERS], "")


@in_loop
async def test_a_second_caller_joins_the_first(told: Told, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that two hooks ask for at the same time is announced once, and neither lets it go on early."""
    takes(monkeypatch, clock, 0.0)
    stop = announcer(told)
    told.answer = lambda message: stop.hear(PID, Message(kind=Kind.CLEAR, id=message.id))
    one, other = await asyncio.wait_for(
        asyncio.gather(stop.leave(within_s=5.0, wait_for=no_round), stop.leave(within_s=5.0, wait_for=no_round)), 5
    )
    assert (told.said, one) == ([Kind.LEAVES, Kind.OTHERS], other)
    assert stop.cancel_leave().announced
    assert not stop.cancel_leave().announced


@in_loop
async def test_a_stop_that_is_taken_back_before_it_is_announced(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told of it, also if it was still being found out whether it may wait."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def why_not_wait(*_: object, **_more: object) -> None:
        asked.set()
        await go_on.wait()

    monkeypatch.setattr(evidence, "why_not_wait", why_not_wait)
    stop = announcer(told)
    leaving = asyncio.get_running_loop().create_task(stop.leave(within_s=5.0, wait_for=no_round))
    await asked.wait()
    assert stop.cancel_leave().announced
    assert not stop.cancel_leave().announced
    go_on.set()
    assert (await leaving).why == "the stop was taken back"
    assert not told.said


@in_loop
async def test_an_agent_that_has_died_is_not_waited_for(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that said that it has to be waited for, and whose session has ended since, delays the stop no longer."""
    takes(monkeypatch, Clock(), 0.0)
    stop = announcer(told)

    def answer(message: Message) -> None:
        if message.kind is Kind.LEAVES:
            stop.hear(PID, Message(kind=Kind.HELD, id=message.id, coordinator=True))
            told.others = frozenset()

    told.answer = answer
    answered = await asyncio.wait_for(stop.leave(within_s=5.0, wait_for=no_round), 4)
    assert answered.why == ""
    assert told.said == [Kind.LEAVES, Kind.OTHERS]


@in_loop
async def test_who_is_there_is_not_told_in_time(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop is announced all the same, and those are waited for who answer soon."""
    takes(monkeypatch, Clock(), 0.0)
    stop = announcer(told)
    told.others = None

    def answer(message: Message) -> None:
        if message.kind is Kind.LEAVES:
            stop.hear(PID, Message(kind=Kind.HELD, id=message.id, coordinator=True))
            asyncio.get_running_loop().call_later(0.7, stop.hear, PID, Message(kind=Kind.CLEAR, id=message.id))

    told.answer = answer
    answered = await asyncio.wait_for(stop.leave(within_s=5.0, wait_for=no_round), 4)
    assert (answered.waited_for, answered.why) == (("1 agents",), "")
    assert answered.waited_ms >= 700


@in_loop
@pytest.mark.parametrize(
    ("planned", "waits_s", "why"),
    [(None, [1.5], ""), ("the stop is not planned", [], "the stop is not planned")],
)
async def test_an_agent_that_has_just_started_looks_around_first(
    monkeypatch: pytest.MonkeyPatch, planned: str | None, waits_s: list[float], why: str
) -> None:
    """A planned stop waits for its first round, for a limited time; a forced one does not."""
    told = beside_the_primary()
    takes(monkeypatch, Clock(), 0.0)
    looked, own = told.decision, told.own
    told.decision, told.own = Decision(groups={}), {}
    waited_s: list[float] = []

    async def why_not_planned(*_: object, **_more: object) -> str | None:
        return planned

    async def look(done: Callable[[], bool], within_s: float) -> None:
        assert not done()
        told.decision, told.own = looked, own
        assert done()
        waited_s.append(within_s)

    monkeypatch.setattr(evidence, "why_not_planned", why_not_planned)
    stop = announcer(told)
    assert stop.check_leave().why == "the agent has not looked around yet"
    told.answer = lambda message: stop.hear(PID, Message(kind=Kind.CLEAR, id=message.id))
    answered = await asyncio.wait_for(stop.leave(within_s=5.0, wait_for=look), 5)
    assert (answered.why, waited_s) == (why, waits_s)
    assert told.said == ([] if why else [Kind.LEAVES, Kind.OTHERS])


@in_loop
async def test_a_drain_that_fails_too_late_is_no_defect(
    told: Told, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ends the session after the answer was given concerns nobody: nothing is logged."""
    told.config = dataclasses.replace(told.config, citus=True)
    go_on, before = threading.Event(), set(threading.enumerate())
    reported: list[dict[str, object]] = []

    def fail(*_: object) -> int:
        assert go_on.wait(10)
        raise OSError

    monkeypatch.setattr(own_stop, "_drain_local", fail)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    assert await announcer(told)._drain(clock.now + 0.01) == 0
    [drains] = set(threading.enumerate()) - before
    go_on.set()
    drains.join()
    await asyncio.sleep(0)  # its result is taken
    await asyncio.sleep(0)
    gc.collect()
    assert not reported


@in_loop
async def test_nothing_stops_where_there_is_no_server(told: Told) -> None:
    """On a host with ``local: off`` the hook is answered at once, nobody is told, and no room is closed."""

    class Untouched(NoWindows):
        def give_up(self, run: Identity | None) -> None:
            raise AssertionError(run)

    told.config = dataclasses.replace(told.config, has_local=False)
    announced = OwnStop(cast("Observer", told), cast("Windows", Untouched()), decision=lambda: told.decision)
    answer = await announced.leave(within_s=5.0, wait_for=no_round)
    assert (answer.waited_for, answer.why) == ((), "there is no local PostgreSQL (local: off)")
    assert not announced.check_leave().would_wait
    assert told.said == []
