"""The hook before a stop, Patroni's ``before_stop``: have the agent wait for other nodes' statements, for 6 s at most.

Patroni runs it before every stop of PostgreSQL, also when a primary must die at once: then each moment that the hook
takes prolongs a split brain. So it first makes sure that the agent is there and answers, and the agent waits only where
it knows that it may.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NoReturn

from resolver_agent.control import hook
from resolver_agent.control.hook import Outcome

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

NAME = "before-stop"

_ALIVE_S = 0.5
"""An agent that answers no simple question within this time is hung, and is not waited for."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of this command."""
    hook.add_options(
        parser,
        yes="announce a stop although typed at a terminal",
        check="show whether a stop would wait, and which names would queue, and announce nothing",
        cancel="take an announced stop back",
    )


def run(arguments: Sequence[str], *, leave: Callable[[int], NoReturn]) -> NoReturn:
    """Ask, print the result in one line, and exit with 0 whatever it is."""
    hook.run(_HOOK, arguments, leave=leave)


def _ask(socket: str, until: float) -> Outcome:
    from resolver_agent.control import client  # noqa: PLC0415 -- takes a while, and the signals come first

    folder = socket.rpartition("/")[0] or "."
    client.ask_running(folder, f"{NAME}-check", socket=socket, timeout_s=min(_ALIVE_S, until - time.monotonic()))
    left_s = until - time.monotonic()
    since_ms = int((_HOOK.ask_s - left_s) * 1000)
    return judge(client.ask(socket, NAME, timeout_s=left_s, within_ms=int(left_s * 1000), since_ms=since_ms))


def judge(answer: dict[str, Any]) -> Outcome:
    """Return the result of an agent's answer: well, if it waited until nothing was left, or did not have to wait."""
    waited_for, left, why = answer.get("waited_for"), answer.get("left"), answer.get("why")
    if isinstance(waited_for, list) and waited_for:
        text = f"waited {answer.get('waited_ms')} ms for {', '.join(map(str, waited_for))}"
    else:
        text = "did not wait"
    if left != 0:
        text += f"; transactions that are still under way: {left}"
    return Outcome(well=left == 0, text=f"{text}: {why}" if why else text)


_HOOK = hook.Hook(
    NAME,
    ask_s=5.5,  # the command line for patroni.yml ends it after 6
    limit_s=5.7,
    add_options=add_options,
    ask=_ask,
    unknown="does not wait for the other nodes",
    typed="nothing is announced: Patroni runs this command before it stops PostgreSQL, and the other nodes' statements "
    "for this server then wait for the next primary; --check shows what would happen, --yes announces a stop",
)
