"""Asks the agent over its control socket: one line of JSON asks, one line answers.

The hooks use this module, so it imports only a few modules of the standard library.
"""

from __future__ import annotations

import errno
import json
import reprlib
import socket
import time
from typing import Any

from resolver_agent.system.clock import Deadline
from resolver_agent.system.foreign import plain, read_json

_ANSWER_LIMIT = 64 << 20
"""The bytes of the longest answer: a status takes about 1 KiB for each name with two nodes."""

_BACKLOG_PAUSE_S = 0.02
ENDED = "the agent ended before it answered"


class ControlError(Exception):
    """The agent could not be asked, or its socket could not be made; the message names the socket and the fix."""


class RefusedError(ControlError):
    """The agent answered with an error; ``answer`` is that without the socket's name."""

    def __init__(self, path: str, answer: str) -> None:
        super().__init__(f"{path}: the agent answered: {answer}")
        self.answer = answer


class NoAgentError(ControlError):
    """No agent runs; the message names the runtime folder."""


def socket_path(runtime_dir: str) -> str:
    """Return where an agent with this runtime folder listens."""
    return f"{runtime_dir}/control.sock"


def ask_running(
    runtime_dir: str, command: str, *, socket: str | None = None, timeout_s: float = 5.0, **arguments: Any
) -> dict[str, Any]:
    """Return what ``ask`` returns, but ask only an agent that holds its lock: asking a stopped one may start it.

    ``socket`` is for one that listens elsewhere than in its ``runtime_dir``.

    Raises:
        NoAgentError: no agent runs.
        ControlError: as for ``ask``.
    """
    from resolver_agent.system import lock  # noqa: PLC0415 -- the promotion hook, which must start quickly, needs none

    if not lock.is_held(runtime_dir):
        raise NoAgentError(f"no agent runs in {runtime_dir}")
    return ask(socket or socket_path(runtime_dir), command, timeout_s=timeout_s, **arguments)


def ask(path: str, command: str, *, timeout_s: float = 5.0, **arguments: Any) -> dict[str, Any]:
    """Return the agent's answer to ``command``; ``timeout_s`` bounds the whole exchange.

    Raises:
        ControlError: there is no agent, or it did not answer in time, or it answered with an error.
    """
    deadline = Deadline(timeout_s)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            _connect(connection, path, deadline)
            connection.settimeout(deadline.left_s())
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            line = _read_line(connection, deadline)
        answer = read_json(line)
    except OSError as error:
        raise ControlError(_words(path, error)) from error
    except ValueError as error:
        raise ControlError(f"{path}: another program answers there, not the agent") from error
    if not isinstance(answer, dict) or "error" in answer:
        fault = answer.get("error") if isinstance(answer, dict) else answer
        raise RefusedError(path, plain(fault) if isinstance(fault, str) else reprlib.repr(fault))
    return answer


def _connect(connection: socket.socket, path: str, deadline: Deadline) -> None:
    while True:
        connection.settimeout(deadline.left_s())
        try:
            connection.connect(path)
        except BlockingIOError:  # the queue of a listener that does not accept is full
            time.sleep(_BACKLOG_PAUSE_S)
        else:
            return


def _read_line(connection: socket.socket, deadline: Deadline) -> bytes:
    """Return the answer; what is longer than any answer is cut, and then is no JSON."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _ANSWER_LIMIT:
        connection.settimeout(deadline.left_s())
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, ENDED)
        line += received
    return bytes(line)


def _words(path: str, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"{path}: the agent does not answer; see its log"
    hints = {
        errno.ENOENT: "there is no such socket: is the agent running, with this runtime_dir?",
        errno.ECONNRESET: ENDED,
        errno.EPIPE: ENDED,
        errno.ECONNREFUSED: "no agent listens there: it has ended; start it",
        errno.EACCES: "you may not ask the agent: do it as root, or as a member of the socket's group",
    }
    return f"{path}: {hints.get(error.errno or 0, error.strerror or error)}"
