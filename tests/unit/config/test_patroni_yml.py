"""The agent's section in Patroni's own configuration, and the values it takes from there."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.config import patroni_yml
from resolver_agent.config.values import libpq_fault
from tests.unit.config.builders import FALLBACK, MINIMAL, SAFELY, SOME_NAMES, errors, parse


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
    "shapes that Patroni refuses": (
        "{listen: [1], connect_address: {a: 1}, use_unix_socket: true, parameters: [x], authentication: [y]}",
        "",
        DEFAULT_LOGIN,
        {"host": "/var/run/postgresql", "port": "5432"},
    ),
    "port that is none": (
        "{listen: '10.0.0.1:https'}",
        "",
        DEFAULT_LOGIN,
        {"host": "/var/run/postgresql", "port": "5432"},
    ),
    "superuser with other keys": (
        r'{authentication: {superuser: {username: pg, host: 10.6.6.6, passfile: /x, sslcert: "\0"}}}',
        "",
        {"user": "pg", "dbname": "postgres"},
        {"host": "/var/run/postgresql", "port": "5432"},
    ),
    "section with a login for the local server": (
        f"{{listen: '*:5433', {SUPERUSER}}}",
        "local: {user: u}",
        {"user": "u", "dbname": "postgres"},
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
    """With patroni.yml the agent reaches the local server as Patroni does, unless the section says otherwise."""
    read = parse(patroni_file(server=server, section=section))
    assert read.local == {**login, **address}
    assert [group.name for group in read.groups] == ["wk1"]


@pytest.mark.parametrize(
    ("section", "login"),
    [
        ("", DEFAULT_LOGIN),
        ("postgresql: {dbname: d}", {**DEFAULT_LOGIN, "dbname": "d"}),
        ("local: {user: u}", DEFAULT_LOGIN),
    ],
)
def test_nodes_never_see_patronis_superuser(section: str, login: dict[str, str]) -> None:
    """Its login is for the local server alone: whoever has a node's address would get it otherwise."""
    assert parse(patroni_file(server=f"{{{SUPERUSER}}}", section=section)).postgresql == {**login, **SAFELY}


def test_errors_in_patronis_file_name_the_section() -> None:
    """Keys are given in full from the top of the file; faults outside the section are Patroni's concern."""
    text = patroni_file(section="interval: 0s\ninterval: 5\nlog: {form: text}\nlocal: {a: 1}\n")
    assert [error.partition(":")[0] for error in errors(text.replace("10.0.0.2", "10.0.0.1"))] == [
        "resolver_agent.interval",
        "resolver_agent.interval",
        "resolver_agent.log.form",
        "resolver_agent.names.wk1.nodes[1]",
        "resolver_agent.local.a",
    ]


def test_an_empty_section_in_patronis_file() -> None:
    """An empty section lacks the required keys."""
    expected = [f"resolver_agent.{FALLBACK}", f"resolver_agent.names: missing, {SOME_NAMES}"]
    assert errors("scope: demo\nresolver_agent:\n") == expected


WORDS = [
    "listen",
    "connect_address",
    "use_unix_socket",
    "parameters",
    "unix_socket_directories",
    "authentication",
    "superuser",
    "username",
    "password",
    "sslcert",
]
SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["*:5432", "10.0.0.1:x", "a,b:1", "yes"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
)


@given(SHAPES)
def test_no_shape_of_patronis_section_breaks_the_reading(section: object) -> None:
    """Whatever Patroni's section holds, libpq is given one server and a login that it can read."""
    address, login = patroni_yml.local_server(json.loads(json.dumps(section)))
    assert libpq_fault({"host": "localhost", **address, **login}) is None
