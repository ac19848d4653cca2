"""The requests around a stop, and how long any of them holds up the agent."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from resolver_agent.config.load import fingerprint
from resolver_agent.control import report
from resolver_agent.control.overrides import Overrides
from resolver_agent.requests import AgentState, Requests
from resolver_agent.routing.observation import Observations
from tests.unit.builders import Agent, config, group, primary, standby

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from resolver_agent.config.model import Config
    from resolver_agent.queue.own_stop import WaitFor
    from resolver_agent.routing.observation import Role


class Stops:
    """Notes how long each stop may wait, and how long ago its hook began."""

    def __init__(self) -> None:
        self.announced: list[tuple[float, float]] = []

    async def leave(self, *, within_s: float, since_s: float, wait_for: WaitFor) -> report.StopAnswer:  # noqa: ARG002
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


def answers_of(stops: Stops) -> Requests:
    """Return the answers, without what an agent has besides."""
    nothing = cast("Any", None)
    return Requests(
        nothing,
        decision=nothing,
        observer=nothing,
        block=nothing,
        maintenance=nothing,
        windows=nothing,
        stops=cast("Any", stops),
        changes=nothing,
        figures=nothing,
        overrides=nothing,
    )


def ask(stops: Stops, command: str, **arguments: object) -> dict[str, Any]:
    """Return the answer to a request."""
    handler: Callable[[dict[str, Any]], Any] = answers_of(stops).handlers[command]

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


@pytest.mark.parametrize(
    "command", ["pre-promote", "pre-promote-cancel", "before-stop", "before-stop-check", "before-stop-cancel"]
)
def test_hooks_wait_for_no_other_request(command: str) -> None:
    """The server has a coroutine wait for nobody, and everything else for its turn among large answers."""
    assert inspect.iscoroutinefunction(answers_of(Stops()).handlers[command])


def test_checking_and_cancelling_a_stop() -> None:
    """A check announces nothing; a stop is taken back once."""
    stops = Stops()
    assert ask(stops, "before-stop-check") == {"would_wait": True, "why": "names lead here", "names": ["wk1"]}
    assert ask(stops, "before-stop-cancel") == {"announced": False}
    ask(stops, "before-stop", within_ms=1000)
    assert ask(stops, "before-stop-cancel") == {"announced": True}


class Seen:
    """An observer that has seen what an agent has."""

    announced = None
    asked_all = True

    def __init__(self, agent: Agent) -> None:
        self.config = agent.config
        self._agent = agent

    def observations(self, assumed: Role | None = None) -> Observations:
        """Return what is known now."""
        return Observations(nodes=dict(self._agent.states), local=self._agent.local, assumed=assumed)

    def decidable(self, *_: object) -> Config:
        """Return all names."""
        return self.config


@pytest.fixture(scope="module")
def large() -> Agent:
    """An agent with a thousand names."""
    groups = [
        group(f"wk{one}", f"10.{one // 250}.{one % 250}.1", f"10.{one // 250}.{one % 250}.2") for one in range(1000)
    ]
    agent = Agent(config(*groups))
    for one in groups:
        agent.see({one.nodes[0]: primary(), one.nodes[1]: standby()})
    return agent.see_local(primary()).decide().decide()


def requests_of(agent: Agent, folder: Path) -> Requests:
    """Return the requests to an agent."""
    state = AgentState(config=agent.config, decision=agent.decision, alerts=(), lasting=())
    flush = report.FlushStatus(citus=False, flushed=True, fault=None)
    recovery = report.RecoveryStatus(under_way=False, blocked_by=None, age_s=None, databases=())
    nothing = cast("Any", None)
    return Requests(
        lambda: state,
        decision=lambda: agent.decision,
        observer=cast("Any", Seen(agent)),
        block=cast("Any", SimpleNamespace(says=lambda _targets: True, trampled=0)),
        maintenance=cast("Any", SimpleNamespace(flush_status=flush, recovery_status=lambda _now: recovery)),
        windows=cast("Any", SimpleNamespace(status=lambda _now: report.QueueStatus(open=(), past=()))),
        stops=nothing,
        changes=cast("Any", SimpleNamespace(since=lambda _name, _address: None)),
        figures=nothing,
        overrides=Overrides(str(folder / "overrides.json"), changed=asyncio.Event()),
    )


async def longest_turn_s(request: Callable[[], Any]) -> tuple[dict[str, Any], float, float]:
    """Return an answer, its processor time, and the most of that between two turns of the loop.

    Processor time is the same however busy the machine is.
    """
    longest_s, over = 0.0, False

    async def turn() -> None:
        nonlocal longest_s
        before = time.thread_time()
        while not over:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            longest_s, before = max(longest_s, now - before), now

    turning = asyncio.create_task(turn())
    await asyncio.sleep(0)
    begun = time.process_time()
    answer = request()
    found = await answer if inspect.isawaitable(answer) else answer
    took_s = time.process_time() - begun
    over = True
    await turning
    return (json.loads(found) if isinstance(found, bytes) else found), took_s, longest_s


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        pytest.param("status", {}, '"wk999"', id="status"),
        pytest.param("plan", {}, '"wk999"', id="plan"),
        pytest.param("pre-promote-check", {}, '"announced": false', id="pre-promote-check"),
        pytest.param("pin", {"name": "wk99x"}, "did you mean `wk99", id="a name that is not known"),
        pytest.param("pin", {"name": "wk7", "address": "10.0.7.2", "for_s": 60}, "wk7 is not pinned to", id="a pin"),
    ],
)
def test_no_request_holds_up_the_agent(
    command: str, arguments: dict[str, object], words: str, large: Agent, tmp_path: Path
) -> None:
    """With a thousand names the loop turns while an answer is computed."""

    async def main() -> tuple[dict[str, Any], float, float]:
        requests = requests_of(large, tmp_path)
        await requests._by_hand._kept.load()
        request = {"peer": "process 42", "config": fingerprint(large.config), **arguments}
        return await longest_turn_s(lambda: requests.handlers[command](request))

    answer, took_s, longest_s = asyncio.run(main())
    assert words in json.dumps(answer)
    assert longest_s < took_s / 2


def test_an_answer_without_a_thread(large: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the status when the system is short of something is answered all the same."""

    async def main() -> bytes:
        found: bytes = await requests_of(large, tmp_path).handlers["status"]({})  # type: ignore[misc]
        return found

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert len(json.loads(asyncio.run(main()))["names"]) == 1000
