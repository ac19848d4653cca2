"""Counts measured values by size, as Prometheus' histograms do."""

from __future__ import annotations

import bisect
import dataclasses
import itertools


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What a histogram holds at one moment.

    ``counts`` has one number more than ``bounds``: how many values were at most each bound, and how many there are.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Histogram:
    """Counts values by the bounds that they do not exceed; ``bounds`` ascend."""

    def __init__(self, *bounds: float) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> Distribution:
        """Return what it holds now."""
        counts = tuple(itertools.accumulate(self._counts))
        return Distribution(bounds=self._bounds, counts=counts, total=self._total)
