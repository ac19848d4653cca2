"""Which changes of names are told: those in the hosts file, once each, with how long they took."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from typing import TYPE_CHECKING

import pytest

from resolver_agent.changes import history_file
from resolver_agent.changes.changes import Changes
from resolver_agent.config.model import OnChange
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import FENCE, Code, Reason, Target, TargetKind
from tests.unit.builders import config, group

if TYPE_CHECKING:
    from pathlib import Path

    from resolver_agent.changes.change import Change

A, B = "10.0.0.1", "10.0.0.2"


def target(address: str, name: str = "wk1", *, code: Code = Code.PRIMARY) -> Target:
    """Return a target of a name that wants its primary."""
    return Target(
        name=name, address=address, kind=TargetKind.PRIMARY, wanted_role=Role.PRIMARY, reason=Reason(code, "why")
    )


class Setup:
    """What an agent tells in its rounds, and what of it is in its history."""

    def __init__(self, folder: Path, *block: Target) -> None:
        self.config = dataclasses.replace(config(group("wk1", A, B)), state_dir=str(folder))
        self.runs = folder / "runs"
        self.changes = Changes(self.config)
        self.changes.resume(block)
        self._path = history_file.path_of(str(folder))

    def round(
        self,
        *targets: Target,
        seen_at: float = 1.0,
        now: float = 1.0,
        written: bool = True,
        flushed: bool = True,
        citus: bool | None = True,
    ) -> Setup:
        """Run one round."""
        self.changes.track(targets, seen_at=seen_at, now=now, written=written, flushed=flushed, citus=citus)
        return self

    @property
    def told(self) -> list[Change]:
        """The history, once it is saved."""

        async def save() -> None:
            self.changes.start()
            await self.changes.close()

        asyncio.run(save())
        return history_file.read(self._path)[0]

    @property
    def moves(self) -> list[tuple[str, str | None, str | None]]:
        """The names of the history, with their old and new addresses."""
        return [(one.name, one.old, one.new) for one in self.told]


def test_a_name_that_moves(tmp_path: Path) -> None:
    """A change is told once, and says where the name came from, since when, and why."""
    setup = Setup(tmp_path, target(A)).round(target(A)).round(target(B)).round(target(B))
    [change] = setup.told
    assert (change.old, change.new, change.code, change.reason, change.wanted_role) == (
        A,
        B,
        "primary",
        "why",
        "primary",
    )
    assert setup.changes.since("wk1", B) is not None
    assert setup.changes.since("wk1", A) is None


def test_the_block_found_at_the_start_is_no_change(tmp_path: Path) -> None:
    """A restart moves no name. A name that has moved meanwhile is a change."""
    assert Setup(tmp_path, target(A), target(A, "wk2")).round(target(A), target(B, "wk2")).moves == [("wk2", A, B)]


def test_names_that_come_and_go(tmp_path: Path) -> None:
    """They have no old address, or no new one."""
    setup = Setup(tmp_path).round(target(A), target(A, "wk2")).round(target(A, "wk2"))
    assert setup.moves == [("wk1", None, A), ("wk2", None, A), ("wk1", A, None)]


def test_another_reason_is_no_change(tmp_path: Path) -> None:
    """A name that is held stays where it is; a fence is an address."""
    setup = Setup(tmp_path, target(A)).round(target(A, code=Code.HELD)).round(target(FENCE, code=Code.FENCED))
    assert setup.moves == [("wk1", A, FENCE)]


def test_a_change_is_told_when_it_is_in_the_file(tmp_path: Path) -> None:
    """The delay counts from the evidence on, however long the file could not be written."""
    setup = Setup(tmp_path, target(A)).round(target(B), seen_at=5.0, now=5.1, written=False)
    setup.round(target(B), seen_at=7.0, now=7.1, written=False).round(target(B), seen_at=9.0, now=9.25)
    [change] = setup.told
    assert change.written_ms == 4250


def test_what_was_never_written_is_not_told(tmp_path: Path) -> None:
    """A name that comes back before the file could be written has not moved; its next move has its own delay."""
    setup = Setup(tmp_path, target(A)).round(target(B), seen_at=5.0, written=False)
    setup.round(target(A), seen_at=6.0).round(target(B), seen_at=7.0, now=7.125)
    [change] = setup.told
    assert change.written_ms == 125


def test_the_flush(tmp_path: Path) -> None:
    """Its delay counts from the evidence on, and is told once it has succeeded."""
    setup = Setup(tmp_path, target(A)).round(target(B), seen_at=5.0, now=5.1, flushed=False)
    setup.round(target(B), seen_at=6.0, now=6.0, flushed=False)
    setup.round(target(B), seen_at=7.0, now=7.5).round(target(B), seen_at=8.0, now=8.0)
    [change] = setup.told
    assert (change.written_ms, change.flushed_ms) == (100, 2500)


def test_without_citus_nothing_is_flushed(tmp_path: Path) -> None:
    """There is no delay then, and none is made up."""
    [change] = Setup(tmp_path, target(A)).round(target(B), citus=False).told
    assert change.flushed_ms is None


def test_a_round_whose_file_is_not_written_flushes_nothing(tmp_path: Path) -> None:
    """What was flushed is what the file said before."""
    setup = Setup(tmp_path, target(A)).round(target(B), now=1.1, flushed=False).round(target(A), now=2.0, written=False)
    [change] = setup.told
    assert change.flushed_ms is None


def test_what_is_counted(tmp_path: Path) -> None:
    """A change counts when it is in the file, and is timed from its evidence until then, and until it is flushed."""
    setup = Setup(tmp_path, target(A), target(A, "wk2"))
    changes = setup.changes
    setup.round(target(B), seen_at=5.0, now=5.25, written=False)
    assert (changes.count, changes.written_s.snapshot().counts[-1]) == ({}, 0)
    setup.round(target(B), seen_at=6.0, now=6.0, flushed=False).round(target(B, code=Code.HELD), flushed=False)
    setup.round(target(B), seen_at=9.0, now=9.0).round(target(B), now=10.0)
    assert changes.count == {"wk1": 1}, "a name that is gone got no address"
    assert (changes.written_s.snapshot().counts[-1], changes.written_s.snapshot().total) == (2, 2.0)
    assert (changes.flushed_s.snapshot().counts[-1], changes.flushed_s.snapshot().total) == (2, 8.0)


def test_a_second_change_before_the_first_is_flushed(tmp_path: Path) -> None:
    """Connections to the first address may last until then: both are timed."""
    setup = Setup(tmp_path, target(A)).round(target(B), seen_at=1.0, now=1.0, flushed=False)
    found = setup.round(target(A), seen_at=2.0, now=3.0).changes
    assert (found.count, found.written_s.snapshot().total) == ({"wk1": 2}, 1.0)
    assert (found.flushed_s.snapshot().counts[-1], found.flushed_s.snapshot().total) == (2, 3.0)


def test_what_is_not_flushed_without_citus(tmp_path: Path) -> None:
    """Without Citus no flush is timed, and what waited for one is forgotten."""
    setup = Setup(tmp_path, target(A)).round(target(B), citus=False).round(target(B), now=2.0)
    assert setup.changes.flushed_s.snapshot().counts[-1] == 0


def run(setup: Setup) -> list[str]:
    """Return the names and delays that the command was told, once it was run."""

    async def main() -> None:
        setup.changes.start()
        for _ in range(1000):
            if setup.runs.exists():
                break
            await asyncio.sleep(0.01)
        await setup.changes.close()

    asyncio.run(main())
    return setup.runs.read_text().splitlines()


def configured(folder: Path) -> Setup:
    """Return a setup with a command, which writes down what it is told."""
    setup = Setup(folder, target(A))
    script = 'echo "$RESOLVER_AGENT_NAME $RESOLVER_AGENT_TO $RESOLVER_AGENT_FLUSHED_MS" >"$0.new" && mv "$0.new" "$0"'
    on_change = OnChange(command=("/bin/sh", "-c", script, str(setup.runs)), timeout_s=10.0)
    setup.changes.configure(dataclasses.replace(setup.config, on_change=on_change))
    return setup


def test_the_command_is_run_after_the_flush(tmp_path: Path) -> None:
    """It is told how long that took."""
    setup = configured(tmp_path).round(target(B), now=1.1, flushed=False).round(target(B), now=1.5)
    assert run(setup) == [f"wk1 {B} 500"]


def test_the_command_does_not_wait_for_ever(tmp_path: Path) -> None:
    """On a server that is down nothing is flushed: after 10 s the command is run without that."""
    setup = configured(tmp_path).round(target(B), now=1.0, flushed=False).round(target(B), now=10.9, flushed=False)
    assert not setup.changes._command._waiting
    setup.round(target(B), now=11.1, flushed=False).round(target(B), now=11.2)
    assert run(setup) == [f"wk1 {B} "]


def test_very_many_changes_before_a_flush(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More than may wait for the flush go to the command before it: it is the command that says which are not told."""
    setup = configured(tmp_path)
    setup.round(*(target(B, f"wk{number}") for number in range(2100)), flushed=False)
    assert len(setup.changes._untold) == len(setup.changes._command._waiting) == 1000
    assert setup.changes._command._dropped == 100
    assert len(caplog.records) == 1


