"""Tries whether the waiting rooms of this node can be opened: whether their addresses and ports are free."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from resolver_agent.doctor import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TCP = Path("/proc/net/tcp")
_LISTENS = "0A"
_FIELDS = 4


def faults(rooms: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Return why a room cannot be opened, by name; ``rooms`` are addresses and ports.

    Where a process listens at exactly such an address, it is taken for an agent that has its room open.
    """
    open_, found = _listening(), {}
    for name, place in rooms.items():
        if place in open_:
            continue
        try:
            with bound(*place):
                pass
        except OSError as error:
            found[name] = files.why(error)
    return found


@contextlib.contextmanager
def bound(address: str, port: int) -> Iterator[None]:
    """Hold an address and port without listening there; that keeps no server from listening.

    Raises:
        OSError: another process listens there, or there is no such address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port))
        yield


def _listening() -> set[tuple[str, int]]:
    """Return the IPv4 addresses and ports at which processes listen; none where the kernel does not tell."""
    text = files.read(_TCP).text
    rows = (line.split()[:_FIELDS] for line in (text if isinstance(text, str) else "").splitlines()[1:])
    return {_place(row[1]) for row in rows if len(row) == _FIELDS and row[3] == _LISTENS}


def _place(text: str) -> tuple[str, int]:
    """Return an address and port as the kernel writes them: the address in the byte order of the machine."""
    address, _, port = text.partition(":")
    return socket.inet_ntoa(int(address, 16).to_bytes(4, sys.byteorder)), int(port, 16)
