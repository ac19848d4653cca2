"""What the hooks for Patroni share: ask the agent, print one line about it, and end in time whatever happens.

Patroni waits for its hooks without a limit. So a hook starts quickly: it imports little of the standard library, and no
``dataclasses``, which would take a quarter of its start.
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
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BY_HAND = frozenset({"--check", "--cancel"})
"""Options for people. With one of them a command is not the hook, and does not end in its way."""

_SOCKET = "/run/resolver-agent/control.sock"

_LEAST_S = 1.0
"""A slow start counts towards the limits, but leaves this long to ask."""

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
    """The result. ``well``: all is as it should be, for callers that want to know."""

    well: bool
    text: str


class Hook(NamedTuple):
    """A command that Patroni runs and waits for.

    ``ask_s`` and ``limit_s`` are the seconds after the process began at which the hook stops asking, and ends. ``ask``
    takes the path of the agent's socket, and until when it may ask (``time.monotonic``). ``unknown`` begins the line of
    a hook that got no answer; ``typed`` is the line of one that was typed at a terminal, and does not ask.
    """

    name: str
    ask_s: float
    limit_s: float
    add_options: Callable[[argparse.ArgumentParser], None]
    ask: Callable[[str, float], Outcome]
    unknown: str
    typed: str


def add_options(parser: argparse.ArgumentParser, *, yes: str, check: str, cancel: str) -> None:
    """Give a parser the options that every hook has, with these help texts."""
    parser.add_argument("--yes", action="store_true", help=yes)
    by_hand = parser.add_mutually_exclusive_group()
    by_hand.add_argument("--check", action="store_true", help=check)
    by_hand.add_argument("--cancel", action="store_true", help=cancel)
    parser.add_argument(
        "--socket", metavar="PATH", default=_SOCKET, help=f"the agent's socket in its runtime_dir (default: {_SOCKET})"
    )


def run(hook: Hook, arguments: Sequence[str], *, leave: Callable[[int], NoReturn], otherwise: int = 0) -> NoReturn:
    """Ask, print the result in one line, and exit: with 0 if all is well, else with ``otherwise``.

    ``leave`` ends the process at once: a signal during Python's own end would still make the hook fail.
    """
    begun = time.monotonic() - min(_age_s(), hook.ask_s - _LEAST_S)

    def end(outcome: Outcome) -> NoReturn:
        _say(hook.name, outcome.text)
        leave(0 if outcome.well else otherwise)

    def fail(why: str) -> NoReturn:
        end(Outcome(well=False, text=f"{hook.unknown}: {why}"))

    try:
        _catch_signals(fail, at_limit=f"not done after {hook.limit_s} s", limit_s=begun + hook.limit_s)
        if "--yes" not in arguments and _typed():
            end(Outcome(well=False, text=hook.typed))
        socket, fault = _understand(hook, arguments)
        outcome = _ask(hook, socket, until=begun + hook.ask_s)
        end(Outcome(outcome.well, f"{outcome.text}{fault}"))
    except BaseException as error:  # noqa: BLE001 -- a defect must not hold up Patroni either
        fail(repr(error))


def _age_s() -> float:
    """Return how long ago the process began: on a busy machine Python is slow to start."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return 0.0


def _catch_signals(fail: Callable[[str], NoReturn], *, at_limit: str, limit_s: float) -> None:
    """Call ``fail`` on every signal that would end the process, and at ``limit_s`` (``time.monotonic``)."""

    def caught(number: int, _frame: object) -> None:
        fail(at_limit if number == signal.SIGALRM else f"ended by signal {number}")

    for number in signal.valid_signals() - _LEFT_ALONE:
        if number == signal.SIGALRM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, caught)
    signal.setitimer(signal.ITIMER_REAL, limit_s - time.monotonic())


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


def _understand(hook: Hook, arguments: Sequence[str]) -> tuple[str, str]:
    """Return the socket, and what is wrong with the command line; the agent is asked all the same."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    hook.add_options(parser)
    try:
        options, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        return _SOCKET, f"; {error}"
    ignored = [word for word in others if word != hook.name]
    return options.socket, f"; ignored: {' '.join(ignored)}" if ignored else ""


def _ask(hook: Hook, socket: str, *, until: float) -> Outcome:
    from resolver_agent.control.client import ControlError  # noqa: PLC0415 -- takes a while, and the signals come first

    try:
        return hook.ask(socket, until)
    except ControlError as error:
        return Outcome(well=False, text=f"{hook.unknown}: {error}")


def _say(name: str, text: str) -> None:
    """Write one line to standard error, which is Patroni's own, unless the write would block."""
    if sys.stderr is None:  # it was closed, and another file may have its number
        return
    # Not by `foreign`: a signal may come while that is being imported.
    words = " ".join(text[: select.PIPE_BUF].split())
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
    line = f"resolver-agent {name}: {shown}".encode()[: select.PIPE_BUF - 1]
    with contextlib.suppress(OSError):
        room = select.poll()
        room.register(_STDERR, select.POLLOUT)
        if room.poll(_SAY_S * 1000):
            os.write(_STDERR, line + b"\n")
