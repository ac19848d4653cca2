"""Recovery and clean-up with real Citus: transactions in doubt are resolved, and no record is lost (R6)."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus.recovery import Recovered, recover, recover_all
from resolver_agent.config.load import load
from resolver_agent.routing.state import FENCE
from tests.integration.support.citus_cluster import citus_version
from tests.integration.support.cluster import DATABASE
from tests.integration.support.machine import CHECKOUT, Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.abc import QueryNoTemplate as Query

    from tests.integration.support.citus_cluster import CitusCluster

CHARGE = "UPDATE accounts SET balance = balance + 1"
SUM = "SELECT sum(balance) FROM accounts"
RECORDS = "SELECT groupid FROM pg_dist_transaction"


@dataclasses.dataclass(frozen=True, slots=True)
class Orphan:
    """What a shard move has left over on wk1, by the statements that make it, note it on the coordinator, find both."""

    make: str
    note: str
    there: str
    noted: str


SLOT = Orphan(
    make="SELECT pg_create_logical_replication_slot('citus_shard_move_slot_1_2_3', 'pgoutput')",
    note="""
        INSERT INTO pg_dist_cleanup
        SELECT nextval('pg_dist_cleanup_recordid_seq'), 7, 3, 'citus_shard_move_slot_1_2_3', groupid, 1
          FROM pg_dist_node WHERE nodename = 'wk1'
    """,
    there="SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'",
    noted="SELECT count(*) FROM pg_dist_cleanup",
)
SHARD = Orphan(  # before Citus 11.1 there is no other
    make="CREATE TABLE accounts_{shard} ()",
    note="""
        INSERT INTO pg_dist_placement
        SELECT nextval('pg_dist_placement_placementid_seq'), {shard}, 4, 0, groupid
          FROM pg_dist_node WHERE nodename = 'wk1'
    """,
    there="SELECT count(*) FROM pg_class WHERE relname = 'accounts_{shard}'",
    noted="SELECT count(*) FROM pg_dist_placement WHERE shardstate = 4",
)
ON_WK2 = """
SELECT min(shardid)::text FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
 WHERE logicalrelid = 'accounts'::regclass AND nodename = 'wk2'
"""


def lead(citus: CitusCluster, **names: str) -> None:
    """Point the names on the first coordinator's machine to primaries, or to the given targets."""
    to = {name: pair[0].address for name, pair in citus.groups.items()}
    citus.machines["cn-1"].lead(to | names)


def leave_in_doubt(citus: CitusCluster, machine: Machine, statement: Query = CHARGE) -> None:
    """Commit a transaction on a machine that crashes before it tells the other nodes, and start it again.

    Only the commit records of this transaction are left.
    """
    assert run(citus, machine=machine.name).records == 0
    citus.commit_in_doubt(machine, statement)
    machine.kill()
    machine.server.start()


def run(citus: CitusCluster, *moments: Callable[[], str | None], machine: str = "cn-1") -> Recovered:
    """Make a pass on a machine.

    ``moments`` happen when the preconditions are checked: before recovery, its COMMIT, and clean-up.
    """
    due = list(moments)
    settings = load(str(citus.configure(citus.machines[machine])))
    return recover(settings, DATABASE, still=lambda: due.pop(0)() if due else None)


def demote(machine: Machine) -> None:
    """Restart a machine's server as a standby."""
    machine.server.stop("immediate")
    (machine.server.data / "standby.signal").touch()
    machine.server.start()


def records(citus: CitusCluster, machine: str = "cn-1") -> set[int]:
    """Return the worker groups of the commit records that a machine has."""
    return {group for (group,) in citus.run_sql(citus.machines[machine], RECORDS)}


def prepared(citus: CitusCluster) -> dict[str, int]:
    """Return how many transactions are prepared on each of the workers where there are any."""
    found = {name: len(citus.prepared(citus.machines[name])) for name in ("wk1-1", "wk2-1")}
    return {name: number for name, number in found.items() if number}


