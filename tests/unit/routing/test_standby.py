"""Names that want a standby: the README's table S row by row, and where the name falls back to."""

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
    not_serving,
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
    STARTING,
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
            {A: not_serving(), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="S1 the next one while it starts up",
        ),
        pytest.param(
            [],
            {A: not_serving(), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="S1 the first that serves",
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
    """On a standby a name points to the first fit node in the configured order, and is held in silence."""
    agent = on_standby(*block, hosts=(A, B, C)).see(seen).decide()
    assert agent.leads() == expected
    assert code(agent) is why


B_LEADS = f"{B} is primary"


@pytest.mark.parametrize("fallback", Fallback, ids=["S6 none", "S7 primary", "S7 all"])
@pytest.mark.parametrize(
    ("seen", "excluded", "words", "primary_at"),
    [
        pytest.param({A: dead()}, {}, f"{A} {REFUSED}, last seen in recovery; {B_LEADS}", B, id="dead"),
        pytest.param({A: not_serving()}, {}, f"{A} {STARTING}, last seen in recovery; {B_LEADS}", B, id="starting up"),
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
            {A: standby(lsn=899)}, {}, f"{A} lags more than 100 B behind its primary; {B_LEADS}", B, id="lagging"
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
    """A standby that is seen unfit is replaced at once by ``fallback``: a fence, or the primary."""
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
            {A: not_serving(), B: not_serving()},
            f"wk1 → {B} (no fit standby: {A} {STARTING}, last seen in recovery; {B} {STARTING}, last seen as primary; "
            f"held; no primary; {A} {STARTING}, last seen in recovery; {B} {STARTING}, last seen as primary)",
            Code.FALLBACK,
            id="S7 primary: all start up",
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
    """A standby whose observation expired gives way to a visible target, and is never fenced for silence (R1)."""
    agent = on_standby(fallback=fallback).see({A: standby(), B: primary()}).decide()
    agent.wait(MAX_AGE_S - 0.001).see({A: unreachable()}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"
    agent.wait(0.001).see(seen).decide()
    assert agent.leads() == expected
    assert code(agent) is why


def test_probe_that_is_late_moves_nothing() -> None:
    """An observation that only grew old, without a probe timing out, moves no name that points to a standby."""
    agent = on_standby(hosts=(A, B, C)).see({A: standby(), B: standby(), C: primary()}).decide()
    agent.wait(MAX_AGE_S).see({B: standby(), C: primary()}).decide()
    assert agent.leads() == f"wk1 → {A} (held; {A} is yet to be asked again, last seen in recovery)"


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        pytest.param(unreachable(), B, id="silence does not hide that it started up"),
        pytest.param(rejecting(), A, id="S3 a server that refuses the login may well be serving again"),
    ],
)
def test_starting_up_and_then(later: Observation, expected: str) -> None:
    """What was learned last counts: a server that starts up serves no reads until it answers otherwise."""
    agent = on_standby(hosts=(A, B, C)).see({A: standby(), B: dead(), C: primary()}).decide()
    agent.wait(MAX_AGE_S).see({A: not_serving()}).see({A: later, B: standby(), C: primary()}).decide()
    assert agent.address() == expected


def test_fallback_follows_the_table_for_primaries() -> None:
    """A name that fell back is fenced when its primary is, and follows a new primary when that is seen."""
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
    """Right after the start no name is fenced or moved to the primary before all its nodes were asked."""
    for fallback in Fallback:
        agent = on_standby(remembered(B, PRIMARY), fallback=fallback).see({B: primary()}).decide()
        assert agent.leads() == (f"wk1 → {B} (held; no fit standby: {A} has not been asked yet; {B} is primary)")
        assert agent.see({A: standby()}).decide().leads() == f"wk1 → {A} (standby)"


# ----------------------------------------------------------------------------------------------- voluntary changes


def test_s2_better_node_waits_for_failback_delay() -> None:
    """Only an earlier node takes over, after ``failback_delay`` of health, counted anew after each fault."""
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
    """A name that fell back does not wait with a lost primary while a standby is fit."""
    agent = on_standby(fallback=Fallback.PRIMARY).see({A: dead(), B: primary()}).decide()
    agent.wait(MAX_AGE_S).see({A: standby(), B: end}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


def test_return_after_fallback_was_forbidden_is_at_once() -> None:
    """With ``fallback: none`` a name that still points to its primary goes to a fit standby without a fence between."""
    agent = on_standby(remembered(B, FALLBACK)).see({A: standby(), B: primary()}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


# ------------------------------------------------------------------------------------------------------ fallback: all


def all_agent(*block: Target, route: Route = Route.FOLLOW) -> Agent:
    """Return an agent on a standby with ``fallback: all`` and two names."""
    groups = (group("wk1", A, B), group("wk2", D, E, route=route))
    return Agent(config(*groups, fallback=Fallback.ALL), block).see_local(standby())


def test_s8_all_go_to_their_primaries_and_return_together() -> None:
    """While one name lacks a standby every name points to its primary, and all return in one write."""
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
    """``all`` takes a name from its standby only to a visible primary."""
    agent = all_agent(remembered(D, STANDBY, name="wk2", last=E))
    assert agent.see({A: dead(), B: primary()}).see(seen).decide().leads("wk2") == expected


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        pytest.param(unreachable(), E, id="silent: it stays"),
        pytest.param(rejecting(), E, id="refuses the login: it stays"),
        pytest.param(dead(), D, id="dead: to its own standby"),
        pytest.param(standby(), D, id="in recovery: to its own standby, not into a fence"),
    ],
)
def test_all_with_a_primary_lost(end: Observation, expected: str) -> None:
    """A name that fell back with the others stays with its primary until there is evidence against that."""
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
    """A name without a standby keeps the others with their primaries while nothing new is known of it."""
    agent = all_agent(block, remembered(E, FALLBACK, name="wk2"))
    for _ in range(12):
        agent.see({A: rejecting(), B: rejecting(), D: standby(), E: primary()}).decide().wait(1)
    assert (agent.address("wk1"), agent.address("wk2")) == (block.address, E)


@pytest.mark.parametrize("route", [Route.STANDBY, Route.PRIMARY], ids=lambda one: one.value)
def test_all_means_the_names_that_follow(route: Route) -> None:
    """A name with a fixed route neither moves with the others nor makes them move."""
    at_work = D if route is Route.STANDBY else E
    assert all_agent(route=route).see({**BOTH, A: dead()}).decide().address("wk2") == at_work
    assert all_agent(route=route).see({**BOTH, D: dead()}).decide().address("wk1") == A


def test_all_does_not_concern_a_local_primary() -> None:
    """On a primary a missing standby changes nothing."""
    agent = all_agent().see(BOTH).see_local(primary()).see({A: dead()}).decide()
    assert agent.leads("wk2") == f"wk2 → {E} (primary, timeline 7)"


def test_s4_fallback_that_became_a_standby() -> None:
    """A name that fell back stays on that server when it becomes a standby, and does not follow the primary."""
    agent = on_standby(remembered(C, FALLBACK), hosts=(A, B, C), fallback=Fallback.PRIMARY)
    agent.see({A: primary(), C: standby()}).decide()
    assert agent.leads() == f"wk1 → {C} (standby)"
    agent.restart().see({A: rejecting(), B: rejecting(), C: rejecting()}).decide()
    assert agent.address() == C
