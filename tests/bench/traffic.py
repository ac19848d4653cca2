"""Clients that run every kind of statement on a Citus cluster, and what they were told.

Nothing is retried: a statement that fails has failed. What was acknowledged is looked for at the end.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg

from tests.integration.support.citus_cluster import DATABASE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine

PRIMARY, STANDBY, WORKER = SIDES = ("primary", "standby", "worker")
"""Whom a client asks: the primary coordinator, its standby, or a worker's primary as query node."""

_PAUSE_S = 0.1
_DEAR_S = 2.0  # for statements that open many sessions, of the client or of Citus
_RARE_S = 0.4
_THINK_S = 0.1
_AFTER_ERROR_S = 0.1
_CONNECT_S = 30
_PATIENCE_S = 10
_ITEMS = 1000
_FEW = 20
_BATCH = 50

# Each kind has tables of its own, so that no two of them can wait for each other in a circle.
_TABLES = """
CREATE TABLE items (id bigint PRIMARY KEY, v text NOT NULL, n bigint NOT NULL DEFAULT 0);
SELECT create_distributed_table('items', 'id');
INSERT INTO items SELECT i, i::text FROM generate_series(1, 1000) AS i;
CREATE TABLE links (id bigint PRIMARY KEY, item bigint NOT NULL);
SELECT create_distributed_table('links', 'id', colocate_with => 'none');
INSERT INTO links SELECT i, 1 + (i * 7) % 1000 FROM generate_series(1, 1000) AS i;
CREATE TABLE single (id bigint PRIMARY KEY, v text);
SELECT create_distributed_table('single', 'id');
CREATE TABLE deleted (id bigint PRIMARY KEY, v text);
SELECT create_distributed_table('deleted', 'id');
CREATE TABLE copied (id bigint PRIMARY KEY, batch bigint NOT NULL);
SELECT create_distributed_table('copied', 'id');
CREATE TABLE pairs (part int, id bigint, PRIMARY KEY (part, id));
SELECT create_distributed_table('pairs', 'part', shard_count => 2);
CREATE TABLE hot (part int PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
SELECT create_distributed_table('hot', 'part', colocate_with => 'pairs');
CREATE TABLE many (id bigint PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
SELECT create_distributed_table('many', 'id');
INSERT INTO many SELECT i FROM generate_series(1, 20) AS i;
CREATE TABLE chosen (id bigint PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
SELECT create_distributed_table('chosen', 'id');
INSERT INTO chosen SELECT i FROM generate_series(1, 20) AS i;
CREATE TABLE merged (id bigint PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
SELECT create_distributed_table('merged', 'id');
INSERT INTO merged SELECT i FROM generate_series(1, 20) AS i;
CREATE TABLE pushed (id bigint, v text);
SELECT create_distributed_table('pushed', 'id');
CREATE TABLE moved (id bigint, v text);
SELECT create_distributed_table('moved', 'id');
CREATE TABLE pulled (id bigint, v text);
SELECT create_distributed_table('pulled', 'id');
CREATE TABLE emptied (id bigint, v text);
SELECT create_distributed_table('emptied', 'id');
CREATE TABLE altered (id bigint, v text);
SELECT create_distributed_table('altered', 'id');
CREATE TABLE lookup (id int PRIMARY KEY, v text NOT NULL, n bigint NOT NULL DEFAULT 0);
SELECT create_reference_table('lookup');
INSERT INTO lookup SELECT i, i::text FROM generate_series(1, 10) AS i
"""
_ROUTINES = (
    """
    CREATE FUNCTION touch(which bigint) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        found bigint;
    BEGIN
        UPDATE items SET n = n + 1 WHERE id = which;
        SELECT count(*) INTO found FROM items;
        RETURN found;
    END
    $$
    """,
    """
    CREATE PROCEDURE add_pair(one int, other int, number bigint) LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO pairs VALUES (one, number);
        INSERT INTO pairs VALUES (other, number);
    END
    $$
    """,
)
_PARTS = """
    SELECT DISTINCT ON (groupid) part
    FROM generate_series(0, 99) AS part, get_shard_id_for_distribution_column('pairs', part) AS shardid
    JOIN pg_dist_placement USING (shardid)
    ORDER BY groupid, part
"""
_PREPARED = (
    "SELECT NOT pg_is_in_recovery(), (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())"
)
_NUMBERS = re.compile(r"\d{3,}")


