"""What probes saw of the servers, and what Patroni says of them: values only.

Times are seconds of CLOCK_BOOTTIME, LSNs and lags are bytes unless a field's name says otherwise.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Group, Node


class Role(enum.Enum):
    """The role of a PostgreSQL server: writable, or in recovery. Also the role that a name wants."""

    PRIMARY = "primary"
    STANDBY = "standby"


class ProbeFailure(enum.Enum):
    """Why a probe learned no role. After UNREACHABLE and REJECTING nothing is known (R1).

    DEAD is evidence that no server runs. NOT_SERVING means that one starts up, shuts down, or does not serve while it
    recovers (SQLSTATE 57P03): evidence that it serves no reads, but none that it is not a primary.
    """

    DEAD = "dead"
    UNREACHABLE = "unreachable"
    REJECTING = "rejecting"
    NOT_SERVING = "not serving"


_FAILED = {
    ProbeFailure.DEAD: "is dead",
    ProbeFailure.UNREACHABLE: "does not answer",
    ProbeFailure.REJECTING: "cannot be asked",
    ProbeFailure.NOT_SERVING: "is not serving",
}


class Identity(NamedTuple):
    """Tells one running server from every other: its database system identifier and its postmaster's start time.

    ``started_us`` is in microseconds since the Unix epoch, by that server's clock.
    """

    system_id: int
    started_us: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one probe of one node saw: ``result`` is the role of the server, or why the probe learned none.

    ``at`` is when the probe began, so an answer never counts as fresher than it is. ``answered_at`` is when its answer
    came, None where that is not known to be later. ``address`` is the one connected to. ``lsn`` is the current LSN of a
    primary, the replayed one of a standby. ``receiver`` is the process number of a standby's WAL receiver while it is
    connected. ``detail`` is the fault in words if there is one.
    """

    result: Role | ProbeFailure
    at: float
    address: str | None = None
    lsn: int | None = None
    timeline: int | None = None
    identity: Identity | None = None
    receiver: int | None = None
    detail: str = ""
    answered_at: float | None = dataclasses.field(default=None, compare=False)

    @property
    def role(self) -> Role | None:
        """The role of the server, None where the probe failed."""
        return self.result if isinstance(self.result, Role) else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """What is known of one node: the latest probe, and the last one that saw a role.

    A probe that could not ask (unreachable, rejecting) says nothing about the role, so it must not hide the last one
    that did. ``seen_dead`` reports that the server with this role was seen dead since. The role is kept all the same,
    because "was last seen in recovery" still counts after the server died (R2). ``failure`` is the last failure since
    the role was seen, except for silence, which hides none. ``same_since`` is when this run of the server first
    answered: its question may have been asked before it started.
    """

    latest: Observation | None = None
    role_seen: Observation | None = None
    seen_dead: bool = False
    failure: ProbeFailure | None = None
    same_since: float = 0.0

    def after(self, observation: Observation) -> NodeState:
        """Return the state after one more observation."""
        if isinstance(observation.result, Role):
            same = self.role_seen is not None and self.role_seen.identity == observation.identity
            answered_at = observation.at if observation.answered_at is None else observation.answered_at
            since = self.same_since if same else answered_at
            return NodeState(latest=observation, role_seen=observation, same_since=since)
        seen_dead = self.seen_dead or observation.result is ProbeFailure.DEAD
        silent = observation.result is ProbeFailure.UNREACHABLE
        return NodeState(
            latest=observation,
            role_seen=self.role_seen,
            seen_dead=seen_dead,
            failure=self.failure if silent else observation.result,
            same_since=self.same_since,
        )

    def fresh(self, *, now: float, max_age_s: float) -> Observation | None:
        """Return the last observation of a role if it counts.

        It counts for ``max_age_s`` seconds, and no longer than until the server is seen dead, or a standby is seen not
        serving.
        """
        seen = self.role_seen
        if seen is None or self.seen_dead or not abs(now - seen.at) < max_age_s:
            return None
        return None if self.failure is ProbeFailure.NOT_SERVING and seen.result is Role.STANDBY else seen

    @property
    def dead(self) -> bool:
        """Whether no server runs there, as last seen; ``seen_dead`` stays true when one that cannot be asked does."""
        return self.failure is ProbeFailure.DEAD

    @property
    def not_serving(self) -> bool:
        """Whether the server was last seen starting up or shutting down."""
        return self.failure is ProbeFailure.NOT_SERVING

    @property
    def serves_no_reads(self) -> bool:
        """Whether there is evidence that the server serves no reads: it was seen dead, or not serving."""
        return self.seen_dead or self.not_serving

    @property
    def change_key(self) -> tuple[object, ...]:
        """Everything but LSNs and times: when it changes, a new decision is due at once."""
        latest, seen = self.latest, self.role_seen
        return (
            latest and (latest.result, latest.detail),
            seen and (seen.result, seen.address, seen.timeline, seen.identity),
            self.seen_dead,
            self.failure,
        )

    @property
    def last_role(self) -> Role | None:
        """The role it was last seen in, however long ago."""
        return self.role_seen.role if self.role_seen else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PatroniStatus:
    """What Patroni says of one group. ``leader`` holds the leader lock; an ``excluded`` node must not serve reads."""

    leader: Node | None = None
    excluded: Mapping[Node, str] = dataclasses.field(default_factory=dict)
    system_id: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class LockClaim:
    """What one node's own Patroni said, asked at ``at``: whether it has the leader lock, and its system identifier.

    The leader of a standby cluster does not lead here: it holds the lock, but no promotion follows from that.
    """

    at: float
    leads: bool
    system_id: int | None = None


