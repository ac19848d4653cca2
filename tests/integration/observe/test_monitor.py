"""What the monitor sees of real servers: whole ones, changing ones, and everything that can be wrong with one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import itertools
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from resolver_agent.config.load import load as load_config
from resolver_agent.config.model import Config, Node
from resolver_agent.demo.postgres import Postgres, Site
from resolver_agent.observe.monitor import Monitor
from resolver_agent.routing.observation import Identity, Kind, NodeState, Observation
from resolver_agent.system.clock import boottime
from tests.integration.conftest import GONE, ROLE, Group
from tests.integration.support.machine import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from tests.integration.support.proxy import Proxy

    Load = Callable[..., Config]
    Fault = Callable[[Postgres], contextlib.AbstractContextManager[Mapping[str, Any]]]

FAULTY = "127.0.4.9"
"""Where listeners of the tests' own stand, on the servers' port."""

WHO = "SELECT pid FROM pg_stat_activity WHERE usename = %s ORDER BY pid"
END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
TRUTH = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn,
       (SELECT system_identifier FROM pg_control_system()),
       (EXTRACT(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"""

# In a network of its own, where nobody answers the question for the other address.
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
print(seen.kind.value, seen.detail, sep=": ")
"""

off_loop = asyncio.to_thread
"""Servers block: whatever is done to them while a monitor watches is done in a thread."""


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own, and see to it that it leaves no task behind."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def guarded() -> None:
            await asyncio.wait_for(test(*args, **kwargs), 60)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(guarded())

    return run


class Sight:
    """A monitor, with a record of what it saw."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.record: list[tuple[Node, Observation, float]] = []
        """In order: which node, what was seen of it for the first time, and when that was known."""
        self._known: dict[Node, Observation] = {}

    def state(self, node: Node) -> NodeState:
        """Return what is known of a node now."""
        return self.monitor.nodes[node]

    def kinds(self, node: Node) -> list[Kind]:
        """Return what kinds of observation there were of a node, in order."""
        return [kind for kind, _ in itertools.groupby(seen.kind for whose, seen, _ in self.record if whose == node)]

    async def until(self, condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
        """Wait until a condition holds. What it asks for may be no news, so there is nothing to wait for but time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "\n".join(["not in time; seen:", *map(str, self.record)])
            await asyncio.sleep(0.001)
        self.note()

    async def until_kind(self, node: Node, *kinds: Kind) -> NodeState:
        """Wait until the newest observation of a node is of one of these kinds, and return what is known of it."""

        def seen() -> bool:
            latest = self.state(node).latest
            return latest is not None and latest.kind in kinds

        await self.until(seen)
        return self.state(node)

    async def probes(self, node: Node, *, for_s: float) -> list[float]:
        """Return when every probe of a node was begun that was answered within the next seconds."""
        found: dict[float, None] = {}
        until = boottime() + for_s
        while boottime() < until:
            latest = self.state(node).latest
            if latest is not None:
                found[latest.at] = None
            await asyncio.sleep(0.001)
        return list(found)

    async def keep_record(self) -> None:
        """Record news as they come."""
        while True:
            await self.monitor.changed.wait()
            self.monitor.changed.clear()
            self.note()

    def note(self) -> None:
        """Record what is new."""
        self.monitor.check()
        for node, state in self.monitor.nodes.items():
            latest, known = state.latest, self._known.get(node)
            if latest is not None and (known is None or (latest.kind, latest.detail) != (known.kind, known.detail)):
                self.record.append((node, latest, boottime()))
            if latest is not None:
                self._known[node] = latest


@contextlib.asynccontextmanager
async def watching(settings: Config, **parts: Any) -> AsyncIterator[Sight]:
    """Watch what a configuration names."""
    sight = Sight(Monitor(**parts))
    recording = asyncio.ensure_future(sight.keep_record())
    try:
        sight.monitor.watch(settings)
        yield sight
    finally:
        recording.cancel()
        await sight.monitor.close()


@pytest.fixture
def load(write_config: Callable[..., Path]) -> Load:
    """Make a configuration: ``load(local_server, {name: [host, …]}, **settings)``."""

    def load(server: Postgres, /, names: Mapping[str, list[str]], **settings: Any) -> Config:
        nodes = {"names": {name: {"nodes": hosts} for name, hosts in names.items()}}
        return load_config(str(write_config(server, {}, **(nodes | settings))))

    return load


@pytest.fixture(scope="module")
def lone(site: Site) -> Iterator[Postgres]:
    """A server that tests may configure as they like, if they undo it. Its database ``barred`` refuses probes."""
    server = site.primary("lone", "127.0.4.1", config="password_encryption = 'scram-sha-256'\n")
    server.run_sql(f"CREATE ROLE {ROLE} LOGIN; CREATE ROLE locked LOGIN PASSWORD 'right'; CREATE ROLE alien LOGIN")
    server.run_sql("CREATE DATABASE barred")
    server.run_sql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC", dbname="barred")
    (server.data / "pg_hba.conf").write_text(
        f"local all,replication all trust\nhost all locked all scram-sha-256\nhost all {ROLE},postgres all trust\n"
    )
    server.reload()
    yield server
    server.kill()


def newest(state: NodeState) -> Observation:
    """Return the latest observation, of which there must be one."""
    latest = state.latest
    assert latest is not None
    return latest


def role(state: NodeState) -> Observation:
    """Return the latest observation of a role, of which there must be one."""
    seen = state.role_seen
    assert seen is not None
    return seen


def identity(state: NodeState) -> Identity:
    """Return which server was seen."""
    found = role(state)
    assert found.identity is not None
    return found.identity


def node_of(server: Postgres) -> Node:
    """Return the node that a server is."""
    return Node(server.address, server.port)


def ours(server: Postgres) -> list[int]:
    """Return the process ids of the agent's sessions on a server."""
    return [pid for (pid,) in server.run_sql(WHO, [ROLE])]


async def match(sight: Sight, server: Postgres, *, kind: Kind, timeline: int) -> None:
    """Wait until the server's own word is seen of it: now and then an idle server moves its LSN, too."""

    def lsn_seen() -> bool:
        [(lsn, *_)] = server.run_sql(TRUTH)
        return role(sight.state(node_of(server))).lsn == int(lsn)

    await sight.until(lsn_seen)
    seen = role(sight.state(node_of(server)))
    [(_, system_id, started_us)] = server.run_sql(TRUTH)
    assert seen.kind is kind
    assert seen.address == server.address
    assert (seen.timeline, seen.detail) == (timeline, "")
    assert seen.identity == Identity(system_id, started_us)


@pytest.mark.parametrize("postgres", ["system", "embedded"])
@in_loop
async def test_a_role_with_login_alone_sees_a_pair_before_and_after_a_promotion(postgres: str, load: Load) -> None:
    """Address, LSN, timeline and identity are right, and the timeline is the new one from the first sight of it."""
    with Site(postgres=postgres) as site:
        primary, standby = (await off_loop(site.groups, {"wk1": ["127.0.9.1", "127.0.9.2"]}))["wk1"]
        primary.run_sql(f"CREATE ROLE {ROLE} LOGIN")
        standby.wait_for_replay(of=primary)
        settings = load(primary, {"wk1": [primary.address, standby.address]}, port=site.port)
        async with watching(settings) as sight:
            await sight.until(lambda: sight.monitor.asked_all)
            sight.monitor.refresh()
            await sight.until_kind(node_of(primary), Kind.PRIMARY)
            await match(sight, primary, kind=Kind.PRIMARY, timeline=1)
            await match(sight, standby, kind=Kind.STANDBY, timeline=1)
            assert identity(sight.monitor.local) == identity(sight.state(node_of(primary)))
            assert role(sight.monitor.local).address is None
            await off_loop(primary.kill)
            await sight.until_kind(node_of(primary), Kind.DEAD)
            await off_loop(standby.promote)
            await sight.until_kind(node_of(standby), Kind.PRIMARY)
            timelines = {seen.timeline for whose, seen, _ in sight.record if whose == node_of(standby)}
            assert timelines == {1, 2}
            assert [seen.timeline for _, seen, _ in sight.record if seen.kind is Kind.PRIMARY][-1] == 2
            await match(sight, standby, kind=Kind.PRIMARY, timeline=2)


@contextlib.contextmanager
def running_with(server: Postgres, *, until: str = "", **parameters: str) -> Iterator[None]:
    """Run a server with other parameters for a while; given a line of its log, as a standby that got so far."""
    mark = server.data / "standby.signal"
    server.stop()
    said_before = server.log.stat().st_size
    if until:
        mark.touch()
    try:
        server.start(wait=not until, **parameters)
        deadline = time.monotonic() + 10
        while until.encode() not in server.log.read_bytes()[said_before:]:
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.005)
        yield
    finally:
        server.kill()
        mark.unlink(missing_ok=True)
        server.start()


