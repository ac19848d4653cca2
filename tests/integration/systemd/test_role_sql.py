"""Which privileges systemd/role.sql grants to which role, what its comments do, and its functions around Citus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import yaml

from resolver_agent.demo.postgres import Site
from tests.integration.support.citus_cluster import citus_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.demo.postgres import Postgres
    from tests.integration.support.citus_cluster import CitusCluster

ROLE_SQL = (Path(__file__).parents[3] / "systemd" / "role.sql").read_text(encoding="utf-8")
SAMPLES = re.findall(r"^--     (.*)$", ROLE_SQL, re.MULTILINE)
DATABASES = ["postgres", "app"]
PRIMARIES = ["cn-1", "wk1-1", "wk2-1"]

FUNCTIONS = {
    f"resolver_agent.{name}()"
    for name in (
        "cleanup_orphaned_resources",
        "close_gate",
        "keep_gate",
        "max_cached_conns_per_worker",
        "node_conninfo",
        "reached",
        "recover_prepared_transactions",
        "under_way",
    )
}
GIVEN = """
    SELECT rolname, what, privilege_type
      FROM (SELECT oid::regprocedure::text, (aclexplode(proacl)).* FROM pg_proc
             UNION ALL
            SELECT nspname, (aclexplode(nspacl)).* FROM pg_namespace) AS given (what)
      JOIN pg_roles ON pg_roles.oid = grantee AND rolname LIKE 'resolver\\_agent%'
"""
GIVEN_ON_PARAMETERS = """
    SELECT rolname, parname, privilege_type
      FROM (SELECT parname, (aclexplode(paracl)).* FROM pg_parameter_acl) AS given
      JOIN pg_roles ON pg_roles.oid = grantee AND rolname LIKE 'resolver\\_agent%'
"""
PARAMETERS = {"citus.node_conninfo", "citus.max_cached_conns_per_worker"}
ROLES = """
    SELECT rolname, rolcanlogin, rolpassword,
           rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
      FROM pg_authid WHERE rolname LIKE 'resolver\\_agent%' ORDER BY rolname
"""
OLD = """
    CREATE ROLE resolver_agent LOGIN;
    GRANT EXECUTE ON FUNCTION pg_reload_conf() TO resolver_agent;
    CREATE SCHEMA resolver_agent;
    CREATE FUNCTION resolver_agent.reached() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
    GRANT USAGE ON SCHEMA resolver_agent TO resolver_agent;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA resolver_agent TO resolver_agent;
"""
OUTSIDERS = """
    SELECT oid::regprocedure::text, has_function_privilege('outsider', oid, 'EXECUTE'), prosecdef, proconfig,
           (SELECT rolsuper FROM pg_roles WHERE oid = proowner)
      FROM pg_proc WHERE pronamespace = 'resolver_agent'::regnamespace
"""
OLD_PARAMETER = "GRANT ALTER SYSTEM ON PARAMETER citus.node_conninfo TO resolver_agent"
REACHED = "SELECT resolver_agent.reached()"

ORPHAN = """
    INSERT INTO pg_dist_cleanup
    SELECT nextval('pg_dist_cleanup_recordid_seq'), nextval('pg_dist_operationid_seq'), 3, 'orphan', groupid, 0
    FROM pg_dist_node WHERE nodename = %s
"""


@pytest.fixture(scope="module", params=[None, "embedded"], ids=["chosen", "embedded"])
def either_server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server of the chosen PostgreSQL, and one of the embedded one."""
    with Site(postgres=request.param) as site:
        server = site.primary("a", "127.0.62.1")
        server.run_sql("CREATE DATABASE app")
        server.run_sql("CREATE ROLE outsider")
        yield server


@pytest.fixture
def server(either_server: Postgres) -> Iterator[Postgres]:
    """A server without anything of ours."""
    yield either_server
    uninstall([either_server])


