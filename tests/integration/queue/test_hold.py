"""The coordinator's part in a planned stop, on real Citus: what waits, what ends, and that everything is undone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from resolver_agent.citus import flush
from resolver_agent.config.load import load
from resolver_agent.queue.gate import MOST_S, prepared
from resolver_agent.queue.hold import Held, HoldError, Leaving, coordinated_databases, hold
from tests.integration.support.citus_cluster import DATABASE, citus_version
from tests.integration.support.machine import CHECKOUT

if TYPE_CHECKING:
    from typing_extensions import Self

    from resolver_agent.config.model import Config
    from tests.integration.support.citus_cluster import CitusCluster

COUNT = "SELECT count(*) FROM accounts"
WRITE = "UPDATE accounts SET balance = balance + 1 WHERE id = %s"
BOTH = "UPDATE accounts SET balance = balance + 1"
CACHED = "SELECT current_setting('citus.max_cached_conns_per_worker')"
ALTERED = """
    SELECT setting FROM pg_file_settings
    WHERE name = 'citus.max_cached_conns_per_worker' AND sourcefile LIKE '%/postgresql.auto.conf'
"""
OTHER = "other"
GATES = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"
GRANTED = "the gate was granted"

# Runs hold(), in which it is killed when it comes to the function that is named.
CHILD = """
import importlib, os, signal, sys, threading
from resolver_agent.config.load import load
from resolver_agent.queue.gate import MOST_S, prepared
from resolver_agent.queue import hold as queue_hold

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

module, _, path = sys.argv[4].partition(":")
where = importlib.import_module(module)
*owners, last = path.split(".")
for owner in owners:
    where = getattr(where, owner)
queue_hold.to_room_of_test = lambda: True
setattr(where, last, die)

def room():
    return queue_hold.to_room_of_test()

wk1 = queue_hold.Leaving("wk1", sys.argv[2], sys.argv[2], int(sys.argv[3]))
print(queue_hold.hold(load(sys.argv[1]), ("app",), leaving=lambda: (wk1,), to_room=room,
    abort=threading.Event(), forwarded=threading.Event(), drain_s=1.0))
