"""Throw-away PostgreSQL servers with real streaming replication, for the demonstration, the tests and the benchmark.

A site is a temporary folder of servers that share one TCP port, each on a loopback address of its own, as the nodes of
a cluster do. Not for data that anybody wants to keep: nothing is synced, everybody is trusted, and all of it is gone
when the site is left, also when its owner was killed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from resolver_agent import throwaway_binaries, throwaway_guard
from resolver_agent.throwaway_binaries import ThrowawayError
from resolver_agent.throwaway_server import DEADLINE_S, SUPERUSER, Postgres, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Postgres", "Site", "ThrowawayError"]

# Shared memory in files of the data directory: a killed server leaves nothing in /dev/shm.
_SETTINGS = """
autovacuum = off
dynamic_shared_memory_type = mmap
fsync = off
max_connections = 50
max_logical_replication_workers = 0
shared_buffers = 8MB
wal_retrieve_retry_interval = 100ms
"""
_SETTINGS_FROM = {13: "wal_keep_size = 128MB\n", 18: "io_method = sync\n"}
_HBA = "local all,replication all trust\nhost all,replication all all trust\n"


class Site:
    """A temporary folder of servers, as a context manager that ends and removes them all.

    That is done by a process beside this one (``throwaway_guard``), so it also happens when this one is killed.
    """

    def __init__(
        self,
        *,
        postgres: str | None = None,
        parent: Path | None = None,
        launcher: Callable[[str, str], Sequence[str]] | None = None,
    ) -> None:
        """Take ``postgres`` as ``throwaway_binaries.find`` takes its choice.

        ``parent`` is where the folder is made, if not where temporary files are. ``launcher`` returns that of the
        ``Postgres`` with a name and an address.
        """
        self.servers: dict[str, Postgres] = {}
        self._choice = postgres
        self._parent = parent
        self._launcher = launcher

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=self._parent))
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", throwaway_guard.__file__, self.folder],
            cwd="/",
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self.folder.chmod(0o755)  # the servers' user passes through it
            self.binaries = throwaway_binaries.find(self._choice, spare=self.folder / "postgresql")
            self.port = _free_port()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the servers and remove the folder."""
        self._guard.communicate(timeout=DEADLINE_S)
        for server in self.servers.values():
            server.kill()  # they are dead already: this collects their exit codes

    def groups(self, addresses: Mapping[str, Sequence[str]], *, config: str = "") -> dict[str, list[Postgres]]:
        """Make groups side by side: of each, a primary on its first address and standbys on the others.

        The servers of ``wk1`` are called ``wk1-1``, ``wk1-2`` and so on; ``config`` is as for ``primary``.
        """

        def group(name: str) -> list[Postgres]:
            first, *others = addresses[name]
            primary = self.primary(f"{name}-1", first, config=config)
            standbys = [self.standby(f"{name}-{i}", address, of=primary) for i, address in enumerate(others, start=2)]
            return [primary, *standbys]

        with concurrent.futures.ThreadPoolExecutor() as threads:
            return dict(zip(addresses, threads.map(group, addresses), strict=True))

    def primary(self, name: str, address: str, *, config: str = "") -> Postgres:
        """Make and start a server with a system identifier of its own; ``config`` is added to its postgresql.conf."""
        server = self._add(name, address)
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", f"--username={SUPERUSER}"]
        small = "--wal-segsize=1"  # as the data then is, which standbys copy
        self._run(server, "initdb", *options, small, "-D", str(server.data))
        with (server.data / "postgresql.conf").open("a") as conf:
            conf.write(_SETTINGS)
            conf.writelines(text for since, text in _SETTINGS_FROM.items() if self.binaries.version >= since)
            conf.write(config)
        (server.data / "pg_hba.conf").write_text(_HBA)
        server.start()
        return server

    def standby(self, name: str, address: str, *, of: Postgres) -> Postgres:
        """Make and start a server that streams from ``of``, with a copy of its configuration."""
        server = self._add(name, address)
        self.rejoin(server, of=of)
        return server

    def rejoin(self, server: Postgres, *, of: Postgres) -> None:
        """Make a server a standby of ``of`` whatever it was before, from a new copy of ``of``; ends it if it runs."""
        server.kill()
        shutil.rmtree(server.data, ignore_errors=True)
        source = f"{of.conninfo} application_name={server.name}"
        self._run(server, "pg_basebackup", "-d", source, "-D", str(server.data), "-R", "--checkpoint=fast", "--no-sync")
        server.start()
        server.wait_for_stream(of)

    def _add(self, name: str, address: str) -> Postgres:
        folder = self.folder / name
        folder.mkdir()
        if self.binaries.credentials:
            os.chown(folder, self.binaries.credentials["user"], self.binaries.credentials["group"])
        launcher = self._launcher(name, address) if self._launcher else ()
        server = Postgres(name, address, port=self.port, folder=folder, binaries=self.binaries, launcher=launcher)
        self.servers[name] = server
        return server

    def _run(self, server: Postgres, program: str, *arguments: str) -> None:
        ran = subprocess.run(
            [self.binaries.folder / program, *arguments],
            cwd=server.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
            start_new_session=True,
            **self.binaries.credentials,
        )
        if ran.returncode != 0:
            raise ThrowawayError(f"{program} for {server!r} failed:\n{ran.stdout}{ran.stderr}")


def _free_port() -> int:
    """Return a TCP port that is free on every address, below the range that the kernel gives to clients."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
