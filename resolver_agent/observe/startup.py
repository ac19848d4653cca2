"""Asks a server for the SQLSTATE with which it refuses connections: libpq tells it of no failed connection.

libpq's text is in the server's language. A PostgreSQL server that does not serve says so, with its SQLSTATE, before it
asks who is there, and without TLS.
"""

from __future__ import annotations

import asyncio

NOT_SERVING = "57P03"
"""SQLSTATE ``cannot_connect_now``: the server starts up, shuts down, or does not serve while it recovers."""

_LIMIT_BYTES = 4096
_PROTOCOL_3_0 = 3 << 16


async def sqlstate(host: str, port: str, user: str) -> str | None:
    """Return the SQLSTATE of the error that answers the begin of a session; None if there is another answer.

    ``host`` is an address or a socket's folder. The caller limits the time.

    Raises:
        ConnectionError: the server hung up without an answer.
        OSError: the server cannot be reached.
    """
    if host.startswith(("/", "@")):
        path = f"{host}/.s.PGSQL.{port}"
        reader, writer = await asyncio.open_unix_connection(
            f"\0{path[1:]}" if host.startswith("@") else path, limit=_LIMIT_BYTES
        )
    else:
        reader, writer = await asyncio.open_connection(host, port, limit=_LIMIT_BYTES)
    try:
        writer.write(_begin(user))
        said = b""
        while len(said) < _LIMIT_BYTES and not _is_whole(said) and (more := await reader.read(_LIMIT_BYTES)):
            said += more
        if not said:
            raise ConnectionResetError
        return _sqlstate_of(said)
    finally:
        writer.close()


def _begin(user: str) -> bytes:
    body = _PROTOCOL_3_0.to_bytes(4, "big") + b"user\0" + (user.encode(errors="replace") or b"postgres") + b"\0\0"
    return (len(body) + 4).to_bytes(4, "big") + body


def _is_whole(said: bytes) -> bool:
    """Report whether this is a message of another kind than an error, or a whole one."""
    return said[:1] not in (b"", b"E") or len(said) > int.from_bytes(said[1:5], "big") >= 4  # noqa: PLR2004 -- itself


def _sqlstate_of(said: bytes) -> str | None:
    """Return the SQLSTATE in an ErrorResponse: fields that begin with a letter each and end with a zero byte."""
    if said[:1] != b"E":
        return None
    found = next((field[1:] for field in said[5:].split(b"\0") if field[:1] == b"C"), b"")
    code = found.decode(errors="replace")
    return code if len(code) == 5 and code.isascii() and code.isalnum() else None  # noqa: PLR2004 -- a SQLSTATE's
