"""The results of a lab's clients during a scenario, and their table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LATE_S = {False: 1.0, True: 3.0}
"""How long after a server's change of role a statement may still be sent to it as what it was; True for a new standby.

A standby has been down before, and is asked again after as much as the agent's ``interval`` and ``timeout``.
"""

_HEAD = ("writes", "without, s", "reads", "without, s", "failed", "late, ms", "misrouted", "lost", "half")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The results of clients during a scenario.

    Attributes:
        event: what happened.
        writes: how many transactions were acknowledged.
        reads: how many reads were answered.
        write_gap_s: the longest time without an acknowledgement.
        read_gap_s: the longest time without an answer.
        failed: the errors that statements and connections met.
        lost: acknowledged transactions of which a row is missing.
        half: transactions that were not acknowledged, and of which there are some rows.
        late_ms: how long after a server's change of role a statement for its old role reached it; at most.
        misrouted: statements for which that was more than ``LATE_S``, and reads with a wrong result.
    """

    event: str
    writes: int
    reads: int
    write_gap_s: float
    read_gap_s: float
    failed: Sequence[str]
    lost: int
    half: int
    late_ms: float
    misrouted: Sequence[str]

    @property
    def well(self) -> bool:
        """Whether no write was lost, and nothing went to a wrong role."""
        return not (self.lost or self.half or self.misrouted)


def table(accounts: Sequence[Account]) -> Iterator[str]:
    """Yield the lines of a report."""
    yield f"{'':32}" + "".join(f"{word:>11}" for word in _HEAD)
    for one in accounts:
        counts = f"{len(one.misrouted):11}{one.lost:11}{one.half:11}"
        gaps = f"{one.writes:11}{one.write_gap_s:11.1f}{one.reads:11}{one.read_gap_s:11.1f}"
        yield f"{one.event:32}{gaps}{len(one.failed):11}{one.late_ms:11.0f}{counts}"