STARTING_UP = {"until": "listening on Unix socket", "restore_command": "sleep 60"}


@contextlib.contextmanager
def stopped(server: Postgres) -> Iterator[Mapping[str, Any]]:
    """Stop a server cleanly."""
    server.stop()
    yield {}
    server.start()


@contextlib.contextmanager
def killed(server: Postgres) -> Iterator[Mapping[str, Any]]:
    """Kill a server."""
    server.kill()
    yield {}
    server.start()


@contextlib.contextmanager
def paused(server: Postgres) -> Iterator[Mapping[str, Any]]:
    """Stop a server in its tracks."""
    server.pause()
    yield {}
    server.resume()


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
    """Keep a server from getting on with its recovery."""
    with running_with(server, **STARTING_UP):
        yield {}


@contextlib.contextmanager
def cold_standby(server: Postgres) -> Iterator[Mapping[str, Any]]:
    """Run a server as a standby that takes no sessions."""
    with running_with(server, until="consistent recovery state reached", hot_standby="off"):
        yield {}


def login(**keywords: str) -> Fault:
    """Log in otherwise."""
    return lambda _: contextlib.nullcontext({"postgresql": {"user": ROLE, "dbname": "postgres"} | keywords})


def elsewhere(*hosts: str) -> Fault:
    """Have the node somewhere else."""
    return lambda _: contextlib.nullcontext({"hosts": list(hosts)})


