"""What Citus may forget after a recovery, row by row, and how a pass is reported."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from resolver_agent.citus.recovery import OLD_S, Prepared, Recovered, objection, refusal
from resolver_agent.control.report import as_json

Look = Mapping[str, str | None]

CN, WK1, WK2 = "cn:5432", "wk1:5432", "wk2:5432"
WELL: dict[str, str | None] = {
    CN: "primary 0 10 2026-01-01",
    WK1: "primary 1 20 2026-01-02",
    WK2: "primary 2 30 2026-01-03",
}
RESTARTED = {WK1: "primary 1 20 2026-02-02"}
ANOTHER = {WK1: "primary 1 21 2026-01-02"}
STANDBY = {WK1: "standby 1 20 2026-01-02"}
STRANGER = {WK1: "stranger primary 2 30 2026-01-03"}
SILENT = {WK2: None}
NOBODY: Look = dict.fromkeys(WELL)
UNREACHED = f"transaction recovery cannot connect to {WK2}"
SLOW = "could not establish connection after 2000 ms"
HERE = "\nPL/pgSQL function resolver_agent.recover_prepared_transactions() line 3 at RETURN"

ROWS: dict[str, tuple[Look, Look, list[str], str | None]] = {
    "all primaries": (WELL, WELL, [], None),
    "one fenced": (WELL | SILENT, WELL | SILENT, [UNREACHED], None),
    "one silent": (WELL | SILENT, WELL | SILENT, [SLOW + HERE, UNREACHED + HERE], None),
    "a standby": (WELL | STANDBY, WELL | STANDBY, [], f"{WK1} led to a standby"),
    "a standby before": (WELL | STANDBY, WELL, [], f"{WK1} led to a standby"),
    "a standby after": (WELL, WELL | STANDBY, [], f"{WK1} led to a standby"),
    "a standby of our own group": (WELL, WELL | {CN: "standby 0 10 2026-01-01"}, [], f"{CN} led to a standby"),
    "restarted": (WELL, WELL | RESTARTED, [], f"{WK1} led to another server afterwards"),
    "another server": (WELL, WELL | ANOTHER, [], f"{WK1} led to another server afterwards"),
    "a stranger": (WELL, WELL | STRANGER, [], f"{WK1} led to a server of another group"),
    "lost": (WELL, WELL | SILENT, [], f"{WK2} answered only at first"),
    "found": (WELL | SILENT, WELL, [UNREACHED], f"{WK2} answered only afterwards"),
    "met in between, by recovery alone": (WELL | SILENT, WELL | SILENT, [], f"{WK2} answered only now and then"),
    "missed in between, by recovery alone": (WELL, WELL, [UNREACHED], f"{WK2} answered only now and then"),
    "nobody": (
        NOBODY,
        NOBODY,
        [f"transaction recovery cannot connect to {node}" for node in NOBODY],
        "no node answered",
    ),
    "no nodes": ({}, {}, [], None),
    "a node added": (WELL, WELL | {"wk3:5432": "primary 3 40 2026-01-04"}, [], "pg_dist_node has changed"),
    "a node removed": (WELL, {CN: WELL[CN], WK1: WELL[WK1]}, [], "pg_dist_node has changed"),
    "a warning": (
        WELL,
        WELL,
        ["permission denied\nwhile executing command on wk1:5432"],
        "Citus warned: permission denied while",
    ),
    "a warning besides an explained one": (
        WELL | SILENT,
        WELL | SILENT,
        [UNREACHED, "permission denied"],
        "Citus warned: permission denied",
    ),
    "a warning like an explained one": (
        WELL | SILENT,
        WELL | SILENT,
        [UNREACHED, f"{UNREACHED} to commit"],
        "Citus warned: transaction recovery",
    ),
}


@pytest.mark.parametrize(("before", "after", "warnings", "words"), ROWS.values(), ids=ROWS)
def test_what_may_be_forgotten(before: Look, after: Look, warnings: list[str], words: str | None) -> None:
    """Resolved records may go only if recovery reached exactly the nodes that answered, and all were primaries."""
    found = objection(before, after, warnings)
    assert found == words if words is None else str(found).startswith(words)


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (WELL, None),
        (WELL | STANDBY, None),
        (NOBODY, None),
        (WELL | STRANGER, f"{WK1} leads to a server of another"),
        (WELL | {WK1: WELL[WK2]}, f"{WK1} and {WK2} lead to the same server, so one to a server of another group; see"),
    ],
    ids=["primaries", "a standby", "no node", "a foreign node", "one server for two nodes"],
)
def test_what_is_not_begun(before: Look, words: str | None) -> None:
    """A standby resolves nothing, and the others may go on; a foreign server could resolve far too much."""
    found = refusal(before)
    assert found == words if words is None else str(found).startswith(words)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            Recovered(database="app", recovered=2),
            "app: 2 prepared transactions resolved, 0 orphaned resources cleaned up",
        ),
        (
            Recovered(database="app", cleaned=1, not_cleaned=3, not_reached=(WK1,)),
            "app: 0 prepared transactions resolved, 1 orphaned resources cleaned up, 3 not yet; waits for wk1:5432",
        ),
    ],
    ids=["recovery", "all of it"],
)
def test_a_pass_in_words(found: Recovered, text: str) -> None:
    """The log says what was done, and which nodes it waits for."""
    assert str(found) == text


@pytest.mark.parametrize(("age_s", "old"), [(OLD_S - 1, False), (OLD_S, True)], ids=["young", "old"])
def test_an_old_prepared_transaction(age_s: float, old: bool) -> None:  # noqa: FBT001 -- a row of the table
    """A transaction is reported by name once it is too old to be in the middle of its commit."""
    found = Recovered(database="app", oldest=Prepared(gid="citus_0_1_2_3", age_s=age_s))
    assert (found.old_words is not None) is old
    if found.old_words is not None:
        assert found.old_words.startswith("citus_0_1_2_3 in database app has been prepared for 180 s")


def test_no_prepared_transaction_is_not_old() -> None:
    """Without a prepared transaction there is nothing to report."""
    assert Recovered(database="app").old_words is None


def test_for_programs() -> None:
    """``status --json`` has every field."""
    found = Recovered(database="app", not_reached=(WK1,), records=1, oldest=Prepared(gid="citus_0_1_2_3", age_s=1.5))
    assert json.loads(json.dumps(as_json(found.status))) == {
        "database": "app",
        "fault": None,
        "withdrawn": None,
        "recovered": 0,
        "cleaned": 0,
        "not_cleaned": 0,
        "not_reached": ["wk1:5432"],
        "records": 1,
        "oldest": {"gid": "citus_0_1_2_3", "age_s": 1.5},
    }
