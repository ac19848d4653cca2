"""Clients that send statements through a name all the time, and what became of them: dblink in place of Citus."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING

import psycopg

from tests.integration.support.cluster import DATABASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.support.cluster import Cluster
    from tests.integration.support.machine import Machine

_KEYS = itertools.count(1)

# What an agent counts as a statement of Citus' that is under way.
_CONNINFO = "host={name} port={port} dbname={dbname} user=postgres application_name=citus_test connect_timeout=40"


class Clients:
    """Sessions on one machine whose statements run on the server behind a name, over a new connection each.

    ``failed`` are the errors, each with the time at which its statement began; ``waits_s`` how long the others took.
    """

    def __init__(self, cluster: Cluster, machine: Machine, name: str, *, reads: bool = False) -> None:
        """Send writes, or only reads, from ``machine``."""
        self._cluster = cluster
        self._machine = machine
        self._reads = reads
        self._conninfo = _CONNINFO.format(name=name, port=cluster.site.port, dbname=DATABASE)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.failed: list[tuple[float, str]] = []
        self.waits_s: list[float] = []
        self.written: set[int] = set()

    @contextlib.contextmanager
    def at_work(self, count: int = 4) -> Iterator[None]:
        """Run so many clients; each ends with its statement."""
        threads = [threading.Thread(target=self._work) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def wait_for_progress(self, *, statements: int = 40, timeout_s: float = 30.0) -> None:
        """Wait until so many more statements have succeeded."""
        before, deadline = len(self.waits_s), time.monotonic() + timeout_s
        while len(self.waits_s) < before + statements:
            assert time.monotonic() < deadline, self.failed[-3:]
            time.sleep(0.01)

    def _work(self) -> None:
        address, port = self._machine.address, self._cluster.site.port
        with psycopg.connect(host=address, port=port, dbname=DATABASE, user="postgres", autocommit=True) as session:
            while not self._over.is_set():
                key, begun = next(_KEYS), time.monotonic()
                sent = "SELECT count(*) FROM marks" if self._reads else f"INSERT INTO marks VALUES ({key}) RETURNING id"  # noqa: S608 -- a number of ours
                try:
                    session.execute("SELECT * FROM dblink(%s, %s) AS found(id bigint)", [self._conninfo, sent])
                except psycopg.Error as error:
                    with self._lock:
                        self.failed.append((begun, " ".join(str(error).split())))
                else:
                    with self._lock:
                        self.waits_s.append(time.monotonic() - begun)
                        self.written |= set() if self._reads else {key}
                self._over.wait(0.005)
