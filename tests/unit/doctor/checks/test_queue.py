"""Doctor's findings about the queue."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.doctor import report as doctor_report
from tests.unit.doctor.builders import (
    CN1,
    HOOK,
    STOP,
    WARNING,
    WITHOUT_PATRONI,
    assert_alone,
    both,
    fit,
    host,
    parameter,
    patroni,
    queue,
)

if TYPE_CHECKING:
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change

EVERYWHERE = "0.0.0.0"
ROOM = "127.77.0.2"
"""The waiting room of wk1; that of cn is never used on a coordinator."""


def listens(value: str, *, name: str | None = None, connect_address: str | None = None) -> Change:
    """Return a change: the local server listens there, under a Patroni with these settings."""
    postgresql = {"pre_promote": HOOK, "before_stop": STOP, "connect_address": connect_address}
    return both(parameter("listen_addresses", value), patroni(postgresql=postgresql, name=name))


def room_faults(**faults: str) -> Change:
    """Return a change: these names' rooms cannot be opened."""
    faults = {name.replace("_", "-"): why for name, why in faults.items()}
    return lambda fit: dataclasses.replace(fit, room_faults=faults)


CASES = [
    (
        "PostgreSQL listens everywhere",
        listens("*"),
        WARNING,
        "queue:listen",
        "this leaves no address for waiting rooms, so statements for wk1, wk1-ro fail during planned work",
        f"Under postgresql in /etc/patroni.yml write `listen: 127.0.0.1,{CN1}:5432`, with any other address that ",
    ),
    (
        "PostgreSQL listens everywhere, under a Patroni with a name",
        listens("*", name="pg1"),
        WARNING,
        "queue:listen",
        "listen_addresses is * (configuration file)",
        "then restart PostgreSQL: patronictl reload cn pg1 && patronictl restart cn pg1",
    ),
    (
        "with another address for Patroni",
        listens(f"{EVERYWHERE}, ::", connect_address="10.7.0.1:5432"),
        WARNING,
        "queue:listen",
        "no address for waiting rooms",
        f"write `listen: 127.0.0.1,{CN1},10.7.0.1,[::]:5432`",
    ),
    (
        "with a name for Patroni",
        listens("*", connect_address="db1:5432"),
        WARNING,
        "queue:listen",
        "no address for waiting rooms",
        f"write `listen: 127.0.0.1,{CN1}:5432`",
    ),
    (
        "without Patroni",
        both(parameter("listen_addresses", "*"), host(patroni=()), WITHOUT_PATRONI),
        WARNING,
        "queue:listen",
        "no address for waiting rooms",
        f"postgresql.conf, and restart PostgreSQL: listen_addresses = '127.0.0.1,{CN1}', with any other",
    ),
    (
        "at a room's address",
        both(parameter("listen_addresses", f"127.0.0.1, {ROOM}, {CN1}"), host(patroni=()), WITHOUT_PATRONI),
        WARNING,
        "queue:listen",
        "so statements for wk1 fail",
        f"listen_addresses = '127.0.0.1,{CN1}'",
    ),
    (
        "everywhere, and the bind test fails for that reason",
        both(listens("*"), room_faults(wk1="Address already in use", wk1_ro="Address already in use")),
        WARNING,
        "queue:listen",
        "wk1, wk1-ro",
        "patronictl restart cn MEMBER",
    ),
    (
        "another process at the port",
        room_faults(wk1="Address already in use", cn="R3 never lets it lead elsewhere"),
        WARNING,
        "queue:room",
        f"wk1: the waiting room cannot be opened at {ROOM}:5432: Address already in use",
        "ss -ltnp 'sport = :5432'",
    ),
    (
        "a short backlog",
        host(somaxconn=128),
        WARNING,
        "queue:somaxconn",
        "net.core.somaxconn is 128: about 128 connections can wait",
        "echo 'net.core.somaxconn = 4096' >/etc/sysctl.d/90-resolver-agent.conf && sysctl -p",
    ),
]


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "fix"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """One fault gives one finding, with its fix."""
    assert_alone(change, severity, key, text, fix)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(both(listens("*"), host(somaxconn=128), queue(planned_s=0.0)), id="no queue"),
        pytest.param(both(listens("*"), parameter("port", "5433")), id="everywhere, at another port"),
        pytest.param(listens("::,localhost"), id="IPv6 has ports of its own"),
        pytest.param(host(somaxconn=None), id="a kernel that does not say"),
    ],
)
def test_no_fault(change: Change) -> None:
    """What does not keep a name from queueing gives no finding."""
    assert [str(one) for one in doctor_report.report(change(fit())).findings] == []


def test_a_queue_for_lost_primaries_alone() -> None:
    """It needs the rooms, too."""
    keys = {
        one.key
        for one in doctor_report.report(both(listens("*"), queue(unplanned_s=30.0, planned_s=0.0))(fit())).findings
    }
    assert "queue:listen" in keys
