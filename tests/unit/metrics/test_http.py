"""The server for load balancers and monitoring: whom it answers, and whom it does not let harm others."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.config.model import Node
from resolver_agent.metrics.http import Answer, HttpServer

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.72.1"
LARGE = b"x" * 8_000_000


def free_port(host: str = HOST) -> int:
    """Return a port that nobody listens on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


async def ready() -> Answer:
    """Answer that all is well."""
    return Answer(200, b'{"ok": true}\n', "application/json")


async def unfit() -> Answer:
    """Answer that something is not."""
    return Answer(503, b'{"ok": false}\n', "application/json")


async def large() -> Answer:
    """Answer with more than a socket's buffers hold."""
    return Answer(200, LARGE, "text/plain")


async def fail() -> Answer:
    """Raise an unexpected exception."""
    raise ZeroDivisionError("of no use")


HANDLERS = {"/ready": ready, "/unfit": unfit, "/large": large, "/fail": fail}


def served(client: Callable[[Node], Any], *, host: str = HOST, **settings: float) -> Any:
    """Serve at a free port, run ``client`` in a thread, and return what it returns."""

    async def serve() -> Any:
        where = Node(host, free_port(host))
        server = HttpServer(HANDLERS, changed=lambda: None, **settings)
        server.listen(where)
        try:
            return await asyncio.to_thread(client, where)
        finally:
            await server.close()

    return asyncio.run(serve())


def ask(where: Node, path: str = "/ready", method: str = "GET") -> tuple[int, bytes]:
    """Return the status and the content of an answer."""
    connection = http.client.HTTPConnection(where.host, where.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def connect(where: Node) -> socket.socket:
    """Open a connection that says nothing."""
    return socket.create_connection((where.host, where.port), timeout=10)


def raw(where: Node, request: bytes) -> bytes:
    """Return the answer to arbitrary bytes."""
    with connect(where) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("host", [HOST, "::1"])
def test_answers(host: str) -> None:
    """The status says how it is, and the content why; a query is not looked at."""

    def client(where: Node) -> list[tuple[int, bytes]]:
        return [ask(where, path) for path in ("/ready", "/unfit", "/ready?lag=1MB")]

    yes, no = (200, b'{"ok": true}\n'), (503, b'{"ok": false}\n')
    assert served(client, host=host) == [yes, no, yes]


@pytest.mark.parametrize(("method", "length"), [("HEAD", "1"), ("OPTIONS", "0")])
def test_without_content(method: str, length: str) -> None:
    """HAProxy's checks get the status alone; HEAD says how much GET would get, and OPTIONS has nothing to get."""

    def client(where: Node) -> list[bytes]:
        request = f"{method} {{}} HTTP/1.0\r\n\r\n"
        return [raw(where, request.format(path).encode()) for path in ("/ready", "/unfit")]

    for status, answer in zip((b"200", b"503"), served(client), strict=True):
        head, _, content = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        assert b"Connection: close" in head
        assert content == b""
        assert f"Content-Length: {length}".encode() in head


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GET /nothing HTTP/1.1\r\n\r\n", 404, id="no such path"),
        pytest.param(b"GET /ready/ HTTP/1.1\r\n\r\n", 404, id="almost a path"),
        pytest.param(b"GET http://db1:8009/ready HTTP/1.1\r\n\r\n", 200, id="a whole address"),
        pytest.param(b"POST /ready HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405, id="another method"),
        pytest.param(b"DELETE /ready HTTP/1.1\r\n\r\n", 405, id="a method that changes"),
        pytest.param(b"GET /ready\r\n\r\n", 400, id="HTTP 0.9"),
        pytest.param(b"GET /ready HTTP/2.0\r\n\r\n", 400, id="a later version"),
        pytest.param(b"GET  /ready HTTP/1.1\r\n\r\n", 400, id="two spaces"),
        pytest.param(b"\xff\xfe\x00\r\n\r\n", 400, id="no text"),
        pytest.param(b"\r\n\r\n", 400, id="nothing"),
        pytest.param(b"GET /\x1b[2J HTTP/1.1\r\n\r\n", 400, id="a terminal sequence"),
        pytest.param(b"GET /ready HTTP/1.1\r\nX: " + b"x" * 9000, 431, id="too long a head"),
        pytest.param(b"GET /" + b"x" * 9000, 431, id="too long a line"),
    ],
)
def test_nonsense_is_answered_too(request_: bytes, status: int) -> None:
    """A bad request gets a status, and the next client is answered all the same."""

    def client(where: Node) -> tuple[int, int]:
        connection = connect(where)
        with connection:
            connection.sendall(request_)
            answer = connection.recv(12)
        return int(answer.split()[1]), ask(where)[0]

    assert served(client) == (status, 200)


