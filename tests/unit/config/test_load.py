"""What a configuration file may say, and what is answered to one that says something else."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.config.load import ConfigError, load
from resolver_agent.config.load import parse as parse_config
from resolver_agent.config.model import Config, Fallback, Group, Node, PatroniApi, Route

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path(__file__).parents[3] / "systemd" / "resolver-agent.yml"
NAMES = "names: {wk1: {nodes: [10.0.0.1, 10.0.0.2]}}\n"
MINIMAL = "fallback: none\n" + NAMES

HOST_NAME = "is not a host name, expected letters, digits and inner hyphens in labels separated by dots"
PORT_OF_ITS_OWN = (
    "found, expected an address without a port or brackets: all nodes behind a name need the same port, so put `port:` "
    "at the name"
)
DURATION = "a duration such as 500ms, 10s, 2m or 1h"
DURATION_UNIT = f"found, expected a number with its unit (ms, s, m, min, h): {DURATION}"
SIZE = "a size such as 16kB, 64MB or 1GB"
SIZE_UNIT = f"found, expected a number with its unit (B, kB, MB, GB, TB): {SIZE}"
FALLBACK = (
    "fallback: missing, there is no default, expected none (reads through a name stop while it has no fit standby), "
    "primary (that name then leads to its primary: only where readers on standbys use a database role of their own) or "
    "all (as primary, with every name at once)"
)
SOME_NAMES = "expected the names in pg_dist_node, e.g. wk1: {nodes: [192.168.234.203, 192.168.234.204]}"
SOME_NODES = "expected a list of addresses, e.g. [192.168.234.203, 192.168.234.204]"
TEXT = "found, expected text (put it in quotes if it is meant as such)"
NO_SERVER = "is no server's address, expected one that can be connected to"
OWN_NAME = "is this host's own name, expected a name for a group of nodes"
LOOPBACK = "is a name of the loopback address, expected one that no other line gives"
ALREADY = "already, expected each node once, and behind one name of a route"
NUMBER = "reads as a number or an address, expected a host name"


def parse(text: str | bytes, *, hostname: str = "db7") -> Config:
    """Read a configuration as the host db7 would."""
    return parse_config(text, path="agent.yml", hostname=hostname)


def errors(text: str | bytes, *, hostname: str = "db7") -> list[str]:
    """Return the errors of a bad configuration, without the file's name that stands before each."""
    with pytest.raises(ConfigError) as caught:
        parse(text, hostname=hostname)
    assert all(error.startswith("agent.yml: ") for error in caught.value.errors)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return [error.removeprefix("agent.yml: ") for error in caught.value.errors]


def names(text: str) -> str:
    """Return a configuration with these names."""
    return "fallback: none\nnames: {" + text + "}\n"


def nodes(text: str) -> str:
    """Return a configuration with these nodes behind one name."""
    return names("wk1: {nodes: [" + text + "]}")


SHAPE = {
    "empty file": ("", [FALLBACK, f"names: missing, {SOME_NAMES}"]),
    "only comments": ("# nothing\n", [FALLBACK, f"names: missing, {SOME_NAMES}"]),
    "a list": (
        "- fallback: none",
        [
            (
                "a list found, expected a map of fallback, names, postgresql, local, route, port, max_lag_bytes, "
                "max_lag_seconds, failback_delay, interval, timeout, citus, hosts_file, runtime_dir, log"
            )
        ],
    ),
    "key given twice": (
        MINIMAL + "interval: 1s\ninterval: 5s\n",
        ["interval: given a second time on line 4, expected once"],
    ),
    "nested key given twice": (
        "fallback: none\nnames:\n  wk1: {nodes: [10.0.0.1]}\n  wk1: {nodes: [10.0.0.2]}\n",
        ["names.wk1: given a second time on line 4, expected once"],
    ),
    "key that is a list": (MINIMAL + "? [1, 2]\n: 3\n", ["a list or map as a key on line 3, expected text"]),
    "unclosed list": (
        "fallback: none\nnames: [a\nport: 1\n",
        ["line 3, column 5: while parsing a flow sequence, expected ',' or ']', but got ':'"],
    ),
    "tab": (
        "fallback: none\n\tport: 1\n",
        [("line 2, column 1: while scanning for the next token, found character '\\t' that cannot start any token")],
    ),
    "undefined alias": ("fallback: *x\n", ["line 1, column 11: found undefined alias 'x'"]),
    "alias inside of itself": (
        "names: &x {wk1: *x}\n",
        ["nested too deeply, or an alias inside of what it stands for"],
    ),
    "two documents": (
        "fallback: none\n---\nnames: {}\n",
        ["line 2, column 1: expected a single document in the stream, but found another document"],
    ),
    "control character": ("fallback: none\nport: \x01", ["line 2, column 7: a character that YAML does not allow"]),
    "not UTF-8": (b"fallback: none\nport: \xff", ["line 2, column 7: not UTF-8 text"]),
    "Patroni's file without a section": (
        "scope: demo\nrestapi: {}\n",
        ["resolver_agent: missing, expected this section in Patroni's configuration"],
    ),
}


