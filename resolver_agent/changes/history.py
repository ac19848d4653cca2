"""Keeps the last changes of names, in memory and in a file. They are told from, and never decided on."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from resolver_agent.changes import history_file
from resolver_agent.changes.history_file import KEPT
from resolver_agent.routing.state import Alert, AlertCode
from resolver_agent.system import threads
from resolver_agent.system.foreign import plain
from resolver_agent.system.pacing import backoff_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from resolver_agent.changes.change import Change

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_LINES_MAX = 2 * KEPT
"""How many lines the file may have before it is written anew."""

_FIRST_RETRY_S, _RETRY_MAX_S = 1.0, 60.0
_HUNG_S = 5.0


class History:
    """The last changes, in memory and in the file. Only a task of its own, begun by ``start()``, waits for the disk."""

    def __init__(self, path: str) -> None:
        self.alert: Alert | None = None
        self._path = path
        self._changes: dict[tuple[str, str, str | None], Change] = {}
        self._latest: dict[str, Change] = {}
        self._unsaved: list[Change] = []
        self._lines = 0
        self._loaded = False
        self._whole = False
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Read the file, and save to it from now on."""
        self._news.set()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def put(self, one: Change) -> None:
        """Add a change, or replace it by one that says more."""
        self._remember(one)
        self._unsaved.append(one)
        if len(self._unsaved) > KEPT:  # the disk does not answer; what is in memory is written whole once it does
            self._unsaved, self._whole = [], True
        self._idle.clear()
        self._news.set()

    def since(self, name: str, address: str) -> str | None:
        """Return when a name was given its address, to the second (RFC 3339); None where that is not known."""
        latest = self._latest.get(name)
        if latest is None or latest.new != address:
            return None
        return dt.datetime.fromisoformat(latest.time).astimezone().isoformat(timespec="seconds")

    async def close(self, *, within_s: float) -> None:
        """Stop, once everything is saved, or after so many seconds."""
        if self._task is None:
            return
        if self.alert is None:
            idle = asyncio.ensure_future(self._idle.wait())
            await asyncio.wait({idle, self._task}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
        self._task.cancel()

    def _remember(self, one: Change) -> None:
        latest = self._latest.get(one.name)
        if one.key not in self._changes or (latest is not None and latest.key == one.key):
            self._latest[one.name] = one
        self._changes[one.key] = one
        if len(self._changes) > KEPT:
            oldest = self._changes.pop(next(iter(self._changes)))
            if self._latest[oldest.name].key == oldest.key:
                del self._latest[oldest.name]

    async def _keep(self) -> None:
        """Save what is new. A failure is an alert, costs a while, and is tried again."""
        failures = 0
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._save()
            except Exception as error:  # noqa: BLE001 -- whatever it is, the names have to be kept
                if not isinstance(error, OSError) and self.alert is None:
                    _log.error("the history of changes cannot be saved", exc_info=error)
                words = str(error) if isinstance(error, OSError) else repr(error)
                self._report(words)
                self._whole = True
                failures += 1
                await asyncio.sleep(backoff_s(failures, first_s=_FIRST_RETRY_S, max_s=_RETRY_MAX_S))
                self._news.set()
            else:
                self.alert, failures = None, 0
                if not self._news.is_set():
                    self._idle.set()

    async def _save(self) -> None:
        if not self._loaded:
            await self._load()
        unsaved, self._unsaved = self._unsaved, []
        if self._whole or self._lines + len(unsaved) > _LINES_MAX:
            kept, self._whole = list(self._changes.values()), False
            await self._call(history_file.write, kept)
            self._lines = len(kept)
        else:  # at the start nothing is added, which shows whether the file can be written
            await self._call(history_file.append, unsaved)
            self._lines += len(unsaved)

    async def _load(self) -> None:
        found, self._lines, is_whole = await self._call(history_file.read)
        # Changes made meanwhile are the later ones.
        new, self._changes, self._latest = list(self._changes.values()), {}, {}
        for one in [*found, *new]:
            self._remember(one)
        self._whole = self._whole or not is_whole
        self._loaded = True

    async def _call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function of the file in a thread. One that takes long goes on, and is an alert."""
        call = threads.start(function, self._path, *arguments)
        await asyncio.wait({call}, timeout=_HUNG_S)
        if not call.done():
            self._report(f"{self._path}: the disk does not answer")
        return await call

    def _report(self, fault: str) -> None:
        text = f"{plain(fault)}; the history of changes is kept in memory alone"
        self.alert = Alert(AlertCode.STATE, text, of=("history",))
