"""When 2PC recovery runs (rule R6): right after a promotion, every minute, and only on fresh evidence."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus.maintenance import PERIOD_S, Recoverer
from resolver_agent.citus.recovery import Prepared, Recovered, UnaskedError
from resolver_agent.routing.observation import Role
from resolver_agent.system.clock import boottime
from tests.unit.builders import INTERVAL_S, TIMEOUT_S, config, group

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from resolver_agent.config.model import Config

CONFIG = dataclasses.replace(config(group("wk1", "10.0.0.3")), local={"dbname": "postgres"})
SLOWEST_S = INTERVAL_S + 2 * TIMEOUT_S
OLD = Recovered(database="app", records=1, oldest=Prepared(gid="citus_0_1_2_3", age_s=400.0))


class Citus:
    """A fake of the local server's databases: it counts passes, and can wait in the middle of one."""

    def __init__(self) -> None:
        self.passes = 0
        self.result = Recovered(database="app")
        self.defect: Exception | None = None
        self.withdrawn: list[str | None] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def end_with(self, found: Recovered | Exception) -> None:
        """Have the next passes come to a result, or raise an error."""
        if isinstance(found, Recovered):
            self.result, self.defect = found, None
        else:
            self.defect = found

    def recover(self, _config: Config, still: Callable[[], str | None]) -> list[Recovered]:
        """Make a pass."""
        self.begun.set()
        self.go_on.wait(10)
        self.withdrawn.append(still())
        self.passes += 1
        if self.defect is not None:
            raise self.defect
        return [self.result]


