"""Looks after Citus on the local server: its cached connections (rule R5), and its work on other nodes (rule R6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resolver_agent import consent
from resolver_agent.flushing import Flusher
from resolver_agent.recovering import Recoverer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from resolver_agent.model import Alert, Decision
    from resolver_agent.outlook import Outlook


class Caretaker:
    """Begins what is due; ``tend()`` is called once a round and never waits.

    ``ask_again`` is to bring fresh evidence, and ``changed`` is set when something that was begun has ended.
    """

    def __init__(self, *, changed: asyncio.Event, ask_again: Callable[[], None]) -> None:
        self._flusher = Flusher(changed=changed)
        self._recoverer = Recoverer(changed=changed, ask_again=ask_again)

    @property
    def flushed(self) -> bool:
        """Whether everything that the hosts file says has been flushed."""
        return self._flusher.flushed

    @property
    def alerts(self) -> list[Alert]:
        """What is wrong with either."""
        return [*self._flusher.alerts, *self._recoverer.alerts]

    def report(self, now: float) -> dict[str, Any]:
        """Return how it stands, for ``status``."""
        return {"flush": self._flusher.report(), "recovery": self._recoverer.report(now)}

    def tend(self, outlook: Outlook, decision: Decision, *, written: bool, puts: int, now: float) -> None:
        """Begin what is due after a round. ``puts`` counts how often somebody else's change was put back."""
        if written:
            said = (puts, *((target.name, target.address) for target in decision.targets))
            self._flusher.tend(outlook.config, said=said, local=outlook.local, now=now)

        def hindrance(since: float) -> str | None:
            evidence = consent.Evidence(
                now=now,
                since=since,
                max_age_s=outlook.max_age_s,
                local=outlook.local,
                claims=outlook.claims,
                written=written,
                flushed=self.flushed,
            )
            return consent.hindrance(outlook.config, decision, evidence)

        # Where there is no Citus nothing is overdue. Whoever lets nobody flush may have it.
        may_have_citus = self._flusher.citus or (self._flusher.citus is None and self._flusher.alerts)
        role = decision.role if may_have_citus else None
        self._recoverer.tend(outlook.config, role=role, hindrance=hindrance, now=now)
