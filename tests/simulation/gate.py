"""The queue's parts that touch sockets: waiting rooms, the gate of a coordinator, and what tells a planned stop."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from resolver_agent.patroni.client import ApiError, Leadership
from resolver_agent.queue.evidence import ServerState
from resolver_agent.queue.hold import Held, HoldError
from resolver_agent.queue.room import RoomState

if TYPE_CHECKING:
    import threading
    from collections.abc import Awaitable, Callable

    from resolver_agent.config.model import Config, Node, PatroniApi
    from resolver_agent.queue.hold import Leaving
    from tests.simulation.process import Process
    from tests.simulation.world import Host, World


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
            gate.is_closed = False

    def find(self, name: str, address: str) -> Room | None:
        """Return the room at an address, if it takes connections."""
        room = self.rooms.get(name)
        now = self._process.world.now
        return (
            room if room is not None and room.address == address and (room.until is None or now < room.until) else None
        )


@dataclasses.dataclass(slots=True, eq=False)
class Gate:
    """The gate of a coordinator: statements that have not begun wait while it is closed."""

    is_closed: bool = False


def _host_of(world: World, config: Config) -> Host:
    return world.hosts[int(config.path.split("/")[2])]


def coordinated_databases(world: World) -> Callable[[Config], tuple[str, ...]]:
    """Stand for ``queue.hold.coordinated_databases``."""

    def find(config: Config) -> tuple[str, ...]:
        host = _host_of(world, config)
        return ("citus",) if host.group.name == "cn" and host.server.up and host.server.serving else ()

    return find


def hold_at_gate(world: World) -> Callable[..., Awaitable[Held]]:
    """Stand for ``queue.hold.hold``: flush, close the gate, drain, to the room, flush, open."""

    async def hold(
        config: Config,
        _databases: tuple[str, ...],
        *,
        leaving: Callable[[], tuple[Leaving, ...]],
        to_room: Any,
        abort: threading.Event,
        forwarded: threading.Event,
        drain_s: float,
    ) -> Held:
        host = _host_of(world, config)
        process, server, run = host.process, host.server, host.server.run
        assert process is not None
        if not server.is_primary or server.stopped:
            raise HoldError("the local PostgreSQL does not answer")
        gate = host.gate = Gate()
        try:
            await process.sleep(world.between(0.01, 0.05))
            server.flushed += 1
            gate.is_closed = True
            begun = world.now
            while not abort.is_set() and server.active and world.now - begun < drain_s:
                await process.sleep(0.015)
            left = len(server.active)
            leaving()
            if not abort.is_set() and not await _to_room(process, to_room.__self__):
                until = world.now + 5.0
                while world.now < until and not (forwarded.is_set() or abort.is_set()) and server.run == run:
                    await process.sleep(0.015)
            server.flushed += server.run == run
            server.flushed_at = world.now
        finally:
            gate.is_closed = False
        return Held(uncached=True, left_count=left)

    return hold


async def _to_room(process: Process, holding: Any) -> bool:
    """Stand for ``_Holding.to_room``, which waits in a thread."""
    holding._ask()
    until = process.world.now + 1.0
    while holding.in_room is None and process.world.now < until:
        await process.sleep(0.005)
    return bool(holding.in_room)


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
