"""Where names lead: the design's tables row by row and its sentences one by one, each with the reason in words."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Fallback, Node, Route
from resolver_agent.routing.decide import resume
from resolver_agent.routing.observation import PatroniWord, Role
from resolver_agent.routing.state import FENCE, Code, Standing, Target
from tests.unit.builders import (
    FOREIGN,
    MAX_AGE_S,
    Agent,
    barred,
    config,
    dead,
    group,
    node,
    primary,
    remembered,
    standby,
    unreachable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from resolver_agent.routing.observation import Observation

A, B, C = "192.168.234.203", "192.168.234.204", "192.168.234.207"
D, E = "192.168.234.205", "192.168.234.206"
CN1, CN2 = "192.168.234.201", "192.168.234.202"

REFUSED = "is dead: Connection refused"
NO_LOGIN = "cannot be asked: password authentication failed"
SILENT = "does not answer: no answer within 2 s"

SELF = Standing.SELF
STANDBY = Standing.STANDBY
PRIMARY = Standing.PRIMARY
FALLBACK = Standing.FALLBACK
FENCED = Standing.FENCED


def beside_primary(*groups_block: Target, hosts: Sequence[str] = (A, B)) -> Agent:
    """Return an agent beside a local primary with one name, wk1, and this block."""
    return Agent(config(group("wk1", *hosts)), groups_block).see_local(primary())


def beside_standby(
    *groups_block: Target,
    hosts: Sequence[str] = (A, B),
    fallback: Fallback = Fallback.NONE,
    max_lag_bytes: int | None = None,
    max_lag_s: float | None = None,
) -> Agent:
    """Return an agent beside a local standby with one name, wk1, and this block."""
    wk1 = group("wk1", *hosts, max_lag_bytes=max_lag_bytes, max_lag_s=max_lag_s)
    return Agent(config(wk1, fallback=fallback), groups_block).see_local(standby())


def code(agent: Agent, name: str = "wk1") -> Code:
    """Return the reason's code; state and target agree on the reason."""
    state = agent.decision.groups[name]
    assert state.target is None or state.target.reason == state.reason
    return state.reason.code


@pytest.mark.parametrize(
    ("block", "seen", "expected", "why"),
    [
        # exactly one
        pytest.param([], {A: primary(), B: standby()}, f"wk1 → {A} (primary, timeline 7)", Code.PRIMARY, id="one"),
        pytest.param(
            [remembered(A, STANDBY, last=B)],
            {A: primary(timeline=8), B: dead()},
            f"wk1 → {A} (primary, timeline 8)",
            Code.PRIMARY,
            id="one: the standby the name led to was promoted",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: dead(), B: primary(timeline=8)},
            f"wk1 → {B} (primary, timeline 8)",
            Code.PRIMARY,
            id="one: failover",
        ),
        pytest.param(
            [remembered(FENCE, FENCED, last=A, lost=True)],
            {A: standby(), B: primary(timeline=8)},
            f"wk1 → {B} (primary, timeline 8)",
            Code.PRIMARY,
            id="one: a fence ends at once",
        ),
        # none, and the last known primary has not been seen in recovery since
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: dead(), B: standby()},
            f"wk1 → {A} (held; no primary; {A} {REFUSED}; {B} is in recovery)",
            Code.HELD,
            id="none: the last one is dead",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: unreachable(), B: standby()},
            f"wk1 → {A} (held; no primary; {A} {SILENT}; {B} is in recovery)",
            Code.HELD,
            id="none: the last one does not answer",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: barred(), B: standby()},
            f"wk1 → {A} (held; no primary; {A} {NO_LOGIN}; {B} is in recovery)",
            Code.HELD,
            id="none: failing to log in is not down",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {},
            f"wk1 → {A} (held; no primary; {A} has not been asked yet; {B} has not been asked yet)",
            Code.HELD,
            id="none: nobody was asked yet",
        ),
        pytest.param(
            [remembered(B, STANDBY, last=A)],
            {A: barred(), B: standby()},
            f"wk1 → {A} (held; no primary; {A} {NO_LOGIN}; {B} is in recovery)",
            Code.HELD,
            id="none: from a standby back to the last known primary",
        ),
        pytest.param(
            [remembered(FENCE, FENCED, wish=Role.STANDBY, last=A)],
            {A: barred(), B: barred()},
            f"wk1 → {A} (held; no primary; {A} {NO_LOGIN}; {B} {NO_LOGIN})",
            Code.HELD,
            id="none: a fence for want of a standby does not bind one who wants the primary",
        ),
        # none otherwise
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: standby(), B: standby()},
            f"wk1 → fenced (no primary; {A} is in recovery; {B} is in recovery)",
            Code.FENCED,
            id="none: the last one is in recovery now",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: standby(), B: barred()},
            f"wk1 → fenced (no primary; {A} is in recovery; {B} {NO_LOGIN})",
            Code.FENCED,
            id="none: the last one is in recovery now, the other one bars us",
        ),
        pytest.param(
            [remembered(B, STANDBY, last=A, lost=True)],
            {A: unreachable(), B: standby()},
            f"wk1 → fenced (no primary; {A} {SILENT}; {B} is in recovery)",
            Code.FENCED,
            id="none: the block remembers that the last one was seen in recovery",
        ),
        pytest.param(
            [remembered(FENCE, FENCED, last=A, lost=True)],
            {},
            f"wk1 → fenced (no primary; {A} has not been asked yet; {B} has not been asked yet)",
            Code.FENCED,
            id="none: a fence outlives the agent",
        ),
        pytest.param(
            [],
            {A: standby(), B: barred()},
            f"wk1 → fenced (no primary; {A} is in recovery; {B} {NO_LOGIN})",
            Code.FENCED,
            id="none: there never was one",
        ),
        # nothing was ever known
        pytest.param(
            [],
            {A: barred(), B: unreachable()},
            f"wk1 left out (no primary known; {A} {NO_LOGIN}; {B} {SILENT})",
            Code.UNKNOWN,
            id="unknown: left out",
        ),
        pytest.param(
            [remembered(B, STANDBY)],
            {A: barred(), B: barred()},
            f"wk1 → fenced (no primary known; {B} was a standby)",
            Code.FENCED,
            id="unknown: the block says that the name leads to a standby",
        ),
        pytest.param(
            [remembered(FENCE, FENCED)],
            {A: barred(), B: barred()},
            f"wk1 → fenced (held; no primary known; {A} {NO_LOGIN}; {B} {NO_LOGIN})",
            Code.HELD,
            id="unknown: a fence stays",
        ),
        # several otherwise
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: primary(), B: primary(timeline=8)},
            f"wk1 → {A} (last known primary; several primaries: {A}, {B})",
            Code.LAST_PRIMARY,
            id="several: an accidental promotion takes nothing away from the real one",
        ),
        pytest.param(
            [],
            {A: primary(), B: primary(timeline=8)},
            f"wk1 → fenced (several primaries: {A}, {B}, and nothing tells which is right)",
            Code.FENCED,
            id="several: none was known before",
        ),
    ],
)
def test_wish_for_a_primary(
    block: list[Target], seen: Mapping[str | Node, Observation], expected: str, why: Code
) -> None:
    """With a local primary, every row of the design's table gives its target, its reason and its code."""
    agent = beside_primary(*block).see(seen).decide()
    assert agent.leads() == expected
    assert code(agent) is why


