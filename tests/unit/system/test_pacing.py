"""How often to probe, from the values alone; time here passes only when nothing else is left to do."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.system.clock import boottime
from resolver_agent.system.pacing import ConnectSlots, News, TokenBucket, backoff_s, unsettled_delay_s

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Instant(selectors.DefaultSelector):
    """A selector that does not wait: it lets the time pass at once."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let time pass, plus a microsecond for the work done since."""
        assert timeout is not None, "every task waits for ever"
        self.now += max(0.0, timeout) + 1e-6
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own."""

    def __init__(self) -> None:
        self.clock = Instant()
        super().__init__(self.clock)

    def time(self) -> float:
        """Return the time that has passed."""
        return self.clock.now


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario in simulated time."""
    with contextlib.closing(Loop()) as loop:
        try:
            loop.run_until_complete(scenario)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))


def elapsed_s() -> float:
    """Return the seconds since the loop began."""
    return asyncio.get_running_loop().time() - Instant.now


@pytest.mark.parametrize(("failures", "delay_s"), [(1, 0.2), (2, 0.4), (3, 0.8), (8, 25.6), (9, 30.0), (10**9, 30.0)])
def test_each_failure_doubles_the_wait(failures: int, delay_s: float) -> None:
    """The wait doubles up to a limit, after any number of failures."""
    assert backoff_s(failures, first_s=0.2, max_s=30.0) == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("age_s", "interval_s", "delay_s"),
    [
        (0.0, 1.0, 0.02),
        (60.0, 1.0, 0.02),
        (70.0, 1.0, 0.04),
        (80.0, 1.0, 0.08),
        (100.0, 1.0, 0.32),
        (117.0, 1.0, 1.0),
        (1e9, 1.0, 1.0),
        (1e9, 1e9, 0.02 * 2**16),
        (0.0, 0.01, 0.01),
        (90.0, 0.01, 0.01),
    ],
)
def test_an_unsettled_group_is_probed_often_for_a_minute(age_s: float, interval_s: float, delay_s: float) -> None:
    """It is probed every 20 ms for 60 s, then backs off to the interval, and never less often than that."""
    assert unsettled_delay_s(age_s, interval_s=interval_s) == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("takers", "cost", "seconds"), [(100, 1, 0.0), (1100, 1, 1.0), (10, 10, 0.0), (110, 10, 1.0), (610, 10, 6.0)]
)
def test_a_bucket_gives_its_rate_after_its_burst(takers: int, cost: int, seconds: float) -> None:
    """A bucket gives a hundred tokens at once, then a thousand a second."""

    async def scenario() -> None:
        bucket = TokenBucket(rate=1000, burst=100)
        await asyncio.gather(*(bucket.take(cost) for _ in range(takers)))
        assert elapsed_s() == pytest.approx(seconds, abs=0.02)

    run(scenario())


def test_an_idle_bucket_saves_no_more_than_its_burst() -> None:
    """However long the bucket was idle, the next storm is limited like the first."""

    async def scenario() -> None:
        bucket = TokenBucket(rate=1000, burst=100)
        await bucket.take(1)
        await asyncio.sleep(3600)
        await asyncio.gather(*(bucket.take(1) for _ in range(600)))
        assert elapsed_s() == pytest.approx(3600.5, abs=0.02)

    run(scenario())


def test_dear_and_cheap_share_alike_and_each_in_turn() -> None:
    """Many reconnects to a lost site leave half of the tokens for the probes of other nodes."""

    async def scenario() -> None:
        bucket = TokenBucket(rate=1000, burst=10)
        served: list[tuple[int, int]] = []

        async def take(cost: int, number: int) -> None:
            await bucket.take(cost)
            served.append((cost, number))

        storm = [asyncio.ensure_future(take(10, number)) for number in range(200)]
        probes = [asyncio.ensure_future(take(1, number)) for number in range(600)]
        await asyncio.sleep(1.0)
        dear, cheap = ([number for cost, number in served if cost == wanted] for wanted in (10, 1))
        assert len(dear) == pytest.approx(50, abs=2)
        assert len(cheap) == pytest.approx(500, abs=20)
        assert dear == list(range(len(dear)))
        assert cheap == list(range(len(cheap)))
        await asyncio.gather(*storm, *probes)
        assert elapsed_s() == pytest.approx(2.6, abs=0.02)

    run(scenario())