class WrongAnswerError(Exception):
    """A statement succeeded, and its answer is wrong."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One statement, or transaction: of which kind, for whom, when (seconds since the epoch), and what went wrong."""

    side: str
    kind: str
    begun_at: float
    took_s: float
    error: str | None

    @property
    def ended_at(self) -> float:
        """When the client had its answer."""
        return self.begun_at + self.took_s


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What is wrong in the tables: acknowledged and not there, and half there. Each a word and a count."""

    lost: dict[str, int]
    half: dict[str, int]

    def __bool__(self) -> bool:
        return any(self.lost.values()) or any(self.half.values())


class Data:
    """The tables of the traffic, and what clients were told about them."""

    def __init__(self, cluster: CitusCluster, coordinator: Machine) -> None:
        """Create them."""
        self._numbers = itertools.count(1)
        for statement in [*filter(str.strip, _TABLES.split(";")), *_ROUTINES]:
            cluster.run_sql(coordinator, statement)
        found = [part for (part,) in cluster.run_sql(coordinator, _PARTS)]
        assert len(found) == 2, f"the shards of pairs are on {len(found)} workers"
        self.parts: tuple[int, int] = (found[0], found[1])
        for part in self.parts:
            cluster.run_sql(coordinator, "INSERT INTO hot VALUES (%s)", [part])
        self.single: list[int] = []
        self.pairs: list[int] = []
        self.deleted: list[int] = []
        self.batches: list[int] = []
        self.hot: list[int] = []

    def number(self) -> int:
        """Return a number that nobody else has."""
        return next(self._numbers)

    def account(self, cluster: CitusCluster, coordinator: Machine, *, within_s: float = 90.0) -> Account:
        """Compare the tables with what was acknowledged. No client may be writing.

        Raises:
            TimeoutError: transactions stay prepared, or a group has no primary.
        """
        deadline = time.monotonic() + within_s
        while left := {group: held for group, pair in cluster.groups.items() if (held := _prepared(cluster, pair))}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"transactions stay prepared, or there is no primary: {left}")
            time.sleep(0.2)

        def ids(query: str) -> set[int]:
            return {number for (number,) in cluster.run_sql(coordinator, query)}

        rows = cluster.run_sql(coordinator, "SELECT id, count(*) FROM pairs GROUP BY id")
        batches = cluster.run_sql(coordinator, "SELECT batch, count(*) FROM copied GROUP BY batch")
        hot = [n for (n,) in cluster.run_sql(coordinator, "SELECT n FROM hot")]
        whole, copied = {number for number, n in rows if n == 2}, {number for number, n in batches if n == _BATCH}
        return Account(
            lost={
                "rows": len(set(self.single) - ids("SELECT id FROM single")),
                "pairs": len(set(self.pairs) - whole),
                "copied": len(set(self.batches) - copied),
                "deletions": len(set(self.deleted) & ids("SELECT id FROM deleted")),
                "hot": max(0, len(self.hot) - min(hot)),
            },
            half={
                "pairs": len(rows) - len(whole),
                "copied": len(batches) - len(copied),
                "hot": max(hot) - min(hot),
            },
        )


def _prepared(cluster: CitusCluster, pair: Sequence[Machine]) -> str:
    """Return what a group's primary holds, or that there is none; a server that Patroni restarts does not answer."""
    held = []
    for machine in pair:
        with contextlib.suppress(psycopg.OperationalError):
            [(is_primary, count)] = cluster.run_sql(machine, _PREPARED)
            held += [count] if is_primary else []
    return "no primary" if not held else f"{sum(held)} prepared" if any(held) else ""


Session = psycopg.Connection[Any]


def _expect(seen: object, wanted: object) -> None:
    if seen != wanted:
        raise WrongAnswerError(f"{seen}, not {wanted}")


def _one(session: Session, query: str, params: Sequence[Any] = (), *, prepare: bool | None = None) -> Any:
    row = session.execute(query, params, prepare=prepare).fetchone()
    return None if row is None else row[0]


def _item(data: Data) -> int:
    return 1 + data.number() % _ITEMS


def _select_one(session: Session, data: Data) -> None:
    item = _item(data)
    _expect(_one(session, "SELECT v FROM items WHERE id = %s", [item]), str(item))


