"""Announced stops of other servers: this agent's part in them, and its waiting rooms.

The agent beside a server announces its stop (``own_stop``). Each agent whose names lead there answers, waits until its
statements there have ended, and lets the names lead to waiting rooms until the next server is seen. ``routing.queue``
decides when a name queues, ``hold`` works on a coordinator's own server, ``room`` has the listeners.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import enum
import logging
import threading
from typing import TYPE_CHECKING

import psycopg

from resolver_agent.citus import session
from resolver_agent.config.model import Route
from resolver_agent.control.report import PastWindow, QueueStatus, WindowStatus, wall_time
from resolver_agent.queue import hold
from resolver_agent.queue.message import Kind, Message, render
from resolver_agent.queue.name_rooms import NameRooms
from resolver_agent.routing import queue as routing_queue
from resolver_agent.routing.observation import Role, Stage, Window
from resolver_agent.routing.state import FENCE, Code, TargetKind
from resolver_agent.system import threads
from resolver_agent.system.clock import boottime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from resolver_agent.config.model import Config, Group, Node
    from resolver_agent.observe.observer import Observer
    from resolver_agent.queue.room import Rooms, RoomState
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import Identity, Observation
    from resolver_agent.routing.state import Target

_log = logging.getLogger(__name__)

_STOPS_MAX = 64
"""How many announced stops are kept at a time: more are none of a cluster's."""

_CALLED_OFF_S = 1.5
"""How long after its hook must have ended a server that still runs does not stop."""

_ANSWERED_S = 0.1
"""How soon after asking every node again a round looks at the answers."""

_WRITTEN_S = 1.0
_LINGER_S = 1.0
"""How long a room goes on taking connections after its name has moved: a client may have looked it up just before."""

_OF_STOPS = (Kind.LEAVES, Kind.OTHERS, Kind.STAYS)
_POLL_S = 0.02
_PAST_MAX = 20
_DATABASES_S = 60.0
"""How often it is looked where the local server coordinates: until then a worker that is new is not waited for."""

_AGAIN_S = 2.0
"""How soon it is looked again when a database could not be asked; twice as late each time."""


class _Part(enum.Enum):
    """What this agent does in a stop."""

    HOLD = "hold"  # a coordinator that is a primary: the gate
    ROOM = "room"  # a coordinator's standby: the room at once
    OTHER = "other"  # a worker or another host: the room when all coordinators are clear


@dataclasses.dataclass(slots=True, kw_only=True)
class _Stop:
    """A stop that another agent announced over its session to ``over``.

    ``cleared``: that agent was told that nothing of ours is under way any more. ``held`` is how the work on the local
    server went.
    """

    id: str
    over: Node
    names: tuple[str, ...]
    part: _Part = _Part.OTHER
    cleared: bool = False
    held: hold.Held | None = None


class _Holding:
    """The work on this coordinator's own server, in a thread, for one stop or for several that come together."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.stops: list[_Stop] = []
        self.abort = threading.Event()
        self.forwarded = threading.Event()
        self.in_room: bool | None = None
        self.room_asked = False
        self.result: asyncio.Future[hold.Held] | None = None
        self._written = threading.Event()
        self._changed = changed
        self._loop = asyncio.get_running_loop()

    def to_room(self) -> bool:
        """Have the names lead to their rooms, and wait until they do; called in the thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the agent ends
            self._loop.call_soon_threadsafe(self._ask)
            self._written.wait(_WRITTEN_S)
        return bool(self.in_room)

    def settle(self, *, in_room: bool) -> None:
        """Let ``to_room()`` return."""
        self.in_room = in_room
        self._written.set()

    def _ask(self) -> None:
        self.room_asked = True
        self._changed()


