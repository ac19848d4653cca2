"""Checks the commands that Patroni runs before it promotes and before it stops PostgreSQL: facts in, findings out.

Patroni splits each of them as a shell would, but starts no shell.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from typing import TYPE_CHECKING

from resolver_agent.doctor.facts import Hook, Patroni, Unknown
from resolver_agent.doctor.finding import Finding, Severity
from resolver_agent.doctor.hook import BEFORE_STOP, PRE_PROMOTE, HookName, command_of, section

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST_WITH_BEFORE_STOP = (3, 0, 3)

_GUARDED = re.compile(r"\bpre-promote\b[^;&|]*(\|\||;)\s*(:|true|exit 0)(\s|;|$)")
_LIMITED = re.compile(r"\btimeout\s[^;&|]*\bresolver[-_]agent\b")
_SHELLS = {"sh", "bash", "dash", "ash", "ksh", "zsh"}
_OTHERS = {
    *(":", "true", "false", "exit", "echo", "logger", "touch", "sleep", "timeout", "env", "exec", "||", "&&", ";"),
    "resolver-agent",  # with another command of ours
}
"""Words of a shell that certainly do not call the agent for this hook."""


def pre_promote(found: Patroni) -> Iterator[Finding]:
    """Yield what is wrong with the command that Patroni runs before it promotes."""
    given = command_of(PRE_PROMOTE, found)
    if isinstance(given, Unknown):
        text = f"could not be checked: {found.path} has no pre_promote, and the dynamic configuration is not known"
        yield Finding(Severity.WARNING, "unchecked", f"{text}: {given.why}")
        return
    command, fix = str(given or ""), _set(PRE_PROMOTE, found)
    hook = found.hooks.get(PRE_PROMOTE.key) or Hook()
    script = _script(command)
    inside = [path for path, text in hook.scripts.items() if PRE_PROMOTE.calls(text)]
    yield from _programs(hook, Severity.ERROR, f"pre_promote ({found.path})", _without(script, inside))
    if PRE_PROMOTE.calls(command):
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
            fix = f"Write to {next(iter(hook.scripts))}: {PRE_PROMOTE.alone}"
        yield Finding(Severity.ERROR, "patroni:hook", text, fix)


def before_stop(found: Patroni) -> Iterator[Finding]:
    """Yield what is wrong with the command that Patroni runs before it stops PostgreSQL; its exit code is ignored."""
    if (wrong := _too_old(found)) is not None:
        yield wrong
        if not isinstance(found.version, Unknown):
            return
    given = command_of(BEFORE_STOP, found)
    if isinstance(given, Unknown):
        text = f"could not be checked: {found.path} has no before_stop, and the dynamic configuration is not known"
        yield Finding(Severity.WARNING, "patroni:unchecked", f"{text}: {given.why}")
        return
    command = str(given or "")
    hook = found.hooks.get(BEFORE_STOP.key) or Hook()
    script = _script(command)
    inside = [path for path, text in hook.scripts.items() if BEFORE_STOP.calls(text)]
    yield from _programs(
        hook, Severity.WARNING, f"before_stop ({found.path})", "planned work on this node then fails statements"
    )
    if BEFORE_STOP.calls(command):
        if not _LIMITED.search(script or command):
            text = (
                f"Patroni's before_stop ({found.path}) has no timeout: while it hangs, Patroni does not stop "
                "PostgreSQL, not even a primary that was deposed"
            )
            yield Finding(Severity.WARNING, "patroni:limit", text, _set(BEFORE_STOP, found))
    elif inside:
        text = (
            f"could not be checked: {inside[0]}, which Patroni runs as before_stop ({found.path}), calls "
            "`resolver-agent before-stop`; it must end within seconds, or Patroni does not stop PostgreSQL, not even a "
            "primary that was deposed"
        )
        yield Finding(Severity.NOTE, "patroni:unchecked", text)
    elif _may_call(command, script, hook):
        text = (
            f"could not be checked: whether before_stop ({found.path}) calls `resolver-agent before-stop`, through "
            f"{command}: without that call planned work on this node fails statements"
        )
        line = f"/bin/sh -c {shlex.quote(f'{BEFORE_STOP.alone}; exec {command}')}"
        fix = f"If it does not, run ours before it. {_set(BEFORE_STOP, found, line)}"
        yield Finding(Severity.NOTE, "patroni:unchecked", text, fix)
    else:
        text = (
            f"Patroni ({found.path}) does not call `resolver-agent before-stop`: planned work on this node (a "
            "switchover, a restart) fails statements"
        )
        fix = _set(BEFORE_STOP, found)
        if hook.scripts:
            fix = f"Write to {next(iter(hook.scripts))}, before its other commands: {BEFORE_STOP.alone}"
        yield Finding(Severity.WARNING, "patroni:before_stop", text, fix)


def _programs(hook: Hook, severity: Severity, what: str, otherwise: str) -> Iterator[Finding]:
    """Yield the programs of a hook that Patroni's user cannot run, and those of which that is not known."""
    for fault in hook.faults:
        fix = "Install the program where that user may run it, e.g. in /opt, and not below a home folder."
        yield Finding(severity, "patroni:program", f"{what}: {fault}: {otherwise}", fix)
    for why in hook.unchecked:
        yield Finding(Severity.NOTE, "patroni:unchecked", f"could not be checked: {why}")


def _too_old(found: Patroni) -> Finding | None:
    """Return that Patroni has no before_stop, or that this is not known; None if it has."""
    if isinstance(found.version, Unknown):
        text = f"could not be checked: whether Patroni has before_stop (3.0.3 and later): {found.version.why}"
        return Finding(Severity.NOTE, "patroni:unchecked", text)
    if found.version >= _FIRST_WITH_BEFORE_STOP:
        return None
    text = (
        f"Patroni is {'.'.join(map(str, found.version))}, and has no before_stop: planned work on this node (a "
        "switchover, a restart) fails statements"
    )
    fix = "Install Patroni 3.0.3 or later, e.g. from apt.postgresql.org; or turn the queue off: queue: {planned: 0s}"
    return Finding(Severity.WARNING, "patroni:version", text, fix)


def _set(hook: HookName, found: Patroni, line: str = "") -> str:
    """Return how to set a hook, to our line alone unless another is given.

    Patroni's own file overrides the dynamic configuration, even with null.
    """
    line = line or hook.line
    value = json.dumps(line) if re.search(r":\s|\s#|:$", line) else line
    if hook.key in section(found.local):
        reload = f"patronictl reload {found.local.get('scope')}"
        return f"Under postgresql in {found.path} write the following, then run {reload}: {hook.key}: {value}"
    word = f"postgresql.{hook.key}={value}"
    quoted = shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'
    return f"patronictl edit-config --force -s {quoted}"


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
    """Say what follows where the program of pre_promote cannot run."""
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
