"""Which known word is meant by one that is not known."""

from __future__ import annotations

import pytest

from resolver_agent.system.suggestion import nearest


@pytest.mark.parametrize(
    ("word", "otherwise", "expected"),
    [
        ("prot", "", "did you mean `port`?"),
        ("prot", "no such key", "did you mean `port`?"),
        ("xyzzy", "", "expected one of route, port"),
        ("xyzzy", "no such key", "no such key"),
        ("", "", "expected one of route, port"),
    ],
)
def test_nearest(word: str, otherwise: str, expected: str) -> None:
    """The nearest word, or else all of them in their order, or the given text."""
    assert nearest(word, iter(["route", "port"]), otherwise=otherwise) == expected
