"""A hundred thousand failovers around the pure core of the program: no rule is broken in any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.campaign import worlds
from tests.simulation.core.simulate import run
from tests.simulation.mutations import CORE
from tests.simulation.simulate import shrink

WORLDS, FAILOVERS = 1950, 100_000


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


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Return what each mutation breaks, found in a process of its own: the mutations change the program."""
    command = [sys.executable, "-m", "tests.simulation.mutations", "--core", "--check"]
    output = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output))


@pytest.mark.parametrize("name", CORE)
def test_a_mutation_is_found(found: dict[str, Any], name: str) -> None:
    """A small world breaks a rule because of it; the worlds of these seeds break none without it."""
    assert found[name] is not None
    assert CORE[name] < WORLDS
