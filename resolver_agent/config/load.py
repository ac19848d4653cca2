"""From the text of the configuration file to a ``Config``, or to every error in it at once.

Only ``load`` and ``read`` touch the file system; ``parse`` is a function of its arguments. This module knows the keys
and which values must agree; ``values.py`` parses a single value, ``reader.py`` applies tables of keys and collects the
errors, ``yaml12.py`` reads YAML, ``patroni_yml.py`` reads Patroni's own section.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import socket
import stat
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from resolver_agent.config import patroni_yml, source, values, yaml12
from resolver_agent.config.model import Config, Fallback, Group, Node, OnChange, PatroniApi, Queue, Route, with_login
from resolver_agent.config.reader import Reader, Required, Table, TooManyErrorsError, as_is
from resolver_agent.config.yaml12 import dotted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


class ConfigError(ValueError):
    """All errors in a configuration file: ``errors`` has one ``FILE: key: fault`` for each."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


DEFAULT_HOSTS_FILE = "/etc/hosts"
DEFAULT_RUNTIME_DIR = "/run/resolver-agent"
DEFAULT_STATE_DIR = "/var/lib/resolver-agent"
_AGENTS_PASSFILE = "/etc/resolver-agent.pgpass"
"""The password file of the sample: it holds the agent's own password and no other."""

_FALLBACK = (
    "there is no default, expected none (reads through a name stop while it has no fit standby), primary (that name "
    "then resolves to its primary: only where readers on standbys use a database role of their own) or all (as "
    "primary, with every name at once)"
)
_NAMES = "expected the names in pg_dist_node, e.g. wk1: {nodes: [192.168.234.203, 192.168.234.204]}"
_NODES = "expected a list of addresses, e.g. [192.168.234.203, 192.168.234.204]"

_PER_NAME: Table = {
    "route": (values.member(Route), Route.FOLLOW),
    "port": (values.port, 5432),
    "max_lag_bytes": (values.optional(values.size_bytes), None),
    "max_lag_seconds": (values.optional(partial(values.duration_s, least="1ms", most="24h")), None),
    "failback_delay": (partial(values.duration_s, least="0", most="24h"), 10.0),
}
_TOP: Table = {
    "fallback": (values.member(Fallback), Required(_FALLBACK)),
    "names": (values.filled(dict, _NAMES), Required(_NAMES)),
    "postgresql": (as_is, {}),
    "local": (as_is, {}),
    **_PER_NAME,
    "interval": (partial(values.duration_s, least="10ms", most="1h"), 1.0),
    "timeout": (partial(values.duration_s, least="10ms", most="1h"), 2.0),
    "citus": (values.word("auto", "off"), "auto"),
    "hosts_file": (values.path, DEFAULT_HOSTS_FILE),
    "runtime_dir": (values.path, DEFAULT_RUNTIME_DIR),
    "state_dir": (values.path, DEFAULT_STATE_DIR),
    "queue": (as_is, {}),
    "on_change": (as_is, {}),
    "log": (as_is, {}),
    "http": (as_is, {}),
}
_QUEUE_MOST = {"planned": "5m", "drain": "4s", "unplanned": "5m"}
"""The longest times; the hook of a stop has 6 s in all."""
_PATRONI_API: Table = {
    "port": (values.port, Required("expected the port of Patroni's REST API, e.g. 8008")),
    **dict.fromkeys(("cacert", "cert", "key"), (values.path, None)),
    "networks": (values.networks, ()),
}
_ON_CHANGE: Table = {
    "command": (values.optional(values.command), None),
    "timeout": (partial(values.duration_s, least="100ms", most="5m"), 10.0),
}
_LOG: Table = {
    "format": (values.word("text", "json"), "text"),
    "level": (values.word("debug", "info", "warning", "error"), "info"),
}

_HTTP: Table = {"listen": (values.optional(values.socket_address), None)}

_UNDER_A_NAME = {key: f"it belongs under a name: names.NAME.{key}" for key in ("nodes", "patroni")}
_AT_THE_TOP = dict.fromkeys(
    _TOP.keys() - _PER_NAME.keys() - {"queue", "postgresql"}, "it is set once for all names, at the top level"
)

