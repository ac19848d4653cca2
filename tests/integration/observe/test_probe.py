"""What a probe reports of one server: its role and identity, or its fault; and how the server is found."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from resolver_agent.config.model import Config, Node
from resolver_agent.demo.postgres import Postgres, Site
from resolver_agent.routing.observation import Identity, ProbeFailure, Role
from resolver_agent.system.clock import boottime
from tests.integration.conftest import ROLE
from tests.integration.support.machine import CHECKOUT
from tests.integration.support.sight import (
    END_SESSIONS,
    FAULTY,
    READY,
    ROW,
    STARTING_UP,
    TERMINATED,
    FakePostgres,
    Resolver,
    Sight,
    identity,
    in_loop,
    killed,
    newest,
    node_of,
    off_loop,
    paused,
    role,
    running_with,
    stopped,
    watching,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Load = Callable[..., Config]
    Fault = Callable[[Postgres], contextlib.AbstractContextManager[Mapping[str, Any]]]

TRUTH = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn,
       (SELECT system_identifier FROM pg_control_system()),
       (EXTRACT(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"""

# In a network of its own, where the other address does not answer ARP.
NO_ROUTE = """
ip link set lo up
ip link add near type veth peer name far
ip address add 192.0.2.1/24 dev near
ip link set near up
ip link set far up
echo 1 >/proc/sys/net/ipv4/neigh/near/mcast_solicit
echo 50 >/proc/sys/net/ipv4/neigh/near/retrans_time_ms
exec "$@"
"""
PROBE = """
import asyncio
from resolver_agent.observe.probe import Prober

seen = asyncio.run(Prober({"host": "192.0.2.2", "user": "nobody"}, timeout_s=5).connect())
print(seen.result.value, seen.detail, sep=": ")
"""


async def match(sight: Sight, server: Postgres, *, result: Role, timeline: int) -> None:
    """Wait until the observation equals the server's own report: even an idle server moves its LSN at times."""

    def lsn_seen() -> bool:
        [(lsn, *_)] = server.run_sql(TRUTH)
        return role(sight.state(node_of(server))).lsn == int(lsn)

    await sight.until(lsn_seen)
    seen = role(sight.state(node_of(server)))
    [(_, system_id, started_us)] = server.run_sql(TRUTH)
    assert seen.result is result
    assert seen.address == server.address
    assert (seen.timeline, seen.detail) == (timeline, "")
    assert seen.identity == Identity(system_id, started_us)


@pytest.mark.parametrize("postgres", [None, "embedded"], ids=["chosen", "embedded"])
@in_loop
async def test_a_role_with_login_alone_sees_a_pair_before_and_after_a_promotion(
    postgres: str | None, load: Load
) -> None:
    """Address, LSN, timeline and identity are right, and the first observation has the new timeline."""
    with Site(postgres=postgres) as site:
        primary, standby = (await off_loop(site.groups, {"wk1": ["127.0.9.1", "127.0.9.2"]}))["wk1"]
        primary.run_sql(f"CREATE ROLE {ROLE} LOGIN")
        standby.wait_for_replay(of=primary)
        config = load(primary, {"wk1": [primary.address, standby.address]}, port=site.port)
        async with watching(config) as sight:
            await sight.until(lambda: sight.monitor.asked_all)
            sight.monitor.refresh()
            await sight.until_result(node_of(primary), Role.PRIMARY)
            await match(sight, primary, result=Role.PRIMARY, timeline=1)
            await match(sight, standby, result=Role.STANDBY, timeline=1)
            assert identity(sight.monitor.local) == identity(sight.state(node_of(primary)))
            assert role(sight.monitor.local).address is None
            await off_loop(primary.kill)
            await sight.until_result(node_of(primary), ProbeFailure.DEAD)
            await off_loop(standby.promote)
            await sight.until_result(node_of(standby), Role.PRIMARY)
            timelines = {seen.timeline for whose, seen, _ in sight.record if whose == node_of(standby)}
            assert timelines == {1, 2}
            assert [seen.timeline for _, seen, _ in sight.record if seen.role is Role.PRIMARY][-1] == 2
            await match(sight, standby, result=Role.PRIMARY, timeline=2)


