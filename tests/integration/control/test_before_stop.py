"""The hook before a stop as Patroni runs it: a process of its own that succeeds in time, and soon where nobody answers.

What it shares with the promotion hook is tested there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.system import lock
from tests.integration.support.command_line import PROGRAM
from tests.integration.support.hook import WAITED, Ran, agent, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SERVE = (
    "import socket, sys; listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen();"
    "print(flush=True); listener.accept(); listener.accept()"
)


def hook(socket_path: Path, *arguments: str, program: Sequence[str] = PROGRAM, **settings: Any) -> Ran:
    """Run the hook; in any case it succeeds, takes 6 s at most, and prints one line."""
    ran = run([*program, "before-stop", "--socket", str(socket_path), *arguments], **settings)
    assert ran.code == 0
    assert ran.took_s < 6
    assert re.fullmatch("resolver-agent before-stop: [^\n]+\n", ran.said)
    return ran


@contextlib.contextmanager
def started(path: Path, *, program: Sequence[str] = PROGRAM) -> Iterator[subprocess.Popen[str]]:
    """Start the hook, and end it afterwards if it has not ended."""
    command = [*program, "before-stop", "--socket", str(path)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


# --- what an agent answers


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(WAITED, "waited 42 ms for 2 coordinators", id="waited"),
        pytest.param(WAITED | {"left": 2}, "waited .*; transactions that are still under way: 2", id="some are left"),
        pytest.param(
            {"waited_ms": 0, "waited_for": [], "left": 0, "why": "Patroni does not\nhold the lock"},
            "did not wait: Patroni does not hold the lock",
            id="must not wait",
        ),
        pytest.param({"error": "no\nway"}, "does not wait .*: the agent answered: no way", id="refused"),
    ],
)
def test_answers(answer: dict[str, Any], said: str, path: Path) -> None:
    """The hook prints the agent's answer and succeeds."""
    with agent(path, answer):
        assert re.search(said, hook(path).said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--sockett", "/run"], "ignored: --sockett /run", id="no such option"),
        pytest.param(["stop", "now"], "ignored: stop now", id="an extra argument"),
        pytest.param(["--strict"], "ignored: --strict", id="an option of the promotion hook"),
        pytest.param(["--socket"], "argument --socket: expected one argument", id="half an option"),
    ],
)
def test_wrong_command_lines(arguments: list[str], said: str, path: Path) -> None:
    """A mistake in patroni.yml delays no stop: known options work, and the rest is reported."""
    with agent(path, WAITED):
        assert said in hook(path, *arguments).said


def test_the_hook_starts_quickly(path: Path) -> None:
    """The hook imports no slow module, not even from the standard library."""
    command = [sys.executable, "-X", "importtime", "-m", "resolver_agent.cli", "before-stop", "--socket", str(path)]
    with agent(path, WAITED):
        said = run(command).said
    assert "waited 42 ms" in said
    imported = set(re.findall(r"\| +([\w.]+)$", said, re.MULTILINE))
    assert {"resolver_agent.control.client", "resolver_agent.system.lock"} <= imported
    assert imported.isdisjoint({"asyncio", "dataclasses", "inspect", "logging"})
    assert imported.isdisjoint({"psycopg", "python_hosts", "tenacity", "yaml"})


# --- no agent, or one that fails


def test_a_stopped_agent_is_not_started(path: Path) -> None:
    """Without an agent that holds its lock, the hook does not connect: a connection would have systemd start one."""
    with socket.socket(socket.AF_UNIX) as systemd:
        systemd.bind(str(path))
        systemd.listen()
        ran = hook(path)
        systemd.settimeout(0)
        with pytest.raises(BlockingIOError):
            systemd.accept()
    assert f"does not wait for the other nodes: no agent runs in {path.parent}" in ran.said


def test_an_agent_without_a_socket(path: Path) -> None:
    """An agent that has its lock but not its socket, as it has while it starts, is not waited for."""
    with lock.exclusive(str(path.parent), str(path.with_name("hosts"))):
        ran = hook(path)
    assert "does not wait for the other nodes: " in ran.said
    assert "there is no such socket" in ran.said


