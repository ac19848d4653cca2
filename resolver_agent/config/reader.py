"""Reads maps by tables of keys, and collects every error, so that all are reported at once.

The caller gives the tables; this module knows no keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from resolver_agent.config import values
from resolver_agent.config.yaml12 import dotted
from resolver_agent.system.suggestion import nearest


@dataclasses.dataclass(frozen=True, slots=True)
class Required:
    """Takes the place of a default for a required key; ``fix`` says what to write."""

    fix: str


Table = Mapping[str, tuple[Callable[[Any], Any], Any]]
"""For each key of a map: the parser of its value, and the default or ``Required``."""


def as_is(value: Any) -> Any:
    """Return the value unchanged; it is parsed later."""
    return value


_MOST_ERRORS = 100


class TooManyErrorsError(Exception):
    """There are so many errors that no more are looked for."""


class Reader:
    """Reads plain values and collects every error, so that all are reported at once."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def error(self, key: str, fault: object) -> None:
        """Add an error under its dotted key; an empty key stands for the whole file.

        Raises:
            TooManyErrorsError: this is one too many.
        """
        if len(self.errors) >= _MOST_ERRORS:
            raise TooManyErrorsError
        self.errors.append(f"{key}: {fault}" if key else str(fault))

    def value(self, key: str, parse: Callable[[Any], Any], found: Any, default: Any = None) -> Any:
        """Return the parsed value, or the default where it is invalid."""
        try:
            return parse(found)
        except ValueError as exc:
            self.error(key, exc)
            return default

    def map(self, key: str, found: Any, *, fix: str = "expected a map") -> dict[str, Any]:
        """Return a map. Null (everything in it is commented out) is an empty one; anything else is an error."""
        if isinstance(found, dict):
            return found
        if found is not None:
            # Text is not quoted: it may be a connection string with a password.
            self.error(key, f"{'text' if isinstance(found, str) else values.shown(found)} found, {fix}")
        return {}

    def fields(self, key: str, found: Any, table: Table, *, misplaced: Mapping[str, str]) -> dict[str, Any]:
        """Return a value for each key of the table; None for a required key that is missing or invalid."""
        present = self.map(key, found, fix=f"expected a map of {', '.join(table)}")
        for name in present:
            if name not in table:
                self.error(dotted(key, name), f"unknown key, {misplaced.get(name) or nearest(name, sorted(table))}")
        result = {}
        for name, (parse, default) in table.items():
            at = dotted(key, name)
            result[name] = None if isinstance(default, Required) else default
            if name in present:
                result[name] = self.value(at, parse, present[name], result[name])
            elif isinstance(default, Required) and isinstance(found, (dict, type(None))):
                self.error(at, f"missing, {default.fix}")
        return result

    def keywords(
        self, key: str, found: Any, *, refused: Mapping[str, str], fix: str = "expected a map"
    ) -> dict[str, str]:
        """Return libpq's connection keywords."""
        result = {}
        for name, given in self.map(key, found, fix=fix).items():
            at = dotted(key, name)
            if name in refused:
                self.error(at, f"not to be set here, {refused[name]}")
            elif name not in (known := values.libpq_keywords()):
                self.error(at, f"libpq has no such keyword, {nearest(name, sorted(known - refused.keys()))}")
            else:
                result[name] = self.value(at, partial(values.libpq_value, keyword=name), given)
        return result
