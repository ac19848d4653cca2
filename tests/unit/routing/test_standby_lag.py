"""Lag of standbys: how it is measured, and when it makes a standby unfit."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Fallback
from resolver_agent.routing.lag import size
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import FENCE
from tests.unit.builders import MAX_AGE_S, dead, node, primary, rejecting, remembered, standby, unreachable
from tests.unit.routing.builders import FALLBACK, FENCED, PRIMARY, STANDBY, A, B, C, on_standby

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from resolver_agent.config.model import Node
    from resolver_agent.routing.observation import Observation
    from resolver_agent.routing.state import Target
    from tests.unit.builders import Agent


@pytest.mark.parametrize(
    ("lag", "was_lagging", "fit"),
    [
        pytest.param(100, False, True, id="at the limit"),
        pytest.param(101, False, False, id="above the limit"),
        pytest.param(100, True, False, id="not yet below half: at the limit"),
        pytest.param(50, True, False, id="not yet below half: at half"),
        pytest.param(49, True, True, id="below half"),
    ],
)
@pytest.mark.parametrize("unit", ["bytes", "seconds"])
def test_lag_limits(unit: str, lag: int, was_lagging: bool, fit: bool) -> None:  # noqa: FBT001 - a table's columns
    """A standby is unfit above its limit and fit again below half of it, in bytes and in seconds."""
    if unit == "bytes":
        agent = on_standby(max_lag_bytes=100)
        if was_lagging:
            agent.see({A: standby(lsn=899), B: primary(lsn=1000)}).decide()
        agent.see({A: standby(lsn=1000 - lag), B: primary(lsn=1000)}).decide()
    else:
        agent = on_standby(max_lag_s=100).see({A: standby(lsn=1), B: primary(lsn=1)}).decide()
        if was_lagging:
            agent.see({B: primary(lsn=2)}).decide().wait(101).see({A: standby(lsn=1)}).decide()
        agent.see({B: primary(lsn=3)}).decide().wait(lag).see({A: standby(lsn=2), B: primary(lsn=3)}).decide()
    fitness = agent.decision.groups["wk1"].memory.fitness[node(A)]
    assert (fitness.lag_bytes if unit == "bytes" else fitness.lag_s) == lag
    assert (fitness.fit_since is not None) is fit
    assert agent.address() == (A if fit else FENCE)


def test_idle_primary_leaves_nobody_behind() -> None:
    """A standby that has replayed everything does not lag, however old the last write is."""
    agent = on_standby(max_lag_s=1).see({A: standby(lsn=1000), B: primary(lsn=1000)}).decide()
    agent.wait(3600).see({A: standby(lsn=1000), B: primary(lsn=1000)}).decide()
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].lag_s == 0
    assert len(agent.decision.groups["wk1"].memory.lsns) == 1
    assert agent.address() == A


def test_failover_that_lost_something_leaves_nobody_behind() -> None:
    """LSNs that only the old primary reached do not count for standbys of the new one."""
    agent = on_standby(max_lag_s=10, hosts=(A, B, C)).see({A: standby(lsn=900), B: dead(), C: primary(lsn=2000)})
    agent.decide().wait(5).see({A: standby(lsn=950), B: primary(lsn=950), C: dead()}).decide()
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].lag_s == 0


def test_standby_that_stopped_replaying_stays_behind() -> None:
    """The seconds count from when the primary first passed the standby, also when it wrote after a long pause."""
    agent = on_standby(max_lag_s=64).see({A: standby(lsn=100), B: primary(lsn=100)}).decide()
    agent.wait(0.5).see({A: standby(lsn=100), B: primary(lsn=200)}).decide()
    for lsn in (200, 300, 400):
        agent.wait(70).see({A: standby(lsn=100), B: primary(lsn=lsn)}).decide()
        assert agent.leads() == (
            f"wk1 → fenced (no fit standby: {A} lags more than 64 s behind its primary; {B} is primary)"
        )


@pytest.mark.parametrize("interval_s", [0.02, 1, 7], ids=lambda one: f"every {one} s")
def test_history_of_lsns_is_short_and_close_enough(interval_s: float) -> None:
    """However often a primary is asked, its history stays short and gives the lag to about 1.5 % of the limit."""
    agent = on_standby(max_lag_s=64)
    for lsn in range(round(300 / interval_s)):
        agent.wait(interval_s).see({B: primary(lsn=lsn)})
        if lsn > 100 / interval_s:
            agent.see({A: standby(lsn=round(lsn - 50 / interval_s))})
        agent.decide()
    state = agent.decision.groups["wk1"]
    assert state.memory.fitness[node(A)].lag_s == pytest.approx(50, abs=1 + interval_s)
    assert len(state.memory.lsns) < 300


def test_silence_adds_no_lag() -> None:
    """Lag is what was observed: a standby that was not asked again does not fall behind by the clock."""
    agent = on_standby(max_lag_s=1).see({A: standby(lsn=100), B: primary(lsn=100)}).decide()
    agent.see({B: primary(lsn=200)}).decide().wait(MAX_AGE_S - 0.1).see({A: rejecting()}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


@pytest.mark.parametrize(
    ("steps", "lag"),
    [
        pytest.param([{A: standby(lsn=900), B: primary(lsn=1000)}], 100, id="the primary's own LSN"),
        pytest.param(
            [{A: standby(lsn=900), B: primary(lsn=1000), C: standby(lsn=950)}, {A: standby(lsn=980), B: dead()}],
            20,
            id="the last known one with no primary in sight",
        ),
        pytest.param([{A: standby(lsn=900), C: standby(lsn=950)}, {B: dead()}], 50, id="the most advanced member"),
        pytest.param(
            [{A: standby(lsn=900), B: dead(), C: primary(lsn=2000)}, {C: primary(lsn=950)}],
            50,
            id="the new primary's after a failover that lost something",
        ),
        pytest.param([{A: standby(lsn=1010), B: primary(lsn=1000)}], 0, id="asked later than the primary"),
    ],
)
def test_lag_is_measured_against(steps: list[Mapping[str | Node, Observation]], lag: int) -> None:
    """Lag is measured against the primary, else its last known LSN, else the most advanced member."""
    agent = on_standby(hosts=(A, B, C), max_lag_bytes=10_000).see(dict.fromkeys((A, B, C), unreachable()))
    for seen in steps:
        agent.see(seen).decide()
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].lag_bytes == lag


def test_lag_without_a_limit() -> None:
    """Without a limit no lag makes a standby unfit."""
    agent = on_standby().see({A: standby(lsn=0), B: primary(lsn=2**60)}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


def test_unknown_lag_is_no_evidence_of_having_caught_up() -> None:
    """A standby that lagged and then reports no LSN stays unfit."""
    agent = on_standby(max_lag_bytes=100).see({A: standby(lsn=1), B: primary()}).decide()
    assert agent.address() == FENCE
    assert agent.see({A: standby(lsn=None)}).decide().address() == FENCE
    assert agent.see({A: standby(lsn=1000)}).decide().address() == A


MB = 2**20


def simulated(
    limits: dict[str, float],
    wal: Callable[[float], float],
    behind: Callable[[float], float],
    *,
    loss: float,
    slow: float,
) -> list[str | None]:
    """Return the addresses that a name with one standby had, one for each change, in five minutes.

    ``wal`` is the primary's LSN at a time, ``behind`` by how much less the standby has replayed then. Each server is
    probed once a second, at its own moment; ``loss`` of the probes get no answer, and others take up to ``slow``.
    """
    chance = random.Random(1)  # noqa: S311 -- a simulation that repeats
    agent = on_standby(**limits).see({A: standby(lsn=0), B: primary(lsn=0)}).decide()  # type: ignore[arg-type]
    begun, addresses = agent.now, [agent.address()]
    due = {A: agent.now + chance.random(), B: agent.now + chance.random()}
    while agent.now < begun + 300:
        host = min(due, key=lambda one: due[one])
        at, due[host] = due[host], due[host] + 1
        agent.wait(at - agent.now)
        if chance.random() < loss:
            due[host] += 1
            seen = unreachable()
        else:
            took = chance.random() * slow
            lsn = wal(at + took - begun) - (behind(at + took - begun) if host == A else 0)
            make = standby if host == A else primary
            seen = dataclasses.replace(make(lsn=max(0, int(lsn))), answered_at=at + took)
        agent.see({host: seen}).decide()
        if agent.address() != addresses[-1]:
            addresses.append(agent.address())
    return addresses


LIMITS = [
    pytest.param({"max_lag_bytes": 8 * MB}, id="bytes"),
    pytest.param({"max_lag_s": 1.0}, id="seconds"),
    pytest.param({"max_lag_bytes": 8 * MB, "max_lag_s": 1.0}, id="both"),
]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize(("loss", "slow"), [(0, 0), (0.02, 0), (0.1, 0), (0.02, 0.9)])
@pytest.mark.parametrize("rate", [1, 20, 100, "bursts"])
def test_a_standby_in_step_keeps_its_name(limits: dict[str, float], loss: float, slow: float, rate: int | str) -> None:
    """The age of a probe is no lag, nor is the time that an answer takes: no move, whatever is written or lost."""

    def wal(at: float) -> float:
        return 200 * MB * (at // 7) if isinstance(rate, str) else rate * MB * at

    assert simulated(limits, wal, lambda _: 0, loss=loss, slow=slow) == [A]


@pytest.mark.parametrize("loss", [0, 0.02])
@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        pytest.param(lambda at: 300 if at > 100 else 0, [A, FENCE], id="stays behind"),
        pytest.param(lambda at: 300 if 100 < at < 200 else 0, [A, FENCE, A], id="catches up"),
        pytest.param(lambda at: 140 + 30 * math.sin(at / 3), [A, FENCE], id="about the limit: damped"),
        pytest.param(lambda at: 100 if at > 100 else 0, [A], id="below the limit"),
    ],
)
def test_a_standby_that_lags_moves_its_name_once(
    behind: Callable[[float], float], expected: list[str], loss: float
) -> None:
    """A lag above the limit takes the name away, and one below half of it gives it back, once each."""
    limits: dict[str, float] = {"max_lag_bytes": 128 * MB}
    assert simulated(limits, lambda at: 10 * MB * at + 1000 * MB, lambda at: behind(at) * MB, loss=loss, slow=0.1) == (
        expected
    )


def test_lag_at_the_moment_of_the_standbys_answer() -> None:
    """What the primary wrote after the standby's answer does not count; an answer older than the history has no lag."""
    agent = on_standby(max_lag_bytes=100).see({B: primary(lsn=1000)}).wait(0.5).see({A: standby(lsn=950)}).decide()
    agent.wait(0.5).see({B: primary(lsn=9000)}).decide()
    assert (lag(agent), agent.address()) == (50, A)
    agent.wait(0.1).see({B: primary(lsn=500)}).decide()  # a failover that lost something
    assert (lag(agent), agent.address()) == (None, A)
    agent.wait(0.4).see({A: standby(lsn=450)}).decide()
    assert lag(agent) == 50


