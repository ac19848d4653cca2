"""What doctor asks the local PostgreSQL, with the agent's login and read only."""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from resolver_agent.citus import flush, recovery, session
from resolver_agent.citus.metadata import Row, identifier
from resolver_agent.doctor import files
from resolver_agent.doctor.facts import Database, OwnSetting, Server, Setting, Unknown
from resolver_agent.queue import gate
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resolver_agent.config.model import Config

_LIMITED = "Its connection limit lets only superusers in. Run as a superuser: ALTER DATABASE {} CONNECTION LIMIT -1;"
_FUNCTIONS = [flush.FUNCTION, *recovery.FUNCTIONS]
_UNCACHE = ["resolver_agent.max_cached_conns_per_worker"]
_SERVER_SETTINGS = [
    "allow_alter_system",
    "listen_addresses",
    "lock_timeout",
    "max_connections",
    "max_prepared_transactions",
    "port",
    "statement_timeout",
    "transaction_timeout",
]
_CITUS_SETTINGS = [
    "citus.defer_shard_delete_interval",
    "citus.local_hostname",
    "citus.max_cached_conns_per_worker",
    "citus.node_connection_timeout",
    "citus.recover_2pc_interval",
    "citus.use_secondary_nodes",
    "citus.writable_standby_coordinator",
]
_PREVENT = "citus.prevent_incomplete_connection_establishment"
_QUEUE_SETTINGS = [
    "citus.max_cached_conns_per_worker",
    "citus.node_connection_timeout",
    _PREVENT,
    "lock_timeout",
    "statement_timeout",
    "transaction_timeout",
]

_LOGIN = """
SELECT rolname, has_function_privilege('pg_reload_conf()', 'EXECUTE'), rolsuper, rolsuper
  FROM pg_roles WHERE rolname = current_user
"""
_LOGIN_SINCE_15 = """
SELECT current_user, has_function_privilege('pg_reload_conf()', 'EXECUTE'),
       has_parameter_privilege('citus.node_conninfo', 'ALTER SYSTEM'),
       has_parameter_privilege('citus.max_cached_conns_per_worker', 'ALTER SYSTEM')
"""

# Only superusers and members of pg_read_all_settings see a parameter's file and line; every role sees its source.
_SETTINGS = """
SELECT name, current_setting(name), coalesce(sourcefile || ' line ' || sourceline, source)
  FROM pg_settings WHERE name = ANY (%s)
"""
# It is in no view, and older versions of Citus do not have it.
_HIDDEN = "SELECT current_setting(%s, true)"

_MOST_OWN = 1000
_OWN_SETTINGS = f"""
SELECT lower(split_part(one, '=', 1)), substr(one, strpos(one, '=') + 1), rolname::text, setdatabase <> 0
  FROM pg_db_role_setting LEFT JOIN pg_roles AS r ON r.oid = setrole, unnest(setconfig) AS one
 WHERE lower(split_part(one, '=', 1)) = ANY (%s)
       AND (setrole = 0 OR rolcanlogin AND rolname <> current_user AND rolname <> ALL (%s))
       AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
 ORDER BY 1, 3 NULLS FIRST, 4 LIMIT {_MOST_OWN}
"""  # noqa: S608 -- a number of ours
_SESSIONS = "SELECT coalesce(sum(numbackends), 0)::int FROM pg_stat_database"
_PREPARED = r"""
SELECT gid || ' in database ' || database, EXTRACT(epoch FROM clock_timestamp() - prepared)::float8
  FROM pg_prepared_xacts WHERE gid LIKE 'citus\_%' ORDER BY prepared
"""
_HBA = "SELECT DISTINCT address FROM pg_hba_file_rules WHERE type LIKE 'host%'"
_NO_NAMES = {"all", "samehost", "samenet"}
_CITUS = """
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'citus'),
       (SELECT groupid FROM pg_dist_local_group),
       (SELECT count(*) FROM pg_dist_poolinfo)
"""
_MOST_ROWS = 5000
# Before Citus 13.2 there are no clones.
_ROWS = f"""
SELECT nodeid::int8, groupid::int8, nodename::text, nodeport::int8, noderole::text, isactive::bool,
       coalesce((to_jsonb(node) ->> 'nodeisclone')::bool, false)
  FROM pg_dist_node AS node ORDER BY groupid, nodeid LIMIT {_MOST_ROWS + 1}
"""  # noqa: S608 -- a number of ours