def listening(serve: Callable[[socket.socket], None] | None) -> Fault:
    """Listen without being PostgreSQL, and do something with each connection; with None not even accept it."""

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
    """Make the end of a connection a reset."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def talk_http(connection: socket.socket) -> None:
    """Answer as a web server does."""
    connection.recv(1)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


FAULTS: dict[str, tuple[Fault, Kind, str]] = {
    "paused": (paused, Kind.UNREACHABLE, "no answer within 0.5 s"),
    "killed": (killed, Kind.DEAD, "Connection refused"),
    "stopped cleanly": (stopped, Kind.DEAD, "Connection refused"),
    "nothing listens": (elsewhere(FAULTY), Kind.DEAD, "Connection refused"),
    "no slot": (without_slots, Kind.BARRED, "sorry, too many clients already"),
    "starting up": (starting_up, Kind.BARRED, "the database system is starting up"),
    "takes no sessions": (
        cold_standby,
        Kind.BARRED,
        "the database system is not accepting connections DETAIL: Hot standby mode is disabled.",
    ),
    "wrong password": (
        login(user="locked", password="wrong"),  # noqa: S106 -- it is
        Kind.BARRED,
        'password authentication failed for user "locked"',
    ),
    "no password": (login(user="locked"), Kind.BARRED, "fe_sendauth: no password supplied"),
    "no pg_hba line": (
        login(user="alien"),
        Kind.BARRED,
        'no pg_hba.conf entry for host "127.0.0.1", user "alien", database "postgres", no encryption',
    ),
    "no such database": (login(dbname="nowhere"), Kind.BARRED, 'database "nowhere" does not exist'),
    "no privilege": (login(dbname="barred"), Kind.BARRED, "permission denied for function pg_control_system"),
    "no TLS": (login(sslmode="require"), Kind.BARRED, "server does not support SSL, but SSL was required"),
    "accepts, says nothing": (listening(None), Kind.UNREACHABLE, "no answer within 0.5 s"),
    "accepts and closes": (listening(lambda _: None), Kind.DEAD, "server closed the connection unexpectedly"),
    "accepts and resets": (
        listening(reset),
        Kind.DEAD,
        ".*Connection reset by peer|server closed the connection unexpectedly",
    ),
    "no PostgreSQL": (listening(talk_http), Kind.BARRED, "received invalid response to SSL negotiation: H"),
}


@pytest.mark.parametrize(("fault", "kind", "words"), FAULTS.values(), ids=FAULTS)
@in_loop
async def test_each_fault_has_its_kind_and_its_words(
    fault: Fault, kind: Kind, words: str, lone: Postgres, load: Load
) -> None:
    """What is wrong with a server is told apart; only a server that is gone is called dead."""
    with fault(lone) as settings:
        names = {"wk1": settings.get("hosts", [lone.address])}
        rest = {key: value for key, value in settings.items() if key != "hosts"}
        watched = load(lone, names, timeout="500ms" if kind is Kind.UNREACHABLE else "5s", **rest)
        async with watching(watched) as sight:
            [node] = sight.monitor.nodes
            await sight.until(lambda: sight.state(node).latest)
            state = sight.state(node)
    assert state.latest is not None
    assert (newest(state).kind, bool(re.fullmatch(words, newest(state).detail))) == (kind, True), state.latest
    assert state.role_seen is None


def message(kind: bytes, body: bytes) -> bytes:
    """Return a message of PostgreSQL's protocol."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


READY = message(b"Z", b"I")
VALUES = [b"f", b"42", b"00000007", b"1", b"2"]
ROW = (
    message(b"T", b"\0\5" + b"".join(b"c\0" + bytes(6) + b"\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0" for _ in VALUES))
    + message(b"D", b"\0\5" + b"".join(len(value).to_bytes(4, "big") + value for value in VALUES))
    + message(b"C", b"SELECT 1\0")
)
TERMINATED = message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0")


class FakePostgres:
    """Lets everybody in, and answers the queries of each session by its number as the script has it, then hangs up.

    An answer of None is silence until the client ends the session.
    """

    def __init__(self, port: int, script: Callable[[int], Sequence[bytes | None]]) -> None:
        self.sessions = 0
        self._serving: list[asyncio.Future[None]] = []
        self._port = port
        self._script = script

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """Listen on ``FAULTY``."""
        async with await asyncio.start_server(self._serve, FAULTY, self._port):
            yield self
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.append(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while (await self._read(reader))[:4] != b"\0\3\0\0":
                writer.write(b"N")
            writer.write(message(b"R", bytes(4)) + message(b"S", b"client_encoding\0UTF8\0") + READY)
            self.sessions += 1
            for answer in self._script(self.sessions):
                await reader.readexactly(1)
                await self._read(reader)
                writer.write(await reader.read() if answer is None else answer)
                await writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)


