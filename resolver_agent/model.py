"""The values that flow through the agent: frozen, comparable, and without a clock, a file or a socket.

Everything is keyed by the name in Citus' metadata (``wk1``) or by ``Node`` (one server's address and port). Times are
seconds of CLOCK_BOOTTIME, LSNs and lags are bytes unless a field's name says otherwise.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.groupview import GroupView

FENCE = "255.255.255.255"
"""The limited broadcast address: ``connect()`` refuses it in the kernel at once, without a packet."""


class Role(enum.Enum):
    """What a PostgreSQL server is: writable, or in recovery. Also what a name wishes for."""

    PRIMARY = "primary"
    STANDBY = "standby"


class Route(enum.Enum):
    """How the operator wants a name routed."""

    FOLLOW = "follow"
    PRIMARY = "primary"
    STANDBY = "standby"


class Fallback(enum.Enum):
    """What a name that wishes for a standby does while none is fit."""

    NONE = "none"
    PRIMARY = "primary"
    ALL = "all"


class Kind(enum.Enum):
    """What one probe found. Only PRIMARY, STANDBY and DEAD are evidence; the others say that nothing is known."""

    PRIMARY = "primary"
    STANDBY = "standby"
    DEAD = "dead"
    UNREACHABLE = "unreachable"
    BARRED = "barred"


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Node:
    """One PostgreSQL server as configured: an IP address or a DNS name, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Tells one running server from every other: its database system identifier and its postmaster's start time.

    ``started_us`` is in microseconds since the Unix epoch, by that server's clock.
    """

    system_id: int
    started_us: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one probe of one node saw.

    ``at`` is when the probe was begun, so that an answer is never taken for fresher than it is. ``address`` is the
    one connected to. ``lsn`` is the current LSN of a primary, the replayed one of a standby. ``receiver`` is the
    process number of a standby's WAL receiver while it is connected. ``detail`` is the fault in words if there is one.
    """

    kind: Kind
    at: float
    address: str | None = None
    lsn: int | None = None
    timeline: int | None = None
    identity: Identity | None = None
    receiver: int | None = None
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """What is known of one node: the latest probe, and the last one that saw a role.

    A probe that could not ask (unreachable, barred) says nothing of the role, so it must not hide the last one that
    did. ``over`` reports that the server which had this role was seen dead since: the role is then history, kept
    because "was last seen in recovery" outlives the server (rule R2). ``same_since`` is when this very server was
    first seen.
    """

    latest: Observation | None = None
    role_seen: Observation | None = None
    over: bool = False
    same_since: float = 0.0

    def after(self, observation: Observation) -> NodeState:
        """Return the state with one more observation taken in."""
        if observation.kind in (Kind.PRIMARY, Kind.STANDBY):
            same = self.role_seen is not None and self.role_seen.identity == observation.identity
            since = self.same_since if same else observation.at
            return NodeState(latest=observation, role_seen=observation, same_since=since)
        over = self.over or observation.kind is Kind.DEAD
        return dataclasses.replace(self, latest=observation, over=over)

    def fresh(self, *, now: float, max_age_s: float) -> Observation | None:
        """Return the observation of a role that still counts: not over, and younger than ``max_age_s`` seconds."""
        if self.role_seen is None or self.over or now - self.role_seen.at >= max_age_s:
            return None
        return self.role_seen

    @property
    def news(self) -> tuple[object, ...]:
        """What is worth a new decision at once when it changes: all but LSNs and times."""
        latest, seen = self.latest, self.role_seen
        return (
            latest and (latest.kind, latest.detail),
            seen and (seen.kind, seen.address, seen.timeline, seen.identity),
            self.over,
        )

    @property
    def last_role(self) -> Role | None:
        """The role it was last seen in, however long ago."""
        return Role(self.role_seen.kind.value) if self.role_seen else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PatroniWord:
    """What Patroni says of one group. ``leader`` holds the leader lock; a ``benched`` node is no read target."""

    leader: Node | None = None
    benched: Mapping[Node, str] = dataclasses.field(default_factory=dict)
    system_id: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """What one node's own Patroni said, asked at ``at``: whether it has the leader lock, of which database cluster."""

    at: float
    leads: bool
    system_id: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Everything a decision is made from, besides the configuration and the previous decision.

    ``assumed`` takes the place of the local role (``--role``, a promotion about to happen). ``holds_lock`` reports that
    the local Patroni holds its group's leader lock.
    """

    nodes: Mapping[Node, NodeState]
    local: NodeState
    assumed: Role | None = None
    holds_lock: bool = False
    patroni: Mapping[str, PatroniWord] = dataclasses.field(default_factory=dict)


class Code(enum.Enum):
    """Why a name has its address; the machine's half of a reason."""

    SELF = "self"  # R3: the local server's own group
    STANDBY = "standby"  # a fit standby
    PRIMARY = "primary"  # the one primary
    LEADER = "leader"  # several primaries: the one with Patroni's leader lock
    LAST_PRIMARY = "last_primary"  # several primaries: the last known one is among them
    FALLBACK = "fallback"  # no fit standby: the primary, as configured
    HELD = "held"  # nothing is known that would allow a change
    FENCED = "fenced"  # R2, or no fit standby and fallback: none
    UNKNOWN = "unknown"  # nothing was ever known: the name is left out


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """Why a name leads where it does: a code for programs and the same in words."""

    code: Code
    text: str


