"""The promotion hook, Patroni's ``pre_promote``: ask the agent, judge its answer, and end within 3 s.

Patroni does not promote when this hook fails (rule R4). ``hook`` has what makes it succeed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NoReturn

from resolver_agent.control import hook
from resolver_agent.control.hook import Outcome

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

NAME = "pre-promote"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of this command."""
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 unless it is known that no name resolves to a standby"
    )
    hook.add_options(
        parser,
        yes="announce a promotion although typed at a terminal",
        check="show how the names would move, and announce nothing",
        cancel="take an announced promotion back",
    )


def run(arguments: Sequence[str], *, leave: Callable[[int], NoReturn]) -> NoReturn:
    """Ask, print the result in one line, and exit with 0 whatever it is; with ``--strict`` with 1 unless ready."""
    hook.run(_HOOK, arguments, leave=leave, otherwise=1 if "--strict" in arguments else 0)


def _ask(socket: str, until: float) -> Outcome:
    from resolver_agent.control import client  # noqa: PLC0415 -- takes a while, and the signals come first

    return judge(client.ask(socket, NAME, timeout_s=until - time.monotonic()))


def judge(answer: dict[str, Any]) -> Outcome:
    """Return the result of an agent's answer: well, if the names are ready. A missing field counts as not ready.

    They are ready when no name resolves to a standby, on disk or through a connection that Citus has cached.
    """
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
    return Outcome(well=not faults, text=": ".join([verdict, "; ".join(said)] if said else [verdict]))


_HOOK = hook.Hook(
    NAME,
    ask_s=2.5,  # a promotion may wait for 3
    limit_s=2.7,
    add_options=add_options,
    ask=_ask,
    unknown="it is not known whether the names are ready for the promotion",
    typed="nothing is announced: Patroni runs this command before a promotion, and the names of this node then lead to "
    "primaries until it has happened; --check shows how they would move, --yes announces a promotion",
)
