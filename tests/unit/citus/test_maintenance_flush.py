"""When cached connections are flushed (rule R5): after every change, one flush at a time, and until it works."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus.flush import Flushed, FlushError
from resolver_agent.citus.maintenance import Flusher
from resolver_agent.control.report import FlushStatus
from resolver_agent.routing.observation import Identity, NodeState, Observation, ProbeFailure, Role
from tests.unit.builders import config, group

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from resolver_agent.config.model import Config

CONFIG = config(group("wk1", "10.0.0.3"))
UP = NodeState().after(Observation(result=Role.STANDBY, at=0.0, identity=Identity(1, 1)))
RESTARTED = NodeState().after(Observation(result=Role.STANDBY, at=0.0, identity=Identity(1, 2)))
DOWN = UP.after(Observation(result=ProbeFailure.DEAD, at=0.0))


class Server:
    """A fake local PostgreSQL: it records calls, and can have no Citus, hang or refuse."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.citus = True
        self.refuses = False
        self.warning: str | None = None
        self.uncached = False
        self.fault: Exception = FlushError("permission denied; run systemd/role.sql")
        self.answers = threading.Event()
        self.answers.set()

    def flush(self, _config: Config) -> Flushed | None:
        """Flush."""
        self._do("flush")
        given_back, self.uncached = self.uncached, False
        return Flushed("sslmode=prefer", warning=self.warning, given_back=given_back) if self.citus else None

    def keep(self, _config: Config) -> Flushed | None:
        """Compare the administrator's value; there is nothing to do."""
        self._do("keep")
        return Flushed("sslmode=prefer", done=False, warning=self.warning) if self.warning else None

    def _do(self, what: str) -> None:
        self.answers.wait(10)
        if self.refuses:
            raise self.fault
        self.done.append(what)


class Setup:
    """A flusher, its server, and a clock."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.server = Server()
        self.now = 1000.0
        self.said: object = "A"
        self.flusher = Flusher(changed=self.changed, do_flush=self.server.flush, do_keep=self.server.keep)

    def tick(self, local: NodeState = UP, configuration: Config = CONFIG) -> Setup:
        """Run one round."""
        self.changed.clear()
        self.flusher.tick(configuration, said=self.said, local=local, now=self.now)
        return self

    async def settle(self, local: NodeState = UP) -> list[str]:
        """Run one round, wait for the call it started, and run another; return the calls so far."""
        self.tick(local)
        await asyncio.wait_for(self.changed.wait(), 10)
        self.tick(local)
        return self.server.done


def run(scenario: Callable[[Setup], Coroutine[None, None, None]]) -> None:
    """Run a scenario in an event loop of its own."""

    async def play() -> None:
        await scenario(Setup())

    asyncio.run(play())


def test_a4_flushes_at_the_start_and_after_each_change() -> None:
    """The agent flushes at its start, since it knows of no earlier flush, then once for each state of the file."""

    async def scenario(setup: Setup) -> None:
        assert not setup.flusher.flushed
        assert await setup.settle() == ["flush"]
        assert setup.flusher.flushed
        setup.tick()
        assert setup.server.done == ["flush"]
        setup.said = "B"
        setup.tick()
        assert not setup.flusher.flushed
        assert await setup.settle() == ["flush", "flush"]
        assert setup.flusher.flushed

    run(scenario)


def test_changes_that_come_during_a_flush_share_the_next() -> None:
    """A flush covers the changes before its start; the next flush covers all changes that came during it."""

    async def scenario(setup: Setup) -> None:
        setup.server.answers.clear()
        setup.tick()
        for said in "BCD":
            setup.said = said
            setup.tick()
        setup.server.answers.set()
        await asyncio.wait_for(setup.changed.wait(), 10)
        setup.tick()
        assert not setup.flusher.flushed
        assert await setup.settle() == ["flush", "flush"]
        assert setup.flusher.flushed

    run(scenario)


@pytest.mark.parametrize("held_up_by", ["a failure", "a look at the administrator's value"])
def test_what_was_said_in_between_is_flushed(held_up_by: str) -> None:
    """Sessions may have connected to an address that a name had for a moment, even if it was back before any flush."""

    async def scenario(setup: Setup) -> None:
        await setup.settle()
        if held_up_by == "a failure":
            setup.server.refuses = True
        else:
            setup.now += 60
            setup.server.answers.clear()
            setup.tick()
        setup.said = "B"
        setup.tick()
        setup.said = "A"
        assert not setup.tick().flusher.flushed
        setup.server.answers.set()
        await asyncio.wait_for(setup.changed.wait(), 10)
        setup.server.refuses = False
        await setup.settle()
        assert setup.server.done[-1] == "flush"
        assert setup.server.done.count("flush") == 2
        assert setup.flusher.flushed
        assert setup.flusher.alerts == ()

    run(scenario)


def test_a_change_does_not_wait_for_what_failed_before() -> None:
    """A change is flushed at once, however late the next retry would be: a promotion may wait for it."""

    async def scenario(setup: Setup) -> None:
        setup.server.refuses = True
        for _ in range(9):
            setup.now += 60
            await setup.settle()
        setup.server.refuses = False
        setup.tick()
        setup.said = "B"
        assert await setup.settle() == ["flush"]  # and none before it
        assert setup.flusher.flushed

    run(scenario)


def test_a_warning_lasts_as_long_as_its_reason() -> None:
    """A problem with the administrator's value is an alert from the check that finds it to the check that does not."""

    async def scenario(setup: Setup) -> None:
        await setup.settle()
        seen = []
        for warning in ("it is gone", "it is gone", None):
            setup.server.warning = warning
            setup.now += 60
            await setup.settle()
            seen.append([alert.text for alert in setup.flusher.alerts])
        assert seen == [["it is gone"], ["it is gone"], []]
        assert setup.server.done == ["flush", "keep", "keep", "keep"]
        setup.server.warning, setup.said = "it is gone", "B"
        await setup.settle()
        assert [alert.text for alert in setup.flusher.alerts] == ["it is gone"]
        assert setup.flusher.flushed

    run(scenario)


