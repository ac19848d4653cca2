"""Who is waited for before a server stops, and who is left to its fate."""

from __future__ import annotations

import pytest

from resolver_agent.queue.drain import Open, rest
from resolver_agent.queue.gate import UnderWay

OURS = 5
NAMED = "citus_internal gpid=50000000101"  # process 101 of node 5
PREPARED = "citus_0_101_7_1"

RUNS = UnderWay(pid=101, active=True, inside=True, age_s=0.1)
OLD = UnderWay(pid=101, active=True, inside=True, age_s=3.0)
IDLE = UnderWay(pid=101, active=False, inside=True, age_s=0.2)
LONG_IDLE = UnderWay(pid=101, active=False, inside=True, age_s=1.5)
WAITS = UnderWay(pid=102, active=True, inside=False, age_s=0.1)

CASES = {
    "nobody": ([], [], 0, 0),
    "a command that waits at the gate": ([WAITS], [], 0, 0),
    "a command inside": ([RUNS], [], 1, 1),
    "a command inside, with a transaction there": ([RUNS], [Open(NAMED, 7)], 2, 2),
    "an old command elsewhere": ([OLD], [], 0, 0),
    "an old command there": ([OLD], [Open(NAMED, 7)], 0, 1),
    "an old command that has prepared there": ([OLD], [Open(PREPARED)], 0, 1),
    "a transaction between two statements": ([IDLE], [Open(NAMED, 7)], 1, 1),
    "one that idles elsewhere": ([LONG_IDLE], [], 0, 0),
    "one that idles": ([LONG_IDLE], [Open(NAMED, 7)], 0, 1),
    "the same process of another node": ([LONG_IDLE], [Open("citus_internal gpid=60000000101", 7)], 1, 1),
    "a prepared one of a worker's": ([LONG_IDLE], [Open("citus_2_101_7_1")], 1, 1),
    "another coordinator's": ([], [Open("citus_internal gpid=60000000201", 7)], 1, 1),
    "Citus without such names": ([LONG_IDLE], [Open("citus", 7)], 1, 1),
    "nonsense": ([LONG_IDLE], [Open("citus gpid=" + 30 * "9", 7), Open("citus_0_x_", 0)], 2, 2),
}


@pytest.mark.parametrize(("under_way", "opened", "awaited", "count"), CASES.values(), ids=CASES)
def test_who_is_waited_for(under_way: list[UnderWay], opened: list[Open], awaited: int, count: int) -> None:
    """Commands older than the flush and long idle transactions are not, with all that they have there."""
    found = rest(under_way, opened, flushed_s=1.0, node_ids={OURS})
    assert (found.awaited, found.count) == (awaited, count)
    assert len(found.words) == count


def test_the_words_are_few() -> None:
    """However much is left, it is a line."""
    found = rest([], [Open(f"citus_2_{number}_7_1") for number in range(100)], flushed_s=1.0, node_ids={OURS})
    assert (found.awaited, found.count, len(found.words)) == (100, 100, 6)
    assert found.words[-1] == "95 more"
