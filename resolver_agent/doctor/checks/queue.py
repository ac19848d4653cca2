"""Checks what the queue needs, apart from Patroni's hook: facts in, findings out."""

from __future__ import annotations

import ipaddress
import math
import re
from typing import TYPE_CHECKING

from resolver_agent.citus.metadata import identifier
from resolver_agent.doctor.check import Check, of_server, without_citus, without_server
from resolver_agent.doctor.checks.parameter import how_to_set
from resolver_agent.doctor.checks.postgres import role_sql
from resolver_agent.doctor.facts import Database, Facts, OwnSetting, Patroni, Server, Unknown, is_address
from resolver_agent.doctor.finding import Finding, Severity
from resolver_agent.doctor.hook import section

if TYPE_CHECKING:
    from collections.abc import Iterator

_LISTEN = "listen_addresses"
_EVERYWHERE = {"*", "0.0.0.0"}  # noqa: S104 -- compared with, not bound to
_BACKLOG = 4096
_CACHED = "citus.max_cached_conns_per_worker"
_PREVENT = "citus.prevent_incomplete_connection_establishment"
_CONNECT = "citus.node_connection_timeout"
_LEAST_CONNECT_S = 20.0
_GATE_S = 1.0
"""The gate stays closed for so long at most, besides ``drain``."""

_USUAL_S = 4
"""A switchover takes about so long."""

