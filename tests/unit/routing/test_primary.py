"""Names that want a primary: the README's table P row by row, with the text of each reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resolver_agent.routing.decide import confirm, resume
from resolver_agent.routing.observation import PatroniStatus, Role
from resolver_agent.routing.state import FENCE, Code, Target
from tests.unit.builders import (
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
    CN1,
    FENCED,
    NO_LOGIN,
    PRIMARY,
    REFUSED,
    SELF,
    SILENT,
    STANDBY,
    STARTING,
    A,
    B,
    C,
    D,
    code,
    on_primary,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resolver_agent.config.model import Node
    from resolver_agent.routing.observation import Observation


@pytest.mark.parametrize(
    ("block", "seen", "expected", "why"),
    [
        # exactly one
        pytest.param([], {A: primary(), B: standby()}, f"wk1 → {A} (primary, timeline 7)", Code.PRIMARY, id="P1 one"),
        pytest.param(
            [remembered(A, STANDBY, last=B)],
            {A: primary(timeline=8), B: dead()},
            f"wk1 → {A} (primary, timeline 8)",
            Code.PRIMARY,
            id="P1 one: the standby the name led to was promoted",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: dead(), B: primary(timeline=8)},
            f"wk1 → {B} (primary, timeline 8)",
            Code.PRIMARY,
            id="P1 one: failover",
        ),
        pytest.param(
            [remembered(FENCE, FENCED, last=A, lost=True)],
            {A: standby(), B: primary(timeline=8)},
            f"wk1 → {B} (primary, timeline 8)",
            Code.PRIMARY,
            id="P1 one: a fence ends at once",
        ),
        # none, and the last known primary has not been seen in recovery since
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: dead(), B: standby()},
            f"wk1 → {A} (held; no primary; {A} {REFUSED}; {B} is in recovery)",
            Code.HELD,
            id="P5 none: the last one is dead",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: unreachable(), B: standby()},
            f"wk1 → {A} (held; no primary; {A} {SILENT}; {B} is in recovery)",
            Code.HELD,
            id="P5 none: the last one does not answer",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: rejecting(), B: standby()},
            f"wk1 → {A} (held; no primary; {A} {NO_LOGIN}; {B} is in recovery)",
            Code.HELD,
            id="P5 none: failing to log in is not down",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: not_serving(), B: standby()},
            f"wk1 → {A} (held; no primary; {A} {STARTING}; {B} is in recovery)",
            Code.HELD,
            id="P5 none: starting up is no evidence against a primary",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {},
            f"wk1 → {A} (held; no primary; {A} has not been asked yet; {B} has not been asked yet)",
            Code.HELD,
            id="P5 none: nobody was asked yet",
        ),
        pytest.param(
            [remembered(B, STANDBY, last=A)],
            {A: rejecting(), B: standby()},
            f"wk1 → {A} (held; no primary; {A} {NO_LOGIN}; {B} is in recovery)",
            Code.HELD,
            id="P5 none: from a standby back to the last known primary",
        ),
        pytest.param(
            [remembered(FENCE, FENCED, wanted_role=Role.STANDBY, last=A)],
            {A: rejecting(), B: rejecting()},
            f"wk1 → {A} (held; no primary; {A} {NO_LOGIN}; {B} {NO_LOGIN})",
            Code.HELD,
            id="P5 none: a fence for lack of a standby does not bind a name that wants the primary",
        ),
        # none otherwise
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: standby(), B: standby()},
            f"wk1 → fenced (no primary; {A} is in recovery; {B} is in recovery)",
            Code.FENCED,
            id="P6 none: the last one is in recovery now",
        ),
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: standby(), B: rejecting()},
            f"wk1 → fenced (no primary; {A} is in recovery; {B} {NO_LOGIN})",
            Code.FENCED,
            id="P6 none: the last one is in recovery now, the other one rejects us",
        ),
        pytest.param(
            [remembered(B, STANDBY, last=A, lost=True)],
            {A: unreachable(), B: standby()},
            f"wk1 → fenced (no primary; {A} {SILENT}; {B} is in recovery)",
            Code.FENCED,
            id="P6 none: the block remembers that the last one was seen in recovery",
        ),
        pytest.param(
            [remembered(FENCE, FENCED, last=A, lost=True)],
            {},
            f"wk1 → fenced (no primary; {A} has not been asked yet; {B} has not been asked yet)",
            Code.FENCED,
            id="P6 none: a fence outlives the agent",
        ),
        pytest.param(
            [],
            {A: standby(), B: rejecting()},
            f"wk1 → fenced (no primary; {A} is in recovery; {B} {NO_LOGIN})",
            Code.FENCED,
            id="P6 none: there never was one",
        ),
        # nothing was ever known
        pytest.param(
            [],
            {A: rejecting(), B: unreachable()},
            f"wk1 left out (no primary known; {A} {NO_LOGIN}; {B} {SILENT})",
            Code.UNKNOWN,
            id="P7 unknown: left out",
        ),
        pytest.param(
            [remembered(B, STANDBY)],
            {A: rejecting(), B: rejecting()},
            f"wk1 → fenced (no primary known; {B} was a standby)",
            Code.FENCED,
            id="P8 unknown: the block says that the name leads to a standby",
        ),
        pytest.param(
            [remembered(FENCE, FENCED)],
            {A: rejecting(), B: rejecting()},
            f"wk1 → fenced (stays fenced; no primary known; {A} {NO_LOGIN}; {B} {NO_LOGIN})",
            Code.FENCED,
            id="P7 unknown: a fence stays",
        ),
        # several otherwise
        pytest.param(
            [remembered(A, PRIMARY)],
            {A: primary(), B: primary(timeline=8)},
            f"wk1 → {A} (last known primary; several primaries: {A}, {B})",
            Code.LAST_PRIMARY,
            id="P3 several: an accidental promotion takes nothing away from the real one",
        ),
        pytest.param(
            [],
            {A: primary(), B: primary(timeline=8)},
            f"wk1 → fenced (several primaries: {A}, {B}, and nothing tells which is right)",
            Code.FENCED,
            id="P4 several: none was known before",
        ),
    ],
)
def test_a_name_that_wants_a_primary(
    block: list[Target], seen: Mapping[str | Node, Observation], expected: str, why: Code
) -> None:
    """On a primary, every row of the table gives its target, its reason and its code."""
    agent = on_primary(*block).see(seen).decide()
    assert agent.leads() == expected
    assert code(agent) is why


def test_fence_in_the_designs_words() -> None:
    """The documented example of a fenced name, word for word."""
    agent = Agent(config(group("wk2", D))).see_local(primary()).see({D: standby()}).decide()
    assert agent.leads("wk2") == f"wk2 → fenced (no primary; {D} is in recovery)"


@pytest.mark.parametrize(
    ("last", "status", "expected", "why"),
    [
        pytest.param(
            A,
            PatroniStatus(leader=node(B)),
            f"wk1 → {B} (holds the leader lock; several primaries: {A}, {B})",
            Code.LEADER,
            id="P2 Patroni knows the holder",
        ),
        pytest.param(
            A,
            PatroniStatus(leader=node(C)),
            f"wk1 → {A} (last known primary; several primaries: {A}, {B})",
            Code.LAST_PRIMARY,
            id="P3 the holder is no primary",
        ),
        pytest.param(
            A,
            PatroniStatus(),
            f"wk1 → {A} (last known primary; several primaries: {A}, {B})",
            Code.LAST_PRIMARY,
            id="P3 Patroni knows none, the last known one is among them",
        ),
        pytest.param(
            C,
            PatroniStatus(),
            f"wk1 → fenced (several primaries: {A}, {B}, and nothing tells which is right)",
            Code.FENCED,
            id="P4 Patroni knows none, the last known one is not among them",
        ),
    ],
)
def test_several_primaries(last: str, status: PatroniStatus, expected: str, why: Code) -> None:
    """Of several primaries Patroni's leader counts, otherwise the last known one, otherwise none; each is an alert."""
    agent = on_primary(remembered(last, PRIMARY), hosts=(A, B, C))
    agent.patroni = {"wk1": status}
    agent.see({A: primary(), B: primary(), C: standby()}).decide()
    assert agent.leads() == expected
    assert code(agent) is why
    assert "wk1:primaries" in agent.alerts


