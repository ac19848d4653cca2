"""How what has no event of its own is waited for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.02


def wait_while(fault: Callable[[], object], *, timeout_s: float) -> None:
    """Wait until nothing is wrong any more, and fail with what was the last thing that was."""
    deadline = time.monotonic() + timeout_s
    while found := fault():
        assert time.monotonic() < deadline, found
        time.sleep(_POLL_S)
