"""The queue's parts that touch sockets: waiting rooms, the gate of a coordinator, and what tells a planned stop."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from typing import TYPE_CHECKING, Any

import psycopg

from resolver_agent.citus import flush, session
from resolver_agent.citus.session import LOCK_S, Databases
from resolver_agent.patroni.client import ApiError, Leadership
from resolver_agent.queue import drain, hold, own_stop, windows
from resolver_agent.queue.drain import Open
from resolver_agent.queue.evidence import ServerState
from resolver_agent.queue.gate import GateError, UnderWay
from resolver_agent.queue.room import RoomState
from tests.simulation.blocking import Event, Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from resolver_agent.config.model import Config, Node, PatroniApi
    from resolver_agent.queue.hold import Held
    from tests.simulation.process import Process
    from tests.simulation.world import Host, World


NODES = "pg_dist_node"
"""What an operator may lock, and every first query of a session needs."""
NO_RESULT = "no intermediate result"
_SILENCE_S = 2.0
_NOTICED_S = 0.1
"""So often a request of a gate looks whether its client is there: ``client_connection_check_interval``."""


@dataclasses.dataclass(slots=True, eq=False)
class Room:
    """One waiting room: where it is, whom it forwards to, and until when it takes connections."""

    address: str
    target: str | None = None
    until: float | None = None


class SimulatedRooms:
    """Stands for ``queue.room.Rooms``: no sockets, but clients of this host find the room by its address."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.rooms: dict[str, Room] = {}
        process.rooms = self

    @property
    def totals(self) -> dict[str, RoomState]:
        """What became of those who came."""
        return {name: RoomState() for name in self.rooms}

    def open(self, name: str, address: str, _port: int) -> str | None:
        """Let connections wait; there is no room on a host whose PostgreSQL listens everywhere."""
        if self._process.host.no_rooms:
            return f"{address} is in use"
        room = self.rooms.get(name)
        if room is None or room.address != address or room.target is not None or not self.is_open(name):
            self.rooms[name] = Room(address)
        return None

    def forward(self, name: str, host: str, _port: int) -> None:
        """Forward what waits, and what comes."""
        if name in self.rooms:
            self.rooms[name].target, self.rooms[name].until = host, None

    def close(self, name: str, *, after_s: float = 0.0) -> None:
        """Take no more connections, at once or a little later."""
        room = self.rooms.get(name)
        if room is not None:
            room.until = self._process.world.now + (after_s if room.target is not None else 0.0)

    def close_all(self) -> None:
        """Close all of them."""
        for room in self.rooms.values():
            room.until = self._process.world.now

    def is_open(self, name: str) -> bool:
        """Report whether a room is open."""
        room = self.rooms.get(name)
        return room is not None and room.until is None

    def state(self, _name: str) -> RoomState:
        """Return what became of those who came."""
        return RoomState()

    async def stop(self) -> None:
        """Close all of them."""
        self.close_all()

    def process_ended(self) -> None:
        """Close all of them: the sockets of a killed process are gone, and so is its gate."""
        self.rooms.clear()
        gate = self._process.host.gate
        if gate is not None:
            gate.until = min(gate.until, self._process.world.now + _NOTICED_S)

    def find(self, name: str, address: str) -> Room | None:
        """Return the room at an address, if it takes connections."""
        room = self.rooms.get(name)
        now = self._process.world.now
        return (
            room if room is not None and room.address == address and (room.until is None or now < room.until) else None
        )


@dataclasses.dataclass(slots=True, eq=False)
class Gate:
    """The gate of a coordinator: statements that have not begun wait while it is closed; it opens by itself."""

    until: float = 0.0


def is_closed(host: Host, now: float) -> bool:
    """Report whether statements that have not begun wait on a host."""
    return host.gate is not None and now < host.gate.until


def _host_of(world: World, config: Config) -> Host:
    return world.hosts[int(config.path.split("/")[2])]


def coordinated_databases(world: World) -> Callable[[Config], Databases]:
    """Stand for ``queue.hold.coordinated_databases``."""

    def find(config: Config) -> Databases:
        host = _host_of(world, config)
        if not (host.server.up and host.server.serving):
            raise psycopg.OperationalError("connection refused")
        if NODES in host.server.locks:
            return Databases((), {"citus": "canceling statement due to lock timeout"})
        return Databases(("citus",) if host.group.name == "cn" else (), {})

    return find


