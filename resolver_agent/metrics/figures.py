"""What an agent counts of its own rounds, and everything that was counted at one moment."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import Role
from resolver_agent.system.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.queue.room import RoomState
    from resolver_agent.routing.decision import Decision
    from resolver_agent.system.histogram import Distribution

_ROUND_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Figures:
    """Counts rounds, reloads and promotions. Times are in seconds of CLOCK_BOOTTIME.

    ``alive_at`` is when a round, or a step of the start, last succeeded, ``round_at`` when a round did (None: never).
    """

    def __init__(self, now: float) -> None:
        self.started_at = self.alive_at = now
        self.round_at: float | None = None
        self.rounds = self.failed_rounds = 0
        self.round_s = Histogram(*_ROUND_S)
        self.reloads = self.failed_reloads = self.promotions = 0

    def take_reload(self, *, done: bool) -> None:
        """Count a reload of the configuration."""
        self.reloads += done
        self.failed_reloads += not done

    def take_round(self, before: Decision, decision: Decision, *, begun: float, now: float) -> None:
        """Count a round that began at ``begun`` and has just led from one decision to the next."""
        self.rounds += 1
        self.round_s.observe(now - begun)
        self.round_at = now
        self.promotions += before.role is Role.STANDBY and decision.role is Role.PRIMARY


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
