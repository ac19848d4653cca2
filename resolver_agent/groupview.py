"""One group as it is seen at one moment: who belongs to it, who is its primary, who may serve reads.

Values in, values out. Where its names lead is routing's to decide.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.fitness import assess, describe, extend_history
from resolver_agent.model import (
    FENCE,
    Alert,
    Code,
    Fitness,
    GroupState,
    Kind,
    Node,
    NodeState,
    Observation,
    Observations,
    PatroniWord,
    Reason,
    Role,
    Standing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config import Group

_NEVER = NodeState()
_NO_WORD = PatroniWord()


@dataclasses.dataclass(frozen=True, slots=True)
class Primary:
    """Where a name that wishes for the group's primary leads: FENCE, or None where nothing was ever known.

    ``last`` is the last known primary's address, ``lost`` that it has been seen in recovery since.
    """

    address: str | None
    reason: Reason
    last: str | None
    lost: bool
    seen: Observation | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """One group as it is seen now.

    ``fresh`` holds what counts of every node that answered, ``foreign`` the nodes whose system identifier is not the
    group's. ``fit`` are the nodes that may serve reads in the configured order, ``healthy`` those of them that have
    been fit for ``failback_delay``.
    """

    group: Group
    states: Mapping[Node, NodeState]
    before: GroupState
    fresh: Mapping[Node, Observation]
    foreign: frozenset[Node]
    system_id: int | None
    primary: Primary
    lsns: tuple[tuple[float, int], ...]
    fitness: Mapping[Node, Fitness]
    fit: tuple[Node, ...]
    healthy: frozenset[Node]
    own_seen: Observation | None
    alerts: tuple[Alert, ...]
    recheck_at: float

    @property
    def unfit_words(self) -> str:
        """Say why no node serves reads, node by node."""
        return "; ".join(one.why or f"{node.host} has not been fit for long" for node, one in self.fitness.items())

    @property
    def condemned(self) -> bool:
        """Whether something seen speaks against the present target; where that is no node's, against every node.

        Silence does not (R1): a node that cannot be asked keeps its reads. A target that is no standby already is
        not in doubt.
        """
        target = self.before.target
        if target is not None and target.standing in (Standing.FENCED, Standing.FALLBACK):
            return True
        nodes = (self._at(target.address) if target is not None else ()) or self.group.nodes
        return all(self.states[node].over or node in self.fresh for node in nodes)

    def unasked(self, address: str) -> bool:
        """Report whether nobody can say how the server at ``address`` is: it refuses us, or is yet to be asked."""
        return any(
            node not in self.fresh
            and not self.states[node].over
            and (latest is None or latest.kind is not Kind.UNREACHABLE)
            for node in self._at(address)
            for latest in [self.states[node].latest]
        )

    @property
    def asked_all(self) -> bool:
        """Whether every node was asked at least once."""
        return _asked_all(self.states)

    def seen_in_recovery(self, address: str) -> bool:
        """Report whether the server at ``address`` was last seen in recovery, however long ago."""
        return any(self.states[node].last_role is Role.STANDBY for node in self._at(address))

    def words_at(self, address: str) -> str:
        """Say what is known of the server at ``address``."""
        return "; ".join(describe(node, self.states[node], self.fresh.get(node)) for node in self._at(address))

    def _at(self, address: str) -> tuple[Node, ...]:
        return nodes_at(address, self.group, self.states)


def nodes_at(address: str | None, group: Group, states: Mapping[Node, NodeState]) -> tuple[Node, ...]:
    """Return the nodes of a group that were last seen at ``address``, or are configured so and were never seen."""
    return tuple(node for node in group.nodes if _address(node, states[node]) == address)


def look(group: Group, observations: Observations, before: GroupState, *, now: float, max_age_s: float) -> GroupView:
    """Return what is to be seen of one group ``now``; observations count for ``max_age_s`` seconds."""
    states = {node: observations.nodes.get(node, _NEVER) for node in group.nodes}
    word = observations.patroni.get(group.name, _NO_WORD)
    fresh = {
        node: seen for node, state in states.items() if (seen := state.fresh(now=now, max_age_s=max_age_s)) is not None
    }
    system_id, alerts = _system_id(group, before, word, states=states, fresh=fresh)
    members = {node: seen for node, seen in fresh.items() if seen.identity and seen.identity.system_id == system_id}
    outsiders = {node: _outsider_words(seen, system_id) for node, seen in fresh.items() if node not in members}
    foreign = before.foreign if system_id is None else (before.foreign | fresh.keys()) - members.keys()
    primary, split = _find_primary(
        group, before, word, states=states, members=members, foreign=foreign, outsiders=outsiders
    )
    if before.system_id is None and word.system_id is None and primary.seen is None:
        system_id = None  # presumed, until a primary confirms it
    lsns = extend_history(before.lsns, primary.seen, max_lag_s=group.max_lag_s)
    fitness = assess(
        group,
        states,
        members=members,
        refused=outsiders | dict(word.benched),
        lsns=lsns,
        previous=before.fitness,
        now=now,
    )
    fit = tuple(node for node in group.nodes if fitness[node].fit_since is not None)
    fit_from = {node: (fitness[node].fit_since or 0.0) + group.failback_delay_s for node in fit}
    local = observations.local.role_seen
    return GroupView(
        group=group,
        states=states,
        before=before,
        fresh=fresh,
        foreign=foreign,
        system_id=system_id,
        primary=primary,
        lsns=lsns,
        fitness=fitness,
        fit=fit,
        healthy=frozenset(node for node in fit if fit_from[node] <= now),
        own_seen=next((s.role_seen for s in states.values() if _is_same_server(s.role_seen, local)), None),
        alerts=(
            *alerts,
            *split,
            *_node_alerts(group, states, outsiders if foreign else {}),
        ),
        recheck_at=min(
            [seen.at + max_age_s for seen in fresh.values()] + [at for at in fit_from.values() if at > now],
            default=float("inf"),
        ),
    )


def _is_same_server(one: Observation | None, other: Observation | None) -> bool:
    return one is not None and other is not None and one.identity is not None and one.identity == other.identity


def _system_id(
    group: Group,
    before: GroupState,
    word: PatroniWord,
    *,
    states: Mapping[Node, NodeState],
    fresh: Mapping[Node, Observation],
) -> tuple[int | None, list[Alert]]:
    """Return the group's system identifier: its last known primary's.

    Another one is accepted when all nodes that answer agree on it and none has the old one (pg_upgrade,
    re-initialisation), or Patroni reports it. Nodes that were foreign beside the old one do not count for that: else
    a foreign server would take over as soon as the group's own were down.
    """
    ids = {node: seen.identity.system_id for node, seen in fresh.items() if seen.identity is not None}
    known = before.system_id
    if word.system_id is not None:
        found: int | None = word.system_id
    elif known is None:
        found = _presumed_system_id(states, fresh, ids, before)
    else:
        agreed = set(ids.values())
        replaced = known not in agreed and len(agreed) == 1 and not ids.keys() <= before.foreign
        found = agreed.pop() if replaced else known
    if known is None or found == known:
        return found, []
    text = f"{group.name}: system identifier {found} in place of {known}: another database cluster took its place"
    return found, [Alert(f"{group.name}:replaced", text)]


def _presumed_system_id(
    states: Mapping[Node, NodeState], fresh: Mapping[Node, Observation], ids: Mapping[Node, int], before: GroupState
) -> int | None:
    """Return the identifier to go by while no primary was seen in this run.

    The last known primary's, else that of the name's present target; else, when everybody was asked, so that no
    foreign server is believed for having answered first, the one that the primaries or all nodes agree on.
    """
    trusted = [before.primary] + ([before.target.address] if before.target is not None else [])
    circles = [[node for node in ids if fresh[node].address == address] for address in trusted]
    if _asked_all(states):
        circles += [[node for node in ids if fresh[node].kind is Kind.PRIMARY], list(ids)]
    return next((agreed.pop() for circle in circles if len(agreed := {ids[node] for node in circle}) == 1), None)


def _asked_all(states: Mapping[Node, NodeState]) -> bool:
    return all(state.latest is not None for state in states.values())


def _find_primary(
    group: Group,
    before: GroupState,
    word: PatroniWord,
    *,
    states: Mapping[Node, NodeState],
    members: Mapping[Node, Observation],
    foreign: frozenset[Node],
    outsiders: Mapping[Node, str],
) -> tuple[Primary, list[Alert]]:
    """The design's table for names that wish for a primary, row by row."""
    primaries = [seen for seen in members.values() if seen.kind is Kind.PRIMARY]
    if len(primaries) == 1:
        return _accepted(primaries[0], Code.PRIMARY, f"primary, timeline {primaries[0].timeline}"), []
    last_at = nodes_at(before.primary, group, states)
    # An address that is no node's any more was one of theirs.
    lost = before.primary is not None and (
        before.primary_lost or all(states[node].last_role is Role.STANDBY for node in last_at or group.nodes)
    )
    if primaries:
        alert = Alert(f"{group.name}:primaries", f"{group.name}: several primaries: {_claims(primaries)}")
        return _one_of(primaries, before, members.get(word.leader) if word.leader else None, lost=lost), [alert]
    words = "; ".join(outsiders.get(node) or describe(node, state, members.get(node)) for node, state in states.items())
    if before.primary is None and not members:
        return Primary(None, Reason(Code.UNKNOWN, f"no primary known; {words}"), None, lost=False), []
    if before.primary is None or lost or not foreign.isdisjoint(last_at):
        return Primary(FENCE, Reason(Code.FENCED, f"no primary; {words}"), before.primary, lost=lost), []
    return Primary(before.primary, Reason(Code.HELD, f"held; no primary; {words}"), before.primary, lost=False), []


