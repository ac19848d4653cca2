"""A program of the operator's: how it ends, what it may take, and that nothing of it is left."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from resolver_agent.system.clock import boottime
from resolver_agent.system.command import Ended, run


def shell(
    script: str, *arguments: str, timeout_s: float = 10.0, stop: threading.Event | None = None, **env: str
) -> Ended:
    """Run a script of the shell, with these variables alone."""
    command = ["/bin/sh", "-c", script, "sh", *arguments]
    return run(command, env={"PATH": os.environ["PATH"], **env}, timeout_s=timeout_s, stop=stop or threading.Event())


def has_ended(pid: int) -> bool:
    """Report whether a process is gone, or only waits to be reaped by init."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo well", Ended(0, b"well\n")),
        ("echo bad >&2; exit 3", Ended(3, b"bad\n")),
        ("kill -9 $$", Ended(-9, b"")),
        ("exec >&- 2>&-; sleep 0.2; exit 4", Ended(4, b"")),
        ('echo "$X $#"', Ended(0, b"of the environment 0\n")),
    ],
)
def test_how_it_ends(script: str, expected: Ended) -> None:
    """The exit code, or the signal, and what it said on either stream."""
    assert shell(script, X="of the environment") == expected


def test_no_shell() -> None:
    """Arguments are passed as they are."""
    ended = run(["/bin/echo", "$HOME; `id`", "*"], env={}, timeout_s=10, stop=threading.Event())
    assert ended == Ended(0, b"$HOME; `id` *\n")


def test_it_has_no_input() -> None:
    """Whatever reads finds the end at once."""
    assert shell("cat") == Ended(0, b"")


def test_only_the_end_of_a_long_output_is_kept() -> None:
    """A program that never stops talking takes no memory, and is not held up."""
    ended = shell(f"head -c {32 << 20} /dev/zero; echo; echo last")
    assert ended.code == 0
    assert len(ended.said) == 800
    assert ended.said.endswith(b"\nlast\n")


def test_it_is_killed_with_all_that_it_has_started() -> None:
    """After its time nothing of it is left, be it deaf to other signals."""
    begun = boottime()
    ended = shell("trap '' TERM HUP INT; sleep 1000 & echo $!; wait", timeout_s=0.5)
    assert ended.code is None
    assert 0.5 <= boottime() - begun < 5
    while not has_ended(int(ended.said)):
        assert boottime() - begun < 10


def test_what_it_leaves_behind_is_killed_too() -> None:
    """A program that ends is not waited for until the last of its children has closed the output."""
    begun = boottime()
    ended = shell("sleep 1000 & echo $!")
    assert ended.code == 0
    while not has_ended(int(ended.said)):
        assert boottime() - begun < 5


def test_it_is_killed_when_the_agent_stops() -> None:
    """Another thread may end it."""
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    assert shell("echo here; exec sleep 1000", stop=stop) == Ended(None, b"here\n")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/none", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("/etc", "Permission denied"),
    ],
)
def test_what_cannot_be_started(program: str, words: str) -> None:
    """It is an error."""
    with pytest.raises(OSError, match=words):
        run([program], env={}, timeout_s=1, stop=threading.Event())


def test_it_is_killed_before_the_agent_is() -> None:
    """When memory is short the kernel takes the command, and not the agent."""
    wait = "while [ $(cat /proc/self/oom_score_adj) != 1000 ]; do :; done; cat /proc/self/oom_score_adj"
    assert shell(wait) == Ended(0, b"1000\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take a higher priority")
def test_it_has_no_higher_priority_than_others() -> None:
    """The agent runs with nice -10, and its command does not; the agent keeps its own."""
    script = """if True:
        import os, threading
        from resolver_agent.system.command import run
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        ended = []
        def call():
            ended.append(run(["/usr/bin/nice"], env={}, timeout_s=10, stop=threading.Event()))
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        print(ended[0].said, os.getpriority(os.PRIO_PROCESS, 0))
    """
    ended = run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout_s=30,
        stop=threading.Event(),
    )
    assert ended == Ended(0, b"b'0\\n' -10\n")
