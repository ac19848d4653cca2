"""The writers of a hosts file in the benchmark: our agent as a process, and plain pollers to compare it with."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Self

_WATCH = """
import socket, sys, time
last = None
while True:
    try:
        now = socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        now = f"failed:{error}"
    if now != last:
        last = now
        print(time.monotonic_ns(), now, flush=True)
    time.sleep(0.0005)
"""


class Resolver:
    """Resolves one name over and over with the real glibc, in a mount namespace where ``etc`` is /etc.

    A context manager; ``seen`` are the (monotonic seconds, address) at which the answer changed.
    """

    def __init__(self, name: str, etc: Path) -> None:
        self.seen: list[tuple[float, str]] = []
        self._news = threading.Condition()
        self._name, self._etc = name, etc

    def __enter__(self) -> Self:
        script = 'mount --bind "$1" /etc && exec "$2" -c "$3" "$4"'
        self._process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", self._etc, sys.executable, _WATCH, self._name],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def wait_for(self, address: str, *, timeout_s: float = 30.0) -> float:
        """Return when (monotonic seconds) the name first resolved to ``address``."""
        with self._news:
            if not self._news.wait_for(lambda: bool(self.seen) and self.seen[-1][1] == address, timeout_s):
                raise TimeoutError(f"{self._name} does not lead to {address} but was {self.seen[-3:]}")
            return self.seen[-1][0]

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                at, address = line.split(maxsplit=1)
                with self._news:
                    self.seen.append((int(at) / 1e9, address.strip()))
                    self._news.notify_all()


def private_etc(folder: Path) -> Path:
    """Return a copy of /etc with its own hosts file as the only source of lookups."""
    etc = folder / "etc"
    etc.mkdir(parents=True)
    for name in ("ld.so.cache", "passwd", "group"):
        shutil.copy(Path("/etc") / name, etc / name)
    (etc / "nsswitch.conf").write_text("hosts: files\n")
    (etc / "hosts").write_text("127.0.0.1\tlocalhost\n")
    return etc


class Agent:
    """Our agent, for one hosts file; a context manager. ``gaps_s`` are the times between its watchdog messages."""

    def __init__(self, folder: Path, hosts_file: Path, *, names: Mapping[str, object], **settings: object) -> None:
        self.folder = folder
        self.config = folder / "resolver-agent.yml"
        self.gaps_s: list[float] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(folder / "notify"))
        defaults = {
            "fallback": "primary",
            "names": names,
            "postgresql": {"user": "postgres", "dbname": "postgres"},
            "hosts_file": str(hosts_file),
            "runtime_dir": str(folder / "run"),
            "state_dir": str(folder / "state"),
        }
        self.config.write_text(yaml.safe_dump(defaults | settings, sort_keys=False))

    def __enter__(self) -> Self:
        self._log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            # The priority that its systemd unit gives it.
            ["nice", "-n", "-10", sys.executable, "-m", "resolver_agent.cli", "run", "-c", self.config],
            env=os.environ | {"NOTIFY_SOCKET": str(self.folder / "notify")},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self._notify.close()
        self._log.close()

    def cpu_s(self) -> float:
        """Return the seconds of processor time used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Return the resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def _listen(self) -> None:
        last = None
        with contextlib.suppress(OSError):
            while message := self._notify.recv(4096):
                if message == b"WATCHDOG=1":
                    now = time.monotonic()
                    self.gaps_s += [now - last] if last is not None else []
                    last = now


@contextlib.contextmanager
def poller(hosts_file: Path, name: str, addresses: Sequence[str], *, port: int, period_s: float) -> Iterator[None]:
    """Run what a plain script does: every ``period_s`` ask each node for its role, and rewrite the file in place."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(period_s):
            for address in addresses:
                with (
                    contextlib.suppress(psycopg.Error),
                    psycopg.connect(host=address, port=port, user="postgres", connect_timeout=2) as connection,
                ):
                    if connection.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,):
                        hosts_file.write_text(f"127.0.0.1\tlocalhost\n{address}\t{name}\n")

    hosts_file.write_text(f"127.0.0.1\tlocalhost\n{addresses[0]}\t{name}\n")
    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
