"""Who the local server is among the nodes: its role, and its own address in its own group (rule R3).

Values in, values out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.model import Kind, Role
from resolver_agent.primary import nodes_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config import Config
    from resolver_agent.groupview import GroupView
    from resolver_agent.model import Decision, Node, NodeState, Observation, Observations


def local_role(views: list[GroupView], observations: Observations, previous: Decision) -> Role | None:
    """Return the last known role of the local server: that of a primary, as soon as any probe has seen it as one.

    All that is compared was seen of one run of the server, and only a restart leads back into recovery. Which probe was
    answered last is not known: what is noted is when it began.
    """
    seen = [view.own_seen for view in views if view.own_seen is not None]
    if observations.local.role_seen is not None:
        seen.append(observations.local.role_seen)
    if not seen:
        return previous.role
    return Role.PRIMARY if any(one.kind is Kind.PRIMARY for one in seen) else Role.STANDBY


def own_addresses(views: list[GroupView], local: NodeState, fresh: Observation | None) -> dict[str, str]:
    """Return the local server's own address for each name of its own group (R3).

    It stays recognised while it is down: until it is recognised at another address, or both it and the server at that
    address were asked, each after the other's last start, and are not the same.
    """
    seen = {view.group.name: view.own_seen.address for view in views if view.own_seen and view.own_seen.address}
    addresses = set(seen.values())
    remembered = {
        view.group.name: view.own
        for view in views
        if view.own is not None
        and (view.own in addresses if addresses else not _is_another(view, view.own, local, fresh))
    }
    return remembered | seen


def own_nodes(config: Config, decision: Decision, states: Mapping[Node, NodeState]) -> dict[str, Node]:
    """Return which node the local server is, for each name of its own group."""
    return {
        group.name: node
        for group in config.groups
        if (state := decision.groups.get(group.name)) is not None and state.own is not None
        for node in nodes_at(state.own, group, states)[:1]
    }


def _is_another(view: GroupView, own: str, local: NodeState, fresh: Observation | None) -> bool:
    """Report whether the server at ``own``, or every one of the group, is seen to be another than the local server."""
    return fresh is not None and all(
        node in view.fresh and view.fresh[node].at >= local.same_since and fresh.at >= view.states[node].same_since
        for node in nodes_at(own, view.group, view.states) or view.group.nodes
    )
