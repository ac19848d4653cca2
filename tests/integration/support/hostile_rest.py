"""Fake REST APIs of Patroni: a sound one, and HOSTILE ones that answer whatever a peer might."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self

    Answer = Callable[[socket.socket, str, threading.Event], object]
    """Answers one request on a connection, for a path, until the event is set."""

SYSTEM_ID = 7000000000000000001
SCOPE = "wk1"
HEAD = b"HTTP/1.0 200 OK\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Rest:
    """An HTTP server that lets ``answer`` answer each request; a context manager. ``asked`` are the paths so far."""

    def __init__(self, address: str, port: int, answer: Answer) -> None:
        self.asked: list[str] = []
        self._answer = answer
        self._done = threading.Event()
        self._listener = socket.create_server((address, port), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept)
        self._serving: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in (self._thread, *self._serving):
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._serving.append(threading.Thread(target=self._serve, args=(client,)))
                self._serving[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(1.0)
            request = b""
            while b"\r\n\r\n" not in request:
                some = client.recv(4096)
                if not some:
                    return
                request += some
            path = request.split()[1].decode()
            self.asked.append(path)
            self._answer(client, path, self._done)


def sound(*hosts: str, port: int, leads: bool) -> Answer:
    """Return how a sound Patroni answers, whose cluster has these members."""
    members = [{"name": host, "host": host, "port": port, "state": "streaming", "role": "replica"} for host in hosts]
    return _bodies(_leadership(), json.dumps({"members": members}).encode(), status=200 if leads else 503)


def _leadership(**more: object) -> bytes:
    own = {"state": "running", "patroni": {"scope": SCOPE}, "database_system_identifier": str(SYSTEM_ID)}
    return json.dumps(own | more).encode()


def _bodies(leader: bytes, cluster: bytes, *, status: int) -> Answer:
    def answer(client: socket.socket, path: str, _: threading.Event) -> None:
        is_list = path == "/cluster"
        head = b"HTTP/1.0 %d X\r\nContent-Type: application/json\r\n\r\n" % (200 if is_list else status)
        client.sendall(head + (cluster if is_list else leader))

    return answer


def _leader(body: bytes) -> Answer:
    """Return how a Patroni answers that claims the leader lock with this body."""
    return _bodies(body, b'{"members": []}', status=200)


def _members(body: bytes) -> Answer:
    """Return how a Patroni answers that holds no lock, and lists members with this body."""
    return _bodies(_leadership(), body, status=503)


def _member(**more: Any) -> bytes:
    row = {"name": "x", "host": "127.0.59.9", "port": 5432, "state": "streaming"}
    return json.dumps({"members": [row | more]}).encode()


def _other_members() -> Answer:
    """Return how a Patroni answers whose members are others each time."""
    numbers = itertools.count()

    def answer(client: socket.socket, path: str, done: threading.Event) -> None:
        turn = next(numbers)
        rows = [
            {"host": f"10.{turn % 256}.{number}.1" if number % 2 else f"pg-{turn}-{number}.invalid", "port": 5432}
            | {"state": "streaming"}
            for number in range(100)
        ]
        _members(json.dumps({"members": rows}).encode())(client, path, done)

    return answer


def _say(text: bytes) -> Answer:
    return lambda client, _path, _done: client.sendall(text)


def _again(text: bytes, then: bytes, *, pause_s: float) -> Answer:
    """Return how a peer answers that sends a text, and then another one again and again."""

    def answer(client: socket.socket, _path: str, done: threading.Event) -> None:
        client.sendall(text)
        while not done.wait(pause_s):
            client.sendall(then)

    return answer


def _drip(text: bytes, then: bytes) -> Answer:
    return _again(text, then, pause_s=0.02)


def _flood(text: bytes, then: bytes) -> Answer:
    return _again(text, then, pause_s=0.0)


def _leaders() -> Iterator[tuple[str, bytes]]:
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-1", "true", "1.5", "[]", '"\\ud800"'):
        own = f'{{"patroni": {{"scope": "wk1"}}, "database_system_identifier": {number}}}'
        yield f"identifier {number:.12}", own.encode()
    for scope in ("null", "7", "[]", '"wk1\\n"', '"\\u001b[2J"', '"\\u202ewk1"', f'"{"s" * 5000}"'):
        yield f"scope {scope:.12}", f'{{"patroni": {{"scope": {scope}}}}}'.encode()
    yield "patroni is a list", b'{"patroni": ["scope"]}'
    yield "deep", b'{"patroni": ' + b"[" * 100_000
    yield "deep and whole", b'{"patroni": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield "text", b'"leader"'
    yield "a role that is a map, as of another server", b'{"role": {}}'


_FIELDS: Mapping[str, tuple[object, ...]] = {
    "host": (
        *(None, 7, [], {}, "", "a b", "0.0.0.0", "255.255.255.255", "::ffff:127.0.0.1", "fe80::1%eth0", "-o", "$(x)"),
        *("\u202e1.0.0.721", "\ud800", "10.0.0.9\n# END", "\x1b]0;x\x07", "h" * 100_000, "\u0661.0.0.1", "192.0.2.9"),
    ),
    "port": (None, True, -1, 0, 65536, 10**30, "5432", 5432.5, []),
    "state": (None, 7, [], {}, "a\nb", "\x1b[31m", "s" * 100_000),
    "tags": (7, "x", ["noloadbalance"], {"noloadbalance": {"a": []}}, {"noloadbalance": "\x1b[2J"}),
}


def _lists() -> Iterator[tuple[str, bytes]]:
    yield "members is a map", b'{"members": {"host": "127.0.59.9"}}'
    yield "members is a number", b'{"members": 1e400}'
    yield "members are numbers", b'{"members": [1, 2]}'
    yield "members are lists", b'{"members": [["host", "port"]]}'
    yield "100,000 members", b'{"members": [%b{}]}' % (b"{}," * 99_999)
    yield "one member 100 times", json.dumps({"members": json.loads(_member())["members"] * 100}).encode()
    for key, found in _FIELDS.items():
        for value in found:
            yield f"{key} {value!a:.24}", _member(**{key: value})


_RAW: Mapping[str, Answer] = {
    "hangs up": _say(b""),
    "hangs": lambda _client, _path, done: done.wait(),
    "is no HTTP": _say(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "is TLS": _say(b"\x15\x03\x03\x00\x02\x02\x50"),
    "redirects": _say(b"HTTP/1.0 302 Found\r\nLocation: http://127.0.59.1:1/leader\r\n\r\n"),
    "asks for a login": _say(b"HTTP/1.0 401 X\r\nWWW-Authenticate: Basic\r\n\r\n"),
    "compresses": _say(HEAD + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\0\0\0\0\0"),
    "sends nothing of much": _say(HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{"),
    "sends chunks without end": _flood(CHUNKED, b"FF\r\n%b\r\n" % (b" " * 255)),
    "sends a body without end": _flood(HEAD + b"\r\n", b" " * 65536),
    "sends a header without end": _flood(HEAD + b"X: ", b"x" * 65536),
    "sends headers without end": _flood(HEAD, b"X: y\r\n" * 5000),
    "sends 100 Continue without end": _flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "trickles a status": _drip(b"HTTP/1.0 2", b"0"),
    "trickles headers": _drip(HEAD, b"X: y\r\n"),
    "trickles a body": _drip(HEAD + b"\r\n", b" "),
    "trickles chunks": _drip(CHUNKED, b"1\r\n \r\n"),
    "trickles 100 Continue": _drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}

HOSTILE: Mapping[str, Answer] = {
    **_RAW,
    **{f"leader: {name}": _leader(body) for name, body in _leaders()},
    **{f"members: {name}": _members(body) for name, body in _lists()},
    "members: others each time": _other_members(),
}
"""How hostile and odd peers answer, by what they do."""
