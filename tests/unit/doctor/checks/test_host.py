"""Doctor's findings about the node's files and services."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.facts import TextFile, Unit, Unknown
from tests.unit.doctor.builders import (
    BLOCK,
    ERROR,
    WARNING,
    WK1,
    WK2,
    agent,
    assert_alone,
    fit,
    host,
    hosts,
    nsswitch,
    units,
)

if TYPE_CHECKING:
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change


MODULES = "cloud_init_modules: [migrator, update_etc_hosts]\n"
USER_DATA = TextFile("/var/lib/cloud/instance/cloud-config.txt", "manage_etc_hosts: yes\n")


def cloud(name: str, text: str) -> TextFile:
    """Return one of cloud-init's own files."""
    return TextFile(f"/etc/cloud/{name}", text)


CASES = [
    ("no agent", host(agent=None), ERROR, "agent", "no agent runs", "systemctl enable --now"),
    ("alerts", host(agent=agent(alerts=2)), WARNING, "alerts", "2 alerts", "resolver-agent status"),
    ("an alert besides", host(agent=agent(alerts=1, severity="critical")), WARNING, "alerts", "1 alert", "status"),
    ("an agent that hangs", host(agent=Unknown("no answer")), WARNING, "unchecked", "the agent: no answer", ""),
    ("an unread file", host(nsswitch=TextFile("/x", Unknown("denied"))), WARNING, "unchecked", "/x: denied", ""),
    ("systemd is silent", host(units=Unknown("no bus")), WARNING, "unchecked", "systemd: no bus", ""),
    (
        "no unit",
        units(service=Unit("not-found", "", "inactive")),
        ERROR,
        "systemd",
        "does not know",
        "resolver-agent show unit >",
    ),
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
        "no line of the agent for wk1:",
        "resolver-agent status",
    ),
    ("no hosts file", host(hosts=TextFile("/etc/hosts", None)), ERROR, "hosts:missing", "cn, wk1, wk1-ro", ""),
    ("half a block", hosts(BLOCK.replace("# END resolver-agent", "")), ERROR, "hosts:block", "has no '# END", ""),
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
        host(agent=agent(wk1=WK2, cn=None)),
        ERROR,
        "hosts:stale",
        f"wk1 resolves to {WK1}, not {WK2}",
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
        host(cloud=(cloud("a.cfg", "manage_etc_hosts: True # x"),)),
        WARNING,
        "cloud-init",
        "/etc/cloud/a.cfg: manage_etc_hosts: True",
        "Set `manage_etc_hosts: false` in /etc/cloud/a.cfg",
    ),
    (
        "user data of cloud-init",
        host(cloud=(cloud("a.cfg", f"manage_etc_hosts: false\n{MODULES}"), USER_DATA)),
        WARNING,
        "cloud-init",
        f"{USER_DATA.path}: manage_etc_hosts: yes",
        "Take update_etc_hosts out of cloud_init_modules in /etc/cloud/a.cfg",
    ),
    (
        "modules in user data of cloud-init",
        host(cloud=(cloud("a.cfg", MODULES), TextFile(USER_DATA.path, f"{USER_DATA.text}{MODULES}"))),
        WARNING,
        "cloud-init",
        f"{USER_DATA.path}: manage_etc_hosts: yes",
        "touch /etc/cloud/cloud-init.disabled",
    ),
    (
        "an instance of Patroni",
        host(unordered=("patroni@15-main.service",)),
        WARNING,
        "systemd:order",
        "patroni@15-main.service does not start after the agent",
        "mkdir -p /etc/systemd/system/patroni@.service.d && ",
    ),
]


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "fix"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """One fault gives one finding, with its fix."""
    assert_alone(change, severity, key, text, fix)


def test_an_alert_that_is_only_information() -> None:
    """What the agent only tells, such as a name that queues, is no finding."""
    facts = host(agent=agent(alerts=1, severity="info"))(fit())
    assert doctor_report.report(facts).findings == ()
