"""A hosts file's content in tests of its writer, and system calls that fail, fall short or are watched."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from resolver_agent.hosts import block
from resolver_agent.hosts.atomic_file import System
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")

OLD = b"127.0.0.1\tlocalhost\n10.9.9.9\tother\n"
TARGETS = [Target(name="wk1", address="10.100.100.100", kind=TargetKind.STANDBY, wanted_role=Role.STANDBY)]


def with_block(content: bytes) -> bytes:
    """Return the content with the block that the tests write."""
    return block.render(content, TARGETS)


class Faulty(System):
    """Fails system calls: the n-th call of a function (or every one, n = 0) with an error."""

    def __init__(self, faults: dict[tuple[Callable[..., object], int], int]) -> None:
        self.faults = faults
        self.made: Counter[object] = Counter()

    def call(self, function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Make the call, or fail it."""
        self.made[function] += 1
        fault = self.faults.get((function, 0)) or self.faults.get((function, self.made[function]))
        if fault:
            raise OSError(fault, os.strerror(fault))
        return super().call(function, *args, **kwargs)


class Stingy(System):
    """Writes at most seven bytes at a time."""

    def call(self, function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Make the call; a write takes only a part of its bytes."""
        if function is os.pwrite:
            fd, content, offset = args
            args = (fd, content[:7], offset)  # type: ignore[assignment,index]
        return super().call(function, *args, **kwargs)


class Watched(System):
    """Runs a callback right before a system call, and does not really sleep."""

    def __init__(self, before: Callable[[object], None]) -> None:
        self.before = before

    def call(self, function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run the callback, then make the call."""
        self.before(function)
        if function is time.sleep:
            args = (0,)  # type: ignore[assignment]
        return super().call(function, *args, **kwargs)
