"""Recovery and clean-up on real servers with a stand-in for Citus, through the functions of systemd/role.sql (R6)."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import yaml

from resolver_agent.citus.recovery import Recovered, UnaskedError, recover, recover_all
from resolver_agent.config.load import load
from resolver_agent.demo.postgres import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg.abc import QueryNoTemplate as Query

    from resolver_agent.config.model import Config
    from resolver_agent.demo.postgres import Postgres

ROLE_SQL = (Path(__file__).parents[3] / "systemd" / "role.sql").read_text(encoding="utf-8")

CONF = """
allow_system_table_mods = on
citus.defer_shard_delete_interval = -1
citus.recover_2pc_interval = -1
log_line_prefix = '%u '
log_statement = all
max_prepared_transactions = 5
"""

# Each call is counted by a sequence, as a rollback leaves that alone. A node answers the question truly, unless another
# answer is given for this look (NULL: none at all). A script runs during a call as well.
STAND_IN = """
CREATE TABLE pg_catalog.pg_dist_node (
    nodeid int, groupid int, nodename text, nodeport int, noderole text, hasmetadata boolean DEFAULT true
);
CREATE TABLE pg_catalog.pg_dist_local_group (groupid int);
INSERT INTO pg_catalog.pg_dist_local_group VALUES (0);
CREATE TABLE pg_catalog.pg_dist_transaction (groupid int, gid text);
CREATE TABLE pg_catalog.pg_dist_cleanup (record_id bigint, object_name text, node_group_id int);
CREATE TABLE pg_catalog.pg_dist_placement (placementid bigint, shardstate int, groupid int);
GRANT SELECT ON pg_catalog.pg_dist_node, pg_catalog.pg_dist_transaction, pg_catalog.pg_dist_cleanup TO public;

CREATE SCHEMA stand_in;
CREATE SEQUENCE stand_in.looks;
CREATE SEQUENCE stand_in.recoveries;
CREATE SEQUENCE stand_in.clean_ups;
CREATE TABLE stand_in.answers (look int, node text, answer text);
CREATE TABLE stand_in.scripts (recovery text DEFAULT '', clean_up text DEFAULT '');

CREATE FUNCTION pg_catalog.run_command_on_all_nodes(command text, OUT nodeid int, OUT success boolean, OUT result text)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    number CONSTANT int := nextval('stand_in.looks');
    node record;
BEGIN
    FOR node IN SELECT * FROM pg_dist_node LOOP
        nodeid := node.nodeid;
        UPDATE pg_dist_local_group SET groupid = node.groupid;
        EXECUTE command INTO result;
        SELECT answer INTO result FROM stand_in.answers AS a WHERE look = number AND a.node = node.nodename
         UNION ALL SELECT result LIMIT 1;
        success := result IS NOT NULL;
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE FUNCTION pg_catalog.recover_prepared_transactions() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('stand_in.recoveries');
    EXECUTE format('DO %L', 'BEGIN ' || (SELECT recovery FROM stand_in.scripts) || ' END');
    DELETE FROM pg_dist_transaction;
    RETURN 2;
END
$$;
REVOKE EXECUTE ON FUNCTION pg_catalog.recover_prepared_transactions() FROM public;

CREATE PROCEDURE pg_catalog.citus_cleanup_orphaned_resources() LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('stand_in.clean_ups');
    EXECUTE format('DO %L', 'BEGIN ' || (SELECT clean_up FROM stand_in.scripts) || ' END');
    DELETE FROM pg_dist_cleanup WHERE object_name = 'one';
    RAISE NOTICE 'cleaned up 1 orphaned resources';
    RAISE WARNING 'failed to clean up 1 orphaned resources out of 2';
END
$$;

CREATE PROCEDURE pg_catalog.citus_cleanup_orphaned_shards() LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM pg_dist_placement WHERE placementid = 1;
    RAISE NOTICE 'cleaned up 1 orphaned shards';
    RAISE WARNING 'Failed to drop 1 orphaned shards out of 2';
