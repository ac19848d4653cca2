"""A decision is total: whatever servers, DNS or the block say, there is one, and it can be written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.config.model import Fallback, Route
from resolver_agent.hosts import block
from resolver_agent.routing.decide import decide, resume
from resolver_agent.routing.observation import (
    Identity,
    NodeState,
    Observation,
    Observations,
    PatroniStatus,
    ProbeFailure,
    Role,
)
from resolver_agent.routing.state import FENCE, TargetKind
from tests.unit.builders import Agent, config, dead, group, node, primary, rejecting, standby
from tests.unit.routing.builders import CN1, A, B, C, on_primary, on_standby

NOWHERE = [FENCE, "0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:255.255.255.255", "fe80::1%eth0", "wk1a.example"]


@pytest.mark.parametrize("address", NOWHERE)
@pytest.mark.parametrize("local", [primary(), standby()], ids=["primary", "standby"])
def test_an_address_that_no_name_can_have(address: str, local: Observation) -> None:
    """A server that was reached at such an address is no target, and an alert; the other nodes count."""
    agent = on_primary(hosts=(A, B, C)).see_local(local)
    odd = Observation(result=local.result, at=0, address=address, lsn=1000, timeline=7, identity=Identity(1, 5))
    agent.see({A: odd, B: primary(), C: standby()}).decide()
    assert agent.address() == (B if local.role is Role.PRIMARY else C)
    assert f"{A}:5432:address" in agent.alerts
    agent.see({B: dead(), C: dead()}).decide()
    block.render(b"", agent.decision.targets)
    assert agent.address() in (B, FENCE)


def test_an_own_address_that_no_name_can_have() -> None:
    """The local server is not recognised at such an address."""
    agent = Agent(config(group("cn", CN1))).see_local(primary(), address=CN1)
    agent.see({CN1: primary()})
    seen = agent.states[node(CN1)].role_seen
    assert seen is not None
    agent.states[node(CN1)] = NodeState().after(
        Observation(result=Role.PRIMARY, at=seen.at, address="0.0.0.0", identity=seen.identity)
    )
    assert agent.decide().address("cn") is None


@pytest.mark.parametrize(
    "line",
    [
        f"{FENCE}\twk1\t# primary",
        f"{FENCE}\twk1\t# standby; primary {FENCE}",
        "0.0.0.0\twk1\t# fallback",
        f"{A}\twk1\t# fenced; primary 0.0.0.0",
    ],
)
def test_a_block_that_takes_no_ones_address_for_a_server(line: str) -> None:
    """Such a line is a fence; the fence is never a last known primary."""
    content = f"# BEGIN resolver-agent\n{line}\n# END resolver-agent\n".encode()
    agent = on_primary(*block.recall(content)).see({A: rejecting(), B: rejecting()}).decide()
    target = agent.target()
    assert target is not None
    assert (target.address, target.kind, target.primary) == (FENCE, TargetKind.FENCED, None)


def test_two_nodes_that_are_one_server() -> None:
    """One server under two names, or at two addresses, is one primary, at the address that is known already."""
    for address in (A, B):
        agent = on_standby().see_local(primary())
        agent.see({A: primary()}).decide()
        seen = agent.states[node(A)].role_seen
        assert seen is not None
        agent.states[node(B)] = NodeState().after(
            Observation(result=Role.PRIMARY, at=seen.at, address=address, timeline=7, identity=seen.identity)
        )
        assert agent.decide().leads() == f"wk1 → {A} (primary, timeline 7)"
        assert agent.alerts == set()


NUMBERS = st.integers(-(2**130), 2**130)
TIMES = st.sampled_from([0.0, -1e300, 1e300, float("inf"), float("-inf"), float("nan"), 99.0, 100.0, 101.0])
SEEN = st.builds(
    Observation,
    result=st.sampled_from([*Role, *Role, *ProbeFailure]),
    at=TIMES,
    address=st.sampled_from([None, *NOWHERE, "", A, A, B, B, "127.0.0.1", "127.0.1.1", "fd00::1"]),
    lsn=st.none() | NUMBERS,
    timeline=st.none() | NUMBERS,
    identity=st.none() | st.builds(Identity, st.sampled_from([1, 1, 2, 2**70]), NUMBERS | st.just(5)),
    receiver=st.none() | NUMBERS,
    answered_at=st.none() | TIMES,
)


@given(
    st.lists(st.lists(SEEN, min_size=4, max_size=4), min_size=1, max_size=5),
    st.sampled_from(Fallback),
    st.sampled_from([None, 1, 2, 2**70]),
    st.lists(st.sampled_from([100.0, 100.5, 3.0, 1e9]), min_size=5, max_size=5),
)
def test_any_observations_give_a_decision_that_can_be_written(
    rounds: list[list[Observation]], fallback: Fallback, system_id: int | None, clock: list[float]
) -> None:
    """Absurd numbers, times and addresses raise nothing, and no name leads to an address that is no server's."""
    limited = group("wk1", A, B, C, max_lag_bytes=100, max_lag_s=1.0)
    others = [group(route.value, A, B, C, route=route) for route in Route]
    agent = Agent(config(limited, *others, fallback=fallback))
    states, local = {node(host): NodeState() for host in (A, B, C)}, NodeState()
    decision = resume(agent.config, [])
    for seen, now in zip(rounds, clock, strict=False):
        states = {at: state.after(one) for (at, state), one in zip(states.items(), seen, strict=False)}
        local = local.after(seen[3])
        status = PatroniStatus(leader=node(A), system_id=system_id)
        observations = Observations(nodes=states, local=local, patroni={"wk1": status})
        decision = decide(agent.config, observations, decision, now)
        back = block.recall(block.render(b"", decision.targets))
        assert back == decision.targets
        for target in decision.targets:
            assert (target.address == FENCE) is (target.kind is TargetKind.FENCED)
            assert target.address not in NOWHERE[1:]
            assert target.primary not in NOWHERE
