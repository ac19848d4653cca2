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
    """Something that is wrong. ``key`` names it for programs, ``mend`` is a command or the line to write."""

    severity: Severity
    key: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.text}" + (f"; mend: {self.mend}" if self.mend else "")
