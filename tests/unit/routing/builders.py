"""The setting of the routing tests: worker nodes, coordinators, and agents on a primary or a standby."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.config.model import Fallback, Node
from resolver_agent.routing.state import Code, Target, TargetKind
from tests.unit.builders import Agent, config, group, primary, standby

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resolver_agent.routing.observation import Observation

A, B, C = "192.168.234.203", "192.168.234.204", "192.168.234.207"
D, E = "192.168.234.205", "192.168.234.206"
CN1, CN2 = "192.168.234.201", "192.168.234.202"

REFUSED = "is dead: Connection refused"
NO_LOGIN = "cannot be asked: password authentication failed"
STARTING = "is not serving: the database system is starting up"
SILENT = "does not answer: no answer within 2 s"

SELF = TargetKind.SELF
STANDBY = TargetKind.STANDBY
PRIMARY = TargetKind.PRIMARY
FALLBACK = TargetKind.FALLBACK
FENCED = TargetKind.FENCED


def on_primary(*groups_block: Target, hosts: Sequence[str] = (A, B)) -> Agent:
    """Return an agent on a primary with one name, wk1, and this block."""
    return Agent(config(group("wk1", *hosts)), groups_block).see_local(primary())


def on_standby(
    *groups_block: Target,
    hosts: Sequence[str] = (A, B),
    fallback: Fallback = Fallback.NONE,
    max_lag_bytes: int | None = None,
    max_lag_s: float | None = None,
) -> Agent:
    """Return an agent on a standby with one name, wk1, and this block."""
    wk1 = group("wk1", *hosts, max_lag_bytes=max_lag_bytes, max_lag_s=max_lag_s)
    return Agent(config(wk1, fallback=fallback), groups_block).see_local(standby())


def code(agent: Agent, name: str = "wk1") -> Code:
    """Return the reason's code; state and target agree on the reason."""
    state = agent.decision.groups[name]
    assert state.target is None or state.target.reason == state.reason
    return state.reason.code


BOTH: dict[str | Node, Observation] = {A: standby(), B: primary(), D: standby(), E: primary()}
