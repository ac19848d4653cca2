"""Which database cluster a group belongs to: values in, values out."""

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
    """Return the group's system identifier, that of its last known primary, and an alert where it was replaced.

    Another one is accepted when Patroni reports it, or when all nodes that answer agree on it (pg_upgrade,
    re-initialisation). It is not accepted from nodes that were all foreign before: otherwise a foreign server would
    take over as soon as the group's own servers were down.
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
    """Return the identifier to use while no primary was accepted in this run of the agent.

    It is that of the last known primary, or where none is known, of all primaries; otherwise that of the name's present
    target; otherwise the one that all nodes agree on. Nodes vote only once all of them were asked, so the first answer
    does not decide.
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
    """Say why a node that answered does not count; ``system_id`` is the group's."""
    found = seen.identity.system_id if seen.identity else "unknown"
    if system_id is None:
        return f"{seen.address} is of database cluster {found}, and which one is right is not known yet"
    return f"{seen.address} is of another database cluster (system identifier {found})"
