"""What doctor says of a node: nothing of one that is fit, and of each fault just that, with its mend."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus import flush
from resolver_agent.config.model import Fallback, Node
from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.facts import TextFile, Unit, Unknown
from resolver_agent.doctor.finding import Severity
from resolver_agent.routing.state import Alert
from tests.unit.builders import PORT, barred, dead, group, node, primary, standby, unreachable
from tests.unit.doctor.builders import (
    BLOCK,
    CN1,
    CN2,
    CN3,
    GROUPS,
    HOOK,
    PATRONI,
    WK1,
    WK2,
    both,
    citus,
    database,
    file,
    fit,
    hook,
    host,
    hosts,
    nsswitch,
    parameter,
    patroni,
    probed,
    row,
    server,
    settings,
    state,
    units,
)

if TYPE_CHECKING:
    from tests.unit.doctor.builders import Change

ERROR, WARNING, NOTE = Severity


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda fit: fit, id="all is well"),
        pytest.param(
            both(host(agent={"names": [], "alerts": []}, units=None, patroni=())), id="no systemd, no Patroni"
        ),
        pytest.param(server(databases={}, may_alter=False, conninfo=Unknown("no function")), id="no Citus"),
        pytest.param(database(rows=(), group_id=1), id="a worker without metadata"),
        pytest.param(database(rows=(row(1, "CN"), row(2, "wk1"))), id="names in capitals"),
        pytest.param(
            host(nscd=TextFile("/etc/nscd.conf", "enable-cache passwd yes\nenable-cache hosts no\n")), id="nscd"
        ),
        pytest.param(nsswitch("hosts: mymachines files resolve [!UNAVAIL=return] dns"), id="nsswitch.conf of Fedora"),
        pytest.param(
            host(cloud=(TextFile("a.cfg", "manage_etc_hosts: true\n"), TextFile("b.cfg", "manage_etc_hosts: false\n"))),
            id="the last of cloud-init's files counts",
        ),
        pytest.param(host(passfile=file("*:5432:postgres:resolver_agent:x\n")), id="password file"),
        pytest.param(
            both(
                host(passfile=file("*:5432:postgres:resolver_agent:x\n")), probed(wk2=standby(started=4, system_id=2))
            ),
            id="password file with stars",
        ),
        pytest.param(
            host(citus_passfile=file(f"{WK1}:5432:app:app:x\nwk1:*:app:app:x\n")), id="password file of Citus, by name"
        ),
        pytest.param(citus("citus.local_hostname", "cn"), id="the own name for local connections"),
        pytest.param(
            hook("sh -c 'timeout 5 resolver-agent pre-promote --socket /x || true; exec other'"), id="other hook"
        ),
        pytest.param(patroni(dynamic=PATRONI), id="hook in the dynamic configuration"),
        pytest.param(
            server(conninfo=flush.Setting(loaded="sslmode=require", boot="sslmode=prefer")), id="never flushed"
        ),
    ],
)
def test_a_fit_node(change: Change) -> None:
    """Nothing is found where nothing is wrong."""
    found = doctor_report.report(change(fit()))
    assert [str(one) for one in found.findings] == []
    assert found.fit
    assert found.as_text() == "nothing is wrong here"


UNASKED = settings(groups=(group("cn", CN1, CN2), *GROUPS[1:]))
CASES = [
    # The local PostgreSQL and Citus.
    ("down", lambda fit: dataclasses.replace(fit, server=Unknown("refused")), ERROR, "local", "refused", "start it"),
    ("a closed database", server(databases={"b": Unknown("no entry")}), WARNING, "unchecked", "database b: no", "peer"),
    ("citus: off", settings(citus=False), ERROR, "citus", "nobody flushes", "citus: auto"),
    *[
        (name, citus(name, value, "/x.conf line 7"), ERROR, name, f"{name} is {value} (/x.conf line 7)", right)
        for name, value, right in (
            ("citus.recover_2pc_interval", "1min", "edit-config: postgresql: parameters: citus.recover_2pc_interval"),
            ("citus.defer_shard_delete_interval", "15s", "parameters: citus.defer_shard_delete_interval: '-1'"),
            ("citus.use_secondary_nodes", "always", "parameters: citus.use_secondary_nodes: 'never'"),
        )
    ],
    (
        "recovery on, no Patroni",
        both(host(patroni=()), citus("citus.recover_2pc_interval", "1min")),
        ERROR,
        "citus.recover_2pc_interval",
        "standby's word for a primary's",
        "ALTER SYSTEM SET citus.recover_2pc_interval = '-1'; SELECT pg_reload_conf();",
    ),
    (
        "recovery on in a database",
        citus("citus.recover_2pc_interval", "1min", "database"),
        ERROR,
        "citus.recover_2pc_interval",
        "is 1min (database)",
        "set for the database",
    ),
    ("another's name", citus("citus.local_hostname", "wk1"), ERROR, "citus.local_hostname", "elsewhere", ": 'cn'"),
    ("not on localhost", parameter("listen_addresses", CN1), WARNING, "citus.local_hostname", "not listen", ": 'cn'"),
    ("poolers", database(poolers=1), ERROR, "pg_dist_poolinfo", "database app", "DELETE FROM pg_dist_poolinfo"),
    (
        "host in node_conninfo",
        server(conninfo=flush.Setting(loaded="", configured="host=x sslmode=require")),
        ERROR,
        "citus.node_conninfo",
        "contains host",
        "citus.node_conninfo: 'sslmode=require'",
    ),
    (
        "node_conninfo lost",
        server(conninfo=flush.Setting(altered=flush.Override("sslmode=prefer").stamped(1), boot="sslmode=require")),
        WARNING,
        "citus.node_conninfo",
        "no configuration file",
        "ALTER SYSTEM RESET citus.node_conninfo; SELECT pg_reload_conf();",
    ),
    ("a reload fails", server(conninfo=flush.Setting(faults="line 3")), ERROR, "reload", "refuses to load", "reload"),
    (
        "command line",
        server(conninfo=flush.Setting(on_command_line=True)),
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
        "role resolver_agent may not",
        "systemd/role.sql",
    ),
    (
        "no right to reload",
        server(may_reload=False, version=140000),
        ERROR,
        "role.sql",
        "may not",
        "-f systemd/role.sql",
    ),
    ("PostgreSQL 14", server(may_alter=False, version=140000), ERROR, "role.sql", "may not", "a superuser's login"),
    ("no ALTER SYSTEM", parameter("allow_alter_system", "off"), ERROR, "allow_alter_system", "cannot be", "= on"),
    ("functions", database(faults=("f() does not exist",)), ERROR, "role.sql", "app: f() does not", "psql -d app -f"),
    (
        "no prepared transactions",
        parameter("max_prepared_transactions", "0"),
        ERROR,
        "max_prepared_transactions",
        "cannot commit",
        "restart",
    ),
    ("old ones", server(prepared={"citus_0_1 in database app": 999}), WARNING, "prepared", "for 999 s", "status"),
    # pg_dist_node.
    (
        "addresses everywhere",
        database(rows=(row(1, CN1), row(2, WK2))),
        NOTE,
        "metadata:address",
        f"{CN1} (of cn), {WK2} (of wk1)",
        "first script",
    ),
    (
        "an address among names",
        database(rows=(row(1, "cn"), row(2, WK1))),
        ERROR,
        "metadata:address",
        f"follow no failover: {WK1} (of wk1)",
        "first script",
    ),
    (
        "addresses on a worker",
        database(rows=(row(1, CN1), row(2, WK1)), group_id=1),
        NOTE,
        "metadata:address",
        "no names yet",
        "on the coordinator",
    ),
    (
        "the coordinator is localhost",
        database(rows=(row(1, "localhost"), row(2, "wk1"))),
        ERROR,
        "metadata:address",
        "localhost (of cn)",
        "first script",
    ),
    (
        "two rows of a name",
        database(rows=(row(1, "cn"), row(2, "wk1"), row(3, "WK1", port=PORT))),
        ERROR,
        "metadata:twice",
        "several rows are nodes of wk1",
        "a name of its own",
    ),
    (
        "unknown",
        database(rows=(row(1, "cn"), row(2, "wk1"), row(3, "wk9"))),
        ERROR,
        "metadata:unknown",
        "wk9:5432, which is neither",
        "/etc/resolver-agent.yml",
    ),
    ("unused", database(rows=(row(1, "cn"),)), WARNING, "metadata:unused", "wk1 is in", "citus_add_node('wk1', 5432)"),
    (
        "no coordinator",
        database(rows=(row(2, "wk1"),)),
        WARNING,
        "metadata:unused",
        "cn is in",
        "citus_set_coordinator_host('cn', 5432)",
    ),
    (
        "another port",
        database(rows=(row(1, "cn"), row(2, "wk1", port=6432))),
        ERROR,
        "metadata:port",
        "port 6432 for wk1, and the configuration 5432",
        "citus_update_node(2, 'wk1', 5432); or in the configuration names.wk1.port: 6432",
    ),
    (
        "route: standby",
        database(rows=(row(1, "cn"), row(2, "wk1"), row(3, "wk1-ro"))),
        ERROR,
        "metadata:standby",
        "wk1-ro as a primary",
        "names.wk1-ro.route: follow",
    ),
    (
        "a secondary",
        database(rows=(row(1, "cn"), row(2, "wk1"), row(3, WK2, 1, is_primary=False))),
        WARNING,
        "metadata:secondary",
        f"{WK2}:5432 as a secondary",
        f"citus_remove_node('{WK2}', 5432)",
    ),
    (
        "inactive",
        database(rows=(row(1, "cn"), row(2, "wk1", is_active=False))),
        WARNING,
        "metadata:inactive",
        "wk1:5432 is not active",
        "citus_activate_node('wk1', 5432)",
    ),
    # This node's files and services.
    ("no agent", host(agent=None), ERROR, "agent", "no agent runs", "systemctl enable --now"),
    ("alerts", host(agent={"names": [], "alerts": [1, 2]}), WARNING, "alerts", "2 alerts", "resolver-agent status"),
    ("an agent that hangs", host(agent=Unknown("no answer")), WARNING, "unchecked", "the agent: no answer", ""),
    ("an unread file", host(nsswitch=TextFile("/x", Unknown("denied"))), WARNING, "unchecked", "/x: denied", ""),
    ("systemd is silent", host(units=Unknown("no bus")), WARNING, "unchecked", "systemd: no bus", ""),
    ("no unit", units(service=Unit("not-found", "", "inactive")), ERROR, "systemd", "does not know", "install -m 0644"),
    (
        "disabled",
        units(service=Unit("loaded", "disabled", "active")),
        ERROR,
        "systemd",
        "is disabled",
        "enable resolver",
    ),
    ("no socket", units(socket=Unit("loaded", "masked", "active")), ERROR, "systemd", "socket is masked", "enable res"),
    (
        "stopped",
        units(socket=Unit("loaded", "enabled", "failed")),
        ERROR,
        "systemd",
        "is failed",
        "start resolver-agent.so",
    ),
    (
        "no line for a name",
        hosts(BLOCK.replace("\twk1\t", "\twk9\t")),
        ERROR,
        "hosts:missing",
        "no line of ours for wk1:",
        "resolver-agent status",
    ),
    ("no hosts file", host(hosts=TextFile("/etc/hosts", None)), ERROR, "hosts:missing", "cn, wk1, wk1-ro", ""),
    ("half a block", hosts(BLOCK.replace("# END", "# end")), ERROR, "hosts:block", "has no '# END", ""),
    (
        "a foreign line",
        hosts(f"{WK2} db wk1\n{BLOCK}"),
        ERROR,
        "hosts:conflict",
        "line 1 also names wk1",
        f"«{WK2} db wk1»",
    ),
    (
        "not what the agent has",
        host(agent={"names": [{"name": "wk1", "address": WK2}, {"name": "cn", "address": None}], "alerts": []}),
        ERROR,
        "hosts:stale",
        f"wk1 leads to {WK1}, not {WK2}",
        "status",
    ),
    ("dns first", nsswitch("hosts: dns files"), ERROR, "nsswitch", "dns is asked", "hosts: files dns"),
    ("no files", nsswitch("hosts: dns # files"), ERROR, "nsswitch", "dns is asked", "hosts: files dns"),
    (
        "resolved first",
        nsswitch("hosts: resolve [!UNAVAIL=return] files dns"),
        WARNING,
        "nsswitch",
        "up to 2 s late",
        "hosts: files resolve [!UNAVAIL=return] dns",
    ),
    ("no line for hosts", nsswitch("passwd: files"), WARNING, "nsswitch", "no line for hosts", "hosts: files dns"),
    (
        "nscd",
        host(nscd=TextFile("/etc/nscd.conf", "\tenable-cache\thosts\tyes\n")),
        ERROR,
        "nscd",
        "caches host names",
        "enable-cache hosts no",
    ),
    (
        "cloud-init",
        host(cloud=(TextFile("/a.cfg", "manage_etc_hosts: True # x\n"),)),
        WARNING,
        "cloud-init",
        "/a.cfg: manage_etc_hosts: True",
        "manage_etc_hosts: false",
    ),
    ("no password file", host(passfile=TextFile("/p", None)), WARNING, "passfile", "no such password file", ""),
    (
        "open to all",
        host(passfile=file("*:*:*:*:x", 0o640)),
        ERROR,
        "passfile",
        "mode 0640: libpq ignores",
        "chmod 0600",
    ),
    # The others, and Patroni.
    ("a warning of the configuration", settings(warnings=("a: bad",)), WARNING, "config", "a: bad", ""),
    ("barred", probed(wk2=barred()), ERROR, "node", f"{WK2}:5432 cannot be asked: password", "role.sql"),
    ("dead", probed(wk2=dead()), WARNING, "node", f"{WK2}:5432 is down: Connection refused", "start"),
    ("silent", probed(wk2=unreachable()), WARNING, "node", f"{WK2}:5432 does not answer: no", "network"),
    (
        "two primaries",
        probed(wk2=primary(started=4, system_id=2)),
        ERROR,
        "primaries",
        "wk1: several",
        "stop the wrong",
    ),
    ("no primary", probed(wk1=standby(started=3, system_id=2)), WARNING, "primary", "wk1: no primary", "promote"),
    (
        "foreign",
        probed(wk2=standby(started=4, system_id=9)),
        ERROR,
        "foreign",
        f"{WK2}:5432 is of 9",
        "names.wk1.nodes",
    ),
    ("lag", probed(wk2=standby(started=4, system_id=2, lsn=400)), WARNING, "lag", "lags 600 bytes", "wal_receiver"),
    (
        "not recognised",
        lambda fit: dataclasses.replace(fit, local=state(CN1, primary(started=99))),
        ERROR,
        "own",
        "none of the nodes",
        "`nodes`",
    ),
    (
        "not recognised, no Citus",
        lambda fit: server(databases={})(dataclasses.replace(fit, local=state(CN1, primary(started=99)))),
        WARNING,
        "own",
        "none of the nodes",
        "`nodes`",
    ),
    (
        "two standbys of the coordinator",
        lambda fit: dataclasses.replace(
            settings(groups=(dataclasses.replace(GROUPS[0], nodes=group("cn", CN1, CN2, CN3).nodes), *GROUPS[1:]))(fit),
            nodes={**fit.nodes, node(CN3): state(CN3, standby(started=7))},
        ),
        WARNING,
        "readers",
        f"{CN2}:5432, {CN3}:5432",
        "database role of their own",
    ),
    ("fallback: all", settings(fallback=Fallback.ALL), NOTE, "fallback", "fallback: all is safe only", ""),
    ("an unread patroni.yml", host(patroni=(Unknown("/p.yml: denied"),)), WARNING, "unchecked", "/p.yml: denied", ""),
    ("citus: of Patroni", patroni(**PATRONI, citus={"group": 0}), ERROR, "patroni:citus", "section citus", "take that"),
    ("no hook", patroni(), ERROR, "patroni:hook", "does not call", HOOK),
    ("another's hook", hook("/bin/true"), ERROR, "patroni:hook", "does not call", HOOK),
    ("half a hook", hook("sh -c 'resolver-agent"), ERROR, "patroni:hook", "does not call", HOOK),
    ("no guard", hook("timeout 5 resolver-agent pre-promote"), ERROR, "patroni:guard", "nobody is promoted", HOOK),
    ("a guard no shell sees", hook(HOOK.split("'")[1]), ERROR, "patroni:guard", "that a shell sees", HOOK),
    ("no limit", hook("sh -c 'resolver-agent pre-promote || :'"), WARNING, "patroni:limit", "has no timeout", HOOK),
    (
        "a hook that nobody knows of",
        patroni(dynamic=Unknown("refused")),
        WARNING,
        "unchecked",
        "has no pre_promote, and the dynamic configuration is not known: refused",
        "",
    ),
    (
        "REST API",
        host(patroni_faults={"wk1: x": "refused"}),
        WARNING,
        "patroni:api",
        "wk1: x cannot be asked",
        "`patroni`",
    ),
    (
        "members",
        lambda fit: dataclasses.replace(fit, alerts=(Alert("wk1:x", "wk1: a member is foreign"),)),
        WARNING,
        "patroni:word",
        "a member is foreign",
        "`patroni`",
    ),
    (
        "an unasked Patroni",
        UNASKED,
        WARNING,
        "patroni:lock",
        "cn: the agent does not ask",
        "names.cn.patroni: {port: 8008}",
    ),
    (
        "an unasked Patroni at another port",
        both(UNASKED, patroni(**PATRONI, restapi={"listen": "[::]:8009"})),
        WARNING,
        "patroni:lock",
        "who has the leader lock",
        "names.cn.patroni: {port: 8009}",
    ),
    ("socket", host(hook_fault="x is not for y"), ERROR, "patroni:socket", "x is not for y", "SocketGroup="),
]


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "mend"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, mend: str) -> None:
    """One thing is wrong, and that alone is said, with what mends it; notes alone leave the node fit."""
    report = doctor_report.report(change(fit()))
    assert [(one.severity, one.key) for one in report.findings] == [(severity, key)]
    [found] = report.findings
    assert text in found.text
    assert mend in found.mend
    assert bool(mend) <= bool(found.mend)
    assert report.fit is (severity is NOTE)
    assert report.as_text().splitlines()[0] == str(found)


def test_worst_first() -> None:
    """Errors come before warnings, and these before notes."""
    report = doctor_report.report(both(settings(fallback=Fallback.ALL), probed(wk2=dead()), host(agent=None))(fit()))
    assert [one.severity for one in report.findings] == [ERROR, WARNING, NOTE]


def test_json() -> None:
    """Programs get the same as data."""
    report = doctor_report.report(host(agent=None)(fit()))
    found = json.loads(json.dumps(report.as_json()))
    assert found["fit"] is False
    assert found["findings"] == [
        {"severity": "error", "key": "agent", "text": report.findings[0].text, "mend": report.findings[0].mend}
    ]
    assert found["to_names"] is None
    assert "citus_update_node" in found["to_addresses"]


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        pytest.param(f"{WK2}:5432:postgres:resolver_agent:x", None, id="by address"),
        pytest.param("*:*:*:*:x", None, id="stars"),
        pytest.param("#*:*:*:*:x", f"{WK2}:5432:postgres:resolver_agent:PASSWORD", id="a comment"),
        pytest.param(f"{WK2}:5433:*:*:x", f"{WK2}:5432:postgres:resolver_agent:PASSWORD", id="another port"),
        pytest.param(f"{WK2}:*:app:*:x", f"{WK2}:5432:postgres:resolver_agent:PASSWORD", id="another database"),
        pytest.param("wk1:*:*:*:x", f"{WK2}:5432:postgres:resolver_agent:PASSWORD", id="by managed name"),
    ],
)
def test_password_file(text: str, missing: str | None) -> None:
    """A node that refuses the login, and that the password file has no entry for, gets the line to write."""
    report = doctor_report.report(both(host(passfile=file(text)), probed(wk2=barred()))(fit()))
    mends = [one.mend for one in report.findings if one.key == "passfile"]
    assert mends == ([f"write to it: {missing}"] if missing else [])
    assert ("entries for wk1 do not help" in report.as_text()) == text.startswith("wk1")


def test_password_file_of_citus() -> None:
    """What the server's user has by address only, it needs by name as well."""
    text = f"{WK1}:5432:app:a\\:b:x\n{WK2}:5432:app:a\\:b:x\n10.0.9.9:*:*:*:y\n"
    report = doctor_report.report(host(citus_passfile=file(text))(fit()))
    assert [(one.severity, one.mend) for one in report.findings] == [
        (WARNING, r"write to it: wk1:5432:app:a\:b:PASSWORD")
    ]


def test_password_file_with_ipv6() -> None:
    """Colons of an address are written as libpq reads them."""
    six = Node("fd00::2", PORT)
    facts = settings(groups=(*GROUPS[:1], dataclasses.replace(GROUPS[1], nodes=(node(WK1), six))))(fit())
    facts = dataclasses.replace(facts, nodes={**facts.nodes, six: state("fd00::2", barred())})
    report = doctor_report.report(both(host(passfile=file("x:*:*:*:x")))(facts))
    assert r"write to it: fd00\:\:2:5432:postgres:resolver_agent:PASSWORD" in report.as_text()
