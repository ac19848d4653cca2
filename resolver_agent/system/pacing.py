"""How often to ask, and whose turn it is: values, and things to wait for. What is asked is the watchers' to know."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UNSETTLED_S = 0.02
"""The interval between probes of a group without exactly one primary."""

_HASTE_S = 60.0
"""How long an unsettled group is probed that often, before it backs off to the configured interval."""


def backoff_s(failures: float, *, first_s: float, max_s: float) -> float:
    """Return the seconds to wait after so many failures in a row: ``first_s`` after one, doubled with each more."""
    return min(max_s, first_s * math.pow(2, min(failures - 1, 16)))


def unsettled_delay_s(age_s: float, *, interval_s: float) -> float:
    """Return the seconds until the next probe of a group that has been unsettled for ``age_s`` seconds."""
    return backoff_s(1 + max(0.0, age_s - _HASTE_S) / 10, first_s=UNSETTLED_S, max_s=interval_s)


class Wakeup:
    """Lets one task wait for a while, or until somebody wakes it."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        """End the wait, or the next one where nobody waits."""
        self._is_set = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Wait for so many seconds, or until it is set."""
        if not self._is_set:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(seconds, self.set)
            try:
                await self._waiting
            finally:
                timer.cancel()
        self._is_set = False


class TokenBucket:
    """Limits what all groups together may do, in turn: so many tokens a second, and what each thing costs.

    Waiters of one cost are served in the order they came; those of different costs share the tokens equally, so that
    many dear reconnects to a lost site do not keep the cheap probes of the others waiting.
    """

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled_at = 0.0
        self._waiting: dict[int, collections.deque[asyncio.Future[None]]] = {}
        self._spent: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, cost: int) -> None:
        """Wait until ``cost`` tokens are there, which may be no more than the burst, and take them."""
        queue = self._waiting.setdefault(cost, collections.deque())
        if not queue:
            # Whoever was idle does not come back with a claim on all that the others spent meanwhile.
            busy = [self._spent[other] for other, waiters in self._waiting.items() if waiters]
            self._spent[cost] = max(self._spent.get(cost, 0.0), min(busy, default=0.0))
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._serve()
        await turn

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        while (cost := self._next()) is not None and self._tokens >= cost:
            turn = self._waiting[cost].popleft()
            if not turn.done():  # else its waiter was cancelled
                self._tokens -= cost
                self._spent[cost] += cost
                turn.set_result(None)
        if cost is not None and self._timer is None:
            self._timer = loop.call_later((cost - self._tokens) / self._rate, self._wake)

    def _next(self) -> int | None:
        return min((cost for cost, queue in self._waiting.items() if queue), key=self._spent.__getitem__, default=None)

    def _wake(self) -> None:
        self._timer = None
        self._serve()


class ConnectSlots:
    """Lets so many in side by side. Whoever stays longer than ``patience_s`` seconds gives its place to the next."""

    def __init__(self, places: int, *, patience_s: float) -> None:
        self._free = asyncio.Semaphore(places)
        self._patience_s = patience_s

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it inside the context, or for ``patience_s``."""
        await self._free.acquire()
        with contextlib.ExitStack() as place:  # closed twice it does nothing more
            place.callback(self._free.release)
            asyncio.get_running_loop().call_later(self._patience_s, place.close)
            yield
