"""The gate on real Citus: who waits at it, who goes on, and that it never stays closed nor reaches a standby."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from resolver_agent.config.load import load
from resolver_agent.queue.gate import Gate, GateError, prepared
from tests.integration.support.citus_cluster import DATABASE
from tests.integration.support.machine import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.config.model import Config
    from tests.integration.support.citus_cluster import CitusCluster

COUNT = "SELECT count(*) FROM accounts"
WAITS = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
REQUESTS = """
    SELECT granted FROM pg_locks WHERE mode = 'AccessExclusiveLock'
    AND relation = (SELECT oid FROM pg_class WHERE relname = 'pg_dist_node')
"""
GRANTED = "the gate was granted"

CHILD = """
import sys, time
from resolver_agent.config.load import load
from resolver_agent.queue.gate import prepared

with prepared(load(sys.argv[1]), "app", lock_s=float(sys.argv[2]), limit_s=30) as gate:
    gate.keep(within_s=5)
    gate.close(within_s=5)
    print("closed", flush=True)
    time.sleep(60)
"""


class Statement:
    """A statement that runs in a thread."""

    def __init__(self, session: psycopg.Connection, query: str = COUNT) -> None:
        self.session = session
        self.rows: list[tuple[object, ...]] | psycopg.Error | None = None
        self._query = query.encode()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self) -> object:
        """Wait until it has ended, and return its rows or its error."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.rows

    def _run(self) -> None:
        try:
            self.rows = self.session.execute(self._query).fetchall()
        except psycopg.Error as error:
            self.rows = error


@pytest.fixture
def config(citus: CitusCluster) -> Config:
    """The configuration of the agent on the primary coordinator."""
    return load(str(citus.configure(citus.machines["cn-1"])))


@pytest.fixture
def gate(config: Config) -> Iterator[Gate]:
    """A gate of the database ``app``, still open."""
    with prepared(config, DATABASE, lock_s=10, limit_s=30) as gate:
        yield gate


def wait_for_waiting(citus: CitusCluster, session: psycopg.Connection) -> None:
    """Wait until a session waits for a lock."""
    citus.machines["cn-1"].server.wait_until(WAITS, [session.info.backend_pid])


def was_granted(citus: CitusCluster) -> bool:
    """Report whether the request was ever granted on the coordinator."""
    return GRANTED in citus.machines["cn-1"].server.log.read_text()


def test_who_has_begun_goes_on_and_others_wait(citus: CitusCluster, gate: Gate) -> None:
    """A transaction that has used a table ends, new connections included; others wait, and all succeed."""
    cn1, cn2 = citus.machines["cn-1"], citus.machines["cn-2"]
    begun, new = citus.connect(cn1), citus.connect(cn1)
    standby = citus.connect(cn2)
    assert new.execute("SELECT 1").fetchone() == (1,)
    begun.execute("BEGIN")
    begun.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 1")
    gate.keep(within_s=5)
    gate.close(within_s=5)
    assert gate.closed
    waiting = Statement(new)
    wait_for_waiting(citus, new)
    inside = {one.pid: one for one in gate.under_way()}
    assert (inside[begun.info.backend_pid].inside, inside[begun.info.backend_pid].active) == (True, False)
    assert (inside[new.info.backend_pid].inside, inside[new.info.backend_pid].active) == (False, True)

    begun.execute("SET citus.force_max_query_parallelization = on")
    assert begun.execute(COUNT).fetchone() == (400,)
    begun.execute("COMMIT")
    assert waiting.rows is None
    assert standby.execute(COUNT).fetchone() == (400,)
    assert cn1.server.run_sql(REQUESTS) == []  # another database

    gate.open()
    assert not gate.closed
    assert gate.fault is None
    assert waiting.wait() == [(400,)]
    assert not was_granted(citus)


