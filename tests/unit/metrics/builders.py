"""Builders for tests of metrics: what an agent has counted, and its metrics by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from resolver_agent.metrics.figures import Counted
from resolver_agent.system.histogram import Histogram

NOTHING = Histogram(1.0).snapshot()
COUNTED = Counted(
    started_at=1000.0,
    round_at=None,
    rounds=0,
    failed_rounds=0,
    round_s=NOTHING,
    config_is_current=True,
    reloads=0,
    failed_reloads=0,
    promotions=0,
    announced=0,
    promotion_is_pending=False,
    holds_lock=False,
    changes={},
    written_s=NOTHING,
    flushed_s=NOTHING,
    probes={},
    probe_s=NOTHING,
    answered_at={},
    writes=0,
    failed_writes=0,
    flushes=0,
    failed_flushes=0,
    recoveries=0,
    failed_recoveries=0,
    recovered_at=None,
    recovered=0,
    cleaned=0,
    windows={},
    rooms={},
    patroni_up={},
    alerts={},
)
"""An agent that has just started."""


class Metrics:
    """Metrics in Prometheus' text format, read by its own parser; names are without the prefix."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [
            (sample.name.removeprefix("resolver_agent_"), sample.labels, sample.value)
            for family in self.families.values()
            for sample in family.samples
        ]

    def value(self, name: str, /, **labels: str) -> float | None:
        """Return the value of the one series with this name and at least these labels, None without one."""
        found = [value for called, has, value in self.samples if called == name and labels.items() <= has.items()]
        assert len(found) <= 1, (name, labels, found)
        return found[0] if found else None

    def labels(self, name: str) -> list[dict[str, str]]:
        """Return the labels of each series with this name."""
        return [has for called, has, _ in self.samples if called == name]

    def state(self, name: str, label: str = "state", /, **labels: str) -> str:
        """Return which of its states a metric has now: exactly one."""
        [state] = [
            has[label]
            for called, has, value in self.samples
            if called == name and labels.items() <= has.items() and value == 1
        ]
        return state


def counted(**values: Any) -> Counted:
    """Return what an agent has counted that has just started, but for these values."""
    return dataclasses.replace(COUNTED, **values)
