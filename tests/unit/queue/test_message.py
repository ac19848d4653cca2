"""The messages between agents: what one renders another reads, and nothing else is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.queue.message import LIMIT, Kind, Message, parse, render

ID = "0123456789abcdef"
EXAMPLES = {
    "leaves": Message(kind=Kind.LEAVES, id=ID, node="10.0.0.3:5432", wait_s=5.5),
    "leaves, by a DNS name": Message(kind=Kind.LEAVES, id=ID, node="wk1-a.example.org:5432", wait_s=0.25),
    "leaves, by IPv6": Message(kind=Kind.LEAVES, id=ID, node="[fd00::3]:5432", wait_s=0.0),
    "others": Message(kind=Kind.OTHERS, id=ID),
    "stays": Message(kind=Kind.STAYS, id=ID),
    "held": Message(kind=Kind.HELD, id=ID),
    "held, by a coordinator's agent that is busy": Message(kind=Kind.HELD, id=ID, coordinator=True, later=True),
    "clear": Message(kind=Kind.CLEAR, id=ID, left=3),
}


@pytest.mark.parametrize("message", EXAMPLES.values(), ids=EXAMPLES)
def test_round_trip(message: Message) -> None:
    """What one agent renders another reads, also with keys of a later version."""
    assert parse(render(message)) == message
    assert parse(json.dumps({**json.loads(render(message)), "more": [1]})) == message


STRANGE = {
    "no JSON": "leaves",
    "a list": "[]",
    "another version": '{"v": 2, "say": "stays", "id": "0123456789abcdef"}',
    "a version that equals 1": '{"v": true, "say": "stays", "id": "0123456789abcdef"}',
    "no version": '{"say": "stays", "id": "0123456789abcdef"}',
    "an unknown word": '{"v": 1, "say": "dies", "id": "0123456789abcdef"}',
    "a word of another type": '{"v": 1, "say": ["stays"], "id": "0123456789abcdef"}',
    "no id": '{"v": 1, "say": "stays"}',
    "an id with a line break": '{"v": 1, "say": "stays", "id": "0123456789abcdef\\n"}',
    "no node": '{"v": 1, "say": "leaves", "id": "0123456789abcdef"}',
    "a node with an escape": '{"v": 1, "say": "leaves", "id": "0123456789abcdef", "node": "\\u001b[2J"}',
    "a time as text": '{"v": 1, "say": "leaves", "id": "0123456789abcdef", "node": "a:1", "wait_ms": "1"}',
    "a negative time": '{"v": 1, "say": "leaves", "id": "0123456789abcdef", "node": "a:1", "wait_ms": -1}',
    "a huge time": '{"v": 1, "say": "leaves", "id": "0123456789abcdef", "node": "a:1", "wait_ms": 1e300}',
    "a flag as a number": '{"v": 1, "say": "held", "id": "0123456789abcdef", "coordinator": 1}',
    "too long": " " * LIMIT + '{"v": 1, "say": "stays", "id": "0123456789abcdef"}',
    "nested without end": "[" * LIMIT,
}


@pytest.mark.parametrize("payload", STRANGE.values(), ids=STRANGE)
def test_anything_else_is_no_message(payload: str) -> None:
    """Anybody may NOTIFY: what is not exactly a message is none."""
    assert parse(payload) is None


@pytest.mark.parametrize("kind", Kind)
def test_what_belongs_to_another_kind_is_ignored(kind: Kind) -> None:
    """A message has the values of its own kind alone, whatever else is in it."""
    told = {"v": 1, "say": kind.value, "id": ID, "node": "a:1", "wait_ms": 5}
    told |= {"coordinator": True, "later": True, "left": 3}
    found = parse(json.dumps(told))
    assert found is not None
    assert parse(render(found)) == found
    assert (found.node, found.wait_s) == (("a:1", 0.005) if kind is Kind.LEAVES else ("", 0.0))
    assert {found.coordinator, found.later} == {kind is Kind.HELD}
    assert found.left == (3 if kind is Kind.CLEAR else 0)


def test_a_long_wait_is_cut() -> None:
    """A hook waits 6 s at most, whatever a message says."""
    message = parse('{"v": 1, "say": "leaves", "id": "0123456789abcdef", "node": "a:1", "wait_ms": 99999999}')
    assert message is not None
    assert message.wait_s == 6.0


@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_total(payload: str) -> None:
    """No text raises an exception."""
    parse(payload)