KEYS = {
    "unknown key": ("intervall: 1s", "intervall: unknown key, did you mean `interval`?"),
    "key unlike any other": (
        "zzz: 1",
        (
            "zzz: unknown key, expected one of citus, failback_delay, fallback, hosts_file, interval, local, log, "
            "max_lag_bytes, max_lag_seconds, names, port, postgresql, route, runtime_dir, timeout"
        ),
    ),
    "key of a name at the top": ("nodes: [10.0.0.1]", "nodes: unknown key, it belongs under a name: names.NAME.nodes"),
    "unknown nested key": ("log: {levle: info}", "log.levle: unknown key, did you mean `level`?"),
    "map wanted": ("log: text", "log: 'text' found, expected a map of format, level"),
    "word wanted": ("log: {level: loud}", "log.level: 'loud' found, expected debug, info, warning or error"),
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
    "no interval": ("interval: 0s", f"interval: '0s' found, expected more than 0: {DURATION}"),
    "no timeout": ("timeout: 0", f"timeout: 0 found, expected more than 0: {DURATION}"),
    "negative interval": ("interval: -1s", f"interval: '-1s' found, expected more than 0: {DURATION}"),
    "negative delay": ("failback_delay: -1s", f"failback_delay: '-1s' found, expected 0 or more: {DURATION}"),
    "lag in seconds without unit": ("max_lag_seconds: 30", f"max_lag_seconds: 30 {DURATION_UNIT}"),
    "size without unit": ("max_lag_bytes: 64", f"max_lag_bytes: 64 {SIZE_UNIT}"),
    "size in a unit that is not PostgreSQL's": ("max_lag_bytes: 64mb", f"max_lag_bytes: '64mb' {SIZE_UNIT}"),
    "negative size": ("max_lag_bytes: -64MB", f"max_lag_bytes: '-64MB' found, expected more than 0: {SIZE}"),
    "size of nothing": ("max_lag_bytes: 0", f"max_lag_bytes: 0 found, expected more than 0: {SIZE}"),
    "size of nonsense": ("max_lag_bytes: much", f"max_lag_bytes: 'much' found, expected {SIZE}"),
    "unknown keyword": (
        "postgresql: {sslmod: prefer}",
        ("postgresql.sslmod: libpq has no such keyword, did you mean `sslmode`?"),
    ),
    "host of the nodes": (
        "postgresql: {host: 10.0.0.9}",
        "postgresql.host: not to be set here, the nodes are given under `names`: remove it",
    ),
    "hostaddr of the nodes": (
        "postgresql: {hostaddr: 10.0.0.9}",
        "postgresql.hostaddr: not to be set here, the nodes are given under `names`: remove it",
    ),
    "port of the nodes": (
        "postgresql: {port: 5433}",
        "postgresql.port: not to be set here, the nodes' port is `port` at the top level or at a name: remove it",
    ),
    "connect_timeout": (
        "local: {connect_timeout: 5}",
        "local.connect_timeout: not to be set here, `timeout` bounds every probe: remove it",
    ),
    "only writable servers": (
        "postgresql: {target_session_attrs: read-write}",
        "postgresql.target_session_attrs: not to be set here, servers of either role have to answer: remove it",
    ),
    "hostaddr of the local server": (
        "local: {hostaddr: 10.0.0.9}",
        "local.hostaddr: not to be set here, give the address as `host`",
    ),
    "replication session": (
        "local: {replication: database}",
        "local.replication: not to be set here, probes are ordinary sessions: remove it",
    ),
    "keyword with a list": ("local: {host: [a]}", f"local.host: a list {TEXT}"),
    "keyword with a bool": ("postgresql: {password: true}", f"postgresql.password: true {TEXT}"),
    "keyword with null": ("postgresql: {password: }", f"postgresql.password: null {TEXT}"),
    "keyword with a zero byte": (
        r'postgresql: {password: "a\0b"}',
        "postgresql.password: a zero byte found, expected text without one",
    ),
    "local port": ("local: {port: x}", "local.port: 'x' found, expected a port: a whole number from 1 to 65535"),
    "local server by a managed name": (
        "local: {host: WK1}",
        "local.host: a managed name found, expected a socket's folder or an address",
    ),
}


