"""Checks the password files: facts in, findings out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from resolver_agent.config.model import Route
from resolver_agent.doctor.check import Check, without_server
from resolver_agent.doctor.facts import Server, TextFile, Unknown, text_of
from resolver_agent.doctor.finding import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from resolver_agent.config.model import Node
    from resolver_agent.doctor.facts import Facts

_GROUP_AND_OTHERS = 0o077
_ENTRY = re.compile(r"((?:\\.|[^\\:])*):" * 4)
"""The fields of a line of a password file before the password."""


def _entries(text: str) -> list[list[str]]:
    """Return host, port, database and user of each line of a password file."""
    lines = (_ENTRY.match(line) for line in text.split("\n") if not line.startswith("#"))
    return [[re.sub(r"\\(.)", r"\1", field) for field in line.groups()] for line in lines if line is not None]


def _line(*fields: str) -> str:
    return ":".join([*(re.sub(r"([\\:])", r"\\\1", field) for field in fields), "PASSWORD"])


def _matches(entries: Iterable[list[str]], wanted: list[str]) -> bool:
    return any(all(have in ("*", want) for have, want in zip(entry, wanted, strict=True)) for entry in entries)


def _logins(facts: Facts) -> Iterator[tuple[TextFile, Mapping[str, str], set[Node]]]:
    """Yield each password file that the agent uses, with the login that it is for, and the nodes."""
    groups = facts.config.groups
    shared = {node for group in groups if not group.postgresql for node in group.nodes}
    found = [(facts.host.passfile, facts.config.postgresql, shared)]
    found += [
        (facts.host.own_passfiles.get(group.name), facts.config.login(group), set(group.nodes))
        for group in groups
        if group.postgresql
    ]
    for file, login, nodes in found:
        if file is not None and nodes and "password" not in login:
            yield file, login, nodes


def _agents_passfiles(facts: Facts) -> Iterator[Finding]:
    for file, login, nodes in _logins(facts):
        if not isinstance(file.text, Unknown):
            yield from _agents_passfile(facts, file, login, nodes)


def _agents_passfile(
    facts: Facts, file: TextFile, login: Mapping[str, str], nodes: AbstractSet[Node]
) -> Iterator[Finding]:
    """Check a password file of the agent's. libpq matches the host that it is given: a node's, never a managed name."""
    if file.text is None:
        yield Finding(
            Severity.WARNING,
            "passfile",
            f"{file.path}: no such password file: the agent logs in without a password",
            f"Write it, with mode 0600 and the line: {_line('*', '*', '*', login.get('user', '*'))}",
        )
        return
    yield from _too_open(file)
    entries = _entries(text_of(file) or "")
    user, dbname = login.get("user", "*"), login.get("dbname") or login.get("user", "*")
    refused = [
        node
        for node, state in facts.nodes.items()
        if node in nodes
        and state.latest is not None
        and state.latest.role is None
        and not _matches(entries, [node.host, str(node.port), dbname, user])
    ]
    names = {group.name for group in facts.config.groups}
    by_name = sorted({entry[0] for entry in entries} & names)
    if refused:
        why = f" (entries for {', '.join(by_name)} do not help: the agent connects by address)" if by_name else ""
        yield Finding(
            Severity.ERROR,
            "passfile",
            f"{file.path} has no entry for {', '.join(str(node) for node in refused)}{why}",
            f"Add the line: {_line(refused[0].host, str(refused[0].port), dbname, user)}",
        )


def _too_open(file: TextFile) -> Iterator[Finding]:
    if file.mode & _GROUP_AND_OTHERS:
        yield Finding(
            Severity.ERROR,
            "passfile",
            f"{file.path} has mode {file.mode:04o}: libpq ignores it",
            f"chmod 0600 {file.path}",
        )


def _citus_passfile(facts: Facts) -> Iterator[Finding]:
    """Check the password file of the server's user: Citus uses it, and connects by name."""
    if facts.host.citus_passfile is None:
        return
    yield from _too_open(facts.host.citus_passfile)
    entries = _entries(text_of(facts.host.citus_passfile) or "")
    for group in facts.config.groups:
        if group.route is Route.STANDBY:
            continue
        addresses = facts.addresses(group)
        for host, *rest in entries:
            if host in addresses and not _matches(entries, [group.name, *rest]):
                yield Finding(
                    Severity.WARNING,
                    "passfile:citus",
                    f"{facts.host.citus_passfile.path} has an entry for {host} but none for {group.name}: "
                    f"Citus connects to {group.name} and finds no password",
                    f"Add the line: {_line(group.name, *rest)}",
                )
                break


def _without_agents(facts: Facts) -> str | None:
    file = facts.host.passfile
    if any(not isinstance(one.text, Unknown) for one, *_ in _logins(facts)):
        return None
    if "password" in facts.config.postgresql:
        return "the configuration has a password, which counts instead"
    if file is None:
        return "the configuration names none"
    return f"{file.path}: {file.text.why}" if isinstance(file.text, Unknown) else None


def _without_citus(facts: Facts) -> str | None:
    file = facts.host.citus_passfile
    if not isinstance(facts.server, Server):
        return without_server(facts)
    if file is None:
        return "it is not known as which user the local PostgreSQL runs"
    if isinstance(file.text, Unknown):
        return f"{file.path}: {file.text.why}"
    if not facts.server.databases:
        return "no database here has Citus"
    return None if file.text else f"there is no {file.path}, or it is empty"


CHECKS = (
    Check("the agent's password file has an entry for each node", _agents_passfiles, _without_agents),
    Check("the password file of Citus has the names as well as the addresses", _citus_passfile, _without_citus),
)
