"""A check of doctor: what it looks at, the rule that judges it, and what it depends on. Values and functions only."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

from resolver_agent.config.model import NO_LOCAL
from resolver_agent.doctor.facts import Facts, Server, Unknown
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resolver_agent.doctor.finding import Finding


def _never(_facts: Facts) -> str | None:
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One thing that doctor looks at.

    ``what`` says in a few words what is so when there is no finding. ``rule`` yields the findings. ``unless`` returns
    why there is nothing to look at on this node, or why it cannot be looked at, and then the rule is not asked; None if
    it can.
    """

    what: str
    rule: Callable[[Facts], Iterable[Finding]]
    unless: Callable[[Facts], str | None] = _never

    def run(self, facts: Facts) -> Outcome:
        """Judge the facts."""
        why = self.unless(facts)
        return Outcome(self.what, tuple(self.rule(facts)), "") if why is None else Outcome(self.what, (), plain(why))


class State(enum.Enum):
    """What a check came to."""

    OK = "ok"
    FINDINGS = "findings"
    UNCHECKED = "unchecked"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found; ``unless`` is why it was not looked at, empty if it was."""

    what: str
    findings: tuple[Finding, ...]
    unless: str

    def __str__(self) -> str:
        return f"{self.what}: not looked at: {self.why}" if self.why else self.what

    @property
    def state(self) -> State:
        """Findings that only say what could not be checked are no findings about it."""
        if any(not one.unchecked for one in self.findings):
            return State.FINDINGS
        return State.UNCHECKED if self.findings or self.unless else State.OK

    @property
    def why(self) -> str:
        """Why it, or a part of it, was not looked at."""
        return self.unless or "; ".join(one.unchecked for one in self.findings if one.unchecked)


def of_server(rule: Callable[[Facts, Server], Iterable[Finding]]) -> Callable[[Facts], Iterable[Finding]]:
    """Return a rule about the local server as one about all facts: it yields nothing where the server is not known."""
    return lambda facts: rule(facts, facts.server) if isinstance(facts.server, Server) else ()


def without_local(facts: Facts) -> str | None:
    """Return that there is no PostgreSQL on this host; None if there is one."""
    return None if facts.config.has_local else NO_LOCAL


def without_server(facts: Facts) -> str | None:
    """Return that nothing is known of the local PostgreSQL, the reason is a finding; None if it was asked."""
    if (why := without_local(facts)) is not None:
        return why
    return "the local PostgreSQL cannot be asked" if isinstance(facts.server, Unknown) else None


def without_citus(facts: Facts) -> str | None:
    """Return why nothing is known of Citus here; None if a database has it."""
    if isinstance(facts.server, Server):
        return None if facts.server.with_citus else "no database here has Citus, as far as could be asked"
    return without_server(facts)


def without_patroni(facts: Facts) -> str | None:
    """Return that there is no Patroni on this node; None if there is one."""
    return None if facts.host.patroni else "no Patroni was found on this node"