def _select_prepared(session: Session, data: Data) -> None:
    item = _item(data)
    _expect(_one(session, "SELECT v FROM items WHERE id = %s", [item], prepare=True), str(item))


def _select_all(session: Session, _data: Data) -> None:
    _expect(_one(session, "SELECT count(*) FROM items"), _ITEMS)


def _insert(session: Session, data: Data) -> None:
    number = data.number()
    session.execute("INSERT INTO single VALUES (%s, 'x')", [number])
    data.single.append(number)


def _insert_returning(session: Session, data: Data) -> None:
    number = data.number()
    _expect(_one(session, "INSERT INTO single VALUES (%s, 'y') RETURNING id", [number]), number)
    data.single.append(number)


def _update_one(session: Session, data: Data) -> None:
    _expect(session.execute("UPDATE items SET n = n + 1 WHERE id = %s", [_item(data)]).rowcount, 1)


def _update_prepared(session: Session, data: Data) -> None:
    changed = session.execute("UPDATE items SET n = n + 1 WHERE id = %s", [_item(data)], prepare=True)
    _expect(changed.rowcount, 1)


def _update_many(session: Session, _data: Data) -> None:
    _expect(session.execute("UPDATE many SET n = n + 1").rowcount, _FEW)


def _delete(session: Session, data: Data) -> None:
    number = data.number()
    session.execute("INSERT INTO deleted VALUES (%s, 'x')", [number])
    _expect(session.execute("DELETE FROM deleted WHERE id = %s", [number]).rowcount, 1)
    data.deleted.append(number)


def _delete_many(session: Session, _data: Data) -> None:
    session.execute("DELETE FROM deleted WHERE v = 'none'")


def _pair(session: Session, data: Data, *, between: Callable[[], object] = lambda: None) -> None:
    number = data.number()
    with session.transaction():
        session.execute("INSERT INTO pairs VALUES (%s, %s)", [data.parts[0], number])
        between()
        session.execute("INSERT INTO pairs VALUES (%s, %s)", [data.parts[1], number])
    data.pairs.append(number)


def _think(session: Session, data: Data) -> None:
    _pair(session, data, between=lambda: time.sleep(_THINK_S))


def _savepoint(session: Session, data: Data) -> None:
    def undone() -> None:
        with session.transaction(force_rollback=True):
            session.execute("INSERT INTO pairs VALUES (%s, %s)", [data.parts[0], data.number()])

    _pair(session, data, between=undone)


def _hot(session: Session, data: Data) -> None:
    with session.transaction():
        for part in data.parts:
            session.execute("UPDATE hot SET n = n + 1 WHERE part = %s", [part])
    data.hot.append(1)


def _copy_in(session: Session, data: Data) -> None:
    batch = data.number()
    with session.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
        for _ in range(_BATCH):
            copy.write_row((data.number(), batch))
    data.batches.append(batch)


def _copy_out(session: Session, _data: Data) -> None:
    with session.cursor() as cursor, cursor.copy("COPY (SELECT id FROM items) TO STDOUT") as copy:
        _expect(sum(1 for _ in copy.rows()), _ITEMS)


def _cte(session: Session, _data: Data) -> None:
    writes = "WITH changed AS (UPDATE chosen SET n = n + 1 RETURNING id) SELECT count(*) FROM changed"
    _expect(_one(session, writes), _FEW)


def _insert_pushed(session: Session, _data: Data) -> None:
    copied = session.execute("INSERT INTO pushed SELECT id, v FROM items WHERE id <= 20")
    _expect(copied.rowcount, 20)


def _insert_repartitioned(session: Session, _data: Data) -> None:
    copied = session.execute("INSERT INTO moved SELECT item, id::text FROM links WHERE id <= 20")
    _expect(copied.rowcount, 20)


def _insert_pulled(session: Session, _data: Data) -> None:
    copied = session.execute("INSERT INTO pulled SELECT id, v FROM items ORDER BY id LIMIT 20")
    _expect(copied.rowcount, 20)


def _merge(session: Session, _data: Data) -> None:
    merged = session.execute(
        "MERGE INTO merged USING items ON merged.id = items.id WHEN MATCHED THEN UPDATE SET n = merged.n + 1"
    )
    _expect(merged.rowcount, _FEW)