# Connection keywords that the agent sets itself, or that would hide a server from it.
_ANY_SERVER = {
    "service": "libpq's service files are not read: write its keywords here",
    "client_encoding": "the agent chooses it for each database: remove it",
    "connect_timeout": "`timeout` bounds every probe: remove it",
    "replication": "probes are ordinary sessions: remove it",
    "target_session_attrs": "servers of either role have to answer: remove it",
}
_LOCAL = {**_ANY_SERVER, "hostaddr": "give the address as `host`"}
_LOCAL_FIX = "expected a map, or off where there is no PostgreSQL on this host"
_NO_FOLLOW = (
    "follow found, which goes by the role of the local PostgreSQL, and there is none (local: off), expected `route: "
    "primary` or `route: standby`"
)
_EVERY_NODE = {
    **_ANY_SERVER,
    **dict.fromkeys(("host", "hostaddr"), "the nodes are given under `names`: remove it"),
    "port": "the nodes' port is `port` at the top level or at a name: remove it",
}
_LOGIN = {"user", "password", "passfile", "sslcert", "sslkey"}
_NODES_ALONE = {"require_auth", "channel_binding"}
"""What a socket cannot meet."""
_SAFE_AUTH = "scram-sha-256,gss,none"
"""What gives nothing away; `none` is also the login by a certificate."""
_DEFAULT_LOGIN = {"user": "resolver_agent", "dbname": "postgres"}


def _nodes(
    reader: Reader, key: str, group: Mapping[str, Any], *, managed: Iterable[str], seen: dict[tuple[Route, Node], str]
) -> tuple[Node, ...]:
    """Return the nodes of one name. ``seen`` has the key of every node read so far; these are added."""
    nodes = []
    for i, item in enumerate(group["nodes"] or ()):
        at = f"{key}[{i}]"
        host = reader.value(at, values.node_host, item)
        if host is None:
            continue
        if host in managed:
            reader.error(at, f"{host!r} is a name that this agent manages, expected an address or another DNS name")
        nodes.append(node := Node(host, group["port"]))
        first = seen.setdefault((group["route"], node), at)
        if first != at:
            reader.error(
                at, f"{host} is already given as {first}, expected each node once, and under one name per route"
            )
    return tuple(nodes)


def _patroni_api(reader: Reader, key: str, found: Any) -> PatroniApi | None:
    if found is None:
        return None
    api = PatroniApi(**reader.fields(key, found, _PATRONI_API, misplaced={}))
    if api.key is not None and api.cert is None:
        reader.error(dotted(key, "key"), "given without `cert`, expected the certificate of this key as `cert`")
    return api


def _queue(reader: Reader, key: str, found: Any, defaults: Queue) -> Queue:
    """Return how long statements may wait; what is not set is as in ``defaults``."""
    table = {
        name: (partial(values.duration_s, least="0", most=most), getattr(defaults, f"{name}_s"))
        for name, most in _QUEUE_MOST.items()
    }
    read = reader.fields(key, found, table, misplaced={})
    return Queue(**{f"{name}_s": seconds for name, seconds in read.items()})


def _groups(
    reader: Reader, key: str, names: Mapping[str, Any], *, defaults: Mapping[str, Any], hostname: str, queue: Queue
) -> tuple[Group, ...]:
    """Return the names in the file's order; what a name does not set is taken from the top level."""
    table = {
        "nodes": (values.filled(list, _NODES), Required(_NODES)),
        "patroni": (as_is, None),
        "queue": (as_is, {}),
        "postgresql": (as_is, {}),
        **{name: (parse, defaults[name]) for name, (parse, _) in _PER_NAME.items()},
    }
    managed = {name.lower() for name in names}
    seen: dict[tuple[Route, Node], str] = {}
    groups: dict[str, Group] = {}
    for written, found in names.items():
        at = dotted(key, written)
        name = reader.value(at, partial(values.managed_name, hostname=hostname), written, written)
        if name in groups:
            reader.error(at, "given a second time, expected once: names compare without regard to case")
        group = reader.fields(at, found, table, misplaced=_AT_THE_TOP)
        groups[name] = Group(
            name=name,
            nodes=_nodes(reader, f"{at}.nodes", group, managed=managed, seen=seen),
            route=group["route"],
            max_lag_bytes=group["max_lag_bytes"],
            max_lag_s=group["max_lag_seconds"],
            failback_delay_s=group["failback_delay"],
            patroni=_patroni_api(reader, f"{at}.patroni", group["patroni"]),
            queue=_queue(reader, f"{at}.queue", group["queue"], queue),
            postgresql=MappingProxyType(reader.keywords(f"{at}.postgresql", group["postgresql"], refused=_EVERY_NODE)),
        )
    _refuse_two_logins(reader, key, groups.values())
    return tuple(groups.values())


