"""The local server: its role, its own address, an announced promotion, and when the leader lock counts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Node, Route
from resolver_agent.routing.local_server import Announced, believable, holds_lock, how_it_ended
from resolver_agent.routing.observation import Identity, LockClaim, NodeState, Observation, ProbeFailure, Role
from resolver_agent.routing.state import Code, Target, TargetKind
from tests.unit.builders import (
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
from tests.unit.routing.builders import CN1, CN2, FALLBACK, PRIMARY, SELF, STANDBY, A, B, D, E, code

if TYPE_CHECKING:
    from collections.abc import Mapping


ANNOUNCED = Announced(since=100.0, receiver=7)


def failed(result: ProbeFailure, at: float) -> Observation:
    """Return what a probe saw that learned no role."""
    return Observation(result=result, at=at)


def local(result: Role | ProbeFailure, at: float, receiver: int | None = None) -> NodeState:
    """Return the state of the local server after one probe."""
    return NodeState().after(Observation(result=result, at=at, receiver=receiver))


IN_RECOVERY = local(Role.STANDBY, 101.0)
KNOWN = NodeState().after(Observation(result=Role.STANDBY, at=101.0, identity=Identity(1, 5)))
PROMOTED = "the local PostgreSQL was promoted"
NO_LOCK = "the local Patroni does not hold the leader lock"
STREAMS = "the local PostgreSQL streams from a primary"


@pytest.mark.parametrize(
    ("local", "assumed", "holds_lock", "block", "expected"),
    [
        pytest.param([standby()], None, False, STANDBY, A, id="standby"),
        pytest.param([primary()], None, False, STANDBY, B, id="primary"),
        pytest.param([standby(), dead()], None, False, PRIMARY, A, id="A2 dead: the last known one stands"),
        pytest.param(
            [primary(), unreachable(), rejecting()], None, False, STANDBY, B, id="A2 silent: the last one stands"
        ),
        pytest.param([standby()], Role.PRIMARY, False, STANDBY, B, id="A3 a pre-promote is under way"),
        pytest.param([standby()], None, True, STANDBY, B, id="A3 the local Patroni holds the leader lock"),
        pytest.param([primary()], Role.STANDBY, False, PRIMARY, A, id="--role standby"),
        pytest.param([], None, False, STANDBY, A, id="never known: the block says standby"),
        pytest.param([dead()], None, False, PRIMARY, B, id="never known: the block says primary"),
        pytest.param([rejecting()], None, False, FALLBACK, A, id="never known: the block says fallback, so standby"),
        pytest.param([], None, False, None, B, id="A2 never known, no block: primary"),
        pytest.param([], None, True, None, B, id="never known, but Patroni says leader"),
    ],
)
def test_local_role(
    local: list[Observation],
    assumed: Role | None,
    holds_lock: bool,  # noqa: FBT001 - a table's column
    block: TargetKind | None,
    expected: str,
) -> None:
    """A name that follows wants the role the local server has, is about to have, or was last known to have."""
    agent = Agent(config(group("wk1", A, B)), [remembered(B if block is not STANDBY else A, block)] if block else [])
    for seen in local:
        agent.see_local(seen)
    agent.assumed, agent.holds_lock = assumed, holds_lock
    agent.see({A: standby(), B: primary()}).decide().wait(20).see({A: standby(), B: primary()}).decide()
    assert agent.address() == expected


def test_local_role_by_the_first_sight_of_a_promotion() -> None:
    """The promotion counts as soon as any probe sees it, over the socket or over the network."""
    agent = Agent(config(group("cn", CN1, CN2), group("wk1", A, B)))
    agent.see_local(standby(), address=CN1).see({CN1: standby(), CN2: primary(), A: standby(), B: primary()}).decide()
    assert (agent.address("cn"), agent.address("wk1")) == (CN1, A)
    agent.wait(0.1).see({CN1: primary()}).decide()
    assert (agent.address("wk1"), agent.decision.role) == (B, Role.PRIMARY)
    # A probe that began later may have been answered earlier. No primary becomes a standby without a restart.
    agent.wait(0.1).see_local(standby(), address=CN1).decide()
    assert (agent.address("wk1"), agent.decision.role) == (B, Role.PRIMARY)
    agent.wait(0.1).see_local(standby(started=2), address=CN1).decide()
    assert (agent.address("wk1"), agent.decision.role) == (A, Role.STANDBY)


def test_local_role_while_a_restart_is_seen_over_the_network_alone() -> None:
    """A restarted primary keeps its role until the socket is asked again: the socket's older answer does not count."""
    agent = Agent(config(group("cn", CN1, CN2), group("wk1", A, B)))
    agent.see_local(standby(), address=CN1).see({CN1: standby(), CN2: primary(), A: standby(), B: primary()}).decide()
    agent.wait(0.1).see({CN1: primary(), CN2: standby()}).decide()
    assert (agent.address("wk1"), agent.decision.role) == (B, Role.PRIMARY)
    agent.wait(0.1).see({CN1: primary(started=2)}).decide()
    assert (agent.address("wk1"), agent.decision.role) == (B, Role.PRIMARY)
    agent.wait(0.1).see_local(standby(started=2), address=CN1).see({CN1: standby(started=2)}).decide()
    assert agent.decision.role is Role.STANDBY