def _join(session: Session, _data: Data) -> None:
    _expect(_one(session, "SELECT count(*) FROM items JOIN links ON links.item = items.id"), _ITEMS)


def _reference_read(session: Session, _data: Data) -> None:
    _expect(_one(session, "SELECT count(*) FROM items JOIN lookup ON lookup.id = items.id"), 10)


def _reference_write(session: Session, _data: Data) -> None:
    _expect(session.execute("UPDATE lookup SET n = n + 1 WHERE id = 1").rowcount, 1)


def _cursor(session: Session, _data: Data) -> None:
    with session.transaction(), session.cursor(name="items") as cursor:
        cursor.execute("SELECT id FROM items")
        _expect(sum(len(cursor.fetchmany(250)) for _ in range(4)), _ITEMS)


def _ddl(session: Session, _data: Data) -> None:
    session.execute("ALTER TABLE altered ADD COLUMN IF NOT EXISTS w int")
    session.execute("ALTER TABLE altered DROP COLUMN IF EXISTS w")


def _truncate(session: Session, _data: Data) -> None:
    session.execute("TRUNCATE emptied")


def _function(session: Session, data: Data) -> None:
    _expect(_one(session, "SELECT touch(%s)", [_item(data)]), _ITEMS)


def _procedure(session: Session, data: Data) -> None:
    number = data.number()
    session.execute("CALL add_pair(%s, %s, %s)", [*data.parts, number])
    data.pairs.append(number)


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A kind of statement: how many clients run it, how long each rests, and whether each run has a new session."""

    name: str
    side: str
    run: Callable[[Session, Data], None]
    clients: int = 1
    pause_s: float = _PAUSE_S
    anew: bool = False


KINDS = (
    Kind("SELECT one shard", PRIMARY, _select_one, 2),
    Kind("SELECT all shards", PRIMARY, _select_all, 2),
    Kind("SELECT prepared", PRIMARY, _select_prepared),
    Kind("SELECT, new session", PRIMARY, _select_one, pause_s=_DEAR_S, anew=True),
    Kind("SELECT all, new session", PRIMARY, _select_all, pause_s=_DEAR_S, anew=True),
    Kind("INSERT", PRIMARY, _insert, 3),
    Kind("INSERT, new session", PRIMARY, _insert, pause_s=_DEAR_S, anew=True),
    Kind("INSERT RETURNING", PRIMARY, _insert_returning),
    Kind("UPDATE one shard", PRIMARY, _update_one),
    Kind("UPDATE prepared", PRIMARY, _update_prepared),
    Kind("UPDATE all shards", PRIMARY, _update_many, pause_s=_RARE_S),
    Kind("DELETE one shard", PRIMARY, _delete),
    Kind("DELETE all shards", PRIMARY, _delete_many, pause_s=_RARE_S),
    Kind("two workers", PRIMARY, _pair, 2),
    Kind("two workers, thinking", PRIMARY, _think, 2),
    Kind("savepoints", PRIMARY, _savepoint, pause_s=_RARE_S),
    Kind("hot rows", PRIMARY, _hot, 2),
    Kind("COPY in", PRIMARY, _copy_in, pause_s=_DEAR_S),
    Kind("COPY out", PRIMARY, _copy_out, pause_s=_RARE_S),
    Kind("CTE that writes", PRIMARY, _cte, pause_s=_RARE_S),
    Kind("INSERT SELECT pushed", PRIMARY, _insert_pushed, pause_s=_RARE_S),
    Kind("INSERT SELECT repartitioned", PRIMARY, _insert_repartitioned, pause_s=_DEAR_S),
    Kind("INSERT SELECT pulled", PRIMARY, _insert_pulled, pause_s=_RARE_S),
    Kind("MERGE", PRIMARY, _merge, pause_s=_RARE_S),
    Kind("repartition join", PRIMARY, _join, pause_s=_DEAR_S),
    Kind("reference table read", PRIMARY, _reference_read, pause_s=_RARE_S),
    Kind("reference table write", PRIMARY, _reference_write, pause_s=_RARE_S),
    Kind("cursor", PRIMARY, _cursor, pause_s=_RARE_S),
    Kind("DDL", PRIMARY, _ddl, pause_s=_DEAR_S),  # a table takes 1,600 columns in its life
    Kind("TRUNCATE", PRIMARY, _truncate, pause_s=_RARE_S),
    Kind("function", PRIMARY, _function, pause_s=_RARE_S),
    Kind("procedure", PRIMARY, _procedure, pause_s=_RARE_S),
    Kind("SELECT one shard", STANDBY, _select_one),
    Kind("SELECT all shards", STANDBY, _select_all),
    Kind("SELECT all, new session", STANDBY, _select_all, pause_s=_DEAR_S, anew=True),
    Kind("SELECT one shard", WORKER, _select_one),
    Kind("SELECT all shards", WORKER, _select_all, pause_s=_RARE_S),
    Kind("INSERT", WORKER, _insert),
    Kind("two workers", WORKER, _pair, pause_s=_RARE_S),
)
"""All of the traffic. The pauses bound it: two cores run it and all servers."""


class Client(threading.Thread):
    """A client of one machine, which runs one kind of statement until the end and adds to ``samples``."""

    def __init__(self, kind: Kind, machine: Machine, port: int, data: Data) -> None:
        super().__init__(daemon=True)
        self.kind = kind
        self.samples: list[Sample] = []
        self.ended = threading.Event()
        self._machine, self._port, self._data = machine, port, data
        self._session: Session | None = None

    def run(self) -> None:
        """Run statements until the end."""
        while not self.ended.is_set():
            begun_at, begun = time.time(), time.monotonic()
            error = self._step()
            sample = Sample(self.kind.side, self.kind.name, begun_at, time.monotonic() - begun, error)
            self.samples.append(sample)
            self.ended.wait(max(self.kind.pause_s, 0 if error is None else _AFTER_ERROR_S))
        self._close()

    def end(self) -> None:
        """Wait until it has ended; a statement that does not end is cancelled, and so fails."""
        self.ended.set()
        self.join(_PATIENCE_S)
        while self.is_alive():
            if (session := self._session) is not None:
                with contextlib.suppress(psycopg.Error):
                    session.cancel_safe(timeout=_PATIENCE_S)
            self.join(1)

    def _step(self) -> str | None:
        try:
            if self._session is None:
                self._session = self._connect()
            self.kind.run(self._session, self._data)
        except (psycopg.Error, WrongAnswerError) as error:
            if self._session is not None and self._session.closed:
                self._session = None
            return shown(error)
        finally:
            if self.kind.anew:
                self._close()
        return None

    def _connect(self) -> Session:
        return psycopg.connect(
            host=self._machine.address,
            port=self._port,
            user="postgres",
            dbname=DATABASE,
            connect_timeout=_CONNECT_S,
            options="-c citus.enable_repartition_joins=on",
            autocommit=True,
        )

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def shown(error: Exception) -> str:
    """Return an error's kind and text in a line, without the numbers that make each one another."""
    text = _NUMBERS.sub("N", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}"


