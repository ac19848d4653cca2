"""Throw-away PostgreSQL servers with real streaming replication, for the demonstration, the tests and the benchmark.

A site is a temporary folder of servers that share one TCP port, each on a loopback address of its own, like the nodes
of a cluster. It is not for data to keep: nothing is synced, and all of it is removed when the site is left or its owner
is killed. A server's superuser can run programs as the operating system's user that the server runs as: ``postgres`` if
we are root. So a site on a machine with other users is ``guarded``: every login needs a password.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import sql

from resolver_agent.demo import binaries, reaper
from resolver_agent.demo.binaries import Binaries, ThrowawayError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from psycopg.abc import Params
    from psycopg.abc import QueryNoTemplate as Query
    from typing_extensions import Self

DEADLINE_S = 30.0
SUPERUSER = "postgres"

_POLL_S = 0.005
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_STREAMS = "SELECT count(*) = 1 FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_host = %s"
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Postgres:
    """One server. A ``Site`` creates it and ends it.

    Attributes:
        name: unique in its site; also the ``cluster_name`` and, for a standby, the ``application_name``.
        address: the loopback address that it listens on.
        port: the TCP port, the same for all servers of a site.
        folder: holds its Unix socket, ``data`` and ``log``.
        launcher: the beginning of its command line; it must switch to the servers' user and keep the process id.
        passfile: has the password of every login; None where every login is trusted.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        port: int,
        folder: Path,
        binaries: Binaries,
        launcher: Sequence[str] = (),
        passfile: Path | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.folder = folder
        self.binaries = binaries
        self.launcher = launcher
        self.passfile = passfile
        self.data = folder / "data"
        self.log = folder / "log"
        self._postmaster: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}:{self.port}>"

    @property
    def conninfo(self) -> str:
        """The libpq connection string of a superuser, over TCP."""
        passfile = f" passfile={self.passfile}" if self.passfile is not None else ""
        return f"host={self.address} port={self.port} user={SUPERUSER} dbname=postgres{passfile}"

    @property
    def socket_dir(self) -> Path:
        """The folder of its Unix socket, libpq's ``host`` for a local connection."""
        return self.folder

    @property
    def is_running(self) -> bool:
        """Reports whether the postmaster exists, even if it is paused or not yet ready."""
        return self._postmaster is not None and self._postmaster.poll() is None

    @property
    def is_in_recovery(self) -> bool:
        """Reports whether it is a standby, according to ``pg_is_in_recovery()``."""
        return bool(self.run_sql("SELECT pg_is_in_recovery()")[0][0])

    def start(self, *, wait: bool = True, **settings: str) -> None:
        """Start the server and, with ``wait``, wait until it accepts connections.

        ``settings`` are configuration parameters for this run only.

        Raises:
            ThrowawayError: it ended, or was not ready in time; the text has the end of its log.
        """
        of_its_own = {
            "listen_addresses": self.address,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
            "cluster_name": self.name,
        }
        arguments = [f"--{name}={value}" for name, value in (of_its_own | settings).items()]
        # The folder is the servers' user's, who must not lead us to another file.
        with os.fdopen(os.open(self.log, _APPEND, 0o644), "ab") as log:
            # A session of its own: Ctrl-C in a terminal must reach only us, and not stop the servers one by one.
            self._postmaster = subprocess.Popen(
                [*self.launcher, self.binaries.folder / "postgres", "-D", self.data, *arguments],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **({} if self.launcher else self.binaries.credentials),
            )
        if wait:
            self._wait(self._is_ready, "is not ready")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Shut the server down in one of PostgreSQL's modes, and wait until it has ended; resume it if it is paused."""
        self.resume()
        self._signal(_STOP_SIGNALS[mode])
        self._wait(lambda: not self.is_running, "has not stopped", may_end=True)

    def kill(self) -> None:
        """Kill the postmaster and all its children, as the loss of a machine would (SIGKILL)."""
        reaper.kill_server(self.folder)
        if self._postmaster is not None:
            self._postmaster.wait(DEADLINE_S)

    def pause(self) -> None:
        """Freeze the postmaster and all its children: connections stay open, but get no answer (SIGSTOP)."""
        self._signal(signal.SIGSTOP)
        reaper.pause_all(self.folder)

    def resume(self) -> None:
        """Resume a paused server (SIGCONT)."""
        reaper.signal_all(self.folder, signal.SIGCONT)

    def promote(self, *, wait: bool = True) -> None:
        """Promote a standby and, with ``wait``, wait until it takes writes."""
        self.run_sql("SELECT pg_promote(wait => false)")
        if wait:
            self.wait_until("SELECT NOT pg_is_in_recovery()")

    def reload(self) -> None:
        """Make the server read its configuration files again."""
        self._signal(signal.SIGHUP)

    def set(self, **settings: str) -> None:
        """Set configuration parameters permanently (``ALTER SYSTEM``) and reload."""
        for name, value in settings.items():
            self.run_sql(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        self.reload()

    def write(self, name: str, text: str, *, append: bool = False) -> None:
        """Write a file of the data directory, as the servers' user: we may be root, and that folder is theirs."""
        self.run(["tee", *(["-a"] if append else []), self.data / name], text)

    def run(self, command: Sequence[str | Path], text: str = "") -> None:
        """Run a program in the server's folder, as the servers' user, with ``text`` on its standard input.

        Raises:
            ThrowawayError: it failed; the text has its output.
        """
        ran = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
            start_new_session=True,
            **self.binaries.credentials,
        )
        if ran.returncode != 0:
            raise ThrowawayError(f"{Path(command[0]).name} for {self!r} failed:\n{ran.stdout}{ran.stderr}")

    def run_sql(self, query: Query, params: Params | None = None, *, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as superuser over the Unix socket, in a transaction of its own, and return its rows."""
        with self._connect(dbname) as connection:
            cursor = connection.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    def wait_until(self, query: Query, params: Params | None = None, *, timeout_s: float = DEADLINE_S) -> None:
        """Repeat a query until it returns true.

        Raises:
            ThrowawayError: it did not in time; the text has the query and the end of the server's log.
        """
        with self._connect("postgres") as connection:
            self._wait(
                lambda: connection.execute(query, params).fetchone() == (True,), f"still denies {query!r}", timeout_s
            )

    def wait_for_replay(self, of: Postgres) -> None:
        """Wait until this standby has replayed everything that ``of`` has written by now."""
        [(lsn,)] = of.run_sql("SELECT pg_current_wal_lsn()")
        self.wait_until("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn])

    def streams_from(self, primary: Postgres) -> bool:
        """Reports whether this standby streams from a primary now."""
        return self.run_sql(_STREAMS, [primary.address]) == [(True,)]

    def wait_for_stream(self, of: Postgres) -> None:
        """Wait until this standby streams from a primary."""
        self.wait_until(_STREAMS, [of.address])

    def follow(self, of: Postgres) -> None:
        """Make this standby stream from another primary, without a new base backup."""
        self.set(primary_conninfo=f"{of.conninfo} application_name={self.name}")
        if self.binaries.version < 13:  # noqa: PLR2004 -- the first that applies primary_conninfo on a reload
            self.stop()
            self.start()
        self.wait_for_stream(of)

    def _connect(self, dbname: str) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.socket_dir),
            port=self.port,
            user=SUPERUSER,
            dbname=dbname,
            autocommit=True,
            connect_timeout=int(DEADLINE_S),
            passfile=str(self.passfile) if self.passfile is not None else None,
        )

    def _signal(self, signum: signal.Signals) -> None:
        if self._postmaster is None or self._postmaster.poll() is not None:
            raise ThrowawayError(f"{self!r} is not running")
        self._postmaster.send_signal(signum)

    def _is_ready(self) -> bool:
        """Reports, like pg_ctl, whether postmaster.pid says that connections are accepted."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        ours = self._postmaster is not None and lines[:1] == [str(self._postmaster.pid)]
        return ours and [line.strip() for line in lines[7:8]] == ["ready"]

    def _wait(
        self, condition: Callable[[], bool], fault: str, timeout_s: float = DEADLINE_S, *, may_end: bool = False
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if not (may_end or self.is_running):
                raise ThrowawayError(f"{self!r} {fault}: it has ended{self._log_tail()}")
            if time.monotonic() > deadline:
                raise ThrowawayError(f"{self!r} {fault} after {timeout_s:g} s{self._log_tail()}")
            time.sleep(_POLL_S)

    def _log_tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n  ".join([f"; the end of {self.log}:", *text.splitlines()[-lines:]])


def environment() -> dict[str, str]:
    """Return our environment without libpq's variables, which could make a program connect to a real server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


# Shared memory is in files of the data directory, so that a killed server leaves nothing in /dev/shm.
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
_HBA = "local all,replication all {method}\nhost all,replication all all {method}\n"


class Site:
    """A temporary folder of servers, as a context manager that ends and removes them all.

    A separate process (``reaper``) does that, so it also happens when this process is killed.
    """

    def __init__(
        self,
        *,
        postgres: str | None = None,
        parent: Path | None = None,
        launcher: Callable[[str, str], Sequence[str]] | None = None,
        guarded: bool = False,
    ) -> None:
        """Choose the programs: ``postgres`` is the ``choice`` of ``binaries.find``.

        The folder is created in ``parent``, or among the temporary files. ``launcher`` returns the launcher of the
        ``Postgres`` with a name and an address. ``guarded``: every login needs ``password``, which is in ``passfile``
        too.
        """
        self.servers: dict[str, Postgres] = {}
        self.password = secrets.token_urlsafe() if guarded else None
        self.passfile: Path | None = None
        self._choice = postgres
        self._parent = parent
        self._launcher = launcher

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=self._parent))
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, self.folder],
            cwd="/",
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self.folder.chmod(0o755)  # the servers' user passes through it
            self.binaries = binaries.find(self._choice, spare=self.folder / "postgresql")
            self.port = free_port()
            if self.password is not None:
                self.passfile = self._private("passfile", f"*:*:*:*:{self.password}\n")
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
            server.kill()  # the processes are dead already: this collects their exit codes

    def groups(self, addresses: Mapping[str, Sequence[str]], *, config: str = "") -> dict[str, list[Postgres]]:
        """Create groups concurrently: each has a primary on its first address and standbys on the others.

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
        """Create and start a server with a new system identifier; ``config`` is added to its postgresql.conf."""
        server = self._add(name, address)
        method = "trust" if self.password is None else "scram-sha-256"
        options = [f"--auth={method}", "--encoding=UTF8", "--locale=C", "--no-sync", f"--username={SUPERUSER}"]
        if self.password is not None:
            options.append(f"--pwfile={self._private(f'password-{name}', self.password)}")
        small = "--wal-segsize=1"  # keeps the data small, which standbys copy
        self._run(server, "initdb", *options, small, "-D", str(server.data))
        since = [text for since, text in _SETTINGS_FROM.items() if self.binaries.version >= since]
        server.write("postgresql.conf", "".join([_SETTINGS, *since, config]), append=True)
        server.write("pg_hba.conf", _HBA.format(method=method))
        server.start()
        return server

    def standby(self, name: str, address: str, *, of: Postgres) -> Postgres:
        """Create and start a server that streams from ``of``, with a copy of its configuration."""
        server = self._add(name, address)
        self.rejoin(server, of=of)
        return server

    def rejoin(self, server: Postgres, *, of: Postgres) -> None:
        """Make any server a standby of ``of``, from a new base backup; a running server is killed first."""
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
        server = Postgres(
            name,
            address,
            port=self.port,
            folder=folder,
            binaries=self.binaries,
            launcher=launcher,
            passfile=self.passfile,
        )
        self.servers[name] = server
        return server

    def _run(self, server: Postgres, program: str, *arguments: str) -> None:
        server.run([self.binaries.folder / program, *arguments])

    def _private(self, name: str, text: str) -> Path:
        """Create a file that only the servers' user and root can read."""
        path = self.folder / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
        if self.binaries.credentials:
            os.chown(path, self.binaries.credentials["user"], self.binaries.credentials["group"])
        return path


def free_port() -> int:
    """Return a TCP port that is free on every address, below the range that the kernel gives to clients."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
