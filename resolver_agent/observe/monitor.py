"""Observes the nodes: one task and one open connection for each, and the latest state of each.

Nodes are asked every ``interval``. Those of a group without exactly one primary are asked as often as the token bucket
allows. A connection that dies is noticed at once.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import logging
import socket
from typing import TYPE_CHECKING, NamedTuple

import tenacity

from resolver_agent.observe.connection import Connector
from resolver_agent.observe.probe import Prober
from resolver_agent.observe.talk import Talk
from resolver_agent.routing.observation import NodeState, Observation, ProbeFailure, Role
from resolver_agent.system.clock import boottime
from resolver_agent.system.histogram import Histogram
from resolver_agent.system.pacing import UNSETTLED_S, ConnectSlots, News, TokenBucket, Wakeup, unsettled_delay_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from resolver_agent.config.model import Config, Node
    from resolver_agent.system.dns import Resolver

_log = logging.getLogger(__name__)

_LOCAL_INTERVAL_S = 0.1

_LOSS_GRACE_S = 0.25
"""How long a server whose connection died has to accept a new one: an administrator may have ended just our session.

A dead server refuses the connection at once. Over TLS and a wide area a new connection takes longer.
"""

_RECONNECT_COST = 10

_AFTER_DEFECT_S = 1.0
"""How long the task of a server rests after a defect ended it."""

_PROBE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_SLOTS = 64
_SLOT_S = 0.5
"""How many first connections are opened at a time, not counting those that have already taken ``_SLOT_S``."""


class Monitor:
    """Watches the local server, if there is one, and all nodes of a configuration, from ``watch()`` to ``close()``.

    ``changed`` is set whenever something other than an LSN or a time has changed. ``on_local`` is called whenever the
    local server was asked. ``getaddrinfo`` resolves nodes given by DNS name. ``on_message`` is called with what another
    agent said: the node over whose connection it came, the process number of the sender's session there, and the text.
    ``probes`` counts the probes by what they came to, ``probe_s`` measures how long they took.
    """

    def __init__(
        self,
        *,
        on_local: Callable[[], None] = lambda: None,
        on_message: Callable[[Node, int, str], None] = lambda _node, _pid, _payload: None,
        getaddrinfo: Resolver = socket.getaddrinfo,
    ) -> None:
        self.changed = News()
        self.probes: collections.Counter[str] = collections.Counter()
        self.probe_s = Histogram(*_PROBE_S)
        self._on_local = on_local
        self._on_message = on_message
        self._getaddrinfo = getaddrinfo
        self._bucket = _bucket()
        self._connect_slots = ConnectSlots(_SLOTS, patience_s=_SLOT_S)
        self._connector = Connector()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: dict[Node, _Watcher] = {}
        self._local: _Watcher | None = None

    def watch(self, config: Config) -> None:
        """Watch the servers of ``config`` from now on. The states of nodes that stay are kept."""
        # The local server is first, and has a bucket of its own: many probes elsewhere must not delay its own.
        if config.has_local:
            interval_s = min(_LOCAL_INTERVAL_S, config.interval_s)
            options = _ProbeOptions(dict(config.local), config.timeout_s, interval_s)
            self._local = self._watcher(self._local, options, _bucket())
            self._local.on_answer = self._on_local
        elif self._local is not None:
            self._local.task.cancel()
            self._local = None
        before = self._watchers
        self._watchers = {}
        logins = {node: config.login(group) for group in reversed(config.groups) for node in group.nodes}
        for node in dict.fromkeys(node for group in config.groups for node in group.nodes):
            conninfo = {**logins[node], "host": node.host, "port": str(node.port)}
            options = _ProbeOptions(conninfo, config.timeout_s, config.interval_s)
            self._watchers[node] = self._watcher(before.pop(node, None), options, self._bucket, node=node)
        for group in config.groups:
            probed = _ProbeGroup([self._watchers[node] for node in group.nodes], config)
            for watcher in probed.watchers:
                watcher.groups.append(probed)
        for gone in before.values():
            gone.task.cancel()

    @property
    def nodes(self) -> dict[Node, NodeState]:
        """What is known of every node now."""
        return {node: watcher.state for node, watcher in self._watchers.items()}

    @property
    def local(self) -> NodeState:
        """What is known of the local server now; nothing where there is none."""
        return self._local.state if self._local is not None else NodeState()

    @property
    def asked_all(self) -> bool:
        """Whether every node and the local server were probed at least once, with or without success."""
        return all(watcher.state.latest is not None for watcher in self._all())

    def check(self) -> None:
        """Raise the exception that ended a watching task, if one did: that is a defect. The task begins anew later."""
        for watcher in self._all():
            if (ended := watcher.task).done():
                watcher.task = self._start(watcher, delay_s=_AFTER_DEFECT_S)
                watcher.fail()
                ended.result()

    def refresh(self) -> None:
        """Ask every server again now."""
        for watcher in self._all():
            watcher.wake()

    def say(self, node: Node, payload: str) -> None:
        """Send a message to the agents that have a session on a node, if that is a primary and we have one there."""
        watcher = self._watchers.get(node)
        if watcher is not None and watcher.talk is not None:
            watcher.talk.say(payload)
        else:
            _log.debug("%s: a message is dropped: not watched", node)

    async def peers(self, node: Node, *, within_s: float) -> frozenset[int] | None:
        """Return the process numbers of the other sessions of our role on a node, which is a primary.

        None if that cannot be told within ``within_s`` seconds.
        """
        watcher = self._watchers.get(node)
        if watcher is None or watcher.talk is None:
            return None
        return await watcher.talk.peers(within_s=within_s)

    async def close(self) -> None:
        """Stop watching and close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _all(self) -> list[_Watcher]:
        return [*self._watchers.values(), *([self._local] if self._local is not None else [])]

    def _watcher(
        self, before: _Watcher | None, options: _ProbeOptions, bucket: TokenBucket, *, node: Node | None = None
    ) -> _Watcher:
        if before is not None and before.options == options:
            before.groups.clear()
            return before
        if before is not None:
            before.task.cancel()
        talk = Talk(str(node), functools.partial(self._on_message, node)) if node is not None else None
        watcher = _Watcher(
            Prober(
                options.conninfo,
                timeout_s=options.timeout_s,
                getaddrinfo=self._getaddrinfo,
                connector=self._connector,
                talk=talk,
            ),
            talk=talk,
            options=options,
            state=before.state if before is not None else NodeState(),
            bucket=bucket,
            connect_slots=self._connect_slots,
            changed=self.changed,
            on_probe=self._count,
        )
        watcher.task = self._start(watcher)
        return watcher

    def _start(self, watcher: _Watcher, *, delay_s: float = 0.0) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(watcher.run(delay_s=delay_s))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _count(self, seen: Observation) -> None:
        self.probes[seen.result.value] += 1
        self.probe_s.observe((seen.answered_at or boottime()) - seen.at)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.changed.set()  # wakes the agent's loop, which calls check()


