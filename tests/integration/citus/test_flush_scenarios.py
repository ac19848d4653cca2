"""Agents with real Citus: which servers serve a coordinator standby's reads, and recovery during changes.

Patroni's decisions are in test_patroni_scenarios, and recovery alone is in test_recovery_scenarios.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

from resolver_agent.changes import history_file
from resolver_agent.routing.state import FENCE
from tests.integration.support.agent_state import wait_until
from tests.integration.support.citus_cluster import citus_version
from tests.integration.support.cluster import at_once
from tests.integration.support.machine import replace

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

    from resolver_agent.changes.change import Change
    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine

CHARGE = "UPDATE accounts SET balance = balance + 1"
SUM = "SELECT sum(balance) FROM accounts"
RECORDS = "SELECT nodename, count(*) FROM pg_dist_transaction JOIN pg_dist_node USING (groupid) GROUP BY nodename"
ON_WK1 = """
SELECT min(id) FROM generate_series(1, 400) AS id
  JOIN pg_dist_placement ON shardid = get_shard_id_for_distribution_column('accounts', id)
  JOIN pg_dist_node USING (groupid) WHERE nodename = 'wk1'
"""
HOLD = "LOCK pg_dist_transaction IN EXCLUSIVE MODE"
IS_HELD = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = %s"

READS: dict[str, list[tuple[object, ...]]] = {
    "SELECT count(*), sum(balance) FROM accounts": [(400, 40_000)],
    "SELECT balance, region FROM accounts WHERE id = 42": [(100, 2)],
    """
    SELECT name, count(*) FROM accounts JOIN regions ON region = regions.id GROUP BY name ORDER BY name
    """: [("region 0", 100), ("region 1", 100), ("region 2", 100), ("region 3", 100)],
    # intermediate results: sent to the workers, or read on the coordinator, which has a copy of each reference table
    """
    WITH few AS MATERIALIZED (SELECT * FROM accounts ORDER BY id LIMIT 50)
    SELECT count(*), sum(amount) FROM few JOIN orders ON account = few.id
    """: [(100, 23_250)],
    """
    WITH few AS MATERIALIZED (SELECT * FROM accounts ORDER BY id LIMIT 50)
    SELECT count(*), min(name) FROM few JOIN regions ON region = regions.id
    """: [(50, "region 0")],
}
# The workers fetch from each other. Before Citus 11 a standby coordinator refuses these.
REPARTITIONED: dict[str, list[tuple[object, ...]]] = {
    "SELECT count(*), sum(amount) FROM orders JOIN accounts ON account = accounts.id": [(800, 320_400)],
    """
    SELECT name, sum(amount) FROM orders JOIN accounts ON account = accounts.id JOIN regions ON region = regions.id
     GROUP BY name ORDER BY name
    """: [("region 0", 80_200), ("region 1", 80_400), ("region 2", 79_800), ("region 3", 80_000)],
    """
    WITH few AS MATERIALIZED (
        SELECT amount, region FROM orders JOIN accounts ON account = accounts.id ORDER BY amount DESC LIMIT 50
    )
    SELECT count(*), sum(amount) FROM few JOIN regions ON region = regions.id
    """: [(50, 38_775)],
}


def statements(citus: CitusCluster, session: psycopg.Connection) -> dict[str, list[str]]:
    """Return the statements that other nodes ran on each machine for a session."""
    on_behalf = re.compile(rf"citus_internal gpid=\d+{session.info.backend_pid:010}: LOG:  statement: (.*)")
    found = {name: on_behalf.findall(machine.server.log.read_text()) for name, machine in citus.machines.items()}
    return {name: told for name, told in found.items() if told}


def test_reads_on_a_standby_are_served_by_standbys(citus: CitusCluster) -> None:
    """Every kind of join gives the primary's results, over names that the agents alone have set."""
    for machine in citus.machines.values():
        machine.lead({})
        machine.server.set(log_statement="all")
    at_once(citus.start_agent, citus.machines.values())
    for number in (0, 1):
        names = {name: addresses[number] for name, addresses in citus.addresses.items()}
        for pair in citus.groups.values():
            pair[number].wait_for_names(names, timeout_s=60)
            pair[number].server.wait_until("SELECT current_setting('log_statement') = 'all'")
    for number, machine in enumerate(citus.groups["cn"]):
        session = citus.connect(machine)
        session.execute("SET citus.enable_repartition_joins = on")
        workers = {citus.groups[group][number].name for group in ("wk1", "wk2")}
        assert {query: session.execute(query).fetchall() for query in READS} == READS
        assert citus.serving(session) == workers
        if citus_version() >= (11,) or machine.name == "cn-1":
            assert {query: session.execute(query).fetchall() for query in REPARTITIONED} == REPARTITIONED
        if citus_version() >= (11,):  # before, no session says on whose behalf it is
            told = statements(citus, session)
            assert told.keys() == {machine.name} | workers
            assert all(any('COPY "repartition_' in one for one in told[worker]) for worker in workers)


