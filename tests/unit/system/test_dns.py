"""DNS lookups off the loop: repeated, a few at a time, and without losing known addresses."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.system.dns import AddressBook, Addresses, look_up

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


def test_names_that_come_and_go() -> None:
    """Nothing is kept of a name that is no longer wanted: names from outside may change all the time."""

    async def scenario() -> None:
        names = [f"n{i}" for i in range(20)]
        book = Book(Resolver(**dict.fromkeys(names, "10.0.0.1")))
        for name in names:
            book.book.want([name])
            await book.until(lambda: name in book.book.known)  # noqa: B023 -- it is awaited here
            assert book.book.known == {name: {"10.0.0.1"}}

    run(scenario())


def at(address: object) -> tuple[object, ...]:
    """Return an entry of a resolver's answer."""
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        pytest.param([at("10.0.0.1"), at("10.0.0.1"), at("fd00::1")], ["10.0.0.1", "fd00::1"], id="usual"),
        pytest.param([], [], id="none"),
        pytest.param([at("pg-1"), at(""), at(b"10.0.0.1"), at("10.0.0.1")], ["10.0.0.1"], id="what is no address"),
        pytest.param([at(f"10.0.1.{number}") for number in range(99)], [f"10.0.1.{n}" for n in range(16)], id="many"),
        pytest.param(None, None, id="nothing"),
        pytest.param([()], None, id="an empty entry"),
        pytest.param([7], None, id="a number"),
    ],
)
def test_odd_answers_of_a_resolver(answer: Any, found: list[str] | None) -> None:
    """An answer in any shape is a list of addresses, or an error that the caller can show."""
    told = look_up("a", lambda *_, **__: answer)
    assert told == found if found is not None else isinstance(told, OSError)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(), ZeroDivisionError(), UnicodeError()])
def test_a_resolver_that_breaks(error: Exception) -> None:
    """No error of a resolver ends what asked for the name."""

    def broken(*_: object, **__: object) -> None:
        raise error

    assert isinstance(look_up("a", broken), (OSError, UnicodeError))


class Sequence:
    """Answers of a resolver, one after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.released = threading.Event()
        self.released.set()
        self.asked = threading.Semaphore(0)

    def __call__(self, *_: object, **__: object) -> list[Any]:
        """Answer, or wait until that is allowed."""
        self.asked.release()
        assert self.released.wait(10)
        return [at(address) for address in self.answers.pop(0)]


def test_the_last_good_address_comes_first() -> None:
    """It stays first after another look-up; a host whose addresses all failed is looked up again."""
    addresses = Addresses(getaddrinfo=Sequence(["10.0.0.1", "10.0.0.2"], ["10.0.0.3"]))
    assert addresses.find("a") == ["10.0.0.1", "10.0.0.2"]
    addresses.prefer("a", "10.0.0.2")
    assert addresses.find("a") == ["10.0.0.2", "10.0.0.1"]
    addresses.forget("a")
    assert addresses.find("a") == ["10.0.0.3"]
    assert addresses.find("10.0.0.9") == ["10.0.0.9"]


def test_a_slow_name_server_delays_only_the_first() -> None:
    """While a host is looked up again, its known addresses serve."""
    resolver = Sequence(["10.0.0.1"], ["10.0.0.2"])
    addresses = Addresses(getaddrinfo=resolver, again_s=0.0)
    assert addresses.find("a") == ["10.0.0.1"]
    assert resolver.asked.acquire(timeout=5)
    resolver.released.clear()
    assert addresses.find("a") == ["10.0.0.1"]
    assert resolver.asked.acquire(timeout=5)
    resolver.released.set()


def test_a_host_without_an_address() -> None:
    """That is an error, like a failed look-up, and the next request asks again."""
    addresses = Addresses(getaddrinfo=Sequence([], ["10.0.0.1"]))
    with pytest.raises(OSError, match="it has no address"):
        addresses.find("a")
    assert addresses.find("a") == ["10.0.0.1"]
