"""Pins and pauses: what the operator decides by hand, as far as the rules allow. Values in, values out.

A choice is made for each name by the rows P, S and Q first. A pin or a pause takes its place, never where that could
lose data: R2 and R3 stand above both, no write goes to a primary beside the accepted one, and no read to a primary that
``fallback`` keeps it off.

==== ==================================================================== ============================================
row  what is seen                                                          the name
==== ==================================================================== ============================================
M1   it is pinned, and that server was last seen in the wanted role        resolves to the pinned address
M2   it is paused, and would move                                          stays
M3   it wants its primary, and that server was last seen in recovery       does what it does without pin or pause
M4   it wants its primary, and another server is that                      as M3, and the pin ends
M5   it wants a standby, and that server was last seen as a primary, with  as M3
     ``fallback: none``
M6   nothing tells that that server has the wanted role, or it is of       as M3
     another database cluster
M7   it wants another role than when it was pinned                         as M3
M8   it queues                                                             as M3, until it leads to a server
M9   it is the local server's own                                          resolves to the local server's own address
M10  the time of the pin or the pause is over                              as M3
==== ==================================================================== ============================================
"""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import TYPE_CHECKING

from resolver_agent.config.model import Fallback
from resolver_agent.routing.observation import Role, nodes_at
from resolver_agent.routing.state import FENCE, Alert, AlertCode, Code, Reason, TargetKind, is_usable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from resolver_agent.routing.observation import Observation, Pause, Pin
    from resolver_agent.routing.view import Choice, GroupView

_ACCEPTED = (Code.PRIMARY, Code.LEADER)
_OF_PRIMARIES = (TargetKind.PRIMARY, TargetKind.FALLBACK)


def lasting(pins: Mapping[str, Pin], *, now: float) -> dict[str, Pin]:
    """Return the pins whose time is not over."""
    return {name: pin for name, pin in pins.items() if now < pin.until}  # M10


def lasts(pause: Pause | None, *, now: float) -> bool:
    """Report whether there is a pause whose time is not over."""
    return pause is not None and now < pause.until  # M10


