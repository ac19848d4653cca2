"""The scripts that change the metadata from addresses to names and back. Integration tests run them on Citus."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus import metadata
from resolver_agent.doctor import report
from resolver_agent.doctor.facts import Unknown
from tests.unit.builders import dead, node, primary, standby
from tests.unit.doctor.builders import CN1, CN2, WK1, WK2, both, database, fit, probed, row, server, settings, state

if TYPE_CHECKING:
    from resolver_agent.citus.metadata import Row
    from resolver_agent.doctor.facts import Facts
    from tests.unit.doctor.builders import Change

ADDRESSES = database(rows=(row(1, CN1), row(2, WK1)))


def calls(script: str | None) -> list[str]:
    """Return the statements of a script that change the metadata."""
    return re.findall(r"^ +PERFORM (citus_\w+\([^)]*\));", script or "", re.MULTILINE)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([row(1, "cn"), row(2, "wk1")], [], id="names already"),
        pytest.param(
            [row(2, WK1), row(1, CN1)],
            ["citus_update_node(1, 'cn', 5432)", "citus_update_node(2, 'wk1', 5432)"],
            id="the coordinator first",
        ),
        pytest.param([row(1, "cn"), row(2, WK2)], ["citus_update_node(2, 'wk1', 5432)"], id="a standby's address"),
        pytest.param([row(1, "localhost")], ["citus_update_node(1, 'cn', 5432)"], id="localhost"),
        pytest.param([row(7, WK1, port=6432)], ["citus_update_node(7, 'wk1', 5432)"], id="the configuration's port"),
        pytest.param([row(2, "10.9.9.9")], [], id="an address of no node"),
        pytest.param([row(2, WK2, role="secondary")], [], id="secondaries are left alone"),
        pytest.param([row(2, WK1), row(3, WK2)], [], id="two rows cannot have one name"),
        pytest.param([row(2, "wk1"), row(3, WK2)], [], id="the name is taken"),
    ],
)
def test_to_names(rows: list[Row], expected: list[str]) -> None:
    """Each row that has a node's address gets that node's name, and no other row is changed."""
    assert calls(report.report(database(rows=tuple(rows))(fit())).to_names) == expected


@pytest.mark.parametrize(
    ("change", "expected", "left_out"),
    [
        pytest.param(
            database(rows=(row(1, "cn"), row(2, "wk1"))),
            [f"citus_update_node(1, '{CN1}', 5432)", f"citus_update_node(2, '{WK1}', 5432)"],
            None,
            id="from names",
        ),
        pytest.param(
            ADDRESSES,
            [f"citus_update_node(1, '{CN1}', 5432)", f"citus_update_node(2, '{WK1}', 5432)"],
            None,
            id="before there are names",
        ),
        pytest.param(
            probed(wk1=standby(started=3, system_id=2), wk2=primary(started=4, system_id=2)),
            [f"citus_update_node(1, '{CN1}', 5432)", f"citus_update_node(2, '{WK2}', 5432)"],
            None,
            id="the primary of now",
        ),
        pytest.param(probed(wk1=dead()), [f"citus_update_node(1, '{CN1}', 5432)"], "wk1", id="no primary in sight"),
        pytest.param(
            probed(wk2=primary(started=4, system_id=2)),
            [f"citus_update_node(1, '{CN1}', 5432)"],
            "wk1",
            id="two primaries",
        ),
        pytest.param(
            database(rows=(row(1, "cn"), row(2, WK2, 1, role="secondary"))),
            [f"citus_update_node(1, '{CN1}', 5432)"],
            None,
            id="secondaries are left alone",
        ),
        pytest.param(database(group_id=1), [], None, id="not on the coordinator"),
        pytest.param(server(databases={"app": Unknown("denied")}), [], None, id="a database that cannot be asked"),
        pytest.param(lambda facts: dataclasses.replace(facts, server=Unknown("down")), [], None, id="down"),
    ],
)
def test_to_addresses(change: Change, expected: list[str], left_out: str | None) -> None:
    """The script back to addresses uses the primaries that are visible, and lists the rows it leaves out."""
    script = report.report(change(fit())).to_addresses
    assert calls(script) == expected
    assert re.findall("Left out, .*: (.*)", script or "") == ([f"{left_out}."] if left_out else [])


def named_node(facts: Facts) -> Facts:
    """Make the first node of wk1 a DNS name that is 127.0.1.1 here, as on Debian on that node itself."""
    groups = [
        dataclasses.replace(one, nodes=(node("wk1.example.net"), node(WK2))) if one.name != "cn" else one
        for one in facts.config.groups
    ]
    nodes = {**facts.nodes, node("wk1.example.net"): state("127.0.1.1", primary(started=3, system_id=2))}
    return dataclasses.replace(settings(groups=tuple(groups))(facts), nodes=nodes)


def test_no_loopback_address_for_all() -> None:
    """What a DNS name means on this node alone is left out, with words, and nothing else is."""
    script = report.report(named_node(fit())).to_addresses
    assert calls(script) == [f"citus_update_node(1, '{CN1}', 5432)"]
    assert "only by an address that means another server elsewhere: wk1 (127.0.1.1)" in (script or "")


def test_the_operators_own_names_stay() -> None:
    """On the way back a host name or virtual address that leads to a node is left as it is."""
    facts = dataclasses.replace(
        database(rows=(row(1, "cn"), row(2, "10.0.1.100")))(fit()), reached={"10.0.1.100:5432": 2}
    )
    assert calls(report.report(facts).to_names) == ["citus_update_node(2, 'wk1', 5432)"]
    assert calls(report.report(facts).to_addresses) == [f"citus_update_node(1, '{CN1}', 5432)"]


def test_a_name_with_a_fixed_route_is_replaced() -> None:
    """The name that follows takes its place; on the way back it gets an address as every name."""
    facts = database(rows=(row(1, "cn"), row(2, "wk1-ro")))(fit())
    assert calls(report.report(facts).to_names) == ["citus_update_node(2, 'wk1', 5432)"]
    assert calls(report.report(facts).to_addresses)[1:] == [f"citus_update_node(2, '{WK1}', 5432)"]


def test_many_rows() -> None:
    """However many rows nobody knows, no hint lists more than a few of them."""
    rows = tuple(row(number, f"10.{number // 250}.9.{number % 250}") for number in range(1, 1001))
    found = report.report(database(rows=rows, citus_version="?")(fit())).findings
    assert max(len(one.fix) for one in found) < 500


def test_one_transaction_that_waits_for_nobody_for_long() -> None:
    """A database's changes are one statement; an error ends the script."""
    script = report.report(ADDRESSES(fit())).to_names
    assert script is not None
    assert script.splitlines()[1:6] == [
        "\\set ON_ERROR_STOP on",
        "\\encoding SQL_ASCII",
        "\\connect -reuse-previous=on \"dbname='app'\"",
        "SET search_path = pg_catalog;",
        "SET standard_conforming_strings = on;",
    ]
    [statement] = re.findall(r"^DO \$change\$$.*^\$change\$;$", script, re.MULTILINE | re.DOTALL)
    assert (
        calls(statement) == calls(script) == ["citus_update_node(1, 'cn', 5432)", "citus_update_node(2, 'wk1', 5432)"]
    )
    assert f"-- citus_update_node(2, 'wk1', 5432): was {WK1}:5432" in script.splitlines()
    assert f"on the coordinator's primary ({CN1})" in script.splitlines()[0]


