"""Sends one request to one Patroni's REST API, and reads the answer.

Everything here blocks and runs in threads. Only name lookups may outlast the time limit. ``poller`` says when to ask,
and ``membership`` what follows from the answers.
"""

from __future__ import annotations

import dataclasses
import functools
import http.client
import io
import re
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from resolver_agent.config import values
from resolver_agent.config.model import Node
from resolver_agent.patroni.membership import MOST_MEMBERS, Member
from resolver_agent.system import dns
from resolver_agent.system.clock import Deadline
from resolver_agent.system.foreign import TEXT_LIMIT, plain, read_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

    from resolver_agent.config.model import PatroniApi

    Fetch = Callable[[str, PatroniApi, str, float], "Reply"]
    """The type of ``fetch``."""

_T = TypeVar("_T")

_LIMIT_BYTES = 2**20
_WIRE_LIMIT_BYTES = 2 * _LIMIT_BYTES
"""The limit for what the network carries, TLS included."""

_HEAD_LIMIT_BYTES = 2**14
"""The limit for the headers: the time to parse them grows with the square of their length."""

_TLS_FILES_S = 60
"""How long TLS files are cached: certificates are renewed, but reading the system's own costs 20 ms."""

_UNKNOWN_AUTHORITY = frozenset((2, 18, 19, 20, 21))
"""X509_V_ERR_*: the issuer cannot be found, or is no authority that was given (openssl-verification-options(1))."""

_CLOSED = "it closed the connection without an answer"
_CLOSED_TLS = f"TLS: {_CLOSED} (it has no TLS, or it requires a client certificate)"

_HOLDS_LOCK, _DOES_NOT = 200, 503
_PRIMARY = ("primary", "master")  # the second until Patroni 3


_addresses = dns.Addresses()


class ApiError(Exception):
    """There was no answer, or it was not Patroni's; the message says why, for people."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP response."""

    status: int
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Leadership:
    """What a node's own Patroni says of the leader lock of its cluster, ``scope``, and its system identifier.

    ``leads`` reports that it holds the lock, and that its server is a primary or about to become one: the leader of a
    standby cluster holds the lock too, but stays in recovery. While ``in_doubt`` is set only ``GET /primary`` tells
    which of the two it is.
    """

    leads: bool
    scope: str
    system_id: int | None
    in_doubt: bool = False


def attempt(get: Callable[[], Reply], read: Callable[[Reply], _T]) -> _T | ApiError:
    """Return ``read(get())``, or the error: it is not raised, because the caller may have stopped waiting."""
    try:
        return read(get())
    except ApiError as error:
        return error
    except MemoryError:
        return ApiError("this node is out of memory")


def silence(timeout_s: float) -> ApiError:
    """Return the error for an answer that does not come in time."""
    return ApiError(f"no answer within {timeout_s:g} s")