@pytest.mark.parametrize("last_words", [b"", TERMINATED, ROW], ids=["nothing", "FATAL", "half an answer"])
@in_loop
async def test_a_server_that_hangs_up_on_a_probe_is_dead_at_once(last_words: bytes, lone: Postgres, load: Load) -> None:
    """A connection that ends while a probe is in flight is noticed at once, with or without a farewell."""
    settings = load(lone, {"wk1": [FAULTY]}, interval="5s", timeout="5s")
    fake = FakePostgres(lone.port, lambda session: [ROW + READY, last_words] if session == 1 else [])
    async with fake.serving(), watching(settings) as sight:
        node = Node(FAULTY, lone.port)
        await sight.until_kind(node, Kind.PRIMARY)
        began = boottime()
        sight.monitor.refresh()
        await sight.until_kind(node, Kind.DEAD, Kind.BARRED)
        assert sight.kinds(node) == [Kind.PRIMARY, Kind.DEAD]
        assert boottime() - began < 2
        assert sight.state(node).over


@in_loop
async def test_a_server_that_hangs_up_once_and_lets_us_in_again_is_not_dead(lone: Postgres, load: Load) -> None:
    """One lost session says nothing of the server, also where a probe was in flight."""
    settings = load(lone, {"wk1": [FAULTY]}, interval="5s", timeout="5s")
    again = ROW.replace(b"00000007", b"00000008") + READY
    fake = FakePostgres(lone.port, lambda session: [ROW + READY, TERMINATED] if session == 1 else [again, None])
    async with fake.serving(), watching(settings) as sight:
        node = Node(FAULTY, lone.port)
        await sight.until_kind(node, Kind.PRIMARY)
        sight.monitor.refresh()
        await sight.until(lambda: role(sight.state(node)).timeline == 8)
        assert sight.kinds(node) == [Kind.PRIMARY]


class Resolver:
    """Stands in for ``socket.getaddrinfo``: knows some names, and never answers for others."""

    def __init__(self, **known: str) -> None:
        self.known = known
        self.never = threading.Event()

    def __call__(self, host: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        """Return what ``socket.getaddrinfo`` would."""
        if host.startswith("hanging"):
            self.never.wait()
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self.known[host].split()]


@in_loop
async def test_a_node_that_hangs_delays_no_other(
    cluster: dict[str, Group], lone: Postgres, load: Load, start_proxy: Callable[[str, Postgres], Proxy]
) -> None:
    """While others hang in every way, the observations of a sound node keep coming, and files can be written."""
    sound, paused_later = cluster["wk1"].primary, cluster["wk2"].primary
    frozen = start_proxy("127.0.8.1", cluster["wk2"].standby)
    names = {
        "sound": [sound.address, cluster["wk1"].standby.address],
        "paused": [paused_later.address],
        "frozen": [frozen.address],
        "half": [FAULTY],
        **{f"dns{i}": [f"hanging{i}.example"] for i in range(20)},
    }
    resolver = Resolver()
    settings = load(sound, names, interval="50ms", timeout="2s")
    fake = FakePostgres(lone.port, lambda session: [ROW + READY if session == 1 else ROW, None])
    async with fake.serving(), watching(settings, getaddrinfo=resolver) as sight:
        hanging = [Node(host, sound.port) for host in (paused_later.address, frozen.address, FAULTY)]
        for node in (node_of(sound), *hanging[:2]):
            await sight.until_kind(node, Kind.PRIMARY, Kind.STANDBY)
        frozen.freeze()
        await off_loop(paused_later.pause)
        begun = await sight.probes(node_of(sound), for_s=2.5)
        assert max(later - earlier for earlier, later in itertools.pairwise(begun)) < 1
        for node in (*hanging, Node("hanging0.example", sound.port)):
            await sight.until_kind(node, Kind.UNREACHABLE)
            assert newest(sight.state(node)).detail == "no answer within 2 s"
            assert not sight.state(node).over
        await asyncio.wait_for(off_loop(boottime), 5)  # the threads that files are written in are free
        resolver.never.set()


@in_loop
async def test_half_an_answer_blocks_nothing(lone: Postgres, load: Load) -> None:
    """A server that stops in the middle of an answer delays no other, and is unreachable after the timeout."""
    settings = load(lone, {"half": [FAULTY], "sound": [lone.address]}, interval="50ms", timeout="2s")
    async with FakePostgres(lone.port, lambda _: [ROW, None]).serving(), watching(settings) as sight:
        begun = await sight.probes(node_of(lone), for_s=1.8)
        assert max(later - earlier for earlier, later in itertools.pairwise(begun)) < 1
        state = await sight.until_kind(Node(FAULTY, lone.port), Kind.UNREACHABLE)
        assert state.role_seen is None


@in_loop
async def test_a_node_by_dns_name_is_resolved_at_each_connect(lone: Postgres, load: Load) -> None:
    """The target is the address that was connected to, the first of the name's that answers."""
    resolver = Resolver(one=f"{FAULTY} {lone.address}")
    settings = load(lone, {"wk1": ["one"]}, interval="5s")
    node = Node("one", lone.port)
    async with watching(settings, getaddrinfo=resolver) as sight:
        await sight.until_kind(node, Kind.PRIMARY)
        assert role(sight.state(node)).address == lone.address
        resolver.known["one"] = FAULTY
        lone.run_sql(END_SESSIONS, [ROLE])
        await sight.until(lambda: newest(sight.state(node)).detail == "Connection refused")
        assert newest(sight.state(node)).kind is Kind.DEAD
        del resolver.known["one"]
        await sight.until_kind(node, Kind.UNREACHABLE)
        assert newest(sight.state(node)).detail == "one cannot be resolved: Name or service not known"


