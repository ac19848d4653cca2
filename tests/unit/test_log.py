"""The log: each change once, and each lasting fault once when it begins and once when it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from resolver_agent.log import ChangeLog, configure
from resolver_agent.routing.decision import Decision
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import Alert, AlertCode, Code, GroupState, Reason, Target, TargetKind
from tests.unit.builders import Agent, config, dead, group, node, primary, remembered, standby, unreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

A, B = "10.0.0.1", "10.0.0.2"


class Log:
    """A change log, and its lines since they were last read."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.change_log = ChangeLog()
        self._caplog = caplog
        caplog.set_level(logging.INFO)

    def of(self, agent: Agent) -> list[str]:
        """Log a round of an agent and return the lines."""
        self.change_log.nodes(agent.states)
        return self.decision(agent.decision, agent.decision.alerts, now=agent.now)

    def decision(
        self, decision: Decision, alerts: Sequence[Alert] = (), *, now: float = 1.0, written: bool = True
    ) -> list[str]:
        """Log a decision and return the lines."""
        self.change_log.decision(decision, alerts, now, written=written)
        return self.lines()

    def lines(self) -> list[str]:
        """Return the lines since the last call, each with its level's first letter."""
        said = [f"{record.levelname[0]} {record.getMessage()}" for record in self._caplog.records]
        self._caplog.clear()
        return said


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    """Return a new change log."""
    return Log(caplog)


def leading(address: str, code: Code, *, text: str = "why") -> Decision:
    """Return a decision about one name."""
    reason = Reason(code, text)
    target = Target(name="wk1", address=address, kind=TargetKind.PRIMARY, wanted_role=Role.PRIMARY, reason=reason)
    return Decision(groups={"wk1": GroupState(target=target, reason=reason)})


def test_the_first_round_says_everything_and_the_next_nothing(log: Log) -> None:
    """The first round logs nodes, the local role, and every name with its reason; the next logs nothing."""
    agent = Agent(config(group("wk1", A, B))).see({A: primary(), B: standby()}).see_local(primary()).decide()
    assert log.of(agent) == [
        "I 10.0.0.1:5432 is primary (timeline 7)",
        "I 10.0.0.2:5432 is standby (timeline 7)",
        "I the local role is primary",
        "I wk1 → 10.0.0.1 (primary, timeline 7)",
    ]
    assert log.of(agent.wait(1).see({A: primary(lsn=2000), B: standby(lsn=1999)}).decide()) == []


def test_a_name_that_is_held_is_said_by_its_alert_alone(log: Log) -> None:
    """One text is not logged both as an error and as information; when the alert ends the name is logged again."""
    block = [remembered(A, TargetKind.PRIMARY)]
    agent = Agent(config(group("wk1", A, B)), block).see({A: dead(), B: standby()}).see_local(primary()).decide()
    text = "wk1 → 10.0.0.1 (held; no primary; 10.0.0.1 is dead: Connection refused; 10.0.0.2 is in recovery)"
    assert log.of(agent) == [
        "I 10.0.0.1:5432 is dead (Connection refused)",
        "I 10.0.0.2:5432 is standby (timeline 7)",
        "I the local role is primary",
        f"E alert: {text}",
    ]
    assert log.of(agent.wait(1).see({A: unreachable(), B: standby()}).decide()) == [
        "I 10.0.0.1:5432 is unreachable (no answer within 2 s)"
    ]
    lasting = agent.target()
    assert log.of(agent.wait(1).see({B: primary(timeline=8)}).decide()) == [
        "I 10.0.0.2:5432 is primary (timeline 8)",
        f"I over: {lasting}",
        "I wk1 → 10.0.0.2 (primary, timeline 8)",
    ]


def test_a_new_address_under_a_lasting_alert_is_said(log: Log) -> None:
    """A fallback that follows its primary is a change, though the alert goes on."""
    first, second = (leading(address, Code.FALLBACK, text="no fit standby") for address in (A, B))
    alert = Alert(AlertCode.FALLBACK, "wk1 → 10.0.0.1 (no fit standby)", of=("wk1",))
    assert log.decision(first, [alert]) == ["E alert: wk1 → 10.0.0.1 (no fit standby)"]
    moved = Alert(AlertCode.FALLBACK, "wk1 → 10.0.0.2 (no fit standby)", of=("wk1",))
    assert log.decision(second, [moved]) == ["I wk1 → 10.0.0.2 (no fit standby)"]
    assert log.decision(leading(B, Code.PRIMARY)) == [
        "I over: wk1 → 10.0.0.2 (no fit standby)",
        "I wk1 → 10.0.0.2 (why)",
    ]


