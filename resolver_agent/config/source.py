"""The file that holds the configuration, and who may change it.

Root acts on what this file says. So it must be a file that only root may change, as sshd's StrictModes demands of its
own files; the section in Patroni's file, which belongs to the postgres user, may not give what steers root elsewhere.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from pathlib import Path

from resolver_agent.system import ownership

_MOST_BYTES = 1024**2
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """The content of a configuration file, its mode, and who may change it besides root (None: nobody)."""

    content: bytes
    mode: int
    intruder: Intruder | None


@dataclasses.dataclass(frozen=True, slots=True)
class Intruder:
    """Somebody who may change a file or folder besides root: in words, with the command that ends it."""

    fault: str
    fix: str
    everybody: bool

    def __str__(self) -> str:
        return self.fault


def read(path: str) -> Source:
    """Return what is in a file: of more than 1 MiB only somewhat more than that.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    # A FIFO without a writer would block the open, and a device could be read for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = file.read(_MOST_BYTES + 1)
    return Source(content, stat.S_IMODE(found.st_mode), _worst([_of(os.path.realpath(path), found), intruder(path)]))


def unreadable(path: str) -> str | None:
    """Return why a file, or folder, cannot be read; None if it can be."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "not a regular file"


def unfit_program(path: str) -> str | None:
    """Return why a program cannot be run, or why root must not run it; None if it can be run."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - as the others
        changer = intruder(path) if os.geteuid() == 0 else None
    except OSError as error:
        return error.strerror
    if not stat.S_ISREG(mode) or not os.access(path, os.X_OK):
        return "not a program that can be run: chmod +x it"
    if changer is None:
        return None
    return f"{changer}, expected a program that only root may change: {changer.fix}"


def is_public(path: str) -> bool:
    """Report whether everybody may read a file, and only root may change it or put another in its place."""
    try:
        return intruder(path) is None and bool(os.stat(path).st_mode & stat.S_IROTH)  # noqa: PTH116 - as the others
    except OSError:
        return False


def intruder(path: str) -> Intruder | None:
    """Return who besides root may change what a path leads to: the file, a link or a folder on the way.

    Raises:
        OSError: a part of the path does not exist, or the links do not end.
    """
    on_the_way = [_of(str(step), step.lstat()) for step, _ in ownership.way(Path(path))]
    return _worst([*on_the_way, _of(os.path.realpath(path), os.stat(path))])  # noqa: PTH116 - as the others


def _worst(found: list[Intruder | None]) -> Intruder | None:
    intruders = [one for one in found if one is not None]
    return next((one for one in intruders if one.everybody), intruders[0] if intruders else None)


def _of(at: str, found: os.stat_result) -> Intruder | None:
    mode = stat.S_IMODE(found.st_mode)
    # In a sticky folder (/tmp) others cannot replace what belongs to root. A link has no mode of its own.
    sticky = stat.S_ISDIR(found.st_mode) and mode & stat.S_ISVTX
    writers = 0 if sticky or stat.S_ISLNK(found.st_mode) else mode & _OTHERS_WRITE
    if writers & stat.S_IWOTH:
        fault = f"{at} is writable for everybody (owner {ownership.user(found.st_uid)}, mode {mode:04o})"
        return Intruder(fault, f"chmod go-w {at}", everybody=True)
    if found.st_uid != 0:
        fault = f"{at} belongs to {ownership.user(found.st_uid)} (mode {mode:04o})"
        return Intruder(fault, f"chown -h root {at}", everybody=False)
    if writers:
        return Intruder(
            f"{at} is writable for its group (owner root, mode {mode:04o})", f"chmod go-w {at}", everybody=False
        )
    return None
