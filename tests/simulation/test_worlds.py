"""Many worlds with the faults of their seeds: no rule is broken in any of them."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import WORLDS
from tests.simulation.simulate import run, tell_shortest

BLOCK = 20


@pytest.mark.parametrize("first", range(0, WORLDS, BLOCK))
def test_no_rule_is_broken(first: int) -> None:
    """Names, clients and promotions are as the rules say, whatever happens."""
    failovers = 0
    for seed in range(first, first + BLOCK):
        result = run(seed)
        if result.broken is not None:
            pytest.fail(tell_shortest(result))
        failovers += result.failovers
    assert failovers > BLOCK


def test_a_seed_repeats() -> None:
    """The same seed gives the same story to the last line."""
    one, other = run(7, is_told=True), run(7, is_told=True)
    assert one == other
    assert len(one.story) > 20
