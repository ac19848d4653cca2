"""A status as one line for Nagios, Icinga and their like: the state, what is wrong, and performance data.

The format is that of the Monitoring Plugins: https://www.monitoring-plugins.org/doc/guidelines.html. Standard library
only.
"""

from __future__ import annotations

import collections
import enum
from typing import TYPE_CHECKING

from resolver_agent.control.status_text import by_severity, counts
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import Code, Severity
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.control.report import Status

_TEXT_LIMIT = 600
"""The characters of the text: NRPE cuts what is longer than 1,024 bytes, which would cost the performance data."""


class State(enum.IntEnum):
    """The state of a service; its values are exit codes."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


def judge(status: Status, *, fault: str = "") -> tuple[State, str]:
    """Return the state of the agent and its names, and the line that says so.

    ``fault`` is what is wrong with the configuration file, if anything is; that is a warning.
    """
    severities = {alert.severity for alert in status.alerts if alert.wants_attention}
    if severities - {Severity.WARNING.value}:
        state = State.CRITICAL
    else:
        state = State.WARNING if severities or fault else State.OK
    wrong = [alert.text for alert in by_severity(status.alerts) if alert.wants_attention]
    text = "; ".join([*wrong, *([fault] if fault else []), counts(status)])
    return state, _line(state, text, _figures(status))


def unknown(why: str) -> tuple[State, str]:
    """Return the state of an agent that cannot be asked."""
    return State.UNKNOWN, _line(State.UNKNOWN, why, {})


def _line(state: State, text: str, figures: Mapping[str, str]) -> str:
    """Return the line; what is after ``|`` are figures, so the text has none."""
    told = plain(text, limit=_TEXT_LIMIT).replace("|", "/").replace("→", "->")
    shown = " ".join(f"{name}={value}" for name, value in figures.items())
    return f"RESOLVER-AGENT {state.name} - {told}" + (f" | {shown}" if shown else "")


def _figures(status: Status) -> dict[str, str]:
    """Return the performance data; U is a number that is not known."""
    nodes = {node.node: node for node in status.nodes}
    codes = collections.Counter(one.code for one in status.names)
    severities = collections.Counter(alert.severity for alert in status.alerts)
    roles = {role.value for role in Role}
    figures: dict[str, tuple[float | None, str]] = {
        "names": (len(status.names), ""),
        **{code.value: (codes[code.value], "") for code in (Code.FENCED, Code.HELD, Code.FALLBACK, Code.QUEUED)},
        "left_out": (codes[Code.UNKNOWN.value], ""),
        "nodes": (len(nodes), ""),
        "nodes_down": (sum(node.kind not in roles for node in nodes.values()), ""),
        **{f"alerts_{one.value}": (severities[one.value], "") for one in reversed(Severity)},
        "lag": (max((node.lag_bytes for node in status.nodes if node.lag_bytes is not None), default=None), "B"),
        "lag_time": (max((node.lag_s for node in status.nodes if node.lag_s is not None), default=None), "s"),
        "recovery_age": (status.recovery.age_s, "s"),
        "waiting": (sum(one.waiting for one in status.queue.open) if status.queue else 0, ""),
        "put_back": (status.trampled, "c"),
    }
    return {name: "U" if value is None else f"{value:.12g}{unit};;;0" for name, (value, unit) in figures.items()}
