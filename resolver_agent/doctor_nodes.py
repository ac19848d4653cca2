"""What is wrong with the nodes as they were probed, and with Patroni: facts in, findings out."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from resolver_agent.doctor_metadata import coordinator
from resolver_agent.doctor_model import Finding, Patroni, Server, Severity, Unknown
from resolver_agent.model import Fallback, Kind, Route

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.config import Group
    from resolver_agent.doctor_model import Facts

_PRE_PROMOTE = "pre_promote: /bin/sh -c 'timeout -k 1 5 /usr/local/bin/resolver-agent pre-promote || :'"
_CALLS = re.compile(r"resolver-agent\s[^;&|]*\bpre-promote\b")
_GUARDED = re.compile(r"\bpre-promote\b[^;&|]*\|\|\s*(:|true)(\s|;|$)")
_LIMITED = re.compile(r"\btimeout\s[^;&|]*\bresolver-agent\b")


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the nodes, with Patroni, and with what the configuration asks of them."""
    for warning in facts.settings.warnings:
        yield Finding(Severity.WARNING, "config", warning)
    yield from _states(facts)
    for group in facts.settings.groups:
        if group.route is not Route.STANDBY:  # it has the nodes of another name
            yield from _group(facts, group)
    yield from _own(facts)
    yield from _readers(facts)
    for one in facts.host.patroni:
        yield from _patroni(one)
    yield from _lock(facts)
    if facts.host.hook_fault is not None and facts.host.patroni:
        mend = "SocketGroup= in a drop-in for resolver-agent.socket: the group of Patroni's user"
        text = f"Patroni's pre_promote cannot ask the agent: {facts.host.hook_fault}"
        yield Finding(Severity.ERROR, "patroni:socket", text, mend)
    for place, why in facts.host.patroni_faults.items():
        yield Finding(Severity.WARNING, "patroni:api", f"{place} cannot be asked: {why}", "see `patroni` at that name")
    for alert in facts.alerts:
        yield Finding(Severity.WARNING, "patroni:word", alert.text, "see `patroni` at that name")


def _states(facts: Facts) -> Iterator[Finding]:
    """Yield the nodes that told no role."""
    for node, state in facts.nodes.items():
        latest = state.latest
        if latest is None or latest.kind in (Kind.PRIMARY, Kind.STANDBY):
            continue
        if latest.kind is Kind.BARRED:
            mend = "as the comments in systemd/role.sql say: pg_hba.conf and password there, password file here"
            yield Finding(Severity.ERROR, "node", f"{node} cannot be asked: {latest.detail}", mend)
        else:
            word = "is down" if latest.kind is Kind.DEAD else "does not answer"
            yield Finding(Severity.WARNING, "node", f"{node} {word}: {latest.detail}", "start it, or mend the network")


def _group(facts: Facts, group: Group) -> Iterator[Finding]:
    """Yield what does not fit together among the nodes of a group."""
    seen = facts.seen(group)
    ids = {str(node): one.identity.system_id for node, one in seen.items() if one.identity is not None}
    if len(set(ids.values())) > 1:
        words = ", ".join(f"{node} is of {system_id}" for node, system_id in ids.items())
        text = f"{group.name}: nodes of different database clusters (system identifiers): {words}"
        yield Finding(Severity.ERROR, "foreign", text, f"correct names.{group.name}.nodes, or build the node anew")
    primaries = {str(node): one for node, one in seen.items() if one.kind is Kind.PRIMARY}
    if len(primaries) > 1:
        text = f"{group.name}: several primaries: {', '.join(primaries)}"
        yield Finding(Severity.ERROR, "primaries", text, "stop the wrong one before anything else")
    if not primaries and seen:
        yield Finding(Severity.WARNING, "primary", f"{group.name}: no primary is seen", "promote one, or start it")
    head = max((one.lsn or 0 for one in primaries.values()), default=0)
    for node, one in seen.items():
        lag_bytes = head - (one.lsn or 0) if one.kind is Kind.STANDBY else 0
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
    standbys = [str(node) for node, one in facts.seen(group).items() if one.kind is Kind.STANDBY] if group else []
    if len(standbys) > 1:
        yield Finding(
            Severity.WARNING,
            "readers",
            f"several standbys of the coordinator: {', '.join(standbys)}: reads with one database role through two of "
            "them at a time can mix up their results",
            "let each have readers with a database role of their own, or read through one of them only",
        )
    if facts.settings.fallback is not Fallback.NONE:
        yield Finding(
            Severity.NOTE,
            "fallback",
            f"fallback: {facts.settings.fallback.value} is safe only where readers on standbys use a database role of "
            "their own, which no writer uses",
        )


def _patroni(found: Patroni | Unknown) -> Iterator[Finding]:
    if isinstance(found, Unknown):
        yield Finding(Severity.WARNING, "unchecked", f"could not be checked: {found.why}")
        return
    if found.local.get("citus"):
        text = f"{found.path} has a section citus: Patroni itself writes addresses to pg_dist_node"
        yield Finding(Severity.ERROR, "patroni:citus", text, "take that section out, and restart Patroni")
    command = _setting(found.local, "pre_promote")
    if command is None and isinstance(found.dynamic, Unknown):
        text = f"could not be checked: {found.path} has no pre_promote, and the dynamic configuration is not known"
        yield Finding(Severity.WARNING, "unchecked", f"{text}: {found.dynamic.why}")
        return
    if command is None and not isinstance(found.dynamic, Unknown):
        command = _setting(found.dynamic, "pre_promote")
    yield from _hook(found.path, str(command or ""))


def _lock(facts: Facts) -> Iterator[Finding]:
    """Yield that nobody asks the Patroni of this node whether its server has been deposed."""
    found = next((one for one in facts.host.patroni if isinstance(one, Patroni)), None)
    citus = isinstance(facts.server, Server) and facts.server.with_citus
    if found is not None and citus and facts.own is not None and facts.own.patroni is None:
        text = (
            f"{facts.own.name}: the agent does not ask Patroni ({found.path}) who has the leader lock. Beside one "
            "that was deposed and lives on it could roll back what the successor commits"
        )
        restapi = found.local.get("restapi")
        listen = restapi.get("listen") if isinstance(restapi, dict) else None
        port = str(listen or ":8008").rpartition(":")[2]
        yield Finding(Severity.WARNING, "patroni:lock", text, f"names.{facts.own.name}.patroni: {{port: {port}}}")


def _hook(path: str, command: str) -> Iterator[Finding]:
    """Yield what is wrong with the command that Patroni runs before it promotes; Patroni splits it as a shell would."""
    mend = f"{_PRE_PROMOTE}, under postgresql in {path}; patronictl reload"
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    script = words[-1] if words[1:2] == ["-c"] else ""
    if not _CALLS.search(command):
        text = f"Patroni ({path}) does not call `resolver-agent pre-promote`: names move after a promotion, not before"
        yield Finding(Severity.ERROR, "patroni:hook", text, mend)
    elif not _GUARDED.search(script):
        text = f"Patroni's pre_promote ({path}) has no `|| :` that a shell sees: if it fails, nobody is promoted"
        yield Finding(Severity.ERROR, "patroni:guard", text, mend)
    elif not _LIMITED.search(script):
        text = f"Patroni's pre_promote ({path}) has no timeout: while it hangs, nobody is promoted"
        yield Finding(Severity.WARNING, "patroni:limit", text, mend)


def _setting(document: object, name: str) -> object:
    section = document.get("postgresql") if isinstance(document, dict) else None
    return section.get(name) if isinstance(section, dict) else None
