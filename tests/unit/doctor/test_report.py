"""Doctor's report: empty for a fit node, the worst first, and the same as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus import flush
from resolver_agent.config.model import Fallback
from resolver_agent.doctor import report as doctor_report
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
    row,
    server,
    settings,
)

if TYPE_CHECKING:
    from tests.unit.doctor.builders import Change


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
    assert found["to_names"] is None
    assert "citus_update_node" in found["to_addresses"]


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