class Setup:
    """A recoverer with its databases, its evidence, and a clock that starts now."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.citus = Citus()
        self.now = boottime()
        self.role: Role | None = Role.PRIMARY
        self.blocker: str | None = None
        self.answers_take_s = 0.0
        self.asked: list[float] = []
        self.since: list[float] = []
        self.recoverer = Recoverer(
            changed=self.changed, ask_again=lambda: self.asked.append(self.now), do_recover=self.citus.recover
        )

    def _blocker(self, since: float | None) -> str | None:
        if self.blocker is not None or since is None:
            return self.blocker
        self.since.append(since)
        return "nobody has answered yet" if self.now - since < self.answers_take_s else None

    def tick(self) -> Setup:
        """Run one round."""
        self.changed.clear()
        self.recoverer.tick(CONFIG, role=self.role, blocker=self._blocker, now=self.now)
        return self

    async def settle(self) -> Setup:
        """Run a pass from the request for evidence to its end."""
        self.tick()
        self.tick()
        await asyncio.wait_for(self.changed.wait(), 10)
        return self.tick()

    def wait(self, seconds: float) -> Setup:
        """Let time pass."""
        self.now += seconds
        return self

    @property
    def alerts(self) -> list[str]:
        """The texts of the current alerts."""
        return [alert.text for alert in self.recoverer.alerts]


def run(scenario: Callable[[Setup], Coroutine[None, None, None]]) -> None:
    """Run a scenario in an event loop of its own."""

    async def play() -> None:
        await scenario(Setup())

    asyncio.run(play())


def test_runs_at_once_and_every_minute() -> None:
    """A primary recovers at once, then a minute after each pass, each time on evidence requested for that pass."""

    async def scenario(setup: Setup) -> None:
        assert (await setup.settle()).citus.passes == 1
        assert setup.asked == setup.since == [setup.now]
        setup.wait(PERIOD_S - 1).tick().tick()
        assert setup.citus.passes == 1
        setup.wait(1)
        assert (await setup.settle()).citus.passes == 2
        assert setup.asked[-1] == setup.since[-1] == setup.now

    run(scenario)


def test_a_promotion_makes_it_due() -> None:
    """A standby runs no recovery; it runs one as soon as it is promoted."""

    async def scenario(setup: Setup) -> None:
        setup.role = Role.STANDBY
        setup.tick().wait(1000).tick().tick()
        assert setup.asked == []
        assert setup.alerts == []
        setup.role = Role.PRIMARY
        assert (await setup.settle()).citus.passes == 1

    run(scenario)


def test_a5_nothing_runs_while_a_precondition_fails() -> None:
    """Overdue recovery is an alert until it runs. Evidence is requested once nothing else is in the way."""

    async def scenario(setup: Setup) -> None:
        setup.blocker = "wk1 is held"
        for _ in range(200):
            setup.wait(1).tick()
        assert setup.citus.passes == 0
        assert setup.asked == []
        assert setup.alerts == ["2PC recovery is overdue by more than 180 s: wk1 is held"]
        setup.blocker = None
        setup.tick().tick()
        await asyncio.wait_for(setup.changed.wait(), 10)
        assert setup.tick().alerts == []

    run(scenario)


def test_answers_from_before_a_block_do_not_count() -> None:
    """They may be old when it ends: a standby that answered then may have been promoted since."""

    async def scenario(setup: Setup) -> None:
        setup.answers_take_s = 0.1
        setup.tick()
        setup.blocker = "wk1 is held"
        setup.wait(0.1).tick()
        setup.blocker = None
        setup.wait(2).tick().wait(0.2).tick()
        await asyncio.wait_for(setup.changed.wait(), 10)
        assert len(setup.asked) == 2
        assert setup.since[-1] == setup.asked[-1] > setup.asked[0]

    run(scenario)


def test_preconditions_stop_holding_in_the_middle() -> None:
    """A running pass learns of changes and of a demotion."""

    async def scenario(setup: Setup) -> None:
        for blocker, role, expected in [
            ("wk1 moved", Role.PRIMARY, "wk1 moved"),
            (None, Role.STANDBY, "the local PostgreSQL is not a primary"),
        ]:
            setup.citus.go_on.clear()
            setup.blocker, setup.role = None, Role.PRIMARY
            setup.wait(PERIOD_S).tick().tick()
            setup.now = boottime()
            await asyncio.to_thread(setup.citus.begun.wait, 10)
            setup.blocker, setup.role = blocker, role
            setup.tick()
            setup.citus.go_on.set()
            await asyncio.wait_for(setup.changed.wait(), 10)
            setup.tick()
            assert setup.citus.withdrawn[-1] == expected

    run(scenario)


def test_preconditions_do_not_come_back_in_the_middle() -> None:
    """A name that moved and came back during a pass may have misrouted that pass."""

    async def scenario(setup: Setup) -> None:
        setup.citus.go_on.clear()
        setup.tick().tick()
        await asyncio.to_thread(setup.citus.begun.wait, 10)
        setup.blocker = "wk1 moved"
        setup.tick()
        setup.blocker = None
        setup.tick()
        setup.citus.go_on.set()
        await asyncio.wait_for(setup.changed.wait(), 10)
        assert setup.citus.withdrawn == ["wk1 moved"]
        setup.tick().wait(PERIOD_S)
        assert (await setup.settle()).citus.withdrawn[-1] is None

    run(scenario)


def test_slow_answers_are_waited_for() -> None:
    """While servers answer slowly but within their time, the agent waits and does not ask again."""

    async def scenario(setup: Setup) -> None:
        setup.answers_take_s = SLOWEST_S - 0.2
        for _ in range(100):
            setup.wait(0.1).tick()
        await asyncio.wait_for(setup.changed.wait(), 10)
        assert setup.tick().citus.passes == 1

    run(scenario)


def test_a_pass_that_ended_with_its_primary_is_forgotten() -> None:
    """The next promotion inherits neither the faults of the old pass nor its waiting time."""

    async def scenario(setup: Setup) -> None:
        setup.citus.go_on.clear()
        setup.tick().tick()
        await asyncio.to_thread(setup.citus.begun.wait, 10)
        setup.role = Role.STANDBY
        setup.tick()
        setup.citus.result = Recovered(database="app", fault="server closed the connection unexpectedly")
        setup.citus.go_on.set()
        await asyncio.wait_for(setup.changed.wait(), 10)
        assert setup.tick().alerts == []
        setup.role = Role.PRIMARY
        assert (await setup.settle()).citus.passes == 2

    run(scenario)


def test_what_nobody_foresaw_is_an_alert(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is an alert, is logged once with its place, and is retried like any failure."""

    async def scenario(setup: Setup) -> None:
        setup.citus.defect = OSError(24, "Too many open files")
        for _ in range(3):
            await setup.wait(10).settle()
        assert setup.alerts == ["2PC recovery in database postgres: OSError(24, 'Too many open files')"]
        assert [record.exc_info is not None for record in caplog.records] == [True]
        setup.citus.defect = None
        assert (await setup.wait(10).settle()).alerts == []

    run(scenario)


def test_preconditions_that_nobody_checks_do_not_hold() -> None:
    """A pass is stopped when the agent no longer checks the preconditions."""

    async def scenario(setup: Setup) -> None:
        setup.wait(-10)
        assert (await setup.settle()).citus.withdrawn == ["the agent has not checked the preconditions for 3 s"]

    run(scenario)


