"""The schemas of what ``status --json`` and ``doctor --json`` print: made from the code, and true of answers."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from resolver_agent.citus.recovery import Prepared, Recovered
from resolver_agent.control import schema
from resolver_agent.control.report import (
    SCHEMA_VERSION,
    FileStatus,
    PauseStatus,
    PinStatus,
    QueueStatus,
    WindowStatus,
    as_json,
    name_in_file,
)
from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.check import State
from resolver_agent.doctor.finding import Severity
from resolver_agent.routing.decision import Decision
from resolver_agent.routing.state import TargetKind
from tests.unit.builders import Agent, config, dead, group, remembered
from tests.unit.control.builders import A, B, citus_status, past_window, seen, status
from tests.unit.doctor.builders import fit, host, server

if TYPE_CHECKING:
    from tests.unit.doctor.builders import Change

FOLDER = Path(__file__).parents[3] / "systemd"


def strict(of: dict[str, Any]) -> Draft202012Validator:
    """Return a validator that also refuses keys that a schema does not name."""
    known = copy.deepcopy(of)
    for one in known["$defs"].values():
        one["additionalProperties"] = False
    return Draft202012Validator(known)


def asked(agent: Agent, **changes: Any) -> Any:
    """Return an agent's status as ``status --json`` prints it."""
    return json.loads(json.dumps(as_json(dataclasses.replace(status(agent), **changes))))


def fresh() -> Agent:
    """Return an agent that knows nothing yet."""
    agent = Agent(config(group("wk1", A)))
    agent.decision = Decision(groups={})
    return agent


RECOVERED = Recovered(database="app", not_reached=("wk1:5432",), oldest=Prepared(gid="citus_0_1_2_3", age_s=1.5))
WINDOW = WindowStatus(
    name="wk1", node=f"{A}:5432", stage="room", since="2026-03-04T14:05:09+01:00", left_s=9, waiting=3
)
PIN = PinStatus(name="wk1", address=A, wanted_role="standby", until="2026-03-04T14:05:09+01:00", reason="rebuild")
PAUSE = PauseStatus(until="2026-03-04T14:05:09+01:00", reason="")
IN_FILE = FileStatus(
    error="no agent runs", hosts_file="/etc/hosts", names=(name_in_file(remembered(A, TargetKind.SELF)),)
)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(asked(fresh()), id="nothing is known yet"),
        pytest.param(asked(seen()), id="all is well"),
        pytest.param(asked(seen().see({B: dead()}).decide()), id="an alert"),
        pytest.param(asked(seen(), **citus_status(citus=True, age_s=3, databases=[RECOVERED])), id="recovery"),
        pytest.param(asked(seen(), queue=QueueStatus(open=(WINDOW,), past=(past_window(),))), id="windows"),
        pytest.param(asked(seen(), queue=None), id="an older agent"),
        pytest.param(asked(seen(), pins=(PIN,), pause=PAUSE), id="pinned and paused"),
        pytest.param(as_json(IN_FILE), id="no agent"),
        pytest.param(as_json(FileStatus(error="no agent runs")), id="no agent, and no file"),
    ],
)
def test_answers(answer: dict[str, Any]) -> None:
    """The schema names all keys of an answer, with their types, and requires them."""
    assert list(strict(schema.status()).iter_errors(answer)) == []
    assert answer["schema_version"] == SCHEMA_VERSION
    for key in answer:
        assert not strict(schema.status()).is_valid({name: value for name, value in answer.items() if name != key}), key


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda fit: fit, id="all is well"),
        pytest.param(host(agent=None), id="a finding"),
        pytest.param(server(databases={}), id="no scripts"),
    ],
)
def test_doctor(change: Change) -> None:
    """The same is so for doctor."""
    found = json.loads(json.dumps(doctor_report.report(change(fit())).as_json()))
    assert list(strict(schema.doctor()).iter_errors(found)) == []
    for key in found:
        assert not strict(schema.doctor()).is_valid({name: value for name, value in found.items() if name != key}), key


def test_words_of_doctor() -> None:
    """The schema has the words that doctor uses."""
    known = schema.doctor()["$defs"]
    for definition, key, words in (("FindingStatus", "severity", Severity), ("CheckStatus", "state", State)):
        assert known[definition]["properties"][key]["examples"] == [word.value for word in words]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("pid",), "1"),
        (("schema_version",), SCHEMA_VERSION + 1),
        (("role",), 1),
        (("names", 0, "since"), 1.5),
        (("names", 0, "address"), False),
        (("alerts", 0, "of"), "wk1"),
        (("nodes", 0, "lag_bytes"), 1.5),
        (("flush",), None),
    ],
    ids=str,
)
def test_what_is_none(place: tuple[str | int, ...], value: object) -> None:
    """An answer with another type somewhere is none."""
    changed: Any = asked(seen().see({B: dead()}).decide())
    inside = changed
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = value
    assert not Draft202012Validator(schema.status()).is_valid(changed)


def test_old_words_are_deprecated() -> None:
    """Renamed keys are there under their old names, and marked."""
    known = schema.status()["$defs"]
    old = {
        (kind, key) for kind, one in known.items() for key, value in one["properties"].items() if "deprecated" in value
    }
    assert ("NameStatus", "wish") in old
    assert ("RecoveryStatus", "hindered") in old


@pytest.mark.parametrize("name", ["status", "doctor"])
def test_shipped(name: str) -> None:
    """The file is the schema of this code.

    Write it with ``python -c "from resolver_agent.control.schema import *; print(as_text(status()), end='')"``. A key
    that goes away or changes its meaning needs another version.
    """
    text = (FOLDER / f"{name}.schema.json").read_text("utf-8")
    Draft202012Validator.check_schema(json.loads(text))
    assert text == schema.as_text(getattr(schema, name)())
