"""The history of changes: it outlives a restart, is bounded, and a disk that fails harms nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import os
from typing import TYPE_CHECKING

import pytest

from resolver_agent.changes import history as history_module
from resolver_agent.changes import history_file
from resolver_agent.changes.change import Change, to_line
from resolver_agent.changes.history import History
from resolver_agent.changes.history_file import KEPT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

A, B = "10.0.0.1", "10.0.0.2"
NOON = dt.datetime(2026, 11, 28, 12, tzinfo=dt.timezone.utc)


def change(number: int, name: str = "wk1", *, new: str | None = B, flushed_ms: int | None = None) -> Change:
    """Return a change that was made so many seconds after noon."""
    return Change(
        time=(NOON + dt.timedelta(seconds=number)).isoformat(timespec="milliseconds"),
        name=name,
        old=A,
        new=new,
        code="primary",
        reason="why",
        wanted_role="primary",
        written_ms=1,
        flushed_ms=flushed_ms,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a history that does not exist yet."""
    return tmp_path / "state" / "history.jsonl"


@contextlib.asynccontextmanager
async def kept(path: Path) -> AsyncIterator[History]:
    """Keep a history, and save it in the end."""
    history = History(str(path))
    history.start()
    yield history
    await history.close(within_s=10)


def save(path: Path, *changes: Change) -> None:
    """Keep a history for as long as it takes to save some changes."""

    async def main() -> None:
        async with kept(path) as history:
            for one in changes:
                history.put(one)

    asyncio.run(main())


def saved(path: Path) -> list[Change]:
    """Return what is in the file."""
    return history_file.read(str(path))[0]


def lines(path: Path) -> int:
    """Return the number of lines in the file."""
    return path.read_bytes().count(b"\n")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells of."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def test_changes_outlive_a_restart(path: Path) -> None:
    """Those of earlier runs come first, and the file is made at the first start."""
    save(path)
    assert path.read_bytes() == b""
    save(path, change(1), change(2, "wk2"))
    save(path, change(3))
    assert saved(path) == [change(1), change(2, "wk2"), change(3)]
    assert len(path.read_bytes().splitlines()) == 3


def test_a_change_that_says_more_takes_the_place_of_the_first(path: Path) -> None:
    """The flush is told later, and is part of the same change; also of one that is not the last."""
    save(path, change(1), change(2), change(1, flushed_ms=40))
    assert saved(path) == [change(1, flushed_ms=40), change(2)]


