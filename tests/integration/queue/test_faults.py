"""What goes wrong around planned work, under a real Patroni: nobody waits for nothing, and names end up right."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.control.client import ControlError
from resolver_agent.observe.talk import CHANNEL
from resolver_agent.queue.message import Kind, Message, parse, render
from resolver_agent.routing.queue import room_address
from tests.integration.queue.test_switchover import prepare, switch_over
from tests.integration.support.agent_state import count, wait_until
from tests.integration.support.waiting import Clients

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import PatroniCluster

WK1 = 1
"""The place of wk1 among the names of the configuration."""


def announce(patroni: PatroniCluster, *, within_ms: int = 5500) -> dict[str, Any]:
    """Have the agent beside the primary of wk1 announce a stop, as the hook does, and return what it answers."""
    primary = patroni.machines["wk1-1"]
    primary.server.run_sql("CHECKPOINT")
    return patroni.ask_agent(primary, "before-stop", timeout_s=10, within_ms=within_ms)


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
