"""Asks the agent over its control socket: one line of JSON asks, one line answers."""

from __future__ import annotations

import errno
import json
import socket
import time
from typing import Any

SOCKET_NAME = "control.sock"

_BACKLOG_PAUSE_S = 0.02
ENDED = "the agent ended before it answered"


class ControlError(Exception):
    """The agent could not be asked, or cannot be made to listen; the message names the socket and the mend."""


def ask(path: str, command: str, *, timeout_s: float = 5.0, **arguments: Any) -> dict[str, Any]:
    """Return the agent's answer to ``command``; all in all within ``timeout_s``.

    Raises:
        ControlError: there is no agent, or it did not answer in time, or not what was asked.
    """
    deadline = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            _connect(connection, path, deadline)
            connection.settimeout(_left_s(deadline))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            line = _read_line(connection, deadline)
        answer = json.loads(line)
    except OSError as error:
        raise ControlError(_words(path, error)) from error
    except ValueError as error:
        raise ControlError(f"{path}: what answers there is no agent") from error
    if not isinstance(answer, dict) or "error" in answer:
        fault = answer.get("error") if isinstance(answer, dict) else answer
        raise ControlError(f"{path}: the agent answered: {fault}")
    return answer


def _connect(connection: socket.socket, path: str, deadline: float) -> None:
    while True:
        connection.settimeout(_left_s(deadline))
        try:
            connection.connect(path)
        except BlockingIOError:  # the queue of a listener that does not accept is full
            time.sleep(_BACKLOG_PAUSE_S)
        else:
            return


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        connection.settimeout(_left_s(deadline))
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, ENDED)
        line += received
    return bytes(line)


def _left_s(deadline: float) -> float:
    """Return the seconds left; to ``settimeout`` 0 would mean not to wait, and less is refused."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _words(path: str, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"{path}: the agent does not answer; see its log"
    hints = {
        errno.ENOENT: "there is no such socket: is the agent running, with this runtime_dir?",
        errno.ECONNRESET: ENDED,
        errno.EPIPE: ENDED,
        errno.ECONNREFUSED: "nobody listens there any more: the agent has ended; start it",
        errno.EACCES: "you may not ask the agent: do it as root, or as a member of the socket's group",
    }
    return f"{path}: {hints.get(error.errno or 0, error.strerror or error)}"