def _one_of(primaries: list[Observation], before: GroupState, leader: Observation | None, *, lost: bool) -> Primary:
    """Several primaries: the one with Patroni's leader lock, else the last known one, else none."""
    claims = _claims(primaries)
    if leader is not None and leader.kind is Kind.PRIMARY:
        return _accepted(leader, Code.LEADER, f"holds the leader lock; several primaries: {claims}")
    last = next((seen for seen in primaries if seen.address == before.primary), None)
    if last is not None:
        return _accepted(last, Code.LAST_PRIMARY, f"last known primary; several primaries: {claims}")
    reason = Reason(Code.FENCED, f"several primaries: {claims}, and nothing tells which is right")
    return Primary(FENCE, reason, before.primary, lost)


def _claims(primaries: list[Observation]) -> str:
    return ", ".join(str(seen.address) for seen in primaries)


def _accepted(seen: Observation, code: Code, text: str) -> Primary:
    return Primary(seen.address, Reason(code, text), seen.address, lost=False, seen=seen)


def _outsider_words(seen: Observation, system_id: int | None) -> str:
    found = seen.identity.system_id if seen.identity else "unknown"
    if system_id is None:
        return f"{seen.address} is of database cluster {found}, and which one is right is not known yet"
    return f"{seen.address} is of another database cluster (system identifier {found})"


def _node_alerts(group: Group, states: Mapping[Node, NodeState], foreign: Mapping[Node, str]) -> list[Alert]:
    alerts = [Alert(f"{group.name}:{node}:foreign", f"{group.name}: {words}") for node, words in foreign.items()]
    for node, state in states.items():
        if state.latest is not None and state.latest.kind is Kind.BARRED:
            alerts.append(Alert(f"{node}:barred", f"{node} cannot be asked: {state.latest.detail}"))
    return alerts


def _address(node: Node, state: NodeState) -> str:
    return (state.role_seen.address if state.role_seen is not None else None) or node.host
