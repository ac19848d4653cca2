"""Servers that say what real ones say, but changed: another way each time, by the thousand.

What PostgreSQL says is recorded from a real server, so that a change of its protocol is in the tests, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from resolver_agent.observe.answer import AGAIN, FIRST
from tests.integration.support.hostile_postgres import message
from tests.unit.fuzz.mutation import mutated

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from typing_extensions import Self

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_TLS_REQUESTS = (80877103, 80877104)
_READY = b"Z\0\0\0\5"
_WORDS = (
    message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mx\0\0"),
    message(b"E", b"SFATAL\0VFATAL\0C57P03\0Mstarting\0\0"),
    message(b"E", b"SERROR\0VERROR\0C42501\0Mno\0\0"),
    message(b"S", b"client_encoding\0LATIN1\0"),
    message(b"A", bytes(4) + b"resolver_agent\0x\0"),
    message(b"R", (3).to_bytes(4, "big")),
    message(b"R", (5).to_bytes(4, "big") + b"salt"),
    message(b"R", (10).to_bytes(4, "big") + b"SCRAM-SHA-256\0\0"),
    *(
        message(kind, bytes(4))
        for kind in (b"G", b"H", b"W", b"I", b"K", b"T", b"D", b"v", b"n", b"t", b"s", b"1", b"2")
    ),
    b"\0\0\0\4",
    b"\x3f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"Z\0\0\0\5I",
)


def recorded(address: str, port: int, user: str) -> list[bytes]:
    """Return what a real server answers to the begin of a session, to a first probe, and to a later one."""
    asked = [b"Q%s" % _sized(sql + b"\0") for sql in (FIRST, AGAIN)]
    begin = _sized((3 << 16).to_bytes(4, "big") + b"user\0%s\0database\0postgres\0\0" % user.encode())
    answers = []
    with socket.create_connection((address, port), timeout=10) as connection:
        for sent in (begin, *asked):
            connection.sendall(sent)
            answer = b""
            while answer[-6:-1] != _READY:
                some = connection.recv(1 << 16)
                assert some, answer
                answer += some
            answers.append(answer)
    return answers


def _sized(body: bytes) -> bytes:
    return (len(body) + 4).to_bytes(4, "big") + body


class Fuzzed:
    """Servers in a thread of their own. A context manager; ``count`` is how many conversations there have been."""

    def __init__(self, addresses: Iterable[str], port: int, serve: Serve) -> None:
        self.count = 0
        self._addresses = list(addresses)
        self._port = port
        self._serve = serve
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._servers = [await asyncio.start_server(self._take, one, self._port) for one in self._addresses]

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._serve(reader, writer)
        finally:
            writer.close()


def postgres(real: Sequence[bytes], chance: random.Random) -> Serve:
    """Return how a PostgreSQL serves whose conversations are like a real one, with one of the first answers changed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = [*real, real[-1], real[-1]]
        at = chance.choice((0, 0, 1, 1, 2, 3, 4))
        said[at] = changed(said[at], real, chance)
        while int.from_bytes((await _body(reader))[:4], "big") in _TLS_REQUESTS:
            writer.write(b"N")
        for answer in said:
            writer.write(answer)
            await writer.drain()
            kind = await reader.readexactly(1)
            await _body(reader)
            while kind in b"PBDE":  # a statement with a parameter comes in several messages
                kind = await reader.readexactly(1)
                await _body(reader)
            if kind == b"X":
                return

    return serve


async def _body(reader: asyncio.StreamReader) -> bytes:
    """Return the rest of a message, from its length on."""
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)


def changed(said: bytes, real: Sequence[bytes], chance: random.Random) -> bytes:
    """Return an answer with other messages than it had, or with other bytes in them."""
    if chance.random() < 0.5:
        return mutated(said, chance, others=real, words=_WORDS)
    messages, left = [], said
    while len(left) >= 5:
        end = int.from_bytes(left[1:5], "big") + 1
        messages.append(left[:end])
        left = left[end:]
    for _ in range(chance.randint(1, 3)):
        at = chance.randint(0, len(messages) - 1)
        match chance.randint(0, 4):
            case 0 if len(messages) > 1:
                del messages[at]
            case 1:
                messages[at:at] = [messages[at]] * chance.choice((1, 3, 50))
            case 2:
                messages.insert(at, chance.choice(_WORDS))
            case 3:
                body = mutated(messages[at][5:], chance, others=real, words=_WORDS)
                messages[at] = message(messages[at][:1], body)
            case _:
                messages.append(messages.pop(at))
    return b"".join(messages)


def rest(real: Sequence[bytes], chance: random.Random) -> Serve:
    """Return how a REST API serves whose answers are changed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            mutated(chance.choice(real), chance, others=real, words=(b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"))
        )
        await writer.drain()

    return serve
