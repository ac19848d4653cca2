"""Notices every change of a name once it is in the hosts file: for metrics, the history and the operator's command.

Called in every round, and never blocks. What fails here is an alert, and changes no decision.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import logging
from typing import TYPE_CHECKING

from resolver_agent.changes.change import Change, gone, made
from resolver_agent.changes.history import History
from resolver_agent.changes.history_file import path_of
from resolver_agent.changes.on_change import ChangeCommand
from resolver_agent.system.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resolver_agent.config.model import Config
    from resolver_agent.routing.state import Alert, Target

_log = logging.getLogger(__name__)

_DELAY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_WAITING_MAX = 1000
_CLOSE_S = 0.5
_FLUSH_S = 10.0
"""How long the command waits for the flush; on a server that is down there may be nothing to flush for long."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """A change that is not flushed yet. Times are seconds of CLOCK_BOOTTIME."""

    change: Change
    seen_at: float
    written_at: float

    def flushed(self, now: float) -> Change:
        """Return the change with the time from the evidence to the end of the flush."""
        return dataclasses.replace(self.change, flushed_ms=round((now - self.seen_at) * 1000))


class Changes:
    """The changes of names, from ``start()`` to ``close()``.

    ``count`` is how often each name got another address. ``written_s`` and ``flushed_s`` are how many seconds after the
    agent saw the reason a change was on disk, and flushed where there is Citus.
    """

    def __init__(self, config: Config) -> None:
        self.count: collections.Counter[str] = collections.Counter()
        self.written_s = Histogram(*_DELAY_S)
        self.flushed_s = Histogram(*_DELAY_S)
        self._history = History(path_of(config.state_dir))
        self._command = ChangeCommand()
        self._command.configure(config.on_change)
        self._before: tuple[Target, ...] = ()
        self._seen: dict[tuple[str, str | None], float] = {}
        self._unflushed: collections.deque[_Waiting] = collections.deque(maxlen=_WAITING_MAX)
        self._untold: collections.deque[_Waiting] = collections.deque()
        self._failed = False

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """What cannot be kept or told."""
        return tuple(one for one in (self._history.alert, self._command.alert) if one is not None)

    def start(self) -> None:
        """Begin to tell."""
        self._history.start()
        self._command.start()

    def configure(self, config: Config) -> None:
        """Take in a configuration that was read again."""
        self._command.configure(config.on_change)

    def resume(self, targets: Iterable[Target]) -> None:
        """Begin with what the hosts file says."""
        self._before = tuple(targets)

    def since(self, name: str, address: str) -> str | None:
        """Return when a name was given its address, also before this run (RFC 3339); None where that is not known."""
        return self._history.since(name, address)

    def track(
        self, targets: Sequence[Target], *, seen_at: float, now: float, written: bool, flushed: bool, citus: bool | None
    ) -> None:
        """Take in a round. ``seen_at`` is when the evidence came; ``written`` and ``flushed`` are about ``targets``.

        ``citus`` is False or None where there is none, or none is known: nothing is flushed then.
        """
        try:
            self._track(tuple(targets), seen_at, now, written=written)
            if written and flushed:
                self._flushed(now, citus=citus is True)
            while self._untold and now - self._untold[0].written_at >= _FLUSH_S:
                self._command.put(self._untold.popleft().change)
        except Exception as error:  # noqa: BLE001 -- a defect here must not keep names from being kept
            if not self._failed:
                _log.error("a change of a name is not told", exc_info=error)
            self._failed = True

    async def close(self) -> None:
        """Save what is not saved yet, kill the command if it runs, each within 0.5 s, and stop."""
        await self._command.close()
        await self._history.close(within_s=_CLOSE_S)

    def _track(self, targets: tuple[Target, ...], seen_at: float, now: float, *, written: bool) -> None:
        if targets == self._before:  # as in nearly all rounds
            self._seen = {}
            return
        before, names = {one.name: one for one in self._before}, {one.name for one in targets}
        moved = [one for one in targets if one.name not in before or before[one.name].address != one.address]
        left = [one for one in self._before if one.name not in names]
        # What could not be written at once was seen when it was first decided.
        wanted = [*((one.name, one.address) for one in moved), *((one.name, None) for one in left)]
        self._seen = {one: self._seen.get(one, seen_at) for one in wanted}
        if not written:
            return
        time = dt.datetime.now(dt.timezone.utc).astimezone().isoformat(timespec="milliseconds")
        took_ms = {one: round((now - since) * 1000) for one, since in self._seen.items()}
        changes = [
            made(before.get(one.name), one, time=time, written_ms=took_ms[one.name, one.address]) for one in moved
        ]
        changes += [gone(one, time=time, written_ms=took_ms[one.name, None]) for one in left]
        self._before = targets  # before they are told: what fails there must not be told and counted in each round
        self.count.update(one.name for one in moved)
        for change, since in zip(changes, self._seen.values(), strict=True):
            self._tell(change, since, now)

    def _tell(self, change: Change, seen_at: float, now: float) -> None:
        self.written_s.observe(now - seen_at)
        self._history.put(change)
        waiting = _Waiting(change, seen_at, now)
        self._unflushed.append(waiting)
        self._untold.append(waiting)
        if len(self._untold) > _WAITING_MAX:  # the command is told the oldest without its flush, or says that it is not
            self._command.put(self._untold.popleft().change)

    def _flushed(self, now: float, *, citus: bool) -> None:
        """Take in that everything is flushed that the hosts file says; there was a flush only where there is Citus."""
        while self._unflushed:
            one = self._unflushed.popleft()
            if citus:
                self.flushed_s.observe(now - one.seen_at)
                self._history.put(one.flushed(now))
        while self._untold:
            one = self._untold.popleft()
            self._command.put(one.flushed(now) if citus else one.change)
