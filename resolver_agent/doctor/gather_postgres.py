"""What doctor asks the local PostgreSQL, with the agent's login and read only."""

from __future__ import annotations

import os
import pwd
import socket
import struct
from typing import TYPE_CHECKING

import psycopg
from psycopg.rows import class_row

from resolver_agent.citus import flush, recovery, session
from resolver_agent.citus.metadata import Row
from resolver_agent.doctor.facts import Database, Server, Setting, Unknown

if TYPE_CHECKING:
    from resolver_agent.config.model import Config

_FUNCTIONS = [flush.FUNCTION, *recovery.FUNCTIONS]
_SERVER_SETTINGS = ["allow_alter_system", "listen_addresses", "max_prepared_transactions"]
_CITUS_SETTINGS = [
    "citus.defer_shard_delete_interval",
    "citus.local_hostname",
    "citus.recover_2pc_interval",
    "citus.use_secondary_nodes",
]

_LOGIN = """
SELECT rolname, has_function_privilege('pg_reload_conf()', 'EXECUTE'), rolsuper
  FROM pg_roles WHERE rolname = current_user
"""
_LOGIN_SINCE_15 = """
SELECT current_user, has_function_privilege('pg_reload_conf()', 'EXECUTE'),
       has_parameter_privilege('citus.node_conninfo', 'ALTER SYSTEM')
"""

# Only superusers and members of pg_read_all_settings see a parameter's file and line; every role sees its source.
_SETTINGS = """
SELECT name, current_setting(name), coalesce(sourcefile || ' line ' || sourceline, source)
  FROM pg_settings WHERE name = ANY (%s)
"""
_PREPARED = r"""
SELECT gid || ' in database ' || database, EXTRACT(epoch FROM clock_timestamp() - prepared)::float8
  FROM pg_prepared_xacts WHERE gid LIKE 'citus\_%' ORDER BY prepared
"""
_CITUS = """
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'citus'),
       (SELECT groupid FROM pg_dist_local_group),
       (SELECT count(*) FROM pg_dist_poolinfo)
"""
_ROWS = """
SELECT nodeid AS node_id, groupid AS group_id, nodename AS name, nodeport AS port, noderole = 'primary' AS is_primary,
       isactive AS is_active
  FROM pg_dist_node ORDER BY groupid, nodeid
"""


def ask(config: Config) -> Server | Unknown:
    """Return the facts about the local server, and about Citus in its databases."""
    try:
        found = session.databases(config)
        with session.connect(config, limit_s=config.timeout_s) as connection:
            version = connection.info.server_version
            login = _LOGIN_SINCE_15 if version >= flush.FIRST_WITH_GRANT else _LOGIN
            [(user, may_reload, may_alter)] = connection.execute(login)
            return Server(
                version=version,
                user=user,
                os_user=_os_user(connection),
                settings=_settings(connection, _SERVER_SETTINGS),
                may_alter=may_alter,
                may_reload=may_reload,
                conninfo=_conninfo(connection),
                prepared=dict(connection.execute(_PREPARED)),
                databases={
                    **{name: _database(config, name) for name in found.with_citus},
                    **{name: Unknown(fault) for name, fault in found.faults.items()},
                },
            )
    except psycopg.Error as error:
        return Unknown(session.words(error, with_place=False))


def _database(config: Config, name: str) -> Database | Unknown:
    """Return the facts about Citus in one database."""
    try:
        with session.connect(config, dbname=name, limit_s=config.timeout_s) as connection:
            [(version, group_id, poolers)] = connection.execute(_CITUS)
            return Database(
                citus_version=version,
                group_id=group_id,
                rows=tuple(connection.cursor(row_factory=class_row(Row)).execute(_ROWS)),
                settings=_settings(connection, _CITUS_SETTINGS),
                faults=tuple(session.faults_of(connection, _FUNCTIONS, privileges=True)),
                poolers=poolers,
            )
    except psycopg.Error as error:
        return Unknown(session.words(error, with_place=False))


def _settings(connection: psycopg.Connection, names: list[str]) -> dict[str, Setting]:
    return {name: Setting(value, source) for name, value, source in connection.execute(_SETTINGS, [names])}


def _conninfo(connection: psycopg.Connection) -> flush.Setting | Unknown:
    """Return where ``citus.node_conninfo`` comes from, which only a superuser, or a superuser's function, may read."""
    fault = session.fault_of(connection, flush.FUNCTION)
    if fault is not None:
        return Unknown(fault)
    try:
        return flush.read_setting(connection)
    except psycopg.Error as error:
        return Unknown(session.words(error, with_place=False))


def _os_user(connection: psycopg.Connection) -> str | None:
    """Return the user that the server runs as, according to the kernel; None over TCP."""
    if not connection.info.host.startswith("/"):
        return None
    with socket.socket(fileno=os.dup(connection.fileno())) as peer:
        uid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