_REACHED = "SELECT node, result FROM resolver_agent.reached() WHERE success"
_SYSTEM_ID = re.compile(r"(?:stranger )?(?:primary|standby) \d+ (\d+) .*")


def ask(config: Config) -> Server | Unknown:
    """Return the facts about the local server, and about Citus in its databases."""
    try:
        found = session.databases(config)
        # Our own limit for locks would hide the server's.
        with session.connect(config, limit_s=config.timeout_s, lock_s=None) as connection:
            version = connection.info.server_version
            login = _LOGIN_SINCE_15 if version >= flush.FIRST_WITH_GRANT else _LOGIN
            [(user, may_reload, may_alter, may_uncache)] = connection.execute(login)
            [(sessions,)] = connection.execute(_SESSIONS)
            return Server(
                version=version,
                user=user,
                os_user=_os_user(connection),
                settings=_settings(connection, _SERVER_SETTINGS),
                may_alter=may_alter,
                may_reload=may_reload,
                conninfo=_conninfo(connection),
                prepared=dict(connection.execute(_PREPARED)),
                hba_names=_hba_names(connection),
                data_dir=_data_dir(connection),
                databases={
                    **{name: _database(config, name) for name in found.with_citus},
                    **{
                        name: Unknown(fault, _LIMITED.format(identifier(name)) if name in found.limited else "")
                        for name, fault in found.faults.items()
                    },
                },
                invalid=found.invalid,
                closed=found.closed,
                sessions=sessions,
                may_uncache=may_uncache,
                queue_faults=tuple(session.faults_of(connection, _UNCACHE, privileges=True)),
            )
    except psycopg.Error as error:
        return Unknown(_words(error))


def _database(config: Config, name: str) -> Database | Unknown:
    """Return the facts about Citus in one database."""
    try:
        with session.connect(config, dbname=name, limit_s=config.timeout_s) as connection:
            [(version, group_id, poolers)] = connection.execute(_CITUS)
            if group_id is None:
                return Unknown("pg_dist_local_group is empty")
            return Database(
                citus_version=plain(version or ""),
                group_id=group_id,
                rows=_rows(connection),
                settings=_citus_settings(connection),
                faults=tuple(session.faults_of(connection, _FUNCTIONS, privileges=True)),
                poolers=poolers,
                queue_faults=tuple(session.faults_of(connection, gate.FUNCTIONS, privileges=True)),
                own_settings=_own_settings(connection, _users(config)),
            )
    except psycopg.Error as error:
        return Unknown(_words(error))
    except ValueError as error:  # in a SQL_ASCII database a text can be anything
        return Unknown(plain(str(error)))


def _words(error: psycopg.Error) -> str:
    """Return an error's message in one line, with its SQLSTATE if it has one; a failed connection has none."""
    text = session.words(error, with_place=False)
    return f"{text} (SQLSTATE {error.sqlstate})" if error.sqlstate else text


def _rows(connection: psycopg.Connection) -> tuple[Row, ...]:
    """Return the rows of ``pg_dist_node``.

    Raises:
        ValueError: a row has no usable value in a column, or there are more rows than any cluster has nodes.
    """
    found = connection.execute(_ROWS).fetchall()
    if len(found) > _MOST_ROWS:
        raise ValueError(f"pg_dist_node has more than {_MOST_ROWS} rows")
    if any(None in row for row in found):
        raise ValueError("a row of pg_dist_node lacks a value")
    return tuple(
        Row(
            node_id=node_id,
            group_id=group,
            name=plain(name),
            port=port,
            role=plain(role),
            is_active=active,
            is_clone=clone,
        )
        for node_id, group, name, port, role, active, clone in found
    )


def reached(config: Config, dbname: str, limit_s: float) -> dict[str, int]:
    """Return the system identifiers of the servers that Citus reaches, by ``HOST:PORT`` in ``pg_dist_node``.

    What cannot be asked is left out.
    """
    try:
        with session.connect(config, dbname=dbname, limit_s=limit_s) as connection:
            if session.faults_of(connection, ["resolver_agent.reached"], privileges=True):
                return {}
            connection.execute("SELECT set_config('citus.node_connection_timeout', '1000', false)")
            answers = {plain(node): _SYSTEM_ID.fullmatch(result or "") for node, result in connection.execute(_REACHED)}
    except (psycopg.Error, ValueError):
        return {}
    return {node: int(match[1]) for node, match in answers.items() if match is not None}


