"""One node's own Patroni: asked in turns whether it holds the leader lock, and one thing at a time."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from resolver_agent import background, patroni_rest
from resolver_agent.pacing import Bell
from resolver_agent.patroni_rest import ApiError
from resolver_agent.patroni_word import Answer
from resolver_agent.probe import boottime

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from resolver_agent.config import PatroniApi
    from resolver_agent.model import Node
    from resolver_agent.patroni_rest import Fetch, Reply

_T = TypeVar("_T")


class NodeApi:
    """The REST API of the Patroni beside one node, asked by ``run()`` at the pace that is set.

    ``answer`` is its last answer, ``asked`` whether it was asked at all. ``fault`` is since when it has not answered,
    and why. ``on_turn`` is called whenever it was asked, with the answer before.
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
        self._bell = Bell()
        self._running: asyncio.Future[Any] | None = None

    async def run(self) -> None:
        """Ask for the leader lock in turns, until cancelled."""
        now = asyncio.get_running_loop().time
        while True:
            while (left_s := self._due - now()) > 0:
                await self._bell.wait(left_s)
            self._due = now() + self._pace_s
            await self.ask_leader()

    def set_pace(self, pace_s: float, *, delay_s: float = 0.0) -> None:
        """Take turns at this pace; where it is faster than before, the next one is in ``delay_s`` seconds."""
        faster = pace_s < self._pace_s
        self._pace_s = pace_s
        if faster:
            self.hurry(delay_s=delay_s)

    def hurry(self, *, delay_s: float = 0.0) -> None:
        """Ask in ``delay_s`` seconds, if that is not due sooner, and be it just being asked."""
        self._due = min(self._due, asyncio.get_running_loop().time() + delay_s)
        self._bell.ring()

    async def ask_leader(self) -> None:
        """Ask now whether it holds the leader lock."""
        before, pace_s = self.answer, self._pace_s
        try:
            at, told = await self.ask("/leader", patroni_rest.read_leadership)
        except ApiError as error:
            self.fault = (self.fault[0] if self.fault else boottime(), str(error))
            if before is not None:  # it may have been asked more seldom then
                until = min(before.until, before.at + pace_s + self.timeout_s)
                self.answer = dataclasses.replace(before, until=until)
        else:
            until = at + pace_s + self.timeout_s
            self.answer = Answer(at=at, until=until, leads=told.leads, scope=told.scope, system_id=told.system_id)
            self.fault = None
        self.asked = True
        self._on_turn(self, before)

    async def ask(self, path: str, read: Callable[[Reply], _T]) -> tuple[float, _T]:
        """Return when the request was begun, and what ``read`` makes of the answer.

        Raises:
            ApiError: there is none within ``timeout_s`` seconds, or a request before has not ended within them.
        """
        while self._running is not None and not self._running.done():
            await self._wait_for(self._running)
        begun = boottime()
        get = partial(self._fetch, self.node.host, self.api, path, self.timeout_s)
        running = self._running = background.start(patroni_rest.attempt, get, read)
        await self._wait_for(running)
        told = running.result()
        if isinstance(told, ApiError):
            raise told
        return begun, told

    async def _wait_for(self, running: asyncio.Future[Any]) -> None:
        """Wait for a request, which ends by itself where nobody waits any more: a name look-up may take its time."""
        await asyncio.wait({running}, timeout=self.timeout_s)
        if not running.done():
            raise patroni_rest.silence(self.timeout_s)
