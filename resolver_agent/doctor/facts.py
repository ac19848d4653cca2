"""The facts that doctor judges. Values only.

A fact that could not be gathered is ``Unknown``, with the reason, so that no check takes it for fine.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import TYPE_CHECKING, Any

from resolver_agent.config.model import Route
from resolver_agent.routing.observation import Role
from resolver_agent.routing.queue import room_address

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from resolver_agent.citus import flush
    from resolver_agent.citus.metadata import Row
    from resolver_agent.config.model import Config, Group, Node
    from resolver_agent.control.report import Status
    from resolver_agent.routing.observation import NodeState, Observation
    from resolver_agent.routing.state import Alert


def is_address(host: str) -> bool:
    """Report whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class Unknown:
    """A fact that could not be gathered; ``why`` is the reason in words, ``fix`` the remedy if it is known."""

    why: str
    fix: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class TextFile:
    """A file: its text, or None if it does not exist, its permission bits, and its owner's number."""

    path: str
    text: str | Unknown | None
    mode: int = 0
    owner: int | None = None


def text_of(file: TextFile | None) -> str | None:
    """Return the text of a file that exists and could be read, else None."""
    return file.text if file is not None and isinstance(file.text, str) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A PostgreSQL parameter: its value, and the source of that value (the source's name, or file and line)."""

    value: str
    source: str


@dataclasses.dataclass(frozen=True, slots=True)
class OwnSetting:
    """A parameter that roles or databases have of their own, by ALTER ROLE or ALTER DATABASE.

    ``role`` is None for all roles. ``database`` reports that it counts in this database alone, not in all of them.
    """

    name: str
    value: str
    role: str | None
    database: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database that has Citus.

    ``citus_version`` is empty where the extension is not there. ``group_id`` is the local server's group in that
    database, 0 on a coordinator. ``faults`` are the functions of ``systemd/role.sql`` that the agent cannot use, with
    the reason. ``poolers`` is the number of rows in ``pg_dist_poolinfo``. ``own_settings`` are those parameters that
    matter to the queue. ``queue_faults`` are the functions of ``systemd/role.sql`` that the queue cannot use.
    """

    citus_version: str
    group_id: int
    rows: tuple[Row, ...]
    settings: Mapping[str, Setting]
    faults: tuple[str, ...]
    poolers: int
    own_settings: tuple[OwnSetting, ...] | Unknown = ()
    queue_faults: tuple[str, ...] = ()

    @property
    def coordinates(self) -> bool:
        """Whether the local server is a coordinator, and has workers."""
        return self.group_id == 0 and any(row.group_id != 0 for row in self.rows)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The local PostgreSQL. ``user`` is the agent's login there, ``os_user`` the user that the server runs as.

    ``may_alter`` reports that the login may use ALTER SYSTEM on ``citus.node_conninfo``, ``may_uncache`` likewise on
    ``citus.max_cached_conns_per_worker``, ``may_reload`` that it may call ``pg_reload_conf()``. ``conninfo`` says where
    ``citus.node_conninfo`` comes from. ``prepared`` are the ages in seconds of Citus' prepared transactions, by
    identifier. ``invalid`` are the databases that an interrupted DROP DATABASE left, ``closed`` those that let nobody
    in. ``hba_names`` are the host names in pg_hba.conf. ``data_dir`` is the data folder, None where that is not known.
    ``sessions`` is the number of sessions now. ``queue_faults`` are the functions of ``systemd/role.sql`` that the
    queue cannot use in the database to which the agent connects.
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
    invalid: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    hba_names: tuple[str, ...] | Unknown = ()
    data_dir: str | None = None
    sessions: int = 0
    may_uncache: bool = True
    queue_faults: tuple[str, ...] = ()

    @property
    def with_citus(self) -> dict[str, Database]:
        """The databases that have Citus and could be asked."""
        return {name: found for name, found in self.databases.items() if isinstance(found, Database)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patroni:
    """Patroni on this node.

    ``local`` is its own configuration, which overrides ``dynamic``, the one that its REST API returns for the cluster.
    ``path`` is the file or folder that ``local`` was read from, or in words where else it is. ``hooks`` is what is
    known of the programs in its hooks (``pre_promote``, ``before_stop``), by the hook; a hook that is not set, or not
    known, is not there. ``version`` is that of the Patroni that runs, e.g. ``(4, 1, 5)``.
    """

    path: str
    local: Mapping[str, Any]
    dynamic: Mapping[str, Any] | Unknown
    version: tuple[int, ...] | Unknown
    hooks: Mapping[str, Hook] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """The programs of one of Patroni's hooks.

    ``scripts`` are the scripts that the command runs, and those that they name, by path. ``faults`` are the reasons why
    Patroni's user cannot run one of the programs, ``unchecked`` why that is not known.
    """

    scripts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """The state of a systemd unit, in systemd's words: e.g. ``enabled`` and ``active``."""

    load: str
    enabled: str
    active: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What is known of this node apart from its PostgreSQL. None means that the node has no such thing.

    ``agent`` is the answer of a running agent to ``status``. ``nscd`` is the configuration of an nscd that runs.
    ``own_passfiles`` are the password files of names with a login of their own, by name; ``passfile`` is the others'.
    ``cloud`` are cloud-init's files, in the order in which later ones override earlier ones. ``patroni_faults`` are the
    REST APIs that do not answer, by name and node, with the reason. ``hook_fault`` is the reason why Patroni's hook
    cannot ask the agent. ``unordered`` are the units of Patroni that may start before the agent. ``somaxconn`` is the
    kernel's limit for connections that wait at one listener.
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
    unordered: tuple[str, ...] = ()
    somaxconn: int | None = None
    own_passfiles: Mapping[str, TextFile] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that doctor judges.

    ``config`` includes the members that Patroni reports. ``nodes`` and ``local`` are the results of one probe of each
    server. ``server`` is None where there is no local PostgreSQL. ``alerts`` are the reasons why answers of Patroni do
    not count. ``resolved`` are the addresses of those
    hosts in ``pg_dist_node`` that the configuration does not have, ``reached`` the system identifiers of the servers
    that Citus reaches there, by ``HOST:PORT``. ``room_faults`` are the reasons why a name's waiting room cannot be
    opened here, by name; they are only known while the local server runs, or where there is none.
    """

    config: Config
    nodes: Mapping[Node, NodeState]
    local: NodeState
    alerts: tuple[Alert, ...] = ()
    server: Server | Unknown | None
    host: Host
    resolved: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    reached: Mapping[str, int] = dataclasses.field(default_factory=dict)
    room_faults: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def seen(self, group: Group) -> dict[Node, Observation]:
        """Return the observations of those nodes of a group whose role was seen."""
        states = {node: self.nodes[node] for node in group.nodes}
        return {node: state.role_seen for node, state in states.items() if state.role_seen is not None}

    def primary(self, group: Group) -> str | None:
        """Return the address of a group's primary, if exactly one is seen.

        It is the configured one if that is an address: where a host's name is looked up, it may be 127.0.1.1.
        """
        primaries = [(node, seen) for node, seen in self.seen(group).items() if seen.role is Role.PRIMARY]
        if len(primaries) != 1:
            return None
        [(node, seen)] = primaries
        return node.host if is_address(node.host) else seen.address

    def addresses(self, group: Group) -> set[str]:
        """Return the hosts of a group's nodes in the configuration, and the addresses of those that answer."""
        return {node.host for node in group.nodes} | {seen.address or "" for seen in self.seen(group).values()}

    def group_at(self, host: str, port: int) -> Group | None:
        """Return the group with ``route: follow`` that a host in ``pg_dist_node`` is a node of, however it is written.

        A name with a fixed route shares the nodes of another, or has no place in ``pg_dist_node``.
        """
        groups = [group for group in self.config.groups if group.route is Route.FOLLOW]
        places = {host.lower(), *self.resolved.get(host, ())}
        system_id = self.reached.get(f"{host}:{port}")
        for group in groups:
            if not places.isdisjoint(address.lower() for address in self.addresses(group)):
                return group
        for group in groups:
            identities = (seen.identity for seen in self.seen(group).values())
            if system_id is not None and any(one is not None and one.system_id == system_id for one in identities):
                return group
        return None

    @property
    def own(self) -> Group | None:
        """The group that the local server belongs to, found by its identity."""
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

    @property
    def rooms(self) -> dict[str, tuple[str, int]]:
        """The address and port of the waiting room of each name that may queue here, by name.

        The ``follow`` name of the own group never leads elsewhere (R3).
        """
        own = self.own.name if self.own is not None and self.own.route is Route.FOLLOW else None
        return {
            group.name: (room_address(index), group.nodes[0].port)
            for index, group in enumerate(self.config.groups)
            if group.name != own and (group.queue.planned_s > 0 or group.queue.unplanned_s > 0)
        }
