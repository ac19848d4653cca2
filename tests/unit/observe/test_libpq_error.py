"""What libpq says of a failed connection, and what that means."""

from __future__ import annotations

import asyncio
import socket

import pytest

from resolver_agent.observe.libpq_error import connect_failure
from resolver_agent.observe.probe import Prober
from resolver_agent.routing.observation import Kind

TCP = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: '
SOCKET = 'connection failed: connection to server on socket "/run/postgresql/.s.PGSQL.5432" failed: '
HINT = "\n\tIs the server running on that host and accepting TCP/IP connections?"


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        (f"{TCP}Connection refused{HINT}", Kind.DEAD, "Connection refused"),
        (f"{SOCKET}Connection refused{HINT}", Kind.DEAD, "Connection refused"),
        (f"{SOCKET}No such file or directory{HINT}", Kind.DEAD, "No such file or directory"),
        (
            f"{TCP}server closed the connection unexpectedly{HINT}",
            Kind.DEAD,
            "server closed the connection unexpectedly",
        ),
        (
            f"{TCP}could not receive data from server: Connection reset by peer",
            Kind.DEAD,
            "could not receive data from server: Connection reset by peer",
        ),
        (f"{TCP}SSL SYSCALL error: EOF detected", Kind.DEAD, "SSL SYSCALL error: EOF detected"),
        (f"{TCP}SSL error: unexpected eof while reading", Kind.DEAD, "SSL error: unexpected eof while reading"),
        (
            f"{TCP}SSL connection has been closed unexpectedly",
            Kind.DEAD,
            "SSL connection has been closed unexpectedly",
        ),
        (f"{TCP}No route to host{HINT}", Kind.UNREACHABLE, "No route to host"),
        (f"{TCP}Network is unreachable{HINT}", Kind.UNREACHABLE, "Network is unreachable"),
        (f"{TCP}Host is down{HINT}", Kind.UNREACHABLE, "Host is down"),
        (f"{TCP}Connection timed out{HINT}", Kind.UNREACHABLE, "Connection timed out"),
        ("connection timeout expired", Kind.UNREACHABLE, "connection timeout expired"),
        (f"{TCP}FATAL:  sorry, too many clients already", Kind.BARRED, "sorry, too many clients already"),
        (
            f"{TCP}FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.",
            Kind.BARRED,
            "the database system is not accepting connections DETAIL: Hot standby mode is disabled.",
        ),
        (f"{TCP}致命错误:  用户 Password 认证失败", Kind.BARRED, "用户 Password 认证失败"),
        (
            f'{TCP}FATAL:  database "Connection refused" does not exist',
            Kind.BARRED,
            'database "Connection refused" does not exist',
        ),
        (
            f'{TCP}could not open certificate file "/etc/me.pem": No such file or directory',
            Kind.BARRED,
            'could not open certificate file "/etc/me.pem": No such file or directory',
        ),
        (
            'connection failed: root certificate file "/etc/ca.pem" does not exist\nEither provide the file or …',
            Kind.BARRED,
            'root certificate file "/etc/ca.pem" does not exist',
        ),
        (
            f'{TCP}server certificate for "*.example" does not match host name "wk1"',
            Kind.BARRED,
            'server certificate for "*.example" does not match host name "wk1"',
        ),
        (f"{TCP}fe_sendauth: no password supplied", Kind.BARRED, "fe_sendauth: no password supplied"),
        ("connection is bad: Too many open files", Kind.BARRED, "connection is bad: Too many open files"),
        ("", Kind.BARRED, "no reason given"),
    ],
    ids=lambda value: value if isinstance(value, str) and value != "" and ": " not in value else "",
)
def test_only_a_server_that_is_gone_is_dead(text: str, kind: Kind, detail: str) -> None:
    """Whatever is not known to mean that nobody is there is not taken for it (R1)."""
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
    """Whatever a look-up comes to, the node is unreachable and the agent lives."""

    def getaddrinfo(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        if isinstance(answer, Exception):
            raise answer
        return [(0, 0, 0, "", address) for address in answer]

    prober = Prober({"host": "db1.example.org"}, timeout_s=5, getaddrinfo=getaddrinfo)
    seen = asyncio.run(prober.connect())
    assert seen is not None
    assert (seen.kind, seen.detail.partition(": ")[0]) == (Kind.UNREACHABLE, "db1.example.org cannot be resolved")
    assert detail in seen.detail