def test_a_transaction_in_doubt(citus: CitusCluster) -> None:
    """It is left alone while it runs. Later the workers commit it if it has commit records, else roll back."""
    cn1 = citus.machines["cn-1"]
    run(citus)
    citus.commit_in_doubt(cn1, CHARGE)
    in_doubt = prepared(citus)
    assert set(in_doubt) == {"wk1-1", "wk2-1"}
    assert run(citus) == Recovered(database=DATABASE, records=0)
    assert prepared(citus) == in_doubt
    cn1.kill()
    cn1.server.start()
    assert run(citus) == Recovered(database=DATABASE, recovered=sum(in_doubt.values()), records=0)
    assert prepared(citus) == {}
    assert citus.run_sql(cn1, SUM) == [(40_400,)]

    leave_in_doubt(citus, cn1)
    in_doubt = prepared(citus)
    citus.run_sql(cn1, "DELETE FROM pg_dist_transaction")
    assert run(citus) == Recovered(database=DATABASE, recovered=sum(in_doubt.values()), records=0)
    assert prepared(citus) == {}
    assert citus.run_sql(cn1, SUM) == [(40_400,)]


def test_a_misrouted_name_makes_it_forget_nothing(citus: CitusCluster) -> None:
    """While a name points to a standby the records stay; once the name is right, the transaction is committed there."""
    leave_in_doubt(citus, citus.machines["cn-1"])
    in_doubt = prepared(citus)
    lead(citus, wk1=citus.machines["wk1-2"].address)
    found = run(citus)
    assert found.fault is not None
    assert found.fault.startswith(f"rolled back: wk1:{citus.site.port} led to a standby")
    assert (found.recovered, found.records) == (in_doubt["wk2-1"], sum(in_doubt.values()))
    assert prepared(citus) == {"wk1-1": in_doubt["wk1-1"]}
    lead(citus)
    assert run(citus) == Recovered(database=DATABASE, recovered=in_doubt["wk1-1"], records=0)
    assert citus.run_sql(citus.machines["cn-1"], SUM) == [(40_400,)]


def test_the_primary_of_another_group_is_left_alone(citus: CitusCluster) -> None:
    """Recovery there would roll back transactions whose records are here: nothing is touched on any node."""
    leave_in_doubt(citus, citus.machines["cn-1"])
    in_doubt = prepared(citus)
    lead(citus, wk1=citus.machines["wk2-1"].address)
    found = run(citus)
    alone = f"wk1:{citus.site.port} leads to"
    both = f"wk1:{citus.site.port} and wk2:{citus.site.port} lead to the same server, so one to"  # before Citus 11
    assert re.match(f"not begun: ({alone}|{both}) a server of another group", str(found.fault))
    assert found.records == sum(in_doubt.values())
    assert prepared(citus) == in_doubt
    lead(citus)
    assert run(citus) == Recovered(database=DATABASE, recovered=sum(in_doubt.values()), records=0)
    assert citus.run_sql(citus.machines["cn-1"], SUM) == [(40_400,)]


def test_a_worker_is_demoted_in_the_middle(citus: CitusCluster) -> None:
    """Its role when recovery reached it is unknown, so all records stay."""
    leave_in_doubt(citus, citus.machines["cn-1"])
    in_doubt = prepared(citus)
    found = run(citus, lambda: demote(citus.machines["wk1-1"]))
    assert str(found.fault).startswith(f"rolled back: wk1:{citus.site.port} led to a standby")
    assert found.records == sum(in_doubt.values())


def test_one_worker_is_recovered_while_another_cannot_be_reached(citus: CitusCluster) -> None:
    """Its transactions are committed. The other's records wait, whether that one is fenced, silent or lost."""
    cn1, wk2 = citus.machines["cn-1"], citus.machines["wk2-1"]
    leave_in_doubt(citus, cn1)
    in_doubt = prepared(citus)
    waits = Recovered(database=DATABASE, records=in_doubt["wk2-1"], not_reached=(f"wk2:{citus.site.port}",))
    lead(citus, wk2=FENCE)
    assert run(citus) == dataclasses.replace(waits, recovered=in_doubt["wk1-1"])
    assert prepared(citus) == {"wk2-1": in_doubt["wk2-1"]}
    lead(citus)
    wk2.pause()
    assert run(citus) == waits
    wk2.kill()
    assert run(citus) == waits
    wk2.server.start()
    assert run(citus) == Recovered(database=DATABASE, recovered=in_doubt["wk2-1"], records=0)
    assert citus.run_sql(cn1, SUM) == [(40_400,)]


