"""DNS lookups off the loop: repeated, a few at a time, and without losing known addresses."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

from resolver_agent.system.dns import AddressBook

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Resolver:
    """Names and their addresses, with the interface of ``socket.getaddrinfo``."""

    def __init__(self, **addresses: str) -> None:
        self.addresses = addresses
        self.hung: set[str] = set()
        self.released = threading.Event()
        self.asked: list[str] = []
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()

    def __call__(self, host: str, _port: None, **_: object) -> list[Any]:
        """Look up a name; one without an address fails."""
        assert threading.current_thread() is not threading.main_thread()
        with self._lock:
            self.asked.append(host)
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
        if host in self.hung:
            assert self.released.wait(10)
        with self._lock:
            self.busy -= 1
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.addresses[host], 0))]


class Book:
    """An address book with its event."""

    def __init__(self, resolver: Resolver, **settings: Any) -> None:
        self.changed = asyncio.Event()
        self.book = AddressBook(getaddrinfo=resolver, on_change=self.changed.set, **settings)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds; its change must set the event."""
        while not condition():
            await asyncio.wait_for(self.changed.wait(), 5)
            self.changed.clear()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario with a time limit."""
    asyncio.run(asyncio.wait_for(scenario, 20))


def test_names_and_their_addresses() -> None:
    """Each wanted name is looked up once; a failure is recorded as such."""

    async def scenario() -> None:
        resolver = Resolver(a="10.0.0.1", b="10.0.0.2")
        book = Book(resolver)
        book.book.want(["a", "b", "c"])
        await book.until(lambda: len(book.book.known) == 3)
        assert book.book.known == {"a": {"10.0.0.1"}, "b": {"10.0.0.2"}, "c": frozenset()}
        book.book.want(["c", "a", "b"])
        assert sorted(resolver.asked) == ["a", "b", "c"]

    run(scenario())


def test_an_address_that_changes() -> None:
    """Names are looked up again; a failure then keeps the known addresses."""

    async def scenario() -> None:
        resolver = Resolver(a="10.0.0.1", b="10.0.0.2")
        book = Book(resolver, again_s=0.0)
        book.book.want(["a", "b"])
        await book.until(lambda: len(book.book.known) == 2)
        del resolver.addresses["b"]
        resolver.addresses["a"] = "10.0.0.9"
        await book.until(lambda: book.book.known["a"] == {"10.0.0.9"})
        assert book.book.known["b"] == {"10.0.0.2"}
        book.book.want([])

    run(scenario())


def test_look_ups_that_hang() -> None:
    """Lookups run a few at a time, and one that hangs takes one place only."""

    async def scenario() -> None:
        names = [f"n{i}" for i in range(20)]
        resolver = Resolver(**dict.fromkeys(names, "10.0.0.1"))
        resolver.hung = set(names[:7])
        book = Book(resolver)
        book.book.want(names)
        await book.until(lambda: len(book.book.known) == 13)
        assert len(resolver.asked) == 20
        resolver.released.set()
        await book.until(lambda: len(book.book.known) == 20)

    run(scenario())


def test_no_more_than_a_few_threads() -> None:
    """Names wait for their turn while all places are taken."""

    async def scenario() -> None:
        names = [f"n{i}" for i in range(20)]
        resolver = Resolver()
        resolver.hung = set(names)
        book = Book(resolver)
        book.book.want(names)
        resolver.released.set()
        await book.until(lambda: len(book.book.known) == 20)
        assert resolver.most_busy <= 8

    run(scenario())
