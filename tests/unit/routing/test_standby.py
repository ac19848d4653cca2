"""Where a name leads that wishes for a standby: who is fit, by what lag, and where the name falls back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Fallback, Node, Route
from resolver_agent.routing.observation import PatroniStatus, Role
from resolver_agent.routing.state import FENCE, Code, Target
from tests.unit.builders import (
    FOREIGN,
    MAX_AGE_S,
    Agent,
    config,
    dead,
    group,
    node,
    primary,
    rejecting,
    remembered,
    standby,
    unreachable,
)
from tests.unit.routing.builders import (
    BOTH,
    FALLBACK,
    FENCED,
    NO_LOGIN,
    PRIMARY,
    REFUSED,
    SILENT,
    STANDBY,
    A,
    B,
    C,
    D,
    E,
    code,
    on_standby,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.routing.observation import Observation


@pytest.mark.parametrize(
    ("block", "seen", "expected", "why"),
    [
        pytest.param(
            [], {A: standby(), B: primary(), C: dead()}, f"wk1 → {A} (standby)", Code.STANDBY, id="S1 the standby"
        ),
        pytest.param(
            [],
            {A: standby(), B: standby(), C: primary()},
            f"wk1 → {A} (standby)",
            Code.STANDBY,
            id="S1 the first of two",
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {A: dead(), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="S1 the next one when it is dead",
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {A: primary(), B: standby(), C: dead()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="S1 the next one when it is promoted",
        ),
        pytest.param(
            [remembered(A, STANDBY, last=C)],
            {A: standby(system_id=FOREIGN), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="S1 the next one when it is foreign",
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {A: unreachable(), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="S1 the next one when it does not answer",
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {A: rejecting(), B: standby(), C: primary()},
            f"wk1 → {A} (held; {A} {NO_LOGIN})",
            Code.HELD,
            id="S3 held when it rejects us",
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {B: standby(), C: primary()},
            f"wk1 → {A} (held; {A} has not been asked yet)",
            Code.HELD,
            id="S3 held while it is yet to be asked",
        ),
        pytest.param(
            [remembered(C, PRIMARY)],
            {A: standby(), B: standby(), C: primary()},
            f"wk1 → {A} (standby)",
            Code.STANDBY,
            id="S1 from a primary at once: the local server was demoted",
        ),
        pytest.param(
            [remembered(FENCE, FENCED, wanted_role=Role.STANDBY, last=C)],
            {A: dead(), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="S1 from a fence at once: nothing is served meanwhile",
        ),
        pytest.param(
            [],
            {A: rejecting(), B: unreachable(), C: unreachable()},
            f"wk1 left out (no fit standby: {A} {NO_LOGIN}; {B} {SILENT}; {C} {SILENT})",
            Code.UNKNOWN,
            id="S5 left out when nothing is known",
        ),
    ],
)
def test_a_name_that_wants_a_standby(
    block: list[Target], seen: Mapping[str | Node, Observation], expected: str, why: Code
) -> None:
    """With a local standby a name leads to the first fit node in the configured order, and is held in silence."""
    agent = on_standby(*block, hosts=(A, B, C)).see(seen).decide()
    assert agent.leads() == expected
    assert code(agent) is why


B_LEADS = f"{B} is primary"


@pytest.mark.parametrize("fallback", Fallback, ids=["S6 none", "S7 primary", "S7 all"])
@pytest.mark.parametrize(
    ("seen", "excluded", "words", "primary_at"),
    [
        pytest.param({A: dead()}, {}, f"{A} {REFUSED}, last seen in recovery; {B_LEADS}", B, id="dead"),
        pytest.param(
            {A: primary(), B: dead()}, {}, f"{A} is primary; {B} {REFUSED}, last seen as primary", A, id="promoted"
        ),
        pytest.param(
            {A: standby(system_id=FOREIGN)},
            {},
            f"{A} is of another database cluster (system identifier {FOREIGN}); {B_LEADS}",
            B,
            id="foreign",
        ),
        pytest.param(
            {}, {node(A): f"{A} is tagged noloadbalance"}, f"{A} is tagged noloadbalance; {B_LEADS}", B, id="excluded"
        ),
        pytest.param(
            {A: standby(lsn=899)}, {}, f"{A} lags more than 100 bytes behind its primary; {B_LEADS}", B, id="lagging"
        ),
    ],
)
def test_no_fit_standby(
    seen: Mapping[str | Node, Observation],
    excluded: Mapping[Node, str],
    words: str,
    primary_at: str,
    fallback: Fallback,
) -> None:
    """A standby that is seen unfit gives way at once by ``fallback``: to a fence, or to the primary."""
    agent = on_standby(fallback=fallback, max_lag_bytes=100).see({A: standby(), B: primary()}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"
    agent.patroni = {"wk1": PatroniStatus(excluded=excluded)}
    agent.see(seen).decide()
    if fallback is Fallback.NONE:
        assert agent.leads() == f"wk1 → fenced (no fit standby: {words})"
        assert code(agent) is Code.FENCED
    else:
        assert agent.leads() == f"wk1 → {primary_at} (no fit standby: {words}; primary, timeline 7)"
        assert code(agent) is Code.FALLBACK


@pytest.mark.parametrize(
    ("fallback", "seen", "expected", "why"),
    [
        pytest.param(
            Fallback.NONE,
            {A: unreachable(), B: primary()},
            f"wk1 → {A} (held; no fit standby: {A} {SILENT}, last seen in recovery; {B} is primary)",
            Code.HELD,
            id="S5 none: silence fences nothing",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: unreachable(), B: primary()},
            f"wk1 → {B} (no fit standby: {A} {SILENT}, last seen in recovery; {B} is primary; primary, timeline 7)",
            Code.FALLBACK,
            id="S7 primary: to the primary that is seen",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: unreachable(), B: unreachable()},
            f"wk1 → {A} (held; no fit standby: "
            f"{A} {SILENT}, last seen in recovery; {B} {SILENT}, last seen as primary)",
            Code.HELD,
            id="S5 primary: held where the primary is not seen either",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: rejecting(), B: primary()},
            f"wk1 → {A} (held; {A} {NO_LOGIN}, last seen in recovery)",
            Code.HELD,
            id="S3 primary: failing to log in is not down",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: dead(), B: unreachable()},
            f"wk1 → {B} (no fit standby: {A} {REFUSED}, last seen in recovery; {B} {SILENT}, last seen as primary; "
            f"held; no primary; {A} {REFUSED}, last seen in recovery; {B} {SILENT}, last seen as primary)",
            Code.FALLBACK,
            id="S7 primary: from a dead standby to the last known primary",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: dead(), B: dead()},
            f"wk1 → {B} (no fit standby: {A} {REFUSED}, last seen in recovery; {B} {REFUSED}, last seen as primary; "
            f"held; no primary; {A} {REFUSED}, last seen in recovery; {B} {REFUSED}, last seen as primary)",
            Code.FALLBACK,
            id="S7 primary: all are dead",
        ),
    ],
)
def test_silence_of_a_standby(
    fallback: Fallback, seen: Mapping[str | Node, Observation], expected: str, why: Code
) -> None:
    """A standby whose observation expired gives way to something seen, and is never fenced for silence (R1)."""
    agent = on_standby(fallback=fallback).see({A: standby(), B: primary()}).decide()
    agent.wait(MAX_AGE_S - 0.001).see({A: unreachable()}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"
    agent.wait(0.001).see(seen).decide()
    assert agent.leads() == expected
    assert code(agent) is why


def test_probe_that_is_late_moves_nothing() -> None:
    """An observation that merely grew old, with no probe that timed out, moves no name that leads to a standby."""
    agent = on_standby(hosts=(A, B, C)).see({A: standby(), B: standby(), C: primary()}).decide()
    agent.wait(MAX_AGE_S).see({B: standby(), C: primary()}).decide()
    assert agent.leads() == f"wk1 → {A} (held; {A} is yet to be asked again, last seen in recovery)"


def test_fallback_follows_the_table_for_primaries() -> None:
    """A name that fell back is fenced when its primary is, and leads to the new one when that is seen."""
    agent = on_standby(hosts=(A, B, C), fallback=Fallback.PRIMARY)
    agent.see({A: dead(), B: primary(), C: standby(system_id=FOREIGN)}).decide()
    assert agent.address() == B
    agent.patroni = {"wk1": PatroniStatus(excluded={node(B): f"{B} is tagged noloadbalance"})}
    agent.see({B: standby()}).decide()
    foreign = f"{C} is of another database cluster (system identifier {FOREIGN})"
    assert agent.leads() == (
        f"wk1 → fenced (no fit standby: {A} {REFUSED}; {B} is tagged noloadbalance; {foreign}; "
        f"no primary; {A} {REFUSED}; {B} is in recovery; {foreign})"
    )
    agent.see({A: primary(timeline=8)}).decide()
    assert agent.address() == A
    assert code(agent) is Code.FALLBACK


def test_unfit_until_everybody_was_asked() -> None:
    """Right after the agent's start a name is not fenced or moved to the primary before all its nodes were asked."""
    for fallback in Fallback:
        agent = on_standby(remembered(B, PRIMARY), fallback=fallback).see({B: primary()}).decide()
        assert agent.leads() == (f"wk1 → {B} (held; no fit standby: {A} has not been asked yet; {B} is primary)")
        assert agent.see({A: standby()}).decide().leads() == f"wk1 → {A} (standby)"


