"""Flush on real servers, with the role of systemd/role.sql: which value is set, and which sessions notice."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import yaml

from resolver_agent.citus import session as citus_session
from resolver_agent.citus.flush import (
    Flushed,
    FlushError,
    Override,
    alone,
    confirm,
    flush,
    give_back,
    keep,
    recall,
    reset,
)
from resolver_agent.config.load import load
from resolver_agent.demo.postgres import Site
from tests.integration.conftest import GONE
from tests.integration.support.cluster import local_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from resolver_agent.config.model import Config
    from resolver_agent.demo.postgres import Postgres
    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine

ROLE_SQL = (Path(__file__).parents[3] / "systemd" / "role.sql").read_text(encoding="utf-8")

# A server keeps any parameter of this form, even one it does not know.
CONF = """
citus.max_cached_conns_per_worker = 1
citus.node_conninfo = 'sslmode=prefer'
citus.shard_count = 32
log_line_prefix = '%u '
log_statement = all
"""
IN_FILE = Override("sslmode=prefer")

ALTERED = """
    SELECT setting FROM pg_file_settings
    WHERE name = 'citus.node_conninfo' AND sourcefile LIKE '%/postgresql.auto.conf'
"""

# Kills itself before its n-th call of execute().
CHILD = """
import os, signal, sys
import psycopg
from resolver_agent.citus import flush
from resolver_agent.config.load import load

class Mortal(psycopg.Connection):
    left = int(sys.argv[2])

    def execute(self, *args, **kwargs):
        Mortal.left -= 1
        if not Mortal.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*args, **kwargs)

psycopg.Connection = Mortal
flush.flush(load(sys.argv[1]), uncached=len(sys.argv) > 3)
"""
STEPS = {"before the value is set": 3, "before the reload": 4, "before it is confirmed": 5}

UNCACHED_STEPS = {
    "before it is uncached": 3,
    "before the value is set": 4,
    "before the reload": 5,
    "before it is confirmed": 6,
}

# The administrator's value by ALTER SYSTEM, and ours in its place.
BEFORE_UNCACHED = {"none": (None, "0x0"), "4": ("4", "0.0004"), "0": ("0", "0.0000"), "10": ("10", "0.00010")}
CANNOT_UNCACHE = {
    "an older role.sql": (
        "DROP FUNCTION resolver_agent.max_cached_conns_per_worker()",
        r"resolver_agent\.max_cached_conns_per_worker\(\) does not exist: run role\.sql ",
    ),
    "a right to call it": (
        "REVOKE EXECUTE ON FUNCTION resolver_agent.max_cached_conns_per_worker() FROM resolver_agent_local",
        r"must not be called by role resolver_agent_local: run role\.sql ",
    ),
    "the right to set it": (
        "REVOKE ALTER SYSTEM ON PARAMETER citus.max_cached_conns_per_worker FROM resolver_agent_local",
        r'permission denied to set parameter "citus\.max_cached_conns_per_worker": run role\.sql ',
    ),
    "a number": (
        "ALTER SYSTEM SET citus.max_cached_conns_per_worker = '0x10'",
        r"in postgresql\.auto\.conf is no number: '0x10'",
    ),
}
ALTERED_CACHED = ALTERED.replace("node_conninfo", "max_cached_conns_per_worker")

FAULTS = {
    "a line that is none": ("nonsense", r"postgresql\.conf line \d+: syntax error"),
    "an unknown parameter": ("nonsense = 1", r"postgresql\.conf line \d+: nonsense: unrecognized"),
    "a file that is not there": ("include 'nowhere.conf'", r'could not open file ".*nowhere\.conf"'),
}

PRIMARIES, STANDBYS = {"wk1-1", "wk2-1"}, {"wk1-2", "wk2-2"}

MEND = r"run role\.sql \(resolver-agent show role\.sql\) "
ROBBED = {
    "ALTER SYSTEM": (
        "REVOKE ALTER SYSTEM ON PARAMETER citus.node_conninfo FROM resolver_agent_local",
        f'permission denied to set parameter "citus.node_conninfo": {MEND}',
    ),
    "pg_reload_conf()": (
        "REVOKE EXECUTE ON FUNCTION pg_reload_conf() FROM resolver_agent_local",
        f"permission denied for function pg_reload_conf: {MEND}",
    ),
    "our function": (
        "REVOKE EXECUTE ON FUNCTION resolver_agent.node_conninfo() FROM resolver_agent_local",
        f"permission denied for function node_conninfo: {MEND}",
    ),
    "our schema": ("REVOKE USAGE ON SCHEMA resolver_agent FROM resolver_agent_local", f"resolver_agent.*: {MEND}"),
    "all of it": (
        "DROP SCHEMA resolver_agent CASCADE",
        rf"resolver_agent\.node_conninfo\(\) does not exist in database postgres: {MEND}",
    ),
    "a superuser as owner": (
        "ALTER FUNCTION resolver_agent.node_conninfo() OWNER TO resolver_agent",
        rf"resolver_agent\.node_conninfo\(\) does not belong to a superuser in database postgres: {MEND}",
    ),
}


@pytest.fixture(scope="module", params=[None, "embedded"], ids=["chosen", "embedded"])
def either_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site for servers of the chosen PostgreSQL, and one for those of the embedded one."""
    with Site(postgres=request.param) as site:
        site.primary("a", "127.0.61.1", config=CONF)
        yield site


