"""The agent's report: as JSON, and as the answer to ``once``."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.citus.recovery import Prepared, Recovered
from resolver_agent.config.model import Fallback, Route
from resolver_agent.control import report as control_report
from resolver_agent.control.client import ControlError
from resolver_agent.control.report import FlushStatus, Plan, Status, as_json, from_json, promotion
from resolver_agent.routing.decision import Decision
from resolver_agent.routing.local_server import Announced
from resolver_agent.routing.observation import NodeState, Role
from resolver_agent.routing.state import FENCE, Alert, AlertCode, Code, Reason, Target, TargetKind
from tests.unit.builders import (
    Agent,
    config,
    dead,
    group,
    node,
    primary,
    rejecting,
    remembered,
    standby,
    unreachable,
)
from tests.unit.control.builders import A, B, CitusStatus, citus_status, seen, status

if TYPE_CHECKING:
    from resolver_agent.config.model import Node
    from resolver_agent.routing.observation import Observation

MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"  # RFC 3339

TARGET = {
    "name": "wk1",
    "address": A,
    "kind": "primary",
    "wanted_role": "primary",
    "primary": A,
    "primary_demoted": False,
    "code": "primary",
    "reason": "why",
}


def report(agent: Agent) -> dict[str, Any]:
    """Return an agent's status as a client gets it."""
    sent: dict[str, Any] = json.loads(json.dumps(as_json(status(agent))))
    return sent


@pytest.mark.parametrize(
    "target",
    [
        remembered(A, TargetKind.SELF),
        remembered(A, TargetKind.STANDBY, last=B),
        remembered(A, TargetKind.PRIMARY),
        remembered(B, TargetKind.FALLBACK),
        remembered(FENCE, TargetKind.FENCED, wanted_role=Role.STANDBY, last=A, lost=True),
    ],
    ids=lambda target: target.kind.value,
)
def test_a_target_survives_the_socket(target: Target) -> None:
    """``once`` gets the agent's targets unchanged, reasons included."""
    back = control_report.target_from_json(json.loads(json.dumps(control_report.target_to_json(target))))
    assert (back, back.reason) == (target, target.reason)


def test_since_is_known_from_before_this_run() -> None:
    """A name that has not moved since the start has been where it is for as long as the history says."""
    restarted = seen().restart().see({A: primary(), B: standby()}).see_local(standby()).decide()
    known = {("wk1", B): "2026-11-28T10:00:00+00:00"}
    [name] = status(restarted, since=lambda name, address: known.get((name, address))).names
    assert (name.address, name.since) == (B, "2026-11-28T10:00:00+00:00")
    assert [one.since for one in status(restarted).names] == [None]
    moved = restarted.wait(1).see({B: dead()}).decide()
    [name] = status(moved, since=lambda _name, _address: "2026-11-28T10:00:00+00:00").names
    assert name.address != B
    assert name.since not in (None, "2026-11-28T10:00:00+00:00")


def test_a_report_has_names_nodes_and_alerts() -> None:
    """The report has every field a program may need, with wall-clock times."""
    found = report(seen().wait(0.5))
    assert (found["role"], found["alerts"]) == ("standby", [])
    [name] = found["names"]
    said = name.pop("since")
    assert re.fullmatch(MOMENT, said)
    since = dt.datetime.strptime(said, "%Y-%m-%dT%H:%M:%S%z")
    assert abs((dt.datetime.now(dt.timezone.utc) - since).total_seconds()) < 5
    assert name == {
        "name": "wk1",
        "address": B,
        "kind": "standby",
        "wanted_role": "standby",
        "primary": A,
        "primary_demoted": False,
        "standing": "standby",
        "wish": "standby",
        "primary_lost": False,
        "code": "standby",
        "reason": "standby",
    }
    assert found["nodes"] == [
        {"name": "wk1", "node": f"{A}:5432", "kind": "primary", "detail": "", "address": A, "role": "primary",
         "timeline": 7, "lsn": "1/2000", "age_s": 0.5, "fit": False, "lag_bytes": None, "lag_s": None,
         "unfit": f"{A} is primary"},
        {"name": "wk1", "node": f"{B}:5432", "kind": "standby", "detail": "", "address": B, "role": "standby",
         "timeline": 7, "lsn": "1/1000", "age_s": 0.5, "fit": True, "lag_bytes": 4096, "lag_s": 0.0,
         "unfit": None},
    ]  # fmt: skip


def test_an_alert_in_a_report() -> None:
    """An alert has its code, what it concerns and its severity apart, so that no program takes its key to pieces."""
    [alert] = report(seen().see({B: dead()}).decide())["alerts"]
    assert re.fullmatch(MOMENT, alert.pop("since"))
    assert alert.pop("text").startswith("wk1 → fenced (no fit standby: ")
    assert alert == {"key": "wk1:fenced", "code": "fenced", "of": ["wk1"], "severity": "critical"}