# -------------------------------------------------------------------------------------------- voluntary changes, lag


def test_s2_better_node_waits_for_failback_delay() -> None:
    """An earlier node takes over after ``failback_delay`` of health, counted anew after each fault; not a later one."""
    agent = on_standby(hosts=(A, B, C)).see({A: dead(), B: standby(), C: primary()}).decide()
    assert agent.address() == B
    everyone: dict[str | Node, Observation] = {A: standby(), B: standby(), C: primary()}
    agent.wait(1).see(everyone).decide()
    agent.wait(1).see({A: dead()}).decide().see({A: standby()}).decide()
    for _ in range(9):
        agent.wait(1).see(everyone).decide()
    assert agent.address() == B
    assert agent.wait(0.999).see(everyone).decide().address() == B
    assert agent.decision.recheck_at == pytest.approx(agent.now + 0.001)
    assert agent.wait(0.001).decide().address() == A
    for _ in range(20):
        agent.wait(1).see(everyone).decide()
    assert agent.address() == A


@pytest.mark.parametrize("fallback", [Fallback.PRIMARY, Fallback.ALL], ids=lambda one: one.value)
def test_s4_return_from_fallback_waits(fallback: Fallback) -> None:
    """A name that fell back to its primary returns to a standby after ``failback_delay`` of health."""
    agent = on_standby(fallback=fallback).see({A: dead(), B: primary()}).decide()
    for _ in range(10):
        agent.see({A: standby(), B: primary()}).decide()
        assert agent.leads() == (
            f"wk1 → {B} (no fit standby: {A} has not been fit for long; {B} is primary; primary, timeline 7)"
        )
        agent.wait(1)
    assert agent.decide().leads() == f"wk1 → {A} (standby)"


