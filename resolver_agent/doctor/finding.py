"""A finding of doctor: values only."""

from __future__ import annotations

import dataclasses
import enum

from resolver_agent.system.foreign import plain

_LIMIT = 4000
_UNCHECKED = "could not be checked: "


class Severity(enum.Enum):
    """How bad a finding is. A node with notes only is fit."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    ``key`` names it for programs. ``text`` and ``fix`` follow PostgreSQL's style: ``text`` begins in lower case and has
    no period; ``fix``, shown as HINT, is a command or a sentence. Both quote files, servers and Patroni: what does not
    print is escaped, and each is one line of bounded length.
    """

    severity: Severity
    key: str
    text: str
    fix: str = ""

    @property
    def unchecked(self) -> str:
        """What could not be checked and why, if the finding says only that; else empty."""
        return self.text.removeprefix(_UNCHECKED) if self.text.startswith(_UNCHECKED) else ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", plain(self.text, limit=_LIMIT))
        object.__setattr__(self, "fix", plain(self.fix, limit=_LIMIT))

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.text}" + (f"\nHINT: {self.fix}" if self.fix else "")
