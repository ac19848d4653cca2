"""What goes wrong around planned work, under a real Patroni: nobody waits for nothing, and names end up right."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from resolver_agent.control.client import ControlError
from resolver_agent.observe.talk import CHANNEL
from resolver_agent.queue.message import Kind, Message, parse, render
from resolver_agent.routing.queue import room_address
from tests.integration.queue.test_switchover import ROOMS, prepare, switch_over
from tests.integration.support.agent_state import count, wait_until
from tests.integration.support.waiting import Clients

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import PatroniCluster

pytestmark = pytest.mark.usefixtures("before_stop")

WK1 = 1
"""The place of wk1 among the names of the configuration."""


def announce(patroni: PatroniCluster, *, within_ms: int = 5500) -> dict[str, Any]:
    """Have the agent beside the primary of wk1 announce a stop, as the hook does, and return what it answers."""
    primary = patroni.machines["wk1-1"]
    primary.server.run_sql("CHECKPOINT")
    return patroni.ask_agent(primary, "before-stop", timeout_s=10, within_ms=within_ms)


def stop_for_long(patroni: PatroniCluster) -> None:
    """Stop the primary of wk1 as announced, and let nobody take its place."""
    primary, standby = patroni.groups["wk1"]
    assert announce(patroni)["why"] == ""
    for machine in primary, standby:
        patroni.pause_patroni(machine)
    os.kill(int((primary.server.data / "postmaster.pid").read_text().split("\n", 1)[0]), signal.SIGINT)
    wait_until(lambda: not primary.server.is_running, timeout_s=30)


def room_of(machine: Machine) -> str:
    """Return the address of the room where wk1 queues on a machine."""
    addresses = {room_address(WK1, attempt) for attempt in range(8)}
    found: str = wait_until(lambda: next(iter({machine.names.get("wk1", "")} & addresses), None))
    return found


def windows(patroni: PatroniCluster, machine: Machine) -> list[dict[str, Any]]:
    """Return the open windows of a machine's agent."""
    found: list[dict[str, Any]] = patroni.ask_agent(machine, "status", timeout_s=10)["queue"]["open"]
    return found


class Speaker:
    """A session over the primary of wk1 that hears the agents, and may pretend to be one."""

    def __init__(self, patroni: PatroniCluster, user: str) -> None:
        self.session = patroni.connect(patroni.machines["wk1-1"], user=user, dbname="postgres")
        self.session.execute(f"LISTEN {CHANNEL}")

    def say(self, kind: Kind, id_: str, **said: Any) -> None:
        """Send a message to all."""
        message = Message(kind=kind, id=id_, **said)
        self.session.execute("SELECT pg_notify(%s, %s)", [CHANNEL, render(message)])

    def hear(self, kind: Kind, *, of: str = "", count: int = 1) -> Message:
        """Return what others say of a kind, about any stop or that one, once so many have said it."""
        heard = 0
        for notice in self.session.notifies(timeout=20):
            message = parse(notice.payload)
            if message is None or message.kind is not kind or notice.pid == self.session.info.backend_pid:
                continue
            heard += of in ("", message.id)
            if heard == count:
                return message
        raise AssertionError(f"{heard} of {count} have said {kind}")


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Threads for what waits; they end with the servers."""
    threads = ThreadPoolExecutor()
    yield threads
    threads.shutdown(wait=False)


def through_wk1(
    patroni: PatroniCluster, machine: Machine, background: ThreadPoolExecutor, query: str
) -> Future[psycopg.Cursor[Any]]:
    """Begin a statement on a machine's server that runs a query on the server behind wk1."""
    session = patroni.connect(machine)
    conninfo = f"host=wk1 port={patroni.site.port} dbname=app user=postgres connect_timeout=40"
    return background.submit(session.execute, "SELECT * FROM dblink(%s, %s) AS found(id bigint)", [conninfo, query])


def test_called_off(patroni: PatroniCluster) -> None:
    """A server that does not stop after all takes its clients again: by itself, and at once where that is said."""
    prepare(patroni)
    agent, machine, primary = patroni.agents["cn-1"], patroni.machines["cn-1"], patroni.machines["wk1-1"]
    clients = Clients(patroni, machine, "wk1")
    with clients.at_work():
        clients.wait_for_progress()
        answer = announce(patroni, within_ms=2000)
        assert (answer["waited_for"], answer["why"]) == (["3 of 3 agents"], "")
        assert room_of(machine)
        agent.wait_for_target("wk1", primary.address)
        agent.wait_for_line(rf"wk1: the stop of .* is over.*{primary.address} did not stop")
        clients.wait_for_progress()
        assert max(clients.waits_s) > 2.0

        # One that never answers, as an agent of an older version.
        patroni.connect(primary, user="resolver_agent", dbname="postgres")
        before, since = len(clients.waits_s), len(agent.lines)
        answer = announce(patroni)
        assert answer["waited_for"] == ["3 of 4 agents"]
        assert 500 <= answer["waited_ms"] < 2500
        room_of(machine)
        assert patroni.ask_agent(primary, "before-stop-cancel") == {"announced": True}
        agent.wait_for_target("wk1", primary.address)
        clients.wait_for_progress()
        agent.wait_for_line("wk1: the stop of .* is over", since=since)
    assert clients.failed == []
    assert max(clients.waits_s[before:]) < 5.5


