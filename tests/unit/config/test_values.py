"""How a single value is read, and the errors for invalid values."""

from __future__ import annotations

import pytest

from resolver_agent.config.model import Fallback, Node, OnChange
from tests.unit.config.builders import (
    DURATION,
    DURATION_UNIT,
    HOST_NAME,
    MINIMAL,
    NAMES,
    SIZE,
    SIZE_UNIT,
    errors,
    names,
    nodes,
    parse,
)

PORT_OF_ITS_OWN = (
    "found, expected an address without a port or brackets: all nodes behind a name need the same port, so put `port:` "
    "at the name"
)
NO_SERVER = "is no server's address, expected one that can be connected to"
OWN_NAME = (
    "is this host's own name, by which others reach it: choose a name for the group, e.g. {}-group, and put it into "
    "pg_dist_node with citus_update_node"
)
SOCKET = "expected an address of this host and a port, such as 127.0.0.1:8009 or '[::1]:8009'"
UNDERSCORE = (
    "has an underscore, which host names may not have: use a hyphen, and rename the node in pg_dist_node with "
    "citus_update_node"
)
REFUSED = "libpq refuses it:"
LOOPBACK = "is a name of the loopback address, expected one that no other line gives"
A_COMMAND = "expected a list of a program and its arguments, e.g. [/usr/local/bin/names-changed, --verbose]"
NUMBER = "reads as a number or an address, expected a host name"

