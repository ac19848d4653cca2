"""Doctor's findings about the queue."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus import flush
from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.facts import OwnSetting, Unknown
from tests.unit.doctor.builders import (
    CN1,
    HOOK,
    NOTE,
    STOP,
    WARNING,
    WITHOUT_PATRONI,
    assert_alone,
    both,
    citus,
    database,
    fit,
    host,
    parameter,
    patroni,
    queue,
    server,
)

if TYPE_CHECKING:
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change

EVERYWHERE = "0.0.0.0"
ROOM = "127.77.0.2"
"""The waiting room of wk1; that of cn is never used on a coordinator."""


def listens(value: str, *, name: str | None = None, connect_address: str | None = None) -> Change:
    """Return a change: the local server listens there, under a Patroni with these settings."""
    postgresql = {"pre_promote": HOOK, "before_stop": STOP, "connect_address": connect_address}
    return both(parameter("listen_addresses", value), patroni(postgresql=postgresql, name=name))


NO_QUEUE = queue(planned_s=0.0)


def room_faults(**faults: str) -> Change:
    """Return a change: these names' rooms cannot be opened."""
    faults = {name.replace("_", "-"): why for name, why in faults.items()}
    return lambda fit: dataclasses.replace(fit, room_faults=faults)


CASES = [
    (
        "PostgreSQL listens everywhere",
        listens("*"),
        WARNING,
        "queue:listen",
        "this leaves no address for waiting rooms, so statements for wk1, wk1-ro fail during planned work",
        f"Under postgresql in /etc/patroni.yml write `listen: 127.0.0.1,{CN1}:5432`, with any other address that ",
    ),
    (
        "PostgreSQL listens everywhere, under a Patroni with a name",
        listens("*", name="pg1"),
        WARNING,
        "queue:listen",
        "listen_addresses is * (configuration file)",
        "then restart PostgreSQL: patronictl reload cn pg1 && patronictl restart cn pg1",
    ),
    (
        "with another address for Patroni",
        listens(f"{EVERYWHERE}, ::", connect_address="10.7.0.1:5432"),
        WARNING,
        "queue:listen",
        "no address for waiting rooms",
        f"write `listen: 127.0.0.1,{CN1},10.7.0.1,[::]:5432`",
    ),
    (
        "with a name for Patroni",
        listens("*", connect_address="db1:5432"),
        WARNING,
        "queue:listen",
        "no address for waiting rooms",
        f"write `listen: 127.0.0.1,{CN1}:5432`",
    ),
    (
        "without Patroni",
        both(parameter("listen_addresses", "*"), host(patroni=()), WITHOUT_PATRONI),
        WARNING,
        "queue:listen",
        "no address for waiting rooms",
        f"postgresql.conf, and restart PostgreSQL: listen_addresses = '127.0.0.1,{CN1}', with any other",
    ),
    (
        "at a room's address",
        both(parameter("listen_addresses", f"127.0.0.1, {ROOM}, {CN1}"), host(patroni=()), WITHOUT_PATRONI),
        WARNING,
        "queue:listen",
        "so statements for wk1 fail",
        f"listen_addresses = '127.0.0.1,{CN1}'",
    ),
    (
        "everywhere, and the bind test fails for that reason",
        both(listens("*"), room_faults(wk1="Address already in use", wk1_ro="Address already in use")),
        WARNING,
        "queue:listen",
        "wk1, wk1-ro",
        "patronictl restart cn MEMBER",
    ),
    (
        "another process at the port",
        room_faults(wk1="Address already in use", cn="R3 never lets it lead elsewhere"),
        WARNING,
        "queue:room",
        f"wk1: the waiting room cannot be opened at {ROOM}:5432: Address already in use",
        "ss -ltnp 'sport = :5432'",
    ),
    (
        "a short backlog",
        host(somaxconn=128),
        WARNING,
        "queue:somaxconn",
        "net.core.somaxconn is 128: about 128 connections can wait",
        "echo 'net.core.somaxconn = 4096' >/etc/sysctl.d/90-resolver-agent.conf && sysctl -p",
    ),
]


