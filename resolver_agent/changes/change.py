"""One change of a name: as a value, as a line of the history, and in words."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
from typing import TYPE_CHECKING, Any

from resolver_agent.routing.state import FENCE
from resolver_agent.system.foreign import plain, read_json, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resolver_agent.routing.state import Target

_MS_MAX = 1 << 53
_FIRST_YEAR, _LAST_YEAR = 1971, 9998


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A name got another address, or left the hosts file.

    ``time`` is when it was in the file, by the wall clock (RFC 3339). ``old`` and ``new`` are addresses, None where the
    name had none, or has none any more. ``written_ms`` is the time from the evidence to the file; ``flushed_ms`` that
    to the end of the flush, None until then, and where there is no Citus.
    """

    time: str
    name: str
    old: str | None
    new: str | None
    code: str
    reason: str
    wanted_role: str | None
    written_ms: int
    flushed_ms: int | None = None

    @property
    def key(self) -> tuple[str, str, str | None]:
        """What tells a change from every other one."""
        return self.time, self.name, self.new

    @property
    def delay(self) -> str:
        """How long it took, in words."""
        flushed = "" if self.flushed_ms is None else f", flushed after {self.flushed_ms} ms"
        return f"on disk after {self.written_ms} ms{flushed}"

    def as_json(self) -> dict[str, Any]:
        """Return the change as plain data; the addresses are ``from`` and ``to``."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {{"old": "from", "new": "to"}.get(name, name): value for name, value in fields.items()}


def made(before: Target | None, after: Target, *, time: str, written_ms: int) -> Change:
    """Return the change of a name to the target ``after``."""
    return Change(
        time=time,
        name=after.name,
        old=before.address if before is not None else None,
        new=after.address,
        code=after.reason.code.value,
        reason=plain(after.reason.text),
        wanted_role=after.wanted_role.value if after.wanted_role is not None else None,
        written_ms=written_ms,
    )


def gone(before: Target, *, time: str, written_ms: int) -> Change:
    """Return the change of a name that the hosts file no longer has."""
    return Change(
        time=time,
        name=before.name,
        old=before.address,
        new=None,
        code="removed",
        reason="no longer configured",
        wanted_role=None,
        written_ms=written_ms,
    )


def to_line(change: Change) -> bytes:
    """Return a change as one line of JSON."""
    return to_json(change.as_json()).encode("utf-8", "backslashreplace") + b"\n"


def from_line(line: bytes) -> Change | None:
    """Return the change in a line; None where it is none, such as a line that was not written to its end."""
    try:
        data = read_json(line)
        return _checked(data) if isinstance(data, dict) else None
    except ValueError:
        return None


def _checked(data: Mapping[str, Any]) -> Change:
    """Return the change in plain data. Raise a ValueError where something is not as it must be."""
    time = dt.datetime.fromisoformat(_text(data, "time"))
    if time.tzinfo is None or not _FIRST_YEAR <= time.year <= _LAST_YEAR:
        raise ValueError("no time with its zone that other zones have too")
    written_ms = _ms(data, "written_ms")
    if written_ms is None:
        raise ValueError("no delay")
    return Change(
        time=time.isoformat(timespec="milliseconds"),
        name=_text(data, "name"),
        old=_address(data, "from"),
        new=_address(data, "to"),
        code=_text(data, "code"),
        reason=_text(data, "reason"),
        wanted_role=None if data.get("wanted_role") is None else _text(data, "wanted_role"),
        written_ms=written_ms,
        flushed_ms=_ms(data, "flushed_ms"),
    )


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")  # noqa: TRY004 -- the value comes from a file
    return plain(value)


def _address(data: Mapping[str, Any], key: str) -> str | None:
    return None if data.get(key) is None else str(ipaddress.ip_address(_text(data, key)))


def _ms(data: Mapping[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is not None and (type(value) is not int or not 0 <= value < _MS_MAX):
        raise ValueError(f"{key} is no time")
    return value


def as_text(changes: Iterable[Change]) -> str:
    """Return changes as text, a line each."""
    rows = [
        (one.time, one.name, _shown(one.old), "→", _shown(one.new), f"{one.reason}; {one.delay}") for one in changes
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shown(address: str | None) -> str:
    return "fenced" if address == FENCE else address or "-"
