"""The answers to ``pin``, ``unpin``, ``pause`` and ``resume``: what the operator wants, and what comes of it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from resolver_agent.config.model import Route
from resolver_agent.control import overrides, report
from resolver_agent.routing.decide import decide
from resolver_agent.routing.observation import Role, nodes_at
from resolver_agent.routing.pin import canonical
from resolver_agent.system import threads
from resolver_agent.system.clock import boottime
from resolver_agent.system.foreign import plain
from resolver_agent.system.suggestion import nearest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from resolver_agent.config.model import Group
    from resolver_agent.observe.observer import Observer
    from resolver_agent.routing.decision import Decision

_log = logging.getLogger(__name__)

_WAIT_S = 1.5
"""How long an answer waits for the round that follows it."""


class _RefusedError(Exception):
    """The request is refused; the message says why."""


class ByHand:
    """Answers the operator.

    ``until(done, within_s)`` waits after rounds until ``done()``. ``written()`` reports whether the hosts file has the
    last decision.
    """

    def __init__(
        self,
        kept: overrides.Overrides,
        *,
        observer: Observer,
        decision: Callable[[], Decision],
        written: Callable[[], bool],
        until: Callable[[Callable[[], bool], float], Awaitable[None]],
    ) -> None:
        self._kept = kept
        self._observer = observer
        self._decision = decision
        self._written = written
        self._until = until
        self._turn = asyncio.Lock()
        """Held while a thread computes for a request: many at once would slow the agent's own rounds."""

    @property
    def handlers(self) -> Mapping[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]]:
        """The handler of each command on the control socket."""
        handlers = {"pin": self._pin, "unpin": self._unpin, "pause": self._pause, "resume": self._resume}
        return {command: partial(self._once_loaded, handler) for command, handler in handlers.items()}

    async def _once_loaded(
        self, handler: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]], request: dict[str, Any]
    ) -> dict[str, Any]:
        """Answer, unless what was decided by hand before has not been read yet: it would be overwritten."""
        if not self._kept.loaded:
            return {"error": "what was pinned or paused before has not been read yet: try again"}
        return await handler(request)

    @property
    def pause(self) -> report.PauseStatus | None:
        """The pause, if there is one."""
        return self._kept.kept.pause

    def pins(self, decision: Decision) -> tuple[report.PinStatus, ...]:
        """Return the pins, with the reason why one does not count in a decision."""
        pins = self._kept.kept.pins
        return tuple(dataclasses.replace(one, ignored=decision.pins.get(one.name)) for one in pins)

    async def _pin(self, request: dict[str, Any]) -> dict[str, Any]:
        """Pin a name, if that counts now."""
        try:
            pin = await self._wanted(await self._group(request), request)
        except _RefusedError as error:
            return {"error": str(error)}
        _log.info("%s is pinned to %s until %s by %s", pin.name, pin.address, pin.until, request["peer"])
        kept = await self._kept.pin(pin)
        await self._until(lambda: self._is_taken_in(pin) and self._written(), _WAIT_S)
        if not self._is_taken_in(pin):
            late = "but nothing has been decided anew yet: `resolver-agent status` says why"
            return {"error": f"{pin.name} is pinned, {late}"}
        answer: dict[str, Any] = report.as_json(
            report.PinAnswer(
                until=pin.until,
                kept=kept,
                written=self._written(),
                ignored=self._decision().pins.get(pin.name),
                target=self._target(pin.name),
            )
        )
        return answer

    async def _unpin(self, request: dict[str, Any]) -> dict[str, Any]:
        """End a pin, also of a name that is gone."""
        name = _text(request, "name").lower().removesuffix(".")
        found = await self._kept.unpin(name)
        if found:
            _log.info("the pin of %s is taken back by %s", plain(name), request["peer"])
            await self._until(lambda: name not in self._decision().pins and self._written(), _WAIT_S)
        answer: dict[str, Any] = report.as_json(
            report.UnpinAnswer(pinned=found, kept=self._kept.saved, target=self._target(name))
        )
        return answer

    async def _pause(self, request: dict[str, Any]) -> dict[str, Any]:
        """Pause all names; a second pause takes the place of the first."""
        try:
            pause = report.PauseStatus(until=_until(request), reason=_reason(request))
        except _RefusedError as error:
            return {"error": str(error)}
        _log.info("names are paused until %s by %s", pause.until, request["peer"])
        kept = await self._kept.set_pause(pause)
        await self._until(lambda: self._decision().paused, _WAIT_S)
        answer: dict[str, Any] = report.as_json(report.PauseAnswer(until=pause.until, kept=kept))
        return answer

    async def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        """End the pause."""
        found = await self._kept.resume()
        if found:
            _log.info("the pause is ended by %s", request["peer"])
            await self._until(lambda: not self._decision().paused and self._written(), _WAIT_S)
        answer: dict[str, Any] = report.as_json(report.ResumeAnswer(paused=found, kept=self._kept.saved))
        return answer

    async def _group(self, request: dict[str, Any]) -> Group:
        name = _text(request, "name").lower().removesuffix(".")
        groups = {group.name: group for group in self._observer.config.groups}
        if name not in groups:
            async with self._turn:
                meant = await threads.call(nearest, name, groups)  # among a thousand that are alike it takes time
            raise _RefusedError(f"there is no name {name!r}: {meant}")
        return groups[name]

    async def _wanted(self, group: Group, request: dict[str, Any]) -> report.PinStatus:
        """Return the pin that a request wants.

        Raises:
            _RefusedError: it would not count now, or the address is no node's and that is not forced.
        """
        told, force = _text(request, "address"), request.get("force") is True
        address = canonical(told)
        if address is None:
            raise _RefusedError(f"{plain(told) or 'nothing'} is no address that a name can have")
        seen, before = self._observer.observations(), self._decision()
        is_known = bool(nodes_at(address, group, seen.nodes))
        pin = report.PinStatus(
            name=group.name,
            address=address,
            wanted_role=self._wanted_role(group).value,
            until=_until(request),
            reason=_reason(request),
            forced=not is_known,
        )
        if group.name not in before.groups:
            raise _RefusedError(f"{group.name} is not pinned: its servers were not all asked yet; try again")
        pins, _ = overrides.to_boottime(overrides.Kept(pins=(pin,)))
        with_it = dataclasses.replace(seen, pins={**seen.pins, **pins})
        async with self._turn:
            then = await threads.call(decide, self._observer.decidable(before, seen), with_it, before, boottime())
        why = then.pins[group.name]
        if why is not None:
            raise _RefusedError(f"{group.name} is not pinned to {address}: {why}")
        if not is_known and not force:
            nodes = ", ".join(node.host for node in group.nodes)
            raise _RefusedError(
                f"{group.name} is not pinned: {address} is the address of none of its nodes ({nodes}); --force pins it "
                "all the same, although nothing is known of that server"
            )
        if group.name not in self._kept.pins and len(self._kept.pins) >= overrides.PINS_MAX:
            raise _RefusedError("too many names are pinned")
        return pin

    def _wanted_role(self, group: Group) -> Role:
        if group.route is not Route.FOLLOW:
            return Role(group.route.value)
        state = self._decision().groups.get(group.name)
        wanted = state.target.wanted_role if state is not None and state.target is not None else None
        return wanted or self._decision().followed_role or Role.PRIMARY

    def _is_taken_in(self, pin: report.PinStatus) -> bool:
        decision = self._decision()
        state = decision.groups.get(pin.name)
        target = state.target if state is not None else None
        leads = target is not None and target.address == pin.address
        return pin.name in decision.pins and (leads or decision.pins[pin.name] is not None)

    def _target(self, name: str) -> str:
        state = self._decision().groups.get(name)
        return str(state.target) if state is not None and state.target is not None else ""


def _text(request: dict[str, Any], key: str) -> str:
    """Return a text of a request, empty where it is none."""
    value = request.get(key)
    return plain(value) if isinstance(value, str) else ""


def _until(request: dict[str, Any]) -> str:
    """Return when the time of a request is over, by the wall clock.

    Raises:
        _RefusedError: it has no sound time.
    """
    for_s = request.get("for_s")
    if not isinstance(for_s, (int, float)) or isinstance(for_s, bool) or not 1 <= for_s <= overrides.LONGEST_S:
        raise _RefusedError(f"the time must be from 1s to {overrides.LONGEST_S / 3600:g}h")
    end = math.ceil(time.time() + for_s)
    return dt.datetime.fromtimestamp(end, tz=dt.timezone.utc).astimezone().isoformat()


def _reason(request: dict[str, Any]) -> str:
    return _text(request, "reason")[: overrides.REASON_MAX]
