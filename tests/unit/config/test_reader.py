"""Unknown keys are refused, and all errors are reported at once."""

from __future__ import annotations

import pytest

from resolver_agent.config.values import libpq_keywords
from tests.unit.config.builders import MINIMAL, errors

TEXT = "found, expected text (put it in quotes if it is meant as such)"

REFUSED = {"host", "hostaddr", "port", "connect_timeout", "target_session_attrs", "service", "client_encoding"}

KEYS = {
    "unknown key": ("intervall: 1s", "intervall: unknown key, did you mean `interval`?"),
    "key unlike any other": (
        "zzz: 1",
        (
            "zzz: unknown key, expected one of citus, failback_delay, fallback, hosts_file, http, interval, local, "
            "log, max_lag_bytes, max_lag_seconds, names, on_change, port, postgresql, queue, route, runtime_dir, "
            "state_dir, timeout"
        ),
    ),
    "key of a name at the top": ("nodes: [10.0.0.1]", "nodes: unknown key, it belongs under a name: names.NAME.nodes"),
    "unknown nested key": ("log: {levle: info}", "log.levle: unknown key, did you mean `level`?"),
    "unknown key of the queue": ("queue: {plan: 5s}", "queue.plan: unknown key, did you mean `planned`?"),
    "map wanted": ("log: text", "log: text found, expected a map of format, level"),
    "connection string": (
        "postgresql: host=10.0.0.1 password=hunter2",
        "postgresql: text found, expected a map",
    ),
    "entries without blanks": (
        "postgresql: {user:u password:hunter2}",
        ("postgresql.'…': libpq has no such keyword, expected one of " + ", ".join(sorted(libpq_keywords() - REFUSED))),
    ),
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
    "service": (
        "local: {service: x}",
        "local.service: not to be set here, libpq's service files are not read: write its keywords here",
    ),
    "service of the nodes": (
        "postgresql: {service: x}",
        "postgresql.service: not to be set here, libpq's service files are not read: write its keywords here",
    ),
    "several local servers": ("local: {host: '10.0.0.1,10.0.0.2'}", "local.host: a comma found, expected one server"),
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
    "local server by a managed name": (
        "local: {host: WK1}",
        "local.host: a managed name found, expected a socket's folder or an address",
    ),
}


@pytest.mark.parametrize(("line", "expected"), KEYS.values(), ids=KEYS)
def test_a_bad_key_or_value_is_refused(line: str, expected: str) -> None:
    """One bad line in a good file gives one error, with the key, the value found and what was expected."""
    assert errors(f"{MINIMAL}{line}\n") == [expected]


def test_all_errors_are_reported_at_once() -> None:
    """A file with many faults gives all their errors, in the order of the keys."""
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


def test_errors_without_end_are_cut() -> None:
    """Of a file that is no configuration at all the first hundred errors are reported."""
    found = errors(MINIMAL + "".join(f"key{i}: 1\n" for i in range(20_000)))
    assert (len(found), found[-1]) == (101, "and more errors")
