"""Text and JSON from outside: bounded, escaped, and one kind of error."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.system.foreign import plain, read_json, to_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the database system is starting up", "the database system is starting up"),
        ("two\nlines\r\n\tand more ", "two lines and more"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\u2028b\u202ec\ufeff", r"a b\u202ec\ufeff"),
        ("\ud800", r"\ud800"),
        ("grün → 数据库", "grün → 数据库"),
        (b"caf\xe9", r"caf\xe9"),
        (b"\xff\x1b", r"\xff\x1b"),
        ("x" * 401, "x" * 400 + "…"),
        ("x" * 400, "x" * 400),
    ],
)
def test_plain_text(text: str | bytes, expected: str) -> None:
    """White space is joined, what does not print is escaped, and a long text is cut."""
    assert plain(text) == expected


@given(st.text() | st.binary())
def test_plain_text_is_one_short_printable_line(text: str | bytes) -> None:
    """Whatever comes in."""
    line = plain(text, limit=50)
    assert len(line) <= 51
    assert all(unicodedata.category(letter)[0] != "C" and letter not in "\u2028\u2029" for letter in line)
    assert plain(line, limit=60) == line


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", '{"a": Infinity}', "[-Infinity]", "1e999", "[" * 100_000, "9" * 100_000, b"\xff", '"\x00'],
)
def test_no_json(text: str | bytes) -> None:
    """Every fault is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


def test_json() -> None:
    """A value comes out as Python has it."""
    assert read_json(b'{"a": [1, 2.5, null, "x"]}') == {"a": [1, 2.5, None, "x"]}


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_for_a_terminal_prints(value: object) -> None:
    """Programs read the same value, and a terminal is sent nothing that does not print."""
    for indent in None, 2:
        text = to_json(value, indent=indent)
        assert json.loads(text) == value
        assert all(line.isprintable() for line in text.split("\n"))


def test_json_for_people() -> None:
    """Letters stay letters."""
    assert to_json({"wk1": "→ grün\u2028\U000e0001"}) == '{"wk1": "→ grün\\u2028\\udb40\\udc01"}'
