"""One agent, while thousands of mutated conversations come to it from servers, Patronis and clients: names move on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from resolver_agent.control import client
from tests.integration.conftest import Agent
from tests.integration.support.agent_state import FENCE
from tests.integration.support.fuzzed import Fuzzed, postgres, recorded, rest
from tests.integration.support.hostile_postgres import HONEST_ROW, FakeServer
from tests.unit.fuzz.mutation import mutated
from tests.unit.fuzz.targets import TARGETS, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resolver_agent.demo.postgres import Postgres, Site

_GOOD = ["127.0.93.21", "127.0.93.22"]
_NAMES, _NODES = 60, 3
_WITH_SERVERS, _WITH_PATRONIS, _WITH_CLIENTS = 2000, 1000, 50
"""How many conversations there have to be."""

_LIMIT_S = 180
_MEMORY_KIB = 64 << 10
_MOST_S = 3.0
"""How long the agent may compute until a request is answered: its loop serves all the others meanwhile, too.

It is processor time: how long it waits for a processor says nothing on a machine that others use too.
"""

_PATRONI = 8008


@dataclasses.dataclass(frozen=True)
class Scene:
    """An agent, its two honest servers, and everything else that speaks to it."""

    agent: Agent
    control: str
    http: tuple[str, int]
    good: list[FakeServer]
    servers: Fuzzed
    patronis: Fuzzed


def primary(run: int) -> list[bytes | None]:
    """Return the row of an honest primary; each number is another run of a server."""
    return [b"f", *HONEST_ROW[1:4], b"170000000000000%d" % run, None]


@pytest.fixture(scope="module")
def real(site: Site) -> Iterator[list[bytes]]:
    """What a real PostgreSQL says to a probe."""
    server: Postgres = site.primary("fuzzed", "127.0.4.21")
    server.run_sql("CREATE ROLE resolver_agent LOGIN")
    yield recorded(server.address, server.port, "resolver_agent")
    server.kill()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, real: list[bytes]) -> Iterator[Scene]:
    """Start an agent among servers that were never honest, but for those of the name ``good``."""
    folder = tmp_path_factory.mktemp("fuzz")
    hosts, config = folder / "hosts", folder / "resolver-agent.yml"
    hosts.write_text("127.0.0.1\tlocalhost\n")
    with socket.create_server((_GOOD[0], 0)) as one, socket.create_server((_GOOD[0], 0)) as other:
        port, http_port = one.getsockname()[1], other.getsockname()[1]
    addresses = [f"127.0.94.{number}" for number in range(1, _NAMES * _NODES + 1)]
    names = {f"f-{number}": {"nodes": addresses[number::_NAMES]} for number in range(_NAMES)}
    asked = {"patroni": {"port": _PATRONI, "networks": ["127.0.94.0/24"]}}
    settings = {
        "fallback": "none",
        "names": {"good": {"nodes": _GOOD}, **{name: {**nodes, **asked} for name, nodes in names.items()}},
        "postgresql": {"user": "resolver_agent", "dbname": "postgres"},
        "local": {"host": str(folder)},
        "port": port,
        "timeout": "1s",
        "citus": "off",
        "hosts_file": str(hosts),
        "runtime_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
        "http": {"listen": f"{_GOOD[0]}:{http_port}"},
    }
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    told = [
        b"HTTP/1.0 " + one.replace(b"\n", b" X\r\n\r\n", 1) for name in ("leader", "members") for one in seeds(name)
    ]
    chance = random.Random(1)  # noqa: S311 -- a seed, to repeat it
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeServer(folder, port, row=[b"f", b"1", b"1", b"99", b"1", None]))
        good = [stack.enter_context(FakeServer(address, port)) for address in _GOOD]
        good[0].row = primary(1)
        servers = stack.enter_context(Fuzzed(addresses, port, postgres(real, chance)))
        patronis = stack.enter_context(Fuzzed(addresses, _PATRONI, rest(told, chance)))
        agent = stack.enter_context(Agent(config, hosts_file=hosts))
        agent.wait_for_target("good", _GOOD[0], timeout_s=60)
        control = client.socket_path(str(folder / "run"))
        yield Scene(agent, control, (_GOOD[0], http_port), good, servers, patronis)


def memory_kib(agent: Agent, field: str) -> int:
    """Return a figure of a process's memory from /proc."""
    [line] = [line for line in Path(f"/proc/{agent.process.pid}/status").read_text().splitlines() if field in line]
    return int(line.split()[1])


