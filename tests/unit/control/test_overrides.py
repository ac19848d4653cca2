"""Pins and a pause over a restart, and a file that others may have written."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import threading
import time
from pathlib import Path

import pytest

from resolver_agent.control import overrides
from resolver_agent.control.overrides import Kept, Overrides, path_of, read
from resolver_agent.control.report import PauseStatus, PinStatus
from resolver_agent.routing.observation import Role
from resolver_agent.system import state_file
from resolver_agent.system.clock import boottime
from resolver_agent.system.state_file import StateError
from tests.unit.patroni.builders import in_loop


def moment(in_s: float) -> str:
    """Return a moment by the wall clock, as in RFC 3339."""
    return (dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=in_s)).isoformat()


def pin(name: str = "wk1", *, in_s: float = 600.0, address: str = "10.0.1.2", reason: str = "") -> PinStatus:
    """Return a pin that ends in so many seconds."""
    return PinStatus(name=name, address=address, wanted_role="standby", until=moment(in_s), reason=reason)


def pause(*, in_s: float = 600.0) -> PauseStatus:
    """Return a pause that ends in so many seconds."""
    return PauseStatus(until=moment(in_s), reason="new switches")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The file in a folder that is not there yet."""
    return path_of(str(tmp_path / "state"))


def made(path: str) -> Overrides:
    """Return what an agent has of a file before it has read it."""
    return Overrides(path, changed=asyncio.Event())


def put(path: str, content: bytes) -> None:
    """Write the file as anybody might."""
    Path(path).parent.mkdir(mode=0o755, exist_ok=True)
    Path(path).write_bytes(content)


def content(path: str) -> bytes | None:
    """Return what is in the file, None where there is none."""
    return Path(path).read_bytes() if Path(path).exists() else None


@in_loop
async def test_they_outlive_a_restart(path: str) -> None:
    """The next run has the same pins and pause, with the rest of their time; what was ended is gone."""
    one = made(path)
    assert await one.pin(pin(reason="rebuild"))
    assert await one.pin(pin("wk2"))
    assert await one.set_pause(pause())
    assert await one.unpin("wk2")
    assert not await one.unpin("wk2")
    await one.close()
    other = made(path)
    await other.load()
    assert (other.kept, other.alerts) == (one.kept, ())
    assert set(other.pins) == {"wk1"}
    found = other.pins["wk1"]
    assert (found.address, found.wanted_role) == ("10.0.1.2", Role.STANDBY)
    assert found.told == f"until {other.kept.pins[0].until} (rebuild)"
    assert found.until == pytest.approx(boottime() + 600, abs=10)
    assert other.pause is not None
    assert await other.resume()
    assert not await other.resume()
    await other.close()
    assert read(path).pause is None


@in_loop
async def test_one_that_comes_while_another_is_saved(path: str) -> None:
    """Both are in the file when both are answered."""
    one = made(path)
    first = asyncio.create_task(one.pin(pin("wk1")))
    for _ in range(2):  # the first turn begins to save, and in the second one a thread does
        await asyncio.sleep(0)
    assert await one.pin(pin("wk2"))
    assert await first
    assert {each.name for each in read(path).pins} == {"wk1", "wk2"}
    await one.close()


@in_loop
async def test_nothing_is_written_where_nothing_was_decided(path: str) -> None:
    """An agent that nobody has told anything leaves no file, and misses none."""
    one = made(path)
    await one.load()
    one.tick()
    await one.resume()
    await one.close()
    assert (one.pins, one.pause, one.alerts, content(path)) == ({}, None, (), None)


@in_loop
async def test_what_is_over_ends_by_itself(path: str) -> None:
    """In a run as after a restart; the others stay."""
    one = made(path)
    await one.pin(pin("wk1", in_s=-1))
    await one.pin(pin("wk2"))
    await one.set_pause(pause(in_s=-1))
    one.tick()
    assert (set(one.pins), one.pause, one.kept.pause) == ({"wk2"}, None, None)
    await one.close()
    assert [each.name for each in read(path).pins] == ["wk2"]
    put(path, json.dumps({"pins": [], "pause": {"until": moment(-3600), "reason": ""}}).encode())
    other = made(path)
    await other.load()
    assert other.pause is None
    await other.close()


@in_loop
async def test_nothing_lasts_longer_than_it_may(path: str) -> None:
    """A file that says so is wrong, or the clock was."""
    one = made(path)
    await one.pin(pin(in_s=1e9))
    assert one.pins["wk1"].until == pytest.approx(boottime() + overrides.LONGEST_S, abs=10)
    await one.close()


