"""``check``: one line for Nagios and Icinga."""

from __future__ import annotations

import dataclasses
import re

import pytest

from resolver_agent.control.check import State, judge, unknown
from resolver_agent.control.report import AlertStatus, QueueStatus, Status, WindowStatus
from resolver_agent.routing.state import Severity
from tests.unit.builders import Agent, config, dead, group, primary, standby
from tests.unit.control.builders import A, B, citus_status, seen, status

LINE = r"RESOLVER-AGENT (?P<state>[A-Z]+) - (?P<text>[^|]+)(?: \| (?P<figures>[^|]+))?"


def figures(line: str) -> dict[str, str]:
    """Return the performance data of a line, each of the form that the guidelines ask for."""
    found = re.fullmatch(LINE, line)
    assert found is not None
    assert all(re.fullmatch(r"\w+=(U|\d+(\.\d+)?(B|s|c)?;;;0)", one) for one in found["figures"].split(" "))
    return dict(one.partition(";")[0].split("=") for one in found["figures"].split(" "))


def with_alerts(*severities: str) -> Status:
    """Return a status with alerts of these severities, and no others."""
    alerts = (AlertStatus(key=one, code=one, severity=one, text=f"it is {one}", since=None) for one in severities)
    return dataclasses.replace(status(seen()), alerts=tuple(alerts))


@pytest.mark.parametrize(
    ("severities", "fault", "state", "text"),
    [
        pytest.param([], "", State.OK, "1 name: 1 standby; ", id="all is well"),
        pytest.param(["info"], "", State.OK, "1 name: 1 standby; ", id="information"),
        pytest.param(["info", "warning"], "", State.WARNING, "it is warning; 1 name: ", id="a warning"),
        pytest.param(
            ["warning", "critical"], "", State.CRITICAL, "it is critical; it is warning; 1 name", id="critical"
        ),
        pytest.param(["fatal"], "", State.CRITICAL, "it is fatal; 1 name: ", id="a severity of a later version"),
        pytest.param([], "c.yml: bad", State.WARNING, "c.yml: bad; 1 name: ", id="the configuration"),
        pytest.param(["critical"], "c.yml: bad", State.CRITICAL, "it is critical; c.yml: bad; ", id="both"),
    ],
)
def test_state(severities: list[str], fault: str, state: State, text: str) -> None:
    """The worst alert makes the state, and comes first; information makes none."""
    found, line = judge(with_alerts(*severities), fault=fault)
    assert (found, found.name) == (state, line.split(" ")[1])
    assert line.startswith(f"RESOLVER-AGENT {state.name} - {text}")


def test_every_severity_has_a_state() -> None:
    """Whatever is more than information makes a state of its own."""
    states = {one: judge(with_alerts(one.value))[0] for one in Severity}
    assert states == {
        Severity.INFO: State.OK,
        Severity.WARNING: State.WARNING,
        Severity.CRITICAL: State.CRITICAL,
    }


def test_figures_of_what_is_well() -> None:
    """Performance data has what there is to count, and the largest lag."""
    assert figures(judge(status(seen()))[1]) == {
        "names": "1",
        "fenced": "0",
        "held": "0",
        "fallback": "0",
        "queued": "0",
        "left_out": "0",
        "nodes": "2",
        "nodes_down": "0",
        "alerts_critical": "0",
        "alerts_warning": "0",
        "alerts_info": "0",
        "lag": "4096B",
        "lag_time": "0s",
        "recovery_age": "U",
        "waiting": "0",
        "put_back": "0c",
    }


def test_figures_of_what_is_not() -> None:
    """Everything that goes wrong is in its figure, a node of two names once; a lag that is not known is none."""
    agent = Agent(config(group("wk1", A, B), group("wk2", "10.0.0.3"), group("wk1-rw", A, B)))
    agent.see({A: primary(), B: standby(), "10.0.0.3": primary()}).see_local(standby()).decide()
    agent.see({B: dead()}).decide()
    window = WindowStatus(name="wk2", node=A, stage="room", since=None, left_s=9.5, waiting=3)
    found = dataclasses.replace(
        status(agent),
        trampled=7,
        queue=QueueStatus(open=(window, window), past=()),
        **citus_status(citus=True, age_s=61.5),
    )
    shown = figures(judge(found)[1])
    wrong = {name: value for name, value in shown.items() if value != "0"}
    assert wrong == {
        "names": "3",
        "fenced": "3",
        "nodes": "3",
        "nodes_down": "1",
        "alerts_critical": "3",
        "lag": "U",
        "lag_time": "U",
        "recovery_age": "61.5s",
        "waiting": "6",
        "put_back": "7c",
    }


def test_an_older_agent() -> None:
    """An agent without a queue is judged, too."""
    assert figures(judge(dataclasses.replace(status(seen()), queue=None))[1])["waiting"] == "0"


def test_the_text_stays_one_line() -> None:
    """A bar would begin the performance data, and a long text would have the monitoring cut it off."""
    alert = AlertStatus(key="x", severity="warning", text=f"a | b → c\nd {'x' * 5000}", since=None)
    _, line = judge(dataclasses.replace(status(seen()), alerts=(alert,)))
    assert line.startswith("RESOLVER-AGENT WARNING - a / b -> c d xxx")
    assert len(line) < 1024
    assert line.isprintable()
    assert figures(line)["names"] == "1"


def test_no_agent() -> None:
    """Without an agent there are no figures."""
    state, line = unknown("no agent runs in /run\nc.yml: bad")
    assert (state.value, line) == (3, "RESOLVER-AGENT UNKNOWN - no agent runs in /run c.yml: bad")
