"""Everything that an operator watches for is made to happen on real servers, and seen in its metric."""

from __future__ import annotations

import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from resolver_agent.control import client
from tests.integration.support.agent_state import FENCE, SETTLED, count, edit, metrics, wait_until
from tests.integration.support.machine import http_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]

HTTP = "127.0.71.1"


def is_free(port: int) -> bool:
    """Report whether nobody listens at a port of the address for HTTP."""
    with socket.socket() as probe:
        return probe.connect_ex((HTTP, port)) != 0


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((HTTP, 0))
        return int(probe.getsockname()[1])


def test_calm(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """An agent that is well has an address for each name, a state for each server, and no alert."""
    _, config = settled
    found = wait_until(lambda: (now := metrics(config)).value("node_lag_bytes", name="wk1") is not None and now)
    primaries = {name: group.primary.address for name, group in cluster.items()}
    assert {one["name"]: one["address"] for one in found.labels("name_info")} == primaries
    states = {name: found.state("name_state", name=name) for name in cluster}
    assert states == {"cn": "self", "wk1": "primary", "wk2": "primary"}
    for group in cluster.values():
        for server, state in ((group.primary, "primary"), (group.standby, "standby")):
            node = f"{server.address}:{server.port}"
            assert found.state("node_state", node=node) == state
            assert 0 <= (found.value("node_last_answer_timestamp_seconds", node=node) or 0) <= 1 << 40
    assert (found.state("local_role", "role"), found.state("local_state")) == ("primary", "primary")
    assert found.value("hosts_file_written") == 1
    assert found.value("hosts_file_writes_total", result="done") == 1
    assert found.value("probe_duration_seconds_count") == sum(
        value for name, _, value in found.samples if name == "probes_total"
    )
    assert {value for name, _, value in found.samples if name == "alerts"} == {0}


def test_a_failover(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """While there is no primary the name is held; then it has moved, and how long that took is known."""
    _, config = settled
    worker = cluster["wk1"]
    before = metrics(config)
    worker.primary.stop()
    wait_until(lambda: metrics(config).state("name_state", name="wk1") == "held")
    held = metrics(config)
    assert held.value("alerts", code="held") == 1
    assert held.state("node_state", node=f"{worker.primary.address}:{worker.primary.port}") == "dead"
    worker.standby.promote()
    wait_until(lambda: metrics(config).state("name_state", name="wk1") == "primary")
    after = metrics(config)
    assert [one["address"] for one in after.labels("name_info") if one["name"] == "wk1"] == [worker.standby.address]
    assert after.value("name_changes_total", name="wk1") == (before.value("name_changes_total", name="wk1") or 0) + 1
    assert after.value("change_written_seconds_count") == (before.value("change_written_seconds_count") or 0) + 1
    took_s = (after.value("change_written_seconds_sum") or 0) - (before.value("change_written_seconds_sum") or 0)
    assert 0 < took_s < 1
    timelines = [
        found.value("node_timeline", node=f"{worker.standby.address}:{worker.standby.port}") for found in (held, after)
    ]
    assert timelines[1] == (timelines[0] or 0) + 1


def test_a_standby_without_a_fit_standby(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """The fence is a state, an address and an alert; over HTTP reads are no longer welcome, until a standby is back."""
    port = free_port()
    config = write_config(cluster["cn"].standby, cluster, http={"listen": f"{HTTP}:{port}"})
    start_agent(config).wait_for_line(SETTLED)

    def reads() -> int:
        return http_request(HTTP, port, "OPTIONS", "/read-only", timeout_s=10)[0]

    wait_until(lambda: reads() == 200)
    cluster["wk1"].standby.kill()
    fenced = '{"ok": false, "why": "wk1 \\u2192 fenced ('
    wait_until(lambda: http_request(HTTP, port, "GET", "/read-only", timeout_s=10)[1].startswith(fenced))
    assert reads() == 503
    wait_until(lambda: metrics(config).state("name_state", name="wk1") == "fenced")
    found = metrics(config)
    assert [one["address"] for one in found.labels("name_info") if one["name"] == "wk1"] == [FENCE]
    assert found.value("alerts", code="fenced", severity="critical") == 1
    wait_until(lambda: http_request(HTTP, port, "GET", "/readiness", timeout_s=10)[0] == 200)
    assert http_request(HTTP, port, "GET", "/liveness", timeout_s=10)[0] == 200
    assert http_request(HTTP, port, "GET", "/primary", timeout_s=10)[0] == 503
    cluster["wk1"].standby.start()
    wait_until(lambda: reads() == 200)


def test_trampling(settled: tuple[Agent, Path]) -> None:
    """Each repair is counted, and it is a write."""
    agent, config = settled
    content = agent.hosts_file.read_text()
    changed = content.replace(str(agent.target("wk1")), "10.9.9.9")
    agent.hosts_file.write_text(changed)
    wait_until(lambda: metrics(config).value("hosts_file_repairs_total") == 1)
    agent.hosts_file.write_text(changed)
    wait_until(lambda: metrics(config).value("hosts_file_repairs_total") == 2)
    assert metrics(config).value("hosts_file_writes_total", result="done") == 3


def test_a_file_that_cannot_be_written(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """The failures are counted, and the file is not as decided until it can be written again."""
    agent, config = settled
    subprocess.run(["chattr", "+i", agent.hosts_file], check=True)
    try:
        cluster["wk1"].primary.stop()
        cluster["wk1"].standby.promote()
        wait_until(lambda: metrics(config).value("hosts_file_written") == 0)
        wait_until(lambda: (metrics(config).value("hosts_file_writes_total", result="failed") or 0) >= 2)
        assert metrics(config).value("alerts", code="file") == 1
    finally:
        subprocess.run(["chattr", "-i", agent.hosts_file], check=True)
    wait_until(lambda: metrics(config).value("hosts_file_written") == 1)
    assert (metrics(config).value("change_written_seconds_sum") or 0) > 0.2


def test_a_promotion(cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent) -> None:
    """An announced promotion is pending until it has happened; both are counted."""
    local = cluster["cn"].standby
    config = write_config(local, cluster)
    start_agent(config).wait_for_line(SETTLED)
    found = metrics(config)
    assert (found.state("local_role", "role"), found.value("promotion_pending")) == ("standby", 0)
    client.ask(f"{yaml.safe_load(config.read_text())['runtime_dir']}/control.sock", "pre-promote")
    wait_until(lambda: metrics(config).value("promotion_pending") == 1)
    assert metrics(config).value("promotions_announced_total") == 1
    assert metrics(config).value("promotions_total") == 0
    cluster["cn"].primary.stop()
    local.promote()
    wait_until(lambda: metrics(config).state("local_role", "role") == "primary")
    found = wait_until(lambda: (now := metrics(config)).value("promotion_pending") == 0 and now)
    assert (found.value("promotions_total"), found.value("promotions_announced_total")) == (1, 1)


def test_a_reload(settled: tuple[Agent, Path]) -> None:
    """A good file counts, and moves what is served over HTTP; a bad one is not current, and moves nothing."""
    (agent, config), port = settled, free_port()
    assert is_free(port)
    edit(config, http={"listen": f"{HTTP}:{port}"})
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("read .* again")
    assert http_request(HTTP, port, "GET", "/primary", timeout_s=10)[0] == 200
    content = config.read_text()
    config.write_text(content + "intervall: 1s\n")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("alert: the configuration stays as it was")
    config.write_text(content)  # for the tests' own eyes
    found = wait_until(lambda: (now := metrics(config)).value("config_is_current") == 0 and now)
    assert [found.value("config_reloads_total", result=result) for result in ("done", "failed")] == [1, 1]
    assert http_request(HTTP, port, "HEAD", "/metrics", timeout_s=10) == (200, "")
    edit(config, http={"listen": None})
    agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: metrics(config).value("config_is_current") == 1)
    assert is_free(port)


def test_a_port_that_is_taken(cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent) -> None:
    """The agent keeps the names all the same, says so, and answers once the port is free."""
    with socket.create_server((HTTP, 0)) as other:
        port = other.getsockname()[1]
        config = write_config(cluster["cn"].primary, cluster, http={"listen": f"{HTTP}:{port}"})
        agent = start_agent(config)
        agent.wait_for_line(SETTLED)
        agent.wait_for_line(f"alert: http.listen: nobody can ask at {HTTP}:{port}: Address already in use")
        wait_until(lambda: metrics(config).value("alerts", code="http") == 1)
    agent.wait_for_line("over: http.listen", timeout_s=60)
    assert http_request(HTTP, port, "GET", "/readiness", timeout_s=10)[0] == 200


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("from resolver_agent.metrics.figures import Figures as where; name = 'take_round'", id="counting"),
        pytest.param("import resolver_agent.requests as where; name = 'families'", id="telling"),
    ],
)
def test_a_defect_changes_no_name(
    what: str,
    cluster: dict[str, Group],
    write_config: WriteConfig,
    start_agent: StartAgent,
    failing: Callable[..., tuple[dict[str, str], Path]],
) -> None:
    """While metrics fail the names follow as ever, and the log has one traceback."""
    (environment, broken), port = failing(what), free_port()
    config = write_config(cluster["cn"].primary, cluster, http={"listen": f"{HTTP}:{port}"})
    agent = start_agent(config, environment)
    agent.wait_for_line(SETTLED)
    broken.touch()
    statuses = {http_request(HTTP, port, "GET", "/metrics", timeout_s=10)[0] for _ in range(3)}
    assert statuses == {200 if "Figures" in what else 500}
    cluster["wk1"].primary.stop()
    cluster["wk1"].standby.promote()
    agent.wait_for_target("wk1", cluster["wk1"].standby.address)
    wait_until(lambda: http_request(HTTP, port, "GET", "/primary", timeout_s=10)[0] == 200)
    assert count(agent, "Traceback") == 1
    broken.unlink()
    wait_until(lambda: http_request(HTTP, port, "GET", "/metrics", timeout_s=10)[0] == 200)
