"""The operator's command: what it is told, one run at a time, and an alert where it fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.changes import on_change
from resolver_agent.changes.change import Change
from resolver_agent.changes.on_change import ChangeCommand, environment
from resolver_agent.config.model import OnChange
from resolver_agent.system import command as command_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from resolver_agent.system.command import Ended

A, B = "10.0.0.1", "10.0.0.2"


def change(name: str = "wk1", *, new: str | None = B, reason: str = "primary, timeline 8") -> Change:
    """Return a change."""
    return Change(
        time="2026-11-28T12:00:00.000+00:00",
        name=name,
        old=A,
        new=new,
        code="primary",
        reason=reason,
        wanted_role="primary",
        written_ms=12,
        flushed_ms=None,
    )


def shell(script: str, *arguments: str | Path, timeout_s: float = 10.0) -> OnChange:
    """Return the configuration of a script of the shell."""
    return OnChange(command=("/bin/sh", "-c", script, "sh", *map(str, arguments)), timeout_s=timeout_s)


class Setup:
    """A command that writes down what it is told, and may wait for a file first, or fail."""

    def __init__(self, folder: Path) -> None:
        self.command = ChangeCommand()
        self.told, self.gate, self.broken = folder / "told", folder / "gate", folder / "broken"
        script = """
            echo $RESOLVER_AGENT_NAME >>"$1"
            while [ ! -e "$2" ]; do sleep 0.01; done
            if [ -e "$3" ]; then cat "$3"; exit 3; fi
        """
        self.config = shell(script, self.told, self.gate, self.broken)
        self.gate.touch()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ChangeCommand]:
        """Run the command for changes."""
        self.command.configure(self.config)
        self.command.start()
        try:
            yield self.command
        finally:
            await self.command.close()

    async def runs(self, number: int) -> list[str]:
        """Return what each run was told, once there were so many."""
        await until(lambda: len(self.lines) >= number)
        return self.lines

    @property
    def lines(self) -> list[str]:
        """What each run so far was told."""
        return self.told.read_text().splitlines() if self.told.exists() else []

    async def alert(self) -> str:
        """Return the text of the alert, once there is one."""
        await until(lambda: self.command.alert is not None)
        assert self.command.alert is not None
        assert self.command.alert.key == "on_change"
        return self.command.alert.text


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells of, and may last for one run of the command: so each turn of the loop looks."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 30
    while not condition():
        assert loop.time() < deadline
        await asyncio.sleep(0)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Return a command that works."""
    return Setup(tmp_path)


def test_a_change_in_the_environment() -> None:
    """Each part of it is a variable; what is not known is empty. What systemd says to the agent is not passed on."""
    base = {"PATH": "/bin", "TOKEN": "t", "NOTIFY_SOCKET": "/run/n", "LISTEN_FDS": "1", "WATCHDOG_USEC": "1"}
    env = environment([change(new=None)], base)
    assert json.loads(env.pop("RESOLVER_AGENT_CHANGES")) == [change(new=None).as_json()]
    assert env == {
        "PATH": "/bin",
        "TOKEN": "t",
        "RESOLVER_AGENT_TIME": "2026-11-28T12:00:00.000+00:00",
        "RESOLVER_AGENT_NAME": "wk1",
        "RESOLVER_AGENT_FROM": A,
        "RESOLVER_AGENT_TO": "",
        "RESOLVER_AGENT_CODE": "primary",
        "RESOLVER_AGENT_REASON": "primary, timeline 8",
        "RESOLVER_AGENT_WANTED_ROLE": "primary",
        "RESOLVER_AGENT_WRITTEN_MS": "12",
        "RESOLVER_AGENT_FLUSHED_MS": "",
    }


def test_several_changes_in_the_environment() -> None:
    """Each variable has a line for each change, in the same order."""
    env = environment([change("wk1"), change("wk2", new=None), change("wk3")], {})
    assert env["RESOLVER_AGENT_NAME"].split("\n") == ["wk1", "wk2", "wk3"]
    assert env["RESOLVER_AGENT_TO"].split("\n") == [B, "", B]
    assert [one["name"] for one in json.loads(env["RESOLVER_AGENT_CHANGES"])] == ["wk1", "wk2", "wk3"]


def test_one_run_for_what_comes_at_once(setup: Setup) -> None:
    """The changes of a round are told in one run."""

    async def main() -> None:
        async with setup.running() as command:
            command.put(change("wk1"))
            command.put(change("wk2"))
            assert await setup.runs(1) == ["wk1 wk2"]

    asyncio.run(main())


def test_one_run_at_a_time(setup: Setup) -> None:
    """What comes during a run is told by the next one, together."""
    setup.gate.unlink()

    async def main() -> None:
        async with setup.running() as command:
            command.put(change("wk1"))
            assert await setup.runs(1) == ["wk1"]
            command.put(change("wk2"))
            command.put(change("wk3"))
            setup.gate.touch()
            assert await setup.runs(2) == ["wk1", "wk2 wk3"]

    asyncio.run(main())


def test_a_failure_is_an_alert_until_a_run_succeeds(setup: Setup) -> None:
    """It has the exit code and what the command said last, in one line that prints."""
    setup.broken.write_text("no route\x1b[2J\nto host\n")

    async def main() -> None:
        async with setup.running() as command:
            for name in ("wk1", "wk2", "wk3", "wk4", "wk5"):
                command.put(change(name))
            fault = r"ended with exit code 3: no route\x1b[2J to host"
            expected = f"on_change: /bin/sh {fault}; it was run for wk1, wk2, wk3 and 2 more"
            assert await setup.alert() == expected
            setup.broken.unlink()
            command.put(change("wk2"))
            await until(lambda: command.alert is None)
            assert setup.lines == ["wk1 wk2 wk3 wk4 wk5", "wk2"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (shell("kill -9 $$"), "/bin/sh ended with signal 9"),
        (shell("echo here; sleep 1000", timeout_s=0.2), "/bin/sh was killed after 0.2 s: here"),
        (OnChange(command=("/none",), timeout_s=10), "/none cannot be run: No such file or directory"),
    ],
)
def test_other_failures(config: OnChange, fault: str, setup: Setup) -> None:
    """A signal, a time that is over, and a program that is gone."""
    setup.config = config

    async def main() -> None:
        async with setup.running() as command:
            command.put(change())
            assert await setup.alert() == f"on_change: {fault}; it was run for wk1"

    asyncio.run(main())