def test_what_citus_warns_of_counts(citus: CitusCluster) -> None:
    """A worker that refuses to resolve a transaction, here because another session is about to, keeps all records."""
    wk1 = citus.machines["wk1-1"]
    leave_in_doubt(citus, citus.machines["cn-1"])
    in_doubt = prepared(citus)
    other = citus.connect(wk1)
    other.execute("SET synchronous_commit = on")
    gid = citus.prepared(wk1)[0]
    other.pgconn.send_query(f"COMMIT PREPARED '{gid}'".encode())
    other.pgconn.flush()
    wk1.server.wait_until(
        "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s", [other.info.backend_pid]
    )
    found = run(citus)
    assert f'rolled back: Citus warned: prepared transaction with identifier "{gid}" is busy' in str(found.fault)
    assert f"on wk1:{citus.site.port}" in str(found.fault)
    assert found.records == sum(in_doubt.values())


def test_a_worker_recovers_its_own(citus: CitusCluster) -> None:
    """A worker with metadata starts transactions too, and its agent resolves them."""
    if citus_version() < (11,):
        pytest.skip("before Citus 11 no worker has the metadata, or begins distributed transactions, by itself")
    wk1 = citus.machines["wk1-1"]
    leave_in_doubt(citus, wk1)
    in_doubt = prepared(citus)
    assert run(citus) == Recovered(database=DATABASE, records=0)
    assert prepared(citus) == in_doubt
    found = run(citus, machine="wk1-1")
    assert found == Recovered(database=DATABASE, recovered=sum(in_doubt.values()), records=0)
    assert citus.run_sql(wk1, SUM) == [(40_400,)]


def test_clean_up(citus: CitusCluster) -> None:
    """What is left over is forgotten only when it is gone: not while its node is away, nor on any other server."""
    cn1, wk1, standby, wk2 = (citus.machines[name] for name in ("cn-1", "wk1-1", "wk1-2", "wk2-1"))
    run(citus)
    [(shard,)] = citus.run_sql(cn1, ON_WK2)
    orphan = SLOT if citus_version() >= (11, 1) else SHARD
    make, note, there, noted = (text.format(shard=shard) for text in dataclasses.astuple(orphan))
    citus.run_sql(wk1, make)
    citus.run_sql(cn1, note)
    lead(citus, wk1=FENCE)
    found = run(citus)
    assert (found.fault, found.cleaned, found.not_cleaned) == (None, 0, 1)
    for other in standby, wk2:
        lead(citus)
        found = run(citus, lambda: None, lambda: None, functools.partial(lead, citus, wk1=other.address))
        assert str(found.fault).startswith("a name leads to a standby")
    assert citus.run_sql(cn1, noted) == citus.run_sql(wk1, there) == [(1,)]
    lead(citus)
    assert run(citus) == Recovered(database=DATABASE, cleaned=1, records=0)
    assert citus.run_sql(cn1, noted) == citus.run_sql(wk1, there) == [(0,)]
    assert citus.run_sql(cn1, SUM) == [(40_000,)]


def test_every_database_is_looked_at(citus: CitusCluster) -> None:
    """Databases with Citus are recovered; one without any node has nothing to do, which is no fault."""
    cn1 = citus.machines["cn-1"]
    cn1.server.run_sql("CREATE DATABASE bare")
    cn1.server.run_sql("CREATE EXTENSION citus", dbname="bare")
    cn1.server.run_sql((CHECKOUT / "systemd" / "role.sql").read_text(encoding="utf-8"), dbname="bare")
    found = recover_all(load(str(citus.configure(cn1))), lambda: None)
    assert found == [Recovered(database=name, records=0) for name in (DATABASE, "bare")]
