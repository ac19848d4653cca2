"""Calls off the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from resolver_agent.system import threads


def test_a_call_runs_off_the_loop_and_returns_its_result() -> None:
    """The loop goes on while the call blocks, and gets its result."""
    released = threading.Event()

    def blocked() -> str:
        assert released.wait(10)
        return "done"

    async def main() -> str:
        asyncio.get_running_loop().call_soon(released.set)
        return await threads.call(blocked)

    assert asyncio.run(main()) == "done"


def test_what_a_call_raises_is_raised_where_it_is_awaited() -> None:
    """An exception is passed from the thread to the loop."""

    def refuse() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(threads.call(refuse))


def test_no_thread_is_an_error_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, the call fails like one whose thread failed, and nothing is raised before."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> BaseException | None:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        return threads.start(str).exception()

    error = asyncio.run(main())
    assert isinstance(error, threads.NoThreadError)
    assert "can't start new thread" in str(error)


def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    """A process ends even while one of its calls never returns."""
    script = """
import asyncio, threading
from resolver_agent.system import threads

async def main():
    try:
        await asyncio.wait_for(threads.call(threading.Event().wait), 0.01)
    except asyncio.TimeoutError:
        print("given up")

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert ended.stdout == "given up\n"
