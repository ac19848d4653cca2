"""The answers on the control socket and over HTTP: the status, the plan, metrics, and readiness for a promotion.

The agent's rounds decide and write. A request only reads what they leave behind, or announces a promotion to them.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from resolver_agent.by_hand import ByHand
from resolver_agent.config.load import fingerprint
from resolver_agent.config.model import NO_LOCAL
from resolver_agent.control import before_stop, pre_promote, report
from resolver_agent.metrics import exposition, health
from resolver_agent.metrics.families import families
from resolver_agent.metrics.figures import Counted
from resolver_agent.metrics.http import Answer
from resolver_agent.queue.room import RoomState
from resolver_agent.routing.decide import decide
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import AlertCode
from resolver_agent.system import threads
from resolver_agent.system.clock import boottime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from resolver_agent.changes.changes import Changes
    from resolver_agent.citus.maintenance import CitusMaintenance
    from resolver_agent.config.model import Config
    from resolver_agent.control import server
    from resolver_agent.control.overrides import Overrides
    from resolver_agent.hosts.managed_block import HostsBlock
    from resolver_agent.metrics.figures import Figures
    from resolver_agent.observe.observer import Observer
    from resolver_agent.queue.own_stop import WaitFor
    from resolver_agent.queue.windows import Windows
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.state import Alert

_log = logging.getLogger(__name__)

_ANNOUNCED_S = 1.5
"""How long an announced promotion waits for its answer: the hook may take 3 s, the agent's start included."""

_METRICS_S = 1.0
"""How long the text of the metrics is good for: however often it is asked for, it is made once in this time."""

_NO_PROMOTION = {"error": f"{NO_LOCAL}, so no promotion is announced here"}

_STOP_LIMIT_S = 6.0
"""The longest that a stop may wait, whatever its hook says: the hook is ended after this time."""

_LOOK_YOURSELF = {"look_yourself": True}
"""The answer to a plan that another configuration makes, or one for which nodes have to be asked first."""


