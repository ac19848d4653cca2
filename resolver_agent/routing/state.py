"""What a decision says of one name, and what the next one needs to know of it: values only."""

from __future__ import annotations

import dataclasses
import enum
import functools
import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from resolver_agent.config.model import Node
    from resolver_agent.routing.observation import Role

FENCE = "255.255.255.255"
"""The limited broadcast address: ``connect()`` refuses it in the kernel at once, without a packet."""


@functools.lru_cache(maxsize=8192)
def is_usable(address: str | None) -> bool:
    """Report whether a name can resolve to an address: an IP address of one host, without a zone.

    Not the fence, which is no server's, nor 0.0.0.0 and ::, where a client reaches itself.
    """
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        ip = ip.ipv4_mapped or ip
    return not (ip.is_multicast or ip.is_unspecified or str(ip) == FENCE)


class Code(enum.Enum):
    """Why a name has its address; the machine's half of a reason."""

    __hash__ = object.__hash__  # that of Enum is a function in Python, and every name asks for its code's

    SELF = "self"  # R3: the local server's own group
    STANDBY = "standby"  # a fit standby
    PRIMARY = "primary"  # the one primary
    LEADER = "leader"  # several primaries: the one with Patroni's leader lock
    LAST_PRIMARY = "last_primary"  # several primaries: the last known one is among them
    FALLBACK = "fallback"  # no fit standby: the primary, as configured
    HELD = "held"  # no evidence for a change
    FENCED = "fenced"  # R2, or no fit standby and fallback: none
    QUEUED = "queued"  # its server stops, or is lost: connections wait for the next one
    PINNED = "pinned"  # the operator has pinned it
    UNKNOWN = "unknown"  # nothing was ever known: the name is left out


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """Why a name has its address: a code for programs, and the same in words."""

    code: Code
    text: str


