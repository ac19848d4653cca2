"""Removes a folder of throw-away servers and their processes, however its owner ends.

``Site`` runs this file as a process of its own, whose standard input is a pipe that is never written to. When the owner
closes it, or is killed by any signal and the kernel closes it, every process that works inside the folder is killed and
the folder is removed. This file needs only the standard library, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

_IPC_RMID = 0


def processes_in(folder: Path) -> list[int]:
    """Return the ids of all processes whose working directory is ``folder`` or below it.

    A PostgreSQL server and every process that it forks work in its data directory, each in a process group of its own.
    This finds them all, also after the postmaster has gone, and never a foreign process with a recycled id.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
    return found


def signal_all(folder: Path, signum: signal.Signals) -> set[int]:
    """Send a signal to every process that works in ``folder`` and return their ids."""
    pids = processes_in(folder)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
    return set(pids)


def pause_all(folder: Path) -> None:
    """Freeze every process that works in ``folder``, including those that are forked meanwhile."""
    paused: set[int] = set()
    while (found := signal_all(folder, signal.SIGSTOP)) != paused:
        paused = found


def kill_server(folder: Path) -> None:
    """Kill every process that works in ``folder``, and free the shared memory that a killed server leaves.

    All at once, like a power failure: the processes are frozen first, so none of them sees another die. A backend that
    saw the postmaster die would continue a commit that waits for a standby.
    """
    pause_all(folder)
    while signal_all(folder, signal.SIGKILL):
        pass
    with contextlib.suppress(OSError, IndexError, ValueError):
        _key, segment = (folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()
        ctypes.CDLL(None).shmctl(int(segment), _IPC_RMID, None)


def main() -> None:
    """Wait for the end of the owner, then clean up."""
    site = Path(sys.argv[1])
    sys.stdin.buffer.read()
    for folder in site.iterdir():
        kill_server(folder)
    shutil.rmtree(site)


if __name__ == "__main__":
    main()