NAMES_AND_NODES = {
    "no names": ("fallback: none\nnames: {}", f"names: an empty map found, {SOME_NAMES}"),
    "names as a list": ("fallback: none\nnames: [wk1]", f"names: a list found, {SOME_NAMES}"),
    "fallback that does not exist": (
        "fallback: maybe\n" + NAMES,
        "fallback: 'maybe' found, expected none, primary or all",
    ),
    "fallback null is not none": ("fallback: ~\n" + NAMES, "fallback: null found, expected none, primary or all"),
    "space in a name": (names("'wk 1': {nodes: [10.0.0.1]}"), f"names.'wk 1': 'wk 1' {HOST_NAME}"),
    "newline in a name": (names(r'"wk\n1": {nodes: [10.0.0.1]}'), rf"names.'wk\n1': 'wk\n1' {HOST_NAME}"),
    "newline after a name": (names(r'"wk1\n": {nodes: [10.0.0.1]}'), rf"names.'wk1\n': 'wk1\n' {HOST_NAME}"),
    "hash in a name": (names("'wk#1': {nodes: [10.0.0.1]}"), f"names.'wk#1': 'wk#1' {HOST_NAME}"),
    "underscore in a name": (names("wk_1: {nodes: [10.0.0.1]}"), f"names.wk_1: 'wk_1' {HOST_NAME}"),
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
    "this host's name": (names("DB7: {nodes: [10.0.0.1]}"), f"names.DB7: 'DB7' {OWN_NAME}"),
    "names that differ in case": (
        names("wk1: {nodes: [10.0.0.1]}, WK1: {nodes: [10.0.0.2]}"),
        "names.WK1: given a second time, expected once: names compare without regard to case",
    ),
    "a list in place of a name's map": (
        names("wk1: [10.0.0.1]"),
        (
            "names.wk1: a list found, expected a map of nodes, patroni, route, port, max_lag_bytes, max_lag_seconds, "
            "failback_delay"
        ),
    ),
    "name without nodes": (names("wk1: {port: 5433}"), f"names.wk1.nodes: missing, {SOME_NODES}"),
    "name with nothing": (names("wk1: "), f"names.wk1.nodes: missing, {SOME_NODES}"),
    "no nodes": (nodes(""), f"names.wk1.nodes: an empty list found, {SOME_NODES}"),
    "a node alone": (names("wk1: {nodes: 10.0.0.1}"), f"names.wk1.nodes: '10.0.0.1' found, {SOME_NODES}"),
    "top-level key at a name": (
        names("wk1: {nodes: [10.0.0.1], interval: 1s}"),
        "names.wk1.interval: unknown key, it is set once for all names, at the top level",
    ),
    "unknown key at a name": (
        names("wk1: {nodes: [10.0.0.1], prot: 1}"),
        "names.wk1.prot: unknown key, did you mean `port`?",
    ),
    "wrong value at a name": (
        names("wk1: {nodes: [10.0.0.1], max_lag_bytes: 1}"),
        f"names.wk1.max_lag_bytes: 1 {SIZE_UNIT}",
    ),
    "Patroni without a port": (
        names("wk1: {nodes: [10.0.0.1], patroni: {cacert: /ca.pem}}"),
        "names.wk1.patroni.port: missing, expected the port of Patroni's REST API, e.g. 8008",
    ),
    "Patroni as a port": (
        names("wk1: {nodes: [10.0.0.1], patroni: 8008}"),
        "names.wk1.patroni: 8008 found, expected a map of port, cacert, cert, key",
    ),
    "relative certificate": (
        names("wk1: {nodes: [10.0.0.1], patroni: {port: 8008, cacert: ca.pem}}"),
        "names.wk1.patroni.cacert: 'ca.pem' found, expected an absolute path",
    ),
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
    "node given twice": (
        nodes("10.0.0.1, 10.0.0.2, 10.0.0.1"),
        f"names.wk1.nodes[2]: 10.0.0.1 is names.wk1.nodes[0] {ALREADY}",
    ),
    "IPv6 node given twice in two spellings": (
        nodes("'2001:db8::1', 2001:DB8:0:0::1"),
        f"names.wk1.nodes[1]: 2001:db8::1 is names.wk1.nodes[0] {ALREADY}",
    ),
    "node under two names": (
        names("wk1: {nodes: [10.0.0.1]}, wk2: {nodes: ['::ffff:10.0.0.1']}"),
        f"names.wk2.nodes[0]: 10.0.0.1 is names.wk1.nodes[0] {ALREADY}",
    ),
    "node given by a managed name written in another case": (
        names("WK1: {nodes: [10.0.0.1]}, wk2: {nodes: [wk1]}"),
        "names.wk2.nodes[0]: 'wk1' is a name that this agent manages, expected an address or another DNS name",
    ),
    "node given by a managed name": (
        names("wk1: {nodes: [10.0.0.1]}, wk2: {nodes: [10.0.0.2, WK1]}"),
        "names.wk2.nodes[1]: 'wk1' is a name that this agent manages, expected an address or another DNS name",
    ),
}


