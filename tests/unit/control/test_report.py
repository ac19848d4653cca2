"""The agent's report: what programs get, what an operator reads, and what ``once`` is answered."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent import __version__
from resolver_agent.citus.recovery import Recovered
from resolver_agent.config.model import Fallback, Route
from resolver_agent.control import report as control_report
from resolver_agent.routing.decision import Decision
from resolver_agent.routing.local_server import Announced
from resolver_agent.routing.observation import NodeState, Role
from resolver_agent.routing.state import FENCE, Alert, AlertCode, Code, Reason, Standing, Target
from tests.unit.builders import (
    Agent,
    barred,
    config,
    dead,
    group,
    node,
    primary,
    remembered,
    standby,
    unreachable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resolver_agent.config.model import Node
    from resolver_agent.routing.observation import Observation

A, B = "10.0.0.1", "10.0.0.2"


def seen() -> Agent:
    """Return an agent beside a standby that sees its group."""
    one = Agent(config(group("wk1", A, B, max_lag_s=30)))
    one.see({A: primary(lsn=0x1_0000_2000), B: standby(lsn=0x1_0000_1000)})
    return one.see_local(standby()).decide()


def care(
    *,
    citus: bool | None = False,
    flushed: bool = True,
    hindered: str | None = None,
    age_s: float | None = None,
    databases: Sequence[Recovered] = (),
) -> dict[str, Any]:
    """Return what the caretaker of Citus reports."""
    found = [one.as_json() for one in databases]
    return {
        "flush": {"citus": citus, "flushed": flushed, "fault": None},
        "recovery": {"under_way": False, "hindered": hindered, "age_s": age_s, "databases": found},
    }


def report(agent: Agent) -> dict[str, Any]:
    """Return an agent's report, with what the agent itself adds to it, as a client gets it."""
    found = control_report.report(
        agent.config.groups,
        agent.decision,
        {one: agent.states.get(one, NodeState()) for one in agent.config.groups[0].nodes},
        local=agent.local,
        alerts=[(alert, agent.now - 60) for alert in agent.decision.alerts],
        now=agent.now,
    )
    here = {"version": __version__, "pid": 42, "config": "c.yml", "hosts_file": "hosts", "trampled": 0, "written": True}
    sent: dict[str, Any] = json.loads(json.dumps(here | found | care()))
    return sent


@pytest.mark.parametrize(
    "target",
    [
        remembered(A, Standing.SELF),
        remembered(A, Standing.STANDBY, last=B),
        remembered(A, Standing.PRIMARY),
        remembered(B, Standing.FALLBACK),
        remembered(FENCE, Standing.FENCED, wish=Role.STANDBY, last=A, lost=True),
    ],
    ids=lambda target: target.standing.value,
)
def test_a_target_survives_the_socket(target: Target) -> None:
    """What ``once`` gets from the agent is what the agent has, the reason included."""
    back = control_report.target_from_json(json.loads(json.dumps(control_report.target_to_json(target))))
    assert (back, back.reason) == (target, target.reason)


def test_a_report_has_names_nodes_and_alerts() -> None:
    """Every field that a program may want, with times by the clock on the wall."""
    found = report(seen().wait(0.5))
    assert (found["role"], found["alerts"]) == ("standby", [])
    [name] = found["names"]
    since = dt.datetime.strptime(name.pop("since"), "%Y-%m-%dT%H:%M:%S%z")
    assert abs((dt.datetime.now(dt.timezone.utc) - since).total_seconds()) < 5
    assert name == {
        "name": "wk1",
        "address": B,
        "standing": "standby",
        "wish": "standby",
        "primary": A,
        "primary_lost": False,
        "code": "standby",
        "reason": "standby",
    }
    assert found["nodes"] == [
        {"name": "wk1", "node": f"{A}:5432", "kind": "primary", "detail": "", "address": A, "role": "primary",
         "timeline": 7, "lsn": "1/2000", "age_s": 0.5, "fit": False, "lag_bytes": None, "lag_s": None},
        {"name": "wk1", "node": f"{B}:5432", "kind": "standby", "detail": "", "address": B, "role": "standby",
         "timeline": 7, "lsn": "1/1000", "age_s": 0.5, "fit": True, "lag_bytes": 4096, "lag_s": 0.0},
    ]  # fmt: skip


