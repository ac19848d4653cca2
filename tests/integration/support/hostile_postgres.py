"""Servers that speak PostgreSQL's protocol, one honest and many hostile: what a peer may do to whoever probes it.

``PEERS`` has all of the hostile ones, each with what a probe must come to. A change of how servers are asked has to
hold against every one of them.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import ProbeFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

    Row = Sequence[bytes | None]
    Behaviour = Callable[["Session"], None]

_TLS_REQUESTS = (80877103, 80877104)
_CHUNK = 1 << 16
_FLOOD_S = 60.0

HONEST_ROW: Row = (b"t", b"1000", b"1", b"7000000000000000001", b"1700000000000000", b"4711")
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eall is well\r\nINFO it is"


def message(kind: bytes, body: bytes = b"") -> bytes:
    """Return a message of PostgreSQL's protocol."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def error(text: str, code: str = "XX000", *, severity: str = "FATAL", word: str = "") -> bytes:
    """Return an ErrorResponse; ``word`` is the severity in the server's language."""
    return message(b"E", f"S{word or severity}\0V{severity}\0C{code}\0M{text}\0\0".encode())


def answer(row: Row, *, rows: int = 1) -> bytes:
    """Return a whole answer to a query."""
    return _described(len(row)) + _data(row) * rows + message(b"C", b"SELECT 1\0") + READY


def _described(columns: int) -> bytes:
    column = b"c\0" + bytes(6) + b"\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"
    return message(b"T", columns.to_bytes(2, "big") + column * columns)


def _data(row: Row) -> bytes:
    values = (b"\xff\xff\xff\xff" if one is None else len(one).to_bytes(4, "big") + one for one in row)
    return message(b"D", len(row).to_bytes(2, "big") + b"".join(values))


READY = message(b"Z", b"I")
WELCOME = message(b"R", bytes(4)) + message(b"S", b"client_encoding\0UTF8\0") + READY
NOTICE = message(b"N", b"SNOTICE\0VNOTICE\0C00000\0M" + b"x" * 2000 + b"\0\0")


class Session:
    """One connection to a fake server."""

    def __init__(self, connection: socket.socket, server: FakeServer) -> None:
        self._connection = connection
        self._server = server

    @property
    def row(self) -> Row:
        """What the server says of itself now."""
        return self._server.row

    def read(self, count: int) -> bytes:
        """Return so many bytes; raise OSError when the client has gone."""
        got = b""
        while len(got) < count:
            some = self._connection.recv(count - len(got))
            if not some:
                raise ConnectionError
            got += some
        return got

    def body(self) -> bytes:
        """Return the rest of a message, from its length on."""
        return self.read(int.from_bytes(self.read(4), "big") - 4)

    def begin(self) -> None:
        """Read the client's first message, and refuse TLS."""
        while int.from_bytes(self.body()[:4], "big") in _TLS_REQUESTS:
            self.send(b"N")

    def query(self) -> None:
        """Wait for the next query."""
        if self.read(1) == b"X":
            raise ConnectionError
        self.body()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._connection.sendall(data)

    def flood(self, data: bytes) -> None:
        """Send it again and again, until the client hangs up."""
        data *= max(1, _CHUNK // len(data))
        until = time.monotonic() + _FLOOD_S
        while time.monotonic() < until:
            self.send(data)

    def wait(self) -> None:
        """Say nothing until the client hangs up."""
        while self._connection.recv(_CHUNK):
            pass


def honest(session: Session) -> None:
    """Serve as PostgreSQL does."""
    session.begin()
    session.send(WELCOME)
    while True:
        session.query()
        session.send(answer(session.row))


class FakeServer:
    """Listens at an address, or in a folder like a server's Unix socket. A context manager.

    ``behaviour`` and ``row`` may be changed at any time; ``hang_up()`` ends all sessions.
    """

    def __init__(self, where: str | Path, port: int, behaviour: Behaviour = honest, *, row: Row = HONEST_ROW) -> None:
        self.behaviour = behaviour
        self.row = row
        self._open: set[socket.socket] = set()
        if isinstance(where, Path):
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(where / f".s.PGSQL.{port}"))
            self._listener.listen()
        else:
            self._listener = socket.create_server((where, port))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """End every session."""
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.add(connection)
                threading.Thread(target=self._serve, args=[connection]).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.behaviour(Session(connection, self))
        self._open.discard(connection)


def says(data: bytes) -> Behaviour:
    """Answer the client's first message with this, and then say nothing."""

    def behave(session: Session) -> None:
        session.begin()
        session.send(data)
        session.wait()

    return behave


def floods(data: bytes, *, before: bytes = b"") -> Behaviour:
    """Answer the client's first message with this, without an end."""

    def behave(session: Session) -> None:
        session.begin()
        session.send(before)
        session.flood(data)

    return behave


