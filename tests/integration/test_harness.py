"""The machines, and the Citus and Patroni clusters on them, that other integration tests stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from tests.integration.citus_cluster import CitusCluster

PRIMARIES = {"wk1-1", "wk2-1"}
STANDBYS = {"wk1-2", "wk2-2"}


def test_a_name_leads_where_the_hosts_file_of_its_machine_says(citus: CitusCluster) -> None:
    """A new session goes where the name leads now, on this machine alone; one with connections stays on them."""
    cn1, cn2 = citus.groups["cn"]
    before = citus.connect(cn1)
    assert citus.serving(before) == PRIMARIES
    cn1.lead({"cn": cn1.address, "wk1": citus.machines["wk1-2"].address, "wk2": citus.machines["wk2-1"].address})
    assert citus.serving(citus.connect(cn1)) == {"wk1-2", "wk2-1"}
    assert citus.serving(before) == PRIMARIES
    assert set(citus.sessions_of(before)) == PRIMARIES
    assert citus.serving(citus.connect(cn2)) == STANDBYS


def test_joins_of_every_kind_on_a_standby(citus: CitusCluster) -> None:
    """A coordinator standby joins over worker standbys, also where these have to dial each other."""
    session = citus.connect(citus.machines["cn-2"])
    session.execute("SET citus.enable_repartition_joins = on")
    joined = session.execute("""
        SELECT count(*), sum(amount)
        FROM orders JOIN accounts ON account = accounts.id JOIN regions ON region = regions.id
    """)
    assert joined.fetchall() == [(800, 320_400)]


def test_a_commit_in_doubt_is_kept_by_the_standby(citus: CitusCluster) -> None:
    """After the loss of the coordinator its standby can have the workers commit what they prepared."""
    cn1, cn2 = citus.groups["cn"]
    workers = [citus.machines[name] for name in sorted(PRIMARIES)]
    citus.commit_in_doubt(cn1, "UPDATE accounts SET balance = balance + 1")
    assert all(citus.prepared(worker) for worker in workers)
    cn1.kill()
    cn2.lead({"cn": cn2.address, "wk1": workers[0].address, "wk2": workers[1].address})
    cn2.server.promote()
    assert citus.run_sql(cn2, "SELECT sum(balance) FROM accounts") == [(40_000,)]
    citus.run_sql(cn2, "SELECT recover_prepared_transactions()")
    assert citus.run_sql(cn2, "SELECT sum(balance) FROM accounts") == [(40_400,)]
    assert not any(citus.prepared(worker) for worker in workers)


def test_a_commit_that_is_released_completes(citus: CitusCluster) -> None:
    """What waits in the middle of its COMMIT is a real transaction that can go on."""
    cn1 = citus.machines["cn-1"]
    session = citus.commit_in_doubt(cn1, "UPDATE accounts SET balance = 7")
    citus.release(cn1)
    result = session.pgconn.get_result()
    assert result is not None
    assert result.command_status == b"COMMIT"
    assert citus.prepared(citus.machines["wk1-1"]) == []


def test_restoring_undoes_everything(citus: CitusCluster) -> None:
    """Whatever a test did to servers, data, hosts files and agents, the next one finds the cluster as it was made."""
    cn1, cn2 = citus.groups["cn"]
    session = citus.connect(cn1)
    citus.run_sql(cn1, "DROP TABLE orders")
    agent = citus.start_agent(cn2)
    cn1.kill()
    cn2.server.promote()
    citus.machines["wk1-1"].pause()
    citus.machines["wk2-2"].lead({})
    citus.restore()
    assert agent.process.poll() is not None
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    assert cn2.server.streams_from(cn1.server)
    assert citus.serving(citus.connect(cn1)) == PRIMARIES
    assert citus.serving(citus.connect(cn2)) == STANDBYS
    assert citus.run_sql(cn1, "SELECT count(*) FROM orders") == [(800,)]


def test_an_agent_runs_on_its_machine(citus: CitusCluster) -> None:
    """It keeps that machine's hosts file, follows the server there, and is asked by the servers' user too."""
    cn1, cn2 = citus.groups["cn"]
    ours = cn1.hosts_file.read_bytes()
    agent = citus.start_agent(cn2)
    agent.wait_for_line(r" wk2 → ")
    assert citus.ask_agent(cn2, "status")["names"]
    cn2.run("test", "-w", citus.control_path(cn2), as_postgres=True)
    cn1.kill()
    cn2.server.promote()
    cn2.wait_for_names({"cn": cn2.address, "wk1": "127.0.42.1", "wk2": "127.0.43.1"})
    assert cn2.resolve("wk1") == ["127.0.42.1"]
    assert citus.serving(citus.connect(cn2)) == PRIMARIES
    assert cn1.hosts_file.read_bytes() == ours
    assert citus.stop_agent(cn2) == 0
