"""The clock by which everything is timed."""

from __future__ import annotations

import time


def boottime() -> float:
    """Return the seconds since boot, time in suspension included: observations grow old while a host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