def test_a_lock_inversion_costs_nothing(citus: CitusCluster, gate: Gate) -> None:
    """A session inside that waits for one that waits at the gate: both succeed."""
    cn1 = citus.machines["cn-1"]
    one, other = citus.connect(cn1), citus.connect(cn1)
    other.execute("SELECT 1")
    one.execute("BEGIN")
    one.execute(COUNT)
    other.execute("BEGIN")
    other.execute("SELECT pg_advisory_xact_lock(1)")
    gate.keep(within_s=5)
    gate.close(within_s=5)
    second = Statement(other, f"{COUNT}")
    wait_for_waiting(citus, other)
    first = Statement(one, "SELECT pg_advisory_xact_lock(1)")
    wait_for_waiting(citus, one)
    gate.open()
    assert second.wait() == [(400,)]
    other.execute("COMMIT")
    assert isinstance(first.wait(), list)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_it_opens_by_itself(citus: CitusCluster, config: Config, how: signal.Signals) -> None:
    """Killed, it opens at once; stopped, when its time is over; the request is not granted, nor is a standby hung."""
    cn1, cn2 = citus.machines["cn-1"], citus.machines["cn-2"]
    session, standby = citus.connect(cn1), citus.connect(cn2)
    session.execute("SELECT 1")
    lock_s = 20.0 if how is signal.SIGKILL else 2.0
    command = [sys.executable, "-c", CHILD, config.path, str(lock_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "closed\n"
            waiting = Statement(session)
            wait_for_waiting(citus, session)
            begun = time.monotonic()
            os.kill(child.pid, how)
            assert waiting.wait() == [(400,)]
            notices = citus.site.binaries.version >= 14  # that the client is gone; before, its longest time is over
            assert time.monotonic() - begun < ((2 if notices else 17) if how is signal.SIGKILL else 4)
            assert standby.execute(COUNT).fetchone() == (400,)
            assert citus.connect(cn2).execute(COUNT).fetchone() == (400,)
            assert citus.connect(cn1).execute(COUNT).fetchone() == (400,)
        finally:
            child.kill()
    assert not was_granted(citus)


def test_its_time_is_limited(citus: CitusCluster, config: Config) -> None:
    """It opens when its time is over, and says so."""
    session = citus.connect(citus.machines["cn-1"])
    session.execute("SELECT 1")
    with prepared(config, DATABASE, lock_s=0.5, limit_s=30) as gate:
        gate.keep(within_s=5)
        gate.close(within_s=5)
        assert Statement(session).wait() == [(400,)]
        assert not gate.closed
        assert "lock timeout" in (gate.fault or "")


def test_the_request_is_given_up_when_it_is_granted(citus: CitusCluster) -> None:
    """Without a keeper it is not made; if its keeper ends, it ends too, in a transaction as well."""
    cn1 = citus.machines["cn-1"]
    ours, keeper = (citus.connect(cn1, user="resolver_agent_local") for _ in range(2))
    with pytest.raises(psycopg.errors.RaiseException, match="nothing keeps"):
        ours.execute("SELECT resolver_agent.close_gate()")
    keeping = Statement(keeper, "SELECT resolver_agent.keep_gate()")
    cn1.server.wait_until(
        "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", [keeper.info.backend_pid]
    )
    ours.execute("BEGIN")
    closing = Statement(ours, "SELECT resolver_agent.close_gate()")
    wait_for_waiting(citus, ours)
    keeper.cancel()
    assert isinstance(keeping.wait(), psycopg.errors.QueryCanceled)
    assert GRANTED in str(closing.wait())
    assert citus.run_sql(cn1, REQUESTS) == []
    assert citus.connect(cn1).execute(COUNT).fetchone() == (400,)


def test_who_may_not_close_it(citus: CitusCluster, config: Config) -> None:
    """Another role may call none of its functions, and an older role.sql is named as the reason."""
    cn1 = citus.machines["cn-1"]
    citus.run_sql(cn1, "CREATE ROLE outsider LOGIN")
    outsider = citus.connect(cn1, user="outsider")
    for call in ("SELECT resolver_agent.keep_gate()", "SELECT resolver_agent.close_gate()", "TABLE resolver_agent.x"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            outsider.execute(call)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        outsider.execute("SELECT * FROM resolver_agent.under_way()")
    citus.run_sql(cn1, "DROP FUNCTION resolver_agent.keep_gate()")
    with (
        pytest.raises(GateError, match=r"keep_gate\(\) does not exist in database app: run role\.sql "),
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(prepared(config, DATABASE, lock_s=1, limit_s=5))
