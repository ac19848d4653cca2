"""How libpq's messages about failed connections are read."""

from __future__ import annotations

import asyncio
import socket

import pytest

from resolver_agent.observe.libpq_error import connect_failure
from resolver_agent.observe.probe import Prober
from resolver_agent.routing.observation import ProbeFailure

TCP = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: '
SOCKET = 'connection failed: connection to server on socket "/run/postgresql/.s.PGSQL.5432" failed: '
HINT = "\n\tIs the server running on that host and accepting TCP/IP connections?"


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        (f"{TCP}Connection refused{HINT}", ProbeFailure.DEAD, "Connection refused"),
        (f"{SOCKET}Connection refused{HINT}", ProbeFailure.DEAD, "Connection refused"),
        (f"{SOCKET}No such file or directory{HINT}", ProbeFailure.DEAD, "No such file or directory"),
        (
            f"{TCP}server closed the connection unexpectedly{HINT}",
            ProbeFailure.DEAD,
            "server closed the connection unexpectedly",
        ),
        (
            f"{TCP}could not receive data from server: Connection reset by peer",
            ProbeFailure.DEAD,
            "could not receive data from server: Connection reset by peer",
        ),
        (f"{TCP}SSL SYSCALL error: EOF detected", ProbeFailure.DEAD, "SSL SYSCALL error: EOF detected"),
        (f"{TCP}SSL error: unexpected eof while reading", ProbeFailure.DEAD, "SSL error: unexpected eof while reading"),
        (
            f"{TCP}SSL connection has been closed unexpectedly",
            ProbeFailure.DEAD,
            "SSL connection has been closed unexpectedly",
        ),
        (f"{TCP}No route to host{HINT}", ProbeFailure.UNREACHABLE, "No route to host"),
        (f"{TCP}Network is unreachable{HINT}", ProbeFailure.UNREACHABLE, "Network is unreachable"),
        (f"{TCP}Host is down{HINT}", ProbeFailure.UNREACHABLE, "Host is down"),
        (f"{TCP}Connection timed out{HINT}", ProbeFailure.UNREACHABLE, "Connection timed out"),
        ("connection timeout expired", ProbeFailure.UNREACHABLE, "connection timeout expired"),
        (f"{TCP}FATAL:  sorry, too many clients already", ProbeFailure.REJECTING, "sorry, too many clients already"),
        (
            f"{TCP}FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.",
            ProbeFailure.REJECTING,
            "the database system is not accepting connections DETAIL: Hot standby mode is disabled.",
        ),
        (f"{TCP}致命错误:  用户 Password 认证失败", ProbeFailure.REJECTING, "用户 Password 认证失败"),
        (
            f'{TCP}FATAL:  database "Connection refused" does not exist',
            ProbeFailure.REJECTING,
            'database "Connection refused" does not exist',
        ),
        (
            f'{TCP}could not open certificate file "/etc/me.pem": No such file or directory',
            ProbeFailure.REJECTING,
            'could not open certificate file "/etc/me.pem": No such file or directory',
        ),
        (
            'connection failed: root certificate file "/etc/ca.pem" does not exist\nEither provide the file or …',
            ProbeFailure.REJECTING,
            'root certificate file "/etc/ca.pem" does not exist',
        ),
        (
            f'{TCP}server certificate for "*.example" does not match host name "wk1"',
            ProbeFailure.REJECTING,
            'server certificate for "*.example" does not match host name "wk1"',
        ),
        (f"{TCP}fe_sendauth: no password supplied", ProbeFailure.REJECTING, "fe_sendauth: no password supplied"),
        ("connection is bad: Too many open files", ProbeFailure.REJECTING, "connection is bad: Too many open files"),
        ("", ProbeFailure.REJECTING, "no reason given"),
    ],
    ids=lambda value: value if isinstance(value, str) and value != "" and ": " not in value else "",
)
def test_only_a_server_that_is_gone_is_dead(text: str, kind: ProbeFailure, detail: str) -> None:
    """A message that does not prove the server is down is not read as dead (R1)."""
    assert connect_failure(text) == (kind, detail)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        pytest.param(socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or", id="no such name"),
        pytest.param(OSError(24, "Too many open files"), "Too many open files", id="the look-up itself fails"),
        pytest.param(UnicodeError("label too long"), "label too long", id="no name at all"),
        pytest.param([("fe80::1%eth0", 0)], "it has only link-local addresses", id="means nothing elsewhere"),
    ],
)
def test_a_name_that_cannot_be_resolved(answer: Exception | list[tuple[str, int]], detail: str) -> None:
    """However a DNS lookup fails, the node is unreachable and the agent goes on."""

    def getaddrinfo(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        if isinstance(answer, Exception):
            raise answer
        return [(0, 0, 0, "", address) for address in answer]

    prober = Prober({"host": "db1.example.org"}, timeout_s=5, getaddrinfo=getaddrinfo)
    seen = asyncio.run(prober.connect())
    assert seen is not None
    assert (seen.result, seen.detail.partition(": ")[0]) == (
        ProbeFailure.UNREACHABLE,
        "db1.example.org cannot be resolved",
    )
    assert detail in seen.detail
