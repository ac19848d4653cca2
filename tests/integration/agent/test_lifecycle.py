"""How the daemon starts, stops and reloads, and what it reports to systemd."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from resolver_agent.control import client
from tests.integration.support.agent_state import (
    SETTLED,
    alerts,
    count,
    edit,
    frozen,
    leads,
    status,
    wait_until,
    written,
)
from tests.integration.support.machine import replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_leaves_the_file(settled: tuple[Agent, Path], signum: signal.Signals) -> None:
    """It ends in order within 3 s, and the file stays the same to the byte."""
    agent, _ = settled
    before = written(agent.hosts_file)
    agent.process.send_signal(signum)
    assert agent.wait(timeout_s=3) == 0
    assert written(agent.hosts_file) == before
    assert "stopped" in agent.lines[-1]
    assert not any("Traceback" in line for line in agent.lines)


def test_a_hung_node_does_not_hold_up_the_stop(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """It ends within 3 s even while probes and a reconnect wait for a node that does not answer."""
    agent, _ = settled
    cluster["wk1"].standby.pause()
    agent.wait_for_line(f"{cluster['wk1'].standby.address}:.* is unreachable")
    before = agent.hosts_file.read_bytes()
    agent.process.send_signal(signal.SIGTERM)
    assert agent.wait(timeout_s=3) == 0
    assert agent.hosts_file.read_bytes() == before


def test_a_stop_during_the_first_look(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, hosts_file: Path
) -> None:
    """An agent that is stopped before it has seen every node has written nothing."""
    cluster["wk1"].primary.pause()
    before = written(hosts_file)
    agent = start_agent(write_config(cluster["cn"].primary, cluster))
    agent.wait_for_line("keeps")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.wait(timeout_s=3) == 0
    assert written(hosts_file) == before


def test_a_name_server_that_hangs_does_not_hold_up_the_stop(
    cluster: dict[str, Group], write_config: WriteConfig, hosts_file: Path, tmp_path: Path
) -> None:
    """DNS lookups cannot be cancelled; neither a write nor the stop waits for them."""
    config = write_config(cluster["cn"].primary, cluster)
    names = yaml.safe_load(config.read_text())["names"]
    edit(config, names=names | {"wk3": {"nodes": [f"db{i}.example" for i in range(40)]}})
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.78\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.78", 53))
        script = f'mount --bind {resolv_conf} /etc/resolv.conf && exec "$0" -m resolver_agent.cli run -c "$1"'
        process = subprocess.Popen(["unshare", "-m", "sh", "-c", script, sys.executable, config])
        try:
            wait_until(lambda: f"{cluster['wk2'].primary.address}\twk2" in hosts_file.read_text())
            process.terminate()
            assert process.wait(3) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("local", ["up", "down"])
def test_a8_killed_agent_goes_on_from_the_block(
    local: str, cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """After kill -9 the role and the own name come from the file, also while the local PostgreSQL is down."""
    config = write_config(cluster["cn"].standby, cluster)
    first = start_agent(config)
    first.wait_for_line(SETTLED)
    before = leads(first)
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    if local == "down":
        cluster["cn"].standby.stop()
    content = first.hosts_file.read_bytes()
    second = start_agent(config)
    second.wait_for_line(SETTLED)
    assert leads(second) == before
    assert second.hosts_file.read_bytes() == content
    assert status(config)["role"] == "standby"
    assert ("local" in alerts(config)) == (local == "down")


def test_a_second_agent_refuses_to_start(settled: tuple[Agent, Path], start_agent: StartAgent) -> None:
    """It names the first one's process, ends with exit code 2, and leaves the first one's socket alone."""
    first, config = settled
    second = start_agent(config)
    assert second.wait() == 2
    [line] = second.lines
    assert f"lock is held by another agent, process {first.process.pid}" in line
    assert status(config)["pid"] == first.process.pid


def test_a_good_reload_takes_effect(settled: tuple[Agent, Path]) -> None:
    """SIGHUP reads the configuration again: a removed name leaves the block, the log changes its format."""
    agent, config = settled
    names = yaml.safe_load(config.read_text())["names"]
    del names["wk2"]
    edit(config, names=names, log={"format": "json"})
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line('"message": "read .* again: log.format: text → json; names.wk2: removed"')
    wait_until(lambda: agent.target("wk2") is None)
    assert agent.target("wk1") is not None


def test_a_bad_reload_keeps_the_old_configuration(settled: tuple[Agent, Path]) -> None:
    """One alert has all errors, until a good file is read."""
    agent, config = settled
    good, before = config.read_text(), leads(agent)
    config.write_text(good.replace("fallback: none", "fallback: maybe\ninterval: -1"))
    for _ in range(2):
        agent.process.send_signal(signal.SIGHUP)
    line = agent.wait_for_line("alert: the configuration stays as it was")
    assert "fallback: " in line
    assert "interval: " in line
    assert leads(agent) == before
    assert any(key.endswith("config") for key in alerts(config))

    replace(config, good)  # the second of the two may take effect only now
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("over: the configuration stays as it was")
    assert count(agent, "alert: the configuration") == 1
    assert alerts(config) == set()


def test_another_fault_in_the_configuration_is_said_too(settled: tuple[Agent, Path]) -> None:
    """When one error is fixed and another is made, the new one is reported."""
    agent, config = settled
    good = config.read_text()
    for fault in ("fallback: maybe", "fallback: [none]"):
        config.write_text(good.replace("fallback: none", fault))
        since = len(agent.lines)
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for_line("alert: the configuration stays as it was", since=since)


@pytest.mark.parametrize("key", ["hosts_file", "runtime_dir", "state_dir"])
def test_a_reload_cannot_move_the_file(key: str, settled: tuple[Agent, Path], tmp_path: Path) -> None:
    """A running agent keeps its file and lock; the alert says when the change takes effect."""
    agent, config = settled
    good = config.read_text()
    edit(config, **{key: str(tmp_path / "elsewhere")})
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line(f"alert: the configuration stays as it was: .*{key}: changes at a restart only")
    assert not (tmp_path / "elsewhere").exists()
    config.write_text(good)
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("over: the configuration")


def test_a_configuration_that_cannot_be_read_hangs_nothing(
    settled: tuple[Agent, Path], cluster: dict[str, Group]
) -> None:
    """A pipe in the file's place hangs like a lost share: names go on, and a good file is read once there is one."""
    agent, config = settled
    wk1, good = cluster["wk1"], config.read_text()
    config.unlink()
    os.mkfifo(config)
    for _ in range(3):
        agent.process.send_signal(signal.SIGHUP)
    wk1.primary.stop()
    wk1.standby.promote()
    agent.wait_for_target("wk1", wk1.standby.address, timeout_s=3)
    agent.wait_for_line("alert: the configuration stays as it was: ")
    replace(config, good)
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("over: the configuration stays as it was")


