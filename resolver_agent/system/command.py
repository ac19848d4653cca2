"""Runs a program of the operator's: bounded in time and output, and never the reason that this process suffers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from resolver_agent.system.clock import boottime

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

_LOOK_S = 0.05
"""How often it is looked whether the program has ended; mostly the end of its output tells sooner."""

_CHUNK_BYTES = 65536
_SAID_BYTES = 800
"""How much of the end of the output is kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: its exit code, negative for a signal, None if it was killed; and the end of its output."""

    code: int | None
    said: bytes


def run(command: Sequence[str], *, env: Mapping[str, str], timeout_s: float, stop: threading.Event) -> Ended:
    """Run a program, without a shell, until it ends, for ``timeout_s`` seconds at most, or until ``stop`` is set.

    It has a process group of its own. With the program all that is left of the group is killed. This blocks, and gives
    its own thread the priority of other programs: so call it in a thread of its own.

    Raises:
        OSError: it cannot be started.
    """
    deadline = boottime() + timeout_s
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:  # Linux: that of this thread, which the program inherits
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        cwd="/",
        env=env,
        start_new_session=True,
    ) as process:
        try:
            with contextlib.suppress(OSError):  # without memory it should be killed, and not this process
                Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000", encoding="ascii")
            said, has_ended = _follow(process, deadline, stop)
        finally:
            with contextlib.suppress(PermissionError):  # it runs as another user by now
                # Nobody has waited for the program yet, so this is still its group.
                os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode if has_ended else None, said)


def _follow(process: subprocess.Popen[bytes], deadline: float, stop: threading.Event) -> tuple[bytes, bool]:
    """Read what a program says until it ends or has to; return the end of that, and whether it has ended by itself."""
    if process.stdout is None:
        raise ValueError("its output goes elsewhere")
    pipe, is_open, said = process.stdout.fileno(), True, b""
    os.set_blocking(pipe, False)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        has_ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if is_open:
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(pipe, _CHUNK_BYTES)
                is_open, said = chunk != b"", (said + chunk)[-_SAID_BYTES:]
        if has_ended or stop.is_set() or boottime() >= deadline:
            return said, has_ended
        if is_open:
            poll.poll(_LOOK_S * 1000)
        else:
            stop.wait(_LOOK_S)