class Standing(enum.Enum):
    """What the address in the block is; written there, and read back by the next run."""

    SELF = "self"
    STANDBY = "standby"
    PRIMARY = "primary"
    FALLBACK = "fallback"
    FENCED = "fenced"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a name leads, and what the block remembers of it.

    ``wish`` is the role that the name wished for when this was decided. ``primary`` is the address of the group's last
    known primary, and ``primary_lost`` reports that it has been seen in recovery since. ``since`` is when the address
    last changed.
    """

    name: str
    address: str
    standing: Standing
    wish: Role | None
    primary: str | None = None
    primary_lost: bool = False
    reason: Reason = dataclasses.field(default=Reason(Code.HELD, "as found in the hosts file"), compare=False)
    since: float = dataclasses.field(default=0.0, compare=False)

    def __str__(self) -> str:
        shown = "fenced" if self.address == FENCE else self.address
        return f"{self.name} → {shown} ({self.reason.text})"


@dataclasses.dataclass(frozen=True, slots=True)
class Alert:
    """Something held, fenced, refused or overdue (rule R8). ``key`` names the fault, ``text`` says it whole."""

    key: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """Whether a node may serve reads, and its replay lag behind the group's primary.

    ``fit_since`` is None while it is not fit, and ``why`` then says why. ``lagging`` latches between the limit and half
    of it. The lags are None while nothing is known to measure against, ``lag_s`` also where no limit is set on it.
    """

    fit_since: float | None
    why: str = ""
    lagging: bool = False
    lag_bytes: int | None = None
    lag_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """One name's part of a decision, with what the next decision has to remember of it.

    ``target`` is None while nothing was ever known. ``own`` is the local server's address in this group (R3).
    ``primary`` is the last known primary's address, ``primary_lost`` that it has been seen in recovery since.
    ``lsns`` is the history of the primary's LSN as (seen at, LSN), oldest first. ``foreign`` are the nodes
    refused for a system identifier that is not the group's. ``view`` is what was decided from.
    """

    target: Target | None = None
    reason: Reason = Reason(Code.UNKNOWN, "never seen")
    own: str | None = None
    primary: str | None = None
    primary_lost: bool = False
    system_id: int | None = None
    foreign: frozenset[Node] = frozenset()
    lsns: tuple[tuple[float, int], ...] = ()
    fitness: Mapping[Node, Fitness] = dataclasses.field(default_factory=dict)
    view: GroupView | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where every name leads.

    ``role`` is the last known local role; ``recheck_at`` is when the passing of time alone may change something.
    ``made_for`` are the role that the names followed, and the fallback.
    """

    groups: Mapping[str, GroupState]
    role: Role | None = None
    alerts: tuple[Alert, ...] = ()
    recheck_at: float = float("inf")
    made_for: tuple[Role | None, Fallback] | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets of all names that have one, in the order of the configuration."""
        return tuple(state.target for state in self.groups.values() if state.target is not None)

    def afresh(self) -> Decision:
        """Return the same without what it was decided from, so that the next looks at every group anew.

        Nothing changes by that but times and LSNs.
        """
        groups = {name: dataclasses.replace(state, view=None) for name, state in self.groups.items()}
        return dataclasses.replace(self, groups=groups)