class TargetKind(enum.Enum):
    """What the address in the block is; written there, and read back by the next run."""

    SELF = "self"
    STANDBY = "standby"
    PRIMARY = "primary"
    FALLBACK = "fallback"
    FENCED = "fenced"
    QUEUED = "queued"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a name resolves to, and what the block remembers of it.

    ``wanted_role`` is the role that the name wanted when this was decided. ``primary`` is the address of the group's
    last known primary, and ``primary_demoted`` reports that it has been seen in recovery since. ``system_id`` is the
    group's system identifier, and ``replaced_id`` the one in whose place it was accepted without being confirmed.
    ``since`` is when the address last changed.
    """

    name: str
    address: str
    kind: TargetKind
    wanted_role: Role | None
    primary: str | None = None
    primary_demoted: bool = False
    system_id: int | None = None
    replaced_id: int | None = None
    reason: Reason = dataclasses.field(default=Reason(Code.HELD, "as found in the hosts file"), compare=False)
    since: float = dataclasses.field(default=0.0, compare=False)

    def __str__(self) -> str:
        shown = "fenced" if self.address == FENCE else self.address
        return f"{self.name} → {shown} ({self.reason.text})"


class Severity(enum.Enum):
    """Who has to look at an alert, and when."""

    INFO = "info"  # nobody: it is as it should be, or planned
    WARNING = "warning"  # somebody, soon: less is left to fall back on, or something waits
    CRITICAL = "critical"  # somebody, now: clients fail, or read and write where they must not


class AlertCode(enum.Enum):
    """What is wrong; the machine's half of an alert, and the last word of its key. These words stay as they are.

    Each code has one severity: a warning, where nothing else is given.
    """

    __hash__ = object.__hash__  # as of ``Code``
    severity: Severity

    def __new__(cls, word: str, severity: Severity = Severity.WARNING) -> Self:
        """Return the code with this word as its value."""
        code = object.__new__(cls)
        code._value_ = word
        code.severity = severity
        return code

    HELD = "held"  # a name: as ``Code`` says, which these five share
    FENCED = "fenced", Severity.CRITICAL
    FALLBACK = "fallback"
    QUEUED = "queued", Severity.INFO
    UNKNOWN = "unknown", Severity.CRITICAL
    WAITED = "waited"  # a name: connections waited in vain
    REJECTING = "rejecting"  # a node: it answers, but cannot be asked
    ADDRESS = "address"  # a node: it was reached at an address that no name can have
    NOT_SERVING = "not_serving"  # a node: it starts up or shuts down
    FOREIGN = "foreign"  # a name and a node: the node is of another database cluster
    PRIMARIES = "primaries", Severity.CRITICAL  # a name: its group has several primaries
    REPLACED = "replaced", Severity.CRITICAL  # a name: another database cluster took its group's place
    LOCAL = "local"  # the local PostgreSQL cannot be asked
    ANNOUNCED = "announced"  # a promotion was announced and has not happened yet
    PATRONI = "patroni"  # a node: its Patroni cannot be asked; a name: Patroni is of another database cluster
    SCOPES = "scopes"  # a name: its nodes are of several Patroni clusters
    SCOPE = "scope"  # a name and a node: the node's Patroni is of another cluster
    MEMBER = "member"  # a name and a node: Patroni's member is ignored
    MEMBERS = "members"  # a name: Patroni does not say who the members are
    FILE = "file", Severity.CRITICAL  # the hosts file cannot be read or written
    NOTE = "note", Severity.INFO  # "file": how it was written
    TRAMPLED = "trampled"  # "file": another program keeps changing the block
    CONFLICT = "conflict", Severity.CRITICAL  # a name and a line of the hosts file that also has it
    PINNED = "pinned"  # a name: the operator has pinned it
    PIN = "pin"  # a name: its pin does not count
    PAUSED = "paused"  # the operator wants no name to move
    DEFECT = "defect", Severity.CRITICAL  # a round of the agent fails
    HTTP = "http"  # nobody can ask over HTTP
    STATE = "state"  # what should outlive a restart is kept in memory alone
    ON_CHANGE = "on_change"  # the operator's command fails
    CONFIG = "config"  # the errors: the configuration was not read again
    FLUSH = "flush", Severity.CRITICAL  # cached connections are not flushed
    CONNINFO = "conninfo"  # something is wrong with citus.node_conninfo
    RECOVERY = "recovery"  # a database: 2PC recovery failed; without one: it is overdue
    PREPARED = "prepared"  # a database: it has old prepared transactions


@dataclasses.dataclass(frozen=True, slots=True)
class Alert:
    """Something held, fenced, fallen back, refused or overdue (R8): its code with a severity, and the same in words.

    ``of`` is what it concerns: the name, node or database. Two alerts with the same code and ``of`` are one fault.
    """

    code: AlertCode
    text: str
    of: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def key(self) -> str:
        """The identifier of the fault for programs: ``wk1:held``, ``10.0.0.1:5432:rejecting``."""
        return ":".join((*self.of, self.code.value))

    @property
    def severity(self) -> Severity:
        """Who has to look at it, and when."""
        return self.code.severity


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """Whether a node may serve reads, and its replay lag behind the group's primary.

    ``fit_since`` is None while it is not fit, and ``why`` then says why. ``lagging`` is set when the lag exceeds its
    limit, and is cleared below half of it. ``lag_awaited``: it is not fit because its lag is not known, and its next
    answers should tell. The lags are None while they cannot be measured, ``lag_s`` also where it has no limit. What the
    next decision does not read is not compared.
    """

    fit_since: float | None
    why: str = dataclasses.field(default="", compare=False)
    lagging: bool = False
    lag_awaited: bool = False
    lag_bytes: int | None = dataclasses.field(default=None, compare=False)
    lag_s: float | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the next decision needs to know of a group, and no probe can tell it.

    ``primary`` is the last known primary's address, and ``primary_demoted`` reports that it has been seen in recovery
    since. ``leader_timeline`` is that of the primary which was last seen with the leader lock. ``system_id`` and
    ``replaced_id`` are as in ``Target``. ``foreign`` are the nodes that had another system identifier while a server
    of the group's own answered. ``lsns`` is the history of the primary's LSN as (seen at, LSN), oldest first, or that
    of the most advanced member as long as no primary was seen (``lsns_of_primary``); the same answers add nothing to
    it, so it is not compared. ``lost_at`` is since when no primary is seen, where the name queues then.
    """

    primary: str | None = None
    primary_demoted: bool = False
    leader_timeline: int | None = None
    system_id: int | None = None
    replaced_id: int | None = None
    foreign: frozenset[Node] = frozenset()
    lsns: tuple[tuple[float, int], ...] = dataclasses.field(default=(), compare=False)
    lsns_of_primary: bool = False
    lost_at: float | None = None
    fitness: Mapping[Node, Fitness] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """One name's part of a decision.

    ``target`` is None while nothing was ever known. ``own`` is the local server's address in this group, whatever the
    name's route; a name that follows resolves to it (R3). The next decision does not read the reason.
    """

    target: Target | None = None
    reason: Reason = dataclasses.field(default=Reason(Code.UNKNOWN, "never seen"), compare=False)
    own: str | None = None
    memory: Memory = dataclasses.field(default_factory=Memory)
