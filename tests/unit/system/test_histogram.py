"""Histograms: which bucket a value falls into."""

from __future__ import annotations

from resolver_agent.system.histogram import Distribution, Histogram


def test_values_are_counted_by_the_bounds_that_they_do_not_exceed() -> None:
    """A value at a bound counts there, and each count includes the smaller ones."""
    histogram = Histogram(0.1, 1.0)
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert histogram.snapshot() == Distribution(bounds=(0.1, 1.0), counts=(2, 3, 4), total=7.65)


def test_a_snapshot_stays_as_it_is() -> None:
    """What is rendered later is what was counted until then."""
    histogram = Histogram(1.0)
    before = histogram.snapshot()
    histogram.observe(0.5)
    assert (before.counts, histogram.snapshot().counts) == ((0, 0), (1, 1))
