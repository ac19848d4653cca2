"""One server, one open connection, one cheap statement: what a probe sees of it.

The only code that talks to PostgreSQL. When to probe is the monitor's to say.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

from resolver_agent.model import Identity, Kind, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# All of it works for a role with LOGIN and nothing else. A primary's timeline comes from its WAL file name, since the
# control file's lags a promotion; the server never goes back into recovery, so the order of the two checks is safe.
_STATEMENT = b"""\
SELECT r.standby,
       CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END
         OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn,
       CASE WHEN r.standby THEN pg_catalog.to_hex((SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))
            ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END,
       (SELECT system_identifier FROM pg_catalog.pg_control_system()),
       pg_catalog.round((EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::pg_catalog.numeric)
  FROM (SELECT pg_catalog.pg_is_in_recovery() OFFSET 0) AS r(standby)"""

# libpq words every error that the server sent as "severity, colon, two blanks, message", in any language.
_FROM_SERVER = re.compile(r"(?:^|: )[^\s:]+:  (?P<message>.+)", re.DOTALL)
_DEAD = ("Connection refused", "Connection reset", "closed the connection", "No such file or directory", "Broken pipe")
_SILENT = ("No route to host", "Network is unreachable", "Host is down", "timed out", "timeout expired")


class Prober:
    """Asks one server, over a connection that stays open between probes.

    ``conninfo`` are libpq keywords; a TCP ``host`` that is a DNS name is resolved at each connect, off the event loop.
    ``on_loss`` is called when the kernel says that the connection died between two probes.
    """

    def __init__(self, conninfo: Mapping[str, str], *, timeout_s: float) -> None:
        self.on_loss: Callable[[], None] = lambda: None
        self._conninfo = dict(conninfo)
        self._timeout_s = timeout_s
        self._connection: psycopg.AsyncConnection | None = None
        self._reply: asyncio.Future[list[bytes | None]] | None = None
        self._address: str | None = None

    @property
    def connected(self) -> bool:
        """Whether a connection is open, as far as the kernel has said."""
        return self._connection is not None

    async def connect(self) -> Observation | None:
        """Open the connection; return what was seen instead where that failed, after ``timeout_s`` at the latest."""
        begun = boottime()
        try:
            await asyncio.wait_for(self._open(), self._timeout_s)
        except (asyncio.TimeoutError, TimeoutError):
            return Observation(kind=Kind.UNREACHABLE, at=begun, detail=f"no answer within {self._timeout_s:g} s")
        except socket.gaierror as error:
            detail = f"{self._conninfo.get('host')} cannot be resolved: {error.strerror}"
            return Observation(kind=Kind.UNREACHABLE, at=begun, detail=detail)
        except psycopg.Error as error:
            return _failed(str(error), begun)
        return None

    async def ask(self) -> Observation:
        """Return what the connected server says of itself, after ``timeout_s`` at the latest.

        Whatever goes wrong closes the connection.
        """
        begun = boottime()
        if self._connection is None:
            return Observation(kind=Kind.DEAD, at=begun, detail="connection closed")
        loop = asyncio.get_running_loop()
        self._reply = loop.create_future()
        deadline = loop.call_later(self._timeout_s, self._fail, TimeoutError())
        try:
            self._connection.pgconn.send_query(_STATEMENT)
            self._connection.pgconn.flush()
            row = await self._reply
        except TimeoutError:
            self.close()
            return Observation(kind=Kind.UNREACHABLE, at=begun, detail=f"no answer within {self._timeout_s:g} s")
        except psycopg.Error as error:
            self.close()
            return _failed(str(error), begun)
        finally:
            deadline.cancel()
            self._reply = None
        return _seen(row, begun, self._address)

    def close(self) -> None:
        """Close the connection, if it is open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(self._fileno)
            connection.pgconn.finish()

    async def _open(self) -> None:
        conninfo = dict(self._conninfo)
        host = conninfo.get("host", "")
        if host and not host.startswith("/"):
            conninfo["hostaddr"] = await _resolve(host)
            conninfo["host"] = ",".join([host] * (conninfo["hostaddr"].count(",") + 1))
        connection = await psycopg.AsyncConnection.connect(**conninfo, autocommit=True)  # type: ignore[arg-type]
        self._connection = connection
        self._fileno = connection.fileno()  # remembered, since libpq forgets it when the connection dies
        self._address = connection.pgconn.hostaddr.decode() or None
        # Watched all the time: between probes a readable socket is the kernel's word that the connection died.
        asyncio.get_running_loop().add_reader(self._fileno, self._readable)

    def _readable(self) -> None:
        if self._connection is None:
            return
        pgconn = self._connection.pgconn
        try:
            pgconn.consume_input()
            if self._reply is not None and not self._reply.done() and not pgconn.is_busy():
                self._reply.set_result(_row(pgconn))
        except psycopg.Error as error:
            if self._reply is not None:
                self._fail(error)
            else:
                self.close()
                self.on_loss()

    def _fail(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)


def boottime() -> float:
    """Return the seconds since boot, time in suspension included: observations grow old while a host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def _resolve(host: str) -> str:
    """Return the addresses of ``host`` as libpq's ``hostaddr``; raise socket.gaierror where there is none."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return ",".join(dict.fromkeys(str(address[0]) for *_, address in found))


def _row(pgconn: pq.abc.PGconn) -> list[bytes | None]:
    """Return the one row of the statement; raise psycopg.OperationalError with the server's words where it failed."""
    row: list[bytes | None] = []
    while (result := pgconn.get_result()) is not None:
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise psycopg.OperationalError(result.error_message.decode(errors="replace"))
        row = [result.get_value(0, column) for column in range(result.nfields)]
    return row


def _seen(row: list[bytes | None], begun: float, address: str | None) -> Observation:
    standby, lsn, timeline, system_id, started_us = row
    return Observation(
        kind=Kind.STANDBY if standby == b"t" else Kind.PRIMARY,
        at=begun,
        address=address,
        lsn=int(lsn) if lsn is not None else None,
        timeline=int(timeline or b"0", 16),
        identity=Identity(int(system_id or 0), int(started_us or 0)),
    )


def _failed(text: str, begun: float) -> Observation:
    """Tell a server that is gone from one that does not answer, and both from one that answers but bars us (R1).

    libpq has no SQLSTATE for a failed connection, so its words are read. They are English here: only the server's part
    is translated, and any error that the server sent means that it lives.
    """
    text = text.strip()
    said = _FROM_SERVER.search(text)
    if said is not None:
        return Observation(kind=Kind.BARRED, at=begun, detail=" ".join(said["message"].split()))
    kind = Kind.BARRED
    if any(words in text for words in _DEAD):
        kind = Kind.DEAD
    elif any(words in text for words in _SILENT):
        kind = Kind.UNREACHABLE
    return Observation(kind=kind, at=begun, detail=_last_clause(text))


def _last_clause(text: str) -> str:
    """Return what went wrong, without where it did and without the hint that libpq puts on a second line."""
    return text.splitlines()[0].rpartition(" failed: ")[2] if text else "no reason given"
