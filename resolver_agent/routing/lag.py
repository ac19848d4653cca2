"""How far a standby is behind its primary: values in, values out.

Lag is measured at one moment, that of the standby's answer: against the LSN that the primary had certainly reached by
then. So the age of a probe is never lag, and a standby in step has none, however much WAL is written and however many
probes are lost. In return a lag seems smaller by what is written between two answers of the primary.

The history of LSNs is the primary's, which stays when the primary is lost. Before a primary was seen it is that of the
most advanced member.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import Observation, Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resolver_agent.config.model import Group
    from resolver_agent.routing.state import Memory

History = tuple[tuple[float, int], ...]
"""When an LSN was reached at the latest (seconds of CLOCK_BOOTTIME), and the LSN; both grow."""

_END = 2**64
"""LSNs are below that; another one is as none."""

_LATEST = 64
"""Of so many points at the end of a history none is left out."""

_MOST = 256
_STEPS = 64
"""Before those it gives the lag in steps of 1/64 of its limit: about 1.5 % is close enough."""

_UNITS = ("B", "kB", "MB", "GB", "TB")
_NEXT_UNIT, _TWO_DIGITS = 999.5, 9.95
"""From these values on a size has the next unit, and no decimals."""


def extend_history(
    memory: Memory, group: Group, primary: Observation | None, members: Iterable[Observation], *, max_age_s: float
) -> tuple[History, bool]:
    """Return the history of LSNs with one more observation, and whether it is a primary's.

    It is as long as the limits of the group need. An unchanged LSN adds nothing, so the standbys of an idle primary do
    not seem to fall behind. A lower LSN of a primary is that of another history: after a failover.
    """
    lsns, of_primary = memory.lsns, memory.lsns_of_primary
    if primary is not None and _lsn(primary) is not None:
        newest: Observation | None = primary
        of_primary = True
    else:
        known = (one for one in members if _lsn(one) is not None)
        newest = None if of_primary else max(known, key=lambda one: one.lsn or 0, default=None)
    if newest is None or newest.lsn is None:
        return lsns, of_primary
    point = (_answered_at(newest, max_age_s), newest.lsn)
    if lsns and newest.lsn <= lsns[-1][1]:
        return (point,) if of_primary and newest.lsn < lsns[-1][1] else lsns, of_primary
    if lsns:
        point = (max(point[0], lsns[-1][0]), newest.lsn)
    if not is_limited(group):
        return (*lsns[-1:], point), of_primary
    oldest = bisect_right(lsns, (point[0] - 2 * max(group.max_lag_s or 0.0, max_age_s), _END))
    lsns = (*lsns[max(0, oldest - 1) :], point)
    return (_thinned(lsns, (group.max_lag_s or 0.0) / _STEPS) if len(lsns) > _MOST else lsns), of_primary


def _thinned(lsns: History, step_s: float) -> History:
    """Return a history whose older points are ``step_s`` seconds apart, and that has no more than ``_MOST``."""
    kept = [lsns[0]]
    for point in lsns[1:-_LATEST]:
        if point[0] - kept[-1][0] >= step_s:
            kept.append(point)
    return (*kept[-(_MOST - 2 * _LATEST) :], *lsns[-_LATEST:])


def _lsn(seen: Observation) -> int | None:
    return seen.lsn if seen.lsn is not None and 0 <= seen.lsn < _END else None


def _answered_at(seen: Observation, max_age_s: float) -> float:
    """Return when an answer had come; a time that cannot be is none."""
    answered_at = seen.answered_at
    return answered_at if answered_at is not None and 0.0 <= answered_at - seen.at <= max_age_s else seen.at


def is_limited(group: Group) -> bool:
    """Report whether the lag of a group's standbys has a limit."""
    return group.max_lag_bytes is not None or group.max_lag_s is not None


def measure_lag(group: Group, seen: Observation | None, lsns: History) -> tuple[int | None, float | None]:
    """Return a standby's lag in bytes, and in seconds where the group has a limit for it; None where it is not known.

    Of an answer that is older than the history it is known only where it is within the limit even against the first
    LSN of the history, which the primary reached later. In seconds it is not known of a standby that is behind the
    whole history, until that alone exceeds the limit: when the primary passed that standby was not seen.
    """
    if seen is None or seen.result is not Role.STANDBY or seen.lsn is None or not 0 <= seen.lsn < _END:
        return None, None
    reached = _reached(lsns, seen.at, exact=is_limited(group))
    if reached is None and lsns and 0 <= lsns[0][1] - seen.lsn <= (group.max_lag_bytes or 0):
        reached = lsns[0][1]
    if reached is None:
        return None, None
    lag_bytes = max(0, reached - seen.lsn)
    if group.max_lag_s is None:
        return lag_bytes, None
    # The lag runs from when the primary was first seen past the LSN replayed here, to when the standby was last asked:
    # a standby that has not been asked since does not fall behind by the clock alone (R1).
    passed = bisect_right(lsns, seen.lsn, key=itemgetter(1))
    if passed == len(lsns):
        return lag_bytes, 0.0
    lag_s = max(0.0, seen.at - lsns[passed][0])
    return lag_bytes, lag_s if passed or lag_s > group.max_lag_s else None


def _reached(lsns: History, at: float, *, exact: bool) -> int | None:
    """Return the LSN that was reached ``at`` the latest.

    Without a limit the group is looked at rarely, and its two points are far apart: then the LSN between them is in
    proportion to the time. Nothing is decided on that.
    """
    after = bisect_right(lsns, (at, _END))
    if after == 0:
        return None
    (since, reached), following = lsns[after - 1], lsns[after:]
    if exact or not following:
        return reached
    until, further = following[0]
    return reached + int((further - reached) * (at - since) / (until - since))


def size(size_bytes: int) -> str:
    """Return a number of bytes in words: ``0 B``, ``8.5 kB``, ``11 MB``. Units are powers of 1024, as in settings."""
    value, units = float(size_bytes), iter(_UNITS)
    unit = next(units)
    for larger in units:
        if value < _NEXT_UNIT:
            break
        value, unit = value / 1024, larger
    return f"{value:.2g} {unit}" if value < _TWO_DIGITS else f"{value:.0f} {unit}"