class _ProbeOptions(NamedTuple):
    """The options that a running watcher cannot change."""

    conninfo: dict[str, str]
    timeout_s: float
    interval_s: float


class _Watcher:
    """Keeps probing one server, and keeps its state."""

    def __init__(
        self,
        prober: Prober,
        *,
        talk: Talk | None,
        options: _ProbeOptions,
        state: NodeState,
        bucket: TokenBucket,
        connect_slots: ConnectSlots,
        changed: asyncio.Event,
        on_probe: Callable[[Observation], None],
    ) -> None:
        self.talk = talk
        self.options = options
        self.state = state
        self.groups: list[_ProbeGroup] = []
        self.on_answer: Callable[[], None] = lambda: None
        self._prober = prober
        self._interval_s = options.interval_s
        self._bucket = bucket
        self._connect_slots = connect_slots
        self._changed = changed
        self._on_probe = on_probe
        self._lost: asyncio.TimerHandle | None = None
        self._wakeup = Wakeup()
        self._prober.on_loss = self._lose
        self._prober.on_quiet = self.wake
        self.task: asyncio.Task[None]

    def wake(self) -> None:
        """Probe now. If a probe is under way, probe once more: its answer may be older than the reason for the call."""
        self._wakeup.set()

    def fail(self) -> None:
        """Note that the server could not be asked, for no fault of its own."""
        self._take(Observation(result=ProbeFailure.UNREACHABLE, at=boottime(), detail="a defect, see the agent's log"))

    async def run(self, *, delay_s: float) -> None:
        """Probe until cancelled, beginning in ``delay_s`` seconds."""
        coming_back = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda seen: seen is None or seen.role is None),
            wait=tenacity.wait_random_exponential(multiplier=UNSETTLED_S, max=self._interval_s),
            before_sleep=self._take_failure,
            sleep=self._wakeup.wait,
        )
        try:
            if delay_s:
                await asyncio.sleep(delay_s)
            while True:
                try:
                    seen = await (self._ask_again() if self._prober.connected else coming_back(self._come_back))
                    if seen is not None:
                        self._on_probe(seen)
                        self._take(seen)
                except MemoryError:  # it may be there again at the next probe
                    self._prober.close()
                    await self._wakeup.wait(self._interval_s)
                if self._prober.connected:
                    await self._wakeup.wait(self._delay_s())
        finally:
            if self._lost is not None:
                self._lost.cancel()
            self._prober.close()

    async def _ask_again(self) -> Observation | None:
        """Ask over the open connection."""
        if self._delay_s() < self._interval_s:
            await self._bucket.take(1)
        return await self._prober.ask()

    async def _come_back(self) -> Observation | None:
        """Open a connection and ask over it."""
        if self.state.latest is not None:
            await self._bucket.take(_RECONNECT_COST)
            return await self._prober.connect() or await self._prober.ask()
        async with self._connect_slots.slot():
            return await self._prober.connect() or await self._prober.ask()

    def _delay_s(self) -> float:
        return min([self._interval_s, *(group.delay_s(self._interval_s) for group in self.groups)])

    def _lose(self) -> None:
        """Note that the connection died, and connect again at once to learn whether the server died too."""
        if self._lost is not None:
            return
        closed = Observation(result=ProbeFailure.DEAD, at=boottime(), detail="connection closed")
        self._lost = asyncio.get_running_loop().call_later(_LOSS_GRACE_S, self._take, closed)
        self.wake()
        for group in self.groups:
            group.wake()

    def _take_failure(self, attempt: tenacity.RetryCallState) -> None:
        if attempt.outcome is not None and attempt.outcome.result() is not None:
            self._on_probe(attempt.outcome.result())
            self._take(attempt.outcome.result())

    def _take(self, seen: Observation) -> None:
        if self._lost is not None:
            self._lost.cancel()
            self._lost = None
            # A server that rejects just the login is alive (R1). Silence and "starting up" do not disprove a death.
            if seen.result in (ProbeFailure.UNREACHABLE, ProbeFailure.NOT_SERVING):
                seen = dataclasses.replace(seen, result=ProbeFailure.DEAD, detail=f"connection closed; {seen.detail}")
        before, self.state = self.state, self.state.after(seen)
        for group in self.groups:
            group.review(
                role_changed=before.last_role is not self.state.last_role or before.seen_dead != self.state.seen_dead
            )
        if before.change_key != self.state.change_key:
            self._changed.set()
        self.on_answer()


class _ProbeGroup:
    """The watchers of one group. While it does not have exactly one primary, all of them probe more often."""

    def __init__(self, watchers: list[_Watcher], config: Config) -> None:
        self.watchers = watchers
        self._max_age_s = config.max_age_s
        self._unsettled_since: float | None = None

    def delay_s(self, interval_s: float) -> float:
        """Return the seconds until the next probe of a node in it."""
        if self._unsettled_since is None:
            return interval_s
        return unsettled_delay_s(boottime() - self._unsettled_since, interval_s=interval_s)

    def review(self, *, role_changed: bool) -> None:
        """Find out whether the group has exactly one primary, after a probe of one of its nodes."""
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


def _bucket() -> TokenBucket:
    return TokenBucket(rate=1000, burst=100)