def test_lag_without_a_limit_is_shown_in_proportion() -> None:
    """A group without limits is looked at rarely: the LSN between two answers is estimated, not taken for the later."""
    agent = on_standby().see({A: standby(lsn=0), B: primary(lsn=0)}).decide()
    agent.wait(99).see({A: standby(lsn=9_900)}).wait(1).see({B: primary(lsn=10_000)})
    agent.decision = agent.decision.afresh()
    assert lag(agent.decide()) == 0


def test_lag_where_no_primary_was_ever_seen() -> None:
    """Without a primary the most advanced member counts, at the moment of the standby's answer too."""
    agent = on_standby(max_lag_bytes=100, hosts=(A, B)).see({A: standby(lsn=100), B: standby(lsn=100)}).decide()
    for second in range(1, 30):
        for host, offset in ((A, 0), (B, 500)):
            agent.wait(0.5).see({host: standby(lsn=1000 * second + offset)}).decide()
        assert agent.address() == A
    for second in range(30, 35):
        agent.wait(0.5).see({A: standby(lsn=29_000)}).wait(0.5).see({B: standby(lsn=1000 * second)}).decide()
    assert agent.address() == B


def lag(agent: Agent) -> int | None:
    """Return the lag of A in bytes."""
    return agent.decision.groups["wk1"].memory.fitness[node(A)].lag_bytes


