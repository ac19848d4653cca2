"""What doctor goes by and what it says: facts, and findings. Values only.

A fact that could not be had is ``Unknown``, with the reason, so that no rule takes it for fine.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from resolver_agent.config.model import Route
from resolver_agent.routing.observation import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.citus import flush
    from resolver_agent.citus.metadata import Row
    from resolver_agent.config.model import Config, Group, Node
    from resolver_agent.control.report import Status
    from resolver_agent.routing.observation import NodeState, Observation
    from resolver_agent.routing.state import Alert


@dataclasses.dataclass(frozen=True, slots=True)
class Unknown:
    """Stands for a fact that could not be had; ``why`` says why in words."""

    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class TextFile:
    """A file: its text, or None where there is no such file; and its permission bits."""

    path: str
    text: str | Unknown | None
    mode: int = 0


def text_of(file: TextFile | None) -> str | None:
    """Return the text of a file that there is and that could be read."""
    return file.text if file is not None and isinstance(file.text, str) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A PostgreSQL parameter: its value, and where that comes from in words (the source's name, or file and line)."""

    value: str
    source: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database that has Citus.

    ``group_id`` is the local server's in it, 0 on a coordinator. ``faults`` are the functions of ``systemd/role.sql``
    that the agent cannot use, with the reason. ``poolers`` is the number of rows in ``pg_dist_poolinfo``.
    """

    citus_version: str
    group_id: int
    rows: tuple[Row, ...]
    settings: Mapping[str, Setting]
    faults: tuple[str, ...]
    poolers: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The local PostgreSQL. ``user`` is the agent's login there, ``os_user`` the one that the server runs as.

    ``may_alter`` reports that the login may use ALTER SYSTEM on ``citus.node_conninfo``, ``may_reload`` that it may
    call ``pg_reload_conf()``. ``conninfo`` says where ``citus.node_conninfo`` comes from. ``prepared`` are the ages in
    seconds of Citus' prepared transactions, by identifier.
    """

    version: int
    user: str
    os_user: str | None
    settings: Mapping[str, Setting]
    may_alter: bool
    may_reload: bool
    conninfo: flush.Setting | Unknown
    prepared: Mapping[str, float]
    databases: Mapping[str, Database | Unknown]

    @property
    def with_citus(self) -> dict[str, Database]:
        """The databases that have Citus and could be asked."""
        return {name: found for name, found in self.databases.items() if isinstance(found, Database)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patroni:
    """Patroni on this node: its own configuration file, and the dynamic one as its REST API gives it."""

    path: str
    local: Mapping[str, Any]
    dynamic: Mapping[str, Any] | Unknown


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """A systemd unit, by systemd's own words: e.g. ``enabled`` and ``active``."""

    load: str
    enabled: str
    active: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What this node says besides its PostgreSQL. None: there is no such thing here.

    ``agent`` is the answer of a running agent to ``status``. ``nscd`` is the configuration of an nscd that runs.
    ``cloud`` are cloud-init's files, the one that counts most last. ``patroni_faults`` say of each REST API that does
    not answer, by name and node, why; ``hook_fault`` says why Patroni's hook could not ask the agent.
    """

    hosts: TextFile
    nsswitch: TextFile
    nscd: TextFile | None
    cloud: tuple[TextFile, ...]
    passfile: TextFile | None
    citus_passfile: TextFile | None
    agent: Status | Unknown | None
    units: Mapping[str, Unit] | Unknown | None
    patroni: tuple[Patroni | Unknown, ...]
    patroni_faults: Mapping[str, str]
    hook_fault: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that findings are made from.

    ``config`` has the members that Patroni knows of; ``nodes`` and ``local`` are what one probe of each server saw,
    ``alerts`` what keeps Patroni's word from counting.
    """

    config: Config
    nodes: Mapping[Node, NodeState]
    local: NodeState
    alerts: tuple[Alert, ...] = ()
    server: Server | Unknown
    host: Host

    def seen(self, group: Group) -> dict[Node, Observation]:
        """Return what was seen of the nodes of a group that told their role."""
        states = {node: self.nodes[node] for node in group.nodes}
        return {node: state.role_seen for node, state in states.items() if state.role_seen is not None}

    def primary(self, group: Group) -> str | None:
        """Return the address of a group's primary, if just one is seen."""
        primaries = [seen.address for seen in self.seen(group).values() if seen.role is Role.PRIMARY]
        return primaries[0] if len(primaries) == 1 else None

    def addresses(self, group: Group) -> set[str]:
        """Return what the nodes of a group are called in the configuration, and their addresses where they answer."""
        return {node.host for node in group.nodes} | {seen.address or "" for seen in self.seen(group).values()}

    def group_at(self, host: str) -> Group | None:
        """Return whose node a host is. A name that always leads to standbys has no nodes of its own."""
        groups = (group for group in self.config.groups if group.route is not Route.STANDBY)
        return next((group for group in groups if host in self.addresses(group)), None)

    @property
    def own(self) -> Group | None:
        """The group that the local server is recognised in."""
        local = self.local.role_seen
        groups = (group for group in self.config.groups if group.route is not Route.STANDBY)
        return next(
            (
                group
                for group in groups
                if local is not None
                if any(seen.identity == local.identity for seen in self.seen(group).values())
            ),
            None,
        )
