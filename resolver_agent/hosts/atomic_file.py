"""Reads one file and replaces it atomically; everything that depends on the file system is here.

A reader sees the old file or the new one, never a part, and a writer killed at any moment leaves one of the two. Where
the file cannot be replaced (a bind mount, a read-only folder) it is written in place, which is nearly as good: a reader
may get old and new parts of a file larger than a page, and a writer killed between two steps may leave blank lines at
the end.

If another program changes the file during a write, the write starts over. A change in the microseconds between the
last check of the file and the rename goes unseen: writers that share no lock cannot close that gap.

Everything here blocks. It changes no state of the process (umask, working directory), so any thread may call it. This
module knows nothing about the content of the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_P = ParamSpec("_P")
_R = TypeVar("_R")

MAX_BYTES = 64 << 20
"""The largest file that is read: a larger one is none that a resolver should read at each look-up."""

_CHUNK_BYTES = 1 << 24
_ACL = "system.posix_acl_access"
_NOT_COPIED = ("security.ima", "security.evm")  # the kernel's own digests of a file's content


class System:
    """Makes the system calls. Their errors are raised as they are, and no file offset is used or changed."""

    def call(self, function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what ``function`` returns; all calls but ``close`` go through here."""
        return function(*args, **kwargs)

    @contextlib.contextmanager
    def opened(self, path: str, flags: int) -> Iterator[int]:
        """Yield a descriptor that is closed with the context; a new file has mode 0600."""
        # O_NONBLOCK: opening a pipe in the file's place must not block. O_NOFOLLOW: links were followed before.
        fd = self.call(os.open, path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def read_all(self, fd: int) -> bytes:
        """Return the whole content of a file, of one that is too large a part larger than ``MAX_BYTES``."""
        chunks, size = [], 0
        while size <= MAX_BYTES and (chunk := self.call(os.pread, fd, _CHUNK_BYTES, size)):
            chunks.append(chunk)
            size += len(chunk)
        return b"".join(chunks)

    def write_all(self, fd: int, content: bytes, *, offset: int = 0) -> None:
        """Write ``content`` at ``offset``, in one call if the kernel accepts all of it."""
        done = 0
        while done < len(content):
            done += self.call(os.pwrite, fd, content[done:], offset + done)

    def copy_attributes(self, source: str, status: os.stat_result, fd: int) -> list[str]:
        """Give ``fd`` the extended attributes, mode and owner of ``source``; return in words what could not be kept.

        The extended attributes include the ACL and the SELinux label. ``status`` is the ``stat`` result of ``source``.
        """
        wanted, have = self._xattrs(source), self._xattrs(fd)
        if _ACL in have.keys() - wanted.keys():  # from the folder's default ACL
            self.call(os.removexattr, fd, _ACL)
        lost = [self._set_xattr(fd, name, value) for name, value in sorted(wanted.items() - have.items())]
        self.call(os.fchmod, fd, stat.S_IMODE(status.st_mode))
        created = self.call(os.fstat, fd)
        if (created.st_uid, created.st_gid) != (status.st_uid, status.st_gid):
            self.call(os.fchown, fd, status.st_uid, status.st_gid)
        if status.st_nlink > 1:
            lost.append("its other hard links keep the old content")
        return list(filter(None, lost))

    def _xattrs(self, target: str | int) -> dict[str, bytes]:
        try:
            names = self.call(os.listxattr, target)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                return {}
            raise
        return {name: self.call(os.getxattr, target, name) for name in names if name not in _NOT_COPIED}

    def _set_xattr(self, fd: int, name: str, value: bytes) -> str:
        try:
            self.call(os.setxattr, fd, name, value)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
                raise
            return f"its attribute {name} is lost: {error.strerror}"
        return ""


Signature = tuple[int, int, int, int, int]
"""A file's identity and state from ``stat``: device, inode, size, mtime and ctime in ns."""

_ATTEMPTS = 20
_TEMPORARY = re.compile(r"hosts\.resolver-agent\.\d+\.[0-9a-f]{8}")

# With these errors the file cannot be replaced, but perhaps written in place. All others rule that out as well: a disk
# that is full or broken, a file that was made immutable.
_NOT_REPLACEABLE = (errno.EBUSY, errno.EXDEV, errno.EROFS, errno.EACCES)

_FIXES = {
    errno.ENOSPC: "free space on its file system",
    errno.EDQUOT: "raise the quota of its owner",
    errno.EIO: "check the disk; the kernel's log says more",
    errno.EPERM: "undo a chattr +i or +a on it or its folder, or run as its owner or as root (with CAP_CHOWN)",
    errno.EACCES: "run as a user that may read and write it",
    errno.EROFS: "mount it writable; under systemd name its folder in ReadWritePaths=",
    errno.ENOENT: "create its folder",
    errno.ELOOP: "correct the symbolic links that point to each other",
}


class HostsFileError(OSError):
    """The file could not be read or written; the message names the file, the fault and the fix."""

    def __init__(self, path: str, fault: str, error: OSError | None = None) -> None:
        code = error.errno if error else None
        words = f": {error.strerror}" if error else ""
        fix = f"; {_FIXES[code]}" if code in _FIXES else ""
        super().__init__(f"{path} {fault}{words}{fix}")
        self.errno = code


class ReadError(HostsFileError):
    """The file could not be read."""


class WriteError(HostsFileError):
    """The file could not be written."""


class State(enum.Enum):
    """What an update did."""

    UNCHANGED = "unchanged"
    REPLACED = "replaced"
    IN_PLACE = "written in place"


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """The file on disk at one moment; where it is missing the content is empty and the signature None."""

    content: bytes
    signature: Signature | None


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What an update did, the file on disk after it, and in words what an operator should know, if anything."""

    state: State
    snapshot: Snapshot
    detail: str = ""


class _ChangedError(Exception):
    """Another program changed the file during the write."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """The file that the path pointed to when it was read, and must still point to when it is written."""

    real: str
    snapshot: Snapshot
    status: os.stat_result | None = dataclasses.field(compare=False)


class HostsFileWriter:
    """Reads and writes one file, following symbolic links to it.

    A file that another program changed less than ``settle_s`` seconds ago may be half written (emptied and not filled
    yet, moved away and not put back). So a write waits until the last change is that old before it reads, and so does
    who reads it to act on it.
    """

    def __init__(self, path: str, *, settle_s: float = 0.1, system: System | None = None) -> None:
        self._path = path
        self._settle_s = settle_s
        self._system = system or System()
        self._call = self._system.call
        self._own: Signature | None = None

    def signature(self) -> Signature | None:
        """Return the file's signature, at the cost of one system call; None where the file is missing.

        Raises:
            ReadError: the file could not be looked up.
        """
        try:
            return _signature(self._call(os.stat, self._path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ReadError(self._path, "cannot be looked up", error) from error

    def read(self) -> Snapshot:
        """Return the file as it is.

        Raises:
            ReadError: the file could not be read.
        """
        return self._find().snapshot

    def read_settled(self) -> Snapshot:
        """Return the file as it is once others have finished. Only if it is new or missing that takes time.

        Raises:
            ReadError: the file could not be read.
        """
        if self.signature() is None:
            self._call(time.sleep, self._settle_s)
        self._let_others_finish()
        return self.read()

    def update(self, transform: Callable[[bytes], bytes]) -> Outcome:
        """Replace the file's content by ``transform(content)``, which is called again if the file changed meanwhile.

        A missing file counts as empty and is created with mode 0644. Nothing is written when nothing changes.

        Raises:
            ReadError: the file could not be read.
            WriteError: the file could not be written, or another program kept changing it.
        """
        import tenacity  # noqa: PLC0415  (slow to import, and `status` only reads)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_ChangedError),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_random(max=0.02),
            sleep=lambda seconds: self._call(time.sleep, seconds),
            reraise=True,
        )
        try:
            outcome = retrying(self._attempt, transform)
        except _ChangedError as error:
            raise WriteError(self._path, f"was changed by somebody else during each of {_ATTEMPTS} writes") from error
        except HostsFileError:
            raise
        except OSError as error:
            raise WriteError(self._path, "cannot be written", error) from error
        self._own = outcome.snapshot.signature
        return outcome

    def sweep(self) -> tuple[str, ...]:
        """Remove the temporary files of writers that were killed, and return their names.

        Only the holder of the agent's lock may call this: the temporary file of a running writer looks the same, and
        that writer would have to start over.
        """
        folder = Path(self._call(os.path.realpath, self._path)).parent
        removed = []
        with contextlib.suppress(OSError):
            for name in filter(_TEMPORARY.fullmatch, sorted(self._call(os.listdir, folder))):
                with contextlib.suppress(OSError):  # e.g. a folder, which is none of ours
                    self._call(os.unlink, folder / name)
                    removed.append(name)
        return tuple(removed)

    def _let_others_finish(self) -> None:
        signature = self.signature()
        if signature == self._own:
            return
        age_s = self._call(time.time) - signature[3] / 1e9 if signature else 0.0
        if 0 <= age_s < self._settle_s:
            self._call(time.sleep, self._settle_s - age_s)

    def _attempt(self, transform: Callable[[bytes], bytes]) -> Outcome:
        self._let_others_finish()
        found = self._find()
        new = transform(found.snapshot.content)
        if new == found.snapshot.content:
            return Outcome(State.UNCHANGED, found.snapshot)
        try:
            return self._replace(found, new)
        except OSError as error:
            if error.errno not in _NOT_REPLACEABLE or found.status is None:
                raise
            return self._overwrite(found, new, why=error)

    def _find(self) -> _Found:
        real = self._call(os.path.realpath, self._path)
        try:
            with self._system.opened(real, os.O_RDONLY) as fd:
                status = self._call(os.fstat, fd)
                if not stat.S_ISREG(status.st_mode):
                    raise ReadError(self._path, "is no regular file")
                content = self._system.read_all(fd)
                if len(content) > MAX_BYTES:
                    raise ReadError(self._path, f"is larger than {MAX_BYTES >> 20} MiB: shorten it")
                return _Found(real, Snapshot(content, _signature(status)), status)
        except FileNotFoundError:
            return _Found(real, Snapshot(b"", None), None)
        except HostsFileError:
            raise
        except OSError as error:
            if error.errno == errno.ELOOP and self._call(os.path.realpath, self._path) != real:
                return self._find()  # another program has put a link there since
            raise ReadError(self._path, "cannot be read", error) from error

    def _replace(self, found: _Found, new: bytes) -> Outcome:
        folder = Path(found.real).parent
        # SELinux policies label /etc/hosts* alike, so the name begins with "hosts" whatever the file's own name is.
        temporary = str(folder / f"hosts.resolver-agent.{os.getpid()}.{os.urandom(4).hex()}")
        with self._system.opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
            try:
                self._system.write_all(fd, new)
                notes = []
                if found.status:
                    notes += self._system.copy_attributes(found.real, found.status, fd)
                else:
                    self._call(os.fchmod, fd, 0o644)
                self._call(os.fsync, fd)
                made = _signature(self._call(os.fstat, fd))
                self._confirm(found)
                self._rename(temporary, found.real)
                signature = _signature(self._call(os.fstat, fd))
                if signature[:4] != made[:4]:  # another program has already changed it: that is not our version
                    signature = made
            finally:
                with contextlib.suppress(OSError):  # after the rename it is gone
                    self._call(os.unlink, temporary)
        try:
            with self._system.opened(str(folder), os.O_RDONLY | os.O_DIRECTORY) as fd:
                self._call(os.fsync, fd)
        except OSError as error:
            notes.append(f"a power cut may bring the old file back: {folder} cannot be flushed: {error.strerror}")
        return Outcome(State.REPLACED, Snapshot(new, signature), "; ".join(notes))

    def _rename(self, temporary: str, real: str) -> None:
        try:
            self._call(os.rename, temporary, real)
        except FileNotFoundError as error:  # removed by a sweep, or the folder is gone
            raise _ChangedError from error

    def _overwrite(self, found: _Found, new: bytes, *, why: OSError) -> Outcome:
        old = found.snapshot.content
        try:
            with self._system.opened(found.real, os.O_RDWR) as fd:
                if self._system.read_all(fd) != old:
                    raise _ChangedError
                self._put(fd, old, new)
                self._call(os.fsync, fd)
                signature = _signature(self._call(os.fstat, fd))
                if self._system.read_all(fd) != new:
                    raise _ChangedError
        except OSError as error:
            if error.errno == errno.ELOOP:  # another program has put a link there since
                raise _ChangedError from error
            fault = f"can be neither replaced ({why.strerror}) nor written in place"
            raise WriteError(self._path, fault, error) from error
        return Outcome(State.IN_PLACE, Snapshot(new, signature), f"it cannot be replaced: {why.strerror}")

    def _put(self, fd: int, old: bytes, new: bytes) -> None:
        """Write ``new`` over ``old`` so that a full disk loses nothing, and no reader misses a line meanwhile.

        Blank lines first allocate the space, and then overwrite the rest of a longer ``old``: posix_fallocate() would
        show readers NULs.
        """
        try:
            self._system.write_all(fd, b"\n" * (len(new) - len(old)), offset=len(old))
            self._system.write_all(fd, new.ljust(len(old), b"\n"))
            self._call(os.ftruncate, fd, len(new))
        except OSError:
            with contextlib.suppress(OSError):
                self._call(os.ftruncate, fd, len(old))
                self._system.write_all(fd, old)
            raise

    def _confirm(self, found: _Found) -> None:
        """Raise unless the path still points to the file and content read: two edits may share a time stamp."""
        if self._find() != found or self.signature() != found.snapshot.signature:
            raise _ChangedError


def _signature(status: os.stat_result) -> Signature:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
