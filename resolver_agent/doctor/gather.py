"""Gathers the facts for doctor, concurrently and within seconds, and changes nothing.

A fact that cannot be gathered is an ``Unknown`` with the reason. The checks judge the facts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pwd
import socket
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from resolver_agent.control import client
from resolver_agent.control.report import Status, from_json
from resolver_agent.doctor import files, gather_patroni, gather_postgres, rooms, systemd
from resolver_agent.doctor.facts import Facts, Host, Server, TextFile, Unit, Unknown, text_of
from resolver_agent.observe.observer import Observer
from resolver_agent.patroni.client import ApiError, fetch, read_leadership
from resolver_agent.system import dns, threads
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resolver_agent.config.model import Config, PatroniApi

_T = TypeVar("_T")

UNITS = ("resolver-agent.service", "resolver-agent.socket")

_STATEMENTS = 5
"""The local server is given up after so many times ``timeout``."""

_PROGRAMS_S = 15.0
"""The programs of Patroni's hook are given up after so many seconds."""

_MOST_HOSTS = 64
"""So many hosts in ``pg_dist_node`` that the configuration does not have are looked up."""

_DIGITS = 20

_CLOUD_FILES = (
    "etc/cloud/cloud.cfg",
    "etc/cloud/cloud.cfg.d/*.cfg",
    "var/lib/cloud/instance/vendor-cloud-config.txt",
    "var/lib/cloud/instance/vendor2-cloud-config.txt",
    "var/lib/cloud/instance/cloud-config.txt",
)
"""Later ones override earlier ones (ConfigMerger in cloudinit/helpers.py)."""


async def gather(config: Config, *, root: Path = Path("/")) -> Facts:
    """Return the facts of this node; its files are looked for below ``root``."""
    limit_s = config.timeout_s

    async def within(seconds: float, function: Callable[..., _T], *arguments: Any) -> _T | Unknown:
        try:
            return await asyncio.wait_for(threads.call(function, *arguments), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            return Unknown(f"no answer within {seconds:g} s")
        except Exception as error:  # noqa: BLE001 -- whatever is odd out there, the rest is still checked
            return Unknown(plain(f"{type(error).__name__}: {error}"))

    apis = {
        f"{group.name}: Patroni on {node.host}": (node.host, group.patroni)
        for group in config.groups
        if group.patroni is not None
        for node in group.nodes
    }
    seen, server, units, unordered, agent, *answers = await asyncio.gather(
        _look_out(config),
        within(_STATEMENTS * max(2, limit_s), _ask_server, config),
        within(2 * limit_s, _units, root, limit_s),
        within(2 * limit_s, _unordered, root, limit_s),
        within(2 * limit_s, _agent, config),
        *(within(2 * limit_s, _leadership, host, api, limit_s) for host, api in apis.values()),
    )
    faults = {name: answer.why for name, answer in zip(apis, answers, strict=True) if answer is not None}
    os_user, data_dir = (server.os_user, server.data_dir) if isinstance(server, Server) else (None, None)
    find = partial(gather_patroni.find, root=root, user=os_user, timeout_s=limit_s, data_dir=data_dir)
    patroni = await within(_PROGRAMS_S, find, Path(config.path)) if config.has_local else ()
    host = Host(
        hosts=files.read(Path(config.hosts_file)),
        nsswitch=files.read(root / "etc/nsswitch.conf"),
        nscd=files.read(root / "etc/nscd.conf") if _listens(root / "var/run/nscd/socket") else None,
        cloud=()
        if (root / "etc/cloud/cloud-init.disabled").exists()
        else tuple(files.read(path, limit_bytes=2**20) for path in _below(root, _CLOUD_FILES)),
        passfile=files.read(Path(path)) if (path := config.postgresql.get("passfile")) else None,
        own_passfiles={
            group.name: files.read(Path(path))
            for group in config.groups
            if group.postgresql and (path := config.login(group).get("passfile"))
        },
        citus_passfile=_passfile_of(os_user),
        agent=agent,
        units=units,
        unordered=() if isinstance(unordered, Unknown) else unordered,
        patroni=(patroni,) if isinstance(patroni, Unknown) else patroni,
        hook_fault=_hook_fault(Path(client.socket_path(config.runtime_dir)), os_user),
        patroni_faults=faults,
        somaxconn=_number(files.read(root / "proc/sys/net/core/somaxconn")),
    )
    facts = await _identified(Facts(**seen, server=server, host=host), within)
    # While PostgreSQL is down, nothing of ours may be at its port.
    if isinstance(server, Server) or not config.has_local:
        facts = dataclasses.replace(facts, room_faults=rooms.faults(facts.rooms))
    return facts


async def _identified(facts: Facts, within: Callable[..., Any]) -> Facts:
    """Add where the hosts in ``pg_dist_node`` lead that the configuration does not have."""
    limit_s = 2 * max(2, facts.config.timeout_s)
    hosts = sorted({host for host, _ in _unidentified(facts).values()})[:_MOST_HOSTS]
    answers = await asyncio.gather(*(within(limit_s, dns.look_up, host, socket.getaddrinfo) for host in hosts))
    found = {host: answer for host, answer in zip(hosts, answers, strict=True) if isinstance(answer, list)}
    facts = dataclasses.replace(facts, resolved=found)
    databases = {name for name, *_ in _unidentified(facts)}
    answers = await asyncio.gather(
        *(within(limit_s, gather_postgres.reached, facts.config, name, limit_s) for name in sorted(databases))
    )
    reached = [answer for answer in answers if isinstance(answer, dict)]
    return dataclasses.replace(facts, reached={place: one for answer in reached for place, one in answer.items()})


def _unidentified(facts: Facts) -> dict[tuple[str, int], tuple[str, int]]:
    """Return the hosts and ports in ``pg_dist_node`` that are no group's, by database and node id."""
    databases = facts.server.with_citus if isinstance(facts.server, Server) else {}
    names = {group.name for group in facts.config.groups}
    return {
        (name, row.node_id): (row.name, row.port)
        for name, database in databases.items()
        for row in database.rows
        if row.is_primary and row.name.lower() not in names and facts.group_at(row.name, row.port) is None
    }


async def _look_out(config: Config) -> dict[str, Any]:
    """Probe every server once, ask Patroni, and return that part of the facts, by name."""
    observer = Observer()
    observer.watch(config)
    try:
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):  # a look-up of a name may take very long
            await asyncio.wait_for(observer.look(), _STATEMENTS * max(2, config.timeout_s))
        return {
            "config": observer.config,
            "nodes": observer.nodes,
            "local": observer.local,
            "alerts": tuple(observer.alerts),
        }
    finally:
        await observer.close()


