"""The decision tables are one and the same in the README, in the code and in the tests: each row has a number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
ROW = r"[PSAQM][1-9][0-9]?"


def numbers(paths: list[Path], pattern: str) -> set[str]:
    """Return the rows that a pattern finds in files; its groups are lists of rows, and ranges such as P1 to P4."""
    found: set[str] = set()
    for path in paths:
        for listed in re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE):
            for first, last in re.findall(rf"({ROW})(?: to ({ROW}))?", listed.upper()):
                numbered = range(int(first[1:]), int((last or first)[1:]) + 1)
                found |= {f"{first[0]}{number}" for number in numbered}
    return found


README = numbers([TOP / "README.md"], rf"^\| ({ROW}) \|")
SOURCES = sorted((TOP / "resolver_agent").rglob("*.py"))
TESTS = sorted((TOP / "tests").rglob("test_*.py"))


def test_readme() -> None:
    """The README has the five tables, and their rows are numbered without a gap."""
    for table in "PSAQM":
        rows = sorted(int(row[1:]) for row in README if row[0] == table)
        assert rows == list(range(1, len(rows) + 1))
        assert len(rows) > 6


def test_code() -> None:
    """The code says where each row is decided, and of no other row."""
    assert numbers(SOURCES, rf"  # ((?:{ROW}(?:, | to )?)+)$") == README


@pytest.mark.parametrize(("module", "table"), [("primary", "P"), ("standby", "S"), ("queue", "Q"), ("pin", "M")])
def test_docstrings(module: str, table: str) -> None:
    """The modules that decide open with their tables."""
    rows = numbers([TOP / f"resolver_agent/routing/{module}.py"], rf"^({ROW})  ")
    assert rows == {row for row in README if row[0] == table}


@pytest.mark.parametrize(("module", "table"), [("primary", "P"), ("standby", "S")])
def test_every_return_has_its_row(module: str, table: str) -> None:
    """In what chooses, no return is without the number of its row."""
    text = (TOP / f"resolver_agent/routing/{module}.py").read_text(encoding="utf-8")
    choosing = re.findall(
        r"^def (?:find_primary|_last_of|choose_\w+|primary_address)\(.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL
    )
    returns = [line for body in choosing for line in body.splitlines() if line.strip().startswith("return ")]
    assert len(returns) > 4
    assert [line for line in returns if not re.search(rf"  # .*{table}[0-9]", line)] == []


def test_tests() -> None:
    """Every row has a test, whose name or id begins with its number."""
    ids = numbers(TESTS, rf'"({ROW}) ')
    names = numbers(TESTS, r"^(?:async )?def test_([psaqm][1-9][0-9]?)_")
    assert ids | names == README
