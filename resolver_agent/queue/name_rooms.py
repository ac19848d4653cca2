"""The waiting rooms of the names: where they are open, whom they forward to, and why there can be none.

``room`` has the listeners. Here is what they have to do with names, and with the local PostgreSQL: a listener of ours
must never be in its way.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from resolver_agent.queue.room import Rooms
from resolver_agent.routing.queue import room_address
from resolver_agent.system.clock import boottime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resolver_agent.observe.observer import Observer
    from resolver_agent.queue.room import RoomState
    from resolver_agent.routing.observation import Identity

_log = logging.getLogger(__name__)

_NOT_AGAIN_S = 10.0
"""How long after an announced stop of the local server no room is opened beside it, unless it has stopped before."""

_ATTEMPTS = 8
"""How many agents on one host may have a room for the same name."""


@dataclasses.dataclass(slots=True)
class _Open:
    """A room that has been open at ``address`` since then (seconds of CLOCK_BOOTTIME), and whom it forwards to."""

    address: str
    since: float
    to: str | None = None


class NameRooms:
    """All waiting rooms of one agent. Its methods are for the event loop, and none blocks."""

    def __init__(self, observer: Observer, *, rooms: Rooms | None = None) -> None:
        self._observer = observer
        self._rooms = rooms or Rooms()
        self._opened: dict[str, _Open] = {}
        self._faults: dict[str, str] = {}
        self._local_stop: tuple[float, Identity | None] | None = None

    @property
    def addresses(self) -> dict[str, str]:
        """Where the rooms are, by name, also those that are forwarding."""
        return {name: room.address for name, room in self._opened.items()}

    @property
    def faults(self) -> dict[str, str]:
        """Why a name can have no room, by name."""
        why = self.why_none
        everywhere = {group.name: why for group in self._observer.config.groups} if why is not None else {}
        return {**self._faults, **everywhere}

    @property
    def why_none(self) -> str | None:
        """Why there can be no room at all."""
        if not self._observer.config.has_local:
            return None
        local = self._observer.local
        if local.role_seen is None or local.serves_no_reads:
            return "the local PostgreSQL does not run"
        if self._local_stop is not None:
            at, run = self._local_stop
            if boottime() - at < _NOT_AGAIN_S and local.role_seen.identity == run:
                return "the local PostgreSQL is about to stop"
        return None

    @property
    def totals(self) -> Mapping[str, RoomState]:
        """What became of all who ever came to a room, by name."""
        return self._rooms.totals

    def forwards(self, name: str) -> str | None:
        """Return whom a name's room forwards to, None where it does not, or there is none."""
        room = self._opened.get(name)
        return room.to if room is not None else None

    def state(self, name: str) -> RoomState:
        """Return what became of those who came to a name's room since it was opened last."""
        return self._rooms.state(name)

    def waiting(self, name: str) -> int:
        """Return how many connections wait in a name's room now."""
        return self._rooms.state(name).waiting if self._rooms.is_open(name) else 0

    def open(self, name: str, *, before: str = "") -> str | None:
        """Open a name's room, where it was ``before`` if that is free; return its address, None if there can be none.

        One that is open and not forwarding stays as it is.
        """
        room = self._opened.get(name)
        if room is not None and room.to is None:
            return room.address
        number = next((i for i, group in enumerate(self._observer.config.groups) if group.name == name), None)
        if number is None:
            return None
        fault = self.why_none
        addresses = [room_address(number, attempt) for attempt in range(_ATTEMPTS)]
        for address in dict.fromkeys([before, *addresses]) if fault is None else ():
            if address not in addresses:
                continue
            found = self._rooms.open(name, address, self._port(name))
            if found is None:
                self._opened[name] = _Open(address, boottime())
                return address
            fault = fault or found
        if self._faults.get(name) != fault:
            _log.warning("%s: there is no waiting room: %s", name, fault, extra={"name_": name})
        self._faults[name] = fault or "there is none"
        return None

    def forward(self, name: str, address: str) -> None:
        """Forward what waits in a name's room, and what comes, to a server from now on."""
        try:
            self._rooms.forward(name, address, self._port(name))
        except ValueError as error:  # no server's address, as when a node is given by a name that leads to a room
            _log.error("%s: what waits cannot be forwarded: %s", name, error, extra={"name_": name})
            self.close(name, "nobody can take them")
        else:
            self._opened[name].to = address

    def close(self, name: str, why: str, *, after_s: float = 0.0) -> None:
        """Close a name's room; one that is forwarding goes on taking connections for ``after_s`` first."""
        self._rooms.close(name, after_s=after_s)
        self._forget(name, why)

    def close_all(self) -> None:
        """Close all of them at once, because the local server stops."""
        self._rooms.close_all()
        for name in [*self._opened]:
            self._forget(name, "because the local PostgreSQL stops")

    def give_up(self, run: Identity | None) -> None:
        """Close all of them, and open none while the local server, in this run, is about to stop."""
        self._local_stop = (boottime(), run)
        self.close_all()

    def take_back(self) -> None:
        """Allow rooms again: the local server does not stop."""
        self._local_stop = None

    def keep_faults(self, wants_room: Callable[[str], bool]) -> None:
        """Forget why names could have no room, but for those that want one."""
        self._faults = {name: fault for name, fault in self._faults.items() if wants_room(name)}

    async def stop(self) -> None:
        """Close all of them, and let forwarded connections end for a while."""
        await self._rooms.stop()

    def _forget(self, name: str, why: str) -> None:
        room = self._opened.pop(name, None)
        if room is not None:
            open_s = boottime() - room.since
            _log.info("%s: its waiting room was open for %.2f s: %s", name, open_s, why, extra={"name_": name})

    def _port(self, name: str) -> int:
        return next(group.nodes[0].port for group in self._observer.config.groups if group.name == name)