@pytest.mark.parametrize(("text", "expected"), SHAPE.values(), ids=SHAPE)
def test_a_text_of_the_wrong_shape_is_refused(text: str | bytes, expected: list[str]) -> None:
    """What is no map of known keys is refused, by line and column where it is not even YAML."""
    assert errors(text) == expected


@pytest.mark.parametrize(("line", "expected"), KEYS.values(), ids=KEYS)
def test_a_bad_key_or_value_is_refused(line: str, expected: str) -> None:
    """One bad line in a good file gives one error, with the key, what was found and what was expected."""
    assert errors(f"{MINIMAL}{line}\n") == [expected]


@pytest.mark.parametrize(("text", "expected"), NAMES_AND_NODES.values(), ids=NAMES_AND_NODES)
def test_bad_names_and_nodes_are_refused(text: str, expected: str) -> None:
    """Names that cannot be managed and nodes that cannot be told apart are errors."""
    assert errors(text) == [expected]


def test_all_errors_are_reported_at_once() -> None:
    """A file with many faults is told all of them, in the order of the keys."""
    text = (
        "names: {wk1: {nodes: [x:1, 7], port: 0}, localhost: {}}\nport: x\ninterval: 1\nlocl: {}\nlog: {format: xml}\n"
    )
    assert [error.partition(":")[0] for error in errors(text)] == [
        "locl",
        "fallback",
        "port",
        "interval",
        "log.format",
        "names.wk1.port",
        "names.wk1.nodes[0]",
        "names.wk1.nodes[1]",
        "names.localhost",
        "names.localhost.nodes",
    ]


@pytest.mark.parametrize(
    ("hostname", "name", "refused"),
    [
        ("wk1", "wk1", True),
        ("wk1.lan", "wk1", True),
        ("WK1.lan", "wk1.LAN", True),
        ("wk1", "wk1.lan", False),
        ("wk1.lan", "wk1.wan", False),
        ("wk11", "wk1", False),
    ],
)
def test_a_host_keeps_its_own_name(hostname: str, name: str, refused: bool) -> None:  # noqa: FBT001 - a column
    """Neither the name a host gives itself nor its first label can be managed; other hosts' names can."""
    text = names(f"{name}: {{nodes: [10.0.0.1]}}")
    if refused:
        assert errors(text, hostname=hostname) == [f"names.{name}: '{name}' {OWN_NAME}"]
    else:
        assert parse(text, hostname=hostname).groups[0].name == name


