"""What a new configuration changes, key by key, in the words of the file: for the log. Passwords are never shown."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from resolver_agent.config.model import Config, Group, Node
from resolver_agent.config.values import SECRETS

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST = 20
_MOST_LETTERS = 200

_NO_KEYS = {"path", "warnings", "in_patronis_file", "groups"}
_KEYS = {"log_format": "log.format", "log_level": "log.level", "max_lag_s": "max_lag_seconds", "has_local": "local"}
_FLAGS = {"citus": ("off", "auto"), "has_local": ("off", "on")}
"""Fields that have other words in the file than in the model."""

_OF_A_NAME: Mapping[str, Callable[[Group], object]] = {
    "nodes": lambda group: [node.host for node in group.nodes],
    "port": lambda group: group.nodes[0].port,
} | {
    field.name: operator.attrgetter(field.name)
    for field in dataclasses.fields(Group)
    if field.name not in ("name", "nodes")
}


def differences(old: Config, new: Config) -> list[str]:
    """Return what has changed, as ``interval: 1s → 2s`` or ``names.wk3: added``, or a part of that and "and more".

    A key that changed in the same way for all names, for example because it is set for all of them, is given once.
    """
    names = list(itertools.islice(_of_names(old, new), _MOST + 1))
    # The local port is that of all names, unless it is set.
    changes = [*(one for one in _of_top(old, new) if one.removeprefix("local.") not in names), *names]
    return [*changes[:_MOST], "and more"] if len(changes) > _MOST else changes


def _of_top(old: Config, new: Config) -> Iterator[str]:
    fields = (field.name for field in dataclasses.fields(Config) if field.name not in _NO_KEYS)
    found = {
        key: words for field in fields for key, words in _compared(field, getattr(old, field), getattr(new, field))
    }
    for key, words in found.items():
        if old.has_local is not new.has_local and key.startswith("local."):
            continue
        # What `local` does not set is as in `postgresql`.
        if not key.startswith("local.") or found.get(f"postgresql.{key.removeprefix('local.')}") != words:
            yield f"{key}: {words}"


def _of_names(old: Config, new: Config) -> Iterator[str]:
    before, after = ({group.name: group for group in one.groups} for one in (old, new))
    yield from (f"names.{name}: removed" for name in before if name not in after)
    yield from (f"names.{name}: added" for name in after if name not in before)
    both = [name for name in before if name in after]
    if both != [name for name in after if name in before]:
        yield "names: in another order"
    for field, value in _OF_A_NAME.items():
        pairs = {name: (value(before[name]), value(after[name])) for name in both}
        first = next(iter(pairs.values()), None)
        if first is not None and len(pairs) > 1 and all(pair == first for pair in pairs.values()):
            yield from (f"{key}: {words}" for key, words in _compared(field, *first))
        else:
            for name, pair in pairs.items():
                yield from (f"names.{name}.{key}: {words}" for key, words in _compared(field, *pair))


def _compared(field: str, old: object, new: object) -> Iterator[tuple[str, str]]:
    """Yield the keys of a field whose values differ, and how, in words."""
    if old == new:
        return
    before, after = dict(_flat(field, old)), dict(_flat(field, new))
    for key in [*before, *(key for key in after if key not in before)]:
        secret = key.rpartition(".")[2] in SECRETS or key == "on_change.command"  # whose arguments may hold one
        if secret and before.get(key) != after.get(key):
            yield key, "changed"
        elif before.get(key) != after.get(key):
            yield key, f"{_shown(before.get(key))} → {_shown(after.get(key))}"


def _flat(field: str, value: Any) -> Iterator[tuple[str, object]]:
    """Yield the keys of a field, as in the file, with their values. What is not set is left out."""
    key = _KEYS.get(field, field.removesuffix("_s"))
    if value is None or value == ():
        return
    if isinstance(value, Node):
        value = value._asdict()
    if dataclasses.is_dataclass(value):
        for one in dataclasses.fields(value):
            yield from ((f"{key}.{below}", found) for below, found in _flat(one.name, getattr(value, one.name)))
    elif isinstance(value, Mapping):
        yield from ((f"{key}.{name}", text) for name, text in value.items())
    elif field.endswith("_s"):
        yield key, f"{value:g}s"
    else:
        yield key, _FLAGS[field][value] if field in _FLAGS else value


def _shown(value: object) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (list, tuple)):
        value = f"[{', '.join(map(str, value))}]"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"