# ------------------------------------------------------------------------------------------ a lag that is not known yet


def at_seconds(
    agent: Agent, *seconds: int, behind: Callable[[int], int], others: Sequence[str] = ()
) -> list[str | None]:
    """Return the addresses that a name has so many seconds after the start.

    B is a primary that writes 1,000 bytes a second. A is ``behind`` it, and all ``others`` are in step.
    """
    addresses = []
    for second in range(max(seconds) + 1):
        lsn = 10_000_000 + 1000 * second
        agent.see({A: standby(lsn=lsn - behind(second)), B: primary(lsn=lsn)})
        agent.see({host: standby(lsn=lsn) for host in others}).see_local(standby()).decide()
        if second in seconds:
            addresses.append(agent.address())
        agent.wait(1)
    return addresses


FENCED_BEFORE = remembered(FENCE, FENCED, wanted_role=Role.STANDBY, last=B)


@pytest.mark.parametrize(
    ("block", "fallback", "far_behind", "in_step"),
    [
        pytest.param([], Fallback.NONE, [None, FENCE, FENCE], [None, A, A], id="new, none"),
        pytest.param([], Fallback.PRIMARY, [None, B, B], [None, A, A], id="new, primary"),
        pytest.param([remembered(A, STANDBY)], Fallback.NONE, [A, A, FENCE], [A, A, A], id="on it, none"),
        pytest.param([remembered(A, STANDBY)], Fallback.PRIMARY, [A, A, B], [A, A, A], id="on it, primary"),
        pytest.param([FENCED_BEFORE], Fallback.NONE, [FENCE, FENCE, FENCE], [FENCE, A, A], id="fenced, none"),
        pytest.param([FENCED_BEFORE], Fallback.PRIMARY, [B, B, B], [B, B, A], id="fenced, primary"),
        pytest.param([remembered(B, PRIMARY)], Fallback.NONE, [B, FENCE, FENCE], [B, A, A], id="on a primary, none"),
        pytest.param([remembered(B, PRIMARY)], Fallback.PRIMARY, [B, B, B], [B, A, A], id="on a primary, primary"),
        pytest.param([remembered(B, FALLBACK)], Fallback.NONE, [B, FENCE, FENCE], [B, A, A], id="fell back, none"),
        pytest.param([remembered(B, FALLBACK)], Fallback.PRIMARY, [B, B, B], [B, B, A], id="fell back, primary"),
    ],
)
def test_lag_that_is_not_known_at_the_start(
    block: list[Target], fallback: Fallback, far_behind: list[str | None], in_step: list[str | None]
) -> None:
    """A name stays on a standby of which only time tells the lag, but goes to none. One in step is known in a second.

    The addresses are those at once, when another answer is there, and when the limit is over.
    """
    for wanted, behind in (
        (far_behind, lambda second: 9_000_000 + 500 * second),
        (in_step, lambda _: 100),
    ):
        agent = on_standby(*block, fallback=fallback, max_lag_s=30)
        assert at_seconds(agent, 0, 3, 31, behind=behind) == wanted


