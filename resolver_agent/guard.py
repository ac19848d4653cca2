"""Whether what a recovery of prepared transactions has forgotten may stay forgotten (rule R6).

Values in, values out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Look = Mapping[str, str | None]
    """Who was reached: for each node that Citus dials, as ``name:port``, its role and identity, or None."""

# Citus' own words, which it never translates. Every node that recovery cannot reach gives the first of them, and one
# that says nothing at all the second as well.
_UNREACHED = re.compile(r"transaction recovery cannot connect to (\S+)")
_SLOW = re.compile(r"could not establish connection after \d+ ms")


def objection(before: Look, after: Look, warnings: Sequence[str]) -> str | None:
    """Return why what a recovery has forgotten must come back, with the mend, or None where it may stay forgotten.

    It may where every node that answered was a primary and the same both times, and where recovery reached those nodes
    and no other, and warned of nothing else.

    Args:
        before: who was reached just before.
        after: who was reached just after.
        warnings: what Citus warned of from before to after; what stands after a line's end is the context.
    """
    if before.keys() != after.keys():
        return "pg_dist_node has changed meanwhile; the next pass goes by the new one"
    if before and not any(before.values()):
        return "no node answered; see what `resolver-agent status` says of them"
    for node, answer in before.items():
        if any((seen or "").startswith("standby") for seen in (answer, after[node])):
            return f"{node} led to a standby; see what `resolver-agent status` says of its name"
        if answer != after[node]:
            changed = "led to another server" if answer and after[node] else "answered only"
            return f"{node} {changed} {'afterwards' if after[node] else 'at first'}; the next pass will tell"
    silent = {node for node, answer in before.items() if answer is None}
    heads = {warning: warning.partition("\n")[0] for warning in warnings}
    unreached = {match[1] for head in heads.values() if (match := _UNREACHED.fullmatch(head))}
    if silent != unreached:
        return f"{', '.join(sorted(silent ^ unreached))} answered only now and then; the next pass will tell"
    other = [text for text, head in heads.items() if not (_UNREACHED.fullmatch(head) or _SLOW.fullmatch(head))]
    return f"Citus warned: {'; '.join(' '.join(text.split()) for text in other)}" if other else None
