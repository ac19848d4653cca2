"""A host without PostgreSQL (``local: off``): its names follow the servers, and every command knows that."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import yaml

from resolver_agent.demo.postgres import free_port
from tests.integration.support.agent_state import alerts, edit, metrics, status, wait_until
from tests.integration.support.command_line import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]

NO_LOCAL = "there is no local PostgreSQL (local: off)"


@pytest.fixture
def config(cluster: dict[str, Group], write_config: WriteConfig) -> Path:
    """Write the configuration of a host with a name for writes and one for reads."""
    nodes = [node.address for node in cluster["cn"].nodes]
    names = {"cn": {"nodes": nodes, "route": "primary"}, "cn-ro": {"nodes": nodes, "route": "standby"}}
    return write_config(cluster["cn"].primary, cluster, names=names, local="off", fallback="primary")


@pytest.fixture
def running(config: Path, start_agent: StartAgent, cluster: dict[str, Group]) -> Agent:
    """Start the agent of that host, and wait until both names are right."""
    agent = start_agent(config)
    agent.wait_for_line("cn-ro → ", timeout_s=30)
    agent.wait_for_target("cn", cluster["cn"].primary.address)
    agent.wait_for_target("cn-ro", cluster["cn"].standby.address)
    return agent


def get(port: int, path: str) -> tuple[int, Any]:
    """Return the status and the answer of a path over HTTP."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_failover(running: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """The name for writes follows the promotion, and reads fall back while there is no standby; no local alert."""
    assert alerts(config) == set()
    found = cluster["cn"]
    found.primary.kill()
    found.standby.promote()
    running.wait_for_target("cn", found.standby.address)
    running.wait_for_target("cn-ro", found.standby.address)
    assert wait_until(lambda: alerts(config) == {"cn-ro:fallback"})
    assert status(config)["local"] is None
    assert metrics(config).value("local_role", role="unknown") is None


def test_every_command_knows(running: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """Nothing is asked of a local server, and what needs one says at once why it does nothing."""
    shown = run("status", "-c", config)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "no local PostgreSQL (local: off)" in shown.stdout
    assert run("check", "-c", config).returncode == 0
    assert run("dry-run", "-c", config).returncode == 0
    refused = run("dry-run", "--role", "standby", "-c", config)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"--role standby: {NO_LOCAL}" in refused.stderr
    socket = f"{yaml.safe_load(config.read_text())['runtime_dir']}/control.sock"
    for hook in ("pre-promote", "before-stop"):
        ran = run(hook, "--socket", socket)
        assert ran.returncode == 0
        assert NO_LOCAL in ran.stderr
    assert run("pre-promote", "--strict", "--socket", socket).returncode == 1
    assert NO_LOCAL in run("pre-promote", "--check", "--socket", socket).stderr
    assert NO_LOCAL in run("before-stop", "--check", "--socket", socket).stdout
    told = run("doctor", "--to-addresses", "-c", config)
    assert told.returncode == 2
    assert "or there is none (local: off)" in told.stderr
    running.wait_for_target("cn", cluster["cn"].primary.address)
    running.stop()
    removed = run("remove", "-c", config)
    assert (removed.returncode, removed.stderr) == (0, "")
    assert f"pg_dist_node was not asked whether it holds the names: {NO_LOCAL}" in removed.stdout
    assert running.target("cn") is None
    assert run("once", "-c", config).returncode == 0
    assert running.target("cn") == cluster["cn"].primary.address


def test_health(config: Path, start_agent: StartAgent) -> None:
    """It is ready with its names, but it is no server to write or read at."""
    edit(config, http={"listen": f"127.0.0.1:{(port := free_port())}"})
    start_agent(config).wait_for_line("cn-ro → ")
    assert wait_until(lambda: get(port, "/readiness")[0] == 200)
    assert get(port, "/primary") == get(port, "/read-only") == (503, {"ok": False, "why": NO_LOCAL})


def test_the_file_is_put_back(running: Agent, cluster: dict[str, Group]) -> None:
    """What another program does to the names is undone, although no local server's answers drive the rounds."""
    running.hosts_file.write_text("127.0.0.1\tlocalhost\n")
    running.wait_for_target("cn", cluster["cn"].primary.address)


