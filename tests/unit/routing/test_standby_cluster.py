"""A site that is a Patroni standby cluster: no primary anywhere, every server in recovery, reads all the same."""

from __future__ import annotations

import pytest

from resolver_agent.config.model import Fallback, Node, Route
from resolver_agent.routing.observation import Observation, PatroniStatus, Role
from resolver_agent.routing.state import FENCE
from tests.unit.builders import MAX_AGE_S, Agent, config, dead, group, node, remembered, standby
from tests.unit.routing.builders import CN1, CN2, PRIMARY, A, B, D, E


@pytest.mark.parametrize("fallback", Fallback, ids=lambda one: one.value)
@pytest.mark.parametrize("here", [CN1, CN2], ids=["beside the standby leader", "beside its standby"])
@pytest.mark.parametrize("limited", [False, True], ids=["no limit", "lag limits"])
def test_names_lead_to_standbys(fallback: Fallback, here: str, limited: bool) -> None:  # noqa: FBT001 -- a table's column
    """Every name that follows leads to a standby, through restarts and the loss of one, without an alert."""
    max_lag_bytes, max_lag_s = (100, 1.0) if limited else (None, None)
    wk1, wk2 = (
        group(name, *hosts, max_lag_bytes=max_lag_bytes, max_lag_s=max_lag_s)
        for name, hosts in (("wk1", (A, B)), ("wk2", (D, E)))
    )
    groups = [group("cn", CN1, CN2), wk1, wk2]
    agent = Agent(config(*groups, fallback=fallback))
    agent.patroni = {"wk1": PatroniStatus(), "wk2": PatroniStatus(leader=node(D))}  # an older one says that D leads
    everyone: dict[str | Node, Observation] = dict.fromkeys((CN1, CN2, A, B, D, E), standby())
    for _ in range(3):
        agent.see_local(standby(), address=here).see(everyone).decide()
        assert [agent.address(name) for name in ("cn", "wk1", "wk2")] == [here, A, D]
        assert agent.alerts == set()
        agent.wait(MAX_AGE_S)
    agent.restart().see_local(standby(), address=here).see(everyone).decide()
    assert [agent.address(name) for name in ("cn", "wk1", "wk2")] == [here, A, D]
    agent.see({A: dead()}).decide()
    assert agent.address("wk1") == B
    assert agent.decision.role is Role.STANDBY


def test_a_name_that_always_wants_the_primary_is_fenced() -> None:
    """There is none, so such a name is fenced (R2), also where the site had a primary once."""
    rw = group("wk1", A, B, route=Route.PRIMARY)
    for block in ([], [remembered(A, PRIMARY)]):
        agent = Agent(config(rw), block).see_local(standby()).see({A: standby(), B: standby()}).decide()
        assert agent.address() == FENCE