class Windows:
    """The windows of one agent. All methods are for the event loop, and none blocks.

    ``ended`` counts, by name, the windows that are over.
    """

    def __init__(self, observer: Observer, *, rooms: Rooms | None = None) -> None:
        self.ended: collections.Counter[str] = collections.Counter()
        self._observer = observer
        self._rooms = NameRooms(observer, rooms=rooms)
        self._windows: dict[str, Window] = {}
        self._stops: dict[str, _Stop] = {}
        self._holding: _Holding | None = None
        self._decision: Decision | None = None
        self._past: collections.deque[PastWindow] = collections.deque(maxlen=_PAST_MAX)
        self._databases: tuple[str, ...] = ()
        self._knows_databases = False
        self._unheard: list[tuple[Node, Message]] = []
        self._unheard_until = 0.0
        self._lookup = threads.BackgroundCall(observer.changed)
        self._look_at = 0.0
        self._look_again_s = _AGAIN_S
        self._looked_in: tuple[Identity | None, Config | None] = (None, None)
        self._remembered: dict[str, str] = {}

    # --- the rounds

    def resume(self, targets: Iterable[Target], config: Config, *, age_s: float) -> None:
        """Go on with the names that a killed agent left in their rooms, ``age_s`` ago or earlier.

        An agent that is killed again and again must not let them wait for ever.
        """
        now, groups = boottime(), {group.name: group for group in config.groups}
        self._remembered = {target.name: target.address for target in targets}
        for target in targets:
            group = groups.get(target.name)
            if target.kind is TargetKind.QUEUED and group is not None and group.nodes:
                limit_s = max(group.queue.planned_s, group.queue.unplanned_s)
                self._windows[target.name] = Window(
                    id="",
                    node=group.nodes[0],
                    address=target.primary or FENCE,
                    run=None,
                    role=Role.PRIMARY,
                    since=now,
                    until=now + max(0.0, limit_s - age_s),
                    called_off_at=now,
                    stage=Stage.ROOM,
                )
        self._show()

    def tick(self) -> None:
        """Open the rooms of names that queue already, and close all of them while the local server is down."""
        local = self._observer.local
        if local.serves_no_reads:
            self._rooms.close_all()
        elif self._decision is None and (local.role_seen is not None or not self._observer.config.has_local):
            for name in self._windows:
                self._rooms.open(name, before=self._remembered.get(name, ""))
        self._show()

    def prepare(self, decision: Decision) -> bool:
        """Get the rooms ready for a decision, before it is written; return False if it needs a room that cannot be."""
        ready, rooms = True, self._rooms.addresses
        for name, state in decision.groups.items():
            target = state.target
            if target is None:
                continue
            if target.kind is TargetKind.QUEUED:
                ready = self._rooms.open(name, before=target.address) == target.address and ready
            elif name in rooms and _takes(decision, target) and self._rooms.forwards(name) != target.address:
                self._rooms.forward(name, target.address)
        self._show()
        return ready

    def track(self, decision: Decision, *, written: bool, flushed: bool) -> None:
        """Advance every window after a round: end those that are over, tell the other agents, begin what is due."""
        now = boottime()
        self._decision = decision
        for name, window in [*self._windows.items()]:
            self._review_window(name, window, decision, now)
        for name in self._rooms.addresses:
            self._review_room(name, decision, written=written, flushed=flushed)
        self._review_holding(written=written)
        for stop in [*self._stops.values()]:
            self._review_stop(stop, written=written, flushed=flushed)
        self._look_for_databases(now)
        self._take_unheard(now)
        # Not before: only the new decision tells that a primary is lost, and why it can have no room must be kept.
        wanting = {*self._windows, *self._rooms.addresses}
        self._rooms.keep_faults(lambda name: name in wanting or self._lost(name))
        self._show()

    # --- what others announce

    def hear(self, over: Node, message: Message) -> None:
        """Take a message that an agent sent over its session to ``over``."""
        if self._knows_its_part:
            self._take(over, message)
        elif message.kind in _OF_STOPS and len(self._unheard) < _STOPS_MAX:
            self._unheard.append((over, message))
            if message.kind is Kind.LEAVES:
                self._unheard_until = boottime() + message.wait_s
                self._say(_Stop(id=message.id, over=over, names=()), Kind.HELD, coordinator=True, later=True)

    @property
    def _knows_its_part(self) -> bool:
        """Report whether this agent knows what it has to do for a stop; one that has just started does not."""
        local, config = self._observer.local, self._observer.config
        at_rest = not (config.has_local and config.citus) or local.role_seen is None or local.serves_no_reads
        return self._decision is not None and (self._knows_databases or at_rest)

    def _take_unheard(self, now: float) -> None:
        """Take what came before this agent knew its part, as soon as it does, or when nobody waits any longer."""
        if self._knows_its_part or now >= self._unheard_until:
            unheard, self._unheard = self._unheard, []
            for over, message in unheard:
                self._take(over, message)

    def _take(self, over: Node, message: Message) -> None:
        stop = self._stops.get(message.id)
        match message.kind:
            case Kind.LEAVES if stop is None and len(self._stops) < _STOPS_MAX:
                self._begin(over, message)
            case Kind.OTHERS if stop is not None and stop.over == over:
                if stop.part is _Part.OTHER:
                    self._set_stage(stop, Stage.ROOM)
            case Kind.STAYS if stop is not None and stop.over == over:
                for name, window in self._of(stop):
                    self._windows[name] = dataclasses.replace(window, called_off_at=boottime())
                self._observer.refresh()
                asyncio.get_running_loop().call_later(_ANSWERED_S, self._changed)
            case _:
                pass

    def _begin(self, over: Node, message: Message) -> None:
        """Open a window for each name that the stop concerns."""
        now, groups = boottime(), self._observer.config.groups
        views = self._decision.views if self._decision is not None else {}
        seen = (
            view.fresh.get(node) for view in views.values() for node in view.group.nodes if str(node) == message.node
        )
        stops = next((one for one in seen if one is not None), None)
        found = {group.name: self._window(group, over, stops, message, now) for group in groups if stops is not None}
        opened = {name: window for name, window in found.items() if window is not None}
        stop = _Stop(id=message.id, over=over, names=tuple(opened))
        if not opened:
            self._say(stop, Kind.CLEAR)
            return
        self._windows |= opened
        self._stops[stop.id] = stop
        window = next(iter(opened.values()))
        _log.info("%s stops as announced: %s may have to wait", window.address, ", ".join(opened))
        self._take_part(stop)

    def _window(self, group: Group, over: Node, stops: Observation, message: Message, now: float) -> Window | None:
        """Return the window of a name, None where the stop does not concern it.

        A message counts for the groups whose primary it came over, and for the servers of these groups. A name that
        the operator has pinned or paused does not leave its server, so nobody has to wait for it either.
        """
        name, decision = group.name, self._decision
        if decision is None or name not in decision.views or not group.queue.planned_s or decision.by_hand(name):
            return None
        view, own = decision.views[name], decision.groups[name].own
        through, primary = view.fresh.get(over), view.primary.seen
        if through is None or primary is None or through.identity != primary.identity:
            return None
        node, seen = next(((one, at) for one, at in view.fresh.items() if at.identity == stops.identity), (None, None))
        if node is None or seen is None or seen.address is None or seen.role is None:
            return None
        another_claims = (seen.role is Role.PRIMARY) is not (seen.identity == primary.identity)
        if another_claims or (own is not None and group.route is Route.FOLLOW):
            return None
        before, until, stage = self._windows.get(name), now + group.queue.planned_s, Stage.DRAINING
        if before is not None and before.until > now:
            if before.role is Role.PRIMARY and seen.role is Role.STANDBY:
                return None
            if before.run == seen.identity:  # nobody waits longer because it is announced again
                until, stage = before.until, before.stage
        return Window(
            id=message.id,
            node=node,
            address=seen.address,
            run=seen.identity,
            role=seen.role,
            since=now,
            until=until,
            called_off_at=now + message.wait_s + _CALLED_OFF_S,
            stage=stage,
        )

    def _take_part(self, stop: _Stop) -> None:
        """Decide what this agent has to do for a stop, and tell the one who announced it."""
        databases = self._databases
        self._say(stop, Kind.HELD, coordinator=bool(databases), later=bool(databases) and self._busy(stop))
        on_primary = self._decision is not None and self._decision.followed_role is Role.PRIMARY
        if not databases:
            stop.part = _Part.OTHER
        elif on_primary and any(self._leads(name, window) for name, window in self._of(stop)):
            stop.part = _Part.HOLD
        else:
            stop.part = _Part.ROOM
            self._set_stage(stop, Stage.ROOM)
        self._changed()

    def _look_for_databases(self, now: float) -> None:
        """Find out from time to time in which local databases this server is a coordinator.

        Not when a stop is announced: that takes sessions, and while the gate is closed new ones wait at it.
        """
        ended = self._lookup.take()
        if ended is not None:
            self._take_databases(ended, now)
        local, config = self._observer.local, self._observer.config
        if not config.has_local:  # since a reload, perhaps
            self._databases = ()
        run = local.role_seen.identity if local.role_seen is not None else None
        before = self._looked_in
        due = now >= self._look_at or run != before[0] or config is not before[1]  # a reload
        if self._stops or self._lookup.under_way or not due or run is None or local.serves_no_reads:
            return
        self._look_at, self._looked_in = now + _DATABASES_S, (run, config)
        if not config.citus:
            self._databases = ()
        else:
            self._lookup.begin(hold.coordinated_databases, config)

    def _take_databases(self, ended: asyncio.Future[session.Databases], now: float) -> None:
        """Take what was found; what was known of a database that did not answer stays, until it answers again."""
        try:
            found = ended.result()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the names have to be kept
            fault = session.words(error) if isinstance(error, psycopg.Error) else repr(error)
        else:
            unknown = {name: words for name, words in found.faults.items() if name not in found.limited}
            self._databases = (*found.with_citus, *(name for name in self._databases if name in unknown))
            fault = "; ".join(f"{name}: {words}" for name, words in unknown.items())
        asked_again = self._look_again_s > _AGAIN_S
        if not fault:
            self._look_again_s, self._knows_databases = _AGAIN_S, True
            if asked_again:
                _log.info("it is known again in which databases the local PostgreSQL is a coordinator")
            return
        if not asked_again:
            _log.warning("it is not known whether the local PostgreSQL is a coordinator: %s", fault)
        self._look_at = min(self._look_at, now + self._look_again_s)
        self._look_again_s *= 2
        self._knows_databases = self._knows_databases or self._look_again_s > _DATABASES_S

    def _busy(self, stop: _Stop) -> bool:
        """Report whether another stop has to end first: statements that wait in its rooms may hold this server's."""
        if self._holding is not None:
            return self._holding.room_asked
        now = boottime()
        return any(
            window.stage is Stage.ROOM and window.role is Role.PRIMARY and window.id != stop.id and now < window.until
            for window in self._windows.values()
        )

    def _leads(self, name: str, window: Window) -> bool:
        state = self._decision.groups.get(name) if self._decision is not None else None
        return state is not None and state.target is not None and state.target.address == window.address

    def _of(self, stop: _Stop) -> list[tuple[str, Window]]:
        found = ((name, self._windows.get(name)) for name in stop.names)
        return [(name, window) for name, window in found if window is not None and window.id == stop.id]

    def _set_stage(self, stop: _Stop, stage: Stage) -> None:
        for name, window in self._of(stop):
            self._windows[name] = dataclasses.replace(window, stage=stage)
        self._changed()

    # --- reviews after a round

    def _review_holding(self, *, written: bool) -> None:
        """Begin the work on the local server when a stop needs it, and take its results."""
        holding = self._holding
        if holding is None:
            waiting = [
                stop
                for stop in self._stops.values()
                if stop.part is _Part.HOLD and stop.held is None and self._of(stop)  # its names may be gone
            ]
            if waiting and self._rooms.why_none is not None:  # this server stops itself
                for stop in waiting:
                    stop.held = hold.Held(fault=self._rooms.why_none)
                    self._clear(stop)
            elif waiting and not self._busy(waiting[0]):
                self._hold(waiting)
            return
        if not any(self._of(stop) for stop in holding.stops):
            holding.forwarded.set()
            if not holding.room_asked:  # the stop was called off: nobody has to wait at the gate any longer
                holding.abort.set()
        if not holding.room_asked and not holding.abort.is_set():  # a stop that comes before the names queue joins
            holding.stops += [
                stop
                for stop in self._stops.values()
                if stop.part is _Part.HOLD and stop.held is None and stop not in holding.stops
            ]
        elif holding.in_room is None:
            self._go_to_room(holding, written=written)
        if holding.result is not None and holding.result.done():
            self._holding = None
            self._take_held(holding, holding.result)

    def _go_to_room(self, holding: _Holding, *, written: bool) -> None:
        """Have the names queue, and tell the thread when they do, or that they cannot."""
        draining = [stop for stop in holding.stops if any(one.stage is Stage.DRAINING for _, one in self._of(stop))]
        if draining:
            for stop in draining:
                self._set_stage(stop, Stage.ROOM)
            return  # the next round decides
        windows = [one for stop in holding.stops for one in self._of(stop)]
        if any(name in self._observer.no_room for name, _ in windows):
            holding.settle(in_room=False)
            for stop in holding.stops:  # the gate stays closed until there is a primary: so it must not be waited for
                self._clear(stop)
        elif written and not any(self._leads(name, window) for name, window in windows):
            holding.settle(in_room=True)
            holding.forwarded.set()  # a thread that has stopped waiting for the file keeps the gate closed until now
        elif all(boottime() >= window.until for _, window in windows):
            holding.settle(in_room=False)
            holding.forwarded.set()

    def _hold(self, stops: list[_Stop]) -> None:
        holding = self._holding = _Holding(self._changed)
        holding.stops = stops
        config = self._observer.config
        drain_s = max(group.queue.drain_s for group in config.groups if group.name in stops[0].names)

        def leaving() -> tuple[hold.Leaving, ...]:
            windows = {window.address: window for stop in [*holding.stops] for _, window in self._of(stop)}
            return tuple(
                hold.Leaving(name=str(window.node), host=window.node.host, address=address, port=window.node.port)
                for address, window in windows.items()
                if window.role is Role.PRIMARY
            )

        holding.result = threads.start(
            lambda: hold.hold(
                config,
                self._databases,
                leaving=leaving,
                to_room=holding.to_room,
                abort=holding.abort,
                forwarded=holding.forwarded,
                drain_s=drain_s,
            )
        )
        holding.result.add_done_callback(lambda _: self._changed())

    def _take_held(self, holding: _Holding, result: asyncio.Future[hold.Held]) -> None:
        """Take the end of the work on the local server; in any case the names queue from here on."""
        try:
            held = result.result()
        except Exception as error:  # noqa: BLE001 -- whatever it is, everything was undone
            level = logging.WARNING if isinstance(error, hold.HoldError) else logging.ERROR
            _log.log(level, "statements are not held at the gate: %s", error, exc_info=level == logging.ERROR)
            held = hold.Held(fault=str(error))
        else:
            _log.info("%s", held)
        for stop in holding.stops:
            stop.held = held
            if not holding.abort.is_set():
                self._set_stage(stop, Stage.ROOM)
            elif not stop.cleared:  # the other server must not wait for one that stops itself
                self._clear(stop)

    def _review_stop(self, stop: _Stop, *, written: bool, flushed: bool) -> None:
        """Say that nothing of ours is under way on the server that stops, as soon as that is so."""
        windows = self._of(stop)
        if not windows and (stop.cleared or self._holding is None):
            del self._stops[stop.id]
            if not stop.cleared:
                self._clear(stop)
        if stop.cleared or (stop.part is _Part.HOLD and stop.held is None):
            return
        in_rooms = written and all(window.stage is Stage.ROOM for _, window in windows)
        unable = [name for name, _ in windows if name in self._observer.no_room]
        moved = not any(self._leads(name, window) for name, window in windows)
        if in_rooms and (unable or (moved and flushed)):
            self._clear(stop)

    def _clear(self, stop: _Stop) -> None:
        stop.cleared = True
        self._say(stop, Kind.CLEAR, left=stop.held.left_count if stop.held is not None else 0)

    def _review_window(self, name: str, window: Window, decision: Decision, now: float) -> None:
        """End a window that is over; one that was in vain stays as an alert until a primary is seen."""
        view, state = decision.views.get(name), decision.groups.get(name)
        queues = state is not None and state.target is not None and state.target.kind is TargetKind.QUEUED
        if view is None or state is None or (decision.by_hand(name) and not queues):
            del self._windows[name]
            return
        over = routing_queue.ended(window, view)
        expired = now >= window.until
        if not queues and (over or (expired and view.primary.seen is not None)):
            del self._windows[name]
            words = over or "the time is over"
            held = self._stops[window.id].held if window.id in self._stops else None
            if held is None and name not in self._rooms.addresses:
                return  # it concerned nobody here
            # By then the last connections have been taken from the room.
            asyncio.get_running_loop().call_later(
                _LINGER_S + _POLL_S, self._note_end, name, window, words, now - window.since, held
            )

    def _review_room(self, name: str, decision: Decision, *, written: bool, flushed: bool) -> None:
        """Close a room whose name leads to a server again, once no session is sent there any more."""
        state = decision.groups.get(name)
        target = state.target if state is not None else None
        window = self._windows.get(name)
        if target is not None and target.kind is TargetKind.QUEUED:
            return
        if self._rooms.forwards(name) is not None:
            if written and flushed:
                why = f"{target.address} takes them" if target is not None else "the name is gone"
                self._rooms.close(name, why, after_s=_LINGER_S)
        elif window is None or window.stage is Stage.ROOM:
            self._rooms.close(name, "nobody takes them")

    def _show(self) -> None:
        """Give the next decision the windows, and the names that can have no room."""
        self._observer.windows = dict(self._windows)
        self._observer.rooms = self._rooms.addresses
        self._observer.no_room = self._rooms.faults

    def _lost(self, name: str) -> bool:
        view = self._decision.views.get(name) if self._decision is not None else None
        return view is not None and view.memory.lost_at is not None

    def give_up(self, run: Identity | None) -> None:
        """Close all rooms and undo what is under way, because the local server, in this run, is about to stop."""
        self._rooms.give_up(run)
        if self._holding is not None:
            self._holding.abort.set()
        self._changed()

    def take_back(self) -> None:
        """Allow rooms again: the local server does not stop."""
        self._rooms.take_back()
        self._changed()

    # --- seen from outside

    def status(self, now: float) -> QueueStatus:
        """Return the windows that are open, and the last ones."""
        return QueueStatus(
            coordinates=self._databases,
            open=tuple(
                WindowStatus(
                    name=name,
                    node=str(window.node),
                    stage=window.stage.value,
                    since=wall_time(window.since, now=now),
                    left_s=round(max(0.0, window.until - now), 1),
                    waiting=self._rooms.waiting(name),
                )
                for name, window in self._windows.items()
            ),
            past=tuple(self._past),
        )

    @property
    def room_totals(self) -> Mapping[str, RoomState]:
        """What became of those who came to the waiting rooms of each name, in this run."""
        return self._rooms.totals

    async def stop(self) -> None:
        """Undo what is under way, close all rooms, and let forwarded connections end for a while."""
        if self._holding is not None:
            self._holding.abort.set()
            if self._holding.result is not None:
                await asyncio.wait({self._holding.result}, timeout=_WRITTEN_S)
        await self._rooms.stop()

    def _note_end(self, name: str, window: Window, why: str, took_s: float, held: hold.Held | None) -> None:
        state = self._rooms.state(name)
        past = PastWindow(
            name=name,
            node=str(window.node),
            why=why,
            took_s=round(took_s, 2),
            forwarded=state.forwarded,
            failed=state.failed,
            longest_wait_s=round(state.longest_wait_s, 2),
            gate_ms=round(held.closed_ms) if held is not None else 0,
            drain_ms=round(held.drain_ms) if held is not None else 0,
            left=held.left if held is not None else (),
        )
        self._past.append(past)
        self.ended[name] += 1
        _log.info("%s", past, extra={"name_": past.name, "node": past.node})

    def _say(self, stop: _Stop, kind: Kind, *, coordinator: bool = False, later: bool = False, left: int = 0) -> None:
        message = Message(kind=kind, id=stop.id, coordinator=coordinator, later=later, left=left)
        self._observer.say(stop.over, render(message))

    def _changed(self) -> None:
        self._show()
        self._observer.changed.set()


def _takes(decision: Decision, target: Target) -> bool:
    """Report whether a name leads to a server that was seen, and not to one that is merely remembered."""
    view = decision.views.get(target.name)
    if target.kind is TargetKind.FALLBACK:
        return view is not None and view.primary.seen is not None
    return target.reason.code in (Code.PRIMARY, Code.LEADER, Code.LAST_PRIMARY, Code.STANDBY)
