"""A promotion of the local server that was announced (``pre-promote``): for how long it is taken for a primary.

Values in, values out. By rule R4 names move before the server takes writes, so its role has to be assumed until it can
be seen. No clock ends that: a promotion may take minutes, while a query holds up replay.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.model import Alert, Kind

if TYPE_CHECKING:
    from resolver_agent.model import Claim, NodeState

ANNOUNCED = "announced"
"""The key of the alert that a promotion was announced."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A promotion that was announced at ``since`` (seconds of CLOCK_BOOTTIME).

    ``receiver`` is the process number of the WAL receiver that was connected then, if one was; ``receiver_known``
    reports that the server was asked.
    """

    since: float
    receiver: int | None = None
    receiver_known: bool = True

    def after(self, local: NodeState) -> Announced:
        """Return the same, with the WAL receiver if it was not known: right after the agent's start nothing is."""
        if self.receiver_known or local.role_seen is None:
            return self
        return Announced(since=self.since, receiver=local.role_seen.receiver)

    @property
    def alert(self) -> Alert:
        """What an operator should know while it lasts: until its end no reads go to standbys."""
        text = (
            "a promotion of the local PostgreSQL was announced (pre-promote) and has not happened yet: names lead to "
            "primaries; if none is under way, `systemctl restart resolver-agent` takes it back"
        )
        return Alert(ANNOUNCED, text)


def how_it_ended(
    announced: Announced, *, local: NodeState, claim: Claim | None, primary_at: float | None
) -> str | None:
    """Return in words what ended an announced promotion, or None while it is under way.

    Only what was asked since counts. ``claim`` is what the local Patroni said last of the leader lock; None where no
    Patroni is configured or it never answered. Without its word a new connection of the WAL receiver tells, while the
    group has another primary (``primary_at`` is when one was seen last): the server follows that one.
    """
    seen = local.role_seen
    if seen is not None and seen.at < announced.since:
        seen = None
    if seen is not None and seen.kind is Kind.PRIMARY:
        return "the local PostgreSQL was promoted"
    if claim is not None and claim.at >= announced.since:
        return None if claim.leads else "the local Patroni does not hold the leader lock"
    streams = seen is not None and announced.receiver_known and seen.receiver not in (None, announced.receiver)
    if claim is None and streams and primary_at is not None and primary_at >= announced.since:
        return "the local PostgreSQL streams from a primary"
    return None


def believable(claim: Claim, *, local: NodeState) -> Claim | None:
    """Return the claim, or None where it is of another database cluster than the local server.

    A machine may have several servers, each with a Patroni, and the configuration the wrong one's port.
    """
    identity = local.role_seen.identity if local.role_seen is not None else None
    return claim if identity is None or claim.system_id in (None, identity.system_id) else None


def holds_lock(claim: Claim | None, *, local: NodeState, now: float, max_age_s: float) -> bool:
    """Report whether the local Patroni holds the leader lock, so that its server is no standby, or not for long.

    While it is silent for more than ``max_age_s`` seconds its last word stands (R1), unless the server streams.
    """
    if claim is None or not claim.leads:
        return False
    streams = local.role_seen is not None and local.role_seen.receiver is not None and not local.over
    return not streams or now - claim.at < max_age_s