_FIRST_WITH_RETRY = 150000
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*(us|ms|s|min|h|d)?\s*")
_SECONDS = {"us": 1e-6, "ms": 1e-3, None: 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_OF_A_SESSION = {"database", "user", "database user", "client", "session"}
"""Sources of a value that counts for some sessions only, among them doctor's own."""

_MOST_SHOWN = 10


def _rooms(facts: Facts) -> Iterator[Finding]:
    """Yield the waiting rooms that cannot be opened: the local server has their port, or another process."""
    covered = _covered(facts, facts.server) if isinstance(facts.server, Server) else set()
    if covered and isinstance(facts.server, Server):
        found = facts.server.settings[_LISTEN]
        text = (
            f"{_LISTEN} is {found.value} ({found.source}): this leaves no address for waiting rooms, so statements for "
            f"{', '.join(sorted(covered))} fail during planned work, or wait 5 s at most"
        )
        yield Finding(Severity.WARNING, "queue:listen", text, _how_to_listen(facts, facts.server))
    for name, (address, port) in facts.rooms.items():
        if name in facts.room_faults and name not in covered:
            text = (
                f"{name}: the waiting room cannot be opened at {address}:{port}: {facts.room_faults[name]}: statements "
                "for it fail during planned work, or wait 5 s at most"
            )
            fix = f"Find what listens there (ss -ltnp 'sport = :{port}'), and let it listen at its own addresses only."
            yield Finding(Severity.WARNING, "queue:room", text, fix)


def _words(server: Server) -> list[str]:
    value = server.settings[_LISTEN].value if _LISTEN in server.settings else ""
    return [word for one in value.split(",") if (word := one.strip().strip('"'))]


def _covered(facts: Facts, server: Server) -> set[str]:
    """Return the names whose rooms the local server keeps closed by listening at their address and port."""
    port = server.settings["port"].value if "port" in server.settings else ""
    words = set(_words(server))
    return {
        name
        for name, (address, number) in facts.rooms.items()
        if str(number) == port
        if not words.isdisjoint(_EVERYWHERE) or address in words
    }


def _how_to_listen(facts: Facts, server: Server) -> str:
    """Return how to have the local server listen at this node's own addresses only; with Patroni in its file."""
    patroni = next((one for one in facts.host.patroni if isinstance(one, Patroni)), None)
    rooms = {address for address, _ in facts.rooms.values()}
    kept = [word for word in _words(server) if word not in _EVERYWHERE | rooms]
    wild = not _EVERYWHERE.isdisjoint(_words(server))
    addresses = list(dict.fromkeys([*(("127.0.0.1", *_own_addresses(facts, patroni)) if wild else ()), *kept]))
    others = ", with any other address that clients use here" if wild else ""
    if patroni is None:
        return f"Write to postgresql.conf, and restart PostgreSQL: {_LISTEN} = '{','.join(addresses)}'{others}"
    scope, name = patroni.local.get("scope"), patroni.local.get("name") or "MEMBER"
    shown = ",".join(f"[{one}]" if ":" in one else one for one in addresses)
    return (
        f"Under postgresql in {patroni.path} write `listen: {shown}:{server.settings['port'].value}`{others}; "
        f"then restart PostgreSQL: patronictl reload {scope} {name} && patronictl restart {scope} {name}"
    )


def _own_addresses(facts: Facts, patroni: Patroni | None) -> list[str]:
    """Return the addresses at which other nodes connect to the local server: as configured here, and in Patroni."""
    local = facts.local.role_seen
    found = [
        node.host if is_address(node.host) else seen.address or ""
        for group in facts.config.groups
        for node, seen in facts.seen(group).items()
        if local is not None and local.identity is not None and seen.identity == local.identity
    ]
    connect = section(patroni.local).get("connect_address") if patroni is not None else None
    if isinstance(connect, str):
        found.append(connect.rpartition(":")[0].strip("[]") if not is_address(connect) else connect)
    return list(dict.fromkeys(filter(_is_other, found))) or ["ADDRESS"]


def _is_other(host: str) -> bool:
    """Report whether a host is an address, and one for other nodes."""
    return is_address(host) and not ipaddress.ip_address(host).is_unspecified and host != "127.0.0.1"


def _backlog(facts: Facts) -> Iterator[Finding]:
    """Yield that few connections can wait in a room; the others get no answer until the network tries again."""
    most = facts.host.somaxconn
    if most is not None and most < _BACKLOG:
        text = (
            f"net.core.somaxconn is {most}: about {most} connections can wait for one name, and further ones may fail"
        )
        file = "/etc/sysctl.d/90-resolver-agent.conf"
        fix = f"echo 'net.core.somaxconn = {_BACKLOG}' >{file} && sysctl -p {file}"
        yield Finding(Severity.WARNING, "queue:somaxconn", text, fix)


def _citus(facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield the parameters of Citus that fail statements while they queue, or hold up the work."""
    for dbname, database in server.with_citus.items():
        yield from _citus_in(facts, dbname, database)


def _citus_in(facts: Facts, dbname: str, database: Database) -> Iterator[Finding]:
    if isinstance(database.own_settings, Unknown):
        text = f"could not be checked: settings of roles (database {dbname}): {database.own_settings.why}"
        yield Finding(Severity.NOTE, "queue:unchecked", text)
    yield from _connect_timeout(facts, dbname, database)
    if not database.coordinates:
        return
    if database.queue_faults:
        text = (
            f"database {dbname}: {', '.join(database.queue_faults)}: statements cannot be held back while a server "
            "stops, so planned work fails some of them"
        )
        yield Finding(Severity.WARNING, "role.sql", text, role_sql(dbname))
    prevent = database.settings.get(_PREVENT)
    if prevent is not None and prevent.value != "off":
        text = (
            f"{_PREVENT} is {prevent.value}: a finished statement goes on waiting for further connections to a server "
            "that stops, so planned work waits for it, and other statements can fail"
        )
        yield Finding(Severity.WARNING, _PREVENT, text, how_to_set(facts, _PREVENT, "off", prevent))
    for one in _own(database, _CACHED):
        if one.value != "0":
            text = (
                f"{_whose(one, dbname)} has {_CACHED} = {one.value} of its own: the agent cannot have its sessions "
                "close cached connections before planned work, which fails some of their statements"
            )
            yield Finding(Severity.WARNING, _CACHED, text, _reset(one, dbname))
    cached = database.settings.get(_CACHED)
    if cached is not None and cached.source == "command line":
        text = (
            f"{_CACHED} is set on the command line of PostgreSQL, which overrides all files: the agent cannot have "
            "sessions close cached connections before planned work, which fails some statements"
        )
        yield Finding(Severity.WARNING, _CACHED, text, "Set it in postgresql.conf instead, and restart PostgreSQL.")


def _uncache(_facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield what keeps the agent from having sessions close their cached connections before planned work."""
    why = "the agent cannot have sessions close cached connections before planned work, which fails some statements"
    if server.queue_faults:
        yield Finding(Severity.WARNING, "role.sql", f"{', '.join(server.queue_faults)}: {why}", role_sql("postgres"))
    elif server.may_alter and not server.may_uncache:
        text = f"role {server.user} may not change {_CACHED}: {why}"
        yield Finding(Severity.WARNING, "role.sql", text, role_sql("postgres"))


def _connect_timeout(facts: Facts, dbname: str, database: Database) -> Iterator[Finding]:
    """Yield where statements fail in the waiting room before their time, on each node that connects to others."""
    longest_s = _longest_s(facts)
    enough = f"{max(30, math.ceil(longest_s) + 15)}s"
    why = f"statements in a waiting room fail after that time; the queue lasts up to {longest_s:g} s"

    def is_short(value: str) -> bool:
        limit_s = _seconds(value)
        return limit_s is not None and (limit_s < _LEAST_CONNECT_S or limit_s <= longest_s)

    found = database.settings.get(_CONNECT)
    if any(row.group_id != database.group_id for row in database.rows):
        if found is not None and is_short(found.value):
            text = f"{_CONNECT} is {found.value} ({found.source}): {why}"
            yield Finding(Severity.WARNING, _CONNECT, text, how_to_set(facts, _CONNECT, enough, found))
        for one in _own(database, _CONNECT):
            if one.role is not None and is_short(one.value):
                text = f"{_whose(one, dbname)} has {_CONNECT} = {one.value} of its own: {why}"
                yield Finding(Severity.WARNING, _CONNECT, text, _reset(one, dbname))


def _timeouts(facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield the limits for statements that are shorter than they may have to wait."""
    drain_s = max(group.queue.drain_s for group in facts.config.groups if group.name in facts.rooms)
    waits = {
        "statement_timeout": _longest_s(facts),
        "transaction_timeout": _longest_s(facts),
        "lock_timeout": drain_s + _GATE_S,
    }
    for name, wait_s in waits.items():
        found = server.settings.get(name)
        short = (
            [f"{name} is {found.value} ({found.source})"]
            if found is not None and found.source not in _OF_A_SESSION and _is_below(found.value, wait_s)
            else []
        )
        own = [
            f"{_whose(one, dbname)} has {name} = {one.value}"
            for dbname, database in server.with_citus.items()
            if database.coordinates
            for one in _own(database, name)
            if _is_below(one.value, wait_s)
        ]
        shown = list(dict.fromkeys([*short, *own]))
        if shown:
            more = ", ..." if len(shown) > _MOST_SHOWN else ""
            text = (
                f"{', '.join(shown[:_MOST_SHOWN])}{more}: statements that wait longer in planned work still fail: they "
                f"wait up to {wait_s:g} s"
                + (f", in a switchover usually {_USUAL_S} s" if name != "lock_timeout" else ", usually below 1 s")
            )
            yield Finding(Severity.NOTE, f"queue:{name}", text)


def _unplanned(facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield what a queue for lost primaries asks of a coordinator."""
    longest_s = max((group.queue.unplanned_s for group in facts.config.groups if group.name in facts.rooms), default=0)
    if not longest_s:
        return
    most = server.settings.get("max_connections")
    if most is not None:
        text = (
            f"queue.unplanned is {longest_s:g} s: while a primary is lost, each client that waits keeps its session, "
            f"and new clients need further ones; max_connections is {most.value}, {server.sessions} are in use now"
        )
        fix = "Give max_connections room for all clients at once, or let a connection pool limit them."
        yield Finding(Severity.NOTE, "queue:max_connections", text, fix)
    if server.version < _FIRST_WITH_RETRY:
        text = (
            "queue.unplanned: before PostgreSQL 15 Citus does not connect again where a cached connection was closed: "
            "when a primary is lost, one more statement of each session that used it fails"
        )
        yield Finding(Severity.NOTE, "queue:retry", text)


def _longest_s(facts: Facts) -> float:
    """Return how long a statement may have to wait in a room here, in seconds."""
    queues = [group.queue for group in facts.config.groups if group.name in facts.rooms]
    return max(max(one.planned_s, one.unplanned_s) for one in queues)


def _own(database: Database, name: str) -> list[OwnSetting]:
    found = () if isinstance(database.own_settings, Unknown) else database.own_settings
    return [one for one in found if one.name == name]


def _whose(one: OwnSetting, dbname: str) -> str:
    """Return in words whose setting it is."""
    if one.role is None:
        return f"database {dbname}" if one.database else "ALTER ROLE ALL"
    return f"role {one.role}" + (f" in database {dbname}" if one.database else "")


def _reset(one: OwnSetting, dbname: str) -> str:
    """Return the statement that takes a setting away."""
    if one.role is None and one.database:
        return f"ALTER DATABASE {identifier(dbname)} RESET {one.name};"
    where = f" IN DATABASE {identifier(dbname)}" if one.database else ""
    return f"ALTER ROLE {'ALL' if one.role is None else identifier(one.role)}{where} RESET {one.name};"


def _seconds(value: str) -> float | None:
    """Return a duration of PostgreSQL's in seconds, milliseconds where it has no unit; None if it is none."""
    found = _DURATION.fullmatch(value)
    return float(found[1]) * _SECONDS[found[2]] if found is not None else None


def _is_below(value: str, wait_s: float) -> bool:
    """Report whether a limit is set, and shorter than a wait; 0 is no limit."""
    limit_s = _seconds(value)
    return limit_s is not None and 0 < limit_s < wait_s


def _without_rooms(facts: Facts) -> str | None:
    return None if facts.rooms else "no name queues here"


def _without_ports(facts: Facts) -> str | None:
    """While the local server is down nothing of ours may be at its port; without one, nothing is in the way."""
    return _without_rooms(facts) or (without_server(facts) if facts.config.has_local else None)


def _without_citus(facts: Facts) -> str | None:
    return _without_rooms(facts) or without_citus(facts)


def _without_unplanned(facts: Facts) -> str | None:
    off = all(group.queue.unplanned_s == 0 for group in facts.config.groups)
    return "queue.unplanned is 0s" if off else _without_workers(facts)


def _without_workers(facts: Facts) -> str | None:
    found = facts.server.with_citus.values() if isinstance(facts.server, Server) else ()
    here = None if any(one.coordinates for one in found) else "this is not a coordinator with workers"
    return _without_citus(facts) or here


CHECKS = (
    Check("waiting rooms can be opened", _rooms, _without_ports),
    Check("many connections can wait", _backlog, _without_rooms),
    Check("the parameters of Citus let statements queue", of_server(_citus), _without_citus),
    Check("the agent can have cached connections closed before planned work", of_server(_uncache), _without_workers),
    Check("no timeout is shorter than the wait", of_server(_timeouts), _without_workers),
    Check("there is room for clients while a primary is lost", of_server(_unplanned), _without_unplanned),
)
