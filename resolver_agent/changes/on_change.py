"""Runs the operator's command for changes of names. Nothing waits for it, and it is run once at a time."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import threading
from typing import TYPE_CHECKING

from resolver_agent.routing.state import Alert, AlertCode
from resolver_agent.system import command, threads
from resolver_agent.system.foreign import plain, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from resolver_agent.changes.change import Change
    from resolver_agent.config.model import OnChange
    from resolver_agent.system.command import Ended

_log = logging.getLogger(__name__)

_AT_ONCE = 50
"""How many changes one run is told at most: the kernel takes 128 KiB as one variable."""

_WAITING_MAX = 1000
_GRACE_S = 2.0
"""How long after its time limit a command must have ended: killing it takes a moment."""

_CLOSE_S = 0.5
_NAMED = 3
_SYSTEMDS = ("LISTEN_", "NOTIFY_", "WATCHDOG_")
"""Variables by which systemd speaks with the agent alone."""


class ChangeCommand:
    """Tells changes to the command, from ``start()`` to ``close()``. Those that come during a run wait for the next."""

    def __init__(self) -> None:
        self.alert: Alert | None = None
        self._config: OnChange | None = None
        self._waiting: collections.deque[Change] = collections.deque()
        self._dropped = 0
        self._news = asyncio.Event()
        self._stop = threading.Event()
        self._call: asyncio.Future[Ended] | None = None
        self._task: asyncio.Task[None] | None = None

    def configure(self, config: OnChange | None) -> None:
        """Run another command from now on, or none. What failed before may work now."""
        if config != self._config:
            self._config, self.alert = config, None
        if config is None:
            self._waiting.clear()
            self._dropped = 0

    def start(self) -> None:
        """Begin to run it."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def put(self, change: Change) -> None:
        """Tell a change. Where too many wait, the oldest is dropped, which is an alert until a later change is told."""
        if self._config is None:
            return
        if len(self._waiting) >= _WAITING_MAX:
            if not self._dropped:
                _log.warning("on_change: more than %d changes wait, and the oldest are not told", _WAITING_MAX)
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(change)
        self._news.set()

    async def close(self) -> None:
        """Kill the command if it runs, and stop."""
        self._stop.set()
        if self._call is not None and not self._call.done():
            await asyncio.wait({self._call}, timeout=_CLOSE_S)
        if self._task is not None:
            self._task.cancel()

    async def _keep(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting and self._config is not None and not self._stop.is_set():
                some = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
                try:
                    await self._run(self._config, some)
                except Exception as error:  # noqa: BLE001 -- whatever it is, the names have to be kept
                    if not isinstance(error, OSError) and self.alert is None:
                        _log.error("the command at a change cannot be run", exc_info=error)
                    words = error.strerror if isinstance(error, OSError) else repr(error)
                    self._report(self._config, some, f"cannot be run: {plain(str(words))}")
            self._dropped = 0

    async def _run(self, config: OnChange, changes: Sequence[Change]) -> None:
        """Run the command once.

        Raises:
            OSError: it cannot be started.
        """

        def run() -> Ended:
            env = environment(changes, os.environ)
            return command.run(config.command, env=env, timeout_s=config.timeout_s, stop=self._stop)

        self._call = threads.start(run)
        await asyncio.wait({self._call}, timeout=config.timeout_s + _GRACE_S)
        if not self._call.done():
            self._report(config, changes, f"has neither ended nor been killed after {config.timeout_s + _GRACE_S:g} s")
        ended = await self._call
        faults = []
        if ended.code is None:
            faults.append(f"was killed after {config.timeout_s:g} s")
        elif ended.code:
            faults.append(f"ended with {f'exit code {ended.code}' if ended.code > 0 else f'signal {-ended.code}'}")
        if self._dropped:
            faults.append(f"was not told {self._dropped} changes, as more than {_WAITING_MAX} waited")
        if not faults:
            self.alert = None
            return
        fault = " and ".join(faults)
        self._report(config, changes, f"{fault}: {plain(ended.said)}" if ended.said.strip() else fault)

    def _report(self, config: OnChange, changes: Sequence[Change], fault: str) -> None:
        if config is not self._config:  # it has been replaced meanwhile
            return
        names = [one.name for one in changes[:_NAMED]]
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        program = plain(config.command[0])
        self.alert = Alert(
            AlertCode.ON_CHANGE, f"on_change: {program} {fault}; it was run for {', '.join(names)}{more}"
        )


def environment(changes: Sequence[Change], base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run: that of the agent, and a variable for each part of the changes.

    With several changes each variable has a line for each, in the same order; so one change is a plain value.
    """
    env = {name: value for name, value in base.items() if not name.startswith(_SYSTEMDS)}
    data = [change.as_json() for change in changes]
    for key in data[0]:
        values = ["" if one[key] is None else str(one[key]) for one in data]
        env[f"RESOLVER_AGENT_{key.upper()}"] = "\n".join(values)
    return env | {"RESOLVER_AGENT_CHANGES": to_json(data)}
