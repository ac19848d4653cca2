"""Reports what is wrong on this node, each finding with a hint how to fix it. Nothing is changed.

``gather`` collects the facts, and each module of ``checks`` judges those of its subject; its ``CHECKS`` say what is
looked at.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from resolver_agent.control.report import CheckStatus, DoctorStatus, FindingStatus, as_json
from resolver_agent.doctor import gather
from resolver_agent.doctor.checks import host, metadata, nodes, passfiles, patroni, postgres, queue
from resolver_agent.doctor.finding import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Config
    from resolver_agent.doctor.check import Outcome, State
    from resolver_agent.doctor.facts import Facts
    from resolver_agent.doctor.finding import Finding

_WORST_FIRST = list(Severity)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What doctor found, the worst first, each check with its outcome, and scripts for psql that the operator may run.

    ``to_names`` moves the cluster from addresses to names, ``to_addresses`` back; None where there is nothing to do.
    """

    findings: tuple[Finding, ...]
    outcomes: tuple[Outcome, ...]
    to_names: str | None
    to_addresses: str | None

    @property
    def fit(self) -> bool:
        """Whether there are no findings other than notes."""
        return all(one.severity is Severity.NOTE for one in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data, which ``systemd/doctor.schema.json`` describes."""
        found: dict[str, Any] = as_json(
            DoctorStatus(
                fit=self.fit,
                findings=tuple(
                    FindingStatus(severity=one.severity.value, key=one.key, text=one.text, fix=one.fix)
                    for one in self.findings
                ),
                checks=tuple(CheckStatus(what=one.what, state=one.state.value, why=one.why) for one in self.outcomes),
                to_names=self.to_names,
                to_addresses=self.to_addresses,
            )
        )
        return found

    def as_text(self, marks: Mapping[State, str] | None = None) -> str:
        """Return the findings, each with its hint on the next line, and the scripts if addresses are still in use.

        With ``marks`` the checks come first, each after the mark of its state, with what was not looked at and why.
        """
        checks = [] if marks is None else [f"{marks[one.state]} {one}" for one in self.outcomes]
        lines = [str(one) for one in self.findings] or ["nothing is wrong here"]
        scripts = [self.to_names, self.to_addresses] if self.to_names is not None else []
        parts = ["\n".join(part) for part in (checks, lines) if part]
        return "\n\n".join([*parts, *(script.rstrip() for script in scripts if script is not None)])


def examine(config: Config) -> Report:
    """Return what is wrong on this node; takes some seconds at most."""
    return report(asyncio.run(gather.gather(config)))


def report(facts: Facts) -> Report:
    """Return what follows from the facts."""
    subjects = (host, passfiles, postgres, metadata, nodes, patroni, queue)
    outcomes = tuple(check.run(facts) for subject in subjects for check in subject.CHECKS)
    found = dict.fromkeys(finding for outcome in outcomes for finding in outcome.findings)
    return Report(
        findings=tuple(sorted(found, key=lambda one: _WORST_FIRST.index(one.severity))),
        outcomes=outcomes,
        to_names=metadata.to_names(facts),
        to_addresses=metadata.to_addresses(facts),
    )
