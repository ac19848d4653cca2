"""What operators lock on a coordinator: who waits for it, and that the agent waits for a limited time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus.recovery import Recovered, recover
from resolver_agent.citus.session import LOCK_S
from resolver_agent.config.load import load
from resolver_agent.queue.hold import Held, HoldError, Leaving, hold
from tests.integration.support.citus_cluster import DATABASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from resolver_agent.config.model import Config
    from tests.integration.support.citus_cluster import CitusCluster

COUNT = "SELECT count(*) FROM accounts"
WRITE = "UPDATE accounts SET balance = balance + 1"
WAITS = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
UPDATE = "LOCK pg_dist_node IN ACCESS EXCLUSIVE MODE"
"""What an update of Citus does that adds a column to it."""
RESTORE_POINT = "SELECT citus_create_restore_point('here')"
CHANGES = {
    "a node is renamed": "SELECT citus_update_node(nodeid, 'wk9', nodeport) FROM pg_dist_node WHERE nodename = 'wk1'",
    "a node is disabled": "LOCK pg_dist_node IN EXCLUSIVE MODE",
}
LOCKED = "canceling statement due to lock timeout"
DONE = Recovered(database=DATABASE, records=0)


@pytest.fixture
def config(citus: CitusCluster) -> Config:
    """The configuration of the agent on the primary coordinator, whose recovery has nothing to do."""
    config = load(str(citus.configure(citus.machines["cn-1"])))
    assert recover_now(config).fault is None
    return config


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for statements that wait."""
    with ThreadPoolExecutor() as threads:
        yield threads


def recover_now(config: Config) -> Recovered:
    """Make a pass."""
    return recover(config, DATABASE, still=lambda: None)


def hold_now(config: Config, *leaving: Leaving) -> Held:
    """Do what a coordinator does before other servers stop."""
    abort, forwarded = threading.Event(), threading.Event()
    return hold(
        config,
        (DATABASE,),
        leaving=lambda: leaving,
        to_room=lambda: True,
        abort=abort,
        forwarded=forwarded,
        drain_s=2.0,
    )


def operator(citus: CitusCluster, statement: str, *, on: str = "cn-1") -> psycopg.Connection:
    """Return a session whose transaction has run a statement."""
    session = citus.connect(citus.machines[on])
    session.execute("BEGIN")
    session.execute(statement.encode())
    return session


def wait_for_waiting(citus: CitusCluster, session: psycopg.Connection) -> None:
    """Wait until a session waits for a lock."""
    citus.machines["cn-1"].server.wait_until(WAITS, [session.info.backend_pid])


def test_the_nodes_are_locked(citus: CitusCluster, config: Config, threads: ThreadPoolExecutor) -> None:
    """Statements wait, new sessions too. Recovery and a planned stop give up soon: their first query waits as well."""
    session = citus.connect(citus.machines["cn-1"])
    locking = operator(citus, UPDATE)
    counted = threads.submit(lambda: session.execute(COUNT).fetchone())
    wait_for_waiting(citus, session)
    begun = time.monotonic()
    assert str(recover_now(config).fault).startswith(LOCKED)
    with pytest.raises(HoldError, match=LOCKED):
        hold_now(config)
    assert time.monotonic() - begun < 4 * LOCK_S
    assert not counted.done()
    locking.execute("ROLLBACK")
    assert counted.result(20) == (400,)
    assert recover_now(config) == DONE
    assert hold_now(config).fault is None


def test_the_nodes_are_locked_on_the_worker_that_stops(citus: CitusCluster) -> None:
    """The agents may have been told to log in to that database. The worker cannot be asked, and the stop goes on."""
    cn1, wk1 = citus.machines["cn-1"], citus.machines["wk1-1"]
    config = load(str(citus.configure(cn1, postgresql={"user": "resolver_agent", "dbname": DATABASE})))
    leaving = Leaving("wk1", wk1.address, wk1.address, citus.site.port)
    assert hold_now(config, leaving).left == ()
    operator(citus, UPDATE, on="wk1-1")
    begun = time.monotonic()
    assert hold_now(config, leaving).left == (f"{wk1.address} cannot be asked: {LOCKED}",)
    assert time.monotonic() - begun < 4 * LOCK_S


def test_the_commit_records_are_locked(citus: CitusCluster, config: Config, threads: ThreadPoolExecutor) -> None:
    """Writes on several workers wait to commit, and recovery gives up soon; reads and a planned stop do not wait."""
    session = citus.connect(citus.machines["cn-1"])
    locking = operator(citus, RESTORE_POINT)
    assert str(recover_now(config).fault).startswith(LOCKED)
    assert hold_now(config).fault is None
    written = threads.submit(session.execute, WRITE)
    wait_for_waiting(citus, session)
    assert citus.connect(citus.machines["cn-1"]).execute(COUNT).fetchone() == (400,)
    locking.execute("ROLLBACK")
    written.result(20)
    assert recover_now(config) == DONE


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_a_node_changes(citus: CitusCluster, config: Config, statement: str) -> None:
    """Neither recovery nor a planned stop has to wait for that."""
    operator(citus, statement)
    assert recover_now(config) == DONE
    assert hold_now(config).fault is None