def test_a_report_before_anything_is_known() -> None:
    """At the start, and for a name that a reload has just added, the report says that nothing is known."""
    agent = Agent(config(group("wk1", A)))
    agent.decision = Decision(groups={})
    found = report(agent)
    [name] = found["names"]
    assert {key: value for key, value in name.items() if value is not None} == {
        "name": "wk1",
        "code": "unknown",
        "reason": "never seen",
    }
    [one] = found["nodes"]
    assert (one["kind"], one["role"], one["age_s"], one["fit"]) == ("unknown", None, None, None)


def test_a_target_of_an_earlier_run_has_no_time() -> None:
    """The start time of a target remembered by the block is unknown."""
    agent = Agent(config(group("wk1", A)), [remembered(A, TargetKind.PRIMARY)])
    [name] = report(agent)["names"]
    assert name["since"] is None


def test_a_node_that_is_gone_keeps_its_last_role() -> None:
    """The state comes from the last probe; role and timeline are the last known ones."""
    agent = seen().see({A: dead()}).decide()
    first = report(agent)["nodes"][0]
    assert (first["kind"], first["detail"], first["role"], first["timeline"]) == (
        "dead",
        "Connection refused",
        "primary",
        7,
    )


@pytest.mark.parametrize("agent", [Agent(config(group("wk1", A))), seen(), seen().see({B: dead()}).decide()])
def test_a_status_survives_the_socket(agent: Agent) -> None:
    """A client gets the agent's status unchanged, whether short or long, including all fields about Citus."""
    recovered = Recovered(database="app", not_reached=("wk1:5432",), oldest=Prepared(gid="citus_0_1_2_3", age_s=1.5))
    found = dataclasses.replace(status(agent), **citus_status(citus=True, age_s=3, databases=[recovered]))
    assert from_json(Status, json.loads(json.dumps(as_json(found)))) == found


def test_a_plan_survives_the_socket() -> None:
    """The answer to ``once`` arrives unchanged, too."""
    agent = seen()
    plan = control_report.plan(agent.decision, agent.states, agent.local)
    assert plan.targets
    assert from_json(Plan, json.loads(json.dumps(as_json(plan)))) == plan


def test_a_status_of_another_version() -> None:
    """The client ignores unknown fields, and optional fields may be missing."""
    sent = report(seen())
    del sent["role"], sent["names"][0]["since"], sent["flush"]["fault"]
    sent["pace"] = sent["names"][0]["weight"] = 7
    sent["alerts"] = [{"key": "wk1:held", "text": "wk1 is held", "since": None}]
    found = from_json(Status, sent)
    assert (found.role, found.names[0].since, found.flush.fault) == (None, None, None)
    assert [(one.key, one.code, one.wants_attention) for one in found.alerts] == [("wk1:held", None, True)]


RECOVERY: dict[str, Any] = {"under_way": False, "blocked_by": None, "databases": []}


def nested(depth: int) -> list[Any]:
    """Return a list in a list, and so on."""
    data: list[Any] = []
    for _ in range(depth):
        data = [data]
    return data


@pytest.mark.parametrize(
    ("change", "where"),
    [
        pytest.param({"pid": "1"}, "pid: '1' found", id="another type"),
        pytest.param({"written": 1}, "written: 1 found", id="a number is no truth value"),
        pytest.param({"pid": True}, "pid: True found", id="a truth value is no number"),
        pytest.param({"flush": None}, "flush: None found", id="missing"),
        pytest.param({"alerts": {}}, "alerts: {} found", id="no list"),
        pytest.param({"names": ["wk1"]}, r"names\[0\]: 'wk1' found", id="no object in a list"),
        pytest.param({"nodes": [{"kind": 1}]}, r"nodes\[0\].kind: 1 found", id="deep inside"),
        pytest.param({"role": nested(700)}, r"role: \[\[\[.* found", id="nested"),
        pytest.param(
            {"recovery": RECOVERY | {"age_s": 10**400}}, r"recovery.age_s: it is too large", id="a huge number"
        ),
        pytest.param({"trampled": -(10**400)}, "trampled: it is too large", id="a huge whole number"),
    ],
)
def test_a_status_that_is_none(change: dict[str, Any], where: str) -> None:
    """An answer that is no status, or lacks a required field, gives one error that says where."""
    with pytest.raises(ControlError, match=f"^the agent gave an unexpected answer: {where}$"):
        from_json(Status, report(seen()) | change)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        pytest.param([], r"all: \[\] found", id="no object"),
        pytest.param({"look_yourself": True}, "targets: None found", id="no plan yet"),
        pytest.param({"targets": [{"name": "wk1"}]}, r"targets\[0\].address: None found", id="half a target"),
        pytest.param({"targets": [TARGET | {"address": [1]}]}, r"targets\[0\].address: \[1\] found", id="no text"),
        pytest.param({"targets": [TARGET | {"address": "a\nb"}]}, r"targets\[0\]: 'a b' .*", id="no address"),
        pytest.param({"targets": [TARGET | {"kind": {}}]}, r"targets\[0\]: {} is not a valid .*", id="no kind"),
        pytest.param({"targets": [TARGET | {"code": "x"}]}, r"targets\[0\]: 'x' is not a valid Code", id="no code"),
        pytest.param({"targets": [[]]}, r"targets\[0\]: \[\] found", id="no target"),
    ],
)
def test_a_plan_that_is_none(data: object, where: str) -> None:
    """No answer of an agent ends in a traceback."""
    with pytest.raises(ControlError, match=f"^the agent gave an unexpected answer: {where}$"):
        from_json(Plan, data)