KEYS = {
    "a command as text": (
        "on_change: {command: /bin/x}",
        f"on_change.command: '/bin/x' found, {A_COMMAND}",
    ),
    "an empty command": (
        "on_change: {command: []}",
        f"on_change.command: an empty list found, {A_COMMAND}",
    ),
    "a program without its path": (
        "on_change: {command: [logger, x]}",
        "on_change.command: 'logger' found, expected an absolute path",
    ),
    "a list as an argument": (
        "on_change: {command: [/bin/x, [y]]}",
        "on_change.command: a list found, expected text (put it in quotes if it is meant as such)",
    ),
    "a long timeout": (
        "on_change: {timeout: 6m}",
        f"on_change.timeout: '6m' found, expected 100ms to 5m: {DURATION}",
    ),
    "word wanted": ("log: {level: loud}", "log.level: 'loud' found, expected debug, info, warning or error"),
    "HTTP on a port alone": ("http: {listen: ':8009'}", f"http.listen: ':8009' found, {SOCKET}"),
    "HTTP on a number": ("http: {listen: 8009}", f"http.listen: 8009 found, {SOCKET}"),
    "HTTP at a DNS name": ("http: {listen: 'localhost:8009'}", f"http.listen: 'localhost:8009' found, {SOCKET}"),
    "HTTP without a port": ("http: {listen: 127.0.0.1}", f"http.listen: '127.0.0.1' found, {SOCKET}"),
    "HTTP at half an address": (
        "http: {listen: '127.0.1:8009'}",
        f"http.listen: '127.0.1:8009' found (Expected 4 octets in '127.0.1'), {SOCKET}",
    ),
    "HTTP at a bare IPv6 address": ("http: {listen: '::1:8009'}", f"http.listen: '::1:8009' found, {SOCKET}"),
    "HTTP on a port out of range": (
        "http: {listen: '127.0.0.1:70000'}",
        "http.listen: 70000 found, expected a port: a whole number from 1 to 65535",
    ),
    "HTTP on PostgreSQL's port": (
        "http: {listen: '0.0.0.0:5432'}",
        "http.listen: a port of PostgreSQL found, expected one that is free on every node",
    ),
    "HTTP on the port of the local PostgreSQL": (
        "http: {listen: '0.0.0.0:5433'}\nlocal: {port: 5433}",
        "http.listen: a port of PostgreSQL found, expected one that is free on every node",
    ),
    "route": ("route: sideways", "route: 'sideways' found, expected follow, primary or standby"),
    "citus as a bool": ("citus: false", "citus: false found, expected auto or off"),
    "port as text": ("port: '5432'", "port: '5432' found, expected a port: a whole number from 1 to 65535"),
    "port in octal": ("port: 0123", "port: '0123' found, expected a port: a whole number from 1 to 65535"),
    "port out of range": ("port: 65536", "port: 65536 found, expected a port: a whole number from 1 to 65535"),
    "port as a bool": ("port: true", "port: true found, expected a port: a whole number from 1 to 65535"),
    "relative path": ("hosts_file: hosts", "hosts_file: 'hosts' found, expected an absolute path"),
    "path as a number": ("runtime_dir: 7", "runtime_dir: 7 found, expected an absolute path"),
    "path with a zero byte": (r'hosts_file: "/etc\0"', r"hosts_file: '/etc\x00' found, expected an absolute path"),
    "duration without unit": ("interval: 5", f"interval: 5 {DURATION_UNIT}"),
    "duration with a fraction, without unit": ("interval: 0.5", f"interval: '0.5' {DURATION_UNIT}"),
    "duration with a strange unit": ("timeout: 5 parsecs", f"timeout: '5 parsecs' {DURATION_UNIT}"),
    "duration of zero in a strange unit": ("failback_delay: 0x", f"failback_delay: '0x' {DURATION_UNIT}"),
    "duration of nonsense": ("timeout: soon", f"timeout: 'soon' found, expected {DURATION}"),
    "duration of clock time": ("timeout: 10:30", f"timeout: '10:30' found, expected {DURATION}"),
    "duration as a list": ("timeout: [1s]", f"timeout: a list found, expected {DURATION}"),
    "duration as null": ("timeout: null", f"timeout: null found, expected {DURATION}"),
    "no interval": ("interval: 0s", f"interval: '0s' found, expected 10ms to 1h: {DURATION}"),
    "no timeout": ("timeout: 0", f"timeout: 0 found, expected 10ms to 1h: {DURATION}"),
    "negative interval": ("interval: -1s", f"interval: '-1s' found, expected 10ms to 1h: {DURATION}"),
    "negative delay": ("failback_delay: -1s", f"failback_delay: '-1s' found, expected 0 to 24h: {DURATION}"),
    "interval that a clock cannot count": (
        "interval: 999999h",
        f"interval: '999999h' found, expected 10ms to 1h: {DURATION}",
    ),
    "timeout of a tenth of a microsecond": (
        "timeout: 0.0001ms",
        f"timeout: '0.0001ms' found, expected 10ms to 1h: {DURATION}",
    ),
    "delay of weeks": ("failback_delay: 999h", f"failback_delay: '999h' found, expected 0 to 24h: {DURATION}"),
    "a drain longer than the hook": ("queue: {drain: 5s}", f"queue.drain: '5s' found, expected 0 to 4s: {DURATION}"),
    "a queue of an hour": ("queue: {unplanned: 1h}", f"queue.unplanned: '1h' found, expected 0 to 5m: {DURATION}"),
    "lag of weeks": ("max_lag_seconds: 999h", f"max_lag_seconds: '999h' found, expected 1ms to 24h: {DURATION}"),
    "lag larger than any WAL": (
        "max_lag_bytes: 999999999999999TB",
        f"max_lag_bytes: '999999999999999TB' found, expected 1B to 1024TB: {SIZE}",
    ),
    "local port of other digits": (
        "local: {port: '\N{ARABIC-INDIC DIGIT FIVE}'}",
        "local.port: '\N{ARABIC-INDIC DIGIT FIVE}' found, expected a port: a whole number from 1 to 65535",
    ),
    "connection string as an address": (
        "hosts_file: postgresql://u:hunter2@h",
        "hosts_file: text that may hold a password found, expected an absolute path",
    ),
    "value without end": (
        f"hosts_file: {'x' * 5000}",
        f"hosts_file: '{'x' * 300}'… found, expected an absolute path",
    ),
    "sslmode": (
        "postgresql: {sslmode: verify_full}",
        f'postgresql.sslmode: {REFUSED} invalid sslmode value: "verify_full"',
    ),
    "gssencmode": ("local: {gssencmode: on}", f'local.gssencmode: {REFUSED} invalid gssencmode value: "on"'),
    "channel_binding": (
        "postgresql: {channel_binding: yes}",
        f'postgresql.channel_binding: {REFUSED} invalid channel_binding value: "yes"',
    ),
    "require_auth": (
        "postgresql: {require_auth: scram}",
        f'postgresql.require_auth: {REFUSED} invalid require_auth value: "scram"',
    ),
    "TLS version": (
        "postgresql: {ssl_min_protocol_version: 1.2}",
        f'postgresql.ssl_min_protocol_version: {REFUSED} invalid "ssl_min_protocol_version" value: "1.2"',
    ),
    "TLS versions that exclude each other": (
        "postgresql: {ssl_min_protocol_version: TLSv1.3, ssl_max_protocol_version: TLSv1.2}",
        "postgresql: libpq refuses these keywords: invalid SSL protocol version range",
    ),
    "tcp_user_timeout": (
        "postgresql: {tcp_user_timeout: 10s}",
        "postgresql.tcp_user_timeout: '10s' found, expected a whole number from 0 to 2147483647",
    ),
    "keepalives_idle": (
        "postgresql: {keepalives_idle: x}",
        "postgresql.keepalives_idle: 'x' found, expected a whole number from 1 to 32767",
    ),
    "keepalives that Linux refuses": (
        "postgresql: {keepalives_count: 128}",
        "postgresql.keepalives_count: 128 found, expected a whole number from 1 to 127",
    ),
    "relative password file": (
        "postgresql: {passfile: ~/.pgpass}",
        "postgresql.passfile: '~/.pgpass' found, expected an absolute path",
    ),
    "lag in seconds without unit": ("max_lag_seconds: 30", f"max_lag_seconds: 30 {DURATION_UNIT}"),
    "size without unit": ("max_lag_bytes: 64", f"max_lag_bytes: 64 {SIZE_UNIT}"),
    "size in a unit that is not PostgreSQL's": ("max_lag_bytes: 64mb", f"max_lag_bytes: '64mb' {SIZE_UNIT}"),
    "negative size": ("max_lag_bytes: -64MB", f"max_lag_bytes: '-64MB' found, expected 1B to 1024TB: {SIZE}"),
    "size of nothing": ("max_lag_bytes: 0", f"max_lag_bytes: 0 found, expected 1B to 1024TB: {SIZE}"),
    "size of nonsense": ("max_lag_bytes: much", f"max_lag_bytes: 'much' found, expected {SIZE}"),
    "local port": ("local: {port: x}", "local.port: 'x' found, expected a port: a whole number from 1 to 65535"),
}