def test_a_report_before_anything_is_known() -> None:
    """At the start, and of a name that a reload has just brought, nothing is known, and that is said."""
    agent = Agent(config(group("wk1", A)))
    agent.decision = Decision(groups={})
    found = report(agent)
    assert found["names"] == [{"name": "wk1", "address": None, "code": "unknown", "reason": "never seen"}]
    [one] = found["nodes"]
    assert (one["kind"], one["role"], one["age_s"], one["fit"]) == ("unknown", None, None, None)
    text = control_report.as_text(found)
    assert re.search(r"^wk1 +- +- +never seen$", text, re.MULTILINE)
    assert re.search(rf"^wk1 +{A}:5432 +unknown +- +- +never +not asked yet$", text, re.MULTILINE)


def test_a_target_of_an_earlier_run_has_no_time() -> None:
    """What the block remembers began before anybody counted."""
    agent = Agent(config(group("wk1", A)), [remembered(A, Standing.PRIMARY)])
    [name] = report(agent)["names"]
    assert name["since"] is None


def test_a_node_that_is_gone_keeps_its_last_role() -> None:
    """The state is what the last probe saw, role and timeline what was last known."""
    agent = seen().see({A: dead()}).decide()
    first = report(agent)["nodes"][0]
    assert (first["kind"], first["detail"], first["role"], first["timeline"]) == (
        "dead",
        "Connection refused",
        "primary",
        7,
    )


def test_text_of_what_is_well() -> None:
    """Two tables, and no word of alerts."""
    text = control_report.as_text(report(seen()))
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"
    assert re.fullmatch(
        rf"""resolver-agent {__version__}, process 42, c.yml; hosts
local PostgreSQL: standby

name  leads to  since                     reason
wk1   {B}  {moment}  standby

name  node           state    timeline  lag            asked
wk1   {A}:5432  primary  7         -              0\.0 s ago
wk1   {B}:5432  standby  7         4096 B, 0\.0 s  0\.0 s ago""",
        text,
    )


def test_text_of_what_is_not() -> None:
    """A long reason is told once, below the tables, a clause a line."""
    text = control_report.as_text(report(seen().see({B: dead()}).decide()))
    assert re.search(r"^wk1 +fenced +\S+ +fenced, see below$", text, re.MULTILINE)
    assert re.search(
        r"\n\nalert since \S+:\n  wk1 → fenced \(no fit standby: 10\.0\.0\.1 is primary;\n"
        r"    10\.0\.0\.2 is dead: Connection refused, last seen in recovery\)$",
        text,
    )
    assert text.count("no fit standby") == 1
    assert max(map(len, text.splitlines())) < 100


def test_text_of_a_local_server_that_is_gone() -> None:
    """The fault and the role that stands are both said."""
    text = control_report.as_text(report(seen().see_local(dead()).decide()))
    assert "local PostgreSQL: dead (Connection refused), known as standby\n" in text


def test_text_of_what_is_not_in_the_file() -> None:
    """Where names should lead is not where they do."""
    assert "DOES NOT SAY THIS" not in control_report.as_text(report(seen()))
    assert "\nTHE HOSTS FILE DOES NOT SAY THIS YET.\n" in control_report.as_text(report(seen()) | {"written": False})


def test_text_of_a_trampled_file() -> None:
    """How often our lines were put back is said when it was."""
    assert "; hosts, put back 3 times\n" in control_report.as_text(report(seen()) | {"trampled": 3})


def test_a_plan_names_who_could_not_be_asked() -> None:
    """Credentials, silence and who is yet to be asked, the local server too; but not the dead, who are known."""
    hosts: dict[str | Node, Observation] = {
        "10.0.0.1": barred(),
        "10.0.0.2": unreachable(),
        "10.0.0.3": dead(),
        "10.0.0.4": primary(),
    }
    agent = Agent(config(group("wk1", *map(str, hosts), "10.0.0.5"))).see(hosts)
    agent.see_local(primary()).see_local(barred()).decide()
    nodes = {one: agent.states.get(one, NodeState()) for one in agent.config.groups[0].nodes}
    plan = control_report.plan(agent.decision, nodes, agent.local)
    assert plan["unasked"] == [
        "10.0.0.1:5432: password authentication failed",
        "10.0.0.2:5432: no answer within 2 s",
        "10.0.0.5:5432: not asked yet",
        "the local PostgreSQL: password authentication failed",
    ]
    assert not any("10.0.0.1:5432" in text for text in plan["alerts"]), "said twice"
    assert any("local PostgreSQL is rejecting" in text for text in plan["alerts"])


