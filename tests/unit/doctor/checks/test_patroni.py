"""Doctor's findings about Patroni's settings."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

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
    STOP,
    VERSION,
    WARNING,
    assert_alone,
    both,
    fit,
    hook,
    host,
    patroni,
    queue,
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
        local={"scope": "cn", "postgresql": {"before_stop": STOP, "pre_promote": command}},
        dynamic={},
        version=VERSION,
        hooks={"pre_promote": Hook(scripts={WRAPPER: text}, **facts)},
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
        "could not be checked: Patroni's hooks and its section citus: Patroni is configured for cn",
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


STOP_SCRIPT = "/etc/patroni/stop.sh"


def stop(command: str | None, **facts: Any) -> Change:
    """Return a change of Patroni's before_stop, with what is known of its programs."""
    found = Patroni(
        path="/etc/patroni.yml",
        local={"scope": "cn", "postgresql": {"pre_promote": HOOK, "before_stop": command}},
        dynamic={},
        version=VERSION,
        hooks={"before_stop": Hook(**facts)},
    )
    return host(patroni=(found,))


def without_stop(dynamic: dict[str, Any] | Unknown) -> Change:
    """Return a change: patroni.yml has pre_promote alone."""
    local = {"scope": "cn", "postgresql": {"pre_promote": HOOK}}
    return host(patroni=(Patroni(path="/etc/patroni.yml", local=local, dynamic=dynamic, version=VERSION),))


STOP_CASES = [
    (
        "no before_stop",
        without_stop({}),
        WARNING,
        "patroni:before_stop",
        "does not call `resolver-agent before-stop`: planned work on this node",
        f'patronictl edit-config --force -s "postgresql.before_stop={STOP}"',
    ),
    (
        "no before_stop, by null in the file",
        stop(None),
        WARNING,
        "patroni:before_stop",
        "does not call",
        f"in /etc/patroni.yml write the following, then run patronictl reload cn: before_stop: {STOP}",
    ),
    ("the other hook in its place", stop(HOOK), WARNING, "patroni:before_stop", "does not call", STOP),
    (
        "another's before_stop",
        stop("/usr/local/bin/drain --now"),
        NOTE,
        "patroni:unchecked",
        "whether before_stop (/etc/patroni.yml) calls `resolver-agent before-stop`, through /usr/local/bin/drain",
        f"then run patronictl reload cn: before_stop: {STOP[:-1]}; exec /usr/local/bin/drain --now'",
    ),
    (
        "another's before_stop in the dynamic configuration",
        without_stop({"postgresql": {"before_stop": "/x/drain '$a: b'"}}),
        NOTE,
        "patroni:unchecked",
        "through /x/drain",
        "ours before it. patronictl edit-config --force -s 'postgresql.before_stop=\"/bin/sh -c ",
    ),
    (
        "a script without ours",
        stop(STOP_SCRIPT, scripts={STOP_SCRIPT: "#!/bin/sh\ndrain\n"}),
        WARNING,
        "patroni:before_stop",
        "does not call",
        f"Write to {STOP_SCRIPT}, before its other commands: {STOP.split(chr(39))[1]}",
    ),
    (
        "a script with ours",
        stop(STOP_SCRIPT, scripts={STOP_SCRIPT: "#!/bin/sh\ntimeout 6 resolver-agent before-stop\n"}),
        NOTE,
        "patroni:unchecked",
        f"{STOP_SCRIPT}, which Patroni runs as before_stop (/etc/patroni.yml), calls",
        "",
    ),
    (
        "no limit before a stop",
        stop("/usr/local/bin/resolver-agent before-stop"),
        WARNING,
        "patroni:limit",
        "before_stop (/etc/patroni.yml) has no timeout: while it hangs, Patroni does not stop PostgreSQL",
        STOP,
    ),
    (
        "a before_stop that Patroni's user cannot run",
        stop(STOP, faults=("x cannot run y",)),
        WARNING,
        "patroni:program",
        "before_stop (/etc/patroni.yml): x cannot run y: planned work on this node then fails statements",
        "/opt",
    ),
    (
        "a before_stop of which that is not known",
        stop(STOP, unchecked=("whether x can run y",)),
        NOTE,
        "patroni:unchecked",
        "could not be checked: whether x can run y",
        "",
    ),
    (
        "a before_stop that nobody knows of",
        without_stop(Unknown("refused")),
        WARNING,
        "patroni:unchecked",
        "has no before_stop, and the dynamic configuration is not known: refused",
        "",
    ),
    (
        "an old Patroni",
        patroni(postgresql={"pre_promote": HOOK, "before_stop": None}, version=(3, 0, 2)),
        WARNING,
        "patroni:version",
        "Patroni is 3.0.2, and has no before_stop",
        "Install Patroni 3.0.3 or later",
    ),
    (
        "a Patroni of unknown version",
        patroni(**PATRONI, version=Unknown("refused")),
        NOTE,
        "patroni:unchecked",
        "whether Patroni has before_stop (3.0.3 and later): refused",
        "",
    ),
]


@pytest.mark.parametrize(
    ("change", "severity", "key", "text", "fix"),
    [pytest.param(*case[1:], id=case[0]) for case in [*CASES, *STOP_CASES]],
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


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("timeout -k 1 6 /opt/ra/bin/resolver-agent before-stop", id="no shell"),
        pytest.param("sh -c 'timeout 6 /x/resolver-agent before-stop --socket /x; exec /x/drain'", id="chained"),
        pytest.param("sh -c 'timeout 6 python3 -m resolver_agent.cli before-stop || :'", id="as a module"),
    ],
)
def test_spellings_of_before_stop(command: str) -> None:
    """Any command that calls the agent within a limit is right."""
    assert doctor_report.report(stop(command)(fit())).findings == ()


@pytest.mark.parametrize("version", [(3, 0, 3), (3, 1), (4, 0, 0)], ids=str)
def test_patroni_with_before_stop(version: tuple[int, ...]) -> None:
    """From 3.0.3 on Patroni has the hook."""
    assert doctor_report.report(patroni(**PATRONI, version=version)(fit())).findings == ()


@pytest.mark.parametrize(
    "change", [stop(None), patroni(**PATRONI, version=(2, 1, 4)), patroni(**PATRONI, version=Unknown("refused"))]
)
def test_without_a_queue(change: Change) -> None:
    """Where no name queues for planned work, before_stop is not missed."""
    facts = both(change, queue(planned_s=0.0))(fit())
    assert doctor_report.report(facts).findings == ()
