"""A change of a name: as plain data, as a line that may be anybody's, and in words."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from resolver_agent.changes.change import Change, as_text, from_line, gone, made, to_line
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import FENCE, Code, Reason, Target, TargetKind

A, B = "10.0.0.1", "10.0.0.2"
TIME = "2026-11-28T10:00:00.123+01:00"

CHANGE = Change(
    time=TIME,
    name="wk1",
    old=A,
    new=B,
    code="primary",
    reason="primary, timeline 8",
    wanted_role="primary",
    written_ms=12,
    flushed_ms=40,
)
DATA = {
    "time": TIME,
    "name": "wk1",
    "from": A,
    "to": B,
    "code": "primary",
    "reason": "primary, timeline 8",
    "wanted_role": "primary",
    "written_ms": 12,
    "flushed_ms": 40,
}


def target(address: str, *, reason: str = "primary, timeline 8") -> Target:
    """Return a target of a name that wants its primary."""
    return Target(
        name="wk1",
        address=address,
        kind=TargetKind.PRIMARY,
        wanted_role=Role.PRIMARY,
        reason=Reason(Code.PRIMARY, reason),
    )


def line(**changed: Any) -> bytes:
    """Return a line of the history in which some values are different."""
    return json.dumps(DATA | changed).encode()


def test_the_change_to_a_target() -> None:
    """It has both addresses, and the reason of the new one."""
    found = made(target(A), target(B), time=TIME, written_ms=12)
    assert found == dataclasses.replace(CHANGE, flushed_ms=None)
    assert made(None, target(B), time=TIME, written_ms=12) == dataclasses.replace(found, old=None)


def test_a_name_that_is_gone() -> None:
    """It has no new address."""
    found = gone(target(A), time=TIME, written_ms=1)
    assert (found.name, found.old, found.new, found.code) == ("wk1", A, None, "removed")


def test_plain_data() -> None:
    """The keys are words that programs read."""
    assert CHANGE.as_json() == DATA


@pytest.mark.parametrize(
    "change",
    [
        CHANGE,
        dataclasses.replace(CHANGE, old=None, flushed_ms=None),
        dataclasses.replace(CHANGE, new=None, wanted_role=None),
        dataclasses.replace(CHANGE, old="fd00::1", new=FENCE),
        made(target(A), target(B, reason="x" * 5000 + "\n\x1b"), time=TIME, written_ms=12),
        made(target(A), target(B, reason="über →\n\x1b[2J\ud800"), time=TIME, written_ms=12),
    ],
)
def test_a_line_gives_the_change_back(change: Change) -> None:
    """A change is one line, whatever its reason, of less than 3 kB."""
    found = to_line(change)
    assert found.count(b"\n") == 1
    assert found.endswith(b"\n")
    assert len(found) < 3000
    assert from_line(found) == change


@pytest.mark.parametrize(
    "found",
    [
        b"",
        b"\n",
        b"\xff\xfe",
        to_line(CHANGE)[:-20],
        b"[" * 100_000,
        b"7",
        b"[]",
        b"{}",
        line(time="yesterday"),
        line(time="2026-11-28T10:00:00"),
        line(time="0001-01-01T00:00:00+14:00"),
        line(time="9999-12-31T23:59:59-14:00"),
        line(time=None),
        line(name=None),
        line(name=["wk1"]),
        line(to="wk2"),
        line(to=7),
        line(to=True),
        line(code=1),
        line(reason=None),
        line(wanted_role=0),
        line(written_ms=None),
        line(written_ms=-1),
        line(written_ms=1.5),
        line(written_ms=True),
        line(flushed_ms=1 << 60),
        line(flushed_ms="40"),
        line().replace(b"40", b"NaN"),
    ],
)
def test_what_is_no_change(found: bytes) -> None:
    """A line that was cut off, or that somebody else wrote, is none."""
    assert from_line(found) is None


def test_what_does_not_print_is_escaped() -> None:
    """The file may be anybody's: what comes from it can be shown."""
    found = from_line(line(name="a\x1b[2J", reason="b\u202e\nc"))
    assert found is not None
    assert found.name == r"a\x1b[2J"
    assert found.reason == r"b\u202e c"


def test_words() -> None:
    """A line for each change, in columns."""
    fenced = dataclasses.replace(CHANGE, name="wk1-ro", old=None, new=FENCE, reason="no fit standby", flushed_ms=None)
    left = dataclasses.replace(CHANGE, new=None, reason="no longer configured", written_ms=3)
    assert as_text([CHANGE, fenced, left]).splitlines() == [
        f"{TIME}  wk1     10.0.0.1  →  10.0.0.2  primary, timeline 8; on disk after 12 ms, flushed after 40 ms",
        f"{TIME}  wk1-ro  -         →  fenced    no fit standby; on disk after 12 ms",
        f"{TIME}  wk1     10.0.0.1  →  -         no longer configured; on disk after 3 ms, flushed after 40 ms",
    ]
