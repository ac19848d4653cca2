"""Messages to systemd by sd_notify(3), sockets from it by sd_listen_fds(3), and priorities for its journal.

Without systemd's environment variables every call does nothing. A notification must never harm the service, so no
message blocks and no failure is raised.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

_FIRST_LISTEN_FD = 3
_LISTEN_FDS_MAX = 16
_NUMBER = re.compile(r"[0-9]{1,18}")
_PRIORITIES = (7, 7, 6, 4, 3, 2)
"""The priorities of syslog(3) for none, debug, info, warning, error and critical."""


class Notifier:
    """Sends the state of this service to systemd.

    ``watchdog_s`` is the time in seconds after which systemd kills a service that has not called ``watchdog()``, or
    None where it does not watch this process.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # the abstract namespace
            self._address = "\0" + self._address[1:]
        self.watchdog_s = _watchdog_s(environ)

    def ready(self) -> None:
        """Tell systemd that start-up, or a reload, is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Tell systemd that a reload has begun; ``ready()`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Tell systemd that the service is stopping."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Tell systemd that the service is alive."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Set the one line that ``systemctl status`` shows."""
        self._send("STATUS=" + " ".join(text.split()))

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(message.encode(errors="replace"), socket.MSG_DONTWAIT, self._address)


def is_journal(stream: TextIO | None, environ: Mapping[str, str]) -> bool:
    """Report whether the journal reads a stream: ``JOURNAL_STREAM`` has its device and inode, as systemd.exec(5) says.

    A process that was started by a service has the variable too, but may have another stream.
    """
    try:
        found = os.fstat(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):  # it is closed, or no file
        return False
    return found is not None and environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def priority(level: int) -> str:
    """Return what goes before a line for the journal to know its priority, for a level of ``logging``."""
    return f"<{_PRIORITIES[min(level // 10, len(_PRIORITIES) - 1)]}>"


def listen_sockets(environ: Mapping[str, str]) -> list[socket.socket]:
    """Return the sockets that systemd passed to this process, in the order of the socket unit; closed on exec.

    What is no listening Unix socket is left alone: the variables may say anything.
    """
    if _integer(environ, "LISTEN_PID") != os.getpid():
        return []
    count = min(_integer(environ, "LISTEN_FDS") or 0, _LISTEN_FDS_MAX)
    passed = map(_listening, range(_FIRST_LISTEN_FD, _FIRST_LISTEN_FD + count))
    return [each for each in passed if each is not None]


def _listening(descriptor: int) -> socket.socket | None:
    try:
        passed = socket.socket(fileno=descriptor)
    except OSError:  # closed, or no socket
        return None
    if passed.family == socket.AF_UNIX and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.set_inheritable(False)
        return passed
    passed.detach()
    return None


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    if "WATCHDOG_PID" in environ and _integer(environ, "WATCHDOG_PID") != os.getpid():
        return None
    microseconds = _integer(environ, "WATCHDOG_USEC")
    return microseconds / 1_000_000 if microseconds else None


def _integer(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name, "")
    return int(value) if _NUMBER.fullmatch(value) else None
