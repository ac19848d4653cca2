"""What follows from Patroni's answers: a group's leader, its members, and those that must not serve reads.

Values in, values out. ``poller`` says when Patroni is asked, and ``client`` how.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
from typing import TYPE_CHECKING

from resolver_agent.config.model import Node
from resolver_agent.routing.observation import PatroniStatus
from resolver_agent.routing.state import Alert, AlertCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resolver_agent.config.model import Group, Route

MOST_MEMBERS = 100
"""The longest list of members that is read."""

_MOST_ALERTS = 10
"""How many ignored members of a group have an alert of their own: a list that changes all the time fills no log."""

_SERVES = frozenset(("running", "streaming", "stopped", "starting"))
"""The states of a member that may serve reads. ``GET /cluster`` gives its replication state (streaming, in archive
recovery) or, without one, what Patroni did with the server last (running, starting, stopped, creating replica, …). A
server that answers has started, but Patroni lists it as stopped or starting until its next round, at most ``loop_wait``
(10 s) later."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one node's own Patroni says of the leader lock of its cluster, ``scope``.

    ``at`` is when the request began. The answer counts until ``until``, when the next one is overdue.
    """

    at: float
    until: float
    leads: bool
    scope: str
    system_id: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A member as Patroni lists it. ``fault`` says why its host cannot be a node's.

    ``missing_since`` is when an answer first no longer listed it.
    """

    node: Node
    state: str = "running"
    noloadbalance: bool = False
    fault: str = ""
    missing_since: float | None = dataclasses.field(default=None, compare=False)

    @property
    def exclusion(self) -> str:
        """Why it must not serve reads, empty where it may."""
        if self.noloadbalance:
            return f"{self.node.host} is tagged noloadbalance"
        return "" if self.state in _SERVES else f"{self.node.host} is {self.state or 'in no state'}, says Patroni"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A group's members among the nodes.

    ``joined`` are those that the configuration does not have, sorted. ``excluded`` are the nodes that must not serve
    reads, with the reason, and ``tagged`` those of them that the operator has tagged so.
    """

    joined: tuple[Node, ...] = ()
    excluded: Mapping[Node, str] = dataclasses.field(default_factory=dict)
    tagged: Mapping[Node, str] = dataclasses.field(default_factory=dict)
    alerts: tuple[Alert, ...] = ()


def find_scope(known: str | None, answers: Mapping[Node, Answer], *, asked_all: bool) -> str | None:
    """Return the Patroni cluster that a group belongs to.

    It is found once all APIs were asked and those that answered agree, so the first answer does not decide. It stays
    the same from then on.
    """
    heard = {answer.scope for answer in answers.values()}
    return heard.pop() if known is None and asked_all and len(heard) == 1 else known


def find_status(
    answers: Mapping[Node, Answer], scope: str | None, excluded: Mapping[Node, str], *, now: float
) -> PatroniStatus:
    """Return what Patroni says of a group: the leader is the only node whose own Patroni claims the lock.

    A claim counts until the next answer is overdue, so the claim of a deposed primary whose Patroni hangs soon expires.
    Patroni gives the lock away a ttl (20 s or more) after it was last renewed. By then only the successor's claim
    counts. Where the lock changes hands faster, both claim it for a moment, and with two claims there is no leader.
    """
    claims = [node for node, answer in answers.items() if answer.leads and now < answer.until and answer.scope == scope]
    if len(claims) != 1:
        return PatroniStatus(excluded=excluded)
    return PatroniStatus(leader=claims[0], excluded=excluded, system_id=answers[claims[0]].system_id)


def scope_alerts(name: str, scope: str | None, answers: Mapping[Node, Answer]) -> list[Alert]:
    """Return the alerts for nodes whose Patroni belongs to another cluster than the group's."""
    if scope is None:
        if len({answer.scope for answer in answers.values()}) < 2:  # noqa: PLR2004 - agreement takes one
            return []
        heard = ", ".join(f"{answer.scope!r} at {node.host}" for node, answer in answers.items())
        text = f"{name}: its nodes are of several Patroni clusters ({heard}): what Patroni says does not count"
        return [Alert(AlertCode.SCOPES, text, of=(name,))]
    return [
        Alert(
            AlertCode.SCOPE,
            f"{name}: Patroni at {node.host} is of cluster {answer.scope!r}, not {scope!r}: it does not count "
            "(where it is the right one, restart the agent)",
            of=(name, str(node)),
        )
        for node, answer in answers.items()
        if answer.scope != scope
    ]


def remember(
    known: Mapping[Node, Member], listed: Iterable[Member], *, now: float, gone_after_s: float
) -> dict[Node, Member]:
    """Return the members after an answer; one that was missing for ``gone_after_s`` seconds is dropped.

    There are at most ``MOST_MEMBERS``, also where each answer lists others.
    """
    members = {member.node: member for member in listed}
    for node, member in known.items():
        since = now if member.missing_since is None else member.missing_since
        if node not in members and now - since < gone_after_s and len(members) < MOST_MEMBERS:
            members[node] = dataclasses.replace(member, missing_since=since)
    return members


