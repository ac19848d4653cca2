"""Waiting rooms with real sockets: who waits, who is served, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resolver_agent.demo.postgres import free_port
from resolver_agent.queue.room import Rooms, RoomState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ADDRESS = "127.77.0.1"
SERVER = "127.77.200.1"
DEADLINE_S = 20.0


class Server:
    """A server that a test accepts for by hand."""

    def __init__(self, port: int, files: contextlib.ExitStack, *, backlog: int) -> None:
        self._files = files
        self.listener = files.enter_context(socket.socket())
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((SERVER, port))
        self.listener.listen(backlog)
        self.listener.settimeout(DEADLINE_S)

    def accept(self) -> socket.socket:
        """Return the next connection."""
        one, _ = self.listener.accept()
        self._files.enter_context(one)
        one.settimeout(DEADLINE_S)
        return one


class Hall:
    """Rooms on one port, and a server on the same one."""

    def __init__(self, rooms: Rooms, files: contextlib.ExitStack) -> None:
        self.rooms = rooms
        self.port = free_port()
        self._files = files

    def open(self, name: str = "wk1", address: str = ADDRESS) -> None:
        """Open a room."""
        assert self.rooms.open(name, address, self.port) is None

    def serve(self, *, backlog: int = 4096) -> Server:
        """Start a server."""
        return Server(self.port, self._files, backlog=backlog)

    def come(self, address: str = ADDRESS) -> socket.socket:
        """Connect a client to a room."""
        client = self._files.enter_context(socket.create_connection((address, self.port), timeout=DEADLINE_S))
        client.settimeout(DEADLINE_S)
        return client

    def forward(self, name: str = "wk1") -> None:
        """Forward a room to the server."""
        self.rooms.forward(name, SERVER, self.port)

    def state(self, name: str = "wk1") -> RoomState:
        """Return a room's state."""
        return self.rooms.state(name)

    def pair(self, server: Server) -> tuple[socket.socket, socket.socket]:
        """Return a client's socket, and the server's for it, with one byte said."""
        client = self.come()
        client.sendall(b"!")
        served = server.accept()
        assert served.recv(1) == b"!"
        return client, served


@pytest.fixture
def hall() -> Iterator[Hall]:
    """Rooms that are stopped after the test, and then have no thread left."""
    rooms = Rooms()
    with contextlib.ExitStack() as files:
        yield Hall(rooms, files)
    asyncio.run(rooms.stop(within_s=0))
    assert thread() is None


def thread() -> threading.Thread | None:
    """Return the thread that forwards, if there is one."""
    return next((one for one in threading.enumerate() if one.name == "forwarder"), None)


def cpu_s() -> float:
    """Return what the thread that forwards has used, in seconds."""
    one = thread()
    assert one is not None
    assert one.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(one.ident))


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_reset(one: socket.socket) -> bool:
    """Reports whether a connection ends with a reset rather than with bytes or a polite end."""
    try:
        one.recv(1)
    except ConnectionResetError:
        return True
    return False


def fill(one: socket.socket) -> int:
    """Send until nothing has been taken for a while, and return how many bytes were."""
    one.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += one.send(bytes(65536))
    return sent


def say_all(one: socket.socket, data: bytes) -> None:
    """Send bytes, and that there are no more."""
    one.sendall(data)
    one.shutdown(socket.SHUT_WR)


def receive(one: socket.socket, count: int | None = None) -> bytes:
    """Return so many bytes, or all until the end."""
    got = bytearray()
    while count is None or len(got) < count:
        data = one.recv(1 << 20 if count is None else count - len(got))
        if not data:
            break
        got += data
    return bytes(got)


def test_clients_wait_and_are_served(hall: Hall) -> None:
    """A client connects at once, is not accepted until the room forwards, and then talks to the server."""
    hall.open()
    client = hall.come()
    client.sendall(b"ping")
    until(lambda: hall.state().waiting == 1)
    assert thread() is None
    time.sleep(0.1)  # it is what is measured
    server = hall.serve()
    hall.forward()
    served = server.accept()
    assert served.recv(4) == b"ping"
    served.sendall(b"pong")
    assert client.recv(4) == b"pong"
    state = hall.state()
    assert (state.waiting, state.forwarded, state.failed) == (0, 1, 0)
    assert 0.09 < state.longest_wait_s < 5
    later = hall.come()
    later.sendall(b"me too")
    assert server.accept().recv(6) == b"me too"
    served.close()


