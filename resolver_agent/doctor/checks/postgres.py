"""Checks the local PostgreSQL and the settings of Citus: facts in, findings out."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from resolver_agent.citus import flush, metadata
from resolver_agent.citus.recovery import OLD_S
from resolver_agent.config.model import Route
from resolver_agent.doctor.check import Check, of_server, without_citus, without_local, without_server
from resolver_agent.doctor.checks.parameter import how_to_set
from resolver_agent.doctor.facts import Facts, Server, Setting, Unknown, text_of
from resolver_agent.doctor.finding import Finding, Severity
from resolver_agent.hosts import block
from resolver_agent.routing.state import TargetKind

if TYPE_CHECKING:
    from collections.abc import Iterator

_EVERYWHERE = {"*", "0.0.0.0", "::", "localhost", "127.0.0.1", "::1"}  # noqa: S104 -- compared with, not bound to
_HOST = {"host", "hostaddr"}
_CONNINFO = "citus.node_conninfo"
_KEEPALIVES = {"keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3", "tcp_user_timeout": "10000"}
_LOCAL_HOSTNAME = "citus.local_hostname"
_RIGHT = (
    (
        "citus.recover_2pc_interval",
        "-1",
        "Citus' own 2PC recovery does not notice when it reaches a standby, and then loses committed transactions",
    ),
    (
        "citus.defer_shard_delete_interval",
        "-1",
        "Citus' own clean-up does not notice when it reaches a standby, and then forgets what is left to clean up",
    ),
    (
        "citus.writable_standby_coordinator",
        "off",
        "writes through a standby coordinator fail on worker standbys, and can be lost in part on worker primaries",
    ),
    ("citus.use_secondary_nodes", "never", "Citus looks for secondaries in pg_dist_node, and refuses writes"),
)
"""The value that a parameter must have, and what follows from any other."""

_HBA_LINE = "Write to pg_hba.conf: local all {} peer map=resolver_agent"
_LOCAL_USER = " The agent must log in here as resolver_agent_local: local: {user: resolver_agent_local}."


def _local(facts: Facts) -> Iterator[Finding]:
    """Yield that the local PostgreSQL cannot be asked."""
    if isinstance(facts.server, Unknown):
        yield Finding(
            Severity.ERROR,
            "local",
            f"the local PostgreSQL cannot be asked: {facts.server.why}; not checked: pg_dist_node, the settings of "
            "Citus, privileges, prepared transactions",
            "If it is down, start it. Otherwise correct `local` in the configuration, or let the agent in as the "
            "comments of `resolver-agent show role.sql` say.",
        )


def _databases(_facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield the databases that cannot be asked."""
    for name, database in server.databases.items():
        if isinstance(database, Unknown):
            yield Finding(
                Severity.WARNING,
                "unchecked",
                f"could not be checked: database {name}: {database.why}",
                database.fix or _HBA_LINE.format(server.user),
            )


