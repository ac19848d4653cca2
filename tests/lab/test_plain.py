"""The lab where there is no Citus, and with three etcd."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.lab.ansible_role import play
from tests.lab.cluster_scenarios import worker_switchover
from tests.lab.conftest import Labs
from tests.lab.lab import Lab
from tests.lab.scenarios import undergo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.account import Account


@pytest.fixture(scope="module")
def labs() -> Iterator[Labs]:
    """Yield a source of labs of that kind."""
    with Labs(functools.partial(Lab, citus=False, etcd_nodes=3)) as labs:
        yield labs


def test_standbys_serve_the_standby(lab: Lab) -> None:
    """Real libpq, called by postgres_fdw, connects a coordinator's reads to workers of its own role."""
    for role, standby in ((lab.primary, False), (lab.standby, True)):
        assert lab.serving(role("cn")) == {role(group).name: standby for group in ("wk1", "wk2")}
        with lab.connect(role("cn")) as session:
            assert session.execute("SELECT count(*), sum(balance) FROM accounts").fetchall() == [(1000, 100_000)]


def test_worker_switchover(lab: Lab, accounts: list[Account]) -> None:
    """It stays so when a worker's nodes swap their roles."""
    accounts.append(account := undergo(lab, worker_switchover))
    assert account.well, account


def test_ansible(lab: Lab, tmp_path: Path) -> None:
    """The role removes the agent and installs it, and a second time changes nothing but a fit configuration."""
    node = lab.standby("wk2")
    names, resolved = node.names, {name: node.resolve(name) for name in lab.groups}
    config = yaml.safe_load(node.host.read("/etc/resolver-agent.yml"))
    given: dict[str, Any] = {
        "resolver_agent_password": "laboratory",
        "resolver_agent_patroni_units": ["patroni@.service"],
    }

    assert not play(node.host, tmp_path, resolver_agent_state="absent").failed
    assert lab.groups.keys().isdisjoint(node.names)
    left = node.host.run("find", "/", "/run", "-xdev", "-name", "*resolver-agent*", "-not", "-path", "/srv/*").split()
    assert left == ["/etc/resolver-agent-lab.sh"]
    assert play(node.host, tmp_path, resolver_agent_state="absent").changed == []

    first = play(node.host, tmp_path, resolver_agent_config=config, **given)
    assert not first.failed, first.said
    assert "laboratory" not in first.said
    node.wait_for_names(names)
    assert {name: node.resolve(name) for name in lab.groups} == resolved
    assert node.host.run("stat", "--format=%a %U", "/etc/resolver-agent.pgpass") == "600 root\n"
    drop_in = node.host.read("/etc/systemd/system/patroni@.service.d/resolver-agent.conf")
    assert drop_in == b"[Unit]\nAfter=resolver-agent.service\n"

    pid = node.host.show("resolver-agent.service", "MainPID")
    mark = node.host.mark()
    other = play(node.host, tmp_path, resolver_agent_config=config | {"interval": "500ms"}, **given)
    assert other.changed == ["Write the configuration, if the agent finds nothing wrong with it", "Reload the agent"]
    assert node.host.wait_for("interval: ", after=mark).endswith("interval: 1s → 0.5s")

    refused = play(node.host, tmp_path, resolver_agent_config=config | {"interval": "often"}, **given)
    assert refused.failed
    assert refused.changed == []
    assert "interval: 'often' found, expected a duration" in refused.said
    assert yaml.safe_load(node.host.read("/etc/resolver-agent.yml"))["interval"] == "500ms"
    assert node.host.show("resolver-agent.service", "MainPID") == pid
