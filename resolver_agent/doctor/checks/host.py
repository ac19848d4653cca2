"""Checks name lookups, the hosts file, the agent and its units: facts in, findings out.

The agent's own alerts (a file that cannot be written, ...) are counted, not repeated. What is only information counts
for nothing.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

from resolver_agent.config import yaml12
from resolver_agent.doctor.check import Check
from resolver_agent.doctor.facts import Unknown, text_of
from resolver_agent.doctor.finding import Finding, Severity
from resolver_agent.hosts import block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.doctor.facts import Facts, TextFile

_SERVICE, _SOCKET = "resolver-agent.service", "resolver-agent.socket"
_SHOWN = {_SERVICE: "unit", _SOCKET: "socket"}
_DROP_IN = (
    f"mkdir -p /etc/systemd/system/{_SOCKET}.d && resolver-agent show local-off "
    f">/etc/systemd/system/{_SOCKET}.d/local-off.conf && systemctl daemon-reload"
)

_INSTANCE = "var/lib/cloud/instance/"

_HARMLESS = {"myhostname", "mymachines"}
"""Services that may stand before ``files``: they answer only for this host and for containers on it."""


def _unchecked(facts: Facts) -> Iterator[Finding]:
    """Yield what could not be checked."""
    host = facts.host
    passfiles = (host.passfile, *host.own_passfiles.values(), host.citus_passfile)
    files = dict.fromkeys((host.hosts, host.nsswitch, host.nscd, *passfiles, *host.cloud))
    unread = ((file.path, file.text) for file in files if file is not None)
    others = (("the agent", host.agent), ("systemd", host.units))
    for what, fact in (*unread, *others):
        if isinstance(fact, Unknown):
            yield Finding(Severity.WARNING, "unchecked", f"could not be checked: {what}: {fact.why}")


def _nscd(facts: Facts) -> Iterator[Finding]:
    """Yield that nscd keeps what a lookup has found."""
    host = facts.host
    caching = re.findall(r"^[ \t]*enable-cache[ \t]+hosts[ \t]+(\w+)", text_of(host.nscd) or "", re.MULTILINE)
    if host.nscd is not None and caching[-1:] == ["yes"]:
        yield Finding(
            Severity.ERROR,
            "nscd",
            "nscd runs and caches host names: after a name has moved, lookups still return its old address",
            f"Set `enable-cache hosts no` in {host.nscd.path}, then run: systemctl restart nscd",
        )


def _cloud(facts: Facts) -> Iterator[Finding]:
    """Yield that cloud-init rewrites the hosts file: user data and vendor data override what is in /etc/cloud."""
    documents = {file.path: _yaml(text_of(file) or "") for file in facts.host.cloud}
    managed = [(path, found["manage_etc_hosts"]) for path, found in documents.items() if "manage_etc_hosts" in found]
    modules = [
        (path, found["cloud_init_modules"]) for path, found in documents.items() if "cloud_init_modules" in found
    ]
    if not managed or str(managed[-1][1]).lower() not in ("true", "template", "yes", "on", "1"):
        return
    if modules and "update_etc_hosts" not in str(modules[-1][1]):
        return
    path, value = managed[-1]
    text = (
        f"{path}: manage_etc_hosts: {value}: cloud-init rewrites the hosts file at every boot and drops the agent's "
        "block"
    )
    where = modules[-1][0] if modules else ""
    if _INSTANCE not in path:
        fix = f"Set `manage_etc_hosts: false` in {path}."
    elif where and _INSTANCE not in where:
        fix = f"Take update_etc_hosts out of cloud_init_modules in {where}: the cloud overrides the rest."
    else:
        fix = "touch /etc/cloud/cloud-init.disabled, or take manage_etc_hosts out of the user data in the cloud."
    yield Finding(Severity.WARNING, "cloud-init", text, fix)


def _yaml(text: str) -> dict[str, Any]:
    try:
        document, _ = yaml12.read(text)
    except yaml12.YamlError:  # cloud-init ignores such a file, too
        return {}
    return document if isinstance(document, dict) else {}


def _nsswitch(facts: Facts) -> Iterator[Finding]:
    """Yield what keeps a lookup from asking the hosts file first."""
    path = facts.host.nsswitch.path
    line = re.search(r"^[ \t]*hosts:([^#\n]*)", text_of(facts.host.nsswitch) or "", re.MULTILINE)
    if line is None:
        yield Finding(
            Severity.WARNING, "nsswitch", f"{path} has no line for hosts", f"Write to {path}: hosts: files dns"
        )
        return
    words = re.findall(r"\[[^]]*\]|\S+", line[1])
    services = [word for word in words if not word.startswith("[")]
    before = list(itertools.takewhile(lambda one: one != "files", (one for one in services if one not in _HARMLESS)))
    if not before:
        return
    first = before[0]
    late = first == "resolve" and "files" in services
    yield Finding(
        Severity.WARNING if late else Severity.ERROR,
        "nsswitch",
        f"{path}: {first} is asked for host names before the hosts file"
        + (": systemd-resolved sees a change of that file up to 2 s late" if late else ""),
        f"Write to {path}: hosts: {' '.join(['files', *(word for word in words if word != 'files')])}",
    )


def _hosts(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the agent's block, and other lines that have one of its names."""
    path, content = facts.host.hosts.path, (text_of(facts.host.hosts) or "").encode("utf-8", "surrogateescape")
    names = [group.name for group in facts.config.groups]
    try:
        said = {target.name: target.address for target in block.recall(content, names)}
        conflicts = block.conflicts(content, names)
    except block.BlockError as error:
        yield Finding(Severity.ERROR, "hosts:block", f"{path}: {error}")
        return
    for conflict in conflicts:
        yield Finding(Severity.ERROR, "hosts:conflict", f"{path}: {conflict.fault}", conflict.fix)
    missing = [name for name in names if name not in said]
    if missing:
        yield Finding(
            Severity.ERROR,
            "hosts:missing",
            f"{path} has no line of the agent for {', '.join(missing)}: lookups go on to the DNS",
            "Run `systemctl start resolver-agent`. If the lines are still missing, `resolver-agent status` says why.",
        )
    agent = facts.host.agent
    if agent is None or isinstance(agent, Unknown):
        return
    stale = [
        f"{one.name} resolves to {said[one.name]}, not {one.address}"
        for one in agent.names
        if one.address and said.get(one.name, one.address) != one.address
    ]
    if stale:
        yield Finding(
            Severity.ERROR,
            "hosts:stale",
            f"{path} differs from what the agent has decided: {'; '.join(stale)}",
            "resolver-agent status",
        )


