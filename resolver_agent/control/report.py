"""The agent's answers: as values, and as plain data for the socket and ``--json``.

Standard library only, so that ``resolver-agent status`` starts quickly.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import os
import reprlib
import time
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

from resolver_agent import __version__
from resolver_agent.config.model import Route
from resolver_agent.control.client import ControlError
from resolver_agent.routing.observation import ProbeFailure, Role, Stage
from resolver_agent.routing.state import AlertCode, Code, GroupState, Reason, Severity, Target, TargetKind
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Iterable, Mapping

    from resolver_agent.config.model import Config, Group, Node
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import NodeState
    from resolver_agent.routing.state import Alert

_T = TypeVar("_T")

_NOTHING = GroupState()  # for a name that a reload has just added
_UNASKED = (ProbeFailure.REJECTING, ProbeFailure.UNREACHABLE, ProbeFailure.NOT_SERVING)
_OF_UNASKED = (AlertCode.REJECTING, AlertCode.NOT_SERVING)

_TEXT_LIMIT = 16384
_NUMBER_LIMIT = 1 << 63
"""Of a number in an answer: what is larger is none of ours, and may be too large for a float."""

SCHEMA_VERSION = DOCTOR_SCHEMA_VERSION = 1
"""Of what ``status --json`` and ``doctor --json`` print. Each rises when a key goes away or changes its meaning."""


class Keyword(NamedTuple):
    """What the schema says of a field besides its type."""

    name: str
    value: str | tuple[str, ...]


def _words(*kinds: type[enum.Enum]) -> Keyword:
    """Return that a field has the value of one of these, or of one that is yet to come."""
    return Keyword("examples", tuple(one.value for kind in kinds for one in kind))


_Time = Annotated[str, Keyword("format", "date-time")]
_Role = Annotated[str, _words(Role)]
_Result = Annotated[str, _words(Role, ProbeFailure)]
_TargetKind = Annotated[str, _words(TargetKind)]
_Code = Annotated[str, _words(Code)]
_AlertCode = Annotated[str, _words(AlertCode)]
_Severity = Annotated[str, _words(Severity)]
_Stage = Annotated[str, _words(Stage)]
_FindingSeverity = Annotated[str, Keyword("examples", ("error", "warning", "note"))]
_CheckState = Annotated[str, Keyword("examples", ("ok", "findings", "unchecked"))]

# --- values; their fields are the keys that programs read


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What is known about a server. ``kind`` and ``detail`` are of the last probe, ``age_s`` seconds ago."""

    kind: _Result
    detail: str
    address: str | None
    role: _Role | None
    timeline: int | None
    lsn: str | None
    age_s: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus(ServerStatus):
    """What is known about a node of a name.

    ``fit``: it may serve reads; None while that is not known. ``unfit`` says why it may not.
    """

    name: str
    node: str
    fit: bool | None
    lag_bytes: int | None
    lag_s: float | None
    unfit: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameStatus:
    """What a name resolves to, and why. ``address`` and its details are None where the name is left out."""

    name: str
    address: str | None
    kind: _TargetKind | None = None
    wanted_role: _Role | None = None
    primary: str | None = None
    primary_demoted: bool | None = None
    code: _Code
    reason: str
    since: _Time | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlertStatus:
    """An alert, and when it began by wall-clock time.

    ``key`` identifies the fault; ``code`` and ``of`` are its parts, and missing in the answer of an old agent.
    """

    key: str
    code: _AlertCode | None = None
    of: tuple[str, ...] = ()
    severity: _Severity = Severity.WARNING.value
    text: str
    since: _Time | None

    @property
    def wants_attention(self) -> bool:
        """Whether somebody has to look at it."""
        return self.severity != Severity.INFO.value

    @property
    def subject_and_code(self) -> tuple[str, str]:
        """The name, node or database that the alert is about, and what is wrong."""
        subject, _, code = self.key.rpartition(":")
        return subject, code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FlushStatus:
    """Whether cached connections are flushed. ``citus`` is None while the agent does not know if there is Citus."""

    citus: bool | None
    flushed: bool
    fault: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTransaction:
    """A prepared transaction of the local server, and its age in seconds."""

    gid: str
    age_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredDatabase:
    """What the last pass of 2PC recovery and clean-up did in one database."""

    database: str
    fault: str | None
    withdrawn: str | None
    recovered: int
    cleaned: int
    not_cleaned: int
    not_reached: tuple[str, ...]
    records: int | None
    oldest: PreparedTransaction | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryStatus:
    """What blocks 2PC recovery, and the result of the last pass, which ended ``age_s`` seconds ago."""

    under_way: bool
    blocked_by: str | None
    age_s: float | None
    databases: tuple[RecoveredDatabase, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowStatus:
    """A stop of ``node`` that was announced at ``since``, as it concerns one name. It ends in ``left_s`` at the latest.

    ``stage`` is "draining" or "room"; ``waiting`` is how many connections wait in the room now.
    """

    name: str
    node: str
    stage: _Stage
    since: _Time | None
    left_s: float
    waiting: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PastWindow:
    """A window that is over: what ended it, how many connections its room forwarded, and how long the first waited.

    ``gate_ms`` is how long statements for all servers waited, ``left`` says what had not ended when the server stopped.
    """

    name: str
    node: str
    why: str
    took_s: float
    forwarded: int
    failed: int
    longest_wait_s: float
    gate_ms: int
    drain_ms: int
    left: tuple[str, ...]

    def __str__(self) -> str:
        words = (
            f"{self.name}: the stop of {self.node} is over after {self.took_s:.2f} s ({self.why}): "
            f"{self.forwarded} connections waited, up to {self.longest_wait_s:.2f} s, {self.failed} failed"
        )
        gate = f"; the gate was closed for {self.gate_ms} ms, {self.drain_ms} ms to drain" if self.gate_ms else ""
        return f"{words}{gate}{'; not ended: ' + '; '.join(self.left) if self.left else ''}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """The windows that are open, and the last ones, oldest first.

    ``coordinates`` are the local databases that have workers: in these statements can be held at the gate.
    """

    coordinates: tuple[str, ...] = ()
    open: tuple[WindowStatus, ...]
    past: tuple[PastWindow, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PinStatus:
    """The address to which the operator has pinned a name, as one that wants a role, until when, and why.

    ``forced``: no node was known there. ``ignored`` says why the pin does not count, None where it does.
    """

    name: str
    address: str
    wanted_role: _Role
    until: _Time
    reason: str
    forced: bool = False
    ignored: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PauseStatus:
    """The operator wants no name to move until then, and says why."""

    until: _Time
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The answer to ``status``. ``written``: the hosts file has all the names as shown.

    ``local`` is None where there is no local PostgreSQL.
    """

    version: str
    pid: int
    config: str
    hosts_file: str
    written: bool
    trampled: int
    role: _Role | None
    local: ServerStatus | None
    names: tuple[NameStatus, ...]
    nodes: tuple[NodeStatus, ...]
    alerts: tuple[AlertStatus, ...]
    flush: FlushStatus
    recovery: RecoveryStatus
    queue: QueueStatus | None = None
    pins: tuple[PinStatus, ...] = ()
    pause: PauseStatus | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameInFile:
    """A line of the block in the hosts file. ``system_id`` and ``replaced_id`` are those of the name's group."""

    name: str
    address: str
    kind: _TargetKind
    wanted_role: _Role | None
    primary: str | None
    primary_demoted: bool
    code: _Code
    reason: str
    system_id: int | None
    replaced_id: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileStatus:
    """The names as the hosts file has them, because no agent can be asked: ``error`` says why."""

    error: str
    hosts_file: str | None = None
    names: tuple[NameInFile, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the names would resolve to now, and what is wrong.

    ``unasked`` are the servers that could not be asked, each with the reason; ``alerts`` is everything else.
    """

    targets: tuple[Target, ...]
    alerts: tuple[str, ...]
    unasked: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromotionAnswer:
    """The answer to ``pre-promote``.

    ``misrouted`` are the names that still resolve to standbys; ``flushed`` is None where there is no Citus.
    """

    took_ms: int
    written: bool
    flushed: bool | None
    misrouted: tuple[str, ...]
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromotionCheck:
    """The answer to ``pre-promote-check``: how the names would move. ``announced``: they have moved already."""

    announced: bool
    moves: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromotionCancelled:
    """The answer to ``pre-promote-cancel``. ``holds_lock``: Patroni is about to promote, and names stay."""

    announced: bool
    holds_lock: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StopAnswer:
    """The answer to ``before-stop``: how long it waited, and for whom, each in words.

    ``left`` is the number of transactions that were still under way at the end. ``why`` says why it did not wait, or
    what else there is to say.
    """

    waited_ms: int
    waited_for: tuple[str, ...]
    left: int
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StopCheck:
    """The answer to ``before-stop-check``: whether a planned stop would wait, why, and for whose names."""

    would_wait: bool
    why: str
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StopCancelled:
    """The answer to ``before-stop-cancel``. ``announced``: there was a stop to take back."""

    announced: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PinAnswer:
    """The answer to ``pin``: until when, what the name resolves to now, and why the pin does not count if it does not.

    ``kept``: it outlives a restart of the agent. ``written``: the hosts file has the name so.
    """

    until: str
    kept: bool
    written: bool
    ignored: str | None
    target: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UnpinAnswer:
    """The answer to ``unpin``: whether there was a pin, and what the name resolves to now, empty if to nothing.

    ``kept``: a restart of the agent does not bring it back.
    """

    pinned: bool
    kept: bool = True
    target: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PauseAnswer:
    """The answer to ``pause``: until when. ``kept``: it outlives a restart of the agent."""

    until: str
    kept: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResumeAnswer:
    """The answer to ``resume``: whether there was a pause. ``kept``: a restart of the agent does not bring it back."""

    paused: bool
    kept: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FindingStatus:
    """Something that doctor found wrong. ``key`` names it; ``fix`` is a command or a sentence, and may be empty."""

    severity: _FindingSeverity
    key: str
    text: str
    fix: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckStatus:
    """What a check of doctor came to. ``why`` says why it, or a part of it, was not looked at; else it is empty."""

    what: str
    state: _CheckState
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DoctorStatus:
    """What doctor found, the worst first, and all its checks.

    ``fit``: there are no findings other than notes. ``to_names`` is the script for psql that puts names into
    pg_dist_node, ``to_addresses`` that with addresses; None where there is nothing to do.
    """

    fit: bool
    findings: tuple[FindingStatus, ...]
    checks: tuple[CheckStatus, ...]
    to_names: str | None
    to_addresses: str | None


# --- plain data


def as_json(value: object) -> Any:
    """Return a value of this module as plain data: its fields by name."""
    if isinstance(value, Target):
        return target_to_json(value)
    if isinstance(value, tuple):
        return [as_json(one) for one in value]
    if not dataclasses.is_dataclass(value):
        return value
    data = {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (Status, FileStatus)):
        data = {"schema_version": SCHEMA_VERSION, **data}
    elif isinstance(value, DoctorStatus):
        data = {"schema_version": DOCTOR_SCHEMA_VERSION, **data}
    return data | _in_old_words(data) if isinstance(value, WITH_OLD_WORDS) else data


WITH_OLD_WORDS = (FindingStatus, NameStatus, NameInFile, PromotionAnswer, RecoveryStatus)
"""The values whose renamed keys have their old names, too."""

OLD_WORDS = {
    "blocked_by": "hindered",
    "fix": "mend",
    "kind": "standing",
    "misrouted": "astray",
    "primary_demoted": "primary_lost",
    "wanted_role": "wish",
}
"""The old name of each renamed key. Programs may still read it, so answers have both."""


def _in_old_words(data: Mapping[str, Any]) -> dict[str, Any]:
    return {old: data[new] for new, old in OLD_WORDS.items() if new in data}


def from_json(kind: type[_T], data: object) -> _T:
    """Return the value of this kind from the data that ``as_json`` returned.

    The agent may be of another version: unknown keys are ignored, and a field that may be None, or has a default, may
    be missing.

    Raises:
        ControlError: the data has another shape; the message says where.
    """
    found: _T = _read(kind, data, "")
    return found


def _read(kind: Any, data: Any, where: str) -> Any:
    """Return plain data as a value of the type of one of this module's fields."""
    if typing.get_origin(kind) in {types.UnionType, typing.Union}:  # always of one type and None
        return None if data is None else _read(typing.get_args(kind)[0], data, where)
    if typing.get_origin(kind) is tuple and isinstance(data, list):
        one = typing.get_args(kind)[0]
        return tuple(_read(one, found, f"{where}[{index}]") for index, found in enumerate(data))
    if isinstance(data, dict) and kind is Target:
        return _read_target(data, where)
    if isinstance(data, dict) and isinstance(kind, type) and dataclasses.is_dataclass(kind):
        found = {
            name: _read(of, data.get(name), f"{where}.{name}".lstrip("."))
            for name, (of, required) in _fields(kind).items()
            if required or name in data
        }
        return kind(**found)
    if type(data) is int and abs(data) > _NUMBER_LIMIT:
        raise _unexpected(where, "it is too large")
    if type(data) is kind:
        return plain(data, limit=_TEXT_LIMIT) if isinstance(data, str) else data
    if kind is float and type(data) is int:
        return float(data)
    raise _unexpected(where, f"{reprlib.repr(data)} found")


def _read_target(data: dict[str, Any], where: str) -> Target:
    shapes = {"name": str, "address": str, "code": str, "reason": str, "primary_demoted": bool}
    told = {name: _read(of, data.get(name), f"{where}.{name}") for name, of in shapes.items()}
    told["primary"] = _read(str | None, data.get("primary"), f"{where}.primary")
    for name in ("system_id", "replaced_id"):
        told[name] = _read(int | None, data.get(name), f"{where}.{name}")
    try:
        for address in told["address"], told["primary"]:
            if address is not None:
                ipaddress.ip_address(address)
        return target_from_json({"kind": data.get("kind"), "wanted_role": data.get("wanted_role"), **told})
    except ValueError as error:
        raise _unexpected(where, plain(str(error))) from error


def _unexpected(where: str, what: str) -> ControlError:
    return ControlError(f"the agent gave an unexpected answer: {where or 'all'}: {what}")


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field of a dataclass, and whether it has no default."""
    types_of = typing.get_type_hints(kind)
    return {one.name: (types_of[one.name], one.default is dataclasses.MISSING) for one in dataclasses.fields(kind)}


def target_to_json(target: Target) -> dict[str, Any]:
    """Return a target as plain data."""
    data = _target_fields(target)
    return data | _in_old_words(data) | {"system_id": target.system_id, "replaced_id": target.replaced_id}


def name_in_file(target: Target) -> NameInFile:
    """Return a target that the hosts file has."""
    return NameInFile(**_target_fields(target), system_id=target.system_id, replaced_id=target.replaced_id)


def target_from_json(data: Mapping[str, Any]) -> Target:
    """Return the target from the data that ``target_to_json`` returned."""
    return Target(
        name=data["name"],
        address=data["address"],
        kind=TargetKind(data["kind"]),
        wanted_role=Role(data["wanted_role"]) if data["wanted_role"] else None,
        primary=data["primary"],
        primary_demoted=data["primary_demoted"],
        system_id=data.get("system_id"),  # the agent may be of an older version
        replaced_id=data.get("replaced_id"),
        reason=Reason(Code(data["code"]), data["reason"]),
    )


def _target_fields(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "address": target.address,
        "kind": target.kind.value,
        "wanted_role": target.wanted_role and target.wanted_role.value,
        "primary": target.primary,
        "primary_demoted": target.primary_demoted,
        "code": target.reason.code.value,
        "reason": target.reason.text,
    }


# --- made from a decision


def plan(decision: Decision, nodes: Mapping[Node, NodeState], local: NodeState | None) -> Plan:
    """Return the targets of a decision, and what is wrong; ``local`` is None where there is no local PostgreSQL."""
    servers = [*nodes.items(), *([("the local PostgreSQL", local)] if local is not None else [])]
    return Plan(
        targets=decision.targets,
        alerts=tuple(alert.text for alert in decision.alerts if alert.code not in _OF_UNASKED),
        unasked=tuple(
            f"{server}: {state.latest.detail if state.latest else 'not asked yet'}"
            for server, state in servers
            if state.latest is None or state.latest.result in _UNASKED
        ),
    )


def promotion(
    decision: Decision, *, written: bool, flush: FlushStatus, alerts: Iterable[Alert], took_s: float
) -> PromotionAnswer:
    """Return the answer to an announced promotion, without the alert that it was announced."""
    on_a_primary = decision.followed_role is Role.PRIMARY
    told = [one.text for one in alerts if one.code is not AlertCode.ANNOUNCED]
    # Names with `route: standby` always want a standby, and may.
    fixed = {name for name, view in decision.views.items() if view.group.route is Route.STANDBY}
    misrouted = [
        one
        for one in decision.targets
        if not on_a_primary and one.wanted_role is Role.STANDBY and one.name not in fixed
    ]
    waited_for = {
        "the names are still those of a standby": not on_a_primary,
        "the hosts file could not be written yet": not written,
        "cached connections are not flushed yet": not flush.flushed,
    }
    return PromotionAnswer(
        took_ms=round(took_s * 1000),
        written=written,
        flushed=None if flush.citus is False else flush.flushed,
        misrouted=tuple(map(str, misrouted)),
        why="; ".join([words for words, waits in waited_for.items() if waits] + told),
    )


def status(
    config: Config,
    decision: Decision,
    nodes: Mapping[Node, NodeState],
    *,
    local: NodeState,
    alerts: Iterable[tuple[Alert, float]],
    written: bool,
    trampled: int,
    flush: FlushStatus,
    recovery: RecoveryStatus,
    queue: QueueStatus,
    pins: tuple[PinStatus, ...] = (),
    pause: PauseStatus | None = None,
    now: float,
    since: Callable[[str, str], str | None] = lambda _name, _address: None,
) -> Status:
    """Return the status of this process, its names, nodes and alerts; ``now`` is in seconds of CLOCK_BOOTTIME.

    ``since(name, address)`` tells when a name was given its address, where that was before this run.
    """

    def name(group: Group) -> NameStatus:
        state = decision.groups.get(group.name, _NOTHING)
        target = state.target
        if target is None:
            return NameStatus(name=group.name, address=None, code=state.reason.code.value, reason=state.reason.text)
        known_since = wall_time(target.since, now=now) or since(target.name, target.address)
        return NameStatus(**_target_fields(target), since=known_since)

    def node(group: Group, node: Node) -> NodeStatus:
        fitness = decision.groups.get(group.name, _NOTHING).memory.fitness.get(node)
        return NodeStatus(
            name=group.name,
            node=str(node),
            **_server(nodes[node], now=now),
            fit=None if fitness is None else fitness.fit_since is not None,
            lag_bytes=None if fitness is None else fitness.lag_bytes,
            lag_s=None if fitness is None else fitness.lag_s,
            unfit=None if fitness is None else fitness.why or None,
        )

    return Status(
        version=__version__,
        pid=os.getpid(),
        config=config.path,
        hosts_file=config.hosts_file,
        written=written,
        trampled=trampled,
        role=decision.role and decision.role.value,
        local=ServerStatus(**_server(local, now=now)) if config.has_local else None,
        names=tuple(name(group) for group in config.groups),
        nodes=tuple(node(group, one) for group in config.groups for one in group.nodes),
        alerts=tuple(_alert_status(alert, wall_time(since, now=now)) for alert, since in alerts),
        flush=flush,
        recovery=recovery,
        queue=queue,
        pins=pins,
        pause=pause,
    )


def _alert_status(alert: Alert, since: str | None) -> AlertStatus:
    return AlertStatus(
        key=alert.key,
        code=alert.code.value,
        of=alert.of,
        severity=alert.severity.value,
        text=alert.text,
        since=since,
    )


def wall_time(at: float, *, now: float) -> str | None:
    """Return a moment of CLOCK_BOOTTIME as wall-clock time, as in RFC 3339; None if it was before this run."""
    if not at:
        return None
    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - (now - at)))
    return f"{text[:-2]}:{text[-2:]}"  # the zone has a colon


def _server(state: NodeState, *, now: float) -> dict[str, Any]:
    """Return the fields of ``ServerStatus``."""
    latest, seen = state.latest, state.role_seen
    return {
        "kind": latest.result.value if latest else "unknown",
        "detail": latest.detail if latest else "not asked yet",
        "address": seen.address if seen else None,
        "role": state.last_role and state.last_role.value,
        "timeline": seen.timeline if seen else None,
        "lsn": f"{seen.lsn >> 32:X}/{seen.lsn & 0xFFFFFFFF:X}" if seen and seen.lsn is not None else None,
        "age_s": round(now - latest.at, 3) if latest else None,
    }
