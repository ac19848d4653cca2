"""The times of events, by the machine's clock: when names moved, and what servers logged."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import select
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from typing_extensions import Self

    from tests.integration.support.cluster import Cluster
    from tests.integration.support.machine import Machine

LOGGING = """
log_connections = on
log_line_prefix = '%n %p %a|'
"""
"""What servers need in their configuration for ``ServerLog``."""

_LINE = re.compile(r"(\d+\.\d{3}) (\d+) (.*?)\|(\w+):  (.*)")
_STATEMENT = re.compile(r"statement: |execute ")
_GPID = re.compile(r"gpid=(\d+)")
_PIDS = 10**10  # a gpid is the node's id times this, and the process id

_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x8, 0x80
_PATIENCE_MS = 200
_TICK_S = time.clock_getres(5)  # CLOCK_REALTIME_COARSE, which files are stamped with


def wait(condition: Callable[[], bool], fault: str, *, timeout_s: float = 60.0) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it did not in time; with ``fault`` as its text.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(fault)
        time.sleep(0.02)


@contextlib.contextmanager
def explained(cluster: Cluster, *, lines: int) -> Iterator[None]:
    """Print so many of each agent's last lines when something fails."""
    try:
        yield
    except BaseException:
        for name, agent in cluster.agents.items():
            print(f"{name}:", *agent.lines[-lines:], sep="\n   ", file=sys.stderr)
        raise


class NamesWatch:
    """Records when the hosts files of machines change; a context manager.

    ``seen`` has (seconds since the epoch, names), by the name of the machine. The time is the kernel's for the rename
    of the file, and never too early.
    """

    def __init__(self, machines: Iterable[Machine]) -> None:
        self._machines = list(machines)
        self.seen: dict[str, list[tuple[float, dict[str, str]]]] = {machine.name: [] for machine in self._machines}
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_CLOEXEC)
        for machine in self._machines:
            folder = os.fsencode(machine.hosts_file.parent)
            if libc.inotify_add_watch(self._inotify, folder, _IN_CLOSE_WRITE | _IN_MOVED_TO) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch failed", os.fsdecode(folder))
        self._look()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._inotify)

    def right_since(self, machine: Machine, names: Mapping[str, str]) -> float:
        """Return since when a machine's names have these addresses; infinity where they do not."""
        since = float("inf")
        for at, seen in reversed(self.seen[machine.name]):
            if not names.items() <= seen.items():
                break
            since = at
        return since

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._inotify, select.POLLIN)
        while not self._ended.is_set():
            if poll.poll(_PATIENCE_MS):
                os.read(self._inotify, 65536)
                self._look()

    def _look(self) -> None:
        for machine in self._machines:
            at, names = _names_of(machine)
            seen = self.seen[machine.name]
            if not seen or seen[-1][1] != names:
                seen.append((at, names))


def _names_of(machine: Machine) -> tuple[float, dict[str, str]]:
    """Return when a hosts file was put in place (seconds since the epoch), and its names."""
    while True:
        before = machine.hosts_file.stat()
        names = machine.names
        if (after := machine.hosts_file.stat()).st_ino == before.st_ino:
            return after.st_ctime + _TICK_S, names


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line of a server's log: when (seconds since the epoch), by which process, for which application."""

    at: float
    pid: int
    application: str
    level: str
    text: str


class ServerLog:
    """A server's log file, with ``LOGGING``, among other lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def size(self) -> int:
        """Return the offset of the next line."""
        return self._path.stat().st_size

    def lines(self, since: int = 0) -> Iterator[Line]:
        """Yield the lines of the server from an offset on."""
        with self._path.open("rb") as file:
            file.seek(since)
            for text in file:
                if found := _LINE.match(text.decode(errors="replace")):
                    at, pid, application, level, said = found.groups()
                    yield Line(float(at), int(pid), application, level, said)

    def find(self, pattern: str, since: int) -> re.Match[str] | None:
        """Return the first match of a regular expression in all lines from an offset on."""
        with self._path.open("rb") as file:
            file.seek(since)
            return re.search(pattern, file.read().decode(errors="replace"))

    def when(self, text: str, since: int) -> float:
        """Return when the server first logged a line with this beginning."""
        return next(line.at for line in self.lines(since) if line.text.startswith(text))


def statements_of(node_id: int, log: ServerLog, since: int) -> Iterator[tuple[Line, int]]:
    """Yield the statements that a Citus node ran on other servers, each with its process id there."""
    for line in log.lines(since):
        gpid = _GPID.search(line.application)
        if gpid and _STATEMENT.match(line.text) and int(gpid[1]) // _PIDS == node_id:
            yield line, int(gpid[1]) % _PIDS