def test_a_plan_keeps_the_other_alerts() -> None:
    """What is wrong beside that is passed on as it is."""
    nodes = {node(A): NodeState()}
    faults = (
        Alert(AlertCode.HELD, "wk1 is held", of=("wk1",)),
        Alert(AlertCode.REJECTING, "cannot be asked", of=(str(node(A)),)),
    )
    assert control_report.plan(Decision(groups={}, alerts=faults), nodes, NodeState())["alerts"] == ["wk1 is held"]


def test_reasons_of_every_code_can_be_sent() -> None:
    """No code is unknown to the other side."""
    for code in Code:
        target = Target(name="wk1", address=A, standing=Standing.SELF, wish=None, reason=Reason(code, "why"))
        assert control_report.target_from_json(control_report.target_to_json(target)).reason == Reason(code, "why")


@pytest.mark.parametrize(
    ("told", "line"),
    [
        pytest.param(care(), None, id="no Citus"),
        pytest.param(
            care(citus=True, age_s=12.3),
            "Citus: cached connections are flushed; last recovery 12 s ago",
            id="all is well",
        ),
        pytest.param(
            care(citus=True, age_s=3.0, databases=[Recovered(database="app", withdrawn="wk1 is held")]),
            "Citus: cached connections are flushed; last recovery 3 s ago, not to its end: wk1 is held",
            id="withdrawn",
        ),
        pytest.param(
            care(citus=True, flushed=False, hindered="wk1 is held"),
            "Citus: cached connections are not flushed yet; no recovery: wk1 is held",
            id="nothing is",
        ),
        pytest.param(
            care(citus=True), "Citus: cached connections are flushed; no recovery: not due yet", id="just begun"
        ),
    ],
)
def test_text_of_citus(told: dict[str, Any], line: str | None) -> None:
    """Where there is Citus, one line says whether it is looked after."""
    lines = control_report.as_text(report(seen()) | told).splitlines()
    assert [found for found in lines if found.startswith("Citus:")] == ([line] if line else [])


PRIMARY_NAMES = [remembered(A, Standing.PRIMARY)]
STANDBY_NAMES = [remembered(B, Standing.STANDBY, last=A)]


@pytest.mark.parametrize(
    ("block", "role", "written", "told", "flushed", "astray", "why"),
    [
        pytest.param(PRIMARY_NAMES, Role.PRIMARY, True, care(citus=True), True, 0, "", id="ready"),
        pytest.param(PRIMARY_NAMES, Role.PRIMARY, True, care(), None, 0, "", id="ready, without Citus"),
        pytest.param(
            PRIMARY_NAMES,
            Role.PRIMARY,
            False,
            care(citus=True, flushed=False),
            False,
            0,
            "the hosts file could not be written yet; cached connections are not flushed yet",
            id="not written",
        ),
        pytest.param(
            STANDBY_NAMES, Role.STANDBY, True, care(), None, 1, "the names are still a standby's", id="called off"
        ),
        pytest.param([], None, False, care(citus=None, flushed=False), False, 0, None, id="only just started"),
    ],
)
def test_what_a_promotion_is_told(  # noqa: PLR0917 -- a table's columns
    block: list[Target],
    role: Role | None,
    written: bool,  # noqa: FBT001 -- a table's column
    told: dict[str, Any],
    flushed: bool | None,  # noqa: FBT001 -- a table's column
    astray: int,
    why: str | None,
) -> None:
    """The hook learns whether names lead to standbys still, whether that is on disk and flushed, and if not, why."""
    agent = Agent(config(group("wk1", A, B)), block)
    made = dataclasses.replace(agent.decision, made_for=(role, Fallback.NONE) if role else None)
    answer = control_report.promotion(made, written=written, care=told, alerts=[Announced(since=0.0).alert])
    assert (answer["written"], answer["flushed"], len(answer["astray"])) == (written, flushed, astray)
    assert why is None or answer["why"] == why


def test_a_name_that_is_to_lead_to_a_standby_is_not_astray() -> None:
    """A read-only name keeps its standby through a promotion, and the hook has nothing to say against that."""
    agent = Agent(config(group("wk1", A, B), group("wk1-ro", A, B, route=Route.STANDBY)))
    agent.assumed = Role.PRIMARY
    agent.see({A: primary(), B: standby()}).see_local(standby()).decide()
    assert (agent.address("wk1"), agent.address("wk1-ro")) == (A, B)
    told = {"flush": {"citus": True, "flushed": True}}
    answer = control_report.promotion(agent.decision, written=True, care=told, alerts=[])
    assert answer == {"written": True, "flushed": True, "astray": [], "why": ""}
