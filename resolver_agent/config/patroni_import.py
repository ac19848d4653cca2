"""Makes a configuration from Patroni's own file: from the ``citus:`` section of a controller script, or of Patroni.

The controller is the well-known one that writes the addresses of the primaries into ``pg_dist_node``. Its section has
``databases`` and ``workers``; Patroni's own has ``group`` and ``database``. Passwords are never taken over.

What the file cannot tell is written as ``<ADDRESS>`` or ``<FILE>``, which the loader refuses until it is filled in.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import socket
from typing import TYPE_CHECKING, Any

import yaml

from resolver_agent.config import patroni_yml, values, yaml12
from resolver_agent.config.load import ConfigError, read
from resolver_agent.config.model import Node
from resolver_agent.config.reader import Reader, Required, Table, TooManyErrorsError, as_is
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_ADDRESS, _FILE = "<ADDRESS>", "<FILE>"
"""What has to be filled in: neither is a host name, or an absolute path."""

_PORT = 5432
_COORDINATORS = 0
"""Citus' number for the coordinator's group."""
_MOST_GROUP = 2**31 - 1

_SECTION = (
    "expected the section of the controller script, citus: {loop_wait: 10, databases: [postgres], workers: [{groupid: "
    "1, nodes: ['192.168.234.203:5432']}]}, or Patroni's own, citus: {group: 0, database: postgres}: give the "
    "patroni.yml of a coordinator, or write the configuration by hand (`resolver-agent show config` prints a sample)"
)
_WORKERS = "expected a list of groups, e.g. [{groupid: 1, nodes: ['192.168.234.203:5432', '192.168.234.204:5432']}]"
_NODES = "expected a list of HOST:PORT, e.g. ['192.168.234.203:5432', '192.168.234.204:5432']"
_DATABASES = "expected a list of names, e.g. [postgres]"
_TWO = "it belongs to Patroni's own section, which has no workers: remove it, or all other keys"

_HEAD = """\
# Configuration of resolver-agent, made from {path} by `resolver-agent import`.
# Fill in what is in angle brackets, choose `fallback`, and save it on every node as /etc/resolver-agent.yml (of root).
# Then run `resolver-agent --validate-config`. `resolver-agent show config` prints a sample with all keys.

# What a name does on a standby coordinator while its group has no fit standby. There is no default: choose.
#   none     reads through that name fail at once until a standby is back. It is always safe;
#   primary  the name resolves to its primary. Only where readers on standbys use a database role of their own: with the
#            role of the writers an UPDATE may change the wrong rows;
#   all      as primary, but all names go to their primaries while one group lacks a standby.
fallback: none
"""
_LOGIN = """\
# Databases with Citus: {databases}. The agent finds them by itself. Run role.sql, which `resolver-agent show
# role.sql` prints, in each of them and in postgres, on the primary of every group.

# Its role for the other nodes, instead of Patroni's superuser. The passfile has the password of this role alone.
postgresql: {{user: resolver_agent, dbname: postgres, passfile: /etc/resolver-agent.pgpass}}

# Its role for this node, over the socket. Before PostgreSQL 15 it has to be a superuser: role.sql says how.
local: {local}
"""
_COORDINATOR = """\
  # Patroni's file names no coordinator but its own node: `patronictl list` shows them all. Take away what is too many.\
