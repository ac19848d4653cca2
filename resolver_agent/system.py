"""The door through which ``filewriter`` makes its system calls, so that a test can fail, or die, at any of them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_P = ParamSpec("_P")
_R = TypeVar("_R")

_CHUNK_BYTES = 1 << 20
_ACL = "system.posix_acl_access"
_NOT_COPIED = ("security.ima", "security.evm")  # the kernel's own digests of what a file holds


class System:
    """Makes the calls. Errors are the calls' own, and the file offset of a descriptor plays no part."""

    def call(self, function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what ``function`` returns; everything below goes through here."""
        return function(*args, **kwargs)

    @contextlib.contextmanager
    def opened(self, path: str, flags: int) -> Iterator[int]:
        """Give a descriptor for as long as the context lasts; a file that is created is its owner's alone."""
        # O_NONBLOCK: a pipe in a file's place must not hold the caller up.
        fd = self.call(os.open, path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def read_all(self, fd: int) -> bytes:
        """Return the whole content of a file."""
        content = bytearray()
        while chunk := self.call(os.pread, fd, _CHUNK_BYTES, len(content)):
            content += chunk
        return bytes(content)

    def write_all(self, fd: int, content: bytes, *, offset: int = 0) -> None:
        """Write ``content`` at ``offset``, in one call if the kernel takes it in one."""
        done = 0
        while done < len(content):
            done += self.call(os.pwrite, fd, content[done:], offset + done)

    def copy_attributes(self, source: str, status: os.stat_result, fd: int) -> list[str]:
        """Give ``fd`` the extended attributes, mode and owner of ``source``; return in words what could not be kept.

        The extended attributes include ACL and SELinux label. ``status`` is what ``stat`` said of ``source``.
        """
        wanted, have = self._xattrs(source), self._xattrs(fd)
        if _ACL in have.keys() - wanted.keys():  # by the folder's default
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
