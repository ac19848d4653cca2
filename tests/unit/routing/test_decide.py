"""The parts of a decision: routes, the remembered block, addresses, alerts, and when to decide again."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Fallback, Node, Route
from resolver_agent.routing.observation import Role
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
    BOTH,
    CN1,
    CN2,
    PRIMARY,
    REFUSED,
    SELF,
    SILENT,
    STANDBY,
    A,
    B,
    C,
    D,
    E,
    code,
    on_primary,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.routing.observation import Observation


@pytest.mark.parametrize("role", [primary(), standby()], ids=["local primary", "local standby"])
@pytest.mark.parametrize(
    ("route", "expected"), [(Route.PRIMARY, B), (Route.STANDBY, A)], ids=["route: primary", "route: standby"]
)
def test_fixed_routes(route: Route, expected: str, role: Observation) -> None:
    """``primary`` and ``standby`` ignore the local server's role; R2 does not apply to ``standby``."""
    agent = Agent(config(group("wk1", A, B, route=route))).see_local(role).see({A: standby(), B: primary()}).decide()
    assert agent.address() == expected


def test_second_name_for_the_same_nodes() -> None:
    """On a primary ``wk1-ro`` points to the standby, while wk1 points to the primary."""
    agent = Agent(config(group("wk1", A, B), group("wk1-ro", A, B, route=Route.STANDBY))).see_local(primary())
    agent.see({A: primary(), B: standby()}).decide()
    assert (agent.address("wk1"), agent.address("wk1-ro")) == (A, B)


