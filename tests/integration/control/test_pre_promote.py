"""The promotion hook as Patroni runs it: a process of its own that succeeds in time whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.control import client
from tests.integration.support.command_line import PROGRAM
from tests.integration.support.hook import MISROUTED, WELL, Ran, agent, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NOBODY = NOGROUP = 65534
GROUP = 54321

# Everything is imported before the privileges are dropped: the environment may be closed to other users.
AS_NOBODY = f"""
import gettext, locale, os, shutil, sys
from resolver_agent import cli
from resolver_agent.control import client
os.setgroups([int(gid) for gid in os.environ["GROUPS"].split()])
os.setgid({NOGROUP})
os.setuid({NOBODY})
sys.exit(cli.main())
"""

# An agent with a socket that is open to all: its path, the agent's user and the socket's group.
OPEN_AGENT = f"""
import asyncio, os, sys
from resolver_agent.control import server

async def serve(path, uid, gid):
    os.setgid(int(gid))
    os.setuid(int(uid))
    async with server.serve({{"pre-promote": lambda _request: {WELL}}}, path=path, passed=None):
        os.chmod(path, 0o666)
        print(flush=True)
        await asyncio.Event().wait()

asyncio.run(serve(*sys.argv[1:]))
"""


def hook(socket_path: Path, *arguments: str, program: Sequence[str] = PROGRAM, **settings: Any) -> Ran:
    """Run the hook; in any case it takes 3 s at most, and prints one line."""
    ran = run([*program, "pre-promote", "--socket", str(socket_path), *arguments], **settings)
    assert ran.took_s < 3
    assert re.fullmatch("resolver-agent pre-promote: [^\n]+\n", ran.said)
    return ran


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    """Return a bound socket that does not listen yet."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        yield listener


@contextlib.contextmanager
def accepting(listener: socket.socket, behave: Callable[[socket.socket], None]) -> Iterator[None]:
    """Listen, and run ``behave`` for each client in turn after its request."""
    listener.listen()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as connection, contextlib.suppress(OSError):
                    connection.recv(4096)
                    behave(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


# --- what an agent answers


@pytest.mark.parametrize(
    ("answer", "strict", "said"),
    [
        pytest.param(WELL, 0, r"ready for the promotion \(after 42 ms\)", id="ready"),
        pytest.param(
            MISROUTED, 1, r"not ready .*: names still resolve to standbys: wk1 → 10.0.0.4 \(standby\)", id="standby"
        ),
        pytest.param(WELL | {"written": False}, 1, "not ready .*: the hosts file is not written", id="not written"),
        pytest.param(WELL | {"flushed": False}, 1, "not ready .*: .* not flushed", id="not flushed"),
        pytest.param({"error": "no\nway"}, 1, "not known .*: the agent answered: no way", id="refused"),
        pytest.param(
            WELL | {"why": "\x1b[2J\u2028\u202e\nok"}, 0, r"ready .*: \\x1b\[2J \\u202e ok$", id="a hostile text"
        ),
    ],
)
def test_answers(answer: dict[str, Any], strict: int, said: str, path: Path) -> None:
    """The hook prints the agent's answer and succeeds; with --strict it fails unless all is well."""
    with agent(path, answer):
        lenient, exact = hook(path), hook(path, "--strict")
    assert (lenient.code, exact.code) == (0, strict)
    assert lenient.said == exact.said
    assert re.search(said, lenient.said)


def test_others_are_answered_while_the_hook_waits(path: Path) -> None:
    """An agent that is busy with a promotion still answers ``status``."""
    with agent(path, None) as asked:
        waiting = subprocess.Popen([*PROGRAM, "pre-promote", "--socket", path], stderr=subprocess.DEVNULL)
        assert asked.wait(5)
        assert client.ask(str(path), "status") == {"alerts": []}
        assert waiting.poll() is None
    assert waiting.wait(5) == 0


def test_a_thousand_names_are_one_line(path: Path) -> None:
    """A line that would not fit into a pipe at once is truncated."""
    with agent(path, WELL | {"misrouted": [f"wk{number} → 10.0.0.4 (standby)" for number in range(1000)]}):
        assert 4000 < len(hook(path).said.encode()) <= 4096


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--sockett", "/run"], "ignored: --sockett /run", id="no such option"),
        pytest.param(["promote", "now"], "ignored: promote now", id="an extra argument"),
        pytest.param(["-c", "/etc/agent.yml", "-v"], "ignored: -c /etc/agent.yml -v", id="options of others"),
        pytest.param(["--socket"], "argument --socket: expected one argument", id="half an option"),
        pytest.param(["--strict=yes"], "argument --strict: ignored explicit argument 'yes'", id="a value too many"),
    ],
)
def test_wrong_command_lines(arguments: list[str], said: str, path: Path) -> None:
    """A mistake in patroni.yml prevents no promotion: known options work, and the rest is reported."""
    with agent(path, WELL):
        ran = hook(path, *arguments)
    assert ran.code == 0
    assert said in ran.said