def test_a_latecomer_has_no_claim_on_what_others_spent() -> None:
    """A first request after a long storm of others gets half the tokens from now on, and does not catch up."""

    async def scenario() -> None:
        bucket = TokenBucket(rate=1000, burst=10)
        storm = [asyncio.ensure_future(bucket.take(10)) for _ in range(400)]
        await asyncio.sleep(2.0)
        late = [asyncio.ensure_future(bucket.take(1)) for _ in range(1000)]
        await asyncio.sleep(1.0)
        assert sum(one.done() for one in late) == pytest.approx(500, abs=20)
        assert sum(one.done() for one in storm) == pytest.approx(250, abs=3)
        await asyncio.gather(*storm, *late)

    run(scenario())


def test_who_gives_up_waiting_costs_nothing() -> None:
    """A cancelled waiter takes no token, and those behind it move up."""

    async def scenario() -> None:
        bucket = TokenBucket(rate=1000, burst=10)
        gone = [asyncio.ensure_future(bucket.take(10)) for _ in range(500)]
        behind = asyncio.ensure_future(bucket.take(10))
        await asyncio.sleep(0)
        for one in gone:
            one.cancel()
        await behind
        assert elapsed_s() == pytest.approx(0.01, abs=0.001)
        await asyncio.gather(*gone, return_exceptions=True)

    run(scenario())


def test_slots_hold_back_the_rest_until_somebody_leaves() -> None:
    """A limited number run at once; the next starts as soon as a slot is free."""

    async def scenario() -> None:
        slots = ConnectSlots(2, patience_s=10.0)
        inside: list[float] = []

        async def visit() -> None:
            async with slots.slot():
                inside.append(elapsed_s())
                await asyncio.sleep(1.0)

        await asyncio.gather(*(visit() for _ in range(5)))
        assert inside == pytest.approx([0.0, 0.0, 1.0, 1.0, 2.0], abs=0.001)

    run(scenario())


def test_who_dawdles_in_slots_hold_nobody_up() -> None:
    """After the time limit the next one starts, and the late end of the slow one frees no second slot."""

    async def scenario() -> None:
        slots = ConnectSlots(1, patience_s=0.1)
        inside: list[float] = []

        async def visit(stay_s: float) -> None:
            async with slots.slot():
                inside.append(elapsed_s())
                await asyncio.sleep(stay_s)

        await asyncio.gather(*(visit(0.15) for _ in range(4)))
        assert inside == pytest.approx([0.0, 0.1, 0.2, 0.3], abs=0.001)

    run(scenario())


def test_slots_come_back_from_who_fails_or_gives_up() -> None:
    """Neither an error inside nor a cancelled wait costs a slot."""

    async def scenario() -> None:
        slots = ConnectSlots(1, patience_s=10.0)
        with pytest.raises(ZeroDivisionError):
            async with slots.slot():
                raise ZeroDivisionError
        async with slots.slot():
            waiting = asyncio.ensure_future(slots.slot().__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        async with slots.slot():
            assert elapsed_s() < 0.001

    run(scenario())


def test_news_are_as_old_as_the_first() -> None:
    """What is set again meanwhile stays as old as it is, until it is cleared."""
    news = News()
    before = boottime()
    news.set()
    first = news.since
    news.set()
    assert before <= news.since == first <= boottime()
    news.clear()
    news.set()
    assert news.is_set()
    assert news.since > first