NAMES_AND_NODES = {
    "space in a name": (names("'wk 1': {nodes: [10.0.0.1]}"), f"names.'wk 1': 'wk 1' {HOST_NAME}"),
    "newline in a name": (names(r'"wk\n1": {nodes: [10.0.0.1]}'), rf"names.'wk\n1': 'wk\n1' {HOST_NAME}"),
    "newline after a name": (names(r'"wk1\n": {nodes: [10.0.0.1]}'), rf"names.'wk1\n': 'wk1\n' {HOST_NAME}"),
    "hash in a name": (names("'wk#1': {nodes: [10.0.0.1]}"), f"names.'wk#1': 'wk#1' {HOST_NAME}"),
    "underscore in a name": (names("wk_1: {nodes: [10.0.0.1]}"), f"names.wk_1: 'wk_1' {UNDERSCORE}"),
    "hyphen first": (names("-wk: {nodes: [10.0.0.1]}"), f"names.-wk: '-wk' {HOST_NAME}"),
    "empty name": (names("'': {nodes: [10.0.0.1]}"), f"names.'': '' {HOST_NAME}"),
    "empty label": (names("a..b: {nodes: [10.0.0.1]}"), f"names.a..b: 'a..b' {HOST_NAME}"),
    "not ASCII": (
        names("\N{KELVIN SIGN}1: {nodes: [10.0.0.1]}"),
        f"names.\N{KELVIN SIGN}1: '\N{KELVIN SIGN}1' {HOST_NAME}",
    ),
    "long label": (
        names("a" * 64 + ": {nodes: [10.0.0.1]}"),
        f"names.{'a' * 64}: '{'a' * 64}' has a label of more than 63 characters",
    ),
    "long name": (
        names("a." * 126 + "bc: {nodes: [10.0.0.1]}"),
        f"names.{'a.' * 126}bc: '{'a.' * 126}bc' is longer than the 253 characters of a host name",
    ),
    "trailing dot": (
        names("wk1.: {nodes: [10.0.0.1]}"),
        "names.wk1.: 'wk1.' ends in a dot, expected a host name without it",
    ),
    "localhost": (names("LocalHost: {nodes: [10.0.0.1]}"), f"names.LocalHost: 'LocalHost' {LOOPBACK}"),
    "localhost with a domain": (
        names("localhost4.localdomain4: {nodes: [10.0.0.1]}"),
        f"names.localhost4.localdomain4: 'localhost4.localdomain4' {LOOPBACK}",
    ),
    "ip6-loopback": (names("ip6-loopback: {nodes: [10.0.0.1]}"), f"names.ip6-loopback: 'ip6-loopback' {LOOPBACK}"),
    "address as a name": (names("10.0.0.1: {nodes: [10.0.0.2]}"), f"names.10.0.0.1: '10.0.0.1' {NUMBER}"),
    "number as a name": (names("7: {nodes: [10.0.0.1]}"), f"names.7: '7' {NUMBER}"),
    "this host's name": (names("DB7: {nodes: [10.0.0.1]}"), f"names.DB7: 'DB7' {OWN_NAME.format('db7')}"),
    "node with a port": (nodes("10.0.0.1:5433"), f"names.wk1.nodes[0]: '10.0.0.1:5433' {PORT_OF_ITS_OWN}"),
    "DNS name with a port": (nodes("db1.lan:5433"), f"names.wk1.nodes[0]: 'db1.lan:5433' {PORT_OF_ITS_OWN}"),
    "IPv6 address with a port": (nodes("'[::1]:5433'"), f"names.wk1.nodes[0]: '[::1]:5433' {PORT_OF_ITS_OWN}"),
    "node as a map": (nodes("{host: 10.0.0.1, port: 1}"), f"names.wk1.nodes[0]: a map {PORT_OF_ITS_OWN}"),
    "node as a number": (nodes("1"), "names.wk1.nodes[0]: 1 found, expected an IP address or a DNS name"),
    "no address": (nodes("10.0.0.256"), "names.wk1.nodes[0]: '10.0.0.256' found, which is not a valid IP address"),
    "leading zero": (nodes("10.0.0.01"), "names.wk1.nodes[0]: '10.0.0.01' found, which is not a valid IP address"),
    "no IPv6 address": (nodes("fe80:::1"), "names.wk1.nodes[0]: 'fe80:::1' found, which is not a valid IP address"),
    "zone": (
        nodes("fe80::1%eth0"),
        "names.wk1.nodes[0]: 'fe80::1%eth0' has a zone, expected an address that means the same on every host",
    ),
    "fence as a node": (nodes("255.255.255.255"), f"names.wk1.nodes[0]: '255.255.255.255' {NO_SERVER}"),
    "unspecified node": (nodes("0.0.0.0"), f"names.wk1.nodes[0]: '0.0.0.0' {NO_SERVER}"),
    "multicast node": (nodes("ff02::1"), f"names.wk1.nodes[0]: 'ff02::1' {NO_SERVER}"),
    "bad DNS name": (nodes("db_1"), f"names.wk1.nodes[0]: 'db_1' {HOST_NAME}"),
}


