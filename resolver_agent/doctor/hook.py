"""Patroni's pre_promote: which command is in force, and what a call of ours looks like in it. Values only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from resolver_agent.doctor.facts import Patroni, Unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

OURS = re.compile(r"(?P<program>[^\s'\"`(;&|]{0,200}resolver[-_]agent(?:\.cli)?)['\"]?\s[^;&|\n]*\bpre-promote\b")
"""A call of our hook in a command or a script."""

_LIMIT = 4000


def pre_promote(found: Patroni) -> Any | Unknown:
    """Return the command that is in force: the local one, even if it is null, else the dynamic one."""
    document = found.local if "pre_promote" in section(found.local) else found.dynamic
    if isinstance(document, Unknown):
        return document
    command = section(document).get("pre_promote")
    return command[:_LIMIT] if isinstance(command, str) else command


def section(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section ``postgresql`` of a configuration of Patroni's."""
    found = document.get("postgresql")
    return found if isinstance(found, dict) else {}