@pytest.mark.parametrize("end", [dead(), unreachable()], ids=["dead", "unreachable"])
def test_return_from_a_lost_primary_is_at_once(end: Observation) -> None:
    """A name that fell back does not wait beside a fit standby for a primary that is not there."""
    agent = on_standby(fallback=Fallback.PRIMARY).see({A: dead(), B: primary()}).decide()
    agent.wait(MAX_AGE_S).see({A: standby(), B: end}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


def test_return_after_fallback_was_forbidden_is_at_once() -> None:
    """With ``fallback: none`` a name that still leads to its primary goes to a fit standby without a fence between."""
    agent = on_standby(remembered(B, FALLBACK)).see({A: standby(), B: primary()}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


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
    """A standby that has replayed all there is does not lag, however long ago that was written."""
    agent = on_standby(max_lag_s=1).see({A: standby(lsn=1000), B: primary(lsn=1000)}).decide()
    agent.wait(3600).see({A: standby(lsn=1000), B: primary(lsn=1000)}).decide()
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].lag_s == 0
    assert len(agent.decision.groups["wk1"].memory.lsns) == 1
    assert agent.address() == A


def test_failover_that_lost_something_leaves_nobody_behind() -> None:
    """LSNs that only the old primary had reached are no measure for standbys of the new one."""
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
    """However often a primary is asked, its history stays short and tells the lag to about 1.5 % of the limit."""
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
    """Lag is what was seen: a standby that merely was not asked again does not fall behind by the clock."""
    agent = on_standby(max_lag_s=1).see({A: standby(lsn=100), B: primary(lsn=200)}).decide()
    agent.wait(MAX_AGE_S - 0.1).see({A: rejecting()}).decide()
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
    """Lag is measured against the primary, else what is known of it, else the most advanced member."""
    agent = on_standby(hosts=(A, B, C), max_lag_bytes=10_000).see(dict.fromkeys((A, B, C), unreachable()))
    for seen in steps:
        agent.see(seen).decide()
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].lag_bytes == lag