def deposed_beside_the_leader() -> Agent:
    """Return an agent that has seen A as the primary, and B promoted beside it with the leader lock, and dead since."""
    agent = on_primary().see({A: primary(), B: standby()}).decide()
    agent.patroni = {"wk1": PatroniStatus(leader=node(B))}
    assert agent.see({A: primary(), B: primary(timeline=8)}).decide().address() == B
    return agent.see({B: dead()}).decide()


def test_a_deposed_primary_takes_no_name_back() -> None:
    """What it writes is lost, so it is not the one primary when the one with the leader lock dies before it does."""
    agent = deposed_beside_the_leader()
    words = f"{A} is primary of an older timeline; {B} {REFUSED}, last seen as primary"
    assert agent.leads() == f"wk1 → {B} (held; no primary; {words})"
    assert agent.wait(1).see({A: primary()}).decide().address() == B
    assert agent.see({B: standby(started=1)}).decide().address() == FENCE
    assert agent.see({B: primary(timeline=9, started=1)}).decide().address() == B


def test_a_deposed_primary_that_was_never_seen_beside_its_successor() -> None:
    """It is on an older timeline than the last holder of the leader lock, whenever it is seen, and after a restart."""
    agent = on_primary().see({A: primary(), B: standby()}).decide()
    agent.patroni = {"wk1": PatroniStatus(leader=node(B))}
    assert agent.see({A: rejecting()}).wait(MAX_AGE_S).see({B: primary(timeline=8)}).decide().address() == B
    agent.patroni = {}
    agent.see({B: dead(), A: primary()}).decide()
    assert code(agent) is Code.HELD
    assert agent.see({A: dead()}).decide().see({A: primary(started=1)}).decide().address() == B