def uninstall(servers: list[Postgres]) -> None:
    """Run the commands in the comments, on servers of which the first is the coordinator."""
    start = SAMPLES.index("BEGIN;")
    end = SAMPLES.index("COMMIT;") + 1
    for server in servers:
        for database in DATABASES:
            server.run_sql("\n".join(SAMPLES[start:end]), dbname=database)
    [last] = SAMPLES[end:]
    for server in servers:
        server.run_sql(last, dbname="app")


def has_parameter_rights(server: Postgres) -> bool:
    """Report whether rights on parameters can be granted: since PostgreSQL 15."""
    return server.binaries.version >= 15


def given(server: Postgres, database: str = "postgres") -> set[tuple[str, str, str]]:
    """Return which of our roles has which privilege on what."""
    queries = [GIVEN, *([GIVEN_ON_PARAMETERS] if has_parameter_rights(server) else [])]
    return {(role, what, right) for query in queries for role, what, right in server.run_sql(query, dbname=database)}


def connect(server: Postgres, **keywords: str) -> psycopg.Connection:
    """Log in as the role, over the server's socket unless told otherwise."""
    where = {
        "host": str(server.socket_dir),
        "port": str(server.port),
        "user": "resolver_agent_local",
        "dbname": "postgres",
    }
    return psycopg.connect(" ".join(f"{key}={value}" for key, value in (where | keywords).items()), autocommit=True)


def test_it_gives_what_is_needed_and_no_more(server: Postgres) -> None:
    """Run once or twice, it gives the local role these privileges and no others, and no other role gets any."""
    for _ in range(2):
        for database in DATABASES:
            server.run_sql(ROLE_SQL, dbname=database)
            parameters = PARAMETERS if has_parameter_rights(server) else set()
            assert given(server, database) == {
                *(("resolver_agent_local", function, "EXECUTE") for function in (*FUNCTIONS, "pg_reload_conf()")),
                ("resolver_agent_local", "resolver_agent", "USAGE"),
                *(("resolver_agent_local", parameter, "ALTER SYSTEM") for parameter in parameters),
            }
            assert set(server.run_sql(OUTSIDERS.replace("proconfig", "proconfig::text"), dbname=database)) == {
                (function, False, True, '{"search_path=pg_catalog, pg_temp"}', True) for function in FUNCTIONS
            }
    assert server.run_sql(ROLES) == [("resolver_agent", True, None, False), ("resolver_agent_local", True, None, False)]


def test_the_role_of_an_older_version_loses_its_rights(server: Postgres) -> None:
    """What an older version of the script gave to the role that logs in over the network is taken away."""
    server.run_sql(OLD)
    parameters = []
    if has_parameter_rights(server):
        server.run_sql(OLD_PARAMETER)
        parameters = ["citus.node_conninfo"]
    assert {(role, what) for role, what, _ in given(server)} == {
        ("resolver_agent", what)
        for what in (*parameters, "pg_reload_conf()", "resolver_agent", "resolver_agent.reached()")
    }
    for database in DATABASES:
        server.run_sql(ROLE_SQL, dbname=database)
        assert {role for role, *_ in given(server, database)} == {"resolver_agent_local"}


def test_roles_of_others_are_cut_down(server: Postgres) -> None:
    """A role that was there before keeps no power, and no password for the local one."""
    server.run_sql("CREATE ROLE resolver_agent SUPERUSER NOLOGIN")
    server.run_sql("CREATE ROLE resolver_agent_local CREATEROLE REPLICATION PASSWORD 'known'")
    for database in DATABASES:
        server.run_sql(ROLE_SQL, dbname=database)
    assert server.run_sql(ROLES) == [("resolver_agent", True, None, False), ("resolver_agent_local", True, None, False)]


