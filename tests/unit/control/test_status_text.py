"""A status as text: counts, then what is wrong, then each name and node once."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resolver_agent import __version__
from resolver_agent.citus.recovery import Recovered
from resolver_agent.config.model import Route
from resolver_agent.control.report import AlertStatus, QueueStatus, Status, WindowStatus, as_json, from_json
from resolver_agent.control.status_text import Style, as_text, on_screen
from resolver_agent.routing.decision import Decision
from tests.unit.builders import Agent, config, dead, group, node, primary, standby
from tests.unit.control.builders import A, B, CitusStatus, citus_status, past_window, seen, status

if TYPE_CHECKING:
    from collections.abc import Callable

README = Path(__file__).parents[3] / "README.md"
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"


def many(names: int = 60, *, dead_one: int | None = None) -> Agent:
    """Return an agent on a standby with many names, each with two nodes; one of these may have lost its standby."""
    pairs = {f"wk{number}": (f"10.0.{number}.1", f"10.0.{number}.2") for number in range(1, names + 1)}
    agent = Agent(config(*(group(name, *pair) for name, pair in pairs.items())))
    for first, second in pairs.values():
        agent.see({first: primary(lsn=50_000_000), second: standby(lsn=38_000_000)})
    agent.see_local(standby()).decide()
    if dead_one is not None:
        agent.see({pairs[f"wk{dead_one}"][1]: dead()}).decide()
    return agent


def cluster() -> Status:
    """Return the status of README's standby coordinator, whose wk2 has lost its standby."""
    agent = Agent(
        config(
            group("cn", "10.0.0.1", "10.0.0.2"),
            group("wk1", "10.0.0.3", "10.0.0.4", max_lag_s=30),
            group("wk2", "10.0.0.5", "10.0.0.6"),
            group("wk1-ro", "10.0.0.3", "10.0.0.4", max_lag_s=30, route=Route.STANDBY),
        )
    )
    agent.see_local(standby(), address="10.0.0.2")
    agent.see({"10.0.0.3": primary(lsn=38_000_000), "10.0.0.4": standby(lsn=38_000_000)}).decide()
    agent.see({host: primary(lsn=50_000_000) for host in ("10.0.0.1", "10.0.0.3", "10.0.0.5")})
    agent.see({"10.0.0.2": standby(lsn=50_000_000), "10.0.0.6": standby()}).decide()
    agent.see({"10.0.0.6": dead()}).decide()
    begun, fenced = "2026-03-02T07:12:40+01:00", "2026-03-04T14:05:09+01:00"
    found = status(agent)
    return dataclasses.replace(
        found,
        version="1.0.0",
        pid=812,
        config="/etc/resolver-agent.yml",
        hosts_file="/etc/hosts",
        names=tuple(dataclasses.replace(one, since=fenced if one.name == "wk2" else begun) for one in found.names),
        alerts=tuple(dataclasses.replace(one, since=fenced) for one in found.alerts),
        **citus_status(citus=True, blocked_by="the local PostgreSQL is a standby"),
    )


