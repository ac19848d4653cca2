"""Promotions by a real Patroni under real Citus: no committed data is lost, and every session moves.

Every machine has an agent, and Patroni on the coordinators has our line for ``pre_promote``.
"""

from __future__ import annotations

import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.pq import ExecStatus

from tests.integration.support.citus_cluster import citus_version
from tests.integration.support.cluster import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from psycopg.pq.abc import PGresult

    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import CitusPatroniCluster

    Fate = Callable[[CitusPatroniCluster], contextlib.AbstractContextManager[None]]

CHARGE = "UPDATE accounts SET balance = balance + 1"
CHANGE = "UPDATE orders SET amount = amount + 1"
SUM = "SELECT sum(balance) FROM accounts"
PRIMARIES = {"wk1-1", "wk2-1"}
STANDBYS = {"wk1-2", "wk2-2"}
LOCKED = "SELECT count(*) FROM accounts WHERE pg_advisory_xact_lock_shared(7) IS NOT NULL"
WAITS = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

# A shard move waits for this lock after the copy; Citus has it for its own tests. Citus also dials itself by a name.
HELD = "SELECT pg_advisory_lock(44000, 55152)"
MOVER = "-c citus.running_under_citus_test_suite=on -c citus.local_hostname=cn -c statement_timeout=60s"
SHARD = """
SELECT min(shardid) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid) JOIN pg_dist_node USING (groupid)
 WHERE logicalrelid = 'accounts'::regclass AND nodename = %s
"""
MOVE = "SELECT citus_move_shard_placement({shard}, 'wk1', {port}, 'wk2', {port}, '{mode}')"
LEFT = {
    "slot": "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical'",
    "publication": "SELECT pubname FROM pg_publication",
    "subscription": "SELECT subname FROM pg_subscription",
    "to clean up": "SELECT object_name FROM pg_dist_cleanup",
}


@pytest.fixture
def cluster(citus_patroni: CitusPatroniCluster) -> CitusPatroniCluster:
    """A Citus cluster under Patroni, with the hook, and with agents whose names are right."""
    for machine in citus_patroni.groups["cn"]:
        citus_patroni.reconfigure(machine, postgresql={"pre_promote": citus_patroni.hook(machine)})
    at_once(citus_patroni.start_agent, citus_patroni.machines.values())
    for agent in citus_patroni.agents.values():
        agent.wait_for_line("flushed the connections", timeout_s=60)
    return citus_patroni


