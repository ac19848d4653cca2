"""One throw-away PostgreSQL server: what can be done to it, and what can happen to it. ``throwaway`` makes them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import sql

from resolver_agent import throwaway_guard
from resolver_agent.throwaway_binaries import Binaries, ThrowawayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from psycopg.abc import Params
    from psycopg.abc import QueryNoTemplate as Query

DEADLINE_S = 30.0
SUPERUSER = "postgres"

_POLL_S = 0.005
_STREAMS = "SELECT count(*) = 1 FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_host = %s"
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Postgres:
    """One server. Made by a ``Site``, which also ends it.

    Attributes:
        name: unique in its site; also the ``cluster_name`` and, of a standby, the ``application_name``.
        address: the loopback address that it listens on.
        port: the TCP port, the same for all servers of a site.
        folder: holds its Unix socket, ``data`` and ``log``.
        launcher: what its command line begins with; it has to take on the servers' user, and to keep the process id.
    """

    def __init__(
        self, name: str, address: str, *, port: int, folder: Path, binaries: Binaries, launcher: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.folder = folder
        self.binaries = binaries
        self.launcher = launcher
        self.data = folder / "data"
        self.log = folder / "log"
        self._postmaster: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}:{self.port}>"

    @property
    def conninfo(self) -> str:
        """The libpq connection string of a superuser, over TCP."""
        return f"host={self.address} port={self.port} user={SUPERUSER} dbname=postgres"

    @property
    def socket_dir(self) -> Path:
        """The folder of its Unix socket, libpq's ``host`` for a local connection."""
        return self.folder

    @property
    def is_running(self) -> bool:
        """Reports whether the postmaster lives, be it paused or not yet ready."""
        return self._postmaster is not None and self._postmaster.poll() is None

    @property
    def is_in_recovery(self) -> bool:
        """Reports whether it is a standby, by its own word."""
        return bool(self.run_sql("SELECT pg_is_in_recovery()")[0][0])

    def start(self, *, wait: bool = True, **settings: str) -> None:
        """Start the server, and wait until it accepts connections unless told not to.

        ``settings`` are configuration parameters for this run only.

        Raises:
            ThrowawayError: it ended or was not ready in time; the text has the end of its log.
        """
        of_its_own = {
            "listen_addresses": self.address,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
            "cluster_name": self.name,
        }
        arguments = [f"--{name}={value}" for name, value in (of_its_own | settings).items()]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in a terminal is for us, and must not stop the servers one by one.
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
        """Shut the server down in one of PostgreSQL's ways, and wait until it is gone; a paused one is resumed."""
        self.resume()
        self._signal(_STOP_SIGNALS[mode])
        self._wait(lambda: not self.is_running, "has not stopped", may_end=True)

    def kill(self) -> None:
        """Kill the postmaster and all its children, as the loss of a machine would (SIGKILL)."""
        throwaway_guard.kill_server(self.folder)
        if self._postmaster is not None:
            self._postmaster.wait(DEADLINE_S)

    def pause(self) -> None:
        """Freeze the postmaster and all its children: connections stay open, and nothing answers (SIGSTOP)."""
        self._signal(signal.SIGSTOP)
        throwaway_guard.pause_all(self.folder)

    def resume(self) -> None:
        """Let a paused server go on."""
        throwaway_guard.signal_all(self.folder, signal.SIGCONT)

    def promote(self, *, wait: bool = True) -> None:
        """Promote a standby, and wait until it takes writes unless told not to."""
        self.run_sql("SELECT pg_promote(wait => false)")
        if wait:
            self.wait_until("SELECT NOT pg_is_in_recovery()")

    def reload(self) -> None:
        """Make the server read its configuration files again."""
        self._signal(signal.SIGHUP)

    def set(self, **settings: str) -> None:
        """Set configuration parameters for good (``ALTER SYSTEM``) and reload."""
        for name, value in settings.items():
            self.run_sql(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        self.reload()

    def run_sql(self, query: Query, params: Params | None = None, *, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as superuser over the Unix socket, in a transaction of its own, and return its rows."""
        with self._connect(dbname) as connection:
            cursor = connection.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    def wait_until(self, query: Query, params: Params | None = None, *, timeout_s: float = DEADLINE_S) -> None:
        """Ask a yes-or-no question over and over until the answer is yes.

        Raises:
            ThrowawayError: it was not in time; the text has the question and the end of the server's log.
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
        """Make this standby stream from another primary, without a new copy."""
        self.set(primary_conninfo=f"{of.conninfo} application_name={self.name}")
        if self.binaries.version < 13:  # noqa: PLR2004 -- the first that takes primary_conninfo by a reload
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
        )

    def _signal(self, signum: signal.Signals) -> None:
        if self._postmaster is None or self._postmaster.poll() is not None:
            raise ThrowawayError(f"{self!r} is not running")
        self._postmaster.send_signal(signum)

    def _is_ready(self) -> bool:
        """Reports what pg_ctl would: the line of postmaster.pid that says whether connections are accepted."""
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
    """Return ours without libpq's variables, which could lead a program to somebody's real server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