def test_fence_in_the_designs_words() -> None:
    """The design's example of a fenced name, word by word."""
    agent = Agent(config(group("wk2", D))).see_local(primary()).see({D: standby()}).decide()
    assert agent.leads("wk2") == f"wk2 → fenced (no primary; {D} is in recovery)"


@pytest.mark.parametrize(
    ("last", "word", "expected", "why"),
    [
        pytest.param(
            A,
            PatroniWord(leader=node(B)),
            f"wk1 → {B} (holds the leader lock; several primaries: {A}, {B})",
            Code.LEADER,
            id="Patroni knows the holder",
        ),
        pytest.param(
            A,
            PatroniWord(leader=node(C)),
            f"wk1 → {A} (last known primary; several primaries: {A}, {B})",
            Code.LAST_PRIMARY,
            id="the holder is no primary",
        ),
        pytest.param(
            A,
            PatroniWord(),
            f"wk1 → {A} (last known primary; several primaries: {A}, {B})",
            Code.LAST_PRIMARY,
            id="Patroni knows none, the last known one is among them",
        ),
        pytest.param(
            C,
            PatroniWord(),
            f"wk1 → fenced (several primaries: {A}, {B}, and nothing tells which is right)",
            Code.FENCED,
            id="Patroni knows none, the last known one is not among them",
        ),
    ],
)
def test_several_primaries(last: str, word: PatroniWord, expected: str, why: Code) -> None:
    """Of several primaries Patroni's leader is taken, else the last known one, else none; each with an alert."""
    agent = beside_primary(remembered(last, PRIMARY), hosts=(A, B, C))
    agent.patroni = {"wk1": word}
    agent.see({A: primary(), B: primary(), C: standby()}).decide()
    assert agent.leads() == expected
    assert code(agent) is why
    assert "wk1:primaries" in agent.alerts


def test_one_primary_needs_no_word() -> None:
    """Where one node is primary, Patroni's word on another one changes nothing."""
    agent = beside_primary()
    agent.patroni = {"wk1": PatroniWord(leader=node(B))}
    assert agent.see({A: primary(), B: standby()}).decide().leads() == f"wk1 → {A} (primary, timeline 7)"


@pytest.mark.parametrize("silence", [barred(), unreachable()], ids=["barred", "unreachable"])
def test_primary_counts_until_it_expires(silence: Observation) -> None:
    """A frozen old primary delays a failover until its observation is interval + timeout old, and no longer."""
    agent = beside_primary().see({A: primary(), B: standby()}).decide()
    agent.wait(1).see({A: silence, B: primary(timeline=8)}).decide()
    assert code(agent) is Code.LAST_PRIMARY
    assert agent.decision.recheck_at == 100 + MAX_AGE_S
    agent.wait(MAX_AGE_S - 1.001).decide()
    assert agent.address() == A
    agent.wait(0.001).decide()
    assert agent.leads() == f"wk1 → {B} (primary, timeline 8)"


@pytest.mark.parametrize("end", [dead(), standby()], ids=["dead", "in recovery"])
def test_primary_counts_until_seen_otherwise(end: Observation) -> None:
    """A primary that is seen dead or in recovery gives way to the new one at once."""
    agent = beside_primary().see({A: primary(), B: primary(timeline=8)})
    agent.decision = resume(agent.config, [remembered(A, PRIMARY)])
    agent.decide()
    assert agent.address() == A
    assert agent.see({A: end}).decide().leads() == f"wk1 → {B} (primary, timeline 8)"


def test_dead_stays_dead_while_nothing_is_known() -> None:
    """A server that was seen dead is not revived by a probe that could not ask (starting up, no answer)."""
    agent = beside_primary().see({A: primary(), B: standby()}).decide()
    agent.see({A: dead()}).see({A: barred()}).decide()
    assert agent.leads() == (f"wk1 → {A} (held; no primary; {A} {NO_LOGIN}, last seen as primary; {B} is in recovery)")


def test_switchover() -> None:
    """Between the old primary's demotion and the new one's promotion the name is fenced, and never astray."""
    agent = beside_primary().see({A: primary(), B: standby()}).decide()
    assert agent.see({A: dead()}).decide().address() == A
    assert agent.see({A: standby()}).decide().address() == FENCE
    assert agent.see({B: primary(timeline=8)}).decide().address() == B


def test_several_primaries_forget_no_recovery() -> None:
    """A last primary seen in recovery is remembered as such over a restart, also when two others claimed its place."""
    agent = beside_primary(remembered(A, PRIMARY), hosts=(A, B, C))
    agent.see({A: standby(), B: primary(), C: primary()}).decide()
    assert agent.address() == FENCE
    agent.restart().see_local(standby()).decide()
    assert agent.see_local(primary()).decide().address() == FENCE


