"""Compares ``pg_dist_node`` with the configuration, and writes the metadata scripts: facts in, values out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.citus import metadata
from resolver_agent.citus.metadata import COORDINATOR_GROUP
from resolver_agent.config.model import Route
from resolver_agent.doctor.facts import Facts, Server
from resolver_agent.doctor.finding import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.citus.metadata import Row
    from resolver_agent.config.model import Group
    from resolver_agent.doctor.facts import Database

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FIRST_WITH_CHECK = 11


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the rows of every database. A worker without metadata has no rows."""
    databases = _databases(facts)
    for name, database in databases.items():
        for row in database.rows:
            yield from _row(facts, f"pg_dist_node (database {name})", row)
        yield from _addresses(facts, f"pg_dist_node (database {name})", database)
    rows = [row for database in databases.values() for row in database.rows]
    used = {group.name for row in rows if (group := _group_of(facts, row)) is not None}
    for group in facts.config.groups if rows else ():
        if group.route is Route.FOLLOW and group.name not in used:
            is_coordinator = group is facts.own and any(one.group_id == COORDINATOR_GROUP for one in databases.values())
            function = "citus_set_coordinator_host" if is_coordinator else "citus_add_node"
            yield Finding(
                Severity.WARNING,
                "metadata:unused",
                f"{group.name} is in the configuration, but in no row of pg_dist_node: Citus does not use it",
                f"On the coordinator, run SELECT {function}('{group.name}', {_port(group)}); or take {group.name} out "
                "of `names`.",
            )


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
    """Return the way back: each row that has a name gets the address of its primary. None if no primary is seen."""
    changes: dict[str, list[metadata.Change]] = {}
    left_out = set()
    for database, found in _coordinated(facts).items():
        for row in found.rows:
            group = _group_of(facts, row) if row.is_primary else None
            address = facts.primary(group) if group is not None else None
            if group is not None and address is not None:
                change = metadata.Change.of(row, address, _port(group), note=group.name)
                changes.setdefault(database, []).append(change)
            elif group is not None:
                left_out.add(group.name)
    if not changes:
        return None
    title = f"The way back, from names to the addresses of the primaries of now. {_place(facts)}"
    if left_out:
        title += f" Left out, because exactly one primary is not seen: {', '.join(sorted(left_out))}."
    return metadata.script(title, changes, check=_can_check(facts))


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
    return all(int(one.citus_version.partition(".")[0]) >= _FIRST_WITH_CHECK for one in _coordinated(facts).values())


def _port(group: Group) -> int:
    return group.nodes[0].port  # all nodes of a group have the same


def _named(facts: Facts, row: Row) -> Group | None:
    """Return the group whose name is in a row."""
    return next((group for group in facts.config.groups if group.name == row.name.lower()), None)


def _meant(facts: Facts, row: Row) -> Group | None:
    """Return the group that has a node with the address in a row."""
    if row.group_id == COORDINATOR_GROUP and row.name in _LOOPBACK:
        return facts.own if _coordinated(facts) else None
    return facts.group_at(row.name)


def _group_of(facts: Facts, row: Row) -> Group | None:
    return _named(facts, row) or _meant(facts, row)


def _addressed(facts: Facts, database: Database) -> list[tuple[Row, Group]]:
    """Return the rows that have an address, each with the group whose name could replace it."""
    return [
        (row, group)
        for row in database.rows
        if row.is_primary and _named(facts, row) is None and (group := _meant(facts, row)) is not None
    ]


def _rivals(facts: Facts, database: Database) -> set[str]:
    """Return the names that would be in more than one row."""
    names = [group.name for row in database.rows if row.is_primary and (group := _group_of(facts, row)) is not None]
    return {name for name in names if names.count(name) > 1}


def _addresses(facts: Facts, where: str, database: Database) -> Iterator[Finding]:
    rivals = _rivals(facts, database)
    if rivals:
        yield Finding(
            Severity.ERROR,
            "metadata:twice",
            f"{where}: several rows are nodes of {', '.join(sorted(rivals))}, but two rows cannot have the same name",
            "Give each row a name of its own in `names`.",
        )
    addressed = _addressed(facts, database)
    if addressed:
        rows = ", ".join(f"{row.name} (of {group.name})" for row, group in addressed)
        at_home = database.group_id == COORDINATOR_GROUP
        fix = (
            "Run the first script below with psql."
            if at_home
            else "Run the script that `resolver-agent doctor` prints on the coordinator."
        )
        if any(_named(facts, row) is not None for row in database.rows):
            text = f"{where} has addresses besides names, and an address does not follow a failover: {rows}"
            yield Finding(Severity.ERROR, "metadata:address", text, fix)
        else:
            text = f"{where} has no names yet: standbys are not used: {rows}"
            yield Finding(Severity.NOTE, "metadata:address", text, fix)


def _row(facts: Facts, where: str, row: Row) -> Iterator[Finding]:
    """Yield what is wrong with one row, whatever the others are."""
    place = f"'{row.name}', {row.port}"
    if not row.is_primary:
        yield Finding(
            Severity.WARNING,
            "metadata:secondary",
            f"{where} has {row.name}:{row.port} as a secondary: with names the metadata needs no standbys",
            f"On the coordinator, run: SELECT citus_remove_node({place});",
        )
        return
    if not row.is_active:
        yield Finding(
            Severity.WARNING,
            "metadata:inactive",
            f"{where}: {row.name}:{row.port} is not active: Citus does not use it",
            f"On the coordinator, run: SELECT citus_activate_node({place});",
        )
    group = _named(facts, row)
    if group is None:
        if _meant(facts, row) is None:
            yield Finding(
                Severity.ERROR,
                "metadata:unknown",
                f"{where} has {row.name}:{row.port}, which is neither a name nor a node in the configuration: "
                "it follows no failover",
                f"Add a name for it, with its nodes, to `names` in {facts.config.path}.",
            )
    elif group.route is Route.STANDBY:
        yield Finding(
            Severity.ERROR,
            "metadata:standby",
            f"{where} has {row.name} as a primary, but that name always resolves to a standby (route: standby)",
            f"Write to the configuration: names.{group.name}.route: follow",
        )
    elif _port(group) != row.port:
        yield Finding(
            Severity.ERROR,
            "metadata:port",
            f"{where} has port {row.port} for {row.name}, but the configuration has {_port(group)}",
            f"On the coordinator, run {metadata.Change.of(row, group.name, _port(group)).call} or write to the "
            f"configuration: names.{group.name}.port: {row.port}",
        )
