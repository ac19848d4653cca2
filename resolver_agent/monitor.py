"""Observes the nodes: one task and one open connection for each, and the newest of what they saw.

Calm nodes are asked every ``interval``, those of a group without exactly one primary as often as the token bucket
allows, and a connection that dies is noticed at once. What follows from it is routing's to decide.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import tenacity

from resolver_agent.model import Kind, Node, NodeState, Observation, Role
from resolver_agent.pacing import UNSETTLED_S, TokenBucket, unsettled_delay_s
from resolver_agent.probe import Prober, boottime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config import Config

_LOCAL_INTERVAL_S = 0.1

_LOSS_GRACE_S = 0.05
"""After its connection died a server has this long to show that it lives: somebody may have ended just our session."""

_RECONNECT_COST = 10

_OPENING = 64
_OPENING_S = 0.1
"""So many first connections are opened side by side, not counting those that have taken this long already."""


class Monitor:
    """Watches the local server and all nodes of a configuration, from ``watch()`` to ``close()``.

    ``changed`` is set whenever there is news other than an LSN.
    """

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._bucket = TokenBucket(rate=1000, burst=100)
        self._opening = asyncio.Semaphore(_OPENING)
        self._watchers: dict[Node, _Watcher] = {}
        self._local: _Watcher | None = None

    def watch(self, config: Config) -> None:
        """Watch what ``config`` names from now on. What is known of nodes that stay is kept."""
        before = self._watchers
        self._watchers = {}
        for group in config.groups:
            for node in group.nodes:
                if node not in self._watchers:
                    conninfo = {**config.postgresql, "host": node.host, "port": str(node.port)}
                    self._watchers[node] = self._watcher(before.pop(node, None), conninfo, config, config.interval_s)
        for group in config.groups:
            circle = _Circle([self._watchers[node] for node in group.nodes], config)
            for watcher in circle.watchers:
                watcher.circles.append(circle)
        self._local = self._watcher(self._local, dict(config.local), config, min(_LOCAL_INTERVAL_S, config.interval_s))
        for gone in before.values():
            gone.stop()

    @property
    def nodes(self) -> dict[Node, NodeState]:
        """What is known of every node now."""
        return {node: watcher.state for node, watcher in self._watchers.items()}

    @property
    def local(self) -> NodeState:
        """What is known of the local server now."""
        return self._local.state if self._local is not None else NodeState()

    @property
    def asked_all(self) -> bool:
        """Whether every node, and the local server, has answered or failed to at least once."""
        return all(watcher.state.latest is not None for watcher in self._all())

    def check(self) -> None:
        """Raise what ended a watching task, if anything did: that is a defect, and no reason to go on half blind."""
        for watcher in self._all():
            if watcher.task.done():
                watcher.task.result()

    def refresh(self) -> None:
        """Ask every server again now."""
        for watcher in self._all():
            watcher.wake()

    async def close(self) -> None:
        """Stop watching and close all connections."""
        watchers = self._all()
        for watcher in watchers:
            watcher.stop()
        await asyncio.gather(*(watcher.task for watcher in watchers), return_exceptions=True)

    def _all(self) -> list[_Watcher]:
        return [*self._watchers.values(), *([self._local] if self._local is not None else [])]

    def _watcher(
        self, before: _Watcher | None, conninfo: Mapping[str, str], config: Config, interval_s: float
    ) -> _Watcher:
        settings = (conninfo, config.timeout_s, interval_s)
        if before is not None and before.settings == settings:
            before.circles.clear()
            return before
        if before is not None:
            before.stop()
        watcher = _Watcher(
            Prober(conninfo, timeout_s=config.timeout_s),
            settings=settings,
            interval_s=interval_s,
            state=before.state if before is not None else NodeState(),
            bucket=self._bucket,
            opening=self._opening,
            changed=self.changed,
        )
        watcher.start()
        return watcher


class _Watcher:
    """Keeps asking one server, and keeps what it saw."""

    def __init__(
        self,
        prober: Prober,
        *,
        settings: Any,
        interval_s: float,
        state: NodeState,
        bucket: TokenBucket,
        opening: asyncio.Semaphore,
        changed: asyncio.Event,
    ) -> None:
        self.settings = settings
        self.state = state
        self.circles: list[_Circle] = []
        self._prober = prober
        self._interval_s = interval_s
        self._bucket = bucket
        self._opening = opening
        self._changed = changed
        self._lost: asyncio.TimerHandle | None = None
        self._woken = False
        self._alarm: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._prober.on_loss = self._lose
        self.task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """End asking, and close the connection."""
        self.task.cancel()
        if self._lost is not None:
            self._lost.cancel()
        self._prober.close()

    def wake(self) -> None:
        """Ask now, and once more if the server is just being asked: that answer may be older than the reason to."""
        self._woken = True
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    async def _run(self) -> None:
        connecting = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda failure: failure is not None),
            wait=tenacity.wait_random_exponential(multiplier=UNSETTLED_S, max=self._interval_s),
            before_sleep=self._take_failure,
            sleep=self._sleep,
        )
        while True:
            if not self._prober.connected:
                await connecting(self._connect)
            elif self._delay_s() < self._interval_s:
                await self._bucket.take(1)
            seen = await self._prober.ask()
            if seen.kind is Kind.DEAD:
                self._lose()
                await self._sleep(UNSETTLED_S)
            else:
                self._take(seen)
                await self._sleep(self._delay_s())

    async def _connect(self) -> Observation | None:
        """Connect; return what was seen instead where that failed."""
        if self.state.latest is not None:
            await self._bucket.take(_RECONNECT_COST)
            return await self._prober.connect()
        async with self._opening:
            opening = asyncio.ensure_future(self._prober.connect())
            # A node that does not answer gives its place to the next: none delays any other.
            await asyncio.wait({opening}, timeout=_OPENING_S)
        return await opening

    def _delay_s(self) -> float:
        return min([self._interval_s, *(circle.delay_s(self._interval_s) for circle in self.circles)])

    async def _sleep(self, seconds: float) -> None:
        """Wait so long, or until woken."""
        if not self._woken:
            loop = asyncio.get_running_loop()
            self._alarm = loop.create_future()
            timer = loop.call_later(seconds, self.wake)
            try:
                await self._alarm
            finally:
                timer.cancel()
        self._woken = False

    def _lose(self) -> None:
        """The connection died. Whether the server did too shows at once, by connecting again."""
        closed = Observation(kind=Kind.DEAD, at=boottime(), detail="connection closed")
        if self._lost is None:
            self._lost = asyncio.get_running_loop().call_later(_LOSS_GRACE_S, self._take, closed)
        for circle in self.circles:
            circle.wake()
        self.wake()

    def _take_failure(self, attempt: tenacity.RetryCallState) -> None:
        if attempt.outcome is not None:
            self._take(attempt.outcome.result())

    def _take(self, seen: Observation) -> None:
        if self._lost is not None:
            self._lost.cancel()
            self._lost = None
            if seen.kind in (Kind.BARRED, Kind.UNREACHABLE):
                seen = dataclasses.replace(seen, kind=Kind.DEAD, detail=f"connection closed; {seen.detail}")
        before, self.state = self.state, self.state.after(seen)
        for circle in self.circles:
            circle.review(role_changed=before.last_role is not self.state.last_role or before.over != self.state.over)
        if _news(before) != _news(self.state):
            self._changed.set()


class _Circle:
    """The watchers of one group, who hurry together while it has not exactly one primary."""

    def __init__(self, watchers: list[_Watcher], config: Config) -> None:
        self.watchers = watchers
        self._max_age_s = config.interval_s + config.timeout_s
        self._unsettled_since: float | None = None

    def delay_s(self, interval_s: float) -> float:
        """Return the seconds until the next probe of a node in it."""
        if self._unsettled_since is None:
            return interval_s
        return unsettled_delay_s(boottime() - self._unsettled_since, interval_s=interval_s)

    def review(self, *, role_changed: bool) -> None:
        """Find out whether it is settled, after one of its watchers has seen something."""
        now = boottime()
        states = [watcher.state for watcher in self.watchers]
        primaries = [
            state
            for state in states
            if state.last_role is Role.PRIMARY and state.fresh(now=now, max_age_s=self._max_age_s) is not None
        ]
        settled = len(primaries) == 1 or any(state.latest is None for state in states)
        if settled:
            self._unsettled_since = None
        elif self._unsettled_since is None:
            self._unsettled_since = now
            role_changed = True
        if role_changed:
            self.wake()

    def wake(self) -> None:
        """Ask every node of the group now."""
        for watcher in self.watchers:
            watcher.wake()


def _news(state: NodeState) -> tuple[object, ...]:
    """Return what is worth a new decision at once when it changes: all but LSNs and times."""
    latest, seen = state.latest, state.role_seen
    return (
        latest and (latest.kind, latest.detail),
        seen and (seen.kind, seen.address, seen.timeline, seen.identity),
        state.over,
    )
