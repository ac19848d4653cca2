"""The managed block of a hosts file: bytes in, bytes out. Nothing outside the block is changed.

The block is also the agent's only memory. Each of its lines is ``address<TAB>name<TAB># comment``, and the comment is::

    <kind>[; no standby | ; wants primary | ; wants standby]
        [; primary ADDRESS | ; primary was ADDRESS | ; no primary]
        [; system NUMBER[ in place of NUMBER]]

``kind`` is a value of ``TargetKind``. ``no standby`` is on fenced names that want a standby. ``wants`` is on names
that were held when the role that they want changed, and on names that queue for a standby. The next clause is the
group's last known primary; ``was`` says that it is none any more: it was seen in recovery since, or it was taken out
of ``nodes`` and all others are standbys. (Blocks of earlier versions add ``, now in recovery``.) The clause is left out
where the kind implies it: ``primary`` and ``fallback`` lines have the primary's address, and ``self`` and ``standby``
lines without the clause have no known primary. The last clause is the group's system identifier, and the one that it
replaced until the operator confirms that; it is left out while none is known. Comments depend on nothing else, so an
unchanged decision leaves the file unchanged.

Files are read and written by ``atomic_file``. Lines outside the block are not parsed with python-hosts: it would
reformat them, and does not always read their names as glibc does.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import ipaddress
import re
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import FENCE, Code, Reason, Target, TargetKind
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_BEGIN = b"# BEGIN resolver-agent"
_END = b"# END resolver-agent"
_HINT = b": managed, edits inside are overwritten"
_NO_NEWLINE = b" (the line above had no newline)"
_BEGINS = frozenset(_BEGIN + hint + note for hint in (b"", _HINT) for note in (b"", _NO_NEWLINE))
_TO_FIELDS = bytes.maketrans(bytes([*b"#\0", *range(ord("A"), ord("Z") + 1)]), b"  " + bytes(range(97, 123)))
"""Makes lines of what ``split()`` returns as fields, those in comments among them."""

_COMMON = b"resolver-agent"
"""What all markers have in them."""

_PIECE = 1 << 18
"""How many bytes of a large file one call may work on: meanwhile no other thread of Python runs."""

_MOST_CONFLICTS = 10
"""How many lines count for one name."""
_LINE = re.compile(rb".*\n|.+")
_CONTEXT = 3
_RANGES = re.compile(r"^@@ -(\d+)(.*) \+(\d+)(.*) @@$")
_ADDRESS = r"[0-9A-Fa-f:.]+"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_SYSTEM = r"-?[0-9]{1,20}"
_ENTRY = re.compile(
    rf"(?P<address>{_ADDRESS})\s+(?P<name>{_NAME.pattern})\s+# (?P<standing>{'|'.join(s.value for s in TargetKind)})"
    rf"(?:(?P<no_standby>; no standby)|; wants (?P<wanted>{'|'.join(role.value for role in Role)}))?"
    rf"(?P<told>; primary (?P<primary>{_ADDRESS})|; primary was (?P<lost>{_ADDRESS})(?:, now in recovery)?"
    r"|; no primary)?"
    rf"(?:; system (?P<system>{_SYSTEM})(?: in place of (?P<replaced>{_SYSTEM}))?)?\s*"
)
COMMENT_LOST = Reason(Code.HELD, "as found in the hosts file, without its comment: it may be a standby's address")
"""Why a target has its address whose line lost the comment."""

_WISHES = {
    TargetKind.SELF: None,
    TargetKind.STANDBY: Role.STANDBY,
    TargetKind.FALLBACK: Role.STANDBY,
    TargetKind.PRIMARY: Role.PRIMARY,
    TargetKind.FENCED: Role.PRIMARY,
    TargetKind.QUEUED: Role.PRIMARY,
}


class BlockError(ValueError):
    """The block cannot be read, so the file must not be changed. The message names the line and the fix."""


@dataclasses.dataclass(frozen=True, slots=True)
class Conflict:
    """A line outside the block that gives a managed name an address of its own; ``line_no`` counts from 1."""

    line_no: int
    name: str
    text: str

    @property
    def fault(self) -> str:
        """What is wrong."""
        return f"line {self.line_no} also names {self.name}, and lookups return both addresses"

    @property
    def fix(self) -> str:
        """How to fix it."""
        return f"remove that name from «{self.text}»"


@dataclasses.dataclass(frozen=True, slots=True)
class _Parts:
    """A hosts file in parts: ``head + block + tail`` is the file, and ``block`` is empty where there is none."""

    head: bytes
    block: bytes
    tail: bytes

    @property
    def added_newline(self) -> bool:
        return _NO_NEWLINE in self.block.partition(b"\n")[0]


def render(content: bytes, targets: Sequence[Target]) -> bytes:
    """Return ``content`` with the block replaced in its place, or added at the end, in the order of ``targets``.

    It is added at the end because a reverse lookup returns the first line that matches. Without targets none is added.

    Raises:
        BlockError: the markers in ``content`` do not make one block.
        ValueError: a name or an address could not be read back from a hosts line.
    """
    parts = _split(content)
    if not parts.block and not targets:
        return content
    lacks_newline = not parts.block and not content.endswith(b"\n") and content != b""
    note = _NO_NEWLINE if lacks_newline or parts.added_newline else b""
    entries = b"".join(_entry(target) for target in targets)
    head = parts.head + b"\n" if lacks_newline else parts.head
    return head + _BEGIN + _HINT + note + b"\n" + entries + _END + b"\n" + parts.tail


def remove(content: bytes) -> bytes:
    """Return ``content`` without the block: what ``render()`` was given, to the byte.

    Raises:
        BlockError: the markers in ``content`` do not make one block.
    """
    parts = _split(content)
    if parts.added_newline and not parts.tail:
        return parts.head.removesuffix(b"\n")
    return parts.head + parts.tail


def recall(content: bytes, names: Collection[str] = ()) -> tuple[Target, ...]:
    """Return the targets that the block remembers; ``names`` are those of the configuration.

    Names are compared without regard to case, and a configured one is returned as configured. A name whose line lost
    its comment, or was merged with others, keeps its address; its target has the reason ``COMMENT_LOST``. Comments and
    blank lines in the block say nothing.

    Raises:
        BlockError: the markers in ``content`` do not make one block, or a line in it cannot be read, or a name has two
            addresses.
    """
    parts = _split(content)
    configured = {_folded(name): name for name in names}
    first_line_no = parts.head.count(b"\n") + 2
    lines = [line.decode("ascii", "replace").strip() for line in parts.block.rstrip(b"\n").split(b"\n")[1:-1]]
    found: dict[str, Target] = {}
    for line_no, line in enumerate(lines, start=first_line_no):
        for target in _read(line, line_no):
            name = _folded(target.name)
            before = found.get(name)
            if before is not None and before.address != target.address:
                raise BlockError(f"line {line_no}: {target.name} has another address above it: delete one of the two")
            if before is None or before.reason == COMMENT_LOST:
                found[name] = dataclasses.replace(target, name=configured.get(name, target.name))
    missing = configured.keys() - found.keys()
    for line_no, line in enumerate(lines, start=first_line_no) if missing else ():
        words = re.split(r"[\s#]+", line.lower())
        if not missing.isdisjoint(words) and any(map(_canonical, words)):
            raise _unreadable(line, line_no)
    return tuple(found.values())


def _folded(name: str) -> str:
    return name.lower().removesuffix(".")


def _canonical(address: str) -> str | None:
    """Return the address in the kernel's spelling; None if it is none, or has a scope, which we never write."""
    try:
        return None if "%" in address else str(ipaddress.ip_address(address))
    except ValueError:
        return None