@pytest.mark.parametrize("member", ["outsider", "resolver_agent"])
def test_nobody_is_a_member_of_the_local_role(server: Postgres, member: str) -> None:
    """A member would have its rights, so the script refuses and changes nothing."""
    server.run_sql("CREATE ROLE resolver_agent LOGIN; CREATE ROLE resolver_agent_local LOGIN")
    server.run_sql(f"GRANT resolver_agent_local TO {member}")
    with pytest.raises(psycopg.errors.RaiseException, match=f"role {member} is a member of resolver_agent_local"):
        server.run_sql(ROLE_SQL)
    assert given(server) == set()
    server.run_sql(f"REVOKE resolver_agent_local FROM {member}")
    for database in DATABASES:
        server.run_sql(ROLE_SQL, dbname=database)


def test_what_others_have_put_there_goes(server: Postgres) -> None:
    """A planted schema and functions are replaced by a superuser's, whoever owns them."""
    server.run_sql("""
        CREATE SCHEMA resolver_agent AUTHORIZATION outsider;
        SET ROLE outsider;
        CREATE FUNCTION resolver_agent.node_conninfo() RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$;
        CREATE FUNCTION resolver_agent.more() RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$;
    """)
    for database in DATABASES:
        server.run_sql(ROLE_SQL, dbname=database)
    assert {(name, owner) for name, *_, owner in server.run_sql(OUTSIDERS)} == {(name, True) for name in FUNCTIONS}
    assert server.run_sql("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'resolver_agent'") == [
        ("postgres",)
    ]


def test_an_owner_of_a_database_cannot_hijack_it(server: Postgres) -> None:
    """A superuser runs it, so it uses nothing that the database's own search_path brings in."""
    server.run_sql("""
        CREATE ROLE owner;
        ALTER DATABASE app OWNER TO owner;
        SET ROLE owner;
        ALTER DATABASE app SET search_path = trap, pg_catalog;
    """)
    operators = {"=": "name", ">=": "int"}
    server.run_sql("CREATE SCHEMA trap AUTHORIZATION owner; CREATE TABLE trap.caught (who text)", dbname="app")
    server.run_sql("ALTER TABLE trap.caught OWNER TO owner", dbname="app")
    for operator, kind in operators.items():
        server.run_sql(
            f"""
            SET ROLE owner;
            CREATE FUNCTION trap.spring_{kind}(a {kind}, b {kind}) RETURNS boolean LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO trap.caught VALUES (current_user);
                RETURN a OPERATOR(pg_catalog.{operator}) b;
            END
            $$;
            CREATE OPERATOR trap.{operator} (FUNCTION = trap.spring_{kind}, LEFTARG = {kind}, RIGHTARG = {kind});
            """,  # noqa: S608 -- ours
            dbname="app",
        )
    try:
        for database in DATABASES:
            server.run_sql(ROLE_SQL, dbname=database)
        assert server.run_sql("SELECT who FROM trap.caught", dbname="app") == []
    finally:
        server.run_sql("ALTER DATABASE app RESET search_path")
        server.run_sql("DROP SCHEMA trap CASCADE", dbname="app")
        server.run_sql("ALTER DATABASE app OWNER TO postgres; DROP ROLE owner")


def test_the_caller_cannot_hijack_a_function(server: Postgres) -> None:
    """A session's own objects do not replace PostgreSQL's, whatever its search_path."""
    for database in DATABASES:
        server.run_sql(ROLE_SQL, dbname=database)
    with connect(server) as session:
        session.execute("CREATE TEMP TABLE pg_settings AS SELECT 'citus.node_conninfo' AS name, 'mine' AS boot_val")
        session.execute("SET search_path = pg_temp, pg_catalog")
        assert session.execute("SELECT boot FROM resolver_agent.node_conninfo()").fetchall() == [(None,)]


def test_the_comments_take_all_of_it_away(server: Postgres) -> None:
    """Afterwards nothing is left, and the script can be run again."""
    for _ in range(2):
        for database in DATABASES:
            server.run_sql(ROLE_SQL, dbname=database)
        uninstall([server])
        for database in DATABASES:
            assert server.run_sql("SELECT 1 FROM pg_namespace WHERE nspname = 'resolver_agent'", dbname=database) == []
        assert server.run_sql(ROLES) == []
        if has_parameter_rights(server):
            assert server.run_sql("SELECT 1 FROM pg_parameter_acl, aclexplode(paracl) WHERE grantee <> 10") == []
    for database in DATABASES:
        server.run_sql(ROLE_SQL, dbname=database)


