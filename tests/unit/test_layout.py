"""The repository keeps its shape: few dependencies, a pure core, and one place that prints and exits."""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in (TOP / "resolver_agent").glob("*.py")}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}

CORE = {"fitness", "groupview", "guard", "hostsfile", "localserver", "model", "primary", "promotion", "routing"}
"""Functions of values: what decides, and what renders the block."""

WORLD = {"asyncio", "datetime", "logging", "os", "pathlib", "psycopg", "random", "socket", "subprocess", "sys", "time"}
EXITS = {"SystemExit", "exit", "os._exit", "os.abort", "quit", "sys.exit"}


def calls(module: str) -> set[str]:
    """Return what a module calls, as it is written there."""
    return {ast.unparse(node.func) for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)}


def imports(module: str) -> Iterator[str]:
    """Yield what a module imports when it runs, at once or late."""
    real = (part for part in TREES[module].body if not ast.unparse(part).startswith("if TYPE_CHECKING:"))
    for node in (node for part in real for node in ast.walk(part)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_dependencies() -> None:
    """Four packages at run time; anything more is an extra."""
    names = {re.split("[<>=~!; ]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert names == {"psycopg[binary]", "PyYAML", "python-hosts", "tenacity"}
    assert set(PROJECT["optional-dependencies"]) == {"demo", "dev"}


def test_top_level() -> None:
    """Whoever opens the repository sees little; what git ignores may lie about, and git is not needed here."""
    ignored = [line.rstrip("/") for line in (TOP / ".gitignore").read_text(encoding="utf-8").splitlines()]
    visible = {
        path.name
        for path in TOP.iterdir()
        if not path.name.startswith(".") and not any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored)
    }
    files = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"}
    assert files <= visible <= files | {"resolver_agent", "systemd", "tests", "vagrant"}


def test_modules_are_short() -> None:
    """A module beyond 300 lines is a sign that two things live in one."""
    assert {module: lines for module, source in SOURCES.items() if (lines := source.count("\n")) > 300} == {}


def test_who_prints_and_who_exits() -> None:
    """The command line does, and the demonstration prints; nobody else."""
    assert {module for module in SOURCES if "print" in calls(module)} == {"cli", "demo"}
    assert {module for module in SOURCES if not EXITS.isdisjoint(calls(module))} == {"cli"}


@pytest.mark.parametrize("module", sorted(CORE))
def test_the_core_is_pure(module: str) -> None:
    """What decides sees no clock, file, socket or log, and uses nothing of the package but the core itself."""
    found = set(imports(module))
    assert {name for name in found if name.partition(".")[0] in WORLD} == set()
    ours = {name.split(".")[1] for name in found if name.startswith("resolver_agent.")}
    assert ours <= CORE
    assert calls(module).isdisjoint({"open", "print"})