@pytest.mark.parametrize(("line", "expected"), KEYS.values(), ids=KEYS)
def test_a_bad_key_or_value_is_refused(line: str, expected: str) -> None:
    """One bad line in a good file gives one error, with the key, the value found and what was expected."""
    assert errors(f"{MINIMAL}{line}\n") == [expected]


@pytest.mark.parametrize(("text", "expected"), NAMES_AND_NODES.values(), ids=NAMES_AND_NODES)
def test_bad_names_and_nodes_are_refused(text: str, expected: str) -> None:
    """Names that cannot be managed and nodes that are listed twice are errors."""
    assert errors(text) == [expected]


@pytest.mark.parametrize(
    ("hostname", "name", "refused"),
    [
        ("wk1", "wk1", True),
        ("wk1.lan", "wk1", True),
        ("WK1.lan", "wk1.LAN", True),
        ("wk1", "wk1.lan", True),
        ("coord", "coord.example.net", True),
        ("coord.example.net", "coord.example.net", True),
        ("worker-102", "coord.example.net", False),
        ("wk11", "wk1", False),
    ],
)
def test_a_host_keeps_its_own_name(hostname: str, name: str, refused: bool) -> None:  # noqa: FBT001 - a column
    """Names with this host's first label cannot be managed, however the host is called; other hosts' names can."""
    text = names(f"{name}: {{nodes: [10.0.0.1]}}")
    if refused:
        assert errors(text, hostname=hostname) == [
            f"names.{name}: '{name}' {OWN_NAME.format(name.partition('.')[0].lower())}"
        ]
    else:
        assert parse(text, hostname=hostname).groups[0].name == name


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("fallback: primary", "fallback", Fallback.PRIMARY),
        ("fallback: 'all'", "fallback", Fallback.ALL),
        ("interval: 500ms", "interval_s", 0.5),
        ("interval: 1.5 s", "interval_s", 1.5),
        ("timeout: 2m", "timeout_s", 120.0),
        ("timeout: 2min", "timeout_s", 120.0),
        ("timeout: 1h", "timeout_s", 3600.0),
        ("citus: off", "citus", False),
        ("citus: auto", "citus", True),
        ("hosts_file: /a/hosts", "hosts_file", "/a/hosts"),
        ("runtime_dir: /a", "runtime_dir", "/a"),
        ("state_dir: /a", "state_dir", "/a"),
        ("on_change: {command: [/bin/x]}", "on_change", OnChange(command=("/bin/x",), timeout_s=10.0)),
        (
            "on_change: {command: [/x, -n, 7, ''], timeout: 5m}",
            "on_change",
            OnChange(command=("/x", "-n", "7", ""), timeout_s=300.0),
        ),
        ("on_change: {timeout: 1s}", "on_change", None),
        ("log: {format: json}", "log_format", "json"),
        ("log: {level: debug}", "log_level", "debug"),
        ("log:", "log_level", "info"),
        ("http: {listen: 127.0.0.1:8009}", "http", Node("127.0.0.1", 8009)),
        ("http: {listen: '[2001:DB8::1]:80'}", "http", Node("2001:db8::1", 80)),
        ("http: {listen: null}", "http", None),
        ("http:", "http", None),
    ],
)
def test_a_value_means_what_it_says(line: str, field: str, expected: object) -> None:
    """Durations become seconds and keywords their values; ``off`` is not a boolean as in YAML 1.1."""
    base = "" if line.startswith("fallback") else "fallback: none\n"
    assert getattr(parse(f"{base}{NAMES}{line}\n"), field) == expected


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("192.168.234.203", "192.168.234.203"),
        ("2001:DB8:0:0::0001", "2001:db8::1"),
        ("'::1'", "::1"),
        ("'::ffff:10.0.0.1'", "10.0.0.1"),
        ("DB1.Example.com", "db1.example.com"),
        ("db1", "db1"),
    ],
)
def test_a_node_has_one_spelling(written: str, host: str) -> None:
    """IPv4, IPv6 and DNS names are nodes; all spellings of one address are one node."""
    assert parse(nodes(written)).groups[0].nodes == (Node(host, 5432),)


@pytest.mark.parametrize(
    "name",
    ["w", "wk-1", "a" * 63, "a." * 126 + "b", "wk1.3com", "10.0.0.1a", "0xwk", "localhosts", "none", "true"],
)
def test_any_valid_host_name_can_be_managed(name: str) -> None:
    """Names at the limits of validity can be managed, and so can names that resemble special ones."""
    assert parse(names(f"{name}: {{nodes: [10.0.0.1]}}")).groups[0].name == name