@contextlib.contextmanager
def without_slots(server: Postgres) -> Iterator[Mapping[str, Any]]:
    """Use up a server's connection slots."""
    with (
        contextlib.ExitStack() as sessions,
        running_with(server, max_connections="3", superuser_reserved_connections="0"),
    ):
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                sessions.enter_context(psycopg.connect(server.conninfo))
        yield {}


@contextlib.contextmanager
def starting_up(server: Postgres) -> Iterator[Mapping[str, Any]]:
    """Keep a server in its recovery."""
    with running_with(server, **STARTING_UP):
        yield {}


@contextlib.contextmanager
def cold_standby(server: Postgres) -> Iterator[Mapping[str, Any]]:
    """Run a server as a standby that accepts no sessions."""
    with running_with(server, until="consistent recovery state reached", hot_standby="off"):
        yield {}


def login(**keywords: str) -> Fault:
    """Use another login."""
    return lambda _: contextlib.nullcontext({"postgresql": {"user": ROLE, "dbname": "postgres"} | keywords})


def elsewhere(*hosts: str) -> Fault:
    """Use another address for the node."""
    return lambda _: contextlib.nullcontext({"hosts": list(hosts)})


def listening(serve: Callable[[socket.socket], None] | None) -> Fault:
    """Listen without being PostgreSQL, and handle each connection; with None do not even accept it."""

    @contextlib.contextmanager
    def listen(server: Postgres) -> Iterator[Mapping[str, Any]]:
        with socket.create_server((FAULTY, server.port)) as listener:

            def accept() -> None:
                with contextlib.suppress(OSError):
                    while serve is not None:
                        with listener.accept()[0] as connection:
                            serve(connection)

            thread = threading.Thread(target=accept)
            thread.start()
            yield {"hosts": [FAULTY]}
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

    return listen


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def talk_http(connection: socket.socket) -> None:
    """Answer like a web server."""
    connection.recv(1)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


FAULTS: dict[str, tuple[Fault, ProbeFailure, str]] = {
    "paused": (paused, ProbeFailure.UNREACHABLE, "no answer within 0.5 s"),
    "killed": (killed, ProbeFailure.DEAD, "Connection refused"),
    "stopped cleanly": (stopped, ProbeFailure.DEAD, "Connection refused"),
    "nothing listens": (elsewhere(FAULTY), ProbeFailure.DEAD, "Connection refused"),
    "no slot": (without_slots, ProbeFailure.REJECTING, "sorry, too many clients already"),
    "starting up": (starting_up, ProbeFailure.NOT_SERVING, "the database system is starting up"),
    "takes no sessions": (
        cold_standby,
        ProbeFailure.NOT_SERVING,
        "the database system is (not accepting connections DETAIL: Hot standby mode is disabled.|starting up)",  # < 14
    ),
    "wrong password": (
        login(user="locked", password="wrong"),  # noqa: S106 -- it is
        ProbeFailure.REJECTING,
        'password authentication failed for user "locked"',
    ),
    "no password": (login(user="locked"), ProbeFailure.REJECTING, "fe_sendauth: no password supplied"),
    "no pg_hba line": (
        login(user="alien"),
        ProbeFailure.REJECTING,
        'no pg_hba.conf entry for host "127.0.0.1", user "alien", database "postgres", (no encryption|SSL off)',  # < 14
    ),
    "no such database": (login(dbname="nowhere"), ProbeFailure.REJECTING, 'database "nowhere" does not exist'),
    "no privilege": (
        login(dbname="barred"),
        ProbeFailure.REJECTING,
        "permission denied for function pg_control_system",
    ),
    "no TLS": (login(sslmode="require"), ProbeFailure.REJECTING, "server does not support SSL, but SSL was required"),
    "accepts, says nothing": (listening(None), ProbeFailure.UNREACHABLE, "no answer within 0.5 s"),
    "accepts and closes": (listening(lambda _: None), ProbeFailure.DEAD, "server closed the connection unexpectedly"),
    "accepts and resets": (
        listening(reset),
        ProbeFailure.DEAD,
        ".*Connection reset by peer|server closed the connection unexpectedly",
    ),
    "no PostgreSQL": (listening(talk_http), ProbeFailure.REJECTING, "received invalid response to SSL negotiation: H"),
}


