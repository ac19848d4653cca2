"""Which metrics an agent has, and what their values are."""

from __future__ import annotations

import re
import time

import pytest

from resolver_agent.citus.recovery import Prepared, Recovered
from resolver_agent.config.model import Node, Route
from resolver_agent.control.report import FlushStatus, PauseStatus, PinStatus
from resolver_agent.queue.room import RoomState
from resolver_agent.routing.state import AlertCode
from resolver_agent.system.histogram import Histogram
from tests.unit.builders import Agent, config, dead, group
from tests.unit.metrics.builders import A, B, everything, metrics, seen


def test_the_names_of_metrics() -> None:
    """Names are as Prometheus wants them: base units, and _total at counters alone."""
    found = everything()
    assert len(found.families) > 40
    heads = re.findall(r"^# TYPE (\S+)", found.text, re.MULTILINE)
    assert len(heads) == len(set(heads))
    for name, family in found.families.items():
        assert re.fullmatch(r"resolver_agent_[a-z0-9]+(_[a-z0-9]+)*", name)
        assert family.documentation.endswith(".")
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|count|sum|bucket|total)(_|$)", name)
        assert family.type in ("counter", "gauge", "histogram")
        if family.type == "counter":
            assert {sample.name for sample in family.samples} == {f"{name}_total"}
        if family.type == "histogram":
            assert name.endswith("_seconds")


def test_a_name_and_its_nodes() -> None:
    """What status says of a name and of its nodes, as series."""
    found = metrics(seen().wait(60))
    assert found.labels("name_info") == [
        {"name": "wk1", "address": B, "kind": "standby", "wanted_role": "standby", "primary": A}
    ]
    assert found.state("name_state", name="wk1") == "standby"
    assert (found.state("local_role", "role"), found.state("local_state")) == ("standby", "standby")
    states = {host: found.state("node_state", node=f"{host}:5432", name="wk1") for host in (A, B)}
    assert states == {A: "primary", B: "standby"}
    assert found.value("node_lag_bytes", node=f"{B}:5432") == 2000
    assert found.value("node_fit", node=f"{B}:5432") == 1
    assert found.value("node_timeline", node=f"{A}:5432") == 7
    assert found.value("name_last_change_timestamp_seconds", name="wk1") == pytest.approx(time.time() - 60, abs=5)


def test_what_is_not_known_has_no_value() -> None:
    """An agent that has seen nothing yet says so, and invents no number."""
    found = metrics(Agent(config(group("wk1", A, B))).decide())
    assert found.state("name_state", name="wk1") == "unknown"
    assert found.labels("name_info") == [{"name": "wk1", "address": "", "kind": "", "wanted_role": "", "primary": ""}]
    assert found.state("node_state", node=f"{A}:5432") == "unknown"
    assert (found.state("local_role", "role"), found.state("local_state")) == ("unknown", "unknown")
    unknown = ("node_lag_bytes", "node_timeline", "last_round_timestamp_seconds", "flush_pending")
    assert {name: found.value(name) for name in unknown} == dict.fromkeys(unknown)


def test_a_fenced_name() -> None:
    """Its state and the fence's address are there; a state with two words has one."""
    agent = seen().see({B: dead()}).decide()
    found = metrics(agent)
    assert found.state("name_state", name="wk1") == "fenced"
    assert [one["address"] for one in found.labels("name_info")] == ["255.255.255.255"]
    assert found.state("node_state", node=f"{B}:5432") == "dead"
    assert "not_serving" in {one["state"] for one in found.labels("node_state")}


