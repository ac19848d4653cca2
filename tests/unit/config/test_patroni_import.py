"""From Patroni's file with its ``citus:`` section to a configuration that the real loader takes."""

from __future__ import annotations

import contextlib
import itertools
import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.config.load import ConfigError
from resolver_agent.config.model import Config, Fallback, Node
from resolver_agent.config.patroni_import import convert
from tests.unit.config.builders import SAFELY, errors, parse

ARTICLE = """
scope: cn
namespace: /service/
name: pg1
restapi: {listen: '0.0.0.0:8008', connect_address: '192.168.234.201:8008'}
etcd: {host: '192.168.234.204:2379'}
postgresql:
  listen: 0.0.0.0:5432
  connect_address: 192.168.234.201:5432
  data_dir: /pgsql/data
  authentication: {superuser: {username: postgres, password: "SUPERUSERS-PASSWORD"}}
"""
WORKERS = """
citus:
  loop_wait: 10
  databases:
  - postgres
  workers:
  - groupid: 1
    nodes:
    - 192.168.234.203:5432
    - 192.168.234.204:5432
"""
OWN = "postgresql: {connect_address: '10.0.0.1:5432'}\n"
ONE = "{groupid: 1, nodes: ['10.0.0.3:5432']}"


def controller(workers: str, *, more: str = OWN) -> str:
    """Return Patroni's file with these groups of workers, in YAML."""
    return f"{more}citus: {{databases: [app], workers: [{workers}]}}\n"


def converted(text: str, *, hostname: str = "db7") -> str:
    """Convert Patroni's file as the host db7 would."""
    return convert(text, path="patroni.yml", hostname=hostname)


def filled(text: str) -> str:
    """Fill in what the operator has to, each time with another address."""
    numbers = itertools.count(1)
    filled_in = re.sub("<ADDRESS>", lambda _: f"198.51.{next(numbers) // 250}.{next(numbers) % 250}", text)
    return filled_in.replace("<FILE>", "/etc/ssl/patroni.pem")


def imported(text: str, *, hostname: str = "db7") -> Config:
    """Return what the loader reads in a conversion that is filled in."""
    return parse(filled(converted(text, hostname=hostname)), hostname=hostname)


def nodes(config: Config) -> dict[str, list[str]]:
    """Return the nodes behind each name, without those that were filled in."""
    return {group.name: [str(node) for node in group.nodes if "198.51" not in node.host] for group in config.groups}


def refusals(text: str | bytes) -> list[str]:
    """Return the errors of a file that cannot be converted, without the file's name in front of each."""
    with pytest.raises(ConfigError) as caught:
        convert(text, path="patroni.yml", hostname="db7")
    assert all(error.startswith("patroni.yml: ") for error in caught.value.errors)
    return [error.removeprefix("patroni.yml: ") for error in caught.value.errors]


def test_the_article() -> None:
    """Its section becomes names for the same nodes, with the agent's own roles."""
    config = imported(ARTICLE + WORKERS)
    assert nodes(config) == {
        "cn": ["192.168.234.201:5432"],
        "wk1": ["192.168.234.203:5432", "192.168.234.204:5432"],
    }
    assert [len(group.nodes) for group in config.groups] == [2, 2]
    assert [group.patroni.port for group in config.groups if group.patroni] == [8008, 8008]
    assert config.fallback is Fallback.NONE
    login = {"user": "resolver_agent", "dbname": "postgres", "passfile": "/etc/resolver-agent.pgpass"}
    assert config.postgresql == {**login, **SAFELY}
    assert config.local == {**login, "user": "resolver_agent_local", "host": "/var/run/postgresql", "port": "5432"}


def test_no_password_is_taken_over() -> None:
    """The superuser's login stays where it is."""
    text = converted(ARTICLE + WORKERS)
    assert "SUPERUSERS-PASSWORD" not in text
    assert yaml.safe_load(filled(text))["postgresql"].keys() == {"user", "dbname", "passfile"}


def test_what_is_missing_is_refused() -> None:
    """The loader takes no conversion whose brackets are not filled in, and names them."""
    [error] = errors(converted(ARTICLE + WORKERS))
    assert error.startswith("names.cn.nodes[1]: '<ADDRESS>' is not a host name")


def test_databases_are_told() -> None:
    """The agent looks for Citus in every database: the operator learns where role.sql has to run."""
    assert "# Databases with Citus: app." in converted(controller(ONE))


