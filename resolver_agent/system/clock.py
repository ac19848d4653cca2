"""The clocks that all times are measured with."""

from __future__ import annotations

import time


def boottime() -> float:
    """Return the seconds since boot, including suspended time: observations grow old while a host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Deadline:
    """A deadline ``timeout_s`` seconds after its creation, on ``time.monotonic``."""

    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the seconds left, always more than 0: ``socket.settimeout`` takes 0 for non-blocking.

        Raises:
            TimeoutError: none are left.
        """
        left_s = self._at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s
