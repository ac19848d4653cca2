"""A healthy cluster for tests that ask for one, and agents as real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from resolver_agent.demo.postgres import Postgres, Site
from tests.integration.support.agent_process import Agent
from tests.integration.support.citus_cluster import CitusCluster, why_no_citus
from tests.integration.support.cluster import in_memory
from tests.integration.support.patroni_cluster import (
    CitusPatroniCluster,
    PatroniCluster,
    patroni_version,
    why_no_patroni,
)
from tests.integration.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["ROLE", "Agent", "Group"]

ADDRESSES = {
    "cn": ["127.0.1.1", "127.0.1.2"],
    "wk1": ["127.0.2.1", "127.0.2.2"],
    "wk2": ["127.0.3.1", "127.0.3.2"],
}
ROLE = "resolver_agent"
GONE = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = ANY(%s)"


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """The servers behind one name: ``nodes`` in configured order, and the roles they had when the test began."""

    name: str
    nodes: tuple[Postgres, ...]
    primary: Postgres
    standby: Postgres


@pytest.fixture(scope="session", autouse=True)
def _signals() -> None:
    """Let children end by signals that pytest may ignore, as it does when started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The folder and port that all servers of the suite share."""
    with Site(parent=in_memory()) as site:
        yield site


@pytest.fixture(scope="session")
def six_servers(site: Site) -> dict[str, list[Postgres]]:
    """Three pairs, in the state that the last test left; tests use ``cluster``."""
    groups = site.groups(ADDRESSES)
    for primary, standby in groups.values():
        primary.run_sql(f"CREATE ROLE {ROLE} LOGIN")
        standby.wait_for_replay(of=primary)
    return groups


@pytest.fixture
def cluster(site: Site, six_servers: dict[str, list[Postgres]]) -> dict[str, Group]:
    """The groups ``cn``, ``wk1`` and ``wk2``, each a primary and a standby that streams from it.

    Their roles follow from what earlier tests did: use ``primary`` and ``standby``, not positions. A test may promote,
    pause, stop and kill; one that changes a server's configuration uses ``pair``.
    """
    return {name: heal(site, name, servers) for name, servers in six_servers.items()}


@pytest.fixture
def pair() -> Iterator[Group]:
    """A primary and its standby for one test alone, on a port of their own."""
    with Site(parent=in_memory()) as site:
        primary, standby = site.groups({"wk1": ["127.0.9.1", "127.0.9.2"]})["wk1"]
        primary.run_sql(f"CREATE ROLE {ROLE} LOGIN")
        standby.wait_for_replay(of=primary)
        yield Group("wk1", (primary, standby), primary, standby)


@pytest.fixture
def start_proxy() -> Iterator[Callable[[str, Postgres], Proxy]]:
    """Put a proxy in front of a server: ``start_proxy("127.0.8.1", server)`` listens there on the server's port."""
    with contextlib.ExitStack() as proxies:
        yield lambda address, server: proxies.enter_context(
            Proxy(address, server.port, to=(server.address, server.port))
        )


@pytest.fixture
def hosts_file(tmp_path: Path) -> Path:
    """A hosts file with lines of other programs."""
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1\tlocalhost\n")
    return path


@pytest.fixture
def write_config(tmp_path: Path, hosts_file: Path) -> Callable[..., Path]:
    """Write an agent's configuration: ``write_config(local_server, groups, **settings)``; settings win."""

    def write(local: Postgres, groups: Mapping[str, Group], /, **settings: Any) -> Path:
        defaults = {
            "fallback": "none",
            "names": {name: {"nodes": [node.address for node in group.nodes]} for name, group in groups.items()},
            "postgresql": {"user": ROLE, "dbname": "postgres"},
            "local": {"host": str(local.socket_dir)},
            "port": local.port,
            "hosts_file": str(hosts_file),
            "runtime_dir": str(tmp_path / "run"),
            "state_dir": str(tmp_path / "state"),
        }
        path = tmp_path / "resolver-agent.yml"
        path.write_text(yaml.safe_dump(defaults | settings, sort_keys=False))
        return path

    return write


@pytest.fixture
def start_agent(hosts_file: Path) -> Iterator[Callable[..., Agent]]:
    """Start an agent that is stopped after the test: ``start_agent(config, env={…})``."""
    with contextlib.ExitStack() as agents:
        yield lambda config, env=None: agents.enter_context(Agent(config, hosts_file=hosts_file, env=env))


@pytest.fixture(scope="session")
def citus_servers() -> Iterator[CitusCluster]:
    """Six machines where nothing runs; tests use ``citus``."""
    if reason := why_no_citus():
        pytest.skip(reason)
    with CitusCluster() as cluster:
        yield cluster


@pytest.fixture
def citus(citus_servers: CitusCluster) -> Iterator[CitusCluster]:
    """A Citus cluster in its initial state, for tests to change freely; they skip where there is no Citus."""
    with citus_servers.as_made():
        yield citus_servers


@pytest.fixture(scope="session")
def patroni_servers() -> Iterator[PatroniCluster]:
    """Four machines where nothing runs; tests use ``patroni``."""
    if reason := why_no_patroni():
        pytest.skip(reason)
    with PatroniCluster(["cn", "wk1"]) as cluster:
        yield cluster


@pytest.fixture
def patroni(patroni_servers: PatroniCluster) -> Iterator[PatroniCluster]:
    """The groups ``cn`` and ``wk1`` of plain PostgreSQL under Patroni, in their initial state."""
    with patroni_servers.as_made():
        yield patroni_servers


@pytest.fixture(scope="session")
def before_stop() -> None:
    """Skip what Patroni cannot announce to an agent: it needs no cluster to find that out."""
    if patroni_version() < (3, 0, 3):
        pytest.skip("before_stop, and with it the queue for planned work, needs Patroni 3.0.3")


@pytest.fixture(scope="session")
def citus_patroni_servers() -> Iterator[CitusPatroniCluster]:
    """Six machines where nothing runs; tests use ``citus_patroni``."""
    if reason := why_no_citus() or why_no_patroni():
        pytest.skip(reason)
    with CitusPatroniCluster() as cluster:
        yield cluster


@pytest.fixture
def citus_patroni(citus_patroni_servers: CitusPatroniCluster) -> Iterator[CitusPatroniCluster]:
    """A Citus cluster under Patroni in its initial state; tests skip where there is not both."""
    with citus_patroni_servers.as_made():
        yield citus_patroni_servers


def heal(site: Site, name: str, servers: list[Postgres]) -> Group:
    """Repair a pair in any state, with as few steps as possible."""
    for server in servers:
        server.resume()
    running = [server for server in servers if server.is_running]
    if not running:
        servers[0].start()
        running = [servers[0]]
    primary = next((server for server in running if not server.is_in_recovery), None)
    if primary is None:
        primary = running[0]
        primary.promote()
    standby = servers[1] if primary is servers[0] else servers[0]
    if not (standby.is_running and standby.is_in_recovery and standby.streams_from(primary)):
        site.rejoin(standby, of=primary)
    return Group(name, tuple(servers), primary, standby)