END
$$;
"""
BEFORE_11_1 = "ALTER PROCEDURE pg_catalog.citus_cleanup_orphaned_resources() RENAME TO not_there_yet"
SINCE_11_1 = "ALTER PROCEDURE pg_catalog.not_there_yet() RENAME TO citus_cleanup_orphaned_resources"
PLACEMENTS = "SELECT placementid FROM pg_dist_placement ORDER BY placementid"

# Three nodes, the commit records of one transaction, and two orphaned resources, or shards.
CONTENTS = """
TRUNCATE pg_dist_node, pg_dist_transaction, pg_dist_cleanup, pg_dist_placement, stand_in.answers, stand_in.scripts;
INSERT INTO pg_dist_node
VALUES (1, 0, 'cn', 5432, 'primary'), (2, 1, 'wk1', 5432, 'primary'), (3, 2, 'wk2', 5432, 'primary');
INSERT INTO pg_dist_transaction VALUES (1, 'citus_0_1_2_0'), (2, 'citus_0_1_2_1');
INSERT INTO pg_dist_cleanup VALUES (1, 'one', 1), (2, 'two', 2);
INSERT INTO pg_dist_placement VALUES (1, 4, 1), (2, 4, 2), (3, 1, 1);
INSERT INTO stand_in.scripts DEFAULT VALUES;
ALTER SEQUENCE stand_in.looks RESTART;
ALTER SEQUENCE stand_in.recoveries RESTART;
ALTER SEQUENCE stand_in.clean_ups RESTART;
"""

# Kills itself when its preconditions are checked for the n-th time.
CHILD = """
import os, signal, sys
from resolver_agent.citus import recovery
from resolver_agent.config.load import load

asked = iter(range(1, 9))

def still():
    if next(asked) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

recovery.recover(load(sys.argv[1]), "app", still=still)
"""

LOOK = "SELECT node, CASE WHEN success THEN result END FROM resolver_agent.reached()"
RECOVER = "SELECT resolver_agent.recover_prepared_transactions()"
CLEAN_UP = "SELECT resolver_agent.cleanup_orphaned_resources()"

DONE = Recovered(database="app", recovered=2, cleaned=1, not_cleaned=1, records=0)
UNTOUCHED = Recovered(database="app", records=2)
STANDBY, ANOTHER, STRANGER = "standby 1 7 2026-01-01", "primary 1 7 2026-01-01", "primary 2 7 2026-01-01"
UNREACHED = "RAISE WARNING 'transaction recovery cannot connect to wk1:5432';"


@dataclasses.dataclass(frozen=True, slots=True)
class Citus:
    """A server whose database ``app`` has the stand-in."""

    server: Postgres
    settings: Config

    def run(self, query: Query) -> list[tuple[object, ...]]:
        """Run a statement in the database."""
        return self.server.run_sql(query, dbname="app")

    def calls(self) -> tuple[object, ...]:
        """Return how often Citus was asked which servers it reaches, and for a recovery and a clean-up."""
        found = [
            self.run(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM stand_in.{name}")  # noqa: S608 -- ours
            for name in ("looks", "recoveries", "clean_ups")
        ]
        return tuple(rows[0][0] for rows in found)

    def answer(self, answer: str | None, *looks: int, node: str = "wk1") -> None:
        """Give a node another answer at some of the looks, counted from 1."""
        for look in looks:
            self.server.run_sql("INSERT INTO stand_in.answers VALUES (%s, %s, %s)", [look, node, answer], dbname="app")

    def let(self, **scripts: str) -> None:
        """Run PL/pgSQL statements during ``recovery`` or ``clean_up``."""
        for name, script in scripts.items():
            self.server.run_sql(f"UPDATE stand_in.scripts SET {name} = %s", [script], dbname="app")  # noqa: S608 -- ours

    def wait_until_left(self) -> None:
        """Wait until there is no session in the database."""
        self.server.wait_until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'app')")


class Preconditions:
    """Checked before recovery, before its COMMIT, and before the clean-up; each check runs the next of ``moments``."""

    def __init__(self, *moments: Callable[[], str | None]) -> None:
        self.asked = 0
        self._moments = moments

    def __call__(self) -> str | None:
        """Return the blocker, or None."""
        self.asked += 1
        return self._moments[self.asked - 1]() if self.asked <= len(self._moments) else None


def nothing() -> None:
    """Report no blocker."""


@pytest.fixture(scope="module", params=[None, "embedded"], ids=["chosen", "embedded"])
def either_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site for servers of the chosen PostgreSQL, and one for those of the embedded one."""
    with Site(postgres=request.param) as site:
        server = site.primary("a", "127.0.62.1", config=CONF)
        server.run_sql("CREATE DATABASE app")
        server.run_sql(STAND_IN, dbname="app")
        server.run_sql(ROLE_SQL)
        yield site


