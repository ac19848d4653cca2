"""Doctor's findings about password files."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Node
from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.facts import TextFile
from tests.unit.builders import PORT, node, rejecting
from tests.unit.doctor.builders import (
    ERROR,
    GROUPS,
    WARNING,
    WK1,
    WK2,
    assert_alone,
    both,
    file,
    fit,
    host,
    probed,
    settings,
    state,
)

if TYPE_CHECKING:
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change


CASES = [
    ("no password file", host(passfile=TextFile("/p", None)), WARNING, "passfile", "no such password file", "*:*:"),
    (
        "open to all",
        host(passfile=file("*:*:*:*:x", 0o640)),
        ERROR,
        "passfile",
        "mode 0640: libpq ignores",
        "chmod 0600",
    ),
]


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "fix"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """One fault gives one finding, with its fix."""
    assert_alone(change, severity, key, text, fix)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        pytest.param(f"{WK2}:5432:postgres:resolver_agent:x", None, id="by address"),
        pytest.param("*:*:*:*:x", None, id="stars"),
        pytest.param("\x0b*:*:*:*:x\n\x1c\u2028\0" + "\\" * 999 + ":" * 9 + "\n*:*:*:*:x", None, id="odd lines"),
        pytest.param("a\u2028*:*:*:*:x", f"{WK2}:5432:postgres:resolver_agent:PASSWORD", id="libpq ends no line there"),
        pytest.param("#*:*:*:*:x", f"{WK2}:5432:postgres:resolver_agent:PASSWORD", id="a comment"),
        pytest.param(f"{WK2}:5433:*:*:x", f"{WK2}:5432:postgres:resolver_agent:PASSWORD", id="another port"),
        pytest.param(f"{WK2}:*:app:*:x", f"{WK2}:5432:postgres:resolver_agent:PASSWORD", id="another database"),
        pytest.param("wk1:*:*:*:x", f"{WK2}:5432:postgres:resolver_agent:PASSWORD", id="by managed name"),
    ],
)
def test_password_file(text: str, missing: str | None) -> None:
    """A node that rejects the login, and that the password file has no entry for, gets the line to add."""
    report = doctor_report.report(both(host(passfile=file(text)), probed(wk2=rejecting()))(fit()))
    fixes = [one.fix for one in report.findings if one.key == "passfile"]
    assert fixes == ([f"Add the line: {missing}"] if missing else [])
    assert ("entries for wk1 do not help" in report.as_text()) == text.startswith("wk1")


def test_password_file_of_citus() -> None:
    """An entry that the server's user has by address is needed by name as well."""
    text = f"{WK1}:5432:app:a\\:b:x\n{WK2}:5432:app:a\\:b:x\n10.0.9.9:*:*:*:y\n"
    report = doctor_report.report(host(citus_passfile=file(text))(fit()))
    assert [(one.severity, one.fix) for one in report.findings] == [
        (WARNING, r"Add the line: wk1:5432:app:a\:b:PASSWORD")
    ]


def test_password_file_with_ipv6() -> None:
    """Colons in an address are escaped as libpq expects."""
    six = Node("fd00::2", PORT)
    facts = settings(groups=(*GROUPS[:1], dataclasses.replace(GROUPS[1], nodes=(node(WK1), six))))(fit())
    facts = dataclasses.replace(facts, nodes={**facts.nodes, six: state("fd00::2", rejecting())})
    report = doctor_report.report(both(host(passfile=file("x:*:*:*:x")))(facts))
    assert r"Add the line: fd00\:\:2:5432:postgres:resolver_agent:PASSWORD" in report.as_text()


def test_the_password_file_of_one_name() -> None:
    """A name with a login of its own needs entries for its own nodes and user, in its own file; the others do not."""
    own = {"user": "other", "passfile": "/own.pgpass"}
    groups = tuple(
        dataclasses.replace(one, postgresql=own) if one.name.startswith("wk1") else one for one in fit().config.groups
    )
    ours = TextFile("/own.pgpass", f"{WK1}:*:*:other:x\n", 0o600)
    changes = both(
        settings(groups=groups),
        host(passfile=file("*:*:*:resolver_agent:x"), own_passfiles={"wk1": ours, "wk1-ro": ours}),
        probed(cn2=rejecting(), wk2=rejecting()),
    )
    found = [one for one in doctor_report.report(changes(fit())).findings if one.key == "passfile"]
    assert [(one.text, one.fix) for one in found] == [
        (f"/own.pgpass has no entry for {WK2}:5432", f"Add the line: {WK2}:5432:postgres:other:PASSWORD")
    ]
