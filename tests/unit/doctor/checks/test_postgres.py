"""Doctor's findings about the local PostgreSQL and its Citus settings."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict

from resolver_agent.citus import flush
from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.facts import Unknown
from tests.unit.doctor.builders import (
    CN1,
    CONNINFO,
    ERROR,
    HOOK,
    NOTE,
    WARNING,
    WITHOUT_PATRONI,
    assert_alone,
    both,
    citus,
    database,
    fit,
    host,
    known,
    parameter,
    patroni,
    server,
    settings,
)

if TYPE_CHECKING:
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change


def conninfo(text: str) -> flush.Setting:
    """Return a citus.node_conninfo that a configuration file sets."""
    return flush.Setting(loaded=text, configured=text)


CASES = [
    ("down", lambda fit: dataclasses.replace(fit, server=Unknown("refused")), ERROR, "local", "refused", "start it"),
    ("a closed database", server(databases={"b": Unknown("no entry")}), WARNING, "unchecked", "database b: no", "peer"),
    ("citus: off", settings(citus=False), ERROR, "citus", "are not flushed", "citus: auto"),
    *[
        (name, citus(name, value, "/x.conf line 7"), ERROR, name, f"{name} is {value} (/x.conf line 7)", right)
        for name, value, right in (
            ("citus.recover_2pc_interval", "1min", "edit-config --force -p citus.recover_2pc_interval=-1"),
            ("citus.defer_shard_delete_interval", "15s", "-p citus.defer_shard_delete_interval=-1"),
            ("citus.use_secondary_nodes", "always", "-p 'citus.use_secondary_nodes=\"never\"'"),
            ("citus.writable_standby_coordinator", "on", "-p 'citus.writable_standby_coordinator=\"off\"'"),
        )
    ],
    (
        "recovery on, no Patroni",
        both(host(patroni=()), WITHOUT_PATRONI, citus("citus.recover_2pc_interval", "1min")),
        ERROR,
        "citus.recover_2pc_interval",
        "does not notice when it reaches a standby",
        "ALTER SYSTEM SET citus.recover_2pc_interval = '-1'; SELECT pg_reload_conf();",
    ),
    (
        "recovery on in a database",
        citus("citus.recover_2pc_interval", "1min", "database"),
        ERROR,
        "citus.recover_2pc_interval",
        "is 1min (database)",
        "where it is set now: for the database",
    ),
    (
        "host names in pg_hba.conf",
        server(hba_names=("db1.example", ".example.net")),
        WARNING,
        "pg_hba",
        "pg_hba.conf has host names (db1.example, .example.net): they do not match nodes whose address",
        "addresses",
    ),
    (
        "unread pg_hba.conf",
        server(hba_names=Unknown("denied")),
        NOTE,
        "pg_hba:unchecked",
        "could not be checked: host names in pg_hba.conf: denied",
        "addresses",
    ),
    (
        "recovery on in Patroni's file",
        both(
            patroni(postgresql={"pre_promote": HOOK, "parameters": {"citus.recover_2pc_interval": "60s"}}),
            citus("citus.recover_2pc_interval", "1min"),
        ),
        ERROR,
        "citus.recover_2pc_interval",
        "does not notice",
        "in /etc/patroni.yml write the following, then run patronictl reload cn: citus.recover_2pc_interval: -1",
    ),
    (
        "recovery on by ALTER SYSTEM",
        citus("citus.recover_2pc_interval", "1min", "/d/postgresql.auto.conf line 3"),
        ERROR,
        "citus.recover_2pc_interval",
        "does not notice",
        "ALTER SYSTEM SET citus.recover_2pc_interval = '-1'; SELECT pg_reload_conf();",
    ),
    (
        "certificates for names",
        server(conninfo=flush.Setting(loaded="", configured=CONNINFO.replace("require", "verify-full"))),
        NOTE,
        "citus.node_conninfo:verify-full",
        "must be valid for the name of its group (cn, wk1)",
        "subjectAltName",
    ),
    (
        "no keepalives",
        both(host(patroni=()), WITHOUT_PATRONI, server(conninfo=conninfo("sslrootcert='/a b' keepalives_idle=9"))),
        NOTE,
        "citus.node_conninfo:keepalives",
        "lacks keepalives_interval, keepalives_count, tcp_user_timeout",
        "'keepalives_idle=9 sslrootcert=''/a b'' keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000'",
    ),
    (
        "keepalives off",
        server(conninfo=conninfo(CONNINFO + " keepalives=0")),
        NOTE,
        "citus.node_conninfo:keepalives",
        "lacks keepalives",
        "keepalives_count=3 tcp_user_timeout=10000 sslmode=require",
    ),
    (
        "no keepalives, by ALTER SYSTEM",
        server(conninfo=flush.Setting(altered="sslmode=prefer", configured=CONNINFO)),
        NOTE,
        "citus.node_conninfo:keepalives",
        "lacks keepalives_idle",
        "ALTER SYSTEM SET citus.node_conninfo = 'sslmode=prefer keepalives_idle=5 keepalives_interval=2",
    ),
    (
        "no connection string",
        server(conninfo=conninfo("sslmode require")),
        ERROR,
        "citus.node_conninfo",
        "is no connection string",
        "sslmode=require",
    ),
    (
        "another's name",
        citus("citus.local_hostname", "wk1"),
        ERROR,
        "citus.local_hostname",
        "reaches another server",
        "-p 'citus.local_hostname=\"cn\"'",
    ),
    ("not on localhost", parameter("listen_addresses", CN1), WARNING, "citus.local_hostname", "not listen", '="cn"'),
    ("poolers", database(poolers=1), ERROR, "pg_dist_poolinfo", "database app", "DELETE FROM pg_dist_poolinfo"),
    (
        "host in node_conninfo",
        server(conninfo=flush.Setting(loaded="", configured="host=x sslmode=require")),
        ERROR,
        "citus.node_conninfo",
        "contains host",
        "-p 'citus.node_conninfo=\"sslmode=require\"'",
    ),
    (
        "node_conninfo lost",
        server(conninfo=flush.Setting(altered=flush.Override(CONNINFO).stamped(1), boot="sslmode=require")),
        WARNING,
        "citus.node_conninfo",
        "no configuration file",
        "ALTER SYSTEM RESET citus.node_conninfo; SELECT pg_reload_conf();",
    ),
    (
        "a reload fails",
        server(conninfo=flush.Setting(faults="line 3", configured=CONNINFO)),
        ERROR,
        "reload",
        "refuses to load",
        "reload",
    ),
    (
        "command line",
        server(conninfo=flush.Setting(on_command_line=True, configured=CONNINFO)),
        ERROR,
        "citus.node_conninfo",
        "command line",
        "postgresql.conf",
    ),
    ("no function", server(conninfo=Unknown("does not exist: run x")), ERROR, "role.sql", "does not exist: run x", ""),
    (
        "no right to flush",
        server(may_alter=False),
        ERROR,
        "role.sql",
        "role resolver_agent_local may not",
        "resolver-agent show role.sql | psql ",
    ),
    (
        "a network login may change settings",
        server(user="resolver_agent"),
        WARNING,
        "role.sql",
        "role resolver_agent logs in to all nodes over the network, and may change settings",
        "local: {user: resolver_agent_local}",
    ),
    (
        "no right to reload",
        server(may_reload=False, version=140000),
        ERROR,
        "role.sql",
        "may not",
        "resolver-agent show role.sql | psql ",
    ),
    ("PostgreSQL 14", server(may_alter=False, version=140000), ERROR, "role.sql", "may not", "a superuser's login"),
    ("no ALTER SYSTEM", parameter("allow_alter_system", "off"), ERROR, "allow_alter_system", "cannot be", "= on"),
    (
        "functions",
        database(faults=("f() does not exist",)),
        ERROR,
        "role.sql",
        "app: f() does not",
        "psql -v ON_ERROR_STOP=1 -d app`",
    ),
    (
        "no prepared transactions",
        parameter("max_prepared_transactions", "0"),
        ERROR,
        "max_prepared_transactions",
        "cannot commit",
        "restart",
    ),
    ("old ones", server(prepared={"citus_0_1 in database app": 999}), WARNING, "prepared", "for 999 s", "status"),
]


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "fix"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """One fault gives one finding, with its fix."""
    assert_alone(change, severity, key, text, fix)


@pytest.mark.parametrize(
    "name", ["-x", "host=h", "postgresql://h/x", r"""o'd"\d $(id) `id`""", "a; id", "app", "größe-1"]
)
def test_a_shell_and_libpq_read_a_databases_name(name: str) -> None:
    """Pasted into a shell, the hint about role.sql runs psql in the database that it is about, and nowhere else."""
    faulty = known(database(faults=("f() does not exist",))(fit()).server).databases["app"]
    [found] = doctor_report.report(server(databases={name: faulty})(fit())).findings
    [command] = re.findall(r"`resolver-agent show role.sql \| (psql .*)` as", found.fix)
    *program, dbname = shlex.split(command)
    assert program == ["psql", "-v", "ON_ERROR_STOP=1", "-d"]
    assert not dbname.startswith(("-", "postgres://", "postgresql://"))
    assert (conninfo_to_dict(dbname) if "=" in dbname else {"dbname": dbname}) == {"dbname": name}


@pytest.mark.parametrize(
    ("is_patroni", "fix"),
    [
        pytest.param(
            True,
            "patronictl edit-config --force -p " + shlex.quote("citus.node_conninfo=\"sslcert='a b'\""),
            id="shell and YAML",
        ),
        pytest.param(
            False, "ALTER SYSTEM SET citus.node_conninfo = 'sslcert=''a b'''; SELECT pg_reload_conf();", id="SQL"
        ),
    ],
)
def test_a_value_is_quoted_for_its_reader(is_patroni: bool, fix: str) -> None:  # noqa: FBT001 -- a case's condition
    """A value with quotes stays one value."""
    facts = server(conninfo=flush.Setting(loaded="x", configured="host=h sslcert='a b'"))(fit())
    found = doctor_report.report(facts if is_patroni else host(patroni=())(facts)).findings
    assert fix in [one.fix for one in found]