@pytest.fixture
def citus(either_site: Site, tmp_path: Path) -> Citus:
    """A server with the stand-in in its initial state, and with the agent's role."""
    server = either_site.servers["a"]
    server.run_sql("ALTER DATABASE app RESET ALL")
    for statements in (CONTENTS, ROLE_SQL):
        server.run_sql(statements, dbname="app")
    return Citus(server, configure(server, tmp_path))


def configure(server: Postgres, folder: Path, **local: str) -> Config:
    """Write the configuration of an agent on a server, and load it."""
    path = folder / "resolver-agent.yml"
    names = {"wk1": {"nodes": [server.address]}}
    local = {"host": str(server.socket_dir), "user": "resolver_agent_local", **local}
    path.write_text(yaml.safe_dump({"fallback": "none", "names": names, "local": local, "port": server.port}))
    return load(str(path))


def said_since(server: Postgres, start: int) -> list[str]:
    """Return the statements of the agent's role in a server's log from an offset on."""
    with server.log.open() as log:
        log.seek(start)
        text = re.sub(r"\n\t", " ", log.read())
    said = re.findall(r"^resolver_agent_local LOG:  (?:statement|execute [^:]*): (.*)$", text, re.MULTILINE)
    return [" ".join(statement.split()) for statement in said]


def test_what_is_said_to_the_server(citus: Citus) -> None:
    """Recovery runs between two checks in one transaction; the clean-up is a statement of its own."""
    start = citus.server.log.stat().st_size
    assert recover(citus.settings, "app", still=nothing) == DONE
    said = said_since(citus.server, start)
    assert said[0].startswith("SELECT set_config(name, value, false)")
    begin = said.index("BEGIN")
    assert said[begin:-1] == ["BEGIN", LOOK, RECOVER, LOOK, "COMMIT", CLEAN_UP]
    assert "pg_prepared_xacts" in said[-1]
    assert citus.calls() == (4, 1, 1)
    citus.wait_until_left()


@pytest.mark.parametrize(
    ("answer", "looks", "words"),
    [
        (STANDBY, (1, 2), "wk1:5432 led to a standby"),
        (STANDBY, (1,), "wk1:5432 led to a standby"),
        (STANDBY, (2,), "wk1:5432 led to a standby"),
        (ANOTHER, (2,), "wk1:5432 led to another server"),
        (STRANGER, (2,), "wk1:5432 led to a server of another group"),
        (None, (1,), "wk1:5432 answered only afterwards"),
        (None, (2,), "wk1:5432 answered only at first"),
        (None, (1, 2), "wk1:5432 answered only now and then"),
    ],
    ids=[
        "standby",
        "standby before",
        "standby after",
        "restarted",
        "stranger",
        "found",
        "lost",
        "met by recovery alone",
    ],
)
def test_nothing_is_forgotten(citus: Citus, answer: str | None, looks: tuple[int, ...], words: str) -> None:
    """Unless every node is known to be a primary all the time, recovery is rolled back and no clean-up starts."""
    citus.answer(answer, *looks)
    start = citus.server.log.stat().st_size
    found = recover(citus.settings, "app", still=nothing)
    assert str(found.fault).startswith(f"rolled back: {words}")
    assert (found.recovered, found.records) == (2, 2)
    said = said_since(citus.server, start)
    assert said[said.index("BEGIN") : -1] == ["BEGIN", LOOK, RECOVER, LOOK, "ROLLBACK"]
    assert citus.calls() == (2, 1, 0)


def test_a_stranger_is_not_recovered(citus: Citus) -> None:
    """Transactions prepared on another group's primary are not rolled back for lack of a record here."""
    citus.answer(STRANGER, 1)
    found = recover(citus.settings, "app", still=nothing)
    assert str(found.fault).startswith("not begun: wk1:5432 leads to a server of another group")
    assert found == dataclasses.replace(UNTOUCHED, fault=found.fault)
    assert citus.calls() == (1, 0, 0)