def test_what_nobody_foresaw_is_an_alert(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is an alert, is logged once with its place, and is retried like any failure."""

    async def scenario(setup: Setup) -> None:
        setup.server.refuses, setup.server.fault = True, OSError(24, "Too many open files")
        for _ in range(3):
            setup.now += 60
            await setup.settle()
        [alert] = setup.flusher.alerts
        assert alert.text == "cached connections are not flushed: OSError(24, 'Too many open files')"
        assert [record.exc_info is not None for record in caplog.records] == [True]
        setup.server.refuses = False
        setup.now += 60
        await setup.settle()
        assert setup.flusher.flushed

    run(scenario)


def test_turned_off_and_on_again() -> None:
    """Once flushing is on again, the agent at once flushes what changed while it was off."""

    async def scenario(setup: Setup) -> None:
        await setup.settle()
        setup.tick(configuration=dataclasses.replace(CONFIG, citus=False))
        assert setup.flusher.status == FlushStatus(citus=None, flushed=True, fault=None)
        assert not setup.tick().flusher.flushed
        await setup.settle()
        assert setup.server.done == ["flush", "flush"]

    run(scenario)


@pytest.mark.parametrize("local", [pytest.param(UP, id="the same run"), pytest.param(RESTARTED, id="a restart")])
def test_looks_after_the_administrators_value(local: NodeState) -> None:
    """The value is checked every minute, and at once after each restart of the server."""

    async def scenario(setup: Setup) -> None:
        await setup.settle()
        if local is UP:
            setup.now += 59
            assert setup.tick().server.done == ["flush"]
            setup.now += 1
        assert await setup.settle(local) == ["flush", "keep"]
        assert setup.flusher.flushed

    run(scenario)


def test_a_failure_is_one_alert_and_is_tried_again_ever_later() -> None:
    """A missing privilege is one alert and backs off; the alert ends when the flush works."""

    async def scenario(setup: Setup) -> None:
        setup.server.refuses = True
        await setup.settle()
        [alert] = setup.flusher.alerts
        assert alert.text == "cached connections are not flushed: permission denied; run systemd/role.sql"
        waited = []
        for _ in range(9):
            begun = setup.now
            while not setup.flusher._call.under_way:
                setup.now += 0.5
                setup.tick()
            waited.append(setup.now - begun)
            await asyncio.wait_for(setup.changed.wait(), 10)
            setup.tick()
            assert setup.flusher.alerts == (alert,)
        assert waited == sorted(waited)
        assert waited[0] <= 1
        assert waited[-1] == 10
        setup.server.refuses = False
        setup.now += 60
        await setup.settle()
        assert setup.flusher.alerts == ()
        assert setup.flusher.flushed

    run(scenario)


def test_without_citus_there_is_nothing_to_flush() -> None:
    """A server without Citus counts as flushed, and is checked again every minute."""

    async def scenario(setup: Setup) -> None:
        setup.server.citus = False
        await setup.settle()
        assert setup.flusher.flushed
        assert setup.flusher.status == FlushStatus(citus=False, flushed=True, fault=None)
        setup.now += 60
        setup.server.citus = True
        assert await setup.settle() == ["flush", "flush"]
        assert setup.flusher.citus

    run(scenario)


def test_what_a_killed_agent_left_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A parameter that was left changed, and is given back, is logged once."""

    async def scenario(setup: Setup) -> None:
        setup.server.uncached = True
        await setup.settle()
        setup.said = "B"
        await setup.settle()

    run(scenario)
    assert [record.levelname for record in caplog.records if "is given back" in record.getMessage()] == ["WARNING"]


def test_a_server_that_is_down_has_no_sessions() -> None:
    """While the server is down no flush is tried and there is no alert; it is flushed when it is back."""

    async def scenario(setup: Setup) -> None:
        setup.server.answers.clear()
        setup.tick(DOWN)
        setup.now += 6
        assert setup.tick(DOWN).flusher.alerts == ()  # a call would hang
        setup.server.answers.set()
        assert await setup.settle(RESTARTED) == ["flush"]

    run(scenario)


def test_a_server_that_hangs_is_an_alert() -> None:
    """A call that never ends becomes an alert after a while, and no second call is started."""

    async def scenario(setup: Setup) -> None:
        setup.server.answers.clear()
        setup.tick()
        setup.now += 4
        assert setup.tick().flusher.alerts == ()
        setup.now += 2
        assert "does not answer" in setup.tick().flusher.alerts[0].text
        setup.server.answers.set()
        await asyncio.wait_for(setup.changed.wait(), 10)
        assert setup.tick().flusher.alerts == ()
        assert setup.server.done == ["flush"]

    run(scenario)