class Stops(Protocol):
    """Answers the hook before a stop."""

    async def leave(self, *, within_s: float, since_s: float, wait_for: WaitFor) -> report.StopAnswer:
        """Have the other nodes' statements end before the local server stops; wait ``within_s`` seconds at most.

        ``since_s`` is how long ago the hook began. ``wait_for()`` waits for a round after which a condition holds.
        """

    def check_leave(self) -> report.StopCheck:
        """Return what ``leave`` would do in a planned stop, and change nothing."""

    def cancel_leave(self) -> report.StopCancelled:
        """Take an announced stop back."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """The agent's state between two rounds.

    ``alerts`` are those of this moment; ``lasting`` those at the end of the last round, each with the time (seconds of
    CLOCK_BOOTTIME) at which it began.
    """

    config: Config
    decision: Decision
    alerts: tuple[Alert, ...]
    lasting: tuple[tuple[Alert, float], ...]


class Requests:
    """Answers requests from what the agent's rounds leave behind, as ``state()`` and ``decision()`` return it."""

    def __init__(
        self,
        state: Callable[[], AgentState],
        *,
        decision: Callable[[], Decision],
        observer: Observer,
        block: HostsBlock,
        maintenance: CitusMaintenance,
        windows: Windows,
        stops: Stops,
        changes: Changes,
        figures: Figures,
        overrides: Overrides,
    ) -> None:
        self._state = state
        self._decision = decision
        self._observer = observer
        self._block = block
        self._maintenance = maintenance
        self._windows = windows
        self._stops = stops
        self._changes = changes
        self._figures = figures
        self._metrics_at = float("-inf")
        self._metrics_text: asyncio.Task[str] | None = None
        self._round_over = asyncio.Condition()
        self._by_hand = ByHand(
            overrides,
            observer=observer,
            decision=decision,
            written=lambda: block.says(decision().targets),
            until=self._until,
        )

    @property
    def handlers(self) -> server.Handlers:
        """The handler of each command on the control socket."""
        return {
            "status": self._status,
            "plan": self._plan,
            "pre-promote": self._pre_promote,
            "pre-promote-check": self._check_promotion,
            "pre-promote-cancel": self._cancel_promotion,
            "before-stop": self._before_stop,
            "before-stop-check": self._check_stop,
            "before-stop-cancel": self._cancel_stop,
            "metrics": self._metrics,
            **self._by_hand.handlers,
        }

    @property
    def over_http(self) -> Mapping[str, Callable[[], Awaitable[Answer]]]:
        """The handler of each path over HTTP."""
        checks = {path: partial(self._check_health, check) for path, check in health.CHECKS.items()}
        return {"/metrics": self._metrics_over_http, **checks}

    async def round_over(self) -> None:
        """Wake the requests that wait for a new decision."""
        async with self._round_over:
            self._round_over.notify_all()

    async def _until(self, done: Callable[[], bool], within_s: float) -> None:
        """Wait until ``done()`` after a round, or until the time is over."""
        async with self._round_over:
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._round_over.wait_for(done), within_s)

    def _status(self, _request: dict[str, Any]) -> Awaitable[bytes]:
        return _compute(self._found())

    def _found(self) -> Callable[[], report.Status]:
        """Take what there is now, and return what makes a status of it: with very many names that takes time."""
        now, state = boottime(), self._state()
        seen = self._observer.observations()
        config, decidable = self._observer.config, self._observer.decidable(state.decision, seen)
        flush, recovery = self._maintenance.flush_status, self._maintenance.recovery_status(now)
        queue, pause = self._windows.status(now), self._by_hand.pause
        written, trampled = self._block.says(state.decision.targets), self._block.trampled

        def make() -> report.Status:
            shown = decide(decidable, seen, state.decision.afresh(), now)
            return report.status(
                config,
                shown,
                seen.nodes,
                local=seen.local,
                alerts=state.lasting,
                written=written and shown.targets == state.decision.targets,
                trampled=trampled,
                flush=flush,
                recovery=recovery,
                queue=queue,
                pins=self._by_hand.pins(shown),
                pause=pause,
                now=now,
                since=self._changes.since,
            )

        return make

    async def _metrics(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"text": await self._metrics_now()}

    async def _metrics_over_http(self) -> Answer:
        return Answer(200, (await self._metrics_now()).encode(), exposition.CONTENT_TYPE)

    async def _metrics_now(self) -> str:
        """Return the text of the metrics; all who ask at about the same time get the same one."""
        now = boottime()
        if self._metrics_text is None or (self._metrics_text.done() and now - self._metrics_at > _METRICS_S):
            self._metrics_at = now
            self._metrics_text = asyncio.get_running_loop().create_task(self._render_metrics())
        return await asyncio.shield(self._metrics_text)

    async def _render_metrics(self) -> str:
        make, counted = self._found(), self._counted(boottime())
        return await threads.call(lambda: exposition.render(families(make(), counted)))

    def _counted(self, now: float) -> Counted:
        """Return what the parts of the agent have counted until now."""
        figures, maintenance, observer = self._figures, self._maintenance, self._observer
        epoch = time.time() - now  # of CLOCK_BOOTTIME, by the clock on the wall
        role_seen = {node: state.role_seen for node, state in observer.nodes.items()}
        lasting, names = self._state().lasting, [group.name for group in observer.config.groups]
        return Counted(
            started_at=epoch + figures.started_at,
            round_at=epoch + figures.round_at if figures.round_at is not None else None,
            rounds=figures.rounds,
            failed_rounds=figures.failed_rounds,
            round_s=figures.round_s.snapshot(),
            config_is_current=not any(alert.code is AlertCode.CONFIG for alert, _ in lasting),
            reloads=figures.reloads,
            failed_reloads=figures.failed_reloads,
            promotions=figures.promotions,
            announced=observer.announcements,
            promotion_is_pending=observer.announced is not None,
            holds_lock=observer.observations().holds_lock,
            changes=dict(self._changes.count),
            written_s=self._changes.written_s.snapshot(),
            flushed_s=self._changes.flushed_s.snapshot(),
            probes=dict(observer.probes),
            probe_s=observer.probe_s.snapshot(),
            answered_at={str(node): epoch + seen.at for node, seen in role_seen.items() if seen is not None},
            writes=self._block.writes,
            failed_writes=self._block.failures,
            flushes=maintenance.flusher.flushes,
            failed_flushes=maintenance.flusher.failures,
            recoveries=maintenance.recoverer.passes,
            failed_recoveries=maintenance.recoverer.failures,
            recovered_at=epoch + at if (at := maintenance.recoverer.succeeded_at) is not None else None,
            recovered=maintenance.recoverer.recovered,
            cleaned=maintenance.recoverer.cleaned,
            windows={name: self._windows.ended[name] for name in names},  # from 0 on, or the first ones were not seen
            rooms={name: self._windows.room_totals.get(name, RoomState()) for name in names},
            patroni_up={str(node): up for node, up in observer.patroni_up.items()},
            alerts=dict(collections.Counter(alert.code.value for alert, _ in lasting)),
        )

    async def _check_health(self, check: Callable[[health.Facts], str | None]) -> Answer:
        now, decision, observer = boottime(), self._decision(), self._observer
        claims = [one for one in observer.claims.values() if one is not None]
        latest = max(claims, key=lambda one: one.at, default=None)
        facts = health.Facts(
            config=observer.config,
            decision=decision,
            local=observer.local,
            silent_s=now - self._figures.alive_at,
            written=self._block.says(decision.targets),
            leads=latest.leads if latest is not None and now - latest.at < observer.config.max_age_s else None,
        )
        why = check(facts)
        told = json.dumps({"ok": why is None, "why": why or ""}) + "\n"
        return Answer(200 if why is None else 503, told.encode(), "application/json")

    def _plan(self, request: dict[str, Any]) -> Awaitable[bytes] | dict[str, Any]:
        """Answer with what would be decided now, for an assumed role where one is given."""
        if not self._observer.asked_all:
            return _LOOK_YOURSELF
        state, config, now = self._state(), self._observer.config, boottime()
        assumed = next((role for role in Role if role.value == request.get("role")), None)
        seen = self._observer.observations(assumed)
        local = seen.local if state.config.has_local else None

        def make() -> object:
            if request.get("config") != fingerprint(state.config):
                return _LOOK_YOURSELF
            return report.plan(decide(config, seen, state.decision, now), seen.nodes, local)

        return _compute(make)

    async def _pre_promote(self, request: dict[str, Any]) -> dict[str, Any]:
        """Treat the local server as a primary from now on, and answer once the names are ready, or time is up (R4)."""
        if not self._observer.config.has_local:
            return _NO_PROMOTION
        begun = boottime()
        _log.info("a promotion is announced by %s", request["peer"])
        self._observer.announce()
        await self._until(self._ready_for_writes, _ANNOUNCED_S)
        state = self._state()
        answer: dict[str, Any] = report.as_json(
            report.promotion(
                state.decision,
                written=self._block.says(state.decision.targets),
                flush=self._maintenance.flush_status,
                alerts=state.alerts,
                took_s=boottime() - begun,
            )
        )
        _log.info("pre-promote answered: %s", pre_promote.judge(answer).text)
        return answer

    def _check_promotion(self, _request: dict[str, Any]) -> Awaitable[bytes] | dict[str, Any]:
        """Answer with how the names would move if a promotion were announced, and announce none."""
        if not self._observer.config.has_local:
            return _NO_PROMOTION
        now, before, announced = boottime(), self._decision(), self._observer.announced is not None
        seen = self._observer.observations(Role.PRIMARY)
        config = self._observer.decidable(before, seen)

        def make() -> report.PromotionCheck:
            then = decide(config, seen, before, now)
            addresses = {target.name: target.address for target in before.targets}
            moves = tuple(str(one) for one in then.targets if addresses.get(one.name) != one.address)
            return report.PromotionCheck(announced=announced, moves=moves)

        return _compute(make)

    async def _cancel_promotion(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take an announced promotion back. It waits for no other request."""
        announced = self._observer.call_off()
        if announced:
            _log.info("the announced promotion is taken back by %s", request["peer"])
        holds_lock = self._observer.observations().holds_lock
        answer: dict[str, Any] = report.as_json(report.PromotionCancelled(announced=announced, holds_lock=holds_lock))
        return answer

    async def _before_stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let the local server stop, once the other nodes' statements are over, or at once where it must not wait."""
        within_s, since_s = _hook_s(request.get("within_ms")), _hook_s(request.get("since_ms"))
        begun = boottime()
        _log.info("a stop is announced by %s, who waits %.1f s at most", request["peer"], within_s)
        left = await self._stops.leave(within_s=within_s, since_s=since_s, wait_for=self._until)
        answer: dict[str, Any] = report.as_json(left)
        took_ms = round((boottime() - begun) * 1000)
        _log.info("before-stop answered after %d ms: %s", took_ms, before_stop.judge(answer).text)
        return answer

    async def _check_stop(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Answer with what a planned stop would do. The hook asks this first: it waits for no other request."""
        answer: dict[str, Any] = report.as_json(self._stops.check_leave())
        return answer

    async def _cancel_stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take an announced stop back. It waits for no other request."""
        ended = self._stops.cancel_leave()
        if ended.announced:
            _log.info("the announced stop is taken back by %s", request["peer"])
        answer: dict[str, Any] = report.as_json(ended)
        return answer

    def _ready_for_writes(self) -> bool:
        """Report whether the names of a primary are on disk and flushed, or the promotion is called off."""
        decision = self._decision()
        called_off = self._observer.announced is None and decision.followed_role is Role.STANDBY
        written = self._block.says(decision.targets)
        return called_off or (decision.followed_role is Role.PRIMARY and written and self._maintenance.flushed)


async def _compute(make: Callable[[], object]) -> bytes:
    """Return an answer as JSON. It is made in a thread: with a thousand names it would hold up the loop."""

    def compute() -> bytes:
        # Key by key: no other thread runs while the encoder does.
        parts = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in report.as_json(make()).items())
        return f"{{{', '.join(parts)}}}".encode()

    try:
        return await threads.call(compute)
    except threads.NoThreadError:  # whoever asks now wants to know what is wrong
        return compute()


def _hook_s(milliseconds: object) -> float:
    """Return a time that the hook before a stop gave in milliseconds, in seconds; 0 if it is none of its times."""
    return milliseconds / 1000 if isinstance(milliseconds, int) and 0 <= milliseconds <= _STOP_LIMIT_S * 1000 else 0.0