def test_a_lost_primary_is_waited_for(config: Path, start_agent: StartAgent, cluster: dict[str, Group]) -> None:
    """With ``queue.unplanned`` a new connection waits in the room of this host, and reaches the next primary."""
    edit(config, queue={"unplanned": "30s"})
    agent, found = start_agent(config), cluster["cn"]
    agent.wait_for_line("cn-ro → ", timeout_s=30)
    found.primary.kill()
    agent.wait_for_line(r"cn → 127\.77\.")
    room = agent.target("cn")
    reached: list[str] = []

    def connect() -> None:
        where = {"host": room, "port": found.primary.port, "user": "postgres", "dbname": "postgres"}
        with psycopg.connect(**where, connect_timeout=30) as session:  # type: ignore[arg-type]  # libpq takes any
            row = session.execute("SELECT host(inet_server_addr()), pg_is_in_recovery()").fetchone()
            reached.extend(map(str, row or ()))

    client = threading.Thread(target=connect)
    client.start()
    assert wait_until(lambda: metrics(config).value("queue_waiting_connections", name="cn") == 1)
    found.standby.promote()
    client.join(20)
    assert reached == [found.standby.address, "False"]


def test_a_reload_takes_the_local_server_away(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """Its role, its alerts and its own address are forgotten; and back."""
    found = cluster["cn"]
    nodes = [node.address for node in found.nodes]
    names = {"cn": {"nodes": nodes, "route": "primary"}}
    path = write_config(found.primary, cluster, names=names)
    agent = start_agent(path)
    agent.wait_for_line("the local role is primary")
    local = yaml.safe_load(path.read_text())["local"]
    edit(path, local="off")
    agent.process.send_signal(1)
    agent.wait_for_line("local: on → off")
    assert wait_until(lambda: status(path)["local"] is None and status(path)["role"] is None)
    assert alerts(path) == set()
    edit(path, local=local)
    agent.process.send_signal(1)
    assert wait_until(lambda: status(path)["role"] == "primary")


def test_several_clusters(
    cluster: dict[str, Group], pair: Group, write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """Each cluster sees the login that its name has, and no password of another one's."""
    pair.primary.run_sql("CREATE ROLE billing LOGIN PASSWORD 'hunter2'")
    pair.primary.run_sql("CREATE DATABASE billing")
    pair.standby.wait_for_replay(of=pair.primary)
    names: dict[str, dict[str, Any]] = {
        "cn": {"nodes": [node.address for node in cluster["cn"].nodes], "route": "primary"},
        "billing": {
            "nodes": [node.address for node in pair.nodes],
            "port": pair.primary.port,
            "route": "standby",
            "postgresql": {"user": "billing", "dbname": "billing", "password": "hunter2"},
        },
    }
    path = write_config(cluster["cn"].primary, cluster, names=names, local="off")
    agent = start_agent(path)
    agent.wait_for_line("billing → ", timeout_s=30)
    agent.wait_for_target("cn", cluster["cn"].primary.address)
    agent.wait_for_target("billing", pair.standby.address)
    seen = "SELECT DISTINCT usename, datname FROM pg_stat_activity WHERE client_port > 0 AND usename <> 'postgres'"
    assert pair.primary.run_sql(seen) == [("billing", "billing")]
    assert cluster["cn"].primary.run_sql(seen) == [("resolver_agent", "postgres")]
    edit(path, names=names | {"billing": names["billing"] | {"postgresql": {"user": "resolver_agent"}}})
    agent.process.send_signal(1)
    line = agent.wait_for_line("names.billing.postgresql.user: billing → null|names.billing.postgresql.user: billing")
    assert "hunter2" not in "".join(agent.lines)
    assert "names.billing.postgresql.password: changed" in line
    assert wait_until(lambda: pair.primary.run_sql(seen) == [("resolver_agent", "postgres")])
