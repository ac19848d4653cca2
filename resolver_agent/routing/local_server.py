"""The local server: its role, its own address among the nodes, and a promotion of it that was announced.

Values in, values out.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import ProbeFailure, Role, nodes_at
from resolver_agent.routing.state import Alert, AlertCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Config, Node
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import Identity, LockClaim, NodeState, Observation, Observations
    from resolver_agent.routing.view import GroupView


def local_role(
    views: list[GroupView], observations: Observations, previous: Decision
) -> tuple[Role | None, Identity | None]:
    """Return the last known role of the local server, and the run of it that was last seen as a primary.

    A run is one start of the server. Once any probe has seen a run as a primary, the server is a primary until the
    local probe sees another run: only a restart puts a server back into recovery. The probes themselves cannot be
    ordered by their answers, because an observation holds when its probe began.
    """
    local = observations.local.role_seen
    if local is None:
        return previous.role, previous.primary_run  # A2
    seen = [local, *(view.own_seen for view in views if view.own_seen is not None)]  # all of this run
    if any(one.result is Role.PRIMARY for one in seen):
        return Role.PRIMARY, local.identity
    if local.identity is not None and local.identity == previous.primary_run:
        return Role.PRIMARY, previous.primary_run
    return Role.STANDBY, previous.primary_run


def own_addresses(views: list[GroupView], observations: Observations, fresh: Observation | None) -> dict[str, str]:
    """Return the local server's own address for each name of its own group, of any route.

    The local server stays recognised while it is down. That ends when it is recognised at another address, or when both
    it and the server at that address were asked, each after the other's last start, and are not the same server.
    ``fresh`` is the local server's last answer, if it counts.
    """
    seen = {view.group.name: view.own_seen.address for view in views if view.own_seen and view.own_seen.address}
    addresses = set(seen.values())
    remembered = {
        view.group.name: own
        for view in views
        if (own := view.before.own) is not None
        and (own in addresses if addresses else not _is_another(view, own, observations, fresh))
    }
    return remembered | seen


def own_nodes(config: Config, decision: Decision, states: Mapping[Node, NodeState]) -> dict[str, Node]:
    """Return the node that the local server is, for each name of its own group."""
    return {
        group.name: node
        for group in config.groups
        if (state := decision.groups.get(group.name)) is not None and state.own is not None
        for node in nodes_at(state.own, group, states)[:1]
    }


def rival_seen_at(config: Config, own: Mapping[str, Node], states: Mapping[Node, NodeState]) -> float | None:
    """Return when another node of the local server's group was last seen as a primary and has not died since.

    ``own`` is the node that the local server is, by name of its group.
    """
    others = {node for group in config.groups if group.name in own for node in group.nodes}
    found = [states[node] for node in others - set(own.values())]
    seen = [state.role_seen for state in found if state.last_role is Role.PRIMARY and not state.seen_dead]
    return max((one.at for one in seen if one is not None), default=None)


def _is_another(view: GroupView, own: str, observations: Observations, fresh: Observation | None) -> bool:
    """Report whether the server at ``own`` is another than the local one; every node, if none has that address."""
    return fresh is not None and all(
        node in view.fresh
        and (seen := (state := observations.nodes[node]).role_seen) is not None
        and seen.at >= observations.local.same_since
        and fresh.at >= state.same_since
        for node in nodes_at(own, view.group, view.states) or view.group.nodes
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A promotion that was announced at ``since`` (seconds of CLOCK_BOOTTIME).

    ``receiver`` is the process number of the WAL receiver that was connected then, if one was. ``receiver_known`` is
    False until the server was asked for it.
    """

    since: float
    receiver: int | None = None
    receiver_known: bool = True

    def after(self, local: NodeState) -> Announced:
        """Return the same, with the WAL receiver filled in if it was not known and the server has answered.

        A server that was seen dead since has none of before: what it streams through later is a new connection.
        """
        latest = local.latest
        if self.receiver_known or latest is None:
            return self
        has_ended = latest.result is ProbeFailure.DEAD and latest.at >= self.since
        return Announced(since=self.since, receiver=latest.receiver) if latest.role or has_ended else self

    @property
    def alert(self) -> Alert:
        """The alert while the announcement lasts: until then no reads go to standbys."""
        text = (
            "a promotion of the local PostgreSQL was announced (pre-promote) and has not happened yet: names lead to "
            "primaries; if none is under way, `resolver-agent pre-promote --cancel` takes it back"
        )
        return Alert(AlertCode.ANNOUNCED, text)


def how_it_ended(
    announced: Announced, *, local: NodeState, claim: LockClaim | None, primary_at: float | None
) -> str | None:
    """Return in words what ended an announced promotion, or None while it is under way.

    Only answers to questions asked since the announcement count. ``claim`` is the local Patroni's last answer about the
    leader lock, None where no Patroni is configured or it never answered. Without it, a new connection of the WAL
    receiver ends the promotion if another primary of the group was seen since (``primary_at`` is when one was last
    seen): the server follows that one.
    """
    seen = local.role_seen
    if seen is not None and seen.at < announced.since:
        seen = None
    if seen is not None and seen.role is Role.PRIMARY:
        return "the local PostgreSQL was promoted"
    if claim is not None and claim.at >= announced.since:
        return None if claim.leads else "the local Patroni does not hold the leader lock"
    streams = seen is not None and announced.receiver_known and seen.receiver not in (None, announced.receiver)
    if claim is None and streams and primary_at is not None and primary_at >= announced.since:
        return "the local PostgreSQL streams from a primary"
    return None  # A3


def believable(claim: LockClaim, *, local: NodeState) -> LockClaim | None:
    """Return the claim, or None where it concerns another database cluster than the local server's.

    A machine may run several servers, each with a Patroni, and the configuration may have the wrong one's port.
    """
    identity = local.role_seen.identity if local.role_seen is not None else None
    return claim if identity is None or claim.system_id in (None, identity.system_id) else None


def holds_lock(claim: LockClaim | None, *, local: NodeState, now: float, max_age_s: float) -> bool:
    """Report whether the local Patroni holds the leader lock: its server is a primary, or is about to become one.

    When Patroni has been silent for ``max_age_s`` seconds its last answer stands (R1), unless the server streams.
    """
    if claim is None or not claim.leads:
        return False
    streams = local.role_seen is not None and local.role_seen.receiver is not None and not local.serves_no_reads
    return not streams or now - claim.at < max_age_s
