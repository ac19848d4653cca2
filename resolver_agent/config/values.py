"""Parsers for single values of the configuration file.

Each parser takes a plain value (text, a whole number, a bool, None, a list or a map) and returns what it means, or
raises ``ValueError`` saying what was found and what was expected. The caller adds the key.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import math
import re
import string
from typing import TYPE_CHECKING, Any, TypeVar

from resolver_agent.config.yaml12 import may_hold_a_password
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_E = TypeVar("_E", bound=enum.Enum)
_T = TypeVar("_T")

_SHOWN = 300  # characters of a value
_DURATIONS_MS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000}
_SIZES = {"B": 1, "kB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_QUANTITY = re.compile(r"(-?[0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")

FILES = frozenset(("passfile", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir"))
"""The connection keywords that name a file or folder."""
SECRETS = frozenset(("password", "sslpassword", "oauth_client_secret"))
"""The connection keywords whose values are shown to nobody."""

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
_LOOPBACK = re.compile(r"localhost[46]?(\..*)?|.*\.localhost|ip6-.*", re.IGNORECASE)
# inet_aton() reads these as numbers, so a resolver never looks for them in the hosts file.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_WITH_PORT = re.compile(r"\[.*\](:.*)?|[^:]*:[^:]*")

_NAME_RULES: tuple[tuple[Callable[[str], object], str], ...] = (
    (lambda name: name.endswith("."), "ends in a dot, expected a host name without it"),
    (lambda name: len(name) > 253, "is longer than the 253 characters of a host name"),  # noqa: PLR2004 - RFC 1035
    (lambda name: max(map(len, name.split("."))) > 63, "has a label of more than 63 characters"),  # noqa: PLR2004 - RFC 1035
    (
        lambda name: not all(map(_LABEL.fullmatch, name.split("."))),
        "is not a host name, expected letters, digits and inner hyphens in labels separated by dots",
    ),
    (lambda name: _NUMBER.fullmatch(name.rpartition(".")[2]), "reads as a number or an address, expected a host name"),
)


def shown(value: Any) -> str:
    """Return a value as an error message shows it; of lists and maps only the type."""
    if value in ([], {}):
        return f"an empty {'list' if value == [] else 'map'}"
    if isinstance(value, str) and may_hold_a_password(value):
        return "text that may hold a password"
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!r}…"
    kinds = {dict: "a map", list: "a list", type(None): "null", bool: str(value).lower()}
    return kinds.get(type(value)) or repr(value)


def text(value: Any) -> str:
    """Return text; a whole number is accepted as text too."""
    if type(value) not in (str, int):
        raise ValueError(f"{shown(value)} found, expected text (put it in quotes if it is meant as such)")
    if "\0" in str(value):
        raise ValueError("a zero byte found, expected text without one")
    return str(value)


def path(value: Any) -> str:
    """Return an absolute path."""
    if not (isinstance(value, str) and value.startswith("/") and "\0" not in value):
        raise ValueError(f"{shown(value)} found, expected an absolute path")
    return value


def command(value: Any) -> tuple[str, ...]:
    """Return a program, by its absolute path, and its arguments."""
    expected = "expected a list of a program and its arguments, e.g. [/usr/local/bin/names-changed, --verbose]"
    program, *arguments = filled(list, expected)(value)
    return path(program), *map(text, arguments)


def port(value: Any) -> int:
    """Return a TCP port."""
    if type(value) is not int or not 0 < value < 2**16:
        raise ValueError(f"{shown(value)} found, expected a port: a whole number from 1 to 65535")
    return value


def port_text(value: Any) -> str:
    """Return a TCP port as libpq takes it, given as a whole number or as text."""
    return str(port(int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value) else value))


def word(*words: str) -> Callable[[Any], str]:
    """Return a parser that accepts only these words."""

    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError(f"{shown(value)} found, expected {', '.join(words[:-1])} or {words[-1]}")
        return str(value)

    return parse


def member(kind: type[_E]) -> Callable[[Any], _E]:
    """Return a parser for the values of an enum."""
    parse_word = word(*(item.value for item in kind))
    return lambda value: kind(parse_word(value))


def filled(kind: type[_T], expected: str) -> Callable[[Any], _T]:
    """Return a parser for a list or map that is not empty."""

    def parse(value: Any) -> _T:
        if isinstance(value, kind) and value:
            return value
        raise ValueError(f"{shown(value)} found, {expected}")

    return parse


def optional(parse: Callable[[Any], _T]) -> Callable[[Any], _T | None]:
    """Return a parser that also accepts null, as None."""
    return lambda value: None if value is None else parse(value)


def _quantity(value: Any, *, units: Mapping[str, int], example: str, least: str, most: str) -> float:
    """Return a number in the smallest of the units; 0 needs no unit, and is a value only if ``least`` is 0."""
    match = _QUANTITY.fullmatch(str(value)) if type(value) in (str, int) else None
    if match is None:
        raise ValueError(f"{shown(value)} found, expected {example}")
    number, unit = float(match[1]), match[2]
    if unit not in units and (number or unit):
        raise ValueError(f"{shown(value)} found, expected a number with its unit ({', '.join(units)}): {example}")
    found = number * units.get(unit, 0)
    if not _in_units(least, units) <= found <= _in_units(most, units):
        raise ValueError(f"{shown(value)} found, expected {least} to {most}: {example}")
    return found


def _in_units(bound: str, units: Mapping[str, int]) -> float:
    number = bound.rstrip(string.ascii_letters)
    return int(number) * units.get(bound.removeprefix(number), 0)


def duration_s(value: Any, *, least: str, most: str) -> float:
    """Return a duration such as ``500ms``, ``10s``, ``2m`` or ``1h`` in seconds, within bounds written the same way."""
    example = "a duration such as 500ms, 10s, 2m or 1h"
    return _quantity(value, units=_DURATIONS_MS, example=example, least=least, most=most) / 1000


def size_bytes(value: Any) -> int:
    """Return a size such as ``64MB`` in bytes; the units are PostgreSQL's, powers of 1024."""
    example = "a size such as 16kB, 64MB or 1GB"
    return math.ceil(_quantity(value, units=_SIZES, example=example, least="1B", most="1024TB"))


