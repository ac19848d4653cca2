"""Whose the folders and links on a path are: who may write one can lead whoever follows the path to another file."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

_LINKS_MAX = 40
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def way(path: Path) -> list[tuple[Path, bool]]:
    """Return the folders and symbolic links on the way to ``path``, and whether each is a folder that ends the way.

    A folder ends the way if the file itself, or a link to it, is in it.

    Raises:
        OSError: a link cannot be read, or there are too many.
    """
    here, ahead, links = Path("/"), list(reversed(path.absolute().parts[1:])), 0
    found: list[tuple[Path, bool]] = []
    while ahead:
        found.append((here, len(ahead) == 1))
        step = here / ahead.pop()
        if step.name == "..":
            here = here.parent
        elif step.is_symlink():
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            found.append((step, False))
            target = step.readlink()
            here = Path("/") if target.is_absolute() else here
            ahead += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        elif not ahead:
            break
        elif step.is_dir():
            here = step
        else:
            break  # what is missing cannot be another user's
    return found


def unsafe(path: Path) -> str | None:
    """As root, return why another user may put something else in the place of ``path``, with a fix; else None.

    In a folder with the sticky bit others cannot replace what is root's; but the last folder must not have it either,
    since others could put a link where there is no file yet.

    Raises:
        OSError: a part of the path cannot be looked at.
    """
    if os.geteuid() != 0:
        return None
    for found, is_last in way(path):
        status = found.lstat()
        is_link = stat.S_ISLNK(status.st_mode)
        if status.st_uid != 0:
            who = f"belongs to {user(status.st_uid)}"
        elif is_link or not _others_may_write(status, sticky_counts=not is_last):
            continue
        else:
            who = f"is writable by others (mode {stat.S_IMODE(status.st_mode):04o})"
        fix = "chown root" if status.st_uid != 0 else "chmod go-w"
        return f"{found} {who}, who could lead root to any other file; `{fix}` it"
    return None


def _others_may_write(status: os.stat_result, *, sticky_counts: bool) -> bool:
    if sticky_counts and status.st_mode & stat.S_ISVTX:
        return False
    roots_group = stat.S_IWGRP if status.st_gid == 0 else 0
    return bool(status.st_mode & _WRITABLE_BY_OTHERS & ~roots_group)


def make_folder(folder: Path) -> None:
    """Create the folder and its parents where they are missing, with mode 0755, whatever the umask.

    Raises:
        OSError: one cannot be made.
    """
    for missing in [one for one in (*reversed(folder.parents), folder) if not one.exists()]:
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755)


def user(uid: int) -> str:
    """Return the name of a user, or its number in words where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
