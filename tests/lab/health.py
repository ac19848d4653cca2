"""Whether a lab is healthy: the roles, the names, the servers that answer, and the agents' reports."""

from __future__ import annotations

import http
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import psycopg

from resolver_agent.control.client import ControlError
from tests.lab.waiting import wait_while

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.lab.lab import Lab
    from tests.lab.node import Node

_DEADLINE_S = 120
_Placed: TypeAlias = "Mapping[str, Mapping[bool | None, Node]]"


def settle(lab: Lab, primaries: Mapping[str, Node] = MappingProxyType({})) -> None:
    """Wait until the lab is healthy, with these nodes as primaries of their groups.

    Every group has one primary, and its other nodes are standbys that Patroni would promote; every node's names point
    to the right servers; reads through a coordinator are served by workers of its role; Citus' 2PC recovery has run;
    and no agent has an alert.
    """
    wait_while(lambda: _fault(lab, primaries), timeout_s=_DEADLINE_S)


def _fault(lab: Lab, primaries: Mapping[str, Node]) -> str | None:
    try:
        return next(_faults(lab, primaries), None)
    except (psycopg.Error, ControlError, OSError) as error:
        return str(error)


def _faults(lab: Lab, primaries: Mapping[str, Node]) -> Iterator[str]:
    roles = lab.roles()
    placed = {group: {roles[node]: node for node in reversed(nodes)} for group, nodes in lab.groups.items()}
    if any(found.keys() != {True, False} for found in placed.values()):
        yield f"not every group has a primary and a standby; in recovery are {roles}"
        return
    yield from (
        f"Patroni may not promote {found[True]!r}"  # since in synchronous mode it is known to have everything
        for found in placed.values()
        if lab.rest(found[True], "GET", "/synchronous") != http.HTTPStatus.OK
    )
    yield from (
        f"{placed[group][False]!r} is primary, not {wanted!r}"
        for group, wanted in primaries.items()
        if placed[group][False] is not wanted
    )
    yield from _faults_of_names(roles, placed)
    yield from _faults_of_readers(lab, placed)
    recovery = placed["cn"][False].status["recovery"]
    if lab.citus and not recovery["databases"]:
        yield f"2PC recovery has not run on {placed['cn'][False]!r} since it became primary: {recovery}"
    yield from _alerts(lab)


def _faults_of_names(roles: Mapping[Node, bool | None], placed: _Placed) -> Iterator[str]:
    for node, standby in roles.items():
        wanted = {group: found[standby].address for group, found in placed.items()} | {node.group: node.address}
        names = node.names
        if not wanted.items() <= names.items():
            yield f"on {node!r} the names are {names}, not {wanted}"


def _faults_of_readers(lab: Lab, placed: _Placed) -> Iterator[str]:
    for standby, coordinator in placed["cn"].items():
        wanted = {found[standby].name: standby for group, found in placed.items() if group != "cn"}
        serving = lab.serving(coordinator)
        if serving != wanted:
            yield f"who reads through {coordinator!r} is served by {serving}, not {wanted}"


def _alerts(lab: Lab) -> Iterator[str]:
    for node in lab.nodes.values():
        alerts = node.status["alerts"]
        if alerts:
            yield f"on {node!r} there are the alerts {alerts}"
