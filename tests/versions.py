"""Runs chosen tests with each version of PostgreSQL, Citus, Patroni and Python that the machine has.

``tests/matrix`` starts it. Not every combination is run: each PostgreSQL with our own Patroni and Python, each other
Patroni with the default PostgreSQL, and each other Python likewise. The result is a table in Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from resolver_agent.demo import binaries
from resolver_agent.demo.postgres import Site

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOP = Path(__file__).parents[1]
INTEGRATION = "tests/integration"

FOLDERS = "RESOLVER_AGENT_POSTGRES_FOLDERS"
PATRONIS = "RESOLVER_AGENT_PATRONIS"

WITH_POSTGRES = (
    *(f"{INTEGRATION}/{folder}" for folder in ("observe", "citus", "queue", "doctor", "control")),
    f"{INTEGRATION}/systemd/test_role_sql.py",
)
WITH_PATRONI = (
    *(f"{INTEGRATION}/{folder}" for folder in ("patroni", "control")),
    *(f"{INTEGRATION}/queue/{file}" for file in ("test_before_stop.py", "test_faults.py", "test_switchover.py")),
    f"{INTEGRATION}/queue/test_citus_switchover.py",
    f"{INTEGRATION}/citus/test_patroni_scenarios.py",
    *(f"{INTEGRATION}/doctor/{file}" for file in ("test_patroni.py", "test_report.py")),
)
WITH_PYTHON = ("tests/unit", *(f"{INTEGRATION}/{folder}" for folder in ("agent", "cli", "observe", "systemd")))

PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13", "python3.14")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A combination, as the table shows it, and how its tests are run."""

    postgres: str
    citus: str
    patroni: str
    python: str
    tests: tuple[str, ...]
    interpreter: str = sys.executable
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """The first cells of the row."""
        return f"| {self.postgres} | {self.citus} | {self.patroni} | {self.python} |"


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How many tests passed, failed and were skipped."""

    passed: int
    failed: int
    skipped: int


def main() -> int:
    """Run the command line, and return the exit code: 0 if no test failed."""
    parser = argparse.ArgumentParser(prog="tests/matrix", description=__doc__, epilog=f"See {TOP / 'tests/README.md'}.")
    parser.add_argument("--list", action="store_true", help="print the rows, and run nothing")
    parser.add_argument("words", nargs="*", help="run only the rows that have all of these: 13.16")
    arguments = parser.parse_args()
    chosen = [row for row in rows() if all(word in row.title for word in arguments.words)]
    if not chosen:
        parser.error("no row has all of these words: --list shows the rows")
    print("| PostgreSQL | Citus | Patroni | Python | passed | failed | skipped |")
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = 0
    logs = Path(tempfile.mkdtemp(prefix="resolver-agent-matrix-"))
    for number, row in enumerate(chosen, start=1):
        if arguments.list:
            print(row.title)
            continue
        log, begun = logs / f"{number}.log", time.monotonic()
        result = run(row, log)
        failed += result.failed
        print(f"{row.title} {result.passed} | {result.failed} | {result.skipped} |", flush=True)
        print(f"{time.monotonic() - begun:.0f} s, see {log}", file=sys.stderr)
    return 1 if failed else 0


def rows() -> Iterator[Row]:
    """Yield what this machine can run."""
    python = "{}.{}".format(*sys.version_info)
    ours, *others = patronis()
    postgres, citus = describe(None)
    for folder in folders():
        version, extension = describe(folder)
        yield Row(
            postgres=version,
            citus=extension,
            patroni=ours[0],
            python=python,
            tests=WITH_POSTGRES,
            environment={binaries.CHOICE: str(folder)},
        )
    for name, interpreter in others:
        yield Row(
            postgres=postgres,
            citus=citus,
            patroni=name,
            python=python,
            tests=WITH_PATRONI,
            environment={"RESOLVER_AGENT_PATRONI": interpreter},
        )
    for name in PYTHONS:
        version = asked(name, "-c", "import sys; print('{}.{}'.format(*sys.version_info))")
        if version and version != python:
            yield Row(
                postgres=postgres,
                citus=citus,
                patroni=ours[0],
                python=version,
                tests=WITH_PYTHON,
                interpreter=str(TOP / f".venv-{name}" / "bin" / "python"),
            )


def folders() -> list[Path]:
    """Return the folders of PostgreSQL's programs, the oldest version first."""
    named = [Path(one) for one in os.environ.get(FOLDERS, "").split(":") if one]
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), *named]
    return sorted(found, key=lambda folder: [int(number) for number in re.findall(r"\d+", describe(folder)[0])])


@functools.cache
def describe(folder: Path | None) -> tuple[str, str]:
    """Return the version of a PostgreSQL, and of its Citus; ``-`` is none. Without a folder, of the default one."""
    with Site(postgres=str(folder) if folder else None) as site:
        server = site.primary("asked", "127.0.40.1")
        [(version,)] = server.run_sql("SHOW server_version")
        found = server.run_sql("SELECT default_version FROM pg_available_extensions WHERE name = 'citus'")
    return version.split()[0], found[0][0].split("-")[0] if found else "-"


def patronis() -> list[tuple[str, str]]:
    """Return the version of each Patroni, and the interpreter that has it; our own is the first."""
    named = [one for one in os.environ.get(PATRONIS, "").split(":") if one]
    found: dict[str, str] = {}
    for interpreter in (sys.executable, *(str(Path(one) / "bin" / "python") for one in named)):
        version = re.search(r"(\d+)\.(\d+)\S*$", asked(interpreter, "-m", "patroni", "--version"))
        if version is not None:
            found.setdefault(version[0], interpreter)
    return list(found.items())


def asked(*command: str) -> str:
    """Return what a program prints; nothing if it is not there, or fails."""
    if shutil.which(command[0]) is None:
        return ""
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.stdout.strip() if ran.returncode == 0 else ""


def run(row: Row, log: Path) -> Result:
    """Run the tests of a row, with pytest's output in a file.

    Those with the PostgreSQL of the ``demo`` extra are left out, as it is the same in each row.
    """
    if row.interpreter != sys.executable:
        venv = Path(row.interpreter).parents[1]
        subprocess.run([TOP / "tests" / "setup", venv], env=os.environ | {"PYTHON": f"python{row.python}"}, check=True)
    report = log.with_suffix(".xml")
    xml = ["-o", "junit_family=xunit1", f"--junit-xml={report}"]  # which has record_property()
    command = ["-m", "pytest", "-q", "-k", "not embedded", *xml, *row.tests]
    with log.open("w") as output:
        subprocess.run(
            [row.interpreter, *command],
            cwd=TOP,
            env=os.environ | row.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not report.exists():  # pytest itself has ended
        return Result(0, 1, 0)
    [suite] = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 -- written by pytest
    ran, errors, failures, skipped = (int(suite.attrib[name]) for name in ("tests", "errors", "failures", "skipped"))
    return Result(ran - errors - failures - skipped, errors + failures, skipped)


if __name__ == "__main__":
    sys.exit(main())
