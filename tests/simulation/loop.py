"""Virtual time: one queue of events for a whole world, and an event loop of asyncio for each process in it.

Nothing here sleeps. Time jumps to the next event, so a minute of a calm cluster costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Coroutine


_MANY = 200


class Scheduler:
    """All events of one world, in the order of their time; events of the same time are in the order of their making."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.events = 0
        self._heap: list[tuple[float, int, ProcessLoop | None, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0
        self._is_over = False

    def at(self, when: float, call: Callable[..., Any], *arguments: Any, of: ProcessLoop | None = None) -> None:
        """Call something at a time; ``of`` is the process that does it."""
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, of, call, arguments))

    def after(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> None:
        """Call something after some time."""
        self.at(self.now + seconds, call, *arguments)

    def end(self) -> None:
        """Do no more."""
        self._is_over = True

    def run(self, until: float) -> None:
        """Do everything up to a time."""
        heap = self._heap
        before = asyncio._get_running_loop()
        try:
            while heap and heap[0][0] <= until and not self._is_over:
                when, _, process, call, arguments = heapq.heappop(heap)
                self.now = when
                self.events += 1
                if process is None:
                    asyncio._set_running_loop(None)
                    call(*arguments)
                elif process.is_dead:
                    continue
                elif process.is_stopped:
                    process.backlog.append((call, arguments))
                else:
                    asyncio._set_running_loop(process)
                    call(*arguments)
        finally:
            asyncio._set_running_loop(before)
        if not self._is_over:
            self.now = max(self.now, until)


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one process, which can be stopped (SIGSTOP) or killed at any event."""

    def __init__(self, scheduler: Scheduler, *, disk_is_slow: Callable[[], bool]) -> None:
        self.scheduler = scheduler
        self.disk_is_slow = disk_is_slow
        self.is_dead = self.is_stopped = False
        self.backlog: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.defects: list[str] = []
        self._coroutines: list[Coroutine[Any, Any, Any]] = []

    def kill(self) -> None:
        """End it: nothing of it happens any more."""
        self.is_dead = True
        coroutines, self._coroutines = self._coroutines, []
        for one in reversed(coroutines):
            with contextlib.suppress(Exception):  # what it would still do in the end is not done by a killed process
                one.close()

    def go_on(self) -> None:
        """Do what was due while the process was stopped."""
        self.is_stopped = False
        backlog, self.backlog = self.backlog, []
        for call, arguments in backlog:
            self.scheduler.at(self.scheduler.now, call, *arguments, of=self)

    # --- what asyncio needs of a loop

    def time(self) -> float:
        """Return the virtual time."""
        return self.scheduler.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Call something next."""
        handle = asyncio.Handle(callback, args, self, context)
        self.scheduler.at(self.scheduler.now, self._run, handle, of=self)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call something after some time."""
        return self.call_at(self.scheduler.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call something at a time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.scheduler.at(when, self._run, handle, of=self)
        return handle

    def _run(self, handle: asyncio.Handle) -> None:
        if not handle.cancelled():
            handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled timer is left out when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **_: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        """Begin a task."""
        self._coroutines.append(coro)
        if len(self._coroutines) > _MANY:
            self._coroutines = [
                one for one in self._coroutines if inspect.getcoroutinestate(one) != inspect.CORO_CLOSED
            ]
        return asyncio.Task(coro, loop=self)

    def get_debug(self) -> bool:
        """Say no: asyncio's checks of itself take time."""
        return False

    def is_closed(self) -> bool:
        """Say no."""
        return False

    def is_running(self) -> bool:
        """Say yes."""
        return True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what went wrong where nobody awaits it; tasks of a killed process are none of that."""
        if not self.is_dead:
            self.defects.append(f"{context.get('message')}: {context.get('exception')!r}")
