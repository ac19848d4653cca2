"""What agents say to each other over a primary: who is heard, by whom, and that it never costs an observation."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import random
import statistics
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from resolver_agent.config.model import Config, Node
from resolver_agent.demo.postgres import Postgres, Site
from resolver_agent.observe import talk
from resolver_agent.observe.talk import CHANNEL, LIMIT
from resolver_agent.queue import message as queue_message
from resolver_agent.routing.observation import ProbeFailure, Role
from resolver_agent.system.clock import boottime
from tests.integration.conftest import ROLE, Group
from tests.integration.support.hostile_postgres import HONEST_ROW, READY, WELCOME, FakeServer, answer, error, message
from tests.integration.support.hostile_postgres import Session as HostileSession
from tests.integration.support.sight import (
    END_SESSIONS,
    FAULTY,
    Sight,
    in_loop,
    node_of,
    off_loop,
    ours,
    watching,
)
from tests.unit.fuzz.mutation import mutated
from tests.unit.fuzz.targets import TARGETS, seeds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from tests.integration.support.proxy import Proxy

    Load = Callable[..., Config]


@pytest.fixture
def load(load: Load) -> Load:
    """Make a configuration where the local server is asked as another role, as installed."""

    def load_with_local_role(*args: Any, **settings: Any) -> Config:
        config = load(*args, **settings)
        return dataclasses.replace(config, local={**config.local, "user": "postgres"})

    return load_with_local_role


class Agent:
    """A monitor, and what it was told."""

    def __init__(self, sight: Sight, heard: list[tuple[Node, int, str]]) -> None:
        self.sight = sight
        self.heard = heard

    def texts(self) -> list[str]:
        """Return what it was told, in order."""
        return [text for _, _, text in self.heard]

    async def until_told(self, text: str) -> None:
        """Wait until it was told this."""
        await self.sight.until(lambda: text in self.texts())

    async def until_talking(self, server: Postgres, *, peers: int) -> frozenset[int]:
        """Wait until it has a talk over a server, with so many others, and return those."""
        found: frozenset[int] | None = None
        until = boottime() + 10
        while found is None or len(found) != peers:
            assert boottime() < until, found
            found = await self.sight.monitor.peers(node_of(server), within_s=1)
            await asyncio.sleep(0.005)
        return found


@contextlib.asynccontextmanager
async def agents(config: Config, count: int = 2) -> AsyncIterator[list[Agent]]:
    """Run so many monitors of the same servers."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            heard: list[tuple[Node, int, str]] = []

            def on_message(node: Node, pid: int, text: str, heard: list[tuple[Node, int, str]] = heard) -> None:
                heard.append((node, pid, text))

            found.append(Agent(await stack.enter_async_context(watching(config, on_message=on_message)), heard))
        yield found


@contextlib.contextmanager
def session(server: Postgres, user: str, *, begin: str = "") -> Iterator[Callable[..., Coroutine[None, None, None]]]:
    """Log in as somebody, and yield what sends so many notifications over the session."""
    with psycopg.connect(server.conninfo, user=user, dbname="postgres", autocommit=True) as connection:
        if begin:
            connection.execute(begin.encode())

        async def send(text: str, *, channel: str = CHANNEL, times: int = 1) -> None:
            sql = (
                "SELECT pg_notify(%s, %s || CASE WHEN n > 1 THEN n::text ELSE '' END) FROM generate_series(1, %s) AS n"
            )
            await off_loop(connection.execute, sql, [channel, text, times])

        yield send