GROUPS = {
    "several groups, in order": (
        "{groupid: 12, nodes: ['10.0.0.5:5432']}, {groupid: 1, nodes: ['10.0.0.3:5432']}",
        OWN,
        {"cn": ["10.0.0.1:5432"], "wk1": ["10.0.0.3:5432"], "wk12": ["10.0.0.5:5432"]},
    ),
    "ports": (
        "{groupid: 1, nodes: ['10.0.0.3:5433', '10.0.0.4:5433']}",
        "postgresql: {connect_address: '10.0.0.1:5434'}\n",
        {"cn": ["10.0.0.1:5434"], "wk1": ["10.0.0.3:5433", "10.0.0.4:5433"]},
    ),
    "no port": ("{groupid: 1, nodes: ['10.0.0.3']}", OWN, {"cn": ["10.0.0.1:5432"], "wk1": ["10.0.0.3:5432"]}),
    "IPv6": (
        "{groupid: 1, nodes: ['[2001:DB8::3]:5432']}",
        "postgresql: {connect_address: '[2001:db8::1]:5432'}\n",
        {"cn": ["[2001:db8::1]:5432"], "wk1": ["[2001:db8::3]:5432"]},
    ),
    "DNS names, also such as YAML has another meaning for": (
        "{groupid: 1, nodes: ['DB3.example.net:5432', 'true:5432', 'null:5432']}",
        OWN,
        {"cn": ["10.0.0.1:5432"], "wk1": ["db3.example.net:5432", "true:5432", "null:5432"]},
    ),
    "a node that is called as a name would be": (
        "{groupid: 1, nodes: ['wk1:5432', 'wk1-group:5432']}",
        OWN,
        {"cn": ["10.0.0.1:5432"], "wk1-group2": ["wk1:5432", "wk1-group:5432"]},
    ),
    "the coordinators, too": (
        f"{{groupid: 0, nodes: ['10.0.0.1:5432', '10.0.0.2:5432']}}, {ONE}",
        OWN,
        {"cn": ["10.0.0.1:5432", "10.0.0.2:5432"], "wk1": ["10.0.0.3:5432"]},
    ),
    "in a worker's own file": (
        ONE,
        "postgresql: {connect_address: '10.0.0.3:5432'}\n",
        {"cn": [], "wk1": ["10.0.0.3:5432"]},
    ),
    "without an address of its own": (ONE, "postgresql: [1]\n", {"cn": [], "wk1": ["10.0.0.3:5432"]}),
}


@pytest.mark.parametrize(("workers", "more", "expected"), GROUPS.values(), ids=GROUPS)
def test_groups(workers: str, more: str, expected: dict[str, list[str]]) -> None:
    """Each group of workers is a name, and the coordinators are one."""
    assert nodes(imported(controller(workers, more=more))) == expected


def test_a_host_that_has_the_name() -> None:
    """No name is this host's own, by which others reach it."""
    assert nodes(imported(controller(ONE), hostname="wk1.example.net")).keys() == {"cn", "wk1-group"}


APIS = {
    "none": ("", None),
    "no port": ("restapi: {listen: here}\n", None),
    "a port that is none": ("restapi: {listen: '0.0.0.0:66000'}\n", None),
    "listen": ("restapi: {listen: '*:8009'}\n", (8009, None, None, None)),
    "TLS": (
        "restapi: {listen: '*:8008', certfile: /c}\nctl: {cacert: '/etc/ssl/Größe \\ x.pem'}\n",
        (8008, "/etc/ssl/Größe \\ x.pem", None, None),
    ),
    "TLS without a CA": ("restapi: {listen: '*:8008', certfile: /c}\n", (8008, "/etc/ssl/patroni.pem", None, None)),
    "TLS with certificates for clients": (
        "restapi: {listen: '*:8008', certfile: /c, cafile: /ca, verify_client: required}\nctl: {certfile: /cert}\n",
        (8008, "/ca", "/cert", "/etc/ssl/patroni.pem"),
    ),
}


@pytest.mark.parametrize(("lines", "expected"), APIS.values(), ids=APIS)
def test_patronis_api(lines: str, expected: tuple[object, ...] | None) -> None:
    """Every name has Patroni's REST API as on this node, where the file says how to reach it."""
    for group in imported(controller(ONE, more=OWN + lines)).groups:
        api = group.patroni
        assert (api and (api.port, api.cacert, api.cert, api.key)) == expected


