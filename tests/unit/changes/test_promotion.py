"""The story of a promotion: one line, with each step and when it was done."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from resolver_agent.changes.promotion import Promotions, Round
from resolver_agent.routing.observation import Role
from tests.unit.builders import Agent, config, dead, group, primary, standby

if TYPE_CHECKING:
    from typing_extensions import Self

CN1, CN2, A, B, C, D = (f"10.0.0.{number}" for number in range(1, 7))
OWN = "the promotion of the local PostgreSQL"


class Teller:
    """A standby coordinator whose rounds are told from, and the lines since they were last read."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog
        self._promotions = Promotions()
        self._announced_at: float | None = None
        self.recovered_at: float | None = None
        self.fields: dict[str, int] | None = None
        self.agent = Agent(config(group("cn", CN1, CN2), group("wk1", A, B), group("wk2", C, D)))
        self.agent.see_local(standby(), address=CN2).see({CN1: primary(), CN2: standby()})
        self.agent.see({A: primary(), B: standby(), C: primary(), D: standby()}).decide()
        self._promotions.resume(self.agent.decision)

    def announce(self) -> Self:
        """Announce a promotion of the local server."""
        self.agent.assumed, self._announced_at = Role.PRIMARY, self.agent.now
        return self

    def call_off(self) -> Self:
        """Take it back."""
        self.agent.assumed = None
        return self

    def promote(self) -> Self:
        """Have the local server promoted, which ends the announcement."""
        self.agent.see_local(primary(), address=CN2).see({CN1: dead(), CN2: primary()})
        return self.call_off()

    def round(self, ms: int = 0, *, written: bool = True, flushed: bool = True, citus: bool | None = True) -> list[str]:
        """Let time pass, run a round, and return the lines since the last one."""
        self.agent.wait(ms / 1000).decide()
        self._promotions.track(
            Round(
                decision=self.agent.decision,
                seen_at=self.agent.now,
                now=self.agent.now,
                announced_at=self._announced_at,
                written=written,
                flushed=flushed,
                citus=citus,
                recovered_at=self.recovered_at,
            )
        )
        said = self._caplog.messages[:]
        self.fields = next((vars(one)["promotion"] for one in self._caplog.records), None)
        self._caplog.clear()
        return said

    def recover(self) -> Self:
        """Have a pass of 2PC recovery end well now."""
        self.recovered_at = self.agent.now
        return self


@pytest.fixture
def teller(caplog: pytest.LogCaptureFixture) -> Teller:
    """Return a coordinator in calm."""
    return Teller(caplog)


def test_an_announced_promotion(teller: Teller) -> None:
    """Names move, are flushed, the promotion is seen, and Citus recovers: one line, when the last of it is done."""
    assert teller.round(1000) == []
    assert teller.announce().round(12, flushed=False) == []
    assert teller.round(18) == []
    assert teller.promote().round(970) == []
    assert teller.round(100) == []
    teller.agent.wait(0.5)
    [line] = teller.recover().round()
    assert line == (
        f"{OWN}: announced after 0 ms; 2 names moved after 12 ms; flushed after 30 ms; "
        "seen as a primary after 1000 ms; 2PC recovered after 1600 ms"
    )
    assert teller.fields == {"announced_ms": 0, "moved_ms": 12, "flushed_ms": 30, "seen_ms": 1000, "recovered_ms": 1600}
    assert teller.round(60_000) == []


def test_recovery_before_the_promotion_does_not_count(teller: Teller) -> None:
    """Only a pass that ended after the promotion was seen belongs to it."""
    teller.announce().round()
    teller.recover().promote()
    assert teller.round(10) == []
    assert teller.round(10) == []


def test_a_promotion_that_nobody_announced(teller: Teller) -> None:
    """It begins when it is seen."""
    teller.promote()
    assert teller.round(written=False) == []
    assert teller.round(7, flushed=False) == []
    assert teller.round(20) == []
    teller.agent.wait(0.05)
    [line] = teller.recover().round()
    assert line == (
        f"{OWN}: not announced; seen as a primary after 0 ms; 2 names moved after 7 ms; flushed after 27 ms; "
        "2PC recovered after 77 ms"
    )


def test_the_leader_lock_before_the_announcement(teller: Teller) -> None:
    """Patroni takes the lock first, and then runs its hook."""
    teller.agent.holds_lock = True
    assert teller.round(flushed=False) == []
    teller.agent.wait(0.11)
    assert teller.announce().round(20) == []
    assert teller.promote().recover().round(300, citus=False) == [
        f"{OWN}: 2 names moved after 0 ms; announced after 110 ms; flushed after 130 ms; seen as a primary after 430 ms"
    ]