@pytest.fixture
def server(either_site: Site) -> Iterator[Postgres]:
    """A server with its initial configuration and the role of role.sql."""
    server = either_site.servers["a"]
    server.run_sql(ROLE_SQL)
    conf = (server.data / "postgresql.conf").read_text()
    yield server
    (server.data / "postgresql.conf").write_text(conf)
    set_and_load(server, "ALTER SYSTEM RESET ALL", "sslmode=prefer")


@pytest.fixture
def make_standby(either_site: Site, server: Postgres) -> Callable[[], Postgres]:
    """Make a standby by copying the server with its current configuration."""

    def make() -> Postgres:
        if "b" not in either_site.servers:
            return either_site.standby("b", "127.0.61.2", of=server)
        either_site.rejoin(either_site.servers["b"], of=server)
        return either_site.servers["b"]

    return make


@pytest.fixture
def config(server: Postgres, tmp_path: Path) -> Config:
    """The configuration of an agent on the primary."""
    return configure(server, tmp_path)


def configure(server: Postgres, folder: Path) -> Config:
    """Write the configuration of an agent on a server, and load it."""
    path = folder / "resolver-agent.yml"
    names = {"wk1": {"nodes": [server.address]}}
    local = {"host": str(server.socket_dir), "user": local_user(server.binaries)}
    path.write_text(yaml.safe_dump({"fallback": "none", "names": names, "local": local, "port": server.port}))
    return load(str(path))


def rob(server: Postgres, query: str) -> None:
    """Take something away that the agent's login needs."""
    if query.startswith("REVOKE") and local_user(server.binaries) == "postgres":
        pytest.skip("before PostgreSQL 15 the agent's login is a superuser's, from whom no right can be taken")
    server.run_sql(query)


def loaded(server: Postgres) -> str:
    """Return the value in a new session."""
    return str(server.run_sql("SELECT current_setting('citus.node_conninfo')")[0][0])


def altered(server: Postgres) -> str | None:
    """Return the value in postgresql.auto.conf."""
    found = server.run_sql(ALTERED)
    return str(found[0][0]) if found else None


def cached(server: Postgres) -> tuple[str, str | None]:
    """Return how many connections a new session keeps, and the value in postgresql.auto.conf."""
    [(now,)] = server.run_sql("SELECT current_setting('citus.max_cached_conns_per_worker')")
    found = server.run_sql(ALTERED_CACHED)
    return now, found[0][0] if found else None


def set_cached(server: Postgres, value: str | None) -> None:
    """Give it a value by ALTER SYSTEM, as an administrator does, or none."""
    to = "TO DEFAULT" if value is None else f"TO '{value}'"
    server.run_sql(f"ALTER SYSTEM SET citus.max_cached_conns_per_worker {to}")
    server.reload()
    server.wait_until("SELECT current_setting('citus.max_cached_conns_per_worker') = %s", [value or "1"])


def set_and_load(server: Postgres, query: str, value: str) -> None:
    """Change the value as an administrator does: set it, reload, and wait until it is in force."""
    server.run_sql(query)
    server.reload()
    server.wait_until("SELECT current_setting('citus.node_conninfo') = %s", [value])


def edit(server: Postgres, old: str, new: str) -> None:
    """Change postgresql.conf as Patroni does, and reload."""
    path = server.data / "postgresql.conf"
    path.write_text(path.read_text().replace(old, new))
    server.reload()


