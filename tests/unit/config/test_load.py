"""What a configuration file may contain, and the errors for anything else."""

from __future__ import annotations

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

from resolver_agent.config.load import ConfigError, fingerprint, load, locations
from resolver_agent.config.model import Config, Fallback, Group, Node, PatroniApi, Queue, Route
from tests.unit.config.builders import (
    FALLBACK,
    MINIMAL,
    NAMES,
    SAFELY,
    SIZE_UNIT,
    SOME_NAMES,
    errors,
    names,
    nodes,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path(__file__).parents[3] / "systemd" / "resolver-agent.yml"

SOME_NODES = "expected a list of addresses, e.g. [192.168.234.203, 192.168.234.204]"
ONCE = "expected each node once, and under one name per route"

SHAPE = {
    "empty file": ("", [FALLBACK, f"names: missing, {SOME_NAMES}"]),
    "only comments": ("# nothing\n", [FALLBACK, f"names: missing, {SOME_NAMES}"]),
    "a list": (
        "- fallback: none",
        [
            (
                "a list found, expected a map of fallback, names, postgresql, local, route, port, max_lag_bytes, "
                "max_lag_seconds, failback_delay, interval, timeout, citus, hosts_file, runtime_dir, state_dir, queue, "
                "on_change, log, http"
            )
        ],
    ),
    "Patroni's file without a section": (
        "scope: demo\nrestapi: {}\n",
        ["resolver_agent: missing, expected this section in Patroni's configuration"],
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
    "names that differ in case": (
        names("wk1: {nodes: [10.0.0.1]}, WK1: {nodes: [10.0.0.2]}"),
        "names.WK1: given a second time, expected once: names compare without regard to case",
    ),
    "a list in place of a name's map": (
        names("wk1: [10.0.0.1]"),
        (
            "names.wk1: a list found, expected a map of nodes, patroni, queue, postgresql, route, port, max_lag_bytes, "
            "max_lag_seconds, failback_delay"
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
        "names.wk1.patroni: 8008 found, expected a map of port, cacert, cert, key, networks",
    ),
    "relative certificate": (
        names("wk1: {nodes: [10.0.0.1], patroni: {port: 8008, cacert: ca.pem}}"),
        "names.wk1.patroni.cacert: 'ca.pem' found, expected an absolute path",
    ),
    "node given twice": (
        nodes("10.0.0.1, 10.0.0.2, 10.0.0.1"),
        f"names.wk1.nodes[2]: 10.0.0.1 is already given as names.wk1.nodes[0], {ONCE}",
    ),
    "IPv6 node given twice in two spellings": (
        nodes("'2001:db8::1', 2001:DB8:0:0::1"),
        f"names.wk1.nodes[1]: 2001:db8::1 is already given as names.wk1.nodes[0], {ONCE}",
    ),
    "node under two names": (
        names("wk1: {nodes: [10.0.0.1]}, wk2: {nodes: ['::ffff:10.0.0.1']}"),
        f"names.wk2.nodes[0]: 10.0.0.1 is already given as names.wk1.nodes[0], {ONCE}",
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
    """A file that is no map of known keys is refused; invalid YAML is reported by line and column."""
    assert errors(text) == expected


@pytest.mark.parametrize(("text", "expected"), NAMES_AND_NODES.values(), ids=NAMES_AND_NODES)
def test_bad_names_and_nodes_are_refused(text: str, expected: str) -> None:
    """Names that cannot be managed and nodes that are listed twice are errors."""
    assert errors(text) == [expected]


def test_what_is_not_said_has_a_default() -> None:
    """Only ``fallback`` and ``names`` are required."""
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
        postgresql={"user": "resolver_agent", "dbname": "postgres", **SAFELY},
        local={"host": "/var/run/postgresql", "port": "5432", "user": "resolver_agent", "dbname": "postgres"},
        interval_s=1.0,
        timeout_s=2.0,
        citus=True,
        hosts_file="/etc/hosts",
        runtime_dir="/run/resolver-agent",
        state_dir="/var/lib/resolver-agent",
        log_format="text",
        log_level="info",
        warnings=(),
    )


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("route: primary", "route", Route.PRIMARY),
        ("route: standby", "route", Route.STANDBY),
        ("max_lag_bytes: 16kB", "max_lag_bytes", 16 * 1024),
        ("max_lag_bytes: 64MB", "max_lag_bytes", 64 * 1024**2),
        ("max_lag_bytes: 1.5 GB", "max_lag_bytes", 3 * 1024**3 // 2),
        ("max_lag_bytes: 100B", "max_lag_bytes", 100),
        ("max_lag_bytes: 1.1B", "max_lag_bytes", 2),
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


def test_the_times_of_the_queue_can_be_set_for_one_name() -> None:
    """What a name does not set of ``queue`` is as at the top level, and that as by default."""
    top = "queue: {drain: 1s, unplanned: 30s}\n"
    read = parse(top + names("wk1: {nodes: [10.0.0.1], queue: {planned: 0s}}, wk2: {nodes: [10.0.0.3], queue: }"))
    assert [group.queue for group in read.groups] == [
        Queue(planned_s=0.0, drain_s=1.0, unplanned_s=30.0),
        Queue(planned_s=15.0, drain_s=1.0, unplanned_s=30.0),
    ]


def test_a_port_belongs_to_all_nodes_of_a_name() -> None:
    """A name's port applies to all its nodes; the local server uses the top-level port unless it has its own."""
    read = parse("fallback: none\nport: 6432\nnames: {a: {nodes: [10.0.0.1]}, b: {nodes: [10.0.0.1], port: 7}}\n")
    assert [group.nodes for group in read.groups] == [(Node("10.0.0.1", 6432),), (Node("10.0.0.1", 7),)]
    assert read.local["port"] == "6432"
    assert parse(f"{MINIMAL}local: {{port: 5433}}\n").local["port"] == "5433"
    assert parse(f"{MINIMAL}local: {{port: '5433'}}\n").local["port"] == "5433"


def test_names_keep_their_order_in_lower_case() -> None:
    """Groups have the order of the file, and so does the block."""
    read = parse(names("wk2: {nodes: [10.0.0.2]}, CN: {nodes: [10.0.0.1]}, wk1.lan: {nodes: [10.0.0.3]}"))
    assert [group.name for group in read.groups] == ["wk2", "cn", "wk1.lan"]


@pytest.mark.parametrize(
    ("first", "second"), [("follow", "standby"), ("follow", "primary"), ("primary", "standby"), ("standby", "follow")]
)
def test_an_address_may_stand_behind_names_of_different_routes(first: str, second: str) -> None:
    """A second name such as wk1-ro may have the same nodes with another route."""
    read = parse(names(f"a: {{nodes: [10.0.0.1], route: {first}}}, b: {{nodes: [10.0.0.1], route: {second}}}"))
    assert read.groups[0].nodes == read.groups[1].nodes


@pytest.mark.parametrize(
    ("api", "fault"),
    [
        pytest.param("key: /k", "key: given without `cert`, expected the certificate of this key as `cert`", id="key"),
        pytest.param(
            "networks: []", "networks: an empty list found, expected a list of networks, e.g. [10.0.0.0/24]", id="none"
        ),
        *(
            pytest.param(
                f"networks: [{given}]",
                f"networks: {found}, expected a network such as 10.0.0.0/24 or 'fd00::/64'",
                id=given,
            )
            for given, found in {
                "10.0.0.1": "'10.0.0.1' found",
                "10.0.0.0/255.0.0.0": "'10.0.0.0/255.0.0.0' found",
                "7": "7 found",
                "pg/24": "'pg/24' found ('pg/24' does not appear to be an IPv4 or IPv6 network)",
                "10.0.0.1/24": "'10.0.0.1/24' found (10.0.0.1/24 has host bits set)",
            }.items()
        ),
    ],
)
def test_a_faulty_patroni_map(api: str, fault: str) -> None:
    """A key alone would be plain HTTP in silence, and a network is one that an operator can mean."""
    with pytest.raises(ConfigError) as raised:
        parse(names(f"a: {{nodes: [10.0.0.1], patroni: {{port: 8008, {api}}}}}"))
    assert [error.partition("names.a.patroni.")[2] for error in raised.value.errors] == [fault]


def test_networks_for_members() -> None:
    """Networks are read in either family; without any, only configured nodes count."""
    read = parse(names("a: {nodes: [10.0.0.1], patroni: {port: 8008, networks: [10.0.0.0/24, 'fd00::/64']}}"))
    api = read.groups[0].patroni
    assert api is not None
    assert [str(network) for network in api.networks] == ["10.0.0.0/24", "fd00::/64"]


def test_patronis_api_is_described_per_name() -> None:
    """A ``patroni`` map needs a port; the TLS files are optional."""
    read = parse(names("a: {nodes: [10.0.0.1], patroni: {port: 8008, cacert: /ca.pem}}, b: {nodes: [10.0.0.2]}"))
    assert read.groups[0].patroni == PatroniApi(port=8008, cacert="/ca.pem")
    assert read.groups[1].patroni is None


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
    "local one of its own, without the other's password": (
        "postgresql: {user: u, password: x, sslcert: /c, sslmode: require}\nlocal: {user: v}",
        {"user": "u", "dbname": "postgres", "password": "x", "sslcert": "/c", "sslmode": "require"},
        {"host": "/var/run/postgresql", "port": "5432", "user": "v", "dbname": "postgres", "sslmode": "require"},
    ),
    "local with the same user": (
        "postgresql: {password: x}\nlocal: {host: 127.0.0.1, user: resolver_agent}",
        {"user": "resolver_agent", "dbname": "postgres", "password": "x"},
        {"host": "127.0.0.1", "port": "5432", "user": "resolver_agent", "dbname": "postgres", "password": "x"},
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
    "safer than by default": (
        "postgresql: {require_auth: scram-sha-256, channel_binding: require, sslmode: require}",
        {
            "user": "resolver_agent",
            "dbname": "postgres",
            "require_auth": "scram-sha-256",
            "channel_binding": "require",
            "sslmode": "require",
        },
        {
            "host": "/var/run/postgresql",
            "port": "5432",
            "user": "resolver_agent",
            "dbname": "postgres",
            "sslmode": "require",
        },
    ),
    "nothing said in an empty map": (
        "postgresql:\nlocal:",
        {"user": "resolver_agent", "dbname": "postgres"},
        {"host": "/var/run/postgresql", "port": "5432", "user": "resolver_agent", "dbname": "postgres"},
    ),
}


@pytest.mark.parametrize(("lines", "to_nodes", "to_local"), LOGINS.values(), ids=LOGINS)
def test_login(lines: str, to_nodes: dict[str, str], to_local: dict[str, str]) -> None:
    """A value that ``local`` does not set is taken from ``postgresql``."""
    read = parse(f"{MINIMAL}{lines}\n")
    assert (read.postgresql, read.local) == ({**SAFELY, **to_nodes}, to_local)


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
    """Any value under a known key gives a configuration or a list of errors (JSON is YAML)."""
    try:
        answer: object = parse(json.dumps(document))
    except ConfigError as exc:
        answer = exc.errors
    assert answer


def write(path: Path, text: str, *, mode: int = 0o600) -> str:
    """Write a file with a mode and return its name."""
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Drop root's privileges for one test."""
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
    """A folder is reported like an unreadable file."""
    assert load_error(str(tmp_path)) == f"{tmp_path}: Is a directory, expected a configuration file that can be read"


@pytest.mark.usefixtures("as_nobody")
def test_a_file_without_permission() -> None:
    """The error contains the system's message."""
    path = "/etc/shadow"
    assert load_error(path) == f"{path}: Permission denied, expected a configuration file that can be read"


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    """Errors begin with the file name as it was given."""
    path = write(tmp_path / "agent.yml", f"{MINIMAL}port: 0\n")
    assert load_error(path) == f"{path}: port: 0 found, expected a port: a whole number from 1 to 65535"


@pytest.mark.parametrize(
    ("line", "mode", "fixed"),
    [
        ("postgresql: {password: x}", 0o644, 0o640),
        ("local: {password: x}", 0o604, 0o600),
        ("postgresql: {sslpassword: x}", 0o644, 0o640),
        ("postgresql: {password: x}", 0o640, None),
        ("postgresql: {password: x}", 0o600, None),
        ("postgresql: {passfile: /etc/hosts}", 0o644, None),
        ("", 0o644, None),
    ],
)
def test_a_password_that_everybody_can_read_is_warned_about(
    tmp_path: Path, line: str, mode: int, fixed: int | None
) -> None:
    """The warning has the mode and the command that fixes it; it is no error."""
    path = write(tmp_path / "agent.yml", f"{MINIMAL}{line}\n", mode=mode)
    warning = f"{path}: holds a password and is world-readable (mode {mode:04o}): chmod {fixed or 0:04o} {path}"
    assert load(path).warnings == (() if fixed is None else (warning,))


def test_the_sample_is_valid_and_shows_the_defaults() -> None:
    """The sample loads without a warning, and the defaults it shows are right."""
    sample = parse(SAMPLE.read_text())
    required, _, optional = SAMPLE.read_text().partition("# From here on everything is optional")
    assert parse(required) == sample
    shown = set(re.findall(r"(?m)^(\w+):", optional))
    assert shown == {
        "route",
        "port",
        "max_lag_bytes",
        "max_lag_seconds",
        "failback_delay",
        "queue",
        "interval",
        "timeout",
        "citus",
        "hosts_file",
        "runtime_dir",
        "state_dir",
        "log",
        "http",
    }
    assert [group.name for group in sample.groups] == ["cn", "wk1", "wk2"]
    assert sample.warnings == ()


def test_what_the_sample_has_commented_out_is_valid_too() -> None:
    """Each example works when it is uncommented."""
    text, count = re.subn(r"(?m)^(  +)# (\S+: \{)", r"\1\2", SAMPLE.read_text())
    read = parse(text)
    assert count == 2
    assert [group.name for group in read.groups] == ["cn", "wk1", "wk2", "wk1-ro"]
    assert read.groups[1].patroni == PatroniApi(port=8008)
    assert read.groups[3].route is Route.STANDBY


def test_a_driver_is_loaded_only_when_it_is_needed() -> None:
    """Commands that need no database must not import psycopg (0.1 s)."""
    code = "import sys, resolver_agent.config.load; sys.exit('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A FIFO does not block, and a device is not read for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (str(fifo), "/dev/zero"):
        assert load_error(path) == f"{path}: not a regular file, expected a configuration file that can be read"


def test_a_file_of_a_gigabyte(tmp_path: Path) -> None:
    """No more is read of a file than a configuration may have."""
    path = write(tmp_path / "agent.yml", "")
    os.truncate(path, 2**30)
    assert load_error(path) == f"{path}: larger than 1 MiB, expected a configuration"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("postgresql: {passfile: %s/none}", "postgresql.passfile"),
        ("postgresql: {sslrootcert: %s/none}", "postgresql.sslrootcert"),
        ("local: {sslkey: %s/none}", "local.sslkey"),
        ("on_change: {command: [%s/none]}", "on_change.command"),
    ],
)
def test_a_file_that_does_not_exist(line: str, key: str, tmp_path: Path) -> None:
    """Files that the configuration names must be there, or a reload would leave the agent without logins."""
    path = write(tmp_path / "agent.yml", f"{MINIMAL}{line % tmp_path}\n")
    assert load_error(path) == f"{path}: {key}: {tmp_path}/none: No such file or directory"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("intervall: 1s", ("/r", "/h", "/s")),
        ("runtime_dir: 7", ("/run/resolver-agent", "/h", "/s")),
        ("<", ("/run/resolver-agent", "/etc/hosts", "/var/lib/resolver-agent")),
    ],
)
def test_where_the_agent_of_a_faulty_file_is(line: str, expected: tuple[str, str, str], tmp_path: Path) -> None:
    """The folders and the hosts file are found as far as they can be read."""
    text = f"fallback: maybe\nruntime_dir: /r\nhosts_file: /h\nstate_dir: /s\n{line}\n"
    path = write(tmp_path / "agent.yml", text)
    assert locations(path) == expected


def test_a_fingerprint_has_no_password_in_it() -> None:
    """It differs with the configuration, not with its secrets, which nobody could then guess from it."""
    found = [
        fingerprint(parse(f"{MINIMAL}postgresql: {{user: {user}, password: {word}}}"))
        for user, word in ("ux", "uy", "vx")
    ]
    assert found[0] == found[1] != found[2]
    commands = [fingerprint(parse(f"{MINIMAL}on_change: {{command: [/x, {word}]}}")) for word in "ab"]
    assert commands[0] == commands[1]


NO_FOLLOW = (
    "follow found, which goes by the role of the local PostgreSQL, and there is none (local: off), expected `route: "
    "primary` or `route: standby`"
)


def test_a_host_without_postgresql() -> None:
    """``local: off`` needs a fixed route for each name; then there is nothing to flush and nobody to ask."""
    read = parse(f"{MINIMAL}local: off\nroute: primary\n")
    assert (read.has_local, read.local, read.citus) == (False, {}, False)
    assert parse(MINIMAL).has_local


def test_every_name_without_a_fixed_route_is_an_error_there() -> None:
    """``follow`` cannot be meant, wherever it comes from."""
    text = names("cn: {nodes: [10.0.0.1]}, ro: {nodes: [10.0.0.1], route: standby}, wk1: {nodes: [10.0.0.2]}")
    assert errors(f"{text}local: off\n") == [f"names.cn.route: {NO_FOLLOW}", f"names.wk1.route: {NO_FOLLOW}"]


@pytest.mark.parametrize(("given", "shown"), [("on", "text"), ("false", "false"), ("[off]", "a list")])
def test_local_is_a_map_or_off(given: str, shown: str) -> None:
    """No other word is understood."""
    expected = f"local: {shown} found, expected a map, or off where there is no PostgreSQL on this host"
    assert errors(f"{MINIMAL}route: primary\nlocal: {given}\n") == [expected]


@pytest.mark.parametrize(
    ("shared", "own", "expected"),
    [
        ("user: u, dbname: d", "user: v", {"user": "v", "dbname": "d"}),
        ("user: u, passfile: /p", "user: v", {"user": "v", "passfile": "/p"}),
        ("user: u, password: p", "password: q", {"user": "u", "password": "q"}),
        ("user: u, password: p, sslcert: /c, sslkey: /k", "user: v", {"user": "v"}),
        ("user: u, password: p", "passfile: /q", {"user": "u", "passfile": "/q"}),
        ("sslcert: /c, sslkey: /k, sslpassword: s", "sslcert: /d, sslkey: /l", {"sslcert": "/d", "sslkey": "/l"}),
        ("sslmode: require, password: p", "sslmode: disable", {"sslmode": "disable", "password": "p"}),
        ("user: u", "require_auth: scram-sha-256", {"user": "u", "require_auth": "scram-sha-256"}),
    ],
)
def test_the_login_of_one_name(shared: str, own: str, expected: dict[str, str]) -> None:
    """A name's keywords override those of all; a password or key of another user goes to nobody else's server."""
    read = parse(
        f"fallback: none\npostgresql: {{{shared}}}\n"
        f"names: {{a: {{nodes: [10.0.0.1], postgresql: {{{own}}}}}, b: {{nodes: [10.0.0.2]}}}}\n"
    )
    defaults = {"user": "resolver_agent", "dbname": "postgres", **SAFELY}
    assert read.login(read.groups[0]) == read.login_at(Node("10.0.0.1", 5432)) == {**defaults, **expected}
    assert read.login(read.groups[1]) == read.login_at(Node("10.9.9.9", 1)) == read.postgresql


FAULTY_LOGINS = {
    "no such keyword": ("usr: x", "usr: libpq has no such keyword, did you mean `user`?"),
    "the nodes' host": ("host: x", "host: not to be set here, the nodes are given under `names`: remove it"),
    "a connection string": ("'user=x password=y'", " text found, expected a map"),
    "libpq refuses": ("sslmode: maybe", "sslmode: "),
}


@pytest.mark.parametrize(("given", "fault"), FAULTY_LOGINS.values(), ids=FAULTY_LOGINS)
def test_a_faulty_login_of_one_name(given: str, fault: str) -> None:
    """It is read as carefully as that of all nodes; no error shows a password."""
    text = given if given.startswith("'") else f"{{{given}}}"
    [error] = errors(names(f"a: {{nodes: [10.0.0.1], postgresql: {text}}}"))
    assert f"names.a.postgresql{'' if fault.startswith(' ') else '.'}" in error
    assert fault.strip() in error
    assert "password=y" not in error


def test_two_logins_for_one_node() -> None:
    """There is one session on each node, so names that share it cannot log in differently."""
    text = names(
        "cn: {nodes: [10.0.0.1], route: primary, postgresql: {user: u}}, ro: {nodes: [10.0.0.1], route: standby}"
    )
    assert errors(text) == [
        "names.ro.postgresql: other than that of cn, which has 10.0.0.1:5432 too, expected the same login"
    ]


def test_keywords_of_one_name_that_do_not_go_together() -> None:
    """What libpq refuses only with the keywords of all nodes is an error at the name."""
    text = names("a: {nodes: [10.0.0.1], postgresql: {ssl_max_protocol_version: TLSv1.2}}")
    assert errors(f"{text}postgresql: {{ssl_min_protocol_version: TLSv1.3}}\n") == [
        "names.a.postgresql: libpq refuses these keywords: invalid SSL protocol version range"
    ]


def test_a_file_of_one_names_login(tmp_path: Path) -> None:
    """Each file that it names must exist, and its password makes a file that everybody may read a warning."""
    path = write(tmp_path / "agent.yml", names("a: {nodes: [10.0.0.1], postgresql: {passfile: /nowhere}}"))
    with pytest.raises(ConfigError, match=r"names\.a\.postgresql\.passfile: /nowhere: "):
        load(path)
    secret = names("a: {nodes: [10.0.0.1], postgresql: {password: hunter2}}")
    write(tmp_path / "agent.yml", secret, mode=0o644)
    read = load(path)
    assert any("holds a password and is world-readable" in one for one in read.warnings)
    assert "hunter2" not in repr(read)


def test_the_fingerprint_of_one_names_login() -> None:
    """It differs with the login, but not with its password."""
    found = [
        fingerprint(parse(names(f"a: {{nodes: [10.0.0.1], postgresql: {{user: {user}, password: {word}}}}}")))
        for user, word in ("ux", "uy", "vx")
    ]
    assert found[0] == found[1] != found[2]
