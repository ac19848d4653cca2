"""The log: each change once, and each lasting fault once when it begins and once when it ends."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from resolver_agent.control import report
from resolver_agent.log import ChangeLog, configure, write_in_background
from resolver_agent.routing.decision import Decision
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import Alert, AlertCode, Code, GroupState, Reason, Target, TargetKind
from tests.unit.builders import Agent, config, dead, group, node, primary, remembered, standby, unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
        f"W alert: {text} [held]",
    ]
    assert log.of(agent.wait(1).see({A: unreachable(), B: standby()}).decide()) == [
        "I 10.0.0.1:5432 is unreachable (no answer within 2 s)"
    ]
    lasting = agent.target()
    assert log.of(agent.wait(1).see({B: primary(timeline=8)}).decide()) == [
        "I 10.0.0.2:5432 is primary (timeline 8)",
        f"I over: {lasting} [held]",
        "I wk1 → 10.0.0.2 (primary, timeline 8)",
    ]


def test_a_new_address_under_a_lasting_alert_is_said(log: Log) -> None:
    """A fallback that follows its primary is a change, though the alert goes on."""
    first, second = (leading(address, Code.FALLBACK, text="no fit standby") for address in (A, B))
    alert = Alert(AlertCode.FALLBACK, "wk1 → 10.0.0.1 (no fit standby)", of=("wk1",))
    assert log.decision(first, [alert]) == ["W alert: wk1 → 10.0.0.1 (no fit standby) [fallback]"]
    moved = Alert(AlertCode.FALLBACK, "wk1 → 10.0.0.2 (no fit standby)", of=("wk1",))
    assert log.decision(second, [moved]) == ["I wk1 → 10.0.0.2 (no fit standby)"]
    assert log.decision(leading(B, Code.PRIMARY)) == [
        "I over: wk1 → 10.0.0.2 (no fit standby) [fallback]",
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
    assert log.decision(nothing, faults, now=5) == [f"W alert: fault {name} [held]" for name in "cab"]
    worse, still_worse = (Alert(AlertCode.HELD, text, of=("a",)) for text in ("worse", "still worse"))
    assert log.decision(nothing, [worse, faults[0], still_worse], now=6) == ["I over: fault b [held]"]
    assert log.change_log.alerts == {"a:held": (still_worse, 5), "c:held": (faults[0], 5)}
    assert log.decision(nothing, now=7) == ["I over: still worse [held]", "I over: fault c [held]"]
    assert log.decision(nothing, faults[:1], now=8) == ["W alert: fault c [held]"]
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
    assert log.decision(moved, [Alert(AlertCode.FILE, "disk full")], written=False) == ["C alert: disk full [file]"]
    assert log.decision(moved) == ["I over: disk full [file]", "I wk1 → 10.0.0.1 (timeline 7)"]


@pytest.mark.parametrize(
    ("code", "level"),
    [
        pytest.param(AlertCode.QUEUED, "I", id="info"),
        pytest.param(AlertCode.HELD, "W", id="warning"),
        pytest.param(AlertCode.FENCED, "C", id="critical"),
    ],
)
def test_an_alert_begins_with_its_severity_and_ends_as_information(code: AlertCode, level: str, log: Log) -> None:
    """Whoever is woken by the log is woken by what clients notice, and by no end of it."""
    nothing = Decision(groups={})
    assert log.decision(nothing, [Alert(code, "fault")]) == [f"{level} alert: fault [{code.value}]"]
    assert log.decision(nothing) == [f"I over: fault [{code.value}]"]


class Output:
    """The log as a process writes it, to standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def lines(self, form: str, say: Callable[[], object]) -> list[str]:
        """Configure the log, have something said, and return the lines."""
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            configure(form, "info")
            say()
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        return self._capsys.readouterr().err.splitlines()


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    """Return what is written to standard error."""
    return Output(capsys)


def test_json_has_the_fields_of_status(output: Output) -> None:
    """A program reads the log with the words by which it reads ``status --json``."""
    agent = Agent(config(group("wk1", A, B))).see({A: primary(), B: dead()}).see_local(standby()).decide()
    change_log = ChangeLog()

    def say() -> None:
        change_log.nodes(agent.states)
        change_log.decision(agent.decision, [Alert(AlertCode.NOTE, "in place", of=("file",))], 1, written=True)

    told = [json.loads(line) for line in output.lines("json", say)]
    of = {one["message"].split()[0]: one for one in told}
    shown = report.status(
        agent.config, agent.decision, agent.states, local=agent.local,
        alerts=[(Alert(AlertCode.NOTE, "in place", of=("file",)), 1.0)], written=True, trampled=0, now=agent.now,
        flush=report.FlushStatus(citus=False, flushed=True, fault=None),
        queue=report.QueueStatus(coordinates=(), open=(), past=()),
        recovery=report.RecoveryStatus(under_way=False, blocked_by=None, age_s=None, databases=()),
    )  # fmt: skip
    status = report.as_json(shown)
    [name], [alert], [live, lost] = status["names"], status["alerts"], status["nodes"]
    for line, same, keys in [
        (of["wk1"], name, {"name", "address", "kind", "wanted_role", "code", "reason"}),
        (of["alert:"], alert, {"key", "code", "of", "severity"}),
        (of[f"{A}:5432"], live, {"node", "kind", "detail", "timeline"}),
        (of[f"{B}:5432"], lost, {"node", "kind", "detail"}),
    ]:
        assert {key: line[key] for key in keys} == {key: same[key] for key in keys}
    assert of["alert:"]["alert"] == alert["key"], "the old name"


