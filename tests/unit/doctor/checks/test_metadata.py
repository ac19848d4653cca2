"""Doctor's findings about ``pg_dist_node``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import PORT
from tests.unit.doctor.builders import CN1, ERROR, NOTE, WARNING, WK1, WK2, assert_alone, database, row

if TYPE_CHECKING:
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change


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
        "names.wk1-ro.route: follow",
    ),
    (
        "a secondary",
        database(rows=(row(1, "cn"), row(2, "wk1"), row(3, WK2, 1, is_primary=False))),
        WARNING,
        "metadata:secondary",
        f"{WK2}:5432 as a secondary",
        f"citus_remove_node('{WK2}', 5432)",
    ),
    (
        "inactive",
        database(rows=(row(1, "cn"), row(2, "wk1", is_active=False))),
        WARNING,
        "metadata:inactive",
        "wk1:5432 is not active",
        "citus_activate_node('wk1', 5432)",
    ),
]


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "fix"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """One fault gives one finding, with its fix."""
    assert_alone(change, severity, key, text, fix)
