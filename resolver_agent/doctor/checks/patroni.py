"""Checks Patroni's settings: facts in, findings out."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from resolver_agent.doctor.facts import Patroni, Server, Unknown
from resolver_agent.doctor.finding import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.doctor.facts import Facts

_PRE_PROMOTE = "pre_promote: /bin/sh -c 'timeout -k 1 5 /usr/local/bin/resolver-agent pre-promote || :'"
_CHECK_API = "Check `patroni` under that name in the configuration: the port, and with TLS cacert, cert and key."
_CALLS = re.compile(r"resolver-agent\s[^;&|]*\bpre-promote\b")
_GUARDED = re.compile(r"\bpre-promote\b[^;&|]*\|\|\s*(:|true)(\s|;|$)")
_LIMITED = re.compile(r"\btimeout\s[^;&|]*\bresolver-agent\b")


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with Patroni on this node, and with its answers about the groups."""
    for one in facts.host.patroni:
        yield from _patroni(one)
    yield from _lock(facts)
    if facts.host.hook_fault is not None and facts.host.patroni:
        fix = "Set SocketGroup= to the group of Patroni's user, in a drop-in for resolver-agent.socket."
        text = f"Patroni's pre_promote cannot ask the agent: {facts.host.hook_fault}"
        yield Finding(Severity.ERROR, "patroni:socket", text, fix)
    for place, why in facts.host.patroni_faults.items():
        yield Finding(Severity.WARNING, "patroni:api", f"{place} cannot be asked: {why}", _CHECK_API)
    for alert in facts.alerts:
        yield Finding(Severity.WARNING, "patroni:word", alert.text, _CHECK_API)


def _patroni(found: Patroni | Unknown) -> Iterator[Finding]:
    if isinstance(found, Unknown):
        yield Finding(Severity.WARNING, "unchecked", f"could not be checked: {found.why}")
        return
    if found.local.get("citus"):
        text = f"{found.path} has a section citus: Patroni overwrites the names in pg_dist_node with addresses"
        yield Finding(Severity.ERROR, "patroni:citus", text, "Take that section out, and restart Patroni.")
    command = _setting(found.local, "pre_promote")
    if command is None and isinstance(found.dynamic, Unknown):
        text = f"could not be checked: {found.path} has no pre_promote, and the dynamic configuration is not known"
        yield Finding(Severity.WARNING, "unchecked", f"{text}: {found.dynamic.why}")
        return
    if command is None and not isinstance(found.dynamic, Unknown):
        command = _setting(found.dynamic, "pre_promote")
    yield from _hook(found.path, str(command or ""))


def _lock(facts: Facts) -> Iterator[Finding]:
    """Yield that the agent does not ask the local Patroni whether the local server has been deposed."""
    found = next((one for one in facts.host.patroni if isinstance(one, Patroni)), None)
    citus = isinstance(facts.server, Server) and facts.server.with_citus
    if found is not None and citus and facts.own is not None and facts.own.patroni is None:
        text = (
            f"{facts.own.name}: the agent does not ask Patroni ({found.path}) who has the leader lock: on a primary "
            "that was deposed but still runs, 2PC recovery could roll back what the new primary commits"
        )
        restapi = found.local.get("restapi")
        listen = restapi.get("listen") if isinstance(restapi, dict) else None
        port = str(listen or ":8008").rpartition(":")[2]
        fix = f"Write to the configuration: names.{facts.own.name}.patroni: {{port: {port}}}"
        yield Finding(Severity.WARNING, "patroni:lock", text, fix)


def _hook(path: str, command: str) -> Iterator[Finding]:
    """Yield what is wrong with the command that Patroni runs before it promotes; Patroni splits it as a shell would."""
    fix = f"Under postgresql in {path} write the following, then run patronictl reload: {_PRE_PROMOTE}"
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    script = words[-1] if words[1:2] == ["-c"] else ""
    if not _CALLS.search(command):
        text = f"Patroni ({path}) does not call `resolver-agent pre-promote`: names move after a promotion, not before"
        yield Finding(Severity.ERROR, "patroni:hook", text, fix)
    elif not _GUARDED.search(script):
        text = f"Patroni's pre_promote ({path}) has no `|| :` that a shell sees: if it fails, Patroni does not promote"
        yield Finding(Severity.ERROR, "patroni:guard", text, fix)
    elif not _LIMITED.search(script):
        text = f"Patroni's pre_promote ({path}) has no timeout: while it hangs, Patroni does not promote"
        yield Finding(Severity.WARNING, "patroni:limit", text, fix)


def _setting(document: object, name: str) -> object:
    section = document.get("postgresql") if isinstance(document, dict) else None
    return section.get(name) if isinstance(section, dict) else None