PREVENT = "citus.prevent_incomplete_connection_establishment"
CACHED = "citus.max_cached_conns_per_worker"
CONNECT = "citus.node_connection_timeout"


def own(name: str, value: str, role: str | None = None, *, everywhere: bool = False) -> Change:
    """Return a change: a role, or all roles, have a parameter of their own, in the database with Citus alone."""
    return database(own_settings=(OwnSetting(name, value, role, database=not everywhere),))


CITUS_CASES = [
    (
        "finished statements wait",
        citus(PREVENT, "on", ""),
        WARNING,
        PREVENT,
        "is on: a finished statement goes on waiting",
        f"patronictl edit-config --force -p '{PREVENT}=\"off\"'",
    ),
    (
        "a short limit for connections",
        citus(CONNECT, "5s"),
        WARNING,
        CONNECT,
        f"{CONNECT} is 5s (configuration file): statements in a waiting room fail after that time",
        f"-p '{CONNECT}=\"30s\"'",
    ),
    (
        "a limit for connections below the queue's",
        both(citus(CONNECT, "1min"), queue(planned_s=60.0)),
        WARNING,
        CONNECT,
        "the queue lasts up to 60 s",
        '="75s"',
    ),
    (
        "a role's short limit for connections",
        own(CONNECT, "19999", "app", everywhere=True),
        WARNING,
        CONNECT,
        f"role app has {CONNECT} = 19999 of its own",
        f'ALTER ROLE "app" RESET {CONNECT};',
    ),
    (
        "cached connections of a role",
        own(CACHED, "5", 'a"b', everywhere=True),
        WARNING,
        CACHED,
        f'role a"b has {CACHED} = 5 of its own: the agent cannot',
        f'ALTER ROLE "a""b" RESET {CACHED};',
    ),
    (
        "cached connections of a role in a database",
        own(CACHED, "1", "app"),
        WARNING,
        CACHED,
        "role app in database app has",
        f'ALTER ROLE "app" IN DATABASE "app" RESET {CACHED};',
    ),
    (
        "cached connections of a database",
        own(CACHED, "1"),
        WARNING,
        CACHED,
        "database app has",
        f'ALTER DATABASE "app" RESET {CACHED};',
    ),
    (
        "cached connections of all roles",
        own(CACHED, "1", everywhere=True),
        WARNING,
        CACHED,
        "ALTER ROLE ALL has",
        f"ALTER ROLE ALL RESET {CACHED};",
    ),
    (
        "cached connections on the command line",
        citus(CACHED, "1", "command line"),
        WARNING,
        CACHED,
        "which overrides all files",
        "restart PostgreSQL",
    ),
    (
        "settings of roles that cannot be read",
        database(own_settings=Unknown("odd")),
        NOTE,
        "queue:unchecked",
        "could not be checked: settings of roles (database app): odd",
        "",
    ),
    (
        "a statement_timeout for all",
        parameter("statement_timeout", "10s", "/x.conf line 3"),
        NOTE,
        "queue:statement_timeout",
        "is 10s (/x.conf line 3): statements that wait longer in planned work still fail: they wait up to 15 s",
        "",
    ),
    (
        "a statement_timeout of roles",
        database(
            own_settings=tuple(OwnSetting("statement_timeout", "5s", f"r{one}", database=False) for one in range(11))
        ),
        NOTE,
        "queue:statement_timeout",
        "role r8 has statement_timeout = 5s, role r9 has statement_timeout = 5s, ...: statements",
        "",
    ),
    (
        "a transaction_timeout",
        own("transaction_timeout", "1000"),
        NOTE,
        "queue:transaction_timeout",
        "database app",
        "",
    ),
    (
        "a lock_timeout",
        own("lock_timeout", "2900ms", "app"),
        NOTE,
        "queue:lock_timeout",
        "app has lock_timeout = 2900ms: statements that wait longer in planned work still fail: they wait up to 3 s",
        "",
    ),
    (
        "no functions for the gate",
        database(queue_faults=("resolver_agent.keep_gate() does not exist",)),
        WARNING,
        "role.sql",
        "database app: resolver_agent.keep_gate() does not exist: statements cannot be held back",
        "resolver-agent show role.sql | psql -v ON_ERROR_STOP=1 -d app",
    ),
    (
        "no function for cached connections",
        server(queue_faults=("resolver_agent.max_cached_conns_per_worker() does not exist",)),
        WARNING,
        "role.sql",
        "max_cached_conns_per_worker() does not exist: the agent cannot have sessions close cached connections",
        "psql -v ON_ERROR_STOP=1 -d postgres",
    ),
    (
        "no right to the parameter",
        server(may_uncache=False),
        WARNING,
        "role.sql",
        f"role resolver_agent_local may not change {CACHED}: the agent cannot",
        "psql -v ON_ERROR_STOP=1 -d postgres",
    ),
    (
        "lost primaries",
        both(queue(unplanned_s=20.0), server(sessions=37)),
        NOTE,
        "queue:max_connections",
        "new clients need further ones; max_connections is 100, 37 are in use now",
        "pool",
    ),
]


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "fix"),
    [pytest.param(*case[1:], id=case[0]) for case in [*CASES, *CITUS_CASES]],
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """One fault gives one finding, with its fix."""
    assert_alone(change, severity, key, text, fix)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(both(listens("*"), host(somaxconn=128), NO_QUEUE), id="no queue"),
        pytest.param(both(listens("*"), parameter("port", "5433")), id="everywhere, at another port"),
        pytest.param(listens("::,localhost"), id="IPv6 has ports of its own"),
        pytest.param(host(somaxconn=None), id="a kernel that does not say"),
        pytest.param(
            both(citus(PREVENT, "on"), own(CACHED, "1"), citus(CONNECT, "5s"), NO_QUEUE), id="no queue: Citus"
        ),
        pytest.param(database(settings={}), id="an old Citus"),
        pytest.param(both(citus(PREVENT, "on"), own(CACHED, "1"), database(group_id=1)), id="a worker"),
        pytest.param(
            both(database(group_id=1, queue_faults=("x",)), server(queue_faults=("x",), may_uncache=False)),
            id="functions on a worker",
        ),
        pytest.param(own(CACHED, "0", "app"), id="a role without cached connections"),
        pytest.param(own(CONNECT, "20s", "app"), id="a limit for connections that is long enough"),
        pytest.param(own("statement_timeout", "0", "app"), id="a role without a limit"),
        pytest.param(own("statement_timeout", "15001", "app"), id="a role with a long limit"),
        pytest.param(own("statement_timeout", "soon", "app"), id="no duration"),
        pytest.param(own("lock_timeout", "3s"), id="a long lock_timeout"),
        pytest.param(parameter("statement_timeout", "1s", "user"), id="a limit of doctor's own role"),
    ],
)
def test_no_fault(change: Change) -> None:
    """What does not keep a name from queueing gives no finding."""
    assert [str(one) for one in doctor_report.report(change(fit())).findings] == []


def test_a_queue_for_lost_primaries_alone() -> None:
    """It needs the rooms, too."""
    keys = {
        one.key
        for one in doctor_report.report(both(listens("*"), queue(unplanned_s=30.0, planned_s=0.0))(fit())).findings
    }
    assert "queue:listen" in keys


def test_a_queue_for_lost_primaries_needs_more() -> None:
    """Keepalives matter more, as a loss of power is silent; and before PostgreSQL 15 Citus does not connect again."""
    change = server(conninfo=flush.Setting(loaded="", configured="sslmode=require"), version=140000)
    for unplanned_s, severity, keys in ((0.0, NOTE, set()), (20.0, WARNING, {"queue:max_connections", "queue:retry"})):
        report = doctor_report.report(both(change, queue(unplanned_s=unplanned_s))(fit()))
        found = {one.key: one for one in report.findings}
        assert found.pop("citus.node_conninfo:keepalives").severity is severity
        assert found.keys() == keys