def test_readme_shows_it() -> None:
    """The README has the text as it is; after a change, copy it from this test's failure (``pytest -vv``)."""
    [shown] = re.findall(r"^```text\n(\d+ names: .*?)\n```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert shown.splitlines() == as_text(cluster()).splitlines()


def test_text_of_what_is_well() -> None:
    """Counts, the servers and the agent, and a line for the name with its nodes."""
    assert re.fullmatch(
        rf"""1 name: 1 standby; 2 nodes: 1 primary, 1 standby; no alerts
local PostgreSQL: standby
resolver-agent {__version__}, process {os.getpid()}, c.yml; hosts

name  address   since {{22}}why      nodes, port 5432
wk1   {B}  {MOMENT}  standby  {A} primary, {B} standby 4 kB""",
        as_text(status(seen())),
    )


def test_text_of_what_is_not() -> None:
    """A long reason appears once, above the table, and the counts say that there is one."""
    text = as_text(status(seen().see({B: dead()}).decide()))
    assert text.startswith("1 name: 1 fenced; 2 nodes: 1 primary, 1 dead; 1 alert: 1 critical\n")
    assert re.search(
        r"\n\ncritical: fenced, since \S+\n  wk1 → fenced \(no fit standby: 10\.0\.0\.1 is primary; "
        r"10\.0\.0\.2 is dead: Connection refused, last seen in recovery\)\n`resolver-agent explain fenced` .*\n\n",
        text,
    )
    line = rf"^wk1 +fenced +{MOMENT} +fenced, see above +{A} primary, {B} dead: Connection refused$"
    assert re.search(line, text, re.MULTILINE)
    assert text.count("no fit standby") == 1


def test_text_before_anything_is_known() -> None:
    """At the start, and for a name that a reload has just added, the text says that nothing is known."""
    agent = Agent(config(group("wk1", A)))
    agent.decision = Decision(groups={})
    text = as_text(status(agent))
    assert re.search(rf"^wk1 +- +- +never seen +{A} unknown: not asked yet$", text, re.MULTILINE)
    full = as_text(status(agent), details=True)
    assert "\nwk1 → left out (unknown)\n  never seen\n" in full
    assert re.search(rf"^  {A}:5432 +unknown +- +- +- +never  not asked yet$", full, re.MULTILINE)


def test_alerts_by_severity() -> None:
    """The worst alert comes first; one of a severity that is not known here before all others."""
    severities = {"queued": "info", "held": "warning", "file": "critical", "new": "fatal"}
    alerts = [AlertStatus(key=code, code=code, severity=one, text=code, since=None) for code, one in severities.items()]
    text = as_text(dataclasses.replace(status(seen()), alerts=tuple(alerts)))
    assert "; 4 alerts: 1 fatal, 1 critical, 1 warning, 1 info\n" in text
    assert re.findall(r"^(\w+: \w+)$", text, re.MULTILINE) == [
        "fatal: new",
        "critical: file",
        "warning: held",
        "info: queued",
    ]


def test_counts_on_a_narrow_terminal() -> None:
    """Where the counts do not fit on one line, each kind has its own."""
    lines = as_text(cluster(), style=Style(width=80)).splitlines()
    assert lines[:3] == [
        "4 names: 1 self, 2 standby, 1 fenced",
        "6 nodes: 3 primary, 2 standby, 1 dead",
        "1 alert: 1 critical",
    ]


def test_a_node_of_two_names() -> None:
    """A node is shown and counted once, although it is behind two names."""
    text = as_text(cluster())
    assert "; 6 nodes: 3 primary, 2 standby, 1 dead; " in text
    assert re.search(r"^wk1-ro .* as wk1$", text, re.MULTILINE)
    assert text.count("10.0.0.3") == 1


def test_a_node_that_is_fit_for_one_name_only() -> None:
    """Then both names show it, each with its own limit's result."""
    agent = Agent(config(group("wk1", A, B, max_lag_bytes=100), group("wk1-ro", A, B, route=Route.STANDBY)))
    agent.see({A: primary(lsn=1000), B: standby(lsn=800)}).see_local(standby()).decide()
    lines = as_text(status(agent)).splitlines()
    assert [line[line.rindex(f"{A} primary, ") :] for line in lines[-2:]] == [
        f"{A} primary, {B} standby 200 B: not fit",
        f"{A} primary, {B} standby 200 B",
    ]


def test_ports_that_differ() -> None:
    """Nodes are shown with their ports, if these are not all the same."""
    agent = Agent(config(group("wk1", A), group("wk2", B, port=5433)))
    text = as_text(status(agent.see({A: primary()}).see_local(primary()).decide()))
    assert f"{A}:5432 primary\n" in text
    assert text.endswith(f"{B}:5433 unknown: not asked yet")


def test_sixty_names_on_one_screen() -> None:
    """Each name takes one line with its nodes, on a screen of 120 columns, whatever else there is to say."""
    text = as_text(status(many(dead_one=7)), style=Style(width=120))
    lines = text.splitlines()
    assert len(lines) < 70
    assert max(map(len, lines)) <= 120
    assert len([line for line in lines if re.match(r"wk\d+ ", line)]) == 60


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(lambda style: as_text(cluster(), style=style), id="all"),
        pytest.param(lambda style: as_text(cluster(), style=style, details=True), id="in full"),
        pytest.param(lambda style: as_text(status(many(3, dead_one=2)), style=style), id="another"),
    ],
)
def test_width(text: Callable[[Style], str], width: int) -> None:
    """Lines fit the terminal, as long as it is wide enough for a table's first columns; no word is lost."""
    lines = text(Style(width=width)).splitlines()
    assert max(map(len, lines)) <= max(width, 80)
    words = set(re.findall(r"10\.[\d.]+|refused|primary|standby", text(Style())))
    assert words == set(re.findall(r"10\.[\d.]+|refused|primary|standby", "\n".join(lines)))