def fetch(host: str, api: PatroniApi, path: str, timeout_s: float) -> Reply:
    """Return the answer to one GET request, over HTTPS where ``api`` has a ``cacert`` or a ``cert``.

    No redirect is followed and no proxy used. Of several addresses each gets a share of the time, the last good one
    first.

    Raises:
        ApiError: the answer was not complete within ``timeout_s`` seconds, is longer than 1 MiB, or is not HTTP.
    """
    deadline = Deadline(timeout_s)
    secure = _tls(api, int(time.monotonic()) // _TLS_FILES_S) if api.cacert or api.cert else None
    try:
        addresses = _addresses.find(host)
    except (OSError, UnicodeError) as error:
        raise ApiError(_reason(error)) from None
    faults: dict[str, str] = {}
    for number, address in enumerate(addresses):
        try:
            share = Deadline(deadline.left_s() / (len(addresses) - number))
            reply = _fetch_from(address, share, host=host, port=api.port, path=path, secure=secure)
        except (ApiError, TimeoutError) as error:  # noqa: PERF203 -- there are few addresses, and each may fail
            faults[address] = str(error if isinstance(error, ApiError) else silence(timeout_s))
        else:
            _addresses.prefer(host, address)
            return reply
    _addresses.forget(host)
    if len(set(faults.values())) == 1:
        raise ApiError(faults[addresses[0]])
    raise ApiError("; ".join(f"{why} (at {address})" for address, why in faults.items()))


def _fetch_from(
    address: str, deadline: Deadline, *, host: str, port: int, path: str, secure: ssl.SSLContext | None
) -> Reply:
    """Return the answer of the server at one address; raise TimeoutError or ApiError."""
    try:
        with socket.create_connection((address, port), deadline.left_s()) as connection:
            stream = _Stream(connection, deadline)
            if secure is not None:
                stream = _TlsStream(connection, deadline, secure, host)
            return _get(host, port, path, stream)
    except (ApiError, TimeoutError):
        raise
    except ssl.SSLCertVerificationError as error:
        raise ApiError(_refusal(error)) from None
    except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
        raise ApiError(_CLOSED_TLS) from None
    except ssl.SSLError as error:
        raise ApiError(f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}") from None
    except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
        if secure is not None:  # its alert is often lost: TLS 1.3 tells of a refusal after the client's first request
            raise ApiError(_CLOSED_TLS) from None
        raise ApiError(_CLOSED if isinstance(error, http.client.RemoteDisconnected) else _reason(error)) from None
    except (OSError, UnicodeError) as error:
        raise ApiError(_reason(error)) from None
    except Exception:  # noqa: BLE001 -- http.client has email.parser read the headers, which raises even TypeError
        raise ApiError("the answer is not HTTP") from None


def _reason(error: Exception) -> str:
    return plain(getattr(error, "strerror", None) or str(error))


def _refusal(error: ssl.SSLCertVerificationError) -> str:
    text = f"its certificate is refused: {error.verify_message}"
    if error.verify_code in _UNKNOWN_AUTHORITY:
        text += " (no authority that this node trusts has signed it: give the one that has as `cacert`)"
    return text


def read_leadership(reply: Reply) -> Leadership:
    """Return the answer to ``GET /leader``: the status says who holds the lock, the body which Patroni it is.

    Raises:
        ApiError: the answer is not Patroni's, or is a guess: while a cluster is paused and its DCS cannot be reached,
            every Patroni beside a primary answers 200 (do_GET in patroni/api.py, 2.1 to 4.1).
    """
    if reply.status not in (_HOLDS_LOCK, _DOES_NOT):
        raise ApiError(f"HTTP status {reply.status} to GET /leader")
    told = _json(reply.body)
    holds, role = reply.status == _HOLDS_LOCK, told.get("role")
    if holds and role in _PRIMARY and told.get("pause") and told.get("cluster_unlocked"):
        raise ApiError("it is paused and does not reach its DCS, so it cannot tell who holds the leader lock")
    try:
        return Leadership(
            leads=holds and role != "standby_leader",
            scope=_text(_map(told.get("patroni")).get("scope")),
            system_id=_system_id(told.get("database_system_identifier")),
            # A new leader of a standby cluster is called a replica for a moment, as is one that is to be promoted.
            in_doubt=holds and role not in (None, "standby_leader", "promoted", *_PRIMARY),
        )
    except ValueError:
        raise ApiError("the answer is not Patroni's") from None


def read_primary(reply: Reply) -> bool:
    """Return the answer to ``GET /primary``: whether it holds the leader lock of a cluster that is no standby cluster.

    Raises:
        ApiError: the answer is not Patroni's.
    """
    if reply.status not in (_HOLDS_LOCK, _DOES_NOT):
        raise ApiError(f"HTTP status {reply.status} to GET /primary")
    return reply.status == _HOLDS_LOCK


def read_members(reply: Reply) -> tuple[Member, ...]:
    """Return the members that ``GET /cluster`` lists, without those that have not announced their address yet.

    Raises:
        ApiError: the answer is not Patroni's, or lists no members or more than 100.
    """
    if reply.status != _HOLDS_LOCK:
        raise ApiError(f"HTTP status {reply.status} to GET /cluster")
    rows = _json(reply.body).get("members")
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_MEMBERS:
        raise ApiError(f"the list of members is missing, empty, or longer than {MOST_MEMBERS}")
    try:
        return tuple(_member(row) for row in map(_map, rows) if "host" in row and "port" in row)
    except ValueError:
        raise ApiError("the list of members is not as Patroni writes it") from None


# What follows is total: a value, or ValueError.


def _member(row: dict[str, Any]) -> Member:
    host, fault = _text(row["host"]), ""
    try:
        host = values.node_host(host)
    except ValueError as error:
        fault = plain(str(error))
    return Member(
        Node(host, values.port(row["port"])),
        state=_text(row.get("state")),
        noloadbalance=bool(_map(row.get("tags") or {}).get("noloadbalance")),  # as Patroni itself reads it
        fault=fault,
    )


def _text(value: object) -> str:
    """Return ``value`` if it is short text that can be logged."""
    if not isinstance(value, str) or len(value) > TEXT_LIMIT or not value.isprintable():
        raise ValueError
    return value


def _map(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError  # noqa: TRY004 - one error for every answer that is not as expected
    return value


def _system_id(value: object) -> int | None:
    """Return a database system identifier, which Patroni gives as text, and not before there is a database."""
    if value in (None, ""):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not re.fullmatch("[0-9]{1,20}", str(value)):
        raise ValueError
    return int(value) or None


def _json(body: bytes) -> dict[str, Any]:
    try:
        return _map(read_json(body))
    except ValueError:
        raise ApiError("the answer is not Patroni's: no JSON object") from None


class _Stream(io.RawIOBase):
    """An open connection that http.client uses as a socket, with a deadline and a limit on what is received."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self.in_head = True
        self._connection = connection
        self._deadline = deadline
        self._left_bytes = _WIRE_LIMIT_BYTES
        self._read_bytes = 0

    def sendall(self, data: bytes) -> None:
        """Send all of ``data``."""
        self._connection.settimeout(self._deadline.left_s())
        self._connection.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the stream that the answer is read from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Report that this can be read from."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read what has arrived, at least one byte unless the connection ended."""
        view = memoryview(buffer)
        data = self._read(len(view))
        view[: len(data)] = data
        self._read_bytes += len(data)
        if self.in_head and self._read_bytes > _HEAD_LIMIT_BYTES:
            raise ApiError("its headers are longer than 16 KiB")
        if self._read_bytes > _LIMIT_BYTES:
            raise ApiError("the answer is longer than 1 MiB")
        return len(data)

    def close(self) -> None:
        """Do nothing: http.client closes a socket before it has read the body, and ``fetch`` closes this one."""

    def _read(self, most_bytes: int) -> bytes:
        return self._receive(most_bytes)

    def _receive(self, most_bytes: int) -> bytes:
        self._connection.settimeout(self._deadline.left_s())
        data = self._connection.recv(most_bytes)
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise ApiError("the answer is longer than 1 MiB")
        return data


class _TlsStream(_Stream):
    """The same over TLS.

    OpenSSL gets bytes that were received and counted here. On the socket itself a single call of it goes on for as long
    as the server sends messages that carry no data, past every time limit.
    """

    def __init__(self, connection: socket.socket, deadline: Deadline, context: ssl.SSLContext, host: str) -> None:
        super().__init__(connection, deadline)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._advance(self._tls.do_handshake)

    def sendall(self, data: bytes) -> None:
        """Send all of ``data``."""
        self._advance(functools.partial(self._tls.write, data))

    def _read(self, most_bytes: int) -> bytes:
        try:
            return self._advance(functools.partial(self._tls.read, most_bytes))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # the connection ended, with or without a farewell
            return b""

    def _advance(self, step: Callable[[], _T]) -> _T:
        """Return what a step of OpenSSL returns, receiving and sending what it asks for."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            finally:
                if self._out.pending:
                    super().sendall(self._out.read())
            data = self._receive(2**14)
            if data:
                self._in.write(data)
            else:
                self._in.write_eof()


def _get(host: str, port: int, path: str, stream: _Stream) -> Reply:
    connection = http.client.HTTPConnection(host, port)
    connection.sock = stream
    connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
    response = connection.getresponse()
    stream.in_head = False
    return Reply(response.status, response.read(_LIMIT_BYTES))


def check_files(api: PatroniApi) -> None:
    """Check that the TLS files can be used.

    Raises:
        ApiError: one of them cannot; the message names it.
    """
    _make_tls(api)


@functools.lru_cache(maxsize=64)
def _tls(api: PatroniApi, _period: int) -> ssl.SSLContext:
    return _make_tls(api)


def _make_tls(api: PatroniApi) -> ssl.SSLContext:
    for file in (api.cacert, api.cert, api.key):
        if file is not None:
            _check_readable(file)
    try:
        context = ssl.create_default_context(cafile=api.cacert)
    except (OSError, ValueError) as error:
        raise ApiError(f"{api.cacert} cannot be used: it holds no certificate in PEM format ({_why(error)})") from None
    if api.cert is not None:
        _load_cert(context, api.cert, api.key)
    return context


def _check_readable(file: str) -> None:
    try:
        with Path(file).open("rb") as opened:
            opened.read(1)
    except OSError as error:
        raise ApiError(f"{file} cannot be used: {error.strerror}") from None


def _load_cert(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    """Load a certificate with its key, which may be in the same file; OpenSSL does not say which is at fault."""
    asked = []

    def ask() -> str:  # an encrypted key must not ask on the terminal
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(cert, key, password=ask)
    except (OSError, ValueError) as error:
        if asked:
            fix = "make a copy without a passphrase with `openssl pkey -in FILE -out COPY`"
            raise ApiError(f"{key or cert} cannot be used: the key in it is encrypted; {fix}") from None
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise ApiError(f"{key or cert} cannot be used: it is not the key of the certificate in {cert}") from None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=cert)
        except (OSError, ValueError):
            raise ApiError(f"{cert} cannot be used: it holds no certificate in PEM format") from None
        raise ApiError(f"{key or cert} cannot be used: it holds no private key in PEM format ({_why(error)})") from None


def _why(error: Exception) -> str:
    return plain(getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
