"""Tells each promotion in one line of the log once it is over: what was done, and after how many milliseconds.

Called in every round, and never blocks. It only tells what the rounds saw and did.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.routing.decision import Decision

_log = logging.getLogger(__name__)

_LONGEST_S = 300.0
"""A promotion is told by then as far as it came; what is overdue is an alert besides."""

_ANNOUNCED_S = 10.0
"""How long before its first sign a promotion may have been announced: right then, or to an agent that starts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round did. Times are in seconds of CLOCK_BOOTTIME.

    ``seen_at`` is when its evidence came. ``announced_at`` is when a promotion was last announced.
    ``written`` and ``flushed`` are about the decision. ``recovered_at`` is when 2PC recovery last ended well. ``citus``
    is False where there is none or it is left alone, so that nothing is flushed or recovered; None while nobody knows.
    """

    decision: Decision
    seen_at: float
    now: float
    announced_at: float | None
    written: bool
    flushed: bool
    citus: bool | None
    recovered_at: float | None

    @property
    def done(self) -> dict[str, bool]:
        """The steps that concern names, and whether they are done."""
        return {"moved": self.written, "flushed": self.written and self.flushed and self.citus is True}


class _Story:
    """One promotion, from ``begun_at`` on: the steps that it has, in words, and when each was done."""

    def __init__(self, title: str, begun_at: float, steps: Mapping[str, str]) -> None:
        self._title = title
        self.begun_at = begun_at
        self._steps = steps
        self.done_at: dict[str, float] = {}

    @property
    def _missing(self) -> list[str]:
        """The steps that are not done; nobody has to announce a promotion."""
        return [step for step in self._steps if step not in self.done_at and step != "announced"]

    def take(self, done: Mapping[str, bool], *, at: float) -> None:
        """Note what is done for the first time."""
        for step, is_done in done.items():
            if is_done:
                self.done_at.setdefault(step, at)

    def is_over(self, now: float, *, citus: bool | None) -> bool:
        """Report whether nothing is missing any more, or will be waited for; without Citus some steps are none."""
        missing = self._missing
        if citus is False:
            missing = [step for step in missing if step not in ("flushed", "recovered")]
        return not missing or now - self.begun_at > _LONGEST_S

    def tell(self, now: float, *, citus: bool | None, ended: str = "") -> None:
        """Log it. ``ended`` says how it ended if not well."""
        took_ms = {step: round((at - self.begun_at) * 1000) for step, at in self.done_at.items()}
        told = [f"{self._steps[step]} after {ms} ms" for step, ms in sorted(took_ms.items(), key=lambda one: one[1])]
        if "announced" in self._steps.keys() - took_ms.keys():
            told.insert(0, "not announced")
        missing = [self._steps[step] for step in self._missing]
        if ended:
            told.append(f"{ended} after {round((now - self.begun_at) * 1000)} ms")
        elif missing and citus is not False:
            told.append(f"not yet {' and '.join(missing)} after {_LONGEST_S:g} s")
        fields = {f"{step}_ms": ms for step, ms in took_ms.items()}
        _log.info("%s: %s", self._title, "; ".join(told), extra={"promotion": fields})


class Promotions:
    """The promotions of the local server, and those of the servers that names lead to."""

    def __init__(self) -> None:
        self._before: Decision | None = None
        self._followed: Role | None = None
        self._own: _Story | None = None
        self._others: dict[str, tuple[str, _Story]] = {}
        self._failed = False

    def resume(self, decision: Decision) -> None:
        """Begin with what the hosts file says."""
        self._before, self._followed = decision, decision.role

    def track(self, done: Round) -> None:
        """Take in a round."""
        try:
            self._track_others(done)
            self._track_own(done)
            self._before, self._followed = done.decision, done.decision.followed_role
        except Exception as error:  # noqa: BLE001 -- a defect here must not keep names from being kept
            if not self._failed:
                _log.error("a promotion is not told", exc_info=error)
            self._failed = True

    def _track_own(self, done: Round) -> None:
        followed = done.decision.followed_role
        if self._own is None and (self._followed, followed) == (Role.STANDBY, Role.PRIMARY):
            self._own = self._begin(done)
        if self._own is None:
            return
        if done.announced_at is not None:
            self._own.take({"announced": done.announced_at >= self._own.begun_at}, at=done.announced_at)
        seen = done.decision.role is Role.PRIMARY
        self._own.take({"seen": seen}, at=done.seen_at)
        self._own.take(done.done, at=done.now)
        if seen and done.recovered_at is not None:
            self._own.take({"recovered": done.recovered_at > self._own.done_at["seen"]}, at=done.recovered_at)
        ended = ""
        if followed is not Role.PRIMARY:
            ended = "in recovery again" if "seen" in self._own.done_at else "called off"
        if ended or self._own.is_over(done.now, citus=done.citus):
            self._own.tell(done.now, citus=done.citus, ended=ended)
            self._own = None

    def _begin(self, done: Round) -> _Story:
        before = {one.name: one.address for one in self._before.targets} if self._before is not None else {}
        moved = sum(before.get(one.name) != one.address for one in done.decision.targets)
        announced_at = done.seen_at if done.announced_at is None else done.announced_at
        announced_before = done.seen_at - _ANNOUNCED_S < announced_at < done.seen_at
        return _Story(
            "the promotion of the local PostgreSQL",
            announced_at if announced_before else done.seen_at,
            {
                "announced": "announced",
                "moved": f"{moved} name{'' if moved == 1 else 's'} moved",
                "flushed": "flushed",
                "seen": "seen as a primary",
                "recovered": "2PC recovered",
            },
        )

    def _track_others(self, done: Round) -> None:
        """Tell of other servers whose promotion moves a name. While the local server is promoted, all names move."""
        groups = done.decision.groups
        if self._before is not None and self._followed is done.decision.followed_role:
            for name, state in groups.items():
                before = self._before.groups.get(name)
                if before is None or before is state or before.memory.primary in (None, state.memory.primary):
                    continue
                new = state.memory.primary
                if new not in (None, state.own) and state.target is not None and state.target.address == new:
                    title = f"the promotion of {new}, behind {name}"
                    self._others[name] = new, _Story(title, done.seen_at, {"moved": "moved", "flushed": "flushed"})
        for name, (address, story) in list(self._others.items()):
            target = groups[name].target if name in groups else None
            if target is None or target.address != address:
                del self._others[name]
                continue
            story.take(done.done, at=done.now)
            if story.is_over(done.now, citus=done.citus):
                story.tell(done.now, citus=done.citus)
                del self._others[name]
