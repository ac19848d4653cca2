"""Compares ``pg_dist_node`` with the configuration, and writes the metadata scripts: facts in, values out."""

from __future__ import annotations

import collections
import ipaddress
import re
from typing import TYPE_CHECKING

from resolver_agent.citus import metadata
from resolver_agent.citus.metadata import COORDINATOR_GROUP
from resolver_agent.config.model import Route
from resolver_agent.doctor.check import Check, of_server, without_citus, without_server
from resolver_agent.doctor.facts import Facts, Server, is_address
from resolver_agent.doctor.finding import Finding, Severity
from resolver_agent.routing.state import FENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.citus.metadata import Row
    from resolver_agent.config.model import Group
    from resolver_agent.doctor.facts import Database

_FIRST_SCRIPT = "Run the first script below with psql."
_SOME = 5
_SYNC = (
    "SELECT start_metadata_sync_to_node(nodename, nodeport) FROM pg_dist_node "
    "WHERE groupid = {} AND noderole = 'primary';"
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FIRST_WITH_CHECK = 11


def _rows(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the rows of every database. A worker without metadata has no rows."""
    for name, database in _databases(facts).items():
        for row in database.rows:
            yield from _row(facts, f"pg_dist_node (database {name})", database, row)
        yield from _addresses(facts, f"pg_dist_node (database {name})", database)


def _unused(facts: Facts) -> Iterator[Finding]:
    """Yield the names that are in no row."""
    databases = _databases(facts)
    rows = [row for database in databases.values() for row in database.rows if row.is_primary]
    used = {group.name for row in rows if (group := _following(facts, row)) is not None}
    places = list(dict.fromkeys(f"{row.name}:{row.port}" for row in rows if _group_of(facts, row) is None))
    unknown = [*places[:_SOME], *(["…"] if len(places) > _SOME else [])]
    for group in facts.config.groups if rows else ():
        if group.route is Route.FOLLOW and group.name not in used:
            is_coordinator = group is facts.own and any(one.group_id == COORDINATOR_GROUP for one in databases.values())
            function = "citus_set_coordinator_host" if is_coordinator else "citus_add_node"
            fix = (
                f"On the coordinator, run SELECT {function}('{group.name}', {_port(group)}); or take {group.name} out "
                "of `names`."
            )
            if unknown:
                fix = (
                    f"Do not add it yet: which servers {', '.join(unknown)} lead to could not be found out. If one of "
                    f"them leads to a node of {group.name}, Citus uses it under that name: see the finding about it."
                )
            yield Finding(
                Severity.WARNING,
                "metadata:unused",
                f"{group.name} is in the configuration, but in no row of pg_dist_node: Citus does not use it",
                fix,
            )


def _unasked(_facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield the databases that were not asked, because nobody can log in to them."""
    for name in server.invalid:
        text = f"database {name} is invalid: a DROP DATABASE was interrupted, and nobody can use it any more"
        fix = f"On this group's primary, run as a superuser: DROP DATABASE {metadata.identifier(name)};"
        yield Finding(Severity.WARNING, "database:invalid", text, fix)
    for name in server.closed:
        text = f"could not be checked: database {name}: it lets nobody in (ALLOW_CONNECTIONS false)"
        yield Finding(Severity.NOTE, "unchecked", text)


def coordinator(facts: Facts) -> Group | None:
    """Return the coordinator's group, if ``pg_dist_node`` has it."""
    rows = (row for one in _databases(facts).values() for row in one.rows if row.group_id == COORDINATOR_GROUP)
    return next((group for row in rows if (group := _group_of(facts, row)) is not None), None)


def to_names(facts: Facts) -> str | None:
    """Return the script that replaces addresses by names; None if there is nothing to replace."""
    changes = {}
    for database, found in _coordinated(facts).items():
        addressed = _addressed(facts, found)
        if addressed and not _rivals(facts, found):
            changes[database] = [
                metadata.Change.of(row, group.name, _port(group), note=f"was {row.name}:{row.port}")
                for row, group in addressed
            ]
    if not changes:
        return None
    title = "From addresses to names. Run it when `resolver-agent doctor` finds nothing else on any node."
    return metadata.script(f"{title} {_place(facts)}", changes, check=_can_check(facts))


def to_addresses(facts: Facts) -> str | None:
    """Return the way back: each row that has a name gets the address of its primary. None if no row is a group's.

    A host name or virtual address of the operator's own, which no agent is needed for, stays.
    """
    changes: dict[str, list[metadata.Change]] = {}
    unseen, local = set(), set()
    for database, found in _coordinated(facts).items():
        for row in found.rows:
            group = _group_of(facts, row) if row.is_primary else None
            if group is None or (_named(facts, row) is None and row.name not in facts.addresses(group) | {*_LOOPBACK}):
                continue
            address = facts.primary(group)
            if address is None:
                unseen.add(group.name)
            elif not _is_for_all(facts, address):
                local.add(f"{group.name} ({address})")
            else:
                change = metadata.Change.of(row, address, _port(group), note=group.name)
                changes.setdefault(database, []).append(change)
    if not (changes or unseen or local):
        return None
    title = f"The way back, from names to the addresses of the primaries of now. {_place(facts)}"
    if unseen:
        title += f" Left out, because exactly one primary is not seen: {', '.join(sorted(unseen))}."
    if local:
        title += (
            " Left out, because this node knows its primary only by an address that means another server elsewhere: "
            f"{', '.join(sorted(local))}. Print the script on another node of the coordinator, or write the address "
            "into the configuration."
        )
    return metadata.script(title, changes, check=_can_check(facts))


def _is_for_all(facts: Facts, address: str) -> bool:
    """Report whether an address means the same server on every node.

    Where a DNS name was looked up it may not, e.g. 127.0.1.1 on Debian. A configured address is the operator's word.
    """
    if not is_address(address) or address == FENCE:
        return False
    if any(address == node.host for group in facts.config.groups for node in group.nodes):
        return True
    found = ipaddress.ip_address(address)
    return not (found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast)


def _place(facts: Facts) -> str:
    group = coordinator(facts)
    address = facts.primary(group) if group is not None else None
    return f"For psql, as a superuser, on the coordinator's primary{f' ({address})' if address else ''}."


def _databases(facts: Facts) -> dict[str, Database]:
    return facts.server.with_citus if isinstance(facts.server, Server) else {}


def _coordinated(facts: Facts) -> dict[str, Database]:
    """Return the databases in which the local server is the coordinator: only there may metadata be changed."""
    return {name: one for name, one in _databases(facts).items() if one.group_id == COORDINATOR_GROUP}


def _can_check(facts: Facts) -> bool:
    found = (re.match(r"\d{1,4}", one.citus_version) for one in _coordinated(facts).values())
    return all(match is not None and int(match[0]) >= _FIRST_WITH_CHECK for match in found)


def _port(group: Group) -> int:
    return group.nodes[0].port  # all nodes of a group have the same


def _named(facts: Facts, row: Row) -> Group | None:
    """Return the group whose name is in a row."""
    return next((group for group in facts.config.groups if group.name == row.name.lower()), None)


def _meant(facts: Facts, row: Row) -> Group | None:
    """Return the group with ``route: follow`` that a row leads to, if it has an address or another name of a node."""
    if row.group_id == COORDINATOR_GROUP and row.name.lower() in _LOOPBACK:
        return facts.own if _coordinated(facts) else None
    return facts.group_at(row.name, row.port)


def _group_of(facts: Facts, row: Row) -> Group | None:
    return _named(facts, row) or _meant(facts, row)


def _following(facts: Facts, row: Row) -> Group | None:
    """Return the group with ``route: follow`` whose name belongs into a row."""
    named = _named(facts, row)
    if named is None:
        return _meant(facts, row)
    if named.route is Route.FOLLOW:
        return named
    groups = (group for group in facts.config.groups if group.route is Route.FOLLOW)
    return next((group for group in groups if not {*group.nodes}.isdisjoint(named.nodes)), None)


def _addressed(facts: Facts, database: Database) -> list[tuple[Row, Group]]:
    """Return the rows that have an address or the wrong name, each with the group whose name could replace it."""
    return [
        (row, group)
        for row in database.rows
        if row.is_primary and (group := _following(facts, row)) is not None and group is not _named(facts, row)
    ]


def _rivals(facts: Facts, database: Database) -> set[str]:
    """Return the names that would be in more than one row."""
    groups = (_following(facts, row) for row in database.rows if row.is_primary)
    names = collections.Counter(group.name for group in groups if group is not None)
    return {name for name, count in names.items() if count > 1}


def _addresses(facts: Facts, where: str, database: Database) -> Iterator[Finding]:
    rivals = _rivals(facts, database)
    if rivals - {group.name for row in database.rows if (group := _fixed(facts, row)) is not None}:
        yield Finding(
            Severity.ERROR,
            "metadata:twice",
            f"{where}: several rows are nodes of {', '.join(sorted(rivals))}, but two rows cannot have the same name",
            "Give each row a name of its own in `names`.",
        )
    addressed = [(row, group) for row, group in _addressed(facts, database) if _named(facts, row) is None]
    if addressed:
        rows = ", ".join(f"{row.name} (of {group.name})" for row, group in addressed)
        at_home = database.group_id == COORDINATOR_GROUP
        fix = (
            _FIRST_SCRIPT
            if at_home
            # Before Citus 11.3 a worker may still have an address that the coordinator has replaced.
            else "Run the script that `resolver-agent doctor` prints on the coordinator. If it prints none, run there: "
            + _SYNC.format(database.group_id)
        )
        if any(_named(facts, row) is not None for row in database.rows):
            text = f"{where} has addresses besides names, and an address does not follow a failover: {rows}"
            yield Finding(Severity.ERROR, "metadata:address", text, fix)
        else:
            text = f"{where} has no names yet: standbys are not used: {rows}"
            yield Finding(Severity.NOTE, "metadata:address", text, fix)


def _fixed(facts: Facts, row: Row) -> Group | None:
    """Return the group whose name would replace a name with a fixed route; None if the row has no such name."""
    named = _named(facts, row)
    return _following(facts, row) if named is not None and named.route is not Route.FOLLOW else None


def _row(facts: Facts, where: str, database: Database, row: Row) -> Iterator[Finding]:
    """Yield what is wrong with one row, whatever the others are."""
    if row.is_clone:
        yield Finding(
            Severity.NOTE,
            "metadata:clone",
            f"{where} has {row.name}:{row.port} as a clone that is not promoted: Citus does not use it yet",
            f"If it is no longer wanted, run on the coordinator: {row.call('citus_remove_clone_node')}",
        )
        return
    if not row.is_primary:
        yield Finding(
            Severity.WARNING,
            "metadata:secondary",
            f"{where} has {row.name}:{row.port} with the role {row.role}: with names the metadata needs no standbys",
            f"On the coordinator, run: {row.call('citus_remove_node')}",
        )
        return
    if not row.is_active:
        yield Finding(
            Severity.WARNING,
            "metadata:inactive",
            f"{where}: {row.name}:{row.port} is not active: Citus does not use it",
            f"On the coordinator, run: {row.call('citus_activate_node')}",
        )
    group = _named(facts, row)
    if group is None:
        if _meant(facts, row) is None:
            yield Finding(
                Severity.ERROR,
                "metadata:unknown",
                f"{where} has {row.name}:{row.port}, which is neither a name nor a node in the configuration, "
                "and leads to no node as far as this node can tell: it follows no failover",
                f"If it leads to nodes that have a name in {facts.config.path}, run on the coordinator: "
                f"SELECT citus_update_node({row.node_id}, 'NAME', PORT); with that name. Otherwise add a name for it, "
                "with its nodes, to `names`.",
            )
    elif group.route is not Route.FOLLOW:
        yield _fixed_route(facts, where, database, group, _fixed(facts, row))
    elif _port(group) != row.port:
        yield Finding(
            Severity.ERROR,
            "metadata:port",
            f"{where} has port {row.port} for {row.name}, but the configuration has {_port(group)}",
            f"On the coordinator, run {metadata.Change.of(row, group.name, _port(group)).call} or write to the "
            f"configuration: names.{group.name}.port: {row.port}",
        )


def _fixed_route(facts: Facts, where: str, database: Database, group: Group, following: Group | None) -> Finding:
    """Return the finding about a row that has a name with a fixed route, with the group that belongs there."""
    if following is None:
        fix = f"Write to the configuration: names.{group.name}.route: follow"
    elif following.name in _rivals(facts, database):
        fix = (
            f"{following.name} has the same nodes, and is in another row: two rows cannot lead to the same servers. "
            "Remove the row that should not be there, or correct the `nodes` of the two names."
        )
    elif database.group_id == COORDINATOR_GROUP:
        fix = _FIRST_SCRIPT
    else:
        fix = "Run the script that `resolver-agent doctor` prints on the coordinator."
    return Finding(
        Severity.ERROR,
        "metadata:standby" if group.route is Route.STANDBY else "metadata:route",
        f"{where} has {group.name} as a primary, but that name always resolves to a {group.route.value} "
        f"(route: {group.route.value})",
        fix,
    )


CHECKS = (
    Check("every database lets somebody in", of_server(_unasked), without_server),
    Check("pg_dist_node has names of the configuration, one for each group", _rows, without_citus),
    Check("every name is in pg_dist_node", _unused, without_citus),
)