def test_what_is_not_said_has_a_default() -> None:
    """Nothing but fallback and names is required."""
    assert parse(MINIMAL) == Config(
        path="agent.yml",
        fallback=Fallback.NONE,
        groups=(
            Group(
                name="wk1",
                nodes=(Node("10.0.0.1", 5432), Node("10.0.0.2", 5432)),
                route=Route.FOLLOW,
                max_lag_bytes=None,
                max_lag_s=None,
                failback_delay_s=10.0,
                patroni=None,
            ),
        ),
        postgresql={"user": "resolver_agent", "dbname": "postgres"},
        local={"host": "/var/run/postgresql", "port": "5432", "user": "resolver_agent", "dbname": "postgres"},
        interval_s=1.0,
        timeout_s=2.0,
        citus=True,
        hosts_file="/etc/hosts",
        runtime_dir="/run/resolver-agent",
        log_format="text",
        log_level="info",
        warnings=(),
    )


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
        ("log: {format: json}", "log_format", "json"),
        ("log: {level: debug}", "log_level", "debug"),
        ("log:", "log_level", "info"),
    ],
)
def test_a_value_means_what_it_says(line: str, field: str, expected: object) -> None:
    """Durations become seconds, words what they stand for; YAML 1.1's idea of ``off`` plays no part."""
    base = "" if line.startswith("fallback") else "fallback: none\n"
    assert getattr(parse(f"{base}{NAMES}{line}\n"), field) == expected


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("route: primary", "route", Route.PRIMARY),
        ("route: standby", "route", Route.STANDBY),
        ("max_lag_bytes: 16kB", "max_lag_bytes", 16 * 1024),
        ("max_lag_bytes: 64MB", "max_lag_bytes", 64 * 1024**2),
        ("max_lag_bytes: 1.5 GB", "max_lag_bytes", 3 * 1024**3 // 2),
        ("max_lag_bytes: 100B", "max_lag_bytes", 100),
        ("max_lag_bytes: 0.1B", "max_lag_bytes", 1),
        ("max_lag_bytes: null", "max_lag_bytes", None),
        ("max_lag_seconds: 30s", "max_lag_s", 30.0),
        ("max_lag_seconds: ~", "max_lag_s", None),
        ("max_lag_seconds: NULL", "max_lag_s", None),
        ("failback_delay: 0", "failback_delay_s", 0.0),
        ("failback_delay: 0s", "failback_delay_s", 0.0),
    ],
)
def test_a_name_has_its_own_value_or_the_one_of_all(line: str, field: str, expected: object) -> None:
    """The keys of a name can be set for it alone, or for all names at the top level."""
    for_all = parse(f"{MINIMAL}{line}\n")
    for_one = parse(names(f"wk1: {{nodes: [10.0.0.1, 10.0.0.2], {line}}}, wk2: {{nodes: [10.0.0.3]}}"))
    assert getattr(for_all.groups[0], field) == expected
    assert getattr(for_one.groups[0], field) == expected
    assert for_one.groups[1].route is Route.FOLLOW
    assert for_one.groups[1].failback_delay_s == 10.0
    assert for_one.groups[1].max_lag_bytes is for_one.groups[1].max_lag_s is None


def test_a_port_belongs_to_all_nodes_of_a_name() -> None:
    """A name's port is that of its nodes; the local server's is the one of the top level, unless it has its own."""
    read = parse("fallback: none\nport: 6432\nnames: {a: {nodes: [10.0.0.1]}, b: {nodes: [10.0.0.1], port: 7}}\n")
    assert [group.nodes for group in read.groups] == [(Node("10.0.0.1", 6432),), (Node("10.0.0.1", 7),)]
    assert read.local["port"] == "6432"
    assert parse(f"{MINIMAL}local: {{port: 5433}}\n").local["port"] == "5433"
    assert parse(f"{MINIMAL}local: {{port: '5433'}}\n").local["port"] == "5433"


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
    """IPv4, IPv6 and DNS names are nodes; spellings of one address are one node."""
    assert parse(nodes(written)).groups[0].nodes == (Node(host, 5432),)


@pytest.mark.parametrize(
    "name",
    ["w", "wk-1", "a" * 63, "a." * 126 + "b", "wk1.3com", "10.0.0.1a", "0xwk", "localhosts", "none", "true"],
)
def test_any_valid_host_name_can_be_managed(name: str) -> None:
    """Names at the limits of what is valid, and those that only look like a special one, are names."""
    assert parse(names(f"{name}: {{nodes: [10.0.0.1]}}")).groups[0].name == name


def test_names_keep_their_order_in_lower_case() -> None:
    """Groups come in the file's order, which is also that of the block."""
    read = parse(names("wk2: {nodes: [10.0.0.2]}, CN: {nodes: [10.0.0.1]}, wk1.lan: {nodes: [10.0.0.3]}"))
    assert [group.name for group in read.groups] == ["wk2", "cn", "wk1.lan"]


@pytest.mark.parametrize(
    ("first", "second"), [("follow", "standby"), ("follow", "primary"), ("primary", "standby"), ("standby", "follow")]
)
def test_an_address_may_stand_behind_names_of_different_routes(first: str, second: str) -> None:
    """A second name such as wk1-ro leads to the same nodes by another route."""
    read = parse(names(f"a: {{nodes: [10.0.0.1], route: {first}}}, b: {{nodes: [10.0.0.1], route: {second}}}"))
    assert read.groups[0].nodes == read.groups[1].nodes


def test_patronis_api_is_described_per_name() -> None:
    """The port is required where there is a patroni map; the TLS files are not."""
    read = parse(names("a: {nodes: [10.0.0.1], patroni: {port: 8008, cacert: /ca.pem}}, b: {nodes: [10.0.0.2]}"))
    assert read.groups[0].patroni == PatroniApi(port=8008, cacert="/ca.pem")
    assert read.groups[1].patroni is None