class _Local:
    """What ``queue.hold`` and ``queue.own_stop`` do with their local server, in a thread; each step takes time."""

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host
        self.run = host.server.run

    def step(self, low: float = 0.0005, high: float = 0.003) -> None:
        """Send something, and wait for the answer.

        Raises:
            psycopg.OperationalError: the server has gone.
        """
        Worker.current.pause(self.world.between(low, high))
        server = self.host.server
        if server.stopped:
            Worker.current.pause(_SILENCE_S)
        if not (self.host.up and server.up and server.serving and server.run == self.run) or server.stopped:
            raise psycopg.OperationalError("the local PostgreSQL does not answer")

    def wait_for_nodes(self, within_s: float) -> None:
        """Wait until no operator has locked ``pg_dist_node``.

        Raises:
            GateError: not within that time.
        """
        until = self.world.now + within_s
        while NODES in self.host.server.locks:
            if self.world.now > until:
                raise GateError("canceling statement due to lock timeout")
            self.step(drain.POLL_S, drain.POLL_S)

    def execute(self, _query: str) -> None:
        """Stand for a session."""
        self.step()


class _Gate:
    """Stands for ``queue.gate.Gate``."""

    node_id = 1

    def __init__(self, local: _Local, lock_s: float) -> None:
        self._local = local
        self._lock_s = lock_s
        self._world_gate = local.host.gate = Gate()
        self._is_kept = False

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._local.world.now < self._world_gate.until and self._local.host.server.run == self._local.run

    @property
    def fault(self) -> str | None:
        """Why it is not."""
        return None if self.closed else "it has ended"

    def keep(self, *, within_s: float) -> None:
        """Have the keeper take its lock."""
        self._local.step()
        self._local.wait_for_nodes(within_s)
        self._is_kept = True

    def close(self, *, within_s: float) -> None:
        """Close it. Without a keeper the request is granted, and hangs the standbys."""
        del within_s
        self._local.step()
        if not (self._is_kept or any(one.inside for one in self._local.host.server.sessions)):
            self._local.world.judge.gate_granted(self._local.host)
        self._world_gate.until = self._local.world.now + self._lock_s

    def open(self) -> None:
        """Open it; that of a killed process opens by itself."""
        if not Worker.current.is_killed:
            self._world_gate.until = 0.0

    def under_way(self) -> list[UnderWay]:
        """Return who is at work."""
        self._local.step()
        now = self._local.world.now
        return [
            UnderWay(pid=one.pid, active=True, inside=one.inside, age_s=now - one.begun_at)
            for one in self._local.host.server.sessions
        ]


def open_on(world: World, target: Host) -> tuple[Open, ...]:
    """Stand for ``queue.drain.left``: the transactions that Citus has open on a server."""
    sessions = (one for host in world.groups[0].hosts for one in host.server.sessions)
    there = (Open(f"citus_internal gpid={10**10 + one.pid}", one.pid) for one in sessions if target in one.open_on)
    return (*there, *(Open(gid) for gid in target.server.data.prepared))


class _Sockets:
    """Stands for the modules that ``queue.hold`` and ``queue.own_stop`` use to reach servers."""

    POLL_S, QUIET = drain.POLL_S, drain.QUIET

    def __init__(self, world: World) -> None:
        self._world = world
        self.rest = drain.rest
        self.words = session.words
        self.FlushError = flush.FlushError

    # `citus.session`

    @contextlib.contextmanager
    def local(self, config: Config, **_: object) -> Iterator[_Local]:
        """Open a session on the local server."""
        local = _Local(self._world, _host_of(self._world, config))
        local.step()
        yield local

    @contextlib.contextmanager
    def prepared(self, config: Config, _database: str, *, lock_s: float, limit_s: float) -> Iterator[_Gate]:
        """Make a gate."""
        del limit_s
        local = _Local(self._world, _host_of(self._world, config))
        local.step()
        local.wait_for_nodes(LOCK_S)  # as the first query of a session does
        gate = _Gate(local, lock_s)
        try:
            yield gate
        finally:
            gate.open()

    # `queue.drain`

    @contextlib.contextmanager
    def connect(self, config: Config, node: Node, _address: str, **_: object) -> Iterator[_There]:
        """Open a session on a server that stops."""
        there = _There(self._world, _host_of(self._world, config), self._world.by_address[node.host])
        there.step()
        yield there

    def left(self, server: _There | _Local) -> tuple[Open, ...]:
        """Return what is open there."""
        server.step()
        return open_on(self._world, server.host)

    def free_slots(self, server: _There) -> int:
        """Return that there are enough."""
        server.step()
        return 100

    # `citus.flush`

    @contextlib.contextmanager
    def alone(self, within_s: float) -> Iterator[None]:
        """Keep others from flushing."""
        process = Worker.current.process
        until = self._world.now + within_s
        while process.flushes_alone:
            if self._world.now > until:
                raise flush.FlushError("another flush has been under way")
            Worker.current.pause(0.005)
        process.flushes_alone = True
        try:
            yield
        finally:
            process.flushes_alone = False

    def flush(self, config: Config, *, uncached: bool = False) -> flush.Flushed:
        """Flush, and have sessions cache nothing."""
        host = _host_of(self._world, config)
        self._flush(host, slow=host.is_slow, uncached=uncached)
        self.confirm(config, "")
        return flush.Flushed(base="")

    def give_back(self, local: _Local) -> str:
        """Flush over an open session."""
        self._flush(local.host, slow=False, uncached=False)
        return "given back"

    def confirm(self, config: Config, _value: str) -> None:
        """Wait until it counts for every new command."""
        host = _host_of(self._world, config)
        _Local(self._world, host).step(0.002, 0.01)
        host.server.flushed_at = self._world.now

    def _flush(self, host: Host, *, slow: bool, uncached: bool) -> None:
        try:
            _Local(self._world, host).step(*((0.2, 1.1) if slow else (0.005, 0.03)))
        except psycopg.Error as error:
            raise flush.FlushError(str(error)) from error
        host.server.flushed += 1
        host.server.uncached = uncached


