"""Doctor's findings about Patroni's settings."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.doctor.facts import Unknown
from resolver_agent.routing.state import Alert, AlertCode
from tests.unit.builders import group
from tests.unit.doctor.builders import (
    CN1,
    CN2,
    ERROR,
    GROUPS,
    HOOK,
    PATRONI,
    WARNING,
    assert_alone,
    both,
    hook,
    host,
    patroni,
    settings,
)

if TYPE_CHECKING:
    from resolver_agent.doctor.finding import Severity
    from tests.unit.doctor.builders import Change


UNASKED = settings(groups=(group("cn", CN1, CN2), *GROUPS[1:]))

CASES = [
    ("an unread patroni.yml", host(patroni=(Unknown("/p.yml: denied"),)), WARNING, "unchecked", "/p.yml: denied", ""),
    ("citus: of Patroni", patroni(**PATRONI, citus={"group": 0}), ERROR, "patroni:citus", "section citus", "Take that"),
    ("no hook", patroni(), ERROR, "patroni:hook", "does not call", HOOK),
    ("another's hook", hook("/bin/true"), ERROR, "patroni:hook", "does not call", HOOK),
    ("half a hook", hook("sh -c 'resolver-agent"), ERROR, "patroni:hook", "does not call", HOOK),
    ("no guard", hook("timeout 5 resolver-agent pre-promote"), ERROR, "patroni:guard", "does not promote", HOOK),
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
