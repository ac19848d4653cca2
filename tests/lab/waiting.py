"""Waiting for conditions that have no event of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.02


def wait_while(fault: Callable[[], object], *, timeout_s: float) -> None:
    """Wait until there is no fault any more; fail with the last one."""
    deadline = time.monotonic() + timeout_s
    while found := fault():
        assert time.monotonic() < deadline, found
        time.sleep(_POLL_S)