def test_many_errors_in_the_configuration_are_a_short_alert(settled: tuple[Agent, Path]) -> None:
    """Of a thousand errors ten are shown, and the number of the others."""
    agent, config = settled
    config.write_text(config.read_text() + "".join(f"wrong{number}: 1\n" for number in range(1000)))
    agent.process.send_signal(signal.SIGHUP)
    line = agent.wait_for_line("alert: the configuration stays as it was: .*and 91 more errors")
    assert len(line) < 4000


def test_a_reload_keeps_an_announced_promotion(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """The configuration is read again between the hook and the promotion, and names stay on primaries."""
    cn, wk1 = cluster["cn"], cluster["wk1"]
    config = write_config(cn.standby, cluster)
    agent = start_agent(config)
    agent.wait_for_line(f" wk1 → {wk1.standby.address} ")
    cn.primary.kill()
    client.ask(f"{config.parent}/run/control.sock", "pre-promote")
    announced = len(agent.lines)
    edit(config, interval="500ms")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("read .* again", since=announced)
    cn.standby.promote()
    agent.wait_for_line("the announced promotion is over: the local PostgreSQL was promoted")
    assert not any(f"wk1 → {wk1.standby.address}" in line for line in agent.lines[announced:])


def test_it_is_ready_before_any_node_has_answered(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, manager: socket.socket
) -> None:
    """Patroni waits for READY, and the nodes may need Patroni in order to answer."""
    for node in (node for group in cluster.values() for node in group.nodes):
        node.pause()
    config = write_config(cluster["cn"].primary, cluster)
    start_agent(config, env={"NOTIFY_SOCKET": manager.getsockname()})
    assert manager.recv(4096) == b"READY=1"
    assert {node["kind"] for node in status(config)["nodes"]} == {"unknown"}


def test_a_slow_disk_does_not_starve_the_watchdog(
    cluster: dict[str, Group],
    write_config: WriteConfig,
    manager: socket.socket,
    mounted: Callable[..., Path],
    start_agent: StartAgent,
) -> None:
    """While a write does not end rounds go on: the watchdog is notified, and the hook is answered with the truth."""
    hosts_file = mounted("-t", "ext4", "-o", "loop")
    cn, wk1 = cluster["cn"], cluster["wk1"]
    config = write_config(cn.standby, cluster, hosts_file=str(hosts_file), interval="100ms")
    agent = start_agent(config, env={"NOTIFY_SOCKET": manager.getsockname()})
    agent.wait_for_line(SETTLED)
    assert f"{wk1.standby.address}\twk1" in hosts_file.read_text()
    with frozen(hosts_file):
        cn.primary.kill()
        answer = client.ask(f"{config.parent}/run/control.sock", "pre-promote")
        assert (answer["written"], answer["misrouted"]) == (False, [])
        assert answer["took_ms"] < 2000
        agent.wait_for_line("alert: .*hosts is still being written: its disk does not answer")
        heard(manager)
        for _ in range(3):
            while manager.recv(4096) != b"WATCHDOG=1":
                pass
        assert {"file", "announced"} <= alerts(config)
    wait_until(lambda: f"{wk1.primary.address}\twk1" in hosts_file.read_text())
    agent.wait_for_line("over: .*hosts is still being written")
    cn.standby.promote()
    agent.wait_for_line("the announced promotion is over: the local PostgreSQL was promoted")
    heard(manager)
    agent.process.send_signal(signal.SIGTERM)
    while manager.recv(4096) != b"STOPPING=1":
        pass
    agent.wait()


def test_rounds_that_fail_do_not_notify_the_watchdog(
    cluster: dict[str, Group],
    write_config: WriteConfig,
    manager: socket.socket,
    failing: Callable[..., tuple[dict[str, str], Path]],
    start_agent: StartAgent,
) -> None:
    """A defect that lasts is left to systemd, which starts the agent anew."""
    env, broken = failing("import resolver_agent.agent as where; name = 'decide'")
    config = write_config(cluster["cn"].primary, cluster, interval="100ms")
    agent = start_agent(config, env=env | {"NOTIFY_SOCKET": manager.getsockname()})
    agent.wait_for_line(SETTLED)
    broken.touch()
    agent.wait_for_line("alert: the names are not kept up to date: ")
    heard(manager)
    assert not select.select([manager], [], [], 1.0)[0]
    broken.unlink()
    while manager.recv(4096) != b"WATCHDOG=1":
        pass


@pytest.mark.parametrize("setting", ["timeout", "interval"])
def test_a_long_setting_does_not_starve_the_watchdog(
    setting: str,
    cluster: dict[str, Group],
    write_config: WriteConfig,
    start_agent: StartAgent,
    manager: socket.socket,
) -> None:
    """A timeout or interval longer than the watchdog's does not get the agent killed."""
    if setting == "timeout":
        cluster["wk1"].standby.pause()
    config = write_config(cluster["cn"].primary, cluster, **{setting: "60s"})
    env = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000000"}
    agent = start_agent(config, env=env)
    unknown = 1 if setting == "timeout" else 0
    wait_until(lambda: manager.recv(4096) == b"READY=1")
    wait_until(lambda: [node["kind"] for node in status(config)["nodes"]].count("unknown") == unknown)
    if setting == "interval":
        agent.wait_for_line(SETTLED)
    heard(manager)
    manager.settimeout(2)
    for _ in range(2):
        while manager.recv(4096) != b"WATCHDOG=1":
            pass


def heard(manager: socket.socket) -> list[str]:
    """Return the messages received so far."""
    found = []
    while select.select([manager], [], [], 0)[0]:
        found.append(manager.recv(4096).decode())
    return found


def test_the_control_socket_is_for_owner_and_group(settled: tuple[Agent, Path], tmp_path: Path) -> None:
    """No other user may ask; the socket goes when the agent ends."""
    agent, _ = settled
    path = tmp_path / "run" / "control.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    agent.stop()
    assert [left.name for left in path.parent.iterdir()] == ["lock"]