def test_a_defect_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Who asks gets an error each time, and the log one traceback."""
    answers = served(lambda where: [ask(where, "/fail")[0] for _ in range(3)])
    assert answers == [500, 500, 500]
    assert [(record.levelno, record.message) for record in caplog.records if record.name.startswith("resolver")] == [
        (logging.ERROR, "/fail cannot be answered over HTTP")
    ]


def test_silent_clients_keep_nobody_out() -> None:
    """However many connect and say nothing, or not all, the next one that asks is answered at once."""

    def client(where: Node) -> float:
        silent = [connect(where) for _ in range(100)]
        for number, one in enumerate(silent):
            one.sendall(b"GET /"[: number % 3])
        begun = time.monotonic()
        assert ask(where)[0] == 200
        took_s = time.monotonic() - begun
        for one in silent:
            one.close()
        return took_s

    assert served(client, ask_s=60) < 5


def test_a_silent_client_is_disconnected() -> None:
    """Who asks nothing in time is cut off."""

    def client(where: Node) -> bytes:
        with connect(where) as silent:
            silent.sendall(b"GET /ready HTTP/1.1\r\n")
            return silent.recv(1)

    assert served(client, ask_s=0.1) == b""


def test_a_client_that_does_not_read() -> None:
    """Who does not take the answer delays nobody, and is cut off in time; who reads gets all of it."""

    async def serve() -> tuple[int, bool]:
        where = Node(HOST, free_port())
        server = HttpServer(HANDLERS, changed=lambda: None, read_s=0.5)
        server.listen(where)
        with await asyncio.to_thread(connect, where) as lazy:
            lazy.sendall(b"GET /large HTTP/1.1\r\n\r\n")
            status, content = await asyncio.to_thread(ask, where, "/large")
            assert content == LARGE
            await asyncio.gather(*server._open, return_exceptions=True)
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while piece := lazy.recv(1 << 20):
                    got += len(piece)
        await server.close()
        return status, got < len(LARGE)

    assert asyncio.run(asyncio.wait_for(serve(), 20)) == (200, True)


def test_a_client_that_is_gone() -> None:
    """Clients that reset the connection at any time leave the server as it was."""

    def client(where: Node) -> int:
        for request in (b"", b"GET", b"GET /large HTTP/1.1\r\n\r\n"):
            for _ in range(5):
                one = connect(where)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                one.sendall(request)
                one.close()
        return ask(where)[0]

    assert served(client) == 200


class Moving:
    """A server in a loop, which notes the alert at each change."""

    def __init__(self) -> None:
        self.alerts: list[str | None] = []
        self.news = asyncio.Event()
        self.server = HttpServer(HANDLERS, changed=self._note)

    def _note(self) -> None:
        self.alerts.append(self.server.alert.text if self.server.alert is not None else None)
        self.news.set()


def test_a_reload_moves_it() -> None:
    """The new address answers, the old one no longer; the same one again changes nothing."""

    async def move() -> None:
        moving, (old, new) = Moving(), (Node(HOST, free_port()), Node("127.0.72.2", free_port("127.0.72.2")))
        moving.server.listen(old)
        assert (await asyncio.to_thread(ask, old))[0] == 200
        moving.server.listen(new)
        moving.server.listen(new)
        assert (await asyncio.to_thread(ask, new))[0] == 200
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(ask, old)
        moving.server.listen(Node("0.0.0.0", new.port))  # on the same port: the old one is free at once
        assert (await asyncio.to_thread(ask, new))[0] == 200
        moving.server.listen(None)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(ask, new)
        assert moving.alerts == []
        await moving.server.close()

    asyncio.run(move())


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an alert until the port is free, and then it is answered."""
    monkeypatch.setattr("resolver_agent.metrics.http._FIRST_RETRY_S", 0.01)

    async def take() -> None:
        moving = Moving()
        with socket.create_server((HOST, 0)) as other:
            where = Node(HOST, other.getsockname()[1])
            moving.server.listen(where)
            [said] = moving.alerts
            assert said == f"http.listen: nobody can ask at {where}: Address already in use; it is tried again"
            assert moving.server.alert is not None
            assert moving.server.alert.key == "http"
        moving.news.clear()
        await asyncio.wait_for(moving.news.wait(), 10)
        assert moving.alerts == [said, None]
        assert (await asyncio.to_thread(ask, where))[0] == 200
        await moving.server.close()

    asyncio.run(take())


def test_an_address_that_is_not_here() -> None:
    """An alert as well; another address ends it at once."""

    async def take() -> None:
        moving = Moving()
        moving.server.listen(Node("192.0.2.1", 8009))
        moving.server.listen(None)
        assert [said is not None and "Cannot assign requested address" in said for said in moving.alerts] == [
            True,
            False,
        ]
        await moving.server.close()

    asyncio.run(take())


def test_close_ends_who_is_connected() -> None:
    """A stopping agent waits for nobody."""

    async def serve() -> bytes:
        where = Node(HOST, free_port())
        server = HttpServer(HANDLERS, changed=lambda: None)
        server.listen(where)
        silent = await asyncio.to_thread(connect, where)
        silent.sendall(b"GET")
        assert (await asyncio.to_thread(ask, where))[0] == 200  # so the first one was taken
        await server.close()
        with silent:
            return await asyncio.to_thread(silent.recv, 1)

    assert asyncio.run(serve()) == b""


def test_how_many_are_taken_at_a_time() -> None:
    """A flood is taken at a pace that leaves the loop to the agent, and none of it is refused."""
    answered: list[int] = []

    def client(where: Node) -> None:
        clients = [threading.Thread(target=lambda: answered.append(ask(where)[0])) for _ in range(60)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()

    begun = time.monotonic()
    served(client)
    assert answered == [200] * 60
    assert time.monotonic() - begun > 60 * 0.004
