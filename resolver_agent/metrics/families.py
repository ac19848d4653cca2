"""Which metrics there are, and their values.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for counters. Of a state that has
several values there is one series for each, 1 for the present one and 0 for all others, so that no series comes and
goes. What is not known has no value.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from resolver_agent.metrics.exposition import Family
from resolver_agent.routing.observation import ProbeFailure, Role
from resolver_agent.routing.state import AlertCode, Code

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from resolver_agent.control.report import RecoveredDatabase, Status
    from resolver_agent.metrics.figures import Counted
    from resolver_agent.system.histogram import Distribution

_UNKNOWN = "unknown"
_SERVER_STATES = (*(role.value for role in Role), *(failure.value for failure in ProbeFailure), _UNKNOWN)


def families(status: Status, counted: Counted) -> Iterator[Family]:
    """Yield every metric of an agent."""
    yield from _process(status, counted)
    yield from _local(status)
    yield from _names(status, counted)
    yield from _nodes(status, counted)
    yield from _file(status, counted)
    yield from _citus(status, counted)
    yield from _queue(counted)
    yield from _patroni(counted)


def _process(status: Status, counted: Counted) -> Iterator[Family]:
    yield _gauge("build_info", "The version of the agent.", ({"version": status.version}, 1))
    yield _gauge("start_time_seconds", "When the agent started, since the Unix epoch.", ({}, counted.started_at))
    yield _gauge(
        "last_round_timestamp_seconds",
        "When the agent last decided and checked the hosts file, since the Unix epoch.",
        ({}, counted.round_at),
    )
    yield _counter(
        "rounds_total",
        "Rounds, each from what was seen to a checked hosts file, by result.",
        ({"result": "done"}, counted.rounds),
        ({"result": "failed"}, counted.failed_rounds),
    )
    yield _histogram("round_duration_seconds", "How long a round took, with the write of the file.", counted.round_s)
    yield _gauge(
        "config_is_current",
        "Whether the agent runs with what the configuration file said at the last reload.",
        ({}, counted.config_is_current),
    )
    yield _counter(
        "config_reloads_total",
        "Reloads of the configuration, by result.",
        ({"result": "done"}, counted.reloads),
        ({"result": "failed"}, counted.failed_reloads),
    )
    yield _gauge(
        "alerts",
        "Alerts that last now, by code.",
        *(
            ({"code": code.value, "severity": code.severity.value}, counted.alerts.get(code.value, 0))
            for code in AlertCode
        ),
    )


def _local(status: Status) -> Iterator[Family]:
    if status.local is None:
        return
    yield _gauge(
        "local_role",
        "The last known role of the local PostgreSQL.",
        *_one_hot("role", (*(role.value for role in Role), _UNKNOWN), status.role or _UNKNOWN),
    )
    yield _gauge(
        "local_state",
        "What the last probe of the local PostgreSQL came to.",
        *_one_hot("state", _SERVER_STATES, status.local.kind),
    )


def _names(status: Status, counted: Counted) -> Iterator[Family]:
    yield _gauge(
        "name_info",
        "What a name resolves to on this host: its address, what that is, the role that the name wants (none for the "
        "name of the local server's own group), and the last known primary.",
        *(
            (
                {
                    "name": one.name,
                    "address": one.address or "",
                    "kind": one.kind or "",
                    "wanted_role": one.wanted_role or "",
                    "primary": one.primary or "",
                },
                1,
            )
            for one in status.names
        ),
    )
    yield _gauge(
        "name_state",
        "Why a name has its address, as `resolver-agent status` says it.",
        *(
            sample
            for one in status.names
            for sample in _one_hot("state", [code.value for code in Code], one.code, name=one.name)
        ),
    )
    yield _gauge(
        "name_last_change_timestamp_seconds",
        "When a name got its address, since the Unix epoch.",
        *(({"name": one.name}, _timestamp(one.since)) for one in status.names),
    )
    yield _counter(
        "name_changes_total",
        "How often a name got another address.",
        *(({"name": one.name}, counted.changes.get(one.name, 0)) for one in status.names),
    )
    yield _histogram(
        "change_written_seconds", "How long after its reason was seen a name had changed on disk.", counted.written_s
    )
    yield _histogram(
        "change_flushed_seconds",
        "How long after its reason was seen a changed name was flushed, where there is Citus.",
        counted.flushed_s,
    )
    yield _counter("promotions_total", "Promotions of the local PostgreSQL.", ({}, counted.promotions))
    yield _counter("promotions_announced_total", "Promotions that pre-promote announced.", ({}, counted.announced))
    yield _gauge(
        "promotion_pending",
        "Whether a promotion was announced and has not happened yet.",
        ({}, counted.promotion_is_pending),
    )
    yield _gauge("paused", "Whether the operator has paused the names.", ({}, status.pause is not None))
    pinned = {pin.name for pin in status.pins}
    yield _gauge(
        "name_pinned",
        "Whether the operator has pinned a name, be it that the pin counts or not.",
        *(({"name": one.name}, one.name in pinned) for one in status.names),
    )


def _nodes(status: Status, counted: Counted) -> Iterator[Family]:
    labels = [({"name": one.name, "node": one.node}, one) for one in status.nodes]
    yield _gauge(
        "node_state",
        "What the last probe of a node came to.",
        *(
            sample
            for one in status.nodes
            for sample in _one_hot("state", _SERVER_STATES, one.kind, name=one.name, node=one.node)
        ),
    )
    yield _gauge("node_fit", "Whether a node may serve reads.", *((label, one.fit) for label, one in labels))
    yield _gauge(
        "node_timeline", "The timeline of a node, as last seen.", *((label, one.timeline) for label, one in labels)
    )
    yield _gauge(
        "node_lag_bytes",
        "How far a standby's replay is behind its primary.",
        *((label, one.lag_bytes) for label, one in labels),
    )
    yield _gauge(
        "node_lag_seconds",
        "The same in time, where max_lag_seconds is set.",
        *((label, one.lag_s) for label, one in labels),
    )
    yield _gauge(
        "node_last_answer_timestamp_seconds",
        "When a node was last asked and said its role, since the Unix epoch.",
        *((label, counted.answered_at.get(one.node)) for label, one in labels),
    )
    yield _counter(
        "probes_total",
        "Probes of all servers, by what they came to.",
        *(({"result": _word(one)}, counted.probes.get(one, 0)) for one in _SERVER_STATES if one != _UNKNOWN),
    )
    yield _histogram("probe_duration_seconds", "How long a probe took.", counted.probe_s)


def _file(status: Status, counted: Counted) -> Iterator[Family]:
    yield _gauge("hosts_file_written", "Whether the hosts file has all names as decided.", ({}, status.written))
    yield _counter(
        "hosts_file_writes_total",
        "Writes of the hosts file, by result; failed reads count as well.",
        ({"result": "done"}, counted.writes),
        ({"result": "failed"}, counted.failed_writes),
    )
    yield _counter(
        "hosts_file_repairs_total",
        "How often another program had changed the agent's lines, and they were put back.",
        ({}, status.trampled),
    )


def _citus(status: Status, counted: Counted) -> Iterator[Family]:
    yield _counter(
        "flushes_total",
        "Flushes of the connections that Citus has cached, by result.",
        ({"result": "done"}, counted.flushes),
        ({"result": "failed"}, counted.failed_flushes),
    )
    yield _gauge(
        "flush_pending",
        "Whether a change of a name is not flushed yet, where there is Citus.",
        ({}, not status.flush.flushed if status.flush.citus or status.flush.fault else None),
    )
    yield _counter(
        "recoveries_total",
        "Passes of 2PC recovery and clean-up, by result.",
        ({"result": "done"}, counted.recoveries),
        ({"result": "failed"}, counted.failed_recoveries),
    )
    yield _gauge(
        "recovery_last_success_timestamp_seconds",
        "When a pass of 2PC recovery last ended well, since the Unix epoch.",
        ({}, counted.recovered_at),
    )
    yield _counter("recovered_transactions_total", "Prepared transactions that were resolved.", ({}, counted.recovered))
    yield _counter("cleaned_resources_total", "Orphaned resources that were cleaned up.", ({}, counted.cleaned))
    databases = [({"database": one.database}, one) for one in status.recovery.databases]
    yield _gauge(
        "commit_records",
        "Commit records of distributed transactions that are kept.",
        *((label, one.records) for label, one in databases),
    )
    yield _gauge(
        "oldest_prepared_age_seconds",
        "The age of the oldest of Citus' prepared transactions on the local PostgreSQL at the last pass; 0: none.",
        *((label, _oldest_s(one)) for label, one in databases),
    )


def _oldest_s(found: RecoveredDatabase) -> float | None:
    """Return the age of the oldest prepared transaction, 0 without one; None if the pass could not look."""
    if found.oldest is not None:
        return found.oldest.age_s
    return None if found.records is None else 0.0


def _queue(counted: Counted) -> Iterator[Family]:
    rooms = [({"name": name}, room) for name, room in counted.rooms.items()]
    yield _gauge(
        "queue_waiting_connections",
        "Connections that wait in a name's waiting room now.",
        *((label, room.waiting) for label, room in rooms),
    )
    yield _counter(
        "queue_windows_total",
        "Planned stops that were over, as they concerned a name.",
        *(({"name": name}, number) for name, number in counted.windows.items()),
    )
    yield _counter(
        "queue_forwarded_connections_total",
        "Connections that waited and reached a server.",
        *((label, room.forwarded) for label, room in rooms),
    )
    yield _counter(
        "queue_failed_connections_total",
        "Connections that waited and reached no server.",
        *((label, room.failed) for label, room in rooms),
    )
    yield _gauge(
        "queue_longest_wait_seconds",
        "The longest time that a connection has waited since the agent started.",
        *((label, room.longest_wait_s) for label, room in rooms),
    )


def _patroni(counted: Counted) -> Iterator[Family]:
    yield _gauge(
        "patroni_up",
        "Whether Patroni's REST API on a node answered when it was last asked.",
        *(({"node": node}, up) for node, up in counted.patroni_up.items()),
    )
    yield _gauge(
        "holds_leader_lock", "Whether the local Patroni is taken to hold the leader lock.", ({}, counted.holds_lock)
    )


def _gauge(name: str, text: str, *samples: tuple[Mapping[str, str], float | None]) -> Family:
    return Family(name, "gauge", text, tuple((labels, value) for labels, value in samples if value is not None))


def _counter(name: str, text: str, *samples: tuple[Mapping[str, str], float]) -> Family:
    return Family(name, "counter", text, samples)


def _histogram(name: str, text: str, found: Distribution) -> Family:
    return Family(name, "histogram", text, (({}, found),))


def _one_hot(
    label: str, states: Iterable[str], now: str, **labels: str
) -> Iterator[tuple[Mapping[str, str], float | None]]:
    return (({**labels, label: _word(state)}, state == now) for state in states)


def _timestamp(time: str | None) -> float | None:
    return dt.datetime.fromisoformat(time).timestamp() if time is not None else None


def _word(state: str) -> str:
    return state.replace(" ", "_")
