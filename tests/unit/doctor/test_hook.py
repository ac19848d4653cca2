"""Which calls of ours a command or a script has."""

from __future__ import annotations

import time

import pytest

from resolver_agent.doctor.hook import PRE_PROMOTE


@pytest.mark.parametrize(
    ("text", "programs"),
    [
        (PRE_PROMOTE.line, ["/usr/local/bin/resolver-agent"]),
        ("resolver-agent --socket /run/resolver-agent pre-promote", ["resolver-agent"]),
        (
            "'/opt/a' -m resolver_agent.cli pre-promote; \"/b/resolver-agent\" pre-promote",
            ["resolver_agent.cli", "/b/resolver-agent"],
        ),
        ("resolver-agent status; echo pre-promote", []),
        ("resolver-agent before-stop || resolver-agent xpre-promote", []),
        ("resolver-agent status pre-promote pre-promote x/resolver-agent y", ["resolver-agent"]),
    ],
)
def test_calls(text: str, programs: list[str]) -> None:
    """A call is a program of ours with the hook's word after it, in the same command."""
    assert PRE_PROMOTE.calls(text) == programs


def test_a_script_that_names_us_very_often() -> None:
    """The longest script that is read takes no longer than others, whatever is in it."""
    begun = time.thread_time()
    assert PRE_PROMOTE.calls((f"{'a' * 150}resolver-agent " * 400)[: 1 << 16]) == []
    assert time.thread_time() - begun < 1
