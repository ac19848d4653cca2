"""Whose the folders and links on a path are: who may write one can lead whoever follows the path to another file."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

_LINKS_MAX = 40


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


def user(uid: int) -> str:
    """Return the name of a user, or its number in words where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
