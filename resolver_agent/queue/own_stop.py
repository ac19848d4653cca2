"""The stop of the local server: announced to the other agents, before Patroni stops it.

Patroni's ``before_stop`` hook asks for it. First everything of this agent that would be in the way of the stop ends.
Then the agent waits for the others, where that is safe, so that nothing is under way on the server when it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from typing import TYPE_CHECKING

import psycopg

from resolver_agent.citus import session
from resolver_agent.config.model import NO_LOCAL
from resolver_agent.control.report import StopAnswer, StopCancelled, StopCheck
from resolver_agent.queue import drain, evidence
from resolver_agent.queue.message import Kind, Message, render
from resolver_agent.system import threads
from resolver_agent.system.clock import boottime
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resolver_agent.config.model import Config, Group, Node
    from resolver_agent.observe.observer import Observer
    from resolver_agent.queue.windows import Windows
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import Identity

    WaitFor = Callable[[Callable[[], bool], float], Awaitable[None]]

_log = logging.getLogger(__name__)

_ANSWER_S = 0.5
"""How long an agent that says nothing, such as one of an older version, delays a stop."""

_BEYOND_DRAIN_S = 3.0
"""What else than the drain takes time on a coordinator: closing cached connections, and growing out (1 s)."""

_SILENCE_S = 0.5
"""How long nobody may say anything before those who are waited for are looked for."""

_EVIDENCE_S = 1.0
"""How long it may take to find out whether a stop may wait: it may be one that must not take any time."""


_PEERS_S = 0.3
_FIRST_LOOK_S = 1.5
"""How long an agent that has just started may look around before it announces a stop."""


@dataclasses.dataclass(slots=True, kw_only=True)
class _Announced:
    """A stop that was announced over the session to ``via``, and the answers by the process of each agent's session."""

    id: str
    via: Node
    run: Identity | None
    held: dict[int, Message] = dataclasses.field(default_factory=dict)
    clear: dict[int, Message] = dataclasses.field(default_factory=dict)
    news: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    @property
    def answered(self) -> set[int]:
        """The agents that have said anything."""
        return {*self.held, *self.clear}

    def keep(self, peers: frozenset[int]) -> None:
        """Wait for nobody whose session has ended: that agent has died, or has lost its way here."""
        self.held = {pid: message for pid, message in self.held.items() if pid in peers}

    def waits_for(self, *, coordinators: bool) -> list[int]:
        """Return the agents that are not clear yet; the coordinators' alone, or all."""
        return [
            pid for pid, one in self.held.items() if pid not in self.clear and (one.coordinator or not coordinators)
        ]