@in_loop
async def test_agents_hear_each_other_in_order_and_not_themselves(lone: Postgres, load: Load) -> None:
    """Every agent hears what the others say, with the number of the sender's session; all text arrives unchanged."""
    async with agents(load(lone, {"wk1": [lone.address]}, interval="10s"), 3) as (one, two, three):
        for agent in (one, two, three):
            await agent.until_talking(lone, peers=2)
        texts = ["first", "it's; \\' $1 -- %s", "{}" * (LIMIT // 2), "ä€\U0001f600", "last"]
        for text in texts:
            one.sight.monitor.say(node_of(lone), text)
        for agent in (two, three):
            await agent.until_told("last")
            assert agent.texts() == texts
            [node, pid] = {(node, pid) for node, pid, _ in agent.heard}.pop()
            assert (node, pid in ours(lone)) == (node_of(lone), True)
        two.sight.monitor.say(node_of(lone), "answer")
        await one.until_told("answer")
        assert one.texts() == ["answer"]


@in_loop
async def test_mutated_messages_are_heard_as_they_are(lone: Postgres, load: Load) -> None:
    """Whatever text a session of our role sends, it arrives or is too long, and is a message or none."""
    known, chance = seeds("message"), random.Random(3)  # noqa: S311 -- a seed, to repeat it
    words = TARGETS["message"].words
    made = [mutated(chance.choice(known), chance, others=known, words=words)[:7000] for _ in range(300)]
    texts = [one.decode(errors="ignore").replace("\0", "") for one in made]
    async with agents(load(lone, {"wk1": [lone.address]}, interval="10s")) as (one, two):
        await one.until_talking(lone, peers=1)
        with session(lone, ROLE) as send:
            waiting = 0
            for text in texts:
                await send(text)
                waiting += len(text)
                if waiting > 4000:  # much more at once is too much
                    await send("so far")
                    await two.until_told("so far")
                    two.heard.pop()
                    waiting = 0
            await send("last")
            await two.until_told("last")
        assert two.texts() == [text for text in [*texts, "last"] if 0 < len(text) <= LIMIT]
        assert sum(queue_message.parse(text) is not None for text in two.texts()) > 20


@in_loop
async def test_a_message_takes_milliseconds(
    lone: Postgres, load: Load, record_property: Callable[[str, object], None]
) -> None:
    """From the sender to the other agent, with the check of the sender, while both go on probing."""
    took = []
    async with agents(load(lone, {"wk1": [lone.address]}, interval="50ms")) as (one, two):
        await one.until_talking(lone, peers=1)
        await two.until_talking(lone, peers=1)
        for number in range(200):
            begun = boottime()
            one.sight.monitor.say(node_of(lone), str(number))
            await two.until_told(str(number))
            took.append((boottime() - begun) * 1000)
    record_property("median_ms", statistics.median(took))
    print(f"{statistics.median(took):.2f} ms, {max(took):.2f} ms at most")
    assert statistics.median(took) < 100  # of a busy machine


@pytest.mark.parametrize(
    ("user", "begin"),
    [
        ("postgres", ""),
        ("postgres", f"SET ROLE {ROLE}"),
        ("postgres", f"SET SESSION AUTHORIZATION {ROLE}"),
    ],
    ids=["another role", "set role", "set session authorization"],
)
@in_loop
async def test_only_those_who_logged_in_as_agents_are_heard(user: str, begin: str, lone: Postgres, load: Load) -> None:
    """Anybody may NOTIFY; what counts is the role that logged in."""
    async with agents(load(lone, {"wk1": [lone.address]})) as (one, two):
        await one.until_talking(lone, peers=1)
        await two.until_talking(lone, peers=1)
        with session(lone, user, begin=begin) as send, session(lone, ROLE) as send_as_agent:
            await send("forged")
            await send_as_agent("true")
            await one.until_told("true")
            await send("forged again")
            two.sight.monitor.say(node_of(lone), "last")
            await one.until_told("last")
        assert one.texts() == ["true", "last"]


@in_loop
async def test_who_has_gone_is_not_heard(
    lone: Postgres, load: Load, start_proxy: Callable[[str, Postgres], Proxy]
) -> None:
    """Of a session that has ended nobody can tell whose it was."""
    proxy = start_proxy("127.0.8.1", lone)
    async with (
        agents(load(lone, {"wk1": [proxy.address]}, interval="10s", timeout="5s"), 1) as [one],
        agents(load(lone, {"wk1": [lone.address]}), 1) as [two],
    ):
        await two.until_talking(lone, peers=1)
        node = Node(proxy.address, proxy.port)
        await one.sight.until_result(node, Role.PRIMARY)
        assert len(await one.sight.monitor.peers(node, within_s=5) or ()) == 1
        proxy.freeze()
        with session(lone, ROLE) as send:
            await send("gone")
        while len(await off_loop(ours, lone)) > 2:
            pass
        two.sight.monitor.say(node_of(lone), "here")
        proxy.thaw()
        await one.until_told("here")
        assert one.texts() == ["here"]


@in_loop
async def test_what_is_no_message_is_dropped(lone: Postgres, load: Load) -> None:
    """Payloads that are too long and other channels count for nothing; control characters arrive."""
    async with agents(load(lone, {"wk1": [lone.address]}), 1) as [one]:
        await one.until_talking(lone, peers=0)
        with session(lone, ROLE) as send:
            await send("x" * 7999)
            await send("x" * (LIMIT + 1))
            await send("elsewhere", channel="other")
            await send("")
            await send("\x1b[2J")
            await one.until_told("\x1b[2J")
        assert one.texts() == ["\x1b[2J"]


@in_loop
async def test_what_cannot_be_said_is_dropped(lone: Postgres, cluster: dict[str, Group], load: Load) -> None:
    """A message that is too long or no text is not sent, nor one for a server that is no primary or not watched."""
    standby = cluster["wk1"].standby
    async with agents(load(lone, {"wk1": [lone.address], "wk2": [FAULTY]})) as (one, two):
        await two.until_talking(lone, peers=1)
        await one.until_talking(lone, peers=1)
        for text in ("", "x" * (LIMIT + 1), "a\0b", "\ud800"):
            one.sight.monitor.say(node_of(lone), text)
        for node in (Node(FAULTY, lone.port), node_of(standby)):
            one.sight.monitor.say(node, "nobody is there")
            assert await one.sight.monitor.peers(node, within_s=1) is None
        one.sight.monitor.say(node_of(lone), "said")
        await two.until_told("said")
        assert two.texts() == ["said"]


@pytest.mark.parametrize(("text", "times"), [("x", 5000), ("x" * 2000, 5000)], ids=["many", "long"])
@in_loop
async def test_a_flood_ends_the_talk_and_no_observation(
    text: str, times: int, lone: Postgres, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    """Others who send too much are not listened to for a while; a loss of the server is seen as fast as ever."""
    async with agents(load(lone, {"wk1": [lone.address]}, interval="500ms", timeout="5s"), 1) as [one]:
        await one.until_talking(lone, peers=0)
        before = await off_loop(ours, lone)
        with session(lone, "postgres") as send:
            for _ in range(3):
                await send(text, times=times)
        await one.sight.until(lambda: ours(lone) not in (before, []))
        assert await one.sight.monitor.peers(node_of(lone), within_s=1) is None
        begun = await one.sight.probes(node_of(lone), for_s=2)
        assert len(begun) >= 3
        assert one.sight.results(node_of(lone)) == [Role.PRIMARY], one.sight.record
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            f"{node_of(lone)}: too many notifications; not listening to other agents there for 60 s"
        ]
        await off_loop(lone.kill)
        gone = boottime()
        try:
            await one.sight.until_result(node_of(lone), ProbeFailure.DEAD)
            assert boottime() - gone < 0.25
        finally:
            await off_loop(lone.start)


@in_loop
async def test_a_standby_talks_after_its_promotion(load: Load) -> None:
    """A server in recovery refuses LISTEN, so it is not asked to; the open connection is used once it is a primary."""
    with Site() as site:
        primary, standby = (await off_loop(site.groups, {"wk1": ["127.0.9.1", "127.0.9.2"]}))["wk1"]
        primary.run_sql(f"CREATE ROLE {ROLE} LOGIN")
        standby.wait_for_replay(of=primary)
        config = load(primary, {"wk1": [primary.address, standby.address]}, port=site.port, interval="200ms")
        async with agents(config) as (one, two):
            await one.until_talking(primary, peers=1)
            await one.sight.until_result(node_of(standby), Role.STANDBY)
            await two.sight.until_result(node_of(standby), Role.STANDBY)
            assert await one.sight.monitor.peers(node_of(standby), within_s=1) is None
            sessions = await off_loop(ours, standby)
            await off_loop(primary.kill)
            await off_loop(standby.promote)
            assert await one.until_talking(standby, peers=1) < set(sessions)
            await two.until_talking(standby, peers=1)
            one.sight.monitor.say(node_of(standby), "hello")
            await two.until_told("hello")
            assert await off_loop(ours, standby) == sessions
            assert "cannot execute LISTEN" not in standby.log.read_text()


@in_loop
async def test_a_new_connection_listens_anew(lone: Postgres, load: Load) -> None:
    """After its session was ended, an agent is heard and hears again; what was asked meanwhile has no answer."""
    async with agents(load(lone, {"wk1": [lone.address]}, interval="10s")) as (one, two):
        before = await one.until_talking(lone, peers=1)
        await two.until_talking(lone, peers=1)
        await off_loop(lone.run_sql, END_SESSIONS, [ROLE])
        await one.sight.until(lambda: len(ours(lone)) == 2 and not before & set(ours(lone)))
        await one.until_talking(lone, peers=1)
        await two.until_talking(lone, peers=1)
        one.sight.monitor.say(node_of(lone), "again")
        await two.until_told("again")
        assert one.sight.results(node_of(lone)) == [Role.PRIMARY]


@in_loop
async def test_peers_of_a_hung_or_dead_server_are_unknown_in_time(lone: Postgres, load: Load) -> None:
    """The question has its own limit, and costs no more of a server that answers again."""
    async with agents(load(lone, {"wk1": [lone.address]}, interval="10s", timeout="5s"), 1) as [one]:
        await one.until_talking(lone, peers=0)
        await off_loop(lone.pause)
        begun = boottime()
        assert await one.sight.monitor.peers(node_of(lone), within_s=0.2) is None
        assert 0.2 <= boottime() - begun < 0.6
        await off_loop(lone.resume)
        assert await one.sight.monitor.peers(node_of(lone), within_s=5) == frozenset()
        await off_loop(lone.pause)
        asking = asyncio.ensure_future(one.sight.monitor.peers(node_of(lone), within_s=30))
        await off_loop(lone.kill)
        assert await asyncio.wait_for(asking, 5) is None
        await off_loop(lone.start)


@in_loop
async def test_a_name_with_a_login_of_its_own(lone: Postgres, load: Load) -> None:
    """An agent that logs in to other clusters otherwise hears those of this one, and they hear it."""
    here = load(lone, {"wk1": [lone.address]})
    own = {"user": ROLE, "dbname": "postgres"}
    there = dataclasses.replace(
        here,
        postgresql={"user": "nobody_here", "dbname": "barred"},
        groups=tuple(dataclasses.replace(one, postgresql=own) for one in here.groups),
    )
    async with agents(here, 1) as [one], agents(there, 1) as [two]:
        await one.until_talking(lone, peers=1)
        await two.until_talking(lone, peers=1)
        one.sight.monitor.say(node_of(lone), "from one")
        two.sight.monitor.say(node_of(lone), "from two")
        await two.until_told("from one")
        await one.until_told("from two")


@in_loop
async def test_a_session_is_not_ended_for_being_idle(lone: Postgres, load: Load) -> None:
    """An agent asks rarely, and must be there when others say something."""
    if lone.binaries.version < 14:
        pytest.skip("idle_session_timeout came with PostgreSQL 14")
    await off_loop(lone.run_sql, f"ALTER ROLE {ROLE} SET idle_session_timeout = '300ms'")
    try:
        async with agents(load(lone, {"wk1": [lone.address]}, interval="3s"), 1) as [one]:
            await one.until_talking(lone, peers=0)
            before = await off_loop(ours, lone)
            await one.sight.probes(node_of(lone), for_s=1)
            assert await off_loop(ours, lone) == before
    finally:
        await off_loop(lone.run_sql, f"ALTER ROLE {ROLE} RESET idle_session_timeout")


@contextlib.asynccontextmanager
async def a_commit_that_hangs(server: Postgres) -> AsyncIterator[None]:
    """Have a session that NOTIFYs wait for a standby at its commit: all others who NOTIFY wait for it."""
    await off_loop(server.run_sql, "CREATE TABLE IF NOT EXISTS written (n int)")
    await off_loop(server.run_sql, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await off_loop(server.reload)
    waiting = asyncio.ensure_future(off_loop(server.run_sql, "INSERT INTO written VALUES (1); NOTIFY elsewhere"))
    try:
        await off_loop(server.wait_until, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        yield
    finally:
        await off_loop(server.run_sql, "ALTER SYSTEM RESET synchronous_standby_names")
        await off_loop(server.reload)
        await waiting


@in_loop
async def test_a_notify_that_cannot_commit_delays_no_probe(
    lone: Postgres, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    """All who NOTIFY commit one after the other: behind one that waits for a standby, ours is given up after 2 s."""
    async with agents(load(lone, {"wk1": [lone.address]}, interval="100ms", timeout="1s")) as (one, two):
        await one.until_talking(lone, peers=1)
        await two.until_talking(lone, peers=1)
        async with a_commit_that_hangs(lone):
            one.sight.monitor.say(node_of(lone), "given up")
            asked = asyncio.ensure_future(one.sight.monitor.peers(node_of(lone), within_s=1))
            begun = await one.sight.probes(node_of(lone), for_s=1.5)
            assert max(later - earlier for earlier, later in itertools.pairwise(begun)) < 0.7
            assert len(await asked or ()) == 1
            await one.sight.until(lambda: "a message to other agents is lost: SQLSTATE 55P03" in caplog.text)
        one.sight.monitor.say(node_of(lone), "said")
        await two.until_told("said")
        assert two.texts() == ["said"]
        assert one.sight.results(node_of(lone)) == [Role.PRIMARY]


@in_loop
async def test_a_notify_that_has_to_wait_is_said_afterwards(
    lone: Postgres, load: Load, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages are tried again, in their order, while a commit of another session is in the way for a moment."""
    monkeypatch.setattr(talk, "_SAY_FOR_S", 30.0)  # here the moment may be longer
    caplog.set_level("DEBUG", "resolver_agent.observe.talk")
    async with agents(load(lone, {"wk1": [lone.address]}, interval="10s")) as (one, two):
        await one.until_talking(lone, peers=1)
        await two.until_talking(lone, peers=1)
        async with a_commit_that_hangs(lone):
            one.sight.monitor.say(node_of(lone), "first")
            one.sight.monitor.say(node_of(lone), "second")
            await one.sight.until(lambda: "SQLSTATE 55P03" in caplog.text)
        await two.until_told("second")
        assert two.texts() == ["first", "second"]


MANY = b" ".join(b"%d" % pid for pid in range(1000, 2001))


@pytest.mark.parametrize(
    ("reply", "peers"),
    [
        (answer([b"17 18"]), frozenset({17, 18})),
        (answer([None]), frozenset()),
        (answer([b"17,18"]), None),
        (answer([b" 17"]), None),
        (answer([b"0"]), None),
        (answer([b"2147483648"]), None),
        (answer(["٣".encode()]), None),
        (answer([MANY]), None),
        (answer([b"17"], rows=2), None),
        (answer([b"17", b"18"]), None),
        (answer([]), None),
        (message(b"C", b"SELECT 1\0") + READY, None),
        (READY, None),
        (error("\x1b[2J", "\x1b[2J", severity="ERROR") + READY, None),
    ],
    ids=[
        *["two", "none", "comma", "space", "zero", "too large", "other digits", "too many"],
        *["rows", "columns", "no column", "no row", "nothing", "error"],
    ],
)
@in_loop
async def test_peers_are_what_a_server_can_say(
    reply: bytes, peers: frozenset[int] | None, load: Load, lone: Postgres
) -> None:
    """An answer that PostgreSQL does not give means that it cannot be told, and no sender counts by it."""
    notice = message(b"A", (17).to_bytes(4, "big") + CHANNEL.encode() + b"\0hello\0")

    def serve(fake: HostileSession) -> None:
        fake.begin()
        fake.send(WELCOME)
        while True:
            fake.read(1)
            query = fake.body()
            if b"LISTEN" in query:
                fake.send(message(b"C", b"LISTEN\0") + READY)
            elif b"string_agg" in query:
                fake.send(notice + reply)
            else:
                fake.send(answer([b"f", *HONEST_ROW[1:5], None]))

    with FakeServer(FAULTY, lone.port, serve):
        async with agents(load(lone, {"wk1": [FAULTY]}, interval="10s"), 1) as [one]:
            node = Node(FAULTY, lone.port)
            await one.sight.until_result(node, Role.PRIMARY)
            assert await one.sight.monitor.peers(node, within_s=5) == peers
            assert await one.sight.monitor.peers(node, within_s=5) == peers
            assert set(one.texts()) == ({"hello"} if peers else set())
            assert one.sight.results(node) == [Role.PRIMARY]


@in_loop
async def test_a_server_that_refuses_listen_is_observed_all_the_same(load: Load, lone: Postgres) -> None:
    """The talk is off there, and nothing else is different."""

    def serve(fake: HostileSession) -> None:
        fake.begin()
        fake.send(WELCOME)
        fake.query()
        while True:
            fake.send(answer([b"f", *HONEST_ROW[1:5], None]))
            fake.query()
            if not asked:
                fake.send(error("no LISTEN here", "0A000", severity="ERROR") + READY)
                fake.query()
            asked.append(1)

    asked: list[int] = []
    with FakeServer(FAULTY, lone.port, serve):
        async with agents(load(lone, {"wk1": [FAULTY]}, interval="50ms"), 1) as [one]:
            node = Node(FAULTY, lone.port)
            await one.sight.until(lambda: len(asked) > 5)
            assert await one.sight.monitor.peers(node, within_s=1) is None
            assert one.sight.results(node) == [Role.PRIMARY]


@in_loop
async def test_a_listen_that_failed_is_tried_again_soon(
    load: Load, lone: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is short of something for a moment does not make an agent deaf for a minute."""

    def serve(fake: HostileSession) -> None:
        fake.begin()
        fake.send(WELCOME)
        while True:
            fake.read(1)
            query = fake.body()
            if b"LISTEN" in query:
                fake.send(
                    message(b"C", b"LISTEN\0") + READY if failed else error("full", "53200", severity="ERROR") + READY
                )
                failed.append(1)
            elif b"string_agg" in query:
                fake.send(answer([b"17"]))
            else:
                fake.send(answer([b"f", *HONEST_ROW[1:5], None]))

    failed: list[int] = []
    with FakeServer(FAULTY, lone.port, serve):
        async with agents(load(lone, {"wk1": [FAULTY]}, interval="50ms"), 1) as [one]:
            await one.sight.until(lambda: len(failed) == 2)
            assert await one.sight.monitor.peers(Node(FAULTY, lone.port), within_s=5) == frozenset({17})
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{Node(FAULTY, lone.port)}: LISTEN failed (SQLSTATE 53200); not listening to other agents there for 1 s"
    ]


@pytest.mark.parametrize("size", [1, 7000])
@in_loop
async def test_a_hostile_primary_that_floods_is_left_alone(size: int, load: Load, lone: Postgres) -> None:
    """It gets one more chance, without a talk, and is then treated as any server that sends too much."""
    notice = message(b"A", bytes(4) + CHANNEL.encode() + b"\0" + b"x" * size + b"\0")
    sessions: list[int] = []

    def serve(fake: HostileSession) -> None:
        sessions.append(1)
        fake.begin()
        fake.send(WELCOME)
        fake.query()
        fake.send(answer([b"f", *HONEST_ROW[1:5], None]))
        fake.flood(notice)

    with FakeServer(FAULTY, lone.port, serve):
        async with agents(load(lone, {"bad": [FAULTY], "good": [lone.address]}, interval="50ms"), 1) as [one]:
            await one.sight.until_result(Node(FAULTY, lone.port), ProbeFailure.REJECTING)
            begun = await one.sight.probes(node_of(lone), for_s=1)
            assert max(later - earlier for earlier, later in itertools.pairwise(begun)) < 0.5
            assert ProbeFailure.DEAD not in one.sight.results(Node(FAULTY, lone.port))
            assert one.texts() == []
            assert len(sessions) <= 3
