"""Decide what each name resolves to: values in, values out.

The rules R1, R2 and R3 are in the package's docstring, the rows P in ``primary`` and the rows S in ``standby``. First
each group is assessed: its members, its primary, the nodes that may serve reads. Then each name gets its target: the
local server's own address, the primary or a standby; a waiting room or what the operator has decided by hand may take
its place. Every branch that moves or fences a name rests on evidence.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.config.model import Fallback, Route
from resolver_agent.routing import pin, queue
from resolver_agent.routing.assess import assess
from resolver_agent.routing.decision import Decision
from resolver_agent.routing.local_server import local_role, own_addresses
from resolver_agent.routing.observation import NodeState, Observations, Pin, Role, address_of
from resolver_agent.routing.primary import choose_primary
from resolver_agent.routing.standby import choose_standby, fall_back_together
from resolver_agent.routing.state import (
    FENCE,
    Alert,
    AlertCode,
    Code,
    GroupState,
    Memory,
    Reason,
    Target,
    TargetKind,
    is_usable,
)
from resolver_agent.routing.view import Choice, GroupView

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resolver_agent.config.model import Config

_NOTHING = GroupState()

_ALERTED = {
    Code.HELD: AlertCode.HELD,
    Code.FENCED: AlertCode.FENCED,
    Code.FALLBACK: AlertCode.FALLBACK,
    Code.QUEUED: AlertCode.QUEUED,
    Code.UNKNOWN: AlertCode.UNKNOWN,
}


def resume(config: Config, remembered: Iterable[Target], *, written_at: float | None = None) -> Decision:
    """Return the decision that the hosts file's block remembers, for the first ``decide()`` of a run.

    ``written_at`` is when the block was written, in seconds of CLOCK_BOOTTIME. A name that queued waits since then.
    """
    targets = {target.name: _sound(target) for target in remembered}
    groups = {}
    wanted_roles = set()
    for group in config.groups:
        target = targets.get(group.name)
        if target is None:
            groups[group.name] = GroupState()
            continue
        if group.route is Route.FOLLOW and target.wanted_role is not None:
            wanted_roles.add(target.wanted_role)
        groups[group.name] = GroupState(
            target=target,
            reason=target.reason,
            own=target.address if target.kind is TargetKind.SELF else None,
            memory=Memory(
                primary=target.primary,
                primary_demoted=target.primary_demoted,
                system_id=target.system_id,
                replaced_id=target.replaced_id,
                lost_at=written_at if target.kind is TargetKind.QUEUED and group.queue.unplanned_s else None,
            ),
        )
    # Names that were held when the local role changed still have the old wanted role: then each keeps its own.
    return Decision(groups=groups, role=wanted_roles.pop() if len(wanted_roles) == 1 else None)  # A8


def _sound(target: Target) -> Target:
    """Return a target of the block without what no decision wrote: a fence or nobody's address as a server's."""
    if not is_usable(target.primary):
        target = dataclasses.replace(target, primary=None, primary_demoted=False)
    if target.kind is TargetKind.FENCED or not is_usable(target.address):
        return dataclasses.replace(target, address=FENCE, kind=TargetKind.FENCED)
    return target


def confirm(decision: Decision) -> Decision:
    """Return the same with all replaced system identifiers and deposed primaries confirmed: the operator reloads."""
    groups = {
        name: state
        if state.memory.replaced_id is None and state.memory.leader_timeline is None
        else dataclasses.replace(
            state,
            target=state.target and dataclasses.replace(state.target, replaced_id=None),
            memory=dataclasses.replace(state.memory, replaced_id=None, leader_timeline=None),
        )
        for name, state in decision.groups.items()
    }
    return dataclasses.replace(decision, groups=groups)


def decide(config: Config, observations: Observations, previous: Decision, now: float) -> Decision:
    """Return what every name resolves to now, given the observations and the previous decision.

    ``now`` is in seconds of CLOCK_BOOTTIME, the clock of the observations.
    """
    max_age_s = config.max_age_s
    views = [
        assess(
            group,
            observations,
            previous.groups.get(group.name, _NOTHING),
            view_before=previous.views.get(group.name),
            now=now,
            max_age_s=max_age_s,
        )
        for group in config.groups
    ]
    role, primary_run, owns = None, None, {}
    if config.has_local:
        role, primary_run = local_role(views, observations, previous)
        owns = own_addresses(views, observations, observations.local.fresh(now=now, max_age_s=max_age_s))
    wanted = observations.assumed or (Role.PRIMARY if observations.holds_lock else role)
    settled = _settled(views, owns, previous, (wanted, config.fallback), observations=observations)
    choices: dict[str, Choice] = {}
    for view in views:
        name = view.group.name
        if name not in settled and not (view.group.route is Route.FOLLOW and name in owns):
            wanted_role = _wanted_role(view, wanted)
            choose = choose_primary if wanted_role is Role.PRIMARY else choose_standby
            choices[name] = choose(view, config.fallback)
    pins = pin.lasting(observations.pins, now=now)
    pause = observations.pause if pin.lasts(observations.pause, now=now) else None
    pinned, refused = _pinned(views, choices, pins, fallback=config.fallback)
    if config.fallback is Fallback.ALL:
        fall_back_together(views, choices, but=pinned)
    in_vain = _queue(config, views, choices, observations, now)
    if pause is not None:
        in_vain = []  # nobody waits for the sake of a name that does not move
        for view in views:
            if view.group.name in choices:
                choices[view.group.name] = pin.paused(view, choices[view.group.name], fallback=config.fallback)
    choices |= pinned

    groups = {
        name: settled.get(name) or _settle(view, owns.get(name), choices.get(name), now)
        for view in views
        for name in [view.group.name]
    }
    alerts = [alert for view in views for alert in view.alerts]
    alerts += [
        _name_alert(code, state, name)
        for name, state in groups.items()
        if (code := _ALERTED.get(state.reason.code)) is not None
    ]
    alerts += [alert for alert in in_vain if groups[alert.of[0]].reason.code is not Code.PINNED]
    alerts += pin.alerts(pins, refused, pause)
    alerts += _local_alerts(observations.local, role)
    return Decision(
        groups=groups,
        role=role,
        primary_run=primary_run,
        alerts=tuple(dict.fromkeys(alerts)),
        recheck_at=_recheck_at(views, observations, max_age_s=max_age_s, now=now),
        made_for=(wanted, config.fallback),
        pins=refused,
        overtaken={
            name: one.address
            for view in views
            for name in [view.group.name]
            if (one := pins.get(name)) is not None and pin.is_overtaken(view, one)
        }
        if pins
        else {},
        paused=pause is not None,
        views={view.group.name: view for view in views},
    )


def _settled(
    views: list[GroupView],
    owns: Mapping[str, str],
    previous: Decision,
    made_for: tuple[Role | None, Fallback],
    *,
    observations: Observations,
) -> dict[str, GroupState]:
    """Return the groups whose view is the previous one: their decision would come out as before.

    Whether a name queues, is pinned or paused depends on more than the view.
    """
    if previous.made_for != made_for or Fallback.ALL in made_for:  # with `all` each name depends on all the others
        return {}
    if previous.paused or observations.pause is not None:
        return {}
    unsettled = {*observations.windows, *observations.pins, *previous.pins}
    return {
        name: before
        for view in views
        if previous.views.get(name := view.group.name) is view
        and (before := previous.groups.get(name)) is not None
        and before.own == owns.get(name)
        and name not in unsettled
        and view.memory.lost_at is None
        and not (before.target is not None and before.target.kind is TargetKind.QUEUED)
    }


def _queue(
    config: Config, views: list[GroupView], choices: dict[str, Choice], observations: Observations, now: float
) -> list[Alert]:
    """Put the waiting room in the place of each choice that has to wait; return the alerts of waits in vain."""
    alerts: list[Alert] = []
    if not observations.windows and all(view.memory.lost_at is None for view in views):
        return alerts
    numbers = {group.name: number for number, group in enumerate(config.groups)}
    for view in views:
        name = view.group.name
        if name in choices:
            window = observations.windows.get(name)
            room = None
            if name not in observations.no_room:
                room = observations.rooms.get(name) or queue.room_address(numbers[name])
            waits = queue.queue(view, choices[name], window, room=room, now=now)
            choices[name] = waits or choices[name]
            alerts += queue.overdue(view, choices[name], window, now=now)
    return alerts


def _pinned(
    views: list[GroupView], choices: Mapping[str, Choice], pins: Mapping[str, Pin], *, fallback: Fallback
) -> tuple[dict[str, Choice], dict[str, str | None]]:
    """Return the choices of the pins that count, and for each pin the reason why it does not count, or None."""
    chosen: dict[str, Choice] = {}
    refused: dict[str, str | None] = dict.fromkeys(pins, "no such name is managed")
    if not pins:
        return chosen, refused
    taken = {(address_of(node, state), node.port) for view in views for node, state in view.states.items()}
    for view in views:
        name = view.group.name
        if name in pins:
            found = pin.pinned(view, choices.get(name), pins[name], fallback=fallback, taken=taken)
            refused[name] = found if isinstance(found, str) else None
            if not isinstance(found, str):
                chosen[name] = found
    return chosen, refused


def _recheck_at(views: list[GroupView], observations: Observations, *, max_age_s: float, now: float) -> float:
    """Return when the next observation expires, the next node has been healthy for long enough, or a time is over."""
    nodes, windows = observations.nodes, observations.windows
    times = [view.pending_until for view in views]
    times += [one.at + max_age_s for view in views for node in view.fresh if (one := nodes[node].role_seen) is not None]
    later = [one.until for one in (*observations.pins.values(), observations.pause) if one is not None]
    for view in views:
        if windows or view.memory.lost_at is not None:
            later += queue.rechecks(view, windows.get(view.group.name))
    times += [at for at in later if at > now]
    return min(times, default=float("inf"))


def _wanted_role(view: GroupView, local: Role | None) -> Role:
    match view.group.route:
        case Route.PRIMARY:
            return Role.PRIMARY
        case Route.STANDBY:
            return Role.STANDBY
        case Route.FOLLOW:
            remembered = view.target.wanted_role if view.target is not None else None
            return local or remembered or Role.PRIMARY


def _settle(view: GroupView, own: str | None, choice: Choice | None, now: float) -> GroupState:
    """Return the group's part of the decision, from the choice made for it, or without one from its own address."""
    if choice is None and own is not None:
        choice = Choice(own, TargetKind.SELF, Reason(Code.SELF, "this server"), Role.PRIMARY)  # A1
    target = None
    if choice is not None and choice.address is not None:
        stays = view.target is not None and view.target.address == choice.address
        target = Target(
            name=view.group.name,
            address=choice.address,
            kind=choice.kind,
            wanted_role=None if choice.kind is TargetKind.SELF else choice.wanted_role,
            primary=view.primary.last,
            primary_demoted=view.primary.demoted,
            system_id=view.memory.system_id,
            replaced_id=view.memory.replaced_id,
            reason=choice.reason,
            since=view.target.since if stays and view.target is not None else now,
        )
        if view.target == target and view.target.reason == target.reason:
            target = view.target
    return GroupState(
        target=target,
        reason=choice.reason if choice is not None else Reason(Code.UNKNOWN, "never seen"),
        own=own,
        memory=view.memory,
    )


def _name_alert(code: AlertCode, state: GroupState, name: str) -> Alert:
    """Return the alert for a name that is held, fenced, fallen back, queues or is left out (R8)."""
    text = str(state.target) if state.target is not None else f"{name} is left out ({state.reason.text})"
    return Alert(code, text, of=(name,))


def _local_alerts(local: NodeState, role: Role | None) -> list[Alert]:
    latest = local.latest
    if latest is None or latest.role is not None:
        return []
    stands = f"its last known role ({role.value}) stands" if role else "its role was never known: taken for a primary"
    return [Alert(AlertCode.LOCAL, f"the local PostgreSQL is {latest.result.value} ({latest.detail}); {stands}")]