def test_the_comments_let_the_agents_in(server: Postgres, tmp_path: Path) -> None:
    """Root logs in as the local role here, to every database; others need the password, and reach one database only.

    A password and a wide line below do not let the local role in over the network.
    """
    for database in DATABASES:
        server.run_sql(ROLE_SQL, dbname=database)
    [options] = (
        found[1] for line in SAMPLES if (found := re.fullmatch(r"PGOPTIONS='(.*)' psql .*\\password .*", line))
    )
    for role in ("resolver_agent", "resolver_agent_local"):
        with connect(server, user="postgres", options=f"'{options}'") as session:  # as \password does
            session.execute(f"ALTER ROLE {role} PASSWORD 'PASSWORD'")
    password_file = tmp_path / "pgpass"
    password_file.write_text(next(line for line in SAMPLES if line.startswith("*:")).replace("5432", str(server.port)))
    password_file.chmod(0o600)
    hba, ident = server.data / "pg_hba.conf", server.data / "pg_ident.conf"
    before = hba.read_text()
    lines = [line for line in SAMPLES if line.startswith(("local ", "host "))]
    wide = f"host all resolver_agent_local {server.address}/32 trust"
    hba.write_text("\n".join([*lines, wide]).replace("192.168.234.0/24", "127.0.0.0/8") + "\n")
    ident.write_text(next(line for line in SAMPLES if re.match(r"resolver_agent +root", line)) + "\n")
    try:
        server.reload()
        other = {"host": server.address, "user": "resolver_agent", "passfile": str(password_file)}
        [local] = [yaml.safe_load(line)["local"] for line in SAMPLES if line.startswith("local:")]
        login = {"user": local["user"]}
        with connect(server, **login, dbname="app"), connect(server, **login), connect(server, **other) as session:
            for statement in ("ALTER SYSTEM SET citus.node_conninfo = ''", "SELECT pg_reload_conf()", REACHED):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(statement)
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            connect(server, **other | {"passfile": "/dev/null"})
        for keywords in (
            {"user": "postgres"},
            {"user": "outsider"},
            {"user": "resolver_agent"},
            {**other, "dbname": "app"},
            other | {"user": "x"},
        ):
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
                connect(server, **keywords)
        with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects connection"):
            connect(server, **other | login)
    finally:
        hba.write_text(before)
        server.reload()


def test_without_the_procedure_there_is_nothing_to_clean(server: Postgres) -> None:
    """Before Citus 10.1 the call does nothing."""
    for database in DATABASES:
        server.run_sql(ROLE_SQL, dbname=database)
    with connect(server) as session:
        session.execute("SELECT resolver_agent.cleanup_orphaned_resources()")


