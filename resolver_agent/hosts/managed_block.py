"""Keeps the block of the real hosts file as decided: writes it, puts back foreign changes, and raises alerts.

``block`` makes the text, and ``atomic_file`` writes the file.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from typing import TYPE_CHECKING

from resolver_agent.hosts import block
from resolver_agent.hosts.atomic_file import HostsFileError, HostsFileWriter, Outcome, Snapshot, State
from resolver_agent.routing.state import Alert, AlertCode
from resolver_agent.system import threads
from resolver_agent.system.pacing import backoff_s

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from resolver_agent.routing.state import Target

_log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.2
_FAILED_MAX_S, _TRAMPLED_MAX_S = 1.0, 30.0
"""How soon a write is tried again at the latest: one that failed, and one that another program undoes each time."""

_TOLERATED = 3
"""How many changes by another program in a row are put back at once; later ones wait longer and longer."""

_QUIET_S = 60.0
"""After this time without a change by another program the count starts again."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Write:
    """A write in a thread; ``repeats`` if it wants what was wanted before, so that it restores what others changed."""

    result: asyncio.Future[tuple[Outcome, tuple[block.Conflict, ...]]]
    repeats: bool


class HostsBlock:
    """The managed block on disk.

    ``trampled`` counts how often another program changed it, ``writes`` how often it was written, and ``failures`` how
    often the file could not be read or written. ``found_age_s`` is how old the file was when its block was recalled, by
    the wall clock.
    """

    def __init__(self, path: str) -> None:
        self.trampled = self.writes = self.failures = 0
        self.found_age_s = 0.0
        self._path = path
        self._writer = HostsFileWriter(path)
        self._on_disk: Snapshot | None = None
        self._wanted: tuple[Target, ...] = ()
        self._done = False
        self._not_before = 0.0
        self._failures = 0
        self._in_a_row = 0
        self._trampled_at = 0.0
        self._fault: Alert | None = None
        self._write: _Write | None = None
        self._slow: Alert | None = None
        self._searched: tuple[bytes, frozenset[str], tuple[block.Conflict, ...]] | None = None
        self._found: tuple[Alert, ...] = ()

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """What is wrong with the file now."""
        often = (
            f"{self._path}: somebody else keeps changing resolver-agent's lines; "
            f"they are put back at growing intervals, up to {_TRAMPLED_MAX_S:g} s"
        )
        return (
            *[fault for fault in (self._slow or self._fault,) if fault is not None],
            *([Alert(AlertCode.TRAMPLED, often, of=("file",))] if self._in_a_row > _TOLERATED else []),
            *self._found,
        )

    async def recall(self, names: Collection[str]) -> tuple[Target, ...] | None:
        """Remove what a killed agent left, and return what the block remembers; None, with an alert, if that fails.

        ``names`` are those of the configuration.
        """
        try:
            swept = await threads.call(self._writer.sweep)
            remembered, self.found_age_s = await threads.call(self._recall, names)
        except (HostsFileError, block.BlockError) as error:
            self._fault = self._refused(error, "the agent does nothing until that is fixed")
            self.failures += 1
            return None
        self._fault = None
        if swept:
            _log.info("removed what a killed agent left behind: %s", ", ".join(swept))
        for target in remembered:
            if target.reason == block.COMMENT_LOST:
                _log.warning("%s: %s", self._path, target)
        return remembered

    def _recall(self, names: Collection[str]) -> tuple[tuple[Target, ...], float]:
        found = self._writer.read_settled()
        written_s = found.signature[3] / 1e9 if found.signature is not None else time.time()
        return block.recall(found.content, names), max(0.0, time.time() - written_s)

    def disturbed(self) -> bool:
        """Report whether the file is not as this agent left it, at the cost of one system call."""
        if self._on_disk is None:
            return True
        try:
            return self._writer.signature() != self._on_disk.signature
        except HostsFileError:
            return True

    def says(self, targets: Sequence[Target]) -> bool:
        """Report whether the file has ``targets``, as last seen; False while it is being written."""
        return self._done and self._wanted == tuple(targets)

    async def put(self, targets: Sequence[Target], now: float, *, within_s: float = 1.0) -> bool:
        """Write ``targets`` to the file, and report whether it has them. A failure is an alert and is retried later.

        A write that takes longer than ``within_s`` (a disk that does not answer) goes on: it is an alert, and the next
        ``put()`` waits for it. So there is never a second write beside it.
        """
        self._done = False
        try:
            self._done = await self._put(tuple(targets), now, within_s)
        except BaseException:
            self._on_disk = None  # it is not known what the file has: the next call writes again
            raise
        return self._done

    async def _put(self, wanted: tuple[Target, ...], now: float, within_s: float) -> bool:
        if self._write is not None and not await self._finished(self._write, now, within_s):
            return False
        news = wanted != self._wanted or self._on_disk is None
        if not news and self._fault is None and not self.disturbed():
            if now - self._trampled_at > _QUIET_S:
                self._in_a_row = 0
            return True
        if wanted == self._wanted and now < self._not_before:
            return False
        self._wanted = wanted
        self._write = _Write(threads.start(self._update, wanted), repeats=not news and self._fault is None)
        return await self._finished(self._write, now, within_s) and self._fault is None

    async def _finished(self, write: _Write, now: float, within_s: float) -> bool:
        """Wait for a write and take its result; False if it is still under way."""
        await asyncio.wait({write.result}, timeout=within_s)
        if not write.result.done():
            text = (
                f"{self._path} is still being written: its disk does not answer; the names stay as they were until then"
            )
            self._slow = Alert(AlertCode.FILE, text)
            return False
        self._write = self._slow = None
        try:
            outcome, conflicts = write.result.result()
        except (HostsFileError, ValueError) as error:
            self._fault = self._refused(error, "it stays as it is")
            self.failures += 1
            self._failures += 1
            self._not_before = now + backoff_s(self._failures, first_s=_FIRST_RETRY_S, max_s=_FAILED_MAX_S)  # A11
            return True
        self.writes += outcome.state is not State.UNCHANGED
        if write.repeats and outcome.state is not State.UNCHANGED:
            self._trample(now)
        self._fault = None
        self._failures = 0
        self._on_disk = outcome.snapshot
        self._found = (*self._notes(outcome), *(self._conflict(found) for found in conflicts))
        return True

    def _update(self, wanted: tuple[Target, ...]) -> tuple[Outcome, tuple[block.Conflict, ...]]:
        outcome = self._writer.update(lambda found: block.render(found, wanted))
        content, names = outcome.snapshot.content, frozenset(target.name for target in wanted)
        outside = block.outside(content)
        if self._searched is None or self._searched[:2] != (outside, names):
            self._searched = (outside, names, block.conflicts(content, names))
        return outcome, self._searched[2]

    def _refused(self, error: Exception, consequence: str) -> Alert:
        where = "" if isinstance(error, HostsFileError) else f"{self._path}: "
        return Alert(AlertCode.FILE, f"{where}{error}; {consequence}")

    def _trample(self, now: float) -> None:
        self.trampled += 1
        self._in_a_row += 1
        self._trampled_at = now
        if self._in_a_row > _TOLERATED:
            wait_s = backoff_s(self._in_a_row - _TOLERATED, first_s=_FIRST_RETRY_S, max_s=_TRAMPLED_MAX_S)
            self._not_before = now + wait_s
        else:
            _log.warning("%s: somebody else changed resolver-agent's lines; they are put back", self._path)

    def _notes(self, outcome: Outcome) -> list[Alert]:
        """Return the alert about how the file was written, if an operator should know."""
        if outcome.state is State.UNCHANGED:
            return [alert for alert in self._found if alert.code is AlertCode.NOTE]
        if not outcome.detail:
            return []
        return [Alert(AlertCode.NOTE, f"{self._path}: {outcome.detail}", of=("file",))]

    def _conflict(self, found: block.Conflict) -> Alert:
        return Alert(AlertCode.CONFLICT, f"{self._path}: {found.fault}: {found.fix}", of=(found.name, found.text))
