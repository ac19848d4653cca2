"""Bytes from one socket to another, moved by the kernel through a pipe: they never enter this process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

_CHUNK = 256 * 1024
_SMALL = 32 * 1024
_TURNS = 16
_SPARE = 8
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

Pipe = tuple[int, int]


class Pipes:
    """The pipes of one thread. A flow has one only while bytes are in it, so a thousand quiet flows share a few."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []

    def take(self) -> Pipe:
        """Return an empty pipe.

        Raises:
            OSError: the process or the system is short of files.
        """
        if self._spare:
            return self._spare.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # the user has many pipes already: then it moves less at a time
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, _CHUNK)
        return pipe

    def give(self, pipe: Pipe, *, is_empty: bool) -> None:
        """Take back a pipe."""
        if is_empty and len(self._spare) < _SPARE:
            self._spare.append(pipe)
        else:
            for end in pipe:
                os.close(end)

    def close(self) -> None:
        """Close the spare pipes."""
        while self._spare:
            for end in self._spare.pop():
                os.close(end)


class Flow:
    """The bytes of one direction of a connection, between two sockets that do not block.

    The pipe is filled only when it is empty: so "try again" from the source always means that it has no bytes now, and
    from the sink that it takes none now. Exactly one of the two is waited for: see ``reads`` and ``writes``.
    """

    def __init__(self, source: socket.socket, sink: socket.socket, pipes: Pipes) -> None:
        self._source = source
        self._sink = sink
        self._pipes = pipes
        self._pipe: Pipe | None = None
        self._held = 0
        self.is_over = False

    @property
    def reads(self) -> bool:
        """Whether it waits for the source to have bytes."""
        return not self.is_over and self._held == 0

    @property
    def writes(self) -> bool:
        """Whether it waits for the sink to take bytes."""
        return not self.is_over and self._held > 0

    def pump(self) -> None:
        """Move bytes until the source has none, the sink takes none, or many are moved; pass on the source's end.

        A sink that is broken ends this flow alone: the other one may still bring its last words.

        Raises:
            OSError: the source is broken, or there is no pipe.
        """
        for _ in range(_TURNS):
            if self.is_over or not (self._held or self._fill()):
                break
            got = self._held
            if not self._drain() or got < _SMALL:  # after little there is mostly no more: epoll tells
                break
        if self._held == 0:
            self._release()

    def end(self) -> None:
        """Drop what is under way."""
        self.is_over = True
        self._release()

    def _fill(self) -> bool:
        """Fill the empty pipe, and report whether there is something in it."""
        self._pipe = self._pipe or self._pipes.take()
        try:
            self._held = os.splice(self._source.fileno(), self._pipe[1], _CHUNK, flags=_FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        if self._held == 0:
            self.is_over = True
            with contextlib.suppress(OSError):  # the sink is gone; reading from it says so
                self._sink.shutdown(socket.SHUT_WR)
        return self._held > 0

    def _drain(self) -> bool:
        """Empty the pipe as far as the sink takes it, and report whether it took all."""
        assert self._pipe is not None  # noqa: S101 -- it holds bytes
        try:
            while self._held:
                self._held -= os.splice(self._pipe[0], self._sink.fileno(), self._held, flags=_FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self.end()
            return False
        return True

    def _release(self) -> None:
        if self._pipe is not None:
            self._pipes.give(self._pipe, is_empty=self._held == 0)
            self._pipe = None
        self._held = 0