@pytest.mark.parametrize("restarted", [False, True], ids=["the same run", "a restart"])
def test_fence_is_left_for_what_is_seen(restarted: bool) -> None:  # noqa: FBT001 - a table's column
    """Silence does not lead a fenced name back to a primary that nobody sees (R1)."""
    agent = beside_primary(remembered(A, PRIMARY), hosts=(A, B, C))
    agent.see({A: unreachable(), B: primary(), C: primary()}).decide()
    assert agent.address() == FENCE
    if restarted:
        agent.restart().see_local(primary())
    agent.see({A: unreachable(), B: unreachable(), C: unreachable()}).wait(MAX_AGE_S).decide()
    assert agent.address() == FENCE
    assert code(agent) is Code.HELD
    assert agent.see({A: primary()}).decide().address() == A


def test_held_address_seen_in_recovery() -> None:
    """A name is not held with a local primary at a node that was seen in recovery, for whatever reason it led there."""
    agent = Agent(config(group("cn", CN1), group("wk1", A, B)), [remembered(A, SELF)])
    agent.see({A: standby()}).wait(60).see_local(primary(), address=CN1).see({CN1: primary(), A: barred()}).decide()
    assert agent.leads("wk1") == f"wk1 → fenced (no primary known; {A} was a standby)"


# ---------------------------------------------------------------------------------------------------- wish: standby


@pytest.mark.parametrize(
    ("block", "seen", "expected", "why"),
    [
        pytest.param(
            [], {A: standby(), B: primary(), C: dead()}, f"wk1 → {A} (standby)", Code.STANDBY, id="the standby"
        ),
        pytest.param(
            [], {A: standby(), B: standby(), C: primary()}, f"wk1 → {A} (standby)", Code.STANDBY, id="the first of two"
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {A: dead(), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="the next one when it is dead",
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {A: primary(), B: standby(), C: dead()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="the next one when it is promoted",
        ),
        pytest.param(
            [remembered(A, STANDBY, last=C)],
            {A: standby(system_id=FOREIGN), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="the next one when it is foreign",
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {A: unreachable(), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="the next one when it does not answer",
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {A: barred(), B: standby(), C: primary()},
            f"wk1 → {A} (held; {A} {NO_LOGIN})",
            Code.HELD,
            id="held when it bars us",
        ),
        pytest.param(
            [remembered(A, STANDBY)],
            {B: standby(), C: primary()},
            f"wk1 → {A} (held; {A} has not been asked yet)",
            Code.HELD,
            id="held while it is yet to be asked",
        ),
        pytest.param(
            [remembered(C, PRIMARY)],
            {A: standby(), B: standby(), C: primary()},
            f"wk1 → {A} (standby)",
            Code.STANDBY,
            id="from a primary at once: the local server was demoted",
        ),
        pytest.param(
            [remembered(FENCE, FENCED, wish=Role.STANDBY, last=C)],
            {A: dead(), B: standby(), C: primary()},
            f"wk1 → {B} (standby)",
            Code.STANDBY,
            id="from a fence at once: nothing is served meanwhile",
        ),
        pytest.param(
            [],
            {A: barred(), B: unreachable(), C: unreachable()},
            f"wk1 left out (no fit standby: {A} {NO_LOGIN}; {B} {SILENT}; {C} {SILENT})",
            Code.UNKNOWN,
            id="left out when nothing is known",
        ),
    ],
)
def test_wish_for_a_standby(
    block: list[Target], seen: Mapping[str | Node, Observation], expected: str, why: Code
) -> None:
    """With a local standby a name leads to the first fit node in the configured order, and is held in silence."""
    agent = beside_standby(*block, hosts=(A, B, C)).see(seen).decide()
    assert agent.leads() == expected
    assert code(agent) is why


B_LEADS = f"{B} is primary"


@pytest.mark.parametrize("fallback", Fallback, ids=lambda one: one.value)
@pytest.mark.parametrize(
    ("seen", "benched", "words", "primary_at"),
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
            {}, {node(A): f"{A} is tagged noloadbalance"}, f"{A} is tagged noloadbalance; {B_LEADS}", B, id="benched"
        ),
        pytest.param(
            {A: standby(lsn=899)}, {}, f"{A} lags more than 100 bytes behind its primary; {B_LEADS}", B, id="lagging"
        ),
    ],
)
def test_no_fit_standby(
    seen: Mapping[str | Node, Observation],
    benched: Mapping[Node, str],
    words: str,
    primary_at: str,
    fallback: Fallback,
) -> None:
    """A standby that is seen unfit gives way at once by ``fallback``: to a fence, or to the primary."""
    agent = beside_standby(fallback=fallback, max_lag_bytes=100).see({A: standby(), B: primary()}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"
    agent.patroni = {"wk1": PatroniWord(benched=benched)}
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
            id="none: silence fences nothing",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: unreachable(), B: primary()},
            f"wk1 → {B} (no fit standby: {A} {SILENT}, last seen in recovery; {B} is primary; primary, timeline 7)",
            Code.FALLBACK,
            id="primary: to the primary that is seen",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: unreachable(), B: unreachable()},
            f"wk1 → {A} (held; no fit standby: "
            f"{A} {SILENT}, last seen in recovery; {B} {SILENT}, last seen as primary)",
            Code.HELD,
            id="primary: held where the primary is not seen either",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: barred(), B: primary()},
            f"wk1 → {A} (held; {A} {NO_LOGIN}, last seen in recovery)",
            Code.HELD,
            id="primary: failing to log in is not down",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: dead(), B: unreachable()},
            f"wk1 → {B} (no fit standby: {A} {REFUSED}, last seen in recovery; {B} {SILENT}, last seen as primary; "
            f"held; no primary; {A} {REFUSED}, last seen in recovery; {B} {SILENT}, last seen as primary)",
            Code.FALLBACK,
            id="primary: from a dead standby to the last known primary",
        ),
        pytest.param(
            Fallback.PRIMARY,
            {A: dead(), B: dead()},
            f"wk1 → {B} (no fit standby: {A} {REFUSED}, last seen in recovery; {B} {REFUSED}, last seen as primary; "
            f"held; no primary; {A} {REFUSED}, last seen in recovery; {B} {REFUSED}, last seen as primary)",
            Code.FALLBACK,
            id="primary: all are dead",
        ),
    ],
)
def test_silence_of_a_standby(
    fallback: Fallback, seen: Mapping[str | Node, Observation], expected: str, why: Code
) -> None:
    """A standby whose observation expired gives way to something seen, and is never fenced for silence (R1)."""
    agent = beside_standby(fallback=fallback).see({A: standby(), B: primary()}).decide()
    agent.wait(MAX_AGE_S - 0.001).see({A: unreachable()}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"
    agent.wait(0.001).see(seen).decide()
    assert agent.leads() == expected
    assert code(agent) is why


def test_probe_that_is_late_moves_nothing() -> None:
    """An observation that merely grew old, with no probe that timed out, moves no name that leads to a standby."""
    agent = beside_standby(hosts=(A, B, C)).see({A: standby(), B: standby(), C: primary()}).decide()
    agent.wait(MAX_AGE_S).see({B: standby(), C: primary()}).decide()
    assert agent.leads() == f"wk1 → {A} (held; {A} is yet to be asked again, last seen in recovery)"


def test_fallback_follows_the_table_for_primaries() -> None:
    """A name that fell back is fenced when its primary is, and leads to the new one when that is seen."""
    agent = beside_standby(hosts=(A, B, C), fallback=Fallback.PRIMARY)
    agent.see({A: dead(), B: primary(), C: standby(system_id=FOREIGN)}).decide()
    assert agent.address() == B
    agent.patroni = {"wk1": PatroniWord(benched={node(B): f"{B} is tagged noloadbalance"})}
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
        agent = beside_standby(remembered(B, PRIMARY), fallback=fallback).see({B: primary()}).decide()
        assert agent.leads() == (f"wk1 → {B} (held; no fit standby: {A} has not been asked yet; {B} is primary)")
        assert agent.see({A: standby()}).decide().leads() == f"wk1 → {A} (standby)"


# -------------------------------------------------------------------------------------------- voluntary changes, lag


def test_better_node_waits_for_failback_delay() -> None:
    """An earlier node takes over after ``failback_delay`` of health, counted anew after each fault; not a later one."""
    agent = beside_standby(hosts=(A, B, C)).see({A: dead(), B: standby(), C: primary()}).decide()
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
def test_return_from_fallback_waits(fallback: Fallback) -> None:
    """A name that fell back to its primary returns to a standby after ``failback_delay`` of health."""
    agent = beside_standby(fallback=fallback).see({A: dead(), B: primary()}).decide()
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
    agent = beside_standby(fallback=Fallback.PRIMARY).see({A: dead(), B: primary()}).decide()
    agent.wait(MAX_AGE_S).see({A: standby(), B: end}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


def test_return_after_fallback_was_forbidden_is_at_once() -> None:
    """With ``fallback: none`` a name that still leads to its primary goes to a fit standby without a fence between."""
    agent = beside_standby(remembered(B, FALLBACK)).see({A: standby(), B: primary()}).decide()
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
        agent = beside_standby(max_lag_bytes=100)
        if was_lagging:
            agent.see({A: standby(lsn=899), B: primary(lsn=1000)}).decide()
        agent.see({A: standby(lsn=1000 - lag), B: primary(lsn=1000)}).decide()
    else:
        agent = beside_standby(max_lag_s=100).see({A: standby(lsn=1), B: primary(lsn=1)}).decide()
        if was_lagging:
            agent.see({B: primary(lsn=2)}).decide().wait(101).see({A: standby(lsn=1)}).decide()
        agent.see({B: primary(lsn=3)}).decide().wait(lag).see({A: standby(lsn=2), B: primary(lsn=3)}).decide()
    fitness = agent.decision.groups["wk1"].memory.fitness[node(A)]
    assert (fitness.lag_bytes if unit == "bytes" else fitness.lag_s) == lag
    assert (fitness.fit_since is not None) is fit
    assert agent.address() == (A if fit else FENCE)


def test_idle_primary_leaves_nobody_behind() -> None:
    """A standby that has replayed all there is does not lag, however long ago that was written."""
    agent = beside_standby(max_lag_s=1).see({A: standby(lsn=1000), B: primary(lsn=1000)}).decide()
    agent.wait(3600).see({A: standby(lsn=1000), B: primary(lsn=1000)}).decide()
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].lag_s == 0
    assert len(agent.decision.groups["wk1"].memory.lsns) == 1
    assert agent.address() == A


def test_failover_that_lost_something_leaves_nobody_behind() -> None:
    """LSNs that only the old primary had reached are no measure for standbys of the new one."""
    agent = beside_standby(max_lag_s=10, hosts=(A, B, C)).see({A: standby(lsn=900), B: dead(), C: primary(lsn=2000)})
    agent.decide().wait(5).see({A: standby(lsn=950), B: primary(lsn=950), C: dead()}).decide()
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].lag_s == 0


