"""One group's Patroni: which cluster it is, who its members are, and what the answers of its nodes come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.model import Alert, PatroniWord
from resolver_agent.pacing import Bell
from resolver_agent.patroni_rest import ApiError, read_members
from resolver_agent.patroni_word import Member, Placement, find_scope, find_word, remember, scope_alerts
from resolver_agent.probe import boottime

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from resolver_agent.config import Group, PatroniApi
    from resolver_agent.model import Node
    from resolver_agent.patroni_node import NodeApi
    from resolver_agent.patroni_word import Answer

_LISTS_COUNT = 3
"""A list of members speaks against read targets until this many more should have come."""

_NO_WORD = PatroniWord()


class Circle:
    """The nodes of a group, those that Patroni added included; ``run()`` asks one of them for the members in turns.

    ``on_news`` is called when an answer is to be reviewed, ``on_members`` when members are to be placed. ``word`` is
    what Patroni says, until ``expires_at``; None where that is nothing.
    """

    def __init__(
        self,
        group: Group,
        api: PatroniApi,
        *,
        gone_after_s: float,
        on_news: Callable[[Circle], None],
        on_members: Callable[[], None],
    ) -> None:
        self.group = group
        self.api = api
        self.calm_s = 0.0
        self.apis: dict[Node, NodeApi] = {}
        self.members: dict[Node, Member] = {}
        self.placement = Placement()
        self.word: PatroniWord | None = None
        self.expires_at = float("inf")
        self.scope: str | None = None
        self.own: Collection[Node] = ()
        self._gone_after_s = gone_after_s
        self._on_news = on_news
        self._on_members = on_members
        self._placed = self._was_heard = False
        self._counts_until = 0.0
        self._fault: tuple[float, str] | None = None
        self._turn = 0
        self._scope_found = Bell()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Whom to ask: the configured nodes, then those that joined."""
        return (*self.group.nodes, *self.placement.joined)

    @property
    def heard(self) -> bool:
        """Whether members were placed or asked for in vain at least once, or nobody was there to be asked."""
        tried = self._placed or self._fault is not None
        return tried or (all(api.asked for api in self.apis.values()) and self._whom_to_ask() is None)

    def take(self, placement: Placement) -> None:
        """Take in which nodes the members are."""
        self.placement = placement
        self._placed = bool(self.members)

    async def run(self) -> None:
        """Ask for the members every ``calm_s`` seconds, until cancelled."""
        while True:
            await self._list()
            await self._scope_found.wait(self.calm_s)

    def review(self) -> bool:
        """Take in what was answered; report whether there is another word now, or the first."""
        now = boottime()
        answers = self._answers
        scope = find_scope(self.scope, answers, asked_all=all(api.asked for api in self.apis.values()))
        if scope != self.scope:
            self.scope = scope
            self._scope_found.ring()
        benched = self.placement.benched if now < self._counts_until else {}
        word = find_word(answers, scope, benched, now=now)
        expiries = (*(answer.until for answer in answers.values() if answer.leads), self._counts_until)
        self.expires_at = min((at for at in expiries if at > now), default=float("inf"))
        before = (self.word, self._was_heard)
        if word != (self.word or _NO_WORD):  # else the object stays, so that whoever compares those sees no change
            self.word = word if word != _NO_WORD else None
        self._was_heard = self.heard
        return before != (self.word, self._was_heard)

    def alerts(self, *, failing_since: float) -> list[Alert]:
        """Return what keeps Patroni's word on this group from counting; of APIs those that have failed for so long."""
        alerts = [*scope_alerts(self.group.name, self.scope, self._answers), *self.placement.alerts]
        for node, api in self.apis.items():
            if api.fault is not None and api.fault[0] <= failing_since:
                alerts.append(Alert(f"{node}:patroni", f"Patroni at {node.host} cannot be asked: {api.fault[1]}"))
        if self._fault is not None and self._fault[0] <= failing_since:
            text = f"{self.group.name}: Patroni does not say who the members are: {self._fault[1]}"
            alerts.append(Alert(f"{self.group.name}:members", text))
        return alerts

    @property
    def _answers(self) -> dict[Node, Answer]:
        return {node: api.answer for node, api in self.apis.items() if api.answer is not None}

    async def _list(self) -> None:
        api = self._whom_to_ask()
        if api is None:
            self._fault = None  # that nobody answers is said of each node
            return
        try:
            at, listed = await api.ask("/cluster", read_members)
        except ApiError as error:
            self._fault = (self._fault[0] if self._fault else boottime(), f"{error} (at {api.node.host})")
            self._turn += 1
        else:
            self._fault = None
            self._counts_until = at + _LISTS_COUNT * self.calm_s + api.timeout_s
            before, self.members = self.members, remember(self.members, listed, now=at, gone_after_s=self._gone_after_s)
            if self.members != before:
                self._on_members()
        self._on_news(self)

    def _whom_to_ask(self) -> NodeApi | None:
        """Return one that answered; the own node's API has better to do: it is asked for its claim every second."""
        fit = [api for api in self.apis.values() if api.fault is None and api.answer and api.answer.scope == self.scope]
        fit = [api for api in fit if api.node not in self.own] or fit
        return fit[self._turn % len(fit)] if fit else None