def test_lag_without_a_limit() -> None:
    """Without a limit no lag makes a standby unfit."""
    agent = on_standby().see({A: standby(lsn=0), B: primary(lsn=2**60)}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


def test_unknown_lag_is_no_evidence_of_having_caught_up() -> None:
    """A standby that lagged and then says no LSN stays unfit."""
    agent = on_standby(max_lag_bytes=100).see({A: standby(lsn=1), B: primary()}).decide()
    assert agent.address() == FENCE
    assert agent.see({A: standby(lsn=None)}).decide().address() == FENCE
    assert agent.see({A: standby(lsn=1000)}).decide().address() == A


# ------------------------------------------------------------------------------------------------------ fallback: all


def all_agent(*block: Target, route: Route = Route.FOLLOW) -> Agent:
    """Return an agent beside a local standby with ``fallback: all`` and two names."""
    groups = (group("wk1", A, B), group("wk2", D, E, route=route))
    return Agent(config(*groups, fallback=Fallback.ALL), block).see_local(standby())


def test_s8_all_go_to_their_primaries_and_return_together() -> None:
    """While one name lacks a standby every name leads to its primary, and all return in one write."""
    agent = all_agent().see(BOTH).decide()
    assert (agent.leads("wk1"), agent.leads("wk2")) == (f"wk1 → {A} (standby)", f"wk2 → {D} (standby)")
    agent.see({A: dead()}).decide()
    assert agent.address("wk1") == B
    assert agent.leads("wk2") == f"wk2 → {E} (wk1 has no fit standby; primary, timeline 7)"
    for _ in range(10):
        agent.see(BOTH).decide()
        assert (agent.address("wk1"), agent.address("wk2")) == (B, E)
        agent.wait(1)
    agent.decide()
    assert (agent.leads("wk1"), agent.leads("wk2")) == (f"wk1 → {A} (standby)", f"wk2 → {D} (standby)")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param({D: standby(), E: rejecting()}, f"wk2 → {D} (standby)", id="unseen: not from a working standby"),
        pytest.param({D: standby(), E: standby()}, f"wk2 → {D} (standby)", id="none: not into a fence"),
        pytest.param(
            {D: rejecting(), E: primary()}, f"wk2 → {E} (wk1 has no fit standby; primary, timeline 7)", id="S8 seen"
        ),
    ],
)
def test_all_goes_nowhere_but_to_a_primary(seen: Mapping[str | Node, Observation], expected: str) -> None:
    """``all`` takes a name from its standby only to a primary that is seen."""
    agent = all_agent(remembered(D, STANDBY, name="wk2", last=E))
    assert agent.see({A: dead(), B: primary()}).see(seen).decide().leads("wk2") == expected


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        pytest.param(unreachable(), E, id="silent: it stays"),
        pytest.param(dead(), E, id="dead: it stays with the last known primary"),
        pytest.param(standby(), D, id="in recovery: to its own standby, not into a fence"),
    ],
)
def test_all_with_a_primary_lost(end: Observation, expected: str) -> None:
    """A name that fell back with the others stays with its primary until that is seen in recovery."""
    agent = all_agent().see({**BOTH, A: dead()}).decide()
    assert agent.address("wk2") == E
    agent.wait(MAX_AGE_S).see({A: dead(), B: primary(), D: standby(), E: end}).decide()
    assert agent.address("wk2") == expected


@pytest.mark.parametrize(
    "block",
    [remembered(B, FALLBACK), remembered(FENCE, FENCED, wanted_role=Role.STANDBY, last=B, lost=True)],
    ids=["fallen back", "fenced"],
)
def test_all_lack_lasts_through_silence(block: Target) -> None:
    """A name that lacks a standby keeps the others with their primaries while nothing new is known of it."""
    agent = all_agent(block, remembered(E, FALLBACK, name="wk2"))
    for _ in range(12):
        agent.see({A: rejecting(), B: rejecting(), D: standby(), E: primary()}).decide().wait(1)
    assert (agent.address("wk1"), agent.address("wk2")) == (block.address, E)


@pytest.mark.parametrize("route", [Route.STANDBY, Route.PRIMARY], ids=lambda one: one.value)
def test_all_means_the_names_that_follow(route: Route) -> None:
    """A name of a fixed route neither goes along nor makes the others go."""
    at_work = D if route is Route.STANDBY else E
    assert all_agent(route=route).see({**BOTH, A: dead()}).decide().address("wk2") == at_work
    assert all_agent(route=route).see({**BOTH, D: dead()}).decide().address("wk1") == A


def test_all_does_not_concern_a_local_primary() -> None:
    """With a local primary a missing standby changes nothing."""
    agent = all_agent().see(BOTH).see_local(primary()).see({A: dead()}).decide()
    assert agent.leads("wk2") == f"wk2 → {E} (primary, timeline 7)"


def test_s4_fallback_that_became_a_standby() -> None:
    """A name that fell back stays on that server when it becomes a standby, instead of following the primary away."""
    agent = on_standby(remembered(C, FALLBACK), hosts=(A, B, C), fallback=Fallback.PRIMARY)
    agent.see({A: primary(), C: standby()}).decide()
    assert agent.leads() == f"wk1 → {C} (standby)"
    agent.restart().see({A: rejecting(), B: rejecting(), C: rejecting()}).decide()
    assert agent.address() == C