LOCAL = {
    "another socket": (
        "{listen: '*:5433', parameters: {unix_socket_directories: '., /run/pg'}}",
        {"host": "/run/pg", "port": "5433"},
    ),
    "no socket that can be reached": (
        "{parameters: {unix_socket_directories: .}}",
        {"host": "/var/run/postgresql", "port": "5432"},
    ),
}


@pytest.mark.parametrize(("section", "expected"), LOCAL.values(), ids=LOCAL)
def test_the_local_server(section: str, expected: dict[str, str]) -> None:
    """The agent's role logs in over the socket alone, wherever it is."""
    local = imported(controller(ONE, more=f"postgresql: {section}\n")).local
    assert {key: local[key] for key in expected} == expected
    assert local["user"] == "resolver_agent_local"


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{group: 0, database: app}", {"cn": ["10.0.0.1:5432"], "wk1": []}),
        ("{group: 0}", {"cn": ["10.0.0.1:5432"], "wk1": []}),
        ("{group: 3, database: app}", {"cn": [], "wk3": ["10.0.0.1:5432"]}),
    ],
)
def test_patronis_own_section(section: str, expected: dict[str, list[str]]) -> None:
    """It has the group of its own node alone: all other nodes are to be filled in, and the section has to go."""
    text = f"{OWN}citus: {section}\n"
    assert nodes(imported(text)) == expected
    assert "# Remove Patroni's citus: section" in converted(text)