def canonical(address: str) -> str | None:
    """Return an address as nodes have it, None if no name can resolve to it: in one spelling, and IPv4 not in IPv6."""
    if not is_usable(address):
        return None
    ip = ipaddress.ip_address(address)
    return str((ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip)


def pinned(
    view: GroupView, choice: Choice | None, pin: Pin, *, fallback: Fallback, taken: Collection[tuple[str, int]]
) -> Choice | str:
    """Return the pinned address in the place of a choice, or in words why the pin does not count.

    ``choice`` is None for the local server's own name. ``taken`` are the addresses and ports of the nodes of all
    groups: an address where none of them is cannot be judged, and is the operator's responsibility.
    """
    if choice is None:
        return "it is the local server's own name"  # M9
    why = _why_not(view, choice.wanted_role, pin, fallback=fallback, taken=taken)
    if why is not None:
        return why
    kind = _kind(view, choice.wanted_role, pin.address)
    reason = Reason(Code.PINNED, f"pinned {pin.told}".rstrip())
    return dataclasses.replace(choice, address=pin.address, kind=kind, reason=reason, lacks=False)  # M1


def _why_not(
    view: GroupView, wanted_role: Role, pin: Pin, *, fallback: Fallback, taken: Collection[tuple[str, int]]
) -> str | None:
    if _queues(view):
        return "connections wait for its next server"  # M8
    if wanted_role is not pin.wanted_role:
        return f"it was pinned as one that wants a {pin.wanted_role.value}"  # M7
    here = nodes_at(pin.address, view.group, view.states)
    if not here and (fault := _unfit(view, pin, taken)) is not None:
        return fault  # M6
    why = _evidence_against(view, wanted_role, pin.address, fallback=fallback)
    if why is None and here and not _known(view, wanted_role, pin.address, fallback=fallback):
        return f"{pin.address} has not been seen as a {wanted_role.value}"  # M6
    return why


def _unfit(view: GroupView, pin: Pin, taken: Collection[tuple[str, int]]) -> str | None:
    """Return why a name must not lead to an address at which no node of its group is known."""
    if not pin.forced:
        return f"{pin.address} is not known to be one of its nodes"
    if (pin.address, view.group.nodes[0].port) in taken:
        return f"{pin.address} is a server of other names"
    loopback = ipaddress.ip_address(pin.address).is_loopback
    return f"{pin.address} is a loopback address, and no node's" if loopback else None


def is_overtaken(view: GroupView, pin: Pin) -> bool:
    """Report whether another primary has ended a pin for good: on its silence nobody may go back to the pinned one."""
    return pin.wanted_role is Role.PRIMARY and _another_is_primary(view, pin.address)  # M4


def paused(view: GroupView, choice: Choice, *, fallback: Fallback) -> Choice:
    """Return a choice that leaves a name where it is, or the given one where it does not move, or has to."""
    target = view.target
    if target is None or target.address == choice.address or _queues(view):
        return choice  # M8
    address, wanted_role, fenced = target.address, choice.wanted_role, target.address == FENCE
    if _evidence_against(view, wanted_role, address, fallback=fallback) is not None:
        return choice  # M3, M4, M5, M6
    if not fenced and not _known(view, wanted_role, address, fallback=fallback):
        return choice  # M6
    kind = TargetKind.FENCED if fenced else _kind(view, wanted_role, address)
    otherwise = "fenced" if choice.address == FENCE else choice.address
    words = f"{'fenced' if fenced else 'held'}; paused, otherwise {otherwise}: {choice.reason.text}"
    reason = Reason(Code.FENCED if fenced else Code.HELD, words)
    return dataclasses.replace(choice, address=address, kind=kind, reason=reason, lacks=False)  # M2


def alerts(pins: Mapping[str, Pin], refused: Mapping[str, str | None], pause: Pause | None) -> list[Alert]:
    """Return an alert for each pin, with the reason from ``refused`` if it does not count, and one for a pause (R8)."""
    found = []
    for name, pin in pins.items():
        why = refused.get(name)
        what = f"{name} is pinned to {pin.address} {pin.told}".rstrip()
        ending = f"`resolver-agent unpin {name}` ends it"
        if why is None:
            found.append(Alert(AlertCode.PINNED, f"{what}; {ending}", of=(name,)))
        else:
            found.append(Alert(AlertCode.PIN, f"{what}, but the pin does not count: {why}; {ending}", of=(name,)))
    if pause is not None:
        what = f"names are paused {pause.told}".rstrip()
        ending = "`resolver-agent resume` ends it"
        found.append(Alert(AlertCode.PAUSED, f"{what}: none moves that does not have to; {ending}"))
    return found


def _queues(view: GroupView) -> bool:
    return view.target is not None and view.target.kind is TargetKind.QUEUED


def _servers(view: GroupView, address: str) -> list[Observation]:
    """Return what was last seen of the group's servers at an address, as a rule one."""
    states = (view.states[node] for node in nodes_at(address, view.group, view.states))
    return [state.role_seen for state in states if state.role_seen is not None]


def _evidence_against(view: GroupView, wanted_role: Role, address: str, *, fallback: Fallback) -> str | None:
    """Return why a name that wants a role must not lead to an address, None where no evidence is against it."""
    seen = _servers(view, address)
    roles = {one.role for one in seen}
    if view.is_foreign(address):
        return f"{address} is of another database cluster"  # M6
    primary = view.primary
    if wanted_role is Role.PRIMARY:
        demoted = primary.demoted and primary.last == address and Role.PRIMARY not in roles
        if demoted or Role.STANDBY in roles:
            return f"{address} was last seen in recovery"  # M3
        if _another_is_primary(view, address):
            return f"{primary.address} is the primary"  # M4
    elif fallback is Fallback.NONE and Role.PRIMARY in roles:
        return f"{address} was last seen as a primary, and `fallback` is none"  # M5
    return None


def _another_is_primary(view: GroupView, address: str) -> bool:
    """Report whether a server that is not the one at an address is the accepted primary."""
    accepted = view.primary.seen if view.primary.reason.code in _ACCEPTED else None
    identities = {one.identity for one in _servers(view, address)}
    return accepted is not None and view.primary.address != address and accepted.identity not in identities


def _known(view: GroupView, wanted_role: Role, address: str, *, fallback: Fallback) -> bool:
    """Report whether a server was seen in the wanted role, or the name resolves to it as to one of that role."""
    roles = {one.role for one in _servers(view, address)}
    if wanted_role is Role.PRIMARY:
        return Role.PRIMARY in roles or _kind_at(view, address) in _OF_PRIMARIES
    if fallback is not Fallback.NONE and (roles or _kind_at(view, address) in _OF_PRIMARIES):
        return True
    return Role.STANDBY in roles or _kind_at(view, address) is TargetKind.STANDBY


def _kind(view: GroupView, wanted_role: Role, address: str) -> TargetKind:
    """Return what the block is to say of an address: the role in which its server was last seen, by any run."""
    if wanted_role is Role.PRIMARY:
        return TargetKind.PRIMARY
    roles = {one.role for one in _servers(view, address)}
    if Role.STANDBY not in roles and (Role.PRIMARY in roles or _kind_at(view, address) in _OF_PRIMARIES):
        return TargetKind.FALLBACK
    return TargetKind.STANDBY


def _kind_at(view: GroupView, address: str) -> TargetKind | None:
    """Return what the name's target is, None where the name resolves elsewhere; after a restart the block says so."""
    return view.target.kind if view.target is not None and view.target.address == address else None
