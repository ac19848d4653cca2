"""Probes one server with one cheap statement over a connection that stays open.

Over the same connection agents talk to each other, by turns with the probes: see ``talk``. The agent sends the nodes no
other statement. Sessions on the local server that do more come from ``citus.session``.
``monitor`` says when to probe.

What a server sends between and in answers is bounded: libpq would keep any message, row and parameter.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

from resolver_agent.observe import answer, startup
from resolver_agent.observe.connection import Connector, Unconnected, unread_bytes
from resolver_agent.observe.libpq_error import HUNG_UP, connect_failure, connection_lost, sent_by_server
from resolver_agent.routing.observation import Observation, ProbeFailure, Role
from resolver_agent.system import dns, threads
from resolver_agent.system.clock import boottime
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resolver_agent.observe.talk import Talk
    from resolver_agent.system.dns import Resolver

    _Failure = tuple[ProbeFailure, str]

SPARE_BYTES = 16 << 10
"""How much a server may send over one connection besides plain answers: notices, parameters, an error.

With what the socket's receive buffer holds, it is less than the 32 KiB at which libpq would go on reading.
"""

_TLS_BYTES = 64
"""What TLS adds to an answer."""

_NOTICE_BYTES = 11
"""What a notification takes besides its channel and its payload."""

_MAX_READS = 64
_MAX_RESULTS = 4
"""An answer comes in a few pieces, with one result for PREPARE and one for EXECUTE."""

_MAX_ADDRESSES = 8

_SHUN_S = 5.0
"""How long a server that sent what no server sends is not connected to: each connection costs more than a probe."""

_ERROR = (
    pq.DiagnosticField.SEVERITY_NONLOCALIZED,
    pq.DiagnosticField.SQLSTATE,
    pq.DiagnosticField.MESSAGE_PRIMARY,
)
_ENDS_SESSION = (b"FATAL", b"PANIC")
_COPY = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)
_CAUTIOUS_FIRST = (ProbeFailure.REJECTING, ProbeFailure.UNREACHABLE, ProbeFailure.NOT_SERVING, ProbeFailure.DEAD)
_NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)


class Prober:
    """Asks one server, over a connection that stays open between probes.

    ``conninfo`` are libpq keywords. A TCP ``host`` that is a DNS name is resolved by ``getaddrinfo`` at each connect,
    off the event loop. ``connector`` opens the connections. ``on_loss`` is called when the kernel reports that the
    connection died, also between probes. ``talk`` is what agents say to each other there, if they do; ``on_quiet`` is
    called when the connection was closed because others sent too much.
    """

    def __init__(
        self,
        conninfo: Mapping[str, str],
        *,
        timeout_s: float,
        getaddrinfo: Resolver = socket.getaddrinfo,
        connector: Connector | None = None,
        talk: Talk | None = None,
    ) -> None:
        self.on_loss: Callable[[], None] = lambda: None
        self.on_quiet: Callable[[], None] = lambda: None
        self._talk = talk
        if talk is not None:
            talk.on_ready = self._proceed
        self._conninfo = dict(conninfo)
        self._timeout_s = timeout_s
        self._getaddrinfo = getaddrinfo
        self._connector = connector or Connector()
        self._lookup: asyncio.Future[list[str] | Exception] | None = None
        self._found: list[str] = []
        self._turn = 0
        self._refusal: tuple[str, str | None] = ("", None)
        self._fault = ""
        self._shunned_until = 0.0
        self._pgconn: pq.abc.PGconn | None = None
        self._address: str | None = None
        self._begun = 0.0
        self._reply: asyncio.Future[Observation | None] | None = None
        self._due = False
        self._under_way: Callable[[pq.abc.PGresult | None], None] | None = None

    @property
    def connected(self) -> bool:
        """Whether a connection is open, as far as the kernel has reported."""
        return self._pgconn is not None

    async def connect(self) -> Observation | None:
        """Open the connection; if that fails, return an observation that says why, after ``timeout_s`` at most.

        Each address of a DNS name has its share of the time. The one that was connected to last is the first.
        """
        self._begun = boottime()
        if self._begun < self._shunned_until:
            return self._failed(ProbeFailure.REJECTING, self._fault)
        addresses = await self._addresses()
        if isinstance(addresses, Observation):
            return addresses
        failures: list[_Failure] = []
        for number, address in enumerate(addresses):
            share_s = self._left_s() / (len(addresses) - number)
            keywords = {**self._conninfo, **address}
            found = await self._connector.connect(keywords, within_s=share_s)
            if found is None:
                failures.append((ProbeFailure.UNREACHABLE, self._silence if len(addresses) == 1 else "no answer"))
            elif isinstance(found, Unconnected):
                failures.append(await self._meaning(found, keywords))
            else:
                return self._keep(found)
        kind = min((kind for kind, _ in failures), key=_CAUTIOUS_FIRST.index)
        return self._failed(kind, "; ".join(dict.fromkeys(words for _, words in failures)))

    async def ask(self) -> Observation | None:
        """Return what the connected server says of itself, after ``timeout_s`` at most; None if the connection died.

        Any fault closes the connection.
        """
        if self._pgconn is None:
            return None
        self._begun = boottime()
        loop = asyncio.get_running_loop()
        self._reads = 0
        self._reply = loop.create_future()
        deadline = loop.call_later(self._timeout_s, self._time_out)
        self._due = True
        try:
            self._proceed()
            return await self._reply
        finally:
            deadline.cancel()
            self._due = False
            self._reply = None

    def close(self) -> None:
        """Close the connection, if it is open."""
        pgconn, self._pgconn = self._pgconn, None
        if pgconn is not None:
            asyncio.get_running_loop().remove_reader(self._fileno)
            pgconn.finish()
            self._under_way = None
            if self._talk is not None:
                self._talk.end()

    @property
    def _silence(self) -> str:
        return f"no answer within {self._timeout_s:g} s"

    def _left_s(self) -> float:
        return max(0.0, self._begun + self._timeout_s - boottime())

    def _failed(self, kind: ProbeFailure, words: str) -> Observation:
        return Observation(result=kind, at=self._begun, detail=words)

    async def _meaning(self, failed: Unconnected, keywords: Mapping[str, str]) -> _Failure:
        """Return what a failed connection says about the server, after asking it once more where libpq cannot tell."""
        kind, words = connect_failure(failed.text)
        from_server = sent_by_server(failed.text)
        if not from_server and HUNG_UP not in words:
            return kind, words
        text, code = self._refusal
        if text != words:  # the same words mean the same
            asking = asyncio.ensure_future(startup.sqlstate(failed.host, failed.port, failed.user))
            try:
                await asyncio.wait({asking}, timeout=self._left_s())
            finally:
                asking.cancel()
            try:
                code = asking.result() if asking.done() else None
                silence = None if asking.done() else self._silence
            except (ConnectionError, FileNotFoundError):  # it has ended meanwhile, or wants TLS first
                if from_server:
                    again = await self._connector.connect(keywords, within_s=self._left_s())
                    if isinstance(again, Unconnected):
                        return connect_failure(again.text)
                    if again is not None:
                        again.finish()
                return kind, words
            except OSError as error:
                code, silence = None, plain(error.strerror or str(error))
            if silence is not None and HUNG_UP in words:
                return ProbeFailure.UNREACHABLE, silence
            if code is not None:
                self._refusal = (words, code)
        return (ProbeFailure.NOT_SERVING if code == startup.NOT_SERVING else kind), words

    async def _addresses(self) -> list[dict[str, str]] | Observation:
        """Return the addresses to try in turn, as libpq keywords, or why there are none."""
        host = self._conninfo.get("host", "")
        if not host or host.startswith(("/", "@")):
            return [{}]
        try:
            return [{"hostaddr": str(ipaddress.ip_address(host))}]
        except ValueError:
            fault = await self._resolve(host)
        if not self._found:
            return self._failed(ProbeFailure.UNREACHABLE, f"{host} cannot be resolved: {fault}")
        self._found.sort(key=lambda address: address != self._address)
        return [{"hostaddr": address} for address in self._some(self._found)]

    async def _resolve(self, host: str) -> str:
        """Look up a name; return why it has no address. Where the look-up itself fails, the last addresses stand."""
        if self._lookup is None or self._lookup.done():
            self._lookup = threads.start(dns.look_up, host, self._getaddrinfo)
        # One that hangs goes on: it may have its answer when the next connection is tried.
        await asyncio.wait({self._lookup}, timeout=self._left_s() / (4 if self._found else 1))
        if not self._lookup.done():
            return self._silence
        found = self._lookup.exception() or self._lookup.result()
        if isinstance(found, BaseException):
            if isinstance(found, UnicodeError) or getattr(found, "errno", None) in _NO_SUCH_NAME:
                self._found = []
            return plain((found.strerror if isinstance(found, OSError) else None) or str(found))
        # Addresses with a zone (fe80::1%eth0) are valid on this host only, and a hosts file cannot hold them.
        self._found = [address for address in found if "%" not in address]
        return "it has only link-local addresses"

    def _some(self, addresses: list[str]) -> list[str]:
        """Return so many of the addresses that each has time, the first one always, and the others by turns."""
        first, rest = addresses[:1], addresses[1:]
        if len(rest) >= _MAX_ADDRESSES:
            self._turn = (self._turn + _MAX_ADDRESSES - 1) % len(rest)
            rest = [*rest[self._turn :], *rest[: self._turn]][: _MAX_ADDRESSES - 1]
        return first + rest

    def _keep(self, pgconn: pq.abc.PGconn) -> Observation | None:
        self._pgconn = pgconn
        self._statement = answer.FIRST
        self._spare = SPARE_BYTES
        self._reads = 0
        self._tls_bytes = _TLS_BYTES if pgconn.ssl_in_use else 0
        self._fileno = pgconn.socket  # kept, since libpq forgets it when the connection dies
        self._address = pgconn.hostaddr.decode() or None
        # Watched all the time: between probes a readable socket means that the connection died.
        try:
            asyncio.get_running_loop().add_reader(self._fileno, self._readable)
        except OSError as error:  # the kernel has no room for it
            self._pgconn = None
            pgconn.finish()
            return self._failed(ProbeFailure.REJECTING, plain(str(error)))
        return None

    def _proceed(self) -> None:
        """Send what waits for its turn, unless a statement is under way: a probe first."""
        pgconn = self._pgconn
        if pgconn is None or self._under_way is not None:
            return
        self._results = 0
        try:
            if self._due:
                self._due = False
                self._result: pq.abc.PGresult | None = None
                self._under_way = self._take
                pgconn.send_query(self._statement)
            elif self._talk is not None and (said := self._talk.following()) is not None:
                self._under_way = self._take_said
                if said.parameter is None:
                    pgconn.send_query(said.sql)
                else:
                    pgconn.send_query_params(said.sql, [said.parameter])
            pgconn.flush()
        except psycopg.Error as error:
            self._lose(str(error))

    def _readable(self) -> None:
        """Read what has arrived: part of an answer, all of it, notifications, or the end of the connection."""
        if self._pgconn is None:
            return
        pgconn = self._pgconn
        self._spare -= unread_bytes(self._fileno)
        self._reads += 1
        if self._spare < 0 or self._reads > _MAX_READS:
            self._refuse_more()
            return
        try:
            pgconn.consume_input()
            while self._under_way is not None and not pgconn.is_busy():  # while busy, get_result() would block
                self._under_way(pgconn.get_result())
            if self._pgconn is not None and self._talk is not None and self._talk.on:
                self._hear(pgconn, self._talk)
        except psycopg.Error as error:
            self._lose(str(error))

    def _hear(self, pgconn: pq.abc.PGconn, talk: Talk) -> None:
        """Take the notifications that have arrived."""
        heard = False
        while (notice := pgconn.notifies()) is not None:
            heard = True
            self._regain(_NOTICE_BYTES + len(notice.relname) + len(notice.extra))
            if not talk.heard(notice):
                self._refuse_more()
                return
        if pgconn.status == pq.ConnStatus.BAD:  # what came is no message, and libpq closed the socket
            raise psycopg.OperationalError(pgconn.error_message.decode(errors="replace"))
        if heard:
            self._reads = 0
            self._proceed()

    def _regain(self, count: int) -> None:
        """Let the server send so many bytes more: those that came before were what it may send."""
        self._spare = min(SPARE_BYTES, self._spare + self._tls_bytes + count)

    @property
    def _waits(self) -> bool:
        return self._reply is not None and not self._reply.done()

    def _take(self, result: pq.abc.PGresult | None) -> None:
        """Take the next result of an answer, or its end."""
        if result is None:
            self._answer(self._result)
            return
        self._result = result
        self._count(result)

    def _take_said(self, result: pq.abc.PGresult | None) -> None:
        """Take the next result of a statement of the talk, or its end."""
        assert self._talk is not None  # noqa: S101 -- its statement is under way
        if result is None:
            self._under_way = None
            self._reads = 0
            self._regain(answer.FRAME_BYTES)
            self._talk.done()
            self._proceed()
        elif result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in _ENDS_SESSION:
            self.close()
            self.on_loss()
            self._end(None)
        else:
            self._regain(self._talk.take(result))
            self._count(result)

    def _count(self, result: pq.abc.PGresult) -> None:
        self._results += 1
        if result.status in _COPY:  # libpq would give the same result for ever
            self._refuse("it answers a probe with COPY")
        elif self._results > _MAX_RESULTS:
            self._refuse_more()

    def _answer(self, result: pq.abc.PGresult | None) -> None:
        if result is None or result.status != pq.ExecStatus.TUPLES_OK:
            self.close()
            severity, code, words = ((result and result.error_field(field)) or b"" for field in _ERROR)
            if severity in _ENDS_SESSION:
                self.on_loss()
                self._end(None)
                return
            kind = ProbeFailure.NOT_SERVING if code == startup.NOT_SERVING.encode() else ProbeFailure.REJECTING
            self._end(self._failed(kind, plain(words) or "it answers a probe with nothing"))
            return
        try:
            if result.ntuples != 1:
                raise ValueError(f"{result.ntuples} rows instead of 1")  # noqa: TRY301 -- as the parser's own
            row = [result.get_value(0, column) for column in range(result.nfields)]
            seen = answer.read(row, at=self._begun, answered_at=boottime(), address=self._address)
        except ValueError as error:
            self._refuse(f"its answer to a probe is not PostgreSQL's: {error}")
            return
        self._statement = answer.AGAIN
        self._regain(answer.FRAME_BYTES + sum(len(value or b"") for value in row))
        self._under_way = None
        self._end(seen)
        if self._talk is not None and self._pgconn is not None:
            if seen.role is Role.PRIMARY:  # a standby refuses LISTEN
                self._talk.begin(self._pgconn.backend_pid)
            self._proceed()

    def _refuse_more(self) -> None:
        """Close a connection over which too much was sent; where others can send, the server may not be the one."""
        if self._talk is None or not self._talk.on:
            self._refuse("it sends more than an answer to a probe")
            return
        self._talk.give_up("too many notifications")
        self.close()
        self._end(None)
        self.on_quiet()

    def _refuse(self, words: str) -> None:
        """Close a connection over which no more must be read. Who sends something is alive."""
        self.close()
        self._fault, self._shunned_until = words, boottime() + _SHUN_S
        if self._waits:
            self._end(self._failed(ProbeFailure.REJECTING, words))

    def _lose(self, text: str) -> None:
        """Close the connection that ended, at once: libpq closed the socket, and its number may soon be reused."""
        self.close()
        kind, reason = connect_failure(text)
        if kind is ProbeFailure.REJECTING and not connection_lost(text):
            self._refuse(reason)
            return
        if self._waits and kind is ProbeFailure.UNREACHABLE:
            self._end(self._failed(kind, reason))
            return
        self.on_loss()
        if self._waits:
            self._end(None)

    def _time_out(self) -> None:
        if self._waits:
            self.close()
            self._end(self._failed(ProbeFailure.UNREACHABLE, self._silence))

    def _end(self, seen: Observation | None) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(seen)
