"""What doctor suggests about ``pg_dist_node`` is run for real: afterwards the finding is gone, and no other came."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from resolver_agent.citus.metadata import names_in_use
from resolver_agent.config.load import load
from tests.integration.support.citus_cluster import citus_version, workers_have_metadata
from tests.integration.support.cluster import DATABASE
from tests.integration.support.doctor import mend, report
from tests.integration.support.proxy import Proxy

if TYPE_CHECKING:
    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine

NODES = "SELECT nodename FROM pg_dist_node ORDER BY groupid"
ELSEWHERE, VIRTUAL = "127.0.44.66", "127.0.44.100"
EVIL = [
    f"host={ELSEWHERE} port={{port}}",
    f"postgresql://{ELSEWHERE}:{{port}}/x",
    f"x' host={ELSEWHERE}",
    r"""o'd"\d""",
    ":user :'user' %s",
    "-reuse-previous=off",
    "x\"; \\! touch 'evil",
    "`touch evil`",
    "größe",
]


@pytest.fixture
def cn(citus: CitusCluster) -> Machine:
    """The machine of the primary coordinator."""
    return citus.machines["cn-1"]


def findings(answer: dict[str, Any]) -> dict[str, str]:
    """Return the findings of a report about the metadata and the databases, each with its fix, by key."""
    texts: dict[str, str] = {}
    for one in answer["findings"]:
        if one["key"].startswith(("metadata:", "database:", "unchecked")):
            texts[one["key"]] = f"{texts.get(one['key'], '')}{one['text']}; {one['fix']}\n"
    return texts


def told() -> list[str]:
    """Return the names in the metadata on a worker, if workers have it."""
    return ["cn", "wk1", "wk2"] if workers_have_metadata() else []


def names(machine: Machine, dbname: str = DATABASE) -> list[str]:
    """Return the nodes' names in the metadata on a machine."""
    return [name for (name,) in machine.server.run_sql(NODES, dbname=dbname)]


