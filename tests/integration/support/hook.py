"""Patroni's hooks run to their end, and fake agents for them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

from resolver_agent.control import server
from resolver_agent.system import lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

WELL = {"took_ms": 42, "written": True, "flushed": True, "misrouted": [], "why": ""}
WAITED = {"waited_ms": 42, "waited_for": ["2 coordinators"], "left": 0, "why": ""}
MISROUTED = WELL | {"misrouted": ["wk1 → 10.0.0.4 (standby)"]}


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """The result of a hook that has ended."""

    code: int
    said: str
    took_s: float


def run(command: Sequence[str], **settings: Any) -> Ran:
    """Run a command to its end, as Patroni does."""
    begun = time.monotonic()
    defaults = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    ran = subprocess.run(command, check=False, **(defaults | settings))
    return Ran(ran.returncode, ran.stderr or "", time.monotonic() - begun)


@contextlib.contextmanager
def agent(path: Path, answer: dict[str, Any] | None) -> Iterator[threading.Event]:
    """Serve the socket and hold the lock; without an ``answer`` a hook waits. Yields an event: a hook has asked."""
    asked, ready, over = threading.Event(), threading.Event(), asyncio.Event()
    loops = []

    async def hook(_request: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        if answer is None:
            await over.wait()
        return answer or {}

    async def serve() -> None:
        handlers: server.Handlers = {
            **dict.fromkeys(("pre-promote", "before-stop"), hook),
            "before-stop-check": lambda _request: {"would_wait": True, "why": "it would", "names": ["wk1"]},
            "status": lambda _request: {"alerts": []},
        }
        async with server.serve(handlers, path=str(path), passed=None):
            loops.append(asyncio.get_running_loop())
            ready.set()
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    with lock.exclusive(str(path.parent), str(path.with_name("hosts"))):
        thread.start()
        assert ready.wait(5)
        try:
            yield asked
        finally:
            loops[0].call_soon_threadsafe(over.set)
            thread.join()