def test_standby_that_stopped_replaying_stays_behind() -> None:
    """The seconds count from when the primary first passed the standby, also when it wrote after a long pause."""
    agent = beside_standby(max_lag_s=64).see({A: standby(lsn=100), B: primary(lsn=100)}).decide()
    agent.wait(0.5).see({A: standby(lsn=100), B: primary(lsn=200)}).decide()
    for lsn in (200, 300, 400):
        agent.wait(70).see({A: standby(lsn=100), B: primary(lsn=lsn)}).decide()
        assert agent.leads() == (
            f"wk1 → fenced (no fit standby: {A} lags more than 64 s behind its primary; {B} is primary)"
        )


@pytest.mark.parametrize("interval_s", [0.02, 1, 7], ids=lambda one: f"every {one} s")
def test_history_of_lsns_is_short_and_close_enough(interval_s: float) -> None:
    """However often a primary is asked, its history stays short and tells the lag to about 1.5 % of the limit."""
    agent = beside_standby(max_lag_s=64)
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
    agent = beside_standby(max_lag_s=1).see({A: standby(lsn=100), B: primary(lsn=200)}).decide()
    agent.wait(MAX_AGE_S - 0.1).see({A: barred()}).decide()
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
    agent = beside_standby(hosts=(A, B, C), max_lag_bytes=10_000).see(dict.fromkeys((A, B, C), unreachable()))
    for seen in steps:
        agent.see(seen).decide()
    assert agent.decision.groups["wk1"].memory.fitness[node(A)].lag_bytes == lag