def test_colours_change_nothing_else() -> None:
    """With its colours taken away the text is the same; severities, codes and nodes have them."""
    coloured = as_text(cluster(), style=Style(width=120, colour=True))
    assert re.sub(r"\x1b\[\d+m", "", coloured) == as_text(cluster(), style=Style(width=120))
    assert "\x1b[31mcritical\x1b[0m: fenced" in coloured
    assert "\x1b[31m10.0.0.6 dead: Connection refused\x1b[0m" in coloured
    assert "\x1b[32mstandby\x1b[0m" in coloured


def test_a_name_in_full() -> None:
    """Of a name that is asked for, all is shown: what it wants, its last primary, and each node's LSN and age."""
    [_, *lines] = as_text(cluster(), details=True).split("\n\n")
    assert lines[1:4] == [
        """\
cn → 10.0.0.2 (self), since 2026-03-02T07:12:40+01:00
  this server
  the last known primary is 10.0.0.1
  node           state    timeline  LSN        lag  asked
  10.0.0.1:5432  primary  7         0/2FAF080  -    0.0 s ago
  10.0.0.2:5432  standby  7         0/2FAF080  0 B  0.0 s ago""",
        """\
wk1 → 10.0.0.4 (standby), since 2026-03-02T07:12:40+01:00
  standby
  wants a standby, the last known primary is 10.0.0.3
  node           state    timeline  LSN        lag           asked
  10.0.0.3:5432  primary  7         0/2FAF080  -             0.0 s ago
  10.0.0.4:5432  standby  7         0/243D580  11 MB, 0.0 s  0.0 s ago""",
        """\
wk2 → fenced, since 2026-03-04T14:05:09+01:00
  no fit standby: 10.0.0.5 is primary; 10.0.0.6 is dead: Connection refused, last seen in recovery
  wants a standby, the last known primary is 10.0.0.5
  node           state    timeline  LSN        lag  asked
  10.0.0.5:5432  primary  7         0/2FAF080  -    0.0 s ago
  10.0.0.6:5432  dead     7         0/3E8      -    0.0 s ago  Connection refused, last seen as a standby""",
    ]


def test_why_a_standby_is_not_fit() -> None:
    """A standby that may not serve reads has the reason beside it; a primary needs none."""
    agent = Agent(config(group("wk1", A, B, max_lag_bytes=100))).see({A: primary(lsn=1000), B: standby(lsn=800)})
    lines = as_text(status(agent.see_local(primary()).decide()), details=True).splitlines()
    assert lines[-2].endswith(" s ago")
    assert lines[-1].startswith(f"  {B}:5432  standby, not fit  ")
    assert lines[-1].endswith(f" s ago  {B} lags more than 100 B behind its primary")


def test_what_to_do() -> None:
    """The worst alert is named as the command that explains it takes it."""
    alerts = [AlertStatus(key=f"x:{code}", code=code, text="", since=None) for code in ("not_serving", "held")]
    alerts.append(AlertStatus(key="x:file", code="file", severity="critical", text="", since=None))
    text = as_text(dataclasses.replace(status(seen()), alerts=tuple(alerts)))
    assert re.findall(r"^`resolver-agent (.*)` says what to do$", text, re.MULTILINE) == ["explain file"]
    assert "resolver-agent explain" not in as_text(status(seen()))


def test_only_problems() -> None:
    """The table has the names with which something is wrong; the counts are those of all."""
    text = as_text(cluster(), only_problems=True)
    assert text.startswith("4 names: 1 self, 2 standby, 1 fenced; 6 nodes: ")
    assert [line.partition(" ")[0] for line in text.split("\n\n")[2].splitlines()] == ["name", "wk2"]
    assert as_text(status(seen()), only_problems=True).endswith("\n\nnothing is wrong")


def test_text_of_a_local_server_that_is_gone() -> None:
    """The text has the fault and the role that still counts."""
    text = as_text(status(seen().see_local(dead()).decide()))
    assert "local PostgreSQL: dead (Connection refused), last seen as a standby\n" in text


def test_text_of_what_is_not_in_the_file() -> None:
    """Targets that are not written yet are told apart from those in the file."""
    found = status(seen())
    assert "DOES NOT SAY THIS" not in as_text(found)
    assert "\nTHE HOSTS FILE DOES NOT SAY THIS YET.\n" in as_text(dataclasses.replace(found, written=False))


