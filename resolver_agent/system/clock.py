"""The clocks by which everything is timed."""

from __future__ import annotations

import time


def boottime() -> float:
    """Return the seconds since boot, time in suspension included: observations grow old while a host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Deadline:
    """A moment ``timeout_s`` seconds after its making, on ``time.monotonic``, by which everything must be done."""

    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the seconds left; to ``socket.settimeout`` 0 would mean not to wait, and less is refused.

        Raises:
            TimeoutError: none are left.
        """
        left_s = self._at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s
