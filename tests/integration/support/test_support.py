"""The machines, and the Citus and Patroni clusters on them, that other integration tests use."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from resolver_agent.demo.reaper import processes_in
from tests.integration.support.citus_cluster import citus_version

if TYPE_CHECKING:
    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import CitusPatroniCluster, PatroniCluster

PRIMARIES = {"wk1-1", "wk2-1"}
STANDBYS = {"wk1-2", "wk2-2"}
OWNER = """
import signal
from tests.integration.support.patroni_cluster import PatroniCluster
with PatroniCluster(["cn"]) as cluster:
    cluster.restore()
    print(cluster.site.folder, flush=True)
    signal.pause()
"""


def test_a_name_leads_where_the_hosts_file_of_its_machine_says(citus: CitusCluster) -> None:
    """A new session uses the name's current address, on this machine only; open connections stay."""
    cn1, cn2 = citus.groups["cn"]
    # Otherwise Citus opens another connection where one takes longer than 10 ms.
    before = citus.connect(cn1, options="-c citus.max_adaptive_executor_pool_size=1")
    assert citus.serving(before) == PRIMARIES
    cn1.lead({"cn": cn1.address, "wk1": citus.machines["wk1-2"].address, "wk2": citus.machines["wk2-1"].address})
    assert citus.serving(citus.connect(cn1)) == {"wk1-2", "wk2-1"}
    assert citus.serving(before) == PRIMARIES
    assert set(citus.sessions_of(before)) == PRIMARIES
    assert citus.serving(citus.connect(cn2)) == STANDBYS


def test_joins_of_every_kind_on_a_standby(citus: CitusCluster) -> None:
    """A coordinator standby joins over worker standbys, also where these have to dial each other."""
    if citus_version() < (11,):
        pytest.skip("before Citus 11 a standby coordinator refuses repartition joins")
    session = citus.connect(citus.machines["cn-2"])
    session.execute("SET citus.enable_repartition_joins = on")
    joined = session.execute("""
        SELECT count(*), sum(amount)
        FROM orders JOIN accounts ON account = accounts.id JOIN regions ON region = regions.id
    """)
    assert joined.fetchall() == [(800, 320_400)]


def test_a_commit_in_doubt_is_kept_by_the_standby(citus: CitusCluster) -> None:
    """After the loss of the coordinator its standby can commit what the workers prepared."""
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
    """A transaction that waits in the middle of its COMMIT can go on."""
    cn1 = citus.machines["cn-1"]
    session = citus.commit_in_doubt(cn1, "UPDATE accounts SET balance = 7")
    citus.release(cn1)
    result = session.pgconn.get_result()
    assert result is not None
    assert result.command_status == b"COMMIT"
    assert citus.prepared(citus.machines["wk1-1"]) == []


def test_restoring_undoes_everything(citus: CitusCluster) -> None:
    """Whatever a test did to servers, data, hosts files and agents, the next one finds the initial cluster."""
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
    """It keeps that machine's hosts file, follows the server there, and answers the servers' user too."""
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


def hook(machine: Machine, *, then: str) -> tuple[dict[str, str], Path]:
    """Return the setting of a promotion hook that writes whether the server is in recovery, and the file it writes."""
    said = machine.folder / "patroni" / "hook"
    server = machine.server
    psql = f"{server.binaries.folder}/psql -X -A -t -h {server.socket_dir} -p {server.port} -d postgres"
    script = f"{psql} -c 'SELECT pg_is_in_recovery()' >>{said}; {then}"
    return {"pre_promote": f"sh -c {shlex.quote(script)}"}, said


def test_the_promotion_hook_runs_before_a_switchover(patroni: PatroniCluster) -> None:
    """Patroni calls it while the server is in recovery, then promotes; the old primary follows."""
    cn1, cn2 = patroni.groups["cn"]
    settings, said = hook(cn2, then="exit 0")
    patroni.reconfigure(cn2, postgresql=settings)
    patroni.switch_over(cn2)
    assert said.read_text() == "t\n"
    assert not cn2.server.is_in_recovery
    assert cn1.server.streams_from(cn2.server)
    assert patroni.lock_holder("cn") is cn2
    assert {name: member["role"] for name, member in patroni.members("cn").items()} == {
        "cn-1": "replica",
        "cn-2": "leader",
    }


def test_a_failing_promotion_hook_prevents_a_promotion(patroni: PatroniCluster) -> None:
    """The standby takes the lock, calls the hook, and gives the lock back: the hook matters."""
    cn1, cn2 = patroni.groups["cn"]
    settings, said = hook(cn2, then="exit 1")
    patroni.reconfigure(cn2, postgresql=settings)
    cn1.kill()
    patroni.expire_lock("cn")
    patroni.wait_for_log(cn2, "pre_promote script .* exited with 1")
    assert said.read_text() == "t\n"
    assert cn2.server.is_in_recovery


def test_a_lost_machine_comes_back_as_a_standby(patroni: PatroniCluster) -> None:
    """Its group failed over meanwhile, and etcd was away as well."""
    cn1, cn2 = patroni.groups["cn"]
    patroni.fail_over(cn2)
    assert not cn1.server.is_running
    assert not cn2.server.is_in_recovery
    patroni.etcd.kill()
    patroni.etcd.start()
    patroni.start_patroni(cn1)
    patroni.wait_for_standby(cn1)
    assert patroni.lock_holder("wk1") is patroni.machines["wk1-1"]


def test_a_deposed_primary_lives_on_under_a_hung_patroni(patroni: PatroniCluster) -> None:
    """There are two primaries until its Patroni goes on and makes it a standby."""
    cn1, cn2 = patroni.groups["cn"]
    patroni.pause_patroni(cn1)
    patroni.expire_lock("cn")
    patroni.wait_for_primary(cn2)
    assert not cn1.server.is_in_recovery
    patroni.resume_patroni(cn1)
    patroni.wait_for_standby(cn1)


def test_a_commit_in_doubt_outlives_a_failover_under_patroni(citus_patroni: CitusPatroniCluster) -> None:
    """Citus under Patroni behaves like Citus alone, with the same helpers."""
    cn1, cn2 = citus_patroni.groups["cn"]
    wk1, wk2 = citus_patroni.machines["wk1-1"], citus_patroni.machines["wk2-1"]
    citus_patroni.commit_in_doubt(cn1, "UPDATE accounts SET balance = balance + 1")
    cn2.lead({"cn": cn2.address, "wk1": wk1.address, "wk2": wk2.address})
    citus_patroni.fail_over(cn2)
    assert citus_patroni.prepared(wk1)
    citus_patroni.run_sql(cn2, "SELECT recover_prepared_transactions()")
    assert citus_patroni.run_sql(cn2, "SELECT sum(balance) FROM accounts") == [(40_400,)]


def test_nothing_is_left_of_patroni_when_the_tests_are_killed() -> None:
    """Patroni, etcd, the servers and their folder end with the process that made them."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert len(processes_in(folder)) > 10
    owner.kill()
    owner.communicate(timeout=30)  # until the reaper, which has the same output, has ended as well
    assert not folder.exists()
    assert processes_in(folder) == []
