"""Probes one server with one cheap statement over a connection that stays open.

The agent sends the nodes no other statement. Sessions on the local server that do more come from ``citus.session``.
``monitor`` says when to probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from resolver_agent.observe.libpq_error import HUNG_UP, connect_failure
from resolver_agent.routing.observation import Identity, Observation, ProbeFailure, Role
from resolver_agent.system import dns, threads
from resolver_agent.system.clock import boottime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resolver_agent.system.dns import Resolver

# The statement works for a role with LOGIN and nothing else. Such a role sees only the process number of a WAL
# receiver, and only while that is connected. A primary's timeline comes from its WAL file name, since the control
# file's lags behind a promotion; a server never goes back into recovery, so the order of the two checks is safe.
# It is prepared once for each connection: planning it each time would cost the server twice as much as running it.
_AGAIN = b"EXECUTE resolver_agent"
_FIRST = (
    b"""\
PREPARE resolver_agent AS
SELECT r.standby,
       CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END
         OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn,
       CASE WHEN r.standby THEN pg_catalog.to_hex((SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))
            ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END,
       (SELECT system_identifier FROM pg_catalog.pg_control_system()),
       pg_catalog.round((EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000)
         ::pg_catalog.numeric),
       (SELECT pid FROM pg_catalog.pg_stat_get_wal_receiver())
  FROM (SELECT pg_catalog.pg_is_in_recovery() OFFSET 0) AS r(standby);