def _off(facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield that the agent does nothing for Citus where there is Citus."""
    if not facts.config.citus:
        yield Finding(
            Severity.ERROR,
            "citus",
            f"the configuration says citus: off, but database {next(iter(server.with_citus))} has Citus: cached "
            "connections are not flushed, and 2PC recovery is not run",
            "Write to the configuration: citus: auto",
        )


def _hba(facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield the host names in pg_hba.conf that no longer match, as a reverse look-up now finds a name of ours first."""
    if isinstance(server.hba_names, Unknown):
        text = f"could not be checked: host names in pg_hba.conf: {server.hba_names.why}"
        fix = "If it has host names, write addresses instead: a reverse look-up finds the agent's names first."
        yield Finding(Severity.NOTE, "pg_hba:unchecked", text, fix)
        return
    content = (text_of(facts.host.hosts) or "").encode("utf-8", "surrogateescape")
    try:
        targets = block.recall(content)
    except block.BlockError:
        return
    names = {one.name for one in targets}
    found = block.reverse(content, {one.address for one in targets if one.kind is not TargetKind.FENCED})
    ours = [address for address, name in sorted(found.items()) if name in names]
    if ours and server.hba_names:
        address = ours[0]
        text = (
            f"pg_hba.conf has host names ({', '.join(server.hba_names)}): they do not match nodes whose address the "
            f"agent gives another name, such as {address}"
        )
        fix = "Write the addresses of the nodes instead."
        yield Finding(Severity.WARNING, "pg_hba", text, fix)


def role_sql(database: str) -> str:
    """Return how to run role.sql in a database: a shell's words, and a connection string for psql."""
    plain = re.fullmatch(r"\w[\w-]*", database)  # anything else might be a connection string, or an option
    word = database if plain else shlex.quote(metadata.connection_string(database))
    command = f"resolver-agent show role.sql | psql -v ON_ERROR_STOP=1 -d {word}"
    return f"Run `{command}` as a superuser on this group's primary.{_LOCAL_USER}"


def _settings(facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield what is wrong with Citus' parameters; each database may have its own values."""
    for dbname, database in server.with_citus.items():
        for name, right, otherwise in _RIGHT:
            found = database.settings.get(name)
            if found is not None and found.value != right:
                text = f"{name} is {found.value} ({found.source}): {otherwise}"
                yield Finding(Severity.ERROR, name, text, how_to_set(facts, name, right, found))
        if _LOCAL_HOSTNAME in database.settings:
            yield from _local_hostname(facts, server, database.settings[_LOCAL_HOSTNAME])
        if database.poolers:
            text = f"pg_dist_poolinfo (database {dbname}) is not empty: Citus connects to its addresses, not the names"
            fix = "On the coordinator, run: DELETE FROM pg_dist_poolinfo;"
            yield Finding(Severity.ERROR, "pg_dist_poolinfo", text, fix)


def _local_hostname(facts: Facts, server: Server, found: Setting) -> Iterator[Finding]:
    """Yield what is wrong with the name by which Citus connects to its own server. R3 allows the own name there."""
    host = found.value.lower()
    own = facts.own.name if facts.own is not None else None
    if host in {group.name for group in facts.config.groups} - {own}:
        text = f"{_LOCAL_HOSTNAME} is {host}: Citus connects to itself by that name and reaches another server"
        yield Finding(
            Severity.ERROR, _LOCAL_HOSTNAME, text, how_to_set(facts, _LOCAL_HOSTNAME, own or "localhost", found)
        )
    listens = {word.strip() for word in _value(server, "listen_addresses").split(",")}
    if host == "localhost" and listens.isdisjoint(_EVERYWHERE):
        text = f"{_LOCAL_HOSTNAME} is localhost, but this server does not listen there: Citus cannot connect to itself"
        yield Finding(
            Severity.WARNING, _LOCAL_HOSTNAME, text, how_to_set(facts, _LOCAL_HOSTNAME, own or "ADDRESS", found)
        )


def _conninfo(facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield what is wrong with ``citus.node_conninfo``, the parameter that the agent changes to flush."""
    found, name = server.conninfo, _CONNINFO
    if isinstance(found, Unknown):
        text = f"cached connections cannot be flushed, and {name} cannot be checked: {found.why}"
        yield Finding(Severity.ERROR, "role.sql", text)
        return
    if found.faults is not None:
        text = f"PostgreSQL refuses to load its configuration files: {found.faults}"
        yield Finding(Severity.ERROR, "reload", text, "Correct the file, then run: SELECT pg_reload_conf();")
    if found.on_command_line:
        text = (
            f"{name} is set on the command line of PostgreSQL, which overrides all files: cached connections cannot be "
            "flushed"
        )
        yield Finding(Severity.ERROR, name, text, "Set it in postgresql.conf instead, and restart PostgreSQL.")
    if (wrong := flush.orphaned(found)) is not None:
        yield Finding(Severity.WARNING, name, *wrong)
    due = flush.due(found)
    source = Setting(due.base, "postgresql.auto.conf" if due.kept else "configuration file")
    try:
        keywords = {key: str(value) for key, value in conninfo_to_dict(due.base).items()}
    except ProgrammingError as error:
        yield Finding(
            Severity.ERROR, name, f"{name} is no connection string: {error}", how_to_set(facts, name, "sslmode=require")
        )
        return
    if not _HOST.isdisjoint(keywords):
        rest = make_conninfo("", **{key: value for key, value in keywords.items() if key not in _HOST})
        text = f"{name} contains host: Citus then takes the names for IP addresses, and cannot connect"
        yield Finding(Severity.ERROR, name, text, how_to_set(facts, name, rest, source))
        return
    if keywords.get("sslmode") == "verify-full":
        names = ", ".join(group.name for group in facts.config.groups if group.route is not Route.STANDBY)
        text = (
            f"{name} has sslmode=verify-full: Citus connects by name, so the certificate of each node must be valid "
            f"for the name of its group ({names})"
        )
        fix = (
            "Issue the certificates with that name as a further subjectAltName; or use sslmode=verify-ca, which checks "
            "no name."
        )
        yield Finding(Severity.NOTE, f"{name}:verify-full", text, fix)
    missing = {key: value for key, value in _KEEPALIVES.items() if keywords.get(key, "0") == "0"}
    if missing or keywords.get("keepalives") == "0":
        kept = {key: value for key, value in keywords.items() if key != "keepalives"}
        queues = any(group.queue.unplanned_s > 0 for group in facts.config.groups)
        text = (
            f"{name} lacks {', '.join(missing) or 'keepalives'}: a statement that waits for a worker that has lost its "
            f"power may wait for hours{', and does not queue (queue.unplanned)' if queues else ''}"
        )
        severity = Severity.WARNING if queues else Severity.NOTE
        fix = how_to_set(facts, name, make_conninfo("", **kept | missing), source)
        yield Finding(severity, f"{name}:keepalives", text, fix)


def _privileges(facts: Facts, server: Server) -> Iterator[Finding]:
    """Yield what the agent's login lacks, and that it has too much: whoever knows a network login's password has it."""
    if server.may_alter and server.user in {facts.config.login(group).get("user") for group in facts.config.groups}:
        text = f"role {server.user} logs in to all nodes over the network, and may change settings"
        fix = (
            "Let the agent log in on its own node as resolver_agent_local (`local: {user: resolver_agent_local}`), and "
            "run role.sql again, which takes the right away: its comments (`resolver-agent show role.sql`) give the "
            "order."
        )
        yield Finding(Severity.WARNING, "role.sql", text, fix)
    if not (server.may_alter and server.may_reload):
        if server.version >= flush.FIRST_WITH_GRANT or not server.may_reload:
            fix = role_sql("postgres")
        else:
            fix = (
                "Before PostgreSQL 15, give `local` a superuser's login, as the comments of "
                "`resolver-agent show role.sql` say."
            )
        text = f"role {server.user} may not change citus.node_conninfo and reload: cached connections cannot be flushed"
        yield Finding(Severity.ERROR, "role.sql", text, fix)
    allowed = server.settings.get("allow_alter_system")
    if allowed is not None and allowed.value != "on":
        text = "allow_alter_system is off: cached connections cannot be flushed"
        fix = "Set allow_alter_system = on in postgresql.conf (with Patroni: under postgresql.parameters), and reload."
        yield Finding(Severity.ERROR, "allow_alter_system", text, fix)
    for name, database in server.with_citus.items():
        if database.faults:
            text = f"database {name}: {', '.join(database.faults)}: 2PC recovery and clean-up cannot run"
            yield Finding(Severity.ERROR, "role.sql", text, role_sql(name))


def _value(server: Server, name: str) -> str:
    return server.settings[name].value if name in server.settings else ""


def _transactions(_facts: Facts, server: Server) -> Iterator[Finding]:
    if _value(server, "max_prepared_transactions") == "0":
        text = "max_prepared_transactions is 0: Citus cannot commit a transaction on several nodes"
        fix = "Set max_prepared_transactions = 200 in postgresql.conf, and restart PostgreSQL."
        yield Finding(Severity.ERROR, "max_prepared_transactions", text, fix)
    for gid, age_s in server.prepared.items():
        if age_s >= OLD_S:
            text = f"{gid} has been prepared for {age_s:.0f} s, and holds its locks until it is recovered"
            fix = "Run `resolver-agent status` on the node that it came from (citus_0_...: the coordinator)."
            yield Finding(Severity.WARNING, "prepared", text, fix)


CHECKS = (
    Check("the local PostgreSQL can be asked", _local, without_local),
    Check("each of its databases can be asked", of_server(_databases), without_server),
    Check("pg_hba.conf has no host names that the agent's names displace", of_server(_hba), without_server),
    Check("the agent flushes and recovers where there is Citus", of_server(_off), without_citus),
    Check("the parameters of Citus are as they must be", of_server(_settings), without_citus),
    Check("citus.node_conninfo is safe, and can be flushed by", of_server(_conninfo), without_citus),
    Check("the agent's login has the rights of role.sql, and no more", of_server(_privileges), without_citus),
    Check("no prepared transaction is left over", of_server(_transactions), without_citus),
)
