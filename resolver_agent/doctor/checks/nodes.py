"""Checks what the probes of the nodes showed: facts in, findings out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.config.model import Fallback, Route
from resolver_agent.doctor.check import Check, without_local
from resolver_agent.doctor.checks.metadata import coordinator
from resolver_agent.doctor.facts import Server
from resolver_agent.doctor.finding import Finding, Severity
from resolver_agent.routing.lag import size
from resolver_agent.routing.observation import ProbeFailure, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from resolver_agent.config.model import Group, Node
    from resolver_agent.doctor.facts import Facts


def _config(facts: Facts) -> Iterator[Finding]:
    """Yield what is odd about the configuration."""
    for warning in facts.config.warnings:
        yield Finding(Severity.WARNING, "config", warning)


_NO_ROLE = {
    None: (
        Severity.WARNING,
        ("could not be asked in time", "could not be asked in time"),
        "Check that its name resolves.",
    ),
    ProbeFailure.REJECTING: (
        Severity.ERROR,
        ("cannot be asked", "cannot be asked"),
        (
            "Check pg_hba.conf and the role's password there, and the password file here: the comments of "
            "`resolver-agent show role.sql` say how."
        ),
    ),
    ProbeFailure.NOT_SERVING: (
        Severity.WARNING,
        ("is not serving", "are not serving"),
        "Wait. If it stays so, read the log of PostgreSQL on {hosts}.",
    ),
    ProbeFailure.DEAD: (Severity.WARNING, ("is down", "are down"), "Start PostgreSQL there, or repair the network."),
    ProbeFailure.UNREACHABLE: (
        Severity.WARNING,
        ("does not answer", "do not answer"),
        "Start PostgreSQL there, or repair the network.",
    ),
}
"""For each way in which a node's role was not seen: how bad it is, its words for one node and for several, the fix."""


def _states(facts: Facts) -> Iterator[Finding]:
    """Yield the nodes whose role was not seen, in one finding for all that share the way."""
    failed: dict[ProbeFailure | None, dict[str, list[Node]]] = {}
    for node, state in facts.nodes.items():
        latest = state.latest
        if latest is None:
            failed.setdefault(None, {}).setdefault("", []).append(node)
        elif isinstance(latest.result, ProbeFailure):
            failed.setdefault(latest.result, {}).setdefault(latest.detail, []).append(node)
    for result, details in failed.items():
        severity, verbs, fix = _NO_ROLE[result]
        nodes = [node for some in details.values() for node in some]
        if len(details) == 1:
            [(detail, _)] = details.items()
            text = f"{_listed(nodes)} {verbs[len(nodes) > 1]}{f': {detail}' if detail else ''}"
        else:
            each = "; ".join(f"{_listed(some)}: {detail}" for detail, some in details.items())
            text = f"{len(nodes)} nodes {verbs[1]}: {each}"
        hosts = ", ".join(dict.fromkeys(node.host for node in nodes))
        yield Finding(severity, "node", text, fix.format(hosts=hosts))


def _listed(nodes: Iterable[Node]) -> str:
    return ", ".join(map(str, nodes))


def _groups(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the nodes of each group."""
    for group in facts.config.groups:
        if group.route is not Route.STANDBY:  # such a name shares the nodes of another
            yield from _group(facts, group)


def _group(facts: Facts, group: Group) -> Iterator[Finding]:
    """Yield what is wrong with the nodes of a group taken together."""
    seen = facts.seen(group)
    ids = {str(node): one.identity.system_id for node, one in seen.items() if one.identity is not None}
    if len(set(ids.values())) > 1:
        words = ", ".join(f"{node} has {system_id}" for node, system_id in ids.items())
        text = f"{group.name}: the nodes are of different database clusters, by their system identifiers: {words}"
        fix = f"Correct names.{group.name}.nodes, or build the foreign node anew from its primary."
        yield Finding(Severity.ERROR, "foreign", text, fix)
    primaries = {str(node): one for node, one in seen.items() if one.role is Role.PRIMARY}
    if len(primaries) > 1:
        text = f"{group.name}: several primaries: {', '.join(primaries)}"
        yield Finding(Severity.ERROR, "primaries", text, "Stop the wrong one before anything else.")
    if not primaries and seen:
        text = f"{group.name}: no primary is seen"
        yield Finding(Severity.WARNING, "primary", text, "Start the primary, or promote a standby.")
    head = max((one.lsn or 0 for one in primaries.values()), default=0)
    for node, one in seen.items():
        lag_bytes = head - (one.lsn or 0) if one.role is Role.STANDBY else 0
        if group.max_lag_bytes is not None and lag_bytes > group.max_lag_bytes:
            lag, limit = size(lag_bytes), size(group.max_lag_bytes)
            text = f"{group.name}: {node} lags {lag} behind its primary (max_lag_bytes: {limit})"
            yield Finding(Severity.WARNING, "lag", text, f"Look at pg_stat_wal_receiver on {node.host}.")


def _own(facts: Facts) -> Iterator[Finding]:
    """Yield that the local server is in no group: the agent then cannot keep R3, and runs no recovery here."""
    if facts.own is None:
        citus = isinstance(facts.server, Server) and facts.server.with_citus
        yield Finding(
            Severity.ERROR if citus else Severity.WARNING,
            "own",
            "the local PostgreSQL is none of the nodes that answer: its own name may resolve to another server, and "
            "2PC recovery does not run here",
            "Add its address to `nodes` of its name, or correct `local`.",
        )


def _readers(facts: Facts) -> Iterator[Finding]:
    """Yield where two coordinators may overwrite each other's intermediate results on a worker: with one role."""
    group = coordinator(facts)
    standbys = [str(node) for node, one in facts.seen(group).items() if one.role is Role.STANDBY] if group else []
    if len(standbys) > 1:
        yield Finding(
            Severity.WARNING,
            "readers",
            f"the coordinator has several standbys: {', '.join(standbys)}: reads through two of them at the same time "
            "with the same database role can mix up their results",
            "Use a different database role on each of them, or read through one of them only.",
        )
    if facts.config.has_local and facts.config.fallback is not Fallback.NONE:
        yield Finding(
            Severity.NOTE,
            "fallback",
            f"fallback: {facts.config.fallback.value} is safe only if readers on standbys use a database role of "
            "their own, which no writer uses",
        )


def _without_local(facts: Facts) -> str | None:
    not_seen = "the local PostgreSQL was not seen" if facts.local.role_seen is None else None
    return without_local(facts) or not_seen


def _without_roles(facts: Facts) -> str | None:
    """Return that no node answered; a group of which none did has no fault of its own."""
    return None if any(facts.seen(group) for group in facts.config.groups) else "no node answers"


CHECKS = (
    Check("the configuration has no warnings", _config),
    Check("every node answers", _states),
    Check(
        "each group has one primary, and standbys of the same database cluster that do not lag", _groups, _without_roles
    ),
    Check("the local PostgreSQL is one of the nodes", _own, _without_local),
    Check("reads through standbys cannot mix up their results", _readers),
)