def host_name(value: str) -> str:
    """Return a valid host name in lower case, as names compare without regard to case."""
    for broken, fault in _NAME_RULES:
        if broken(value):
            raise ValueError(f"{shown(value)} {fault}")
    return value.lower()


def managed_name(value: str, *, hostname: str) -> str:
    """Return a name for the block in lower case; names of the loopback address and of this host are refused.

    This host's are its own name and every name with the same first label.
    """
    if "_" in value:
        raise ValueError(
            f"{shown(value)} has an underscore, which host names may not have: use a hyphen, and rename the node in "
            "pg_dist_node with citus_update_node"
        )
    name = host_name(value)
    if _LOOPBACK.fullmatch(name):
        raise ValueError(f"{value!r} is a name of the loopback address, expected one that no other line gives")
    # Only the first labels are compared: a host may be called by its short name or in full, and be the same host.
    if name.partition(".")[0] == hostname.lower().partition(".")[0]:
        raise ValueError(
            f"{value!r} is this host's own name, by which others reach it: choose a name for the group, e.g. "
            f"{name.partition('.')[0]}-group, and put it into pg_dist_node with citus_update_node"
        )
    return name


def node_host(value: Any) -> str:
    """Return a node's IPv4 or IPv6 address in its canonical spelling, or its DNS name in lower case."""
    if isinstance(value, dict) or (isinstance(value, str) and _WITH_PORT.fullmatch(value)):
        raise ValueError(
            f"{shown(value)} found, expected an address without a port or brackets: all nodes behind a name "
            "need the same port, so put `port:` at the name"
        )
    if type(value) is not str:
        raise ValueError(f"{shown(value)} found, expected an IP address or a DNS name")
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        if ":" in value or _NUMBER.fullmatch(value.rpartition(".")[2]):
            raise ValueError(f"{value!r} found, which is not a valid IP address") from None
        return host_name(value)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            raise ValueError(f"{value!r} has a zone, expected an address that means the same on every host")
        address = address.ipv4_mapped or address
    if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
        raise ValueError(f"{value!r} is no server's address, expected one that can be connected to")
    return str(address)