def test_the_hook_starts_quickly(path: Path) -> None:
    """The hook imports no slow module, not even from the standard library."""
    command = [sys.executable, "-X", "importtime", "-m", "resolver_agent.cli", "pre-promote", "--socket", str(path)]
    with agent(path, WELL):
        said = run(command).said
    assert "ready for the promotion" in said
    imported = set(re.findall(r"\| +([\w.]+)$", said, re.MULTILINE))
    assert "resolver_agent.control.client" in imported
    assert imported.isdisjoint({"asyncio", "dataclasses", "inspect", "logging"})
    assert imported.isdisjoint({"psycopg", "python_hosts", "tenacity", "yaml"})


# --- agents that fail


def mute(connection: socket.socket) -> None:
    """Never answer."""
    while connection.recv(4096):
        pass


def trickle(connection: socket.socket) -> None:
    """Send an answer that never ends."""
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        pytest.param(mute, "does not answer", id="mute"),
        pytest.param(trickle, "does not answer", id="trickles"),
        pytest.param(lambda _connection: None, "ended before it answered", id="hangs up"),
        pytest.param(lambda connection: connection.sendall(b"\x00\xff\n"), "not the agent", id="garbage"),
        pytest.param(lambda connection: connection.sendall(b"[1]\n"), r"answered: \[1\]", id="no object"),
        pytest.param(lambda connection: connection.sendall(b'{"misrouted": {}}\n'), "not known what", id="nonsense"),
    ],
)
def test_agents_that_fail(
    behave: Callable[[socket.socket], None], said: str, listener: socket.socket, path: Path
) -> None:
    """However an agent fails, the hook succeeds in time, and with --strict it fails in time."""
    with accepting(listener, behave), ThreadPoolExecutor() as threads:
        lenient, exact = threads.map(lambda arguments: hook(path, *arguments), [[], ["--strict"]])
    assert (lenient.code, exact.code) == (0, 1)
    assert re.search(said, lenient.said)


@pytest.mark.parametrize("waiting", [0, 1], ids=["never accepts", "full queue"])
def test_an_agent_that_hangs(waiting: int, listener: socket.socket, path: Path) -> None:
    """The hook gives up in time on an agent that does not even accept."""
    listener.listen(0)
    with contextlib.ExitStack() as clients:
        for _ in range(waiting):
            clients.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        ran = hook(path)
    assert ran.code == 0
    assert "the agent does not answer" in ran.said


def test_a_stopped_agent(path: Path) -> None:
    """The hook gives up in time on a process stopped by SIGSTOP."""
    serve = (
        "import socket, sys; listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen();"
        "print(flush=True); listener.accept()"
    )
    with subprocess.Popen([sys.executable, "-c", serve, path], stdout=subprocess.PIPE) as stopped:
        assert stopped.stdout is not None
        stopped.stdout.readline()
        stopped.send_signal(signal.SIGSTOP)
        ran = hook(path)
        stopped.kill()
    assert ran.code == 0
    assert "the agent does not answer" in ran.said


