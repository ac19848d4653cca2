"""Doctor's findings about ``pg_dist_node``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Route
from resolver_agent.doctor import report
from tests.unit.builders import PORT
from tests.unit.doctor.builders import (
    CN1,
    ERROR,
    NOTE,
    WARNING,
    WK1,
    WK2,
    assert_alone,
    both,
    database,
    fit,
    row,
    server,
    settings,
)

if TYPE_CHECKING:
    from resolver_agent.doctor.facts import Facts
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change


def resolved(host: str, *addresses: str) -> Change:
    """Return a change of what a host in the metadata resolves to."""
    return lambda facts: dataclasses.replace(facts, resolved={host: addresses})


def reached(place: str, system_id: int) -> Change:
    """Return a change of which server Citus reaches at a place in the metadata."""
    return lambda facts: dataclasses.replace(facts, reached={place: system_id})


def routed(name: str, route: Route) -> Change:
    """Return a change of the route of a name; the names with ``route: standby`` go."""

    def change(facts: Facts) -> Facts:
        groups = [one for one in facts.config.groups if one.route is not Route.STANDBY]
        return settings(
            groups=tuple(dataclasses.replace(one, route=route) if one.name == name else one for one in groups)
        )(facts)

    return change


CASES = [
    (
        "addresses everywhere",
        database(rows=(row(1, CN1), row(2, WK2))),
        NOTE,
        "metadata:address",
        f"{CN1} (of cn), {WK2} (of wk1)",
        "first script",
    ),
    (
        "an address among names",
        database(rows=(row(1, "cn"), row(2, WK1))),
        ERROR,
        "metadata:address",
        f"not follow a failover: {WK1} (of wk1)",
        "first script",
    ),
    (
        "addresses on a worker",
        database(rows=(row(1, CN1), row(2, WK1)), group_id=1),
        NOTE,
        "metadata:address",
        "no names yet",
        "doctor` prints on the coordinator",
    ),
    (
        "the coordinator is localhost",
        database(rows=(row(1, "localhost"), row(2, "wk1"))),
        ERROR,
        "metadata:address",
        "localhost (of cn)",
        "first script",
    ),
    (
        "two rows of a name",
        database(rows=(row(1, "cn"), row(2, "wk1"), row(3, "WK1", port=PORT))),
        ERROR,
        "metadata:twice",
        "several rows are nodes of wk1",
        "a name of its own",
    ),
    (
        "unknown",
        database(rows=(row(1, "cn"), row(2, "wk1"), row(3, "wk9"))),
        ERROR,
        "metadata:unknown",
        "wk9:5432, which is neither",
        "/etc/resolver-agent.yml",
    ),
    ("unused", database(rows=(row(1, "cn"),)), WARNING, "metadata:unused", "wk1 is in", "citus_add_node('wk1', 5432)"),
    (
        "no coordinator",
        database(rows=(row(2, "wk1"),)),
        WARNING,
        "metadata:unused",
        "cn is in",
        "citus_set_coordinator_host('cn', 5432)",
    ),
    (
        "another port",
        database(rows=(row(1, "cn"), row(2, "wk1", port=6432))),
        ERROR,
        "metadata:port",
        "port 6432 for wk1, but the configuration has 5432",
        "citus_update_node(2, 'wk1', 5432); or write to the configuration: names.wk1.port: 6432",
    ),
    (
        "route: standby",
        database(rows=(row(1, "cn"), row(2, "wk1"), row(3, "wk1-ro"))),
        ERROR,
        "metadata:standby",
        "wk1-ro as a primary",
        "wk1 has the same nodes, and is in another row",
    ),
    (
        "route: standby in the place of the name that follows",
        database(rows=(row(1, "cn"), row(2, "WK1-RO"))),
        ERROR,
        "metadata:standby",
        "always resolves to a standby (route: standby)",
        "first script",
    ),
    (
        "the same on a worker",
        database(rows=(row(1, "cn"), row(2, "wk1-ro")), group_id=1),
        ERROR,
        "metadata:standby",
        "always resolves to a standby (route: standby)",
        "doctor` prints on the coordinator",
    ),
    (
        "route: primary, and no name follows",
        both(routed("wk1", Route.PRIMARY)),
        ERROR,
        "metadata:route",
        "wk1 as a primary, but that name always resolves to a primary (route: primary)",
        "names.wk1.route: follow",
    ),
    (
        "a name in capitals",
        both(database(rows=(row(1, "CN"), row(2, "Wk1"))), server(invalid=('o"d',))),
        WARNING,
        "database:invalid",
        'database o"d is invalid',
        'DROP DATABASE "o""d";',
    ),
    (
        "a database that lets nobody in",
        server(closed=("old",)),
        NOTE,
        "unchecked",
        "database old: it lets nobody in",
        "",
    ),
    (
        "a clone",
        database(
            rows=(row(1, "cn"), row(2, "wk1"), row(3, WK2, 3, role="unavailable", is_active=False, is_clone=True))
        ),
        NOTE,
        "metadata:clone",
        f"{WK2}:5432 as a clone",
        "SELECT citus_remove_clone_node(nodename, nodeport) FROM pg_dist_node WHERE nodeid = 3;",
    ),
    (
        "a host name that leads to a node",
        both(database(rows=(row(1, "cn"), row(2, "WK.example.net"))), resolved("WK.example.net", WK1)),
        ERROR,
        "metadata:address",
        "not follow a failover: WK.example.net (of wk1)",
        "first script",
    ),
    (
        "a virtual address that leads to a node",
        both(database(rows=(row(1, "cn"), row(2, "10.0.1.100"))), reached("10.0.1.100:5432", 2)),
        ERROR,
        "metadata:address",
        "10.0.1.100 (of wk1)",
        "first script",
    ),
    (
        "a secondary",
        database(rows=(row(1, "cn"), row(2, "wk1"), row(3, WK2, 1, role="secondary"))),
        WARNING,
        "metadata:secondary",
        f"{WK2}:5432 with the role secondary",
        "SELECT citus_remove_node(nodename, nodeport) FROM pg_dist_node WHERE nodeid = 3;",
    ),
    (
        "inactive",
        database(rows=(row(1, "cn"), row(2, "wk1", is_active=False))),
        WARNING,
        "metadata:inactive",
        "wk1:5432 is not active",
        "SELECT citus_activate_node(nodename, nodeport) FROM pg_dist_node WHERE nodeid = 2;",
    ),
]


def test_nothing_is_added_that_may_be_there() -> None:
    """While it is not known where a row leads, it may be the server that seems to be missing."""
    found = report.report(database(rows=(row(1, "cn"), row(2, "10.0.1.100")))(fit())).findings
    assert [one.key for one in found] == ["metadata:unknown", "metadata:unused"]
    assert "citus_add_node" not in str(found)
    assert "Do not add it yet: which servers 10.0.1.100:5432 lead to" in found[1].fix


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "fix"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """One fault gives one finding, with its fix."""
    assert_alone(change, severity, key, text, fix)