def socket_address(value: Any) -> tuple[str, int]:
    """Return an IP address and a TCP port, given as ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``."""
    expected = "expected an address of this host and a port, such as 127.0.0.1:8009 or '[::1]:8009'"
    match = re.fullmatch(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})", value) if type(value) is str else None
    if match is None:
        raise ValueError(f"{shown(value)} found, {expected}")
    try:
        address = ipaddress.IPv4Address(match[1]) if match[1] else ipaddress.IPv6Address(match[2])
    except ValueError as error:
        raise ValueError(f"{value!r} found ({error}), {expected}") from None
    return str(address), port(int(match[3]))


def networks(value: Any) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Return the networks in a list, each given as ``ADDRESS/LENGTH``."""
    return tuple(_network(item) for item in filled(list, "expected a list of networks, e.g. [10.0.0.0/24]")(value))


def _network(value: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    expected = "expected a network such as 10.0.0.0/24 or 'fd00::/64'"
    if type(value) is not str or not re.fullmatch(r"[^/]+/[0-9]{1,3}", value):
        raise ValueError(f"{shown(value)} found, {expected}")
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{value!r} found ({error}), {expected}") from None


@functools.cache
def libpq_keywords() -> frozenset[str]:
    """Return the connection keywords of the libpq in use, without its debug options (``replication``)."""
    from psycopg import pq  # noqa: PLC0415 - costs 0.1 s

    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults() if option.dispchar != b"D")


# As the kernel takes them (net/ipv4/tcp.c): a connection with any other value fails.
_INTEGERS = {
    "keepalives": (0, 1),
    "keepalives_idle": (1, 32767),
    "keepalives_interval": (1, 32767),
    "keepalives_count": (1, 127),
    "tcp_user_timeout": (0, 2**31 - 1),
}


def libpq_value(value: Any, *, keyword: str) -> str:
    """Return the value of a connection keyword as libpq takes it, judged by libpq itself where it can."""
    if keyword == "port":
        return port_text(value)
    found = text(value)
    if found and keyword in _INTEGERS:
        least, most = _INTEGERS[keyword]
        if not re.fullmatch("[0-9]{1,10}", found) or not least <= int(found) <= most:
            raise ValueError(f"{shown(value)} found, expected a whole number from {least} to {most}")
    if found and keyword in FILES and not found.startswith("/") and (keyword, found) != ("sslrootcert", "system"):
        raise ValueError(f"{shown(value)} found, expected an absolute path")
    if fault := libpq_fault({keyword: found}):
        raise ValueError(f"libpq refuses it: {fault}")
    return found


def libpq_fault(keywords: Mapping[str, str]) -> str | None:
    """Return what libpq says of keywords that it refuses before it connects; None if it would connect with them."""
    said = _libpq_says(keywords)
    return None if said == _libpq_says({}) else said


def _libpq_says(keywords: Mapping[str, str]) -> str:
    """Return libpq's message of a connection that fails at once, as there can be no such socket."""
    from psycopg import conninfo, pq  # noqa: PLC0415 - costs 0.1 s

    given = {"user": "x", **keywords, "host": "/dev/null", "port": "1"}
    connection = pq.PGconn.connect_start(conninfo.make_conninfo("", **given).encode())
    try:
        return plain(connection.error_message)
    finally:
        connection.finish()
