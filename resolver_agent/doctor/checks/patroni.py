"""Checks Patroni's settings: facts in, findings out."""

from __future__ import annotations

import itertools
import re
import shlex
from typing import TYPE_CHECKING

from resolver_agent.doctor.facts import Hook, Patroni, Server, Unknown
from resolver_agent.doctor.finding import Finding, Severity
from resolver_agent.doctor.hook import OURS, pre_promote, section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.doctor.facts import Facts

_HOOK = "/bin/sh -c 'timeout -k 1 5 /usr/local/bin/resolver-agent pre-promote || :'"
_CHECK_API = "Check `patroni` under that name in the configuration: the port, and with TLS cacert, cert and key."
_CHECK_CA = (
    "Set patroni.cacert under that name to the file of the CA that signed the certificate in Patroni's "
    "restapi.certfile; the certificate must be valid for the address in `nodes`."
)
_GUARDED = re.compile(r"\bpre-promote\b[^;&|]*(\|\||;)\s*(:|true|exit 0)(\s|;|$)")
_LIMITED = re.compile(r"\btimeout\s[^;&|]*\bresolver[-_]agent\b")
_SHELLS = {"sh", "bash", "dash", "ash", "ksh", "zsh"}
_OTHERS = {":", "true", "false", "exit", "echo", "logger", "touch", "sleep", "timeout", "env", "exec", "||", "&&", ";"}
"""Words of a shell that certainly do not call the agent."""


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with Patroni on this node, and with its answers about the groups."""
    for one in facts.host.patroni:
        yield from _patroni(one)
    yield from _not_found(facts)
    yield from _lock(facts)
    if facts.host.hook_fault is not None and facts.host.patroni:
        fix = "Set SocketGroup= to the group of Patroni's user, in a drop-in for resolver-agent.socket."
        text = f"Patroni's pre_promote cannot ask the agent: {facts.host.hook_fault}"
        yield Finding(Severity.ERROR, "patroni:socket", text, fix)
    for place, why in facts.host.patroni_faults.items():
        fix = _CHECK_CA if "certificate is refused" in why else _CHECK_API
        yield Finding(Severity.WARNING, "patroni:api", f"{place} cannot be asked: {why}", fix)
    for alert in facts.alerts:
        yield Finding(Severity.WARNING, "patroni:word", alert.text, _CHECK_API)


def _patroni(found: Patroni | Unknown) -> Iterator[Finding]:
    if isinstance(found, Unknown):
        yield Finding(Severity.WARNING, "unchecked", f"could not be checked: {found.why}")
        return
    if found.local.get("citus"):
        text = f"{found.path} has a section citus: Patroni overwrites the names in pg_dist_node with addresses"
        yield Finding(Severity.ERROR, "patroni:citus", text, "Take that section out, and restart Patroni.")
    yield from hook_findings(found)


def _not_found(facts: Facts) -> Iterator[Finding]:
    """Yield that no configuration of Patroni was found on a node where there should be one."""
    groups = facts.config.groups if facts.own is None else (facts.own,)
    asked = [group.name for group in groups if group.patroni is not None]
    if asked and not facts.host.patroni:
        text = (
            f"could not be checked: pre_promote and Patroni's section citus: Patroni is configured for {asked[0]}, but "
            "on this node neither a process of it, nor a unit, nor a file in /etc/patroni was found"
        )
        fix = "Start Patroni, and run doctor as root, outside of a container."
        yield Finding(Severity.WARNING, "patroni:unfound", text, fix)


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


def _set(found: Patroni) -> str:
    """Return how to set pre_promote: Patroni's own file overrides the dynamic configuration, even with null."""
    if "pre_promote" in section(found.local):
        reload = f"patronictl reload {found.local.get('scope')}"
        return f"Under postgresql in {found.path} write the following, then run {reload}: pre_promote: {_HOOK}"
    return f'patronictl edit-config --force -s "postgresql.pre_promote={_HOOK}"'


def hook_findings(found: Patroni) -> Iterator[Finding]:
    """Yield what is wrong with the command that Patroni runs before it promotes; Patroni splits it as a shell would."""
    given = pre_promote(found)
    if isinstance(given, Unknown):
        text = f"could not be checked: {found.path} has no pre_promote, and the dynamic configuration is not known"
        yield Finding(Severity.WARNING, "unchecked", f"{text}: {given.why}")
        return
    command, fix = str(given or ""), _set(found)
    hook = found.hook or Hook()
    script = _script(command)
    inside = [path for path, text in hook.scripts.items() if OURS.search(text)]
    for fault in hook.faults:
        text = f"pre_promote ({found.path}): {fault}: {_without(script, inside)}"
        fix_ = "Install the program where that user may run it, e.g. in /opt, and not below a home folder."
        yield Finding(Severity.ERROR, "patroni:program", text, fix_)
    for why in hook.unchecked:
        yield Finding(Severity.NOTE, "patroni:unchecked", f"could not be checked: {why}")
    if OURS.search(command):
        if not _GUARDED.search(script):
            text = (
                f"Patroni's pre_promote ({found.path}) has no `|| :` that a shell sees: if it fails, Patroni does not "
                "promote"
            )
            yield Finding(Severity.ERROR, "patroni:guard", text, fix)
        elif not _LIMITED.search(script):
            text = f"Patroni's pre_promote ({found.path}) has no timeout: while it hangs, Patroni does not promote"
            yield Finding(Severity.WARNING, "patroni:limit", text, fix)
    elif inside:
        text = (
            f"could not be checked: {inside[0]}, which Patroni runs as pre_promote ({found.path}), calls "
            "`resolver-agent pre-promote`; it must exit with 0 within seconds, or Patroni does not promote"
        )
        yield Finding(Severity.NOTE, "patroni:unchecked", text)
    elif _may_call(command, script, hook):
        text = (
            f"could not be checked: whether pre_promote ({found.path}) calls `resolver-agent pre-promote`, through "
            f"{command}: without that call names move after a promotion, not before"
        )
        yield Finding(Severity.NOTE, "patroni:unchecked", text)
    else:
        text = (
            f"Patroni ({found.path}) does not call `resolver-agent pre-promote`: names move after a promotion, not "
            "before"
        )
        if hook.scripts:
            fix = f"Write to {next(iter(hook.scripts))}: timeout -k 1 5 /usr/local/bin/resolver-agent pre-promote || :"
        yield Finding(Severity.ERROR, "patroni:hook", text, fix)


def _script(command: str) -> str:
    """Return what a shell in the command is given to run with -c, or nothing."""
    words = _words(command)
    for index, word in enumerate(words):
        if word.rpartition("/")[2] in _SHELLS:
            options = itertools.takewhile(lambda one: one.startswith("-"), words[index + 1 :])
            flags = [number for number, one in enumerate(options, index + 1) if re.fullmatch(r"-\w*c", one)]
            return words[flags[-1] + 1] if flags and flags[-1] + 1 < len(words) else ""
    return ""


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return []


def _without(script: str, inside: list[str]) -> str:
    """Say what follows where the hook's program cannot run."""
    if _GUARDED.search(script) or inside:
        return "every promotion then goes without it, and names move after it, not before"
    return "Patroni does not promote"


def _may_call(command: str, script: str, hook: Hook) -> bool:
    """Report whether the command has a program that may call the agent: all that was not read, and is no known word.

    A script that was read and does not name the agent counts as one that does not call it.
    """
    words = _words(script or command)
    if not words:
        return False
    programs = [word for word in words if "/" in word or word == words[0]]
    return any(word.rpartition("/")[2] not in _OTHERS and word not in hook.scripts for word in programs)