SECTION = "expected the section of the controller script, citus: {loop_wait: 10,"
REFUSED = {
    "no map": ("[1]", [r"an? .*found, expected Patroni's configuration: a map"]),
    "no YAML": ("{", ["line 1, column 2: "]),
    "nothing": ("", [f"citus: missing, {SECTION}"]),
    "no section": (OWN, [f"citus: missing, {SECTION}"]),
    "an empty section": ("citus:", [f"citus: missing, {SECTION}"]),
    "a list as the section": ("citus: [1]", [f"citus: a list found, {SECTION}"]),
    "no workers": ("citus: {databases: [app]}", ["citus.workers: missing, expected a list of groups, e.g. "]),
    "workers are no list": ("citus: {workers: {}}", ["citus.workers: an empty map found, expected a list of groups"]),
    "both sections": (
        f"citus: {{group: 0, workers: [{ONE}]}}",
        ["citus.group: unknown key, it belongs to Patroni's own section, which has no workers: remove it, or"],
    ),
    "a misspelt key": (
        f"citus: {{database: [app], workers: [{ONE}], wrokers: 1}}",
        ["citus.database: unknown key, it belongs", "citus.wrokers: unknown key, .*workers"],
    ),
    "a key given twice": (
        f"citus: {{workers: [{ONE}], workers: [{ONE}]}}",
        ["citus.workers: given a second time on line 1, expected once"],
    ),
    "databases are text": (
        f"citus: {{databases: postgres, workers: [{ONE}]}}",
        [r"citus.databases: 'postgres' found, expected a list of names, e.g. \[postgres\]"],
    ),
    "a database that is no name": (
        f"citus: {{databases: [[]], workers: [{ONE}]}}",
        [r"citus.databases\[0\]: an empty list found, expected text"],
    ),
    "a group that is no map": (controller("1"), [r"citus.workers\[0\]: 1 found, expected a map of groupid, nodes"]),
    "a group without anything": (
        controller("{}"),
        [r"citus.workers\[0\].groupid: missing, expected the g", r"citus.workers\[0\].nodes: missing, expected a list"],
    ),
    "a number that is none": (
        controller("{groupid: one, nodes: ['10.0.0.3:5432']}"),
        [r"citus.workers\[0\].groupid: 'one' found, expected the group's number in pg_dist_node, e.g. 1"],
    ),
    "a group given twice": (
        controller("{groupid: 1, nodes: ['10.0.0.3:5432']}, {groupid: 1, nodes: ['10.0.0.4:5432']}"),
        [r"citus.workers\[1\].groupid: 1 is given a second time, expected each group once"],
    ),
    "a node given twice": (
        controller("{groupid: 1, nodes: ['10.0.0.3:5432']}, {groupid: 2, nodes: ['10.0.0.3']}"),
        [
            r"citus.workers\[1\].nodes\[0\]: 10.0.0.3:5432 is already given as citus.workers\[0\].nodes\[0\], expected",
        ],
    ),
    "a node that is a map": (
        controller("{groupid: 1, nodes: [10.0.0.3: 5432]}"),
        [r"citus.workers\[0\].nodes\[0\]: a map found, expected HOST:PORT, e.g. '192.168.234.203:5432'"],
    ),
    "an address that is none": (
        controller("{groupid: 1, nodes: ['10.0.0.300:5432']}"),
        [r"citus.workers\[0\].nodes\[0\]: '10.0.0.300' found, which is not a valid IP address"],
    ),
    "a port that is none": (
        controller("{groupid: 1, nodes: ['10.0.0.3:65536']}"),
        [r"citus.workers\[0\].nodes\[0\]: 65536 found, expected a port"],
    ),
    "two ports in a group": (
        controller("{groupid: 1, nodes: ['10.0.0.3:5432', '10.0.0.4:5433']}"),
        [r"citus.workers\[0\].nodes: the ports 5432, 5433 found, expected the same port on all nodes of a group"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(text: str, expected: list[str]) -> None:
    """Each error names the key, what was found, and what to write instead."""
    found = refusals(text)
    assert len(found) == len(expected)
    for error, pattern in zip(found, expected, strict=True):
        assert re.match(pattern, error), error


def test_very_many_errors() -> None:
    """They are cut off."""
    found = refusals(controller(", ".join(["{}"] * 500)))
    assert len(found) == 101
    assert found[-1] == "and more errors"


def test_text_that_would_leave_its_comment() -> None:
    """What the file says stays in the line of its comment, and reaches no terminal as it is."""
    hostile = json.dumps("app\nfallback: all\x1b[2J")
    text = converted(f"citus: {{databases: [{hostile}], workers: [{ONE}]}}")
    assert "\x1b" not in text
    assert parse(filled(text)).fallback is Fallback.NONE


WORDS = [
    *("citus", "workers", "groupid", "nodes", "databases", "loop_wait", "group", "database", "scope", "restapi"),
    *("postgresql", "connect_address", "listen", "parameters", "unix_socket_directories", "certfile", "ctl", "cacert"),
]
TEXTS = [
    "10.0.0.3:5432",
    "10.0.0.4:5432",
    "[::1]:5433",
    "wk1:5432",
    "cn",
    "*:8008",
    "/a\x1bb",
    "/run, /x: y",
    "required",
]
SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
)
HOSTS = st.sampled_from(
    ["10.0.0.3", "10.0.0.4", "10.0.0.5", "wk1", "wk2-group", "cn", "db3.example.net", "[2001:db8::3]"]
)
GROUP = st.fixed_dictionaries(
    {
        "groupid": st.integers(0, 4),
        "nodes": st.lists(st.builds("{}:{}".format, HOSTS, st.sampled_from([5432, 5433])), min_size=1, max_size=3),
    }
)
FILES = st.fixed_dictionaries(
    {
        "citus": st.fixed_dictionaries({"workers": st.lists(GROUP, min_size=1, max_size=4), "databases": SHAPES})
        | st.fixed_dictionaries({"workers": st.lists(GROUP, min_size=1, max_size=4)})
        | st.fixed_dictionaries({"group": st.integers(0, 3)})
        | SHAPES,
    },
    optional={
        "postgresql": st.fixed_dictionaries({"connect_address": st.sampled_from(TEXTS)}) | SHAPES,
        **dict.fromkeys(("restapi", "ctl", "scope"), SHAPES),
    },
)


@given(FILES, st.sampled_from(["db7", "wk1", "cn.example.net"]))
def test_whatever_the_file_has(file: object, hostname: str) -> None:
    """It is refused with its key, or becomes what the loader takes, with every node of every group."""
    with contextlib.suppress(ConfigError):
        text = convert(json.dumps(file), path="patroni.yml", hostname=hostname)
        assert text.replace("\n", "").isprintable()
        try:
            config = parse(filled(text), hostname=hostname)
        except ConfigError as error:
            raise AssertionError(text) from error
        workers = file["citus"].get("workers", []) if isinstance(file, dict) else []
        given = {one.strip("[]") for worker in workers for node in worker["nodes"] for one in [node.rpartition(":")[0]]}
        assert given <= {node.host for group in config.groups for node in group.nodes}
        assert len(config.groups) == len({*(worker["groupid"] for worker in workers), 0}) or not workers


def test_nodes_are_those_of_the_model() -> None:
    """A node is an address and a port: the loader gives back what was put in."""
    [_, group] = imported(controller("{groupid: 7, nodes: ['10.0.0.3:6000']}")).groups
    assert group.nodes == (Node("10.0.0.3", 6000),)