def test_the_options_of_both_sockets(hall: Hall) -> None:
    """Small packets are not held back, a dead peer is noticed, and a slow reader takes little of our memory."""
    hall.open()
    hall.forward()
    server = hall.serve()
    hall.pair(server)
    forwarder = hall.rooms._forwarder
    assert forwarder is not None
    [pair] = forwarder._pairs
    assert pair.server is not None
    for one in (pair.client, pair.server):
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            assert one.getsockopt(socket.SOL_SOCKET, buffer) <= 256 * 1024


def test_what_was_never_opened(hall: Hall) -> None:
    """A name without a room: nothing to forward, to close or to tell."""
    assert not hall.rooms.is_open("wk1")
    hall.forward()
    hall.rooms.close("wk1")
    hall.rooms.close_all()
    assert hall.state() == RoomState()
    assert thread() is None


@pytest.mark.parametrize("host", ["db.example", "", "127.0.0.1 ", ADDRESS])
def test_where_a_room_cannot_lead(hall: Hall, host: str) -> None:
    """Only to an address, so that nothing is looked up, and not to a room: that would never end."""
    hall.open()
    with pytest.raises(ValueError, match=r"no IP address|is a waiting room"):
        hall.rooms.forward("wk1", host, hall.port)


@pytest.mark.parametrize("address", ["0.0.0.0", ADDRESS])
def test_an_address_in_use(hall: Hall, address: str) -> None:
    """Whoever listens on all addresses or on this one is there first; the words say where to look."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((address, hall.port))
        other.listen()
        why_not = hall.rooms.open("wk1", ADDRESS, hall.port)
        assert why_not is not None
        assert why_not.startswith(f"{ADDRESS}:{hall.port} is in use")
        assert "listen_addresses" in why_not
        assert not hall.rooms.is_open("wk1")
    hall.open()


@pytest.mark.parametrize("address", ["192.0.2.1", "::1", "nowhere.example"])
def test_an_address_that_is_not_here(hall: Hall, address: str) -> None:
    """It is said in words, too."""
    why_not = hall.rooms.open("wk1", address, hall.port)
    assert why_not is not None
    assert why_not.startswith(f"{address}:{hall.port}: ")


def test_close_resets_who_waits(hall: Hall) -> None:
    """Who was accepted goes on; who was not is reset, and newcomers are refused."""
    hall.open()
    hall.forward()
    client, served = hall.pair(hall.serve())
    hall.open()
    waits = hall.come()
    until(lambda: hall.state().waiting == 1)
    hall.rooms.close("wk1")
    assert is_reset(waits)
    with pytest.raises(ConnectionRefusedError):
        hall.come()
    assert not hall.rooms.is_open("wk1")
    served.sendall(b"still here")
    assert client.recv(10) == b"still here"


def test_close_without_forwarding(hall: Hall) -> None:
    """A room that never forwarded has no thread, even if it should go on for a while."""
    hall.open()
    waits = hall.come()
    hall.rooms.close("wk1", after_s=10)
    assert is_reset(waits)
    assert thread() is None


def test_close_later(hall: Hall) -> None:
    """A room that forwards goes on accepting for so long; what became of all is known afterwards."""
    hall.open()
    hall.forward()
    server = hall.serve()
    hall.rooms.close("wk1", after_s=1)
    assert not hall.rooms.is_open("wk1")
    hall.pair(server)

    def is_refused() -> bool:
        with socket.socket() as one:
            return one.connect_ex((ADDRESS, hall.port)) == errno.ECONNREFUSED

    until(is_refused)
    assert hall.state().forwarded > 0
    hall.open()
    assert hall.state().forwarded == 0


def test_open_again_while_it_is_about_to_close(hall: Hall) -> None:
    """A second window at once: the room stays, and lets newcomers wait again."""
    hall.open()
    hall.forward()
    server = hall.serve()
    client, served = hall.pair(server)
    hall.rooms.close("wk1", after_s=0.2)
    hall.open()
    assert hall.rooms.is_open("wk1")
    waits = hall.come()
    waits.sendall(b"?")
    until(lambda: hall.state().waiting == 1)
    time.sleep(0.3)  # the time of the first close
    assert (hall.state().waiting, hall.state().forwarded) == (1, 0)
    hall.forward()
    assert server.accept().recv(1) == b"?"
    served.sendall(b"x")
    assert client.recv(1) == b"x"


def test_open_after_close(hall: Hall) -> None:
    """The address is free at once, although connections over it linger or go on."""
    for _ in range(5):
        hall.open()
        hall.forward()
        server = hall.serve()
        client, served = hall.pair(server)
        hall.rooms.close("wk1")
        server.listener.close()
        served.close()
        assert client.recv(1) == b""


def test_totals_outlive_a_room(hall: Hall) -> None:
    """What became of those who came is added up over all rooms of a name, whichever way the next one came about."""
    server, longest_s = hall.serve(), 0.0
    for forwarded in (1, 2, 3):
        hall.open()
        hall.forward()
        hall.pair(server)
        longest_s = max(longest_s, hall.state().longest_wait_s)
        total = hall.rooms.totals["wk1"]
        assert (hall.state().forwarded, total.forwarded) == (1, forwarded)
        assert (total.waiting, total.longest_wait_s) == (0, longest_s)
        hall.rooms.close("wk1", after_s=60 if forwarded == 1 else 0)


def test_another_address(hall: Hall) -> None:
    """The room of a name moves when its address does."""
    hall.open()
    hall.open(address="127.77.0.2")
    hall.come("127.77.0.2")
    with pytest.raises(ConnectionRefusedError):
        hall.come()


def test_close_all(hall: Hall) -> None:
    """All rooms close at once: PostgreSQL can have the port on all addresses right away."""
    hall.open()
    hall.open("wk2", "127.77.0.2")
    hall.forward()
    waits, dialled = hall.come("127.77.0.2"), hall.come()
    until(lambda: hall.state().waiting == 0)  # accepted, but there is no server
    hall.rooms.close_all()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", hall.port))
        other.listen()
    began = time.monotonic()
    assert is_reset(waits)
    assert receive(dialled) == b""
    assert time.monotonic() - began < 1
    assert hall.state().failed == 1
    until(lambda: thread() is None)


@pytest.mark.parametrize("who", ["client", "server"])
def test_half_closed(hall: Hall, who: str) -> None:
    """One side's end reaches the other, which goes on talking; then the connection is gone."""
    hall.open()
    hall.forward()
    client, served = hall.pair(hall.serve())
    first, second = (client, served) if who == "client" else (served, client)
    data = os.urandom(3_000_000)
    for sender, receiver in ((first, second), (second, first)):
        sending = threading.Thread(target=say_all, args=[sender, data])
        sending.start()
        assert receive(receiver) == data
        sending.join()
    hall.rooms.close("wk1")
    until(lambda: thread() is None)