def test_an_announcement_that_starts_the_agent(teller: Teller) -> None:
    """The hook starts a stopped agent, and the promotion is over before its first round."""
    teller.announce().agent.wait(0.4)
    assert teller.promote().round(100, citus=False) == [
        f"{OWN}: announced after 0 ms; seen as a primary after 500 ms; 2 names moved after 500 ms"
    ]


def test_an_old_announcement(teller: Teller) -> None:
    """An announcement that came to nothing has nothing to do with a promotion that nobody announced."""
    teller.announce().round(5)
    assert len(teller.call_off().round(800)) == 1
    teller.agent.wait(20)
    assert teller.promote().round(citus=False) == [
        f"{OWN}: not announced; seen as a primary after 0 ms; 2 names moved after 0 ms"
    ]


def test_without_citus(teller: Teller) -> None:
    """There is nothing to flush or to recover."""
    teller.announce().round(5, citus=False)
    assert teller.promote().round(20, citus=False) == [
        f"{OWN}: announced after 0 ms; 2 names moved after 5 ms; seen as a primary after 25 ms"
    ]


def test_a_promotion_that_is_called_off(teller: Teller) -> None:
    """The names went to primaries and come back."""
    teller.announce().round(5)
    assert teller.call_off().round(800) == [
        f"{OWN}: announced after 0 ms; 2 names moved after 5 ms; flushed after 5 ms; called off after 805 ms"
    ]


def test_a_promotion_that_takes_too_long(teller: Teller) -> None:
    """What is missing after five minutes is named; then it is over."""
    teller.announce().round(5)
    teller.promote().round(5)
    [line] = teller.round(300_000)
    assert line.endswith("; not yet 2PC recovered after 300 s")
    teller.agent.wait(1)
    assert teller.recover().round() == []


def test_a_server_that_is_a_standby_again(teller: Teller) -> None:
    """It was promoted, and has been demoted before Citus recovered."""
    teller.announce().round(5)
    teller.promote().round(5)
    teller.agent.see_local(standby(started=1), address=CN2).see({CN1: primary(), CN2: standby(started=1)})
    [line] = teller.round(90)
    assert line.endswith("seen as a primary after 10 ms; in recovery again after 100 ms")


@pytest.fixture
def on_a_primary(teller: Teller) -> Teller:
    """Return a primary coordinator, its own promotion over."""
    teller.promote().round()
    teller.agent.wait(0.1)
    assert len(teller.recover().round()) == 1
    return teller


def test_the_promotion_of_a_worker(on_a_primary: Teller) -> None:
    """It is told with its name, from when it is seen until it is flushed."""
    on_a_primary.agent.see({A: dead(), B: primary(timeline=8)})
    assert on_a_primary.round(written=False, flushed=False) == []
    assert on_a_primary.round(9, flushed=False) == []
    assert on_a_primary.round(31) == [f"the promotion of {B}, behind wk1: moved after 9 ms; flushed after 40 ms"]
    assert on_a_primary.fields == {"moved_ms": 9, "flushed_ms": 40}
    assert on_a_primary.round(1000) == []


def test_two_promotions_of_a_worker(on_a_primary: Teller) -> None:
    """The first one is not told if its name moves on before it is flushed."""
    on_a_primary.agent.see({A: dead(), B: primary(timeline=8)})
    assert on_a_primary.round(flushed=False) == []
    on_a_primary.agent.see({A: primary(timeline=9), B: dead()})
    assert on_a_primary.round(20, citus=False) == [f"the promotion of {A}, behind wk1: moved after 0 ms"]


def test_the_promotion_of_a_worker_beside_a_standby(teller: Teller) -> None:
    """A name that leads to a standby does not follow the primary, so there is nothing to tell."""
    teller.agent.see({A: dead(), B: primary(timeline=8)})
    assert teller.round() == []
    teller.agent.see({A: standby()})
    assert teller.round(10_000) == []


def test_a_name_that_a_reload_adds_and_removes(on_a_primary: Teller) -> None:
    """Neither is a promotion."""
    agent = on_a_primary.agent
    whole = agent.config
    agent.config = config(group("cn", CN1, CN2))
    assert on_a_primary.round() == []
    agent.config = whole
    assert on_a_primary.round() == []


def test_the_start_is_no_promotion(on_a_primary: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """An agent that finds its server a primary as before has nothing to tell."""
    promotions, agent = Promotions(), on_a_primary.agent.restart()
    promotions.resume(agent.decision)
    agent.see_local(primary(), address=CN2).see({CN1: dead(), CN2: primary(), A: primary(), C: primary()}).decide()
    promotions.track(
        Round(
            decision=agent.decision,
            seen_at=agent.now,
            now=agent.now,
            announced_at=None,
            written=True,
            flushed=True,
            citus=False,
            recovered_at=None,
        )
    )
    assert caplog.messages == []
