"""The addresses of DNS names, looked up off the event loop and refreshed from time to time."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
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

_MOST_ADDRESSES = 16
"""How many addresses of a name count: each gets a share of the time."""


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
        for gone in self.known.keys() - set(names):  # names from outside come and go
            del self.known[gone]
        for gone in self._looked_at.keys() - set(names):
            del self._looked_at[gone]
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
        if name not in self._names:
            self.go_on()
            return
        self._looked_at[name] = boottime()
        answer = lookup.exception() or lookup.result()
        found = frozenset(() if isinstance(answer, BaseException) else answer) or self.known.get(name, frozenset())
        if found != self.known.get(name):
            self.known[name] = found
            self._on_change()
        self.go_on()


class Addresses:
    """The addresses of hosts, for code that blocks: the last good one of a host comes first.

    Only the first look-up of a host is waited for, so that a slow name server delays no request after it. A host is
    looked up again after ``again_s`` seconds, in a thread, or when it is forgotten.
    """

    def __init__(self, *, getaddrinfo: Resolver = socket.getaddrinfo, again_s: float = 60.0) -> None:
        self._getaddrinfo = getaddrinfo
        self._again_s = again_s
        self._known: dict[str, tuple[float, list[str]]] = {}

    def find(self, host: str) -> list[str]:
        """Return the addresses of a host, at least one; an address is its own.

        Raises:
            OSError, UnicodeError: it cannot be looked up, or has no address.
        """
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        at, known = self._known.get(host, (0.0, []))
        if not known:
            return self._look_up(host)
        if boottime() - at >= self._again_s:
            self._known[host] = (boottime(), known)
            with contextlib.suppress(RuntimeError):  # no thread for a moment: the known addresses serve
                threading.Thread(target=self._refresh, args=(host,), daemon=True).start()
        return known

    def prefer(self, host: str, address: str) -> None:
        """Put an address of a host first."""
        if host in self._known:
            at, known = self._known[host]
            self._known[host] = (at, sorted(known, key=lambda one: one != address))

    def forget(self, host: str) -> None:
        """Look a host up again when it is asked for next."""
        self._known.pop(host, None)

    def _refresh(self, host: str) -> None:
        with contextlib.suppress(Exception):  # the known addresses serve
            self._look_up(host)

    def _look_up(self, host: str) -> list[str]:
        found = look_up(host, self._getaddrinfo)
        if isinstance(found, Exception):
            raise found
        if not found:
            raise OSError(0, "it has no address")
        first = self._known.get(host, (0.0, found))[1][:1]
        self._known[host] = (boottime(), sorted(found, key=lambda one: one not in first))
        return self._known[host][1]


def look_up(name: str, getaddrinfo: Resolver) -> list[str] | Exception:
    """Return the addresses of a name, each once, at most 16, or the error: not raised, as the caller may have gone."""
    try:
        found = [str(at[0]) for *_, at in getaddrinfo(name, None, type=socket.SOCK_STREAM)]
        return list(dict.fromkeys(one for one in found if _is_address(one)))[:_MOST_ADDRESSES]
    except (OSError, UnicodeError) as error:
        return error
    except Exception as error:  # noqa: BLE001 -- whatever a resolver answers, the next look-up may do better
        return OSError(0, f"the look-up failed: {type(error).__name__}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
