"""Builds the view of one group from the observations, or returns the previous view where nothing has changed.

Values in, values out. ``decide`` gives the names their targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.routing.lag import extend_history, is_limited
from resolver_agent.routing.observation import NodeState, Observation, Observations, PatroniStatus, ProbeFailure
from resolver_agent.routing.primary import find_primary, leader_timeline
from resolver_agent.routing.queue import leaves_now, since_lost
from resolver_agent.routing.standby import assess_fitness
from resolver_agent.routing.state import Alert, AlertCode, GroupState, Memory, is_usable
from resolver_agent.routing.system_id import describe_foreign, find_foreign, find_system_id, remember_foreign
from resolver_agent.routing.view import GroupView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Group, Node


_NEVER_ASKED = NodeState()
_NO_STATUS = PatroniStatus()


def assess(
    group: Group,
    observations: Observations,
    before: GroupState,
    *,
    view_before: GroupView | None,
    now: float,
    max_age_s: float,
) -> GroupView:
    """Return the view of one group ``now``; observations count for ``max_age_s`` seconds.

    Where it would come out the same, the previous view is returned: at any moment that is so for nearly all of a
    thousand groups.
    """
    if view_before and (again := _repeated(view_before, group, observations, before, now=now, max_age_s=max_age_s)):
        return again
    memory = before.memory
    states = {node: observations.nodes.get(node, _NEVER_ASKED) for node in group.nodes}
    status = observations.patroni.get(group.name, _NO_STATUS)
    fresh = {
        node: seen
        for node, state in states.items()
        if (seen := _find_fresh(state, now=now, max_age_s=max_age_s)) is not None
    }
    trusted, doubts = _trusted_status(group, status, fresh, memory.system_id)
    system_id, replaced_id, replaced = find_system_id(group, before, trusted, states=states, fresh=fresh)
    members = {node: seen for node, seen in fresh.items() if seen.identity and seen.identity.system_id == system_id}
    foreign_words = {}
    if len(members) < len(fresh):
        foreign_words = {node: describe_foreign(seen, system_id) for node, seen in fresh.items() if node not in members}
    alerts = _node_alerts(group, states, foreign_words if system_id is not None else {})
    foreign = find_foreign(states, system_id)
    leader = trusted.leader
    led = leader_timeline(leader, members, memory.leader_timeline if system_id == memory.system_id else None)
    primary, split = find_primary(
        group,
        before,
        leader,
        states=states,
        members=members,
        led=led,
        foreign=foreign,
        foreign_words=foreign_words,
    )
    met_beside = remember_foreign(memory, system_id, fresh=fresh, members=members)
    if memory.system_id is None and trusted.system_id is None and primary.seen is None:
        system_id = None  # presumed, until a primary confirms it
    lsns, of_primary = extend_history(memory, group, primary.seen, members.values(), max_age_s=max_age_s)
    leaving = leaves_now(observations.windows.get(group.name), observations.nodes)
    refused = {**foreign_words, **trusted.excluded}  # A7
    if leaving is not None:
        refused[leaving] = f"{leaving.host} stops as announced"
    fitness = assess_fitness(
        group,
        states,
        members=members,
        refused=refused,
        lsns=lsns,
        previous=memory.fitness,
        target=before.target,
        now=now,
        max_age_s=max_age_s,
    )
    fit_from = {
        node: one.fit_since + group.failback_delay_s for node, one in fitness.items() if one.fit_since is not None
    }
    pending = [at for at in fit_from.values() if at > now]
    return GroupView(
        group=group,
        status=status,
        leader=leader,
        states=states,
        before=before,
        fresh=fresh,
        memory=Memory(
            primary=primary.last,
            primary_demoted=primary.demoted,
            leader_timeline=led,
            system_id=system_id,
            replaced_id=replaced_id,
            foreign=met_beside,
            lsns=lsns,
            lsns_of_primary=of_primary,
            fitness=fitness,
            lost_at=since_lost(primary.seen, memory.lost_at, unplanned_s=group.queue.unplanned_s, now=now),
        ),
        foreign=foreign,
        primary=primary,
        fit=tuple(fit_from),
        healthy=frozenset([node for node, at in fit_from.items() if at <= now]),
        own_node=_find_own(states, observations),
        split=bool(split),
        alerts=(*replaced, *doubts, *alerts, *split),
        # The alert that Patroni reports another identifier lasts for one round.
        pending_until=now if replaced and replaced_id is None else min(pending, default=float("inf")),
        leaving=leaving,
    )


def _repeated(
    view: GroupView,
    group: Group,
    observations: Observations,
    before: GroupState,
    *,
    now: float,
    max_age_s: float,
) -> GroupView | None:
    """Return the view once more where a new one would differ only in times and LSNs, and nothing depends on those.

    Whether an announced stop is called off depends on when its server was last asked.
    """
    if (
        group is not view.group
        or now >= view.pending_until
        or group.name in observations.windows
        or view.leaving is not None
        or observations.patroni.get(group.name, _NO_STATUS) is not view.status
    ):
        return None
    times_matter = is_limited(group)
    nodes, fresh = observations.nodes, view.fresh
    for node, state in view.states.items():
        seen = nodes.get(node, _NEVER_ASKED)
        if state is not seen and (times_matter or state.change_key != seen.change_key):
            return None
        if (_find_fresh(seen, now=now, max_age_s=max_age_s) is not None) is not (node in fresh):
            return None
    if _find_own(view.states, observations) is not view.own_node:
        return None
    if before == view.before:
        return view
    # What this view has led to leads to it again; it was made from what was before that.
    return view._replace(before=before) if before.memory is view.memory and view.memory.system_id is not None else None


def _find_fresh(state: NodeState, *, now: float, max_age_s: float) -> Observation | None:
    """Return what was seen of a node, if that counts and a name can lead there."""
    seen = state.fresh(now=now, max_age_s=max_age_s)
    return seen if seen is not None and is_usable(seen.address) else None


def _trusted_status(
    group: Group, status: PatroniStatus, fresh: Mapping[Node, Observation], system_id: int | None
) -> tuple[PatroniStatus, list[Alert]]:
    """Return Patroni's status, or an empty one where no server of the group belongs to Patroni's database cluster.

    A group whose known ``system_id`` is Patroni's belongs to it, whoever else answers. So may one whose leader is
    silent.

    A machine may run several servers, each with a Patroni, and the configuration may have the wrong one's port.
    """
    if status.system_id in (None, system_id) or (status.leader is not None and status.leader not in fresh):
        return status, []
    seen = {one.identity.system_id for one in fresh.values() if one.identity is not None}
    if not seen or status.system_id in seen:
        return status, []
    where = status.leader.host if status.leader else "its nodes"
    text = (
        f"{group.name}: Patroni at {where} is of another database cluster (system identifier {status.system_id}) "
        "than all servers that answer: it does not count; correct `patroni.port`"
    )
    return _NO_STATUS, [Alert(AlertCode.PATRONI, text, of=(group.name,))]


def _find_own(states: Mapping[Node, NodeState], observations: Observations) -> Node | None:
    """Return the node that is the local server, if one is."""
    local = observations.local.role_seen
    if local is None or local.identity is None:
        return None
    for node, state in states.items():
        seen = state.role_seen
        if seen is not None and seen.identity == local.identity and is_usable(seen.address):
            return node
    return None


def _address(state: NodeState) -> str | None:
    return state.role_seen.address if state.role_seen is not None else None


def _node_alerts(group: Group, states: Mapping[Node, NodeState], foreign: Mapping[Node, str]) -> list[Alert]:
    alerts = [
        Alert(AlertCode.FOREIGN, f"{group.name}: {words}", of=(group.name, str(node)))
        for node, words in foreign.items()
    ]
    alerts += [
        Alert(AlertCode.ADDRESS, f"{node} was reached at {_address(state)}, where no name can lead", of=(str(node),))
        for node, state in states.items()
        if state.role_seen is not None and not is_usable(_address(state))
    ]
    for node, state in states.items():
        latest = state.latest
        if latest is None or latest is state.role_seen:
            continue
        match latest.result:
            case ProbeFailure.REJECTING:
                code, words = AlertCode.REJECTING, "cannot be asked"
            case ProbeFailure.NOT_SERVING:
                code, words = AlertCode.NOT_SERVING, "is not serving"
            case _:
                continue
        alerts.append(Alert(code, f"{node} {words}: {latest.detail}", of=(str(node),)))
    return alerts
