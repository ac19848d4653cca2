"""The agent as a real process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

# A shell can move standard input to where systemd's sockets begin, and knows the process id that exec will keep.
_HAND_OVER = 'exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'


class Agent:
    """The agent as a process. A context manager; what it says is in ``lines``."""

    def __init__(
        self,
        config: Path,
        *,
        hosts_file: Path,
        env: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
        cwd: Path | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        """Start it, behind ``launcher``; ``listener`` is its control socket, passed as systemd does."""
        self.hosts_file = hosts_file
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self._ended = False
        launcher = launcher if listener is None else [*launcher, "sh", "-c", _HAND_OVER, "sh"]
        self.process = subprocess.Popen(
            [*launcher, sys.executable, "-m", "resolver_agent.cli", "run", "-c", config],
            cwd=cwd,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL if listener is None else listener.fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.wait()

    def stop(self) -> int:
        """Stop it as systemd does, and return its exit code (negative: the signal it died of)."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, *, timeout_s: float = 10.0) -> int:
        """Wait for its end, and return its exit code."""
        code = self.process.wait(timeout_s)
        self._listener.join()
        return code

    def wait_for_line(self, pattern: str, *, since: int = 0, timeout_s: float = 10.0) -> str:
        """Return the first line from number ``since`` on that matches a regular expression; wait for it if needed."""

        def found() -> str | None:
            return next((line for line in self.lines[since:] if re.search(pattern, line)), None)

        with self._heard:
            self._heard.wait_for(lambda: found() or self._ended, timeout_s)
            line = found()
        assert line is not None, f"nothing like {pattern!r} in:\n{self._said()}"
        return line

    def target(self, name: str) -> str | None:
        """Return a name's address in the hosts file, as the resolver would."""
        for line in self.hosts_file.read_text().splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            if name in names:
                return address
        return None

    def wait_for_target(self, name: str, address: str, *, timeout_s: float = 10.0) -> None:
        """Wait until the hosts file has an address for a name."""
        deadline = time.monotonic() + timeout_s
        while (seen := self.target(name)) != address:
            assert self.process.poll() is None, f"the agent has ended:\n{self._said()}"
            assert time.monotonic() < deadline, f"{name} is {seen}, not {address}:\n{self._said()}"
            time.sleep(0.002)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with self._heard:
                    self.lines.append(line.rstrip("\n"))
                    self._heard.notify_all()
        with self._heard:
            self._ended = True
            self._heard.notify_all()

    def _said(self) -> str:
        return "\n".join(self.lines)