@in_loop
async def test_a_password_is_looked_up_by_the_name_as_configured(lone: Postgres, load: Load, tmp_path: Path) -> None:
    """A node that is given by a DNS name has its line in the passfile under that name, not under its address."""
    passfile = tmp_path / "passfile"
    passfile.write_text(f"db.example:{lone.port}:postgres:locked:right\n")
    passfile.chmod(0o600)
    login = {"user": "locked", "dbname": "postgres", "passfile": str(passfile)}
    settings = load(lone, {"wk1": ["db.example", lone.address]}, postgresql=login)
    async with watching(settings, getaddrinfo=Resolver(**{"db.example": lone.address})) as sight:
        await sight.until(lambda: sight.monitor.asked_all)
        by_name, by_address = (newest(sight.state(node)) for node in sight.monitor.nodes)
        assert (by_name.kind, by_name.detail) == (Kind.PRIMARY, "")
        assert (by_address.kind, by_address.detail) == (Kind.BARRED, "fe_sendauth: no password supplied")


def certify(server: Postgres, name: str) -> tuple[str, str]:
    """Make a key for a server and a certificate signed with it, and return their paths."""
    key, certificate = str(server.folder / "tls.key"), str(server.folder / "tls.crt")
    options = ["-nodes", "-newkey", "rsa:2048", "-subj", f"/CN={name}", "-keyout", key, "-out", certificate]
    making = ["openssl", "req", "-x509", *options]
    subprocess.run(making, check=True, capture_output=True, **server.binaries.credentials)
    return key, certificate


@in_loop
async def test_a_certificate_is_held_against_the_name_as_configured(lone: Postgres, load: Load) -> None:
    """With verify-full a node's certificate has to be for the DNS name that the node is given by."""
    key, certificate = certify(lone, "db.example")
    login = {"user": ROLE, "dbname": "postgres", "sslmode": "verify-full", "sslrootcert": certificate}
    settings = load(lone, {"wk1": ["db.example", "other.example"]}, postgresql=login)
    resolver = Resolver(**{"db.example": lone.address, "other.example": lone.address})
    with running_with(lone, ssl="on", ssl_cert_file=certificate, ssl_key_file=key):
        async with watching(settings, getaddrinfo=resolver) as sight:
            await sight.until(lambda: sight.monitor.asked_all)
            named, other = (newest(sight.state(node)) for node in sight.monitor.nodes)
    assert (named.kind, named.detail) == (Kind.PRIMARY, "")
    assert other.kind is Kind.BARRED
    assert other.detail == 'server certificate for "db.example" does not match host name "other.example"'


@in_loop
async def test_localhost_is_resolved_by_the_system(site: Site, load: Load) -> None:
    """A real look-up leads to the server too."""
    server = await off_loop(site.primary, "local", "127.0.0.1")
    server.run_sql(f"CREATE ROLE {ROLE} LOGIN")
    async with watching(load(server, {"wk1": ["localhost"]})) as sight:
        state = await sight.until_kind(Node("localhost", server.port), Kind.PRIMARY)
        assert role(state).address == "127.0.0.1"
    await off_loop(server.kill)


@in_loop
async def test_ipv6(lone: Postgres, load: Load) -> None:
    """An IPv6 address is a node like any other, however it is written."""
    with running_with(lone, listen_addresses="::1"):
        async with watching(load(lone, {"wk1": ["0:0::1"]})) as sight:
            [node] = sight.monitor.nodes
            state = await sight.until_kind(node, Kind.PRIMARY)
            assert role(state).address == "::1"


@in_loop
async def test_a_missing_socket_is_a_dead_local_server(lone: Postgres, load: Load, tmp_path: Path) -> None:
    """The local server is asked over its socket; without one there is no server."""
    settings = load(lone, {"wk1": [lone.address]})
    async with watching(dataclasses.replace(settings, local={**settings.local, "host": str(tmp_path)})) as sight:
        await sight.until(lambda: sight.monitor.local.latest)
        assert newest(sight.monitor.local).kind is Kind.DEAD
        assert newest(sight.monitor.local).detail == "No such file or directory"


@in_loop
async def test_the_local_server_is_asked_every_tenth_of_a_second(lone: Postgres, load: Load) -> None:
    """Its own role is the one an agent has to know soonest."""
    async with watching(load(lone, {"wk1": [lone.address]}, interval="2s")) as sight:
        await sight.until(lambda: sight.monitor.asked_all)
        asked = {newest(sight.monitor.local).at}
        until = boottime() + 1
        while boottime() < until:
            await asyncio.sleep(0.005)
            asked.add(newest(sight.monitor.local).at)
        assert 4 <= len(asked) <= 12


