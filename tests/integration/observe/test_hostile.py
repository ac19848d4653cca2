"""One agent against every hostile PostgreSQL at once: each is its own alert, and costs nobody else anything."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.integration.support.agent_process import Agent
from tests.integration.support.agent_state import status, wait_until
from tests.integration.support.hostile_postgres import HONEST_ROW, PEERS, FakeServer

if TYPE_CHECKING:
    from collections.abc import Iterator


_NET = "127.0.92."
_GOOD = ["127.0.93.1", "127.0.93.2"]
_MEMORY_KIB = 64 << 10
"""What all of the hostile peers together may cost: each has a few buffers of 64 KiB."""


@dataclasses.dataclass
class Scene:
    """An agent whose names have a hostile node each, but for ``good``, which has two honest ones."""

    agent: Agent
    config: Path
    port: int
    good: list[FakeServer]
    memory_before_kib: int

    def node(self, name: str) -> dict[str, Any]:
        """Return what the agent knows of the hostile node of a name."""
        address = f"{_NET}{list(PEERS).index(name) + 1}:{self.port}"
        nodes: dict[str, dict[str, Any]] = {node["node"]: node for node in status(self.config)["nodes"]}
        return nodes[address]


def primary(row: int) -> list[bytes | None]:
    """Return the row of an honest primary; each number is another run of a server."""
    return [b"f", *HONEST_ROW[1:4], b"170000000000000%d" % row, None]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Start all of them; every hostile server is honest at first, so that it has a state to lose."""
    folder = tmp_path_factory.mktemp("hostile")
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1\tlocalhost\n")
    with socket.create_server((_GOOD[0], 0)) as free:
        port = free.getsockname()[1]
    passfile = folder / "passfile"
    passfile.write_text("*:*:*:*:secret\n")
    passfile.chmod(0o600)
    addresses = {name: f"{_NET}{number}" for number, name in enumerate(PEERS, 1)}
    config = folder / "resolver-agent.yml"
    settings = {
        "fallback": "none",
        "names": {
            "good": {"nodes": _GOOD},
            **{f"h-{number}": {"nodes": [address]} for number, address in enumerate(addresses.values())},
        },
        "postgresql": {"user": "resolver_agent", "dbname": "postgres", "passfile": str(passfile)},
        "local": {"host": str(folder)},
        "port": port,
        "timeout": "1s",
        "citus": "off",
        "hosts_file": str(hosts),
        "runtime_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
    }
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeServer(folder, port, row=[b"f", b"1", b"1", b"99", b"1", None]))
        good = [stack.enter_context(FakeServer(address, port)) for address in _GOOD]
        good[0].row = primary(1)
        hostile = {name: stack.enter_context(FakeServer(address, port)) for name, address in addresses.items()}
        agent = stack.enter_context(Agent(config, hosts_file=hosts))
        agent.wait_for_target("good", _GOOD[0])
        before = memory_kib(agent, "VmHWM")
        for name, server in hostile.items():
            server.behaviour = PEERS[name].behaviour
            server.hang_up()
        yield Scene(agent, config, port, good, before)


def memory_kib(agent: Agent, field: str) -> int:
    """Return a figure of a process's memory from /proc."""
    [line] = [line for line in Path(f"/proc/{agent.process.pid}/status").read_text().splitlines() if field in line]
    return int(line.split()[1])


@pytest.mark.parametrize("name", PEERS)
def test_each_hostile_server_has_its_kind_and_its_words(name: str, scene: Scene) -> None:
    """What it does is said of it, in one line without control characters, and no death is made of it."""
    peer = PEERS[name]

    def seen() -> bool:
        node = scene.node(name)
        return node["kind"] == peer.result.value and bool(re.fullmatch(peer.words, node["detail"]))

    try:
        wait_until(seen, timeout_s=15)
    except AssertionError:
        pytest.fail(f"{scene.node(name)} is not {peer.result.value}: {peer.words}")


def test_a_failover_beside_them_is_followed_at_once(scene: Scene) -> None:
    """None of them has time of the event loop: the name of an honest group moves as ever."""
    for turn in range(2, 6):
        old, new = scene.good[turn % 2], scene.good[(turn + 1) % 2]
        old.row = HONEST_ROW
        new.row = primary(turn)
        begun = time.monotonic()
        old.hang_up()
        scene.agent.wait_for_target("good", _GOOD[(turn + 1) % 2])
        assert time.monotonic() - begun < 1


def test_memory_is_bounded(scene: Scene) -> None:
    """However much they send, little of it is ever read."""
    time.sleep(3)  # several rounds of reconnects
    assert memory_kib(scene.agent, "VmHWM") - scene.memory_before_kib < _MEMORY_KIB


def test_one_computation_for_each_server(scene: Scene) -> None:
    """A log-in that libpq computes for ever cannot be stopped; it stays the only one, and at the lowest priority."""
    niceness = os.getpriority(os.PRIO_PROCESS, scene.agent.process.pid)
    wait_until(lambda: [nice for nice, ticks in threads(scene.agent) if ticks > 50 and nice == 19], timeout_s=30)
    time.sleep(2)
    assert [nice for nice, ticks in threads(scene.agent) if nice > niceness] == [19]


def threads(agent: Agent) -> list[tuple[int, int]]:
    """Return the niceness and the CPU time (in ticks) of each of a process's threads."""
    found = []
    for task in Path(f"/proc/{agent.process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends before or while it is read
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            found.append((int(fields[16]), int(fields[11]) + int(fields[12])))
    return found


def test_nothing_odd_is_printed(scene: Scene) -> None:
    """Neither the log nor libpq prints what they sent."""
    assert [line for line in scene.agent.lines if not line.isprintable() or "NOTICE" in line] == []


def test_it_ends_in_time(scene: Scene) -> None:
    """A thread that computes neither delays the end nor crashes it (OpenSSL cleans up at exit unless told not to)."""
    begun = time.monotonic()
    assert scene.agent.stop() == 0
    assert time.monotonic() - begun < 3