def _agent(facts: Facts) -> Iterator[Finding]:
    host = facts.host
    if host.agent is None:
        yield Finding(
            Severity.ERROR,
            "agent",
            "no agent runs here: the names follow no failover",
            "systemctl enable --now resolver-agent.socket resolver-agent.service",
        )
    elif not isinstance(host.agent, Unknown) and (alerts := sum(one.wants_attention for one in host.agent.alerts)):
        plural = "s" if alerts > 1 else ""
        yield Finding(Severity.WARNING, "alerts", f"the agent has {alerts} alert{plural}", "resolver-agent status")


def _units(facts: Facts) -> Iterator[Finding]:
    host = facts.host
    for name, unit in host.units.items() if isinstance(host.units, dict) else ():
        if unit.load == "not-found":
            yield Finding(
                Severity.ERROR,
                "systemd",
                f"systemd does not know {name}",
                f"resolver-agent show {_SHOWN[name]} >/etc/systemd/system/{name} && systemctl daemon-reload",
            )
            continue
        if unit.enabled != "enabled":
            why = {
                _SERVICE: "the agent does not start at the next boot",
                _SOCKET: "after the next boot Patroni's hook cannot start a stopped agent before a promotion"
                if facts.config.has_local
                else "after the next boot only root can ask the agent",
            }[name]
            yield Finding(
                Severity.ERROR, "systemd", f"{name} is {unit.enabled or unit.load}: {why}", f"systemctl enable {name}"
            )
        if unit.active != "active":
            fix = f"systemctl start {name}"
            if name == _SOCKET and not facts.config.has_local:
                fix = f"If there is no group postgres here: {_DROP_IN}; then: {fix}"
            yield Finding(Severity.ERROR, "systemd", f"{name} is {unit.active}", fix)
    for name in host.unordered:
        folder = f"/etc/systemd/system/{re.sub('@.*', '@.service', name)}.d"
        yield Finding(
            Severity.WARNING,
            "systemd:order",
            f"{name} does not start after the agent: at boot PostgreSQL may start before the names are written",
            f"mkdir -p {folder} && printf '[Unit]\\nAfter={_SERVICE}\\n' >{folder}/resolver-agent.conf && "
            "systemctl daemon-reload",
        )


def _unread(file: TextFile) -> str | None:
    return f"{file.path}: {file.text.why}" if isinstance(file.text, Unknown) else None


def _without_agent(facts: Facts) -> str | None:
    return facts.host.agent.why if isinstance(facts.host.agent, Unknown) else None


def _without_systemd(facts: Facts) -> str | None:
    if isinstance(facts.host.units, Unknown):
        return facts.host.units.why
    return "systemd does not run here" if facts.host.units is None else None


CHECKS = (
    Check("files, the agent and systemd could be read and asked", _unchecked),
    Check("host names are looked up in the hosts file first", _nsswitch, lambda facts: _unread(facts.host.nsswitch)),
    Check("nscd keeps no host names", _nscd, lambda facts: None if facts.host.nscd else "nscd does not run"),
    Check(
        "cloud-init leaves the hosts file alone",
        _cloud,
        lambda facts: None if facts.host.cloud else "there is no cloud-init",
    ),
    Check(
        "the hosts file has the agent's lines, and no others for its names",
        _hosts,
        lambda facts: _unread(facts.host.hosts),
    ),
    Check("the agent runs, and has no alerts", _agent, _without_agent),
    Check("systemd starts the agent, and Patroni after it", _units, _without_systemd),
)
