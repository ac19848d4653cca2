"""Which nodes of a group may serve reads, and what a name that wants a standby resolves to: values in, values out.

A node is fit while it is in recovery, belongs to the group's database cluster, is not excluded by Patroni, and does not
lag too much. While its lag is not known, a fit node stays fit, and so does the one that the name is on; any other
becomes fit once its lag is known. The order is that of the configuration.

=== ===================================================================== ============================================
row what is seen                                                          the name
=== ===================================================================== ============================================
S1  a fit standby, and the name resolves to none that is fit              resolves to the first fit standby
S2  its own standby is fit                                                stays, until a better one has been healthy
                                                                          for ``failback_delay``
S3  its own standby refuses the login, or has not been asked yet          stays
S4  it fell back to the primary, which is still seen                      returns to the first standby that has been
                                                                          healthy for ``failback_delay``
S5  no fit standby, and no evidence against the present target, or its    stays
    next answer tells the lag of a standby
S6  no fit standby, with ``fallback: none``                               is fenced
S7  no fit standby, with ``fallback: primary`` or ``all``                 resolves to the primary, by the rows P
S8  another group has no fit standby, with ``fallback: all``              resolves to its own primary, if that is seen,
                                                                          or is silent and the name is on it already
=== ===================================================================== ============================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.config.model import Fallback, Node, Route
from resolver_agent.routing.lag import History, is_limited, measure_lag, size
from resolver_agent.routing.observation import NodeState, Observation, Role, describe
from resolver_agent.routing.primary import primary_address
from resolver_agent.routing.state import FENCE, Code, Fitness, Reason, Target, TargetKind
from resolver_agent.routing.view import Choice, GroupView, hold

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from resolver_agent.config.model import Group


_UNFIT = Fitness(fit_since=None)


def assess_fitness(
    group: Group,
    states: Mapping[Node, NodeState],
    *,
    members: Mapping[Node, Observation],
    refused: Mapping[Node, str],
    lsns: History,
    previous: Mapping[Node, Fitness],
    target: Target | None,
    now: float,
    max_age_s: float,
) -> dict[Node, Fitness]:
    """Return the fitness of every node of a group.

    ``members`` are the observations that count. ``refused`` are the nodes that must not serve reads, with the reason in
    words. ``target`` is the name's present one. Observations count for ``max_age_s`` seconds.
    """
    result = {}
    limited = is_limited(group)
    for node in group.nodes:
        before = previous.get(node, _UNFIT)
        seen = members.get(node)
        lag_bytes, lag_s = measure_lag(group, seen, lsns)
        lagging, why_lagging, lag_awaited = False, "", False
        if limited:
            lagging, why_lagging = _lagging(group, lag_bytes=lag_bytes, lag_s=lag_s, before=before)
        if node in refused:
            why = refused[node]
        elif seen is None or seen.result is not Role.STANDBY:
            why = describe(node, states[node], seen)
            lag_awaited = before.lag_awaited and seen is None and not states[node].serves_no_reads
        else:
            why = why_lagging and f"{seen.address} {why_lagging}"
            serves = target is not None and target.kind is TargetKind.STANDBY and target.address == seen.address
            if not (why or serves) and before.fit_since is None and _is_unknown(group, lag_bytes, lag_s):
                why = f"{seen.address} is in recovery, and its lag is not known yet"
                lag_awaited = bool(lsns) and seen.at - lsns[0][0] < max_age_s
        fit_since = None if why else (now if before.fit_since is None else before.fit_since)
        result[node] = Fitness(
            fit_since=fit_since,
            why=why,
            lagging=lagging,
            lag_awaited=lag_awaited,
            lag_bytes=lag_bytes,
            lag_s=lag_s,
        )
    return result


def _is_unknown(group: Group, lag_bytes: int | None, lag_s: float | None) -> bool:
    """Report whether a lag that has a limit is not known."""
    return (group.max_lag_bytes is not None and lag_bytes is None) or (group.max_lag_s is not None and lag_s is None)


def _lagging(group: Group, *, lag_bytes: int | None, lag_s: float | None, before: Fitness) -> tuple[bool, str]:
    """Report whether a node lags too much, and why: once beyond a limit, it does until it is below half of it."""
    for lag, limit, in_bytes in ((lag_bytes, group.max_lag_bytes, True), (lag_s, group.max_lag_s, False)):
        if limit is None:
            continue
        words = size(int(limit)) if in_bytes else f"{limit:.12g} s"
        if lag is None and before.lagging:
            return True, f"lagged more than {words} behind its primary, and its lag is not known now"
        if lag is not None and lag > limit:
            return True, f"lags more than {words} behind its primary"
        if lag is not None and before.lagging and lag >= limit / 2:
            return True, f"lagged more than {words} behind its primary, and is not below half of it again"
    return False, ""


def choose_standby(view: GroupView, fallback: Fallback) -> Choice:
    """Return the target of a name that wants a standby: the first fit one in the configured order.

    A name leaves a target that works only for one that has been healthy for ``failback_delay``.
    """
    target = view.target
    kind = target.kind if target is not None else None
    chosen = next(iter(view.fit), None)
    current = next(
        (node for node in view.fit if target is not None and view.fresh[node].address == target.address), None
    )
    if target is not None and kind is TargetKind.STANDBY:
        if current is not None:
            chosen = next(node for node in view.fit if node in view.healthy or node == current)  # S2
        elif view.cannot_tell(target.address):
            return hold(view, Role.STANDBY, view.words_at(target.address))  # S3
    elif kind is TargetKind.FALLBACK and fallback is not Fallback.NONE and view.primary.seen is not None:
        # The primary that it fell back to may have become a fit standby since: then the name stays on it.
        chosen = next((node for node in view.fit if node in view.healthy), current)  # S4
    if chosen is not None:
        address = view.fresh[chosen].address
        return Choice(address, TargetKind.STANDBY, Reason(Code.STANDBY, "standby"), Role.STANDBY)  # S1, S2, S4

    why = f"no fit standby: {view.unfit_words}"
    seen_primary = fallback is not Fallback.NONE and view.primary.seen is not None
    astray = target is not None and view.is_foreign(target.address)  # A7
    # On a primary that it must leave, or new: at the start a standby in step is fit at its second answer.
    unplaced = kind in (None, TargetKind.PRIMARY) or (kind is TargetKind.FALLBACK and fallback is Fallback.NONE)
    awaits = unplaced and view.awaits_lag
    if not astray and (awaits or not (view.asked_all and (view.has_evidence_against or seen_primary))):
        return hold(view, Role.STANDBY, why)  # S5
    if fallback is Fallback.NONE:
        return Choice(FENCE, TargetKind.FENCED, Reason(Code.FENCED, why), Role.STANDBY, lacks=True)  # S6
    return _fall_back(view, why)  # S7


def _fall_back(view: GroupView, why: str) -> Choice:
    """Return the primary, by the rows P, for a name that wants a standby."""
    address = primary_address(view, Role.STANDBY) or FENCE
    fallen = view.target.address if view.target is not None and view.target.kind is TargetKind.FALLBACK else address
    if fallen != address and view.primary.reason.code is Code.HELD:
        # R1: it leaves the primary that it is on for one that is seen, not for one that is remembered.
        address = fallen if view.is_silent(fallen) else FENCE
    kind = TargetKind.FENCED if address == FENCE else TargetKind.FALLBACK
    code = Code.FENCED if address == FENCE else Code.FALLBACK
    reason = Reason(code, f"{why}; {view.primary.reason.text}")
    return Choice(address, kind, reason, Role.STANDBY, lacks=True)


def fall_back_together(views: list[GroupView], choices: dict[str, Choice], *, but: Collection[str] = ()) -> None:
    """Apply ``fallback: all``: while one group lacks a standby, every name that follows falls back to its primary.

    The names of ``but`` are left out: the operator has decided about these. A name falls back only where its primary is
    seen, or is silent and it resolves to it already: it does not prefer a dead server or a fence to a working standby.
    """
    following = [
        view
        for view in views
        if view.group.route is Route.FOLLOW
        and view.group.name in choices
        and view.group.name not in but
        and choices[view.group.name].wanted_role is Role.STANDBY
    ]
    lacking = next((view.group.name for view in following if choices[view.group.name].lacks), None)
    if lacking is None:
        return
    for view in following:
        target = view.target
        fallen = target is not None and target.kind is TargetKind.FALLBACK and view.is_silent(target.address)
        held = fallen and view.primary.reason.code is Code.HELD
        if not choices[view.group.name].lacks and (held or view.primary.seen is not None):
            choices[view.group.name] = _fall_back(view, f"{lacking} has no fit standby")  # S8
