"""Changes of a valid input that often get past a parser's first check: of lines, words, JSON and YAML values."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

_NUMBERS = (0, -1, 1, 255, 1 << 16, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 10**30, 1.5, -0.0, 1e308)
_TEXTS = ("", " ", "\0", "\n", "\t", "\x1b[2J", "\u202e", "ä", "\U0001f600", "null", "::1", "127.0.0.1", "x" * 300)
_ODD: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": ""}, [None] * 20, *_NUMBERS, *_TEXTS)
_BYTES = tuple(
    [str(one).encode() for one in _NUMBERS]
    + [one.encode() for one in _TEXTS]
    + [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\r\n", b"NaN", b"1e999", b"0x10", b"\\", b'"', b"'", b"%s", b"9" * 5000]
)
_MOST_BYTES = 1 << 14


def mutated(data: bytes, chance: random.Random, *, others: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return an input after one to four changes. ``others`` are more inputs, ``words`` those that the parser knows."""
    tokens = (*_BYTES, *words, *words)
    for _ in range(chance.randint(1, 4)):
        change = chance.choice(_CHANGES)
        data = change(data, chance, tokens, others)[:_MOST_BYTES]
    return data


def _put(data: bytes, chance: random.Random, tokens: Sequence[bytes], _: Sequence[bytes]) -> bytes:
    """Put a token somewhere."""
    at = chance.randint(0, len(data))
    return data[:at] + chance.choice(tokens) + data[at:]


def _in_place_of_a_word(data: bytes, chance: random.Random, tokens: Sequence[bytes], _: Sequence[bytes]) -> bytes:
    """Put a token in the place of a word or number."""
    found = list(re.finditer(rb"[\w.:-]+", data))
    if not found:
        return chance.choice(tokens)
    one = chance.choice(found)
    return data[: one.start()] + chance.choice(tokens) + data[one.end() :]


def _cut(data: bytes, chance: random.Random, _: Sequence[bytes], __: Sequence[bytes]) -> bytes:
    """Leave a part out."""
    start = chance.randint(0, len(data))
    return data[:start] + data[start + chance.randint(1, 16) :]


def _end(data: bytes, chance: random.Random, _: Sequence[bytes], __: Sequence[bytes]) -> bytes:
    """Cut the end off."""
    return data[: chance.randint(0, len(data))]


def _repeat(data: bytes, chance: random.Random, _: Sequence[bytes], __: Sequence[bytes]) -> bytes:
    """Repeat a part many times."""
    start = chance.randint(0, len(data))
    end = start + chance.randint(1, 64)
    return data[:end] + data[start:end] * chance.choice((1, 2, 20, 100)) + data[end:]


def _flip(data: bytes, chance: random.Random, _: Sequence[bytes], __: Sequence[bytes]) -> bytes:
    """Change a byte."""
    at = chance.randint(0, len(data))
    return data[:at] + bytes([chance.randint(0, 255)]) + data[at + 1 :]


def _swap(data: bytes, chance: random.Random, _: Sequence[bytes], __: Sequence[bytes]) -> bytes:
    """Move a line."""
    lines = data.split(b"\n")
    lines.insert(chance.randint(0, len(lines)), lines.pop(chance.randint(0, len(lines) - 1)))
    return b"\n".join(lines)


def _splice(data: bytes, chance: random.Random, _: Sequence[bytes], others: Sequence[bytes]) -> bytes:
    """Go on with another input."""
    other = chance.choice(others)
    return data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]


def _in_a_value(data: bytes, chance: random.Random, tokens: Sequence[bytes], others: Sequence[bytes]) -> bytes:
    """Put something odd in the place of a value of JSON or YAML, or leave it out, or give it twice."""
    is_json = data.lstrip()[:1] in (b"{", b"[")
    try:
        value = json.loads(data) if is_json else yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 -- it is one of the safe ones
    except (ValueError, RecursionError, OverflowError, yaml.YAMLError):
        return _in_place_of_a_word(data, chance, tokens, others)
    places = list(_places(value))
    if not places:
        return _in_place_of_a_word(data, chance, tokens, others)
    inside, key = chance.choice(places)
    odd = chance.choice((*_ODD, *(word.decode(errors="replace") for word in tokens)))
    match chance.randint(0, 3):
        case 0:
            del inside[key]
        case 1:
            _, other = chance.choice(places), copy.deepcopy(inside[key])
            inside[key] = [other, other]
        case _:
            inside[key] = copy.deepcopy(odd)
    if is_json:
        return json.dumps(value).encode()
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode(errors="replace")
    except yaml.YAMLError:
        return data


def _places(value: Any) -> Sequence[tuple[Any, Any]]:
    """Return where each value in a value is: a list or map, and the index or key."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left and len(found) < 1000:
        one = left.pop()
        inside: list[Any] = (
            list(one) if isinstance(one, dict) else list(range(len(one))) if isinstance(one, list) else []
        )
        found += [(one, key) for key in inside]
        left += [one[key] for key in inside]
    return found


_CHANGES: tuple[Callable[[bytes, random.Random, Sequence[bytes], Sequence[bytes]], bytes], ...] = (
    _put,
    _in_place_of_a_word,
    _in_place_of_a_word,
    _cut,
    _end,
    _repeat,
    _flip,
    _swap,
    _splice,
    _in_a_value,
    _in_a_value,
    _in_a_value,
)
