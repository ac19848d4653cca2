"""What is counted of rounds: how long they took, promotions, reloads."""

from __future__ import annotations

from resolver_agent.metrics.figures import Figures
from tests.unit.builders import Agent, config, group, primary, standby

A, B = "10.0.0.1", "10.0.0.2"


class Rounds:
    """An agent on a primary, and what is counted of its rounds."""

    def __init__(self) -> None:
        self.agent = Agent(config(group("wk1", A, B)))
        self.agent.see({A: primary(), B: standby()}).see_local(primary())
        self.figures = Figures(self.agent.now)

    def round(self, *, took_s: float = 0.0) -> Figures:
        """Make a round, and return what was counted."""
        before, begun = self.agent.decision, self.agent.now
        decision = self.agent.decide().decision
        self.figures.take_round(before, decision, begun=begun, now=self.agent.wait(took_s).now)
        return self.figures


def test_rounds() -> None:
    """Each is counted, and timed."""
    rounds = Rounds()
    rounds.round(took_s=0.25)
    found = rounds.round(took_s=0.5)
    assert (found.rounds, found.round_at) == (2, rounds.agent.now)
    assert (found.round_s.snapshot().counts[-1], found.round_s.snapshot().total) == (2, 0.75)


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