def _unreadable(line: str, line_no: int) -> BlockError:
    return BlockError(
        f"line {line_no}: «{plain(line)}» in resolver-agent's block cannot be read: correct it, or delete it"
    )


def _read(line: str, line_no: int) -> list[Target]:
    """Return the targets of one line of the block."""
    if not line or line.startswith("#"):
        return []
    if (entry := _parse(line)) is not None:
        primary = entry.primary and _canonical(entry.primary)
        return [dataclasses.replace(entry, address=_canonical(entry.address) or entry.address, primary=primary)]
    fields = re.split(r"[#\0]", line, maxsplit=1)[0].split()
    addresses = [address for address in map(_canonical, fields) if address is not None]
    names = [field for field in fields if _canonical(field) is None]
    if len(addresses) != 1 or not names or not all(map(_NAME.fullmatch, names)):
        raise _unreadable(line, line_no)
    # Without its comment the address may be a standby's or a primary's. As a standby's, it is held where the name wants
    # a standby. Where the name wants the primary, it is fenced (P8) unless some node of the group answers: R2.
    kind = TargetKind.FENCED if addresses[0] == FENCE else TargetKind.STANDBY
    return [Target(name=name, address=addresses[0], kind=kind, wanted_role=None, reason=COMMENT_LOST) for name in names]