def test_a_node_without_metadata_need_not_know_its_group(citus: Citus) -> None:
    """Before Citus 11 workers do not know their group."""
    citus.answer("primary 0 7 2026-01-01", 1, 2, 3, 4)
    citus.run("UPDATE pg_dist_node SET hasmetadata = false WHERE nodename = 'wk1'")
    assert recover(citus.settings, "app", still=nothing) == DONE


def test_two_nodes_are_not_one_server(citus: Citus) -> None:
    """Where workers do not know their group, a server that answers for two of them is a stranger to one."""
    for node in ("wk1", "wk2"):
        citus.answer("primary 0 7 2026-01-01", 1, node=node)
    citus.run("UPDATE pg_dist_node SET hasmetadata = false WHERE groupid > 0")
    found = recover(citus.settings, "app", still=nothing)
    assert str(found.fault).startswith("not begun: wk1:5432 and wk2:5432 lead to the same server")
    assert found == dataclasses.replace(UNTOUCHED, fault=found.fault)
    assert citus.calls() == (1, 0, 0)


def test_nobody_answers(citus: Citus) -> None:
    """Where no node answers, nothing is forgotten."""
    for node in ("cn", "wk1", "wk2"):
        citus.answer(None, 1, 2, node=node)
    found = recover(citus.settings, "app", still=nothing)
    assert str(found.fault).startswith("rolled back: no node answered")
    assert found.records == 2


def test_no_nodes(citus: Citus) -> None:
    """A database where Citus has no nodes is no fault."""
    citus.run("DELETE FROM pg_dist_node")
    assert recover(citus.settings, "app", still=nothing).fault is None


def test_a_node_that_does_not_answer(citus: Citus) -> None:
    """The others are recovered, and Citus' warnings of that node are no fault."""
    citus.answer(None, 1, 2, 3, 4)
    citus.let(recovery=f"RAISE WARNING 'could not establish connection after 2000 ms'; {UNREACHED}")
    citus.run("UPDATE pg_dist_cleanup SET node_group_id = 2")
    expected = dataclasses.replace(DONE, not_reached=("wk1:5432",))
    assert recover(citus.settings, "app", still=nothing) == expected


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("RAISE WARNING 'must be superuser';", "rolled back: Citus warned: must be superuser PL/pgSQL function"),
        (UNREACHED, "rolled back: wk1:5432 answered only now and then"),
        ("RAISE EXCEPTION 'out of luck';", "out of luck, PL/pgSQL function"),
        ("RAISE EXCEPTION E'it hung up\\n\\tThis probably means a lot';", "it hung up, PL/pgSQL function"),
    ],
    ids=["a warning", "a warning of a node that answers", "an error", "an error of several lines"],
)
def test_what_citus_says_counts(citus: Citus, script: str, words: str) -> None:
    """A warning is a failure just as an error is."""
    citus.let(recovery=script)
    found = recover(citus.settings, "app", still=nothing)
    assert str(found.fault).startswith(words)
    assert found.records == 2
    assert citus.calls()[1:] == (1, 0)


def test_a_notice_is_no_warning(citus: Citus) -> None:
    """Other messages of Citus are no fault."""
    citus.let(recovery="RAISE NOTICE 'by the way';")
    assert recover(citus.settings, "app", still=nothing) == DONE


@pytest.mark.parametrize(
    ("answer", "looks", "words"),
    [
        (STANDBY, (3,), "a name leads to a standby, or to a server of another group: {"),
        (STRANGER, (3,), "a name leads to a standby, or to a server of another group: {"),
        (STANDBY, (4,), "a name moved during the clean-up: {"),
        (ANOTHER, (4,), "a name moved during the clean-up: {"),
        (None, (3,), "a name moved during the clean-up: {"),
        (None, (4,), "a name moved during the clean-up: {"),
        (None, (3, 4), "the clean-up reached a node that answered neither before nor after: {"),
    ],
    ids=["standby before", "stranger", "standby after", "restarted", "found", "lost", "met by the clean-up alone"],
)
def test_clean_up_forgets_nothing(citus: Citus, answer: str | None, looks: tuple[int, ...], words: str) -> None:
    """The clean-up has the same guard; the recovery before it stays committed."""
    citus.answer(answer, *looks)
    found = recover(citus.settings, "app", still=nothing)
    assert str(found.fault).startswith(words)
    assert (found.recovered, found.records) == (2, 0)
    assert citus.run("SELECT count(*) FROM pg_dist_cleanup") == [(2,)]


