"""Doctor's findings about the probed nodes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Fallback, Route
from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.facts import Unit
from resolver_agent.routing.observation import NodeState, Observation, ProbeFailure
from tests.unit.builders import dead, group, node, not_serving, primary, rejecting, standby, unreachable
from tests.unit.doctor.builders import (
    CN1,
    CN2,
    CN3,
    ERROR,
    GROUPS,
    NOTE,
    WARNING,
    WK2,
    assert_alone,
    fit,
    probed,
    server,
    settings,
    state,
    units,
)

if TYPE_CHECKING:
    from resolver_agent.doctor.facts import Facts
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change


CASES = [
    ("a warning of the configuration", settings(warnings=("a: bad",)), WARNING, "config", "a: bad", ""),
    ("rejecting", probed(wk2=rejecting()), ERROR, "node", f"{WK2}:5432 cannot be asked: password", "role.sql"),
    ("dead", probed(wk2=dead()), WARNING, "node", f"{WK2}:5432 is down: Connection refused", "Start"),
    (
        "starting up",
        probed(wk2=Observation(result=ProbeFailure.NOT_SERVING, at=0.0, detail="starting up")),
        WARNING,
        "node",
        f"{WK2}:5432 is not serving: starting up",
        f"Wait. If it stays so, read the log of PostgreSQL on {WK2}.",
    ),
    (
        "not asked in time",
        lambda fit: dataclasses.replace(fit, nodes={**fit.nodes, node(WK2): NodeState()}),
        WARNING,
        "node",
        f"{WK2}:5432 could not be asked in time",
        "name resolves",
    ),
    (
        "two are down",
        probed(cn2=dead(), wk2=dead()),
        WARNING,
        "node",
        f"{CN2}:5432, {WK2}:5432 are down: Connection refused",
        "Start PostgreSQL there",
    ),
    (
        "two are down in different ways",
        probed(cn2=dead(), wk2=dataclasses.replace(dead(), detail="Connection reset by peer")),
        WARNING,
        "node",
        f"2 nodes are down: {CN2}:5432: Connection refused; {WK2}:5432: Connection reset by peer",
        "Start PostgreSQL there",
    ),
    (
        "two are starting up",
        probed(cn2=not_serving(), wk2=not_serving()),
        WARNING,
        "node",
        f"{CN2}:5432, {WK2}:5432 are not serving: the database system is starting up",
        f"read the log of PostgreSQL on {CN2}, {WK2}.",
    ),
    ("silent", probed(wk2=unreachable()), WARNING, "node", f"{WK2}:5432 does not answer: no", "network"),
    (
        "two primaries",
        probed(wk2=primary(started=4, system_id=2)),
        ERROR,
        "primaries",
        "wk1: several",
        "Stop the wrong",
    ),
    (
        "no primary",
        probed(wk1=standby(started=3, system_id=2)),
        WARNING,
        "primary",
        "wk1: no primary",
        "promote a standby",
    ),
    (
        "foreign",
        probed(wk2=standby(started=4, system_id=9)),
        ERROR,
        "foreign",
        f"{WK2}:5432 has 9",
        "names.wk1.nodes",
    ),
    ("lag", probed(wk2=standby(started=4, system_id=2, lsn=400)), WARNING, "lag", "lags 600 B", "wal_receiver"),
    (
        "not recognised",
        lambda fit: dataclasses.replace(fit, local=state(CN1, primary(started=99))),
        ERROR,
        "own",
        "none of the nodes",
        "`nodes`",
    ),
    (
        "not recognised, no Citus",
        lambda fit: server(databases={})(dataclasses.replace(fit, local=state(CN1, primary(started=99)))),
        WARNING,
        "own",
        "none of the nodes",
        "`nodes`",
    ),
    (
        "two standbys of the coordinator",
        lambda fit: dataclasses.replace(
            settings(groups=(dataclasses.replace(GROUPS[0], nodes=group("cn", CN1, CN2, CN3).nodes), *GROUPS[1:]))(fit),
            nodes={**fit.nodes, node(CN3): state(CN3, standby(started=7))},
        ),
        WARNING,
        "readers",
        f"{CN2}:5432, {CN3}:5432",
        "different database role",
    ),
    ("fallback: all", settings(fallback=Fallback.ALL), NOTE, "fallback", "fallback: all is safe only", ""),
]


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "fix"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """One fault gives one finding, with its fix."""
    assert_alone(change, severity, key, text, fix)


def test_nodes_that_fail_in_different_ways() -> None:
    """Each way is a finding of its own."""
    report = doctor_report.report(probed(cn2=dead(), wk2=unreachable())(fit()))
    assert [one.text for one in report.findings] == [
        f"{CN2}:5432 is down: Connection refused",
        f"{WK2}:5432 does not answer: no answer within 2 s",
    ]


def on_application_host(facts: Facts) -> Facts:
    """Return the facts of a host without PostgreSQL that reaches the same nodes."""
    routes = {"cn": Route.PRIMARY, "wk1": Route.PRIMARY, "wk1-ro": Route.STANDBY}
    groups = tuple(dataclasses.replace(one, route=routes[one.name]) for one in facts.config.groups)
    config = dataclasses.replace(facts.config, groups=groups, has_local=False, citus=False, fallback=Fallback.PRIMARY)
    host = dataclasses.replace(facts.host, patroni=(), citus_passfile=None)
    return dataclasses.replace(facts, config=config, local=NodeState(), server=None, host=host)


def test_a_host_without_postgresql() -> None:
    """It is fit without a server; what concerns one is not looked at, with that reason."""
    report = doctor_report.report(on_application_host(fit()))
    assert report.findings == ()
    why = {one.what: one.why for one in report.outcomes}
    for what in ("the local PostgreSQL can be asked", "the local PostgreSQL is one of the nodes"):
        assert why[what] == "there is no local PostgreSQL (local: off)"
    assert why["waiting rooms can be opened"] == ""


def test_a_room_that_cannot_be_opened_on_a_host_without_postgresql() -> None:
    """There the queue depends on rooms as well: another program may have their port."""
    facts = dataclasses.replace(on_application_host(fit()), room_faults={"cn": "Address already in use"})
    [found] = doctor_report.report(facts).findings
    assert found.key == "queue:room"
    assert "cn: the waiting room cannot be opened at 127.77.0.1:5432: Address already in use" in found.text


def test_the_socket_of_a_host_without_postgresql() -> None:
    """Its unit fails where there is no group postgres: the fix is the drop-in for such hosts."""
    facts = units(socket=Unit("loaded", "enabled", "failed"))(on_application_host(fit()))
    [found] = doctor_report.report(facts).findings
    assert found.text == "resolver-agent.socket is failed"
    assert "resolver-agent show local-off >/etc/systemd/system/resolver-agent.socket.d/local-off.conf" in found.fix
    assert found.fix.endswith("; then: systemctl start resolver-agent.socket")