def test_nobody_is_promoted(patroni: PatroniCluster) -> None:
    """Clients wait no longer than ``queue.planned`` and then get errors; when the primary is back, all is right."""
    prepare(patroni, queue={"planned": "3s"})
    agent, machine, primary = patroni.agents["cn-1"], patroni.machines["cn-1"], patroni.machines["wk1-1"]
    clients = Clients(patroni, machine, "wk1")
    with clients.at_work():
        clients.wait_for_progress()
        stop_for_long(patroni)
        agent.wait_for_line("alert: wk1.* stopped as announced, and nobody took its place in time")
        agent.wait_for_target("wk1", primary.address)
        wait_until(lambda: len(clients.failed) >= 4)
        begun = [began for began, _ in clients.failed]
        assert time.monotonic() - min(begun) < 15
        primary.server.start(wait=False)
        agent.wait_for_line("over: wk1.* nobody took its place in time", timeout_s=30)
        clients.wait_for_progress()
    assert agent.target("wk1") == primary.address
    alerts = patroni.ask_agent(machine, "status", timeout_s=10)["alerts"]
    assert not [one for one in alerts if one["key"].startswith(("waited", "queued"))]


def test_no_room(patroni: PatroniCluster) -> None:
    """Where all addresses of a room are taken the hook returns in time, and names move as without a queue."""
    prepare(patroni)
    machine, standby = patroni.machines["cn-1"], patroni.machines["wk1-2"]
    with contextlib.ExitStack() as taken:
        for attempt in range(8):
            listener = taken.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((room_address(WK1, attempt), patroni.site.port))
            listener.listen()
        clients = Clients(patroni, machine, "wk1")
        with clients.at_work():
            clients.wait_for_progress()
            switch_over(patroni)
            patroni.agents["cn-1"].wait_for_target("wk1", standby.address)
            clients.wait_for_progress()
    line = patroni.agents["wk1-1"].wait_for_line("before-stop answered after")
    assert int(line.partition("answered after ")[2].split()[0]) < 3000
    assert "3 of 3 agents" in line
    for agent in patroni.agents.values():
        assert count(agent, "there is no waiting room: ") <= 1
    assert count(patroni.agents["cn-1"], "wk1: there is no waiting room: ") == 1
    assert max(clients.waits_s) < 10


def test_forged(patroni: PatroniCluster) -> None:
    """Only agents are heard, and only about the groups whose primary they speak over."""
    prepare(patroni)
    port, primary = patroni.site.port, patroni.machines["wk1-1"]
    primary.server.run_sql("CREATE ROLE mallory LOGIN")
    others = [agent for name, agent in patroni.agents.items() if name != "wk1-1"]
    since = {agent: len(agent.lines) for agent in patroni.agents.values()}
    speaker, mallory = Speaker(patroni, "resolver_agent"), Speaker(patroni, "mallory")
    wk1, cn = f"{primary.address}:{port}", f"{patroni.machines['cn-1'].address}:{port}"
    mallory.say(Kind.LEAVES, "a" * 8, node=wk1, wait_s=5)
    mallory.say(Kind.OTHERS, "a" * 8)
    speaker.say(Kind.LEAVES, "b" * 8, node=cn, wait_s=5)
    speaker.hear(Kind.CLEAR, of="b" * 8, count=4)
    speaker.say(Kind.OTHERS, "b" * 8)
    for agent in patroni.agents.values():
        said = agent.lines[since[agent] :]
        assert not [line for line in said if "stops as announced" in line or "127.77." in line]

    # What an agent says itself about this server counts, whoever knows its id may not say more.
    speaker.say(Kind.LEAVES, "c" * 8, node=wk1, wait_s=2)
    speaker.hear(Kind.HELD, of="c" * 8, count=2)
    mallory.say(Kind.OTHERS, "c" * 8)
    speaker.say(Kind.LEAVES, "d" * 8, node=cn, wait_s=5)
    speaker.hear(Kind.CLEAR, of="d" * 8, count=4)
    for agent in others:
        assert agent.target("wk1") in {primary.address, patroni.machines["wk1-2"].address}
    speaker.say(Kind.STAYS, "c" * 8)
    for agent in patroni.agents.values():
        assert not [line for line in agent.lines[since[agent] :] if re.search(" (WARNING|ERROR|CRITICAL) ", line)]


