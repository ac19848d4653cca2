"""What the operator has decided by hand: pins and a pause, kept in ``state_dir`` over a restart, over by themselves.

``routing.pin`` decides whether they count. Their file is trusted no more than other input: while it cannot be read,
there are none, and that is an alert.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import logging
import time
from types import MappingProxyType
from typing import TYPE_CHECKING

from resolver_agent.control.client import ControlError
from resolver_agent.control.report import PauseStatus, PinStatus, as_json, from_json
from resolver_agent.routing.observation import Pause, Pin, Role
from resolver_agent.routing.pin import canonical
from resolver_agent.routing.state import Alert, AlertCode
from resolver_agent.system import state_file, threads
from resolver_agent.system.clock import boottime
from resolver_agent.system.foreign import plain, read_json, to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_log = logging.getLogger(__name__)

LONGEST_S = 7 * 24 * 3600.0
"""The longest time of a pin or a pause."""

PINS_MAX = 1000
REASON_MAX = 200
_MOST_BYTES = 1 << 20

_FILE_S = 1.0
"""How long the start, or an answer, waits for the file."""

_START_S = 10.0
"""How long the first decision waits for a file that takes longer: without a pin it may choose the wrong server."""

_RETRY_S = 30.0
_LOSES = "a restart loses pins and a pause, or brings back old ones"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The content of the file; its times are by the wall clock."""

    pins: tuple[PinStatus, ...] = ()
    pause: PauseStatus | None = None


def path_of(state_dir: str) -> str:
    """Return the path of the file."""
    return f"{state_dir}/overrides.json"


def read(path: str) -> Kept:
    """Return what the file says, nothing where it is missing. It blocks.

    Raises:
        StateError: it cannot be read, or says nothing that ``Overrides`` has written.
    """
    content = state_file.read(path, most_bytes=_MOST_BYTES)
    if not content:
        return Kept()
    try:
        kept = from_json(Kept, read_json(content))
        to_boottime(kept)
    except (ValueError, ControlError) as error:
        raise state_file.StateError(f"{path} cannot be read: {plain(str(error))}; delete it") from error
    return kept


def _timestamp(until: str) -> float:
    """Return a time of the file in seconds since the epoch."""
    moment = dt.datetime.fromisoformat(until)
    if moment.tzinfo is None:
        raise ValueError(f"{until} has no zone")
    return moment.timestamp()


def to_boottime(kept: Kept) -> tuple[dict[str, Pin], Pause | None]:
    """Return pins and pause for a decision, with times by CLOCK_BOOTTIME, no further away than they may be.

    Raises:
        ValueError: there are too many, or one has no usable address, role or time.
    """
    now, wall = boottime(), time.time()
    if len(kept.pins) > PINS_MAX:
        raise ValueError("there are too many pins")

    def until(one: PinStatus | PauseStatus) -> float:
        return now + min(_timestamp(one.until) - wall, LONGEST_S)

    def told(one: PinStatus | PauseStatus) -> str:
        return f"until {one.until}" + (f" ({one.reason[:REASON_MAX]})" if one.reason else "")

    pins = {}
    for one in kept.pins:
        address = canonical(one.address)
        if address is None:
            raise ValueError(f"no name can be pinned to {one.address}")
        role = Role(one.wanted_role)
        pins[one.name] = Pin(address=address, wanted_role=role, until=until(one), forced=one.forced, told=told(one))
    return pins, None if kept.pause is None else Pause(until=until(kept.pause), told=told(kept.pause))