def test_what_is_said_to_the_server(server: Postgres, config: Config) -> None:
    """One value is set, the files are loaded, and a new session confirms it; nothing else is changed."""
    start = server.log.stat().st_size
    assert flush(config) == Flushed("sslmode=prefer")
    user = local_user(server.binaries)
    with server.log.open() as log:
        log.seek(start)
        said = re.findall(rf"^{user} LOG:  (?:statement|execute [^:]*): (.*)$", log.read(), re.MULTILINE)
    ask = "SELECT * FROM resolver_agent.node_conninfo()"
    assert [said[1], *said[3:6]] == [
        ask,
        "SELECT * FROM resolver_agent.max_cached_conns_per_worker()",
        f"ALTER SYSTEM SET citus.node_conninfo = '{loaded(server)}'",
        "SELECT pg_reload_conf()",
    ]
    assert set(said[6:]) == {said[0], ask}
    assert said[-1] == ask


def test_each_flush_is_another(server: Postgres, config: Config) -> None:
    """Every flush changes the value that sessions see, and leaves it changed."""
    values = [loaded(server)]
    for _ in range(5):
        assert flush(config) == Flushed("sslmode=prefer")
        values.append(loaded(server))
        assert altered(server) == loaded(server)
    assert len(set(values)) == 6
    assert {recall(value) for value in values[1:]} == {IN_FILE}
    assert keep(config) is None


def test_a_standby_flushes_for_itself(server: Postgres, make_standby: Callable[[], Postgres], tmp_path: Path) -> None:
    """A standby flushes by itself, without a statement on the primary."""
    standby = make_standby()
    beside = configure(standby, tmp_path)
    assert flush(beside) == Flushed("sslmode=prefer")
    assert recall(loaded(standby)) == IN_FILE
    assert loaded(server) == "sslmode=prefer"
    reset(beside)
    assert loaded(standby) == "sslmode=prefer"


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_killed_in_the_middle(server: Postgres, config: Config, step: int) -> None:
    """Wherever a flush is killed, the next check completes it, and the next flush sets another value."""
    child = subprocess.run([sys.executable, "-c", CHILD, config.path, str(step)], check=False, timeout=30)
    assert child.returncode == -signal.SIGKILL
    left = altered(server)
    keep(config)
    assert loaded(server) == (altered(server) or "sslmode=prefer")
    assert flush(config) == Flushed("sslmode=prefer")
    assert loaded(server) not in ("sslmode=prefer", left)
    reset(config)
    assert (loaded(server), altered(server)) == ("sslmode=prefer", None)


@pytest.mark.parametrize(("before", "ours"), BEFORE_UNCACHED.values(), ids=BEFORE_UNCACHED)
def test_uncached_until_the_next_flush(server: Postgres, config: Config, before: str | None, ours: str) -> None:
    """The agent's value says what was there before, and the next flush, check or reset gives that back."""
    set_cached(server, before)
    normal = cached(server)
    for undo, done in (
        (flush, Flushed("sslmode=prefer", given_back=True)),
        (keep, Flushed("sslmode=prefer", given_back=True)),
        (reset, None),
    ):
        first = loaded(server)
        assert flush(config, uncached=True) == Flushed("sslmode=prefer")
        assert loaded(server) != first
        assert cached(server) == (ours, ours)  # a placeholder is text
        assert flush(config, uncached=True) == Flushed("sslmode=prefer")
        assert cached(server) == (ours, ours)
        assert undo(config) == done
        server.wait_until("SELECT current_setting('citus.max_cached_conns_per_worker') = %s", [normal[0]])
        assert cached(server) == normal
    assert (keep(config), altered(server)) == (None, None)


@pytest.mark.parametrize(("query", "message"), CANNOT_UNCACHE.values(), ids=CANNOT_UNCACHE)
def test_what_cannot_be_uncached_is_flushed(server: Postgres, config: Config, query: str, message: str) -> None:
    """Whatever is missing for it costs nothing but that, and is said."""
    rob(server, query)
    before = cached(server)[1]
    flushed = flush(config, uncached=True)
    assert flushed is not None
    assert flushed.base == "sslmode=prefer"
    assert re.search(message, flushed.cached or "")
    assert (recall(loaded(server)), cached(server)[1]) == (IN_FILE, before)
    assert flush(config) == Flushed("sslmode=prefer")
    assert keep(config) is None