def test_a_reason_in_other_words_is_no_change(log: Log) -> None:
    """A reason that varies from probe to probe does not fill the log."""
    assert log.decision(leading(A, Code.PRIMARY, text="timeline 7")) == ["I wk1 → 10.0.0.1 (timeline 7)"]
    assert log.decision(leading(A, Code.PRIMARY, text="timeline 8")) == []


def test_alerts_begin_and_end_once_in_their_order(log: Log) -> None:
    """An alert whose text changes keeps its start; two alerts with one key are one."""
    nothing = Decision(groups={})
    faults = [Alert(AlertCode.HELD, f"fault {name}", of=(name,)) for name in "cab"]
    assert log.decision(nothing, faults, now=5) == ["E alert: fault c", "E alert: fault a", "E alert: fault b"]
    worse, still_worse = (Alert(AlertCode.HELD, text, of=("a",)) for text in ("worse", "still worse"))
    assert log.decision(nothing, [worse, faults[0], still_worse], now=6) == ["I over: fault b"]
    assert log.change_log.alerts == {"a:held": (still_worse, 5), "c:held": (faults[0], 5)}
    assert log.decision(nothing, now=7) == ["I over: still worse", "I over: fault c"]
    assert log.decision(nothing, faults[:1], now=8) == ["E alert: fault c"]
    assert log.change_log.alerts == {"c:held": (faults[0], 8)}


def test_what_a_reload_removed_and_brought_back_is_said_again(log: Log) -> None:
    """A name or node that returns is logged again."""
    agent = Agent(config(group("wk1", A))).see({A: primary()}).see_local(primary()).decide()
    said = log.of(agent)
    state = agent.states.pop(node(A))
    log.change_log.nodes(agent.states)
    assert log.decision(Decision(groups={}, role=Role.PRIMARY)) == []
    agent.states[node(A)] = state
    assert log.of(agent) == [line for line in said if "local role" not in line]


def test_a_name_is_said_to_lead_where_the_file_says_so(log: Log) -> None:
    """A target is logged only when it has been written."""
    moved = leading(A, Code.PRIMARY, text="timeline 7")
    assert log.decision(moved, [Alert(AlertCode.FILE, "disk full")], written=False) == ["E alert: disk full"]
    assert log.decision(moved) == ["I over: disk full", "I wk1 → 10.0.0.1 (timeline 7)"]


def test_fields_for_a_json_log(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """A record has its subject in fields, besides its text."""
    log.change_log.decision(leading(A, Code.PRIMARY), [Alert(AlertCode.FLUSH, "fault")], 1, written=True)
    alert, name = caplog.records
    assert vars(alert)["alert"] == "flush"
    assert {key: vars(name)[key] for key in ("name_", "address", "code")} == {
        "name_": "wk1",
        "address": A,
        "code": "primary",
    }


HOSTILE = "no\x1b[2J\x9b31m\n2026-11-27 21:00:00,000 INFO all is well\u2028\u2029\u202e\x07\ud800"


def fail() -> None:
    """Fail with a hostile text."""
    raise ValueError(HOSTILE)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_record_is_one_line_that_prints(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever text a server, a client or a database user has brought into the log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure(form, "info")
        logging.getLogger("resolver_agent").error("alert: %s", HOSTILE, extra={"alert": HOSTILE})
        [line] = capsys.readouterr().err.splitlines()
        assert line.isprintable()
        assert "all is well" in line
        try:
            fail()
        except ValueError:
            logging.getLogger("resolver_agent").exception("a round failed")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    first, *others = capsys.readouterr().err.splitlines()
    assert "a round failed" in first
    assert all(one.isprintable() for one in [first, *others])
    assert all(one.startswith("  ") for one in others)
    assert bool(others) == (form == "text")
