"""The file with the last changes of names, which outlives a restart.

Each change is a line of JSON; a later line for the same change takes the place of an earlier one. So a line that was
not written to its end costs no other. Standard library only, so that ``resolver-agent history`` starts quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.changes import change
from resolver_agent.system import state_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resolver_agent.changes.change import Change

KEPT = 1000
"""How many changes are kept."""

_MOST_BYTES = 16 << 20


def path_of(state_dir: str) -> str:
    """Return the path of the file."""
    return f"{state_dir}/history.jsonl"


def read(path: str) -> tuple[list[Change], int, bool]:
    """Return the changes in a file, oldest first, the number of its lines, and whether the last one is whole.

    What is no change in it is ignored.

    Raises:
        state_file.StateError: it cannot be read.
    """
    content = state_file.read(path, most_bytes=_MOST_BYTES)
    lines = content.splitlines(keepends=True)
    found: dict[tuple[str, str, str | None], Change] = {}
    for line in lines:
        one = change.from_line(line)
        if one is not None:
            found[one.key] = one
    return list(found.values())[-KEPT:], len(lines), not lines or lines[-1].endswith(b"\n")


def write(path: str, changes: Iterable[Change]) -> None:
    """Replace the changes in a file.

    Raises:
        state_file.StateError: it cannot be written.
    """
    state_file.write(path, b"".join(map(change.to_line, changes)))


def append(path: str, changes: Iterable[Change]) -> None:
    """Add changes to a file, or only make it.

    Raises:
        state_file.StateError: it cannot be written.
    """
    state_file.append(path, b"".join(map(change.to_line, changes)))
