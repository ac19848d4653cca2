"""Opens sessions on the local server, and finds the databases that have Citus."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
from typing import TYPE_CHECKING

import psycopg

from resolver_agent.config.model import NO_LOCAL
from resolver_agent.observe import connection
from resolver_agent.observe.libpq_error import connect_failure
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import LiteralString

    from resolver_agent.config.model import Config

_LEAST_S = 2.0
"""How long a connection may take at least: a session does more than a probe, and on a busy server."""

LOCK_S = 2.0
"""How long a session waits for a lock: its first query, too, for which Citus reads ``pg_dist_node``."""

# A DROP DATABASE that was interrupted leaves a database with the limit -2, which nobody can use any more.
_DATABASES = """
SELECT datname, datconnlimit = -2, datallowconn, datconnlimit = 0
  FROM pg_database WHERE NOT datistemplate ORDER BY datname
"""
_HAS_CITUS = "SELECT to_regclass('pg_catalog.pg_dist_node') IS NOT NULL"

_FAULTS = """
SELECT wanted || '() ' || fault
  FROM (SELECT wanted, CASE WHEN f.oid IS NULL THEN 'does not exist'
                            WHEN NOT owner.rolsuper THEN 'does not belong to a superuser'
                            WHEN %(privileges)s AND NOT (has_schema_privilege(n.oid, 'USAGE')
                                                         AND has_function_privilege(f.oid, 'EXECUTE'))
                            THEN 'must not be called by role ' || current_user END AS fault
          FROM unnest(%(functions)s::text[]) AS wanted
          LEFT JOIN (pg_proc AS f JOIN pg_namespace AS n ON n.oid = pronamespace AND nspname = 'resolver_agent'
                     JOIN pg_roles AS owner ON owner.oid = proowner)
                 ON 'resolver_agent.' || proname = wanted AND pronargs = 0) AS functions
 WHERE fault IS NOT NULL
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Databases:
    """The local server's databases that have Citus, and those that could not be asked, with the reason.

    ``invalid`` are those that an interrupted DROP DATABASE left, ``closed`` those that let nobody in: neither was
    asked. ``limited`` are those among ``faults`` that let only superusers in.
    """

    with_citus: tuple[str, ...]
    faults: Mapping[str, str]
    invalid: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    limited: tuple[str, ...] = ()


@contextlib.contextmanager
def connect(
    config: Config, *, limit_s: float, lock_s: float | None = LOCK_S, **keywords: str
) -> Iterator[psycopg.Connection]:
    """Open a session on the local server, in autocommit mode, that ends after ``limit_s`` at the latest.

    ``lock_s`` is how long it waits for a lock; with None, as long as the server says. ``keywords`` are libpq's and
    override those of the configuration. The search path is ``pg_catalog`` alone.

    Raises:
        psycopg.Error: the connection took longer than ``timeout_s`` (at least 2 s), a statement failed, the limit was
            reached, or there is no local server.
    """
    if not config.has_local:  # without keywords libpq would try a server of its own choice
        raise psycopg.OperationalError(NO_LOCAL)
    # Without a client encoding, a session in a SQL_ASCII database returns bytes for text.
    given = {"client_encoding": "UTF8", **config.local, **keywords}
    given["options"] = options(given, lock_s=lock_s)
    opened = connection.connect(given, within_s=max(_LEAST_S, config.timeout_s))
    with opened as session, ended_after(limit_s, session):
        yield session


def options(login: Mapping[str, str], *, lock_s: float | None = LOCK_S) -> str:
    """Return libpq's ``options`` for a session, after those of its login.

    The server applies the limit for locks by itself, so a session whose client has given up does not go on waiting.
    """
    lock = "" if lock_s is None else f" -c lock_timeout={round(1000 * lock_s)}"
    return f"{login.get('options', '')} -c search_path=pg_catalog{lock}"


def databases(config: Config) -> Databases:
    """Find the databases that have Citus.

    Raises:
        psycopg.Error: the local server could not be asked.
    """
    # As raw bytes: each name may be in the encoding of the database from which it was created.
    with connect(config, limit_s=config.timeout_s, client_encoding="SQL_ASCII") as session:
        found = session.execute(_DATABASES).fetchall()
    asked = dict(_has_citus(config, name) for name, invalid, open_, _ in found if open_ and not invalid)
    return Databases(
        tuple(name for name, answer in asked.items() if answer is True),
        {name: answer for name, answer in asked.items() if isinstance(answer, str)},
        invalid=tuple(_shown(name) for name, invalid, *_ in found if invalid),
        closed=tuple(_shown(name) for name, invalid, open_, _ in found if not (open_ or invalid)),
        limited=tuple(_shown(name) for name, *_, limited in found if limited),
    )


def holds(config: Config, database: str, query: LiteralString) -> bool | str:
    """Return whether a query is true in a database of the local server, or why it could not be asked."""
    try:
        with connect(config, dbname=database, limit_s=config.timeout_s) as session:
            return session.execute(query).fetchone() == (True,)
    except psycopg.Error as error:
        return words(error)


def faults_of(connection: psycopg.Connection, functions: Sequence[str], *, privileges: bool = False) -> list[str]:
    """Return which functions of ``systemd/role.sql`` must not be called, each with the reason.

    A superuser's login would otherwise run a function that another role has put in its place. ``privileges`` also
    checks that the login may call them, for callers that do not find out by a call.
    """
    found = connection.execute(_FAULTS, {"functions": [*functions], "privileges": privileges})
    return [fault for (fault,) in found]


def fault_of(connection: psycopg.Connection, function: str) -> str | None:
    """Return why a function of ``systemd/role.sql`` must not be called, with the fix; None if it may be."""
    faults = faults_of(connection, [function])
    place = f"in database {connection.info.dbname}"
    return (
        f"{faults[0]} {place}: run role.sql (resolver-agent show role.sql) there, on this group's primary"
        if faults
        else None
    )


def words(error: psycopg.Error, *, with_place: bool = True) -> str:
    """Return an error's message in one line; for a failed connection ``with_place`` includes the server's address."""
    text = str(error)
    return plain(error.diag.message_primary or (text if with_place else connect_failure(text)[1]))


def _shown(name: bytes) -> str:
    """Return a database's name, escaped if it is no printable UTF-8: not fit for logs, nor for scripts for psql."""
    database = name.decode(errors="replace")
    if database.encode() != name or not database.isprintable():
        return name.decode("latin-1").encode("unicode_escape").decode()
    return database


def _has_citus(config: Config, name: bytes) -> tuple[str, bool | str]:
    """Return a database's name as text, and whether it has Citus, or why it could not be asked."""
    database = _shown(name)
    if database.encode() != name:
        return database, "its name is no printable UTF-8: rename it"
    return database, holds(config, database, _HAS_CITUS)


@contextlib.contextmanager
def ended_after(limit_s: float, connection: psycopg.Connection) -> Iterator[None]:
    """End a session after ``limit_s``, whatever it waits for; a hung server would not apply a statement timeout."""
    late = threading.Event()

    def end() -> None:
        late.set()
        with contextlib.suppress(OSError):  # the server has closed it already
            ours.shutdown(socket.SHUT_RDWR)

    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except psycopg.OperationalError as error:
            if late.is_set():
                raise psycopg.OperationalError(f"no answer within {limit_s:g} s") from error
            raise
        finally:
            timer.cancel()
            timer.join()