@pytest.mark.parametrize("wk2", [[], [remembered(D, STANDBY, name="wk2", last=E)]], ids=["held alone", "and another"])
def test_held_while_the_local_role_changed(wk2: list[Target]) -> None:
    """A name that is held at a primary when the local server becomes a standby wants a standby after a restart too."""
    groups = [group("wk1", A, B), *([group("wk2", D, E)] if wk2 else [])]
    agent = Agent(config(*groups), [remembered(B, PRIMARY), *wk2]).see_local(standby())
    agent.see({A: rejecting(), B: unreachable()}).decide()
    assert (code(agent), agent.address()) == (Code.HELD, B)
    agent.restart().see_local(rejecting())
    assert agent.decision.role is Role.STANDBY
    agent.see({**BOTH, A: standby(), B: primary()}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


def test_held_own_name_is_not_taken_for_the_own_one_again() -> None:
    """A name that was given up as the local server's own stays given up after a restart."""
    agent = Agent(config(group("cn", CN1), group("wk1", A, B)), [remembered(A, SELF)])
    agent.see_local(primary(), address=CN1).see({CN1: primary(), A: rejecting(), B: rejecting()}).decide()
    assert (code(agent), agent.address()) == (Code.HELD, A)
    agent.restart().decide()
    assert agent.decision.groups["wk1"].own is None


def test_block_of_two_minds() -> None:
    """After a restart without a known local role each name keeps its wanted role: some were held when it changed."""
    block = [remembered(A, STANDBY, last=B), remembered(E, PRIMARY, name="wk2")]
    agent = Agent(config(group("wk1", A, B), group("wk2", D, E)), block).see_local(rejecting()).see(BOTH).decide()
    assert (agent.address("wk1"), agent.address("wk2")) == (A, E)
    agent.see_local(standby()).decide()
    assert (agent.address("wk1"), agent.address("wk2")) == (A, D)


def test_block_of_two_minds_and_all() -> None:
    """While the local role is unknown, ``all`` takes along only the names that want a standby."""
    agent = Agent(
        config(group("wk1", A, B), group("wk2", D, E), fallback=Fallback.ALL),
        [remembered(A, STANDBY, last=B), remembered(E, PRIMARY, name="wk2")],
    )
    agent.see({**BOTH, A: dead()}).decide()
    assert (code(agent, "wk1"), code(agent, "wk2")) == (Code.FALLBACK, Code.PRIMARY)


def test_node_by_dns_name() -> None:
    """The target is the address that was connected to; when the node moves, the target follows."""
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
    """A name is not held at an address that left the configuration once every node was seen and none is fit."""
    agent = Agent(config(group("wk1", A, B)), [block]).see_local(role)
    assert agent.see({B: seen[B]}).decide().address() == C
    assert agent.see(seen).decide().address() == FENCE


def test_resume_remembers_the_block() -> None:
    """The first decision of a run holds exactly the block's targets, for names that are still configured."""
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
    """A target's ``since`` changes with its address, not with its reason."""
    agent = on_primary().see({A: primary(), B: standby()}).decide().wait(1).see({A: dead()}).decide()
    target = agent.target()
    assert target is not None
    assert (target.since, target.reason.code) == (100, Code.HELD)
    assert agent.wait(1).see({B: primary()}).decide().decision.targets[0].since == 102


def test_a6_targets_are_in_the_order_of_the_configuration() -> None:
    """Targets have the configured order; names that are left out have none."""
    agent = Agent(config(group("wk2", D, E), group("cn", CN1), group("wk1", A, B))).see_local(primary())
    agent.see({**BOTH, CN1: rejecting()}).decide()
    assert [target.name for target in agent.decision.targets] == ["wk2", "wk1"]


@pytest.mark.parametrize(
    ("seen", "local", "expected"),
    [
        pytest.param({A: primary(), B: standby()}, primary(), set(), id="all is well: none"),
        pytest.param({A: dead(), B: standby()}, primary(), {"wk1:held"}, id="held"),
        pytest.param({A: standby(), B: standby()}, primary(), {"wk1:fenced"}, id="fenced"),
        pytest.param({A: primary(), B: rejecting()}, primary(), {f"{B}:5432:rejecting"}, id="rejecting"),
        pytest.param({A: primary(), B: not_serving()}, primary(), {f"{B}:5432:not_serving"}, id="starting up"),
        pytest.param({A: primary(), B: dead()}, standby(started=2), {"wk1:fallback"}, id="fallen back"),
        pytest.param({A: primary(), B: standby()}, dead(), {"local"}, id="local"),
    ],
)
def test_alerts(seen: Mapping[str | Node, Observation], local: Observation, expected: set[str]) -> None:
    """A held, fenced, fallback or rejecting state is an alert as long as it lasts (R8)."""
    agent = Agent(config(group("wk1", A, B), fallback=Fallback.PRIMARY)).see_local(primary())
    agent.see({A: primary(), B: standby()}).decide()
    assert agent.alerts == set()
    assert agent.see(seen).see_local(local).decide().alerts == expected
    agent.see({A: primary(), B: standby()}).see_local(primary()).decide()
    assert agent.alerts == set()


def test_alert_says_it_whole() -> None:
    """An alert's text is complete on its own."""
    agent = Agent(config(group("wk1", A, B)), [remembered(A, PRIMARY)]).see_local(primary()).see_local(dead())
    agent.see({A: dead(), B: unreachable()}).decide()
    assert [alert.text for alert in agent.decision.alerts] == [
        f"wk1 → {A} (held; no primary; {A} {REFUSED}; {B} {SILENT})",
        "the local PostgreSQL is dead (Connection refused); its last known role (primary) stands",
    ]


def test_a_group_that_only_writes_is_not_assessed_anew() -> None:
    """Without a limit of lag, LSNs and times alone give no new view, however much is written."""
    agent = on_primary()
    for lsn in (1000, 2000):
        agent.wait(0.1).see({A: primary(lsn=lsn), B: standby(lsn=lsn)}).decide()
    view = agent.decision.views["wk1"]
    for lsn in (3000, 4000):
        agent.wait(0.1).see({A: primary(lsn=lsn), B: standby(lsn=lsn)}).decide()
        assert agent.decision.views["wk1"] is view
    assert agent.see({A: dead()}).decide().decision.views["wk1"] is not view


def test_recheck_at_when_time_alone_changes_something() -> None:
    """Without observations nothing is due; otherwise the oldest observation expires first."""
    agent = on_primary()
    assert agent.decide().decision.recheck_at == float("inf")
    agent.see({A: primary()}).wait(1).see({B: standby()}).decide()
    assert agent.decision.recheck_at == 100 + MAX_AGE_S
