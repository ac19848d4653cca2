"""A node by DNS name: which of its addresses is tried when, and what faults of this host are taken for."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.observe.probe import Prober
from resolver_agent.routing.observation import ProbeFailure, Role
from tests.integration.support.hostile_postgres import FakeServer

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD, SILENT, REFUSING = "127.0.95.1", "127.0.95.2", "127.0.95.3"
MANY = [f"127.0.96.{number}" for number in range(1, 16)]


class Names:
    """Stands in for ``socket.getaddrinfo``: gives these addresses, fails with this error, or hangs."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.error: OSError | None = None
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        """Return what ``socket.getaddrinfo`` would."""
        self.answers.wait()
        if self.error is not None:
            raise self.error
        return [(0, 0, 0, "", (address, 0)) for address in self.addresses]


@pytest.fixture
def port() -> Iterator[int]:
    """The port of an honest server at ``GOOD``; ``SILENT`` takes connections and says nothing."""
    with socket.create_server((SILENT, 0)) as silent:
        port = silent.getsockname()[1]
        with FakeServer(GOOD, port):
            yield port


def prober(port: int, names: Names) -> Prober:
    """Return a prober of a node by name."""
    return Prober({"host": "db.example", "port": str(port)}, timeout_s=1, getaddrinfo=names)


def test_a_silent_address_has_its_share_of_the_time_once(port: int) -> None:
    """The next address is reached within the timeout, and from then on it is the first."""

    async def connect() -> None:
        one = prober(port, Names(SILENT, GOOD))
        assert await one.connect() is None
        seen = await one.ask()
        assert seen is not None
        assert (seen.result, seen.address) == (Role.STANDBY, GOOD)
        one.close()
        begun = time.monotonic()
        assert await one.connect() is None
        assert time.monotonic() - begun < 0.4
        one.close()

    asyncio.run(connect())


def test_silence_of_one_address_is_no_death(port: int) -> None:
    """One address refuses, the other is silent: it may be alive."""

    async def connect() -> None:
        seen = await prober(port, Names(REFUSING, SILENT)).connect()
        assert seen is not None
        assert (seen.result, seen.detail) == (ProbeFailure.UNREACHABLE, "Connection refused; no answer")

    asyncio.run(connect())


def test_of_many_addresses_each_is_tried_some_time(port: int) -> None:
    """No more than each has time for at once, and the others by turns."""

    async def connect() -> None:
        one = prober(port, Names(*MANY, GOOD))
        failures = 0
        while await one.connect() is not None:
            failures += 1
            assert failures < 6
        assert failures > 0
        one.close()

    asyncio.run(connect())


@pytest.mark.parametrize("fault", ["hangs", "fails"])
def test_a_look_up_that_does_not_work_leaves_the_last_addresses(fault: str, port: int) -> None:
    """A name server that is away hides no server that was reached before."""

    async def connect() -> None:
        names = Names(GOOD)
        one = prober(port, names)
        assert await one.connect() is None
        one.close()
        if fault == "hangs":
            names.answers.clear()
        names.error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        assert await one.connect() is None
        one.close()
        names.answers.set()

    asyncio.run(connect())


def test_no_thread_for_a_moment_is_no_death(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of this host says nothing of the server, and the next connect works."""

    async def connect() -> None:
        one = Prober({"host": GOOD, "port": str(port)}, timeout_s=1)

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            seen = await one.connect()
        assert seen is not None
        assert (seen.result, seen.detail) == (ProbeFailure.REJECTING, "can't start new thread")
        assert await one.connect() is None
        one.close()

    asyncio.run(connect())


def test_no_descriptor_for_a_moment_is_no_death(port: int) -> None:
    """As without a thread."""

    async def connect() -> None:
        one = Prober({"host": GOOD, "port": str(port)}, timeout_s=1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.ExitStack() as taken:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            with contextlib.suppress(OSError):
                while True:
                    taken.enter_context(open("/dev/null"))  # noqa: ASYNC230, PTH123 -- it reads nothing
            seen = await one.connect()
        assert seen is not None
        assert seen.result is ProbeFailure.REJECTING
        assert seen.detail
        assert await one.connect() is None
        one.close()

    asyncio.run(connect())