@contextlib.contextmanager
def running(
    machines: dict[str, Machine], port: int, data: Data, *, kinds: Sequence[Kind] = KINDS
) -> Iterator[list[Client]]:
    """Run clients of these kinds; ``machines`` has whom they ask, by side. Sides without a machine have no clients."""
    run = [kind for kind in kinds if kind.side in machines for _ in range(kind.clients)]
    clients = [Client(kind, machines[kind.side], port, data) for kind in run]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.ended.set()
        for client in clients:
            client.end()


def errors(samples: Sequence[Sample]) -> list[tuple[str, str, str, int]]:
    """Return each distinct error with its side, kind and count, the most frequent first."""
    counted = collections.Counter((one.side, one.kind, one.error) for one in samples if one.error is not None)
    return [(side, kind, error, count) for (side, kind, error), count in counted.most_common()]


def wait_for_all(clients: Sequence[Client]) -> None:
    """Wait until each client has been answered well in something that it began after this call."""
    since = time.time()

    def unserved() -> list[str]:
        return [
            f"{one.kind.side}, {one.kind.name}: {[sample.error for sample in one.samples[-2:]]}"
            for one in clients
            if not any(sample.error is None and sample.begun_at > since for sample in one.samples[-20:])
        ]

    deadline = time.monotonic() + 60
    while words := unserved():
        assert time.monotonic() < deadline, words
        time.sleep(0.05)