def test_the_last_words_of_a_server(hall: Hall) -> None:
    """A server that says why and closes without having read all resets; the client reads why all the same."""
    hall.open()
    hall.forward()
    client, served = hall.pair(hall.serve())
    client.sendall(bytes(100_000))
    served.sendall(b"FATAL")
    served.close()
    assert client.recv(5) == b"FATAL"
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_ends_both(hall: Hall, who: str) -> None:
    """When one side is gone the other learns it."""
    hall.open()
    hall.forward()
    client, served = hall.pair(hall.serve())
    first, second = (client, served) if who == "client" else (served, client)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    first.close()
    with contextlib.suppress(ConnectionResetError):
        assert second.recv(1) == b""
    hall.rooms.close("wk1")
    until(lambda: thread() is None)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_slow_reader(hall: Hall, who: str) -> None:
    """Whoever does not read costs nothing and loses nothing, also when both do not, and the other connections go on."""
    hall.open()
    hall.forward()
    server = hall.serve()
    client, served = hall.pair(server)
    first, second = (client, served) if who == "client" else (served, client)
    forth = fill(first)
    back = fill(second)
    assert min(forth, back) > 100_000
    before = cpu_s()
    time.sleep(0.5)  # nothing can happen
    assert cpu_s() - before < 0.02
    hall.pair(server)
    for one, count in ((second, forth), (first, back)):
        one.settimeout(DEADLINE_S)
        assert receive(one, count) == bytes(count)
    before = cpu_s()
    time.sleep(0.5)  # nothing is under way
    assert cpu_s() - before < 0.02


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_slow_reader_and_a_reset(hall: Hall, who: str) -> None:
    """The other side is gone while one does not read: that does not spin, and ends when it reads."""
    hall.open()
    hall.forward()
    client, served = hall.pair(hall.serve())
    first, second = (client, served) if who == "client" else (served, client)
    sent = fill(first)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    first.close()
    before = cpu_s()
    time.sleep(0.5)  # nothing can happen
    assert cpu_s() - before < 0.02
    with contextlib.suppress(ConnectionResetError):
        assert len(receive(second)) <= sent
    hall.rooms.close("wk1")
    until(lambda: thread() is None)