def test_what_cannot_be_given_back_is_said(server: Postgres, config: Config) -> None:
    """Without the right to set it, sessions are flushed, and every flush warns until the right is there."""
    flush(config, uncached=True)
    rob(server, "REVOKE ALTER SYSTEM ON PARAMETER citus.max_cached_conns_per_worker FROM resolver_agent_local")
    flushed = flush(config)
    assert flushed is not None
    assert "the agent's '0x0' stays in force: run role.sql" in (flushed.warning or "")
    with pytest.raises(FlushError, match="stays in force"):
        reset(config)
    server.run_sql(ROLE_SQL)
    assert keep(config) == Flushed("sslmode=prefer", given_back=True)
    assert cached(server) == ("1", None)


def test_an_administrator_changes_it_meanwhile(server: Postgres, config: Config) -> None:
    """A value that is not the agent's is not touched."""
    flush(config, uncached=True)
    set_cached(server, "3")
    assert flush(config) == Flushed("sslmode=prefer")
    assert cached(server) == ("3", "3")


@pytest.mark.parametrize("before", [None, "4"])
@pytest.mark.parametrize("step", UNCACHED_STEPS.values(), ids=UNCACHED_STEPS)
def test_killed_while_it_uncaches(server: Postgres, config: Config, step: int, before: str | None) -> None:
    """Wherever an uncaching flush is killed, the next check gives the administrator's value back."""
    set_cached(server, before)
    normal = cached(server)
    child = subprocess.run([sys.executable, "-c", CHILD, config.path, str(step), "uncached"], check=False, timeout=30)
    assert child.returncode == -signal.SIGKILL
    assert (cached(server)[1] != before) == (step > UNCACHED_STEPS["before it is uncached"])
    keep(config)
    assert cached(server) == normal


def test_a_clone_of_an_uncached_server_is_no_more(
    server: Postgres, make_standby: Callable[[], Postgres], config: Config, tmp_path: Path
) -> None:
    """A standby that was copied meanwhile gives the administrator's value back on itself alone."""
    set_cached(server, "4")
    flush(config, uncached=True)
    standby = make_standby()
    assert cached(standby) == ("0.0004", "0.0004")
    assert keep(configure(standby, tmp_path)) == Flushed("sslmode=prefer", given_back=True)
    assert cached(standby) == ("4", "4")
    assert cached(server) == ("0.0004", "0.0004")


def test_it_is_given_back_over_an_open_session(server: Postgres, config: Config) -> None:
    """Without a new session the parameter is given back and everything flushed, and confirmed later."""
    flush(config, uncached=True)
    first = loaded(server)
    with citus_session.connect(config, limit_s=5) as session:
        value = give_back(session)
    assert value is not None
    confirm(config, value)
    assert value == loaded(server) != first
    assert cached(server) == ("1", None)
    with pytest.raises(FlushError, match="has not loaded"):
        confirm(config, first)


def test_nobody_gives_back_what_is_in_use(server: Postgres, config: Config) -> None:
    """A check in another thread waits until the one who has uncached is done, and finds nothing left."""
    found: list[Flushed | None] = []
    with alone():
        flush(config, uncached=True)
        other = threading.Thread(target=lambda: found.append(keep(config)))
        other.start()
        other.join(0.3)
        assert other.is_alive()
        assert cached(server) == ("0x0", "0x0")
        with citus_session.connect(config, limit_s=5) as session:
            confirm(config, give_back(session) or "")
    other.join(10)
    assert found == [None]


def test_a_half_done_flush_is_ended(server: Postgres, config: Config) -> None:
    """A value that was set but never loaded does not count as a flush."""
    server.run_sql(f"ALTER SYSTEM SET citus.node_conninfo = '{IN_FILE.stamped(5)}'")
    assert keep(config) == Flushed("sslmode=prefer")
    assert loaded(server) == altered(server) != IN_FILE.stamped(5)


def test_an_older_file_comes_back(server: Postgres, config: Config) -> None:
    """After pg_rewind or a restore from a copy, a flush still sets a value that no session has seen."""
    auto_conf = server.data / "postgresql.auto.conf"
    flush(config)
    older, first = auto_conf.read_bytes(), loaded(server)
    flush(config)
    second = loaded(server)
    auto_conf.write_bytes(older)
    assert flush(config) == Flushed("sslmode=prefer")
    assert loaded(server) not in (first, second)


