"""Text and JSON from outside: a server, Patroni, a client of the control socket.

Whatever enters is bounded and escaped here, once, so that the rest of the program can pass it on to logs and terminals.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

TEXT_LIMIT = 400
"""The characters that are kept of a foreign text."""


def plain(text: str | bytes, *, limit: int = TEXT_LIMIT) -> str:
    """Return foreign text in one line: white space is joined, and what does not print is escaped as Python writes it.

    So it holds no control character, no terminal sequence, no line separator and no change of the writing direction.
    Of a longer text the first ``limit`` characters are kept, followed by ``…``.
    """
    some = text[: 4 * limit]
    words = some.decode("utf-8", "backslashreplace") if isinstance(some, bytes) else some
    joined = " ".join(words.split())
    escaped = printable(joined[: limit + 1])
    return escaped if len(escaped) <= limit and len(text) <= 4 * limit else f"{escaped[:limit]}…"


def printable(text: str) -> str:
    """Return a text of any length in one line, with everything escaped that does not print."""
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON for logs and terminals: only what does not print is escaped."""
    lines = json.dumps(value, ensure_ascii=False, indent=indent).split("\n")  # inside of strings JSON has none
    return "\n".join(
        line if line.isprintable() else "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)
        for line in lines
    )


def read_json(text: str | bytes) -> Any:
    """Return a JSON value.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a number that JSON has not (NaN, Infinity) or that is
            too large for a float.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value