def test_databases_with_any_name(citus: CitusCluster, cn: Machine) -> None:
    """The scripts reach every database by its own name, and nothing but this server, whatever the databases' names."""
    evil = [name.format(port=citus.site.port) for name in EVIL]
    for name in [*evil, "two\nlines"]:
        cn.server.run_sql(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    for name in evil:
        cn.server.run_sql("CREATE EXTENSION citus", dbname=name)
        cn.server.run_sql("SELECT citus_set_coordinator_host(%s, %s)", [cn.address, citus.site.port], dbname=name)
    with socket.create_server((ELSEWHERE, citus.site.port)) as elsewhere:
        elsewhere.settimeout(0)
        before = report(citus, cn)
        for name in evil:
            assert f"pg_dist_node (database {name}) has no names yet" in findings(before)["metadata:address"]
        assert "its name is no printable UTF-8" in findings(before)["unchecked"]
        mend(citus, cn, before["to_names"])
        after = report(citus, cn)
        assert findings(after).keys() == {"unchecked"}
        assert {name: names(cn, name) for name in evil} == {name: ["cn"] for name in evil}
        assert names(cn) == ["cn", "wk1", "wk2"]
        mend(citus, cn, after["to_addresses"])
        assert {name: names(cn, name) for name in evil} == {name: [cn.address] for name in evil}
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
    assert not (cn.folder / "evil").exists()


def hinted(text: str) -> str:
    """Return the statement in a hint."""
    *_, statement = re.findall(r"(?:SELECT|DROP|ALTER) [^;]*;", text)
    return f"\\connect {DATABASE}\nSET client_min_messages = warning;\n{statement}"


def lead_everywhere(citus: CitusCluster, **more: str) -> None:
    """Let every machine know more names, besides those of the primaries; a name's dots are given as ``__``."""
    names = {name: pair[0].address for name, pair in citus.groups.items()}
    for machine in citus.machines.values():
        machine.lead(names | {name.replace("__", "."): address for name, address in more.items()})


def update(citus: CitusCluster, cn: Machine, group: int, host: str) -> None:
    """Write a host into a row of the metadata, and wait until every node has it."""
    # Not in one statement: Citus 13.2 may crash while the table is read, as the function changes what that reads.
    [(node_id,)] = cn.server.run_sql("SELECT nodeid FROM pg_dist_node WHERE groupid = %s", [group], dbname=DATABASE)
    cn.server.run_sql("SELECT citus_update_node(%s, %s, %s)", [node_id, host, citus.site.port], dbname=DATABASE)


SPELLINGS = [
    pytest.param("worker-101.example.net", id="FQDN"),
    pytest.param("Worker-101.EXAMPLE.net", id="capitals"),
    pytest.param(VIRTUAL, id="virtual address"),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_server_under_another_spelling(citus: CitusCluster, cn: Machine, spelling: str) -> None:
    """It is taken for the node that it is: nothing is added, and its name replaces the spelling."""
    wk1 = citus.machines["wk1-1"]
    lead_everywhere(citus, **{"worker-101__example__net": wk1.address})
    with Proxy(VIRTUAL, citus.site.port, to=(wk1.address, citus.site.port)):
        update(citus, cn, 1, spelling)
        before = report(citus, cn)
        assert findings(before).keys() == {"metadata:address"}
        assert f"{spelling} (of wk1)" in findings(before)["metadata:address"]
        assert spelling not in before["to_addresses"]
        citus.machines["cn-2"].server.wait_for_replay(of=cn.server)
        for other in ("cn-2", "wk2-1"):
            assert findings(report(citus, citus.machines[other])).keys() <= {"metadata:address"}
        mend(citus, cn, before["to_names"])
    assert (names(cn), names(wk1)) == (["cn", "wk1", "wk2"], told())
    assert findings(report(citus, cn)) == {}


def test_a_server_that_cannot_be_identified(citus: CitusCluster, cn: Machine) -> None:
    """It may be the one that seems to be missing, so nothing is to be added."""
    update(citus, cn, 1, VIRTUAL)  # nobody listens there
    found = findings(report(citus, cn))
    assert found.keys() == {"metadata:unknown", "metadata:unused"}
    assert "citus_add_node" not in str(found)
    with Proxy(VIRTUAL, citus.site.port, to=(citus.machines["wk1-1"].address, citus.site.port)):
        cn.server.run_sql("DROP FUNCTION resolver_agent.reached()", dbname=DATABASE)
        assert findings(report(citus, cn)).keys() == found.keys()


def test_a_name_in_capitals(citus: CitusCluster, cn: Machine) -> None:
    """It is the same name, for doctor and for `remove`."""
    update(citus, cn, 1, "WK1")
    assert findings(report(citus, cn)) == {}
    assert names_in_use(load(str(citus.configure(cn))), ["wk1"]) == [f"WK1 (database {DATABASE})"]


def test_a_name_with_a_fixed_route(citus: CitusCluster, cn: Machine) -> None:
    """The name that follows takes its place."""
    wk1 = [machine.address for machine in citus.groups["wk1"]]
    lead_everywhere(citus, **{"wk1-ro": wk1[0]})
    with_routes = {
        "names": {name: {"nodes": nodes} for name, nodes in citus.addresses.items()}
        | {"wk1-ro": {"nodes": wk1, "route": "standby"}}
    }
    update(citus, cn, 1, "wk1-ro")
    before = report(citus, cn, **with_routes)
    assert findings(before).keys() == {"metadata:standby"}
    mend(citus, cn, before["to_names"])
    assert findings(report(citus, cn, **with_routes)) == {}


def test_a_worker_that_was_not_told(citus: CitusCluster, cn: Machine) -> None:
    """Before Citus 11.3 a worker could keep an address of the coordinator that was replaced: it is synced."""
    if not workers_have_metadata():
        pytest.skip("before Citus 11 no worker has the metadata")
    worker = citus.machines["wk1-1"]
    worker.server.run_sql("UPDATE pg_dist_node SET nodename = %s WHERE groupid = 0", [cn.address], dbname=DATABASE)
    found = findings(report(citus, worker))
    assert found.keys() == {"metadata:address"}
    assert report(citus, cn)["to_names"] is None
    mend(citus, cn, hinted(found["metadata:address"]))
    assert names(worker) == ["cn", "wk1", "wk2"]
    assert findings(report(citus, worker)) == findings(report(citus, cn)) == {}


def test_the_coordinators_row_alone(citus: CitusCluster, cn: Machine) -> None:
    """Where only the coordinator has an address, the script tells the workers, too."""
    update(citus, cn, 0, cn.address)
    before = report(citus, cn)
    assert findings(before).keys() == {"metadata:address"}
    mend(citus, cn, before["to_names"])
    assert names(cn) == ["cn", "wk1", "wk2"]
    for machine in (citus.machines["wk1-1"], citus.machines["wk2-1"]):
        assert names(machine) == told()
        assert findings(report(citus, machine)) == {}


SECONDARY = "SELECT citus_add_secondary_node('{standby}', {port}, 'wk1', {port})"
# As citus_add_clone_node() writes it, which looks for the standby's address in pg_stat_replication. On loopback that is
# another.
CLONE = """
INSERT INTO pg_dist_node (groupid, nodename, nodeport, noderole, isactive, nodeisclone, nodeprimarynodeid)
SELECT nextval('pg_dist_groupid_seq'), '{standby}', {port}, 'unavailable', false, true, nodeid
  FROM pg_dist_node WHERE nodename = 'wk1'
"""
INACTIVE = "UPDATE pg_dist_node SET isactive = false WHERE nodename = 'wk2'"
ROWS = [
    pytest.param(SECONDARY, "metadata:secondary", id="a secondary"),
    pytest.param(CLONE, "metadata:clone", id="a clone"),
    pytest.param(INACTIVE, "metadata:inactive", id="inactive"),
]


@pytest.mark.parametrize(("statement", "key"), ROWS)
def test_a_row_that_is_no_active_primary(citus: CitusCluster, cn: Machine, statement: str, key: str) -> None:
    """The statement in the hint removes or activates it."""
    if statement == CLONE and citus_version() < (13, 2):
        pytest.skip("clones came with Citus 13.2")
    standby = citus.machines["wk1-2"].address
    cn.server.run_sql(statement.format(standby=standby, port=citus.site.port), dbname=DATABASE)
    found = findings(report(citus, cn))
    assert found.keys() == {key}
    mend(citus, cn, hinted(found[key]))
    assert findings(report(citus, cn)) == {}
    assert names(cn) == ["cn", "wk1", "wk2"]


DATABASES = [
    pytest.param("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", "database:invalid", id="invalid"),
    pytest.param("UPDATE pg_database SET datconnlimit = 0 WHERE datname = %s", "unchecked", id="CONNECTION LIMIT 0"),
]


@pytest.mark.parametrize(("statement", "key"), DATABASES)
def test_a_database_that_cannot_be_asked(citus: CitusCluster, cn: Machine, statement: str, key: str) -> None:
    """The statement in the hint mends it, whatever its name."""
    if key == "unchecked" and citus.site.binaries.version < 15:
        pytest.skip("before PostgreSQL 15 the agent's login is a superuser's, whom no such limit keeps out")
    name = """o'ld"d"""
    cn.server.run_sql(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    cn.server.run_sql(statement, [name])
    found = findings(report(citus, cn))
    assert found.keys() == {key}
    mend(citus, cn, hinted(found[key]))
    assert findings(report(citus, cn)) == {}


def test_a_database_that_lets_nobody_in(citus: CitusCluster, cn: Machine) -> None:
    """It is not asked, which is a note of its own."""
    cn.server.run_sql("CREATE DATABASE old ALLOW_CONNECTIONS false")
    assert "database old: it lets nobody in" in findings(report(citus, cn))["unchecked"]