class _There(_Local):
    """A session on a server that stops."""

    def __init__(self, world: World, source: Host, host: Host) -> None:
        super().__init__(world, host)
        self._source = source

    def step(self, low: float = 0.0005, high: float = 0.004) -> None:
        """Send something, and wait for the answer."""
        if not self.world.talks(self._source, self.host):
            Worker.current.pause(_SILENCE_S)
            raise psycopg.OperationalError("no answer")
        super().step(low, high)


def _sleep(seconds: float) -> None:
    Worker.current.pause(seconds)


def queue_replacements(world: World) -> list[tuple[object, str, object]]:
    """Return what to put in the place of threads, clocks and sockets of the queue: where, which name, and what."""
    sockets = _Sockets(world)
    clock = types.SimpleNamespace(
        monotonic=lambda: world.now,
        sleep=_sleep,
    )
    events = types.SimpleNamespace(Event=Event)
    sessions = types.SimpleNamespace(connect=sockets.local, words=session.words)
    do_hold, do_drain = hold.hold, own_stop._drain_local

    async def hold_in_thread(config: Config, *arguments: Any, **named: Any) -> Held:
        process = _host_of(world, config).process
        assert process is not None

        def hold_and_tell() -> Held:
            begun = world.now
            try:
                return do_hold(config, *arguments, **named)
            finally:
                world.judge.hold_ended(process.host, world.now - begun)

        return await process.in_thread(hold_and_tell)  # type: ignore[no-any-return]

    async def drain_in_thread(config: Config, within_s: float) -> int:
        process = _host_of(world, config).process
        assert process is not None
        return await process.in_thread(lambda: do_drain(config, within_s))  # type: ignore[no-any-return]

    return [
        (windows, "threading", events),
        (hold, "coordinated_databases", coordinated_databases(world)),
        (hold, "hold", hold_in_thread),
        (hold, "flush", sockets),
        (hold, "session", sessions),
        (hold, "drain", sockets),
        (hold, "prepared", sockets.prepared),
        (hold, "time", clock),
        (own_stop, "_drain_local", drain_in_thread),
        (own_stop, "session", sessions),
        (own_stop, "drain", sockets),
        (own_stop, "time", clock),
    ]


def look_at_server(world: World) -> Callable[[Config, float], ServerState | str]:
    """Stand for the query of ``queue.evidence`` to the local server."""

    def look(config: Config, _limit_s: float) -> ServerState | str:
        host = _host_of(world, config)
        if not host.server.up or host.server.stopped:
            return "the local PostgreSQL does not answer"
        age_s = world.now - host.checkpoint_at
        return ServerState(in_recovery=host.server.recovery, control_age_s=age_s)

    return look


def ask_patroni(world: World) -> Callable[..., Awaitable[Any]]:
    """Stand for the requests of ``queue.evidence`` to the local Patroni."""

    async def ask(node: Node, _api: PatroniApi, path: str, _read: object, *, deadline: Any, fetch: object) -> Any:
        del fetch
        host = world.by_address[node.host]
        assert host.process is not None
        await host.process.sleep(world.between(0.001, 0.01))
        if not host.patroni_answers:
            return ApiError("no answer")
        if path == "/leader":
            return Leadership(leads=host.leads, scope=host.group.name, system_id=host.server.system_id)
        if not host.dcs_ok:
            await host.process.sleep(min(0.4, deadline.left_s()))
            return ApiError("no answer")
        return []

    return ask
