"""What replication loses, and no agent can make up for: see the README's limits and the simulation."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest

from resolver_agent.demo.postgres import Site
from tests.integration.support.cluster import in_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.demo.postgres import Postgres


LOST = "SELECT wal_status = 'lost' FROM pg_replication_slots"
REPLAYED = "SELECT pg_last_wal_replay_lsn()"
PREPARED = "SELECT gid FROM pg_prepared_xacts"
WAITS = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
STREAMS = "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming'"


@pytest.fixture
def pair() -> Iterator[list[Postgres]]:
    """A primary with prepared transactions, and its standby, on a port of their own."""
    with Site(parent=in_memory()) as site:
        yield site.groups({"wk1": ["127.0.9.1", "127.0.9.2"]}, config="max_prepared_transactions = 10\n")["wk1"]


@pytest.mark.parametrize(
    ("how", "rows", "prepared"),
    [("killed", [1], ["old"]), ("stopped", [1, 2, 3], [])],
)
def test_what_a_late_standby_has(pair: list[Postgres], how: str, rows: list[int], prepared: list[str]) -> None:
    """A crash loses what was not sent, also the end of a transaction prepared long before; a stop sends all of it."""
    primary, standby = pair
    primary.run_sql("CREATE TABLE kept (number int)")
    primary.run_sql("INSERT INTO kept VALUES (1)")
    primary.run_sql("BEGIN; INSERT INTO kept VALUES (2); PREPARE TRANSACTION 'old'")
    standby.wait_for_replay(of=primary)
    [(sender,)] = primary.run_sql("SELECT pid FROM pg_stat_replication")
    os.kill(sender, signal.SIGSTOP)
    primary.run_sql("INSERT INTO kept VALUES (3)")
    primary.run_sql("COMMIT PREPARED 'old'")
    if how == "killed":
        primary.kill()
    else:
        primary.stop("fast")  # which lets the sender go on
    standby.promote()
    assert standby.run_sql("SELECT number FROM kept ORDER BY number") == [(number,) for number in rows]
    assert standby.run_sql(PREPARED) == [(gid,) for gid in prepared]


def test_an_end_that_no_standby_confirms(pair: list[Postgres]) -> None:
    """Until one does, everybody else sees the transaction as prepared, and nobody can end it."""
    primary, _ = pair
    primary.run_sql("CREATE TABLE kept (number int)")
    primary.run_sql("BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION 'old'")
    primary.set(synchronous_standby_names="another")
    primary.wait_until("SELECT current_setting('synchronous_standby_names') = 'another'")
    primary.run_sql("CHECKPOINT")  # who makes it also has others wait, once it has read the parameter
    with ThreadPoolExecutor() as threads:
        ending = threads.submit(primary.run_sql, "COMMIT PREPARED 'old'")
        try:
            primary.wait_until(WAITS)
            assert primary.run_sql(PREPARED) == [("old",)]
            assert primary.run_sql("SELECT number FROM kept") == []
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="is busy"):
                primary.run_sql("ROLLBACK PREPARED 'old'")
        finally:
            primary.set(synchronous_standby_names="")
        ending.result(20)
    assert primary.run_sql(PREPARED) == []
    assert primary.run_sql("SELECT number FROM kept") == [(1,)]


@pytest.mark.parametrize("slot", ["dropped", "limited"])
def test_a_standby_whose_slot_is_lost(pair: list[Postgres], slot: str) -> None:
    """It answers, in recovery, and never replays any more; a restart does not help."""
    primary, standby = pair
    if primary.binaries.version < 13:
        pytest.skip("max_slot_wal_keep_size is new in PostgreSQL 13")
    primary.set(max_slot_wal_keep_size="1MB", wal_keep_size="0")
    primary.run_sql("CREATE TABLE kept (number int)")
    primary.run_sql("SELECT pg_create_physical_replication_slot('of_standby', true)")
    standby.set(primary_slot_name="of_standby")
    primary.wait_until("SELECT active FROM pg_replication_slots")
    standby.wait_for_replay(of=primary)
    standby.stop("fast")
    if slot == "dropped":
        primary.run_sql("SELECT pg_drop_replication_slot('of_standby')")
    for number in range(20):
        primary.run_sql("INSERT INTO kept VALUES (%s)", [number])
        primary.run_sql("SELECT pg_switch_wal()")
        primary.run_sql("CHECKPOINT")
    assert primary.run_sql(LOST) == ([(True,)] if slot == "limited" else [])
    for _ in range(2):
        before = standby.log.read_text().count(" WAL stream")
        standby.start()
        [(replayed,)] = standby.run_sql(REPLAYED)
        deadline = time.monotonic() + 30
        while standby.log.read_text().count(" WAL stream") < before + 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert standby.is_in_recovery
        assert standby.run_sql(REPLAYED) == [(replayed,)]
        assert standby.run_sql("SELECT number FROM kept") == []
        standby.stop("fast")
    assert primary.run_sql(STREAMS) == [(False,)]
