"""One agent per hosts file: a lock on a file of our own, held for as long as the process lives.

The lock cannot be on the hosts file itself: each write replaces that file, and the lock would stay on the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class LockedError(Exception):
    """Another agent holds the lock; the message names it."""


class LockUnavailableError(Exception):
    """The lock file cannot be created; the message names it and the fix."""


@contextlib.contextmanager
def exclusive(runtime_dir: str) -> Iterator[None]:
    """Hold ``runtime_dir``/lock, with our process number in it unless the disk is full.

    Raises:
        LockedError: another process holds it.
        LockUnavailableError: the folder or the file cannot be created.
    """
    path = Path(runtime_dir) / "lock"
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LockUnavailableError(
            f"{path}: {error.strerror}; make the folder writable for this user, or name another as runtime_dir"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise LockedError(f"{path} is held by another agent, process {holder}") from None
        with contextlib.suppress(PermissionError):  # the file belongs to another user
            os.fchmod(descriptor, 0o600)  # a user who can open it can lock it, and so keep the agent from starting
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: the lock works without the number
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(runtime_dir: str) -> bool:
    """Report whether an agent holds the lock, by ``/proc/locks``, which any user may read; True where that fails."""
    try:
        inode = (Path(runtime_dir) / "lock").stat().st_ino
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        return True
    # E.g. "1: FLOCK  ADVISORY  WRITE 708 00:15:23 0 EOF". On some file systems the device differs from that of stat().
    fields = (line.split() for line in locks.splitlines())
    return any(kind == "FLOCK" and file.endswith(f":{inode}") for _, kind, _, _, _, file, *_ in fields)