@pytest.mark.parametrize(("fault", "kind", "words"), FAULTS.values(), ids=FAULTS)
@in_loop
async def test_each_fault_has_its_kind_and_its_words(
    fault: Fault, kind: ProbeFailure, words: str, lone: Postgres, load: Load
) -> None:
    """Each fault has its own kind and message; only a server that is gone is dead."""
    with fault(lone) as settings:
        names = {"wk1": settings.get("hosts", [lone.address])}
        rest = {key: value for key, value in settings.items() if key != "hosts"}
        watched = load(lone, names, timeout="500ms" if kind is ProbeFailure.UNREACHABLE else "5s", **rest)
        async with watching(watched) as sight:
            [node] = sight.monitor.nodes
            await sight.until(lambda: sight.state(node).latest)
            state = sight.state(node)
    assert state.latest is not None
    assert (newest(state).result, bool(re.fullmatch(words, newest(state).detail))) == (kind, True), state.latest
    assert state.role_seen is None


@pytest.mark.parametrize("last_words", [b"", TERMINATED, ROW], ids=["nothing", "FATAL", "half an answer"])
@in_loop
async def test_a_server_that_hangs_up_on_a_probe_is_dead_at_once(last_words: bytes, lone: Postgres, load: Load) -> None:
    """A connection that ends during a probe is noticed at once, with or without a FATAL message."""
    config = load(lone, {"wk1": [FAULTY]}, interval="5s", timeout="5s")
    fake = FakePostgres(lone.port, lambda session: [ROW + READY, last_words] if session == 1 else [])
    async with fake.serving(), watching(config) as sight:
        node = Node(FAULTY, lone.port)
        await sight.until_result(node, Role.PRIMARY)
        began = boottime()
        sight.monitor.refresh()
        await sight.until_result(node, ProbeFailure.DEAD, ProbeFailure.REJECTING)
        assert sight.results(node) == [Role.PRIMARY, ProbeFailure.DEAD]
        assert boottime() - began < 2
        assert sight.state(node).seen_dead


@in_loop
async def test_a_server_that_hangs_up_once_and_lets_us_in_again_is_not_dead(lone: Postgres, load: Load) -> None:
    """One lost session is no evidence about the server, even during a probe."""
    config = load(lone, {"wk1": [FAULTY]}, interval="5s", timeout="5s")
    again = ROW.replace(b"00000007", b"00000008") + READY
    fake = FakePostgres(lone.port, lambda session: [ROW + READY, TERMINATED] if session == 1 else [again, None])
    async with fake.serving(), watching(config) as sight:
        node = Node(FAULTY, lone.port)
        await sight.until_result(node, Role.PRIMARY)
        sight.monitor.refresh()
        await sight.until(lambda: role(sight.state(node)).timeline == 8)
        assert sight.results(node) == [Role.PRIMARY]


@in_loop
async def test_a_node_by_dns_name_is_resolved_at_each_connect(lone: Postgres, load: Load) -> None:
    """The target is the address that was connected to: the first one of the name that answers."""
    resolver = Resolver(one=f"{FAULTY} {lone.address}")
    config = load(lone, {"wk1": ["one"]}, interval="5s")
    node = Node("one", lone.port)
    async with watching(config, getaddrinfo=resolver) as sight:
        await sight.until_result(node, Role.PRIMARY)
        assert role(sight.state(node)).address == lone.address
        resolver.known["one"] = FAULTY
        lone.run_sql(END_SESSIONS, [ROLE])
        await sight.until(lambda: newest(sight.state(node)).detail == "Connection refused")
        assert newest(sight.state(node)).result is ProbeFailure.DEAD
        del resolver.known["one"]
        await sight.until_result(node, ProbeFailure.UNREACHABLE)
        assert newest(sight.state(node)).detail == "one cannot be resolved: Name or service not known"


