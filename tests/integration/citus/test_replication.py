"""What asynchronous replication loses, and no agent can make up for: see the README's limits and the simulation."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from resolver_agent.demo.postgres import Site
from tests.integration.support.cluster import in_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.demo.postgres import Postgres


@pytest.fixture
def pair() -> Iterator[list[Postgres]]:
    """A primary with prepared transactions, and its standby, on a port of their own."""
    with Site(parent=in_memory()) as site:
        yield site.groups({"wk1": ["127.0.9.1", "127.0.9.2"]}, config="max_prepared_transactions = 10\n")["wk1"]


@pytest.mark.parametrize(
    ("how", "rows", "prepared"),
    [("killed", [1], ["old"]), ("stopped", [1, 2, 3], [])],
)
def test_what_a_late_standby_has(pair: list[Postgres], how: str, rows: list[int], prepared: list[str]) -> None:
    """A crash loses what was not sent, also the end of a transaction prepared long before; a stop sends all of it."""
    primary, standby = pair
    primary.run_sql("CREATE TABLE kept (number int)")
    primary.run_sql("INSERT INTO kept VALUES (1)")
    primary.run_sql("BEGIN; INSERT INTO kept VALUES (2); PREPARE TRANSACTION 'old'")
    standby.wait_for_replay(of=primary)
    [(sender,)] = primary.run_sql("SELECT pid FROM pg_stat_replication")
    os.kill(sender, signal.SIGSTOP)
    primary.run_sql("INSERT INTO kept VALUES (3)")
    primary.run_sql("COMMIT PREPARED 'old'")
    if how == "killed":
        primary.kill()
    else:
        primary.stop("fast")  # which lets the sender go on
    standby.promote()
    assert standby.run_sql("SELECT number FROM kept ORDER BY number") == [(number,) for number in rows]
    assert standby.run_sql("SELECT gid FROM pg_prepared_xacts") == [(gid,) for gid in prepared]
