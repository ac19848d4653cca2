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
    from collections.abc import Iterable, Iterator

TOP = Path(__file__).parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = TOP / "resolver_agent"
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""Every module of the package, by its path in it: two modules of one name are two."""

PURE = {
    "hosts/block.py",
    "patroni/membership.py",
    "citus/preconditions.py",
    *(module for module in TREES if module.startswith("routing/")),
    "config/model.py",
    "system/foreign.py",
    "queue/message.py",
    "system/histogram.py",
    "metrics/exposition.py",
}
"""Functions of values: what decides, and what renders the block."""

LAYERS = (
    {"build.py"},
    {"cli.py"},
    {"demo"},
    {"agent.py"},
    {"requests.py", "once.py", "doctor"},
    {"metrics"},
    {"by_hand.py"},
    {"log.py"},
    {"queue"},
    {"citus"},
    {"observe"},
    {"patroni", "hosts", "control", "changes"},
    {"routing"},
    {"config", "usage"},
    {"system"},
    {"__init__.py"},
)
"""Folders and modules from the top to the ground: an import leads downwards, or stays in its folder."""

WORLD = {"asyncio", "datetime", "logging", "os", "pathlib", "psycopg", "random", "socket", "subprocess", "sys", "time"}
EXITS = {"SystemExit", "exit", "os._exit", "os.abort", "quit", "sys.exit"}


def calls(module: str) -> set[str]:
    """Return what a module calls, as it is written there."""
    return {ast.unparse(node.func) for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)}


def imports(module: str, *, for_types: bool = False) -> Iterator[str]:
    """Yield the dotted names that a module imports when it runs, at once or late; or also those for types alone."""
    parts = (part for part in TREES[module].body if for_types or not ast.unparse(part).startswith("if TYPE_CHECKING:"))
    for node in (node for part in parts for node in ast.walk(part)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def ours(names: Iterable[str]) -> set[str]:
    """Return the modules of the package that these dotted names are, or are in."""
    found = set()
    for name in names:
        package, *path = name.split(".")
        if package == "resolver_agent":
            candidates = ("/".join(path[:length]) for length in (len(path), len(path) - 1))
            files = (file for one in candidates for file in (f"{one}.py", f"{one}/__init__.py".lstrip("/")))
            found.add(next(file for file in files if file in TREES))
    return found


ARROWS = {module: ours(imports(module, for_types=True)) for module in TREES}
"""For each module those that it imports, be it for types alone."""


def reached(module: str) -> set[str]:
    """Return the modules that one can come to from a module along its imports."""
    found: set[str] = set()
    new = ARROWS[module]
    while new:
        found |= new
        new = {after for one in new for after in ARROWS[one]} - found
    return found


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


def test_who_prints_and_who_exits() -> None:
    """The command line does, and the demonstration prints; nobody else."""
    assert {module for module in TREES if "print" in calls(module)} == {"cli.py", "demo/steps.py"}
    assert {module for module in TREES if not EXITS.isdisjoint(calls(module))} == {"cli.py"}


def test_no_circle() -> None:
    """No module comes back to itself along its imports: whoever reads one need not have read all."""
    assert [module for module in TREES if module in reached(module)] == []


def test_imports_run_one_way() -> None:
    """No module imports upwards, nor from another folder beside its own."""
    folders = {module: module.partition("/")[0] for module in TREES}
    rank = {folder: number for number, layer in enumerate(LAYERS) for folder in layer}
    assert set(folders.values()) <= rank.keys()
    astray = [
        f"{module} imports {imported}"
        for module, others in ARROWS.items()
        for imported in others
        if folders[module] != folders[imported] and rank[folders[imported]] <= rank[folders[module]]
    ]
    assert astray == []


def test_packages_import_nothing() -> None:
    """An ``__init__`` is a docstring: to import one module never loads its neighbours."""
    packages = {module: TREES[module].body for module in TREES if module.endswith("/__init__.py")}
    assert len(packages) > 8
    assert {module for module, body in packages.items() if [type(part) for part in body] != [ast.Expr]} == set()


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_core_is_pure(module: str) -> None:
    """What decides sees no clock, file, socket or log, and uses nothing of the package but the core itself."""
    found = set(imports(module))
    assert {name for name in found if name.partition(".")[0] in WORLD} == set()
    assert ours(found) <= PURE
    assert calls(module).isdisjoint({"open", "print"})
