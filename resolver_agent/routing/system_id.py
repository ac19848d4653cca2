"""Which database cluster a group belongs to: values in, values out.

A group's system identifier is that of its last known primary, and stands in the block. Another one is accepted when

- Patroni reports it, and a server has it; or
- no server can be left that has the old one: every node that was last seen with it, or was not seen in this run, is
  dead or has another one. Silence is no agreement. All servers that answer must agree on the new one, and one of them
  must be a primary, unless every node has it. Where Patroni is configured a primary is not enough: while it
  has no leader, a foreign server at a dead node's address must not take the group over.

Without Patroni's word that is a *replacement* until the operator confirms it by a reload. It gives way to the old one
when no server with the new one is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.routing.observation import NodeState, Observation, PatroniStatus, Role, asked_all
from resolver_agent.routing.state import Alert, AlertCode, GroupState, Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Group, Node

_MAX = 2**64
"""Identifiers have 64 bits, with or without a sign. A server that reports more than that is of no known cluster."""


def find_system_id(
    group: Group,
    before: GroupState,
    status: PatroniStatus,
    *,
    states: Mapping[Node, NodeState],
    fresh: Mapping[Node, Observation],
) -> tuple[int | None, int | None, list[Alert]]:
    """Return the group's system identifier, the one that it replaced while that is unconfirmed, and an alert of it."""
    ids = {
        node: seen.identity.system_id
        for node, seen in fresh.items()
        if seen.identity is not None and -_MAX < seen.identity.system_id < _MAX
    }
    memory = before.memory
    known, replaced = memory.system_id, memory.replaced_id
    if status.system_id is not None and status.system_id in ids.values():
        if known in (None, status.system_id):
            return status.system_id, None, []
        return status.system_id, None, [_alert(group, status.system_id, known, "Patroni reports it")]
    if known is None:
        return _presumed_system_id(states, fresh, ids, before), None, []
    successor = _find_successor(group, memory, known, states=states, fresh=fresh, ids=ids)
    if successor is not None:
        confirmed = known if replaced is None else replaced
        known, replaced = successor, None if successor == confirmed else confirmed
    if replaced is None:
        return known, None, []
    fix = "if that is right, confirm it with `systemctl reload resolver-agent`"
    return known, replaced, [_alert(group, known, replaced, fix)]


def _alert(group: Group, found: int, old: int | None, why: str) -> Alert:
    text = f"{group.name}: system identifier {found} in place of {old}: another database cluster took its place; {why}"
    return Alert(AlertCode.REPLACED, text, of=(group.name,))


def _find_successor(
    group: Group,
    memory: Memory,
    known: int,
    *,
    states: Mapping[Node, NodeState],
    fresh: Mapping[Node, Observation],
    ids: Mapping[Node, int],
) -> int | None:
    """Return the identifier to accept in place of the known one, None to keep that."""
    found = set(ids.values())
    if known in found or not found:
        return None
    none_left = all(_has_left(state, known) for state in states.values())
    if memory.replaced_id in found and asked_all(states):
        back = (fresh[node].role is Role.PRIMARY for node, one in ids.items() if one == memory.replaced_id)
        if none_left or any(back):
            return memory.replaced_id
    led = group.patroni is None and any(fresh[node].role is Role.PRIMARY for node in ids)
    led = led or ids.keys() == states.keys()
    # Otherwise a foreign server would take over as soon as the group's own servers were down.
    strangers = ids.keys() <= memory.foreign
    return found.pop() if none_left and led and len(found) == 1 and not strangers else None


def _has_left(state: NodeState, system_id: int) -> bool:
    """Report whether a node is seen not to be of a database cluster, or dead; not having been seen is no evidence."""
    identity = state.role_seen.identity if state.role_seen is not None else None
    return state.dead or (identity is not None and identity.system_id != system_id)


def _presumed_system_id(
    states: Mapping[Node, NodeState], fresh: Mapping[Node, Observation], ids: Mapping[Node, int], before: GroupState
) -> int | None:
    """Return the identifier to use while no primary was ever accepted.

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


def find_foreign(states: Mapping[Node, NodeState], system_id: int | None) -> frozenset[Node]:
    """Return the nodes that were last seen as servers of another database cluster, however long ago."""
    if system_id is None:
        return frozenset()
    found = [
        node
        for node, state in states.items()
        if (seen := state.role_seen) is not None and seen.identity and seen.identity.system_id != system_id
    ]
    return frozenset(found)


def remember_foreign(
    memory: Memory, system_id: int | None, *, fresh: Mapping[Node, Observation], members: Mapping[Node, Observation]
) -> frozenset[Node]:
    """Return the nodes that are or were of another database cluster while a server of the group's own answered."""
    before = memory.foreign if system_id == memory.system_id or memory.system_id is None else frozenset()
    if not before and len(members) == len(fresh):
        return before
    return before.union(fresh if members else ()).difference(members)


def describe_foreign(seen: Observation, system_id: int | None) -> str:
    """Say why a node that answered does not count; ``system_id`` is the group's."""
    found = seen.identity.system_id if seen.identity else "unknown"
    if system_id is None:
        return f"{seen.address} is of database cluster {found}, and which one is right is not known yet"
    return f"{seen.address} is of another database cluster (system identifier {found})"
