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
