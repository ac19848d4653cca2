"""Which database cluster a group is of: values in, values out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.routing.observation import NodeState, Observation, PatroniStatus, Role, asked_all
from resolver_agent.routing.state import Alert, AlertCode, GroupState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Group, Node


def find_system_id(
    group: Group,
    before: GroupState,
    status: PatroniStatus,
    *,
    states: Mapping[Node, NodeState],
    fresh: Mapping[Node, Observation],
) -> tuple[int | None, list[Alert]]:
    """Return the group's system identifier: its last known primary's.

    Another one is accepted when all nodes that answer agree on it and none has the old one (pg_upgrade,
    re-initialisation), or Patroni reports it. Nodes that were foreign beside the old one do not count for that: else
    a foreign server would take over as soon as the group's own were down.
    """
    ids = {node: seen.identity.system_id for node, seen in fresh.items() if seen.identity is not None}
    known = before.memory.system_id
    if status.system_id is not None:
        found: int | None = status.system_id
    elif known is None:
        found = _presumed_system_id(states, fresh, ids, before)
    else:
        agreed = set(ids.values())
        replaced = len(agreed) == 1 and not ids.keys() <= before.memory.foreign
        found = agreed.pop() if replaced else known
    if known is None or found == known:
        return found, []
    text = f"{group.name}: system identifier {found} in place of {known}: another database cluster took its place"
    return found, [Alert(AlertCode.REPLACED, text, of=(group.name,))]


def _presumed_system_id(
    states: Mapping[Node, NodeState], fresh: Mapping[Node, Observation], ids: Mapping[Node, int], before: GroupState
) -> int | None:
    """Return the identifier to go by while no primary was accepted in this run.

    The last known primary's, or where there is none, that of all primaries; else that of the name's present target;
    else the one that all agree on. A vote waits until everybody was asked: nobody is believed for answering first.
    """
    target = before.target.address if before.target is not None else None
    at_last, at_target = (
        [node for node in ids if fresh[node].address == one] for one in (before.memory.primary, target)
    )
    everyone = list(ids) if asked_all(states) else []
    primaries = [node for node in everyone if fresh[node].role is Role.PRIMARY]
    circles = (at_last if before.memory.primary is not None else primaries, at_target, everyone)
    return next((agreed.pop() for circle in circles if len(agreed := {ids[node] for node in circle}) == 1), None)


def describe_foreign(seen: Observation, system_id: int | None) -> str:
    """Say why a node does not count that answered; ``system_id`` is the group's."""
    found = seen.identity.system_id if seen.identity else "unknown"
    if system_id is None:
        return f"{seen.address} is of database cluster {found}, and which one is right is not known yet"
    return f"{seen.address} is of another database cluster (system identifier {found})"