@pytest.fixture
def before_11_1(citus: Citus) -> Iterator[None]:
    """Have the stand-in lack what came with Citus 11.1."""
    citus.run(BEFORE_11_1)
    yield
    citus.run(SINCE_11_1)


@pytest.mark.usefixtures("before_11_1")
def test_orphaned_shards_are_cleaned_up(citus: Citus) -> None:
    """Before Citus 11.1 they are all that is left over, and Citus notes them among the placements."""
    assert recover(citus.settings, "app", still=nothing) == DONE
    assert citus.run(PLACEMENTS) == [(2,), (3,)]


@pytest.mark.usefixtures("before_11_1")
@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"wk1": STANDBY}, "a name leads to a standby, or to a server of another group: {"),
        (dict.fromkeys(("wk1", "wk2"), ANOTHER), "a name leads to a standby, or to a server of another group: {"),
        ({"wk1": None}, "the clean-up reached a node that answered neither before nor after: {"),
    ],
    ids=["standby", "another group", "met by the clean-up alone"],
)
def test_no_orphaned_shard_is_forgotten(citus: Citus, answers: dict[str, str | None], words: str) -> None:
    """They have the same guard, also where no worker knows its group: there a live shard could be dropped."""
    citus.run("UPDATE pg_dist_node SET hasmetadata = false WHERE groupid > 0")
    for node, answer in answers.items():
        citus.answer(answer, 3, 4, node=node)
    assert str(recover(citus.settings, "app", still=nothing).fault).startswith(words)
    assert citus.run(PLACEMENTS) == [(1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        (1, UNTOUCHED),
        (2, dataclasses.replace(UNTOUCHED, recovered=2)),
        (3, Recovered(database="app", recovered=2, records=0)),
    ],
    ids=["before recovery", "before its COMMIT", "before the clean-up"],
)
def test_preconditions_stop_holding(citus: Citus, moments: int, expected: Recovered) -> None:
    """They are checked before each step that cannot be undone, and without them nothing is done."""
    preconditions = Preconditions(*([nothing] * (moments - 1)), lambda: "a name moved")
    found = recover(citus.settings, "app", still=preconditions)
    assert found == dataclasses.replace(expected, withdrawn="a name moved")
    assert preconditions.asked == moments
    assert citus.run("SELECT count(*) FROM pg_dist_cleanup") == [(2,)]


@pytest.mark.parametrize(("step", "asked_before"), [("recovery", 1), ("clean_up", 3)])
def test_preconditions_stop_holding_while_citus_is_at_work(citus: Citus, step: str, asked_before: int) -> None:
    """The statement is cancelled at once, and the records that it deleted come back."""
    citus.let(**{step: "PERFORM pg_sleep(60);"})
    preconditions = Preconditions(*([nothing] * asked_before), *([lambda: "a name moved"] * 99))
    begun = time.monotonic()
    found = recover(citus.settings, "app", still=preconditions)
    assert (found.fault, found.withdrawn) == (None, "a name moved")
    assert time.monotonic() - begun < 15
    assert found.records == (2 if step == "recovery" else 0)
    assert citus.run("SELECT count(*) FROM pg_dist_cleanup") == [(2,)]
    citus.wait_until_left()


@pytest.mark.parametrize("parameter", ["citus.recover_2pc_interval", "citus.defer_shard_delete_interval"])
@pytest.mark.parametrize("value", ["1min", "0"])
def test_off_while_citus_does_it(citus: Citus, parameter: str, value: str) -> None:
    """Where Citus' own recovery is on nothing is done, and the fault says which parameter to set."""
    citus.run(f"ALTER DATABASE app SET {parameter} = '{value}'")
    found = recover(citus.settings, "app", still=nothing)
    assert found == dataclasses.replace(
        UNTOUCHED,
        fault=f"off: {parameter} is {value}; set both to -1 and reload, otherwise Citus does it without any check",
    )
    assert citus.calls() == (0, 0, 0)