def place(
    groups: Iterable[Group],
    members: Mapping[str, Iterable[Member]],
    addresses: Mapping[str, frozenset[str]],
    *,
    before: Mapping[str, Placement],
) -> dict[str, Placement]:
    """Return which node each group's members are, and which join it, in an order that is the same on every host.

    Args:
        groups: all groups, as configured.
        members: by the group's name.
        addresses: of hosts given by DNS name, as far as they were looked up; empty where that failed.
        before: the last result. A member that has joined stays, even if a host cannot be resolved now.
    """
    groups = tuple(groups)
    places = _Places(groups, addresses)
    return {
        group.name: places.place(group, members[group.name], before.get(group.name, Placement()))
        for group in groups
        if group.name in members
    }


def names_to_resolve(groups: Iterable[Group], members: Iterable[Member]) -> set[str]:
    """Return the DNS names whose addresses ``place`` needs."""
    hosts = {node.host for group in groups for node in group.nodes}
    hosts |= {member.node.host for member in members if not member.fault}
    return {host for host in hosts if _is_name(host)}


class _MisfitError(Exception):
    """Why a member is ignored."""


class _Places:
    """The nodes by address, so that two spellings of one server's address do not make it two nodes."""

    def __init__(self, groups: tuple[Group, ...], addresses: Mapping[str, frozenset[str]]) -> None:
        self._managed = {group.name for group in groups}
        self._addresses = addresses
        self._pending = {
            route for group in groups for route in [group.route] if any(map(self._is_pending, group.nodes))
        }
        self._taken: dict[tuple[Route, str], tuple[Group, Node]] = {}
        for group in groups:
            for node in group.nodes:
                for spelling in self._spellings(node.host):
                    self._take(group, spelling, node)

    def place(self, group: Group, members: Iterable[Member], before: Placement) -> Placement:
        """Return a group's members among the nodes."""
        joined: dict[Node, None] = {}
        excluded, tagged, alerts = {}, {}, []
        for member in sorted(members, key=lambda member: member.node):
            try:
                node = self._find(group, member) or self._join(group, member.node, before)
            except _MisfitError as why:
                text = f"{group.name}: Patroni's member {member.node} is ignored: {why}"
                alerts.append(Alert(AlertCode.MEMBER, text, of=(group.name, str(member.node))))
                continue
            if node is not None and node not in group.nodes:
                joined[node] = None
            if node is not None and member.exclusion:
                excluded[node] = member.exclusion
                if member.noloadbalance:
                    tagged[node] = member.exclusion
        if len(alerts) > _MOST_ALERTS:
            more = f"{group.name}: {len(alerts) - _MOST_ALERTS} more members of Patroni are ignored"
            alerts[_MOST_ALERTS:] = [Alert(AlertCode.MEMBER, more, of=(group.name,))]
        return Placement(joined=tuple(joined), excluded=excluded, tagged=tagged, alerts=tuple(alerts))

    def _find(self, group: Group, member: Member) -> Node | None:
        """Return the group's node that a member is, if it is one."""
        host, port = member.node.host, group.nodes[0].port
        if member.fault:
            raise _MisfitError(member.fault)
        if host in self._managed:
            raise _MisfitError("its host is a name that this agent manages")
        if member.node.port != port:
            raise _MisfitError(f"all nodes behind a name need the same port, and here that is {port}")
        found = (self._taken.get((group.route, spelling)) for spelling in self._spellings(host))
        owner, node = next((one for one in found if one is not None), (group, None))
        if owner is not group:
            raise _MisfitError(f"it is a node of {owner.name}")
        return node

    def _join(self, group: Group, node: Node, before: Placement) -> Node | None:
        """Make a member a node of the group, once it is certain that no node is the same server by another spelling.

        Any HTTP server at a node's address could name a member, and the agent logs in to it. So its address has to be
        in a network that the operator named. It joins by that address: a name might resolve to another one later.
        """
        if self._is_at_loopback(node) and not any(map(self._is_at_loopback, group.nodes)):
            raise _MisfitError("it is at a loopback address")
        admitted = self._admitted(group, node)
        if admitted is None or admitted not in before.joined:
            if group.route in self._pending or self._is_pending(node):
                return None
            lost = next(
                (one.host for one in (node, *group.nodes) if self._addresses.get(one.host) == frozenset()), None
            )
            if lost is not None:
                raise _MisfitError(f"{lost} cannot be resolved, so the agent cannot tell whether it is a node already")
        if admitted is None:
            raise _MisfitError(
                f"it is neither in nodes nor in networks; add it to names.{group.name}.nodes, "
                f"or its network to names.{group.name}.patroni.networks"
            )
        for spelling in self._spellings(node.host):
            self._take(group, spelling, admitted)
        return admitted

    def _admitted(self, group: Group, node: Node) -> Node | None:
        """Return a member by its first address that is in one of the group's networks."""
        networks = group.patroni.networks if group.patroni is not None else ()
        addresses = sorted(one for one in self._spellings(node.host) if not _is_name(one) and "%" not in one)
        inside = (one for one in addresses if any(ipaddress.ip_address(one) in network for network in networks))
        return next((Node(one, node.port) for one in inside), None)

    def _take(self, group: Group, spelling: str, node: Node) -> None:
        self._taken.setdefault((group.route, spelling), (group, node))

    def _spellings(self, host: str) -> tuple[str, ...]:
        return (host, *self._addresses.get(host, ()))

    def _is_at_loopback(self, node: Node) -> bool:
        return any(not _is_name(one) and ipaddress.ip_address(one).is_loopback for one in self._spellings(node.host))

    def _is_pending(self, node: Node) -> bool:
        return node.host not in self._addresses and _is_name(node.host)


@functools.lru_cache(maxsize=2**14)
def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False