def test_an_agent_that_hangs_is_not_waited_for(path: Path) -> None:
    """An agent stopped by SIGSTOP delays a stop by half a second: another node may be a primary by now."""
    with (
        lock.exclusive(str(path.parent), str(path.with_name("hosts"))),
        subprocess.Popen([sys.executable, "-c", SERVE, path], stdout=subprocess.PIPE) as stopped,
    ):
        assert stopped.stdout is not None
        stopped.stdout.readline()
        alone = min(hook(path.with_name("nowhere")).took_s for _ in range(3))
        stopped.send_signal(signal.SIGSTOP)
        fastest = min((hook(path) for _ in range(3)), key=lambda ran: ran.took_s)
        stopped.kill()
    assert "the agent does not answer" in fastest.said
    assert fastest.took_s - alone < 0.8


def test_an_agent_that_dies_in_the_middle(path: Path) -> None:
    """When the agent ends while the hook waits, the hook ends at once."""
    answering = (
        "import socket, sys; listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen();"
        "print(flush=True); first = listener.accept()[0]; first.recv(4096); first.sendall(b'{}\\n');"
        "second = listener.accept()[0]; print(second.recv(4096).decode(), flush=True); second.recv(1)"
    )
    with (
        lock.exclusive(str(path.parent), str(path.with_name("hosts"))),
        subprocess.Popen([sys.executable, "-c", answering, path], stdout=subprocess.PIPE, text=True) as dying,
        started(path) as waiting,
    ):
        assert dying.stdout is not None
        dying.stdout.readline()
        asked = dying.stdout.readline()
        dying.kill()
        begun = time.monotonic()
        said = waiting.communicate(timeout=5)[1]
        took_s = time.monotonic() - begun
    request = json.loads(asked)
    assert request["command"] == "before-stop"
    assert request["within_ms"] + request["since_ms"] == pytest.approx(5500, abs=1)
    assert waiting.returncode == 0
    assert "the agent ended before it answered" in said
    assert took_s < 1


def test_its_own_limit(path: Path) -> None:
    """An agent that says that it lives, and then never answers, holds up a stop for less than 6 s."""
    with agent(path, None):
        ran = hook(path)
    assert ran.took_s > 4.5
    assert "the agent does not answer" in ran.said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        pytest.param(signal.SIGTERM, "ended by signal 15", id="SIGTERM"),
        pytest.param(signal.SIGHUP, "ended by signal 1", id="SIGHUP"),
        pytest.param(signal.SIGALRM, "not done after 5.7 s", id="SIGALRM, its own limit"),
    ],
)
def test_signals(number: int, said: str, path: Path) -> None:
    """A hook that a signal would end succeeds at once, and prints the signal."""
    with agent(path, None) as asked, started(path) as waiting:
        assert asked.wait(5)
        waiting.send_signal(number)
        line = waiting.communicate(timeout=2)[1]
    assert waiting.returncode == 0
    assert line == f"resolver-agent before-stop: does not wait for the other nodes: {said}\n"


# --- by hand


@pytest.mark.parametrize(("options", "asks"), [("", False), ("--yes", True)], ids=["typed", "typed, and meant"])
def test_at_a_terminal(options: str, asks: bool, path: Path) -> None:  # noqa: FBT001 -- a table
    """Typed by hand it announces nothing unless that is meant, and says so."""
    command = " ".join([*map(str, PROGRAM), "before-stop", "--socket", str(path), options])
    with agent(path, WAITED) as asked:
        shown = subprocess.run(
            ["script", "-qec", "bash --norc --noprofile -i", "/dev/null"],
            input=f"{command}\nexit\n",
            env=os.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        ).stdout
        assert asked.wait(2 if asks else 0) is asks, shown
    assert ("before-stop: nothing is announced: " in shown) is not asks
    assert ("before-stop: waited 42 ms for 2 coordinators" in shown) is asks


def by_hand(path: Path, *options: str) -> tuple[int, str]:
    """Return the exit code and the output of the command as people use it."""
    command = [*PROGRAM, "before-stop", "--socket", str(path), *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return ran.returncode, ran.stdout + ran.stderr


def test_check_announces_nothing(path: Path) -> None:
    """``--check`` shows what a planned stop would do, and does not ask for one."""
    with agent(path, WAITED) as asked:
        assert by_hand(path, "--check") == (0, "a planned stop would wait: it would\nwk1 would queue\n")
        assert not asked.is_set()


def test_cancel_without_an_agent(path: Path) -> None:
    """By hand, too, a stopped agent is not started; exit code 2."""
    with socket.socket(socket.AF_UNIX) as systemd:
        systemd.bind(str(path))
        systemd.listen()
        assert by_hand(path, "--cancel") == (2, f"resolver-agent: no agent runs in {path.parent}\n")
