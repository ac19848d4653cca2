"""Which nodes of a group may serve reads, and how far they lag: values in, values out.

The choice among them is routing's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.model import Fitness, Kind, Node, NodeState, Observation, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config import Group

_HISTORY_STEPS = 64
"""The history of a primary's LSN tells a lag to this part of its limit: about 1.5 % is close enough."""


def describe(node: Node, state: NodeState, seen: Observation | None) -> str:
    """Say in words what is known of a node; ``seen`` is the observation of its role that still counts, if any."""
    label = (seen or state.role_seen or Observation(kind=Kind.UNREACHABLE, at=0.0)).address or node.host
    if seen is not None:
        return f"{label} is {'primary' if seen.kind is Kind.PRIMARY else 'in recovery'}"
    last = {Role.PRIMARY: ", last seen as primary", Role.STANDBY: ", last seen in recovery", None: ""}[state.last_role]
    if state.latest is None:
        return f"{label} has not been asked yet"
    match state.latest.kind:
        case Kind.DEAD:
            return f"{label} is dead: {state.latest.detail}{last}"
        case Kind.BARRED:
            return f"{label} cannot be asked: {state.latest.detail}{last}"
        case Kind.UNREACHABLE:
            return f"{label} does not answer: {state.latest.detail}{last}"
        case Kind.PRIMARY | Kind.STANDBY:
            return f"{label} is yet to be asked again{last}"


def extend_history(
    lsns: tuple[tuple[float, int], ...], primary: Observation | None, *, max_lag_s: float | None
) -> tuple[tuple[float, int], ...]:
    """Return the history of the primary's LSN with one more observation, no longer than ``max_lag_s`` needs.

    An LSN that stands still adds nothing, so that an idle primary's standbys do not seem to fall behind.
    """
    if primary is None or primary.lsn is None or (lsns and primary.lsn == lsns[-1][1]):
        return lsns
    point = (primary.at, primary.lsn)
    if max_lag_s is None or not lsns or primary.lsn < lsns[-1][1]:  # a lower LSN is another history: a failover
        return (point,)
    if len(lsns) > 1 and primary.at - lsns[-2][0] < max_lag_s / _HISTORY_STEPS:
        lsns = lsns[:-1]  # the points before and after it are close enough to each other
    oldest = next((i for i, (at, _) in enumerate(lsns) if primary.at - at <= 2 * max_lag_s), len(lsns))
    return (*lsns[max(0, oldest - 1) :], point)


def assess(
    group: Group,
    states: Mapping[Node, NodeState],
    *,
    members: Mapping[Node, Observation],
    refused: Mapping[Node, str],
    lsns: tuple[tuple[float, int], ...],
    previous: Mapping[Node, Fitness],
    now: float,
) -> dict[Node, Fitness]:
    """Return the fitness of every node of a group.

    ``members`` are the observations that count, ``refused`` the nodes that are no read targets whatever was observed,
    with the reason in words.
    """
    reached = [seen.lsn for seen in members.values() if seen.lsn is not None]
    head = lsns[-1][1] if lsns else max(reached, default=None)
    result = {}
    for node in group.nodes:
        before = previous.get(node, Fitness(fit_since=None))
        seen = members.get(node)
        lag_bytes, lag_s = _lag(group, seen, head=head, lsns=lsns)
        lagging, why_lagging = _lagging(group, lag_bytes=lag_bytes, lag_s=lag_s, before=before)
        if node in refused:
            why = refused[node]
        elif seen is None or seen.kind is not Kind.STANDBY:
            why = describe(node, states[node], seen)
        else:
            why = why_lagging and f"{seen.address} {why_lagging}"
        fit_since = None if why else (now if before.fit_since is None else before.fit_since)
        result[node] = Fitness(fit_since=fit_since, why=why, lagging=lagging, lag_bytes=lag_bytes, lag_s=lag_s)
    return result


def _lag(
    group: Group, seen: Observation | None, *, head: int | None, lsns: tuple[tuple[float, int], ...]
) -> tuple[int | None, float | None]:
    if seen is None or seen.lsn is None or head is None or seen.kind is not Kind.STANDBY:
        return None, None
    replayed, lag_bytes = seen.lsn, max(0, head - seen.lsn)
    if group.max_lag_s is None or not lsns:  # then there is no history to tell it from
        return lag_bytes, None
    # It lags since the primary was first seen beyond what is replayed here, and as long as it was itself seen to: a
    # standby that was not asked since does not fall behind by the clock (R1).
    passed_at = next((at for at, lsn in lsns if lsn > replayed), seen.at)
    return lag_bytes, max(0.0, seen.at - passed_at)


def _lagging(group: Group, *, lag_bytes: int | None, lag_s: float | None, before: Fitness) -> tuple[bool, str]:
    """Report whether a node lags too much, and say so: beyond a limit, and then until it is below half of it."""
    for lag, limit, unit in ((lag_bytes, group.max_lag_bytes, "bytes"), (lag_s, group.max_lag_s, "s")):
        if limit is None:
            continue
        words = f"{limit:.12g} {unit}"
        if lag is None and before.lagging:
            return True, f"lagged more than {words} behind its primary, and says no more"
        if lag is not None and lag > limit:
            return True, f"lags more than {words} behind its primary"
        if lag is not None and before.lagging and lag >= limit / 2:
            return True, f"lagged more than {words} behind its primary, and is not below half of it again"
    return False, ""
