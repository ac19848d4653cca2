"""Which nodes the monitor asks when, how it handles lost connections, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import socket
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import pq

from resolver_agent.config.model import Config, Node
from resolver_agent.demo.postgres import Postgres
from resolver_agent.observe.connection import Attempt
from resolver_agent.observe.monitor import Monitor
from resolver_agent.routing.observation import ProbeFailure, Role
from resolver_agent.system.clock import boottime
from tests.integration.conftest import GONE, ROLE, Group
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
    newest,
    node_of,
    off_loop,
    ours,
    role,
    running_with,
    watching,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.support.proxy import Proxy

    Load = Callable[..., Config]


@in_loop
async def test_a_node_that_hangs_delays_no_other(
    cluster: dict[str, Group], lone: Postgres, load: Load, start_proxy: Callable[[str, Postgres], Proxy]
) -> None:
    """While others hang in every way, a sound node is still observed, and files can be written."""
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
    config = load(sound, names, interval="50ms", timeout="2s")
    fake = FakePostgres(lone.port, lambda session: [ROW + READY if session == 1 else ROW, None])
    async with fake.serving(), watching(config, getaddrinfo=resolver) as sight:
        hanging = [Node(host, sound.port) for host in (paused_later.address, frozen.address, FAULTY)]
        for node in (node_of(sound), *hanging[:2]):
            await sight.until_result(node, Role.PRIMARY, Role.STANDBY)
        frozen.freeze()
        await off_loop(paused_later.pause)
        begun = await sight.probes(node_of(sound), for_s=2.5)
        assert max(later - earlier for earlier, later in itertools.pairwise(begun)) < 1
        for node in (*hanging, Node("hanging0.example", sound.port)):
            await sight.until_result(node, ProbeFailure.UNREACHABLE)
            detail = newest(sight.state(node)).detail
            assert detail.removeprefix("hanging0.example cannot be resolved: ") == "no answer within 2 s"
            assert not sight.state(node).seen_dead
        await asyncio.wait_for(off_loop(boottime), 5)  # the threads that write files are free
        resolver.never.set()


@in_loop
async def test_half_an_answer_blocks_nothing(lone: Postgres, load: Load) -> None:
    """A server that stops in the middle of an answer delays no other, and is unreachable after the timeout."""
    config = load(lone, {"half": [FAULTY], "sound": [lone.address]}, interval="50ms", timeout="2s")
    async with FakePostgres(lone.port, lambda _: [ROW, None]).serving(), watching(config) as sight:
        begun = await sight.probes(node_of(lone), for_s=1.8)
        assert max(later - earlier for earlier, later in itertools.pairwise(begun)) < 1
        state = await sight.until_result(Node(FAULTY, lone.port), ProbeFailure.UNREACHABLE)
        assert state.role_seen is None


@in_loop
async def test_the_local_server_is_asked_every_tenth_of_a_second(lone: Postgres, load: Load) -> None:
    """The agent has to learn the local role first."""
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
    """When the agent's session is terminated, it reconnects at once, and no server was dead in between."""
    async with watching(load(lone, {"wk1": [lone.address]}, interval="10s")) as sight:
        first = await sight.until_result(node_of(lone), Role.PRIMARY)
        for _ in range(5):
            before = await off_loop(ours, lone)
            ended = boottime()
            await off_loop(lone.run_sql, END_SESSIONS, [ROLE])
            await sight.until(lambda: newest(sight.state(node_of(lone))).at > ended)  # noqa: B023 -- it waits here
            assert boottime() - ended < 1
            await off_loop(lone.wait_until, GONE, [before])
        assert sight.results(node_of(lone)) == [Role.PRIMARY]
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
async def test_a_server_that_ends_the_session_and_then_rejects_us_lives(
    bar: str, unbar: str, words: str, lone: Postgres, load: Load
) -> None:
    """A rejected login proves that the server runs (R1), also right after a lost session."""
    async with watching(load(lone, {"wk1": [lone.address]})) as sight:
        await sight.until_result(node_of(lone), Role.PRIMARY)
        lone.run_sql(bar)
        lone.run_sql(END_SESSIONS, [ROLE])
        await sight.until_result(node_of(lone), ProbeFailure.REJECTING, ProbeFailure.DEAD)
        await sight.probes(node_of(lone), for_s=0.2)
        state = sight.state(node_of(lone))
        lone.run_sql(unbar)
        assert (newest(state).result, newest(state).detail) == (ProbeFailure.REJECTING, words)
        assert not state.seen_dead
        assert sight.results(node_of(lone)) == [Role.PRIMARY, ProbeFailure.REJECTING]
        await sight.until_result(node_of(lone), Role.PRIMARY)


