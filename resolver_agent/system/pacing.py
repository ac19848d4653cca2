"""How often to probe and who is next: back-off, wakeups, a token bucket and slots for connections."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
from typing import TYPE_CHECKING

from resolver_agent.system.clock import boottime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UNSETTLED_S = 0.02
"""The interval between probes of a group without exactly one primary."""

_HASTE_S = 60.0
"""How long an unsettled group is probed that often, before it backs off to the configured interval."""


def backoff_s(failures: float, *, first_s: float, max_s: float) -> float:
    """Return the seconds to wait after so many failures in a row: ``first_s`` after one, doubled for each more."""
    return min(max_s, first_s * math.pow(2, min(failures - 1, 16)))


def unsettled_delay_s(age_s: float, *, interval_s: float) -> float:
    """Return the seconds until the next probe of a group that has been unsettled for ``age_s`` seconds."""
    return backoff_s(1 + max(0.0, age_s - _HASTE_S) / 10, first_s=UNSETTLED_S, max_s=interval_s)


class News(asyncio.Event):
    """An event that knows when it was first set since it was last cleared: ``since``, seconds of CLOCK_BOOTTIME."""

    since = 0.0

    def set(self) -> None:
        """Wake those who wait."""
        if not self.is_set():
            self.since = boottime()
        super().set()


class Wakeup:
    """Lets one task wait for some time, or until another calls ``set()``."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        """End the wait, or the next one if no task is waiting."""
        self._is_set = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Wait for so many seconds, or until ``set()`` is called."""
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
    """Limits the probes of all groups together: ``rate`` tokens a second, and a cost for each kind of work.

    Waiters of the same cost are served in order. Different costs share the tokens equally, so many expensive reconnects
    to a lost site do not delay the cheap probes of other nodes.
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
        """Wait until ``cost`` tokens are available, and take them; ``cost`` must not exceed the burst."""
        queue = self._waiting.setdefault(cost, collections.deque())
        if not queue:
            # A cost that was idle gets no credit for what the others spent meanwhile.
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
            if not turn.done():  # otherwise its waiter was cancelled
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
    """Limits how many tasks connect at a time. A task that takes longer than ``patience_s`` no longer counts."""

    def __init__(self, places: int, *, patience_s: float) -> None:
        self._free = asyncio.Semaphore(places)
        self._patience_s = patience_s

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it inside the context, or for ``patience_s``."""
        await self._free.acquire()
        with contextlib.ExitStack() as place:  # closing it a second time does nothing
            place.callback(self._free.release)
            asyncio.get_running_loop().call_later(self._patience_s, place.close)
            yield