class OwnStop:
    """Announces the stop of the local server. ``decision()`` returns the latest decision."""

    def __init__(self, observer: Observer, windows: Windows, *, decision: Callable[[], Decision]) -> None:
        self._observer = observer
        self._windows = windows
        self._decision = decision
        self._announced: _Announced | None = None
        self._under_way: asyncio.Task[StopAnswer] | None = None
        self._taken_back = False

    def hear(self, pid: int, message: Message) -> None:
        """Take an answer that came over the session with the process ``pid``."""
        announced = self._announced
        if announced is None or announced.id != message.id or message.kind not in (Kind.HELD, Kind.CLEAR):
            return
        answers = announced.held if message.kind is Kind.HELD else announced.clear
        answers[pid] = message
        announced.news.set()

    async def leave(self, *, within_s: float, since_s: float = 0.0, wait_for: WaitFor) -> StopAnswer:
        """Close everything that is in the way of a stop, and wait until no other agent's statements are under way.

        ``since_s`` is how long ago the hook began: on a busy machine it is slow to start. ``wait_for()`` waits for a
        round after which a condition holds, for so many seconds at most. It waits only where that is safe: a primary
        that has lost its lock must die at once. A second caller meanwhile gets the answer of the first.
        """
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.get_running_loop().create_task(self._leave(within_s, since_s, wait_for))
        return await asyncio.shield(self._under_way)

    async def _leave(self, within_s: float, since_s: float, wait_for: WaitFor) -> StopAnswer:
        begun, self._taken_back = boottime(), False
        if self._observer.config.has_local:
            self._windows.give_up(self._run)
        why = await self._why_not_wait(min(within_s, _EVIDENCE_S), begun - since_s, wait_for)
        answer = StopAnswer(waited_ms=0, waited_for=(), left=0, why=why or "")
        if self._taken_back:  # while that was found out
            answer = dataclasses.replace(answer, why="the stop was taken back")
        elif why is None:
            answer = await self._announce(begun, within_s)
        return dataclasses.replace(answer, waited_ms=round((boottime() - begun) * 1000))

    async def _why_not_wait(self, within_s: float, hook_began_at: float, wait_for: WaitFor) -> str | None:
        """Return why the stop must not wait, or None. An agent that has just started may look around first."""
        config = self._observer.config
        if config.has_local and not self._has_looked:
            why = await evidence.why_not_planned(config, within_s=within_s, hook_began_at=hook_began_at)
            if why is not None:
                return why
            await wait_for(lambda: self._has_looked, _FIRST_LOOK_S)
        return self._why_nobody() or await evidence.why_not_wait(
            config, self._observer, within_s=within_s, hook_began_at=hook_began_at
        )

    @property
    def _has_looked(self) -> bool:
        return bool(self._decision().views)

    def check_leave(self) -> StopCheck:
        """Return what ``leave`` would do, as far as that is known without asking."""
        why = self._why_nobody()
        return StopCheck(would_wait=why is None, why=why or "", names=tuple(self._observer.own))

    def cancel_leave(self) -> StopCancelled:
        """Take an announced stop back: the names of the other agents return."""
        announced, self._announced = self._announced, None
        if announced is not None and announced.run != self._run:
            announced = None  # that stop has happened
        if announced is not None:
            self._tell(announced, Kind.STAYS)
            announced.news.set()
        self._windows.take_back()
        not_told_yet = self._under_way is not None and not self._under_way.done() and not self._taken_back
        self._taken_back = True
        return StopCancelled(announced=announced is not None or not_told_yet)

    def _why_nobody(self) -> str | None:
        """Return why no agent is told of a stop, or None."""
        own = self._own_groups()
        if not self._observer.config.has_local:
            return NO_LOCAL
        if not own:
            known = self._has_looked
            return "the local PostgreSQL is not a node of any name" if known else "the agent has not looked around yet"
        if not any(group.queue.planned_s for group in own):
            return "queue.planned is 0"
        return None if self._via() is not None else "no primary of its group is seen, over whose session agents talk"

    @property
    def _run(self) -> Identity | None:
        """The run of the local server that was seen last."""
        local = self._observer.local.role_seen
        return local.identity if local is not None else None

    def _own_groups(self) -> list[Group]:
        return [group for group in self._observer.config.groups if group.name in self._observer.own]

    def _via(self) -> Node | None:
        """Return the primary of the local server's group: agents talk over their sessions to it."""
        for group in self._own_groups():
            view = self._decision().views.get(group.name)
            primary = view.primary.seen if view is not None else None
            if view is not None and primary is not None:
                for node, seen in view.fresh.items():
                    if seen.identity == primary.identity:
                        return node
        return None

    async def _announce(self, begun: float, within_s: float) -> StopAnswer:
        """Tell all agents, and wait until those that answered are clear."""
        why, via, own = self._why_nobody(), self._via(), self._own_groups()
        if why is not None or via is None:
            return StopAnswer(waited_ms=0, waited_for=(), left=0, why=why or "")
        drain_s = max(group.queue.drain_s for group in own)
        node = str(next(iter(self._observer.own.values())))
        peers = await self._observer.peers(via, within_s=_PEERS_S)
        announced = self._announced = _Announced(id=secrets.token_hex(8), via=via, run=self._run)
        told_at, last = boottime(), begun + within_s  # the evidence may have taken long: the others do not pay for it
        until = min(last, told_at + drain_s + _BEYOND_DRAIN_S)
        self._tell(announced, Kind.LEAVES, node=node, wait_s=max(0.0, last - told_at))
        # A busy server may not tell in time who is there: then those are waited for who answer soon.
        await self._until(
            announced, lambda: peers is not None and peers <= announced.answered, min(last, told_at + _ANSWER_S)
        )
        if any(one.later for one in announced.held.values()):
            until = last
        await self._until(announced, lambda: not announced.waits_for(coordinators=True), until)
        self._tell(announced, Kind.OTHERS)
        await self._until(announced, lambda: not announced.waits_for(coordinators=False), until)
        left = sum(one.left for one in announced.clear.values())
        if not left:  # what the coordinators have left to its fate would keep it from an end
            left = await self._drain(min(until, told_at + drain_s))
        unclear = len(announced.waits_for(coordinators=False))
        return StopAnswer(
            waited_ms=0,
            waited_for=(f"{len(announced.answered)}{f' of {len(peers)}' if peers is not None else ''} agents",),
            left=left,
            why=f"{unclear} agents were not clear in time" if unclear else "",
        )

    async def _drain(self, until: float) -> int:
        """Wait until no transaction of Citus is open on the local server, and return how many are.

        The coordinators have waited for theirs. Others are begun on workers, and on standbys of coordinators.
        """
        within_s = until - boottime()
        if not self._observer.config.citus or within_s <= 0:
            return 0
        call = threads.start(_drain_local, self._observer.config, within_s)
        await asyncio.wait({call}, timeout=within_s + drain.POLL_S)
        if not call.done():
            call.add_done_callback(lambda late: late.cancelled() or late.exception())  # asyncio would log it otherwise
            return 0
        try:
            return call.result()
        except (psycopg.Error, OSError) as error:
            _log.warning("it is not known what is under way on the local PostgreSQL: %s", plain(str(error)))
            return 0

    def _tell(self, announced: _Announced, kind: Kind, *, node: str = "", wait_s: float = 0.0) -> None:
        self._observer.say(announced.via, render(Message(kind=kind, id=announced.id, node=node, wait_s=wait_s)))

    async def _until(self, announced: _Announced, done: Callable[[], bool], until: float) -> None:
        """Wait for answers until ``done()``, or until the time is over, or the stop is taken back."""
        while self._announced is announced and not done() and (left_s := until - boottime()) > 0:
            announced.news.clear()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(announced.news.wait(), min(left_s, _SILENCE_S))
            if not announced.news.is_set():
                peers = await self._observer.peers(announced.via, within_s=_PEERS_S)
                if peers is not None:
                    announced.keep(peers)


def _drain_local(config: Config, within_s: float) -> int:
    """Wait until Citus has no transaction open on the local server, and return how many it has in the end.

    Raises:
        psycopg.Error: the server could not be asked.
    """
    until, quiet, left = time.monotonic() + within_s, 0, 0
    with session.connect(config, limit_s=within_s + config.timeout_s) as server:
        while quiet < drain.QUIET and time.monotonic() < until:
            left = len(drain.left(server))
            quiet = 0 if left else quiet + 1
            time.sleep(drain.POLL_S)
    return left
