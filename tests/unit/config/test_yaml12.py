"""Invalid YAML is reported by line and column."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.config.model import Node, Route
from tests.unit.config.builders import MINIMAL, errors, parse

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
    "undefined alias": ("fallback: *x\n", ["line 1, column 11: found undefined alias 'x'"]),
    "alias inside of itself": (
        "names: &x {wk1: *x}\n",
        ["nested too deeply, or an alias inside its own anchor"],
    ),
    "two documents": (
        "fallback: none\n---\nnames: {}\n",
        ["line 2, column 1: expected a single document in the stream, but found another document"],
    ),
    "control character": ("fallback: none\nport: \x01", ["line 2, column 7: a character that YAML does not allow"]),
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


@given(st.text() | st.binary())
def test_no_text_at_all_breaks_the_reading(text: str | bytes) -> None:
    """Any content that is no configuration is refused with a reason."""
    assert errors(text)
