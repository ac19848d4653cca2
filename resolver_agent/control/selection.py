"""A part of a status: what concerns some names, or what is wrong. Standard library only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import Role

if TYPE_CHECKING:
    from collections.abc import Collection

    from resolver_agent.control.report import AlertStatus, NodeStatus, Status


def of_names(status: Status, names: Collection[str]) -> Status:
    """Return the status of these names and their nodes; alerts that concern only other names or nodes are left out."""
    nodes = tuple(node for node in status.nodes if node.name in names)
    other_names = {one.name for one in status.names} - set(names)
    other_nodes = {node.node for node in status.nodes} - {node.node for node in nodes}
    queue = status.queue and dataclasses.replace(
        status.queue,
        open=tuple(one for one in status.queue.open if one.name in names),
        past=tuple(one for one in status.queue.past if one.name in names),
    )
    return dataclasses.replace(
        status,
        names=tuple(one for one in status.names if one.name in names),
        nodes=nodes,
        alerts=tuple(alert for alert in status.alerts if not _is_about(alert, other_names, other_nodes)),
        queue=queue,
    )


def problems(status: Status) -> Status:
    """Return the status without the names about which there is no alert, and whose nodes all serve."""
    about = {one for alert in status.alerts for one in alert.of}
    wrong = {one.name for one in status.names if one.name in about}
    wrong |= {node.name for node in status.nodes if node.node in about or not is_well(node)}
    return of_names(status, wrong)


def is_well(node: NodeStatus) -> bool:
    """Report whether a node is a primary, or a standby that may serve reads."""
    return node.kind == Role.PRIMARY.value or (node.kind == Role.STANDBY.value and node.fit is not False)


def _is_about(alert: AlertStatus, names: Collection[str], nodes: Collection[str]) -> bool:
    """Report whether an alert concerns one of these names or nodes."""
    return any(one in names or one in nodes for one in alert.of)