"""
_SAME_API = "The REST API of Patroni is as on this node: correct it where another one has another port."
_NO_API = "Add `patroni: {port: 8008}` to each name, with the port of Patroni's REST API: this file gives none."


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """The nodes of one group that the file gives, and what is behind them in the list."""

    number: int
    nodes: tuple[Node, ...]
    missing: tuple[str, ...] = ()


def convert_file(path: str) -> str:
    """Return the configuration that Patroni's configuration in a file makes, as YAML for the operator to complete.

    Raises:
        ConfigError: the file cannot be read, or cannot be converted; it holds all errors.
    """
    return convert(read(path).content, path=path, hostname=socket.gethostname())


def convert(text: str | bytes, *, path: str, hostname: str) -> str:
    """Return the configuration that Patroni's configuration makes, as YAML for the operator to complete.

    Args:
        text: Patroni's YAML.
        path: the file's name, for error messages and comments.
        hostname: this host's own name, which no name of the configuration can have.

    Raises:
        ConfigError: the text cannot be converted; it holds all errors.
    """
    try:
        document, faults = yaml12.read(text)
    except yaml12.YamlError as exc:
        raise ConfigError([f"{path}: {exc}"]) from exc
    reader = Reader()
    try:
        lines = list(_lines(reader, document, faults, path=plain(path), hostname=hostname))
    except TooManyErrorsError:
        reader.errors.append("and more errors")
    if reader.errors:
        raise ConfigError(f"{path}: {error}" for error in reader.errors)
    return "\n".join(lines)


def _lines(reader: Reader, document: Any, faults: Mapping[str, str], *, path: str, hostname: str) -> Iterator[str]:
    """Yield the configuration, which is void if the reader has errors afterwards."""
    for key, fault in faults.items():
        # Errors in the rest of Patroni's file are Patroni's to report.
        if key == "citus" or key.startswith(("citus.", "citus[")):
            reader.error(key, fault)
    file = reader.map("", document, fix="expected Patroni's configuration: a map")
    section = reader.map("citus", file.get("citus"), fix=_SECTION)
    if not section:
        if not reader.errors:
            reader.error("citus", f"missing, {_SECTION}")
        return
    own = _own_node(file)
    patronis = not {"group", "database"}.isdisjoint(section) and {"workers", "databases"}.isdisjoint(section)
    groups, databases, notes = (_of_patroni if patronis else _of_controller)(reader, section, own)
    if reader.errors:
        return
    names = _names(groups, hostname)
    api = _patroni_api(file)

    yield _HEAD.format(path=path)
    yield from (f"# {note}" for note in notes)
    yield "names:"
    for group in groups:
        if group.number == _COORDINATORS and group.missing:
            yield _COORDINATOR
        yield f"  {names[group.number]}:"
        yield f"    nodes: [{', '.join([*(_scalar(node.host) for node in group.nodes), *group.missing])}]"
        yield from (f"    port: {node.port}" for node in group.nodes[:1] if node.port != _PORT)
        yield from ([f"    patroni: {{{', '.join(f'{key}: {value}' for key, value in api.items())}}}"] if api else [])
    yield "# " + (_SAME_API if api else _NO_API)
    yield ""
    known = ", ".join(map(plain, databases)) or "…"
    yield _LOGIN.format(databases=known, local=_local(file.get("postgresql")))


def _of_controller(
    reader: Reader, section: Mapping[str, Any], own: Node | None
) -> tuple[list[_Group], list[str], list[str]]:
    """Return the groups, the databases and notes for the operator from the section of the controller script."""
    table: Table = {
        "loop_wait": (as_is, None),
        "databases": (values.filled(list, _DATABASES), []),
        "workers": (values.filled(list, _WORKERS), Required(_WORKERS)),
    }
    found = reader.fields("citus", section, table, misplaced={"group": _TWO, "database": _TWO})
    databases = [reader.value(f"citus.databases[{i}]", values.text, one) for i, one in enumerate(found["databases"])]
    groups: dict[int, _Group] = {}
    seen: dict[Node, str] = {}
    for i, worker in enumerate(found["workers"] or ()):
        group = _worker(reader, f"citus.workers[{i}]", worker, seen)
        if group is not None and group.number in groups:
            reader.error(
                f"citus.workers[{i}].groupid", f"{group.number} is given a second time, expected each group once"
            )
        elif group is not None:
            groups[group.number] = group
    if _COORDINATORS not in groups:
        is_coordinator = own is not None and own not in seen
        nodes = (own,) if own is not None and is_coordinator else ()
        groups[_COORDINATORS] = _Group(_COORDINATORS, nodes, (_ADDRESS,) * (2 - len(nodes)))
    notes = [
        "Stop the controller on both coordinators before names get into pg_dist_node: it would take them out again."
    ]
    if found["loop_wait"] is not None:
        notes.append("The agent has no loop_wait: it keeps a connection to each node, and acts at once.")
    return [groups[number] for number in sorted(groups)], databases, notes


def _worker(reader: Reader, key: str, found: Any, seen: dict[Node, str]) -> _Group | None:
    """Return one group of workers. ``seen`` has the key of every node read so far; these are added."""
    expected = "expected the group's number in pg_dist_node"
    table: Table = {
        "groupid": (_group_number, Required(expected)),
        "nodes": (values.filled(list, _NODES), Required(_NODES)),
    }
    fields = reader.fields(key, found, table, misplaced={})
    nodes = []
    for i, item in enumerate(fields["nodes"] or ()):
        at = f"{key}.nodes[{i}]"
        node = reader.value(at, _node, item)
        if node is None:
            continue
        if at != (first := seen.setdefault(node, at)):
            reader.error(at, f"{node} is already given as {first}, expected each node once")
        nodes.append(node)
    if len(ports := sorted({node.port for node in nodes})) > 1:
        reader.error(
            f"{key}.nodes",
            f"the ports {', '.join(map(str, ports))} found, expected the same port on all nodes of a group, as they "
            "get one name and one port in pg_dist_node: change PostgreSQL's port on the others",
        )
    return None if fields["groupid"] is None else _Group(fields["groupid"], tuple(nodes))


def _of_patroni(
    reader: Reader, section: Mapping[str, Any], own: Node | None
) -> tuple[list[_Group], list[str], list[str]]:
    """Return the same from Patroni's own section, which has only the number of this node's group."""
    table: Table = {
        "group": (_group_number, Required("expected the number of this node's group, e.g. 0")),
        "database": (values.text, ""),
    }
    found = reader.fields("citus", section, table, misplaced={})
    here = found["group"] or _COORDINATORS
    groups = []
    for number in (_COORDINATORS, here or 1):
        nodes = (own,) if number == here and own is not None else ()
        groups.append(_Group(number, nodes, (_ADDRESS,) * (2 - len(nodes))))
    notes = [
        f"Patroni's own section has only the number of this node's group, {here}. `patronictl list` shows all groups",
        "and their nodes. Add a name for each that is missing here: wk2 for group 2, and so on.",
        "Remove Patroni's citus: section before names get into pg_dist_node: it would overwrite them.",
    ]
    return groups, [found["database"]] if found["database"] else [], notes


def _group_number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_GROUP:
        raise ValueError(f"{values.shown(value)} found, expected the group's number in pg_dist_node, e.g. 1")
    return value


def _node(value: Any) -> Node:
    """Return a node given as ``HOST:PORT`` or ``[ADDRESS]:PORT``; without a port it is PostgreSQL's own."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?", value) if type(value) is str else None
    if match is None:
        raise ValueError(f"{values.shown(value)} found, expected HOST:PORT, e.g. '192.168.234.203:5432'")
    return Node(values.node_host(match[1] or match[2]), values.port(int(match[3] or _PORT)))


