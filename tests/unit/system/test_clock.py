"""Deadlines."""

from __future__ import annotations

import pytest

from resolver_agent.system.clock import Deadline


def test_a_deadline_tells_what_is_left_of_it() -> None:
    """Each wait gets the time that the waits before it have left."""
    deadline = Deadline(60)
    first_s = deadline.left_s()
    assert 50 < deadline.left_s() <= first_s <= 60


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_a_deadline_that_has_passed_is_a_timeout(timeout_s: float) -> None:
    """A socket would take 0 for "do not block", and refuse a negative timeout."""
    with pytest.raises(TimeoutError):
        Deadline(timeout_s).left_s()
