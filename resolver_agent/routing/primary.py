"""Which node of a group is its primary, and where a name that wishes for it leads: values in, values out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.routing.observation import Kind, NodeState, Observation, PatroniWord, Role, describe, nodes_at
from resolver_agent.routing.state import FENCE, Alert, Code, GroupState, Reason, Standing
from resolver_agent.routing.view import Choice, GroupView, Primary, hold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Fallback, Group, Node


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


def choose_primary(view: GroupView, _fallback: Fallback) -> Choice:
    """The design's table for a name that wishes for a primary."""
    held = view.target
    address = primary_address(view, Role.PRIMARY)
    if address is not None:
        standing = Standing.FENCED if address == FENCE else Standing.PRIMARY
        return Choice(address, standing, view.primary.reason, Role.PRIMARY)
    # R2: what the block calls a standby was seen in recovery, if not by this run.
    if held is not None and (held.standing is Standing.STANDBY or view.seen_in_recovery(held.address)):
        reason = Reason(Code.FENCED, f"no primary known; {held.address} was a standby")
        return Choice(FENCE, Standing.FENCED, reason, Role.PRIMARY)
    return hold(view, Role.PRIMARY, view.primary.reason.text)


def primary_address(view: GroupView, wish: Role) -> str | None:
    """Return where the group's primary is: FENCE without one, None where nothing was ever known.

    A fence is left for a primary that is seen, not for one that is merely remembered (R1), unless the name was fenced
    with another wish.
    """
    held = view.target
    fenced = held is not None and held.standing is Standing.FENCED and held.wish is wish
    return FENCE if fenced and view.primary.reason.code is Code.HELD else view.primary.address