def has_the_lock(agent: Agent) -> None:
    """Give it the leader lock."""
    agent.patroni = {"wk1": PatroniStatus(leader=node(A))}


def confirmed(agent: Agent) -> None:
    """Reload the configuration."""
    agent.decision = confirm(agent.decision)


@pytest.mark.parametrize("change", [has_the_lock, confirmed])
def test_a_deposed_primary_is_one_again(change: Callable[[Agent], None]) -> None:
    """What Patroni or the operator says is right."""
    agent = deposed_beside_the_leader()
    change(agent)
    assert agent.decide().leads() == f"wk1 → {A} (primary, timeline 7)"


def silent_with_the_lock() -> Agent:
    """Return an agent to which A is silent for as long as its answers count, and B was promoted beside it by hand."""
    agent = on_primary().see({A: primary(), B: standby()})
    agent.patroni = {"wk1": PatroniStatus(leader=node(A))}
    agent.decide().see({A: unreachable()}).wait(MAX_AGE_S)
    return agent.see({B: primary(timeline=8)})


def test_a_silent_holder_of_the_lock_keeps_its_names() -> None:
    """Another primary takes nothing from it while its Patroni says that it leads."""
    agent = silent_with_the_lock()
    words = f"{A} does not answer: no answer within 2 s, last seen as primary; {B} is primary without the leader lock"
    assert agent.decide().leads() == f"wk1 → {A} (held; no primary; {words})"
    assert agent.see({A: primary()}).decide().leads().startswith(f"wk1 → {A} (holds the leader lock; several primaries")


def says_nothing(agent: Agent) -> None:
    """Let Patroni's word expire."""
    agent.patroni = {}


def is_dead(agent: Agent) -> None:
    """Let the holder of the lock be seen dead."""
    agent.see({A: dead()})


def is_in_recovery(agent: Agent) -> None:
    """Let the holder of the lock be seen in recovery, and be silent again."""
    agent.see({A: standby()}).decide().see({A: unreachable()}).wait(MAX_AGE_S).see({B: primary(timeline=8)})


@pytest.mark.parametrize("change", [says_nothing, is_dead, is_in_recovery])
def test_a_holder_of_the_lock_that_is_no_primary_any_more(change: Callable[[Agent], None]) -> None:
    """The one primary that is seen has the name at once."""
    agent = silent_with_the_lock()
    change(agent)
    assert agent.decide().leads() == f"wk1 → {B} (primary, timeline 8)"


@pytest.mark.parametrize(
    ("status", "seen", "doubted"),
    [
        pytest.param(PatroniStatus(), {A: primary(), B: standby()}, False, id="it names no leader"),
        pytest.param(
            PatroniStatus(leader=node(A)), {A: primary(), B: standby()}, False, id="its leader is the primary"
        ),
        pytest.param(PatroniStatus(leader=node(A)), {A: dead(), B: primary()}, True, id="its leader is dead"),
        pytest.param(PatroniStatus(leader=node(A)), {A: standby(), B: primary()}, True, id="its leader is a standby"),
        pytest.param(PatroniStatus(leader=node(A)), {A: primary(), B: primary()}, True, id="there are two primaries"),
    ],
)
def test_when_patroni_is_asked_at_once(
    status: PatroniStatus, seen: dict[str | Node, Observation], *, doubted: bool
) -> None:
    """It is where the primary depends on its word, and where that may be from before a promotion."""
    agent = on_primary()
    agent.patroni = {"wk1": status}
    assert agent.see(seen).decide().decision.views["wk1"].doubts_patroni is doubted


