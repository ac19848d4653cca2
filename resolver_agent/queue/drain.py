"""Drain: what is still under way on a server that is about to stop, and who on the coordinator it is waited for."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING

from resolver_agent.citus import session
from resolver_agent.observe import connection
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    import psycopg

    from resolver_agent.config.model import Config, Node
    from resolver_agent.queue.gate import UnderWay

IDLE_S = 1.0
"""Whoever has been idle in a transaction for so long is not waited for."""

POLL_S = 0.015
"""How often it is asked what is under way."""

QUIET = 3
"""So many answers in a row must be empty: between two statements of one transaction there is an instant of it."""

_MOST_ROWS = 1000
# Every role may read this much of other roles' sessions. Citus names the sessions that it opens.
_OPEN = f"""
SELECT application_name, pid FROM pg_locks JOIN pg_stat_activity USING (pid)
 WHERE locktype = 'virtualxid' AND mode = 'ExclusiveLock' AND granted AND application_name LIKE 'citus%'
UNION ALL
SELECT gid, 0 FROM pg_prepared_xacts WHERE gid LIKE 'citus\\_%'
 LIMIT {_MOST_ROWS}
"""  # noqa: S608 -- a number of ours
_FREE = """
SELECT current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8
       - coalesce(current_setting('reserved_connections', true), '0')::int8
       - (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL)
"""
_GPID = re.compile(r"citus\w* gpid=([0-9]{1,20})\b.*")
_GID = re.compile(r"citus_0_([0-9]{1,10})_.*")
_PIDS_A_NODE = 10**10
_WORDS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Open:
    """A transaction that Citus has open on a server: the name of its session, or the identifier of a prepared one."""

    name: str
    pid: int = 0

    def begun_by(self, node_ids: AbstractSet[int | None]) -> int | None:
        """Return the process that began it on the coordinator that has these ids in ``pg_dist_node``, or None."""
        prepared = _GID.fullmatch(self.name)
        if prepared is not None:
            return int(prepared[1])
        found = _GPID.fullmatch(self.name)
        node, pid = divmod(int(found[1]), _PIDS_A_NODE) if found else (None, 0)
        return pid if node is not None and node in node_ids else None


def left(server: psycopg.Connection) -> tuple[Open, ...]:
    """Return the transactions that Citus has open on a server, in all its databases, at most 1,000.

    Raises:
        psycopg.Error: the server could not be asked.
    """
    return tuple(Open(plain(str(name)), pid) for name, pid in server.execute(_OPEN))


def free_slots(server: psycopg.Connection) -> int:
    """Return how many sessions of ordinary roles a server can take.

    Raises:
        psycopg.Error: the server could not be asked.
    """
    [(free,)] = server.execute(_FREE)
    return int(free)


@contextlib.contextmanager
def connect(
    config: Config, node: Node, address: str, *, within_s: float, limit_s: float
) -> Iterator[psycopg.Connection]:
    """Open a session on a server that is about to stop, for ``limit_s`` at most.

    Raises:
        psycopg.Error: it could not be opened within ``within_s``, or a statement failed, or the limit was reached.
    """
    login = config.login_at(node)
    where = {"host": node.host, "hostaddr": address, "port": str(node.port), "options": session.options(login)}
    opened = connection.connect({**login, **where, "client_encoding": "UTF8"}, within_s=within_s)
    with opened as server, session.ended_after(limit_s, server):
        yield server


@dataclasses.dataclass(frozen=True, slots=True)
class Rest:
    """What is still under way. ``awaited`` is how much of it is waited for; ``words`` describe all of it, shortened."""

    awaited: int
    count: int
    words: tuple[str, ...]


def rest(
    under_way: Sequence[UnderWay],
    opened: Sequence[Open],
    *,
    flushed_s: float,
    node_ids: AbstractSet[int | None],
) -> Rest:
    """Decide who is waited for. ``flushed_s``: how long ago the flush was confirmed.

    Commands that began before the flush, and transactions that are idle for ``IDLE_S``, are left to their fate, with
    what they have open on the server that stops. They would hold up everybody at the gate.
    """
    inside = [one for one in under_way if one.inside]
    given_up = {one.pid: one for one in inside if one.age_s >= (flushed_s if one.active else IDLE_S)}
    running = [one for one in inside if one.active and one.pid not in given_up]
    awaited = [one for one in opened if one.begun_by(node_ids) not in given_up]
    words = [
        f"process {one.pid} "
        + (f"runs a command for {one.age_s:.0f} s" if one.active else f"idles in a transaction for {one.age_s:.0f} s")
        for one in given_up.values()
        if any(there.begun_by(node_ids) == one.pid for there in opened)
    ]
    words += [f"process {one.pid} is inside the gate" for one in running]
    words += [f"{one.name} is open" for one in awaited]
    more = [f"{len(words) - _WORDS} more"] if len(words) > _WORDS else []
    return Rest(len(running) + len(awaited), len(words), tuple(words[:_WORDS] + more))
