"""Doctor's findings about Patroni's settings."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.facts import Hook, Patroni, Unknown
from resolver_agent.routing.state import Alert, AlertCode
from tests.unit.builders import group
from tests.unit.doctor.builders import (
    CN1,
    CN2,
    ERROR,
    GROUPS,
    HOOK,
    NOTE,
    PATRONI,
    WARNING,
    assert_alone,
    both,
    fit,
    hook,
    host,
    patroni,
    settings,
)

if TYPE_CHECKING:
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change


WRAPPER = "/etc/patroni/pre_promote.sh"


def wrapper(text: str, command: str = WRAPPER, **facts: tuple[str, ...]) -> Change:
    """Return a change of Patroni's pre_promote to a command with a script, or with what is known of its programs."""
    found = Patroni(
        path="/etc/patroni.yml",
        local={"scope": "cn", "postgresql": {"pre_promote": command}},
        dynamic={},
        hook=Hook(scripts={WRAPPER: text}, **facts),
    )
    return host(patroni=(found,))


UNASKED = settings(groups=(group("cn", CN1, CN2), *GROUPS[1:]))

CASES = [
    ("an unread patroni.yml", host(patroni=(Unknown("/p.yml: denied"),)), WARNING, "unchecked", "/p.yml: denied", ""),
    ("citus: of Patroni", patroni(**PATRONI, citus={"group": 0}), ERROR, "patroni:citus", "section citus", "Take that"),
    (
        "no Patroni where one is asked",
        host(patroni=()),
        WARNING,
        "patroni:unfound",
        "could not be checked: pre_promote and Patroni's section citus: Patroni is configured for cn",
        "Start Patroni",
    ),
    ("no hook", patroni(), ERROR, "patroni:hook", "does not call", HOOK),
    ("another's hook", hook("/bin/true"), ERROR, "patroni:hook", "does not call", HOOK),
    ("half a hook", hook("sh -c 'resolver-agent"), ERROR, "patroni:hook", "does not call", HOOK),
    ("no guard", hook("timeout 5 resolver-agent pre-promote"), ERROR, "patroni:guard", "does not promote", HOOK),
    ("a guard no shell sees", hook(HOOK.split("'")[1]), ERROR, "patroni:guard", "that a shell sees", HOOK),
    ("no limit", hook("sh -c 'resolver-agent pre-promote || :'"), WARNING, "patroni:limit", "has no timeout", HOOK),
    (
        "no hook, by null in the file",
        patroni(postgresql={"pre_promote": None}, dynamic=PATRONI),
        ERROR,
        "patroni:hook",
        "does not call",
        f"in /etc/patroni.yml write the following, then run patronictl reload cn: pre_promote: {HOOK}",
    ),
    (
        "no hook in the file",
        patroni(dynamic={}),
        ERROR,
        "patroni:hook",
        "does not call",
        f'patronictl edit-config --force -s "postgresql.pre_promote={HOOK}"',
    ),
    (
        "a wrapper that was not read",
        hook("/etc/patroni/pre_promote.sh"),
        NOTE,
        "patroni:unchecked",
        "could not be checked: whether pre_promote (/etc/patroni.yml) calls",
        "",
    ),
    (
        "a wrapper in a shell",
        hook("/bin/sh -c '/etc/patroni/pre_promote.sh || :'"),
        NOTE,
        "patroni:unchecked",
        "through /bin/sh -c",
        "",
    ),
    (
        "a wrapper that calls it",
        wrapper("#!/bin/sh\n. /etc/default/x\n/opt/ra/bin/resolver-agent pre-promote\n"),
        NOTE,
        "patroni:unchecked",
        "must exit with 0 within seconds",
        "",
    ),
    (
        "a wrapper that does not call it",
        wrapper("#!/bin/sh\nfence\n"),
        ERROR,
        "patroni:hook",
        "does not call",
        f"Write to {WRAPPER}: {HOOK.split(chr(39))[1]}",
    ),
    (
        "a hook that Patroni's user cannot run",
        wrapper("resolver-agent pre-promote", HOOK, faults=("x cannot run y",)),
        ERROR,
        "patroni:program",
        "x cannot run y: every promotion then goes without it",
        "/opt",
    ),
    (
        "a hook of which that is not known",
        wrapper("resolver-agent pre-promote", HOOK, unchecked=("whether x can run y",)),
        NOTE,
        "patroni:unchecked",
        "could not be checked: whether x can run y",
        "",
    ),
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
        "REST API with an unknown CA",
        host(patroni_faults={"wk1: x": "its certificate is refused: unable to get local issuer certificate"}),
        WARNING,
        "patroni:api",
        "unable to get local issuer certificate",
        "Set patroni.cacert under that name to the file of the CA",
    ),
    (
        "members",
        lambda fit: dataclasses.replace(
            fit, alerts=(Alert(AlertCode.MEMBER, "wk1: a member is foreign", of=("wk1",)),)
        ),
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
    ("change", "severity", "key", "text", "fix"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_fault(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """One fault gives one finding, with its fix."""
    assert_alone(change, severity, key, text, fix)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            "/bin/sh -c 'timeout -k 1 5 /usr/bin/env -i /opt/ra/bin/resolver-agent pre-promote || :'", id="env"
        ),
        pytest.param("sudo -n /bin/bash -e -c 'timeout 5 /x/resolver-agent pre-promote; exit 0'", id="sudo, options"),
        pytest.param("sh -c 'timeout 5 python3 -m resolver_agent.cli pre-promote --socket /x || :'", id="as a module"),
        pytest.param("bash -lc 'timeout 5 \"/opt/my agent/resolver-agent\" pre-promote || true'", id="quoted"),
    ],
)
def test_spellings_of_the_hook(command: str) -> None:
    """Any command that calls the agent in a shell, with a guard and a limit, is right."""
    assert doctor_report.report(hook(command)(fit())).findings == ()
