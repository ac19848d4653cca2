"""One group at one moment: its members, its primary, the nodes that may serve reads.

Values in, values out.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from resolver_agent.routing.observation import (
    NodeState,
    Observation,
    PatroniStatus,
    ProbeFailure,
    Role,
    asked_all,
    describe,
    nodes_at,
)
from resolver_agent.routing.state import FENCE, Alert, Code, GroupState, Memory, Reason, Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Group, Node


class Primary(NamedTuple):
    """What a name that wants the group's primary resolves to.

    ``address`` is FENCE where no primary can be trusted, None where none was ever known. ``last`` is the last known
    primary's address, and ``demoted`` reports that it has been seen in recovery since.
    """

    address: str | None
    reason: Reason
    last: str | None
    demoted: bool
    seen: Observation | None = None


class GroupView(NamedTuple):
    """One group at one moment: a tuple, because making a frozen dataclass of so many fields takes four times as long.

    ``fresh`` has the observations that count, by node. ``fit`` are the nodes that may serve reads, in the configured
    order, and ``healthy`` those of them that have been fit for ``failback_delay``; ``pending_until`` is when the next
    one will be. ``split`` reports that there are several primaries. ``leader`` holds the leader lock, says Patroni.
    ``leaving`` is the standby that stops as announced. ``own_node`` is the one that is seen to be the local server.
    ``before`` is the previous decision, ``memory`` what the next one needs to know. ``foreign`` are the nodes that were
    last seen as servers of another database cluster. Where the lag has no limit, the same view serves for as long as
    nothing but times and LSNs change: what depends on those must not read them here.
    """

    group: Group
    status: PatroniStatus
    leader: Node | None
    states: Mapping[Node, NodeState]
    before: GroupState
    fresh: Mapping[Node, Observation]
    memory: Memory
    foreign: frozenset[Node]
    primary: Primary
    fit: tuple[Node, ...]
    healthy: frozenset[Node]
    own_node: Node | None
    split: bool
    alerts: tuple[Alert, ...]
    pending_until: float
    leaving: Node | None = None

    @property
    def target(self) -> Target | None:
        """The name's target so far."""
        return self.before.target

    @property
    def own(self) -> str | None:
        """The local server's address in this group, if it was recognised before."""
        return self.before.own

    @property
    def own_seen(self) -> Observation | None:
        """What was seen of the local server as a node of this group, if it was recognised as one."""
        return self.states[self.own_node].role_seen if self.own_node is not None else None

    @property
    def doubts_patroni(self) -> bool:
        """Whether Patroni is to be asked at once: there are several primaries, or its leader is not seen as one."""
        seen = self.fresh.get(self.leader) if self.leader is not None else None
        return self.split or (self.leader is not None and (seen is None or seen.result is not Role.PRIMARY))

    @property
    def unfit_words(self) -> str:
        """Say why no node serves reads, node by node."""
        fitness = self.memory.fitness.items()
        return "; ".join(one.why or f"{node.host} has not been fit for long" for node, one in fitness)

    @property
    def awaits_lag(self) -> bool:
        """Whether a node may prove to be fit by its next answers: by then its lag should be known."""
        return any(one.lag_awaited for one in self.memory.fitness.values())

    @property
    def has_evidence_against(self) -> bool:
        """Whether there is evidence against the present target; against every node where no node has its address.

        Silence is none (R1): a node that cannot be asked keeps its reads. A name that is fenced, queues, or is on its
        primary (fallback), is on no standby that could be held, so this is true of it as well.
        """
        target = self.target
        if target is not None and target.kind in (TargetKind.FENCED, TargetKind.FALLBACK, TargetKind.QUEUED):
            return True
        return not self.is_silent(target.address if target is not None else None)

    def is_silent(self, address: str | None) -> bool:
        """Report whether nothing is known of the server at ``address``; of any node, if none has that address."""
        nodes = (self._at(address) if address is not None else ()) or self.group.nodes
        return not all(self.states[node].serves_no_reads or node in self.fresh for node in nodes)

    def cannot_tell(self, address: str) -> bool:
        """Report whether the state of the server at ``address`` is unknown: it refuses the login, or was not asked.

        Of one that stops as announced enough is known.
        """
        return any(
            node not in self.fresh
            and node != self.leaving
            and not self.states[node].serves_no_reads
            and (latest is None or latest.result is not ProbeFailure.UNREACHABLE)
            for node in self._at(address)
            for latest in [self.states[node].latest]
        )

    @property
    def asked_all(self) -> bool:
        """Whether every node was asked at least once."""
        return asked_all(self.states)

    def is_foreign(self, address: str) -> bool:
        """Report whether the server at ``address`` was last seen to be of another database cluster."""
        return not self.foreign.isdisjoint(self._at(address))

    def seen_in_recovery(self, address: str) -> bool:
        """Report whether the server at ``address`` was last seen in recovery, however long ago."""
        return any(self.states[node].last_role is Role.STANDBY for node in self._at(address))

    def words_at(self, address: str) -> str:
        """Say what is known of the server at ``address``."""
        return "; ".join(describe(node, self.states[node], self.fresh.get(node)) for node in self._at(address))

    def _at(self, address: str) -> tuple[Node, ...]:
        return nodes_at(address, self.group, self.states)


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """What a name should resolve to.

    With ``address`` None the name is left out of the file. ``lacks`` reports that the name wants a standby and leaves
    it for want of a fit one (rows S6 and S7).
    """

    address: str | None
    kind: TargetKind
    reason: Reason
    wanted_role: Role
    lacks: bool = False


def hold(view: GroupView, wanted_role: Role, why: str) -> Choice:
    """Leave a name as it is (R1). A name that never had an address is left out of the file.

    A name that queued has no server that could be held: it is fenced.

    A name that is no longer the local server's own becomes one of the role that it wants: otherwise the next run would
    take its address for the local server's again.
    """
    if view.target is None:
        return Choice(None, TargetKind.FENCED, Reason(Code.UNKNOWN, why), wanted_role)  # A6
    held = view.target
    kind = held.kind
    if kind is TargetKind.QUEUED:
        return Choice(FENCE, TargetKind.FENCED, Reason(Code.FENCED, why), wanted_role)
    if kind is TargetKind.SELF:
        kind = TargetKind.PRIMARY if wanted_role is Role.PRIMARY else TargetKind.STANDBY
    if held.address == FENCE:  # R8: clients fail
        return Choice(FENCE, kind, Reason(Code.FENCED, f"stays fenced; {why}"), wanted_role)
    return Choice(held.address, kind, Reason(Code.HELD, f"held; {why}"), wanted_role)