@pytest.mark.parametrize(
    "lose",
    [Postgres.kill, Postgres.stop, functools.partial(Postgres.stop, mode="immediate")],
    ids=["killed", "stopped", "crashed"],
)
@in_loop
async def test_a_lost_standby_is_dead_within_tens_of_milliseconds(
    lose: Callable[[Postgres], None], cluster: dict[str, Group], load: Load
) -> None:
    """The kernel reports it; the monitor does not wait for the next probe."""
    standby = cluster["wk1"].standby
    names = {"wk1": [node.address for node in cluster["wk1"].nodes]}
    async with watching(load(standby, names, interval="10s")) as sight:
        await sight.until_result(node_of(standby), Role.STANDBY)
        await off_loop(lose, standby)
        gone = boottime()
        await sight.until_result(node_of(standby), ProbeFailure.DEAD)
        [known, *_] = [
            at for node, seen, at in sight.record if (node, seen.result) == (node_of(standby), ProbeFailure.DEAD)
        ]
        assert known - gone < 0.1
        assert sight.results(node_of(standby))[:2] == [Role.STANDBY, ProbeFailure.DEAD]
        assert sight.state(node_of(standby)).seen_dead


@in_loop
async def test_a_server_that_is_shutting_down_is_dead(lone: Postgres, load: Load) -> None:
    """It closed its sessions and accepts no more, so it is dead, not rejecting, though it still answers."""
    async with watching(load(lone, {"wk1": [lone.address]}, interval="10s")) as sight:
        await sight.until_result(node_of(lone), Role.PRIMARY)
        with running_with(lone, **STARTING_UP):
            state = await sight.until_result(node_of(lone), ProbeFailure.DEAD)
            assert state.seen_dead
        await sight.until_result(node_of(lone), Role.PRIMARY)


@in_loop
async def test_a_paused_server_counts_until_it_expires_and_again_when_it_goes_on(
    cluster: dict[str, Group], load: Load
) -> None:
    """Silence is no evidence: the last observation counts for ``interval`` + ``timeout``, and no server is dead."""
    server = cluster["wk1"].primary
    async with watching(
        load(cluster["cn"].primary, {"wk1": [server.address]}, interval="200ms", timeout="1s")
    ) as sight:
        first = await sight.until_result(node_of(server), Role.PRIMARY)
        await sight.until(lambda: role(sight.state(node_of(server))).at - role(first).at >= 0.2)  # so no probe is on
        await off_loop(server.pause)
        state = await sight.until_result(node_of(server), ProbeFailure.UNREACHABLE)
        assert role(state).role is Role.PRIMARY
        assert state.fresh(now=role(state).at + 1.199, max_age_s=1.2) is state.role_seen
        assert state.fresh(now=boottime(), max_age_s=1.2) is None
        await off_loop(server.resume)
        state = await sight.until_result(node_of(server), Role.PRIMARY)
        assert state.fresh(now=boottime(), max_age_s=1.2) is state.latest
        assert state.same_since == first.same_since
        assert ProbeFailure.DEAD not in sight.results(node_of(server))


@in_loop
async def test_cut_connections_are_reopened_and_a_frozen_network_is_no_death(
    cluster: dict[str, Group], load: Load, start_proxy: Callable[[str, Postgres], Proxy]
) -> None:
    """A fault of the network is told apart from one of the server."""
    server = cluster["wk1"].primary
    proxy = start_proxy("127.0.8.1", server)
    node = Node(proxy.address, proxy.port)
    async with watching(
        load(cluster["cn"].primary, {"wk1": [proxy.address]}, interval="10s", timeout="500ms")
    ) as sight:
        await sight.until_result(node, Role.PRIMARY)
        sessions = await off_loop(ours, server)
        proxy.cut()
        while (now := await off_loop(ours, server)) == sessions or not now:
            await sight.probes(node, for_s=0.01)
        assert sight.results(node) == [Role.PRIMARY]
        proxy.freeze()
        sight.monitor.refresh()
        await sight.until_result(node, ProbeFailure.UNREACHABLE)
        proxy.thaw()
        await sight.until_result(node, Role.PRIMARY)
        proxy.stop()
        await sight.until_result(node, ProbeFailure.DEAD)