class Overrides:
    """The pins and the pause of one agent. All methods are for the event loop, and wait for the disk 1 s at most.

    ``changed`` has the agent decide anew.
    """

    def __init__(self, path: str, *, changed: asyncio.Event) -> None:
        self.pins: Mapping[str, Pin] = {}
        self.pause: Pause | None = None
        self._path = path
        self._changed = changed
        self._kept = Kept()
        self._fault: str | None = None
        self._reading: asyncio.Future[Kept] | None = None
        self._loaded = self._unread = False
        self._awaited_until = 0.0
        # By the wall clock; of a name's pin, None for the pause. CLOCK_BOOTTIME alone would not do, as the end is told,
        # and kept over a restart, by the wall clock, which may be wrong until NTP has set it; nor would the wall clock
        # alone: set back, it would have a pin last longer than it was made for.
        self._over_at: dict[str | None, float] = {}
        self._saved = True
        self._retry_at = self._save_begun = 0.0
        self._saving: asyncio.Task[None] | None = None

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Whether pins and a pause are lost, or will be."""
        return () if self._fault is None else (Alert(AlertCode.STATE, self._fault, of=("overrides",)),)

    @property
    def kept(self) -> Kept:
        """The pins and the pause for people."""
        return self._kept

    @property
    def saved(self) -> bool:
        """Whether a restart changes nothing: the file has what was decided last."""
        return self._saved

    @property
    def loaded(self) -> bool:
        """Whether the file was read, or cannot be. Before that nothing may be changed: it would be overwritten."""
        return self._loaded

    @property
    def is_awaited(self) -> bool:
        """Whether the first decision should wait: the disk has not answered yet, and may do so soon."""
        return not self._loaded and boottime() < self._awaited_until

    async def load(self) -> None:
        """Begin to read the file, and wait for it. Until it was read there are no pins and no pause.

        A read that takes longer goes on. One that failed is tried again, until it succeeds or something is decided.
        """
        self._awaited_until = boottime() + _START_S
        reading = self._begin_to_read()
        await asyncio.wait({reading}, timeout=_FILE_S)
        if not reading.done():
            self._fault = f"{self._path} cannot be read within {_FILE_S:g} s: no name is pinned or paused"

    def _begin_to_read(self) -> asyncio.Future[Kept]:
        self._unread = False
        self._reading = threads.start(read, self._path)
        self._reading.add_done_callback(self._take)
        return self._reading

    def _take(self, read: asyncio.Future[Kept]) -> None:
        if read.cancelled():
            return
        self._loaded = True
        error = read.exception()
        if read is not self._reading:  # something was decided meanwhile, and takes the place of what the file said
            return
        if error is not None:
            self._fault = f"{plain(str(error))}; no name is pinned or paused"
            self._unread, self._retry_at = True, boottime() + _RETRY_S
        else:
            self._fault = None
            self._set(read.result())
            self._end_what_is_over()
        self._changed.set()

    def tick(self, overtaken: Mapping[str, str] = MappingProxyType({})) -> None:
        """End what is over, and the pins that another primary has ended; read or save what could not be read or saved.

        Called once a round. ``overtaken`` are the addresses of those pins, by name.
        """
        ended = [name for name, at in overtaken.items() if name in self.pins and self.pins[name].address == at]
        for name in ended:
            _log.warning("the pin of %s to %s has ended: another server is the primary", name, overtaken[name])
        self._end_what_is_over(ended)
        if self._unread and boottime() >= self._retry_at:
            self._begin_to_read()
        if not self._saved and boottime() >= self._retry_at:
            self._begin_to_save()
            self._report_hung()

    async def pin(self, pin: PinStatus) -> bool:
        """Pin a name, and report whether that outlives a restart."""
        others = tuple(one for one in self._kept.pins if one.name != pin.name)
        self._set(dataclasses.replace(self._kept, pins=(*others, pin)))
        return await self._save()

    async def unpin(self, name: str) -> bool:
        """End the pin of a name, and report whether there was one."""
        others = tuple(one for one in self._kept.pins if one.name != name)
        found = others != self._kept.pins
        if found or self._fault is not None:
            self._set(dataclasses.replace(self._kept, pins=others))
            await self._save()
        return found

    async def set_pause(self, pause: PauseStatus) -> bool:
        """Pause all names, and report whether that outlives a restart."""
        self._set(dataclasses.replace(self._kept, pause=pause))
        return await self._save()

    async def resume(self) -> bool:
        """End the pause, and report whether there was one."""
        found = self._kept.pause is not None
        if found or self._fault is not None:
            self._set(dataclasses.replace(self._kept, pause=None))
            await self._save()
        return found

    async def close(self) -> None:
        """Wait a while for what is not saved yet, and stop."""
        if self._saving is not None:
            await asyncio.wait({self._saving}, timeout=_FILE_S)
            self._saving.cancel()
            await asyncio.wait({self._saving})  # until it has ended: its thread is left behind

    def _set(self, kept: Kept) -> None:
        self._kept = kept
        self.pins, self.pause = to_boottime(kept)
        self._over_at = {one.name: _timestamp(one.until) for one in kept.pins}
        if kept.pause is not None:
            self._over_at[None] = _timestamp(kept.pause.until)
        self._changed.set()

    def _end_what_is_over(self, overtaken: Collection[str] = ()) -> None:
        """End what is over by either clock: the one on the wall may have been wrong when the file was read."""
        now, wall = boottime(), time.time()

        def lasts(name: str | None, until: float) -> bool:
            return now < until and wall < self._over_at[name]

        pins = tuple(
            one for one in self._kept.pins if one.name not in overtaken and lasts(one.name, self.pins[one.name].until)
        )
        pause = self._kept.pause if self.pause is not None and lasts(None, self.pause.until) else None
        if (pins, pause) != (self._kept.pins, self._kept.pause):
            # Not by `_set`: the wall clock may have been changed meanwhile.
            self._kept = Kept(pins=pins, pause=pause)
            self.pins = {one.name: self.pins[one.name] for one in pins}
            self.pause = self.pause if pause is not None else None
            self._begin_to_save()

    async def _save(self) -> bool:
        self._reading, self._unread = None, False
        self._begin_to_save()
        if self._saving is not None:
            await asyncio.wait({self._saving}, timeout=_FILE_S)
        return self._saved

    def _report_hung(self) -> None:
        """Make a save that takes long an alert until it is over."""
        if self._fault is None and boottime() - self._save_begun > _FILE_S:
            self._fault = f"{self._path} cannot be written within {_FILE_S:g} s; {_LOSES}"

    def _begin_to_save(self) -> None:
        self._saved = False
        if self._saving is None or self._saving.done():
            self._save_begun = boottime()
            self._saving = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Write what is wanted until that is on disk; there is never a second write beside it."""
        written = None
        while written is not self._kept:
            kept = self._kept
            content = f"{to_json(as_json(kept), indent=2)}\n".encode()
            try:
                await threads.call(state_file.write, self._path, content)
            except OSError as error:
                self._fault = f"{plain(str(error))}; {_LOSES}"
                self._retry_at = boottime() + _RETRY_S
                return
            written = kept
        self._saved, self._fault = True, None
