"""What is counted of rounds: changes, how long they took, promotions."""

from __future__ import annotations

from resolver_agent.control.report import FlushStatus
from resolver_agent.metrics.figures import Figures
from tests.unit.builders import Agent, config, dead, group, primary, standby

A, B = "10.0.0.1", "10.0.0.2"


class Rounds:
    """An agent on a primary, and what is counted of its rounds."""

    def __init__(self) -> None:
        self.agent = Agent(config(group("wk1", A, B)))
        self.agent.see({A: primary(), B: standby()}).see_local(primary())
        self.figures = Figures(self.agent.now)

    def round(
        self,
        *,
        after_s: float = 0.0,
        took_s: float = 0.0,
        written: bool = True,
        flushed: bool = True,
        citus: bool | None = True,
    ) -> Figures:
        """Make a round ``after_s`` after its reason was seen, and return what was counted."""
        before, seen_at = self.agent.decision, self.agent.now
        begun = self.agent.wait(after_s).now
        decision = self.agent.decide().decision
        self.figures.take_round(
            before,
            decision,
            seen_at=seen_at,
            begun=begun,
            now=self.agent.wait(took_s).now,
            written=written,
            flush=FlushStatus(citus=citus, flushed=flushed, fault=None),
        )
        return self.figures


def test_a_change_is_timed_until_it_is_on_disk_and_flushed() -> None:
    """The time begins when the reason was seen, and ends in the round that finds it written, or flushed."""
    rounds = Rounds()
    rounds.round(after_s=0.25, written=False, flushed=False)
    assert (rounds.figures.written_s.snapshot().counts[-1], rounds.figures.changes) == (0, {"wk1": 1})
    rounds.round(after_s=0.5, flushed=False)
    rounds.round(after_s=0.25)
    found = rounds.round(after_s=1)
    assert (found.written_s.snapshot().counts[-1], found.written_s.snapshot().total) == (1, 0.75)
    assert (found.flushed_s.snapshot().counts[-1], found.flushed_s.snapshot().total) == (1, 1.0)
    assert (found.rounds, found.changes) == (4, {"wk1": 1})
    assert found.round_s.snapshot().counts[-1] == 4


def test_what_is_not_flushed_without_citus() -> None:
    """Without Citus no flush is timed, and what waited for one is forgotten."""
    rounds = Rounds()
    rounds.round(citus=False)
    assert rounds.round(after_s=1).flushed_s.snapshot().counts[-1] == 0


def test_only_another_address_is_a_change() -> None:
    """A name that is held, or stays, has not changed; one that moves has, once."""
    rounds = Rounds()
    rounds.round()
    rounds.agent.see({A: dead()})
    assert rounds.round().changes == {"wk1": 1}
    rounds.agent.see({B: primary(timeline=8)})
    rounds.round()
    assert rounds.round().changes == {"wk1": 2}


def test_a_second_change_before_the_first_is_flushed() -> None:
    """Each write of a name is timed, but only the last one is flushed."""
    rounds = Rounds()
    rounds.round(flushed=False)
    rounds.agent.see({A: dead(), B: primary(timeline=8)})
    found = rounds.round(took_s=0.5)
    assert found.written_s.snapshot().counts[-1] == 2
    assert (found.flushed_s.snapshot().counts[-1], found.flushed_s.snapshot().total) == (1, 0.5)


def test_promotions() -> None:
    """A standby that becomes a primary was promoted; one that was a primary all along was not."""
    rounds = Rounds()
    assert rounds.round().promotions == 0
    rounds.agent.see_local(standby(started=1))
    rounds.round()
    rounds.agent.see_local(primary(started=1))
    assert rounds.round().promotions == 1


def test_reloads() -> None:
    """Reloads are counted by their result."""
    figures = Figures(0.0)
    for done in (True, False, False):
        figures.take_reload(done=done)
    assert (figures.reloads, figures.failed_reloads) == (1, 2)
