"""Invalid YAML is reported by line and column."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.config.model import Node, Route
from tests.unit.config.builders import MINIMAL, errors, parse

NESTED = "nested more than 50 levels deep, or an alias inside its own anchor"
TOO_LARGE = r"a number in an escape (\U…) or in a directive (%YAML …) is too large"

SHAPE = {
    "key given twice": (
        MINIMAL + "interval: 1s\ninterval: 5s\n",
        ["interval: given a second time on line 4, expected once"],
    ),
    "nested key given twice": (
        "fallback: none\nnames:\n  wk1: {nodes: [10.0.0.1]}\n  wk1: {nodes: [10.0.0.2]}\n",
        ["names.wk1: given a second time on line 4, expected once"],
    ),
    "key that is a list": (MINIMAL + "? [1, 2]\n: 3\n", ["a list or map as a key on line 3, expected text"]),
    "unclosed list": (
        "fallback: none\nnames: [a\nport: 1\n",
        ["line 3, column 5: while parsing a flow sequence, expected ',' or ']', but got ':'"],
    ),
    "tab": (
        "fallback: none\n\tport: 1\n",
        [("line 2, column 1: while scanning for the next token, found character '\\t' that cannot start any token")],
    ),
    "undefined alias": ("fallback: *hunter2\n", ["line 1, column 11: found undefined alias '…'"]),
    "password that reads as an alias": (
        "postgresql: {password: *hunter2}\n",
        ["line 1, column 24: found undefined alias '…'"],
    ),
    "password that reads as a tag's prefix": (
        "postgresql: {password: !hun!ter2 }\n",
        ["line 1, column 24: while parsing a node, found undefined tag handle '…'"],
    ),
    "password that reads as a tag": (
        MINIMAL + "postgresql: {password: !hunter2 }\n",
        [
            "postgresql.password: a tag (!…) on line 3, expected none, and quotes around text that begins with !",
            "postgresql.password: null found, expected text (put it in quotes if it is meant as such)",
        ],
    ),
    "alias inside of itself": (
        "names: &x {wk1: *x}\n",
        [NESTED],
    ),
    "two documents": (
        "fallback: none\n---\nnames: {}\n",
        ["line 2, column 1: expected a single document in the stream, but found another document"],
    ),
    "control character": ("fallback: none\nport: \x01", ["line 2, column 7: a character that YAML does not allow"]),
    "100,000 levels": ("[" * 100_000, [NESTED]),
    "100,000 levels in block style": ("- " * 100_000, [NESTED]),
    "aliases that repeat tenfold a line": (
        "a: &a [1]\n" + "".join(f"{b}: &{b} [{f'*{a},' * 10}]\n" for a, b in itertools.pairwise("abcdefghij")),
        ["more than 50000 values, those that aliases repeat included"],
    ),
    "list of a hundred thousand": (
        f"[{'1,' * 100_000}]",
        ["more than 50000 values, those that aliases repeat included"],
    ),
    "larger than a configuration": ("#" * 1_048_577, ["larger than 1 MiB, expected a configuration"]),
    "character that does not exist": (r'fallback: "\UFFFFFFFF"', [TOO_LARGE]),
    "version of 5,000 digits": (f"%YAML {'1' * 5000}.1\n--- a", [TOO_LARGE]),
    "surrogate": (
        MINIMAL + r'hosts_file: "/etc/\ud800"',
        ["hosts_file: half of a surrogate pair on line 3, expected whole characters"],
    ),
    "surrogate in a key": (
        MINIMAL + r'"\ud800": 1',
        ["half of a surrogate pair on line 3, expected whole characters"],
    ),
    "merge of text": (
        "fallback: none\nnames: {<<: text, wk1: {nodes: [10.0.0.1]}}\n",
        ["names.'<<': no map on line 2, expected a map, or a list of maps"],
    ),
    "Python's tags": (
        MINIMAL + "hosts_file: !!python/object/apply:os.getcwd /etc\n",
        ["hosts_file: a tag (!…) on line 3, expected none, and quotes around text that begins with !"],
    ),
    "not UTF-8": (b"fallback: none\nport: \xff", ["line 2, column 7: not UTF-8 text"]),
}


@pytest.mark.parametrize(("text", "expected"), SHAPE.values(), ids=SHAPE)
def test_a_text_of_the_wrong_shape_is_refused(text: str | bytes, expected: list[str]) -> None:
    """A file that is no map of known keys is refused; invalid YAML is reported by line and column."""
    assert errors(text) == expected


def test_yaml_anchors_and_merges_work() -> None:
    """Settings that names share can be written once with a YAML merge; a name's own values win."""
    read = parse(
        "fallback: none\nnames:\n"
        "  a: &shared {nodes: [10.0.0.1], port: 6432, route: primary}\n"
        "  b: {<<: *shared, nodes: [10.0.0.2]}\n"
        "  c: {nodes: [10.0.0.3], port: 5433, <<: [*shared]}\n"
    )
    assert [group.nodes for group in read.groups] == [
        (Node("10.0.0.1", 6432),),
        (Node("10.0.0.2", 6432),),
        (Node("10.0.0.3", 5433),),
    ]
    assert {group.route for group in read.groups} == {Route.PRIMARY}


PIECES = [
    *[
        "a",
        "names",
        "fallback",
        "resolver_agent",
        "&a",
        "*a",
        "!!str",
        "!x",
        "<<",
        ":",
        "-",
        "?",
        "[",
        "]",
        "{",
        "}",
        ",",
        "'",
        "|",
        ">",
        "#",
        "%YAML",
        "---",
        "...",
        "2026-01-01",
    ],
    *["\n", "\n  ", "\t", " ", '"', "\\U", "\\ud800", "9" * 20],
]
YAML = st.lists(st.sampled_from(PIECES)).map("".join)


@given(st.text() | st.binary() | YAML)
def test_no_text_at_all_breaks_the_reading(text: str | bytes) -> None:
    """Any content that is no configuration is refused with a reason."""
    assert errors(text)
