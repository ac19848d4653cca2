"""Builders for tests of the agent's answers: an agent, and its status."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypedDict

from resolver_agent.control import report
from resolver_agent.control.report import FlushStatus, PastWindow, QueueStatus, RecoveryStatus, Status
from resolver_agent.routing.observation import NodeState
from tests.unit.builders import Agent, config, group, primary, standby

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resolver_agent.citus.recovery import Recovered

A, B = "10.0.0.1", "10.0.0.2"


class CitusStatus(TypedDict):
    """The report's arguments about Citus."""

    flush: FlushStatus
    recovery: RecoveryStatus


def seen() -> Agent:
    """Return an agent on a standby that observes its group."""
    one = Agent(config(group("wk1", A, B, max_lag_s=30)))
    one.see({A: primary(lsn=0x1_0000_1000), B: standby(lsn=0x1_0000_1000)}).see_local(standby()).decide()
    return one.see({A: primary(lsn=0x1_0000_2000)}).decide()


def citus_status(
    *,
    citus: bool | None = False,
    flushed: bool = True,
    blocked_by: str | None = None,
    age_s: float | None = None,
    databases: Sequence[Recovered] = (),
) -> CitusStatus:
    """Return the report's arguments about Citus."""
    return {
        "flush": FlushStatus(citus=citus, flushed=flushed, fault=None),
        "recovery": RecoveryStatus(
            under_way=False, blocked_by=blocked_by, age_s=age_s, databases=tuple(one.status for one in databases)
        ),
    }


def status(agent: Agent, since: Callable[[str, str], str | None] = lambda _name, _address: None) -> Status:
    """Return an agent's status; ``since`` is its history."""
    return report.status(
        dataclasses.replace(agent.config, path="c.yml", hosts_file="hosts"),
        agent.decision,
        {one: agent.states.get(one, NodeState()) for group in agent.config.groups for one in group.nodes},
        local=agent.local,
        alerts=[(alert, agent.now - 60) for alert in agent.decision.alerts],
        written=True,
        trampled=0,
        queue=QueueStatus(open=(), past=()),
        now=agent.now,
        since=since,
        **citus_status(),
    )


def past_window() -> PastWindow:
    """Return a window of wk1 that is over."""
    return PastWindow(
        name="wk1",
        node=f"{A}:5432",
        why="promoted",
        took_s=1.0,
        forwarded=7,
        failed=0,
        longest_wait_s=0.5,
        gate_ms=0,
        drain_ms=0,
        left=(),
    )
