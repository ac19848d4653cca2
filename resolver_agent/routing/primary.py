"""Which node of a group is its primary, and what a name that wants the primary resolves to: values in, values out.

A node counts as a primary until it is seen dead or in recovery, or its observation expires. One on an older timeline
than the last holder of the leader lock is deposed: what it writes is lost. It does not count, also when that holder is
lost, until it holds the lock itself, or the operator confirms it by a reload. Nor does any other one count while the
last known primary is merely silent, and holds the lock by the word of its Patroni.

=== ======================================================================= ==================================
row what is seen                                                            the name
=== ======================================================================= ==================================
P1  one primary, beside deposed ones if any                                 resolves to it
P2  several primaries, and Patroni says which one holds the leader lock     resolves to that one
P3  several primaries, and the last known one is among them                 resolves to the last known one
P4  several primaries otherwise                                             is fenced
P5  no primary; the last known one has not been seen in recovery since      is held on the last known one
P6  no primary otherwise                                                    is fenced
P7  no primary was ever known, and no node answers                          stays; without an address, left out
P8  as P7, and the name resolves to a node that was a standby               is fenced (R2)
P9  as P5, and the name is fenced                                           stays fenced until a primary is seen
=== ======================================================================= ==================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.routing.observation import (
    NodeState,
    Observation,
    Role,
    describe,
    nodes_at,
)
from resolver_agent.routing.state import FENCE, Alert, AlertCode, Code, GroupState, Reason, TargetKind
from resolver_agent.routing.view import Choice, GroupView, Primary, hold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Fallback, Group, Node


def find_primary(
    group: Group,
    before: GroupState,
    leader: Node | None,
    *,
    states: Mapping[Node, NodeState],
    members: Mapping[Node, Observation],
    led: int | None,
    foreign: frozenset[Node],
    foreign_words: Mapping[Node, str],
) -> tuple[Primary, list[Alert]]:
    """Return the group's primary by rows P1 to P7, and an alert where there are several.

    ``leader`` holds the leader lock, as Patroni says, and ``led`` is the timeline of the last one that was a primary.
    """
    claims = _distinct([seen for seen in members.values() if seen.result is Role.PRIMARY], before.memory.primary)
    primaries = [seen for seen in claims if not _is_older(seen, led)]
    holder = members.get(leader) if leader is not None else None
    if holder is None and leader not in foreign and _may_be(before.memory.primary, leader, states):
        primaries = []
    alerts, told = [], ""
    if len(claims) > 1:
        told = f"several primaries: {', '.join(str(seen.address) for seen in claims)}"
        alerts = [Alert(AlertCode.PRIMARIES, f"{group.name}: {told}", of=(group.name,))]
        if holder is not None and holder.result is Role.PRIMARY:
            return _accepted(holder, Code.LEADER, f"holds the leader lock; {told}"), alerts  # P2
    if len(primaries) == 1:
        return _accepted(primaries[0], Code.PRIMARY, f"primary, timeline {primaries[0].timeline}"), alerts  # P1
    last_at = nodes_at(before.memory.primary, group, states)
    # The address may belong to a node that was removed since. Then all other nodes must have been seen in recovery.
    demoted = before.memory.primary is not None and (
        before.memory.primary_demoted or all(states[node].last_role is Role.STANDBY for node in last_at or group.nodes)
    )
    if primaries:
        return _last_of(primaries, told, before, demoted=demoted), alerts  # P3, P4
    words = "; ".join(
        foreign_words.get(node) or describe(node, state, members.get(node)) + _why_not(members.get(node), claims, led)
        for node, state in states.items()
    )
    if before.memory.primary is None and not members:
        reason = Reason(Code.UNKNOWN, f"no primary known; {words}")
        return Primary(None, reason, None, demoted=False), alerts  # P7
    if before.memory.primary is None or demoted or not foreign.isdisjoint(last_at):
        reason = Reason(Code.FENCED, f"no primary; {words}")
        return Primary(FENCE, reason, before.memory.primary, demoted=demoted), alerts  # P6
    reason = Reason(Code.HELD, f"held; no primary; {words}")
    return Primary(before.memory.primary, reason, before.memory.primary, demoted=False), alerts  # P5


def leader_timeline(leader: Node | None, members: Mapping[Node, Observation], before: int | None) -> int | None:
    """Return the timeline of the holder of the leader lock, or that of the one before while none is a primary."""
    seen = members.get(leader) if leader is not None else None
    return seen.timeline if seen is not None and seen.result is Role.PRIMARY else before


def _may_be(primary: str | None, leader: Node | None, states: Mapping[Node, NodeState]) -> bool:
    """Report whether the lock's holder, which cannot be asked, is the last known primary by all that was seen."""
    state = states.get(leader) if leader is not None else None
    seen = state.role_seen if state is not None and not state.seen_dead else None
    return seen is not None and seen.result is Role.PRIMARY and seen.address == primary


