"""The promotion hook: ask the agent, judge its answer, and end within 3 s.

Patroni waits for its hook without a limit, and does not promote when the hook fails (rule R4). So the hook starts
quickly: it imports little of the standard library, and no ``dataclasses``, which would take a quarter of its start.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NAME = "pre-promote"
BY_HAND = frozenset({"--check", "--cancel"})
"""Options for people. With one of them the command is not the hook, and does not end in its way."""

_SOCKET = "/run/resolver-agent/control.sock"
_ASK_S, _LIMIT_S = 2.5, 2.7
"""Seconds after the process began at which the hook stops asking, and ends. A promotion may wait for 3."""

_SLOW_START_S = 1.5
"""A slower start is counted as this long, so that time is left to ask."""

_TYPED = (
    "nothing is announced: Patroni runs this command before a promotion, and the names of this node then lead to "
    "primaries until it has happened; --check shows how they would move, --yes announces a promotion"
)

_SAY_S = 0.1
_STDERR = 2

_LEFT_ALONE = {
    *(signal.SIGKILL, signal.SIGSTOP),  # cannot be caught
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),  # end nothing
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),  # stop, until SIGCONT
    # faults, which come back for ever when they are caught
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP),
}


class Outcome(NamedTuple):
    """The result. ``ready``: no name resolves to a standby, on disk or through a connection that Citus has cached."""

    ready: bool
    text: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of this command."""
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 unless it is known that no name resolves to a standby"
    )
    parser.add_argument("--yes", action="store_true", help="announce a promotion although typed at a terminal")
    by_hand = parser.add_mutually_exclusive_group()
    by_hand.add_argument("--check", action="store_true", help="show how the names would move, and announce nothing")
    by_hand.add_argument("--cancel", action="store_true", help="take an announced promotion back")
    parser.add_argument(
        "--socket", metavar="PATH", default=_SOCKET, help=f"the agent's socket in its runtime_dir (default: {_SOCKET})"
    )


def run(arguments: Sequence[str], *, leave: Callable[[int], NoReturn]) -> NoReturn:
    """Ask, print the result in one line, and exit with 0 whatever it is; with ``--strict`` with 1 unless ready.

    ``leave`` ends the process at once: a signal during Python's own end would still make the hook fail.
    """
    code = 1 if "--strict" in arguments else 0
    begun = time.monotonic() - min(_age_s(), _SLOW_START_S)

    def end(outcome: Outcome) -> NoReturn:
        _say(outcome.text)
        leave(0 if outcome.ready else code)

    try:
        _catch_signals(end, limit_s=begun + _LIMIT_S - time.monotonic())
        if "--yes" not in arguments and _typed():
            end(Outcome(ready=False, text=_TYPED))
        socket, fault = _understand(arguments)
        outcome = _ask(socket, until=begun + _ASK_S)
        end(Outcome(outcome.ready, f"{outcome.text}{fault}"))
    except BaseException as error:  # noqa: BLE001 -- a defect must not hold up a promotion either
        end(_unknown(repr(error)))


def _age_s() -> float:
    """Return how long ago the process began: on a busy machine Python is slow to start."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return 0.0


def _catch_signals(end: Callable[[Outcome], NoReturn], *, limit_s: float) -> None:
    """Call ``end`` on every signal that would end the process, and after ``limit_s``."""

    def caught(number: int, _frame: object) -> None:
        end(_unknown(f"not done after {_LIMIT_S} s" if number == signal.SIGALRM else f"ended by signal {number}"))

    for number in signal.valid_signals() - _LEFT_ALONE:
        if number == signal.SIGALRM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, caught)
    signal.setitimer(signal.ITIMER_REAL, limit_s)


def _typed() -> bool:
    """Report whether somebody has typed the command at a terminal. In any doubt it is Patroni that runs it.

    An interactive shell makes the command the leader of the terminal's foreground group. What Patroni runs leads no
    such group, also where Patroni itself was started at a terminal; and ``timeout`` puts it into the background.
    """
    try:
        leader = os.getpgrp()
        if not (os.isatty(0) and os.isatty(_STDERR) and os.tcgetpgrp(0) == leader):
            return False
        if leader == os.getpid():
            return True
        return leader == os.getppid() and Path(f"/proc/{leader}/comm").read_text(encoding="utf-8") == "sudo\n"
    except (OSError, ValueError):
        return False


def _understand(arguments: Sequence[str]) -> tuple[str, str]:
    """Return the socket, and what is wrong with the command line; the agent is asked all the same."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_options(parser)
    try:
        options, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        return _SOCKET, f"; {error}"
    ignored = [word for word in others if word != NAME]
    return options.socket, f"; ignored: {' '.join(ignored)}" if ignored else ""


def _ask(path: str, *, until: float) -> Outcome:
    from resolver_agent.control import client  # noqa: PLC0415 -- takes a while, and the signals come first

    try:
        return judge(client.ask(path, NAME, timeout_s=until - time.monotonic()))
    except client.ControlError as error:
        return _unknown(str(error))


def judge(answer: dict[str, Any]) -> Outcome:
    """Return the result of an agent's answer; a field that is missing counts as not ready."""
    faults = []
    misrouted = answer.get("misrouted", answer.get("astray"))  # the agent may be of an older version
    if not isinstance(misrouted, list):
        faults.append("it is not known what the names resolve to")
    elif misrouted:
        faults.append(f"names still resolve to standbys: {', '.join(map(str, misrouted))}")
    if answer.get("written") is not True:
        faults.append("the hosts file is not written")
    if answer.get("flushed", False) not in (True, None):  # None: there is no Citus here
        faults.append("the connections that Citus cached are not flushed")
    said = [*faults, str(answer["why"])] if answer.get("why") else faults
    verdict = f"{'not ' if faults else ''}ready for the promotion (after {answer.get('took_ms')} ms)"
    return Outcome(ready=not faults, text=": ".join([verdict, "; ".join(said)] if said else [verdict]))


def _unknown(why: str) -> Outcome:
    return Outcome(ready=False, text=f"it is not known whether the names are ready for the promotion: {why}")


def _say(text: str) -> None:
    """Write one line to standard error, which is Patroni's own, unless the write would block."""
    if sys.stderr is None:  # it was closed, and another file may have its number
        return
    # Not by `foreign`: a signal may come while that is being imported.
    words = " ".join(text[: select.PIPE_BUF].split())
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
    line = f"resolver-agent {NAME}: {shown}".encode()[: select.PIPE_BUF - 1]
    with contextlib.suppress(OSError):
        room = select.poll()
        room.register(_STDERR, select.POLLOUT)
        if room.poll(_SAY_S * 1000):
            os.write(_STDERR, line + b"\n")
