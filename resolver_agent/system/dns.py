"""The addresses of DNS names, looked up off the event loop and refreshed from time to time."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from resolver_agent.system import threads
from resolver_agent.system.clock import boottime

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    Resolver = Callable[..., Any]
    """The type of ``socket.getaddrinfo``."""

_SIDE_BY_SIDE = 8


class AddressBook:
    """Looks up names with ``getaddrinfo``, and calls ``on_change`` when the addresses of a name change.

    ``known`` has the last known addresses of every name that was looked up, empty where that has always failed. Each
    name is looked up again after ``again_s`` seconds.
    """

    def __init__(self, *, getaddrinfo: Resolver, on_change: Callable[[], None], again_s: float = 60.0) -> None:
        self.known: dict[str, frozenset[str]] = {}
        self._getaddrinfo = getaddrinfo
        self._on_change = on_change
        self._again_s = again_s
        self._names: Collection[str] = ()
        self._looking: set[str] = set()
        self._looked_at: dict[str, float] = {}

    def want(self, names: Collection[str]) -> None:
        """Look up these names from now on, and no others."""
        self._names = names
        self.go_on()

    def go_on(self) -> None:
        """Look up what is due."""
        now = boottime()
        due = [name for name in self._names if now - self._looked_at.get(name, -self._again_s) >= self._again_s]
        free = _SIDE_BY_SIDE - len(self._looking)  # a lookup that hangs keeps its slot until the resolver gives up
        for name in [name for name in due if name not in self._looking][:free]:
            self._looking.add(name)
            threads.start(look_up, name, self._getaddrinfo).add_done_callback(partial(self._take, name))

    def _take(self, name: str, lookup: asyncio.Future[list[str] | Exception]) -> None:
        self._looking.discard(name)
        self._looked_at[name] = boottime()
        answer = lookup.result()
        found = frozenset(() if isinstance(answer, Exception) else answer) or self.known.get(name, frozenset())
        if found != self.known.get(name):
            self.known[name] = found
            self._on_change()
        self.go_on()


def look_up(name: str, getaddrinfo: Resolver) -> list[str] | Exception:
    """Return the addresses of a name, each once, or the error: not raised, as the caller may have stopped waiting."""
    try:
        found = getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return error
    return list(dict.fromkeys(str(at[0]) for *_, at in found))