@pytest.mark.parametrize(("version", "checked"), [("13.2-1", True), ("11.0-4", True), ("10.2-5", False)])
def test_the_names_are_tried_first(version: str, checked: bool) -> None:  # noqa: FBT001 -- a case's expectation
    """Before any change every node connects to every name, where Citus has the functions for that."""
    script = report.report(both(ADDRESSES, database(citus_version=version))(fit())).to_names or ""
    assert ("(VALUES ('cn', 5432), ('wk1', 5432)) AS place" in script) == checked
    before, _, after = script.partition("DO $change$")
    for part in ("DO $check$", "citus_check_connection_to_node"):
        assert (part in before, part in after) == (checked, False)


def test_every_database() -> None:
    """Each database of the coordinator has its own metadata and is changed separately, after a login to it alone."""
    change = metadata.Change.of(row(2, WK1), "wk1", 5432)
    script = metadata.script("x", {"app": [change], r"""o'd"\d""": [change], "host=h": [change]}, check=False)
    assert re.findall(r"^(?:\\connect -reuse-previous=on (.*)|(DO \$change\$))$", script, re.MULTILINE) == [
        (""" "dbname='app'" """.strip(), ""),
        ("", "DO $change$"),
        (r""" "dbname='o\'d""\\d'" """.strip(), ""),
        ("", "DO $change$"),
        (""" "dbname='host=h'" """.strip(), ""),
        ("", "DO $change$"),
    ]


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param("x\nDROP TABLE t;", id="a newline"),
        pytest.param("x\r\\! id", id="a carriage return"),
        pytest.param("x\u2028\\! id", id="a line separator"),
        pytest.param("x\xe3", id="the first byte of two in another encoding"),
    ],
)
def test_no_text_ends_a_comment(foreign: str) -> None:
    """What comes from elsewhere stays in the comment that it is in, whatever encoding psql reads it in."""
    change = metadata.Change.of(row(2, WK1), "wk1", 5432, note=foreign)
    script = metadata.script(foreign, {"app": [change]}, check=False)
    plain = metadata.script("x", {"app": [dataclasses.replace(change, note="x")]}, check=False)
    assert script.isascii()
    assert len(script.splitlines()) == len(plain.splitlines())
    without_comments = re.sub("-- .*", "", script)
    assert without_comments == re.sub("-- .*", "", plain)


def test_scripts_are_shown_where_names_are_to_come() -> None:
    """With addresses in the metadata both scripts are shown; with names, the script back is not."""
    shown = report.report(ADDRESSES(fit())).as_text()
    assert shown.index("-- From addresses to names") < shown.index("-- The way back")
    assert "citus_" not in report.report(fit()).as_text()


def test_on_a_standby_of_the_coordinator() -> None:
    """The scripts say which primary to run them on, wherever they are printed."""
    swapped = probed(cn1=standby(started=1), cn2=primary(started=2))
    assert f"coordinator's primary ({CN2})" in (report.report(both(ADDRESSES, swapped)(fit())).to_names or "")
