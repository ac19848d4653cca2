"""``check`` as a monitoring system runs it, with an agent and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.support.agent_state import SETTLED
from tests.integration.support.command_line import AS_NOBODY, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    StartAgent = Callable[..., Agent]


def test_a_healthy_agent(running: Agent, config: Path) -> None:
    """One line with figures, and exit code 0; names can be chosen."""
    ran = run("check", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("RESOLVER-AGENT OK - 3 names: 1 self, 2 primary; 6 nodes: 3 primary, 3 standby; ")
    assert " | names=3;;;0 fenced=0;;;0 " in ran.stdout
    assert ran.stdout.count("\n") == 1
    assert run("check", "wk1", "-c", config).stdout.startswith("RESOLVER-AGENT OK - 1 name: 1 primary; 2 nodes: ")
    assert running.process.poll() is None


def test_alerts(running: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """A name that is held is a warning, and none of another name's business; one that is fenced is critical."""
    cluster["wk1"].primary.kill()
    running.wait_for_line("alert: wk1 → ")
    ran = run("check", "-c", config)
    assert (ran.returncode, ran.stdout.partition(" (")[0]) == (
        1,
        f"RESOLVER-AGENT WARNING - wk1 -> {cluster['wk1'].primary.address}",
    )
    assert run("check", "wk2", "-c", config).returncode == 0


@pytest.mark.usefixtures("running")
def test_a_name_that_is_not_there(config: Path) -> None:
    """A check that names what the agent does not have is not well, and its state is not known."""
    ran = run("check", "wk7", "-c", config)
    assert (ran.returncode, ran.stdout) == (
        3,
        "RESOLVER-AGENT UNKNOWN - the agent has no name wk7; it has cn, wk1, wk2\n",
    )


def test_no_agent(config: Path) -> None:
    """The state is not known, with exit code 3, and the reason is on standard output: monitoring reads no other."""
    ran = run("check", "-c", config)
    assert (ran.returncode, ran.stderr) == (3, "")
    assert ran.stdout == f"RESOLVER-AGENT UNKNOWN - no agent runs in {config.with_name('run')}\n"


def test_somebody_who_may_not_ask(public: Path, start_agent: StartAgent) -> None:
    """A user who may not ask the agent learns the fix."""
    start_agent(public).wait_for_line(SETTLED)
    ran = run("check", "-c", public, program=AS_NOBODY)
    assert ran.returncode == 3
    assert "you may not ask the agent: do it as root, or as a member of the socket's group" in ran.stdout
