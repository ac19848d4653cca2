"""Blocking calls off the event loop, in daemon threads: a call that hangs must not delay the end of the process.

``asyncio.to_thread`` waits for its threads at exit, and a few hung name lookups could delay file writes.
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
    """Return what ``function`` returns, or raise what it raises. After a cancellation the call goes on unnoticed."""
    return await start(function, *arguments)


def start(function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
    """Begin a call, and return a future of its result: not a task, so no task is left over when the loop ends."""
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

    threading.Thread(target=run, daemon=True).start()
    return future
