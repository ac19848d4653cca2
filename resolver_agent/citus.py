"""What Citus' metadata on the local server says of the names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from resolver_agent.config import Config

_DATABASES = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"
_HAS_CITUS = "SELECT pg_catalog.to_regclass('pg_catalog.pg_dist_node') IS NOT NULL"
_NAMES = "SELECT DISTINCT nodename FROM pg_catalog.pg_dist_node WHERE nodename = ANY (%s) ORDER BY nodename"


class MetadataUnknownError(Exception):
    """The local server could not be asked; the message says why."""


def names_in_use(settings: Config, names: Collection[str]) -> list[str]:
    """Return those of ``names`` that ``pg_dist_node`` holds in any database of the local server, with the database.

    Raises:
        MetadataUnknownError: the local server, or one of its databases, could not be asked.
    """
    try:
        return list(_names_in_use(settings, names))
    except psycopg.Error as error:
        raise MetadataUnknownError(f"the local PostgreSQL cannot be asked what pg_dist_node holds: {error}") from error


def _names_in_use(settings: Config, names: Collection[str]) -> Iterator[str]:
    with _connect(settings) as connection:
        databases = [name for (name,) in connection.execute(_DATABASES)]
    for database in databases:
        with _connect(settings, dbname=database) as connection:
            if connection.execute(_HAS_CITUS).fetchone() == (True,):
                yield from (f"{name} (database {database})" for (name,) in connection.execute(_NAMES, [[*names]]))


def _connect(settings: Config, **dbname: str) -> psycopg.Connection:
    timeout_s = max(2, round(settings.timeout_s))  # libpq's floor
    return psycopg.connect(**{**settings.local, **dbname}, connect_timeout=timeout_s)  # type: ignore[arg-type]