def wait_for_status(
    cluster: CitusPatroniCluster, machine: Machine, condition: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Wait until an agent's status meets a condition, and return it."""
    deadline = time.monotonic() + 30
    while not condition(status := cluster.ask_agent(machine, "status", timeout_s=30)):
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


@contextlib.contextmanager
def meanwhile(cluster: CitusPatroniCluster, start: Callable[[], object]) -> Iterator[None]:
    """Start the new coordinator's agent during its promotion, and wait until it has caught up."""
    with ThreadPoolExecutor(1) as threads:
        started = threads.submit(start)
        yield
        started.result()
    wait_for_status(
        cluster,
        cluster.machines["cn-2"],
        lambda status: status["role"] == "primary" and status["written"] and status["flush"]["flushed"],
    )


def send(session: psycopg.Connection, statement: str) -> None:
    """Start a statement, and do not wait for it."""
    session.pgconn.send_query(statement.encode())
    session.pgconn.flush()


def answer(session: psycopg.Connection) -> PGresult:
    """Return the result of the statement that was started."""
    result = session.pgconn.get_result()
    assert result is not None
    assert session.pgconn.get_result() is None
    return result


def prepared(cluster: CitusPatroniCluster) -> dict[str, list[str]]:
    """Return which transactions are prepared on each worker."""
    return {name: cluster.prepared(cluster.machines[name]) for name in PRIMARIES}


def running(_: CitusPatroniCluster) -> contextlib.AbstractContextManager[None]:
    """Leave the agent alone."""
    return contextlib.nullcontext()


def stopped(cluster: CitusPatroniCluster) -> contextlib.AbstractContextManager[None]:
    """Stop the agent: the hook starts it by its socket."""
    cn2 = cluster.machines["cn-2"]
    assert cluster.stop_agent(cn2) == 0
    return meanwhile(cluster, lambda: cluster.start_agent_when_asked(cn2))


def killed(cluster: CitusPatroniCluster) -> contextlib.AbstractContextManager[None]:
    """Kill the agent as soon as the promotion is announced, and start it again as systemd does."""
    cn2 = cluster.machines["cn-2"]

    def kill_and_start() -> None:
        cluster.agents["cn-2"].wait_for_line("a promotion is announced", timeout_s=60)
        cluster.kill_agent(cn2)
        cluster.start_agent(cn2)

    return meanwhile(cluster, kill_and_start)


@pytest.mark.parametrize("the_agent_is", [running, stopped, killed])
def test_a_transaction_in_doubt_outlives_a_failover(cluster: CitusPatroniCluster, the_agent_is: Fate) -> None:
    """The coordinator was lost after its commit and before the workers': the new coordinator's agent commits there."""
    cn1, cn2 = cluster.groups["cn"]
    cluster.commit_in_doubt(cn1, CHARGE)
    in_doubt = prepared(cluster)
    assert all(in_doubt.values())
    with the_agent_is(cluster):
        cluster.fail_over(cn2)
    number = sum(map(len, in_doubt.values()))
    cluster.agents["cn-2"].wait_for_line(f"app: {number} prepared transactions resolved", timeout_s=30)
    assert cluster.run_sql(cn2, SUM) == [(40_400,)]
    assert not any(prepared(cluster).values())
    [recovered] = wait_for_status(cluster, cn2, lambda status: status["recovery"]["databases"])["recovery"]["databases"]
    assert (recovered["recovered"], recovered["records"], recovered["fault"]) == (number, 0, None)
    if the_agent_is is not killed:  # its second run cannot know what the first one has done
        line = cluster.agents["cn-2"].wait_for_line(r"the promotion of the local PostgreSQL: .*recovered after \d+ ms$")
        steps = re.findall(r"(\S+) after \d+ ms", line)
        assert set(steps) == {"announced", "moved", "flushed", "primary", "recovered"}


@pytest.mark.parametrize("the_agent_is", [running, stopped, killed])
def test_open_sessions_go_on_with_primaries(cluster: CitusPatroniCluster, the_agent_is: Fate) -> None:
    """No session is disconnected. A running statement or transaction ends where it began; the next uses primaries."""
    cn2, wk1 = cluster.machines["cn-2"], cluster.machines["wk1-2"]
    idle, busy, inside = sessions = [cluster.connect(cn2) for _ in range(3)]
    for session in sessions:
        assert cluster.serving(session) == STANDBYS
    holder = cluster.connect(wk1)
    holder.execute("SELECT pg_advisory_lock(7)")
    send(busy, LOCKED)
    wk1.server.wait_until(WAITS)
    inside.execute("BEGIN")
    assert cluster.serving(inside) == STANDBYS

    with the_agent_is(cluster):
        cluster.fail_over(cn2)

    assert cluster.serving(idle) == PRIMARIES
    holder.close()
    assert answer(busy).get_value(0, 0) == b"400"
    assert cluster.serving(inside) == STANDBYS
    inside.execute("COMMIT")
    for number, session in enumerate(sessions, start=1):
        assert cluster.serving(session) == PRIMARIES
        cluster.wait_for_sessions(session, PRIMARIES)
        session.execute(CHARGE)
        assert session.execute(SUM).fetchone() == (40_000 + 400 * number,)


def test_a_worker_is_lost_together_with_the_coordinator(cluster: CitusPatroniCluster) -> None:
    """Names without a primary are held, and transactions in doubt wait until there is one."""
    cn1, cn2 = cluster.groups["cn"]
    lost, successor = cluster.groups["wk1"]
    session = cluster.connect(cn2)
    assert cluster.serving(session) == STANDBYS
    cluster.commit_in_doubt(cn1, CHARGE)
    number = sum(map(len, prepared(cluster).values()))
    lost.kill()
    cluster.fail_over(cn2)
    cn2.wait_for_names({"wk1": lost.address})
    cluster.expire_lock("wk1")
    agent = cluster.agents["cn-2"]
    agent.wait_for_line(f"app: {number} prepared transactions resolved", timeout_s=30)
    assert cluster.serving(session) == {successor.name, "wk2-1"}
    assert session.execute(SUM).fetchone() == (40_400,)


def test_sessions_leave_a_deposed_worker(cluster: CitusPatroniCluster) -> None:
    """Its Patroni hangs, so it runs on with its connections; but no session sends it another statement."""
    cn1, (deposed, successor) = cluster.machines["cn-1"], cluster.groups["wk1"]
    session = cluster.connect(cn1)
    assert cluster.serving(session) == PRIMARIES
    cluster.pause_patroni(deposed)
    cluster.expire_lock("wk1")
    cluster.wait_for_primary(successor)
    cn1.wait_for_names({"wk1": successor.address}, timeout_s=30)
    wait_for_status(cluster, cn1, lambda status: status["written"] and status["flush"]["flushed"])
    assert not deposed.server.is_in_recovery
    assert cluster.serving(session) == {successor.name, "wk2-1"}
    cluster.wait_for_sessions(session, {successor.name, "wk2-1"})
    session.execute(CHARGE)


def test_a_deposed_worker_takes_no_name_back(cluster: CitusPatroniCluster) -> None:
    """Its Patroni hangs, and it is the only primary once its successor has lost its power: what it takes is lost."""
    cn1, (deposed, successor) = cluster.machines["cn-1"], cluster.groups["wk1"]
    cluster.pause_patroni(deposed)
    cluster.expire_lock("wk1")
    cluster.wait_for_primary(successor)
    cn1.wait_for_names({"wk1": successor.address}, timeout_s=30)  # so the deposed one's Patroni no longer counts
    successor.kill()
    wait_for_status(cluster, cn1, lambda status: "is primary of an older timeline" in str(status))
    assert not deposed.server.is_in_recovery
    cn1.wait_for_names({"wk1": successor.address})


def test_a_deposed_coordinator_rolls_nothing_back(cluster: CitusPatroniCluster) -> None:
    """While its Patroni hangs it is still a primary, but its agent lets it resolve no transaction of its successor."""
    cn1, cn2 = cluster.groups["cn"]
    cluster.pause_patroni(cn1)
    cluster.expire_lock("cn")
    cluster.wait_for_primary(cn2)
    charged, changed = (cluster.commit_in_doubt(cn2, statement) for statement in (CHARGE, CHANGE))
    in_doubt = prepared(cluster)
    assert all(map(len, in_doubt.values()))

    def go_on(session: psycopg.Connection) -> bytes | None:
        cn2.server.run_sql("SELECT pg_cancel_backend(%s)", [session.info.backend_pid])
        return answer(session).command_status

    cluster.start_agent(cn1)
    why = "the local PostgreSQL is not the accepted primary of cn (holds the leader lock; several primaries: "
    status = wait_for_status(cluster, cn1, lambda status: why in str(status["recovery"]["hindered"]))
    assert (status["local"]["kind"], status["recovery"]["databases"]) == ("primary", [])
    assert prepared(cluster) == in_doubt
    assert go_on(charged) == b"COMMIT"
    assert cluster.run_sql(cn2, SUM) == [(40_400,)]

    # This is what the agent has prevented:
    cluster.run_sql(cn1, "SELECT recover_prepared_transactions()")
    assert go_on(changed) == b"COMMIT"
    assert cluster.run_sql(cn2, "SELECT sum(amount) FROM orders") == [(320_400,)]


@pytest.mark.parametrize(
    ("mode", "happens"),
    [
        ("force_logical", "cn fails over"),
        ("force_logical", "wk2 fails over"),
        ("force_logical", "wk1 switches over"),
        ("block_writes", "cn fails over"),
    ],
)
def test_a_shard_move_is_broken_off(cluster: CitusPatroniCluster, mode: str, happens: str) -> None:
    """No row is lost and nothing is left of the move, whichever of its nodes fails over; it can be repeated."""
    if citus_version() < (11, 1):
        pytest.skip("before Citus 11.1 a shard move cannot be held, and does not note what it would leave")
    cn1, _ = cluster.groups["cn"]
    [(shard,)] = cluster.run_sql(cn1, SHARD, ["wk1"])
    move = MOVE.format(shard=shard, port=cluster.site.port, mode=mode)
    holder, mover = cluster.connect(cn1), cluster.connect(cn1, options=MOVER)
    holder.execute(HELD)
    send(mover, move)
    cn1.server.wait_until(WAITS)
    if mode == "force_logical":
        cluster.run_sql(cn1, CHARGE)
        assert cluster.run_sql(cluster.machines["wk1-1"], LEFT["slot"])

    for primary, standby in cluster.groups.values():
        standby.server.wait_for_replay(of=primary.server)  # they are asynchronous
    group, how = happens.split(" ", 1)
    successor = cluster.groups[group][1]
    (cluster.fail_over if how == "fails over" else cluster.switch_over)(successor)
    holder.close()
    assert answer(mover).status == ExecStatus.FATAL_ERROR
    coordinator = successor if group == "cn" else cn1
    if coordinator is cn1:
        cluster.start_agent(cn1)  # which cleans up now instead of within a minute
    cluster.agents[coordinator.name].wait_for_line(r" [1-9]\d* orphaned resources cleaned up", timeout_s=30)
    wait_for_nothing_left(cluster)
    total = 40_400 if mode == "force_logical" else 40_000
    assert cluster.run_sql(coordinator, SUM) == [(total,)]
    cluster.connect(coordinator, options=MOVER).execute(move)
    assert cluster.run_sql(coordinator, SUM) == [(total,)]


def wait_for_nothing_left(cluster: CitusPatroniCluster) -> None:
    """Wait until no running machine has leftovers of a move; those in use are cleaned up a minute later."""
    deadline = time.monotonic() + 90
    while left := {
        (machine.name, what): rows
        for machine in cluster.machines.values()
        if machine.server.is_running
        for what, query in LEFT.items()
        if (rows := cluster.run_sql(machine, query))
    }:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
