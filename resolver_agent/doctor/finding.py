"""What doctor says of a fault: values only."""

from __future__ import annotations

import dataclasses
import enum


class Severity(enum.Enum):
    """How bad a finding is. Notes alone leave a node fit."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong. ``key`` names it for programs, ``fix`` is a command or the line to write."""

    severity: Severity
    key: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.text}" + (f"\nHINT: {self.fix}" if self.fix else "")
