"""The results of planned stops of workers under traffic, and their table: modes beside one another."""

from __future__ import annotations

import dataclasses
import os
import statistics
from typing import TYPE_CHECKING

from tests.bench.traffic import KINDS, SIDES, WORKER, Account, errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.bench.traffic import Sample

SWITCHOVER, RESTART, KILL = STRIKES = ("switchover", "restart", "kill")

UNCOVERED_SIDES = frozenset({WORKER})
"""Whose failures are counted and do not judge: statements through a worker that are under way are not covered."""

_SHOWN = 12


@dataclasses.dataclass(kw_only=True)
class Round:
    """One stop of a worker's primary; times in seconds since the epoch.

    Attributes:
        mode: what should keep statements from failing.
        strike: what was done.
        group: whose primary it was done to.
        begun_at: when Patroni was told, or the power was about to be cut.
        struck_at: when the last process was dead, after a kill.
        stopping_at: when the old server was told to stop, so after the hook; None where it was not.
        serving_at: when the new server was promoted, or the same was ready again.
        hook_s: from the last checkpoint of the old server until it was told to stop.
        before: samples that ended before ``begun_at``.
        since: the others.
        under_way: how many of those ran at ``begun_at``, or at ``struck_at``.
        queued: what the agent of the primary coordinator reports of its window: milliseconds, by word.
        unserved: clients that were not served again in time, in words.
        agents_said: what the agents logged that concerns stops.
    """

    mode: str
    strike: str
    group: str
    begun_at: float
    struck_at: float = 0.0
    stopping_at: float | None = None
    serving_at: float = 0.0
    hook_s: float | None = None
    before: list[Sample] = dataclasses.field(default_factory=list)
    since: list[Sample] = dataclasses.field(default_factory=list)
    under_way: int = 0
    queued: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    unserved: list[str] = dataclasses.field(default_factory=list)
    agents_said: list[str] = dataclasses.field(default_factory=list)

    @property
    def patroni_s(self) -> float:
        """What Patroni takes, from the hook's return, or the loss of the server, to the new one."""
        return self.serving_at - (self.begun_at if self.stopping_at is None else self.stopping_at)

    @property
    def longest_s(self) -> float:
        """The longest that a statement took which succeeded."""
        return max((one.took_s for one in self.since if one.error is None), default=0.0)

    @property
    def failed(self) -> int:
        """How many statements failed that should not have."""
        failed = sum(one.error is not None and one.side not in UNCOVERED_SIDES for one in self.since)
        return max(0, failed - self.under_way) if self.strike == KILL else failed


@dataclasses.dataclass(kw_only=True)
class Result:
    """All rounds of one mode, and what the tables had at the end."""

    mode: str
    rounds: list[Round]
    account: Account

    @property
    def well(self) -> bool:
        """Whether no statement failed that should not have, and nothing acknowledged is missing."""
        return not self.account and not any(one.failed or one.unserved for one in self.rounds)


def line(number: int, one: Round) -> str:
    """Return one round in a line."""
    failed = ", ".join(
        f"{sum(sample.error is not None for sample in one.since if sample.side == side)} {side}" for side in SIDES
    )
    hook = "" if one.hook_s is None else f", hook {one.hook_s:.2f} s"
    queued = "".join(f", {word} {'/'.join(f'{ms:.0f}' for ms in all_ms)} ms" for word, all_ms in one.queued.items())
    return (
        f"{number:2} {one.mode}, {one.strike} of {one.group}: failed {failed} of {len(one.since)}; "
        f"longest wait {one.longest_s:.2f} s, Patroni {one.patroni_s:.2f} s{hook}{queued}; "
        f"{one.under_way} under way; load {os.getloadavg()[0]:.1f}"
    )


def told(one: Round) -> Iterator[str]:
    """Yield the distinct errors of a round."""
    yield from one.unserved
    found = errors(one.since)
    for side, kind, error, count in found[:_SHOWN]:
        yield f"{count} x {side}, {kind}: {error}"
    if len(found) > _SHOWN:
        yield f"and {len(found) - _SHOWN} other errors"


def report(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table: failed, longest wait and the median without a stop, by kind and mode."""
    yield _row("failed; longest wait, s; median in quiet, ms", [one.mode for one in results])
    yield _row("---", ["---" for _ in results])
    for side, name in dict.fromkeys((kind.side, kind.name) for kind in KINDS):
        yield _row(f"{side}: {name}", [_cell(one, side, name) for one in results])
    for what, cell in _TOTALS.items():
        yield _row(f"**{what}**", [cell(one) for one in results])


def _cell(result: Result, side: str, name: str) -> str:
    since = [one for each in result.rounds for one in each.since if (one.side, one.kind) == (side, name)]
    before = [one.took_s for each in result.rounds for one in each.before if (one.side, one.kind) == (side, name)]
    if not since:
        return "-"
    failed = sum(one.error is not None for one in since)
    longest = max((one.took_s for one in since if one.error is None), default=0.0)
    return f"{failed}; {longest:.1f}; {1000 * statistics.median(before or [0]):.1f}"


def _failed_on(side: str) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        each = [sum(one.error is not None for one in each.since if one.side == side) for each in result.rounds]
        return f"{sum(each)} ({', '.join(map(str, each))})"

    return cell


def _median_worst(seconds: Callable[[Round], float | None]) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        values = [value for one in result.rounds if (value := seconds(one)) is not None]
        return f"{statistics.median(values):.2f}, {max(values):.2f}" if values else "-"

    return cell


def _in_quiet(result: Result) -> str:
    """Return the throughput and the median latency before the stops."""
    rates, took_s = [], []
    for one in result.rounds:
        if one.before:
            seconds = one.begun_at - min(sample.begun_at for sample in one.before)
            rates.append(len(one.before) / seconds)
            took_s += [sample.took_s for sample in one.before]
    return f"{statistics.median(rates):.0f}, {1000 * statistics.median(took_s):.1f}" if rates else "-"


def _queued(word: str) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        values = [ms for one in result.rounds for ms in one.queued.get(word, [])]
        return f"{statistics.median(values):.0f}, {max(values):.0f}" if values else "-"

    return cell


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in found.items() if count) or "0"


_TOTALS: dict[str, Callable[[Result], str]] = {
    "stops": lambda result: str(len(result.rounds)),
    "statements meanwhile": lambda result: f"{sum(len(one.since) for one in result.rounds):,}",
    **{f"failed, asked the {side}": _failed_on(side) for side in SIDES},
    "under way at the stop": lambda result: ", ".join(str(one.under_way) for one in result.rounds),
    "longest wait, s: median, worst": _median_worst(lambda one: one.longest_s),
    "hook, s: median, worst": _median_worst(lambda one: one.hook_s),
    "Patroni after it, s: median, worst": _median_worst(lambda one: one.patroni_s),
    "longest wait beyond Patroni's, s": _median_worst(lambda one: one.longest_s - one.patroni_s),
    "drained after, ms: median, worst": _queued("drain_ms"),
    "gate closed, ms: median, worst": _queued("gate_ms"),
    "in quiet: statements a second, median ms": _in_quiet,
    "acknowledged and lost": lambda result: _counts(result.account.lost),
    "half there": lambda result: _counts(result.account.half),
}


def _row(first: str, others: Sequence[str]) -> str:
    return f"| {first:44} | " + " | ".join(f"{cell:>22}" for cell in others) + " |"
