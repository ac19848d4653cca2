"""A hundred thousand failovers around the pure core of the program: no rule is broken in any of them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.simulation.campaign import worlds
from tests.simulation.core.simulate import run
from tests.simulation.mutations import CORE, checked
from tests.simulation.simulate import tell_shortest

WORLDS, FAILOVERS = 1950, 100_000


def test_no_rule_is_broken() -> None:
    """Names are as the rules say, whatever happens to servers, Patroni and the agent."""
    failovers = 0
    for ended in worlds(0, WORLDS, jobs=os.cpu_count() or 1, of_core=True):
        if ended.broken is not None:
            pytest.fail(tell_shortest(run(ended.seed), run))
        failovers += ended.failovers
    assert failovers > FAILOVERS


def test_a_seed_repeats() -> None:
    """The same seed gives the same story to the last line."""
    one, other = run(7, is_told=True), run(7, is_told=True)
    assert one == other
    assert len(one.story) > 20


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Return what each mutation breaks."""
    return checked("--core")


@pytest.mark.parametrize("name", CORE)
def test_a_mutation_is_found(found: dict[str, Any], name: str) -> None:
    """A small world breaks a rule because of it; the worlds of these seeds break none without it."""
    assert found[name] is not None
    assert CORE[name] < WORLDS
