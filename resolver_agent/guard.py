"""Whether what a recovery of prepared transactions has forgotten may stay forgotten (rule R6).

Values in, values out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Look = Mapping[str, str | None]
    """Who was reached: for each node that Citus dials, as ``name:port``, its role and identity, or None.

    What does not begin with "primary" is a standby, or a stranger: a server of another group than the node's.
    """

# Citus' own words, which it never translates. Every node that recovery cannot reach gives the first of them, and one
# that says nothing at all the second as well.
_UNREACHED = re.compile(r"transaction recovery cannot connect to (\S+)")
_SLOW = re.compile(r"could not establish connection after \d+ ms")

_ASTRAY = {
    "standby": "a standby; see what `resolver-agent status` says of its name",
    "stranger": "a server of another group; see what `resolver-agent status` and `getent ahosts` say of its name",
}


def refusal(before: Look) -> str | None:
    """Return why recovery must not even begin, with the mend, or None.

    On a server of another group it would roll back what that group is about to commit, and nothing brings that back.
    """
    strangers = (node for node, answer in before.items() if _kind(answer) == "stranger")
    return next((f"{node} leads to {_ASTRAY['stranger']}" for node in strangers), None)


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
        for kind, words in _ASTRAY.items():
            if kind in (_kind(answer), _kind(after[node])):
                return f"{node} led to {words}"
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


def _kind(answer: str | None) -> str:
    return (answer or "").partition(" ")[0]
