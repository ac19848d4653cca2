"""Looks for names in ``pg_dist_node``, and writes the scripts that change it: text for psql, never run from here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import psycopg

from resolver_agent.citus.session import connect, databases, words
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from resolver_agent.config.model import Config

COORDINATOR_GROUP = 0
"""Citus' number for the coordinator's group."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of ``pg_dist_node``. ``role`` is Citus' word, e.g. ``unavailable`` for a clone that is not yet promoted."""

    node_id: int
    group_id: int
    name: str
    port: int
    role: str = "primary"
    is_active: bool = True
    is_clone: bool = False

    @property
    def is_primary(self) -> bool:
        """Whether Citus takes the node for its group's primary."""
        return self.role == "primary"

    def call(self, function: str) -> str:
        """Return the statement that calls a function of Citus for this node, whatever characters its name has."""
        return f"SELECT {function}(nodename, nodeport) FROM pg_dist_node WHERE nodeid = {self.node_id};"  # noqa: S608 -- ours


_NAMES = "SELECT DISTINCT nodename FROM pg_dist_node WHERE lower(nodename) = ANY (%s) ORDER BY nodename"


class MetadataUnknownError(Exception):
    """The local server could not be asked what ``pg_dist_node`` holds; the message says why."""


def names_in_use(config: Config, names: Collection[str]) -> list[str]:
    """Return those of ``names`` that are in ``pg_dist_node`` of any database of the local server, with the database.

    ``names`` are in lower case; those in the metadata are as they are written there.

    Raises:
        MetadataUnknownError: the local server, or one of its databases, could not be asked.
    """
    try:
        return list(_names_in_use(config, names))
    except psycopg.Error as error:
        raise MetadataUnknownError(
            f"the local PostgreSQL cannot be asked what pg_dist_node holds: {words(error)}"
        ) from error


def _names_in_use(config: Config, names: Collection[str]) -> Iterator[str]:
    found = databases(config)
    for database, fault in found.faults.items():
        raise MetadataUnknownError(f"database {database} cannot be asked what pg_dist_node holds: {fault}")
    for database in found.with_citus:
        with connect(config, dbname=database, limit_s=config.timeout_s) as connection:
            yield from (f"{plain(name)} (database {database})" for (name,) in connection.execute(_NAMES, [[*names]]))


_REACHABLE = """\
-- An ERROR here: some node cannot connect to what is about to be written. Nothing has changed.
DO $check$
DECLARE
    failed text;
BEGIN
    SELECT string_agg(format('from node %s: %s', nodeid, result), '; ') INTO failed
      FROM run_command_on_all_nodes($$
           SELECT pg_catalog.string_agg(host, ', ')
             FROM (VALUES {places}) AS place(host, port)
            WHERE NOT pg_catalog.citus_check_connection_to_node(host, port) $$)
     WHERE NOT success OR result <> '';
    IF failed IS NOT NULL THEN
        RAISE EXCEPTION 'not reached: %', failed;
    END IF;
END
$check$;
"""

_CHANGE = """\
-- It takes locks that writes on these nodes hold. While it waits for one with others in hand, Citus may find a deadlock
-- and end a client's transaction. So for half a minute it looks for a moment at which all are free. Only then it waits,
-- longer with each try. An ERROR here: nothing has changed. Try again at a quieter time.
DO $change$
BEGIN
    PERFORM set_config('deadlock_timeout', '10ms', true);  -- of a deadlock this is the victim, and tries again
    FOR attempt IN 1..1000 LOOP
        PERFORM set_config('lock_timeout', greatest(1, attempt - 500) || 'ms', true);
        BEGIN
{calls}
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            NULL;
        END;
        PERFORM pg_sleep(0.05);
    END LOOP;
    RAISE EXCEPTION 'transactions that write are in the way all the time';
END
$change$;
"""

# Before Citus 11 workers may have no metadata, and the coordinator's row stays at false once anything has changed.
_SEEN = """\
-- Citus changes the workers that have metadata after the commit. This waits for them, one minute at most. Then every
-- line must end in t; if one does not, run the last query again.
DO $told$
BEGIN
    FOR look IN 1..300 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM pg_dist_node WHERE groupid <> 0 AND hasmetadata AND NOT metadatasynced);
        PERFORM pg_sleep(0.2);
    END LOOP;
END
$told$;
SELECT nodename, nodeport, metadatasynced OR NOT hasmetadata OR groupid = 0 AS told FROM pg_dist_node ORDER BY groupid;
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The new host and port of one row of ``pg_dist_node``; ``note`` becomes a comment behind the statement."""

    node_id: int
    group_id: int
    host: str
    port: int
    note: str

    @classmethod
    def of(cls, row: Row, host: str, port: int, *, note: str = "") -> Change:
        """Return the change of a row to another host and port."""
        return cls(node_id=row.node_id, group_id=row.group_id, host=host, port=port, note=note)

    @property
    def call(self) -> str:
        """The statement that makes the change.

        ``citus_set_coordinator_host`` would not do for the coordinator: before Citus 11.3 it tells no worker.
        """
        return f"SELECT {self.update};"

    @property
    def update(self) -> str:
        """The call in that statement."""
        return f"citus_update_node({self.node_id}, {literal(self.host)}, {self.port})"


def script(title: str, changes: Mapping[str, Sequence[Change]], *, check: bool) -> str:
    """Return a script for psql that makes the changes: in each database all of them, or none.

    ``check`` adds a check that every node can connect to each new host and port; Citus has the functions since 11.0.
    """
    parts = [_comment(title), "\\set ON_ERROR_STOP on"]
    for database, those in changes.items():
        places = ", ".join(f"({literal(one.host)}, {one.port})" for one in those)
        ordered = sorted(those, key=lambda one: (one.group_id, one.node_id))
        parts += [
            "\\encoding SQL_ASCII",  # psql passes the database's name on as it is, whatever the terminal's encoding
            f"\\connect -reuse-previous=on {_connect_name(database)}",
            # Else a superuser could call functions that the database's owner planted, or read a literal in another way.
            "SET search_path = pg_catalog;",
            "SET standard_conforming_strings = on;",
            *([_REACHABLE.format(places=places).rstrip()] if check else []),
            # Not behind the calls: what stood in a row could end the block.
            *(f"{_comment(f'{one.update}: {one.note}')}" for one in ordered),
            _CHANGE.format(calls="\n".join(f"            PERFORM {one.update};" for one in ordered)).rstrip(),
            _SEEN.rstrip(),
        ]
    return "\n".join(parts) + "\n"


def literal(text: str) -> str:
    """Return text as a literal of SQL, for sessions with ``standard_conforming_strings`` on or off."""
    quoted = "'" + text.replace("'", "''").replace("\\", "\\\\") + "'"
    return f" E{quoted}" if "\\" in text else quoted


def identifier(text: str) -> str:
    """Return a name as a quoted identifier of SQL."""
    return '"' + text.replace('"', '""') + '"'


def connection_string(database: str) -> str:
    """Return a connection string of libpq that means the database with this name, whatever the name contains."""
    value = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{value}'"


def _comment(text: str) -> str:
    """Return a comment of SQL: in one line, and in ASCII, so that no encoding finds another end of the line."""
    return "-- " + plain(text, limit=2000).encode("ascii", "backslashreplace").decode()


def _connect_name(database: str) -> str:
    r"""Return a database's name for ``\connect``.

    A name alone would be a connection string if it contains "=" or begins with "postgresql://", and the login would go
    to another host. So it becomes a value of a connection string, which psql takes literally in double quotes.
    """
    return identifier(connection_string(database))