def test_yaml_anchors_and_merges_work() -> None:
    """Settings that names share can be written once, in YAML's way; a name's own win."""
    read = parse(
        "fallback: none\nnames:\n"
        "  a: &shared {nodes: [10.0.0.1], port: 6432, route: primary}\n"
        "  b: {<<: *shared, nodes: [10.0.0.2]}\n"
        "  c: {nodes: [10.0.0.3], port: 5433, <<: [*shared]}\n"
    )
    assert [group.nodes for group in read.groups] == [
        (Node("10.0.0.1", 6432),),
        (Node("10.0.0.2", 6432),),
        (Node("10.0.0.3", 5433),),
    ]
    assert {group.route for group in read.groups} == {Route.PRIMARY}


LOGINS = {
    "of the nodes is also the local one": (
        "postgresql: {user: u, passfile: /p, sslmode: require}",
        {"user": "u", "dbname": "postgres", "passfile": "/p", "sslmode": "require"},
        {
            "host": "/var/run/postgresql",
            "port": "5432",
            "user": "u",
            "dbname": "postgres",
            "passfile": "/p",
            "sslmode": "require",
        },
    ),
    "local one of its own": (
        "postgresql: {user: u}\nlocal: {host: /sockets, user: v, dbname: d}",
        {"user": "u", "dbname": "postgres"},
        {"host": "/sockets", "port": "5432", "user": "v", "dbname": "d"},
    ),
    "digits stay as they are written": (
        "postgresql: {password: 0123, keepalives_idle: 5}",
        {"user": "resolver_agent", "dbname": "postgres", "password": "0123", "keepalives_idle": "5"},
        {
            "host": "/var/run/postgresql",
            "port": "5432",
            "user": "resolver_agent",
            "dbname": "postgres",
            "password": "0123",
            "keepalives_idle": "5",
        },
    ),
    "in libpq's service file": (
        "postgresql: {service: s}",
        {"service": "s"},
        {"host": "/var/run/postgresql", "port": "5432", "service": "s"},
    ),
    "nothing said in an empty map": (
        "postgresql:\nlocal:",
        {"user": "resolver_agent", "dbname": "postgres"},
        {"host": "/var/run/postgresql", "port": "5432", "user": "resolver_agent", "dbname": "postgres"},
    ),
}


@pytest.mark.parametrize(("lines", "to_nodes", "to_local"), LOGINS.values(), ids=LOGINS)
def test_login(lines: str, to_nodes: dict[str, str], to_local: dict[str, str]) -> None:
    """What ``local`` does not say is as under ``postgresql``."""
    read = parse(f"{MINIMAL}{lines}\n")
    assert (read.postgresql, read.local) == (to_nodes, to_local)


def patroni_file(*, server: str = "{}", section: str = "") -> str:
    """Return Patroni's configuration with the agent's section in it."""
    agent = "".join(f"  {line}\n" for line in (MINIMAL + section).splitlines())
    return f"scope: demo\nscope: demo2\ntags: {{nofailover: false}}\npostgresql: {server}\nresolver_agent:\n{agent}"


