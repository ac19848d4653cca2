"""The requests around a stop: what reaches the queue, and what the client is told."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from typing import TYPE_CHECKING, Any, cast

import pytest

from resolver_agent.control import report
from resolver_agent.requests import Requests

if TYPE_CHECKING:
    from collections.abc import Callable


class Stops:
    """Notes how long each stop may wait, and how long ago its hook began."""

    def __init__(self) -> None:
        self.announced: list[tuple[float, float]] = []

    async def leave(self, *, within_s: float, since_s: float) -> report.StopAnswer:
        """Note it, and answer as after a wait."""
        self.announced.append((within_s, since_s))
        return report.StopAnswer(waited_ms=42, waited_for=("1 coordinator",), left=0, why="")

    def check_leave(self) -> report.StopCheck:
        """Answer that a stop would wait."""
        return report.StopCheck(would_wait=True, why="names lead here", names=("wk1",))

    def cancel_leave(self) -> report.StopCancelled:
        """Answer whether there was a stop, and forget it."""
        announced, self.announced = bool(self.announced), []
        return report.StopCancelled(announced=announced)


def ask(stops: Stops, command: str, **arguments: object) -> dict[str, Any]:
    """Return the answer to a request, without what an agent has besides."""
    nothing = cast("Any", None)
    requests = Requests(
        nothing,
        decision=nothing,
        observer=nothing,
        block=nothing,
        maintenance=nothing,
        windows=nothing,
        stops=stops,
        changes=nothing,
        figures=nothing,
        overrides=nothing,
    )
    handler: Callable[[dict[str, Any]], Any] = requests.handlers[command]

    async def answer() -> dict[str, Any]:
        found = handler({"peer": "process 42", **arguments})
        told: dict[str, Any] = await found if inspect.isawaitable(found) else found
        return told

    return asyncio.run(answer())


@pytest.mark.parametrize(
    ("milliseconds", "seconds"),
    [(5321, 5.321), (0, 0.0), (6000, 6.0), (6001, 0.0), (-1, 0.0), (10**400, 0.0), ("5", 0.0), (None, 0.0), (1e9, 0.0)],
)
def test_a_stop_waits_no_longer_than_its_hook(milliseconds: object, seconds: float) -> None:
    """The queue is told how long the hook still waits, and since when; without a sound number it does not wait."""
    stops = Stops()
    told = ask(stops, "before-stop", within_ms=milliseconds)
    ask(stops, "before-stop", within_ms=1000, since_ms=milliseconds)
    assert stops.announced == [(seconds, 0.0), (1.0, seconds)]
    assert told == {"waited_ms": 42, "waited_for": ["1 coordinator"], "left": 0, "why": ""}


def test_the_log_says_in_a_sentence_what_the_hook_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The agent's log and Patroni's, which gets the hook's line, have the same words."""
    caplog.set_level(logging.INFO)
    ask(Stops(), "before-stop", within_ms=1000)
    assert re.fullmatch(r"before-stop answered after \d+ ms: waited 42 ms for 1 coordinator", caplog.messages[-1])


def test_checking_and_cancelling_a_stop() -> None:
    """A check announces nothing; a stop is taken back once."""
    stops = Stops()
    assert ask(stops, "before-stop-check") == {"would_wait": True, "why": "names lead here", "names": ["wk1"]}
    assert ask(stops, "before-stop-cancel") == {"announced": False}
    ask(stops, "before-stop", within_ms=1000)
    assert ask(stops, "before-stop-cancel") == {"announced": True}