def test_citus_reaches_and_cleans_up(citus: CitusCluster) -> None:
    """Real Citus reports the servers behind the names, and cleans up on primaries, even if others are silent."""
    cn1, wk1, wk2 = (citus.machines[name] for name in PRIMARIES)
    session = citus.connect(cn1, user="resolver_agent_local")

    def reached() -> dict[str, str]:
        rows = session.execute("SELECT node, success, result FROM resolver_agent.reached()")
        return {node.partition(":")[0]: result.split()[0] if success else "silent" for node, success, result in rows}

    def clean_up() -> None:
        session.execute("SELECT resolver_agent.cleanup_orphaned_resources()")

    if citus_version() < (11, 1):  # there are no such slots
        cn1.lead({"cn": cn1.address, "wk1": citus.machines["wk1-2"].address, "wk2": "255.255.255.255"})
        assert reached() == {"cn": "primary", "wk1": "standby", "wk2": "silent"}
        with pytest.raises(psycopg.errors.RaiseException, match=r'a name leads to a standby, .*wk1:\d+": "standby'):
            clean_up()
        cn1.lead({"cn": cn1.address, "wk1": cn1.address, "wk2": wk2.address})
        assert reached() == {"cn": "primary", "wk1": "stranger", "wk2": "primary"}
        with pytest.raises(psycopg.errors.RaiseException, match=r'another group: .*wk1:\d+": "stranger primary 0 '):
            clean_up()
        return
    for machine, name in ((wk1, "wk1"), (wk2, "wk2")):
        citus.run_sql(machine, "SELECT pg_create_logical_replication_slot('orphan', 'pgoutput')")
        citus.run_sql(cn1, ORPHAN, [name])

    cn1.lead({"cn": cn1.address, "wk1": citus.machines["wk1-2"].address, "wk2": wk2.address})
    assert reached() == {"cn": "primary", "wk1": "standby", "wk2": "primary"}
    with pytest.raises(psycopg.errors.RaiseException, match=r'a name leads to a standby, .*wk1:\d+": "standby'):
        clean_up()
    assert citus.run_sql(cn1, "SELECT count(*) FROM pg_dist_cleanup") == [(2,)]

    cn1.lead({"cn": cn1.address, "wk1": wk1.address, "wk2": wk1.address})
    assert reached() == {"cn": "primary", "wk1": "primary", "wk2": "stranger"}
    with pytest.raises(psycopg.errors.RaiseException, match=r'another group: .*wk2:\d+": "stranger primary 1 '):
        clean_up()
    assert citus.run_sql(cn1, "SELECT count(*) FROM pg_dist_cleanup") == [(2,)]

    cn1.lead({"cn": cn1.address, "wk1": "255.255.255.255", "wk2": wk2.address})
    assert reached() == {"cn": "primary", "wk1": "silent", "wk2": "primary"}
    clean_up()
    assert [citus.run_sql(machine, "SELECT count(*) FROM pg_replication_slots") for machine in (wk1, wk2)] == [
        [(1,)],
        [(0,)],
    ]

    cn1.lead({"cn": cn1.address, "wk1": wk1.address, "wk2": wk2.address})
    with pytest.raises(psycopg.errors.ActiveSqlTransaction), session.transaction():
        clean_up()
    clean_up()
    assert citus.run_sql(wk1, "SELECT count(*) FROM pg_replication_slots") == [(0,)]
    assert citus.run_sql(cn1, "SELECT count(*) FROM pg_dist_cleanup") == [(0,)]


def test_every_primary_is_given_its_own(citus: CitusCluster) -> None:
    """Citus propagates nothing to other nodes. A role that it has propagated is reused, and removed without a trace."""
    machines = [citus.machines[name] for name in PRIMARIES]
    servers = [machine.server for machine in machines]

    def ask(query: str) -> list[list[tuple[object]]]:
        return [citus.run_sql(machine, query) for machine in machines]

    is_there = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'resolver\\_agent%' ORDER BY rolname"
    both = [("resolver_agent",), ("resolver_agent_local",)]
    is_known = "SELECT 1 FROM pg_dist_object WHERE classid = 'pg_authid'::regclass AND objid <> 10"
    uninstall(servers)
    for database in DATABASES:
        servers[0].run_sql(ROLE_SQL, dbname=database)
    assert ask(is_there) == [both, [], []]
    uninstall(servers[:1])
    if citus.run_sql(machines[0], "SELECT to_regclass('pg_catalog.pg_dist_object') IS NULL") == [(True,)]:
        return  # Citus 10.2 propagates no role
    for role in ("resolver_agent", "resolver_agent_local"):
        citus.run_sql(machines[0], f"CREATE ROLE {role} LOGIN")
    assert ask(is_known) == [[(1,), (1,)]] * 3
    for server in servers:
        for database in DATABASES:
            server.run_sql(ROLE_SQL, dbname=database)
            assert len(given(server, database)) == len(FUNCTIONS) + 2 + 2 * has_parameter_rights(server)
    uninstall(servers)
    assert ask(is_there) == ask(is_known) == [[], [], []]
