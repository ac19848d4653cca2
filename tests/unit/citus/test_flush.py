"""Which value ``citus.node_conninfo`` is set to, and how the agent's value is told from an administrator's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from resolver_agent.citus.flush import (
    STAMP_BITS,
    Override,
    Setting,
    Uncached,
    due,
    is_kept,
    recall,
    recall_uncached,
    uncached_from,
)

FOLLOWS = Override("sslmode=prefer").stamped(1)
KEEPS = Override("sslmode=allow", kept=True).stamped(1)

DUE = {
    "nothing but the built-in value": (Setting(boot="sslmode=require"), Override("sslmode=require")),
    "a file": (Setting(boot="sslmode=require", configured="sslmode=prefer"), Override("sslmode=prefer")),
    "an empty value in a file": (Setting(boot="sslmode=require", configured=""), Override("")),
    "no value anywhere": (Setting(), Override("")),
    "an administrator's ALTER SYSTEM": (
        Setting(boot="sslmode=require", configured="sslmode=prefer", altered="sslmode=allow"),
        Override("sslmode=allow", kept=True),
    ),
    "one with a blank at its end": (
        Setting(configured="sslmode=prefer", altered="sslmode=allow "),
        Override("sslmode=allow ", kept=True),
    ),
    "an empty one": (Setting(configured="sslmode=prefer", altered=""), Override("", kept=True)),
    "ours, which keeps one": (
        Setting(configured="sslmode=prefer", altered=KEEPS),
        Override("sslmode=allow", kept=True),
    ),
    "ours, and the same file": (Setting(configured="sslmode=prefer", altered=FOLLOWS), Override("sslmode=prefer")),
    "ours, and a changed file": (Setting(configured="sslmode=disable", altered=FOLLOWS), Override("sslmode=disable")),
    "ours, and the line in the file is gone": (
        Setting(boot="sslmode=require", altered=FOLLOWS),
        Override("sslmode=prefer"),
    ),
}

KEPT = {
    "never flushed": (Setting(loaded="sslmode=prefer", configured="sslmode=prefer"), True),
    "an administrator's, loaded": (Setting(loaded="sslmode=allow", altered="sslmode=allow"), True),
    "an administrator's, not loaded yet": (Setting(loaded=FOLLOWS, altered="sslmode=allow"), True),
    "ours, as it should be": (Setting(loaded=FOLLOWS, altered=FOLLOWS, configured="sslmode=prefer"), True),
    "ours, above a changed file": (Setting(loaded=FOLLOWS, altered=FOLLOWS, configured="sslmode=disable"), False),
    "ours, above an administrator's, and a changed file": (
        Setting(loaded=KEEPS, altered=KEEPS, configured="sslmode=disable"),
        True,
    ),
    "ours, not loaded": (Setting(loaded="sslmode=prefer", altered=FOLLOWS, configured="sslmode=prefer"), False),
    "ours, an older one loaded": (
        Setting(loaded=Override("sslmode=prefer").stamped(2), altered=FOLLOWS, configured="sslmode=prefer"),
        False,
    ),
}

OTHERS = [None, "", "sslmode=prefer", "sslmode=prefer ", " sslmode=prefer", "sslmode=prefer\t" + 30 * " "]

overrides = st.builds(Override, st.text(), kept=st.booleans())
stamps = st.integers(0, 2**STAMP_BITS - 1)


@pytest.mark.parametrize(("setting", "override"), DUE.values(), ids=DUE)
def test_whose_text_is_set(setting: Setting, override: Override) -> None:
    """An administrator's ALTER SYSTEM stays in force, also below ours; otherwise ours follows the files."""
    assert due(setting) == override


@pytest.mark.parametrize(("setting", "expected"), KEPT.values(), ids=KEPT)
def test_when_there_is_nothing_to_do(setting: Setting, *, expected: bool) -> None:
    """The agent's value must be current and loaded; any other value is in force without the agent."""
    assert is_kept(setting) is expected


@given(overrides, stamps)
def test_ours_is_known_again(override: Override, stamp: int) -> None:
    """The administrator's text in a value of ours is read back byte for byte, with its own white space."""
    assert recall(override.stamped(stamp)) == override


@pytest.mark.parametrize("value", OTHERS)
def test_others_are_not_taken_for_ours(value: str | None) -> None:
    """White space alone does not make another's value ours."""
    assert recall(value) is None


@given(stamps, stamps)
def test_two_flushes_set_two_values(first: int, second: int) -> None:
    """Two stamps never give the same value, because sessions would not notice the second flush."""
    override = Override("sslmode=prefer")
    assert (override.stamped(first) == override.stamped(second)) == (first == second)


@given(stamp=stamps, kept=st.booleans())
def test_libpq_ignores_what_is_added(stamp: int, *, kept: bool) -> None:
    """The value means the same to libpq, is one line, and ends with a blank."""
    base = "sslmode=verify-ca sslrootcert='/a b.crt'"
    value = Override(base, kept=kept).stamped(stamp)
    assert conninfo_to_dict(value) == conninfo_to_dict(base)
    assert set(value.removeprefix(base)) <= {" ", "\t"}
    assert value.endswith(" ")


@given(st.none() | st.integers(0, 2**31 - 1))
def test_an_uncached_value_is_known_again(base: int | None) -> None:
    """It rounds to 0, contains the administrator's number, and is made from that and from itself."""
    ours = Uncached(base)
    assert round(float.fromhex(ours.text) if base is None else float(ours.text)) == 0
    assert recall_uncached(ours.text) == ours
    assert uncached_from(ours.text) == uncached_from(None if base is None else str(base)) == ours


@pytest.mark.parametrize("value", ["", "0", "1", "0.0", "0.0001e3", "0.00007 ", "0.00001x", "0x00", "0.00012345678901"])
def test_others_are_not_taken_for_uncached(value: str) -> None:
    """Only the exact forms are the agent's."""
    assert recall_uncached(value) is None


@pytest.mark.parametrize("value", ["", "0x10", "010", "4.2", "1e1", "four", "12345678901"])
def test_what_could_not_be_given_back_is_left(value: str) -> None:
    """A value that is not written as a plain number is not replaced."""
    assert uncached_from(value) is None