def test_what_is_said_of_a_lag_that_is_not_known() -> None:
    """It is no number, and the reason says so, until it exceeds the limit for certain."""
    agent = on_standby(FENCED_BEFORE, max_lag_s=30)
    at_seconds(agent, 0, behind=lambda _: 9_000_000)
    fitness = agent.decision.groups["wk1"].memory.fitness[node(A)]
    assert (fitness.lag_bytes, fitness.lag_s, fitness.fit_since) == (9_000_000, None, None)
    assert agent.leads() == (
        f"wk1 → fenced (no fit standby: {A} is in recovery, and its lag is not known yet; {B} is primary)"
    )
    at_seconds(agent, 31, behind=lambda _: 9_500_000)
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].lag_s == 32
    assert agent.leads() == (
        f"wk1 → fenced (no fit standby: {A} lags more than 30 s behind its primary; {B} is primary)"
    )


def test_an_earlier_node_whose_lag_is_not_known() -> None:
    """A name does not leave a standby in step for an earlier one that was never seen in step."""
    agent = on_standby(remembered(C, STANDBY, last=B), hosts=(A, C, B), max_lag_s=30)
    assert at_seconds(agent, *range(60), behind=lambda _: 9_000_000, others=[C]) == [C] * 60


def test_idle_servers_are_judged_at_once() -> None:
    """A standby that has all that the primary ever wrote is fit at its first answer, also one that came before."""
    for wait_s in (0, 0.01):
        agent = on_standby(max_lag_s=30, max_lag_bytes=100).see({A: standby(lsn=1000)}).wait(wait_s)
        assert agent.see({B: primary(lsn=1000)}).decide().address() == A


