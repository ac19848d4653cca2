"""Whether Citus may do its background work on other nodes from here: values in, values out (rule R6).

2PC recovery that meets a standby, or runs on a coordinator that was deposed, loses committed transactions. What Citus
itself reached is checked again inside the transaction (``recovery``); this is what has to be true before it begins,
and until it ends.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.model import Code, GroupState, Kind, Route, Standing

if TYPE_CHECKING:
    from resolver_agent.config import Config, Group
    from resolver_agent.model import Claim, Decision, NodeState

_CONFIRMED = (Code.PRIMARY, Code.LEADER)
_UNDECIDED = GroupState()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What consent rests on, besides the decision.

    Only what was asked from ``since`` on counts, and for no longer than ``max_age_s`` seconds before ``now``.
    ``claims`` are what the local Patroni said of the leader lock, by name of the group. ``written`` and ``flushed``
    report that the decision is on disk, and that Citus' cached connections were closed since.
    """

    now: float
    since: float
    max_age_s: float
    local: NodeState
    claims: dict[str, Claim | None]
    written: bool
    flushed: bool

    def counts(self, at: float) -> bool:
        """Report whether an answer to what was asked at ``at`` counts."""
        return at >= self.since and self.now - at < self.max_age_s


def hindrance(config: Config, decision: Decision, evidence: Evidence) -> str | None:
    """Return in words why recovery and clean-up must not run here now, or None where they may.

    They may where the local server is its own group's accepted primary, its Patroni (where configured) holds the leader
    lock, every name on disk leads to a confirmed primary or is fenced, and the last change is flushed.
    """
    local = evidence.local.role_seen
    if local is None or evidence.local.over or local.kind is not Kind.PRIMARY or not evidence.counts(local.at):
        return "the local PostgreSQL has not just been seen as a primary"
    own = [group for group in config.groups if _state(decision, group).own is not None]
    if not own:
        return "the local PostgreSQL is no node of any name"
    others = [group for group in config.groups if group not in own and group.route is not Route.STANDBY]
    hindrances = [
        *(_own_hindrance(group, _state(decision, group), evidence) for group in own),
        *(_name_hindrance(group, _state(decision, group)) for group in others),
        None if evidence.written else "the hosts file does not say what was decided",
        None if evidence.flushed else "cached connections are not flushed yet",
    ]
    return next((words for words in hindrances if words is not None), None)


def _state(decision: Decision, group: Group) -> GroupState:
    return decision.groups.get(group.name, _UNDECIDED)


def _own_hindrance(group: Group, state: GroupState, evidence: Evidence) -> str | None:
    primary = state.view.primary if state.view is not None else None
    accepted = primary is not None and primary.seen is not None and primary.reason.code in _CONFIRMED
    if primary is None or not accepted or primary.address != state.own:
        words = primary.reason.text if primary is not None else "nothing known"
        return f"the local PostgreSQL is not the accepted primary of {group.name} ({words})"
    if primary.seen is None or not evidence.counts(primary.seen.at):
        return f"the primary of {group.name} has not just been asked"
    if group.patroni is None:
        return None
    claim = evidence.claims.get(group.name)
    if claim is None or not evidence.counts(claim.at):
        return f"the local Patroni does not say that it leads {group.name}"
    return None if claim.leads else f"the local Patroni does not hold the leader lock of {group.name}"


def _name_hindrance(group: Group, state: GroupState) -> str | None:
    if state.target is None:
        return f"{group.name} is left out"
    if state.target.standing is Standing.FENCED or (
        state.target.standing is Standing.PRIMARY and state.reason.code in _CONFIRMED
    ):
        return None
    return f"no confirmed primary: {state.target}"