def _settings(connection: psycopg.Connection, names: list[str]) -> dict[str, Setting]:
    return {
        name: Setting(plain(value), plain(source)) for name, value, source in connection.execute(_SETTINGS, [names])
    }


def _citus_settings(connection: psycopg.Connection) -> dict[str, Setting]:
    """Return parameters of Citus; one of them is hidden, so that nobody says where it is set."""
    [(hidden,)] = connection.execute(_HIDDEN, [_PREVENT])
    found = _settings(connection, _CITUS_SETTINGS)
    return found if hidden is None else {**found, _PREVENT: Setting(plain(hidden), "")}


def _users(config: Config) -> list[str]:
    """Return the roles of agents on the nodes."""
    logins = [config.postgresql, *map(config.login, config.groups)]
    return sorted({login["user"] for login in logins if "user" in login})


def _own_settings(connection: psycopg.Connection, agents: list[str]) -> tuple[OwnSetting, ...] | Unknown:
    """Return what this database and roles other than the ``agents`` have of their own.

    A role's name may be in any encoding.
    """
    try:
        return tuple(
            OwnSetting(name, plain(value), None if role is None else plain(role), database)
            for name, value, role, database in connection.execute(_OWN_SETTINGS, [_QUEUE_SETTINGS, agents])
        )
    except psycopg.Error as error:
        return Unknown(_words(error))
    except ValueError as error:
        return Unknown(plain(str(error)))


def _conninfo(connection: psycopg.Connection) -> flush.Setting | Unknown:
    """Return where ``citus.node_conninfo`` comes from, which only a superuser, or a superuser's function, may read."""
    fault = session.fault_of(connection, flush.FUNCTION)
    if fault is not None:
        return Unknown(fault)
    try:
        return flush.read_setting(connection)
    except psycopg.Error as error:
        return Unknown(_words(error))


def host_names(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return those addresses of pg_hba.conf that are host names, each once."""
    return tuple(dict.fromkeys(plain(one) for one in addresses if one not in _NO_NAMES and not _is_address(one)))


def read_hba(text: str) -> list[str]:
    """Return the addresses in the text of a pg_hba.conf."""
    lines = (re.sub(r",[ \t]*", ",", line.partition("#")[0]).split() for line in text.split("\n"))
    return [fields[3].strip('"') for fields in lines if len(fields) > 3 and fields[0].startswith("host")]  # noqa: PLR2004


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _hba_names(connection: psycopg.Connection) -> tuple[str, ...] | Unknown:
    """Return the host names in pg_hba.conf: from the server, or from its file, as superusers alone may ask for them."""
    try:
        return host_names(address for (address,) in connection.execute(_HBA) if isinstance(address, str))
    except psycopg.Error as error:
        why = _words(error)
    peer = _peer(connection)
    if peer is None:
        return Unknown(why)
    process = Path("/proc", str(peer[0]))
    words = files.read(process / "cmdline").text
    named = re.search(r"(?:hba|config)_file=([^\0]+)", words.replace("-", "_") if isinstance(words, str) else "")
    try:
        # As in Debian, pg_hba.conf is beside the configuration file that is named on the command line.
        path = (process / "cwd").readlink() / "pg_hba.conf"
        beside = Path(words[named.start(1) : named.end(1)]) if named and isinstance(words, str) else path
    except OSError as error:
        return Unknown(f"{why}; the file cannot be found: {files.why(error)}")
    file = files.read(beside if beside.name == "pg_hba.conf" else beside.with_name("pg_hba.conf"))
    if file.text is None:
        file = files.read(path)
    return host_names(read_hba(file.text)) if isinstance(file.text, str) else Unknown(f"{why}; {file.path} is not read")


def _data_dir(connection: psycopg.Connection) -> str | None:
    """Return the folder that the postmaster runs in; None over TCP, or where the login may not see it."""
    try:
        return str(Path("/proc", str(peer[0]), "cwd").readlink()) if (peer := _peer(connection)) else None
    except OSError:
        return None


def _os_user(connection: psycopg.Connection) -> str | None:
    """Return the user that the server runs as, according to the kernel; None over TCP."""
    try:
        return pwd.getpwuid(peer[1]).pw_name if (peer := _peer(connection)) is not None else None
    except KeyError:
        return None


def _peer(connection: psycopg.Connection) -> tuple[int, int] | None:
    """Return the numbers of the postmaster's process and user; None over TCP."""
    if not connection.info.host.startswith("/"):
        return None
    with socket.socket(fileno=os.dup(connection.fileno())) as peer:
        pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