def test_text_of_a_trampled_file() -> None:
    """The text says how often the block was restored, if it was."""
    assert "; hosts, put back 3 times\n" in as_text(dataclasses.replace(status(seen()), trampled=3))


def test_text_of_windows() -> None:
    """A window that is open is above the table; of those that are over the last three names are below it."""
    over = [dataclasses.replace(past_window(), name=name, took_s=took_s) for took_s, name in enumerate("abcad")]
    window = WindowStatus(name="wk1", node=str(node(A)), stage="room", since=None, left_s=9.5, waiting=3)
    found = dataclasses.replace(status(seen()), queue=QueueStatus(open=(window,), past=tuple(over)))
    parts = as_text(found).split("\n\n")
    assert parts[1] == f"wk1: {A}:5432 stops; 3 connections wait, for 9.5 s at most"
    assert re.findall(r"^last planned stop: (\w+): ", parts[-1], re.MULTILINE) == ["c", "a", "d"]
    assert "last planned stop: a: the stop of 10.0.0.1:5432 is over after 3.00 s" in parts[-1]
    assert as_text(found, details=True).count("last planned stop") == 4


def test_text_of_a_hostile_agent() -> None:
    """Nothing of an answer moves a terminal's cursor, breaks a line or changes the writing direction."""
    hostile = "\x1b[2J\x9b31m\nname\u2028\u202e\x07"
    sent = as_json(status(seen()))
    sent["version"] = sent["config"] = sent["hosts_file"] = hostile
    sent["names"][0] |= {"name": hostile, "reason": hostile, "since": hostile}
    sent["nodes"][0] |= {"name": hostile, "node": hostile, "detail": hostile}
    sent["alerts"] = [{"key": hostile, "text": hostile, "since": hostile}]
    found = from_json(Status, sent)
    for details in (False, True):
        lines = as_text(found, details=details, style=Style(width=80)).split("\n")
        assert all(line.isprintable() for line in lines)
        assert not any(line.startswith("name\\u2028") for line in lines)


@pytest.mark.parametrize(
    ("told", "line"),
    [
        pytest.param(citus_status(), None, id="no Citus"),
        pytest.param(
            citus_status(citus=True, age_s=12.3),
            "Citus: cached connections are flushed; last recovery 12 s ago",
            id="all is well",
        ),
        pytest.param(
            citus_status(citus=True, age_s=3.0, databases=[Recovered(database="app", withdrawn="wk1 is held")]),
            "Citus: cached connections are flushed; last recovery 3 s ago, cut short: wk1 is held",
            id="withdrawn",
        ),
        pytest.param(
            citus_status(citus=True, flushed=False, blocked_by="wk1 is held"),
            "Citus: cached connections are not flushed yet; no recovery: wk1 is held",
            id="nothing is",
        ),
        pytest.param(
            citus_status(citus=True), "Citus: cached connections are flushed; no recovery: not due yet", id="just begun"
        ),
    ],
)
def test_text_of_citus(told: CitusStatus, line: str | None) -> None:
    """With Citus, one line shows the state of flush and recovery."""
    lines = as_text(dataclasses.replace(status(seen()), **told)).splitlines()
    assert [found for found in lines if found.startswith("Citus:")] == ([line] if line else [])


def test_on_screen() -> None:
    """A text takes the place of the last one, and of a long one only what finds room is drawn."""
    drawn = on_screen("a\nb", rows=24)
    assert drawn.startswith("\x1b[H")
    assert re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", drawn) == "a\nb\n"
    long = re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", on_screen("\n".join("abcdefgh"), rows=5))
    assert long == "a\nb\nc\n… 5 more lines\n"


def test_without_a_local_server() -> None:
    """A host without PostgreSQL says so, and its JSON has no values for one."""
    agent = Agent(config(group("cn", A, B, route=Route.PRIMARY), has_local=False))
    found = status(agent.see({A: primary(), B: standby()}).decide())
    assert as_json(found)["local"] is None
    assert as_text(found).splitlines()[:2] == [
        "1 name: 1 primary; 2 nodes: 1 primary, 1 standby; no alerts",
        "no local PostgreSQL (local: off)",
    ]
    assert as_text(from_json(Status, as_json(found))) == as_text(found)