def _why_not(seen: Observation | None, claims: list[Observation], led: int | None) -> str:
    if seen is None or seen not in claims:
        return ""
    return " of an older timeline" if _is_older(seen, led) else " without the leader lock"


def _is_older(seen: Observation, timeline: int | None) -> bool:
    return seen.timeline is not None and timeline is not None and seen.timeline < timeline


def _distinct(primaries: list[Observation], last: str | None) -> list[Observation]:
    """Return each server once: several nodes may be one, under two names or at two addresses of it."""
    if len(primaries) < 2:  # noqa: PLR2004 -- one is distinct
        return primaries
    by_server = {seen.identity: seen for seen in reversed(primaries)}
    return list((by_server | {seen.identity: seen for seen in primaries if seen.address == last}).values())[::-1]


def _last_of(primaries: list[Observation], told: str, before: GroupState, *, demoted: bool) -> Primary:
    """Return the last known one of several primaries, otherwise none."""
    last = next((seen for seen in primaries if seen.address == before.memory.primary), None)
    if last is not None:
        return _accepted(last, Code.LAST_PRIMARY, f"last known primary; {told}")  # P3
    reason = Reason(Code.FENCED, f"{told}, and nothing tells which is right")
    return Primary(FENCE, reason, before.memory.primary, demoted)  # P4


def _accepted(seen: Observation, code: Code, text: str) -> Primary:
    return Primary(seen.address, Reason(code, text), seen.address, demoted=False, seen=seen)


def choose_primary(view: GroupView, _fallback: Fallback) -> Choice:
    """Return the target of a name that wants the primary."""
    held = view.target
    address = primary_address(view, Role.PRIMARY)
    if address is not None:
        kind, reason = TargetKind.FENCED if address == FENCE else TargetKind.PRIMARY, view.primary.reason
        if address == FENCE and reason.code is Code.HELD:  # R8: clients fail
            reason = Reason(Code.FENCED, f"stays fenced; {reason.text.removeprefix('held; ')}")
        return Choice(address, kind, reason, Role.PRIMARY)  # P1 to P6, P9
    # R2: an earlier run saw the server in recovery if the block calls it a standby.
    if held is not None and (held.kind is TargetKind.STANDBY or view.seen_in_recovery(held.address)):
        reason = Reason(Code.FENCED, f"no primary known; {held.address} was a standby")
        return Choice(FENCE, TargetKind.FENCED, reason, Role.PRIMARY)  # P8
    return hold(view, Role.PRIMARY, view.primary.reason.text)  # P7


def primary_address(view: GroupView, wanted_role: Role) -> str | None:
    """Return the address of the group's primary: FENCE without one, None where none was ever known.

    A fenced name stays fenced until a primary is seen: one that is merely remembered does not lift the fence (R1). A
    name that was fenced while it wanted the other role is not bound by that.
    """
    held = view.target
    fenced = held is not None and held.kind is TargetKind.FENCED and held.wanted_role is wanted_role
    if fenced and view.primary.reason.code is Code.HELD:
        return FENCE  # P9
    return view.primary.address  # P1 to P8
