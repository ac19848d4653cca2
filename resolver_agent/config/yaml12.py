"""YAML text to plain values: maps, lists, text, whole numbers, true, false and null, and nothing else.

PyYAML follows YAML 1.1, which surprises the authors of a configuration: ``off`` is False, ``010`` is 8, ``10:30`` is
630, and of two equal keys the first is silently dropped. Here a plain scalar is a number only if it is a decimal whole
number without leading zeros; only ``true``, ``false`` and ``null`` have a meaning of their own; keys are always text;
and a key that is given twice is an error.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")


_MOST_BYTES = 1024**2
_MOST_VALUES = 50_000  # thousands of names; reading them takes some seconds
_MOST_LEVELS = 50
_SHOWN = 300  # characters of a key

_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
_HARMLESS = re.compile(r"""(['"])(?:.|\\.+|<[a-z ]+>)\1""")
"""What a parser's message may quote: a single character, or the name of a token."""
_PASSWORD = re.compile("passw|secret|pwd|://", re.IGNORECASE)


class YamlError(ValueError):
    """The text is not YAML. The message has line and column but quotes no line, as it may hold a password."""


class _Loader(yaml.SafeLoader):
    """Composes a bounded number of nodes, and notes which of them have a tag."""

    _nodes = 0
    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes += 1
        self._level += 1
        _check(self._nodes, self._level)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._level -= 1
        if node is not None and not isinstance(event, yaml.AliasEvent):
            node.has_tag = event.tag is not None  # type: ignore[attr-defined]
        return node


def may_hold_a_password(text: str) -> bool:
    """Report whether text reads like a connection string, or like an entry with a password."""
    return _PASSWORD.search(text) is not None


def dotted(key: str, name: str) -> str:
    """Return the dotted key of an entry; a name with unusual characters is quoted, and one with a password hidden."""
    cut = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
    if not re.fullmatch(r"[\w.-]+", name):
        cut = "'…'" if may_hold_a_password(name) else repr(cut)
    return f"{key}.{cut}" if key else cut


def read(text: str | bytes) -> tuple[Any, dict[str, str]]:
    """Return the content of one YAML document, and its faults by dotted key.

    Raises:
        YamlError: the text is not UTF-8, not YAML, not a single document, or too much of it.
    """
    if len(text) > _MOST_BYTES:
        raise YamlError("larger than 1 MiB, expected a configuration")
    plain = _Plain()
    try:
        source = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        node = yaml.compose(source, Loader=_Loader)
        return (None if node is None else plain.value(node, "")), plain.faults
    except UnicodeDecodeError as exc:
        raise YamlError(f"{_position(exc.object[: exc.start].decode('utf-8'))}: not UTF-8 text") from exc
    except yaml.reader.ReaderError as exc:
        raise YamlError(f"{_position(source[: exc.position])}: a character that YAML does not allow") from exc
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise YamlError(f"{where}: {_without_quotes(', '.join(filter(None, (exc.context, exc.problem))))}") from exc
    except YamlError:
        raise
    except (ValueError, OverflowError) as exc:  # PyYAML lets them pass
        raise YamlError("a number in an escape (\\U…) or in a directive (%YAML …) is too large") from exc


def _check(values: int, level: int) -> None:
    if values > _MOST_VALUES:
        raise YamlError(f"more than {_MOST_VALUES} values, those that aliases repeat included")
    if level > _MOST_LEVELS:
        raise YamlError(f"nested more than {_MOST_LEVELS} levels deep, or an alias inside its own anchor")


def _without_quotes(words: str) -> str:
    """Return a parser's message without anchors, aliases and tags: a password that is not in quotes reads as one."""
    return _QUOTED.sub(lambda quoted: quoted[0] if _HARMLESS.fullmatch(quoted[0]) else "'…'", words)


def _position(before: str) -> str:
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


class _Plain:
    """Turns nodes into plain values, as often as they are repeated by aliases, and collects the faults by key."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self._values = 0
        self._level = 0

    def value(self, node: yaml.Node, key: str) -> Any:
        self._values += 1
        self._level += 1
        _check(self._values, self._level)
        if node.has_tag:  # type: ignore[attr-defined]
            self._fault(key, node, "a tag (!…)", "none, and quotes around text that begins with !")
        if isinstance(node, yaml.SequenceNode):
            value: Any = [self.value(item, f"{key}[{i}]") for i, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            value = self._mapping(node, key)
        elif isinstance(node, yaml.ScalarNode):
            value = self._scalar(node, key)
        self._level -= 1
        return value

    def _scalar(self, node: yaml.ScalarNode, key: str) -> Any:
        text = str(node.value)
        if not _is_unicode(text):
            self._fault(key, node, "half of a surrogate pair", "whole characters")
            text = text.encode(errors="replace").decode()
        if node.style is not None:  # quoted, or a block of text
            return text
        return int(text) if _WHOLE_NUMBER.fullmatch(text) else _WORDS.get(text.lower(), text)

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                self._fault(key, name_node, "a list or map as a key", "text")
                continue
            name = str(name_node.value)
            if not _is_unicode(name):
                self._fault(key, name_node, "half of a surrogate pair", "whole characters")
                continue
            at = dotted(key, name)
            value = self.value(value_node, at)
            if name == "<<" and name_node.style is None:
                for source in value if isinstance(value, list) else [value]:
                    if not isinstance(source, dict):
                        self._fault(at, name_node, "no map", "a map, or a list of maps")
                        continue
                    for inherited, inherited_value in source.items():
                        merged.setdefault(inherited, inherited_value)
                continue
            if name in own:
                self.faults[at] = f"given a second time on line {name_node.start_mark.line + 1}, expected once"
            own[name] = value
        return {**merged, **own}

    def _fault(self, key: str, node: yaml.Node, found: str, expected: str) -> None:
        self.faults[key] = f"{found} on line {node.start_mark.line + 1}, expected {expected}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