def own_agent(*block: Target) -> Agent:
    """Return an agent on the second coordinator, with a second name for the coordinators on another port."""
    cn_ro = group("cn-ro", CN1, CN2, route=Route.STANDBY, port=6432)
    return Agent(config(group("cn", CN1, CN2), cn_ro, group("wk1", A, B)), block)


@pytest.mark.parametrize("role", [primary(), standby()], ids=["primary", "standby"])
def test_a1_own_name_leads_to_the_own_address(role: Observation) -> None:
    """The local group's name resolves to the local server in either role, and stays so while it is down or silent."""
    agent = own_agent().see_local(role, address=CN2)
    agent.see({CN2: role, CN1: primary()}).decide()
    assert agent.leads("cn") == f"cn → {CN2} (this server)"
    assert code(agent, "cn") is Code.SELF
    agent.see_local(dead()).see({CN2: dead()}).decide()
    assert agent.address("cn") == CN2
    agent.wait(3600).see_local(unreachable()).see({CN2: rejecting(), CN1: primary()}).decide()
    assert agent.address("cn") == CN2
    agent.restart().see({CN1: primary(timeline=8), CN2: dead()}).decide()
    assert agent.leads("cn") == f"cn → {CN2} (this server)"


def test_own_name_through_the_local_servers_restart() -> None:
    """A restarted local server is recognised by whichever of its two probes sees the new start first."""
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


def test_own_name_where_the_answer_to_an_early_question_is_late() -> None:
    """A question over the network may be asked before the restart, and the socket's answer come from before it."""
    agent = own_agent().see_local(standby(), address=CN2).see({CN1: standby(), CN2: standby()}).decide()
    agent.wait(0.1).see({CN2: dataclasses.replace(standby(started=1), answered_at=agent.now + 0.2)})
    agent.wait(0.1).see_local(standby(), address=CN2)
    assert agent.wait(0.1).decide().address("cn") == CN2


def test_own_address_under_two_names() -> None:
    """Once recognised under one name, its address stays under the other name until that node is asked again."""
    agent = Agent(config(group("cn", CN1, CN2), group("cn2", CN1, CN2, port=6432)))
    agent.see_local(primary(), address=CN2)
    agent.see({CN2: primary(), CN1: standby(), Node(CN2, 6432): primary(), Node(CN1, 6432): standby()}).decide()
    assert (agent.address("cn"), agent.address("cn2")) == (CN2, CN2)
    agent.wait(0.1).see_local(primary(started=1), address=CN2).see({CN2: primary(started=1)}).decide()
    assert (agent.address("cn"), agent.address("cn2")) == (CN2, CN2)


@pytest.mark.parametrize("here", [CN1, CN2], ids=["on the primary", "on the standby"])
@pytest.mark.parametrize("restarted", [False, True], ids=["the same run", "a restart"])
def test_a_fixed_route_is_kept_in_the_own_group(here: str, restarted: bool) -> None:  # noqa: FBT001 -- a table's column
    """On a node of its own group a name with a fixed route leads to the role that the operator chose, in any role."""
    routes = {"cn": Route.FOLLOW, "cn-rw": Route.PRIMARY, "cn-ro": Route.STANDBY}
    local = primary() if here == CN1 else standby()
    agent = Agent(config(*(group(name, CN1, CN2, route=route) for name, route in routes.items())))
    for _ in range(1 + restarted):
        agent.restart().see_local(local, address=here).see({CN1: primary(), CN2: standby()}).decide()
        assert [agent.address(name) for name in routes] == [here, CN1, CN2]
    assert {state.own for state in agent.decision.groups.values()} == {here}


