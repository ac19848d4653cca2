"""When Citus' 2PC recovery and clean-up run, and what is wrong while they do not (rule R6).

What a guarded recovery is, is ``recovery``'s to know, and what has to be true before it is ``consent``'s. Here: it runs
right after a promotion and every minute, on fresh evidence, and is withdrawn in the middle when that changes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from resolver_agent import recovery
from resolver_agent.background import Errand
from resolver_agent.model import Alert, Role
from resolver_agent.probe import boottime

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from resolver_agent.config import Config

    _Hindrance = Callable[[float], str | None]

_log = logging.getLogger(__name__)

PERIOD_S = 60.0
_OVERDUE_S = 3 * PERIOD_S
_RETRY_S = 10.0
_STALE_S = 3.0
"""Consent that has not been looked at for so long is none."""


class Recoverer:
    """Lets Citus recover and clean up; ``tend()`` is called once a round and never waits.

    ``ask_again`` is to bring fresh evidence. ``do_recover`` is that of ``recovery``. ``changed`` is set when it ends.
    """

    def __init__(
        self,
        *,
        changed: asyncio.Event,
        ask_again: Callable[[], None],
        do_recover: Callable[[Config, recovery.Still], list[recovery.Recovered]] = recovery.recover_all,
    ) -> None:
        self._ask_again = ask_again
        self._do_recover = do_recover
        self._errand = Errand(changed)
        self._role: Role | None = None
        self._asked_at: float | None = None
        self._next_at = 0.0
        self._good_at = 0.0
        self._hindered: str | None = None
        self._looked_at = 0.0
        self._overdue = False
        self._results: list[recovery.Recovered] = []
        self._ended_at = 0.0

    @property
    def alerts(self) -> list[Alert]:
        """What is overdue, refused or old."""
        alerts = [
            Alert(f"recovery:{one.database}", f"2PC recovery in database {one.database}: {one.fault}")
            for one in self._results
            if one.fault is not None
        ]
        alerts += [Alert(f"prepared:{one.database}", one.old_words) for one in self._results if one.old_words]
        if self._overdue:
            withdrawn = next((one.withdrawn for one in self._results if one.withdrawn), None)
            why = self._hindered or withdrawn or "it failed, or is still under way"
            alerts.append(Alert("recovery", f"2PC recovery is overdue by more than {_OVERDUE_S:g} s: {why}"))
        return alerts

    def report(self, now: float) -> dict[str, Any]:
        """Return how it stands, for ``status``."""
        return {
            "under_way": self._errand.under_way,
            "hindered": self._hindered,
            "age_s": round(now - self._ended_at, 1) if self._ended_at else None,
            "databases": [one.as_json() for one in self._results],
        }

    def tend(self, settings: Config, *, role: Role | None, hindrance: _Hindrance, now: float) -> None:
        """Begin what is due, and keep the consent of what is under way as true as the evidence.

        ``role`` is that of the local server; ``hindrance(since)`` is ``consent.hindrance()`` on what was asked since.
        """
        self._take_in(settings, now)
        if role is not self._role or not settings.citus:
            self._role = role
            self._next_at, self._good_at, self._asked_at = now, now, None
        self._looked_at = now
        if role is not Role.PRIMARY or not settings.citus:
            self._hindered, self._overdue, self._results = "the local PostgreSQL is no primary", False, []
            return
        self._overdue = now - self._good_at > _OVERDUE_S
        if self._errand.under_way:
            # Once withdrawn consent stays so: a name that has moved and come back is nothing that a pass could see.
            self._hindered = self._hindered or hindrance(self._asked_at or now)
        elif now >= self._next_at:
            self._consider(settings, hindrance, now)

    def _consider(self, settings: Config, hindrance: _Hindrance, now: float) -> None:
        if self._asked_at is not None:
            self._hindered = hindrance(self._asked_at)
            if self._hindered is None:
                self._errand.begin(self._do_recover, settings, self._withdrawn)
                return
        # To ask again lets go of answers that are on their way: they may take their time, and wait for one before.
        if self._asked_at is None or now - self._asked_at >= settings.interval_s + 2 * settings.timeout_s:
            self._asked_at = now
            self._ask_again()

    def _withdrawn(self) -> str | None:
        """Return why consent has gone, or None; called in the thread that recovers."""
        if boottime() - self._looked_at > _STALE_S:
            return "the agent has not looked around for a while"
        return self._hindered

    def _take_in(self, settings: Config, now: float) -> None:
        """Learn what the last pass over all databases brought, if one has ended."""
        ended = self._errand.take()
        if ended is None:
            return
        try:
            self._results = ended.result()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the names have to be kept
            before = self._results
            self._results = [recovery.Recovered(database=settings.local.get("dbname", ""), fault=repr(error))]
            if self._results != before:
                _log.error("a recovery ended as none should", exc_info=error)
        self._ended_at, self._asked_at = now, None
        well = all(one.fault is None and one.withdrawn is None for one in self._results)
        self._next_at = now + (PERIOD_S if well else _RETRY_S)
        if well:
            self._good_at = now
        for one in self._results:
            if one.withdrawn:
                _log.info("2PC recovery in database %s begins anew later: %s", one.database, one.withdrawn)
            if one.recovered or one.cleaned:
                _log.info("%s", one)
