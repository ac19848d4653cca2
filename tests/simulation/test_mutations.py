"""The simulation finds defects: each mutation of the program breaks a rule in the world that is known for it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.mutations import MUTATIONS, checked

LEAST = 60
"""So many mutations have to be found."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Return what each mutation breaks."""
    return checked()


@pytest.mark.parametrize("name", [one.name for one in MUTATIONS])
def test_a_mutation_is_found(found: dict[str, Any], name: str) -> None:
    """A world breaks a rule because of it."""
    assert found[name] is not None


def test_there_are_enough() -> None:
    """The list is long, and has no name twice."""
    assert len({one.name for one in MUTATIONS}) == len(MUTATIONS) >= LEAST
