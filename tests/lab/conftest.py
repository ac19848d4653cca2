"""One lab for all tests. A failed test saves its journals, and the report has the clients' results."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.lab.account import Account, table
from tests.lab.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

pytest.register_assert_rewrite("tests.lab.cluster_scenarios", "tests.lab.host_scenarios")  # to report what was there
_ACCOUNTS = pytest.StashKey[list[Account]]()


class Labs(contextlib.ExitStack):
    """Has one lab at a time, and makes a new one after a failed test."""

    def __init__(self, make: Callable[[], Lab] = Lab) -> None:
        super().__init__()
        self._make = make
        self.lab: Lab | None = None

    def get(self) -> Lab:
        """Return the lab."""
        if self.lab is None:
            self.close()
            self.lab = self.enter_context(self._make())
        return self.lab


@pytest.fixture(scope="session")
def labs() -> Iterator[Labs]:
    """Yield the source of labs."""
    with Labs() as labs:
        yield labs


@pytest.fixture
def lab(labs: Labs) -> Lab:
    """Return the lab, in whatever state the last test left it."""
    return labs.get()


@pytest.fixture(scope="session")
def accounts(pytestconfig: pytest.Config) -> list[Account]:
    """Return the results to show at the end."""
    return pytestconfig.stash.setdefault(_ACCOUNTS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the clients' results."""
    if accounts := config.stash.get(_ACCOUNTS, []):
        terminalreporter.section("clients of the lab")
        for line in table(accounts):
            terminalreporter.line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure's report where the journals are."""
    report = yield
    labs = item.funcargs.get("labs")
    if report.failed and isinstance(labs, Labs) and labs.lab is not None:
        report.sections.append(("the lab's journals", str(labs.lab.save_journals())))
        labs.lab = None
    return report
