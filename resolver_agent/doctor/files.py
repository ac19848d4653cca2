"""Reads files of the node for doctor: whatever is at a path, the result is a value, soon and of a bounded size."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from resolver_agent.doctor.facts import TextFile, Unknown
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_BYTES = 2**24


def read(path: Path, *, limit_bytes: int = LIMIT_BYTES) -> TextFile:
    """Return a file; bytes that are not UTF-8 are surrogates in its text."""
    shown = plain(str(path))
    try:
        with open(path, "rb", opener=_opener) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                return TextFile(shown, Unknown("it is not a regular file"))
            content = file.read(limit_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        return TextFile(shown, None)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        return TextFile(shown, Unknown(why(error)))
    if len(content) > limit_bytes:
        return TextFile(shown, Unknown(f"it is larger than {limit_bytes} bytes"))
    return TextFile(shown, content.decode("utf-8", "surrogateescape"), stat.S_IMODE(found.st_mode), found.st_uid)


def why(error: OSError | ValueError) -> str:
    """Return an error in words, those of the kernel with the name of its number: ``Permission denied (EACCES)``."""
    number, words = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    name, words = errno.errorcode.get(number or 0), words or str(error)
    return plain(f"{words} ({name})" if name else words)


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)  # opening a FIFO would wait for a writer
