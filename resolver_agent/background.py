"""Blocking calls off the event loop, in daemon threads: a call that hangs must not hold up the end of the process.

``asyncio.to_thread`` waits for its threads at exit, and lets a few hung name lookups keep file writes waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


async def call(function: Callable[..., _T], *arguments: Any) -> _T:
    """Return what ``function`` returns, or raise what it raises. Cancelled, the call goes on and nobody hears of it."""
    return await start(function, *arguments)


def start(function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
    """Begin a call, and return the future of what comes of it: no task, so that nothing is left to wait for."""
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
        except BaseException as caught:  # noqa: BLE001 -- it is raised where it is awaited
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Errand:
    """One blocking call at a time, begun in one round of a loop and heard of in a later one.

    ``changed`` is set when it has ended. A call that hangs hinders nobody but the next one.
    """

    def __init__(self, changed: asyncio.Event) -> None:
        self._changed = changed
        self._call: asyncio.Future[Any] | None = None

    @property
    def under_way(self) -> bool:
        """Whether a call has been begun and has not ended."""
        return self._call is not None and not self._call.done()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call; none may be under way."""
        self._call = start(function, *arguments)
        self._call.add_done_callback(lambda _: self._changed.set())

    def take(self) -> asyncio.Future[Any] | None:
        """Return the call that has ended, once."""
        if self._call is None or not self._call.done():
            return None
        ended, self._call = self._call, None
        return ended
