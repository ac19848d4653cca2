"""When Citus' cached connections are flushed, and what is wrong while they are not (rule R5).

What a flush is, is ``flush``'s to know. Here: every change of what the hosts file says is followed by one, changes that
come while one is under way share the next, and what the agent cannot know was flushed (at its start) is flushed again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from resolver_agent import flush
from resolver_agent.background import Errand
from resolver_agent.model import Alert

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable

    from resolver_agent.config import Config
    from resolver_agent.model import Identity, NodeState

_log = logging.getLogger(__name__)

_KEEP_S = 60.0
"""How often the administrator's own value is looked at for changes."""

_RETRY_MAX_S = 10.0
_HUNG_S = 5.0


class Flusher:
    """Flushes after every change; ``tend()`` is called once a round and never waits.

    ``do_flush`` and ``do_keep`` are those of ``flush``. ``changed`` is set when one of them has ended.
    """

    def __init__(
        self,
        *,
        changed: asyncio.Event,
        do_flush: Callable[[Config], flush.Flushed | None] = flush.flush,
        do_keep: Callable[[Config], flush.Flushed | None] = flush.keep,
    ) -> None:
        self.citus: bool | None = None
        self._do_flush = do_flush
        self._do_keep = do_keep
        self._errand = Errand(changed)
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
        """What stands in the way of a flush, and what is wrong with the value that it is done by."""
        said = {"flush": self._fault, "conninfo": self._warning}
        return tuple(Alert(key, text) for key, text in said.items() if text is not None)

    def report(self) -> dict[str, Any]:
        """Return how it stands, for ``status``."""
        return {"citus": self.citus, "flushed": self.flushed, "fault": self._fault}

    def tend(self, settings: Config, *, said: Hashable, local: NodeState, now: float) -> None:
        """Begin what is due. ``said`` tells one state of the hosts file from every other; it was written just now."""
        if said != self._said:
            # Counted, as what the file said before is no longer flushed once it has said something else in between.
            self._said, self._wanted = said, self._wanted + 1
            self._not_before = now  # what failed before may work now, and a promotion may be waiting for it
        if not settings.citus:
            # What it says now is new again once there is a reason to flush it.
            self._flushed, self._said, self.citus = self._wanted, None, None
            self._fault = self._warning = None
            return
        if self._errand.under_way:
            if now - self._begun > _HUNG_S and self._fault is None:
                self._fault = "cached connections are not flushed: the local PostgreSQL does not answer"
            return
        self._take_in(now)
        # A server that is down has no sessions; those of its next run look names up anew.
        if now < self._not_before or local.role_seen is None or local.over:
            return
        server = local.role_seen.identity
        if not self.flushed:
            self._begin(settings, flush=True, now=now)
        elif server != self._server or now - self._begun >= _KEEP_S:
            self._begin(settings, flush=not self.citus, now=now)  # a flush also tells whether there is Citus by now
        self._server = server

    def _begin(self, settings: Config, *, flush: bool, now: float) -> None:
        self._under_way, self._flushing, self._begun = self._wanted, flush, now
        self._errand.begin(self._do_flush if flush else self._do_keep, settings)

    def _take_in(self, now: float) -> None:
        """Learn how the last call ended, if one has."""
        ended = self._errand.take()
        if ended is None:
            return
        try:
            found = ended.result()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the names have to be kept
            if not isinstance(error, flush.FlushError) and self._fault is None:
                _log.error("a flush ended as none should", exc_info=error)
            self._failures += 1
            if self._under_way == self._wanted:  # what has changed since is worth a try of its own
                self._not_before = now + min(_RETRY_MAX_S, 0.5 * 2.0 ** min(self._failures, 10))
            words = str(error) if isinstance(error, flush.FlushError) else repr(error)
            self._fault = f"cached connections are not flushed: {words}"
            return
        if self._flushing:
            self.citus = found is not None
        self._warning = found.warning if found is not None else None
        if found is not None and found.done:
            _log.info("flushed the connections that Citus has cached, in %.0f ms", (now - self._begun) * 1000)
        self._flushed, self._fault, self._failures = self._under_way, None, 0