@in_loop
async def test_a_restart_is_another_server_with_the_same_data(lone: Postgres, load: Load) -> None:
    """The start time distinguishes runs of one server, the system identifier distinguishes servers."""
    async with watching(load(lone, {"wk1": [lone.address]}, interval="5s")) as sight:
        before = await sight.until_result(node_of(lone), Role.PRIMARY)
        await off_loop(lone.stop)
        await sight.until_result(node_of(lone), ProbeFailure.DEAD)
        await off_loop(lone.start)
        after = await sight.until_result(node_of(lone), Role.PRIMARY)
        assert identity(after).system_id == identity(before).system_id
        assert identity(after).started_us > identity(before).started_us
        assert after.same_since > before.same_since


@in_loop
async def test_a_loss_and_a_role_change_make_the_whole_group_be_asked(cluster: dict[str, Group], load: Load) -> None:
    """A change of one node gets its group probed now, and a refresh gets every node probed."""
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
        assert newest(sight.state(node_of(standby))).role is Role.STANDBY
        asked = asyncio.ensure_future(sight.probes(node_of(primary), for_s=2))
        sight.monitor.refresh()
        await sight.until_result(node_of(standby), Role.PRIMARY)
        assert len(await asked) >= 3  # the last one before, the refresh, and the role change
        assert newest(sight.state(node_of(cluster["wk2"].primary))).at > other


@in_loop
async def test_a_group_without_its_primary_is_asked_fifty_times_a_second(cluster: dict[str, Group], load: Load) -> None:
    """A promotion is seen as soon as it happens; other groups keep their interval."""
    primary, standby = cluster["wk1"].primary, cluster["wk1"].standby
    calm = cluster["wk2"].primary
    names = {"wk1": [primary.address, standby.address], "wk2": [calm.address]}
    async with watching(load(calm, names, interval="10s")) as sight:
        await sight.until(lambda: sight.monitor.asked_all)
        await off_loop(primary.kill)
        await sight.until_result(node_of(primary), ProbeFailure.DEAD)
        asked, calmly = await asyncio.gather(
            sight.probes(node_of(standby), for_s=1), sight.probes(node_of(calm), for_s=1)
        )
        assert len(asked) <= 51
        assert statistics.median(later - earlier for earlier, later in itertools.pairwise(asked)) < 0.04
        assert len(calmly) == 1
        await off_loop(standby.promote)
        promoted = boottime()
        await sight.until_result(node_of(standby), Role.PRIMARY)
        assert boottime() - promoted < 1


@in_loop
async def test_what_rejects_probes_is_not_asked_in_a_frenzy(lone: Postgres, load: Load) -> None:
    """A server that revoked a privilege is rejecting, keeps its last known role, and its reconnects back off."""
    count = "SELECT sessions FROM pg_stat_database WHERE datname = 'template1'"
    if lone.binaries.version < 14:
        count = "SELECT 0"  # nothing counts them
    grant = "{} EXECUTE ON FUNCTION pg_control_system() {} PUBLIC"
    config = load(lone, {"wk1": [lone.address]}, postgresql={"user": ROLE, "dbname": "template1"})
    async with watching(config) as sight:
        await sight.until_result(node_of(lone), Role.PRIMARY)
        lone.run_sql(grant.format("REVOKE", "FROM"), dbname="template1")
        state = await sight.until_result(node_of(lone), ProbeFailure.REJECTING)
        assert newest(state).detail == "permission denied for function pg_control_system"
        assert role(state).role is Role.PRIMARY
        assert not state.seen_dead
        [(before,)] = lone.run_sql(count)
        asked = await sight.probes(node_of(lone), for_s=2)
        [(after,)] = lone.run_sql(count)
        assert len(asked) < 25
        assert after - before < 60  # including the local server's, which is asked ten times a second
        lone.run_sql(grant.format("GRANT", "TO"), dbname="template1")
        await sight.until_result(node_of(lone), Role.PRIMARY)