def say_some() -> None:
    """Log a line of each level, and one with a traceback."""
    logger = logging.getLogger("resolver_agent")
    for level in ("info", "warning", "error", "critical"):
        getattr(logger, level)("a line of %s", level)
    try:
        fail()
    except ValueError:
        logger.exception("a round failed")


def test_a_line_of_text(output: Output) -> None:
    """A line has the time as in RFC 3339, and its level."""
    first = output.lines("text", say_some)[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d INFO a line of info", first)
    said = dt.datetime.strptime(first.partition(" ")[0], "%Y-%m-%dT%H:%M:%S.%f%z")
    assert abs((dt.datetime.now(dt.timezone.utc) - said).total_seconds()) < 60


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_journal_gets_priorities(form: str) -> None:
    """The journal reads the level of each line, also of a traceback's, and knows the time itself."""
    read, write = os.pipe()
    of = os.fstat(write)
    program = f"from tests.unit import test_log; test_log.configure({form!r}, 'info'); test_log.say_some()"
    with open(read, encoding="utf-8") as journal:  # noqa: PTH123 -- a descriptor
        environment = {**os.environ, "JOURNAL_STREAM": f"{of.st_dev}:{of.st_ino}"}
        subprocess.run([sys.executable, "-c", program], stderr=write, env=environment, check=True)
        os.close(write)
        lines = journal.read().splitlines()
    assert [line[:3] for line in lines[:4]] == ["<6>", "<4>", "<3>", "<2>"]
    assert {line[:3] for line in lines[4:]} == {"<3>"}
    if form == "text":
        assert lines[0] == "<6>a line of info"
        assert lines[4] == "<3>a round failed"
        assert len(lines) > 5
    else:
        assert [json.loads(line[3:])["message"] for line in lines][-1] == "a round failed"


HOSTILE = "no\x1b[2J\x9b31m\n2026-11-27 21:00:00,000 INFO all is well\u2028\u2029\u202e\x07\ud800"


def fail() -> None:
    """Fail with a hostile text."""
    raise ValueError(HOSTILE)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_record_is_one_line_that_prints(form: str, output: Output) -> None:
    """Whatever text a server, a client or a database user has brought into the log."""

    def say() -> None:
        logger = logging.getLogger("resolver_agent")
        logger.error("alert: %s", HOSTILE, extra={"key": HOSTILE})
        try:
            fail()
        except ValueError:
            logger.exception("a round failed")

    line, first, *others = output.lines(form, say)
    assert line.isprintable()
    assert "all is well" in line
    assert "a round failed" in first
    assert all(one.isprintable() for one in [first, *others])
    assert all(one.startswith("  ") for one in others)
    assert bool(others) == (form == "text")


def say_much(form: str = "text", number: int = 0) -> None:
    """Log in the background, one numbered line after the other, and end."""
    configure(form, "info")
    write_in_background()
    for one in range(number):
        logging.getLogger("resolver_agent").info("line %d %s", one, "x" * 1000)


@contextlib.contextmanager
def saying_much(form: str, number: int, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that logs so many lines to a descriptor, says so, and waits for the end of its input."""
    said = f"test_log.say_much({form!r}, {number}); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", f"import sys; from tests.unit import test_log; {said}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("form", ["text", "json"])
def test_nobody_waits_for_a_reader(form: str) -> None:
    """Once somebody reads, the lines come in their order; what was too much is counted, and the rest comes after it."""
    read, write = os.pipe()
    with open(read, encoding="utf-8") as journal, saying_much(form, 3000, write) as process:  # noqa: PTH123
        os.close(write)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # all is said, and nothing is read
        process.stdin.close()
        lines = journal.read().splitlines()
    if form == "json":
        lines = [json.loads(line)["message"] for line in lines]
    told = [int(found[1]) for line in lines if (found := re.search(r"line (\d+) x", line))]
    [dropped] = [int(found[1]) for line in lines if (found := re.search(r"(\d+) messages were dropped here", line))]
    assert told == list(range(len(told)))
    assert len(told) + dropped == 3000
    assert dropped > 1000


def test_an_end_waits_for_a_reader_for_a_short_while() -> None:
    """A process ends although nobody takes what it has said; and one with a reader says all of it first."""
    read, write = os.pipe()
    with saying_much("text", 300, write) as process:
        process.communicate(timeout=20)
        assert process.returncode == 0
    os.close(read)
    os.close(write)
    read, write = os.pipe()
    with open(read, encoding="utf-8") as journal, saying_much("text", 900, write) as process:  # noqa: PTH123
        os.close(write)
        assert process.stdin is not None
        process.stdin.close()
        assert len(journal.read().splitlines()) == 900


def test_a_reader_that_is_gone() -> None:
    """What nobody can read any more is lost; the process goes on, and ends well."""
    read, write = os.pipe()
    os.close(read)
    with saying_much("text", 10, write) as process:
        os.close(write)
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_what_could_not_be_written_is_counted() -> None:
    """After a time in which nothing could be written, as on a full disk, the log goes on, and says how much is lost."""
    program = """
import logging, os, sys, time
from resolver_agent import log
log.configure("text", "info")
log.write_in_background()
[handler] = logging.getLogger().handlers
logger = logging.getLogger("resolver_agent")
pipe = os.dup(2)
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
logger.info("one is lost")
logger.info("two is lost")
handler.flush()
os.dup2(pipe, 2)
logger.info("three is said")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    said = [line.partition("INFO ")[2] or line.partition("WARNING ")[2] for line in ran.stderr.splitlines()]
    assert said[0] == "three is said"
    assert said[1].startswith("2 messages were dropped here")