def test_lag_without_a_limit() -> None:
    """Without a limit no lag makes a standby unfit."""
    agent = beside_standby().see({A: standby(lsn=0), B: primary(lsn=2**60)}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


def test_unknown_lag_is_no_evidence_of_having_caught_up() -> None:
    """A standby that lagged and then says no LSN stays unfit."""
    agent = beside_standby(max_lag_bytes=100).see({A: standby(lsn=1), B: primary()}).decide()
    assert agent.address() == FENCE
    assert agent.see({A: standby(lsn=None)}).decide().address() == FENCE
    assert agent.see({A: standby(lsn=1000)}).decide().address() == A


# ------------------------------------------------------------------------------------------------------ fallback: all


def all_agent(*block: Target, route: Route = Route.FOLLOW) -> Agent:
    """Return an agent beside a local standby with ``fallback: all`` and two names."""
    groups = (group("wk1", A, B), group("wk2", D, E, route=route))
    return Agent(config(*groups, fallback=Fallback.ALL), block).see_local(standby())


BOTH: dict[str | Node, Observation] = {A: standby(), B: primary(), D: standby(), E: primary()}


def test_all_go_to_their_primaries_and_return_together() -> None:
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
        pytest.param({D: standby(), E: barred()}, f"wk2 → {D} (standby)", id="unseen: not from a working standby"),
        pytest.param({D: standby(), E: standby()}, f"wk2 → {D} (standby)", id="none: not into a fence"),
        pytest.param(
            {D: barred(), E: primary()}, f"wk2 → {E} (wk1 has no fit standby; primary, timeline 7)", id="seen"
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
    [remembered(B, FALLBACK), remembered(FENCE, FENCED, wish=Role.STANDBY, last=B, lost=True)],
    ids=["fallen back", "fenced"],
)
def test_all_lack_lasts_through_silence(block: Target) -> None:
    """A name that lacks a standby keeps the others with their primaries while nothing new is known of it."""
    agent = all_agent(block, remembered(E, FALLBACK, name="wk2"))
    for _ in range(12):
        agent.see({A: barred(), B: barred(), D: standby(), E: primary()}).decide().wait(1)
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


# ----------------------------------------------------------------------------------------------- routes, local role


@pytest.mark.parametrize("role", [primary(), standby()], ids=["local primary", "local standby"])
@pytest.mark.parametrize(
    ("route", "expected"), [(Route.PRIMARY, B), (Route.STANDBY, A)], ids=["route: primary", "route: standby"]
)
def test_fixed_routes(route: Route, expected: str, role: Observation) -> None:
    """``primary`` and ``standby`` do so always, whatever the local server is; R2 does not apply to ``standby``."""
    agent = Agent(config(group("wk1", A, B, route=route))).see_local(role).see({A: standby(), B: primary()}).decide()
    assert agent.address() == expected


def test_second_name_for_the_same_nodes() -> None:
    """``wk1-ro`` leads to the standby beside a local primary, while wk1 leads to the primary."""
    agent = Agent(config(group("wk1", A, B), group("wk1-ro", A, B, route=Route.STANDBY))).see_local(primary())
    agent.see({A: primary(), B: standby()}).decide()
    assert (agent.address("wk1"), agent.address("wk1-ro")) == (A, B)


@pytest.mark.parametrize(
    ("local", "assumed", "holds_lock", "block", "expected"),
    [
        pytest.param([standby()], None, False, STANDBY, A, id="standby"),
        pytest.param([primary()], None, False, STANDBY, B, id="primary"),
        pytest.param([standby(), dead()], None, False, PRIMARY, A, id="dead: the last known one stands"),
        pytest.param([primary(), unreachable(), barred()], None, False, STANDBY, B, id="silent: the last one stands"),
        pytest.param([standby()], Role.PRIMARY, False, STANDBY, B, id="a pre-promote is under way"),
        pytest.param([standby()], None, True, STANDBY, B, id="the local Patroni holds the leader lock"),
        pytest.param([primary()], Role.STANDBY, False, PRIMARY, A, id="--role standby"),
        pytest.param([], None, False, STANDBY, A, id="never known: the block says standby"),
        pytest.param([dead()], None, False, PRIMARY, B, id="never known: the block says primary"),
        pytest.param([barred()], None, False, FALLBACK, A, id="never known: the block says fallback, so standby"),
        pytest.param([], None, False, None, B, id="never known, no block: primary"),
        pytest.param([], None, True, None, B, id="never known, but Patroni's word"),
    ],
)
def test_local_role(
    local: list[Observation],
    assumed: Role | None,
    holds_lock: bool,  # noqa: FBT001 - a table's column
    block: Standing | None,
    expected: str,
) -> None:
    """A name that follows wishes for what the local server is, is about to be, or was last known to be."""
    agent = Agent(config(group("wk1", A, B)), [remembered(B if block is not STANDBY else A, block)] if block else [])
    for seen in local:
        agent.see_local(seen)
    agent.assumed, agent.holds_lock = assumed, holds_lock
    agent.see({A: standby(), B: primary()}).decide().wait(20).see({A: standby(), B: primary()}).decide()
    assert agent.address() == expected


def test_block_of_two_minds() -> None:
    """A restart without a word of the local role leaves each name with its own wish: some were held when it changed."""
    block = [remembered(A, STANDBY, last=B), remembered(E, PRIMARY, name="wk2")]
    agent = Agent(config(group("wk1", A, B), group("wk2", D, E)), block).see_local(barred()).see(BOTH).decide()
    assert (agent.address("wk1"), agent.address("wk2")) == (A, E)
    agent.see_local(standby()).decide()
    assert (agent.address("wk1"), agent.address("wk2")) == (A, D)


def test_block_of_two_minds_and_all() -> None:
    """While the local role is unknown, ``all`` takes along those names only that wish for a standby."""
    agent = Agent(
        config(group("wk1", A, B), group("wk2", D, E), fallback=Fallback.ALL),
        [remembered(A, STANDBY, last=B), remembered(E, PRIMARY, name="wk2")],
    )
    agent.see({**BOTH, A: dead()}).decide()
    assert (code(agent, "wk1"), code(agent, "wk2")) == (Code.FALLBACK, Code.PRIMARY)


def test_local_role_by_the_first_sight_of_a_promotion() -> None:
    """The local server's promotion counts as soon as any probe sees it, over its socket or over the network."""
    agent = Agent(config(group("cn", CN1, CN2), group("wk1", A, B)))
    agent.see_local(standby(), address=CN1).see({CN1: standby(), CN2: primary(), A: standby(), B: primary()}).decide()
    assert (agent.address("cn"), agent.address("wk1")) == (CN1, A)
    agent.wait(0.1).see({CN1: primary()}).decide()
    assert (agent.address("wk1"), agent.decision.role) == (B, Role.PRIMARY)
    # A probe that began later may have been answered earlier. Without a restart nobody becomes a standby.
    agent.wait(0.1).see_local(standby(), address=CN1).decide()
    assert (agent.address("wk1"), agent.decision.role) == (B, Role.PRIMARY)
    agent.wait(0.1).see_local(standby(started=2), address=CN1).decide()
    assert (agent.address("wk1"), agent.decision.role) == (A, Role.STANDBY)


# ---------------------------------------------------------------------------------------------------- R3: own name


def own_agent(*block: Target) -> Agent:
    """Return an agent on the second coordinator, with a second name for the coordinators by another port's probes."""
    cn_ro = group("cn-ro", CN1, CN2, route=Route.STANDBY, port=6432)
    return Agent(config(group("cn", CN1, CN2), cn_ro, group("wk1", A, B)), block)


@pytest.mark.parametrize("role", [primary(), standby()], ids=["primary", "standby"])
def test_own_name_leads_to_the_own_address(role: Observation) -> None:
    """The local server's own group leads to itself, whatever its role, and stays so while it is down or silent."""
    agent = own_agent().see_local(role, address=CN2)
    agent.see({CN2: role, CN1: primary()}).decide()
    assert agent.leads("cn") == f"cn → {CN2} (this server)"
    assert code(agent, "cn") is Code.SELF
    agent.see_local(dead()).see({CN2: dead()}).decide()
    assert agent.address("cn") == CN2
    agent.wait(3600).see_local(unreachable()).see({CN2: barred(), CN1: primary()}).decide()
    assert agent.address("cn") == CN2
    agent.restart().see({CN1: primary(timeline=8), CN2: dead()}).decide()
    assert agent.leads("cn") == f"cn → {CN2} (this server)"


def test_own_name_through_the_local_servers_restart() -> None:
    """A restarted local server is its own again, whichever of its two probes sees the new start first."""
    new = standby(started=1)
    for steps in ([new, None], [None, new]):
        agent = own_agent().see_local(standby(), address=CN2).see({CN1: standby(), CN2: standby()}).decide()
        for local in steps:
            agent.wait(0.1)
            if local is not None:
                agent.see_local(local, address=CN2)
            else:
                agent.see({CN2: new})
            assert agent.decide().address("cn") == CN2


def test_own_address_under_two_names() -> None:
    """Recognised under one name, the address of the other name is not given up while its node was not asked again."""
    agent = own_agent().see_local(primary(), address=CN2)
    agent.see({CN2: primary(), CN1: standby(), Node(CN2, 6432): primary(), Node(CN1, 6432): standby()}).decide()
    assert (agent.address("cn"), agent.address("cn-ro")) == (CN2, CN2)
    agent.wait(0.1).see_local(primary(started=1), address=CN2).see({CN2: primary(started=1)}).decide()
    assert (agent.address("cn"), agent.address("cn-ro")) == (CN2, CN2)


def test_recognised_by_identity_not_by_address() -> None:
    """A local server whose node answers at another address than before is followed there."""
    host = Node("cn2.example", 5432)
    cn = dataclasses.replace(group("cn", CN1), nodes=(node(CN1), host))
    agent = Agent(config(cn), [remembered(CN2, SELF, name="cn")]).see_local(primary(), address="cn2.example")
    agent.see({host: dataclasses.replace(primary(), address="192.168.234.9")}).decide()
    assert agent.leads("cn") == "cn → 192.168.234.9 (this server)"


@pytest.mark.parametrize(
    ("nodes", "seen"),
    [
        pytest.param((CN1, CN2), {CN1: primary(), CN2: standby()}, id="another server answers there"),
        pytest.param((CN1,), {CN1: primary()}, id="the address is no node's any more"),
    ],
)
def test_own_name_is_given_up_on_evidence(nodes: tuple[str, ...], seen: Mapping[str | Node, Observation]) -> None:
    """What the block calls this server's own is given up when the nodes and the local server are seen to differ."""
    agent = Agent(config(group("cn", *nodes)), [remembered(CN2, SELF, name="cn", last=CN1)])
    agent.see(seen).decide()
    assert agent.address("cn") == CN2
    agent.see_local(primary()).decide()
    assert agent.leads("cn") == f"cn → {CN1} (primary, timeline 7)"


def test_own_name_is_given_up_when_recognised_elsewhere() -> None:
    """A server that was moved to another group leaves its old name to its old group."""
    agent = Agent(config(group("wk1", A, B), group("wk2", D, E)), [remembered(A, SELF, last=B)])
    agent.see({A: dead(), B: primary(), D: primary()}).see_local(primary(), address=D).decide()
    assert agent.leads("wk1") == f"wk1 → {B} (primary, timeline 7)"
    assert agent.leads("wk2") == f"wk2 → {D} (this server)"


# ---------------------------------------------------------------------------------------------- system identifiers


def test_foreign_primary_is_never_a_target() -> None:
    """A primary of another cluster is refused with an alert, also when the group's own nodes are gone."""
    agent = beside_primary().see({A: primary(), B: barred()}).decide()
    agent.see({B: primary(system_id=FOREIGN)}).decide()
    assert agent.leads() == f"wk1 → {A} (primary, timeline 7)"
    assert f"wk1:{B}:5432:foreign" in agent.alerts
    agent.see({A: dead()}).decide()
    foreign = f"{B} is of another database cluster (system identifier {FOREIGN})"
    assert agent.leads() == f"wk1 → {A} (held; no primary; {A} {REFUSED}, last seen as primary; {foreign})"
    agent.wait(60).see({A: barred(), B: primary(system_id=FOREIGN)}).decide()
    assert agent.address() == A


def test_foreign_server_at_the_primarys_address() -> None:
    """A name is fenced rather than held where another cluster's server answers, and stays so in silence."""
    agent = beside_primary().see({A: primary(), B: standby()}).decide()
    agent.see({A: primary(system_id=FOREIGN), B: standby()}).decide()
    fence = f"no primary; {A} is of another database cluster (system identifier {FOREIGN}); {B} is in recovery"
    assert agent.leads() == f"wk1 → fenced ({fence})"
    agent.wait(60).see({A: unreachable(), B: standby()}).decide()
    assert agent.address() == FENCE
    assert agent.see_local(standby()).see({B: dead()}).decide().address() == FENCE
    assert agent.see_local(primary()).decide().address() == FENCE


def test_the_word_of_another_clusters_patroni_does_not_count() -> None:
    """Whose Patroni it is, shows by a system identifier that no server has: a wrong port fences and benches nobody."""
    agent = beside_primary().see({A: primary(), B: standby()}).decide()
    agent.patroni = {"wk1": PatroniWord(leader=node(B), system_id=FOREIGN, benched={node(B): "noloadbalance"})}
    agent.wait(1).see({A: primary(), B: standby()}).decide()
    assert agent.leads() == f"wk1 → {A} (primary, timeline 7)"
    assert agent.alerts == {"wk1:patroni"}
    assert agent.decision.groups["wk1"].memory.fitness[node(B)].fit_since is not None
    agent.wait(1).see({A: primary(), B: primary()}).decide()
    assert agent.address() == A
    agent.see({A: dead(), B: dead()}).decide()
    assert "wk1:patroni" not in agent.alerts


@pytest.mark.parametrize(
    ("steps", "word", "expected"),
    [
        pytest.param([{A: primary(system_id=FOREIGN), B: dead()}], None, A, id="all that answer agree"),
        pytest.param(
            [{A: primary(system_id=FOREIGN), B: standby(system_id=FOREIGN)}], None, A, id="all agree: pg_upgrade"
        ),
        pytest.param([{A: dead(), B: primary(system_id=FOREIGN)}], None, B, id="on another node"),
        pytest.param([{A: primary(system_id=FOREIGN), B: standby()}], None, FENCE, id="one has the old one"),
        pytest.param([{A: primary(system_id=FOREIGN), B: standby(system_id=3)}], None, FENCE, id="they do not agree"),
        pytest.param(
            [{A: primary(system_id=FOREIGN), B: standby()}],
            FOREIGN,
            A,
            id="one has the old one, Patroni reports the new",
        ),
        pytest.param([{A: primary(), B: standby(system_id=FOREIGN)}, {A: dead()}], None, A, id="foreign before"),
        pytest.param(
            [{A: primary(), B: standby(system_id=FOREIGN)}, {A: primary(system_id=FOREIGN)}],
            None,
            A,
            id="foreign before, and then all agree",
        ),
        pytest.param(
            [{A: dead(), B: primary(system_id=FOREIGN)}, {A: primary(), B: primary(system_id=FOREIGN)}],
            None,
            B,
            id="accepted: the old one is foreign now",
        ),
    ],
)
def test_accepting_another_system_identifier(
    steps: list[Mapping[str | Node, Observation]], word: int | None, expected: str
) -> None:
    """Another identifier is accepted when all that answer agree and none has the old one, or Patroni reports it."""
    agent = beside_primary().see({A: primary(), B: standby()}).decide()
    agent.patroni = {"wk1": PatroniWord(system_id=word)}
    replaced = False
    for seen in steps:
        agent.wait(1).see(seen).decide()
        replaced |= "wk1:replaced" in agent.alerts
    assert agent.address() == expected
    assert replaced is (agent.decision.groups["wk1"].memory.system_id == FOREIGN)


@pytest.mark.parametrize("last", [A, None], ids=["the block knows the primary", "no block"])
def test_foreign_server_that_answers_first(last: str | None) -> None:
    """At the start nobody is believed before the last known primary, or everybody, was asked."""
    agent = beside_primary(*([remembered(last, PRIMARY)] if last else []))
    agent.see({B: primary(system_id=FOREIGN)}).decide()
    assert agent.address() == last
    agent.wait(0.01).see({A: primary()}).decide()
    assert agent.address() == last


@pytest.mark.parametrize(
    ("block", "seen", "expected"),
    [
        pytest.param(
            remembered(A, PRIMARY),
            {A: barred(), B: standby(), C: primary(system_id=FOREIGN)},
            A,
            id="the last one is silent, the others do not agree: held",
        ),
        pytest.param(
            remembered(B, STANDBY, last=A),
            {A: barred(), B: standby(), C: primary(system_id=FOREIGN)},
            A,
            id="the last one is silent, the present target counts",
        ),
        pytest.param(
            remembered(B, STANDBY),
            {A: primary(), B: standby(system_id=FOREIGN), C: standby()},
            A,
            id="none was known: the primary counts, not the present target",
        ),
    ],
)
def test_who_is_believed_at_the_start(block: Target, seen: Mapping[str | Node, Observation], expected: str) -> None:
    """Without a system identifier known, the last known primary's counts, and nobody's who only claims to be one."""
    assert beside_primary(block, hosts=(A, B, C)).see(seen).decide().address() == expected


@pytest.mark.parametrize("end", [dead(), barred(), unreachable()], ids=["dead", "barred", "unreachable"])
def test_failover_while_the_agent_was_away(end: Observation) -> None:
    """When everybody was asked, those that answer are believed without the last known primary."""
    agent = beside_primary(remembered(A, PRIMARY)).see({A: end, B: primary(timeline=8)}).decide()
    assert agent.leads() == f"wk1 → {B} (primary, timeline 8)"


def test_last_primary_decides_who_is_foreign() -> None:
    """Where only standbys answered at the start, the last known primary's identifier still counts when it returns."""
    agent = beside_standby(remembered(FENCE, FENCED, wish=Role.STANDBY, last=A), hosts=(A, B, C))
    agent.see({A: dead(), B: standby(system_id=FOREIGN), C: dead()}).decide()
    assert agent.address() == B
    agent.see({A: primary(), C: standby()}).decide()
    assert agent.leads() == f"wk1 → {C} (standby)"
    assert f"wk1:{B}:5432:foreign" in agent.alerts


def test_present_target_is_believed_before_strangers() -> None:
    """Without a primary in sight, the standby that a name leads to is not made foreign by another that answers."""
    agent = beside_standby(remembered(B, STANDBY, last=A), hosts=(A, B, C))
    agent.see({A: dead(), B: standby(), C: standby(system_id=FOREIGN)}).decide()
    assert agent.leads() == f"wk1 → {B} (standby)"


# ------------------------------------------------------------------------------------------- addresses and alerts


def test_node_by_dns_name() -> None:
    """The target is the address that was connected to, and a node that moved is followed there."""
    host = Node("wk1a.example", 5432)
    wk1 = dataclasses.replace(group("wk1", B), nodes=(host, node(B)))
    agent = Agent(config(wk1), [remembered(A, PRIMARY)]).see_local(primary()).see({B: standby()}).decide()
    assert agent.address() == A
    agent.see({host: dataclasses.replace(primary(), address=A)}).decide()
    assert agent.leads() == f"wk1 → {A} (primary, timeline 7)"
    agent.see({host: dataclasses.replace(primary(), address=C)}).decide()
    assert agent.address() == C
    agent.see({host: dead()}).decide()
    assert agent.leads() == (f"wk1 → {C} (held; no primary; {C} {REFUSED}, last seen as primary; {B} is in recovery)")


@pytest.mark.parametrize(
    ("role", "block", "seen"),
    [
        pytest.param(primary(), remembered(C, PRIMARY), {A: standby(), B: standby()}, id="primary"),
        pytest.param(standby(), remembered(C, STANDBY, last=B), {A: dead(), B: primary()}, id="standby"),
    ],
)
def test_address_that_is_no_nodes_any_more(
    role: Observation, block: Target, seen: Mapping[str | Node, Observation]
) -> None:
    """A name is not held at an address that left the configuration once all nodes are seen to have nothing for it."""
    agent = Agent(config(group("wk1", A, B)), [block]).see_local(role)
    assert agent.see({B: seen[B]}).decide().address() == C
    assert agent.see(seen).decide().address() == FENCE


def test_resume_remembers_the_block() -> None:
    """The first decision of a run holds exactly what the block says, for names that are still configured."""
    block = [
        remembered(CN1, SELF, name="cn", last=CN2),
        remembered(A, STANDBY, last=B),
        remembered(D, PRIMARY, name="old"),
    ]
    agent = Agent(config(group("cn", CN1, CN2), group("wk1", A, B)), block)
    assert agent.decision.targets == tuple(block[:2])
    assert agent.decision.role is Role.STANDBY
    assert agent.decide().decision.targets == tuple(block[:2])


def test_since_is_when_the_address_changed() -> None:
    """A target's ``since`` moves with its address, not with its reason."""
    agent = beside_primary().see({A: primary(), B: standby()}).decide().wait(1).see({A: dead()}).decide()
    target = agent.target()
    assert target is not None
    assert (target.since, target.reason.code) == (100, Code.HELD)
    assert agent.wait(1).see({B: primary()}).decide().decision.targets[0].since == 102


def test_targets_are_in_the_order_of_the_configuration() -> None:
    """Targets come in the configured order, without the names that are left out."""
    agent = Agent(config(group("wk2", D, E), group("cn", CN1), group("wk1", A, B))).see_local(primary())
    agent.see({**BOTH, CN1: barred()}).decide()
    assert [target.name for target in agent.decision.targets] == ["wk2", "wk1"]


@pytest.mark.parametrize(
    ("seen", "local", "expected"),
    [
        pytest.param({A: primary(), B: standby()}, primary(), set(), id="all is well: none"),
        pytest.param({A: dead(), B: standby()}, primary(), {"wk1:held"}, id="held"),
        pytest.param({A: standby(), B: standby()}, primary(), {"wk1:fenced"}, id="fenced"),
        pytest.param({A: primary(), B: barred()}, primary(), {f"{B}:5432:barred"}, id="barred"),
        pytest.param({A: primary(), B: dead()}, standby(), {"wk1:fallback"}, id="fallen back"),
        pytest.param({A: primary(), B: standby()}, dead(), {"local"}, id="local"),
    ],
)
def test_alerts(seen: Mapping[str | Node, Observation], local: Observation, expected: set[str]) -> None:
    """Everything held, fenced, fallen back or barred is an alert while it lasts, and only then (R8)."""
    agent = Agent(config(group("wk1", A, B), fallback=Fallback.PRIMARY)).see_local(primary())
    agent.see({A: primary(), B: standby()}).decide()
    assert agent.alerts == set()
    assert agent.see(seen).see_local(local).decide().alerts == expected
    agent.see({A: primary(), B: standby()}).see_local(primary()).decide()
    assert agent.alerts == set()


def test_alert_says_it_whole() -> None:
    """An alert's words can be read alone."""
    agent = Agent(config(group("wk1", A, B)), [remembered(A, PRIMARY)]).see_local(primary()).see_local(dead())
    agent.see({A: dead(), B: unreachable()}).decide()
    assert [alert.text for alert in agent.decision.alerts] == [
        f"wk1 → {A} (held; no primary; {A} {REFUSED}; {B} {SILENT})",
        "the local PostgreSQL is dead (Connection refused); its last known role (primary) stands",
    ]


def test_recheck_at_when_time_alone_changes_something() -> None:
    """With nothing seen there is nothing to wait for; else the oldest observation's end comes first."""
    agent = beside_primary()
    assert agent.decide().decision.recheck_at == float("inf")
    agent.see({A: primary()}).wait(1).see({B: standby()}).decide()
    assert agent.decision.recheck_at == 100 + MAX_AGE_S


def test_fallback_that_became_a_standby() -> None:
    """A name that fell back stays on that server when it becomes a standby, instead of following the primary away."""
    agent = beside_standby(remembered(C, FALLBACK), hosts=(A, B, C), fallback=Fallback.PRIMARY)
    agent.see({A: primary(), C: standby()}).decide()
    assert agent.leads() == f"wk1 → {C} (standby)"
    agent.restart().see({A: barred(), B: barred(), C: barred()}).decide()
    assert agent.address() == C