@in_loop
async def test_an_ended_session_is_no_dead_server(lone: Postgres, load: Load) -> None:
    """Somebody ended the agent's session: it is back at once, and nobody was dead in between."""
    async with watching(load(lone, {"wk1": [lone.address]}, interval="10s")) as sight:
        first = await sight.until_kind(node_of(lone), Kind.PRIMARY)
        for _ in range(5):
            before = await off_loop(ours, lone)
            ended = boottime()
            await off_loop(lone.run_sql, END_SESSIONS, [ROLE])
            await sight.until(lambda: newest(sight.state(node_of(lone))).at > ended)  # noqa: B023 -- it waits here
            assert boottime() - ended < 1
            await off_loop(lone.wait_until, GONE, [before])
        assert sight.kinds(node_of(lone)) == [Kind.PRIMARY]
        assert sight.state(node_of(lone)).same_since == first.same_since


@pytest.mark.parametrize(
    ("bar", "unbar", "words"),
    [
        (f"ALTER ROLE {ROLE} NOLOGIN", f"ALTER ROLE {ROLE} LOGIN", f'role "{ROLE}" is not permitted to log in'),
        (
            f"ALTER ROLE {ROLE} CONNECTION LIMIT 0",
            f"ALTER ROLE {ROLE} CONNECTION LIMIT -1",
            f'too many connections for role "{ROLE}"',
        ),
    ],
    ids=["28000", "53300"],
)
@in_loop
async def test_a_server_that_ends_the_session_and_then_bars_us_lives(
    bar: str, unbar: str, words: str, lone: Postgres, load: Load
) -> None:
    """Failing to log in is not down (R1), also right after a lost session: whoever says no is there."""
    async with watching(load(lone, {"wk1": [lone.address]})) as sight:
        await sight.until_kind(node_of(lone), Kind.PRIMARY)
        lone.run_sql(bar)
        lone.run_sql(END_SESSIONS, [ROLE])
        await sight.until_kind(node_of(lone), Kind.BARRED, Kind.DEAD)
        await sight.probes(node_of(lone), for_s=0.2)
        state = sight.state(node_of(lone))
        lone.run_sql(unbar)
        assert (newest(state).kind, newest(state).detail) == (Kind.BARRED, words)
        assert not state.over
        assert sight.kinds(node_of(lone)) == [Kind.PRIMARY, Kind.BARRED]
        await sight.until_kind(node_of(lone), Kind.PRIMARY)


@pytest.mark.parametrize(
    "lose",
    [Postgres.kill, Postgres.stop, functools.partial(Postgres.stop, mode="immediate")],
    ids=["killed", "stopped", "crashed"],
)
@in_loop
async def test_a_lost_standby_is_dead_within_tens_of_milliseconds(
    lose: Callable[[Postgres], None], cluster: dict[str, Group], load: Load
) -> None:
    """The kernel says so; nobody waits for the next probe."""
    standby = cluster["wk1"].standby
    names = {"wk1": [node.address for node in cluster["wk1"].nodes]}
    async with watching(load(standby, names, interval="10s")) as sight:
        await sight.until_kind(node_of(standby), Kind.STANDBY)
        await off_loop(lose, standby)
        gone = boottime()
        await sight.until_kind(node_of(standby), Kind.DEAD)
        [known, *_] = [at for node, seen, at in sight.record if (node, seen.kind) == (node_of(standby), Kind.DEAD)]
        assert known - gone < 0.1
        assert sight.kinds(node_of(standby))[:2] == [Kind.STANDBY, Kind.DEAD]
        assert sight.state(node_of(standby)).over


@in_loop
async def test_a_server_that_is_shutting_down_is_dead(lone: Postgres, load: Load) -> None:
    """It closed its sessions and takes no more, though it still answers: that is a closed server, not a barred one."""
    async with watching(load(lone, {"wk1": [lone.address]}, interval="10s")) as sight:
        await sight.until_kind(node_of(lone), Kind.PRIMARY)
        with running_with(lone, **STARTING_UP):
            state = await sight.until_kind(node_of(lone), Kind.DEAD)
            assert state.over
        await sight.until_kind(node_of(lone), Kind.PRIMARY)


@in_loop
async def test_a_paused_server_counts_until_it_expires_and_again_when_it_goes_on(
    cluster: dict[str, Group], load: Load
) -> None:
    """Silence is no evidence: the last observation stands for ``interval`` + ``timeout``, and nobody is called dead."""
    server = cluster["wk1"].primary
    async with watching(
        load(cluster["cn"].primary, {"wk1": [server.address]}, interval="200ms", timeout="1s")
    ) as sight:
        first = await sight.until_kind(node_of(server), Kind.PRIMARY)
        await sight.until(lambda: role(sight.state(node_of(server))).at - role(first).at >= 0.2)  # so no probe is on
        await off_loop(server.pause)
        state = await sight.until_kind(node_of(server), Kind.UNREACHABLE)
        assert role(state).kind is Kind.PRIMARY
        assert state.fresh(now=role(state).at + 1.199, max_age_s=1.2) is state.role_seen
        assert state.fresh(now=boottime(), max_age_s=1.2) is None
        await off_loop(server.resume)
        state = await sight.until_kind(node_of(server), Kind.PRIMARY)
        assert state.fresh(now=boottime(), max_age_s=1.2) is state.latest
        assert state.same_since == first.same_since
        assert Kind.DEAD not in sight.kinds(node_of(server))


