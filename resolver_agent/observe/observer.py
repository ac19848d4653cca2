"""All observations in one place: the servers by SQL, what Patroni says, and an announced promotion.

``run`` and ``once`` both use it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

from resolver_agent.observe.monitor import Monitor
from resolver_agent.patroni.watch import PatroniWatch
from resolver_agent.routing import local_server
from resolver_agent.routing.local_server import own_nodes
from resolver_agent.routing.observation import NodeState, Observations, Role
from resolver_agent.system.clock import boottime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resolver_agent.config.model import Config, Node
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import LockClaim, Pause, Pin, Window
    from resolver_agent.routing.state import Alert
    from resolver_agent.system.histogram import Histogram
    from resolver_agent.system.pacing import News

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.1


class Observer:
    """Watches the servers of a configuration, from ``watch()`` to ``close()``.

    ``on_local`` is called whenever the local server was asked. ``config`` is the configuration with the members that
    Patroni added. ``own`` is the node that the local server is, by name of its group. ``windows``, ``rooms`` and
    ``no_room`` are those of the observations, kept by ``queue.windows``; so are ``pins`` and ``pause``, kept by
    ``control.overrides``. ``on_message``, ``say`` and ``peers`` are the monitor's. ``announcements`` counts the
    promotions that were announced, the last one at ``announced_at``.
    """

    def __init__(
        self,
        *,
        on_local: Callable[[], None] = lambda: None,
        on_message: Callable[[Node, int, str], None] = lambda _node, _pid, _payload: None,
    ) -> None:
        self.own: dict[str, Node] = {}
        self.announcements = 0
        self.announced: local_server.Announced | None = None
        self.announced_at: float | None = None
        self.windows: Mapping[str, Window] = {}
        self.rooms: Mapping[str, str] = {}
        self.no_room: Mapping[str, str] = {}
        self.pins: Mapping[str, Pin] = {}
        self.pause: Pause | None = None
        self._monitor = Monitor(on_local=on_local, on_message=on_message)
        self._patroni = PatroniWatch(changed=self.changed)

    @property
    def changed(self) -> News:
        """Set whenever something other than an LSN or a time has changed."""
        return self._monitor.changed

    @property
    def nodes(self) -> dict[Node, NodeState]:
        """What is known of every node now."""
        return self._monitor.nodes

    @property
    def local(self) -> NodeState:
        """What is known of the local server now."""
        return self._monitor.local

    @property
    def asked_all(self) -> bool:
        """Whether every server was probed at least once, with or without success."""
        return self._monitor.asked_all

    @property
    def heard_all(self) -> bool:
        """Whether each group's Patroni was asked for the members at least once, and those are watched."""
        return self._patroni.heard_all and self._patroni.extended(self._given) is self.config

    @property
    def alerts(self) -> list[Alert]:
        """What is wrong with Patroni, and an announced promotion that has not happened yet."""
        return [*self._patroni.alerts, *([self.announced.alert] if self.announced is not None else [])]

    @property
    def claims(self) -> dict[str, LockClaim | None]:
        """The local Patroni's last answer about the leader lock, by name of the group."""
        claims = {name: self._patroni.claim(node) for name, node in self.own.items()}
        return {name: claim and local_server.believable(claim, local=self.local) for name, claim in claims.items()}

    @property
    def probes(self) -> Mapping[str, int]:
        """How many probes there were, by what they came to."""
        return self._monitor.probes

    @property
    def probe_s(self) -> Histogram:
        """How long the probes took."""
        return self._monitor.probe_s

    @property
    def patroni_up(self) -> dict[Node, bool]:
        """Whether each node's own Patroni answers, for those that were asked."""
        return self._patroni.up

    def watch(self, config: Config) -> None:
        """Watch the servers of ``config`` from now on. The states of nodes that stay are kept."""
        self._given = config
        if not config.has_local:
            self.announced = None
        self._patroni.watch(config)
        self.config = self._patroni.extended(config)
        self._monitor.watch(self.config)

    def tick(self) -> None:
        """Apply new members, expired answers and the end of an announced promotion; called once a round.

        Raises:
            Exception: the one that ended a watching task, if one did; everything else is done all the same.
        """
        self._patroni.tick(boottime())
        extended = self._patroni.extended(self._given)
        if extended is not self.config:
            self.config = extended
            self._monitor.watch(extended)
        self._review_announcement()
        self._monitor.check()
        self._patroni.check()

    def observations(self, assumed: Role | None = None) -> Observations:
        """Return what is known now; ``assumed`` replaces the role of an announced promotion."""
        return Observations(
            nodes=self.nodes,
            local=self.local,
            assumed=assumed or (Role.PRIMARY if self.announced is not None else None),
            holds_lock=local_server.holds_lock(
                self._latest_claim, local=self.local, now=boottime(), max_age_s=self.config.max_age_s
            ),
            patroni=self._patroni.statuses,
            windows=self.windows,
            rooms=self.rooms,
            no_room=self.no_room,
            pins=self.pins,
            pause=self.pause,
        )

    @property
    def _latest_claim(self) -> LockClaim | None:
        claims = (one for one in self.claims.values() if one is not None)
        return max(claims, key=lambda one: one.at, default=None)

    def _review_announcement(self) -> None:
        """End an announced promotion that has happened or was called off."""
        if self.announced is None:
            return
        self.announced = self.announced.after(self.local)
        ended = local_server.how_it_ended(
            self.announced,
            local=self.local,
            claim=self._latest_claim,
            primary_at=local_server.rival_seen_at(self.config, self.own, self.nodes),
        )
        if ended is not None:
            _log.info("the announced promotion is over: %s", ended)
            self.announced = None

    def decidable(self, decision: Decision, seen: Observations) -> Config:
        """Return the configuration without the names that a reload added and whose nodes were not all asked yet."""
        groups = tuple(
            group
            for group in self.config.groups
            if group.name in decision.groups or all(seen.nodes[node].latest is not None for node in group.nodes)  # A9
        )
        return self.config if groups == self.config.groups else dataclasses.replace(self.config, groups=groups)

    def pressed(self, patience_s: float) -> bool:
        """Report whether a promotion was announced more than ``patience_s`` seconds ago."""
        return self.announced is not None and boottime() - self.announced.since > patience_s

    def announce(self) -> None:
        """Take the local server for a primary until its promotion has happened or was called off."""
        self.announced_at = boottime()
        self.announced = local_server.Announced(since=self.announced_at, receiver_known=False).after(self.local)
        self.announcements += 1
        self.changed.set()

    def call_off(self) -> bool:
        """Take an announced promotion back, and report whether there was one."""
        announced, self.announced = self.announced, None
        self.changed.set()
        return announced is not None

    def track(self, decision: Decision) -> None:
        """Ask Patroni more often where the decision depends on it: the local one, and where its word is in doubt."""
        self.own = own_nodes(self.config, decision, self.nodes)
        self._patroni.own(self.own.values())
        self._patroni.hurry([name for name, view in decision.views.items() if view.doubts_patroni])

    async def news_within(self, seconds: float) -> None:
        """Wait until something has changed, for so many seconds at most."""
        news = asyncio.ensure_future(self.changed.wait())
        try:
            await asyncio.wait({news}, timeout=seconds)  # wait_for() may swallow a cancellation (before Python 3.12)
        finally:
            news.cancel()

    async def look(self) -> None:
        """Wait until every server was probed, and each group's Patroni was asked for the members."""
        while not (self.asked_all and self.heard_all):
            self.changed.clear()
            self.tick()
            await self.news_within(_LOOK_AGAIN_S)

    async def ask_patroni(self, decision: Decision, *, within_s: float) -> None:
        """Ask the local Patroni whether it holds the leader lock, and wait so many seconds at most for the answer."""
        self.track(decision)
        await self._patroni.ask_own(within_s=within_s)

    def say(self, node: Node, payload: str) -> None:
        """Send a message to the agents that have a session on a node, if that is a primary and we have one there."""
        self._monitor.say(node, payload)

    async def peers(self, node: Node, *, within_s: float) -> frozenset[int] | None:
        """Return the process numbers of the other sessions of our role on a node; None if that cannot be told."""
        return await self._monitor.peers(node, within_s=within_s)

    def refresh(self) -> None:
        """Ask every server and the local Patroni again now."""
        self._monitor.refresh()
        self._patroni.refresh_own()

    async def close(self) -> None:
        """Stop watching and close all connections."""
        await self._patroni.close()
        await self._monitor.close()
