"""Waiting rooms in front of a real PostgreSQL: queries, cancel requests, TLS and large COPYs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from resolver_agent.demo.postgres import SUPERUSER, Postgres, Site
from resolver_agent.queue.room import Rooms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOM = "127.77.3.1"
COPY_OUT = "COPY (SELECT i, md5(i::text), repeat('x', 50) FROM generate_series(1, 1200000) AS i) TO STDOUT"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that tests of this file share. No other one has its port: it listens on all addresses for a while."""
    with Site() as site:
        yield site.primary("room", "127.0.77.1")


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    """Rooms that are stopped after the test."""
    rooms = Rooms()
    yield rooms
    asyncio.run(rooms.stop(within_s=0))


@pytest.fixture
def forwarding(rooms: Rooms, server: Postgres) -> str:
    """A connection string that leads through a room to the server."""
    assert rooms.open("wk1", ROOM, server.port) is None
    rooms.forward("wk1", server.address, server.port)
    return through(server)


def through(server: Postgres) -> str:
    """Return the connection string of a superuser through the room."""
    return psycopg.conninfo.make_conninfo(
        "", host=ROOM, port=server.port, user=SUPERUSER, dbname="postgres", connect_timeout=30
    )


def connect(conninfo: str) -> psycopg.Connection:
    """Return a connection, for a thread to wait for."""
    return psycopg.connect(conninfo)


def cpu_s() -> float:
    """Return what the thread that forwards has used, in seconds."""
    [one] = [one for one in threading.enumerate() if one.name == "forwarder"]
    assert one.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(one.ident))


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def copy_out(conninfo: str) -> tuple[str, int, float]:
    """Return the hash of what a large COPY says, its size in bytes, and the seconds that it took."""
    said, size = hashlib.blake2b(), 0
    with psycopg.connect(conninfo) as connection, connection.cursor() as cursor:
        began = time.monotonic()
        with cursor.copy(COPY_OUT) as copy:
            for part in copy:
                said.update(part)
                size += len(part)
        return said.hexdigest(), size, time.monotonic() - began


def test_a_client_waits_for_its_server(rooms: Rooms, server: Postgres) -> None:
    """Clients that connect while the server is away are served by it when it is back, and none fails."""
    server.stop()
    assert rooms.open("wk1", ROOM, server.port) is None

    def ask(number: int) -> object:
        with psycopg.connect(through(server)) as connection:
            return connection.execute("SELECT %s::int", [number]).fetchone()

    with concurrent.futures.ThreadPoolExecutor(20) as clients:
        answers = clients.map(ask, range(20))
        until(lambda: rooms.state("wk1").waiting == 20)
        server.start()
        rooms.forward("wk1", server.address, server.port)
        assert list(answers) == [(number,) for number in range(20)]
    assert (rooms.state("wk1").forwarded, rooms.state("wk1").failed) == (20, 0)


def test_forwarded_before_the_server_is_there(rooms: Rooms, server: Postgres) -> None:
    """A server that is away is asked until it listens; what it says then is the client's, even that it starts up."""
    server.stop()
    assert rooms.open("wk1", ROOM, server.port) is None
    rooms.forward("wk1", server.address, server.port)
    with concurrent.futures.ThreadPoolExecutor() as clients:
        client = clients.submit(connect, through(server))
        until(lambda: bool(rooms._forwarder and rooms._forwarder._undialled))
        server.start()
        if (error := client.exception(30)) is None:
            client.result().close()
        else:
            assert "the database system is starting up" in str(error)
    assert (rooms.state("wk1").forwarded, rooms.state("wk1").failed) == (1, 0)


def test_the_server_may_have_the_address(rooms: Rooms, server: Postgres) -> None:
    """While it listens on all addresses there is no room; right after a close it can have them all again."""
    server.stop()
    server.start(listen_addresses="*")
    why_not = rooms.open("wk1", ROOM, server.port)
    assert why_not is not None
    assert "listen_addresses" in why_not
    server.stop()
    assert rooms.open("wk1", ROOM, server.port) is None
    with concurrent.futures.ThreadPoolExecutor() as clients:
        client = clients.submit(connect, through(server))
        until(lambda: rooms.state("wk1").waiting == 1)
        rooms.close_all()
        server.start(listen_addresses="*")
        with pytest.raises(psycopg.OperationalError, match=r"Connection reset|closed the connection"):
            client.result(30)
    server.stop()
    server.start()


def test_what_is_forwarded_outlives_the_room(rooms: Rooms, server: Postgres, forwarding: str) -> None:
    """A session goes on after all rooms are closed, until the server ends it, and then has the server's words."""
    with psycopg.connect(forwarding, autocommit=True) as connection:
        rooms.close_all()
        assert connection.execute("SELECT 1").fetchone() == (1,)
        server.run_sql("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")
        assert rooms.open("wk1", ROOM, server.port) is None


