"""Which database cluster a group is: whose system identifier counts, and which servers are refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import PatroniApi, Route
from resolver_agent.routing.decide import confirm
from resolver_agent.routing.observation import PatroniStatus, Role
from resolver_agent.routing.state import FENCE, Target
from tests.unit.builders import (
    FOREIGN,
    MAX_AGE_S,
    OURS,
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
    FENCED,
    PRIMARY,
    REFUSED,
    STANDBY,
    A,
    B,
    C,
    D,
    E,
    on_primary,
    on_standby,
)

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


def test_patronis_word_counts_while_its_leader_is_silent() -> None:
    """A foreign server that alone answers is no sign that Patroni is another cluster's: recovery must not touch it."""
    agent = on_primary()
    agent.patroni = {"wk1": PatroniStatus(leader=node(A), system_id=OURS)}
    agent.see({A: unreachable(), B: primary(system_id=FOREIGN)}).decide()
    assert agent.decision.views["wk1"].leader == node(A)
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


NEW = primary(system_id=FOREIGN)


@pytest.mark.parametrize("restarted", [False, True], ids=["the same run", "a restart"])
@pytest.mark.parametrize("silence", [unreachable(), rejecting(), not_serving()], ids=["silent", "no login", "starting"])
def test_silence_is_no_agreement(silence: Observation, restarted: bool) -> None:  # noqa: FBT001 - a table's column
    """A server of another cluster is refused while one that may have the group's identifier is merely not seen."""
    agent = on_primary(hosts=(A, B, C)).see({A: primary(), B: dead(), C: standby()}).decide()
    if restarted:
        agent.restart().see_local(primary())
    agent.wait(MAX_AGE_S).see({A: silence, B: NEW, C: silence}).decide()
    assert agent.address() == A
    assert f"wk1:{B}:5432:foreign" in agent.alerts
    agent.wait(60).see({A: silence, B: NEW, C: dead()}).decide()
    assert agent.address() == A
    agent.see({A: primary(), B: NEW, C: standby()}).decide()
    assert agent.leads() == f"wk1 → {A} (primary, timeline 7)"
    agent.see({A: dead(), C: dead()}).decide()
    assert agent.address() == A  # it was foreign beside the group's own primary


def test_a_server_that_starts_again_is_not_dead() -> None:
    """A dead server that starts up, or refuses the login, may have the old identifier: the new one is not accepted."""
    for again in (not_serving(), rejecting()):
        agent = on_primary().see({A: primary(), B: standby()}).decide()
        agent.see({A: dead()}).see({A: again, B: NEW}).decide()
        assert agent.address() == A
        assert agent.see({A: dead()}).decide().address() == B


def test_standbys_alone_take_no_group_over() -> None:
    """A standby that was rebuilt from the wrong primary is refused; where every node has the new one it is accepted."""
    agent = on_standby().see({A: standby(), B: primary()}).decide()
    agent.see({A: standby(system_id=FOREIGN), B: dead()}).decide()
    assert agent.address() == FENCE
    agent.see({B: standby(system_id=FOREIGN)}).decide()
    assert agent.leads() == f"wk1 → {A} (standby)"


def test_without_patronis_word_a_primary_takes_no_group_over() -> None:
    """Where Patroni is configured, a foreign primary at a dead node's address waits for its word, or for every node."""
    wk1 = dataclasses.replace(group("wk1", A, B), patroni=PatroniApi(port=8008))
    agent = Agent(config(wk1)).see_local(primary()).see({A: primary(), B: standby()}).decide()
    agent.see({A: dead(), B: primary(system_id=FOREIGN)}).decide()
    assert agent.address() == A
    assert f"wk1:{B}:5432:foreign" in agent.alerts
    agent.patroni = {"wk1": PatroniStatus(leader=node(B), system_id=FOREIGN)}
    assert agent.decide().address() == B
    agent = Agent(config(wk1)).see_local(primary()).see({A: primary(), B: standby()}).decide()
    agent.see({A: standby(system_id=FOREIGN), B: primary(system_id=FOREIGN)}).decide()
    assert agent.address() == B


def replaced() -> Agent:
    """Return an agent whose group was taken over by another database cluster, on B."""
    agent = on_primary(hosts=(A, B, C)).see({A: primary(), B: standby(), C: standby()}).decide()
    agent.see({A: dead(), B: NEW, C: dead()}).decide()
    assert agent.address() == B
    return agent


