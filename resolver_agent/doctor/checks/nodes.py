"""What is wrong with the nodes as they were probed: facts in, findings out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.config.model import Fallback, Route
from resolver_agent.doctor.checks.metadata import coordinator
from resolver_agent.doctor.facts import Server
from resolver_agent.doctor.finding import Finding, Severity
from resolver_agent.routing.observation import ProbeFailure, Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.config.model import Group
    from resolver_agent.doctor.facts import Facts


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the nodes, and with what the configuration asks of them."""
    for warning in facts.config.warnings:
        yield Finding(Severity.WARNING, "config", warning)
    yield from _states(facts)
    for group in facts.config.groups:
        if group.route is not Route.STANDBY:  # it has the nodes of another name
            yield from _group(facts, group)
    yield from _own(facts)
    yield from _readers(facts)


def _states(facts: Facts) -> Iterator[Finding]:
    """Yield the nodes that told no role."""
    for node, state in facts.nodes.items():
        latest = state.latest
        if latest is None or latest.role is not None:
            continue
        if latest.result is ProbeFailure.REJECTING:
            fix = "as the comments in systemd/role.sql say: pg_hba.conf and password there, password file here"
            yield Finding(Severity.ERROR, "node", f"{node} cannot be asked: {latest.detail}", fix)
        else:
            word = "is down" if latest.result is ProbeFailure.DEAD else "does not answer"
            yield Finding(
                Severity.WARNING, "node", f"{node} {word}: {latest.detail}", "start it, or repair the network"
            )


def _group(facts: Facts, group: Group) -> Iterator[Finding]:
    """Yield what does not fit together among the nodes of a group."""
    seen = facts.seen(group)
    ids = {str(node): one.identity.system_id for node, one in seen.items() if one.identity is not None}
    if len(set(ids.values())) > 1:
        words = ", ".join(f"{node} is of {system_id}" for node, system_id in ids.items())
        text = f"{group.name}: nodes of different database clusters (system identifiers): {words}"
        yield Finding(Severity.ERROR, "foreign", text, f"correct names.{group.name}.nodes, or build the node anew")
    primaries = {str(node): one for node, one in seen.items() if one.role is Role.PRIMARY}
    if len(primaries) > 1:
        text = f"{group.name}: several primaries: {', '.join(primaries)}"
        yield Finding(Severity.ERROR, "primaries", text, "stop the wrong one before anything else")
    if not primaries and seen:
        yield Finding(Severity.WARNING, "primary", f"{group.name}: no primary is seen", "promote one, or start it")
    head = max((one.lsn or 0 for one in primaries.values()), default=0)
    for node, one in seen.items():
        lag_bytes = head - (one.lsn or 0) if one.role is Role.STANDBY else 0
        if group.max_lag_bytes is not None and lag_bytes > group.max_lag_bytes:
            text = (
                f"{group.name}: {node} lags {lag_bytes} bytes behind its primary (max_lag_bytes: {group.max_lag_bytes})"
            )
            yield Finding(Severity.WARNING, "lag", text, f"see pg_stat_wal_receiver on {node.host}")


def _own(facts: Facts) -> Iterator[Finding]:
    """Yield that the local server is in no group: then R3 cannot be kept, and nothing is recovered from here."""
    if facts.own is None and facts.local.role_seen is not None:
        citus = isinstance(facts.server, Server) and facts.server.with_citus
        yield Finding(
            Severity.ERROR if citus else Severity.WARNING,
            "own",
            "the local PostgreSQL is none of the nodes that answer: its own name may lead elsewhere, and Citus' "
            "transactions are not recovered from here",
            "add its address to `nodes` of its name, or correct `local`",
        )


def _readers(facts: Facts) -> Iterator[Finding]:
    """Yield who may overwrite whose intermediate results on a worker: two coordinators with one database role."""
    group = coordinator(facts)
    standbys = [str(node) for node, one in facts.seen(group).items() if one.role is Role.STANDBY] if group else []
    if len(standbys) > 1:
        yield Finding(
            Severity.WARNING,
            "readers",
            f"several standbys of the coordinator: {', '.join(standbys)}: reads with one database role through two of "
            "them at a time can mix up their results",
            "let each have readers with a database role of their own, or read through one of them only",
        )
    if facts.config.fallback is not Fallback.NONE:
        yield Finding(
            Severity.NOTE,
            "fallback",
            f"fallback: {facts.config.fallback.value} is safe only where readers on standbys use a database role of "
            "their own, which no writer uses",
        )
