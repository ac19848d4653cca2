"""The hook before a stop: how it judges an agent's answer, and how Patroni reads the snippet."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from resolver_agent.control import before_stop, hook

SNIPPET = Path(__file__).parents[3] / "systemd/patroni-hooks.yml"
DONE = {"waited_ms": 42, "waited_for": ["2 coordinators", "1 other node"], "left": 0, "why": ""}


@pytest.mark.parametrize(
    ("answer", "well", "text"),
    [
        pytest.param(DONE, True, "waited 42 ms for 2 coordinators, 1 other node", id="all is over"),
        pytest.param(
            DONE | {"left": 3, "why": "drain is 2 s"},
            False,
            "waited 42 ms for 2 coordinators, 1 other node; transactions that are still under way: 3: drain is 2 s",
            id="some is left",
        ),
        pytest.param(
            {"waited_ms": 0, "waited_for": [], "left": 0, "why": "Patroni does not hold the leader lock"},
            True,
            "did not wait: Patroni does not hold the leader lock",
            id="it must not wait",
        ),
        pytest.param({}, False, "did not wait; transactions that are still under way: None", id="nothing is said"),
        pytest.param(DONE | {"waited_for": {"a": 1}}, True, "did not wait", id="no list"),
    ],
)
def test_what_an_answer_comes_to(answer: dict[str, Any], well: bool, text: str) -> None:  # noqa: FBT001 -- a table
    """The hook tells for whom it waited, what is left, and why it did not wait."""
    assert before_stop.judge(answer) == hook.Outcome(well=well, text=text)


def test_what_patroni_makes_of_the_snippet() -> None:
    """Patroni splits the line like a shell, and starts it without one."""
    command = yaml.safe_load(SNIPPET.read_text(encoding="utf-8"))["postgresql"]["before_stop"]
    line = "timeout -k 1 6 /usr/local/bin/resolver-agent before-stop || :"
    assert shlex.split(command) == ["/bin/sh", "-c", line]