def test_what_was_counted() -> None:
    """Each number is where an operator looks for it."""
    spread = Histogram(1.0)
    spread.observe(0.5)
    found = metrics(
        seen(),
        flush=FlushStatus(citus=True, flushed=False, fault=None),
        written=False,
        trampled=4,
        pins=(PinStatus(name="wk1", address=A, wanted_role="primary", until="", reason="", ignored="it is foreign"),),
        pause=PauseStatus(until="", reason=""),
        databases=[
            Recovered(database="app", records=3, oldest=Prepared(gid="citus_0", age_s=12.5)),
            Recovered(database="web", records=0),
            Recovered(database="old", oldest=Prepared(gid="citus_0", age_s=300.0)),
            Recovered(database="shut", fault="too many clients"),
        ],
        rounds=10,
        failed_rounds=1,
        round_at=1234.5,
        config_is_current=False,
        failed_reloads=2,
        promotions=1,
        announced=3,
        promotion_is_pending=True,
        holds_lock=True,
        changes={"wk1": 5, "gone": 9},
        flushed_s=spread.snapshot(),
        probes={"not serving": 6, "primary": 70},
        answered_at={str(Node(A, 5432)): 1233.0},
        failed_writes=7,
        flushes=8,
        failed_flushes=9,
        recoveries=11,
        failed_recoveries=12,
        recovered_at=1200.0,
        recovered=13,
        cleaned=14,
        windows={"wk1": 1},
        rooms={"wk1": RoomState(waiting=2, forwarded=15, failed=1, longest_wait_s=2.5)},
        patroni_up={f"{A}:5432": False},
        alerts={"held": 2},
    )
    expected: dict[tuple[str, str, str], float] = {
        ("rounds_total", "result", "done"): 10,
        ("rounds_total", "result", "failed"): 1,
        ("last_round_timestamp_seconds", "", ""): 1234.5,
        ("start_time_seconds", "", ""): 1000,
        ("config_is_current", "", ""): 0,
        ("config_reloads_total", "result", "failed"): 2,
        ("promotions_total", "", ""): 1,
        ("promotions_announced_total", "", ""): 3,
        ("promotion_pending", "", ""): 1,
        ("paused", "", ""): 1,
        ("holds_leader_lock", "", ""): 1,
        ("name_pinned", "name", "wk1"): 1,
        ("name_changes_total", "name", "wk1"): 5,
        ("change_flushed_seconds_count", "", ""): 1,
        ("probes_total", "result", "not_serving"): 6,
        ("probes_total", "result", "primary"): 70,
        ("node_last_answer_timestamp_seconds", "node", f"{A}:5432"): 1233,
        ("hosts_file_written", "", ""): 0,
        ("hosts_file_repairs_total", "", ""): 4,
        ("hosts_file_writes_total", "result", "failed"): 7,
        ("flushes_total", "result", "done"): 8,
        ("flushes_total", "result", "failed"): 9,
        ("flush_pending", "", ""): 1,
        ("recoveries_total", "result", "done"): 11,
        ("recoveries_total", "result", "failed"): 12,
        ("recovery_last_success_timestamp_seconds", "", ""): 1200,
        ("recovered_transactions_total", "", ""): 13,
        ("cleaned_resources_total", "", ""): 14,
        ("commit_records", "database", "app"): 3,
        ("oldest_prepared_age_seconds", "database", "app"): 12.5,
        ("oldest_prepared_age_seconds", "database", "web"): 0,
        ("oldest_prepared_age_seconds", "database", "old"): 300,
        ("queue_waiting_connections", "name", "wk1"): 2,
        ("queue_windows_total", "name", "wk1"): 1,
        ("queue_forwarded_connections_total", "name", "wk1"): 15,
        ("queue_failed_connections_total", "name", "wk1"): 1,
        ("queue_longest_wait_seconds", "name", "wk1"): 2.5,
        ("patroni_up", "node", f"{A}:5432"): 0,
        ("alerts", "code", "held"): 2,
        ("alerts", "code", "fenced"): 0,
    }
    told = {key: found.value(key[0], **({key[1]: key[2]} if key[1] else {})) for key in expected}
    assert told == expected
    assert found.labels("alerts") == [{"code": code.value, "severity": code.severity.value} for code in AlertCode]
    assert [one["name"] for one in found.labels("name_changes_total")] == ["wk1"]
    assert {"database": "shut"} not in found.labels("oldest_prepared_age_seconds")


def test_without_a_local_server() -> None:
    """There is no series about it; names have theirs."""
    found = metrics(Agent(config(group("cn", A, B, route=Route.PRIMARY), has_local=False)).decide())
    assert not {"resolver_agent_local_role", "resolver_agent_local_state"} & found.families.keys()
    assert found.state("name_state", name="cn") == "unknown"