@in_loop
async def test_a_password_is_looked_up_by_the_name_as_configured(lone: Postgres, load: Load, tmp_path: Path) -> None:
    """The passfile entry of a node with a DNS name is under that name, not under its address."""
    passfile = tmp_path / "passfile"
    passfile.write_text(f"db.example:{lone.port}:postgres:locked:right\n")
    passfile.chmod(0o600)
    login = {"user": "locked", "dbname": "postgres", "passfile": str(passfile)}
    config = load(lone, {"wk1": ["db.example", lone.address]}, postgresql=login)
    async with watching(config, getaddrinfo=Resolver(**{"db.example": lone.address})) as sight:
        await sight.until(lambda: sight.monitor.asked_all)
        by_name, by_address = (newest(sight.state(node)) for node in sight.monitor.nodes)
        assert (by_name.result, by_name.detail) == (Role.PRIMARY, "")
        assert (by_address.result, by_address.detail) == (ProbeFailure.REJECTING, "fe_sendauth: no password supplied")


def certify(server: Postgres, name: str) -> tuple[str, str]:
    """Make a key for a server and a certificate signed with it, and return their paths."""
    key, certificate = str(server.folder / "tls.key"), str(server.folder / "tls.crt")
    options = ["-nodes", "-newkey", "rsa:2048", "-subj", f"/CN={name}", "-keyout", key, "-out", certificate]
    making = ["openssl", "req", "-x509", *options]
    subprocess.run(making, check=True, capture_output=True, **server.binaries.credentials)
    return key, certificate


@in_loop
async def test_a_certificate_is_held_against_the_name_as_configured(lone: Postgres, load: Load) -> None:
    """With verify-full a node's certificate must be for its configured DNS name."""
    key, certificate = certify(lone, "db.example")
    login = {"user": ROLE, "dbname": "postgres", "sslmode": "verify-full", "sslrootcert": certificate}
    config = load(lone, {"wk1": ["db.example", "other.example"]}, postgresql=login)
    resolver = Resolver(**{"db.example": lone.address, "other.example": lone.address})
    with running_with(lone, ssl="on", ssl_cert_file=certificate, ssl_key_file=key):
        async with watching(config, getaddrinfo=resolver) as sight:
            await sight.until(lambda: sight.monitor.asked_all)
            named, other = (newest(sight.state(node)) for node in sight.monitor.nodes)
    assert (named.result, named.detail) == (Role.PRIMARY, "")
    assert other.result is ProbeFailure.REJECTING
    assert other.detail == 'server certificate for "db.example" does not match host name "other.example"'


@in_loop
async def test_localhost_is_resolved_by_the_system(site: Site, load: Load) -> None:
    """A real lookup finds the server too."""
    server = await off_loop(site.primary, "local", "127.0.0.1")
    server.run_sql(f"CREATE ROLE {ROLE} LOGIN")
    async with watching(load(server, {"wk1": ["localhost"]})) as sight:
        state = await sight.until_result(Node("localhost", server.port), Role.PRIMARY)
        assert role(state).address == "127.0.0.1"
    await off_loop(server.kill)


@in_loop
async def test_ipv6(lone: Postgres, load: Load) -> None:
    """An IPv6 address works like any other, in every spelling."""
    with running_with(lone, listen_addresses="::1"):
        async with watching(load(lone, {"wk1": ["0:0::1"]})) as sight:
            [node] = sight.monitor.nodes
            state = await sight.until_result(node, Role.PRIMARY)
            assert role(state).address == "::1"


@in_loop
async def test_a_missing_socket_is_a_dead_local_server(lone: Postgres, load: Load, tmp_path: Path) -> None:
    """The local server is asked over its socket; without a socket there is no server."""
    config = load(lone, {"wk1": [lone.address]})
    async with watching(dataclasses.replace(config, local={**config.local, "host": str(tmp_path)})) as sight:
        await sight.until(lambda: sight.monitor.local.latest)
        assert newest(sight.monitor.local).result is ProbeFailure.DEAD
        assert newest(sight.monitor.local).detail == "No such file or directory"


def test_no_route_is_no_evidence_of_death() -> None:
    """Libpq has the same message for a host without a route and for a server that died."""
    command = ["unshare", "--net", "sh", "-ec", NO_ROUTE, "sh", sys.executable, "-c", PROBE]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.stdout == "unreachable: No route to host\n"
