"""Answers GET, HEAD and OPTIONS over HTTP, for monitoring systems and load balancers. Nothing can be changed here.

Whoever reaches the address may ask, so a client is bounded in everything: in the size of its request, in time, in how
many there are, and in how often they come. A newcomer gets in at the cost of the oldest that has not asked yet. Every
answer ends its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import re
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

from resolver_agent.routing.state import Alert, AlertCode
from resolver_agent.system.pacing import backoff_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from resolver_agent.config.model import Node

_log = logging.getLogger(__name__)

_HEAD_LIMIT = 8192
_CONNECTIONS = 32
_PAUSE_S = 0.01
"""How long no connection is taken after two in quick succession: very many would delay a round."""

_DEFER_S = 2
_ASK_S = 5.0
_READ_S = 10.0
_BACKLOG = 128
_FIRST_RETRY_S, _RETRY_MAX_S = 1.0, 30.0
_SHORT_S = 0.5
"""How long no connection is taken when there is no file descriptor for one."""

_METHODS = ("GET", "HEAD", "OPTIONS")
_REQUEST = re.compile(r"([A-Z]{1,16}) (?:http://[^/ ]*)?(/[!-~]*) HTTP/1\.[0-9]")


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request: a status code, its content, and the type of that."""

    status: int
    content: bytes
    content_type: str


class HttpServer:
    """Answers by ``handlers``, the one for each path, from ``listen()`` to ``close()``.

    ``alert`` says why nobody is answered, None while all is well; ``changed`` is called when that changes.
    """

    def __init__(
        self,
        handlers: Mapping[str, Callable[[], Awaitable[Answer]]],
        *,
        changed: Callable[[], None],
        ask_s: float = _ASK_S,
        read_s: float = _READ_S,
    ) -> None:
        self.alert: Alert | None = None
        self._handlers = handlers
        self._changed = changed
        self._ask_s = ask_s
        self._read_s = read_s
        self._where: Node | None = None
        self._failures = 0
        self._defect = ""
        self._taken_at = 0.0
        self._listener: socket.socket | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._open: dict[asyncio.Task[None], bool] = {}  # oldest first; whether it has asked

    def listen(self, where: Node | None) -> None:
        """Listen at this address from now on, None for nowhere. What is answered there already stays as it is.

        Where that cannot be, it is an alert, and is tried again.
        """
        if where != self._where:
            self._stop()
            self._where, self._failures = where, 0
            self._set_alert(None)
            if where is not None:
                self._try(where)

    async def close(self) -> None:
        """Stop listening, and end all connections at once."""
        self._stop()
        ending = [*self._open]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _stop(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
        self._resume = self._listener = None

    def _try(self, where: Node) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._listener = _listen(where)
        except OSError as error:
            self._failures += 1
            text = f"http.listen: nobody can ask at {where}: {error.strerror or error}; it is tried again"
            self._set_alert(Alert(AlertCode.HTTP, text))
            delay_s = backoff_s(self._failures, first_s=_FIRST_RETRY_S, max_s=_RETRY_MAX_S)
            self._resume = loop.call_later(delay_s, self._try, where)
            return
        self._set_alert(None)
        loop.add_reader(self._listener, self._accept, self._listener)

    def _set_alert(self, alert: Alert | None) -> None:
        if alert != self.alert:
            self.alert = alert
            self._changed()

    def _accept(self, listener: socket.socket) -> None:
        """Take one connection, and none for a short time after it if they come in quick succession."""
        loop = asyncio.get_running_loop()
        before, self._taken_at = self._taken_at, loop.time()
        pause_s = _PAUSE_S if self._taken_at - before < _PAUSE_S else 0.0
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:  # no descriptor, no memory
            _log.debug("a client over HTTP has to wait: %s", error)
            self._make_room()
            pause_s = _SHORT_S
        else:
            self._take(connection)
        if pause_s:
            loop.remove_reader(listener)
            self._resume = loop.call_later(pause_s, loop.add_reader, listener, self._accept, listener)

    def _take(self, connection: socket.socket) -> None:
        """Converse over a new connection, at the cost of another one where there are very many."""
        if len(self._open) >= _CONNECTIONS:
            self._make_room()
        task = asyncio.get_running_loop().create_task(self._converse(connection))
        self._open[task] = False
        task.add_done_callback(functools.partial(self._end, connection))

    def _end(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        """Close a connection, also one that was dropped before its task began."""
        self._open.pop(task, None)
        connection.close()

    def _make_room(self) -> None:
        """Drop the oldest connection that has not asked yet, or else the oldest."""
        dropped = min(self._open, key=self._open.__getitem__, default=None)
        if dropped is not None:
            del self._open[dropped]
            dropped.cancel()

    async def _converse(self, connection: socket.socket) -> None:
        """Read a request and answer it."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            return
        try:
            timer = loop.call_later(self._ask_s, task.cancel)  # wait_for() may swallow one (before Python 3.12)
            head = await _read_head(connection)
            timer.cancel()
            if not head:
                return
            if task in self._open:
                self._open[task] = True
            answer = await self._answer(head)
            timer = loop.call_later(self._read_s, task.cancel)
            await loop.sock_sendall(connection, answer)
            timer.cancel()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has gone

    async def _answer(self, head: bytes) -> bytes:
        """Return the whole answer to a request; to HEAD and OPTIONS one without content."""
        line = head.split(b"\r\n", 1)[0].decode("latin-1")
        asked = _REQUEST.fullmatch(line)
        if len(head) >= _HEAD_LIMIT:
            return _render(_refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        if asked is None:
            return _render(_refusal(HTTPStatus.BAD_REQUEST))
        method, target = asked.groups()
        if method not in _METHODS:
            return _render(_refusal(HTTPStatus.METHOD_NOT_ALLOWED))
        handler = self._handlers.get(target.partition("?")[0])
        try:
            answer = _refusal(HTTPStatus.NOT_FOUND) if handler is None else await handler()
        except Exception as error:  # noqa: BLE001 -- whatever it is, it concerns those who ask, and not the names
            if self._defect != (said := repr(error)):
                self._defect = said
                _log.exception("%s cannot be answered over HTTP", target)
            answer = _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)
        if method == "OPTIONS":
            answer = dataclasses.replace(answer, content=b"")
        return _render(answer, with_content=method != "HEAD")


async def _read_head(connection: socket.socket) -> bytes:
    """Return a request up to the empty line; what is longer than any request is cut."""
    loop, head = asyncio.get_running_loop(), bytearray()
    connection.setblocking(False)  # noqa: FBT003 -- the standard library's signature
    while b"\r\n\r\n" not in head and len(head) < _HEAD_LIMIT:
        received = await loop.sock_recv(connection, _HEAD_LIMIT - len(head))
        if not received:
            return b""
        head += received
    return bytes(head)


def _refusal(status: HTTPStatus) -> Answer:
    return Answer(status, f"{status.phrase}\n".encode(), "text/plain")


def _render(answer: Answer, *, with_content: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.content)}\r\n"
        f"Allow: {', '.join(_METHODS)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (answer.content if with_content else b"")


def _listen(where: Node) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: there can be none.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in where.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The kernel keeps those to itself that say nothing at first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_S)
        listener.bind((where.host, where.port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003
    except BaseException:
        listener.close()
        raise
    return listener
