"""Builders for tests of metrics: what an agent has counted, and its metrics by name."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from resolver_agent.citus.recovery import Recovered
from resolver_agent.control import report
from resolver_agent.control.report import FlushStatus, PauseStatus, PinStatus, QueueStatus, RecoveryStatus
from resolver_agent.metrics.exposition import render
from resolver_agent.metrics.families import families
from resolver_agent.metrics.figures import Counted
from resolver_agent.queue.room import RoomState
from resolver_agent.routing.observation import NodeState
from resolver_agent.system.histogram import Histogram
from tests.unit.builders import Agent, config, group, primary, standby

if TYPE_CHECKING:
    from collections.abc import Sequence

A, B = "10.0.0.1", "10.0.0.2"
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
        self.text = text
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


def seen() -> Agent:
    """Return an agent on a standby that observes its group."""
    one = Agent(config(group("wk1", A, B, max_lag_s=30)))
    one.see({A: primary(lsn=1000), B: standby(lsn=1000)}).see_local(standby()).decide()
    return one.see({A: primary(lsn=3000)}).decide()


def metrics(
    agent: Agent,
    *,
    flush: FlushStatus | None = None,
    databases: Sequence[Recovered] = (),
    written: bool = True,
    trampled: int = 0,
    pins: tuple[PinStatus, ...] = (),
    pause: PauseStatus | None = None,
    **values: Any,
) -> Metrics:
    """Return the metrics of an agent that has counted these values."""
    nodes = {node: agent.states.get(node, NodeState()) for one in agent.config.groups for node in one.nodes}
    status = report.status(
        agent.config,
        agent.decision,
        nodes,
        local=agent.local,
        alerts=[],
        written=written,
        trampled=trampled,
        flush=flush or FlushStatus(citus=False, flushed=True, fault=None),
        recovery=RecoveryStatus(
            under_way=False, blocked_by=None, age_s=None, databases=tuple(one.status for one in databases)
        ),
        queue=QueueStatus(open=(), past=()),
        pins=pins,
        pause=pause,
        now=agent.now,
    )
    return Metrics(render(families(status, dataclasses.replace(COUNTED, **values))))


def everything() -> Metrics:
    """Return the metrics of an agent with a value for each of them."""
    return metrics(
        seen(),
        flush=FlushStatus(citus=True, flushed=True, fault=None),
        databases=[Recovered(database="app", records=3)],
        rooms={"wk1": RoomState()},
        windows={"wk1": 1},
        answered_at={f"{A}:5432": 1.0},
        patroni_up={f"{A}:5432": True},
        round_at=1.0,
        recovered_at=1.0,
    )
