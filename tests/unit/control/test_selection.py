"""Parts of a status: some names, or what is wrong."""

from __future__ import annotations

import dataclasses

import pytest

from resolver_agent.control.report import AlertStatus, QueueStatus, Status, WindowStatus
from resolver_agent.control.selection import of_names, problems
from tests.unit.builders import Agent, config, dead, group, primary, standby
from tests.unit.control.builders import A, B, past_window, status

C, D = "10.0.0.3", "10.0.0.4"


def two(*alerts: tuple[str, ...]) -> Status:
    """Return the status of two healthy names, with these alerts."""
    agent = Agent(config(group("wk1", A, B, max_lag_bytes=100), group("wk2", C, D)))
    agent.see({A: primary(), B: standby(), C: primary(), D: standby()}).see_local(primary()).decide()
    return with_alerts(status(agent), *alerts)


def with_alerts(found: Status, *alerts: tuple[str, ...]) -> Status:
    """Return a status with alerts besides its own, given by what they concern."""
    added = tuple(AlertStatus(key=":".join(of), of=of, text="", since=None) for of in alerts)
    return dataclasses.replace(found, alerts=(*found.alerts, *added))


ALERTS: dict[tuple[str, ...], set[str]] = {
    ("wk1",): {"wk1"},
    ("wk2",): {"wk2"},
    ("wk2", f"{C}:5432"): {"wk2"},
    ("wk2", "10.0.0.9:5432"): {"wk2"},
    (f"{A}:5432",): {"wk1"},
    (f"{D}:5432",): {"wk2"},
    (): {"wk1", "wk2"},
    ("file",): {"wk1", "wk2"},
}
"""The names in whose status an alert is."""


@pytest.mark.parametrize("name", ["wk1", "wk2"])
def test_of_names(name: str) -> None:
    """A name's status has its nodes, and all alerts but those that concern another name or its nodes."""
    found = of_names(two(*ALERTS), [name])
    assert [one.name for one in found.names] == [name]
    assert [one.node for one in found.nodes] == [f"{host}:5432" for host in ((A, B) if name == "wk1" else (C, D))]
    assert [one.of for one in found.alerts] == [of for of, names in ALERTS.items() if name in names]


def test_a_node_of_two_names() -> None:
    """An alert about a node is in the status of each name that it is behind."""
    agent = Agent(config(group("wk1", A), group("wk1-ro", A), group("wk2", C)))
    found = with_alerts(status(agent), (f"{A}:5432",))
    assert [len(of_names(found, [name]).alerts) for name in ("wk1", "wk1-ro", "wk2")] == [1, 1, 0]


def test_windows_of_names() -> None:
    """Only the windows of these names are kept; an agent of an older version has none."""
    window = WindowStatus(name="wk1", node=A, stage="room", since=None, left_s=1.0, waiting=0)
    past = dataclasses.replace(past_window(), name="wk2")
    found = dataclasses.replace(two(), queue=QueueStatus(open=(window,), past=(past,)))
    assert of_names(found, ["wk1"]).queue == QueueStatus(open=(window,), past=())
    assert of_names(found, ["wk2"]).queue == QueueStatus(open=(), past=(past,))
    assert of_names(dataclasses.replace(found, queue=None), ["wk2"]).queue is None


@pytest.mark.parametrize("of", ALERTS)
def test_problems(of: tuple[str, ...]) -> None:
    """The names with which something is wrong are those that an alert is about; one about none stays, too."""
    found = problems(two(of))
    assert {one.name for one in found.names} == (ALERTS[of] if len(ALERTS[of]) == 1 else set())
    assert [one.of for one in found.alerts] == [of]


def test_no_problems() -> None:
    """No name is left of a status in which all is well."""
    found = problems(two())
    assert (found.names, found.nodes, found.alerts) == ((), (), ())


def test_a_node_that_does_not_serve() -> None:
    """A standby that is dead or lags is a problem of its name, although it is no alert on the primary coordinator."""
    agent = Agent(config(group("wk1", A, B, max_lag_bytes=100), group("wk2", C, D), group("wk3", "10.0.0.5")))
    agent.see({A: primary(lsn=1000), B: standby(lsn=1), C: primary(), D: dead(), "10.0.0.5": primary()})
    found = status(agent.see_local(primary()).decide())
    assert found.alerts == ()
    assert [one.name for one in problems(found).names] == ["wk1", "wk2"]