def leave_in_doubt(citus: CitusCluster) -> dict[str, int]:
    """Leave a charge in doubt: on the first coordinator, which has crashed and is back. No other records are left.

    Return the number of its records of each worker.
    """
    cn1 = citus.machines["cn-1"]
    citus.run_sql(cn1, "SELECT recover_prepared_transactions()")
    citus.commit_in_doubt(cn1, CHARGE)
    cn1.kill()
    cn1.server.start()
    in_doubt = records(citus)
    assert in_doubt == {name: len(citus.prepared(citus.machines[f"{name}-1"])) for name in ("wk1", "wk2")}
    return in_doubt


def records(citus: CitusCluster) -> dict[str, int]:
    """Return how many commit records of each worker the first coordinator has."""
    return dict(citus.run_sql(citus.machines["cn-1"], RECORDS))


def wait_for_recovery(citus: CitusCluster) -> None:
    """Wait until no commit record is left, and check that the charge is there."""
    deadline = time.monotonic() + 90
    while left := records(citus):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert citus.run_sql(citus.machines["cn-1"], SUM) == [(40_400,)]


def demote(machine: Machine) -> None:
    """Crash a machine's server, and start it as a standby."""
    machine.server.kill()
    (machine.server.data / "standby.signal").touch()
    machine.server.start()


def test_a_foreign_line_makes_recovery_forget_nothing(citus: CitusCluster) -> None:
    """Another program's line points Citus to a standby; once it is gone the agent completes the transaction."""
    cn1, wk1, standby = (citus.machines[name] for name in ("cn-1", "wk1-1", "wk1-2"))
    in_doubt = leave_in_doubt(citus)
    line = f"{standby.address}\twk1\n"
    replace(cn1.hosts_file, line + cn1.hosts_file.read_text())
    agent = citus.start_agent(cn1)
    fault = "2PC recovery in database app: rolled back: "
    agent.wait_for_line(f"alert: {fault}wk1:{citus.site.port} led to a standby", timeout_s=30)
    agent.wait_for_line("alert: .* line 1 also names wk1, and lookups return both addresses")
    assert records(citus) == in_doubt
    assert len(citus.prepared(wk1)) == in_doubt["wk1"]
    replace(cn1.hosts_file, cn1.hosts_file.read_text().removeprefix(line))
    agent.wait_for_line(f"over: {fault}", timeout_s=60)
    wait_for_recovery(citus)


def test_a_worker_is_demoted_during_recovery(citus: CitusCluster) -> None:
    """The outcome of its transactions is unknown then, so their records stay for its successor."""
    cn1, wk1, successor = (citus.machines[name] for name in ("cn-1", "wk1-1", "wk1-2"))
    in_doubt = leave_in_doubt(citus)
    [(relation,)] = citus.run_sql(cn1, "SELECT 'pg_dist_transaction'::regclass::oid")
    holder = citus.connect(cn1)
    holder.execute("BEGIN")
    holder.execute(HOLD)
    agent = citus.start_agent(cn1)
    cn1.server.wait_until(IS_HELD, [relation])
    demote(wk1)
    holder.execute("ROLLBACK")
    agent.wait_for_line(
        "alert: 2PC recovery in database app: |2PC recovery in database app was broken off", timeout_s=30
    )
    assert records(citus) == in_doubt
    successor.server.promote()
    wait_for_recovery(citus)
    assert citus.prepared(successor) == []


