"""One agent per hosts file: a lock on a file of our own, held for as long as the process lives.

Never on the hosts file: it is replaced at each write, and a lock on it would be on a file that is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOKS = 5
_LOOK_S = 0.02
"""Whoever looks whether the lock is held holds it for a moment: so often, and so far apart, it is tried."""


class LockedError(Exception):
    """Another agent holds the lock; the message names it."""


class LockUnavailableError(Exception):
    """The lock's file cannot be made; the message names it and the mend."""


@contextlib.contextmanager
def exclusive(runtime_dir: str) -> Iterator[None]:
    """Hold ``runtime_dir``/lock, with our process number in it where there is room for it.

    Raises:
        LockedError: another process holds it.
        LockUnavailableError: the folder or the file cannot be made.
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
        if not _taken(descriptor):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise LockedError(f"{path} is held by another agent, process {holder}")
        with contextlib.suppress(PermissionError):  # the file was another user's
            os.fchmod(descriptor, 0o600)  # whoever may open it may lock it, and so keep the agent from starting
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: the number is a courtesy, the lock is not in it
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(runtime_dir: str) -> bool:
    """Report whether an agent holds the lock; whoever may not look is told that it does."""
    try:
        descriptor = os.open(Path(runtime_dir) / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int) -> bool:
    for look in range(_LOOKS):
        time.sleep(_LOOK_S if look else 0)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
