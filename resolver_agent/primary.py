"""Which database cluster a group is of, and which of its nodes is its primary: values in, values out.

The rules are those of the design's table for names that wish for a primary. Where names lead is routing's to decide.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.fitness import describe
from resolver_agent.model import (
    FENCE,
    Alert,
    Code,
    GroupState,
    Kind,
    Node,
    NodeState,
    Observation,
    PatroniWord,
    Reason,
    Role,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config import Group


@dataclasses.dataclass(frozen=True, slots=True)
class Primary:
    """Where a name that wishes for the group's primary leads: FENCE, or None where nothing was ever known.

    ``last`` is the last known primary's address, ``lost`` that it has been seen in recovery since.
    """

    address: str | None
    reason: Reason
    last: str | None
    lost: bool
    seen: Observation | None = None


def nodes_at(address: str | None, group: Group, states: Mapping[Node, NodeState]) -> tuple[Node, ...]:
    """Return the nodes of a group that were last seen at ``address``, or are configured so and were never seen."""
    return tuple(node for node in group.nodes if _address(node, states[node]) == address)


def find_system_id(
    group: Group,
    before: GroupState,
    word: PatroniWord,
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
    known = before.system_id
    if word.system_id is not None:
        found: int | None = word.system_id
    elif known is None:
        found = _presumed_system_id(states, fresh, ids, before)
    else:
        agreed = set(ids.values())
        replaced = len(agreed) == 1 and not ids.keys() <= before.foreign
        found = agreed.pop() if replaced else known
    if known is None or found == known:
        return found, []
    text = f"{group.name}: system identifier {found} in place of {known}: another database cluster took its place"
    return found, [Alert(f"{group.name}:replaced", text)]


def _presumed_system_id(
    states: Mapping[Node, NodeState], fresh: Mapping[Node, Observation], ids: Mapping[Node, int], before: GroupState
) -> int | None:
    """Return the identifier to go by while no primary was accepted in this run.

    The last known primary's, or where there is none, that of all primaries; else that of the name's present target;
    else the one that all agree on. A vote waits until everybody was asked: nobody is believed for answering first.
    """
    target = before.target.address if before.target is not None else None
    at_last, at_target = ([node for node in ids if fresh[node].address == one] for one in (before.primary, target))
    everyone = list(ids) if asked_all(states) else []
    primaries = [node for node in everyone if fresh[node].kind is Kind.PRIMARY]
    circles = (at_last if before.primary is not None else primaries, at_target, everyone)
    return next((agreed.pop() for circle in circles if len(agreed := {ids[node] for node in circle}) == 1), None)


def asked_all(states: Mapping[Node, NodeState]) -> bool:
    """Report whether every node was asked at least once in this run."""
    return all(state.latest is not None for state in states.values())


def find_primary(
    group: Group,
    before: GroupState,
    word: PatroniWord,
    *,
    states: Mapping[Node, NodeState],
    members: Mapping[Node, Observation],
    foreign: frozenset[Node],
    outsiders: Mapping[Node, str],
) -> tuple[Primary, list[Alert]]:
    """The design's table for names that wish for a primary, row by row."""
    primaries = [seen for seen in members.values() if seen.kind is Kind.PRIMARY]
    if len(primaries) == 1:
        return _accepted(primaries[0], Code.PRIMARY, f"primary, timeline {primaries[0].timeline}"), []
    last_at = nodes_at(before.primary, group, states)
    # An address that is no node's any more was one of theirs.
    lost = before.primary is not None and (
        before.primary_lost or all(states[node].last_role is Role.STANDBY for node in last_at or group.nodes)
    )
    if primaries:
        alert = Alert(f"{group.name}:primaries", f"{group.name}: several primaries: {_claims(primaries)}")
        return _one_of(primaries, before, members.get(word.leader) if word.leader else None, lost=lost), [alert]
    words = "; ".join(outsiders.get(node) or describe(node, state, members.get(node)) for node, state in states.items())
    if before.primary is None and not members:
        return Primary(None, Reason(Code.UNKNOWN, f"no primary known; {words}"), None, lost=False), []
    if before.primary is None or lost or not foreign.isdisjoint(last_at):
        return Primary(FENCE, Reason(Code.FENCED, f"no primary; {words}"), before.primary, lost=lost), []
    return Primary(before.primary, Reason(Code.HELD, f"held; no primary; {words}"), before.primary, lost=False), []


def _one_of(primaries: list[Observation], before: GroupState, leader: Observation | None, *, lost: bool) -> Primary:
    """Several primaries: the one with Patroni's leader lock, else the last known one, else none."""
    claims = _claims(primaries)
    if leader is not None and leader.kind is Kind.PRIMARY:
        return _accepted(leader, Code.LEADER, f"holds the leader lock; several primaries: {claims}")
    last = next((seen for seen in primaries if seen.address == before.primary), None)
    if last is not None:
        return _accepted(last, Code.LAST_PRIMARY, f"last known primary; several primaries: {claims}")
    reason = Reason(Code.FENCED, f"several primaries: {claims}, and nothing tells which is right")
    return Primary(FENCE, reason, before.primary, lost)


def _claims(primaries: list[Observation]) -> str:
    return ", ".join(str(seen.address) for seen in primaries)


def _accepted(seen: Observation, code: Code, text: str) -> Primary:
    return Primary(seen.address, Reason(code, text), seen.address, lost=False, seen=seen)


def outsider_words(seen: Observation, system_id: int | None) -> str:
    """Say why a node does not count that answered; ``system_id`` is the group's."""
    found = seen.identity.system_id if seen.identity else "unknown"
    if system_id is None:
        return f"{seen.address} is of database cluster {found}, and which one is right is not known yet"
    return f"{seen.address} is of another database cluster (system identifier {found})"


def _address(node: Node, state: NodeState) -> str:
    return (state.role_seen.address if state.role_seen is not None else None) or node.host
