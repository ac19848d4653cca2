"""Blocking calls off the event loop, in daemon threads: a call that hangs must not delay the end of the process.

``asyncio.to_thread`` waits for its threads at exit, and a few hung name lookups could delay file writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class NoThreadError(OSError):
    """No thread can be started now: the system is short of something."""


async def call(function: Callable[..., _T], *arguments: Any) -> _T:
    """Return what ``function`` returns, or raise what it raises. After a cancellation the call goes on unnoticed."""
    return await start(function, *arguments)


def start(function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
    """Begin a call, and return a future of its result: not a task, so no task is left over when the loop ends.

    Where no thread can be started the future has a ``NoThreadError``.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # without an error it is what the function returned

    def run() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as caught:  # noqa: BLE001 -- it is raised where the future is awaited
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed, and no task waits for the result
            loop.call_soon_threadsafe(settle, result, error)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError as error:
        future.set_exception(NoThreadError(errno.EAGAIN, str(error)))
    return future


class BackgroundCall:
    """One blocking call at a time, in a thread: begun in one round of the loop, its result taken in a later one.

    ``changed`` is set when the call has ended. A call that hangs delays only the next call.
    """

    def __init__(self, changed: asyncio.Event) -> None:
        self._changed = changed
        self._call: asyncio.Future[Any] | None = None

    @property
    def under_way(self) -> bool:
        """Whether a call is running."""
        return self._call is not None and not self._call.done()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call; the result of one that has not been taken is given up."""
        self._call = start(function, *arguments)
        self._call.add_done_callback(self._end)

    def _end(self, call: asyncio.Future[Any]) -> None:
        call.exception()  # asyncio would log that of a call that nobody takes any more
        self._changed.set()

    def take(self) -> asyncio.Future[Any] | None:
        """Return the call if it has ended, once; else None."""
        if self._call is None or not self._call.done():
            return None
        ended, self._call = self._call, None
        return ended
