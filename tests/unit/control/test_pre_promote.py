"""The promotion hook: how it judges an agent's answer, and how Patroni reads the snippet."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from resolver_agent.control import hook, pre_promote

SNIPPET = Path(__file__).parents[3] / "systemd/patroni-hooks.yml"
WELL = {"took_ms": 42, "written": True, "flushed": True, "misrouted": [], "why": ""}


@pytest.mark.parametrize(
    ("answer", "ready", "text"),
    [
        pytest.param(WELL, True, "ready for the promotion (after 42 ms)", id="all is well"),
        pytest.param(WELL | {"flushed": None}, True, "ready for the promotion (after 42 ms)", id="no Citus here"),
        pytest.param(
            WELL | {"why": "wk2 → fenced (no primary)"},
            True,
            "ready for the promotion (after 42 ms): wk2 → fenced (no primary)",
            id="well, with a remark",
        ),
        pytest.param(
            WELL | {"misrouted": ["wk1 → 10.0.0.4 (standby)", "wk2 → 10.0.0.6 (standby)"], "why": "nobody answers"},
            False,
            "not ready for the promotion (after 42 ms): names still resolve to standbys: wk1 → 10.0.0.4 (standby), "
            "wk2 → 10.0.0.6 (standby); nobody answers",
            id="names lead to standbys",
        ),
        pytest.param(
            WELL | {"written": False, "flushed": False},
            False,
            "not ready for the promotion (after 42 ms): the hosts file is not written; "
            "the connections that Citus cached are not flushed",
            id="neither written nor flushed",
        ),
        pytest.param(
            {},
            False,
            "not ready for the promotion (after None ms): it is not known what the names resolve to; "
            "the hosts file is not written; the connections that Citus cached are not flushed",
            id="nothing is said",
        ),
        pytest.param(
            WELL | {"misrouted": None},
            False,
            "not ready for the promotion (after 42 ms): it is not known what the names resolve to",
            id="not known",
        ),
    ],
)
def test_what_an_answer_comes_to(answer: dict[str, Any], ready: bool, text: str) -> None:  # noqa: FBT001 -- a table
    """The names are ready only when none points to a standby and all are written and flushed; the rest is reported."""
    assert pre_promote.judge(answer) == hook.Outcome(well=ready, text=text)


def test_what_patroni_makes_of_the_snippet() -> None:
    """Patroni splits the line like a shell, and starts it without one."""
    command = yaml.safe_load(SNIPPET.read_text(encoding="utf-8"))["postgresql"]["pre_promote"]
    line = "timeout -k 1 5 /usr/local/bin/resolver-agent pre-promote || :"
    assert shlex.split(command) == ["/bin/sh", "-c", line]