def test_a_slow_start(listener: socket.socket, path: Path, tmp_path: Path) -> None:
    """The time that Python itself takes to start, on a busy machine, counts towards the limit."""
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(1)\n")
    listener.listen()
    ran = hook(path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert ran.code == 0
    assert "the agent does not answer" in ran.said


def make_folder(path: Path) -> None:
    """Put a folder in place of the socket."""
    path.mkdir()


def make_file(path: Path) -> None:
    """Put a file in place of the socket."""
    path.touch()


def make_stale(path: Path) -> None:
    """Leave a socket as a killed agent does."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda _path: None, "there is no such socket", id="nothing"),
        pytest.param(make_stale, "no agent listens there", id="stale"),
        pytest.param(make_folder, "no agent listens there", id="a folder"),
        pytest.param(make_file, "no agent listens there", id="a file"),
    ],
)
def test_no_agent(make: Callable[[Path], None], said: str, path: Path) -> None:
    """Where no agent can be asked the hook does not wait."""
    make(path)
    lenient, exact = hook(path), hook(path, "--strict")
    assert (lenient.code, exact.code) == (0, 1)
    assert said in lenient.said


# --- who may ask


@pytest.mark.parametrize(
    ("groups", "mode", "said"),
    [
        pytest.param(f"{GROUP}", 0o660, r"ready for the promotion \(after", id="of the socket's group"),
        pytest.param("", 0o660, "you may not ask the agent: do it as root, or as a member", id="a stranger"),
        pytest.param("", 0o666, "may not ask for pre-promote: do it as root, or as a member", id="open to all"),
    ],
)
def test_other_users(groups: str, mode: int, said: str, path: Path) -> None:
    """Patroni's user is answered; another is told how to get access, and its hook succeeds as well."""
    with agent(path, WELL):
        os.chown(path, 0, GROUP)
        path.chmod(mode)
        ran = hook(path, program=[sys.executable, "-c", AS_NOBODY], env=os.environ | {"GROUPS": groups})
    assert ran.code == 0
    assert re.search(said, ran.said)


@pytest.mark.parametrize(
    ("uid", "members"),
    [pytest.param(0, "nobody", id="a member by name"), pytest.param(NOBODY, "", id="the agent's own user")],
)
def test_trusted_although_the_socket_is_open(uid: int, members: str, path: Path) -> None:
    """Where every user can connect, the agent's own user and members of the group may ask."""
    path.parent.chmod(0o777)
    groups = path.with_name("group")
    groups.write_text(Path("/etc/group").read_text(encoding="utf-8") + f"readers:x:{GROUP}:{members}\n")
    private = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/group && exec "$@"', str(groups)]
    command = [*private, sys.executable, "-c", OPEN_AGENT, str(path), str(uid), str(GROUP)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as serving:
        assert serving.stdout is not None
        serving.stdout.readline()
        ran = hook(path, program=[sys.executable, "-c", AS_NOBODY], env=os.environ | {"GROUPS": ""})
        serving.kill()
    assert ran.code == 0
    assert "ready for the promotion (after 42 ms)" in ran.said


# --- signals


@pytest.mark.parametrize(
    ("number", "said"),
    [
        *[
            pytest.param(number, f"ended by signal {number:d}", id=number.name)
            for number in (
                *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
                *(signal.SIGXCPU, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
                *(signal.SIGRTMIN, signal.SIGRTMAX),
            )
        ],
        pytest.param(signal.SIGALRM, "not done after 2.7 s", id="SIGALRM, its own limit"),
    ],
)
def test_signals(number: int, said: str, path: Path) -> None:
    """A hook that a signal would end succeeds, and prints the signal; with --strict it fails."""
    for arguments, code in ([], 0), (["--strict"], 1):
        with agent(path, None) as asked:
            waiting = subprocess.Popen(
                [*PROGRAM, "pre-promote", "--socket", path, *arguments], stderr=subprocess.PIPE, text=True
            )
            assert asked.wait(5)
            waiting.send_signal(number)
            line = waiting.communicate(timeout=5)[1]
        assert waiting.returncode == code
        assert re.fullmatch(f"resolver-agent pre-promote: it is not known .*{said}.*\n", line)


def test_a_signal_that_python_ignores(path: Path) -> None:
    """SIGPIPE does not keep the hook from reading the answer."""
    with agent(path, None) as asked:
        waiting = subprocess.Popen([*PROGRAM, "pre-promote", "--socket", path], stderr=subprocess.PIPE, text=True)
        assert asked.wait(5)
        waiting.send_signal(signal.SIGPIPE)
    line = waiting.communicate(timeout=5)[1]
    assert waiting.returncode == 0
    assert "not ready for the promotion" in line


@pytest.mark.parametrize(
    "redirections",
    ["2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full", "2>&4", "2>&5"],
    ids=["no stderr", "no streams", "full stderr", "full streams", "reader has left", "reader does not read"],
)
def test_nobody_listens(redirections: str, path: Path) -> None:
    """Where the line cannot be written, or only later, the hook's result is the same."""
    left, full = os.pipe(), os.pipe()
    os.close(left[0])
    os.set_blocking(full[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full[1], bytes(4096))
    os.set_blocking(full[1], True)
    command = f'exec 4>&{left[1]} 5>&{full[1]}; exec "$@" {redirections}'
    try:
        with agent(path, WELL):
            shell = ["bash", "-c", command, "bash", *PROGRAM, "pre-promote", "--strict", "--socket", str(path)]
            ran = run(shell, pass_fds=[left[1], full[1]])
    finally:
        for number in left[1], *full:
            os.close(number)
    assert ran.code == 0
    assert ran.took_s < 3


# --- at a terminal

# Runs a hook as Patroni does, from the process group that it was started in.
PATRONI = "import os, shlex, subprocess; subprocess.call(shlex.split(os.environ['HOOK']))"
BY_PATRONI = f'{sys.executable} -c "$PATRONI"'


def at_a_terminal(path: Path, line: str, hook: str) -> str:
    """Return what a terminal shows when a line is typed at a shell's prompt there; ``$HOOK`` is the hook."""
    command = " ".join([*map(str, PROGRAM), "pre-promote", "--socket", str(path)])
    ran = subprocess.run(
        ["script", "-qec", "bash --norc --noprofile -i", "/dev/null"],
        input=f"{line}\nexit\n",
        env=os.environ | {"PATRONI": PATRONI, "HOOK": hook.format(command)},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return ran.stdout


@pytest.mark.parametrize(
    ("line", "hook", "asks"),
    [
        pytest.param("$HOOK", "{}", False, id="typed"),
        pytest.param("$HOOK", "{} --yes", True, id="typed, and meant"),
        pytest.param(BY_PATRONI, "{}", True, id="by Patroni, started there"),
        pytest.param(BY_PATRONI, 'sh -c "timeout -k 1 5 {} || :"', True, id="by Patroni, with the sample's line"),
        pytest.param(f"{BY_PATRONI} & wait", "{}", True, id="by Patroni, started there in the background"),
        pytest.param("setsid -w $HOOK", "{}", True, id="without a terminal of its own"),
    ],
)
def test_at_a_terminal(line: str, hook: str, asks: bool, path: Path) -> None:  # noqa: FBT001 -- a table
    """Typed by hand it announces nothing unless that is meant; a promotion by Patroni is announced in any case."""
    with agent(path, WELL) as asked:
        shown = at_a_terminal(path, line, hook)
        assert asked.wait(2 if asks else 0) is asks, shown
    assert ("pre-promote: nothing is announced: " in shown) is not asks
    assert ("pre-promote: ready for the promotion" in shown) is asks


def test_help_says_what_it_does(path: Path) -> None:
    """The options for people are in the help, and the help asks no agent."""
    ran = subprocess.run([*PROGRAM, "pre-promote", "--help"], capture_output=True, text=True, check=True)
    assert not path.exists()
    assert {"--yes", "--check", "--cancel"} <= set(ran.stdout.split())