def _refuse_two_logins(reader: Reader, key: str, groups: Iterable[Group]) -> None:
    """Add an error where a node has different logins under two names: there is one session on it for both."""
    first: dict[Node, Group] = {}
    for group in groups:
        for node in group.nodes:
            before = first.setdefault(node, group)
            if before.postgresql != group.postgresql:
                at = f"{dotted(key, group.name)}.postgresql"
                reader.error(at, f"other than that of {before.name}, which has {node} too, expected the same login")
                break


def _logins(
    given: Mapping[str, str], local: Mapping[str, str], patroni: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the keywords for the nodes and those for the local server.

    Patroni's superuser logs in to the local server alone, and only if the section has no login; two logins are never
    mixed. A node that asks for a password in clear or by MD5 gets none: whoever has its address would have it then. The
    local server may also let the agent in without any authentication, by the socket's peer.
    """
    demand = {"require_auth": _SAFE_AUTH} if "require_auth" in values.libpq_keywords() else {}
    shared = {key: value for key, value in given.items() if key not in _NODES_ALONE}
    own = _LOGIN & {*given, *local}
    shared = {**_DEFAULT_LOGIN, **({} if own else patroni), **shared}
    return {**_DEFAULT_LOGIN, **demand, **given}, with_login(shared, local)


def _is_patronis(document: Any) -> bool:
    return isinstance(document, dict) and not {"resolver_agent", "scope"}.isdisjoint(document)


def parse(text: str | bytes, *, path: str, hostname: str) -> Config:
    """Return the configuration in the text: the whole text, or the ``resolver_agent:`` section of Patroni's file.

    Args:
        text: YAML.
        path: the file's name, for error messages.
        hostname: this host's own name, which cannot be managed.

    Raises:
        ConfigError: the text has errors; it holds all of them.
    """
    try:
        document, faults = yaml12.read(text)
    except yaml12.YamlError as exc:
        raise ConfigError([f"{path}: {exc}"]) from exc
    is_patronis = _is_patronis(document)
    prefix = "resolver_agent" if is_patronis else ""
    if is_patronis and prefix not in document:
        raise ConfigError([f"{path}: {prefix}: missing, expected this section in Patroni's configuration"])
    reader = Reader()
    try:
        config = _parse(reader, document, faults, prefix=prefix, path=path, hostname=hostname)
    except TooManyErrorsError:
        reader.errors.append("and more errors")
    if reader.errors:
        raise ConfigError(f"{path}: {error}" for error in reader.errors)
    return config


def _parse(
    reader: Reader, document: Any, faults: Mapping[str, str], *, prefix: str, path: str, hostname: str
) -> Config:
    """Return the configuration, which is void if the reader has errors afterwards."""
    is_patronis = bool(prefix)
    for key, fault in faults.items():
        # Errors in the rest of Patroni's file are Patroni's to report.
        if not prefix or key == prefix or key.startswith((f"{prefix}.", f"{prefix}[")):
            reader.error(key, fault)
    section = document[prefix] if is_patronis else document
    address, login = patroni_yml.local_server(document.get("postgresql")) if is_patronis else ({}, {})

    top = reader.fields(prefix, section, _TOP, misplaced=_UNDER_A_NAME)
    log = reader.fields(dotted(prefix, "log"), top["log"], _LOG, misplaced={})
    on_change = reader.fields(dotted(prefix, "on_change"), top["on_change"], _ON_CHANGE, misplaced={})
    http = reader.fields(dotted(prefix, "http"), top["http"], _HTTP, misplaced={})
    queue = _queue(reader, dotted(prefix, "queue"), top["queue"], Queue())
    groups = _groups(reader, dotted(prefix, "names"), top["names"] or {}, defaults=top, hostname=hostname, queue=queue)
    given = reader.keywords(dotted(prefix, "postgresql"), top["postgresql"], refused=_EVERY_NODE)
    has_local = top["local"] != "off"
    local: dict[str, str] = {}
    if has_local:
        local = reader.keywords(dotted(prefix, "local"), top["local"], refused=_LOCAL, fix=_LOCAL_FIX)
    else:
        address = login = {}
        _refuse_follow(reader, dotted(prefix, "names"), groups)
    _check_local_host(reader, dotted(prefix, "local.host"), {**address, **local}.get("host") or "/", groups)
    if http["listen"] is not None and (taken := _taken(http["listen"][1], groups, {**address, **local})):
        reader.error(dotted(prefix, "http.listen"), f"a port of {taken} found, expected one that is free on every node")
    to_nodes, to_local = ({}, {}) if reader.errors else _logins(given, local, login)
    config = Config(
        path=path,
        fallback=top["fallback"],
        groups=groups,
        postgresql=MappingProxyType(to_nodes),
        local=MappingProxyType(
            {"host": patroni_yml.DEFAULT_SOCKET_DIR, "port": str(top["port"]), **address, **to_local}
            if has_local
            else {}
        ),
        interval_s=top["interval"],
        timeout_s=top["timeout"],
        citus=has_local and top["citus"] == "auto",
        hosts_file=top["hosts_file"],
        runtime_dir=top["runtime_dir"],
        state_dir=top["state_dir"],
        log_format=log["format"],
        log_level=log["level"],
        on_change=OnChange(command=on_change["command"], timeout_s=on_change["timeout"])
        if on_change["command"] is not None
        else None,
        in_patronis_file=is_patronis,
        http=Node(*http["listen"]) if http["listen"] is not None else None,
        has_local=has_local,
    )
    logins = {"postgresql": to_nodes, "local": to_local}
    logins |= {f"names.{group.name}.postgresql": config.login(group) for group in groups if group.postgresql}
    for key, keywords in logins.items():
        refusal = None if reader.errors else values.libpq_fault(keywords)
        if refusal:  # each value is right, but not with the others
            reader.error(dotted(prefix, key), f"libpq refuses these keywords: {refusal}")
    return config


def _refuse_follow(reader: Reader, key: str, groups: Iterable[Group]) -> None:
    for group in groups:
        if group.route is Route.FOLLOW:
            reader.error(f"{dotted(key, group.name)}.route", _NO_FOLLOW)


def _check_local_host(reader: Reader, key: str, host: str, groups: Iterable[Group]) -> None:
    if host.lower() in {group.name for group in groups}:
        reader.error(key, "a managed name found, expected a socket's folder or an address")
    if "," in host:
        reader.error(key, "a comma found, expected one server")


def _taken(port: int, groups: Sequence[Group], local: Mapping[str, str]) -> str | None:
    """Return whose port it is; the agent starts before PostgreSQL and Patroni, and must not be in their way."""
    ports = {str(node.port) for group in groups for node in group.nodes} | {str(local.get("port", ""))}
    if str(port) in ports:
        return "PostgreSQL"
    return "Patroni" if port in {group.patroni.port for group in groups if group.patroni is not None} else None


def load(path: str) -> Config:
    """Return the configuration in a file, with warnings about the file itself.

    Raises:
        ConfigError: the file, or one that it names, cannot be read, it has errors, or root must not act on it.
    """
    found = read(path)
    intruder = found.intruder if os.geteuid() == 0 else None
    config = parse(found.content, path=path, hostname=socket.gethostname())
    if intruder is not None:
        _refuse_intruder(config, intruder)
    faults = [(f"{path}: {key}: {file}: ", fault) for key, file in _files(config) if (fault := source.unreadable(file))]
    program = config.on_change.command[0] if config.on_change is not None else None
    if program is not None and (fault := source.unfit_program(program)):
        faults.append((f"{path}: on_change.command: {program}: ", fault))
    # Another user than the agent's may still look: without the password file, say, only logins that need none work.
    denied = [] if os.geteuid() == 0 else [one for one in faults if one[1] == os.strerror(errno.EACCES)]
    if errors := ["".join(one) for one in faults if one not in denied]:
        raise ConfigError(errors)
    warnings = ["".join(one) for one in denied]
    mode = found.mode
    given = {*config.postgresql, *config.local, *(key for group in config.groups for key in group.postgresql)}
    if mode & stat.S_IROTH and not values.SECRETS.isdisjoint(given):
        fix = f"chmod {mode & ~0o007:04o} {path}"
        warnings.append(f"{path}: holds a password and is world-readable (mode {mode:04o}): {fix}")
    return dataclasses.replace(config, warnings=tuple(warnings)) if warnings else config


def read(path: str) -> source.Source:
    """Return what is in a file, as ``source.read`` does.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return source.read(path)
    except OSError as exc:
        raise ConfigError([f"{path}: {exc.strerror}, expected a configuration file that can be read"]) from exc
    except ValueError as exc:
        raise ConfigError([f"{path!r}: {exc}, expected a path"]) from exc


def _refuse_intruder(config: Config, intruder: source.Intruder) -> None:
    """Raise if root must not act on a configuration that somebody else may change.

    The section in Patroni's file belongs to the user that runs PostgreSQL. It may say where the names lead, and how to
    log in there; it may not lead root to other files, whose content or existence errors and servers would tell.
    """
    if not config.in_patronis_file or intruder.everybody:
        raise ConfigError(
            [f"{config.path}: {intruder}, expected a file and folders that only root may change: {intruder.fix}"]
        )
    steers = [
        (key, value)
        for key, value, default in (
            ("hosts_file", config.hosts_file, DEFAULT_HOSTS_FILE),
            ("runtime_dir", config.runtime_dir, DEFAULT_RUNTIME_DIR),
            ("state_dir", config.state_dir, DEFAULT_STATE_DIR),
        )
        if value != default
    ]
    if config.on_change is not None:
        steers.append(("on_change.command", config.on_change.command[0]))
    steers += [(key, file) for key, file in _files(config) if file != _AGENTS_PASSFILE and not source.is_public(file)]
    if steers:
        raise ConfigError(
            f"{config.path}: resolver_agent.{key}: {value!r} is not taken from a file that others than root may change "
            f"({intruder}): put the section into a file of its own that belongs to root, e.g. /etc/resolver-agent.yml"
            for key, value in steers
        )


def _files(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the key and path of each file that libpq or the Patroni client opens."""
    for section in ("postgresql", "local"):
        for key, value in getattr(config, section).items():
            # The rest of `local` is as in `postgresql`.
            if (
                key in values.FILES
                and value not in ("", "system")
                and (section == "postgresql" or config.postgresql.get(key) != value)
            ):
                yield f"{section}.{key}", value
    for group in config.groups:
        for key, value in group.postgresql.items():
            if key in values.FILES and value not in ("", "system"):
                yield f"names.{group.name}.postgresql.{key}", value
        for key in ("cacert", "cert", "key"):
            if group.patroni is not None and (value := getattr(group.patroni, key)) is not None:
                yield f"names.{group.name}.patroni.{key}", value


def locations(path: str) -> tuple[str, str, str]:
    """Return the runtime folder, the hosts file and the state folder of a configuration that may be faulty.

    What it does not give is the default.
    """
    places = {"runtime_dir": DEFAULT_RUNTIME_DIR, "hosts_file": DEFAULT_HOSTS_FILE, "state_dir": DEFAULT_STATE_DIR}
    try:
        found = source.read(path)
        document, _ = yaml12.read(found.content)
    except (OSError, ValueError):
        document = None
    else:
        if found.intruder is not None and os.geteuid() == 0:
            document = None
    section = document.get("resolver_agent") if _is_patronis(document) else document
    given = section if isinstance(section, dict) else {}
    reader = Reader()
    runtime_dir, hosts_file, state_dir = (
        reader.value("", values.path, given.get(key, default), default) for key, default in places.items()
    )
    return runtime_dir, hosts_file, state_dir


def load_again(current: Config) -> Config:
    """Return the configuration that is now in the file of ``current``.

    Raises:
        ConfigError: as for ``load``, or a key has changed that needs a restart.
    """
    new = load(current.path)
    fixed = [key for key in ("hosts_file", "runtime_dir", "state_dir") if getattr(new, key) != getattr(current, key)]
    if fixed:
        raise ConfigError(f"{new.path}: {key}: changes at a restart only" for key in fixed)
    return new


def _without_secrets(keywords: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in keywords.items() if name not in values.SECRETS}


def fingerprint(config: Config) -> str:
    """Return a hash by which two processes can tell whether they have the same configuration, but for its secrets."""
    items = []
    for key in config.__slots__:
        value = getattr(config, key)
        if key in ("postgresql", "local"):
            value = _without_secrets(value)
        if key == "groups":
            value = [(group, _without_secrets(group.postgresql)) for group in value]
        if key not in ("path", "warnings", "on_change"):  # whose arguments may hold a secret
            items.append((key, str(value)))
    return hashlib.sha256(repr(items).encode()).hexdigest()
