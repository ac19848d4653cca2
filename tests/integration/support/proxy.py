"""A TCP proxy that a test can stop, freeze and cut: the network between an agent and one node."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Passes connections to ``address``:``port`` on to ``to``, until told otherwise. A context manager."""

    def __init__(self, address: str, port: int, *, to: tuple[str, int]) -> None:
        self.address = address
        self.port = port
        self._to = to
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, and forward connections."""
        self._listener = socket.create_server((self.address, self.port))
        threading.Thread(target=self._accept, args=[self._listener]).start()

    def stop(self) -> None:
        """Refuse new connections, and reset the open ones."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener = None
        self.cut()
        self.thaw()

    def freeze(self) -> None:
        """Forward nothing any more: open connections stay open and silent, and so do new ones."""
        self._flows.clear()

    def thaw(self) -> None:
        """Undo ``freeze``, and forward what was held back."""
        self._flows.set()

    def cut(self) -> None:
        """Reset every open connection. New ones are still accepted."""
        ends = tuple(self._open)
        for end in ends:  # all of them first, since the end of one closes its other side
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)  # wakes the thread that reads it, and unlike SHUT_RDWR says nothing

    def _accept(self, listener: socket.socket) -> None:
        with listener, contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._open.add(client)
                threading.Thread(target=self._serve, args=[client]).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._flows.wait()
            with socket.create_connection(self._to) as server:
                self._open.add(server)
                back = threading.Thread(target=self._pump, args=[server, client])
                back.start()
                self._pump(client, server)
                back.join()
                self._open.discard(server)
        self._open.discard(client)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RD)  # ends the other direction