class Stage(enum.Enum):
    """How far a window is: the name stays while statements under way end; then it leads to the room."""

    DRAINING = "draining"
    ROOM = "room"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """An announced stop of a server, as it concerns one name. Times are in seconds of CLOCK_BOOTTIME.

    ``address`` is where ``node`` is reached, ``run`` the run of it that stops, None where that is not known: after the
    agent's own restart. ``role`` is the server's. The window opened at ``since`` and closes at ``until`` at the latest.
    If a probe begun at ``called_off_at`` or later still meets that run, the stop does not happen.
    """

    id: str
    node: Node
    address: str
    run: Identity | None
    role: Role
    since: float
    until: float
    called_off_at: float
    stage: Stage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """An address that the operator has given to one name, up to ``until`` (seconds of CLOCK_BOOTTIME).

    ``wanted_role`` is the role that the name wanted then. ``forced``: no node was known there, and the operator
    wanted it all the same. ``told`` is for people: until when by wall-clock time, and why.
    """

    address: str
    wanted_role: Role
    until: float
    forced: bool = False
    told: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """The operator wants no name to move, up to ``until``; the fields are as in ``Pin``."""

    until: float
    told: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Everything a decision is made from, besides the configuration and the previous decision.

    ``assumed`` replaces the local role (``--role``, an announced promotion). ``holds_lock`` reports that the local
    Patroni holds its group's leader lock. ``windows`` are the announced stops of servers, by name; ``rooms`` are the
    addresses of the waiting rooms that are open, and ``no_room`` says why a name can have none. ``pins``, by name, and
    ``pause`` are what the operator has decided by hand.
    """

    nodes: Mapping[Node, NodeState]
    local: NodeState
    assumed: Role | None = None
    holds_lock: bool = False
    patroni: Mapping[str, PatroniStatus] = dataclasses.field(default_factory=dict)
    windows: Mapping[str, Window] = dataclasses.field(default_factory=dict)
    rooms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    no_room: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pins: Mapping[str, Pin] = dataclasses.field(default_factory=dict)
    pause: Pause | None = None


def describe(node: Node, state: NodeState, seen: Observation | None) -> str:
    """Say in words what is known of a node; ``seen`` is the observation of its role that still counts, if any."""
    if seen is not None:
        return f"{seen.address or node.host} is {'primary' if seen.result is Role.PRIMARY else 'in recovery'}"
    label, last = node.host, ""
    if state.role_seen is not None:
        label = state.role_seen.address or label
        last = ", last seen as primary" if state.last_role is Role.PRIMARY else ", last seen in recovery"
    if state.latest is None:
        return f"{label} has not been asked yet"
    if isinstance(state.latest.result, Role):
        return f"{label} is yet to be asked again{last}"
    return f"{label} {_FAILED[state.latest.result]}: {state.latest.detail}{last}"


def nodes_at(address: str | None, group: Group, states: Mapping[Node, NodeState]) -> tuple[Node, ...]:
    """Return the nodes of a group that were last seen at ``address``, or have it configured and were never seen."""
    return tuple(node for node in group.nodes if address_of(node, states[node]) == address)


def asked_all(states: Mapping[Node, NodeState]) -> bool:
    """Report whether every node was asked at least once in this run."""
    return all(state.latest is not None for state in states.values())


def address_of(node: Node, state: NodeState) -> str:
    """Return the address at which a node was last seen, or the one that it has configured if it was never seen."""
    return (state.role_seen.address if state.role_seen is not None else None) or node.host