def test_a_block_from_before_fixed_routes_were_kept() -> None:
    """A fixed-route name that the block calls the local server's own goes by its table, and is held in silence."""
    rw = group("cn-rw", CN1, CN2, route=Route.PRIMARY)
    agent = Agent(config(rw), [remembered(CN2, SELF, name="cn-rw", last=CN1)]).see_local(standby(), address=CN2)
    agent.see({CN1: rejecting(), CN2: standby()}).decide()
    assert (code(agent, "cn-rw"), agent.address("cn-rw")) == (Code.HELD, CN1)


def test_recognised_by_identity_not_by_address() -> None:
    """If the local server's node answers at another address, the name follows it there."""
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
    """The block's own address is given up once the nodes and the local server are seen to be different servers."""
    agent = Agent(config(group("cn", *nodes)), [remembered(CN2, SELF, name="cn", last=CN1)])
    agent.see(seen).decide()
    assert agent.address("cn") == CN2
    agent.see_local(primary()).decide()
    assert agent.leads("cn") == f"cn → {CN1} (primary, timeline 7)"


def test_own_name_is_given_up_when_recognised_elsewhere() -> None:
    """When a server moves to another group, its old name goes back to the old group."""
    agent = Agent(config(group("wk1", A, B), group("wk2", D, E)), [remembered(A, SELF, last=B)])
    agent.see({A: dead(), B: primary(), D: primary()}).see_local(primary(), address=D).decide()
    assert agent.leads("wk1") == f"wk1 → {B} (primary, timeline 7)"
    assert agent.leads("wk2") == f"wk2 → {D} (this server)"


@pytest.mark.parametrize(
    ("state", "claim", "expected"),
    [
        pytest.param(NodeState(), None, None, id="nothing known"),
        pytest.param(IN_RECOVERY, None, None, id="still in recovery, even for minutes"),
        pytest.param(local(Role.STANDBY, 1e6), LockClaim(1e6, leads=True), None, id="no clock ends it"),
        pytest.param(local(Role.PRIMARY, 101.0), None, PROMOTED, id="promoted"),
        pytest.param(local(Role.PRIMARY, 101.0), LockClaim(101.0, leads=True), PROMOTED, id="promoted, with Patroni"),
        pytest.param(local(Role.PRIMARY, 99.0), None, None, id="primary before it was announced"),
        pytest.param(IN_RECOVERY, LockClaim(101.0, leads=False), NO_LOCK, id="the lock is another's"),
        pytest.param(IN_RECOVERY, LockClaim(99.0, leads=False), None, id="the lock was another's before"),
        pytest.param(IN_RECOVERY, LockClaim(101.0, leads=True), None, id="holds the lock"),
        pytest.param(local(Role.STANDBY, 101.0, 7), None, None, id="the WAL receiver is still the old one"),
        pytest.param(local(Role.STANDBY, 101.0, 8), None, STREAMS, id="a new WAL receiver"),
        pytest.param(local(Role.STANDBY, 99.0, 8), None, None, id="a WAL receiver from before"),
        pytest.param(local(Role.STANDBY, 101.0, 8), LockClaim(99.0, leads=False), None, id="awaiting Patroni's answer"),
        pytest.param(local(ProbeFailure.DEAD, 101.0), None, None, id="the server is down"),
    ],
)
def test_how_it_ended(state: NodeState, claim: LockClaim | None, expected: str | None) -> None:
    """An announcement lasts until the promotion or contrary evidence is seen; no time limit ends it."""
    assert how_it_ended(ANNOUNCED, local=state, claim=claim, primary_at=101.0) == expected


@pytest.mark.parametrize(
    ("announced", "primary_at", "expected"),
    [
        pytest.param(Announced(since=100.0), 101.0, STREAMS, id="there was none"),
        pytest.param(Announced(since=100.0), 99.0, None, id="no primary was seen since"),
        pytest.param(Announced(since=100.0), None, None, id="no primary was ever seen"),
        pytest.param(Announced(since=100.0, receiver_known=False), 101.0, None, id="whether there was one is unknown"),
    ],
)
def test_a_receiver_is_new_by_what_is_known_of_before(
    announced: Announced, primary_at: float | None, expected: str | None
) -> None:
    """A server that lost its primary and streams from a visible one again is not about to be promoted."""
    state = local(Role.STANDBY, 101.0, 1)
    assert how_it_ended(announced, local=state, claim=None, primary_at=primary_at) == expected