def test_off_in_recovery(citus: Citus, either_site: Site, tmp_path: Path) -> None:
    """On a standby nothing is done."""
    if "b" not in either_site.servers:
        either_site.standby("b", "127.0.62.2", of=citus.server)
    standby = either_site.servers["b"]
    standby.wait_for_replay(of=citus.server)
    found = recover(configure(standby, tmp_path), "app", still=nothing)
    assert found == dataclasses.replace(UNTOUCHED, fault="off: the local server is in recovery")
    standby.wait_until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'app')")


@pytest.mark.parametrize("user", ["resolver_agent_local", "postgres"])
@pytest.mark.parametrize("function", ["reached", "recover_prepared_transactions", "cleanup_orphaned_resources"])
@pytest.mark.parametrize("change", ["OWNER TO resolver_agent", "RENAME TO another"], ids=["planted", "missing"])
def test_functions_of_others_are_not_called(
    citus: Citus, tmp_path: Path, user: str, function: str, change: str
) -> None:
    """All three functions must exist and belong to a superuser, whichever role the agent logs in as."""
    citus.run(f"ALTER FUNCTION resolver_agent.{function}() {change}")
    found = recover(configure(citus.server, tmp_path, user=user), "app", still=nothing)
    assert f"resolver_agent.{function}() does not" in str(found.fault)
    assert "run role.sql" in str(found.fault)
    assert found == dataclasses.replace(UNTOUCHED, fault=found.fault)
    assert citus.calls() == (0, 0, 0)


@pytest.mark.parametrize(
    "right",
    [
        "USAGE ON SCHEMA resolver_agent",
        "EXECUTE ON FUNCTION resolver_agent.reached()",
        "EXECUTE ON FUNCTION resolver_agent.recover_prepared_transactions()",
        "EXECUTE ON FUNCTION resolver_agent.cleanup_orphaned_resources()",
    ],
)
def test_a_right_is_missing(citus: Citus, right: str) -> None:
    """The fault names the missing privilege and the fix."""
    citus.run(f"REVOKE {right} FROM resolver_agent_local")
    found = recover(citus.settings, "app", still=nothing)
    assert str(found.fault).startswith("permission denied for ")
    assert str(found.fault).endswith(
        ": run role.sql (resolver-agent show role.sql) in this database, on this group's primary"
    )


def test_a_superuser_may_be_the_login(citus: Citus, tmp_path: Path) -> None:
    """It uses the same functions."""
    assert recover(configure(citus.server, tmp_path, user="postgres"), "app", still=nothing) == DONE


@pytest.mark.parametrize("step", ["recovery", "clean_up"])
def test_a_statement_takes_too_long(citus: Citus, step: str) -> None:
    """It is cancelled, the records that it deleted come back, and the session ends."""
    citus.let(**{step: "PERFORM pg_sleep(60);"})
    found = recover(citus.settings, "app", still=nothing, limit_s=1)
    assert str(found.fault).startswith("canceling statement due to statement timeout")
    assert found.records == (2 if step == "recovery" else 0)
    assert citus.run("SELECT count(*) FROM pg_dist_cleanup") == [(2,)]
    citus.wait_until_left()


def test_somebody_else_holds_a_lock(citus: Citus) -> None:
    """The wait for it ends after two seconds."""
    with psycopg.connect(f"host={citus.server.socket_dir} port={citus.server.port} user=postgres dbname=app") as other:
        other.execute("LOCK TABLE pg_dist_transaction IN EXCLUSIVE MODE")
        found = recover(citus.settings, "app", still=nothing)
    assert str(found.fault).startswith("canceling statement due to lock timeout")
    assert found.records == 2


@pytest.mark.parametrize("moment", [1, 2], ids=["before recovery", "before its COMMIT"])
def test_the_server_freezes(citus: Citus, moment: int) -> None:
    """The pass ends in time, and statements still pending are not run when the server goes on: it is too late."""
    preconditions = Preconditions(*([nothing] * (moment - 1)), citus.server.pause)
    found = recover(citus.settings, "app", still=preconditions, limit_s=1)
    citus.server.resume()
    assert found.fault == "no answer within 3 s"
    citus.wait_until_left()
    assert citus.calls() == (moment, moment - 1, 0)
    assert citus.run("SELECT count(*) FROM pg_dist_transaction") == [(2,)]