def test_the_agent_that_announced_is_killed(patroni: PatroniCluster, background: ThreadPoolExecutor) -> None:
    """When the agent beside a server is killed while it waits its hook ends, and the others' names stay."""
    prepare(patroni)
    primary, machine, agent = patroni.machines["wk1-1"], patroni.machines["cn-1"], patroni.agents["cn-1"]
    speaker = Speaker(patroni, "resolver_agent")
    clients = Clients(patroni, machine, "wk1")
    with clients.at_work():
        clients.wait_for_progress()
        answer = background.submit(announce, patroni)
        leaves = speaker.hear(Kind.LEAVES)
        speaker.say(Kind.HELD, leaves.id, coordinator=True)  # and is never clear
        agent.wait_for_line("stops as announced")
        patroni.kill_agent(primary)
        with pytest.raises(ControlError):
            answer.result(timeout=2)
        wait_until(lambda: windows(patroni, machine))

        wait_until(lambda: not windows(patroni, machine))
        clients.wait_for_progress()
    assert clients.failed == []
    assert agent.target("wk1") == primary.address


def test_the_agent_with_the_room_is_killed(patroni: PatroniCluster, background: ThreadPoolExecutor) -> None:
    """An agent that was killed goes on with the room where it was, and none leads to the old primary as a standby."""
    prepare(patroni, queue={"planned": "60s"})
    machine, (primary, standby) = patroni.machines["cn-1"], patroni.groups["wk1"]
    stop_for_long(patroni)
    room = room_of(machine)
    patroni.kill_agent(machine)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((room, patroni.site.port))
    assert machine.names["wk1"] == room

    agent = patroni.start_agent(machine, queue={"planned": "60s"})
    agent.wait_for_line(rf"wk1 → {room}")
    insert = through_wk1(patroni, machine, background, "INSERT INTO marks VALUES (7) RETURNING id")
    wait_until(lambda: any(one["name"] == "wk1" and one["waiting"] for one in windows(patroni, machine)))
    assert machine.names["wk1"] == room

    primary.server.write("standby.signal", "")
    primary.server.start(wait=False)
    agent.wait_for_line(rf"{primary.address}:{patroni.site.port} is standby", timeout_s=30)
    sleep = through_wk1(patroni, machine, background, "SELECT 8 FROM pg_sleep(1.5)")
    standby.server.promote()
    assert insert.result(timeout=20).fetchall() == [(7,)]
    assert patroni.run_sql(standby, "SELECT id FROM marks") == [(7,)]
    agent.wait_for_target("wk1", standby.address)
    assert not [line for line in agent.lines if f"wk1 → {primary.address}" in line]

    # An agent that is stopped lets what it forwards end.
    standby.server.wait_until("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT 8 FROM%'")
    assert patroni.stop_agent(machine) == 0
    assert sleep.result(timeout=20).fetchall() == [(8,)]


def test_the_server_beside_a_room_restarts(patroni: PatroniCluster, background: ThreadPoolExecutor) -> None:
    """A room never delays the stop or the start of its own node's server, and is there again afterwards."""
    prepare(patroni, queue={"planned": "2min"})
    machine, (_, standby) = patroni.machines["cn-1"], patroni.groups["wk1"]
    agent = patroni.agents["cn-1"]
    stop_for_long(patroni)
    for hook in (None, "true"):
        outside = socket.create_connection((room_of(machine), patroni.site.port), timeout=5)
        if hook is not None:  # without ours
            patroni.reconfigure(machine, postgresql={"before_stop": hook})
        waiting = through_wk1(patroni, machine, background, "SELECT 1")
        machine.server.wait_until(
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%dblink%found%' AND pid <> pg_backend_pid()"
        )
        since, begun = len(agent.lines), time.monotonic()
        status, answer = patroni.rest(machine, "POST", "/restart", {}, timeout_s=60)
        assert status == 200, answer
        assert time.monotonic() - begun < 12, "its sessions waited in the room"
        with outside, pytest.raises(ConnectionResetError):
            outside.recv(1)
        with pytest.raises(psycopg.OperationalError):
            waiting.result(timeout=5)
        agent.wait_for_line("wk1: its waiting room was open for .* the local PostgreSQL stops", since=since)
        agent.wait_for_line(rf"alert: wk1 → {ROOMS}", since=since)
    last = through_wk1(patroni, machine, background, "SELECT 2")
    standby.server.promote()
    assert last.result(timeout=20).fetchall() == [(2,)]
    agent.wait_for_target("wk1", standby.address)