def test_another_command(setup: Setup) -> None:
    """A reload ends the alert, and the next changes are told by the new command; without one they are not told."""

    async def main() -> None:
        async with setup.running() as command:
            setup.broken.touch()
            command.put(change())
            await setup.alert()
            command.configure(shell('echo "new $RESOLVER_AGENT_NAME" >>"$1"', setup.told))
            assert command.alert is None
            command.put(change("wk2"))
            assert await setup.runs(2) == ["wk1", "new wk2"]
            command.configure(None)
            command.put(change("wk3"))
            command.configure(shell('echo "third $RESOLVER_AGENT_NAME" >>"$1"', setup.told))
            command.put(change("wk4"))
            assert await setup.runs(3) == ["wk1", "new wk2", "third wk4"]

    asyncio.run(main())


def test_what_waits_when_the_command_is_taken_away(setup: Setup) -> None:
    """A command that is named later is told what happens from then on."""
    setup.gate.unlink()

    async def main() -> None:
        async with setup.running() as command:
            command.put(change("wk1"))
            await setup.runs(1)
            command.put(change("wk2"))
            command.configure(None)
            command.configure(setup.config)
            command.put(change("wk3"))
            setup.gate.touch()
            assert await setup.runs(2) == ["wk1", "wk3"]

    asyncio.run(main())


def test_an_alert_of_a_command_that_is_gone(setup: Setup) -> None:
    """The end of a run under the old configuration is no fault of the new one."""
    setup.gate.unlink()
    setup.broken.touch()

    async def main() -> None:
        async with setup.running() as command:
            command.put(change())
            await setup.runs(1)
            command.configure(shell('echo new >>"$1"', setup.told))
            command.put(change())
            setup.gate.touch()
            assert await setup.runs(2) == ["wk1", "new"]
            assert command.alert is None

    asyncio.run(main())


def test_many_changes(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """Fifty are told at once, however long their reasons. Of more than a thousand the oldest are dropped.

    That is said once in the log, and in an alert that lasts until a later change is told.
    """
    setup.gate.unlink()
    worst = "\U0001f600" * 400

    async def main() -> None:
        async with setup.running() as command:
            command.put(change("first"))
            await setup.runs(1)
            for number in range(1020):
                command.put(change(f"wk{number}", reason=worst))
            setup.gate.touch()
            await setup.runs(21)
            await until(lambda: not command._dropped)
            text = await setup.alert()
            assert text.startswith(
                "on_change: /bin/sh was not told 20 changes, as more than 1000 waited; it was run for "
            )
            command.put(change("last"))
            await until(lambda: command.alert is None)

    asyncio.run(main())
    assert [len(line.split()) for line in setup.lines] == [1, *[50] * 20, 1]
    told = [name for line in setup.lines[1:-1] for name in line.split()]
    assert told == [f"wk{number}" for number in range(20, 1020)]
    assert [record.getMessage() for record in caplog.records] == [
        "on_change: more than 1000 changes wait, and the oldest are not told"
    ]


def test_the_end_of_the_agent(setup: Setup, tmp_path: Path) -> None:
    """A run is not waited for: it is killed, and no other begins."""
    setup.config = shell('echo $$ >"$1"; exec sleep 1000', tmp_path / "pid")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with setup.running() as command:
            command.put(change())
            await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
            command.put(change())
            begun = loop.time()
        assert loop.time() - begun < 1

    asyncio.run(main())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_program_that_cannot_be_killed(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs in the kernel: that is an alert, and no second run begins beside it."""
    monkeypatch.setattr(on_change, "_GRACE_S", 0.0)
    release = asyncio.Event()
    real = command_module.run

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def hang(*arguments: Any, **named: Any) -> Ended:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10)
            return real(*arguments, **named)

        monkeypatch.setattr(command_module, "run", hang)
        setup.config = OnChange(command=setup.config.command, timeout_s=0.1)
        async with setup.running() as command:
            command.put(change("wk1"))
            fault = "has neither ended nor been killed after 0.1 s"
            assert await setup.alert() == f"on_change: /bin/sh {fault}; it was run for wk1"
            command.put(change("wk2"))
            release.set()
            assert await setup.runs(2) == ["wk1", "wk2"]

    asyncio.run(main())


def test_a_defect_ends_nothing(setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is an alert with one traceback, and the next changes are told."""
    real, broken = on_change.environment, [True]

    def fail(*arguments: Any) -> dict[str, str]:
        if broken:
            raise RuntimeError("never seen")
        return real(*arguments)

    monkeypatch.setattr(on_change, "environment", fail)

    async def main() -> None:
        async with setup.running() as command:
            command.put(change())
            fault = "cannot be run: RuntimeError('never seen')"
            assert await setup.alert() == f"on_change: /bin/sh {fault}; it was run for wk1"
            command.put(change())
            await until(lambda: not command._waiting)
            broken.clear()
            command.put(change("wk2"))
            await until(lambda: command.alert is None)

    asyncio.run(main())
    assert setup.lines[-1:] == ["wk2"]
    assert len([record for record in caplog.records if record.exc_info]) == 1