@pytest.mark.parametrize("moment", [1, 2], ids=["before recovery", "before its COMMIT"])
def test_the_agent_is_killed_in_the_middle(citus: Citus, moment: int) -> None:
    """The records are still there, and the next pass resolves them."""
    child = subprocess.run([sys.executable, "-c", CHILD, citus.settings.path, str(moment)], check=False, timeout=30)
    assert child.returncode == -signal.SIGKILL
    citus.wait_until_left()
    assert citus.run("SELECT count(*) FROM pg_dist_transaction") == [(2,)]
    assert recover(citus.settings, "app", still=nothing) == DONE


def test_the_session_is_ended_in_the_middle(citus: Citus) -> None:
    """It ends as it does with a restart of the server."""

    def end() -> None:
        citus.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'resolver_agent_local'")

    found = recover(citus.settings, "app", still=Preconditions(nothing, end))
    assert "terminating connection due to administrator command" in str(found.fault)
    assert (found.recovered, found.records) == (2, None)
    assert citus.run("SELECT count(*) FROM pg_dist_transaction") == [(2,)]


def test_what_is_prepared_on_the_local_server(citus: Citus) -> None:
    """The oldest transaction that Citus prepared in this database is reported, and none of others."""
    gids = ["another", "citus_0_1_2_3", "citus_0_9_8_7"]
    for gid in gids:
        citus.run(f"BEGIN; CREATE TABLE t_{gid} (); PREPARE TRANSACTION '{gid}'")
    oldest = recover(citus.settings, "app", still=nothing).oldest
    assert oldest is not None
    assert oldest.gid == "citus_0_1_2_3"
    assert 0 < oldest.age_s < 30
    for gid in gids:
        citus.run(f"ROLLBACK PREPARED '{gid}'")


def test_every_database_is_looked_at(citus: Citus) -> None:
    """Databases with Citus are recovered, those without are not mentioned, and one that cannot be asked is reported."""
    citus.server.run_sql("CREATE DATABASE closed")
    citus.server.run_sql("REVOKE CONNECT ON DATABASE closed FROM public")
    found = recover_all(citus.settings, nothing)
    citus.server.run_sql("DROP DATABASE closed")
    assert found[0] == DONE
    assert [one.database for one in found] == ["app", "closed"]
    assert 'permission denied for database "closed"' in str(found[1].fault)


def test_databases_with_strange_names(citus: Citus) -> None:
    """A name that cannot be printed is reported as well as possible, and the other databases are recovered."""
    citus.server.run_sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    where = {"host": str(citus.server.socket_dir), "port": citus.server.port, "user": "postgres", "dbname": "latin"}
    names = ["k\xe4", "two\nlines", "grün"]
    with psycopg.connect(**where, client_encoding="latin1", autocommit=True) as session:  # type: ignore[arg-type]
        session.execute(f'CREATE DATABASE "{names[0]}" TEMPLATE template0')
        session.execute(f'CREATE DATABASE "{names[1]}"')
    citus.server.run_sql(f'CREATE DATABASE "{names[2]}"')
    found = recover_all(citus.settings, nothing)
    for name in names[1:]:
        citus.server.run_sql(f'DROP DATABASE "{name}"')
    with psycopg.connect(**where, client_encoding="latin1", autocommit=True) as session:  # type: ignore[arg-type]
        session.execute(f'DROP DATABASE "{names[0]}"')
    citus.server.run_sql("DROP DATABASE latin")
    refused = "cannot find out whether it has Citus: its name is no printable UTF-8: rename it"
    assert found[0] == DONE
    assert {one.database: one.fault for one in found[1:]} == {r"k\xe4": refused, r"two\nlines": refused}


def test_no_server(tmp_path: Path, citus: Citus) -> None:
    """A server that cannot list its databases is reported too."""
    with pytest.raises(UnaskedError, match=r"cannot be asked for its databases: .*No such file or directory"):
        recover_all(configure(citus.server, tmp_path, host=str(tmp_path)), nothing)


def test_a_database_without_an_encoding(citus: Citus) -> None:
    """A database in SQL_ASCII works like any other."""
    citus.server.run_sql("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII'")
    for statements in (STAND_IN, CONTENTS, ROLE_SQL):
        citus.server.run_sql(statements, dbname="ascii")
    assert recover(citus.settings, "ascii", still=nothing) == dataclasses.replace(DONE, database="ascii")
    citus.server.run_sql("DROP DATABASE ascii")
