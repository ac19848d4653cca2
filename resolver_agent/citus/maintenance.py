"""Schedules the work for Citus on the local server: flushes (R5), 2PC recovery and clean-up (R6)."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING

from resolver_agent.citus import flush as citus_flush
from resolver_agent.citus import preconditions, recovery
from resolver_agent.config.model import NO_LOCAL
from resolver_agent.control.report import FlushStatus, RecoveryStatus
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import Alert, AlertCode
from resolver_agent.system.clock import boottime
from resolver_agent.system.pacing import backoff_s
from resolver_agent.system.threads import BackgroundCall

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable

    from resolver_agent.config.model import Config
    from resolver_agent.observe.observer import Observer
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import Identity, NodeState

    _Blocker = Callable[[float | None], str | None]


_log = logging.getLogger(__name__)

_KEEP_S = 60.0
"""How often the administrator's own value is checked for changes."""

_FIRST_RETRY_S, _RETRY_MAX_S = 1.0, 10.0
_HUNG_S = 5.0


class Flusher:
    """Flushes after every change of the hosts file; ``tick()`` is called once a round and never blocks.

    ``do_flush`` and ``do_keep`` stand for ``flush.flush`` and ``flush.keep``. ``changed`` is set when one has ended.
    ``flushes`` and ``failures`` count those that were done and those that failed.
    """

    def __init__(
        self,
        *,
        changed: asyncio.Event,
        do_flush: Callable[[Config], citus_flush.Flushed | None] = citus_flush.flush,
        do_keep: Callable[[Config], citus_flush.Flushed | None] = citus_flush.keep,
    ) -> None:
        self.citus: bool | None = None
        self.flushes = self.failures = 0
        self._do_flush = do_flush
        self._do_keep = do_keep
        self._call = BackgroundCall(changed)
        self._said: Hashable = None
        self._wanted = self._under_way = self._flushed = 0
        self._server: Identity | None = None
        self._flushing = False
        self._begun = 0.0
        self._not_before = 0.0
        self._failures = 0
        self._fault: str | None = None
        self._warning: str | None = None

    @property
    def flushed(self) -> bool:
        """Whether everything that the hosts file says has been flushed."""
        return self._flushed == self._wanted > 0

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Why a flush fails, and what is wrong with ``citus.node_conninfo``."""
        said = {AlertCode.FLUSH: self._fault, AlertCode.CONNINFO: self._warning}
        return tuple(Alert(code, text) for code, text in said.items() if text is not None)

    @property
    def status(self) -> FlushStatus:
        """The state of the flush."""
        return FlushStatus(citus=self.citus, flushed=self.flushed, fault=self._fault)

    def tick(self, config: Config, *, said: Hashable, local: NodeState, now: float) -> None:
        """Begin what is due. ``said`` identifies the state of the hosts file, which has just been written."""
        if said != self._said:
            # Counted, because a state that comes back after another one has to be flushed again.
            self._said, self._wanted = said, self._wanted + 1
            self._not_before = now  # what failed before may work now, and a promotion may be waiting for it
        if not config.citus:
            # Once citus is on again, the present state of the file counts as new.
            self._flushed, self._said, self.citus = self._wanted, None, None
            self._fault = self._warning = None
            return
        if self._call.under_way:
            if now - self._begun > _HUNG_S and self._fault is None:
                self._fault = "cached connections are not flushed: the local PostgreSQL does not answer"
            return
        self._take_in(now)
        # A server that is down has no sessions. Sessions of its next run look names up again.
        if now < self._not_before or local.role_seen is None or local.seen_dead:
            return
        server = local.role_seen.identity
        if not self.flushed:
            self._begin(config, flush=True, now=now)  # A4
        elif server != self._server or now - self._begun >= _KEEP_S:
            self._begin(config, flush=not self.citus, now=now)  # a flush also finds out whether Citus is there by now
        self._server = server

    def _begin(self, config: Config, *, flush: bool, now: float) -> None:
        self._under_way, self._flushing, self._begun = self._wanted, flush, now
        self._call.begin(self._do_flush if flush else self._do_keep, config)

    def _take_in(self, now: float) -> None:
        """Take the result of the last call, if it has ended."""
        ended = self._call.take()
        if ended is None:
            return
        try:
            found = ended.result()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the names have to be kept
            if not isinstance(error, citus_flush.FlushError) and self._fault is None:
                _log.error("a flush ended with an unexpected error", exc_info=error)
            self.failures += 1
            self._failures += 1
            if self._under_way == self._wanted:  # a change since then is flushed without a delay
                self._not_before = now + backoff_s(self._failures, first_s=_FIRST_RETRY_S, max_s=_RETRY_MAX_S)
            words = str(error) if isinstance(error, citus_flush.FlushError) else repr(error)
            self._fault = f"cached connections are not flushed: {words}"
            return
        if self._flushing:
            self.citus = found is not None
        self._warning = found.warning if found is not None else None
        if found is not None and found.done:
            self.flushes += 1
            _log.info("flushed the connections that Citus has cached, in %.0f ms", (now - self._begun) * 1000)
        if found is not None and found.given_back:
            _log.warning("citus.max_cached_conns_per_worker had been left at 0 for a planned stop, and is given back")
        self._flushed, self._fault, self._failures = self._under_way, None, 0


PERIOD_S = 60.0
_OVERDUE_S = 3 * PERIOD_S
_RETRY_S = 10.0
_STALE_S = 3.0
"""After so long without a check, the preconditions count as not met."""


class Recoverer:
    """Runs 2PC recovery and clean-up; ``tick()`` is called once a round and never blocks.

    ``ask_again`` has all servers and Patroni asked again. ``do_recover`` stands for ``recovery.recover_all``.
    ``changed`` is set when it has ended. ``passes`` and ``failures`` count the passes that ended well and the others,
    ``recovered`` and ``cleaned`` what they did. ``succeeded_at`` is when one last ended well, in seconds of
    CLOCK_BOOTTIME; None if none has.
    """

    def __init__(
        self,
        *,
        changed: asyncio.Event,
        ask_again: Callable[[], None],
        do_recover: Callable[[Config, recovery.Still], list[recovery.Recovered]] = recovery.recover_all,
    ) -> None:
        self.passes = self.failures = self.recovered = self.cleaned = 0
        self.succeeded_at: float | None = None
        self._ask_again = ask_again
        self._do_recover = do_recover
        self._call = BackgroundCall(changed)
        self._role: Role | None = None
        self._asked_at: float | None = None
        self._next_at = 0.0
        self._good_at = 0.0
        self._blocked_by: str | None = None
        self._looked_at = 0.0
        self._overdue = False
        self._results: list[recovery.Recovered] = []
        self._ended_at = 0.0

    @property
    def alerts(self) -> list[Alert]:
        """Recovery that is overdue or has failed, and transactions that have been prepared for too long."""
        alerts = [
            Alert(AlertCode.RECOVERY, f"2PC recovery in database {one.database}: {one.fault}", of=(one.database,))
            for one in self._results
            if one.fault is not None
        ]
        alerts += [
            Alert(AlertCode.PREPARED, one.old_words, of=(one.database,)) for one in self._results if one.old_words
        ]
        if self._overdue:
            withdrawn = next((one.withdrawn for one in self._results if one.withdrawn), None)
            why = self._blocked_by or withdrawn or "it failed, or is still under way"
            text = f"2PC recovery is overdue by more than {_OVERDUE_S:g} s: {why}"
            alerts.append(Alert(AlertCode.RECOVERY, text))  # A5
        return alerts

    def status(self, now: float) -> RecoveryStatus:
        """Return the state of recovery."""
        return RecoveryStatus(
            under_way=self._call.under_way,
            blocked_by=self._blocked_by,
            age_s=round(now - self._ended_at, 1) if self._ended_at else None,
            databases=tuple(one.status for one in self._results),
        )

    def tick(self, config: Config, *, role: Role | None, blocker: _Blocker, now: float) -> None:
        """Begin a pass when one is due, and check the preconditions again while one is under way.

        ``role`` is that of the local server. ``blocker(since)`` is ``preconditions.blocker`` on answers to questions
        asked at ``since`` or later, or with None on answers of any age.
        """
        self._take_in(config, now)
        if role is not self._role or not config.citus:
            self._role = role
            self._next_at, self._good_at, self._asked_at = now, now, None
        self._looked_at = now
        if role is not Role.PRIMARY or not config.citus:
            self._blocked_by = "the local PostgreSQL is not a primary" if config.has_local else NO_LOCAL
            self._overdue, self._results = False, []
            return
        self._overdue = now - self._good_at > _OVERDUE_S
        if self._call.under_way:
            # Once blocked, the pass stays blocked: it would not notice that a name moved and came back.
            self._blocked_by = self._blocked_by or blocker(self._asked_at or now)
        elif now >= self._next_at:
            self._consider(config, blocker, now)

    def _consider(self, config: Config, blocker: _Blocker, now: float) -> None:
        """Begin on answers that came while nothing else was in the way; those from before may be old by now."""
        self._blocked_by = blocker(None)
        if self._blocked_by is not None:
            self._asked_at = None
            return
        if self._asked_at is not None:
            self._blocked_by = blocker(self._asked_at)
            if self._blocked_by is None:
                self._call.begin(self._do_recover, config, self._withdrawn)
                return
        # Asking again drops answers that are on their way. So it waits: one may take `timeout`, after an earlier one.
        if self._asked_at is None or now - self._asked_at >= config.interval_s + 2 * config.timeout_s:
            self._asked_at = now
            self._ask_again()

    def _withdrawn(self) -> str | None:
        """Return why the preconditions no longer hold, or None; called in the thread of the recovery."""
        if boottime() - self._looked_at > _STALE_S:
            return f"the agent has not checked the preconditions for {_STALE_S:g} s"
        return self._blocked_by

    def _take_in(self, config: Config, now: float) -> None:
        """Take the results of the last pass over all databases, if it has ended."""
        ended = self._call.take()
        if ended is None:
            return
        try:
            results, listed = ended.result(), True
        except Exception as error:  # noqa: BLE001 -- whatever it is, the names have to be kept
            fault = str(error) if isinstance(error, recovery.UnaskedError) else repr(error)
            if not isinstance(error, recovery.UnaskedError) and fault not in (one.fault for one in self._results):
                _log.error("a 2PC recovery ended with an unexpected error", exc_info=error)
            results, listed = [recovery.Recovered(database=config.local.get("dbname", ""), fault=fault)], False
        self._results = self._with_what_was_known(results, listed=listed, now=now)
        self._ended_at, self._asked_at = now, None
        well = all(one.fault is None and one.withdrawn is None for one in self._results)
        self._next_at = now + (PERIOD_S if well else _RETRY_S)
        if well:
            self._good_at = self.succeeded_at = now
        self.passes += well
        self.failures += not well
        for one in self._results:
            self.recovered += one.recovered
            self.cleaned += one.cleaned
            if one.withdrawn:
                _log.info(
                    "2PC recovery in database %s was broken off and is tried again: %s", one.database, one.withdrawn
                )
            if one.recovered or one.cleaned:
                _log.info("%s", one)

    def _with_what_was_known(
        self, results: list[recovery.Recovered], *, listed: bool, now: float
    ) -> list[recovery.Recovered]:
        """Return ``results``, with the oldest prepared transaction as known from before where the pass could not look.

        ``listed`` is False if the pass did not even learn which databases there are.
        """
        known = {
            one.database: dataclasses.replace(one.oldest, age_s=one.oldest.age_s + now - self._ended_at)
            for one in self._results
            if one.oldest is not None
        }
        missed = [] if listed else sorted(known.keys() - {one.database for one in results})
        return [
            one if one.records is not None else dataclasses.replace(one, oldest=known.get(one.database))
            for one in (*results, *(recovery.Recovered(database=name) for name in missed))
        ]


class CitusMaintenance:
    """Flushes and recovers when that is due; ``tick()`` is called once a round and never blocks.

    ``ask_again`` has all servers and Patroni asked again. ``changed`` is set when a flush or a recovery has ended.
    ``flusher`` and ``recoverer`` do the two.
    """

    def __init__(self, *, changed: asyncio.Event, ask_again: Callable[[], None]) -> None:
        self.flusher = Flusher(changed=changed)
        self.recoverer = Recoverer(changed=changed, ask_again=ask_again)

    @property
    def flushed(self) -> bool:
        """Whether everything that the hosts file says has been flushed."""
        return self.flusher.flushed

    @property
    def alerts(self) -> list[Alert]:
        """The alerts of both."""
        return [*self.flusher.alerts, *self.recoverer.alerts]

    @property
    def flush_status(self) -> FlushStatus:
        """The state of the flush."""
        return self.flusher.status

    def recovery_status(self, now: float) -> RecoveryStatus:
        """Return the state of recovery."""
        return self.recoverer.status(now)

    def tick(self, observer: Observer, decision: Decision, *, written: bool, puts: int, now: float) -> None:
        """Begin what is due after a round. ``puts`` counts how often the agent undid another program's change."""
        if written:
            said = (puts, *((target.name, target.address) for target in decision.targets))
            self.flusher.tick(observer.config, said=said, local=observer.local, now=now)

        def blocker(since: float | None) -> str | None:
            evidence = preconditions.Evidence(
                now=now,
                since=-math.inf if since is None else since,
                max_age_s=math.inf if since is None else observer.config.max_age_s,
                nodes=observer.nodes,
                local=observer.local,
                claims=observer.claims,
                written=written,
                flushed=self.flushed,
            )
            return preconditions.blocker(observer.config, decision, evidence)

        # Without Citus nothing is overdue. A server on which every flush fails may have Citus.
        may_have_citus = self.flusher.citus or (self.flusher.citus is None and self.flusher.alerts)
        role = decision.role if may_have_citus else None
        self.recoverer.tick(observer.config, role=role, blocker=blocker, now=now)
