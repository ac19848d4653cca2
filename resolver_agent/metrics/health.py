"""Whether an agent is fit for what a load balancer or Kubernetes asks: values in, an answer and its reason out.

The paths are those of Patroni's REST API, so that HAProxy's checks need no other words.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.config.model import NO_LOCAL, Route
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resolver_agent.config.model import Config, Group
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import NodeState
    from resolver_agent.routing.state import GroupState

_LEAST_S = 10.0
_PATIENCE = 3
"""How many rounds may be missing, and the shortest time."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """An agent at one moment.

    ``silent_s`` is how long ago a round, or a step of the start, last succeeded. ``written``: the hosts file has what
    was decided. ``leads`` is what the local Patroni last said of the leader lock, None where nothing is known.
    """

    config: Config
    decision: Decision
    local: NodeState
    silent_s: float
    written: bool
    leads: bool | None


def liveness(facts: Facts) -> str | None:
    """Return why the agent should be started anew, None while its rounds succeed."""
    limit_s = max(_LEAST_S, _PATIENCE * facts.config.max_age_s)
    return None if facts.silent_s < limit_s else f"no round has succeeded for {facts.silent_s:.0f} s"


def readiness(facts: Facts) -> str | None:
    """Return why names do not resolve yet, None once all are written."""
    if not facts.written or not facts.decision.groups:
        return "the hosts file does not have all names yet"
    left_out = [
        group.name
        for group in facts.config.groups
        if (state := facts.decision.groups.get(group.name)) is None or state.target is None
    ]
    return f"left out: {', '.join(left_out)}" if left_out else None


def primary(facts: Facts) -> str | None:
    """Return why nothing should be written through the local server, None if it is a primary with its names."""
    if not facts.config.has_local:
        return NO_LOCAL
    if facts.decision.role is not Role.PRIMARY:
        return "the local PostgreSQL is not a primary"
    if facts.leads is False:
        return "the local Patroni does not hold the leader lock"
    return _not_serving(facts)


def read_only(facts: Facts) -> str | None:
    """Return why nothing should be read through the local standby, None if all its names lead to fit standbys.

    Whoever has pinned or paused a name has chosen its standby: as long as that is seen, it counts as fit.
    """
    if not facts.config.has_local:
        return NO_LOCAL
    if facts.decision.role is not Role.STANDBY:
        return "the local PostgreSQL is not a standby"
    for group in facts.config.groups:
        state = facts.decision.groups.get(group.name)
        if group.route is Route.FOLLOW and not (state is not None and _serves_reads(facts, group, state)):
            return str(state.target) if state is not None and state.target is not None else f"{group.name} is left out"
    return _not_serving(facts)


def _serves_reads(facts: Facts, group: Group, state: GroupState) -> bool:
    if state.reason.code in (Code.SELF, Code.STANDBY):
        return True
    view = facts.decision.views.get(group.name)
    if state.target is None or view is None or not facts.decision.by_hand(group.name):
        return False
    there = (seen for seen in view.fresh.values() if seen.address == state.target.address)
    return any(seen.role is Role.STANDBY for seen in there)


def _not_serving(facts: Facts) -> str | None:
    latest = facts.local.latest
    if facts.local.serves_no_reads and latest is not None:
        return f"the local PostgreSQL is {latest.result.value} ({latest.detail})"
    return None if facts.written else "the hosts file does not have all names yet"


CHECKS: Mapping[str, Callable[[Facts], str | None]] = {
    "/liveness": liveness,
    "/readiness": readiness,
    "/primary": primary,
    "/read-only": read_only,
}