"""
    + _AGAIN
)

_CAUTIOUS_FIRST = (ProbeFailure.REJECTING, ProbeFailure.UNREACHABLE, ProbeFailure.DEAD)


class Prober:
    """Asks one server, over a connection that stays open between probes.

    ``conninfo`` are libpq keywords. A TCP ``host`` that is a DNS name is resolved by ``getaddrinfo`` at each connect,
    off the event loop. ``on_loss`` is called when the kernel reports that the connection died, also between probes.
    """

    def __init__(
        self, conninfo: Mapping[str, str], *, timeout_s: float, getaddrinfo: Resolver = socket.getaddrinfo
    ) -> None:
        self.on_loss: Callable[[], None] = lambda: None
        self._conninfo = dict(conninfo)
        self._timeout_s = timeout_s
        self._getaddrinfo = getaddrinfo
        self._lookup: asyncio.Future[list[str] | Exception] | None = None
        self._connection: psycopg.AsyncConnection | None = None
        self._address: str | None = None
        self._begun = 0.0
        self._reply: asyncio.Future[Observation | None] | None = None
        self._results: list[pq.abc.PGresult] = []

    @property
    def connected(self) -> bool:
        """Whether a connection is open, as far as the kernel has reported."""
        return self._connection is not None

    async def connect(self) -> Observation | None:
        """Open the connection; if that fails, return an observation that says why, after ``timeout_s`` at most."""
        begun = boottime()
        opening = asyncio.ensure_future(self._open(begun))
        try:
            await asyncio.wait({opening}, timeout=self._timeout_s)
        finally:  # wait_for() sometimes swallows a cancellation (before Python 3.12)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await opening  # otherwise its traceback would keep the half-open connection
        return self._silence(begun) if opening.cancelled() else opening.result()

    async def ask(self) -> Observation | None:
        """Return what the connected server says of itself, after ``timeout_s`` at most; None if the connection died.

        Any fault closes the connection.
        """
        if self._connection is None:
            return None
        self._begun = boottime()
        loop = asyncio.get_running_loop()
        self._results = []
        self._reply = loop.create_future()
        deadline = loop.call_later(self._timeout_s, self._time_out)
        try:
            self._send(self._connection.pgconn)
            return await self._reply
        finally:
            deadline.cancel()
            self._reply = None

    def close(self) -> None:
        """Close the connection, if it is open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(self._fileno)
            connection.pgconn.finish()

    async def _open(self, begun: float) -> Observation | None:
        try:
            addresses = await self._addresses()
        except (OSError, UnicodeError) as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            detail = f"{self._conninfo['host']} cannot be resolved: {words}"
            return Observation(result=ProbeFailure.UNREACHABLE, at=begun, detail=detail)
        failures = []
        for address in addresses:
            keywords: dict[str, Any] = {**self._conninfo, **address}
            try:
                connection = await psycopg.AsyncConnection.connect(**keywords, autocommit=True)
            except psycopg.Error as error:
                kind, reason = connect_failure(str(error))
                if HUNG_UP in reason and address and (silence := await self._silence_of(address["hostaddr"])):
                    kind, reason = ProbeFailure.UNREACHABLE, silence
                failures.append((kind, reason))
            else:
                self._keep(connection)
                return None
        kind = min((kind for kind, _ in failures), key=_CAUTIOUS_FIRST.index)
        return Observation(result=kind, at=begun, detail="; ".join(dict.fromkeys(detail for _, detail in failures)))

    async def _silence_of(self, address: str) -> str | None:
        """Return why a host does not answer at all; None if it does, even by refusing the connection."""
        try:
            _, stream = await asyncio.open_connection(address, self._conninfo.get("port", 5432))
        except ConnectionError:
            return None
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
        stream.close()
        return None

    async def _addresses(self) -> list[dict[str, str]]:
        """Return the addresses to try in turn, as libpq keywords; raise OSError where the host has none."""
        host = self._conninfo.get("host", "")
        if not host or host.startswith(("/", "@")):
            return [{}]
        try:
            return [{"hostaddr": str(ipaddress.ip_address(host))}]
        except ValueError:
            if self._lookup is None or self._lookup.done():
                self._lookup = threads.start(dns.look_up, host, self._getaddrinfo)
            found = await asyncio.shield(self._lookup)
        if isinstance(found, Exception):
            raise found
        # Addresses with a zone (fe80::1%eth0) are valid on this host only, and a hosts file cannot hold them.
        usable = [{"hostaddr": address} for address in found if "%" not in address]
        if not usable:
            raise OSError(0, "it has only link-local addresses")
        return usable

    def _keep(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection
        self._statement = _FIRST
        self._fileno = connection.fileno()  # kept, since libpq forgets it when the connection dies
        self._address = connection.pgconn.hostaddr.decode() or None
        # Watched all the time: between probes a readable socket means that the connection died.
        asyncio.get_running_loop().add_reader(self._fileno, self._readable)

    def _send(self, pgconn: pq.abc.PGconn) -> None:
        try:
            pgconn.send_query(self._statement)
            pgconn.flush()
        except psycopg.Error as error:
            self._lose(str(error))

    def _readable(self) -> None:
        """Read what has arrived: part of an answer, all of it, or the end of the connection."""
        if self._connection is None:
            return
        pgconn = self._connection.pgconn
        try:
            pgconn.consume_input()
            while self._waits and not pgconn.is_busy():  # while busy, get_result() would block the event loop
                result = pgconn.get_result()
                if result is None:
                    self._answer(self._results[-1])
                else:
                    self._results.append(result)
        except psycopg.Error as error:
            self._lose(str(error))

    @property
    def _waits(self) -> bool:
        return self._reply is not None and not self._reply.done()

    def _answer(self, result: pq.abc.PGresult) -> None:
        if result.status == pq.ExecStatus.TUPLES_OK:
            self._statement = _AGAIN
            self._end(_seen([result.get_value(0, column) for column in range(6)], self._begun, self._address))
        else:
            self.close()
            words = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
            self._end(Observation(result=ProbeFailure.REJECTING, at=self._begun, detail=" ".join(words.split())))

    def _lose(self, text: str) -> None:
        """Close the connection that ended, at once: libpq closed the socket, and its number may soon be reused."""
        self.close()
        kind, reason = connect_failure(text)
        if self._waits and kind is ProbeFailure.UNREACHABLE:
            self._end(Observation(result=kind, at=self._begun, detail=reason))
            return
        self.on_loss()
        if self._waits:
            self._end(None)

    def _time_out(self) -> None:
        if self._waits:
            self.close()
            self._end(self._silence(self._begun))

    def _end(self, seen: Observation | None) -> None:
        if self._reply is not None:
            self._reply.set_result(seen)

    def _silence(self, begun: float) -> Observation:
        return Observation(result=ProbeFailure.UNREACHABLE, at=begun, detail=f"no answer within {self._timeout_s:g} s")


def _seen(row: list[bytes | None], begun: float, address: str | None) -> Observation:
    standby, lsn, timeline, system_id, started_us, receiver = row
    return Observation(
        result=Role.STANDBY if standby == b"t" else Role.PRIMARY,
        at=begun,
        address=address,
        lsn=int(lsn) if lsn is not None else None,
        timeline=int(timeline or b"0", 16),
        identity=Identity(int(system_id or 0), int(started_us or 0)),
        receiver=int(receiver) if receiver is not None else None,
    )
