"""One group as it is seen at one moment: who belongs to it, who is its primary, who may serve reads.

Values in, values out. Where its names lead is routing's to decide.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.fitness import assess, describe, extend_history
from resolver_agent.model import (
    Alert,
    Fitness,
    GroupState,
    Kind,
    Node,
    NodeState,
    Observation,
    Observations,
    PatroniWord,
    Role,
    Standing,
    Target,
)
from resolver_agent.primary import Primary, asked_all, find_primary, find_system_id, nodes_at, outsider_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config import Group

_NEVER = NodeState()
_NO_WORD = PatroniWord()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """One group as it is seen now.

    ``fresh`` holds what counts of every node that answered, ``foreign`` the nodes whose system identifier is not the
    group's. ``fit`` are the nodes that may serve reads in the configured order, ``healthy`` those of them that have
    been fit for ``failback_delay``; ``pending_until`` is when the next one will be. ``split`` reports that there are
    several primaries. ``leader`` holds the leader lock, by Patroni's word. ``before`` is what was decided before.
    """

    group: Group
    word: PatroniWord
    leader: Node | None
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
    split: bool
    alerts: tuple[Alert, ...]
    pending_until: float

    @property
    def target(self) -> Target | None:
        """Where the name has led so far."""
        return self.before.target

    @property
    def own(self) -> str | None:
        """The local server's address in this group, as far as it was recognised before."""
        return self.before.own

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
        target = self.target
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
        return asked_all(self.states)

    def seen_in_recovery(self, address: str) -> bool:
        """Report whether the server at ``address`` was last seen in recovery, however long ago."""
        return any(self.states[node].last_role is Role.STANDBY for node in self._at(address))

    def words_at(self, address: str) -> str:
        """Say what is known of the server at ``address``."""
        return "; ".join(describe(node, self.states[node], self.fresh.get(node)) for node in self._at(address))

    def holds(
        self, group: Group, observations: Observations, before: GroupState, *, now: float, max_age_s: float
    ) -> bool:
        """Report whether looking again would show nothing but later times and LSNs, and those matter to nobody."""
        times_matter = self.own is not None or group.max_lag_bytes is not None or group.max_lag_s is not None
        return (
            group is self.group
            and before == self.before
            and now < self.pending_until
            and observations.patroni.get(group.name, _NO_WORD) is self.word
            and _find_own(self.states, observations) is self.own_seen
            and all(
                (state is seen or (not times_matter and state.news == seen.news))
                and (seen.fresh(now=now, max_age_s=max_age_s) is not None) is (node in self.fresh)
                for node, state in self.states.items()
                for seen in [observations.nodes.get(node, _NEVER)]
            )
        )

    def _at(self, address: str) -> tuple[Node, ...]:
        return nodes_at(address, self.group, self.states)


def look(group: Group, observations: Observations, before: GroupState, *, now: float, max_age_s: float) -> GroupView:
    """Return what is to be seen of one group ``now``; observations count for ``max_age_s`` seconds.

    The view before is taken again where it would come out the same: of a thousand groups, nearly all at any moment.
    """
    again = before.view
    if again is not None and again.holds(group, observations, before, now=now, max_age_s=max_age_s):
        return again
    before = dataclasses.replace(before, view=None)  # else each view would keep all before it
    states = {node: observations.nodes.get(node, _NEVER) for node in group.nodes}
    word = observations.patroni.get(group.name, _NO_WORD)
    fresh = {
        node: seen for node, state in states.items() if (seen := state.fresh(now=now, max_age_s=max_age_s)) is not None
    }
    heeded, doubts = _believe(group, word, fresh)
    system_id, replaced = find_system_id(group, before, heeded, states=states, fresh=fresh)
    members = {node: seen for node, seen in fresh.items() if seen.identity and seen.identity.system_id == system_id}
    outsiders = {node: outsider_words(seen, system_id) for node, seen in fresh.items() if node not in members}
    foreign = before.foreign if system_id is None else (before.foreign | fresh.keys()) - members.keys()
    alerts = _node_alerts(group, states, outsiders if system_id is not None else {})
    primary, split = find_primary(
        group, before, heeded, states=states, members=members, foreign=foreign, outsiders=outsiders
    )
    if before.system_id is None and heeded.system_id is None and primary.seen is None:
        system_id = None  # presumed, until a primary confirms it
    lsns = extend_history(before.lsns, primary.seen, max_lag_s=group.max_lag_s)
    fitness = assess(
        group,
        states,
        members=members,
        refused=outsiders | dict(heeded.benched),
        lsns=lsns,
        previous=before.fitness,
        now=now,
    )
    fit = tuple(node for node in group.nodes if fitness[node].fit_since is not None)
    fit_from = {node: (fitness[node].fit_since or 0.0) + group.failback_delay_s for node in fit}
    return GroupView(
        group=group,
        word=word,
        leader=heeded.leader,
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
        own_seen=_find_own(states, observations),
        split=bool(split),
        alerts=(*replaced, *doubts, *alerts, *split),
        # That the identifier was replaced is news once.
        pending_until=now if replaced else min((at for at in fit_from.values() if at > now), default=float("inf")),
    )


def _believe(group: Group, word: PatroniWord, fresh: Mapping[Node, Observation]) -> tuple[PatroniWord, list[Alert]]:
    """Return Patroni's word, or an empty one where it is of a database cluster that no server of the group is of.

    A machine may have several servers, each with a Patroni, and the configuration the wrong one's port.
    """
    seen = {one.identity.system_id for one in fresh.values() if one.identity is not None}
    if word.system_id is None or not seen or word.system_id in seen:
        return word, []
    text = (
        f"{group.name}: Patroni at {word.leader.host if word.leader else 'its nodes'} is of another database cluster "
        f"(system identifier {word.system_id}) than all servers that answer: it does not count; correct `patroni.port`"
    )
    return _NO_WORD, [Alert(f"{group.name}:patroni", text)]


def _find_own(states: Mapping[Node, NodeState], observations: Observations) -> Observation | None:
    """Return what was seen of the node that is the local server, if one is."""
    local = observations.local.role_seen
    if local is None or local.identity is None:
        return None
    found = (state.role_seen for state in states.values())
    return next((seen for seen in found if seen is not None and seen.identity == local.identity), None)


def _node_alerts(group: Group, states: Mapping[Node, NodeState], foreign: Mapping[Node, str]) -> list[Alert]:
    alerts = [Alert(f"{group.name}:{node}:foreign", f"{group.name}: {words}") for node, words in foreign.items()]
    for node, state in states.items():
        if state.latest is not None and state.latest.kind is Kind.BARRED:
            alerts.append(Alert(f"{node}:barred", f"{node} cannot be asked: {state.latest.detail}"))
    return alerts