def test_recovery_goes_on_while_a_group_is_fenced(citus: CitusCluster) -> None:
    """One worker's part of a transaction is committed; the part of the group without a primary waits for one."""
    cn1, wk1, wk2, successor = (citus.machines[name] for name in ("cn-1", "wk1-1", "wk2-1", "wk2-2"))
    in_doubt = leave_in_doubt(citus)
    demote(wk2)
    agent = citus.start_agent(cn1)
    agent.wait_for_line(rf"app: {in_doubt['wk1']} prepared .*; waits for wk2:{citus.site.port}", timeout_s=30)
    assert cn1.names["wk2"] == FENCE
    assert records(citus) == {"wk2": in_doubt["wk2"]}
    assert citus.prepared(wk1) == []
    [(account,)] = citus.run_sql(cn1, ON_WK1)
    assert citus.run_sql(cn1, "SELECT balance FROM accounts WHERE id = %s", [account]) == [(101,)]
    successor.server.promote()
    cn1.wait_for_names({"wk2": successor.address})
    citus.start_agent(cn1)  # which recovers now instead of within a minute
    wait_for_recovery(citus)


def test_a_change_is_told_after_the_flush(citus: CitusCluster, tmp_path: Path) -> None:
    """The history has the time from the evidence to the file and to the flush, and the command is told both."""
    cn1, old, new = (citus.machines[name] for name in ("cn-1", "wk1-1", "wk1-2"))
    told = tmp_path / "told"
    script = f"printf '%s\\n' \"$RESOLVER_AGENT_CHANGES\" >>{told}"
    on_change = {"command": ["/bin/sh", "-c", script]}
    agent = citus.start_agent(cn1, state_dir=str(tmp_path / "state"), on_change=on_change)
    cn1.wait_for_names({"wk1": old.address})
    agent.wait_for_line("flushed the connections that Citus has cached")
    path = history_file.path_of(str(tmp_path / "state"))

    def moved() -> list[Change]:
        return [one for one in history_file.read(path)[0] if one.name == "wk1" and one.new == new.address]

    def changes() -> list[dict[str, object]]:
        runs = told.read_text().rpartition("\n")[0].splitlines() if told.exists() else []
        return [change for run in runs for change in json.loads(run)]

    old.kill()
    new.server.promote()
    cn1.wait_for_names({"wk1": new.address})
    wait_until(lambda: [one for one in moved() if one.flushed_ms is not None])
    [change] = moved()
    assert change.old == old.address
    assert change.flushed_ms is not None
    assert 0 <= change.written_ms <= change.flushed_ms < 5000
    wait_until(lambda: [one for one in changes() if one["to"] == new.address])
    assert change.as_json() in changes()


def test_recovery_waits_while_a_name_is_pinned(citus: CitusCluster) -> None:
    """Nothing is resolved by a name that the operator leads, not even after a restart; once it is over all is."""
    cn1, wk1 = citus.machines["cn-1"], citus.machines["wk1-1"]
    citus.start_agent(cn1).wait_for_line(" wk2 → ", timeout_s=30)
    pinned = citus.ask_agent(cn1, "pin", name="wk1", address=wk1.address, for_s=600, reason="")
    assert (pinned["kept"], pinned["ignored"]) == (True, None)
    assert citus.stop_agent(cn1) == 0
    in_doubt = leave_in_doubt(citus)
    agent = citus.start_agent(cn1)
    agent.wait_for_line(f"alert: wk1 is pinned to {wk1.address}", timeout_s=30)
    wait_until(lambda: citus.ask_agent(cn1, "status")["recovery"]["blocked_by"] == "wk1 is pinned", timeout_s=30)
    assert records(citus) == in_doubt
    assert citus.ask_agent(cn1, "unpin", name="wk1")["pinned"]
    wait_for_recovery(citus)
