"""What the client reports when the agent is absent, answers badly, or answers too late."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from resolver_agent.control import client as control_client

if TYPE_CHECKING:
    from pathlib import Path


def seconds_without_answer(path: Path, *, timeout_s: float) -> float:
    """Return how long the client takes to give up."""
    begun = time.monotonic()
    with pytest.raises(control_client.ControlError, match="the agent does not answer"):
        control_client.ask(str(path), "status", timeout_s=timeout_s)
    took_s = time.monotonic() - begun
    assert took_s >= timeout_s
    return took_s


def test_no_socket(tmp_path: Path) -> None:
    """Without a socket the agent is not running, or has its socket elsewhere."""
    with pytest.raises(
        control_client.ControlError, match=r"control\.sock: there is no such socket: is the agent running"
    ):
        control_client.ask(str(tmp_path / "control.sock"), "status")


def test_a_stale_socket(tmp_path: Path) -> None:
    """A socket without an agent is told apart from no socket."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control.sock"))
    with pytest.raises(control_client.ControlError, match=r"no agent listens there: it has ended; start it"):
        control_client.ask(str(tmp_path / "control.sock"), "status")


def test_a_path_too_long_for_a_socket() -> None:
    """A path too long for a socket has its own message."""
    with pytest.raises(control_client.ControlError, match="path too long"):
        control_client.ask("/run/" + "x" * 200, "status")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(None, "the agent does not answer; see its log", id="silence"),
        pytest.param(b"", "the agent ended before it answered", id="the end"),
        pytest.param(b'{"na', "the agent ended before it answered", id="half an answer"),
        pytest.param(b"what?\n", "another program answers there, not the agent", id="no JSON"),
        pytest.param(b"[1]\n", r"the agent answered: \[1\]", id="no answer of ours"),
        pytest.param(b"[" * 100_000 + b"\n", "another program answers there, not the agent", id="nested"),
        pytest.param(b'{"age_s": NaN}\n', "another program answers there, not the agent", id="NaN"),
        pytest.param(b'{"error": "\\u001b[2J\\nno"}\n', r"the agent answered: \\x1b\[2J no$", id="an escape"),
        pytest.param(b'{"error": {"a": 1}}\n', r"the agent answered: {'a': 1}$", id="an error of another type"),
    ],
)
def test_an_agent_that_does_not_answer_well(answer: bytes | None, said: str, tmp_path: Path) -> None:
    """Each kind of failure has its own message, within the time limit."""
    path = tmp_path / "control.sock"
    seen_dead = threading.Event()

    def agent(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            if answer is None:
                seen_dead.wait(5)
            else:
                connection.recv(4096)
                connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=agent, args=[listener])
        thread.start()
        with pytest.raises(control_client.ControlError, match=said):
            control_client.ask(str(path), "status", timeout_s=0.1 if answer is None else 5)
        seen_dead.set()
        thread.join()


def test_an_endless_answer_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer that does not end no more is kept than the longest answer has."""
    path = tmp_path / "control.sock"
    monkeypatch.setattr(control_client, "_ANSWER_LIMIT", 1_000_000)
    sent: list[int] = []

    def pour(listener: socket.socket) -> None:
        with listener.accept()[0] as connection, contextlib.suppress(OSError):
            connection.recv(4096)
            while len(sent) < 1000:
                sent.append(connection.send(b" " * 100_000))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=pour, args=[listener])
        thread.start()
        with pytest.raises(control_client.ControlError, match="another program answers there, not the agent"):
            control_client.ask(str(path), "status", timeout_s=5)
        thread.join()
    assert len(sent) < 100


def test_a_trickle_does_not_stretch_the_time(tmp_path: Path) -> None:
    """The time limit covers the whole answer: an agent that sends a byte now and then does not get more."""
    path = tmp_path / "control.sock"
    seen_dead = threading.Event()

    def trickle(listener: socket.socket) -> None:
        with listener.accept()[0] as connection, contextlib.suppress(OSError):
            while not seen_dead.wait(0.02):
                connection.sendall(b" ")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=trickle, args=[listener])
        thread.start()
        assert seconds_without_answer(path, timeout_s=0.2) < 2
        seen_dead.set()
        thread.join()


def test_a_full_queue_does_not_stretch_the_time(tmp_path: Path) -> None:
    """A client that cannot even enter the queue of a hung agent gives up in time."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        assert seconds_without_answer(path, timeout_s=0.2) < 2


def test_a_place_in_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    """A client waits for an agent that is slow to accept, and asks as soon as it does."""
    path = tmp_path / "control.sock"

    def accept_both(listener: socket.socket) -> None:
        for _ in range(2):
            with listener.accept()[0] as connection:
                if connection.recv(4096):
                    connection.sendall(b'{"name": "wk1"}\n')

    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        first.shutdown(socket.SHUT_WR)
        busy = threading.Timer(0.1, accept_both, args=[listener])
        busy.start()
        assert control_client.ask(str(path), "status") == {"name": "wk1"}
        busy.join()
