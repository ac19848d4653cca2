"""What an agent counts of its own rounds, and everything that was counted at one moment."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import Role
from resolver_agent.system.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.control.report import FlushStatus
    from resolver_agent.queue.room import RoomState
    from resolver_agent.routing.decision import Decision
    from resolver_agent.system.histogram import Distribution

_ROUND_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_DELAY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Figures:
    """Counts rounds, reloads, promotions and changes of names. Times are in seconds of CLOCK_BOOTTIME.

    ``alive_at`` is when a round, or a step of the start, last succeeded, ``round_at`` when a round did (None: never).
    ``changes`` counts those of each name. ``written_s`` and ``flushed_s`` are how long after the agent saw a reason a
    name was on disk, and after that flushed.
    """

    def __init__(self, now: float) -> None:
        self.started_at = self.alive_at = now
        self.round_at: float | None = None
        self.rounds = self.failed_rounds = 0
        self.round_s = Histogram(*_ROUND_S)
        self.reloads = self.failed_reloads = self.promotions = 0
        self.changes: collections.Counter[str] = collections.Counter()
        self.written_s = Histogram(*_DELAY_S)
        self.flushed_s = Histogram(*_DELAY_S)
        self._unwritten: dict[str, float] = {}
        self._unflushed: dict[str, float] = {}

    def take_reload(self, *, done: bool) -> None:
        """Count a reload of the configuration."""
        self.reloads += done
        self.failed_reloads += not done

    def take_round(
        self,
        before: Decision,
        decision: Decision,
        *,
        seen_at: float,
        begun: float,
        now: float,
        written: bool,
        flush: FlushStatus,
    ) -> None:
        """Count a round that began at ``begun`` and has just led from one decision to the next.

        ``seen_at`` is when the agent saw what made it due. ``written`` and ``flush`` are the state of the file, and of
        cached connections, after it.
        """
        self.rounds += 1
        self.round_s.observe(now - begun)
        self.round_at = now
        self.promotions += before.role is Role.STANDBY and decision.role is Role.PRIMARY
        addresses = {target.name: target.address for target in before.targets}
        for target in decision.targets:
            if addresses.get(target.name) != target.address:
                self.changes[target.name] += 1
                self._unwritten[target.name] = seen_at
                self._unflushed.pop(target.name, None)
        if not written:
            return
        for name, at in self._unwritten.items():
            self.written_s.observe(now - at)
            self._unflushed[name] = at
        self._unwritten.clear()
        if flush.flushed:
            for at in self._unflushed.values() if flush.citus else ():
                self.flushed_s.observe(now - at)
            self._unflushed.clear()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What was counted until one moment, and what else no ``Status`` has. Times are in seconds since the Unix epoch.

    ``answered_at`` is when each node last answered, ``patroni_up`` whether each node's own Patroni does.
    ``alerts`` has the number of alerts of each code.
    """

    started_at: float
    round_at: float | None
    rounds: int
    failed_rounds: int
    round_s: Distribution
    config_is_current: bool
    reloads: int
    failed_reloads: int
    promotions: int
    announced: int
    promotion_is_pending: bool
    holds_lock: bool
    changes: Mapping[str, int]
    written_s: Distribution
    flushed_s: Distribution
    probes: Mapping[str, int]
    probe_s: Distribution
    answered_at: Mapping[str, float]
    writes: int
    failed_writes: int
    flushes: int
    failed_flushes: int
    recoveries: int
    failed_recoveries: int
    recovered_at: float | None
    recovered: int
    cleaned: int
    windows: Mapping[str, int]
    rooms: Mapping[str, RoomState]
    patroni_up: Mapping[str, bool]
    alerts: Mapping[str, int]
