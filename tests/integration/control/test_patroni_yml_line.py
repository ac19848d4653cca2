"""The lines for patroni.yml: Patroni goes on, whatever happens to a hook and whenever a signal comes."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.integration.support.command_line import PROGRAM
from tests.integration.support.hook import MISROUTED, WAITED, WELL, Ran, agent, run

SNIPPET = Path(__file__).parents[3] / "systemd/patroni-hooks.yml"


HOOKS = pytest.mark.parametrize("name", ["pre_promote", "before_stop"])


def snippet(name: str, program: str, *, options: str = "") -> list[str]:
    """Return a line for patroni.yml as Patroni parses it, for another program than the installed one."""
    command = yaml.safe_load(SNIPPET.read_text(encoding="utf-8"))["postgresql"][name]
    installed, hook = "/usr/local/bin/resolver-agent", name.replace("_", "-")
    assert command.count(f"{installed} {hook}") == 1
    return shlex.split(command.replace(f"{installed} {hook}", f"{program} {hook} {options}"))


@HOOKS
def test_the_line_for_patroni(name: str, path: Path) -> None:
    """It asks the agent, and Patroni's log has the result."""
    answer, said = {
        "pre_promote": (MISROUTED, "pre-promote: not ready for the promotion .* wk1 → 10.0.0.4 .*"),
        "before_stop": (WAITED, "before-stop: waited 42 ms for 2 coordinators"),
    }[name]
    with agent(path, answer):
        ran = run(snippet(name, shlex.join(PROGRAM), options=f"--socket {path}"))
    assert ran.code == 0
    assert re.fullmatch(f"resolver-agent {said}\n", ran.said)


BROKEN = {
    "cannot be executed": "",
    "has no interpreter": "#!/nowhere/python\n",
    "lacks its package": f"#!{sys.executable}\nimport a_package_that_nobody_has\n",
    "fails": "#!/bin/sh\nexit 7\n",
    "crashes": "#!/bin/sh\nkill -SEGV $$\n",
    "hangs": "#!/bin/sh\nexec sleep 60\n",
    "hangs and hears no signal": "#!/bin/sh\ntrap '' TERM\nexec sleep 60\n",
    "is stopped": "#!/bin/sh\nkill -STOP $$\nexec sleep 60\n",
    "floods the log and never ends": "#!/bin/sh\nexec yes >&2\n",
}


@HOOKS
def test_broken_installations(name: str, tmp_path: Path) -> None:
    """In any state of the program, Patroni goes on: at once, or after 7 s where the program hangs."""
    for state, script in BROKEN.items():
        program = tmp_path / state.replace(" ", "-")
        program.write_text(script)
        program.chmod(0o755 if script else 0o644)

    def patroni(state: str) -> Ran:
        return run(snippet(name, str(tmp_path / state.replace(" ", "-"))), stderr=subprocess.DEVNULL)

    with ThreadPoolExecutor(len(BROKEN) + 1) as threads:
        ran = dict(zip([*BROKEN, "is missing"], threads.map(patroni, [*BROKEN, "is missing"]), strict=True))
    assert {state: each.code for state, each in ran.items()} == dict.fromkeys(ran, 0)
    assert {state: each.took_s for state, each in ran.items() if each.took_s > 10} == {}


@HOOKS
def test_no_timeout_program(name: str, tmp_path: Path) -> None:
    """It works with a PATH without timeout(1), too."""
    assert run(snippet(name, "resolver-agent"), env={"PATH": str(tmp_path)}).code == 0


def grandchildren(pid: int) -> list[int]:
    """Return the children of a process's children."""

    def children(parent: int) -> list[int]:
        with contextlib.suppress(OSError):
            return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        return []

    return [grandchild for child in children(pid) for grandchild in children(child)]


@HOOKS
def test_a_killed_hook(name: str, path: Path) -> None:
    """Patroni goes on at once when the hook is killed while it waits for the agent."""
    command = snippet(name, shlex.join(PROGRAM), options=f"--socket {path}")
    with agent(path, None) as asked, subprocess.Popen(command, stderr=subprocess.DEVNULL) as shell:
        assert asked.wait(5)
        (hook,) = grandchildren(shell.pid)
        os.kill(hook, signal.SIGKILL)
        begun = time.monotonic()
        assert shell.wait(5) == 0
        assert time.monotonic() - begun < 1


def test_signals_at_any_moment(path: Path) -> None:
    """The line succeeds even when the signal comes before Python can handle it, or after the output."""
    command = snippet("pre_promote", shlex.join(PROGRAM), options=f"--socket {path}")
    codes, done = set(), set()
    with agent(path, WELL):
        for delay_ms in range(0, 100, 4):
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as shell:
                while not (hooks := grandchildren(shell.pid)) and shell.poll() is None:
                    time.sleep(0.001)
                time.sleep(delay_ms / 1000)
                for pid in hooks:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                done.add("ready for the promotion (after" in shell.communicate(timeout=10)[1])
            codes.add(shell.returncode)
    assert codes == {0}
    assert False in done
