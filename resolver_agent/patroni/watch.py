"""Watches Patroni for the groups that have it: leader lock, members, and members that must not serve reads.

While Patroni says nothing, SQL alone decides, so no decision waits for Patroni; only the tags that it last listed stay.
``poller`` has one node's API and one group, and ``membership`` what follows from the answers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from typing import TYPE_CHECKING

from resolver_agent.patroni import client
from resolver_agent.patroni.membership import names_to_resolve, place
from resolver_agent.patroni.poller import NodeApi, PatroniGroup
from resolver_agent.routing.observation import LockClaim, PatroniStatus
from resolver_agent.system.clock import boottime
from resolver_agent.system.dns import AddressBook

if TYPE_CHECKING:
    from collections.abc import Collection

    from resolver_agent.config.model import Config, Group, Node, PatroniApi
    from resolver_agent.patroni.client import Fetch
    from resolver_agent.patroni.membership import Answer
    from resolver_agent.routing.state import Alert
    from resolver_agent.system.dns import Resolver

_RATE = 100
"""The most requests a second to all calm nodes together, and to all hurried ones: with more nodes each is asked less.

Together with the time limit of a request this bounds the number of threads.
"""

_TOGETHER_S = 0.2
"""How long a changed list of members waits for others: placing members takes long with very many groups."""

_REST = 20
"""Members are not placed again for this many times as long as it took the last time."""


class PatroniWatch:
    """Watches Patroni on the nodes of a configuration, from ``watch()`` to ``close()``.

    ``changed`` is set whenever a status, the list of nodes or the claim of an own node changes. Nodes are asked every
    ``calm_s`` seconds, less often where there are very many. A member leaves when answers have not listed it for
    ``gone_after_s`` seconds. An API that fails for ``patience_s`` seconds is an alert: a restart takes less time.
    """

    def __init__(
        self,
        *,
        changed: asyncio.Event,
        fetch: Fetch = client.fetch,
        getaddrinfo: Resolver = socket.getaddrinfo,
        calm_s: float = 5.0,
        gone_after_s: float = 60.0,
        patience_s: float = 10.0,
    ) -> None:
        self._changed = changed
        self._fetch = fetch
        self._calm_s = calm_s
        self._gone_after_s = gone_after_s
        self._patience_s = patience_s
        self._config: Config | None = None
        self._extended: tuple[Config, Config] | None = None
        self._groups: dict[str, PatroniGroup] = {}
        self._groups_of: dict[Node, list[PatroniGroup]] = {}
        self._apis: dict[Node, NodeApi] = {}
        self._own: frozenset[Node] = frozenset()
        self._hurried: frozenset[str] = frozenset()
        self._addresses = AddressBook(getaddrinfo=getaddrinfo, on_change=self._place_soon)
        self._placing: asyncio.TimerHandle | None = None
        self._placing_took_s = 0.0
        self._tasks: dict[NodeApi | PatroniGroup, asyncio.Task[None]] = {}

    def watch(self, config: Config) -> None:
        """Watch the groups of ``config`` that have Patroni from now on. The state of those that stay is kept."""
        before, self._groups = self._groups, {}
        for group in config.groups:
            if group.patroni is not None:
                watched = before.get(group.name)
                if watched is None or set(watched.group.nodes).isdisjoint(group.nodes):
                    watched = self._make_group(group, group.patroni)
                watched.group, watched.api = group, group.patroni
                self._groups[group.name] = watched
        self._config = config
        self._extended = None
        self._place()

    def own(self, nodes: Collection[Node]) -> None:
        """Ask these nodes, those of the local server, every ``interval``."""
        if self._own != (own := frozenset(nodes)):
            self._own = own
            self._set_paces()

    def hurry(self, names: Collection[str]) -> None:
        """Ask all nodes of these groups now and every ``interval``, until called without them."""
        if self._hurried != (hurried := frozenset(names)):
            self._hurried = hurried
            self._set_paces()

    def refresh_own(self) -> None:
        """Ask the own nodes now, once more where a request is under way."""
        for api in self._own_apis:
            api.hurry()

    async def ask_own(self, *, within_s: float) -> None:
        """Ask the own nodes now, and wait ``within_s`` seconds at most for their answers."""
        asking = [asyncio.ensure_future(api.ask_leader()) for api in self._own_apis]
        try:
            if asking:
                await asyncio.wait(asking, timeout=within_s)
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    @property
    def heard_all(self) -> bool:
        """Whether each group was asked for its members at least once, or has no API that can be asked."""
        return all(watched.heard for watched in self._groups.values())

    @property
    def statuses(self) -> dict[str, PatroniStatus]:
        """What Patroni says now, by name, without the groups of which it says nothing."""
        now = boottime()
        statuses = {name: watched.status_at(now) for name, watched in self._groups.items()}
        return {name: status for name, status in statuses.items() if status is not None}

    def tick(self, now: float) -> None:
        """Apply expired answers; called once a round."""
        for watched in self._groups.values():
            if now >= watched.expires_at and watched.review(now):
                self._changed.set()

    def extended(self, config: Config) -> Config:
        """Return ``config`` with the members that Patroni added, as the same object until they change."""
        if self._extended is None or self._extended[0] is not config:
            joined = {name: nodes for name, watched in self._groups.items() if (nodes := watched.placement.joined)}
            groups = tuple(
                dataclasses.replace(group, nodes=(*group.nodes, *joined[group.name])) if group.name in joined else group
                for group in config.groups
            )
            self._extended = (config, dataclasses.replace(config, groups=groups) if joined else config)
        return self._extended[1]

    def claim(self, node: Node) -> LockClaim | None:
        """Return the last answer of a node's own Patroni about the leader lock."""
        answer = self._apis[node].answer if node in self._apis else None
        if answer is None or any(watched.scope not in (None, answer.scope) for watched in self._groups_of[node]):
            return None
        return LockClaim(answer.at, answer.leads, answer.system_id)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Why a Patroni does not count: an API that fails, a foreign cluster, a member that cannot be a node."""
        watched_groups = self._groups.values()
        found = (
            alert for watched in watched_groups for alert in watched.alerts(failing_since=boottime() - self._patience_s)
        )
        return tuple({alert.key: alert for alert in found}.values())

    @property
    def up(self) -> dict[Node, bool]:
        """Whether the API of each node answered when it was last asked, for those that were asked."""
        return {node: api.fault is None for node, api in self._apis.items() if api.asked}

    def check(self) -> None:
        """Raise the exception that ended a task, if one did: that is a defect."""
        for task in self._tasks.values():
            if task.done():
                task.result()

    async def close(self) -> None:
        """Stop asking. Requests that are under way end by themselves, within their time limit."""
        tasks = list(self._tasks.values())
        self._config, self._groups, self._groups_of, self._apis = None, {}, {}, {}
        self._keep_running()
        self._addresses.want(())
        await asyncio.gather(*tasks, return_exceptions=True)

    def _make_group(self, group: Group, api: PatroniApi) -> PatroniGroup:
        return PatroniGroup(
            group, api, gone_after_s=self._gone_after_s, on_news=self._review, on_members=self._place_soon
        )

    @property
    def _own_apis(self) -> list[NodeApi]:
        return [self._apis[node] for node in self._own if node in self._apis]

    def _place_soon(self) -> None:
        if self._placing is None and self._config is not None:
            delay_s = max(_TOGETHER_S, _REST * self._placing_took_s)
            self._placing = asyncio.get_running_loop().call_later(delay_s, self._place)

    def _place(self) -> None:
        """Find out which nodes the members are, and ask the new ones as well."""
        self._placing = None
        if self._config is None:
            return
        begun = boottime()
        groups, watched_groups = self._config.groups, self._groups
        members = {name: watched.members.values() for name, watched in watched_groups.items()}
        before = {name: watched.placement for name, watched in watched_groups.items()}
        placements = place(groups, members, self._addresses.known, before=before)
        for name, watched in watched_groups.items():
            watched.take(placements[name])
        every = [member for listed in members.values() for member in listed]
        self._addresses.want(names_to_resolve(groups, every) if every else ())
        if any(before[name].joined != placement.joined for name, placement in placements.items()):
            self._extended = None
            self._changed.set()
        self._attach(self._config)
        for watched in watched_groups.values():
            self._review(watched)
        self._placing_took_s = boottime() - begun

    def _attach(self, config: Config) -> None:
        """Ask the nodes of all groups that have Patroni, and stop asking any others."""
        wanted: dict[Node, PatroniApi] = {}
        self._groups_of = {}
        for watched in self._groups.values():
            for node in watched.nodes:
                wanted.setdefault(node, watched.api)
                self._groups_of.setdefault(node, []).append(watched)
        before, self._apis = self._apis, {}
        for node, api in wanted.items():
            known = before.get(node)
            if known is None or (known.api, known.timeout_s) != (api, config.timeout_s):
                answer = known.answer if known is not None and known.api.port == api.port else None
                known = NodeApi(node, api, fetch=self._fetch, timeout_s=config.timeout_s, on_turn=self._take_turn)
                known.answer = answer  # it stands until the next one: an announced promotion may depend on it
            self._apis[node] = known
        for watched in self._groups.values():
            watched.apis = {node: self._apis[node] for node in watched.nodes}
        self._set_paces()
        self._keep_running()

    def _set_paces(self) -> None:
        """Set the pace of each node: the own ones fastest, then those of hurried groups, then all others."""
        if self._config is None:
            return
        interval_s = self._config.interval_s
        calm_s = max(self._calm_s, (len(self._apis) + len(self._groups)) / _RATE)
        hurried = [node for name, watched in self._groups.items() if name in self._hurried for node in watched.nodes]
        hurried_s = max(interval_s, len(hurried) / _RATE)
        paces = {node: (calm_s, number / _RATE) for number, node in enumerate(self._apis)}
        paces |= {node: (hurried_s, number / _RATE) for number, node in enumerate(hurried)}
        paces |= {node: (interval_s, 0.0) for node in self._own if node in self._apis}
        for node, (pace_s, delay_s) in paces.items():
            self._apis[node].set_pace(pace_s, delay_s=delay_s)
        for watched in self._groups.values():
            watched.calm_s, watched.own = calm_s, self._own

    def _keep_running(self) -> None:
        """Start a task for each API and group that has none, and cancel those of removed ones."""
        running: list[NodeApi | PatroniGroup] = [*self._apis.values(), *self._groups.values()]
        for gone in self._tasks.keys() - set(running):
            self._tasks.pop(gone).cancel()
        for one in running:
            if one not in self._tasks:
                self._tasks[one] = asyncio.get_running_loop().create_task(one.run())
                self._tasks[one].add_done_callback(lambda _: self._changed.set())  # wakes the loop, which calls check()

    def _take_turn(self, api: NodeApi, before: Answer | None) -> None:
        """Review a node's groups after a request to it, with or without an answer."""
        for watched in self._groups_of.get(api.node, ()):
            self._review(watched)
        if api.node in self._own and api.answer is not None and (before is None or before.leads != api.answer.leads):
            self._changed.set()

    def _review(self, watched: PatroniGroup) -> None:
        """Review what Patroni says of a group now."""
        if watched.review(boottime()):
            self._changed.set()
