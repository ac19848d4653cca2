"""The block on disk: written when needed, restored when others change it, with an alert for each fault."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from resolver_agent.hosts.atomic_file import HostsFileWriter, WriteError
from resolver_agent.hosts.managed_block import HostsBlock
from resolver_agent.routing.state import FENCE, TargetKind
from tests.unit.builders import remembered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from resolver_agent.hosts.atomic_file import Outcome
    from resolver_agent.routing.state import Target

A, B = "10.0.0.1", "10.0.0.2"
TO_A, TO_B = ((remembered(address, TargetKind.PRIMARY),) for address in (A, B))
OTHERS = "127.0.0.1\tlocalhost\n"


class Block:
    """A block and its file, with rounds at times that the test chooses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_text(OTHERS)
        self.block = HostsBlock(str(path))

    def put(self, targets: Sequence[Target], now: float = 0.0) -> bool:
        """Run one round's write."""
        return asyncio.run(self.block.put(targets, now))

    def leads(self) -> str | None:
        """Return the name's address on disk."""
        lines = (line.split() for line in self.path.read_text().splitlines())
        return next((fields[0] for fields in lines if fields[1:2] == ["wk1"]), None)

    def trample(self, address: str = "10.9.9.9") -> None:
        """Change the name's address on disk, as another program would."""
        self.path.write_text(self.path.read_text().replace(str(self.leads()), address))

    @property
    def alerts(self) -> dict[str, str]:
        """The current alerts, text by key."""
        return {alert.key: alert.text for alert in self.block.alerts}


@pytest.fixture
def block(tmp_path: Path) -> Block:
    """Return the block of a file that has none yet."""
    return Block(tmp_path / "hosts")


def test_what_is_there_already_is_not_written(block: Block) -> None:
    """The first round checks the file; the next rounds do not even read it."""
    assert block.put(TO_A)
    written = block.path.stat()
    again = HostsBlock(str(block.path))
    assert asyncio.run(again.put(TO_A, 0.0))
    assert block.path.stat().st_mtime_ns == written.st_mtime_ns
    assert (again.trampled, again.alerts, again.disturbed()) == (0, (), False)


def test_it_is_disturbed_until_it_was_written(block: Block) -> None:
    """The file must be checked before the first round, after a change by others, and when it is gone."""
    assert block.block.disturbed()
    block.put(TO_A)
    assert not block.block.disturbed()
    block.path.unlink()
    assert block.block.disturbed()


def test_it_says_what_was_put_once_that_is_done(block: Block) -> None:
    """The address on disk is unknown while it is being written, and a failed write is never reported as done."""
    assert not block.block.says(TO_A)
    assert block.put(TO_A)
    assert block.block.says(TO_A)

    async def put_b() -> None:
        putting = asyncio.create_task(block.block.put(TO_B, 1.0))
        await asyncio.sleep(0)
        while not putting.done():
            assert not block.block.says(TO_A)
            assert not block.block.says(TO_B)
            await asyncio.sleep(0)

    asyncio.run(put_b())
    assert block.block.says(TO_B)
    assert not block.block.says(TO_A)
    block.path.unlink()
    block.path.mkdir()
    assert not block.put(TO_B, 2.0)
    assert not block.block.says(TO_B)


