"""What a failed connection says about the server, by libpq's text: a failed connection has no SQLSTATE."""

from __future__ import annotations

import re

from resolver_agent.routing.observation import ProbeFailure
from resolver_agent.system.foreign import plain

# libpq writes every error that the server sent as "severity, colon, two blanks, message", in any language.
_FROM_SERVER = re.compile(r"(?:^|: )[^\s:]+:  (?P<message>.+)", re.DOTALL)
# TLS and plain TCP have different texts for the same fault.
_DEAD = (
    "Connection refused",
    "Connection reset",
    "Broken pipe",
    "closed the connection",
    "closed unexpectedly",
    "socket closed",
    "EOF detected",
    "unexpected eof",
)
HUNG_UP = "server closed the connection unexpectedly"
"""libpq also says this of hosts that are unreachable (``ALL_CONNECTION_FAILURE_ERRNOS``)."""

_NO_SOCKET = "No such file or directory"
_SILENT = ("No route to host", "Network is unreachable", "Host is down", "timed out", "timeout expired")


def connect_failure(text: str) -> tuple[ProbeFailure, str]:
    """Tell a dead server from one that does not answer, and both from one that rejects the connection (R1).

    The text is English: only the server's part is translated, and any error that the server sent means that it is
    alive. The words are fit for logs.
    """
    text = text.strip()
    said = _FROM_SERVER.search(text)
    if said is not None:
        return ProbeFailure.REJECTING, plain(said["message"])
    reason = plain(_last_clause(text))
    if _any_in(_SILENT, reason):
        return ProbeFailure.UNREACHABLE, reason
    return ProbeFailure.DEAD if reason == _NO_SOCKET or _any_in(_DEAD, reason) else ProbeFailure.REJECTING, reason


def sent_by_server(text: str) -> bool:
    """Report whether the text of a failed connection is an error that the server sent."""
    return _FROM_SERVER.search(text.strip()) is not None


def connection_lost(text: str) -> bool:
    """Report whether an open connection ended from the other side; the server may have said why before."""
    return _any_in(_DEAD, text)


def _any_in(words: tuple[str, ...], text: str) -> bool:
    return any(word in text for word in words)


def _last_clause(text: str) -> str:
    """Return what went wrong, without the address and without the hint that libpq puts on a second line."""
    return text.splitlines()[0].rpartition(" failed: ")[2] if text else "no reason given"