def answers(data: bytes, *, flood: bytes = b"") -> Behaviour:
    """Answer each query with this."""

    def behave(session: Session) -> None:
        session.begin()
        session.send(WELCOME)
        while True:
            session.query()
            session.send(data)
            if flood:
                session.flood(flood)

    return behave


def row(**values: bytes | None) -> Behaviour:
    """Answer each query honestly but for some values."""
    names = ("standby", "lsn", "timeline", "system_id", "started", "receiver")
    return answers(answer([values.get(name, value) for name, value in zip(names, HONEST_ROW, strict=True)]))


def between(data: bytes) -> Behaviour:
    """Answer one query honestly, and then send this without an end and without being asked."""

    def behave(session: Session) -> None:
        session.begin()
        session.send(WELCOME)
        session.query()
        session.send(answer(session.row))
        session.flood(data)

    return behave


def scram(iterations: int) -> Behaviour:
    """Ask for a log-in by SCRAM that takes the client long to compute: about 2,000,000 iterations a second."""

    def behave(session: Session) -> None:
        session.begin()
        session.send(message(b"R", (10).to_bytes(4, "big") + b"SCRAM-SHA-256\0\0"))
        session.read(1)
        nonce = re.search(rb"r=([^,]+)", session.body())
        assert nonce is not None
        salt = base64.b64encode(b"saltsalt")
        challenge = b"r=%sxyz,s=%s,i=%d" % (nonce[1], salt, iterations)
        session.send(message(b"R", (11).to_bytes(4, "big") + challenge))
        session.wait()

    return behave


def trickle(session: Session) -> None:
    """Send a notice of many bytes, very slowly."""
    session.begin()
    session.send(message(b"R", bytes(4)))
    for byte in NOTICE:
        session.send(bytes([byte]))
        time.sleep(0.02)


def tls(data: bytes) -> Behaviour:
    """Agree to TLS, and send this instead of a handshake."""

    def behave(session: Session) -> None:
        session.body()
        session.send(b"S")
        session.flood(data)

    return behave


def parameters() -> Iterator[bytes]:
    """Yield parameters that all have different names."""
    number = 0
    while True:
        yield b"".join(message(b"S", b"p%x\0v\0" % one) for one in range(number, number + 5000))
        number += 5000


def parameters_at_start(session: Session) -> None:
    """Report more and more parameters before a session begins."""
    session.begin()
    session.send(message(b"R", bytes(4)))
    for some in parameters():
        session.send(some)