DEFAULT_LOGIN = {"user": "resolver_agent", "dbname": "postgres"}
SUPERUSER = "authentication: {superuser: {username: pg, password: 0123, sslmode: prefer}}"
SUPERUSER_LOGIN = {"user": "pg", "dbname": "postgres", "password": "0123", "sslmode": "prefer"}
IN_PATRONIS_FILE: dict[str, tuple[str, str, dict[str, str], dict[str, str]]] = {
    "says nothing": ("{}", "", DEFAULT_LOGIN, {"host": "/var/run/postgresql", "port": "5432"}),
    "listens everywhere": ("{listen: '*:5433'}", "", DEFAULT_LOGIN, {"host": "localhost", "port": "5433"}),
    "listens on all of IPv4": ("{listen: 0.0.0.0:5433}", "", DEFAULT_LOGIN, {"host": "localhost", "port": "5433"}),
    "listens on two addresses": (
        "{listen: '10.0.0.1,127.0.0.1:5433'}",
        "",
        DEFAULT_LOGIN,
        {"host": "localhost", "port": "5433"},
    ),
    "listens on one address": ("{listen: 10.0.0.1:5433}", "", DEFAULT_LOGIN, {"host": "10.0.0.1", "port": "5433"}),
    "listens on two addresses, not on localhost": (
        "{listen: '10.0.0.1, 10.0.0.2:5433'}",
        "",
        DEFAULT_LOGIN,
        {"host": "10.0.0.1", "port": "5433"},
    ),
    "listens on IPv6": ("{listen: '[2001:db8::1]:5433'}", "", DEFAULT_LOGIN, {"host": "2001:db8::1", "port": "5433"}),
    "listens without a port": ("{listen: 10.0.0.1}", "", DEFAULT_LOGIN, {"host": "10.0.0.1", "port": "5432"}),
    "connect address only": (
        "{connect_address: 10.0.0.1:5433}",
        "",
        DEFAULT_LOGIN,
        {"host": "10.0.0.1", "port": "5433"},
    ),
    "socket that Patroni does not use": (
        "{listen: '*:5433', parameters: {unix_socket_directories: /run/pg}}",
        "",
        DEFAULT_LOGIN,
        {"host": "localhost", "port": "5433"},
    ),
    "socket": (
        "{listen: '*:5433', use_unix_socket: true, parameters: {unix_socket_directories: '., /run/pg, /tmp'}}",
        "",
        DEFAULT_LOGIN,
        {"host": "/run/pg", "port": "5433"},
    ),
    "socket in the usual place": (
        "{listen: '*:5433', use_unix_socket: yes}",
        "",
        DEFAULT_LOGIN,
        {"host": "/var/run/postgresql", "port": "5433"},
    ),
    "socket that cannot be reached": (
        "{listen: '*:5433', use_unix_socket: on, parameters: {unix_socket_directories: .}}",
        "",
        DEFAULT_LOGIN,
        {"host": "localhost", "port": "5433"},
    ),
    "superuser": (f"{{{SUPERUSER}}}", "", SUPERUSER_LOGIN, {"host": "/var/run/postgresql", "port": "5432"}),
    "superuser without a name": (
        "{authentication: {superuser: {password: x}}}",
        "",
        DEFAULT_LOGIN,
        {"host": "/var/run/postgresql", "port": "5432"},
    ),
    "section with a login of its own": (
        f"{{listen: '*:5433', {SUPERUSER}}}",
        "postgresql: {user: u}",
        {"user": "u", "dbname": "postgres"},
        {"host": "localhost", "port": "5433"},
    ),
    "section with a database of its own": (
        f"{{{SUPERUSER}}}",
        "postgresql: {dbname: d}",
        {**SUPERUSER_LOGIN, "dbname": "d"},
        {"host": "/var/run/postgresql", "port": "5432"},
    ),
    "section with an address of its own": (
        "{listen: '*:5433'}",
        "local: {host: /sockets}",
        DEFAULT_LOGIN,
        {"host": "/sockets", "port": "5433"},
    ),
    "section with a port of its own": (
        "{listen: '*:5433'}",
        "local: {port: 5434}",
        DEFAULT_LOGIN,
        {"host": "localhost", "port": "5434"},
    ),
    "nothing that can be read": (
        "[1]",
        "",
        DEFAULT_LOGIN,
        {"host": "/var/run/postgresql", "port": "5432"},
    ),
}


@pytest.mark.parametrize(("server", "section", "login", "address"), IN_PATRONIS_FILE.values(), ids=IN_PATRONIS_FILE)
def test_patronis_file(server: str, section: str, login: dict[str, str], address: dict[str, str]) -> None:
    """In Patroni's file the local server is reached as Patroni reaches it, unless the section says otherwise."""
    read = parse(patroni_file(server=server, section=section))
    assert read.postgresql == login
    assert read.local == {**login, **address}
    assert [group.name for group in read.groups] == ["wk1"]


def test_errors_in_patronis_file_name_the_section() -> None:
    """Keys are named from the top of the file, and faults outside the section are left to Patroni."""
    text = patroni_file(section="interval: 0s\ninterval: 5\nlog: {form: text}\nlocal: {a: 1}\n")
    assert [error.partition(":")[0] for error in errors(text.replace("10.0.0.2", "10.0.0.1"))] == [
        "resolver_agent.interval",
        "resolver_agent.interval",
        "resolver_agent.log.form",
        "resolver_agent.names.wk1.nodes[1]",
        "resolver_agent.local.a",
    ]


def test_an_empty_section_in_patronis_file() -> None:
    """A section that says nothing lacks what is required."""
    expected = [f"resolver_agent.{FALLBACK}", f"resolver_agent.names: missing, {SOME_NAMES}"]
    assert errors("scope: demo\nresolver_agent:\n") == expected