@pytest.mark.parametrize("override", [IN_FILE, Override("sslmode=allow", kept=True)], ids=["followed", "kept"])
def test_a_clone_goes_on_from_the_copy(
    server: Postgres, make_standby: Callable[[], Postgres], tmp_path: Path, override: Override
) -> None:
    """A new standby has the primary's postgresql.auto.conf, and reads the administrator's text from it."""
    copied = override.stamped(5)
    set_and_load(server, f"ALTER SYSTEM SET citus.node_conninfo = '{copied}'", copied)
    standby = make_standby()
    beside = configure(standby, tmp_path)
    assert keep(beside) is None
    assert flush(beside) == Flushed(override.base)
    assert recall(loaded(standby)) == override
    assert loaded(standby) != copied
    reset(beside)
    assert (loaded(standby), altered(standby)) == (override.base, override.base if override.kept else None)


def test_an_administrators_own_setting_is_kept(server: Postgres, config: Config) -> None:
    """An earlier ALTER SYSTEM stays in force, whatever the files say, and is restored in the end."""
    set_and_load(server, "ALTER SYSTEM SET citus.node_conninfo = 'sslmode=allow'", "sslmode=allow")
    assert keep(config) is None
    assert flush(config) == Flushed("sslmode=allow")
    edit(server, "'sslmode=prefer'", "'sslmode=disable'")
    assert keep(config) is None
    assert flush(config) == Flushed("sslmode=allow")
    assert recall(loaded(server)) == Override("sslmode=allow", kept=True)
    reset(config)
    assert loaded(server) == altered(server) == "sslmode=allow"


def test_an_administrator_sets_something_later(server: Postgres, config: Config) -> None:
    """A later ALTER SYSTEM takes effect at once; the next flush keeps it, and its removal too."""
    flush(config)
    set_and_load(server, "ALTER SYSTEM SET citus.node_conninfo = 'sslmode=allow'", "sslmode=allow")
    assert keep(config) is None
    reset(config)
    assert loaded(server) == "sslmode=allow"
    assert flush(config) == Flushed("sslmode=allow")
    set_and_load(server, "ALTER SYSTEM RESET citus.node_conninfo", "sslmode=prefer")
    assert keep(config) is None
    assert flush(config) == Flushed("sslmode=prefer")


def test_a_change_of_the_file_comes_through(server: Postgres, config: Config) -> None:
    """A value that Patroni writes is in force after the next check, with ours above it and without."""
    flush(config)
    edit(server, "'sslmode=prefer'", "'sslmode=disable'")
    assert keep(config) == Flushed("sslmode=disable")
    assert recall(loaded(server)) == Override("sslmode=disable")
    assert keep(config) is None
    edit(server, "citus.node_conninfo", "Citus.Node_ConnInfo")
    assert keep(config) is None
    reset(config)
    assert (loaded(server), altered(server)) == ("sslmode=disable", None)


def test_a_value_that_is_gone_from_the_file_stands(server: Postgres, config: Config) -> None:
    """A value that Patroni lost stays in force, with a warning, until it is back or the administrator drops it."""
    flush(config)
    edit(server, "citus.node_conninfo", "another.parameter")
    found = keep(config)
    assert found is not None
    assert (found.base, found.done) == ("sslmode=prefer", False)
    assert "`patronictl reload`" in (found.warning or "")
    assert keep(config) == found
    assert flush(config) == Flushed("sslmode=prefer", warning=found.warning)
    edit(server, "another.parameter", "citus.node_conninfo")
    assert keep(config) is None

    edit(server, "citus.node_conninfo", "another.parameter")
    server.run_sql("ALTER SYSTEM RESET citus.node_conninfo")
    server.run_sql("SELECT pg_reload_conf()")
    assert keep(config) is None
    assert flush(config) == Flushed("")


def test_reset_takes_nothing_of_others_away(server: Postgres, config: Config) -> None:
    """Where there is no value of ours, nothing is changed."""
    server.run_sql("ALTER SYSTEM SET citus.node_conninfo = 'sslmode=allow'")
    reset(config)
    assert altered(server) == "sslmode=allow"
    assert loaded(server) == "sslmode=prefer"


