"""Whether a name queues: leads to the waiting room, where connections wait for a server to take them. Values only.

A stop that an agent announces opens a window for each name that leads to the server that stops. The choice that was
made for a name by the rows P and S comes first; a queue takes its place, and never that of a server that is seen (R2).

=== ===================================================================== ============================================
row what is seen                                                          the name
=== ===================================================================== ============================================
Q1  a server stops as announced, and the name would lead to it            leads to the waiting room
Q2  as Q1, and the name would be fenced for want of another server        leads to the waiting room
Q3  its primary is lost, with ``queue.unplanned``                         leads to the waiting room
Q4  another primary, or the server that stopped in another run            resolves to it: the queue is forwarded
Q5  the server still runs when the hook of its stop must have ended       resolves to it: the stop was called off
Q6  the time is over                                                      does what it does without a queue; alert
Q7  there can be no waiting room                                          does what it does without a queue
=== ===================================================================== ============================================
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import ProbeFailure, Role, Stage, Window, nodes_at
from resolver_agent.routing.state import FENCE, Alert, AlertCode, Code, Reason, TargetKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Node
    from resolver_agent.routing.observation import NodeState, Observation
    from resolver_agent.routing.view import Choice, GroupView

_ROOMS = 77
"""The second byte of the rooms' addresses: of the loopback network, and none that anybody uses by habit."""

_LOST = (ProbeFailure.DEAD, ProbeFailure.UNREACHABLE, ProbeFailure.NOT_SERVING)
"""What a probe of a primary that is lost comes to. One that rejects the login may well be serving (R1)."""


def room_address(index: int, attempt: int = 0) -> str:
    """Return the address of the waiting room of the group with this number (from 0 on) in the configuration.

    A host may have several agents, so another ``attempt`` gives another address.
    """
    number = index + 1
    return f"127.{_ROOMS + attempt}.{number >> 8}.{number & 255}"


def leaves_now(window: Window | None, states: Mapping[Node, NodeState]) -> Node | None:
    """Return the standby that must not be chosen for reads, because it stops and is not back yet."""
    if window is None or window.stage is not Stage.ROOM or window.role is not Role.STANDBY:
        return None
    state = states.get(window.node)
    return window.node if state is None or _ends(window, state.role_seen) is None else None


def ended(window: Window, view: GroupView) -> str | None:
    """Return in words what ended a window before its time, or None."""
    return _ends(window, view.primary.seen if window.role is Role.PRIMARY else view.fresh.get(window.node))


def _ends(window: Window, seen: Observation | None) -> str | None:
    if seen is None:
        return None
    if seen.identity != window.run:
        return f"{seen.address} is {'primary' if seen.role is Role.PRIMARY else 'in recovery'}"  # Q4
    if seen.at >= window.called_off_at:
        return f"{seen.address} did not stop"  # Q5
    return None


def lost(view: GroupView) -> bool:
    """Report whether the group's primary is lost: no server is seen as the primary, and the last one is not alive.

    Servers that were last seen in recovery are no primaries; the next one may be among them.
    """
    if view.primary.seen is not None or view.primary.last is None or view.split:
        return False
    at_last = nodes_at(view.primary.last, view.group, view.states)
    return bool(at_last) and all(
        view.states[node].last_role is Role.STANDBY or (latest is not None and latest.result in _LOST)
        for node in at_last
        for latest in [view.states[node].latest]
    )


def rechecks(view: GroupView, window: Window | None) -> tuple[float, ...]:
    """Return when the answer of ``queue()`` may change by itself."""
    announced = () if window is None else (window.called_off_at, window.until)
    lost_at = view.memory.lost_at
    return announced if lost_at is None else (*announced, lost_at + view.group.queue.unplanned_s)


def queue(view: GroupView, choice: Choice, window: Window | None, *, room: str | None, now: float) -> Choice | None:
    """Return the waiting room in place of a choice, or None where the name does not queue.

    ``room`` is the room's address, None where there can be none.
    """
    if room is None:
        return None  # Q7
    # A primary that has stopped may be back as a standby: reads that are to go there wait for nobody.
    at = choice.address if choice.kind is TargetKind.STANDBY else None
    serves = at is not None and view.seen_in_recovery(at)
    if window is not None and window.stage is Stage.ROOM and now < window.until:
        stops = f"{window.address} stops as announced"
        over = ended(window, view) is not None or (serves and window.role is Role.PRIMARY)  # Q4, Q5
        if choice.address == window.address and not over:
            return _wait(choice, room, stops)  # Q1
        # What became a primary in its place may have been the only standby that served reads.
        if choice.address == FENCE and (choice.wanted_role is Role.STANDBY or not over):
            return _wait(choice, room, f"{stops}; {choice.reason.text}")  # Q2
    if not _waits_for_lost(view, now):
        return None  # Q4, Q5, Q6
    if (choice.address == view.primary.last and not serves) or (
        choice.address == FENCE and choice.wanted_role is Role.PRIMARY
    ):
        return _wait(choice, room, f"its primary is lost; {choice.reason.text}")  # Q3
    return None


def _waits_for_lost(view: GroupView, now: float) -> bool:
    """Report whether the primary is lost, and has not been for too long."""
    lost_at = view.memory.lost_at
    return lost_at is not None and now < lost_at + view.group.queue.unplanned_s and lost(view)


def _wait(choice: Choice, room: str, why: str) -> Choice:
    return dataclasses.replace(
        choice, address=room, kind=TargetKind.QUEUED, reason=Reason(Code.QUEUED, f"new connections wait: {why}")
    )


def overdue(view: GroupView, choice: Choice | None, window: Window | None, *, now: float) -> list[Alert]:
    """Return the alert that a name has stopped waiting in vain."""
    if choice is None or choice.reason.code not in (Code.HELD, Code.FENCED):
        return []
    name, words = view.group.name, ""
    if window is not None and now >= window.until:
        words = f"{window.address} stopped as announced"
    elif view.memory.lost_at is not None and not _waits_for_lost(view, now) and lost(view):
        words = "its primary was lost"
    if not words:
        return []
    text = f"{name}: {words}, and nobody took its place in time: connections no longer wait"
    return [Alert(AlertCode.WAITED, text, of=(name,))]


def since_lost(seen: Observation | None, before: float | None, *, unplanned_s: float, now: float) -> float | None:
    """Return since when a group has no primary, where that matters."""
    if seen is not None or not unplanned_s:
        return None
    return now if before is None else before