@in_loop
async def test_another_configuration_keeps_what_is_known(cluster: dict[str, Group], load: Load) -> None:
    """Nodes that stay keep their connection and state; others are added and removed."""
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
        # Another timeout needs new connections; the state stays.
        known = sight.state(node_of(stays))
        sight.monitor.watch(load(stays, {"cn": [stays.address]}, interval="5s", timeout="3s"))
        assert sight.state(node_of(stays)) == known
        assert sight.monitor.asked_all
        await sight.until(lambda: newest(sight.state(node_of(stays))).at > newest(known).at)
        await off_loop(stays.wait_until, GONE, [sessions])


@in_loop
async def test_close_leaves_no_connection_and_no_task(cluster: dict[str, Group], load: Load) -> None:
    """It works during any activity; ``in_loop`` looks for tasks."""
    server = cluster["wk1"].primary
    with socket.create_server((FAULTY, server.port)):
        config = load(server, {"wk1": [server.address], "wk2": [FAULTY]})
        async with watching(config) as sight:
            await sight.until_result(node_of(server), Role.PRIMARY)
            await sight.until(lambda: sight.monitor.local.latest)
            assert len(await off_loop(ours, server)) == 2
    await off_loop(server.wait_until, "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = %s", [ROLE])


def descriptors() -> int:
    """Return how many file descriptors are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("steps", range(0, 40, 2))
@in_loop
async def test_close_leaves_nothing_however_early_it_comes(steps: int, lone: Postgres, load: Load) -> None:
    """A connection that is just being opened is closed too, and no task waits for ever."""
    open_before = descriptors()
    monitor = Monitor()
    monitor.watch(load(lone, {"wk1": [lone.address]}))
    for _ in range(steps):
        await asyncio.sleep(0)
        time.sleep(0.0005)  # noqa: ASYNC251 -- so that something else is ready at each step
    await asyncio.wait_for(monitor.close(), 1)
    closed_by = boottime() + 5  # a thread that libpq is at work in closes its own
    while descriptors() > open_before:  # earlier tests may have left some that close now
        assert boottime() < closed_by
        await asyncio.sleep(0.005)


@in_loop
async def test_a_defect_in_a_task_comes_to_light(lone: Postgres, load: Load) -> None:
    """It sets the event that callers wait for, and ``check`` raises it."""

    def broken() -> None:
        raise ZeroDivisionError

    monitor = Monitor(on_local=broken)
    monitor.watch(load(lone, {"wk1": ["one"]}))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(Sight(monitor).keep_record(), 5)
    await monitor.close()


@in_loop
async def test_no_memory_for_a_moment_is_no_defect(lone: Postgres, load: Load) -> None:
    """The next probe tries again."""
    faults = iter([MemoryError, MemoryError])

    def getaddrinfo(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        for fault in faults:
            raise fault
        return [(0, 0, 0, "", (lone.address, 0))]

    async with watching(load(lone, {"wk1": ["one"]}, interval="50ms"), getaddrinfo=getaddrinfo) as sight:
        await sight.until_result(Node("one", lone.port), Role.PRIMARY)


@in_loop
async def test_many_reconnects_leak_nothing(lone: Postgres, load: Load) -> None:
    """Connections that failed, hung up or were dropped leave neither descriptors nor connection objects."""
    config = load(lone, {"wk1": [FAULTY]}, interval="10ms")
    fake = FakePostgres(lone.port, lambda session: [[], [ROW + READY], [ROW + READY, b""], [TERMINATED]][session % 4])
    async with fake.serving(), watching(config) as sight:
        await sight.until(lambda: fake.sessions >= 20)
        before = descriptors()
        await sight.until(lambda: fake.sessions >= 150)
        assert descriptors() <= before + 2
        gc.collect()
        objects = [thing for thing in gc.get_objects() if isinstance(thing, (Attempt, pq.PGconn))]
        assert len(objects) <= 4