@in_loop
async def test_cut_connections_are_reopened_and_a_frozen_network_is_no_death(
    cluster: dict[str, Group], load: Load, start_proxy: Callable[[str, Postgres], Proxy]
) -> None:
    """What happens to the network is told from what happens to the server."""
    server = cluster["wk1"].primary
    proxy = start_proxy("127.0.8.1", server)
    node = Node(proxy.address, proxy.port)
    async with watching(
        load(cluster["cn"].primary, {"wk1": [proxy.address]}, interval="10s", timeout="500ms")
    ) as sight:
        await sight.until_kind(node, Kind.PRIMARY)
        sessions = await off_loop(ours, server)
        proxy.cut()
        while (now := await off_loop(ours, server)) == sessions or not now:
            await sight.probes(node, for_s=0.01)
        assert sight.kinds(node) == [Kind.PRIMARY]
        proxy.freeze()
        sight.monitor.refresh()
        await sight.until_kind(node, Kind.UNREACHABLE)
        proxy.thaw()
        await sight.until_kind(node, Kind.PRIMARY)
        proxy.stop()
        await sight.until_kind(node, Kind.DEAD)


def test_no_route_is_no_evidence_of_death() -> None:
    """Of a host that cannot be reached libpq says what it says of a server that died."""
    command = ["unshare", "--net", "sh", "-ec", NO_ROUTE, "sh", sys.executable, "-c", PROBE]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.stdout == "unreachable: No route to host\n"


@in_loop
async def test_a_restart_is_another_server_with_the_same_data(lone: Postgres, load: Load) -> None:
    """The start time tells runs of one server apart, the system identifier tells servers apart."""
    async with watching(load(lone, {"wk1": [lone.address]}, interval="5s")) as sight:
        before = await sight.until_kind(node_of(lone), Kind.PRIMARY)
        await off_loop(lone.stop)
        await sight.until_kind(node_of(lone), Kind.DEAD)
        await off_loop(lone.start)
        after = await sight.until_kind(node_of(lone), Kind.PRIMARY)
        assert identity(after).system_id == identity(before).system_id
        assert identity(after).started_us > identity(before).started_us
        assert after.same_since > before.same_since


@in_loop
async def test_a_loss_and_a_role_change_make_the_whole_group_be_asked(cluster: dict[str, Group], load: Load) -> None:
    """News of one node is a reason to ask the others now, and a refresh to ask everybody."""
    primary, standby = cluster["wk1"].primary, cluster["wk1"].standby
    names = {"wk1": [primary.address, standby.address], "wk2": [cluster["wk2"].primary.address]}
    async with watching(load(primary, names, interval="20s")) as sight:
        await sight.until(lambda: sight.monitor.asked_all)
        await sight.probes(node_of(primary), for_s=0.2)
        assert len(await sight.probes(node_of(primary), for_s=0.4)) == 1  # settled
        before = newest(sight.state(node_of(primary))).at
        other = newest(sight.state(node_of(cluster["wk2"].primary))).at
        await off_loop(standby.run_sql, END_SESSIONS, [ROLE])
        await sight.until(lambda: newest(sight.state(node_of(primary))).at > before)
        assert newest(sight.state(node_of(cluster["wk2"].primary))).at == other
        await sight.probes(node_of(standby), for_s=0.4)  # settled again
        await off_loop(standby.promote)
        assert newest(sight.state(node_of(standby))).kind is Kind.STANDBY
        asked = asyncio.ensure_future(sight.probes(node_of(primary), for_s=2))
        sight.monitor.refresh()
        await sight.until_kind(node_of(standby), Kind.PRIMARY)
        assert len(await asked) >= 3  # the last one before, the refresh, and the role change
        assert newest(sight.state(node_of(cluster["wk2"].primary))).at > other


@in_loop
async def test_a_group_without_its_primary_is_asked_fifty_times_a_second(cluster: dict[str, Group], load: Load) -> None:
    """So that a promotion is seen as soon as it happens; other groups keep their calm."""
    primary, standby = cluster["wk1"].primary, cluster["wk1"].standby
    calm = cluster["wk2"].primary
    names = {"wk1": [primary.address, standby.address], "wk2": [calm.address]}
    async with watching(load(calm, names, interval="10s")) as sight:
        await sight.until(lambda: sight.monitor.asked_all)
        await off_loop(primary.kill)
        await sight.until_kind(node_of(primary), Kind.DEAD)
        asked, calmly = await asyncio.gather(
            sight.probes(node_of(standby), for_s=1), sight.probes(node_of(calm), for_s=1)
        )
        assert len(asked) <= 51
        assert statistics.median(later - earlier for earlier, later in itertools.pairwise(asked)) < 0.04
        assert len(calmly) == 1
        await off_loop(standby.promote)
        promoted = boottime()
        await sight.until_kind(node_of(standby), Kind.PRIMARY)
        assert boottime() - promoted < 1


