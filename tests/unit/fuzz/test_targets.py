"""Every parser of foreign input gives a value or its own error, at a cost that grows with the input and no faster."""

from __future__ import annotations

import logging
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.fuzz.mutation import mutated
from tests.unit.fuzz.targets import TARGETS, seeds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.fuzz.targets import Target

_SOME_CALLS = 20_000
"""How many function calls an input of any length may take."""

_AGAIN = 5
_SOME_S = 0.02
_SEED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Log nothing meanwhile: what pytest keeps of it would count."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Cost(NamedTuple):
    """What an input costs: function calls, those of C included, and bytes at the peak."""

    calls: int
    peak_bytes: int


def cost(target: Target, data: bytes) -> Cost:
    """Run a target, and return what that costs."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    tracemalloc.start()
    sys.setprofile(count)
    try:
        target.run(data)
    finally:
        sys.setprofile(None)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return Cost(calls, peak_bytes)


def processor_s(target: Target, data: bytes, *, times: int = 1) -> float:
    """Return the least processor time that a target takes for an input."""

    def once() -> float:
        begun = time.thread_time()
        target.run(data)
        return time.thread_time() - begun

    return min(once() for _ in range(times))


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    """Each input is parsed or refused in the parser's own words, and the target accepts one at least."""
    target = TARGETS[name]
    refused = 0
    for data in seeds(name):
        target.run(data)
        try:
            target.parse(data)
        except target.raises:
            refused += 1
    assert refused < len(seeds(name))


@pytest.mark.parametrize("name", TARGETS)
@settings(_SEED, max_examples=60)
@given(data=st.data())
def test_mutated_inputs(name: str, data: st.DataObject) -> None:
    """Whatever it is, it is a value that holds what it must or the parser's own error, and costs little."""
    target, known = TARGETS[name], seeds(name)
    chance = data.draw(st.randoms(use_true_random=False))
    found = mutated(data.draw(st.sampled_from(known)), chance, others=known, words=target.words)
    took = cost(target, found)
    assert took.calls <= target.calls * len(found) + _SOME_CALLS
    assert took.peak_bytes <= target.peak_bytes * len(found) + target.some_bytes


@pytest.mark.parametrize("name", TARGETS)
def test_twice_the_length_takes_twice_as_long(name: str) -> None:
    """What is repeated very often takes time in proportion: nobody can hold up the agent by a longer input."""
    target, known = TARGETS[name], seeds(name)
    pieces = [seed[start : start + length] for seed in known[:2] for start, length in ((0, 1), (len(seed) // 2, 20))]
    parts = [*target.words, *filter(None, pieces), b" ", b"\0", b"\\", b"[", b'"']
    for number, part in enumerate(parts + parts):
        seed = known[number % len(known)]
        at = len(seed) // 2 if number < len(parts) else len(seed)
        half, whole = (
            seed[:at] + part * (size // len(part)) + seed[at:] for size in (target.size_bytes // 2, target.size_bytes)
        )
        for times in (1, _AGAIN):  # another process may have slowed it down
            some_s, all_s = (processor_s(target, one, times=times) for one in (half, whole))
            if all_s <= 3 * some_s + _SOME_S:
                break
        assert all_s <= 3 * some_s + _SOME_S, part