"""
HOLD = "resolver_agent.queue.hold:"
KILLED_AT = {
    "before it begins": f"{HOLD}_Hold.uncache",
    "before the confirmation": "resolver_agent.citus.flush:_confirm",
    "when it has uncached": f"{HOLD}_Hold.grow_out",
    "before the gate": f"{HOLD}_Hold.close",
    "while it drains": f"{HOLD}_Hold.drain",
    "before the names move": f"{HOLD}to_room_of_test",
    "before it gives back": f"{HOLD}_Hold.undo",
    "before it opens the gate": "resolver_agent.queue.gate:Gate.open",
    "before it confirms": "resolver_agent.citus.flush:confirm",
}


class Holding(threading.Thread):
    """``hold()`` in a thread, for the group wk1; the names move when the test says so."""

    def __init__(
        self,
        citus: CitusCluster,
        *,
        databases: tuple[str, ...] = (DATABASE,),
        drain_s: float = 5.0,
        room: bool = True,
    ) -> None:
        super().__init__(daemon=True)
        self.citus = citus
        self.config = load(str(citus.configure(citus.machines["cn-1"])))
        self.leaving = [of(citus, "wk1-1")]
        self.drained, self.may_move, self.abort, self.forwarded = (threading.Event() for _ in range(4))
        self.may_move.set()
        self.held: Held | None = None
        self.error: Exception | None = None
        self._databases = databases
        self._drain_s = drain_s
        self._room = room

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.abort.set()
        self.may_move.set()
        self.join(30)
        assert not self.is_alive()

    def to_room(self) -> bool:
        """Let the test go on."""
        self.drained.set()
        self.may_move.wait(20)
        return self._room

    def end(self) -> Held:
        """Return how it went, when it has ended."""
        self.join(30)
        assert self.held is not None, self.error
        return self.held

    def run(self) -> None:
        """Hold."""
        try:
            self.held = hold(
                self.config,
                self._databases,
                leaving=lambda: tuple(self.leaving),
                to_room=self.to_room,
                abort=self.abort,
                forwarded=self.forwarded,
                drain_s=self._drain_s,
            )
        except HoldError as error:
            self.error = error


def of(citus: CitusCluster, name: str) -> Leaving:
    """Return a machine as a primary that stops."""
    address = citus.machines[name].address
    return Leaving(name.partition("-")[0], address, address, citus.site.port)


def count(session: psycopg.Connection) -> tuple[threading.Event, threading.Thread]:
    """Begin a statement in a thread; the event is set when it has succeeded."""
    ended = threading.Event()

    def run() -> None:
        session.execute(COUNT)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    return ended, thread


def wait_for_gate(citus: CitusCluster) -> None:
    """Wait until the gate is closed."""
    citus.machines["cn-1"].server.wait_until(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted)"
    )


def assert_undone(citus: CitusCluster) -> None:
    """Nothing of it is left: statements run, connections are cached, and no standby replays a lock."""
    cn1, cn2 = citus.machines["cn-1"], citus.machines["cn-2"]
    for session in (citus.connect(cn1), citus.connect(cn2)):
        assert session.execute(COUNT).fetchone() == (400,)
    assert (cn1.server.run_sql(CACHED), cn1.server.run_sql(ALTERED)) == ([("1",)], [])
    assert GRANTED not in cn1.server.log.read_text()


def test_which_databases_are_coordinated(citus: CitusCluster) -> None:
    """Those of a coordinator, on its standby too; none on a worker, nor where nothing answers."""
    for name, expected in (("cn-1", (DATABASE,)), ("cn-2", (DATABASE,)), ("wk1-1", ())):
        found = coordinated_databases(load(str(citus.configure(citus.machines[name]))))
        assert (found.with_citus, found.faults) == (expected, {})
    config = load(str(citus.configure(citus.machines["cn-1"])))
    citus.machines["cn-1"].server.kill()
    with pytest.raises(psycopg.OperationalError):
        coordinated_databases(config)


def test_a_database_with_a_closed_gate_does_not_answer(citus: CitusCluster) -> None:
    """A killed agent may have left it so: that is not the answer that nothing is coordinated there."""
    config = load(str(citus.configure(citus.machines["cn-1"])))
    with prepared(config, DATABASE, lock_s=10, limit_s=20) as gate:
        gate.keep(within_s=1)
        gate.close(within_s=1)
        found = coordinated_databases(config)
        assert (found.with_citus, list(found.faults)) == ((), [DATABASE])
        gate.open()
    assert coordinated_databases(config).with_citus == (DATABASE,)


def test_the_whole_of_it(citus: CitusCluster) -> None:
    """A transaction under way ends, a new statement waits until the names have moved, and nothing is left."""
    cn1 = citus.machines["cn-1"]
    begun, new = citus.connect(cn1), citus.connect(cn1)
    new.execute(COUNT)
    begun.execute("BEGIN")
    begun.execute(BOTH)
    with Holding(citus) as holding:
        holding.may_move.clear()
        wait_for_gate(citus)
        assert cn1.server.run_sql(CACHED) == [("0",)]
        begun.execute(COUNT)
        begun.execute("COMMIT")
        ended, statement = count(new)
        assert holding.drained.wait(10)
        assert citus.run_sql(citus.machines["wk1-1"], "SELECT count(*) FROM pg_prepared_xacts") == [(0,)]
        assert not ended.is_set()
        cn1.lead({"cn": cn1.address, "wk1": citus.machines["wk1-2"].address, "wk2": citus.machines["wk2-1"].address})
        holding.may_move.set()
        held = holding.end()
        statement.join(10)
    assert (held.uncached, held.fault, held.left, held.left_count) == (True, None, (), 0)
    assert 0 < held.gate_ms <= held.closed_ms
    assert held.drain_ms <= held.closed_ms
    assert citus.serving(new) == {"wk1-2", "wk2-1"}
    cn1.lead({"cn": cn1.address, "wk1": citus.machines["wk1-1"].address, "wk2": citus.machines["wk2-1"].address})
    assert_undone(citus)


def test_every_database_with_citus(citus: CitusCluster) -> None:
    """Transactions under way in two databases are waited for, and new statements in both wait."""
    cn1, names = citus.machines["cn-1"], ("cn-1", "wk1-1", "wk2-1")
    for name in names:
        citus.machines[name].server.run_sql(f"CREATE DATABASE {OTHER}")
        citus.machines[name].server.run_sql("CREATE EXTENSION citus", dbname=OTHER)
        citus._run_role_sql(citus.machines[name].server, OTHER)
    cn1.server.run_sql("SELECT citus_set_coordinator_host('cn', %s)", [citus.site.port], dbname=OTHER)
    for name in ("wk1", "wk2"):
        cn1.server.run_sql("SELECT citus_add_node(%s, %s)", [name, citus.site.port], dbname=OTHER)
    cn1.server.run_sql("CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint)", dbname=OTHER)
    cn1.server.run_sql("SELECT create_distributed_table('accounts', 'id')", dbname=OTHER)
    databases = coordinated_databases(load(str(citus.configure(cn1)))).with_citus
    assert databases == (DATABASE, OTHER)
    begun = [citus.connect(cn1, dbname=database) for database in databases]
    new = [citus.connect(cn1, dbname=database) for database in databases]
    for session in new:
        session.execute(COUNT)
    for session in begun:
        session.execute("BEGIN")
        session.execute(BOTH)
    with Holding(citus, databases=databases) as holding:
        holding.may_move.clear()
        while cn1.server.run_sql(GATES) != [(2,)]:
            for session in begun:  # whoever idles is not waited for
                session.execute(COUNT)
        ended = [count(session) for session in new]
        begun[0].execute("COMMIT")
        for _ in range(20):
            begun[1].execute(COUNT)
        assert not holding.drained.is_set()  # the transaction in the other database is not over
        begun[1].execute("COMMIT")
        assert holding.drained.wait(10)
        assert not any(event.is_set() for event, _ in ended)
        holding.may_move.set()
        held = holding.end()
        for _, statement in ended:
            statement.join(10)
    assert (held.uncached, held.fault, held.left, held.left_count) == (True, None, (), 0)
    assert all(event.is_set() for event, _ in ended)
    assert_undone(citus)


def test_who_idles_is_left_to_its_fate(citus: CitusCluster) -> None:
    """A transaction that has been idle for a second is not waited for, and said; the gate opens long before the end."""
    idle = citus.connect(citus.machines["cn-1"])
    idle.execute("BEGIN")
    idle.execute(BOTH)
    with Holding(citus, drain_s=6) as holding:
        held = holding.end()
    if citus_version() >= (11,):  # a session on a worker tells which process has opened it
        assert held.left_count == 1
        assert f"process {idle.info.backend_pid} idles in a transaction for " in held.left[0]
        assert held.drain_ms < 4000
    else:
        assert set(held.left) == {"citus is open"}
        assert 6000 <= held.drain_ms < 7500
    idle.execute("ROLLBACK")
    assert_undone(citus)


def test_a_long_command_is_not_waited_for(citus: CitusCluster) -> None:
    """A command that does not grow out in a second is left, and nobody waits for it at the gate."""
    if citus_version() < (11,):
        pytest.skip("before Citus 11 nothing tells whose a session on a worker is, so it is waited for")
    session = citus.connect(citus.machines["cn-1"])
    session.execute("BEGIN")
    session.execute(BOTH)
    slow = threading.Thread(target=lambda: session.execute("SELECT pg_sleep(7)"))
    slow.start()
    citus.machines["cn-1"].server.wait_until(
        "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", [session.info.backend_pid]
    )
    with Holding(citus, drain_s=6) as holding:
        held = holding.end()
    assert held.grow_out_ms >= 1000
    assert held.drain_ms < 3000
    assert f"process {session.info.backend_pid} runs a command for " in held.left[0]
    slow.join(20)
    session.execute("ROLLBACK")
    assert_undone(citus)


def test_it_drains_for_a_limited_time(citus: CitusCluster) -> None:
    """What goes on and on is waited for until the time is over, and said."""
    session = citus.connect(citus.machines["cn-1"])
    ends = threading.Event()
    session.execute("BEGIN")
    session.execute(BOTH)

    def work() -> None:
        while not ends.is_set():
            session.execute(COUNT)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with Holding(citus, drain_s=1) as holding:
            held = holding.end()
    finally:
        ends.set()
        worker.join(10)
    assert 1000 <= held.drain_ms < 2500
    assert held.left_count >= 1
    session.execute("COMMIT")
    assert_undone(citus)


def test_an_abort_undoes_it_at_once(citus: CitusCluster) -> None:
    """Told to end while it drains, it moves no name."""
    session = citus.connect(citus.machines["cn-1"])
    session.execute("BEGIN")
    session.execute(BOTH)
    with Holding(citus, drain_s=8) as holding:
        wait_for_gate(citus)
        holding.abort.set()
        begun = time.monotonic()
        held = holding.end()
    assert time.monotonic() - begun < 3
    assert not holding.drained.is_set()
    assert held.fault is None
    session.execute("ROLLBACK")
    assert_undone(citus)


def test_without_a_room_the_gate_stays_closed(citus: CitusCluster) -> None:
    """Until the names lead to running servers again."""
    cn1 = citus.machines["cn-1"]
    session = citus.connect(cn1)
    session.execute(COUNT)
    with Holding(citus, room=False) as holding:
        assert holding.drained.wait(10)
        wait_for_gate(citus)
        ended, statement = count(session)
        assert not ended.wait(0.5)
        assert holding.is_alive()
        holding.forwarded.set()
        held = holding.end()
        statement.join(10)
    assert held.fault is None
    assert held.closed_ms > 500
    assert_undone(citus)


def test_a_fault_undoes_it(citus: CitusCluster) -> None:
    """An error of the caller's, or a server that cannot be asked, is said, and everything is undone."""
    holding = Holding(citus)
    holding.to_room = lambda: bool(1 // 0)  # type: ignore[method-assign]
    with holding:
        assert "modulo by zero" in (holding.end().fault or "")
    assert_undone(citus)
    holding = Holding(citus)
    holding.leaving = [Leaving("wk1", "127.0.255.1", "127.0.255.1", citus.site.port)]
    with holding:
        held = holding.end()
    assert not held.uncached
    assert "127.0.255.1 cannot be asked" in (held.fault or "")
    assert_undone(citus)


def test_where_it_cannot_begin(citus: CitusCluster) -> None:
    """Without its functions, or while another one is under way, nothing is changed."""
    cn1 = citus.machines["cn-1"]
    with Holding(citus) as one:
        one.may_move.clear()
        assert one.drained.wait(10)
        with Holding(citus) as other:
            other.join(10)
            assert "another flush has been under way" in str(other.error)
        one.may_move.set()
        assert one.end().fault is None
    citus.run_sql(cn1, "DROP FUNCTION resolver_agent.close_gate()")
    with Holding(citus) as holding:
        holding.join(10)
    assert "close_gate() does not exist in database app: run role.sql" in str(holding.error)
    assert_undone(citus)


def test_where_connection_slots_are_short(citus: CitusCluster) -> None:
    """Connections stay cached if the server that stops has too few slots for them, and the rest is done."""
    cn1, wk1 = citus.machines["cn-1"], citus.machines["wk1-1"]
    [(limit,)] = wk1.server.run_sql("SELECT current_setting('max_connections')::int")
    taken = []
    try:
        while True:
            taken.append(
                psycopg.connect(host=wk1.address, port=citus.site.port, user="resolver_agent", dbname="postgres")
            )
            assert len(taken) <= limit
            if len(taken) == limit - 8:
                break
        busy = [citus.connect(cn1) for _ in range(8)]
        sleepers = [threading.Thread(target=lambda one=one: one.execute("SELECT pg_sleep(2)")) for one in busy]
        for one in sleepers:
            one.start()
        cn1.server.wait_until("SELECT count(*) = 8 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        with Holding(citus) as holding:
            held = holding.end()
    finally:
        for session in taken:
            session.close()
    for one in sleepers:
        one.join(10)
    assert not held.uncached
    assert "free connection slots for 8 active sessions" in (held.fault or "")
    assert_undone(citus)


@pytest.mark.parametrize("where", KILLED_AT.values(), ids=KILLED_AT)
def test_killed_at_any_step(citus: CitusCluster, where: str) -> None:
    """The gate opens by itself, nothing hangs, and the next agent gives the parameter back."""
    cn1 = citus.machines["cn-1"]
    config: Config = load(str(citus.configure(cn1)))
    wk1 = citus.machines["wk1-1"].address
    child = subprocess.run(
        [sys.executable, "-c", CHILD, config.path, wk1, str(citus.site.port), where],
        check=False,
        timeout=60,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    notices = cn1.server.binaries.version >= 14  # that the client is gone; before, its longest time is over
    begun = time.monotonic()
    assert citus.connect(cn1).execute(COUNT).fetchone() == (400,)
    assert time.monotonic() - begun < (5 if notices else MOST_S)
    flush.keep(config)
    assert_undone(citus)
