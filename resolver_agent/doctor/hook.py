"""Patroni's hooks: which command is in force, and what a call of ours looks like in it. Values only."""

from __future__ import annotations

import bisect
import dataclasses
import re
from typing import TYPE_CHECKING, Any

from resolver_agent.doctor.facts import Patroni, Unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

_LIMIT = 4000


@dataclasses.dataclass(frozen=True, slots=True)
class HookName:
    """A hook of Patroni's that ought to call the agent.

    ``key`` is its name under ``postgresql`` in Patroni's configuration, ``line`` the command that belongs there.
    """

    key: str
    line: str

    @property
    def command(self) -> str:
        """The command of ours that it calls."""
        return self.key.replace("_", "-")

    @property
    def alone(self) -> str:
        """The command without the shell around it, for a script."""
        return self.line.split("'")[1]

    def calls(self, text: str) -> list[str]:
        """Return the programs of ours that a command or a script calls for this hook.

        The time is linear in the length of the text, which a single regular expression would not be: a script may name
        us very often without a call.
        """
        ends = [one.start() for one in _END.finditer(text)]
        words = [one.start() for one in re.finditer(rf"\b{self.command}\b", text)]
        programs, seen = [], 0
        for found in _OURS.finditer(text):
            end = bisect.bisect_left(ends, found.end())
            until = ends[end] if end < len(ends) else len(text)
            first, after = bisect.bisect_left(words, found.end()), bisect.bisect_left(words, until)
            if found.start() >= seen and first < after:
                programs.append(found["program"])
                seen = words[after - 1]  # what stands before the word is our command line
        return programs


_OURS = re.compile(r"(?P<program>[^\s'\"`(;&|]{0,200}resolver[-_]agent(?:\.cli)?)['\"]?\s")
_END = re.compile(r"[;&|\n]")

PRE_PROMOTE = HookName("pre_promote", "/bin/sh -c 'timeout -k 1 5 /usr/local/bin/resolver-agent pre-promote || :'")
BEFORE_STOP = HookName("before_stop", "/bin/sh -c 'timeout -k 1 6 /usr/local/bin/resolver-agent before-stop || :'")
HOOKS = (PRE_PROMOTE, BEFORE_STOP)


def command_of(hook: HookName, found: Patroni) -> Any | Unknown:
    """Return the command that is in force: the local one, even if it is null, else the dynamic one."""
    document = found.local if hook.key in section(found.local) else found.dynamic
    if isinstance(document, Unknown):
        return document
    command = section(document).get(hook.key)
    return command[:_LIMIT] if isinstance(command, str) else command


def section(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section ``postgresql`` of a configuration of Patroni's."""
    found = document.get("postgresql")
    return found if isinstance(found, dict) else {}