def _ask_server(config: Config) -> Server | Unknown | None:
    return gather_postgres.ask(config) if config.has_local else None


def _below(root: Path, patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]


def _number(file: TextFile) -> int | None:
    """Return the number in a file; None if there is none."""
    text = (text_of(file) or "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else None


def _passfile_of(user: str | None) -> TextFile | None:
    """Return the password file that libpq uses inside a server that runs as ``user``."""
    try:
        return files.read(Path(pwd.getpwnam(user).pw_dir, ".pgpass")) if user else None
    except KeyError:
        return None


def _hook_fault(path: Path, user: str | None) -> str | None:
    """Return why a user cannot ask the agent over its socket; None if it can, or if that is not known."""
    try:
        entry, found = pwd.getpwnam(user or ""), path.stat()
    except (KeyError, OSError):
        return None
    member = found.st_gid in os.getgrouplist(entry.pw_name, entry.pw_gid) and found.st_mode & stat.S_IWGRP
    if member or found.st_uid == entry.pw_uid or found.st_mode & stat.S_IWOTH:
        return None
    mode = stat.S_IMODE(found.st_mode)
    return f"user {entry.pw_name} may not connect to {path} (mode {mode:04o}, group {found.st_gid})"


def _listens(path: Path) -> bool:
    """Report whether a process listens on a Unix socket, or may do so."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)  # noqa: FBT003 -- the name of the argument is "flag"
            connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError:
        return True
    return True


def _units(root: Path, timeout_s: float) -> dict[str, Unit] | Unknown | None:
    """Return the state of the agent's units; None where systemd does not run."""
    found = systemd.show(root, ("LoadState", "UnitFileState", "ActiveState"), UNITS, timeout_s=timeout_s)
    if found is None or isinstance(found, Unknown):
        return found
    if len(found) != len(UNITS):
        return Unknown("the output of systemctl show cannot be read")
    return {
        name: Unit(*(plain(one.get(key, "")) for key in ("LoadState", "UnitFileState", "ActiveState")))
        for name, one in zip(UNITS, found, strict=True)
    }


def _unordered(root: Path, timeout_s: float) -> tuple[str, ...]:
    """Return the units of Patroni, instances of Debian's template included, that do not start after the agent's."""
    found = systemd.show(root, ("Id", "After", "LoadState"), ("*patroni*.service",), timeout_s=timeout_s)
    return tuple(
        plain(one["Id"])
        for one in (found if isinstance(found, list) else ())
        if one.get("Id") and one.get("LoadState") == "loaded" and UNITS[0] not in one.get("After", "").split()
    )


def _agent(config: Config) -> Status | Unknown | None:
    """Return the status of the running agent; None if no agent runs."""
    try:
        return from_json(Status, client.ask_running(config.runtime_dir, "status", timeout_s=config.timeout_s))
    except client.NoAgentError:
        return None
    except client.ControlError as error:
        return Unknown(str(error))


def _leadership(host: str, api: PatroniApi, timeout_s: float) -> Unknown | None:
    """Ask a Patroni who leads, as the agent does; return what was wrong with the answer, if anything."""
    try:
        read_leadership(fetch(host, api, "/leader", timeout_s))
    except ApiError as error:
        return Unknown(str(error))
    return None