def test_many_bytes_in_odd_pieces(hall: Hall) -> None:
    """All bytes arrive in order, both ways at once, whatever the sizes of the pieces."""
    hall.open()
    hall.forward()
    client, served = hall.pair(hall.serve())
    data = os.urandom(1 << 20) * 24

    def send(one: socket.socket) -> None:
        at, turn = 0, 0
        while at < len(data):
            turn += 1
            size = (1, 7, 1448, 4096, 70_001, 300_000)[turn % 6]
            one.sendall(data[at : at + size])
            at += size
        one.shutdown(socket.SHUT_WR)

    senders = [threading.Thread(target=send, args=[one]) for one in (client, served)]
    got: dict[socket.socket, str] = {}
    readers = [
        threading.Thread(target=lambda one=one: got.update({one: hashlib.sha256(receive(one)).hexdigest()}))
        for one in (client, served)
    ]
    for one in (*senders, *readers):
        one.start()
    for one in (*senders, *readers):
        one.join(60)
    assert set(got.values()) == {hashlib.sha256(data).hexdigest()}
    assert len(got) == 2


def test_a_server_that_refuses_at_first(hall: Hall) -> None:
    """It is asked again shortly."""
    hall.open()
    hall.forward()
    client = hall.come()
    client.sendall(b"x")
    until(lambda: hall.state().waiting == 0)
    time.sleep(0.3)  # it is away so long
    began = time.monotonic()
    assert hall.serve().accept().recv(1) == b"x"
    assert time.monotonic() - began < 1
    assert (hall.state().forwarded, hall.state().failed) == (1, 0)