def test_recall_returns_what_was_put_and_clears_up(block: Block) -> None:
    """A restart reads the targets and removes the temporary files of a killed writer, but no other files."""
    block.put(TO_A)
    left, other = (block.path.with_name(name) for name in ("hosts.resolver-agent.12.0123abcd", "hosts.bak"))
    left.touch()
    other.touch()
    assert asyncio.run(HostsBlock(str(block.path)).recall(["wk1"])) == TO_A
    assert (left.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize("left", ["", None], ids=["emptied", "moved away"])
def test_recall_waits_for_who_writes_the_file(block: Block, left: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that an editor has just emptied or moved away is no file without a block."""
    block.put(TO_A)
    whole = block.path.read_text()
    block.path.unlink()
    if left is not None:
        block.path.write_text(left)
    monkeypatch.setattr(time, "sleep", lambda _seconds: block.path.write_text(whole))
    assert asyncio.run(HostsBlock(str(block.path)).recall(["wk1"])) == TO_A


@pytest.mark.parametrize(("ago_s", "expected_s"), [(600.0, 600.0), (-600.0, 0.0)])
def test_recall_knows_how_old_the_file_is(block: Block, ago_s: float, expected_s: float) -> None:
    """By the wall clock; a file from the future has no age."""
    block.put(TO_A)
    at = time.time() - ago_s
    os.utime(block.path, (at, at))
    recalled = HostsBlock(str(block.path))
    asyncio.run(recalled.recall(["wk1"]))
    assert recalled.found_age_s == pytest.approx(expected_s, abs=30)


def test_recall_leaves_alone_what_merely_looks_like_a_temporary_file(block: Block) -> None:
    """A folder cannot be one, and does not keep the others from being removed; other names are not ours."""
    folder, left = (block.path.with_name(f"hosts.resolver-agent.{number}.0123abcd") for number in (11, 12))
    folder.mkdir()
    left.touch()
    others = [
        block.path.with_name(f"hosts.resolver-agent{end}") for end in (".x", ".12.0123abcde", ".12.0123ABCD", ".12", "")
    ]
    for other in others:
        other.touch()
    asyncio.run(block.block.recall(["wk1"]))
    assert not left.exists()
    assert all(path.exists() for path in (folder, *others))


def test_a_file_that_is_too_large_is_an_alert(block: Block) -> None:
    """It is not read into memory, and not changed."""
    with block.path.open("ab") as file:
        file.truncate((64 << 20) + 1)  # a hole: it takes no space
    assert not block.put(TO_A)
    assert block.alerts == {"file": f"{block.path} is larger than 64 MiB: shorten it; it stays as it is"}
    assert block.path.stat().st_size == (64 << 20) + 1


def test_a_write_that_hangs_holds_up_no_round(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds go on, with an alert and without a second write; what was decided meanwhile is written afterwards."""
    released, begun, update = threading.Event(), [], HostsFileWriter.update

    def hanging(writer: HostsFileWriter, transform: Callable[[bytes], bytes]) -> Outcome:
        begun.append(transform)
        if len(begun) == 1:
            released.wait(30)
        return update(writer, transform)

    async def rounds() -> None:
        for now in range(3):
            assert not await block.block.put(TO_A, now, within_s=0.01)
        assert not await block.block.put(TO_B, 3, within_s=0.01)
        assert "is still being written" in block.alerts["file"]
        assert (len(begun), block.block.says(TO_A), block.block.says(TO_B)) == (1, False, False)
        released.set()
        assert await block.block.put(TO_B, 4, within_s=30)

    monkeypatch.setattr(HostsFileWriter, "update", hanging)
    asyncio.run(rounds())
    assert (len(begun), block.leads(), block.alerts, block.block.trampled) == (2, B, {}, 0)


def test_a_hanging_write_that_fails_is_an_alert(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is taken by the round after it, and the write is tried again later (A11)."""
    released = threading.Event()

    def failing(_writer: HostsFileWriter, _transform: Callable[[bytes], bytes]) -> Outcome:
        released.wait(30)
        raise WriteError(str(block.path), "cannot be written")

    async def rounds() -> None:
        assert not await block.block.put(TO_A, 0, within_s=0.01)
        released.set()
        assert not await block.block.put(TO_A, 1, within_s=30)

    monkeypatch.setattr(HostsFileWriter, "update", failing)
    asyncio.run(rounds())
    assert block.alerts == {"file": f"{block.path} cannot be written; it stays as it is"}


def test_recall_refuses_damaged_markers(block: Block) -> None:
    """An agent that cannot read the block must not go on as if there were none."""
    block.path.write_text("# END resolver-agent\n")
    assert asyncio.run(block.block.recall(["wk1"])) is None
    assert "line 1" in block.alerts["file"]
    block.path.write_text(OTHERS)
    assert asyncio.run(block.block.recall(["wk1"])) == ()
    assert block.alerts == {}


def test_recall_keeps_a_name_whose_comment_is_lost(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    """Its address is held as one that may be a standby's, and the log says so."""
    block.put(TO_A)
    block.path.write_text(block.path.read_text().replace("\t# primary", ""))
    [found] = asyncio.run(HostsBlock(str(block.path)).recall(["wk1"])) or ()
    assert (found.name, found.address, found.kind) == ("wk1", A, TargetKind.STANDBY)
    assert f"wk1 → {A} (as found in the hosts file, without its comment: it may be a standby's address)" in caplog.text


def test_recall_refuses_what_it_cannot_read(block: Block) -> None:
    """A line that cannot be read is an alert until it is corrected (A10)."""
    block.path.write_text("# BEGIN resolver-agent\nwk1\n# END resolver-agent\n")
    assert asyncio.run(block.block.recall(["wk1"])) is None
    assert "line 2: «wk1» in resolver-agent's block cannot be read" in block.alerts["file"]


def test_a_change_by_others_is_put_back_and_counted(block: Block) -> None:
    """Lines that others added are kept."""
    block.put(TO_A)
    block.trample()
    block.path.write_text("# theirs\n" + block.path.read_text())
    assert block.put(TO_A, 1)
    assert block.leads() == A
    assert block.path.read_text().startswith("# theirs\n" + OTHERS)
    assert (block.block.trampled, block.alerts) == (1, {})


def test_a_file_that_is_gone_is_made_again(block: Block) -> None:
    """A deleted file counts as a change by others too."""
    block.put(TO_A)
    block.path.unlink()
    assert block.put(TO_A, 1)
    assert (block.leads(), block.block.trampled) == (A, 1)


def test_an_edit_outside_is_no_trampling(block: Block) -> None:
    """It is noticed once and then known."""
    block.put(TO_A)
    block.path.write_text(block.path.read_text() + "10.0.0.9 theirs\n")
    assert block.put(TO_A, 1)
    assert (block.block.trampled, block.block.disturbed()) == (0, False)


def test_repeated_trampling_backs_off_and_is_an_alert_until_it_is_quiet(block: Block) -> None:
    """Three changes are undone at once, the next ever later; a quiet minute ends the alert."""
    block.put(TO_A)
    now, waits = 0.0, []
    for _ in range(10):
        block.trample()
        begun = now
        while not block.put(TO_A, now):
            now += 0.1
        waits.append(round(now - begun, 1))
    assert waits[:4] == [0, 0, 0, 0]
    assert waits[4:] == sorted(waits[4:])
    assert waits[4] > 0
    assert waits[-1] > 5
    assert block.block.trampled == 10
    assert "somebody else keeps changing resolver-agent's lines" in block.alerts["file:trampled"]
    block.put(TO_A, now + 59)
    assert "file:trampled" in block.alerts
    block.put(TO_A, now + 61)
    assert block.alerts == {}


def test_backing_off_does_not_hold_up_a_decision(block: Block) -> None:
    """A new decision is written at once, even while others keep changing the file (R2)."""
    block.put(TO_A)
    for now in range(8):
        block.trample()
        block.put(TO_A, now * 100.0)
    block.trample()
    assert not block.put(TO_A, 700.1)
    assert block.put(TO_B, 700.2)
    assert block.leads() == B


def test_a11_failed_write_is_an_alert_and_tried_again_ever_later(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays as it is; a new decision is tried at once; success ends the alert and is no trampling."""
    tries, update = 0, HostsFileWriter.update

    def counted(writer: HostsFileWriter, transform: Callable[[bytes], bytes]) -> Outcome:
        nonlocal tries
        tries += 1
        return update(writer, transform)

    block.put(TO_A)
    whole = block.path.read_text()
    damaged = whole.replace("# END resolver-agent\n", "")
    block.path.write_text(damaged)
    monkeypatch.setattr(HostsFileWriter, "update", counted)
    now = 0.0
    for _ in range(600):
        assert not block.put(TO_B, now)
        now += 0.1
    assert 50 <= tries <= 64
    assert block.alerts == {
        "file": f"{block.path}: line 2: '# BEGIN resolver-agent' has no '# END resolver-agent' below it: put that "
        "back, or delete this line; it stays as it is"
    }
    assert block.path.read_text() == damaged
    block.path.write_text(whole)
    assert block.put(TO_A, now)
    assert (block.alerts, block.block.trampled, block.leads()) == ({}, 0, A)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC])
def test_a11_a_failed_write_is_tried_again_within_a_second(
    code: int, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is short may be back in a moment, and until then a name may be wrong."""
    tries: list[float] = []
    now = 0.0

    def failing(_writer: HostsFileWriter, _transform: Callable[[bytes], bytes]) -> Outcome:
        tries.append(now)
        raise WriteError(str(block.path), "cannot be written", OSError(code, "it is short"))

    monkeypatch.setattr(HostsFileWriter, "update", failing)
    while now < 200:
        block.put(TO_A, now)
        now += 0.25
    assert tries[-1] - tries[-2] == 1.0


def test_a_file_that_cannot_be_read_is_an_alert(block: Block) -> None:
    """A folder in place of the file is an alert, and the names are written once there is a file again."""
    block.put(TO_A)
    block.path.unlink()
    block.path.mkdir()
    assert not block.put(TO_A, 0)
    assert block.alerts == {"file": f"{block.path} is no regular file; it stays as it is"}
    block.path.rmdir()
    assert block.put(TO_A, 10)
    assert (block.alerts, block.leads()) == ({}, A)


def test_lines_of_others_that_carry_a_managed_name(block: Block) -> None:
    """Each line is an alert with its current number, until it is gone; a moved line is the same alert."""
    block.path.write_text("10.0.0.5 x wk1\n")
    block.put(TO_A)
    [(key, text)] = block.alerts.items()
    assert "line 1 also names wk1, and lookups return both addresses: remove that name from «10.0.0.5 x wk1»" in text
    block.path.write_text("\n" + block.path.read_text())
    block.put(TO_A, 1)
    assert list(block.alerts) == [key]
    assert "line 2 also" in block.alerts[key]
    block.path.write_text(block.path.read_text().replace("10.0.0.5", "# 10.0.0.5"))
    block.put(TO_A, 2)
    assert block.alerts == {}


def test_no_names_make_no_block(block: Block) -> None:
    """An agent that knows nothing yet leaves the file as it is."""
    assert block.put(())
    assert block.path.read_text() == OTHERS


def test_a_fence_is_written_like_any_address(block: Block) -> None:
    """A fenced name is on disk with the fence's address."""
    block.put((remembered(FENCE, TargetKind.FENCED, last=A, lost=True),))
    assert block.leads() == FENCE