def test_a_replacement_is_an_alert_until_it_is_confirmed() -> None:
    """The alert lasts, through silence and restarts too, until a reload confirms it; then it is forgotten."""
    agent = replaced()
    alert = next(alert for alert in agent.decision.alerts if alert.key == "wk1:replaced")
    assert alert.text == (
        f"wk1: system identifier {FOREIGN} in place of {OURS}: another database cluster took its place; "
        "if that is right, confirm it with `systemctl reload resolver-agent`"
    )
    agent.wait(1).see({B: NEW}).decide()
    assert "wk1:replaced" in agent.alerts
    agent.restart().decide()
    assert "wk1:replaced" in agent.alerts
    agent.decision = confirm(agent.decision)
    assert "wk1:replaced" not in agent.decide().alerts
    agent.restart().see_local(primary()).see({A: primary(), B: NEW, C: dead()}).decide()
    assert (agent.address(), "wk1:replaced" in agent.alerts) == (B, False)


def test_patroni_confirms_a_replacement() -> None:
    """Patroni's report of the new identifier ends the alert; that of the old one takes the group back."""
    for system_id, expected in ((FOREIGN, B), (OURS, A)):
        agent = replaced()
        agent.patroni = {"wk1": PatroniStatus(system_id=system_id)}
        agent.wait(1).see({A: primary(), B: NEW}).decide().decide()
        assert (agent.address(), "wk1:replaced" in agent.alerts) == (expected, False)


@pytest.mark.parametrize("restarted", [False, True], ids=["the same run", "a restart"])
@pytest.mark.parametrize("end", [dead(), unreachable()], ids=["dead", "silent"])
def test_a_replacement_whose_servers_are_gone_gives_way(
    end: Observation,
    restarted: bool,  # noqa: FBT001 - a table's column
) -> None:
    """An unconfirmed replacement gives way to the old cluster's primary when none of its servers is seen any more."""
    agent = replaced()
    if restarted:
        agent.restart().see_local(primary())
    agent.see({A: primary(), B: NEW, C: standby()}).decide()
    assert agent.address() == B
    agent.wait(MAX_AGE_S).see({A: primary(), B: end, C: standby()}).decide()
    assert agent.leads() == f"wk1 → {A} (primary, timeline 7)"
    assert "wk1:replaced" not in agent.alerts
    agent.wait(60).see({A: primary(), B: NEW, C: standby()}).decide()
    assert agent.address() == A


def test_a_confirmed_replacement_stays() -> None:
    """After the operator's reload the old cluster is a foreign one, also while the new one's servers are silent."""
    agent = replaced()
    agent.decision = confirm(agent.decision)
    agent.wait(MAX_AGE_S).see({A: primary(), B: unreachable(), C: standby()}).decide()
    assert agent.address() == B


@pytest.mark.parametrize("system_id", [2**64, -(10**30)])
def test_an_identifier_that_no_server_can_have(system_id: int) -> None:
    """A server with an impossible identifier is of no known cluster; the block stays readable."""
    agent = on_primary().see({A: primary(system_id=system_id), B: standby(system_id=system_id)}).decide()
    assert agent.address() is None
    agent.restart().see({A: primary()}).see_local(primary()).see({B: standby()}).decide()
    assert agent.address() == A


@pytest.mark.parametrize("route", Route, ids=lambda route: route.value)
@pytest.mark.parametrize("local", [primary(), standby()], ids=["primary", "standby"])
def test_every_name_remembers_the_identifier(route: Route, local: Observation) -> None:
    """Names of every route, fenced ones and the local server's own ones know their cluster after a restart."""
    groups = [group("cn", CN1, CN2, route=route), group("wk1", A, B, route=route), group("wk2", D, E, route=route)]
    agent = Agent(config(*groups)).see_local(local, address=CN1)
    agent.see({CN1: local, CN2: standby() if local.role is Role.PRIMARY else primary(), **BOTH}).decide()
    agent.see({D: dead(), E: standby()}).decide().see({E: dead()}).decide()
    assert {target.system_id for target in agent.decision.targets} == {OURS}
    before = agent.decision.targets
    assert agent.restart().decide().decision.targets == before