@in_loop
async def test_what_bars_probes_is_not_asked_in_a_frenzy(lone: Postgres, load: Load) -> None:
    """A privilege taken away is barred, is known for what it was before, and its reconnects back off."""
    count = "SELECT sessions FROM pg_stat_database WHERE datname = 'template1'"
    grant = "{} EXECUTE ON FUNCTION pg_control_system() {} PUBLIC"
    settings = load(lone, {"wk1": [lone.address]}, postgresql={"user": ROLE, "dbname": "template1"})
    async with watching(settings) as sight:
        await sight.until_kind(node_of(lone), Kind.PRIMARY)
        lone.run_sql(grant.format("REVOKE", "FROM"), dbname="template1")
        state = await sight.until_kind(node_of(lone), Kind.BARRED)
        assert newest(state).detail == "permission denied for function pg_control_system"
        assert role(state).kind is Kind.PRIMARY
        assert not state.over
        [(before,)] = lone.run_sql(count)
        asked = await sight.probes(node_of(lone), for_s=2)
        [(after,)] = lone.run_sql(count)
        assert len(asked) < 25
        assert after - before < 60  # the local server's included, which is asked ten times a second
        lone.run_sql(grant.format("GRANT", "TO"), dbname="template1")
        await sight.until_kind(node_of(lone), Kind.PRIMARY)


@in_loop
async def test_another_configuration_keeps_what_is_known(cluster: dict[str, Group], load: Load) -> None:
    """Nodes that stay keep their connection and state, others are added and let go."""
    stays, goes, comes = (cluster[name].primary for name in ("cn", "wk1", "wk2"))
    async with watching(load(stays, {"cn": [stays.address], "wk1": [goes.address]}, interval="5s")) as sight:
        await sight.until(lambda: sight.monitor.asked_all)
        sessions = await off_loop(ours, stays)
        known = sight.state(node_of(stays))
        sight.monitor.watch(load(stays, {"cn": [stays.address], "wk2": [comes.address]}, interval="5s"))
        assert set(sight.monitor.nodes) == {node_of(stays), node_of(comes)}
        assert sight.state(node_of(stays)) == known
        assert not sight.monitor.asked_all
        await sight.until(lambda: sight.monitor.asked_all)
        assert await off_loop(ours, stays) == sessions
        await off_loop(goes.wait_until, "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = %s", [ROLE])
        # Another timeout needs other connections; what is known is known.
        known = sight.state(node_of(stays))
        sight.monitor.watch(load(stays, {"cn": [stays.address]}, interval="5s", timeout="3s"))
        assert sight.state(node_of(stays)) == known
        assert sight.monitor.asked_all
        await sight.until(lambda: newest(sight.state(node_of(stays))).at > newest(known).at)
        await off_loop(stays.wait_until, GONE, [sessions])


@in_loop
async def test_close_leaves_no_connection_and_no_task(cluster: dict[str, Group], load: Load) -> None:
    """Whatever it was doing; ``in_loop`` looks for tasks."""
    server = cluster["wk1"].primary
    with socket.create_server((FAULTY, server.port)):
        settings = load(server, {"wk1": [server.address], "wk2": [FAULTY]})
        async with watching(settings) as sight:
            await sight.until_kind(node_of(server), Kind.PRIMARY)
            await sight.until(lambda: sight.monitor.local.latest)
            assert len(await off_loop(ours, server)) == 2
    await off_loop(server.wait_until, "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = %s", [ROLE])


def descriptors() -> int:
    """Return how many file descriptors are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("steps", range(0, 40, 2))
@in_loop
async def test_close_leaves_nothing_however_early_it_comes(steps: int, lone: Postgres, load: Load) -> None:
    """A connection that is just being opened is not left open either; nothing waits for ever."""
    open_before = descriptors()
    monitor = Monitor()
    monitor.watch(load(lone, {"wk1": [lone.address]}))
    for _ in range(steps):
        await asyncio.sleep(0)
        time.sleep(0.0005)  # noqa: ASYNC251 -- so that at each step some other thing is ready
    await asyncio.wait_for(monitor.close(), 1)
    assert descriptors() == open_before


@in_loop
async def test_a_defect_in_a_task_comes_to_light(lone: Postgres, load: Load) -> None:
    """It wakes whoever waits for news, and ``check`` raises it."""

    def broken(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        raise ZeroDivisionError

    monitor = Monitor(getaddrinfo=broken)
    monitor.watch(load(lone, {"wk1": ["one"]}))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(Sight(monitor).keep_record(), 5)
    await monitor.close()


@in_loop
async def test_many_reconnects_leak_nothing(lone: Postgres, load: Load) -> None:
    """Neither descriptors nor connection objects are left of what failed, hung up or was let go."""
    settings = load(lone, {"wk1": [FAULTY]}, interval="10ms")
    fake = FakePostgres(lone.port, lambda session: [[], [ROW + READY], [ROW + READY, b""], [TERMINATED]][session % 4])
    async with fake.serving(), watching(settings) as sight:
        await sight.until(lambda: fake.sessions >= 20)
        before = descriptors()
        await sight.until(lambda: fake.sessions >= 150)
        assert descriptors() <= before + 2
        gc.collect()
        assert sum(isinstance(thing, psycopg.AsyncConnection) for thing in gc.get_objects()) <= 4