def parameters_between(session: Session) -> None:
    """Report more and more parameters between queries."""
    session.begin()
    session.send(WELCOME)
    session.query()
    session.send(answer(session.row))
    for some in parameters():
        session.send(some)


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A hostile server, what a probe of it comes to, and a regular expression for the words."""

    behaviour: Behaviour
    result: ProbeFailure
    words: str


SILENT = r"no answer within 1 s"
AT_START = r"it sends too much before a session begins"
TOO_MUCH = r"it sends more than an answer to a probe"
NOT_ITS = r"its answer to a probe is not PostgreSQL's: "
COPY = r"it answers a probe with COPY"
_REJECTING, _UNREACHABLE, _NOT_SERVING = ProbeFailure.REJECTING, ProbeFailure.UNREACHABLE, ProbeFailure.NOT_SERVING

PEERS: dict[str, Peer] = {
    # before a session begins
    "scram": Peer(scram(2_000_000_000), _UNREACHABLE, SILENT + "|libpq has not finished the log-in begun before.*"),
    "silent": Peer(Session.wait, _UNREACHABLE, SILENT),
    "trickle": Peer(trickle, _UNREACHABLE, SILENT),
    "start-notices": Peer(floods(NOTICE, before=message(b"R", bytes(4))), _REJECTING, AT_START),
    "start-parameters": Peer(parameters_at_start, _REJECTING, AT_START),
    "start-huge": Peer(floods(b"x", before=message(b"R", bytes(4)) + b"N\x3f\xff\xff\xff"), _REJECTING, AT_START),
    "start-error-without-end": Peer(floods(b"x", before=b"E\0\0\x70\0"), _REJECTING, "x+…|" + AT_START),
    "start-copy": Peer(says(message(b"R", bytes(4)) + message(b"G", bytes(3)) + READY), _REJECTING, ".+"),
    "start-garbage": Peer(says(b"\xff" * 100), _REJECTING, r"expected authentication request .+"),
    "start-unknown-login": Peer(
        says(message(b"R", (99).to_bytes(4, "big"))), _REJECTING, r".*authentication (?:type|request).*"
    ),
    "tls-flood": Peer(tls(b"\x16\x03\x01\x40\x00" + b"x" * 0x4000), _REJECTING, r"SSL error: .+|" + AT_START),
    "escapes": Peer(
        says(error(ESCAPES)), _REJECTING, re.escape(r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202eall is well INFO it is")
    ),
    "starting-in-german": Peer(says(error("das Datenbanksystem startet", "57P03")), _NOT_SERVING, "das Daten.+"),
    "starting-in-chinese": Peer(
        says(error("数据库系统启动中", "57P03", word="致命错误")), _NOT_SERVING, "数据库系统启动中"
    ),
    "claims-to-start": Peer(
        says(error("the database system is starting up", "28000")), _REJECTING, "the database system is starting up"
    ),
    "no-slot": Peer(says(error("trop de clients", "53300")), _REJECTING, "trop de clients"),
    "no-sqlstate": Peer(says(error("?", "")), _REJECTING, r"\?"),
    # in an answer
    **{
        f"copy-{kind.decode()}": Peer(answers(message(kind, bytes(3)) + READY), _REJECTING, COPY)
        for kind in [b"G", b"H", b"W"]
    },
    "rows": Peer(answers(_described(6), flood=_data(HONEST_ROW)), _REJECTING, TOO_MUCH),
    "huge": Peer(answers(_described(6) + b"D\x3f\xff\xff\xff", flood=b"x"), _REJECTING, TOO_MUCH),
    "notices": Peer(answers(b"", flood=NOTICE), _REJECTING, TOO_MUCH),
    "empty-answers": Peer(answers(b"", flood=message(b"I")), _REJECTING, TOO_MUCH),
    "completions": Peer(answers(b"", flood=message(b"C", b"SELECT 0\0")), _REJECTING, TOO_MUCH),
    "garbage": Peer(answers(b"", flood=b"\xff"), _REJECTING, r"lost synchronization with server.+|" + TOO_MUCH),
    "half-an-answer": Peer(answers(_described(6)), _UNREACHABLE, SILENT),
    "nothing": Peer(answers(READY), _REJECTING, "it answers a probe with nothing"),
    "done": Peer(answers(message(b"C", b"SELECT 1\0") + READY), _REJECTING, "it answers a probe with nothing"),
    "no-row": Peer(answers(answer(HONEST_ROW, rows=0)), _REJECTING, NOT_ITS + "0 rows instead of 1"),
    "two-rows": Peer(answers(answer(HONEST_ROW, rows=2)), _REJECTING, NOT_ITS + "2 rows instead of 1"),
    "a-column-less": Peer(answers(answer(HONEST_ROW[:5])), _REJECTING, NOT_ITS + "5 columns instead of 6"),
    "no-column": Peer(answers(answer([])), _REJECTING, NOT_ITS + "0 columns instead of 6"),
    "nulls": Peer(answers(answer([None] * 6)), _REJECTING, NOT_ITS + "in recovery: NULL"),
    "no-bool": Peer(row(standby=b"true"), _REJECTING, NOT_ITS + "in recovery: true"),
    "negative-lsn": Peer(row(lsn=b"-1"), _REJECTING, NOT_ITS + "LSN: -1"),
    "huge-lsn": Peer(row(lsn=b"9" * 5000), _REJECTING, NOT_ITS + "LSN: 9+…"),
    "lsn-with-underscores": Peer(row(lsn=b"1_000"), _REJECTING, NOT_ITS + "LSN: 1_000"),
    "timeline-0": Peer(row(timeline=b"0"), _REJECTING, NOT_ITS + "timeline: 0"),
    "long-timeline": Peer(row(timeline=b"F" * 9), _REJECTING, NOT_ITS + "timeline: F+"),
    "no-timeline": Peer(row(timeline=b"x\x1b[2J"), _REJECTING, NOT_ITS + r"timeline: x\\x1b\[2J"),
    "odd-digits": Peer(row(system_id="٣".encode()), _REJECTING, NOT_ITS + "system identifier: ٣"),
    "infinite-start": Peer(row(started=b"Infinity"), _REJECTING, NOT_ITS + "start time: Infinity"),
    "receiver-out-of-range": Peer(row(receiver=b"4294967296"), _REJECTING, NOT_ITS + "WAL receiver: 4294967296"),
    "error-with-escapes": Peer(
        answers(error("\x1b[2Jno", severity="ERROR") + READY), _REJECTING, re.escape(r"\x1b[2Jno")
    ),
    "error-without-fields": Peer(answers(message(b"E", b"\0") + READY), _REJECTING, "it answers a probe with nothing"),
    "not-serving-in-an-answer": Peer(answers(error("nein", "57P03", severity="ERROR") + READY), _NOT_SERVING, "nein"),
    # between probes
    "between-notices": Peer(between(NOTICE), _REJECTING, TOO_MUCH),
    "between-parameters": Peer(parameters_between, _REJECTING, TOO_MUCH),
    "between-garbage": Peer(between(b"\xff"), _REJECTING, r"lost synchronization with server.+|" + TOO_MUCH),
}
