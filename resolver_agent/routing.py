"""Decide where each name leads: values in, values out, by the rules R1, R2 and R3 and the tables of the design.

Every group is looked at (who belongs to it, who is its primary, who may serve reads), then every name is given its
target: its own address, its primary or a standby. What is not known is held: each branch that moves or fences a name
rests on something that was seen.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.groupview import GroupView, look
from resolver_agent.model import (
    FENCE,
    Alert,
    Code,
    Decision,
    Fallback,
    GroupState,
    Kind,
    NodeState,
    Observation,
    Observations,
    Reason,
    Role,
    Route,
    Standing,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resolver_agent.config import Config, Group

_NOTHING = GroupState()
_SEEN_PRIMARY = (Code.PRIMARY, Code.LEADER, Code.LAST_PRIMARY)


@dataclasses.dataclass(frozen=True, slots=True)
class _Choice:
    """Where a name should lead. ``address`` None leaves it as it is; ``lacks`` reports that no standby is fit."""

    address: str | None
    standing: Standing
    reason: Reason
    wish: Role
    lacks: bool = False


def resume(config: Config, remembered: Iterable[Target]) -> Decision:
    """Return the decision that the hosts file's block remembers, for the first ``decide()`` of a run."""
    targets = {target.name: target for target in remembered}
    groups = {}
    wishes = set()
    for group in config.groups:
        target = targets.get(group.name)
        if target is None:
            groups[group.name] = GroupState()
            continue
        if group.route is Route.FOLLOW and target.wish is not None:
            wishes.add(target.wish)
        groups[group.name] = GroupState(
            target=target,
            reason=target.reason,
            own=target.address if target.standing is Standing.SELF else None,
            primary=target.primary,
            primary_lost=target.primary_lost,
        )
    # All names of one write were decided for one role. A file that says both was edited, and says nothing.
    return Decision(groups=groups, role=wishes.pop() if len(wishes) == 1 else None)


def decide(config: Config, observations: Observations, previous: Decision, now: float) -> Decision:
    """Return where every name leads now, given what was observed and what was decided before.

    ``now`` is in seconds of CLOCK_BOOTTIME, the clock of the observations.
    """
    max_age_s = config.interval_s + config.timeout_s
    views = [
        look(group, observations, previous.groups.get(group.name, _NOTHING), now=now, max_age_s=max_age_s)
        for group in config.groups
    ]
    role = _local_role(views, observations, previous)
    wished = observations.assumed or (Role.PRIMARY if observations.holds_lock else role)
    owns = _own_addresses(views, observations.local, observations.local.fresh(now=now, max_age_s=max_age_s))
    choices = {}
    for view in views:
        if view.group.name not in owns:
            wish = _wish(view.group, wished)
            choose = _choose_primary if wish is Role.PRIMARY else _choose_standby
            choices[view.group.name] = choose(view, config.fallback)
    if config.fallback is Fallback.ALL:
        _fall_back_together(views, choices)

    groups = {
        view.group.name: _settle(view, owns.get(view.group.name), choices.get(view.group.name), now) for view in views
    }
    alerts = [alert for view in views for alert in view.alerts]
    alerts += [alert for name, state in groups.items() for alert in _name_alerts(state, name)]
    alerts += _local_alerts(observations.local, role)
    return Decision(
        groups=groups,
        role=role,
        alerts=tuple(dict.fromkeys(alerts)),
        recheck_at=min((view.recheck_at for view in views), default=float("inf")),
    )


def _local_role(views: list[GroupView], observations: Observations, previous: Decision) -> Role | None:
    """Return the last known role of the local server, by whichever probe saw it last."""
    seen = [view.own_seen for view in views if view.own_seen is not None]
    if observations.local.role_seen is not None:
        seen.append(observations.local.role_seen)
    if not seen:
        return previous.role
    return Role(max(seen, key=lambda one: one.at).kind.value)


def _own_addresses(views: list[GroupView], local: NodeState, fresh: Observation | None) -> dict[str, str]:
    """Return the local server's own address for each name of its own group (R3).

    It stays recognised while it is down: until it is recognised elsewhere, or both it and the server at that address
    were asked, each after the other's last start, and are not the same.
    """
    owns = {view.group.name: view.own_seen.address for view in views if view.own_seen and view.own_seen.address}
    if owns:
        return owns
    for view in views:
        impostor = fresh is not None and any(
            seen.address == view.before.own and seen.at >= local.same_since and fresh.at >= view.states[node].same_since
            for node, seen in view.fresh.items()
        )
        if view.before.own is not None and not impostor:
            owns[view.group.name] = view.before.own
    return owns


def _wish(group: Group, local: Role | None) -> Role:
    match group.route:
        case Route.PRIMARY:
            return Role.PRIMARY
        case Route.STANDBY:
            return Role.STANDBY
        case Route.FOLLOW:
            return local or Role.PRIMARY


def _choose_primary(view: GroupView, _fallback: Fallback) -> _Choice:
    """The design's table for a name that wishes for a primary."""
    primary = view.primary
    standing = Standing.FENCED if primary.address == FENCE else Standing.PRIMARY
    if primary.address is None:
        # R2: what the block calls a standby was seen in recovery, if not by this run.
        if view.before.target is not None and view.before.target.standing is Standing.STANDBY:
            reason = Reason(Code.FENCED, f"no primary known; {view.before.target.address} was a standby")
            return _Choice(FENCE, Standing.FENCED, reason, Role.PRIMARY)
        return _keep(view, Role.PRIMARY, primary.reason.text)
    return _Choice(primary.address, standing, primary.reason, Role.PRIMARY)


