"""Where Citus looks for intermediate results, and what a statement reads when they are not there (rule R3)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine

LOCAL = """
WITH few AS MATERIALIZED (SELECT * FROM accounts ORDER BY id LIMIT 50)
SELECT count(*) FROM few JOIN regions ON region = regions.id
"""
# The second result is made on the coordinator, and only when a lock is free: the first one has been sent by then.
REMOTE = """
WITH few AS MATERIALIZED (SELECT id FROM accounts ORDER BY id LIMIT {}),
     waited AS MATERIALIZED (SELECT pg_advisory_lock_shared(1)::text)
SELECT count(*) FROM waited, orders JOIN few ON account = few.id
"""
# On each worker a further connection is opened while the first one is busy.
SLOW = """
WITH few AS MATERIALIZED (SELECT id FROM accounts WHERE id = 1),
     waited AS MATERIALIZED (SELECT pg_advisory_lock_shared(1)::text)
SELECT count(*) FROM waited, few, orders WHERE pg_sleep(0.01) IS NOT NULL
"""
COUNT = "SELECT count(*) FROM accounts"
NUMBER = "SELECT transaction_number FROM get_current_transaction_id()"
WAITS = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
NO_RESULT = "could not find the intermediate result file"


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for statements that wait."""
    with ThreadPoolExecutor() as threads:
        yield threads


def lead(citus: CitusCluster, machine: Machine, **names: str) -> None:
    """Point the names on a coordinator's machine to servers of its own role, or to the given ones."""
    number = citus.groups["cn"].index(machine)
    machine.lead({name: pair[number].address for name, pair in citus.groups.items()} | names)


def locking(citus: CitusCluster, machine: Machine) -> psycopg.Connection:
    """Return a session that has the lock for which statements on a machine then wait."""
    session = citus.connect(machine)
    session.execute("SELECT pg_advisory_lock(1)")
    return session


def wait_for_waiting(machine: Machine, session: psycopg.Connection) -> None:
    """Wait until a session waits for a lock."""
    machine.server.wait_until(WAITS, [session.info.backend_pid])


def number(session: psycopg.Connection) -> Any:
    """Return the number of one more distributed transaction."""
    with session.transaction():
        session.execute(COUNT)
        return session.execute(NUMBER).fetchall()[0][0]


@pytest.mark.parametrize("own", [0, 1], ids=["primary", "standby"])
def test_the_own_name_leads_to_another_server(citus: CitusCluster, own: int) -> None:
    """A result that is sent there is read on the coordinator itself: rows are missing, and nothing fails."""
    machine, other = citus.groups["cn"][own], citus.groups["cn"][1 - own]
    assert citus.connect(machine).execute(LOCAL).fetchone() == (50,)
    lead(citus, machine, cn=other.address)
    said: list[str] = []
    session = citus.connect(machine)
    session.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
    assert session.execute(LOCAL).fetchone() == (0,)
    assert NO_RESULT in said[0]
    lead(citus, machine)
    assert citus.connect(machine).execute(LOCAL).fetchone() == (50,)


@pytest.mark.parametrize(("user", "found"), [("postgres", 20), ("reader", 100)])
def test_a_reader_and_a_writer_with_equal_numbers(
    citus: CitusCluster, threads: ThreadPoolExecutor, user: str, found: int
) -> None:
    """On one worker, with one role, a statement finds the other one's result; with roles of their own it does not."""
    cn1, cn2 = citus.groups["cn"]
    primaries = [pair[0] for pair in citus.groups.values()]
    for primary in primaries:
        primary.server.run_sql("SET citus.enable_ddl_propagation = off; CREATE ROLE reader LOGIN SUPERUSER")
    for primary, standby in citus.groups.values():
        standby.server.wait_for_replay(of=primary.server)
    lead(citus, cn2, wk1=primaries[1].address, wk2=primaries[2].address)
    writer, reader = citus.connect(cn1), citus.connect(cn2, user=user)
    numbers = [number(writer), number(reader)]
    while numbers[0] != numbers[1]:
        late = numbers.index(min(numbers))
        numbers[late] = number((writer, reader)[late])
    holder = locking(citus, cn1)
    counted = threads.submit(lambda: writer.execute(REMOTE.format(50).encode()).fetchone())
    wait_for_waiting(cn1, writer)
    with reader.transaction():
        assert reader.execute(REMOTE.format(10).encode()).fetchone() == (20,)
        holder.close()
        assert counted.result(20) == (found,)


def test_a_name_moves_meanwhile(citus: CitusCluster, threads: ThreadPoolExecutor) -> None:
    """A statement that then opens one more connection finds no result there, and fails; so do later ones, unflushed."""
    cn2 = citus.machines["cn-2"]
    holder, session = locking(citus, cn2), citus.connect(cn2)
    counted = threads.submit(session.execute, SLOW)
    wait_for_waiting(cn2, session)
    lead(citus, cn2, wk1=citus.machines["wk1-1"].address)
    holder.close()
    with pytest.raises(psycopg.Error, match=NO_RESULT):
        counted.result(20)
    with pytest.raises(psycopg.Error, match=NO_RESULT):
        session.execute(SLOW)
    assert citus.connect(cn2).execute(SLOW).fetchone() == (800,)
