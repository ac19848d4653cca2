"""The daemon as a process, with real servers: its names follow roles, and stay where nothing is known."""

from __future__ import annotations

import http.server
import json
import re
import signal
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import yaml

from tests.integration.support.agent_state import (
    FENCE,
    SETTLED,
    alerts,
    count,
    edit,
    leads,
    status,
    wait_until,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from resolver_agent.demo.postgres import Postgres
    from tests.integration.conftest import Agent, Group
    from tests.integration.support.proxy import Proxy

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_names_have_the_role_of_the_local_server(
    role: str, cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """On a primary names point to primaries, on a standby to standbys, and the own name to the local server."""
    local = getattr(cluster["cn"], role)
    agent = start_agent(write_config(local, cluster))
    agent.wait_for_line(SETTLED)
    workers = {name: getattr(cluster[name], role).address for name in ("wk1", "wk2")}
    assert leads(agent) == {"cn": local.address, **workers}
    assert agent.hosts_file.read_text().startswith("127.0.0.1\tlocalhost\n# BEGIN resolver-agent")


def test_a_worker_promotion_is_followed_and_said_once(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """The group's name moves to the new primary, with one log line that says why; the others stay."""
    agent, config = settled
    before, since = leads(agent), len(agent.lines)
    worker = cluster["wk1"]
    worker.primary.stop()
    agent.wait_for_line("alert: wk1 → .*held", since=since)
    worker.standby.promote()
    agent.wait_for_target("wk1", worker.standby.address)
    assert leads(agent) == before | {"wk1": worker.standby.address}
    line = agent.wait_for_line(f" wk1 → {worker.standby.address} ", since=since)
    assert re.search(r"\(primary, timeline \d+\)", line)
    agent.wait_for_line("over: wk1 → .*held", since=since)
    assert count(agent, f"INFO wk1 → {worker.standby.address} ") == 1
    [said] = [name for name in status(config)["names"] if name["name"] == "wk1"]
    assert (said["address"], said["code"]) == (worker.standby.address, "primary")


def test_a_coordinator_promotion_flips_all_names(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """When the local standby is promoted one write points every name to a primary; the own name stays."""
    local = cluster["cn"].standby
    agent = start_agent(write_config(local, cluster))
    agent.wait_for_line(SETTLED)
    cluster["cn"].primary.stop()
    local.promote()
    agent.wait_for_target("wk1", cluster["wk1"].primary.address)
    assert leads(agent) == {
        "cn": local.address,
        "wk1": cluster["wk1"].primary.address,
        "wk2": cluster["wk2"].primary.address,
    }
    agent.wait_for_line("the local role is primary")


@pytest.mark.parametrize(
    ("fallback", "roles"),
    [
        pytest.param("none", ("fence", "standby"), id="none: the name is fenced"),
        pytest.param("primary", ("primary", "standby"), id="primary: this name goes to its primary"),
        pytest.param("all", ("primary", "primary"), id="all: every name goes to its primary"),
    ],
)
def test_a_lost_worker_standby(
    fallback: str, roles: tuple[str, str], cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """Each kind of fallback works, is an alert while it lasts, and ends when the standby is back."""
    lost = cluster["wk1"].standby
    config = write_config(cluster["cn"].standby, cluster, fallback=fallback, failback_delay="0s")
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    before, since = leads(agent), len(agent.lines)
    lost.kill()
    fallen = {
        name: FENCE if role == "fence" else getattr(cluster[name], role).address
        for name, role in zip(("wk1", "wk2"), roles, strict=True)
    }
    for name, address in fallen.items():
        agent.wait_for_target(name, address)
    assert leads(agent) == before | fallen
    code, level = ("fenced", "CRITICAL") if fallback == "none" else ("fallback", "WARNING")
    agent.wait_for_line(rf"{level} alert: wk1 → .*no fit standby: .*{lost.address} is dead.* \[{code}\]$", since=since)
    assert f"wk1:{code}" in alerts(config)

    lost.start()
    for name in ("wk1", "wk2"):
        agent.wait_for_target(name, cluster[name].standby.address)
    agent.wait_for_line("INFO over: wk1 → ", since=since)
    agent.wait_for_line(f"INFO wk1 → {lost.address} ", since=since)
    wait_until(lambda: not alerts(config))
    told = [line for line in agent.lines[since:] if re.search(r"(INFO|alert:) wk1 → (?!.*held)", line)]
    assert len(told) == 2, told


def test_nothing_is_written_before_every_node_has_answered_or_timed_out(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, hosts_file: Path
) -> None:
    """While one node is silent the file stays unchanged, however much is known of the others."""
    silent = cluster["wk2"].standby
    silent.pause()
    config = write_config(cluster["cn"].primary, cluster)
    before = written(hosts_file)
    agent = start_agent(config)
    agent.wait_for_line("keeps")

    def unknown() -> list[str]:
        return [node["node"] for node in status(config)["nodes"] if node["kind"] == "unknown"]

    assert wait_until(lambda: unknown() == [f"{silent.address}:{silent.port}"])
    wait_until(lambda: written(hosts_file) != before)
    assert unknown() == []
    agent.wait_for_line(f"{silent.address}:{silent.port} is unreachable \\(no answer within 2 s\\)")


def test_a_node_that_a_reload_brings_is_asked_before_anything_is_written(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """A new name waits for all of its nodes, as at the start; status shows it meanwhile."""
    silent, answering = cluster["wk2"].primary, cluster["wk2"].standby
    config = write_config(cluster["cn"].standby, {name: cluster[name] for name in ("cn", "wk1")})
    agent = start_agent(config)
    agent.wait_for_line(" wk1 → ")
    silent.pause()
    full = yaml.safe_load(config.read_text())
    edit(config, names=full["names"] | {"wk2": {"nodes": [silent.address, answering.address]}})
    agent.process.send_signal(signal.SIGHUP)

    def asked() -> list[str]:
        return [node["kind"] for node in status(config)["nodes"] if node["name"] == "wk2"]

    assert wait_until(lambda: asked() == ["unknown", "standby"])
    assert [name["code"] for name in status(config)["names"]] == ["self", "standby", "unknown"]
    agent.wait_for_target("wk2", answering.address)
    assert asked() == ["unreachable", "standby"]
    agent.wait_for_line(f"INFO wk2 → {answering.address} ")
    assert count(agent, "alert: ") == 0


def test_a9_silent_node_that_a_reload_brings_delays_no_other(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """While a new name waits for its nodes the others follow events: here a promotion of the coordinator."""
    local, silent = cluster["cn"].standby, cluster["wk2"]
    config = write_config(local, {name: cluster[name] for name in ("cn", "wk1")})
    agent = start_agent(config)
    agent.wait_for_line(" wk1 → ")
    for node in silent.nodes:
        node.pause()
    names = yaml.safe_load(config.read_text())["names"]
    edit(config, names=names | {"wk2": {"nodes": [node.address for node in silent.nodes]}}, timeout="30s")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("read .* again")
    cluster["cn"].primary.stop()
    local.promote()
    agent.wait_for_target("wk1", cluster["wk1"].primary.address)
    assert {node["kind"] for node in status(config)["nodes"] if node["name"] == "wk2"} == {"unknown"}


class Rest(http.server.BaseHTTPRequestHandler):
    """The API of a Patroni that is leader, and lists a member that is not in the configuration."""

    system_id = 0
    members: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        """Answer."""
        own = {"patroni": {"scope": "wk1"}, "database_system_identifier": str(self.system_id)}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"members": self.members} if self.path == "/cluster" else own).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_a_member_that_patroni_knows_of(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """A replica that is only in Patroni's list serves reads, and is shown like any other node."""
    primary, standby = cluster["wk1"].primary, cluster["wk1"].standby
    [(Rest.system_id,)] = primary.run_sql("SELECT system_identifier FROM pg_control_system()")
    Rest.members = [{"host": one.address, "port": one.port, "state": "streaming"} for one in (primary, standby)]
    with http.server.ThreadingHTTPServer((primary.address, 0), Rest) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        names = {
            "cn": {"nodes": [node.address for node in cluster["cn"].nodes]},
            "wk1": {
                "nodes": [primary.address],
                "patroni": {"port": server.server_port, "networks": ["127.0.0.0/8"]},
            },
        }
        config = write_config(cluster["cn"].standby, cluster, names=names)
        start_agent(config).wait_for_target("wk1", standby.address)
        nodes = [node["node"] for node in status(config)["nodes"] if node["name"] == "wk1"]
        assert nodes == [f"{one.address}:{one.port}" for one in (primary, standby)]
        server.shutdown()


def test_without_a_login_nothing_changes(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, hosts_file: Path
) -> None:
    """An agent that every server rejects holds the targets of the block, and reports each node."""
    config = write_config(cluster["cn"].standby, cluster)
    seeing = start_agent(config)
    seeing.wait_for_line(SETTLED)
    assert seeing.stop() == 0
    before = written(hosts_file)
    edit(config, postgresql={"user": "nobody"})
    agent = start_agent(config)
    agent.wait_for_line("alert: wk2 → .*held")
    assert written(hosts_file) == before
    nodes = {f"{node.address}:{node.port}:rejecting" for group in cluster.values() for node in group.nodes}
    wait_until(lambda: nodes | {"local", "wk1:held", "wk2:held"} <= alerts(config))
    wait_until(lambda: count(agent, 'cannot be asked: .*role "nobody" does not exist') >= len(nodes))


def test_without_slots_nothing_changes(
    cluster: dict[str, Group], pair: Group, write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """A primary that has no connection slot left keeps its name, whatever its standby reports meanwhile."""
    config = write_config(cluster["cn"].primary, {"cn": cluster["cn"]})
    wk1 = {"nodes": [node.address for node in pair.nodes], "port": pair.primary.port}
    edit(config, names=yaml.safe_load(config.read_text())["names"] | {"wk1": wk1})
    agent = start_agent(config)
    agent.wait_for_line(" wk1 → ")
    before, node = agent.hosts_file.read_bytes(), f"{pair.primary.address}:{pair.primary.port}"
    pair.primary.run_sql("ALTER ROLE resolver_agent CONNECTION LIMIT 0")
    pair.primary.run_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'resolver_agent'")
    agent.wait_for_line(f"alert: {node} cannot be asked: too many connections for role")
    held = f"wk1 → {pair.primary.address} (held; no primary; {pair.primary.address} cannot be asked"
    wait_until(lambda: any(alert["text"].startswith(held) for alert in status(config)["alerts"]))
    assert agent.hosts_file.read_bytes() == before
    pair.primary.run_sql("ALTER ROLE resolver_agent CONNECTION LIMIT -1")
    agent.wait_for_line(f"over: {node} cannot be asked: too many connections for role")
    agent.wait_for_line(f"over: wk1 → {pair.primary.address} .held")
    assert agent.hosts_file.read_bytes() == before


def test_without_a_network_nothing_changes(
    cluster: dict[str, Group],
    write_config: WriteConfig,
    start_agent: StartAgent,
    start_proxy: Callable[[str, Postgres], Proxy],
) -> None:
    """When all nodes fall silent at once every name stays, with one alert each that ends with the silence."""
    proxies = {
        name: [start_proxy(f"127.0.8.{number + place}", node) for place, node in enumerate(cluster[name].nodes)]
        for number, name in ((10, "wk1"), (20, "wk2"))
    }
    config = write_config(cluster["cn"].primary, cluster)
    names = yaml.safe_load(config.read_text())["names"]
    edit(config, names=names | {name: {"nodes": [one.address for one in ends]} for name, ends in proxies.items()})
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    before = agent.hosts_file.read_bytes()
    for proxy in (one for ends in proxies.values() for one in ends):
        proxy.freeze()
    for name in ("wk1", "wk2"):
        agent.wait_for_line(f"alert: {name} → .*held; no primary; ")
    assert agent.hosts_file.read_bytes() == before
    for proxy in (one for ends in proxies.values() for one in ends):
        proxy.thaw()
    for name in ("wk1", "wk2"):
        agent.wait_for_line(f"over: {name} → .*held; no primary; ")
        assert count(agent, f"alert: {name} → ") == 1
    assert agent.hosts_file.read_bytes() == before
    wait_until(lambda: not alerts(config))
