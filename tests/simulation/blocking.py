"""Code of the program that blocks a thread, in virtual time: each such call is a real thread, and only one ever runs.

It runs until it would sleep or wait. Then the world goes on, and comes back to it when that is over.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tests.simulation.process import Process


class KilledError(BaseException):
    """The process was killed: its threads do nothing more."""


class Worker:
    """One thread of a simulated process. ``current`` is the one that runs now."""

    current: ClassVar[Worker]

    def __init__(self, process: Process, function: Callable[[], Any]) -> None:
        self.process = process
        self.future: asyncio.Future[Any] = process.loop.create_future()
        self._function = function
        self._go_on, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._turn = 0
        self._is_over = self.is_killed = False
        threading.Thread(target=self._run, daemon=True).start()
        process.call_after(0.0, self.resume, 0)

    def resume(self, turn: int) -> None:
        """Go on, if this was not done yet since it paused for this turn."""
        if self._is_over or turn != self._turn:
            return
        self._turn += 1
        Worker.current = self
        self._go_on.release()
        self._paused.acquire()

    def pause(self, seconds: float, event: Event | None = None) -> None:
        """Let time pass in this thread, or wait until the event is set."""
        if self.is_killed:
            raise KilledError
        turn = self._turn
        self.process.call_after(seconds, self.resume, turn)
        if event is not None:
            event.waiting.append((self, turn))
        self._paused.release()
        self._go_on.acquire()
        if self.is_killed:
            raise KilledError

    def kill(self) -> None:
        """End it."""
        self.is_killed = True
        self.resume(self._turn)

    def _run(self) -> None:
        self._go_on.acquire()
        result: Any = None
        failure: BaseException | None = None
        try:
            if not self.is_killed:
                result = self._function()
        except BaseException as caught:  # noqa: BLE001 -- it is raised where the future is awaited
            failure = caught
        if not self.is_killed:
            self.process.call_after(0.0005, self._settle, result, failure)
        self._is_over = True
        self._paused.release()

    def _settle(self, result: Any, failure: BaseException | None) -> None:
        if self.future.done():
            return
        if failure is not None:
            self.future.set_exception(failure)
        else:
            self.future.set_result(result)


class Event:
    """Stands for ``threading.Event`` where a ``Worker`` waits for it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Worker, int]] = []
        self._is_set = False

    def is_set(self) -> bool:
        """Report whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake who waits."""
        self._is_set = True
        waiting, self.waiting = self.waiting, []
        for worker, turn in waiting:
            worker.process.call_after(0.0, worker.resume, turn)

    def wait(self, timeout: float) -> bool:
        """Wait in a thread until it is set, or for so long."""
        if not self._is_set:
            Worker.current.pause(timeout, self)
        return self._is_set