@pytest.mark.skipif(not psycopg.capabilities.has_cancel_safe(), reason="libpq is older than 17")
def test_a_cancel_request(server: Postgres, forwarding: str) -> None:
    """It goes through the room like any other connection."""
    with psycopg.connect(forwarding, autocommit=True) as connection:
        asleep = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s"
        with concurrent.futures.ThreadPoolExecutor() as clients:
            sleeping = clients.submit(connection.execute, "SELECT pg_sleep(30)")
            server.wait_until(asleep, [connection.info.backend_pid])
            connection.cancel_safe()  # the other kind keeps the forwarder, a thread of this process, from running
            with pytest.raises(psycopg.errors.QueryCanceled):
                sleeping.result(20)
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("certified", ["wk1.example", "other.example"])
def test_verify_full(server: Postgres, forwarding: str, certified: str) -> None:
    """TLS is between the client and the server: the certificate is the server's, for the name that the client uses."""
    key, certificate = str(server.folder / f"{certified}.key"), str(server.folder / f"{certified}.crt")
    options = ["-nodes", "-newkey", "rsa:2048", "-subj", f"/CN={certified}", "-keyout", key, "-out", certificate]
    making = ["openssl", "req", "-x509", *options]
    subprocess.run(making, check=True, capture_output=True, **server.binaries.credentials)
    server.stop()
    server.start(ssl="on", ssl_cert_file=certificate, ssl_key_file=key)
    secure = {"host": "wk1.example", "hostaddr": ROOM, "sslmode": "verify-full", "sslrootcert": certificate}
    conninfo = psycopg.conninfo.make_conninfo(forwarding, **secure)
    try:
        if certified == "other.example":
            with pytest.raises(psycopg.OperationalError, match="does not match host name"):
                psycopg.connect(conninfo)
        else:
            with psycopg.connect(conninfo) as connection:
                assert connection.pgconn.ssl_in_use
                assert connection.execute("SELECT length(repeat('x', 5000000))").fetchone() == (5_000_000,)
    finally:
        server.stop()
        server.start()


def test_copy_out(server: Postgres, forwarding: str) -> None:
    """More than 100 MB arrive as they were sent, for a small part of a core."""
    said, size, direct_s = copy_out(server.conninfo)
    before = cpu_s()
    *again, through_s = copy_out(forwarding)
    spent = cpu_s() - before
    assert again == [said, size]
    assert size > 100_000_000
    print(f"COPY out {size / 1e6:.0f} MB: direct {direct_s:.2f} s, through {through_s:.2f} s, {spent:.3f} s of CPU")
    assert spent < 1


def test_copy_in(server: Postgres, forwarding: str) -> None:
    """The same the other way; the rows are counted and hashed by the server."""
    line = b"0123456789abcdef" * 7 + b"\n"
    block, blocks = line * 1000, 1000
    server.run_sql("CREATE UNLOGGED TABLE arrived (one text)")
    took = []
    before = 0.0
    for conninfo in (server.conninfo, forwarding):
        server.run_sql("TRUNCATE arrived")
        before = cpu_s()
        with psycopg.connect(conninfo) as connection, connection.cursor() as cursor:
            began = time.monotonic()
            with cursor.copy("COPY arrived FROM STDIN") as copy:
                for _ in range(blocks):
                    copy.write(block)
            took.append(time.monotonic() - began)
        expected = (blocks * 1000, line.strip().decode(), line.strip().decode())
        assert server.run_sql("SELECT count(*), min(one), max(one) FROM arrived") == [expected]
    spent = cpu_s() - before
    size = len(block) * blocks
    server.run_sql("DROP TABLE arrived")
    print(f"COPY in {size / 1e6:.0f} MB: direct {took[0]:.2f} s, through {took[1]:.2f} s, {spent:.3f} s of CPU")
    assert size > 100_000_000
    assert spent < 1


def test_round_trips(server: Postgres, forwarding: str) -> None:
    """Small statements go through with little delay."""
    took = []
    for conninfo in (server.conninfo, forwarding):
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("SELECT 1", prepare=True)
            before = cpu_s()
            began = time.monotonic()
            for _ in range(2000):
                connection.execute("SELECT 1", prepare=True)
            took.append((time.monotonic() - began) / 2000)
    print(f"a round trip: direct {took[0] * 1e6:.0f} us, through {took[1] * 1e6:.0f} us", end="")
    print(f", {(cpu_s() - before) / 2000 * 1e6:.0f} us of CPU")
    assert took[1] < took[0] + 0.005