def _choose_standby(view: GroupView, fallback: Fallback) -> _Choice:
    """The first fit standby in the configured order; voluntary changes wait for ``failback_delay`` of health."""
    target = view.before.target
    standing = target.standing if target is not None else None
    chosen = next(iter(view.fit), None)
    if target is not None and standing is Standing.STANDBY:
        current = next((node for node in view.fit if view.fresh[node].address == target.address), None)
        if current is not None:
            healthy = (node for node in view.fit if node in view.healthy or node == current)
            chosen = next(healthy)
        elif view.unasked(target.address):
            return _keep(view, Role.STANDBY, view.words_at(target.address))
    elif standing is Standing.FALLBACK:
        chosen = next((node for node in view.fit if node in view.healthy), None)
    if chosen is not None:
        address = view.fresh[chosen].address
        return _Choice(address, Standing.STANDBY, Reason(Code.STANDBY, "standby"), Role.STANDBY)

    why = f"no fit standby: {view.unfit_words}"
    if fallback is not Fallback.NONE:
        if view.condemned or view.primary.reason.code in _SEEN_PRIMARY:
            return _fall_back(view, why)
    elif view.condemned:
        return _Choice(FENCE, Standing.FENCED, Reason(Code.FENCED, why), Role.STANDBY, lacks=True)
    return _keep(view, Role.STANDBY, why)


def _fall_back(view: GroupView, why: str) -> _Choice:
    """Lead a name that wishes for a standby to its primary, by the table for primaries."""
    address = view.primary.address or FENCE
    standing = Standing.FENCED if address == FENCE else Standing.FALLBACK
    code = Code.FENCED if address == FENCE else Code.FALLBACK
    reason = Reason(code, f"{why}; {view.primary.reason.text}")
    return _Choice(address, standing, reason, Role.STANDBY, lacks=True)


def _fall_back_together(views: list[GroupView], choices: dict[str, _Choice]) -> None:
    """``fallback: all``: while one group lacks a standby every name that follows goes to its primary.

    Only where its primary is seen, or it is there already: a name is not taken from a working standby to nowhere.
    """
    following = [
        view
        for view in views
        if view.group.route is Route.FOLLOW
        and view.group.name in choices
        and choices[view.group.name].wish is Role.STANDBY
    ]
    lacking = next((view.group.name for view in following if choices[view.group.name].lacks), None)
    if lacking is None:
        return
    for view in following:
        fallen = view.before.target is not None and view.before.target.standing is Standing.FALLBACK
        if not choices[view.group.name].lacks and (fallen or view.primary.reason.code in _SEEN_PRIMARY):
            choices[view.group.name] = _fall_back(view, f"{lacking} has no fit standby")


def _keep(view: GroupView, wish: Role, why: str) -> _Choice:
    """R1: what is not known is held; where there is nothing to hold, the name is left out."""
    if view.before.target is None:
        return _Choice(None, Standing.FENCED, Reason(Code.UNKNOWN, why), wish)
    held = view.before.target
    return _Choice(held.address, held.standing, Reason(Code.HELD, f"held; {why}"), wish)


def _settle(view: GroupView, own: str | None, choice: _Choice | None, now: float) -> GroupState:
    """Return the group's part of the decision, from its own address or the choice made for it."""
    before = view.before
    if own is not None:
        choice = _Choice(own, Standing.SELF, Reason(Code.SELF, "this server"), Role.PRIMARY)
    target = None
    if choice is not None and choice.address is not None:
        stays = before.target is not None and before.target.address == choice.address
        target = Target(
            name=view.group.name,
            address=choice.address,
            standing=choice.standing,
            wish=None if choice.standing is Standing.SELF else choice.wish,
            primary=view.primary.last,
            primary_lost=view.primary.lost,
            reason=choice.reason,
            since=before.target.since if stays and before.target is not None else now,
        )
    return GroupState(
        target=target,
        reason=choice.reason if choice is not None else Reason(Code.UNKNOWN, "never seen"),
        own=own,
        primary=view.primary.last,
        primary_lost=view.primary.lost,
        system_id=view.system_id,
        foreign=view.foreign,
        lsns=view.lsns,
        fitness=view.fitness,
    )


def _name_alerts(state: GroupState, name: str) -> list[Alert]:
    """R8: everything held, fenced, fallen back or left out is said."""
    if state.reason.code not in (Code.HELD, Code.FENCED, Code.FALLBACK, Code.UNKNOWN):
        return []
    text = str(state.target) if state.target is not None else f"{name} is left out ({state.reason.text})"
    return [Alert(f"{name}:{state.reason.code.value}", text)]


def _local_alerts(local: NodeState, role: Role | None) -> list[Alert]:
    latest = local.latest
    if latest is None or latest.kind in (Kind.PRIMARY, Kind.STANDBY):
        return []
    stands = f"its last known role ({role.value}) stands" if role else "its role was never known: taken for a primary"
    return [Alert("local", f"the local PostgreSQL is {latest.kind.value} ({latest.detail}); {stands}")]
