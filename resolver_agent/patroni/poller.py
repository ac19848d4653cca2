"""Polls Patroni: each node's API for the leader lock, and one API of each group for the members."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from resolver_agent.patroni import client
from resolver_agent.patroni.client import ApiError, read_members
from resolver_agent.patroni.membership import Answer, Member, Placement, find_scope, find_status, remember, scope_alerts
from resolver_agent.routing.observation import PatroniStatus
from resolver_agent.routing.state import Alert, AlertCode
from resolver_agent.system import threads
from resolver_agent.system.clock import boottime
from resolver_agent.system.pacing import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from resolver_agent.config.model import Group, Node, PatroniApi
    from resolver_agent.patroni.client import Fetch, Reply

_T = TypeVar("_T")


class NodeApi:
    """The REST API of one node's own Patroni, asked by ``run()`` at the pace that is set.

    ``answer`` is its last answer, ``asked`` whether it was asked at all. ``fault`` is since when it has not answered,
    and why. ``on_turn`` is called after each request, with the previous answer.
    """

    def __init__(
        self,
        node: Node,
        api: PatroniApi,
        *,
        fetch: Fetch,
        timeout_s: float,
        on_turn: Callable[[NodeApi, Answer | None], None],
    ) -> None:
        self.node = node
        self.api = api
        self.timeout_s = timeout_s
        self.answer: Answer | None = None
        self.asked = False
        self.fault: tuple[float, str] | None = None
        self._fetch = fetch
        self._on_turn = on_turn
        self._pace_s = self._due = float("inf")
        self._wakeup = Wakeup()
        self._running: asyncio.Future[Any] | None = None

    async def run(self) -> None:
        """Ask for the leader lock at the set pace, until cancelled."""
        now = asyncio.get_running_loop().time
        while True:
            while (left_s := self._due - now()) > 0:
                await self._wakeup.wait(left_s)
            self._due = now() + self._pace_s
            await self.ask_leader()

    def set_pace(self, pace_s: float, *, delay_s: float = 0.0) -> None:
        """Ask every ``pace_s`` seconds; where that is faster than before, ask next in ``delay_s`` seconds."""
        faster = pace_s < self._pace_s
        self._pace_s = pace_s
        if faster:
            self.hurry(delay_s=delay_s)

    def hurry(self, *, delay_s: float = 0.0) -> None:
        """Ask in ``delay_s`` seconds at the latest, even if a request is under way."""
        self._due = min(self._due, asyncio.get_running_loop().time() + delay_s)
        self._wakeup.set()

    async def ask_leader(self) -> None:
        """Ask now whether the node holds the leader lock."""
        before, pace_s = self.answer, self._pace_s
        try:
            at, told = await self.ask("/leader", client.read_leadership)
            leads = (await self.ask("/primary", client.read_primary))[1] if told.in_doubt else told.leads
        except ApiError as error:
            self.fault = (self.fault[0] if self.fault else boottime(), str(error))
            if before is not None:  # the pace may have been slower then, and the answer valid for longer
                until = min(before.until, before.at + pace_s + self.timeout_s)
                self.answer = dataclasses.replace(before, until=until)
        else:
            until = at + pace_s + self.timeout_s
            self.answer = Answer(at=at, until=until, leads=leads, scope=told.scope, system_id=told.system_id)
            self.fault = None
        self.asked = True
        self._on_turn(self, before)

    async def ask(self, path: str, read: Callable[[Reply], _T]) -> tuple[float, _T]:
        """Return when the request began, and what ``read`` makes of the answer.

        Raises:
            ApiError: there is no answer within ``timeout_s`` seconds, an earlier request has not ended within them, or
                the request cannot be made.
        """
        while self._running is not None and not self._running.done():
            await self._wait_for(self._running)
        begun = boottime()
        get = partial(self._fetch, self.node.host, self.api, path, self.timeout_s)
        running = self._running = threads.start(client.attempt, get, read)
        await self._wait_for(running)
        if isinstance(running.exception(), threads.NoThreadError):
            raise ApiError("this node has no thread for it")
        told = running.result()
        if isinstance(told, ApiError):
            raise told
        return begun, told

    async def _wait_for(self, running: asyncio.Future[Any]) -> None:
        """Wait for a request. After the time limit it ends by itself: a name lookup cannot be interrupted."""
        await asyncio.wait({running}, timeout=self.timeout_s)
        if not running.done():
            raise client.silence(self.timeout_s)


_LISTS_COUNT = 3
"""The states of a list of members count until this many more lists should have come."""

_NO_STATUS = PatroniStatus()


class PatroniGroup:
    """The nodes of a group, with those that Patroni added; ``run()`` asks one of them at a time for the members.

    ``on_news`` is called when an answer has to be reviewed, ``on_members`` when members have to be placed. ``status``
    is what Patroni said at the last review, None where it said nothing; it has to be reviewed again at ``expires_at``.
    """

    def __init__(
        self,
        group: Group,
        api: PatroniApi,
        *,
        gone_after_s: float,
        on_news: Callable[[PatroniGroup], None],
        on_members: Callable[[], None],
    ) -> None:
        self.group = group
        self.api = api
        self.calm_s = 0.0
        self.apis: dict[Node, NodeApi] = {}
        self.members: dict[Node, Member] = {}
        self.placement = Placement()
        self.status: PatroniStatus | None = None
        self.expires_at = float("inf")
        self.scope: str | None = None
        self.own: Collection[Node] = ()
        self._gone_after_s = gone_after_s
        self._on_news = on_news
        self._on_members = on_members
        self._placed = self._was_heard = False
        self._counts_until = 0.0
        self._listed_with: PatroniApi | None = None
        self._fault: tuple[float, str] | None = None
        self._turn = 0
        self._scope_found = Wakeup()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes to ask: those configured, then those that joined."""
        return (*self.group.nodes, *self.placement.joined)

    @property
    def heard(self) -> bool:
        """Whether the members were placed, a request for them failed, or no API can be asked for them."""
        tried = self._placed or self._fault is not None
        return tried or (all(api.asked for api in self.apis.values()) and self._whom_to_ask() is None)

    def take(self, placement: Placement) -> None:
        """Set which nodes the members are."""
        self.placement = placement
        self._placed = bool(self.members)

    async def run(self) -> None:
        """Ask for the members every ``calm_s`` seconds, until cancelled."""
        while True:
            await self._list()
            await self._scope_found.wait(self.calm_s)

    def status_at(self, now: float) -> PatroniStatus | None:
        """Return what Patroni says now, as the same object until that changes."""
        return self.status if now < self.expires_at else self._find_word(now)

    def review(self, now: float) -> bool:
        """Apply new answers and expiries; report whether the status has changed, or the first one is there."""
        answers = self._answers
        scope = find_scope(self.scope, answers, asked_all=all(api.asked for api in self.apis.values()))
        if scope != self.scope:
            self.scope = scope
            self._scope_found.set()
        expiries = (*(answer.until for answer in answers.values() if answer.leads), self._counts_until)
        self.expires_at = min((at for at in expiries if at > now), default=float("inf"))
        before = (self.status, self._was_heard)
        self.status = self._find_word(now)
        self._was_heard = self.heard
        return before != (self.status, self._was_heard)

    def alerts(self, *, failing_since: float) -> list[Alert]:
        """Return why this group's Patroni does not count, with the APIs that have failed since ``failing_since``."""
        alerts = [*scope_alerts(self.group.name, self.scope, self._answers), *self.placement.alerts]
        for node, api in self.apis.items():
            if api.fault is not None and api.fault[0] <= failing_since:
                text = f"Patroni at {node.host} cannot be asked: {api.fault[1]}"
                alerts.append(Alert(AlertCode.PATRONI, text, of=(str(node),)))
        if self._fault is not None and self._fault[0] <= failing_since:
            text = f"{self.group.name}: Patroni does not say who the members are: {self._fault[1]}"
            alerts.append(Alert(AlertCode.MEMBERS, text, of=(self.group.name,)))
        return alerts

    def _find_word(self, now: float) -> PatroniStatus | None:
        if now < self._counts_until:
            excluded = self.placement.excluded
        else:  # R1: a state changes by itself, but a tag is configuration, which silence does not revoke
            excluded = self.placement.tagged if self._listed_with == self.api else {}
        status = find_status(self._answers, self.scope, excluded, now=now)
        if status == (self.status or _NO_STATUS):
            return self.status  # the same object: routing compares statuses by identity
        return status if status != _NO_STATUS else None

    @property
    def _answers(self) -> dict[Node, Answer]:
        return {node: api.answer for node, api in self.apis.items() if api.answer is not None}

    async def _list(self) -> None:
        api = self._whom_to_ask()
        if api is None:
            self._fault = None  # each node has an alert of its own that its API does not answer
            return
        listed_with = self.api
        try:
            at, listed = await api.ask("/cluster", read_members)
        except ApiError as error:
            self._fault = (self._fault[0] if self._fault else boottime(), f"{error} (at {api.node.host})")
            self._turn += 1
        else:
            self._fault = None
            self._listed_with = listed_with
            self._counts_until = at + _LISTS_COUNT * self.calm_s + api.timeout_s
            before, self.members = self.members, remember(self.members, listed, now=at, gone_after_s=self._gone_after_s)
            if self.members != before:
                self._on_members()
        self._on_news(self)

    def _whom_to_ask(self) -> NodeApi | None:
        """Return an API that answered, if possible not the own node's: that one is asked for its claim every second."""
        fit = [api for api in self.apis.values() if api.fault is None and api.answer and api.answer.scope == self.scope]
        fit = [api for api in fit if api.node not in self.own] or fit
        return fit[self._turn % len(fit)] if fit else None
