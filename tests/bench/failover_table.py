"""The results of coordinator failovers, and their table."""

from __future__ import annotations

import dataclasses
import os
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

POWER_LOSS, SWITCHOVER, PATRONI_KILLED = KINDS = ("power loss", "switchover", "Patroni killed")


@dataclasses.dataclass(kw_only=True)
class Failover:
    """The result of one failover; times in seconds, those that end with ``_at`` since the epoch."""

    kind: str
    begun_at: float
    promoted_at: float = 0.0
    names_at: float = 0.0
    hook_ms: float | None = None
    settled_at: float = 0.0
    gap_s: float = 0.0
    in_doubt: int = 0
    acknowledged: int = 0
    lost: int = 0
    half: int = 0
    reads: int = 0
    disconnected: int = 0
    misrouted: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    agent_said: list[str] = dataclasses.field(default_factory=list)

    @property
    def late(self) -> bool:
        """Whether a name still pointed to a standby when the server was about to take writes."""
        return self.names_at > self.promoted_at

    @property
    def well(self) -> bool:
        """Whether the failover has no fault."""
        return not (self.lost or self.half or self.misrouted or self.late)


def report(failovers: Sequence[Failover]) -> Iterator[str]:
    """Yield the lines of the table."""
    kinds = [kind for kind in KINDS if any(one.kind == kind for one in failovers)]
    by_kind = [[one for one in failovers if one.kind == kind] for kind in kinds]
    yield _row("", *kinds)
    yield _row("---", *("---" for _ in kinds))
    for what, cell in _ROWS.items():
        yield _row(what, *(cell(group) for group in by_kind))


def _total(field: str) -> Callable[[list[Failover]], str]:
    return lambda group: f"{sum(getattr(one, field) for one in group):,}"


def _median_worst(
    seconds: Callable[[Failover], float | None], unit: float, *, worst: Callable[[list[float]], float] = max
) -> Callable[[list[Failover]], str]:
    def cell(group: list[Failover]) -> str:
        values = [unit * value for one in group if (value := seconds(one)) is not None]
        return f"{statistics.median(values):,.1f}, {worst(values):,.1f}" if values else "-"

    return cell


_ROWS: dict[str, Callable[[list[Failover]], str]] = {
    "failovers": lambda group: str(len(group)),
    "transactions acknowledged": _total("acknowledged"),
    "prepared transactions left in doubt": _total("in_doubt"),
    "**acknowledged, and lost**": _total("lost"),
    "**half transactions**": _total("half"),
    "**statements of the promoted on worker standbys**": lambda group: str(sum(len(one.misrouted) for one in group)),
    "**names late**": _total("late"),
    "reads before, by worker standbys": _total("reads"),
    "sessions that stayed, and were ended": _total("disconnected"),
    "statements of theirs that failed": lambda group: str(sum(len(one.faults) for one in group)),
    "the hook said ready": lambda group: f"{sum(one.hook_ms is not None for one in group)}",
    "the hook, ms: median, worst": _median_worst(lambda one: one.hook_ms, 1),
    "names before writes, ms: median, least": _median_worst(
        lambda one: one.promoted_at - one.names_at, 1000, worst=min
    ),
    "without writes, s: median, worst": _median_worst(lambda one: one.gap_s, 1),
    "Patroni, to the promotion, s: median, worst": _median_worst(lambda one: one.promoted_at - one.begun_at, 1),
    "recovered after promotion, s: median, worst": _median_worst(lambda one: one.settled_at - one.promoted_at, 1),
}


def _row(*cells: str) -> str:
    first, *others = cells
    return f"| {first:49} | " + " | ".join(f"{cell:>15}" for cell in others) + " |"


def line(number: int, one: Failover) -> str:
    """Return one failover in a line."""
    hook = "no word of the hook" if one.hook_ms is None else f"hook {one.hook_ms:.0f} ms"
    return (
        f"{number:2} {one.kind}: promoted after {one.promoted_at - one.begun_at:.1f} s, {hook}, names "
        f"{1000 * (one.promoted_at - one.names_at):.0f} ms before, recovered {one.settled_at - one.promoted_at:.1f} s "
        f"after; no writes for {one.gap_s:.1f} s; {one.acknowledged} acknowledged, {one.in_doubt} in doubt, "
        f"{one.lost} lost, {one.half} half, {len(one.misrouted)} misrouted; load {os.getloadavg()[0]:.1f}"
    )