def test_the_file_is_bounded(path: Path) -> None:
    """The last 1,000 changes are kept, in twice as many lines at most."""
    history = [change(number) for number in range(KEPT)]
    save(path, *history)
    for round_ in range(1, 4):
        save(path, *(change(KEPT + number, "wk2", flushed_ms=round_) for number in range(KEPT // 2)))
        assert len(path.read_bytes().splitlines()) <= 2 * KEPT
    assert saved(path) == [
        *history[KEPT // 2 :],
        *(change(KEPT + number, "wk2", flushed_ms=3) for number in range(KEPT // 2)),
    ]


def test_a_file_is_shown_to_its_bound(path: Path) -> None:
    """Between two times that it is written anew it has more lines, and no more changes."""
    history_file.write(str(path), [change(number) for number in range(KEPT + 7)])
    assert saved(path) == [change(number) for number in range(7, KEPT + 7)]


def test_a_line_that_was_cut_off(path: Path) -> None:
    """It costs no other: not those before, nor the next one."""
    path.parent.mkdir()
    path.write_bytes(to_line(change(1)) + b"rubbish\n" + to_line(change(2))[:-9])
    assert saved(path) == [change(1)]
    save(path, change(3))
    assert saved(path) == [change(1), change(3)]
    assert path.read_bytes() == to_line(change(1)) + to_line(change(3))


def test_since(path: Path) -> None:
    """The time of the last change counts, also from before the restart, if it led where the name leads now."""
    save(path, change(1), change(2, new=A), change(3, "wk2", new=None), change(1, flushed_ms=40))

    async def main() -> None:
        async with kept(path) as history:
            assert history.since("wk1", A) is None  # it is not read yet
            history.put(change(4, "wk3"))
            await until(lambda: history.since("wk1", A) is not None)
            expected = (NOON + dt.timedelta(seconds=2)).astimezone().isoformat(timespec="seconds")
            assert history.since("wk1", A) == expected
            assert history.since("wk1", B) is None
            assert history.since("wk2", B) is None
            assert history.since("wk9", B) is None
            assert history.since("wk3", B) is not None

    asyncio.run(main())


def test_since_is_that_of_the_last_change(path: Path) -> None:
    """A flush that is told later makes an earlier change no later one."""

    async def main() -> None:
        async with kept(path) as history:
            for one in (change(1), change(2, new=A), change(1, flushed_ms=40)):
                history.put(one)
            assert history.since("wk1", A) is not None
            assert history.since("wk1", B) is None

    asyncio.run(main())


def test_a_folder_that_cannot_be_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one alert, at the start already; changes are kept in memory, and saved once the folder can be used."""
    monkeypatch.setattr(history_module, "_FIRST_RETRY_S", 0.01)
    path.parent.touch()

    async def main() -> None:
        async with kept(path) as history:
            await until(lambda: history.alert is not None)
            assert history.alert is not None
            assert history.alert.key == "history:state"
            assert history.alert.text == (
                f"{path}: Not a directory; make it usable for this user, or name another state_dir; "
                "the history of changes is kept in memory alone"
            )
            history.put(change(1))
            assert history.since("wk1", B) is not None
            path.parent.unlink()
            await until(lambda: history.alert is None)

    asyncio.run(main())
    assert saved(path) == [change(1)]


def test_a_file_that_is_too_large_is_left_alone(path: Path) -> None:
    """It is not read to the end, and an end of the agent does not wait for it."""
    path.parent.mkdir()
    path.touch()
    os.truncate(path, 1 << 40)

    async def main() -> None:
        async with kept(path) as history:
            await until(lambda: history.alert is not None)
            history.put(change(1))

    asyncio.run(main())
    assert path.stat().st_size == 1 << 40


def test_a_disk_that_does_not_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an alert; the changes meanwhile are bounded, and saved once it answers."""
    monkeypatch.setattr(history_module, "_HUNG_S", 0.01)
    save(path, change(0))
    path.with_name("elsewhere").write_bytes(path.read_bytes())
    answer = asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        real = history_file.append

        def hang(where: str, changes: list[Change]) -> None:
            asyncio.run_coroutine_threadsafe(answer.wait(), loop).result(10)
            real(where, changes)

        monkeypatch.setattr(history_file, "append", hang)
        async with kept(path) as history:
            await until(lambda: history.alert is not None)
            assert history.alert is not None
            assert "history.jsonl: the disk does not answer; the history" in history.alert.text
            for number in range(3 * KEPT):
                history.put(change(number, "wk2"))
            assert len(history._unsaved) <= KEPT
            monkeypatch.setattr(history_module, "_HUNG_S", 10.0)
            answer.set()
            await until(lambda: history.alert is None)
            await until(lambda: lines(path) == KEPT)
            history.put(change(3 * KEPT, "wk2"))
        assert lines(path) == KEPT + 1  # it is written anew once

    asyncio.run(main())
    assert saved(path) == [change(number, "wk2") for number in range(2 * KEPT + 1, 3 * KEPT + 1)]


def test_a_defect_is_an_alert(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An error of another kind does not end the task; it has one traceback in the log."""
    monkeypatch.setattr(history_module, "_FIRST_RETRY_S", 0.01)
    broken = [True]
    real = history_file.read

    def read(where: str) -> tuple[list[Change], int, bool]:
        if broken:
            raise RuntimeError("never \x1b seen")
        return real(where)

    monkeypatch.setattr(history_file, "read", read)

    async def main() -> None:
        async with kept(path) as history:
            history.put(change(1))
            await until(lambda: history.alert is not None)
            assert history.alert is not None
            assert history.alert.text.startswith("RuntimeError('never \\x1b seen'); ")
            broken.clear()
            await until(lambda: history.alert is None)

    asyncio.run(main())
    assert saved(path) == [change(1)]
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_the_delay_of_the_flush_is_saved_too(path: Path) -> None:
    """A change that is replaced before it was saved is saved once with all that is known."""
    save(path, change(1), dataclasses.replace(change(1), flushed_ms=7))
    assert saved(path) == [change(1, flushed_ms=7)]
