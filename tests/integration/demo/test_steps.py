"""The demonstration as a newcomer runs it, and that it notices when a step fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resolver_agent.demo import steps
from resolver_agent.demo.reaper import processes_in

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO = [sys.executable, "-m", "resolver_agent.cli", "demo"]
# An ordinary user, except that it can read the environment, which may be closed to it.
ORDINARY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
ORDINARY += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]


def site_of(output: str) -> Path:
    """Return the working folder that the demonstration prints."""
    found = re.search(r"^Everything is in (\S+),", output, re.MULTILINE)
    assert found, output
    return Path(found[1])


def assert_nothing_is_left(output: str) -> None:
    """Assert that the folder is gone, and every process that worked in it."""
    folder = site_of(output)
    assert not folder.exists()
    assert processes_in(folder) == []


@pytest.mark.parametrize(
    ("user", "postgres"), [([], "system"), (ORDINARY, "embedded")], ids=["root-system", "ordinary-embedded"]
)
def test_all_of_it_is_shown(user: list[str], postgres: str) -> None:
    """Every step runs, as root and as an ordinary user, with either kind of PostgreSQL, and without a terminal."""
    ran = subprocess.run(
        [*user, *DEMO],
        env=os.environ | {"RESOLVER_AGENT_POSTGRES": postgres},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.findall(r"^(\d+)\. ", ran.stdout, re.MULTILINE) == [str(number) for number in range(1, 11)]
    assert "All was shown" in ran.stdout.splitlines()[-1]
    assert "\x1b" not in ran.stdout
    assert_nothing_is_left(ran.stdout)


@pytest.mark.parametrize(
    ("send", "how", "code"),
    [(os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGTERM, -signal.SIGTERM)],
    ids=["ctrl-c", "sigterm"],
)
def test_an_early_end_leaves_nothing_behind(
    send: Callable[[int, signal.Signals], None], how: signal.Signals, code: int
) -> None:
    """Ctrl-C, which reaches the agents as well, and SIGTERM during a step end it all, without a traceback."""
    with subprocess.Popen(
        DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stdout is not None
        output = ""
        for line in running.stdout:
            output += line
            if line.startswith("2."):
                break
        send(running.pid, how)
        _, errors = running.communicate(timeout=20)  # until the servers' guard, which has the same output, is done
    assert (running.returncode, errors) == (code, "")
    assert_nothing_is_left(output)


@pytest.mark.parametrize(
    ("agent", "fault", "state"),
    [
        (
            'shift; "$0" -m resolver_agent.cli once "$@"; exec sleep 60',
            "step 2 did not happen (A worker primary dies, and its standby is promoted): the names are not",
            r"\n  cn-1 has .*'wk1': '127\.0\.2\.1'.*, expected .*'wk1': '127\.0\.2\.2'.*; the agent's log:\n",
        ),
        (
            "echo a word from the agent; exit 7",
            "step 1 did not happen (Names follow the local role): the names are not",
            r"; its agent has ended with 7; the agent's log:\n    a word from the agent\n",
        ),
    ],
    ids=["names-stay-behind", "agent-ends"],
)
def test_what_does_not_happen_is_named(agent: str, fault: str, state: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A step that fails ends the demonstration with the expected outcome and the agents' output."""
    assert steps.main(["sh", "-c", agent, sys.executable], deadline_s=6) == 1
    output, errors = capfd.readouterr()
    assert errors.startswith(f"resolver-agent demo: {fault}")
    assert re.search(state, errors)
    assert "All was shown" not in output
    assert_nothing_is_left(output)


def test_without_postgresql_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line has both fixes, the system's packages and the extra."""
    monkeypatch.setenv("RESOLVER_AGENT_POSTGRES", str(tmp_path))
    assert steps.main() == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert re.fullmatch(r".*apt-get install postgresql.*pip install 'resolver-agent\[demo\]'.*\n", errors)
