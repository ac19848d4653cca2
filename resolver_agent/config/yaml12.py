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


class YamlError(ValueError):
    """The text is not YAML. The message has line and column but quotes no line, as it may hold a password."""


def dotted(key: str, name: str) -> str:
    """Return the dotted key of an entry; a name with unusual characters is quoted."""
    name = name if re.fullmatch(r"[\w.-]+", name) else repr(name)
    return f"{key}.{name}" if key else name


def read(text: str | bytes) -> tuple[Any, dict[str, str]]:
    """Return the content of one YAML document, and the faults in its keys by dotted key.

    Raises:
        YamlError: the text is not UTF-8, not YAML, or not a single document.
    """
    faults: dict[str, str] = {}
    try:
        source = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        node = yaml.compose(source, Loader=yaml.SafeLoader)
        return (None if node is None else _plain(node, "", faults)), faults
    except UnicodeDecodeError as exc:
        raise YamlError(f"{_position(exc.object[: exc.start].decode('utf-8'))}: not UTF-8 text") from exc
    except yaml.reader.ReaderError as exc:
        raise YamlError(f"{_position(source[: exc.position])}: a character that YAML does not allow") from exc
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise YamlError(f"{where}: {', '.join(filter(None, (exc.context, exc.problem)))}") from exc
    except RecursionError as exc:
        raise YamlError("nested too deeply, or an alias inside its own anchor") from exc


def _position(before: str) -> str:
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _plain(node: yaml.Node, key: str, faults: dict[str, str]) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, f"{key}[{i}]", faults) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, faults)
    if isinstance(node, yaml.ScalarNode) and node.style is None:  # neither quoted nor a block of text
        if _WHOLE_NUMBER.fullmatch(node.value):
            return int(node.value)
        return _WORDS.get(node.value.lower(), node.value)
    return node.value


def _mapping(node: yaml.MappingNode, key: str, faults: dict[str, str]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for name_node, value_node in node.value:
        if not isinstance(name_node, yaml.ScalarNode):
            faults[key] = f"a list or map as a key on line {name_node.start_mark.line + 1}, expected text"
            continue
        name = str(name_node.value)
        at = dotted(key, name)
        value = _plain(value_node, at, faults)
        if name == "<<" and name_node.style is None:
            for source in value if isinstance(value, list) else [value]:
                merged = {**(source if isinstance(source, dict) else {}), **merged}
            continue
        if name in own:
            faults[at] = f"given a second time on line {name_node.start_mark.line + 1}, expected once"
        own[name] = value
    return {**merged, **own}
