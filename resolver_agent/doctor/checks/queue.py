"""Checks what the queue needs, apart from Patroni's hook: facts in, findings out."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from resolver_agent.doctor.facts import Facts, Patroni, Server, is_address
from resolver_agent.doctor.finding import Finding, Severity
from resolver_agent.doctor.hook import section

if TYPE_CHECKING:
    from collections.abc import Iterator

_LISTEN = "listen_addresses"
_EVERYWHERE = {"*", "0.0.0.0"}  # noqa: S104 -- compared with, not bound to
_BACKLOG = 4096


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what keeps a name from queueing on this node."""
    if not facts.rooms:
        return
    yield from _rooms(facts)
    yield from _backlog(facts)


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