def computed_s(agent: Agent) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def send(connection: socket.socket, data: bytes) -> bytes:
    """Send a request over a new connection, and return all that comes back."""
    told = bytearray()
    with connection, contextlib.suppress(OSError):
        connection.settimeout(5)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while some := connection.recv(1 << 16):
            told += some
    return bytes(told)


@contextlib.contextmanager
def clients(ask: Callable[[bytes], bytes], name: str) -> Iterator[list[bytes]]:
    """Send mutated requests of a target all the time, and yield the answers."""
    known, words, chance = seeds(name), TARGETS[name].words, random.Random(2)  # noqa: S311
    answers: list[bytes] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            answers.append(ask(mutated(chance.choice(known), chance, others=known, words=words)))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()


def test_names_move_while_everybody_talks_nonsense(
    scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    """Thousands of conversations cost the honest name nothing, nor the event loop, nor memory without limit."""
    agent, waits, memory_before_kib = scene.agent, list[float](), memory_kib(scene.agent, "VmRSS")

    def over_control(data: bytes) -> bytes:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(scene.control)
        return send(connection, data)

    def over_http(data: bytes) -> bytes:
        return send(socket.create_connection(scene.http), data)

    until = time.monotonic() + _LIMIT_S
    with clients(over_control, "request") as answers, clients(over_http, "http-request") as pages:
        while (
            scene.servers.count < _WITH_SERVERS
            or scene.patronis.count < _WITH_PATRONIS
            or min(len(answers), len(pages)) < _WITH_CLIENTS
        ):
            assert time.monotonic() < until, (scene.servers.count, scene.patronis.count, len(answers), len(pages))
            begun = computed_s(agent)
            client.ask(scene.control, "pre-promote-check", timeout_s=30)
            waits.append(computed_s(agent) - begun)
            time.sleep(0.02)
        for turn in range(2, 6):
            old, new = scene.good[turn % 2], scene.good[(turn + 1) % 2]
            old.row = HONEST_ROW
            new.row = primary(turn)
            begun = computed_s(agent)
            old.hang_up()
            agent.wait_for_target("good", _GOOD[(turn + 1) % 2], timeout_s=30)
            waits.append(computed_s(agent) - begun)
    grown_kib = memory_kib(agent, "VmHWM") - memory_before_kib
    record_property("conversations", (scene.servers.count, scene.patronis.count, len(answers), len(pages)))
    record_property("longest computation in ms", round(max(waits) * 1000))
    record_property("memory in KiB", grown_kib)
    assert max(waits) < _MOST_S
    assert grown_kib < _MEMORY_KIB
    assert all(not one or isinstance(json.loads(one), dict) for one in answers)
    assert all(not one or one.startswith(b"HTTP/1.1 ") for one in pages)


def test_no_name_leads_elsewhere(scene: Scene) -> None:
    """Whatever they said, a name has an address of its own nodes, or none."""
    for number in range(_NAMES):
        address = scene.agent.target(f"f-{number}") or FENCE
        assert address == FENCE or address.startswith("127.0.94.")


def test_nothing_odd_is_printed(scene: Scene) -> None:
    """What they said is logged in lines that a terminal can show, and no defect of the agent is among them."""
    assert [line for line in scene.agent.lines if not line.isprintable() or "Traceback" in line] == []
    assert scene.agent.stop() == 0