GOOD = {
    "name": "wk1",
    "address": "10.0.1.2",
    "wanted_role": "primary",
    "until": "2100-01-01T00:00:00+00:00",
    "reason": "",
}
HOSTILE = {
    "no JSON": "{",
    "nothing of ours": "[]",
    "NaN": '{"pins": NaN, "pause": null}',
    "nested": "[" * 100_000,
    "bytes": "\udcff",
    "no list of pins": json.dumps({"pins": {}, "pause": None}),
    "no text for an address": json.dumps({"pins": [GOOD | {"address": 1}]}),
    "the fence": json.dumps({"pins": [GOOD | {"address": "255.255.255.255"}]}),
    "a name for an address": json.dumps({"pins": [GOOD | {"address": "wk1"}]}),
    "no role": json.dumps({"pins": [GOOD | {"wanted_role": "king"}]}),
    "no time": json.dumps({"pins": [GOOD | {"until": "soon"}]}),
    "no zone": json.dumps({"pins": [GOOD | {"until": "2100-01-01T00:00:00"}]}),
    "no reason": json.dumps({"pins": [{key: GOOD[key] for key in GOOD if key != "reason"}]}),
    "a pause without an end": json.dumps({"pins": [], "pause": {"reason": ""}}),
    "too many": json.dumps({"pins": [GOOD | {"name": f"wk{number}"} for number in range(overrides.PINS_MAX + 1)]}),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_none_of_ours(hostile: str, path: str) -> None:
    """There are no pins and no pause, one alert says why, and the file stays until something is decided."""
    written = hostile.encode("utf-8", "surrogateescape")

    @in_loop
    async def check() -> None:
        put(path, written)
        one = made(path)
        await one.load()
        assert (one.pins, one.pause, one.kept) == ({}, None, Kept())
        [alert] = one.alerts
        assert alert.key == "overrides:state"
        assert alert.text.startswith(f"{path} cannot be read: ")
        assert alert.text.endswith("; delete it; no name is pinned or paused")
        one.tick()
        assert content(path) == written
        assert await one.pin(pin())
        assert (one.alerts, read(path)) == ((), one.kept)
        await one.close()

    check()


def test_a_hostile_text_is_plain(path: str) -> None:
    """What a terminal or the log shows of it has no control character, and is short."""
    put(path, json.dumps({"pins": [GOOD | {"reason": "\x1b[2J\n" + "x" * 5000}]}).encode())
    pins, _ = overrides.to_boottime(read(path))
    assert pins["wk1"].told.isprintable()
    assert len(pins["wk1"].told) < 2 * overrides.REASON_MAX


@in_loop
async def test_a_folder_that_cannot_be_used(path: str) -> None:
    """They hold all the same, whoever asked is told, an alert says so, and it is saved as soon as it can be."""
    Path(path).parent.touch()
    one = made(path)
    await one.load()
    assert not await one.pin(pin())
    assert set(one.pins) == {"wk1"}
    [alert] = one.alerts
    assert alert.text.endswith("; a restart loses pins and a pause, or brings back old ones")
    Path(path).parent.unlink()
    before = one._saving
    one.tick()
    assert one._saving is before  # it is not tried in every round
    one._retry_at = 0.0
    one.tick()
    await one.close()
    assert not one.alerts
    assert read(path) == one.kept


@in_loop
async def test_a_disk_that_hangs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the start nor an answer waits for it for long, and that it hangs is an alert until it is over."""
    hung = threading.Event()
    monkeypatch.setattr(overrides, "_FILE_S", 0.05)
    monkeypatch.setattr(overrides, "read", lambda _path: hung.wait(30))
    monkeypatch.setattr(state_file, "write", lambda _path, _content: hung.wait(30))
    one = made(path)
    await one.load()
    [alert] = one.alerts
    assert alert.text == f"{path} cannot be read within 0.05 s: no name is pinned or paused"
    assert not await one.pin(pin())
    assert set(one.pins) == {"wk1"}
    await one.close()
    hung.set()


@in_loop
async def test_a_save_that_hangs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decides is told, and it is an alert until it is over, also where nobody has asked for it."""
    hung, true_write = threading.Event(), state_file.write

    def write(path: str, content: bytes) -> None:
        assert hung.wait(10)
        true_write(path, content)

    monkeypatch.setattr(overrides, "_FILE_S", 0.05)
    monkeypatch.setattr(state_file, "write", write)
    one = made(path)
    await one.load()
    assert (one.saved, one.alerts) == (True, ())
    assert not await one.pin(pin())
    assert await one.unpin("wk1")
    assert not one.saved
    one.tick()
    [alert] = one.alerts
    fault = f"{path} cannot be written within 0.05 s; a restart loses pins and a pause, or brings back old ones"
    assert (alert.key, alert.text) == ("overrides:state", fault)
    hung.set()
    assert one._saving is not None
    await asyncio.wait({one._saving}, timeout=10)
    one.tick()
    assert (one.saved, one.alerts, read(path)) == (True, (), Kept())
    await one.close()


def test_a_missing_file_and_a_link(path: str) -> None:
    """No file is no pin; a link is not followed."""
    assert read(path) == Kept()
    Path(path).parent.mkdir(mode=0o755)
    Path(path).symlink_to("/etc/passwd")
    with pytest.raises(StateError, match="is no regular file"):
        read(path)


@in_loop
async def test_a_pin_that_another_primary_has_ended(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is gone from the file, too; a new pin of that name to another address stays."""
    one = made(path)
    await one.pin(pin("wk1"))
    await one.pin(pin("wk2"))
    one.tick({"wk1": "10.0.1.2", "wk2": "10.9.9.9"})
    await one.close()
    assert set(one.pins) == {"wk2"}
    assert [each.name for each in read(path).pins] == ["wk2"]
    assert "the pin of wk1 to 10.0.1.2 has ended: another server is the primary" in caplog.text


@in_loop
async def test_a_clock_that_was_wrong_at_the_start(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over by the corrected clock on the wall is over, however long it seemed to last."""
    one = made(path)
    await one.pin(pin())
    await one.set_pause(pause())
    await one.close()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 30 * 24 * 3600)
    other = made(path)
    await other.load()
    assert set(other.pins) == {"wk1"}
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    other.tick()
    assert (other.pins, other.pause, other.kept) == ({}, None, Kept())
    await other.close()


@in_loop
async def test_a_file_that_is_read_late(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says counts from then on, and the alert is over; nothing is loaded before."""
    one = made(path)
    await one.pin(pin())
    await one.close()
    go_on, true_read = threading.Event(), overrides.read

    def slow(path: str) -> Kept:
        assert go_on.wait(10)
        return true_read(path)

    monkeypatch.setattr(overrides, "read", slow)
    monkeypatch.setattr(overrides, "_FILE_S", 0.01)
    changed = asyncio.Event()
    late = Overrides(path, changed=changed)
    await late.load()
    assert (late.loaded, late.pins, [alert.key for alert in late.alerts]) == (False, {}, ["overrides:state"])
    assert late.is_awaited
    go_on.set()
    await asyncio.wait_for(changed.wait(), 10)
    assert (set(late.pins), late.alerts, late.loaded, late.is_awaited) == ({"wk1"}, (), True, False)
    await late.close()


@in_loop
async def test_a_file_that_is_not_waited_for_any_longer(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first decision is made without it after a while; nothing is changed before it was read all the same."""
    hung = threading.Event()
    monkeypatch.setattr(overrides, "read", lambda _path: hung.wait(30))
    monkeypatch.setattr(overrides, "_FILE_S", 0.01)
    monkeypatch.setattr(overrides, "_START_S", 0.01)
    one = made(path)
    assert not one.is_awaited
    await one.load()
    assert (one.is_awaited, one.loaded) == (False, False)
    hung.set()


class Broken:
    """Stands for ``read``: it fails as often as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
        self.true_read, self.error, self.reads, self.works = overrides.read, error, 0, False
        monkeypatch.setattr(overrides, "read", self)

    def __call__(self, path: str) -> Kept:
        """Read, or fail."""
        self.reads += 1
        if not self.works:
            raise self.error
        return self.true_read(path)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    """Have every read fail until it is mended."""
    return Broken(monkeypatch, StateError("Input/output error"))


@in_loop
async def test_a_file_that_could_not_be_read_for_a_while(path: str, broken: Broken) -> None:
    """It is tried again, not in every round, and counts once it was read."""
    before = made(path)
    await before.pin(pin())
    await before.close()
    changed = asyncio.Event()
    one = Overrides(path, changed=changed)
    await one.load()
    for works, pins, alerts in ((False, set(), 1), (True, {"wk1"}, 0)):
        one.tick()
        one._retry_at, broken.works = 0.0, works
        changed.clear()
        one.tick()
        one.tick()
        await asyncio.wait_for(changed.wait(), 10)
        assert (set(one.pins), len(one.alerts), one.is_awaited) == (pins, alerts, False)
    one._retry_at = 0.0
    one.tick()
    assert broken.reads == 3
    await one.close()


@in_loop
async def test_what_is_decided_takes_the_place_of_what_could_not_be_read(path: str, broken: Broken) -> None:
    """It is not read again: also not by a read that has just begun."""
    before = made(path)
    await before.pin(pin("wk1"))
    await before.close()
    one = made(path)
    await one.load()
    one._retry_at, broken.works = 0.0, True
    one.tick()
    assert await one.pin(pin("wk2"))
    one._retry_at = 0.0
    one.tick()
    await one.close()
    assert (broken.reads, set(one.pins), one.alerts) == (2, {"wk2"}, ())
    assert [each.name for each in read(path).pins] == ["wk2"]
