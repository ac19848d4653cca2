"""Is this node fit? What is wrong, one finding a line, each with its mend. Nothing is ever changed from here.

``doctor_facts`` gathers, and the rules judge: ``doctor_host`` this node's files and services, ``doctor_citus`` and
``doctor_metadata`` its PostgreSQL, ``doctor_nodes`` the others and Patroni.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from resolver_agent import doctor_citus, doctor_facts, doctor_host, doctor_metadata, doctor_nodes
from resolver_agent.doctor_model import Severity

if TYPE_CHECKING:
    from resolver_agent.config import Config
    from resolver_agent.doctor_model import Facts, Finding

_WORST_FIRST = list(Severity)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What doctor says: findings, the worst first, and scripts for psql that nobody has run.

    ``to_names`` moves the cluster from addresses to names, ``to_addresses`` back; None where there is nothing to do.
    """

    findings: tuple[Finding, ...]
    to_names: str | None
    to_addresses: str | None

    @property
    def fit(self) -> bool:
        """Whether there is nothing but notes."""
        return all(one.severity is Severity.NOTE for one in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "fit": self.fit,
            "findings": [dataclasses.asdict(one) | {"severity": one.severity.value} for one in self.findings],
            "to_names": self.to_names,
            "to_addresses": self.to_addresses,
        }

    def as_text(self) -> str:
        """Return the findings one a line, and the scripts where names are still to come."""
        lines = [str(one) for one in self.findings] or ["nothing is wrong here"]
        scripts = [self.to_names, self.to_addresses] if self.to_names is not None else []
        return "\n\n".join(["\n".join(lines), *(script.rstrip() for script in scripts if script is not None)])


def examine(settings: Config) -> Report:
    """Return what is wrong on this node, within some seconds."""
    return report(asyncio.run(doctor_facts.gather(settings)))


def report(facts: Facts) -> Report:
    """Return what the facts say."""
    found = dict.fromkeys(
        finding
        for rules in (doctor_host, doctor_citus, doctor_metadata, doctor_nodes)
        for finding in rules.findings(facts)
    )
    return Report(
        findings=tuple(sorted(found, key=lambda one: _WORST_FIRST.index(one.severity))),
        to_names=doctor_metadata.to_names(facts),
        to_addresses=doctor_metadata.to_addresses(facts),
    )