def test_a_server_that_refuses(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    """Its clients are closed, and one line is logged for all."""
    hall.open()
    hall.forward()
    began = time.monotonic()
    clients = [hall.come() for _ in range(200)]
    assert [receive(client) for client in clients] == [b""] * 200
    assert 1.9 < time.monotonic() - began < 6
    until(lambda: hall.state().failed == 200)
    assert caplog.messages == [
        f"a connection that waited for wk1 could not be forwarded to {SERVER}:{hall.port}: Connection refused"
    ]


def test_another_server_meanwhile(hall: Hall) -> None:
    """A client whose server refuses goes to the one that the room leads to by then."""
    hall.open()
    hall.rooms.forward("wk1", "127.77.200.2", hall.port)
    client = hall.come()
    client.sendall(b"x")
    until(lambda: hall.state().waiting == 0)
    server = hall.serve()
    hall.forward()
    assert server.accept().recv(1) == b"x"


def test_a_server_with_ipv6(hall: Hall) -> None:
    """The room has an IPv4 address, but the server may have another."""
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind(("::1", hall.port))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen()
        listener.settimeout(DEADLINE_S)
        hall.open()
        hall.rooms.forward("wk1", "::1", hall.port)
        hall.come().sendall(b"x")
        served, _ = listener.accept()
        with served:
            assert served.recv(1) == b"x"


def test_clients_that_leave_early(hall: Hall) -> None:
    """Whoever has given up waiting, politely or not, does not keep the others from being served."""
    hall.open()
    for number in range(20):
        client = hall.come()
        client.sendall(b"early")
        if number % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    stays = hall.come()
    stays.sendall(b"x")
    server = hall.serve()
    hall.forward()
    until(lambda: server.accept().recv(1) == b"x")


def test_no_thread(hall: Hall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where no thread can be started the clients are reset instead of hanging."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    hall.open()
    waits = hall.come()
    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", refuse)
        hall.forward()
    assert is_reset(waits)
    assert not hall.rooms.is_open("wk1")
    assert caplog.messages == ["what waits for wk1 cannot be forwarded: no thread can be started"]
    hall.open()
    hall.forward()
    hall.pair(hall.serve())


def test_the_end_of_the_process() -> None:
    """It does not wait for what is forwarded, nor for who waits."""
    script = """
    import socket
    from resolver_agent.queue.room import Rooms
    from resolver_agent.demo.postgres import free_port

    port, rooms = free_port(), Rooms()
    server = socket.create_server(("127.77.200.8", port))
    for name, address in (("wk1", "127.77.0.7"), ("wk2", "127.77.0.8")):
        assert rooms.open(name, address, port) is None
    clients = [socket.create_connection((address, port)) for address in ("127.77.0.7", "127.77.0.8")]
    rooms.forward("wk1", "127.77.200.8", port)
    served, _ = server.accept()
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
        cwd=Path(__file__).parents[3],
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_server_that_is_silent(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backlog is full, so it does not answer: the client is closed when the time of an attempt is up."""
    monkeypatch.setattr("resolver_agent.queue.forwarder.CONNECT_S", 0.7)
    monkeypatch.setattr("resolver_agent.queue.forwarder.RETRY_S", 0.5)
    server = hall.serve(backlog=0)
    with socket.socket() as fills, socket.socket() as more:
        for one in (fills, more):
            one.settimeout(0)
            one.connect_ex(server.listener.getsockname())
        hall.open()
        hall.forward()
        began = time.monotonic()
        client = hall.come()
        assert receive(client) == b""
        assert 0.6 < time.monotonic() - began < 3
    assert (hall.state().forwarded, hall.state().failed) == (0, 1)


def test_a_defect_is_logged_once(hall: Hall, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that meets a defect is closed, and the thread goes on."""
    hall.open()
    hall.forward()
    server = hall.serve()
    client, served = hall.pair(server)
    with monkeypatch.context() as broken:
        broken.setattr("resolver_agent.queue.forwarder.Forwarder._connected", lambda *_: 1 / 0)
        for _ in range(3):
            assert receive(hall.come()) == b""
            assert receive(server.accept()) == b""
    assert caplog.messages == ["forwarding met an unexpected error"]
    served.sendall(b"x")
    assert client.recv(1) == b"x"
    hall.pair(server)


def test_a_thread_that_always_fails(
    hall: Hall, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody hangs: in the end all is closed."""
    monkeypatch.setattr("resolver_agent.queue.forwarder._PAUSE_S", 0.001)
    hall.open()
    hall.forward()
    client, served = hall.pair(hall.serve())
    with monkeypatch.context() as broken:
        broken.setattr("resolver_agent.queue.forwarder.Forwarder._timeout", lambda *_: 1 / 0)
        served.sendall(b"x")
        until(lambda: not hall.rooms.is_open("wk1"))
        waits = socket.socket()
        assert waits.connect_ex((ADDRESS, hall.port)) == errno.ECONNREFUSED
        waits.close()
        assert receive(client) in (b"", b"x")
    assert caplog.messages == ["forwarding met an unexpected error"]


def test_stop(hall: Hall) -> None:
    """What is forwarded may end for so long, and is ended then."""
    hall.open()
    hall.forward()
    client, _ = hall.pair(hall.serve())
    began = time.monotonic()
    asyncio.run(hall.rooms.stop(within_s=0.4))
    assert 0.35 < time.monotonic() - began < 3
    assert thread() is None
    assert client.recv(1) == b""
    began = time.monotonic()
    asyncio.run(hall.rooms.stop(within_s=5))
    assert time.monotonic() - began < 1


def test_stop_does_not_wait_for_nothing(hall: Hall) -> None:
    """As soon as the last connection has ended it returns."""
    hall.open()
    hall.forward()
    client, served = hall.pair(hall.serve())
    timer = threading.Timer(0.2, say_all, [client, b"bye"])
    timer.start()
    served.shutdown(socket.SHUT_WR)
    began = time.monotonic()
    asyncio.run(hall.rooms.stop(within_s=10))
    assert 0.15 < time.monotonic() - began < 5
    assert receive(served) == b"bye"


def test_a_thousand(hall: Hall) -> None:
    """A thousand wait and are served quickly, and talk."""
    hall.open()
    began = time.monotonic()
    clients = [hall.come() for _ in range(1000)]
    came = time.monotonic() - began
    for number, client in enumerate(clients):
        client.sendall(number.to_bytes(4, "big"))
    until(lambda: hall.state().waiting == 1000)
    assert hall.state().backlog >= 1000
    server = hall.serve()
    began = time.monotonic()
    hall.forward()
    served = {}
    for _ in range(1000):
        one = server.accept()
        served[int.from_bytes(receive(one, 4), "big")] = one
    took = time.monotonic() - began
    for number, one in served.items():
        one.sendall(number.to_bytes(4, "big"))
    for number, client in enumerate(clients):
        assert receive(client, 4) == number.to_bytes(4, "big")
    print(f"1,000 came in {came:.3f} s and were served in {took:.3f} s; {cpu_s():.3f} s of CPU")
    assert took < 10
    state = hall.state()
    assert (state.waiting, state.forwarded, state.failed) == (0, 1000, 0)
    before = cpu_s()
    time.sleep(0.3)  # nothing is under way
    assert cpu_s() - before < 0.02
    for one in served.values():
        one.close()


def test_few_files() -> None:
    """Where files are short some wait longer, without a spin; the agent can still open files; all are served."""
    script = """
    import json, os, resource, socket, threading, time
    from resolver_agent.queue.room import Rooms
    from resolver_agent.demo.postgres import free_port

    port, rooms = free_port(), Rooms()
    assert rooms.open("wk1", "127.77.0.9", port) is None
    server = socket.create_server(("127.77.200.9", port), backlog=100)
    server.settimeout(20)
    child, parent = os.pipe(), os.pipe()
    if not os.fork():   # the clients have files of their own
        clients = [socket.create_connection(("127.77.0.9", port)) for _ in range(60)]
        os.write(child[1], b"x")
        for one in clients:
            one.settimeout(20)
            assert one.recv(2) == b"ok", "not served"
            one.close()
        os._exit(0)
    os.read(child[0], 1)
    [os.close(one) for one in (*child, *parent)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
    rooms.forward("wk1", "127.77.200.9", port)
    first = [server.accept()[0] for _ in range(10)]
    time.sleep(0.5)
    [thread] = [one for one in threading.enumerate() if one.name == "forwarder"]
    cpu = lambda: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    before = cpu()
    open("/dev/null").close()
    time.sleep(0.5)
    spent, waiting = cpu() - before, rooms.state("wk1").waiting
    served = 0
    while served < 60:
        one = first.pop() if first else server.accept()[0]
        one.sendall(b"ok")
        one.close()
        served += 1
    print(json.dumps({"spent": spent, "waiting": waiting, "exit": os.wait()[1], "failed": rooms.state("wk1").failed}))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["spent"] < 0.05
    assert said["waiting"] == 50
    assert (said["exit"], said["failed"]) == (0, 0)
