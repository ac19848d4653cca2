"""A finding of doctor: values only."""

from __future__ import annotations

import dataclasses
import enum


class Severity(enum.Enum):
    """How bad a finding is. A node with notes only is fit."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    ``key`` names it for programs. ``text`` and ``fix`` follow PostgreSQL's style: ``text`` begins in lower case and has
    no period; ``fix``, shown as HINT, is a command or a sentence.
    """

    severity: Severity
    key: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.text}" + (f"\nHINT: {self.fix}" if self.fix else "")
