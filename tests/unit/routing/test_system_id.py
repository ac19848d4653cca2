"""Which database cluster a group is: whose system identifier counts, and which servers are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resolver_agent.routing.observation import PatroniStatus, Role
from resolver_agent.routing.state import FENCE, Target
from tests.unit.builders import FOREIGN, dead, node, primary, rejecting, remembered, standby, unreachable
from tests.unit.routing.builders import FENCED, PRIMARY, REFUSED, STANDBY, A, B, C, on_primary, on_standby

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Node
    from resolver_agent.routing.observation import Observation


def test_a7_foreign_primary_is_never_a_target() -> None:
    """A primary of another cluster is refused with an alert, also when the group's own nodes are gone."""
    agent = on_primary().see({A: primary(), B: rejecting()}).decide()
    agent.see({B: primary(system_id=FOREIGN)}).decide()
    assert agent.leads() == f"wk1 → {A} (primary, timeline 7)"
    assert f"wk1:{B}:5432:foreign" in agent.alerts
    agent.see({A: dead()}).decide()
    foreign = f"{B} is of another database cluster (system identifier {FOREIGN})"
    assert agent.leads() == f"wk1 → {A} (held; no primary; {A} {REFUSED}, last seen as primary; {foreign})"
    agent.wait(60).see({A: rejecting(), B: primary(system_id=FOREIGN)}).decide()
    assert agent.address() == A


def test_foreign_server_at_the_primarys_address() -> None:
    """A name is fenced, not held, where a foreign server answers, and stays fenced in silence."""
    agent = on_primary().see({A: primary(), B: standby()}).decide()
    agent.see({A: primary(system_id=FOREIGN), B: standby()}).decide()
    fence = f"no primary; {A} is of another database cluster (system identifier {FOREIGN}); {B} is in recovery"
    assert agent.leads() == f"wk1 → fenced ({fence})"
    agent.wait(60).see({A: unreachable(), B: standby()}).decide()
    assert agent.address() == FENCE
    assert agent.see_local(standby()).see({B: dead()}).decide().address() == FENCE
    assert agent.see_local(primary()).decide().address() == FENCE


def test_the_word_of_another_clusters_patroni_does_not_count() -> None:
    """A system identifier that no server has shows a foreign Patroni: a wrong port fences and excludes no node."""
    agent = on_primary().see({A: primary(), B: standby()}).decide()
    agent.patroni = {"wk1": PatroniStatus(leader=node(B), system_id=FOREIGN, excluded={node(B): "noloadbalance"})}
    agent.wait(1).see({A: primary(), B: standby()}).decide()
    assert agent.leads() == f"wk1 → {A} (primary, timeline 7)"
    assert agent.alerts == {"wk1:patroni"}
    assert agent.decision.groups["wk1"].memory.fitness[node(B)].fit_since is not None
    agent.wait(1).see({A: primary(), B: primary()}).decide()
    assert agent.address() == A
    agent.see({A: dead(), B: dead()}).decide()
    assert "wk1:patroni" not in agent.alerts


@pytest.mark.parametrize(
    ("steps", "status", "expected"),
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
    steps: list[Mapping[str | Node, Observation]], status: int | None, expected: str
) -> None:
    """Another identifier is accepted when all that answer agree and none has the old one, or Patroni reports it."""
    agent = on_primary().see({A: primary(), B: standby()}).decide()
    agent.patroni = {"wk1": PatroniStatus(system_id=status)}
    replaced = False
    for seen in steps:
        agent.wait(1).see(seen).decide()
        replaced |= "wk1:replaced" in agent.alerts
    assert agent.address() == expected
    assert replaced is (agent.decision.groups["wk1"].memory.system_id == FOREIGN)


@pytest.mark.parametrize("last", [A, None], ids=["the block knows the primary", "no block"])
def test_foreign_server_that_answers_first(last: str | None) -> None:
    """At the start no server is trusted before the last known primary, or every node, was asked."""
    agent = on_primary(*([remembered(last, PRIMARY)] if last else []))
    agent.see({B: primary(system_id=FOREIGN)}).decide()
    assert agent.address() == last
    agent.wait(0.01).see({A: primary()}).decide()
    assert agent.address() == last


@pytest.mark.parametrize(
    ("block", "seen", "expected"),
    [
        pytest.param(
            remembered(A, PRIMARY),
            {A: rejecting(), B: standby(), C: primary(system_id=FOREIGN)},
            A,
            id="the last one is silent, the others do not agree: held",
        ),
        pytest.param(
            remembered(B, STANDBY, last=A),
            {A: rejecting(), B: standby(), C: primary(system_id=FOREIGN)},
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
    """Without a known identifier, the last known primary's counts; another server's claim to be primary does not."""
    assert on_primary(block, hosts=(A, B, C)).see(seen).decide().address() == expected


@pytest.mark.parametrize("end", [dead(), rejecting(), unreachable()], ids=["dead", "rejecting", "unreachable"])
def test_failover_while_the_agent_was_away(end: Observation) -> None:
    """When every node was asked, those that answer are trusted without the last known primary."""
    agent = on_primary(remembered(A, PRIMARY)).see({A: end, B: primary(timeline=8)}).decide()
    assert agent.leads() == f"wk1 → {B} (primary, timeline 8)"


def test_last_primary_decides_who_is_foreign() -> None:
    """If only standbys answered at the start, the last known primary's identifier still counts when it returns."""
    agent = on_standby(remembered(FENCE, FENCED, wanted_role=Role.STANDBY, last=A), hosts=(A, B, C))
    agent.see({A: dead(), B: standby(system_id=FOREIGN), C: dead()}).decide()
    assert agent.address() == B
    agent.see({A: primary(), C: standby()}).decide()
    assert agent.leads() == f"wk1 → {C} (standby)"
    assert f"wk1:{B}:5432:foreign" in agent.alerts


def test_present_target_is_believed_before_strangers() -> None:
    """Without a visible primary, the standby that a name points to is not foreign because another server answers."""
    agent = on_standby(remembered(B, STANDBY, last=A), hosts=(A, B, C))
    agent.see({A: dead(), B: standby(), C: standby(system_id=FOREIGN)}).decide()
    assert agent.leads() == f"wk1 → {B} (standby)"
