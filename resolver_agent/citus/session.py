"""Sessions on the local server, and which of its databases have Citus."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from resolver_agent.observe.libpq_error import connect_failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from resolver_agent.config.model import Config

_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"
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
    """The local server's databases that have Citus, and of those that could not be asked, why."""

    with_citus: tuple[str, ...]
    faults: Mapping[str, str]


@contextlib.contextmanager
def connect(config: Config, *, limit_s: float, **keywords: str) -> Iterator[psycopg.Connection]:
    """Give a new session on the local server, in autocommit mode, that ends after ``limit_s`` at the latest.

    ``keywords`` are libpq's and go before those of the configuration. Names without a schema are PostgreSQL's own.

    Raises:
        psycopg.Error: no session was to be had within ``timeout_s`` (2 s where that is less, libpq's floor), something
            failed in it, or it had to end.
    """
    # Without an encoding of its own a session in a SQL_ASCII database gives bytes for text.
    given = {"client_encoding": "UTF8", **config.local, **keywords}
    options = f"{given.get('options', '')} -c search_path=pg_catalog"
    timeout_s = max(2, round(config.timeout_s))
    conninfo = make_conninfo(**(given | {"options": options, "connect_timeout": str(timeout_s)}))
    with psycopg.connect(conninfo, autocommit=True) as connection, ended_after(limit_s, connection):
        yield connection


def databases(config: Config) -> Databases:
    """Find the databases that have Citus.

    Raises:
        psycopg.Error: the local server could not be asked.
    """
    # As they are: each may be in the encoding of whatever database it was made from.
    with connect(config, limit_s=config.timeout_s, client_encoding="SQL_ASCII") as connection:
        names = [name for (name,) in connection.execute(_DATABASES)]
    asked = dict(_has_citus(config, name) for name in names)
    return Databases(
        tuple(name for name, answer in asked.items() if answer is True),
        {name: answer for name, answer in asked.items() if isinstance(answer, str)},
    )


def faults_of(connection: psycopg.Connection, functions: Sequence[str], *, privileges: bool = False) -> list[str]:
    """Return which functions of ``systemd/role.sql`` must not be called, each with the reason.

    A login that is a superuser would run whatever somebody else has put in its place. Whether the login lacks
    ``privileges`` is asked where it is not found out by calling them.
    """
    found = connection.execute(_FAULTS, {"functions": [*functions], "privileges": privileges})
    return [fault for (fault,) in found]


def fault_of(connection: psycopg.Connection, function: str) -> str | None:
    """Return why a function of ``systemd/role.sql`` must not be called, with the fix; None if it may be."""
    faults = faults_of(connection, [function])
    place = f"in database {connection.info.dbname}"
    return f"{faults[0]} {place}: run systemd/role.sql there, on this group's primary" if faults else None


def words(error: psycopg.Error, *, with_place: bool = True) -> str:
    """Return what an error says, in one line; of a failed connection also where to, unless without ``with_place``."""
    text = str(error)
    return error.diag.message_primary or (" ".join(text.split()) if with_place else connect_failure(text)[1])


def _has_citus(config: Config, name: bytes) -> tuple[str, bool | str]:
    """Return a database's name as text, and whether it has Citus, or why it could not be asked."""
    database = name.decode(errors="replace")
    if database.encode() != name or not database.isprintable():  # nothing to put into logs, or into scripts for psql
        return name.decode("latin-1").encode("unicode_escape").decode(), "its name is no printable UTF-8: rename it"
    try:
        with connect(config, dbname=database, limit_s=config.timeout_s) as connection:
            return database, connection.execute(_HAS_CITUS).fetchone() == (True,)
    except psycopg.Error as error:
        return database, words(error)


@contextlib.contextmanager
def ended_after(limit_s: float, connection: psycopg.Connection) -> Iterator[None]:
    """End a session in time, whatever it waits for; a statement timeout would need a server that is not hung."""
    late = threading.Event()

    def end() -> None:
        late.set()
        with contextlib.suppress(OSError):  # the server was quicker
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