def _own_node(file: Mapping[str, Any]) -> Node | None:
    """Return the node that the file belongs to, by the address that it makes known; None where it gives none."""
    try:
        return _node(_map(file.get("postgresql")).get("connect_address"))
    except ValueError:  # Patroni's to report
        return None


def _names(groups: Sequence[_Group], hostname: str) -> dict[int, str]:
    """Return a name for each group, by its number: none is a node's or this host's own."""
    hosts = {node.host for group in groups for node in group.nodes}

    def is_free(name: str) -> bool:
        try:
            return values.managed_name(name, hostname=hostname) not in hosts
        except ValueError:
            return False

    def name(number: int) -> str:
        base = "cn" if number == _COORDINATORS else f"wk{number}"
        others = (f"{base}-group{more}" for more in itertools.count(2))
        return next(filter(is_free, itertools.chain((base, f"{base}-group"), others)))

    return {group.number: name(group.number) for group in groups}


def _patroni_api(file: Mapping[str, Any]) -> dict[str, str]:
    """Return how to reach Patroni's REST API, as YAML by key; nothing where the file does not give its port."""
    rest, client = _map(file.get("restapi")), _map(file.get("ctl"))
    port = (_text(rest.get("connect_address")) or _text(rest.get("listen"))).rpartition(":")[2]
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        return {}
    found = {"port": str(int(port))}
    if rest.get("certfile"):
        found["cacert"] = _path(client.get("cacert") or rest.get("cafile"))
        if rest.get("verify_client") == "required":
            found |= {"cert": _path(client.get("certfile")), "key": _path(client.get("keyfile"))}
    return found


def _local(postgresql: Any) -> str:
    """Return the login on this node, as YAML."""
    folder = patroni_yml.socket_folder(postgresql) or patroni_yml.DEFAULT_SOCKET_DIR
    port = patroni_yml.local_server(postgresql)[0].get("port", str(_PORT))
    more = "" if int(port) == _PORT else f", port: {int(port)}"
    return f"{{host: {_scalar(folder)}, user: resolver_agent_local{more}}}"


def _path(value: Any) -> str:
    try:
        return _scalar(values.path(value))
    except ValueError:
        return _FILE


def _scalar(text: str) -> str:
    """Return text as YAML, in quotes unless it is the same without."""
    if re.fullmatch(r"[A-Za-z0-9/][A-Za-z0-9./-]*", text) and yaml12.read(text)[0] == text:
        return text
    return str(yaml.safe_dump(text, default_style='"', width=math.inf)).strip()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
