"""One agent per hosts file and one per runtime folder: locks on files of our own, held as long as the process lives.

The lock of the hosts file is on a file beside it, as the system's own ``/etc/.pwd.lock`` is: whatever ``runtime_dir``
an agent has, and by whatever path it comes to the folder, it finds that lock. It cannot be on the hosts file itself:
each write replaces that file, and the lock would stay on the old one. Both lock files have mode 0600, since any process
that can open one can keep the agent from starting.

An agent that runs as root opens files in folders that its configuration names. A user who may write such a folder could
put a symbolic link there, and have root write elsewhere. So root refuses those folders.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from resolver_agent.system import ownership

if TYPE_CHECKING:
    from collections.abc import Iterator


class LockedError(Exception):
    """Another agent holds the lock; the message names it."""


class LockUnavailableError(Exception):
    """The lock file cannot be created, or its folder cannot be trusted; the message names it and the fix."""


@contextlib.contextmanager
def exclusive(runtime_dir: str, hosts_file: str) -> Iterator[None]:
    """Hold ``runtime_dir``/lock and the lock of the hosts file, with our process number in them.

    Where no lock file can be made beside the hosts file (a read-only folder, a full disk), that is logged, and the
    other lock has to do.

    Raises:
        LockedError: another process holds one of them.
        LockUnavailableError: a folder or a lock file cannot be made, or as root: another user may write it.
    """
    path = Path(runtime_dir) / "lock"
    with contextlib.ExitStack() as held:
        try:
            _refuse_foreign(path, "runtime_dir", path.parent)
            ownership.make_folder(path.parent)
            _refuse_foreign(path, "runtime_dir", path.parent)
            held.enter_context(_locked(path))
        except OSError as error:
            raise LockUnavailableError(
                f"{path}: {error.strerror}; make the folder writable for this user, or name another as runtime_dir"
            ) from error
        real = Path(os.path.realpath(hosts_file))
        beside = real.with_name(f".{real.name}.resolver-agent.lock")
        try:
            _refuse_foreign(Path(hosts_file), "hosts_file", Path(hosts_file))
            held.enter_context(_locked(beside))
        except OSError as error:
            import logging  # noqa: PLC0415 -- a hook asks whether the lock is held, and must start quickly

            logging.getLogger(__name__).warning(
                "%s cannot be made: %s; see to it that no other agent manages %s", beside, error.strerror, hosts_file
            )
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise LockUnavailableError(f"{path} is no regular file: delete it") from error
        raise
    try:
        _refuse_file(path, os.fstat(descriptor))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            number = holder if holder.isdigit() else "unknown"
            raise LockedError(f"{path} is held by another agent, process {number}") from None
        with contextlib.suppress(PermissionError):  # the file belongs to another user
            os.fchmod(descriptor, 0o600)
        with contextlib.suppress(OSError):  # a full disk: the lock works without the number
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _refuse_file(path: Path, found: os.stat_result) -> None:
    """Raise if this is no lock file of ours: we are about to empty it."""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise LockUnavailableError(f"{path} is no regular file of its own: delete it")
    if os.geteuid() == 0 and found.st_uid != 0:
        raise LockUnavailableError(
            f"{path} belongs to {ownership.user(found.st_uid)}, who could hold the lock: delete it"
        )


def _refuse_foreign(path: Path, key: str, shown: Path) -> None:
    """As root, raise if another user may put something else in the place of ``path``, or of a folder on the way to it.

    Others could put a link where there is no file yet.
    """
    fault = ownership.unsafe(path)
    if fault is not None:
        raise LockUnavailableError(f"{key} {shown}: {fault}, or name another {key}")


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
