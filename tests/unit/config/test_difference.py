"""What the log says about a reload: each changed key once, in the words of the file, and no password."""

from __future__ import annotations

import pytest

from resolver_agent.config.difference import differences
from tests.unit.config.builders import parse

NAMES = "fallback: none\nnames: {wk1: {nodes: [10.0.0.1, 10.0.0.2]}, wk2: {nodes: [10.0.0.3]}}\n"


def said(old: str, new: str) -> list[str]:
    """Return what changes from one file to another."""
    return differences(parse(old), parse(new))


def test_nothing() -> None:
    """The same in other words is no change."""
    assert said(NAMES, NAMES + "interval: 1000ms\nroute: follow\nport: 5432\nlog: {}\n") == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param("", "interval: 1500ms", "interval: 1s → 1.5s", id="a duration"),
        pytest.param("citus: off", "", "citus: off → auto", id="a word"),
        pytest.param("", "hosts_file: /srv/hosts", "hosts_file: /etc/hosts → /srv/hosts", id="a path"),
        pytest.param("", "log: {format: json}", "log.format: text → json", id="a key of a map"),
        pytest.param("log: {level: debug}", "", "log.level: debug → info", id="another one"),
        pytest.param("", "max_lag_bytes: 64MB", "max_lag_bytes: null → 67108864", id="a limit"),
        pytest.param("max_lag_seconds: 1m", "", "max_lag_seconds: 60s → null", id="no limit any more"),
        pytest.param("", "failback_delay: 2m", "failback_delay: 10s → 120s", id="for all names"),
        pytest.param("", "route: standby", "route: follow → standby", id="a route"),
        pytest.param("", "queue: {planned: 0s}", "queue.planned: 15s → 0s", id="a key of the queue"),
        pytest.param("", "postgresql: {user: x}", "postgresql.user: resolver_agent → x", id="a login"),
        pytest.param("", "postgresql: {sslmode: require}", "postgresql.sslmode: null → require", id="a keyword"),
        pytest.param("", "local: {user: x}", "local.user: resolver_agent → x", id="the local login"),
    ],
)
def test_a_key(old: str, new: str, expected: str) -> None:
    """A key has the name that it has in the file, also where all names take it from there."""
    assert said(f"{NAMES}{old}\n", f"{NAMES}{new}\n") == [expected]


def test_local_off() -> None:
    """A host that gives up its PostgreSQL: that is told once, not by each keyword of the login."""
    routed = NAMES + "route: primary\n"
    assert said(routed, f"{routed}local: off\n") == ["citus: auto → off", "local: on → off"]


def test_fallback() -> None:
    """The one key that has no default."""
    assert said(NAMES, NAMES.replace("none", "primary")) == ["fallback: none → primary"]


def test_a_port() -> None:
    """All nodes have another port, and so has the local server; the nodes themselves are the same."""
    assert said(NAMES, f"{NAMES}port: 5433\n") == ["port: 5432 → 5433"]
    assert said(NAMES, f"{NAMES}local: {{port: 5433}}\n") == ["local.port: 5432 → 5433"]


def name(settings: str) -> str:
    """Return a configuration in which wk1 has some settings."""
    return f"fallback: none\nnames: {{wk1: {{nodes: [10.0.0.1, 10.0.0.2]{settings}}}, wk2: {{nodes: [10.0.0.3]}}}}\n"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param(", failback_delay: 1s", ["names.wk1.failback_delay: 10s → 1s"], id="a key of one name"),
        pytest.param(", patroni: {port: 8008}", ["names.wk1.patroni.port: null → 8008"], id="Patroni's API"),
        pytest.param(
            ", patroni: {port: 8008, networks: [10.0.0.0/24]}",
            ["names.wk1.patroni.port: null → 8008", "names.wk1.patroni.networks: null → [10.0.0.0/24]"],
            id="its networks",
        ),
        pytest.param(", queue: {unplanned: 1m}", ["names.wk1.queue.unplanned: 0s → 60s"], id="its queue"),
        pytest.param(
            ", postgresql: {user: u, password: hunter2}",
            ["names.wk1.postgresql.user: null → u", "names.wk1.postgresql.password: changed"],
            id="its login",
        ),
    ],
)
def test_a_key_of_one_name(settings: str, expected: list[str]) -> None:
    """What only one name has changed is told with that name."""
    assert said(NAMES, name(settings)) == expected


def test_names() -> None:
    """Names that come and go are told without their keys, and another order of nodes, which is the order of reads."""
    new = "fallback: none\nnames: {wk3: {nodes: [10.0.0.5]}, wk1: {nodes: [10.0.0.2, 10.0.0.1]}}\n"
    assert said(NAMES, new) == [
        "names.wk2: removed",
        "names.wk3: added",
        "names.wk1.nodes: [10.0.0.1, 10.0.0.2] → [10.0.0.2, 10.0.0.1]",
    ]
    turned = "fallback: none\nnames: {wk2: {nodes: [10.0.0.3]}, wk1: {nodes: [10.0.0.1, 10.0.0.2]}}\n"
    assert said(NAMES, turned) == ["names: in another order"]


@pytest.mark.parametrize("keyword", ["password", "sslpassword"])
def test_a_secret(keyword: str) -> None:
    """That a password has changed is told, but neither the old nor the new one."""
    old, new = (f"{NAMES}postgresql: {{{keyword}: {word}}}\n" for word in ("hunter2", "tr0ub4dor"))
    for before, after in ((old, new), (NAMES, new), (old, NAMES)):
        assert said(before, after) == [f"postgresql.{keyword}: changed"]


def test_the_arguments_of_a_command() -> None:
    """They may hold a secret, so it is only told that they have changed."""
    old, new = (f"{NAMES}on_change: {{command: [/bin/true, {word}]}}\n" for word in ("hunter2", "tr0ub4dor"))
    for before, after in ((old, new), (NAMES, new), (old, NAMES)):
        found = said(before, after)
        assert "on_change.command: changed" in found
        assert not any("hunter2" in one or "tr0ub4dor" in one for one in found)


def test_many_changes_are_one_short_line() -> None:
    """Of a thousand new names some are told; a long list is cut."""
    many = ", ".join(f"n{number}: {{nodes: [10.1.{number // 250}.{number % 250 + 1}]}}" for number in range(1000))
    found = said(NAMES, f"fallback: none\nnames: {{{many}}}\n")
    assert (len(found), found[0], found[-1]) == (21, "names.wk1: removed", "and more")
    nodes = ", ".join(f"10.1.0.{number}" for number in range(1, 250))
    [change] = said(name(""), name("").replace("10.0.0.1, 10.0.0.2", nodes))
    assert len(change) < 300