def test_the_receiver_of_before_is_the_first_one_seen() -> None:
    """An agent that was started by the announcement takes the first WAL receiver it sees as the old one."""
    announced = Announced(since=100.0, receiver_known=False).after(NodeState())
    assert not announced.receiver_known
    announced = announced.after(local(Role.STANDBY, 100.5, 3))
    assert announced == Announced(since=100.0, receiver=3)
    assert announced.after(local(Role.STANDBY, 100.6, 4)) == announced


def test_a_server_that_died_since_has_no_receiver_of_before() -> None:
    """An agent that could not ask its server until that was promoted, and then restarted as a standby, finds its end.

    What was seen before the login was refused is no receiver of that moment, nor is what died before.
    """
    before = local(Role.STANDBY, 90.0, 3).after(failed(ProbeFailure.REJECTING, 99.0))
    announced = Announced(since=100.0, receiver_known=False).after(before)
    assert not announced.receiver_known
    assert not announced.after(before.after(failed(ProbeFailure.DEAD, 99.5))).receiver_known
    announced = announced.after(before.after(failed(ProbeFailure.DEAD, 101.0)))
    assert how_it_ended(announced, local=local(Role.STANDBY, 103.0, 4), claim=None, primary_at=102.0) == STREAMS


@pytest.mark.parametrize(
    ("state", "claim", "expected"),
    [
        pytest.param(IN_RECOVERY, None, False, id="no Patroni"),
        pytest.param(IN_RECOVERY, LockClaim(99.0, leads=False), False, id="not the leader"),
        pytest.param(IN_RECOVERY, LockClaim(99.0, leads=True), True, id="the leader"),
        pytest.param(local(Role.STANDBY, 101.0, 8), LockClaim(99.0, leads=True), True, id="the leader a moment ago"),
        pytest.param(IN_RECOVERY, LockClaim(10.0, leads=True), True, id="silent since, and not connected to a primary"),
        pytest.param(local(Role.STANDBY, 101.0, 8), LockClaim(10.0, leads=True), False, id="silent since, and streams"),
        pytest.param(
            local(Role.STANDBY, 100.5, 8).after(Observation(result=ProbeFailure.DEAD, at=101.0)),
            LockClaim(10.0, leads=True),
            True,
            id="silent since, and streamed before it died",
        ),
        pytest.param(
            local(Role.STANDBY, 100.5, 8).after(Observation(result=ProbeFailure.NOT_SERVING, at=101.0)),
            LockClaim(10.0, leads=True),
            True,
            id="silent since, and streamed before it shut down",
        ),
    ],
)
def test_holds_lock(state: NodeState, claim: LockClaim | None, expected: bool) -> None:  # noqa: FBT001 -- a table's column
    """Patroni's last answer counts while it is silent, unless the server streams from a primary."""
    assert holds_lock(claim, local=state, now=101.0, max_age_s=MAX_AGE_S) is expected


@pytest.mark.parametrize(
    ("state", "system_id", "expected"),
    [
        pytest.param(NodeState(), 2, True, id="the local server was never seen"),
        pytest.param(KNOWN, 1, True, id="of its cluster"),
        pytest.param(KNOWN, None, True, id="Patroni does not say"),
        pytest.param(KNOWN, 2, False, id="of another cluster"),
    ],
)
def test_whose_claim_it_is(state: NodeState, system_id: int | None, expected: bool) -> None:  # noqa: FBT001 -- as above
    """The answer of a foreign Patroni neither cancels a promotion nor makes a primary."""
    claim = LockClaim(101.0, leads=True, system_id=system_id)
    assert believable(claim, local=state) == (claim if expected else None)


def test_without_a_local_server() -> None:
    """With ``local: off`` no role and no own address is left of a run with one; names with a fixed route keep to it."""
    names = (group("cn", A, B, route=Route.PRIMARY), group("cn-ro", A, B, route=Route.STANDBY))
    agent = Agent(config(*names)).see({A: primary(), B: standby()}).see_local(primary(), address=A).decide()
    assert agent.decision.role is Role.PRIMARY
    assert agent.decision.groups["cn"].own == A
    agent.config, agent.local = config(*names, has_local=False), NodeState()
    agent.decide()
    assert agent.decision.role is None
    assert agent.decision.groups["cn"].own is None
    assert (agent.address("cn"), agent.address("cn-ro")) == (A, B)
    assert not agent.alerts
    agent.see({A: dead(), B: primary(timeline=8)}).decide()
    assert (agent.address("cn"), agent.alerts) == (B, {"cn-ro:fenced"})
