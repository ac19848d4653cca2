"""When cached connections are flushed (rule R5): after every change, one at a time, and until it has worked."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from resolver_agent.flush import FlushError
from resolver_agent.flushing import Flusher
from resolver_agent.model import Identity, Kind, NodeState, Observation
from tests.unit.builders import config, group

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from resolver_agent.config import Config

SETTINGS = config(group("wk1", "10.0.0.3"))
UP = NodeState().after(Observation(kind=Kind.STANDBY, at=0.0, identity=Identity(1, 1)))
RESTARTED = NodeState().after(Observation(kind=Kind.STANDBY, at=0.0, identity=Identity(1, 2)))
DOWN = UP.after(Observation(kind=Kind.DEAD, at=0.0))


class Server:
    """What stands for a local PostgreSQL: it counts what is done to it, and can be without Citus, hang or refuse."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.citus = True
        self.refuses = False
        self.answers = threading.Event()
        self.answers.set()

    def flush(self, _settings: Config) -> str | None:
        """Flush."""
        return self._do("flush")

    def keep(self, _settings: Config) -> str | None:
        """Compare the administrator's value; nothing is to be done."""
        self._do("keep")
        return None

    def _do(self, what: str) -> str | None:
        self.answers.wait(10)
        if self.refuses:
            raise FlushError("permission denied; run systemd/role.sql")
        self.done.append(what)
        return "sslmode=prefer" if self.citus else None


class Bed:
    """A flusher, its server, and a clock."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.server = Server()
        self.now = 1000.0
        self.said: object = "A"
        self.flusher = Flusher(changed=self.changed, do_flush=self.server.flush, do_keep=self.server.keep)

    def tend(self, local: NodeState = UP) -> Bed:
        """Let a round pass."""
        self.changed.clear()
        self.flusher.tend(SETTINGS, said=self.said, local=local, now=self.now)
        return self

    async def settle(self, local: NodeState = UP) -> list[str]:
        """Let a round pass, and another once that has ended which it began; return what was done so far."""
        self.tend(local)
        await asyncio.wait_for(self.changed.wait(), 10)
        self.tend(local)
        return self.server.done


def run(scenario: Callable[[Bed], Coroutine[None, None, None]]) -> None:
    """Play a scenario in a loop of its own."""

    async def play() -> None:
        await scenario(Bed())

    asyncio.run(play())


def test_flushes_at_the_start_and_after_each_change() -> None:
    """Nobody knows what was flushed before this run; afterwards each state of the file is flushed once."""

    async def scenario(bed: Bed) -> None:
        assert not bed.flusher.flushed
        assert await bed.settle() == ["flush"]
        assert bed.flusher.flushed
        bed.tend()
        assert bed.server.done == ["flush"]
        bed.said = "B"
        bed.tend()
        assert not bed.flusher.flushed
        assert await bed.settle() == ["flush", "flush"]
        assert bed.flusher.flushed

    run(scenario)


def test_changes_that_come_during_a_flush_share_the_next() -> None:
    """What was said when a flush began is flushed by it, and what was said since is not."""

    async def scenario(bed: Bed) -> None:
        bed.server.answers.clear()
        bed.tend()
        for said in "BCD":
            bed.said = said
            bed.tend()
        bed.server.answers.set()
        await asyncio.wait_for(bed.changed.wait(), 10)
        bed.tend()
        assert not bed.flusher.flushed
        assert await bed.settle() == ["flush", "flush"]
        assert bed.flusher.flushed

    run(scenario)


@pytest.mark.parametrize("local", [pytest.param(UP, id="the same run"), pytest.param(RESTARTED, id="a restart")])
def test_looks_after_the_administrators_value(local: NodeState) -> None:
    """Every minute, and after each restart of the server, at once."""

    async def scenario(bed: Bed) -> None:
        await bed.settle()
        if local is UP:
            bed.now += 59
            assert bed.tend().server.done == ["flush"]
            bed.now += 1
        assert await bed.settle(local) == ["flush", "keep"]
        assert bed.flusher.flushed

    run(scenario)


def test_a_failure_is_one_alert_and_is_tried_again_ever_later() -> None:
    """Without the privilege there is an alert and no loop; the alert ends when it works."""

    async def scenario(bed: Bed) -> None:
        bed.server.refuses = True
        await bed.settle()
        [alert] = bed.flusher.alerts
        assert alert.text == "cached connections are not flushed: permission denied; run systemd/role.sql"
        waited = []
        for _ in range(9):
            begun = bed.now
            while not bed.flusher._errand.under_way:
                bed.now += 0.5
                bed.tend()
            waited.append(bed.now - begun)
            await asyncio.wait_for(bed.changed.wait(), 10)
            bed.tend()
            assert bed.flusher.alerts == (alert,)
        assert waited == sorted(waited)
        assert waited[0] <= 1
        assert waited[-1] == 60
        bed.server.refuses = False
        bed.now += 60
        await bed.settle()
        assert bed.flusher.alerts == ()
        assert bed.flusher.flushed

    run(scenario)


def test_without_citus_there_is_nothing_to_flush() -> None:
    """A server without Citus counts as flushed, and is looked at again each minute."""

    async def scenario(bed: Bed) -> None:
        bed.server.citus = False
        await bed.settle()
        assert bed.flusher.flushed
        assert bed.flusher.report() == {"citus": False, "flushed": True, "fault": None}
        bed.now += 60
        bed.server.citus = True
        assert await bed.settle() == ["flush", "flush"]
        assert bed.flusher.citus

    run(scenario)


def test_a_server_that_is_down_has_no_sessions() -> None:
    """Nothing is tried while it is down, and nothing is wrong with that; it is flushed when it is back."""

    async def scenario(bed: Bed) -> None:
        bed.tend(DOWN)
        assert not bed.flusher._errand.under_way
        assert bed.flusher.alerts == ()
        assert await bed.settle(RESTARTED) == ["flush"]

    run(scenario)


def test_a_server_that_hangs_is_an_alert() -> None:
    """A call that never ends is said after a while, and is not begun a second time."""

    async def scenario(bed: Bed) -> None:
        bed.server.answers.clear()
        bed.tend()
        bed.now += 4
        assert bed.tend().flusher.alerts == ()
        bed.now += 2
        assert "does not answer" in bed.tend().flusher.alerts[0].text
        bed.server.answers.set()
        await asyncio.wait_for(bed.changed.wait(), 10)
        assert bed.tend().flusher.alerts == ()
        assert bed.server.done == ["flush"]

    run(scenario)