def test_standbys_without_a_primary_whose_lag_is_not_known() -> None:
    """The most advanced one is fit; another becomes so once it has what that had."""
    agent = on_standby(hosts=(A, B, C), max_lag_s=30).see({A: standby(lsn=1000), B: standby(lsn=9000), C: dead()})
    assert agent.decide().address() == B
    agent.wait(1).see({A: standby(lsn=9000), B: standby(lsn=9000)}).decide()
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].fit_since == agent.now


def test_what_is_not_known_after_a_failover_that_lost_something() -> None:
    """The history begins anew: a standby that lagged still does, and one that was fit still is."""
    agent = on_standby(hosts=(A, C, B), max_lag_s=30)
    at_seconds(agent, 40, behind=lambda _: 9_000_000, others=[C])
    agent.see({A: standby(lsn=1_050_000), B: dead(), C: primary(lsn=10_030_000, timeline=8)}).decide()
    assert agent.leads() == (
        f"wk1 → fenced (no fit standby: {A} lagged more than 30 s behind its primary, and its lag is not known now; "
        f"{C} is primary; {B} is dead: Connection refused, last seen as primary)"
    )
    agent = on_standby(hosts=(A, C, B), max_lag_s=30)
    at_seconds(agent, 40, behind=lambda _: 100, others=[C])
    agent.see({A: standby(lsn=10_030_000), B: dead(), C: primary(lsn=10_031_000, timeline=8)}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


@pytest.mark.parametrize(
    ("lsn", "lag_bytes", "addresses"),
    [
        pytest.param(1, None, [None, FENCE], id="far behind"),
        pytest.param(899, None, [None, A], id="not certain"),
        pytest.param(900, 100, [A, A], id="at most at the limit"),
        pytest.param(1000, 0, [A, A], id="in step"),
        pytest.param(1001, None, [None, A], id="of another history"),
    ],
)
def test_bytes_of_an_answer_older_than_the_history(
    lsn: int, lag_bytes: int | None, addresses: list[str | None]
) -> None:
    """A standby that answered before the primary did is judged where the answer leaves no doubt, else at the next."""
    agent = on_standby(max_lag_bytes=100).see({A: standby(lsn=lsn)}).wait(0.01).see({B: primary(lsn=1000)}).decide()
    assert (lag(agent), agent.address()) == (lag_bytes, addresses[0])
    agent.wait(1).see({A: standby(lsn=lsn + 50), B: primary(lsn=1000)}).decide()
    assert agent.address() == addresses[1]


def test_silence_while_a_lag_is_awaited() -> None:
    """R1: a name that waits for the lag of a standby is not fenced because that standby falls silent."""
    agent = on_standby(remembered(B, PRIMARY), max_lag_s=30).see({A: standby(lsn=1), B: primary(lsn=1000)}).decide()
    agent.wait(MAX_AGE_S).see({A: unreachable(), B: primary(lsn=2000)}).decide()
    assert agent.address() == B
    assert agent.see({A: dead()}).decide().address() == FENCE


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 kB"),
        (1023, "1 kB"),
        (4096, "4 kB"),
        (8_700, "8.5 kB"),
        (12_000_000, "11 MB"),
        (64 << 20, "64 MB"),
        (1 << 30, "1 GB"),
        (5000 << 40, "5000 TB"),
    ],
)
def test_size(size_bytes: int, words: str) -> None:
    """A size has two or three digits, in the units that the configuration has."""
    assert size(size_bytes) == words