def test_a_blocker_in_the_middle_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """A name that moves during a pass is reported and the pass retried soon; it is an alert only when this goes on."""
    caplog.set_level(logging.INFO)

    async def scenario(setup: Setup) -> None:
        setup.citus.result = Recovered(database="app", withdrawn="wk1 moved")
        await setup.settle()
        assert setup.alerts == []
        for _ in range(19):
            await setup.wait(10).settle()
        assert setup.citus.passes == 20
        assert setup.alerts == ["2PC recovery is overdue by more than 180 s: wk1 moved"]
        setup.citus.result = Recovered(database="app")
        assert (await setup.wait(10).settle()).tick().alerts == []

    run(scenario)
    assert caplog.messages[0] == "2PC recovery in database app was broken off and is tried again: wk1 moved"


def test_a_failed_pass_is_an_alert_and_tried_again_soon() -> None:
    """A fault in a database is an alert until a pass succeeds; the retry comes before the minute is over."""

    async def scenario(setup: Setup) -> None:
        setup.citus.result = Recovered(database="app", fault="rolled back: wk1:5432 led to a standby")
        await setup.settle()
        assert setup.alerts == ["2PC recovery in database app: rolled back: wk1:5432 led to a standby"]
        setup.citus.result = Recovered(database="app")
        setup.wait(10)
        await setup.settle()
        assert setup.citus.passes == 2
        assert setup.alerts == []

    run(scenario)


def test_failing_for_long_is_overdue() -> None:
    """Failed passes do not count as recovery."""

    async def scenario(setup: Setup) -> None:
        setup.citus.result = Recovered(database="app", fault="not begun")
        for _ in range(20):
            await setup.wait(10).settle()
        assert any("overdue" in text for text in setup.alerts)

    run(scenario)


def test_old_prepared_transactions_are_an_alert() -> None:
    """Old transactions that another node prepared here hold locks."""

    async def scenario(setup: Setup) -> None:
        setup.citus.result = OLD
        await setup.settle()
        [text] = setup.alerts
        assert text.startswith("citus_0_1_2_3 in database app has been prepared for 400 s")

    run(scenario)


@pytest.mark.parametrize(
    "fails",
    [Recovered(database="app", fault="too many clients"), UnaskedError("too many clients"), OSError("no thread")],
    ids=["database", "list of databases", "defect"],
)
def test_an_old_transaction_is_not_over_where_nobody_could_look(
    fails: Recovered | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A pass that fails before it can look keeps what is known, older by now; one that looked ends it."""

    async def scenario(setup: Setup) -> None:
        setup.citus.result = OLD
        await setup.settle()
        setup.citus.end_with(fails)
        for waits_s, age_s in ((PERIOD_S, 460), (10, 470)):
            await setup.wait(waits_s).settle()
            [of_app] = [one for one in setup.recoverer.status(setup.now).databases if one.database == "app"]
            assert of_app.oldest is not None
            assert of_app.oldest.age_s == pytest.approx(age_s)
            assert of_app.records is None
            assert f"citus_0_1_2_3 in database app has been prepared for {age_s} s" in " ".join(setup.alerts)
        setup.citus.end_with(Recovered(database="app", records=0))
        await setup.wait(10).settle()
        assert setup.alerts == []
        assert [one.oldest for one in setup.recoverer.status(setup.now).databases] == [None]

    run(scenario)
    assert len(caplog.records) == (isinstance(fails, OSError))


def test_a_database_that_is_gone_is_forgotten() -> None:
    """What was prepared in a database is over when the server no longer has it."""

    async def scenario(setup: Setup) -> None:
        setup.citus.result = OLD
        await setup.settle()
        setup.citus.result = Recovered(database="web", fault="too many clients")
        await setup.wait(PERIOD_S).settle()
        assert setup.alerts == ["2PC recovery in database web: too many clients"]

    run(scenario)


def test_report() -> None:
    """Status shows the last pass, and what blocks the next."""

    async def scenario(setup: Setup) -> None:
        setup.citus.result = Recovered(database="app", recovered=2)
        await setup.settle()
        status = setup.recoverer.status(setup.now + 5)
        assert (status.age_s, status.blocked_by, status.under_way) == (5.0, None, False)
        assert status.databases[0].recovered == 2

    run(scenario)
