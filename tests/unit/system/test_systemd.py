"""Notifications to systemd and sockets from it: exact messages over real sockets, and no failure without systemd."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from resolver_agent.system.systemd import Notifier, is_journal, listen_sockets, priority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, Notifier]]:
    """Yield a socket in systemd's place, at either kind of address, and a notifier that sends to it."""
    shown = str(tmp_path / "notify") if request.param == "path" else f"@resolver-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(shown.replace("@", "\0", 1) if shown.startswith("@") else shown)
        receiver.settimeout(5)
        yield receiver, Notifier({"NOTIFY_SOCKET": shown})


@pytest.mark.parametrize(
    ("say", "heard"),
    [
        pytest.param(Notifier.ready, "READY=1", id="ready"),
        pytest.param(Notifier.stopping, "STOPPING=1", id="stopping"),
        pytest.param(Notifier.watchdog, "WATCHDOG=1", id="watchdog"),
        pytest.param(lambda n: n.status("2 names as wished"), "STATUS=2 names as wished", id="status"),
        pytest.param(lambda n: n.status("one\nREADY=1"), "STATUS=one READY=1", id="a status is one line"),
        pytest.param(lambda n: n.status("caf\u00e9 \udcff"), "STATUS=café ?", id="a status may hold anything"),
    ],
)
def test_message(manager: tuple[socket.socket, Notifier], say: Callable[[Notifier], None], heard: str) -> None:
    """Each method sends its message as one datagram."""
    receiver, notifier = manager
    say(notifier)
    assert receiver.recv(4096).decode() == heard


def test_reloading_carries_the_time(manager: tuple[socket.socket, Notifier]) -> None:
    """A reload is announced with CLOCK_MONOTONIC in microseconds, which systemd requires of Type=notify-reload."""
    receiver, notifier = manager
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    first, second = receiver.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize(
    "address",
    [
        pytest.param(None, id="not under systemd"),
        pytest.param("", id="empty"),
        pytest.param("/nonexistent/notify", id="no listener"),
        pytest.param("@resolver-agent-nobody", id="no listener, abstract"),
        pytest.param("/" + "x" * 200, id="longer than a socket's address can be"),
        pytest.param("vsock:2:1234", id="a kind of address that is not known"),
    ],
)
def test_telling_never_fails(address: str | None) -> None:
    """A message that cannot be sent is dropped without an error."""
    notifier = Notifier({} if address is None else {"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.reloading()
    notifier.status("text")


def test_telling_never_blocks(manager: tuple[socket.socket, Notifier]) -> None:
    """With a full queue messages are dropped; those sent before arrive whole."""
    receiver, notifier = manager
    for _ in range(5000):
        notifier.watchdog()
    heard = []
    while select.select([receiver], [], [], 0)[0]:
        heard.append(receiver.recv(4096))
    assert 0 < len(heard) < 5000
    assert set(heard) == {b"WATCHDOG=1"}


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        pytest.param({}, None, id="no watchdog"),
        pytest.param({"WATCHDOG_USEC": "10000000"}, 10.0, id="for any process"),
        pytest.param({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5, id="for this process"),
        pytest.param({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None, id="for another process"),
        pytest.param({"WATCHDOG_USEC": "0"}, None, id="zero is off"),
        pytest.param({"WATCHDOG_USEC": "soon"}, None, id="not a number"),
        pytest.param({"WATCHDOG_USEC": "-1"}, None, id="negative"),
        pytest.param({"WATCHDOG_USEC": "9" * 5000}, None, id="more digits than Python reads"),
        pytest.param({"WATCHDOG_USEC": "9" * 400}, None, id="more than a float holds"),
        pytest.param({"WATCHDOG_USEC": "\u0661\u0662"}, None, id="digits of another script"),
    ],
)
def test_watchdog_interval(environ: dict[str, str], watchdog_s: float | None) -> None:
    """The watchdog's interval counts only if it is meant for this process."""
    assert Notifier(environ).watchdog_s == watchdog_s


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="not under systemd"),
        pytest.param({"LISTEN_FDS": "1"}, id="no process named"),
        pytest.param({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, id="meant for another process"),
        pytest.param({"LISTEN_PID": str(os.getpid())}, id="no number"),
        pytest.param({"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())}, id="not a number"),
    ],
)
def test_no_sockets_passed(environ: dict[str, str]) -> None:
    """Without sockets meant for this process no descriptor is touched."""
    assert listen_sockets(environ) == []


_ODD = """
import os, socket
from resolver_agent.system.systemd import listen_sockets
pair = socket.socketpair()  # descriptors 4 and 5, which do not listen
assert listen_sockets({"LISTEN_FDS": "9" * 18, "LISTEN_PID": str(os.getpid())}) == []
os.fstat(3)
"""


def test_descriptors_that_are_no_listening_sockets_are_left_alone(tmp_path: Path) -> None:
    """A file, a connected socket and a closed descriptor are not taken over, however many are said to be there."""
    other = tmp_path / "file"
    other.touch()
    with other.open() as file:
        shell = 'exec 3<&0; exec "$0" -c "$1"'
        subprocess.run(["sh", "-c", shell, sys.executable, _ODD], stdin=file.fileno(), check=True, timeout=10)


_ACTIVATED = """
import os
from resolver_agent.system.systemd import listen_sockets
(passed,) = listen_sockets({"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())})
assert passed.fileno() == 3 and not passed.get_inheritable()
passed.accept()[0].sendall(b"served")
"""


def test_a_passed_socket_serves(tmp_path: Path) -> None:
    """A socket at descriptor 3 is taken over, serves, and is not inherited by other programs."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        client.settimeout(10)
        client.connect(str(tmp_path / "control.sock"))
        # The shell gives the descriptor the number that systemd uses.
        shell = 'exec 3<&0; exec "$0" -c "$1"'
        subprocess.run(["sh", "-c", shell, sys.executable, _ACTIVATED], stdin=listener.fileno(), check=True, timeout=10)
        assert client.recv(16) == b"served"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        pytest.param("{0.st_dev}:{0.st_ino}", True, id="this stream"),
        pytest.param("{0.st_dev}:1", False, id="another stream"),
        pytest.param("", False, id="empty"),
        pytest.param("1:2:3", False, id="nonsense"),
        pytest.param(None, False, id="no service"),
    ],
)
def test_whether_the_journal_reads_a_stream(named: str | None, expected: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Only the stream that systemd names is the journal's: what a service starts may write elsewhere."""
    with (tmp_path / "stream").open("w") as stream:
        environment = {} if named is None else {"JOURNAL_STREAM": named.format(os.fstat(stream.fileno()))}
        assert is_journal(stream, environment) is expected
    assert not is_journal(stream, environment), "it is closed"
    assert not is_journal(None, environment)


def test_priorities() -> None:
    """Each level has a priority of syslog(3): 2 is critical, 7 is debug."""
    assert [priority(level) for level in (10, 20, 30, 40, 50)] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