def test_a_configuration_does_not_show_its_passwords() -> None:
    """What is logged of a configuration holds no secret."""
    assert "hunter2" not in repr(parse(f"{MINIMAL}postgresql: {{password: hunter2}}\n"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["10s", "64MB", "10.0.0.1", "follow"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["nodes", "patroni", "port", "host", "user", "<<", "wk1"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["fallback", *re.findall(r"(?m)^(\w+):", SAMPLE.read_text())]), VALUES))
def test_no_value_at_all_breaks_the_reading(document: dict[str, Any]) -> None:
    """Whatever stands under the known keys, the answer is a configuration or a list of errors (JSON is YAML)."""
    try:
        answer: object = parse(json.dumps(document))
    except ConfigError as exc:
        answer = exc.errors
    assert answer


@given(st.text() | st.binary())
def test_no_text_at_all_breaks_the_reading(text: str | bytes) -> None:
    """Whatever the file holds, it is refused with a reason."""
    assert errors(text)


def write(path: Path, text: str, *, mode: int = 0o600) -> str:
    """Write a file with a mode and return its name."""
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Take the rights of root away for the time of a test."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def load_error(path: str) -> str:
    """Return the one error of a file that cannot be loaded."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert len(caught.value.errors) == 1
    return caught.value.errors[0]


def test_a_missing_file(tmp_path: Path) -> None:
    """The error names the file."""
    path = f"{tmp_path}/none.yml"
    assert load_error(path) == f"{path}: No such file or directory, expected a configuration file that can be read"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A folder is as good as unreadable."""
    assert load_error(str(tmp_path)) == f"{tmp_path}: Is a directory, expected a configuration file that can be read"


@pytest.mark.usefixtures("as_nobody")
def test_a_file_without_permission() -> None:
    """The error says what the system said."""
    path = "/etc/shadow"
    assert load_error(path) == f"{path}: Permission denied, expected a configuration file that can be read"


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    """Errors begin with the file's name as it was given."""
    path = write(tmp_path / "agent.yml", f"{MINIMAL}port: 0\n")
    assert load_error(path) == f"{path}: port: 0 found, expected a port: a whole number from 1 to 65535"


@pytest.mark.parametrize(
    ("line", "mode", "mend"),
    [
        ("postgresql: {password: x}", 0o644, 0o640),
        ("local: {password: x}", 0o604, 0o600),
        ("postgresql: {sslpassword: x}", 0o664, 0o660),
        ("postgresql: {password: x}", 0o640, None),
        ("postgresql: {password: x}", 0o600, None),
        ("postgresql: {passfile: /x}", 0o644, None),
        ("", 0o644, None),
    ],
)
def test_a_password_that_everybody_can_read_is_warned_about(
    tmp_path: Path, line: str, mode: int, mend: int | None
) -> None:
    """The warning names the mode and the command that mends it; it is no error."""
    path = write(tmp_path / "agent.yml", f"{MINIMAL}{line}\n", mode=mode)
    warning = f"{path}: holds a password and everybody can read it (mode {mode:04o}): chmod {mend or 0:04o} {path}"
    assert load(path).warnings == (() if mend is None else (warning,))


def test_the_sample_is_valid_and_shows_the_defaults() -> None:
    """The sample loads without a warning, and what it calls defaults are."""
    sample = load(str(SAMPLE))
    required, _, optional = SAMPLE.read_text().partition("# From here on everything is optional")
    assert parse(required) == dataclasses.replace(sample, path="agent.yml")
    shown = set(re.findall(r"(?m)^(\w+):", optional))
    assert shown == {
        "route",
        "port",
        "max_lag_bytes",
        "max_lag_seconds",
        "failback_delay",
        "interval",
        "timeout",
        "citus",
        "hosts_file",
        "runtime_dir",
        "log",
    }
    assert [group.name for group in sample.groups] == ["cn", "wk1", "wk2"]
    assert sample.warnings == ()


def test_what_the_sample_has_commented_out_is_valid_too() -> None:
    """Taking the comment sign away from an example gives a configuration that works."""
    text, count = re.subn(r"(?m)^(  +)# (\S+: \{)", r"\1\2", SAMPLE.read_text())
    read = parse(text)
    assert count == 2
    assert [group.name for group in read.groups] == ["cn", "wk1", "wk2", "wk1-ro"]
    assert read.groups[1].patroni == PatroniApi(port=8008)
    assert read.groups[3].route is Route.STANDBY


def test_a_driver_is_loaded_only_when_it_is_needed() -> None:
    """Commands that need no database must not pay for importing psycopg (0.1 s)."""
    code = "import sys, resolver_agent.config.load; sys.exit('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
