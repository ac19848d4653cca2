"""A hundred thousand failovers around the pure core of the program: no rule is broken in any of them."""

from __future__ import annotations

import os

import pytest

from tests.simulation.campaign import worlds
from tests.simulation.core.simulate import run
from tests.simulation.simulate import shrink

WORLDS, FAILOVERS = 1900, 100_000


def test_no_rule_is_broken() -> None:
    """Names are as the rules say, whatever happens to servers, Patroni and the agent."""
    failovers = 0
    for ended in worlds(0, WORLDS, jobs=os.cpu_count() or 1, of_core=True):
        if ended.broken is not None:
            fewer = shrink(ended.seed, run(ended.seed).faults, run)
            story = "\n".join(run(ended.seed, fewer, is_told=True).story)
            pytest.fail(f"seed {ended.seed}: {ended.broken}\nfaults: {', '.join(map(str, fewer))}\n{story}")
        failovers += ended.failovers
    assert failovers > FAILOVERS


def test_a_seed_repeats() -> None:
    """The same seed gives the same story to the last line."""
    one, other = run(7, is_told=True), run(7, is_told=True)
    assert one == other
    assert len(one.story) > 20
