"""Doctor's report: empty for a fit node, the worst first, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus import flush
from resolver_agent.config.model import Fallback
from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.check import State
from resolver_agent.doctor.checks import host as host_checks
from resolver_agent.doctor.checks import metadata, nodes, passfiles, postgres
from resolver_agent.doctor.checks import patroni as patroni_checks
from resolver_agent.doctor.checks import queue as queue_checks
from resolver_agent.doctor.facts import TextFile, Unknown
from tests.unit.builders import dead, standby
from tests.unit.doctor.builders import (
    BLOCK,
    CN1,
    CONNINFO,
    ERROR,
    NOTE,
    PATRONI,
    WARNING,
    WITHOUT_PATRONI,
    WK1,
    WK2,
    agent,
    both,
    citus,
    database,
    file,
    fit,
    hook,
    host,
    hosts,
    nsswitch,
    patroni,
    probed,
    queue,
    row,
    server,
    settings,
)

if TYPE_CHECKING:
    from tests.unit.doctor.builders import Change

SUBJECTS = (host_checks, passfiles, postgres, metadata, nodes, patroni_checks, queue_checks)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda fit: fit, id="all is well"),
        pytest.param(both(host(agent=agent(), units=None, patroni=()), WITHOUT_PATRONI), id="no systemd, no Patroni"),
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
        pytest.param(
            host(
                cloud=(
                    TextFile("/etc/cloud/cloud.cfg", "cloud_init_modules:\n - migrator\n"),
                    TextFile("/var/lib/cloud/instance/cloud-config.txt", "#cloud-config\nmanage_etc_hosts: true\n"),
                )
            ),
            id="cloud-init without the module",
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
        pytest.param(
            both(server(hba_names=("db1",)), hosts("".join(f"{one} h\n" for one in (CN1, WK1, WK2)) + BLOCK)),
            id="host names in pg_hba.conf, given above the block",
        ),
        pytest.param(citus("citus.local_hostname", "cn"), id="the own name for local connections"),
        pytest.param(
            hook("sh -c 'timeout 5 resolver-agent pre-promote --socket /x || true; exec other'"), id="other hook"
        ),
        pytest.param(patroni(dynamic=PATRONI), id="hook in the dynamic configuration"),
        pytest.param(server(conninfo=flush.Setting(loaded=CONNINFO, boot=CONNINFO)), id="never flushed"),
    ],
)
def test_a_fit_node(change: Change) -> None:
    """A node without faults gives no findings."""
    found = doctor_report.report(change(fit()))
    assert [str(one) for one in found.findings] == []
    assert found.fit
    assert found.as_text() == "nothing is wrong here"


def test_worst_first() -> None:
    """Errors come before warnings, and warnings before notes."""
    report = doctor_report.report(both(settings(fallback=Fallback.ALL), probed(wk2=dead()), host(agent=None))(fit()))
    assert [one.severity for one in report.findings] == [ERROR, WARNING, NOTE]


def test_json() -> None:
    """The JSON has the same findings."""
    report = doctor_report.report(host(agent=None)(fit()))
    found = json.loads(json.dumps(report.as_json()))
    assert found["fit"] is False
    [one] = report.findings
    assert found["findings"] == [
        {"severity": "error", "key": "agent", "text": one.text, "fix": one.fix, "mend": one.fix}
    ]
    checks = {one["what"]: (one["state"], one["why"]) for one in found["checks"]}
    assert checks["the agent runs, and has no alerts"] == ("findings", "")
    assert checks["nscd keeps no host names"] == ("unchecked", "nscd does not run")
    assert checks["every node answers"] == ("ok", "")
    assert found["to_names"] is None
    assert "citus_update_node" in found["to_addresses"]


MARKS = {State.OK: "+", State.FINDINGS: "!", State.UNCHECKED: "-"}


def checks(change: Change) -> dict[str, str]:
    """Return the mark of each check, and after it why it was not looked at."""
    text = doctor_report.report(change(fit())).as_text(MARKS)
    lines = text.partition("\n\n")[0].splitlines()
    parts = [(*line[2:].partition(": not looked at: "), line[0]) for line in lines]
    return {what: f"{mark} {why}".strip() for what, _, why, mark in parts}


def test_each_check_of_a_fit_node() -> None:
    """Each check is listed, once; what does not exist on the node is not looked at, and nothing is a finding."""
    found = checks(lambda fit: fit)
    assert len(found) == sum(len(subject.CHECKS) for subject in SUBJECTS)
    assert {what: mark for what, mark in found.items() if mark != "+"} == {
        "nscd keeps no host names": "- nscd does not run",
        "the agent's password file has an entry for each node": "- the configuration names none",
        "the password file of Citus has the names as well as the addresses": (
            "- there is no /var/lib/postgresql/.pgpass, or it is empty"
        ),
        "there is room for clients while a primary is lost": "- queue.unplanned is 0s",
    }


@pytest.mark.parametrize(
    ("change", "what", "mark"),
    [
        (probed(wk2=dead()), "every node answers", "!"),
        (host(units=Unknown("no bus")), "systemd starts the agent, and Patroni after it", "- no bus"),
        (host(units=None), "systemd starts the agent, and Patroni after it", "- systemd does not run here"),
        (host(agent=Unknown("it hangs")), "the agent runs, and has no alerts", "- it hangs"),
        (host(agent=Unknown("a\x1bb")), "the agent runs, and has no alerts", r"- a\x1bb"),
        (
            host(nsswitch=TextFile("/x", Unknown("denied"))),
            "host names are looked up in the hosts file first",
            "- /x: denied",
        ),
        (
            server(databases={}),
            "every name is in pg_dist_node",
            "- no database here has Citus, as far as could be asked",
        ),
        (
            lambda fit: dataclasses.replace(fit, server=Unknown("Connection refused")),
            "pg_dist_node has names of the configuration, one for each group",
            "- the local PostgreSQL cannot be asked",
        ),
        (
            lambda fit: dataclasses.replace(fit, server=Unknown("Connection refused")),
            "waiting rooms can be opened",
            "- the local PostgreSQL cannot be asked",
        ),
        (
            probed(cn1=dead(), cn2=dead(), wk1=dead(), wk2=dead()),
            "each group has one primary, and standbys of the same database cluster that do not lag",
            "- no node answers",
        ),
        (
            probed(cn1=dead()),
            "the agent asks Patroni who has the leader lock",
            "- it is not known which group the local PostgreSQL belongs to",
        ),
        (
            server(os_user=None),
            "Patroni's user may use the agent's socket",
            "- it is not known as which user the local PostgreSQL runs",
        ),
        (
            server(databases={"a": Unknown("no entry")}),
            "each of its databases can be asked",
            "- database a: no entry",
        ),
        (
            both(host(patroni=()), WITHOUT_PATRONI),
            "the agent asks Patroni who has the leader lock",
            "- no Patroni was found on this node",
        ),
        (
            both(host(patroni=()), WITHOUT_PATRONI),
            "Patroni's REST APIs answer",
            "- the configuration has no `patroni`",
        ),
        (
            host(patroni=(Unknown("/p.yml: denied"),)),
            "Patroni leaves pg_dist_node alone",
            "- its configuration could not be read",
        ),
        (queue(planned_s=0.0), "waiting rooms can be opened", "- no name queues here"),
    ],
)
def test_a_check(change: Change, what: str, mark: str) -> None:
    """A check with findings has another mark than one that was not looked at, and that one its reason."""
    assert checks(change)[what] == mark


def test_the_checks_come_first() -> None:
    """The findings follow after an empty line, as they are without the checks."""
    report = doctor_report.report(host(agent=None)(fit()))
    assert report.as_text(MARKS).endswith(f"\n\n{report.as_text()}")
    assert len(report.as_text(MARKS).split("\n\n")[0].splitlines()) == len(report.outcomes)


def test_no_control_characters() -> None:
    """Whatever files and servers say, the output is safe for a terminal, and each finding is one line."""
    evil = "x\x1b]0;owned\x07\r\nerror: \u202egnihton\udce9\x00" + "y" * 100_000
    changes = both(
        host(agent=Unknown(evil), patroni_faults={evil: evil}, nsswitch=TextFile(evil, f"hosts: {evil} files\n")),
        patroni(postgresql={"pre_promote": evil}),
        host(passfile=TextFile(evil, evil), nscd=TextFile(evil, "\n" * 100_000)),
        citus("citus.recover_2pc_interval", evil, evil),
    )
    report = doctor_report.report(changes(fit()))
    assert {one.key for one in report.findings} >= {
        "nsswitch",
        "patroni:api",
        "unchecked",
        "citus.recover_2pc_interval",
    }
    for line in [*report.as_text().split("\n"), *(text for one in report.findings for text in (one.text, one.fix))]:
        assert line.isprintable()
        assert len(line) < 5000
    json.dumps(report.as_json(), ensure_ascii=False).encode()