@pytest.mark.parametrize(("line", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("do", [flush, keep, reset])
def test_an_error_in_a_file(
    server: Postgres, config: Config, do: Callable[[Config], object], line: str, message: str
) -> None:
    """PostgreSQL then loads nothing, so nothing is set; the error names its place, until it is fixed."""
    set_and_load(server, "ALTER SYSTEM SET citus.node_conninfo = 'sslmode=allow'", "sslmode=allow")
    flush(config)
    before = (server.data / "postgresql.auto.conf").read_bytes()
    edit(server, CONF, f"{CONF}{line}\n")
    with pytest.raises(FlushError, match=message):
        do(config)
    assert (server.data / "postgresql.auto.conf").read_bytes() == before
    edit(server, f"{CONF}{line}\n", CONF)
    assert flush(config) == Flushed("sslmode=allow")


def test_a_setting_that_needs_a_restart_is_no_error(server: Postgres, config: Config) -> None:
    """PostgreSQL then loads the rest, so the flush goes on."""
    edit(server, CONF, f"{CONF}max_connections = 55\n")
    assert flush(config) == Flushed("sslmode=prefer")
    assert recall(loaded(server)) == IN_FILE


@pytest.mark.parametrize(("query", "message"), ROBBED.values(), ids=ROBBED)
def test_a_privilege_is_missing(server: Postgres, config: Config, query: str, message: str) -> None:
    """Each privilege of role.sql is needed, the missing one is named, and running role.sql again fixes it."""
    rob(server, query)
    with pytest.raises(FlushError, match=message):
        flush(config)
    server.run_sql(ROLE_SQL)
    assert flush(config) == Flushed("sslmode=prefer")


@pytest.mark.parametrize("either_site", ["embedded"], indirect=True)
def test_alter_system_is_not_allowed(server: Postgres, config: Config) -> None:
    """PostgreSQL 17's ``allow_alter_system = off`` forbids it to every role."""
    edit(server, CONF, f"{CONF}allow_alter_system = off\n")
    server.wait_until("SELECT NOT current_setting('allow_alter_system')::bool")
    with pytest.raises(FlushError, match="allow_alter_system = on"):
        flush(config)
    edit(server, f"{CONF}allow_alter_system = off\n", CONF)
    server.wait_until("SELECT current_setting('allow_alter_system')::bool")


def test_a_server_without_citus(either_site: Site, tmp_path: Path) -> None:
    """There is nothing to flush, with or without our functions, and nothing is written."""
    server = either_site.primary("plain", "127.0.61.3")
    server.run_sql("CREATE ROLE resolver_agent_local LOGIN")
    config = configure(server, tmp_path)
    for _ in range(2):
        assert (flush(config), keep(config)) == (None, None)
        reset(config)
        assert altered(server) is None
        server.run_sql(ROLE_SQL)
    server.kill()
    with pytest.raises(FlushError, match="Connection refused"):
        flush(config)


def test_a_server_that_hangs(server: Postgres, config: Config) -> None:
    """A call ends even when the server stops answering before or within a session."""
    with (
        pytest.raises(psycopg.OperationalError, match=r"^no answer within 0\.1 s$"),
        citus_session.connect(config, limit_s=0.1) as session,
    ):
        session.execute("SELECT pg_sleep(60)")
    server.pause()
    try:
        with pytest.raises(FlushError, match="no answer within 2 s"):
            flush(config)
    finally:
        server.resume()


class Reader(threading.Thread):
    """A session that reads all the time, and records which server answered each statement and when it began."""

    def __init__(self, citus: CitusCluster, machine: Machine) -> None:
        super().__init__()
        self.reads: list[tuple[float, set[str]]] = []
        self._citus = citus
        self._session = citus.connect(machine)
        self._read = threading.Condition()
        self._ends = False

    def __enter__(self) -> Self:
        self.start()
        self.wait_for_reads(2)
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self.join()

    def run(self) -> None:
        """Read until told to end."""
        while not self._ends:
            begun = time.monotonic()
            served = self._citus.serving(self._session)
            with self._read:
                self.reads.append((begun, served))
                self._read.notify_all()

    def wait_for_reads(self, number: int) -> None:
        """Wait for this many more reads."""
        with self._read:
            wanted = len(self.reads) + number
            assert self._read.wait_for(lambda: len(self.reads) >= wanted, timeout=10)


def lead(citus: CitusCluster, machine: Machine, *, to: set[str]) -> None:
    """Point the names on a machine to these workers."""
    machine.lead({name: citus.machines[server].address for server in to for name in [server.partition("-")[0]]})


def test_every_session_connects_anew(citus: CitusCluster) -> None:
    """In any state, a session's first command after a flush uses the new addresses; none is disconnected."""
    cn1 = citus.machines["cn-1"]
    config = load(str(citus.configure(cn1)))
    idle, working = citus.connect(cn1), citus.connect(cn1)
    assert citus.serving(idle) == PRIMARIES
    working.execute("BEGIN")
    working.execute("UPDATE accounts SET balance = balance + 1")
    with Reader(citus, cn1) as busy:
        lead(citus, cn1, to=STANDBYS)
        assert flush(config) == Flushed("sslmode=prefer")
        flushed_at = time.monotonic()
        busy.wait_for_reads(10)
    assert busy.reads[0][1] == PRIMARIES
    assert {tuple(sorted(who)) for begun, who in busy.reads if begun > flushed_at} == {tuple(sorted(STANDBYS))}

    time.sleep(5)  # the test needs an idle session
    assert citus.serving(idle) == STANDBYS
    assert working.execute("SELECT sum(balance) FROM accounts").fetchall() == [(400 * 101,)]
    working.execute("COMMIT")
    assert citus.serving(working) == STANDBYS


def test_two_flushes_while_a_session_idles(citus: CitusCluster) -> None:
    """A session that misses both of two changes, and ends with its old address, still connects anew."""
    cn1 = citus.machines["cn-1"]
    config = load(str(citus.configure(cn1)))
    idle = citus.connect(cn1)
    assert citus.serving(idle) == PRIMARIES
    before = citus.sessions_of(idle)
    for servers in (STANDBYS, PRIMARIES):
        lead(citus, cn1, to=servers)
        assert flush(config) == Flushed("sslmode=prefer")
    assert citus.serving(idle) == PRIMARIES
    assert set(before) == PRIMARIES
    for worker, pids in before.items():
        citus.machines[worker].server.wait_until(GONE, [pids])
    assert set(citus.sessions_of(idle)) == PRIMARIES


def test_the_real_parameter_on_a_standby(citus: CitusCluster) -> None:
    """Citus accepts our values on a standby too; a value that Citus refuses, or one above ours, is reported."""
    cn2 = citus.machines["cn-2"]
    config = load(str(citus.configure(cn2)))
    session = citus.connect(cn2)
    assert citus.serving(session) == STANDBYS
    lead(citus, cn2, to=PRIMARIES)
    assert flush(config) == Flushed("sslmode=prefer")
    assert citus.serving(session) == PRIMARIES

    ours = citus.connect(cn2, user="resolver_agent_local")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ours.execute("SHOW citus.node_conninfo")

    [(boot,)] = cn2.server.run_sql("SELECT boot_val FROM pg_settings WHERE name = 'citus.node_conninfo'")
    edit(cn2.server, "citus.node_conninfo =", "another.parameter =")
    cn2.server.run_sql("ALTER SYSTEM RESET citus.node_conninfo")
    assert flush(config) == Flushed(boot)
    edit(cn2.server, "another.parameter = 'sslmode=prefer'", "citus.node_conninfo = 'password=secret'")
    with pytest.raises(FlushError, match=r'invalid value for parameter "citus\.node_conninfo"'):
        keep(config)
    edit(cn2.server, "password=secret", "sslmode=prefer")
    reset(config)
    assert (loaded(cn2.server), altered(cn2.server)) == ("sslmode=prefer", None)

    cn2.server.stop()
    above = {"citus.node_conninfo": "sslmode=prefer"}
    cn2.server.start(**above)  # type: ignore[arg-type]  # `wait` is not among them
    with pytest.raises(FlushError, match="command line"):
        flush(config)


def test_the_real_parameter_means_zero(citus: CitusCluster) -> None:
    """Citus takes the agent's values for 0: no session keeps a connection; what an administrator set is given back."""
    cn1 = citus.machines["cn-1"]
    config = load(str(citus.configure(cn1)))
    session = citus.connect(cn1)
    for before, ours in BEFORE_UNCACHED.values():
        set_cached(cn1.server, before)
        normal = cached(cn1.server)
        assert flush(config, uncached=True) == Flushed("sslmode=prefer")
        assert cached(cn1.server) == ("0", ours)
        session.execute("SELECT count(*) FROM accounts")
        citus.wait_for_sessions(session, set())
        assert flush(config) == Flushed("sslmode=prefer", given_back=True)
        assert cached(cn1.server) == normal
    set_cached(cn1.server, None)
    session.execute("SELECT count(*) FROM accounts")
    assert set(citus.sessions_of(session)) == PRIMARIES
