"""Small files in ``state_dir``: what an agent should still know after a restart, and can do without.

Everything here blocks, so the agent calls it in a thread. A file is trusted as little as its folder: as root, neither
may be one that another user can change, and what is read is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from resolver_agent.system import ownership

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES = 1 << 16
"""How much is read at a time: ``os.read`` allocates all that it is asked for, also where the file is small."""


class StateError(OSError):
    """A file cannot be read or written, or must not be trusted; the message names it, the fault and the fix."""


def read(path: str, *, most_bytes: int) -> bytes:
    """Return the content of a file, empty where it is missing.

    Raises:
        StateError: it cannot be read, is larger than ``most_bytes``, or as root: another user may change it.
    """
    content = bytearray()
    with _in_words(path), contextlib.suppress(FileNotFoundError), _safely_opened(path, os.O_RDONLY) as descriptor:
        while len(content) <= most_bytes and (more := os.read(descriptor, _PIECE_BYTES)):
            content += more
        if len(content) > most_bytes:
            raise StateError(f"{path} is larger than {most_bytes} bytes: delete it")
    return bytes(content)


def write(path: str, content: bytes) -> None:
    """Replace a file atomically; it has mode 0644. Its folder is made where it is missing, with mode 0755.

    Only one thread of one process may write a file.

    Raises:
        StateError: it cannot be written, or as root: another user may change its folder.
    """
    with _in_words(path):
        _make_folder(path)
        new = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):  # of an agent that was killed
            os.unlink(new)  # noqa: PTH108 -- as the other calls here
        with _opened(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            _write_all(descriptor, content)
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        os.rename(new, path)  # noqa: PTH104
        with _opened(str(Path(path).parent), os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)


def append(path: str, content: bytes) -> None:
    """Add to the end of a file, which is made where it is missing, as by ``write``. A crash may leave a part of it.

    Raises:
        StateError: as for ``write``.
    """
    with _in_words(path):
        _make_folder(path)
        with _safely_opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
            os.fchmod(descriptor, 0o644)
            _write_all(descriptor, content)


@contextlib.contextmanager
def _in_words(path: str) -> Iterator[None]:
    """Raise errors as ``StateError``."""
    try:
        yield
    except StateError:
        raise
    except OSError as error:
        fault = StateError(f"{path}: {error.strerror}; make it usable for this user, or name another state_dir")
        fault.errno = error.errno
        raise fault from error


def _make_folder(path: str) -> None:
    _refuse_foreign(path)
    ownership.make_folder(Path(path).parent)
    _refuse_foreign(path)


def _refuse_foreign(path: str) -> None:
    fault = ownership.unsafe(Path(path))
    if fault is not None:
        raise StateError(f"state_dir {Path(path).parent}: {fault}, or name another state_dir")


@contextlib.contextmanager
def _safely_opened(path: str, flags: int) -> Iterator[int]:
    """Yield the descriptor of a file that only its reader's user may change."""
    _refuse_foreign(path)
    with _opened(path, flags) as descriptor:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise StateError(f"{path} is no regular file of its own: delete it")
        if os.geteuid() == 0 and (found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            raise StateError(
                f"{path} belongs to {ownership.user(found.st_uid)} (mode {stat.S_IMODE(found.st_mode):04o}), "
                "expected a file that only root may change: delete it"
            )
        yield descriptor


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    """Yield a descriptor that is closed with the context; a new file has mode 0600. A pipe does not block."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise StateError(f"{path} is no regular file: delete it") from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    done = 0
    while done < len(content):
        done += os.write(descriptor, content[done:])
