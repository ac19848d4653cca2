"""What doctor suggests about ``pg_dist_node`` is run for real: afterwards the finding is gone, and no other came."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from tests.integration.support.cluster import DATABASE
from tests.integration.support.machine import CHECKOUT

if TYPE_CHECKING:
    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine

DOCTOR = [sys.executable, "-m", "resolver_agent.cli", "doctor", "--json"]
NODES = "SELECT nodename FROM pg_dist_node ORDER BY groupid"
ELSEWHERE = "127.0.44.66"
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


def report(citus: CitusCluster, machine: Machine, **settings: Any) -> dict[str, Any]:
    """Return what doctor says on a machine, as plain data."""
    ran = subprocess.run(
        [*machine.launcher, *DOCTOR, "-c", citus.configure(machine, **settings)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    assert ran.returncode in (0, 1), ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def findings(answer: dict[str, Any]) -> dict[str, str]:
    """Return the findings of a report about the metadata and the databases, each with its fix, by key."""
    texts: dict[str, str] = {}
    for one in answer["findings"]:
        if one["key"].startswith(("metadata:", "database:", "unchecked")):
            texts[one["key"]] = f"{texts.get(one['key'], '')}{one['text']}; {one['fix']}\n"
    return texts


def psql(citus: CitusCluster, machine: Machine, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with psql as an operator would: as a superuser with a password that opens any server."""
    where = ["-h", str(machine.server.socket_dir), "-p", str(citus.site.port), "-U", "postgres", "-d", "postgres"]
    command = [*machine.as_postgres, str(citus.site.binaries.folder / "psql"), "-X", "-q", "-w", *where]
    return subprocess.run(
        command,
        input=script,
        cwd=machine.folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PGPASSWORD": "SUPERUSERS-PASSWORD"},
    )


def mend(citus: CitusCluster, machine: Machine, script: str) -> str:
    """Run a script that must succeed, and return its output."""
    ran = psql(citus, machine, script)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


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