def test_a_plan_names_who_could_not_be_asked() -> None:
    """The plan lists rejected, silent and pending servers, the local one too, but not dead ones: these are known."""
    hosts: dict[str | Node, Observation] = {
        "10.0.0.1": rejecting(),
        "10.0.0.2": unreachable(),
        "10.0.0.3": dead(),
        "10.0.0.4": primary(),
    }
    agent = Agent(config(group("wk1", *map(str, hosts), "10.0.0.5"))).see(hosts)
    agent.see_local(primary()).see_local(rejecting()).decide()
    nodes = {one: agent.states.get(one, NodeState()) for one in agent.config.groups[0].nodes}
    plan = control_report.plan(agent.decision, nodes, agent.local)
    assert list(plan.unasked) == [
        "10.0.0.1:5432: password authentication failed",
        "10.0.0.2:5432: no answer within 2 s",
        "10.0.0.5:5432: not asked yet",
        "the local PostgreSQL: password authentication failed",
    ]
    assert not any("10.0.0.1:5432" in text for text in plan.alerts), "said twice"
    assert any("local PostgreSQL is rejecting" in text for text in plan.alerts)


def test_a_plan_keeps_the_other_alerts() -> None:
    """All other alerts are passed on unchanged."""
    nodes = {node(A): NodeState()}
    faults = (
        Alert(AlertCode.HELD, "wk1 is held", of=("wk1",)),
        Alert(AlertCode.REJECTING, "cannot be asked", of=(str(node(A)),)),
    )
    assert control_report.plan(Decision(groups={}, alerts=faults), nodes, NodeState()).alerts == ("wk1 is held",)


def test_reasons_of_every_code_can_be_sent() -> None:
    """The client knows every reason code."""
    for code in Code:
        target = Target(name="wk1", address=A, kind=TargetKind.SELF, wanted_role=None, reason=Reason(code, "why"))
        assert control_report.target_from_json(control_report.target_to_json(target)).reason == Reason(code, "why")


PRIMARY_NAMES = [remembered(A, TargetKind.PRIMARY)]
STANDBY_NAMES = [remembered(B, TargetKind.STANDBY, last=A)]


@pytest.mark.parametrize(
    ("block", "role", "written", "told", "flushed", "misrouted", "why"),
    [
        pytest.param(PRIMARY_NAMES, Role.PRIMARY, True, citus_status(citus=True), True, 0, "", id="ready"),
        pytest.param(PRIMARY_NAMES, Role.PRIMARY, True, citus_status(), None, 0, "", id="ready, without Citus"),
        pytest.param(
            PRIMARY_NAMES,
            Role.PRIMARY,
            False,
            citus_status(citus=True, flushed=False),
            False,
            0,
            "the hosts file could not be written yet; cached connections are not flushed yet",
            id="not written",
        ),
        pytest.param(
            STANDBY_NAMES,
            Role.STANDBY,
            True,
            citus_status(),
            None,
            1,
            "the names are still those of a standby",
            id="called off",
        ),
        pytest.param([], None, False, citus_status(citus=None, flushed=False), False, 0, None, id="only just started"),
    ],
)
def test_what_a_promotion_is_told(  # noqa: PLR0917 -- a table's columns
    block: list[Target],
    role: Role | None,
    written: bool,  # noqa: FBT001 -- a table's column
    told: CitusStatus,
    flushed: bool | None,  # noqa: FBT001 -- a table's column
    misrouted: int,
    why: str | None,
) -> None:
    """The hook learns whether names still point to standbys, whether all is written and flushed, and if not, why."""
    agent = Agent(config(group("wk1", A, B)), block)
    made = dataclasses.replace(agent.decision, made_for=(role, Fallback.NONE) if role else None)
    announced = Announced(since=0.0).alert
    answer = promotion(made, written=written, flush=told["flush"], alerts=[announced], took_s=0.0421)
    assert (answer.written, answer.flushed, len(answer.misrouted), answer.took_ms) == (written, flushed, misrouted, 42)
    assert why is None or answer.why == why


def test_a_name_that_is_to_lead_to_a_standby_is_not_misrouted() -> None:
    """A read-only name keeps its standby through a promotion, and the hook does not object to it."""
    agent = Agent(config(group("wk1", A, B), group("wk1-ro", A, B, route=Route.STANDBY)))
    agent.assumed = Role.PRIMARY
    agent.see({A: primary(), B: standby()}).see_local(standby()).decide()
    assert (agent.address("wk1"), agent.address("wk1-ro")) == (A, B)
    flush = FlushStatus(citus=True, flushed=True, fault=None)
    answer = promotion(agent.decision, written=True, flush=flush, alerts=[], took_s=0.0421)
    said = {"took_ms": 42, "written": True, "flushed": True, "misrouted": [], "why": ""}
    assert as_json(answer) == {**said, "astray": []}