def test_an_old_word_deposes_nobody() -> None:
    """The new primary takes over at once when the old one dies, also where Patroni's word is from before it."""
    agent = on_primary().see({A: primary(), B: standby()})
    agent.patroni = {"wk1": PatroniStatus(leader=node(A))}
    assert agent.decide().see({B: primary(timeline=8)}).decide().address() == A
    assert agent.see({A: dead()}).decide().leads() == f"wk1 → {B} (primary, timeline 8)"


def test_one_primary_needs_no_word() -> None:
    """With one primary, Patroni's status for another node changes nothing."""
    agent = on_primary()
    agent.patroni = {"wk1": PatroniStatus(leader=node(B))}
    assert agent.see({A: primary(), B: standby()}).decide().leads() == f"wk1 → {A} (primary, timeline 7)"


@pytest.mark.parametrize(
    "silence", [rejecting(), unreachable(), not_serving()], ids=["rejecting", "unreachable", "not serving"]
)
def test_primary_counts_until_it_expires(silence: Observation) -> None:
    """A frozen old primary delays a failover until its observation is interval + timeout old, and no longer."""
    agent = on_primary().see({A: primary(), B: standby()}).decide()
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
    agent = on_primary().see({A: primary(), B: primary(timeline=8)})
    agent.decision = resume(agent.config, [remembered(A, PRIMARY)])
    agent.decide()
    assert agent.address() == A
    assert agent.see({A: end}).decide().leads() == f"wk1 → {B} (primary, timeline 8)"


def test_dead_stays_dead_while_nothing_is_known() -> None:
    """A dead server is not revived by a probe that could not ask (starting up, no answer)."""
    agent = on_primary().see({A: primary(), B: standby()}).decide()
    agent.see({A: dead()}).see({A: rejecting()}).decide()
    assert agent.leads() == (f"wk1 → {A} (held; no primary; {A} {NO_LOGIN}, last seen as primary; {B} is in recovery)")


def test_switchover() -> None:
    """Between the old primary's demotion and the new one's promotion the name is fenced, and never misrouted."""
    agent = on_primary().see({A: primary(), B: standby()}).decide()
    assert agent.see({A: dead()}).decide().address() == A
    assert agent.see({A: standby()}).decide().address() == FENCE
    assert agent.see({B: primary(timeline=8)}).decide().address() == B


def test_several_primaries_forget_no_recovery() -> None:
    """A last primary seen in recovery is remembered over a restart, also when two other primaries appear."""
    agent = on_primary(remembered(A, PRIMARY), hosts=(A, B, C))
    agent.see({A: standby(), B: primary(), C: primary()}).decide()
    assert agent.address() == FENCE
    agent.restart().see_local(standby()).decide()
    assert agent.see_local(primary()).decide().address() == FENCE


@pytest.mark.parametrize("restarted", [False, True], ids=["P9 the same run", "P9 a restart"])
def test_fence_is_left_for_what_is_seen(restarted: bool) -> None:  # noqa: FBT001 - a table's column
    """Silence does not move a fenced name back to a primary that is not visible (R1)."""
    agent = on_primary(remembered(A, PRIMARY), hosts=(A, B, C))
    agent.see({A: unreachable(), B: primary(), C: primary()}).decide()
    assert agent.address() == FENCE
    if restarted:
        agent.restart().see_local(primary())
    agent.see({A: unreachable(), B: unreachable(), C: unreachable()}).wait(MAX_AGE_S).decide()
    assert agent.address() == FENCE
    assert code(agent) is Code.FENCED
    assert agent.see({A: primary()}).decide().address() == A


def test_held_address_seen_in_recovery() -> None:
    """On a primary no name is held at a node that was seen in recovery, whatever the reason it pointed there."""
    agent = Agent(config(group("cn", CN1), group("wk1", A, B)), [remembered(A, SELF)])
    agent.see({A: standby()}).wait(60).see_local(primary(), address=CN1).see({CN1: primary(), A: rejecting()}).decide()
    assert agent.leads("wk1") == f"wk1 → fenced (no primary known; {A} was a standby)"
