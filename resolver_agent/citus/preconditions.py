"""Decides whether 2PC recovery and clean-up may run on the local server: values in, values out (rule R6).

2PC recovery that reaches a standby, or runs on a coordinator that was deposed, loses committed transactions. These
preconditions must hold before a pass begins and until it ends. Inside the transaction, ``recovery`` also checks which
servers Citus itself reached.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.config.model import Route
from resolver_agent.routing.observation import Role, nodes_at
from resolver_agent.routing.state import Code, GroupState, TargetKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Config, Group, Node
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import LockClaim, NodeState

_CONFIRMED = (Code.PRIMARY, Code.LEADER)
_UNDECIDED = GroupState()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the preconditions are checked against, besides the decision.

    An answer counts only if its question was asked at ``since`` or later, and no more than ``max_age_s`` seconds before
    ``now``. ``nodes`` and ``local`` are what is known of the servers now; an answer that the decision was not made from
    counts only if it is the same but for its time. ``claims`` are the local Patroni's answers about the leader lock, by
    name of the group. ``written`` reports that the decision is on disk, ``flushed`` that Citus' cached connections were
    closed since.
    """

    now: float
    since: float
    max_age_s: float
    nodes: Mapping[Node, NodeState]
    local: NodeState
    claims: dict[str, LockClaim | None]
    written: bool
    flushed: bool

    def counts(self, at: float) -> bool:
        """Report whether the answer to a question that was asked at ``at`` counts."""
        return at >= self.since and self.now - at < self.max_age_s


def blocker(config: Config, decision: Decision, evidence: Evidence) -> str | None:
    """Return in words why recovery and clean-up must not run here now, or None if they may.

    They may run if all of these hold:

    - the local server is the accepted primary of its group;
    - its Patroni, if configured, holds the leader lock;
    - every name on disk resolves to a confirmed primary (the one with the leader lock, if Patroni says which) or is
      fenced;
    - the last change is flushed;
    - no name is pinned or paused, whether that counts or not.
    """
    local = evidence.local.role_seen
    if local is None or evidence.local.seen_dead or local.role is not Role.PRIMARY or not evidence.counts(local.at):
        return "the local PostgreSQL has not just been seen as a primary"
    own = [group for group in config.groups if _state(decision, group).own is not None]
    if not own:
        return "the local PostgreSQL is not a node of any name"
    named = [group for group in config.groups if _state(decision, group).own is None or group.route is Route.PRIMARY]
    others = [group for group in named if group.route is not Route.STANDBY]
    by_hand = [f"{group.name} is pinned" for group in others if group.name in decision.pins]
    blockers = [
        "names are paused" if decision.paused else next(iter(by_hand), None),
        *(_own_blocker(group, decision, evidence) for group in own),
        *(_lock_blocker(group, evidence) for group in own if group.patroni is not None),
        *(_name_blocker(group, decision) for group in others),
        None if evidence.written else "the hosts file does not hold the last decision",
        None if evidence.flushed else "cached connections are not flushed yet",
    ]
    return next((words for words in blockers if words is not None), None)


def _state(decision: Decision, group: Group) -> GroupState:
    return decision.groups.get(group.name, _UNDECIDED)


def _own_blocker(group: Group, decision: Decision, evidence: Evidence) -> str | None:
    view = decision.views.get(group.name)
    if view is None:
        return f"nothing is known of {group.name}"
    primary = view.primary
    if primary.seen is None or primary.reason.code not in _CONFIRMED or primary.address != _state(decision, group).own:
        return f"the local PostgreSQL is not the accepted primary of {group.name} ({primary.reason.text})"
    for node, seen in view.fresh.items():
        state = evidence.nodes.get(node)
        again = state.role_seen if state is not None and state.change_key == view.states[node].change_key else None
        if seen is primary.seen and (again is None or not evidence.counts(again.at)):
            return f"the primary of {group.name} has not just been seen"
        # A node that was a standby a moment ago may have been promoted since.
        if again is None or again.at < evidence.since:
            return f"{node.host} of {group.name} has not answered again yet"
    return None


def _lock_blocker(group: Group, evidence: Evidence) -> str | None:
    claim = evidence.claims.get(group.name)
    if claim is None or not evidence.counts(claim.at):
        return f"the local Patroni does not say that it leads {group.name}"
    return None if claim.leads else f"the local Patroni does not hold the leader lock of {group.name}"


def _name_blocker(group: Group, decision: Decision) -> str | None:
    state, view = _state(decision, group), decision.views.get(group.name)
    if state.target is None:
        return f"{group.name} is left out of the hosts file"
    if state.target.kind is TargetKind.FENCED:
        return None
    if view is None or state.target.kind is not TargetKind.PRIMARY or state.reason.code not in _CONFIRMED:
        return f"no confirmed primary: {state.target}"
    # What is resolved on a primary that was deposed is lost with it. Its commit record here would be gone as well.
    leader = view.leader
    if leader is not None and leader not in nodes_at(state.target.address, group, view.states):
        return f"{group.name}: {leader.host} holds the leader lock, but is not yet seen as the primary"
    return None