def conflicts(content: bytes, names: Collection[str]) -> tuple[Conflict, ...]:
    """Return the active lines outside the block that have one of ``names``: lookups return their addresses too.

    Lines are read as glibc reads them: fields separated by white space of the C locale, up to a ``#`` or a NUL, names
    without regard to case. Unlike in glibc the address need not be valid: such a line is a mistake, and other resolvers
    are laxer. The first 10 of each name are returned: a script that adds a line every minute makes very many.

    Raises:
        BlockError: the markers in ``content`` do not make one block.
    """
    wanted = {name.lower().encode(): name for name in names}
    found: dict[Conflict, None] = {}
    left = dict.fromkeys(wanted.values(), _MOST_CONFLICTS)
    before = 0
    for piece in _pieces(outside(content)):
        if not wanted.keys().isdisjoint(piece.translate(_TO_FIELDS).split()):
            for line_no, line in enumerate(piece.split(b"\n"), start=before + 1):
                fields = dict.fromkeys(re.split(rb"[#\0]", line, maxsplit=1)[0].lower().split()[1:])
                for name in (wanted[field] for field in fields if field in wanted):
                    if left[name] > 0:
                        left[name] -= 1
                        found[Conflict(line_no, name, plain(line))] = None
        before += piece.count(b"\n")
    return tuple(found)


def reverse(content: bytes, addresses: Collection[str]) -> dict[str, str]:
    """Return the name that a reverse lookup of each address gives: the first one on the first line with that address.

    PostgreSQL compares that name with the host names in ``pg_hba.conf``. Addresses that no line has are left out.
    """
    wanted = {_canonical(address): address for address in addresses}
    found: dict[str, str] = {}
    for piece in _pieces(content):
        for line in piece.split(b"\n"):
            fields = re.split(rb"[#\0]", line, maxsplit=1)[0].split()
            text = fields[0].decode("ascii", "replace") if len(fields) > 1 else ""
            address = wanted.get(_canonical(text) if ":" in text else text)
            if address is not None:
                found.setdefault(address, plain(fields[1]))
    return found


def outside(content: bytes) -> bytes:
    """Return ``content`` with blank lines in the place of the block: all that ``conflicts()`` depends on.

    Raises:
        BlockError: the markers in ``content`` do not make one block.
    """
    parts = _split(content)
    return parts.head + b"\n" * parts.block.count(b"\n") + parts.tail


def _pieces(content: bytes) -> Iterator[bytes]:
    """Yield the lines of ``content``, many at a time."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start + _PIECE) + 1 or len(content)
        yield content[start:end]
        start = end


def unified_diff(old: bytes, new: bytes, *, path: str) -> str:
    """Return the output of ``diff -u``, empty without a difference. What does not print is escaped.

    ``difflib`` needs minutes for the lines of a large file, so it gets only those around the first and last difference.
    """
    one, other = _LINE.findall(old), _LINE.findall(new)
    shortest = min(len(one), len(other))
    above = next((i for i in range(shortest) if one[i] != other[i]), shortest)
    below = next((i for i in range(shortest - above) if one[-1 - i] != other[-1 - i]), shortest - above)
    start, left_out = max(0, above - _CONTEXT), max(0, below - _CONTEXT)
    lines = difflib.unified_diff(
        [_printable(line) for line in one[start : len(one) - left_out]],
        [_printable(line) for line in other[start : len(other) - left_out]],
        fromfile=path,
        tofile=f"{path} (new)",
        n=_CONTEXT,
    )

    def shifted(found: re.Match[str]) -> str:
        return f"@@ -{int(found[1]) + start}{found[2]} +{int(found[3]) + start}{found[4]} @@"

    numbered = (_RANGES.sub(shifted, line) for line in lines)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in numbered)


def _split(content: bytes) -> _Parts:
    markers = list(_markers(content))
    if not markers:
        return _Parts(content, b"", b"")
    begin, *others = markers

    def fault(marker: _Marker, text: str) -> BlockError:
        line_no = content.count(b"\n", 0, marker.start) + 1
        return BlockError(f"line {line_no}: {text}")

    for marker in markers:
        if marker.altered:
            text = plain(content[marker.start : marker.end])
            hint = f"write '{_text(marker.kind)}' there, or delete this line"
            raise fault(marker, f"«{text}» is an altered marker: {hint}")
    if begin.kind != _BEGIN:
        raise fault(begin, f"'{_text(_END)}' has no '{_text(_BEGIN)}' above it: put that back, or delete this line")
    if not others or others[0].kind != _END:
        raise fault(begin, f"'{_text(_BEGIN)}' has no '{_text(_END)}' below it: put that back, or delete this line")
    if len(others) > 1:
        raise fault(
            others[1], "another marker of resolver-agent's block, which may be there once: delete one of the two"
        )
    return _Parts(content[: begin.start], content[begin.start : others[0].end], content[others[0].end :])


@dataclasses.dataclass(frozen=True, slots=True)
class _Marker:
    """The line of a marker, from ``start`` to ``end``; ``altered`` if only case and white space are not as written."""

    kind: bytes
    start: int
    end: int
    altered: bool


def _markers(content: bytes) -> Iterator[_Marker]:
    """Yield our markers: whole lines, since other programs may have markers that begin as ours do."""
    end = 0
    for offset in range(0, len(content), _PIECE):
        piece = content[offset : offset + _PIECE + len(_COMMON) - 1].lower()
        found = piece.find(_COMMON)
        while found >= 0:
            at = offset + found
            if at >= end:
                start, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at) + 1 or len(content)
                line = content[start:end].rstrip(b" \t\r\n")
                if line in _BEGINS or line == _END:
                    yield _Marker(_END if line == _END else _BEGIN, start, end, altered=False)
                elif (kind := _ALTERED.get(_squeezed(line))) is not None:
                    yield _Marker(kind, start, end, altered=True)
            found = piece.find(_COMMON, found + 1)


def _squeezed(line: bytes) -> bytes:
    """Return what is left of a marker when other programs have indented, wrapped or re-cased it, or added a BOM."""
    return b"".join(line[:_ALTERED_MAX].removeprefix(b"\xef\xbb\xbf").lower().split())


_ALTERED_MAX = 256
_ALTERED = {_squeezed(_END): _END} | {_squeezed(begin): _BEGIN for begin in _BEGINS}


@functools.lru_cache(maxsize=8192)  # with a thousand names, most lines stay the same at each write
def _entry(target: Target) -> bytes:
    """Return the target's line; python-hosts must accept it, and reading it back must give the same target."""
    from python_hosts import HostsEntry  # noqa: PLC0415  (slow to import, and `status` only reads)

    line = f"{target.address}\t{target.name}\t# {_comment(target)}"
    memory = _parse(line)
    told = memory and all(getattr(memory, name) == getattr(target, name) for name in _TOLD)
    if not told or not HostsEntry.str_to_hostentry(line):
        raise ValueError(f"{target.name!r} with address {target.address!r} cannot be written to a hosts file")
    return line.encode("ascii") + b"\n"