def test_the_command_is_run_once_for_a_change(tmp_path: Path) -> None:
    """A flush after it was run changes the history alone."""
    setup = configured(tmp_path).round(target(B), now=1.0, flushed=False).round(target(B), now=11.5, flushed=False)
    setup.round(target(B), now=12.0)
    assert run(setup) == [f"wk1 {B} "]
    assert [one.flushed_ms for one in history_file.read(history_file.path_of(str(tmp_path)))[0]] == [11000]


def test_the_end_of_the_agent(tmp_path: Path) -> None:
    """It does not wait for the command."""
    setup, pid = Setup(tmp_path), tmp_path / "pid"
    on_change = OnChange(
        command=("/bin/sh", "-c", 'echo $$ >"$0.new"; mv "$0.new" "$0"; sleep 1000', str(pid)), timeout_s=60
    )
    setup.changes.configure(dataclasses.replace(setup.config, on_change=on_change))
    setup.runs = pid
    [running] = run(setup.round(target(A)))
    with pytest.raises(ProcessLookupError):
        os.kill(int(running), 0)


def test_a_defect_does_not_end_the_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, and the change is told and counted once."""
    setup = Setup(tmp_path, target(A))
    bad = dataclasses.replace(target(B), reason=None)  # type: ignore[arg-type]
    setup.round(bad).round(bad).round(target(B))
    assert setup.changes.count == {"wk1": 1}
    assert [record.getMessage() for record in caplog.records] == ["a change of a name is not told"]
    assert setup.moves == [("wk1", A, B)]
