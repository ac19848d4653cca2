"""A monitor with a record of its observations, and fake servers and name servers for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from resolver_agent.config.model import Config, Node
from resolver_agent.observe.monitor import Monitor
from resolver_agent.system.clock import boottime
from tests.integration.conftest import ROLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from resolver_agent.demo.postgres import Postgres
    from resolver_agent.routing.observation import Identity, NodeState, Observation, ProbeFailure, Role

FAULTY = "127.0.4.9"
"""Where listeners of the tests' own stand, on the servers' port."""

WHO = "SELECT pid FROM pg_stat_activity WHERE usename = %s ORDER BY pid"
END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"

off_loop = asyncio.to_thread
"""Servers block: whatever is done to them while a monitor watches is done in a thread."""


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own, and check that it leaves no task behind."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def guarded() -> None:
            await asyncio.wait_for(test(*args, **kwargs), 60)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left

        asyncio.run(guarded())

    return run


class Sight:
    """A monitor with a record of its observations."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.record: list[tuple[Node, Observation, float]] = []
        """In order: which node, what was seen of it for the first time, and when that was known."""
        self._known: dict[Node, Observation] = {}

    def state(self, node: Node) -> NodeState:
        """Return the current state of a node."""
        return self.monitor.nodes[node]

    def results(self, node: Node) -> list[Role | ProbeFailure]:
        """Return the results of a node's probes, in order."""
        return [
            result for result, _ in itertools.groupby(seen.result for whose, seen, _ in self.record if whose == node)
        ]

    async def until(self, condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
        """Wait until a condition holds, by polling: it may hold without a change event."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "\n".join(["not in time; seen:", *map(str, self.record)])
            await asyncio.sleep(0.001)
        self.note()

    async def until_result(self, node: Node, *results: Role | ProbeFailure) -> NodeState:
        """Wait until the newest observation of a node has one of these results, and return the node's state."""

        def seen() -> bool:
            latest = self.state(node).latest
            return latest is not None and latest.result in results

        await self.until(seen)
        return self.state(node)

    async def probes(self, node: Node, *, for_s: float) -> list[float]:
        """Return the start times of the probes of a node that were answered within the next seconds."""
        found: dict[float, None] = {}
        until = boottime() + for_s
        while boottime() < until:
            latest = self.state(node).latest
            if latest is not None:
                found[latest.at] = None
            await asyncio.sleep(0.001)
        return list(found)

    async def keep_record(self) -> None:
        """Record changes as they come."""
        while True:
            await self.monitor.changed.wait()
            self.monitor.changed.clear()
            self.note()

    def note(self) -> None:
        """Record what is new."""
        self.monitor.check()
        for node, state in self.monitor.nodes.items():
            latest, known = state.latest, self._known.get(node)
            if latest is not None and (known is None or (latest.result, latest.detail) != (known.result, known.detail)):
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
    """Return the server's identity."""
    found = role(state)
    assert found.identity is not None
    return found.identity


def node_of(server: Postgres) -> Node:
    """Return a server's node."""
    return Node(server.address, server.port)


def ours(server: Postgres) -> list[int]:
    """Return the process ids of the agent's sessions on a server."""
    return [pid for (pid,) in server.run_sql(WHO, [ROLE])]


@contextlib.contextmanager
def running_with(server: Postgres, *, until: str = "", **parameters: str) -> Iterator[None]:
    """Run a server with other parameters for a while; given a log line, as a standby, until it has logged that."""
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
    """Freeze a server (SIGSTOP)."""
    server.pause()
    yield {}
    server.resume()


def message(kind: bytes, body: bytes) -> bytes:
    """Return a message of PostgreSQL's protocol."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


READY = message(b"Z", b"I")
VALUES = [b"f", b"42", b"00000007", b"1", b"2", b"3"]
ROW = (
    message(b"T", b"\0\6" + b"".join(b"c\0" + bytes(6) + b"\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0" for _ in VALUES))
    + message(b"D", b"\0\6" + b"".join(len(value).to_bytes(4, "big") + value for value in VALUES))
    + message(b"C", b"SELECT 1\0")
)
TERMINATED = message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0")


class FakePostgres:
    """Accepts every login, and answers each session's queries by its number as the script says, then hangs up.

    An answer of None is silence until the client ends the session.
    """

    def __init__(self, port: int, script: Callable[[int], Sequence[bytes | None]]) -> None:
        self.sessions = 0
        self._port = port
        self._script = script

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """Listen on ``FAULTY``."""
        async with await asyncio.start_server(self._serve, FAULTY, self._port):
            yield self
        # A session that was accepted at the very end is a task that has not begun.
        while left := [task for task in asyncio.all_tasks() if self._serves(task)]:
            await asyncio.wait(left)

    def _serves(self, task: asyncio.Task[Any]) -> bool:
        return getattr(task.get_coro(), "__name__", "") in ("_accept_connection2", self._serve.__name__)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