_TOLD = ("name", "address", "primary", "system_id", "replaced_id")


def _implied_primary(kind: TargetKind, address: str) -> str | None:
    return address if kind in (TargetKind.PRIMARY, TargetKind.FALLBACK) else None


def _comment(target: Target) -> str:
    clauses = [target.kind.value]
    if target.kind is TargetKind.FENCED and target.wanted_role is Role.STANDBY:
        clauses.append("no standby")
    elif target.kind is not TargetKind.SELF and target.wanted_role not in (None, _WISHES[target.kind]):
        clauses.append(f"wants {target.wanted_role.value}")
    if target.primary and target.primary_demoted:
        clauses.append(f"primary was {target.primary}")
    elif target.kind is TargetKind.FENCED or target.primary != _implied_primary(target.kind, target.address):
        clauses.append(f"primary {target.primary}" if target.primary else "no primary")
    if target.system_id is not None:
        replaced = f" in place of {target.replaced_id}" if target.replaced_id is not None else ""
        clauses.append(f"system {target.system_id}{replaced}")
    return "; ".join(clauses)


def _parse(line: str) -> Target | None:
    """Return the target that ``_entry()`` wrote a line for, or None for any other line."""
    found = _ENTRY.fullmatch(line)
    if not found:
        return None
    address, kind = found["address"], TargetKind(found["standing"])
    primary = found["primary"] or found["lost"] if found["told"] else _implied_primary(kind, address)
    try:
        for text in filter(None, (address, primary)):
            ipaddress.ip_address(text)
    except ValueError:
        return None
    return Target(
        name=found["name"],
        address=address,
        kind=kind,
        wanted_role=_wanted_role(found, kind),
        primary=primary,
        primary_demoted=found["lost"] is not None,
        system_id=_number(found["system"]),
        replaced_id=_number(found["replaced"]),
    )


def _wanted_role(found: re.Match[str], kind: TargetKind) -> Role | None:
    if found["wanted"]:
        return Role(found["wanted"])
    return Role.STANDBY if found["no_standby"] else _WISHES[kind]


def _number(digits: str | None) -> int | None:
    return None if digits is None else int(digits)


def _printable(line: bytes) -> str:
    return "".join(letter if letter in "\t\n" or letter.isprintable() else repr(letter)[1:-1] for letter in _text(line))


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")
