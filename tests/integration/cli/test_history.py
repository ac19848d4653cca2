"""``resolver-agent history``: reads the file, with or without a running agent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from resolver_agent.changes import history_file
from resolver_agent.changes.change import Change
from tests.integration.support.command_line import AS_NOBODY, by_the_standard_library_alone, run

if TYPE_CHECKING:
    from pathlib import Path

A, B = "10.0.0.1", "10.0.0.2"


def change(second: int, name: str, *, old: str | None = A, new: str | None = B) -> Change:
    """Return a change."""
    return Change(
        time=f"2026-11-28T12:00:{second:02d}.000+00:00",
        name=name,
        old=old,
        new=new,
        code="primary",
        reason="primary, timeline 8",
        wanted_role="primary",
        written_ms=12,
        flushed_ms=40,
    )


CHANGES = [change(1, "wk1"), change(2, "wk2"), change(3, "wk1", old=B, new=A)]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A configuration whose state folder has a history."""
    history_file.write(history_file.path_of(str(tmp_path / "state")), CHANGES)
    path = tmp_path / "agent.yml"
    path.write_text(f"fallback: none\nnames: {{wk1: {{nodes: [{A}]}}}}\nstate_dir: {tmp_path}/state\n")
    return path


def seconds(shown: str) -> list[str]:
    """Return the seconds of the times that lines begin with."""
    return [line[17:19] for line in shown.splitlines()]


def test_text(recorded: Path) -> None:
    """A line for each change, the newest last."""
    ran = run("history", "-c", recorded)
    assert (ran.returncode, ran.stderr) == (0, "")
    delay = "on disk after 12 ms, flushed after 40 ms"
    assert ran.stdout.splitlines() == [
        f"2026-11-28T12:00:01.000+00:00  wk1  10.0.0.1  →  10.0.0.2  primary, timeline 8; {delay}",
        f"2026-11-28T12:00:02.000+00:00  wk2  10.0.0.1  →  10.0.0.2  primary, timeline 8; {delay}",
        f"2026-11-28T12:00:03.000+00:00  wk1  10.0.0.2  →  10.0.0.1  primary, timeline 8; {delay}",
    ]


def test_json(recorded: Path) -> None:
    """The same as data."""
    ran = run("history", "--json", "-c", recorded)
    assert ran.returncode == 0
    assert json.loads(ran.stdout) == [one.as_json() for one in CHANGES]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-n", "2"], ["02", "03"]),
        (["-n", "99"], ["01", "02", "03"]),
        (["WK1"], ["01", "03"]),
        (["wk1", "wk2"], ["01", "02", "03"]),
        (["-n", "1", "wk2"], ["02"]),
        (["wk9"], []),
    ],
)
def test_a_part(arguments: list[str], expected: list[str], recorded: Path) -> None:
    """The last ones, and those of some names, in whatever case."""
    ran = run("history", *arguments, "-c", recorded)
    assert ran.returncode == 0
    assert seconds(ran.stdout) == expected


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "٣", ""])
def test_no_number(number: str, recorded: Path) -> None:
    """A wrong number is refused."""
    ran = run("history", f"-n{number}", "-c", recorded)
    assert ran.returncode == 2
    assert "argument -n: " in ran.stderr


def test_nothing_yet(tmp_path: Path, recorded: Path) -> None:
    """A history that is empty or missing is no fault."""
    (tmp_path / "state" / "history.jsonl").unlink()
    ran = run("history", "-c", recorded)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == f"no change is recorded in {tmp_path}/state/history.jsonl\n"
    assert run("history", "--json", "-c", recorded).stdout == "[]\n"


def test_a_faulty_configuration(recorded: Path) -> None:
    """The folder that it names is found all the same: this is when somebody looks."""
    recorded.write_text(recorded.read_text() + "intervall: 1s\n")
    assert seconds(run("history", "-c", recorded).stdout) == ["01", "02", "03"]


def test_what_cannot_be_read(tmp_path: Path, recorded: Path) -> None:
    """A file that is none, and a configuration that is missing, are trouble."""
    (tmp_path / "state" / "history.jsonl").unlink()
    (tmp_path / "state" / "history.jsonl").mkdir()
    ran = run("history", "-c", recorded)
    assert ran.returncode == 2
    assert ran.stderr == f"resolver-agent: {tmp_path}/state/history.jsonl is no regular file of its own: delete it\n"
    ran = run("history", "-c", tmp_path / "none.yml")
    assert ran.returncode == 2
    assert "none.yml" in ran.stderr


def test_the_standard_library_alone(recorded: Path) -> None:
    """Without a configuration that names another folder, the default one is read, and no package is loaded."""
    told, imported = by_the_standard_library_alone(
        "history",
        prepare=f"""
            mount -t tmpfs tmpfs /etc && mount -t tmpfs tmpfs /var/lib
            mkdir /var/lib/resolver-agent && cp {recorded.parent}/state/* /var/lib/resolver-agent
        """,
    )
    assert seconds(told) == ["01", "02", "03"]
    assert imported.isdisjoint({"asyncio", "logging"})


def test_another_user(public: Path) -> None:
    """Whoever may read the folder may see the history."""
    history_file.write(history_file.path_of(str(public.with_name("state"))), CHANGES)
    ran = run("history", "-c", public, program=AS_NOBODY)
    assert ran.returncode == 0, ran.stderr
    assert seconds(ran.stdout) == ["01", "02", "03"]
