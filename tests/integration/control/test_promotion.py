"""Announced promotions: names move before the server takes writes (rule R4), however long that takes.

A real Patroni with a real etcd decides, on plain PostgreSQL. Tests with Citus are in test_patroni_scenarios.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from resolver_agent.control import client
from tests.integration.support.command_line import PROGRAM
from tests.integration.support.machine import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Group
    from tests.integration.support.agent_process import Agent
    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import PatroniCluster

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]

OVER = "the announced promotion is over: "


def hook(patroni: PatroniCluster, machine: Machine, note: Path) -> str:
    """Return the line for ``pre_promote``: ours, and around it commands that record the state in a file."""
    command = f"env PYTHONPATH={CHECKOUT} {sys.executable} -m resolver_agent.cli"
    command += f" pre-promote --socket {patroni.control_path(machine)}"
    look = f"grep -P '\\twk1\\t' {machine.folder}/etc/hosts >> {note}"
    return f'sh -c "{look}; timeout -k 1 5 {command} 2>> {note} || :; {look}"'


@pytest.fixture
def hooked(patroni: PatroniCluster) -> tuple[PatroniCluster, Machine, Agent, Path]:
    """Return a cluster whose standby coordinator has an agent, and a hook that records the state."""
    machine = patroni.machines["cn-2"]
    note = patroni.config_path(machine).with_name("note")
    patroni.reconfigure(machine, postgresql={"pre_promote": hook(patroni, machine, note)})
    agent = patroni.start_agent(machine)
    agent.wait_for_line(r" wk1 → 127.0.42.2 \(standby\)|the local role is standby")
    agent.wait_for_target("wk1", "127.0.42.2")
    return patroni, machine, agent, note


@pytest.mark.parametrize("how", ["switchover", "power loss"])
def test_names_move_before_the_promotion(hooked: tuple[PatroniCluster, Machine, Agent, Path], how: str) -> None:
    """The file has standbys before Patroni's hook and primaries after it, and the server is promoted after that."""
    patroni, machine, _, note = hooked
    # The leader lock alone moves them too, and may be seen before the hook: with this interval it is not.
    agent = patroni.start_agent(machine, interval="60s")
    agent.wait_for_line(" wk1 → 127.0.42.2 ")
    if how == "switchover":
        patroni.switch_over(machine)
    else:
        patroni.fail_over(machine)
    before, said, after = note.read_text().splitlines()
    assert before.startswith("127.0.42.2\twk1")
    assert "pre-promote: ready for the promotion" in said
    assert after.startswith("127.0.42.1\twk1")
    agent.wait_for_line(f"{OVER}the local PostgreSQL was promoted")
    agent.wait_for_line("the local role is primary")
    assert agent.target("wk1") == "127.0.42.1"
    line = agent.wait_for_line(r"the promotion of the local PostgreSQL: .*; seen as a primary after \d+ ms$")
    assert re.findall(r"(\S+) after \d+ ms", line)[-1] == "primary"
    assert {"announced", "moved"} <= set(re.findall(r"(\S+) after \d+ ms", line))
    moved, promoted = (
        next(i for i, line in enumerate(agent.lines) if words in line)
        for words in ("wk1 → 127.0.42.1", "the local role is primary")
    )
    assert moved < promoted


def test_a_promotion_may_take_its_time(hooked: tuple[PatroniCluster, Machine, Agent, Path]) -> None:
    """While a query delays replay the server stays in recovery, and names stay as a primary needs them."""
    patroni, machine, agent, _ = hooked
    leader = patroni.machines["cn-1"]
    machine.server.run_sql("ALTER SYSTEM SET max_standby_streaming_delay = -1")
    machine.server.run_sql("SELECT pg_reload_conf()")
    patroni.run_sql(leader, "CREATE TABLE held AS SELECT 1 AS a")
    machine.server.wait_for_replay(of=leader.server)
    reader = patroni.connect(machine)
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    reader.execute("SELECT * FROM held")
    patroni.run_sql(leader, "DELETE FROM held")
    patroni.run_sql(leader, "DROP TABLE held")
    [(dropped,)] = patroni.run_sql(leader, "SELECT pg_current_wal_lsn()::text")
    machine.server.wait_until("SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn", [dropped])
    failing_over = threading.Thread(target=patroni.fail_over, args=[machine])
    failing_over.start()
    agent.wait_for_target("wk1", "127.0.42.1", timeout_s=30)
    agent.wait_for_line("alert: a promotion of the local PostgreSQL was announced")
    settled = len(agent.lines)
    assert patroni.ask_agent(machine, "status")["local"]["kind"] == "standby"
    assert agent.target("wk1") == "127.0.42.1"
    reader.execute("ROLLBACK")
    failing_over.join()
    agent.wait_for_line("the local role is primary", since=settled)
    assert not any("wk1 → 127.0.42.2" in line for line in agent.lines[settled:])


def test_a_promotion_that_is_called_off(hooked: tuple[PatroniCluster, Machine, Agent, Path]) -> None:
    """Once the local Patroni reports another holder of the lock, reads go back to standbys."""
    patroni, machine, agent, _ = hooked
    answer = patroni.ask_agent(machine, "pre-promote")
    agent.wait_for_line(f"{OVER}the local Patroni does not hold the leader lock")
    agent.wait_for_target("wk1", "127.0.42.2")
    agent.wait_for_line(
        r"the promotion of the local PostgreSQL: announced .* 1 name moved .*; called off after \d+ ms$"
    )
    assert answer["took_ms"] < 1500


def test_the_lock_alone_will_do(patroni: PatroniCluster) -> None:
    """Without the hook, as after a restart of the agent in the middle, the leader lock moves the names to primaries."""
    machine = patroni.machines["cn-2"]
    gate = patroni.config_path(machine).with_name("gate")
    patroni.reconfigure(machine, postgresql={"pre_promote": f"sh -c 'until [ -e {gate} ]; do sleep 0.05; done'"})
    agent = patroni.start_agent(machine)
    agent.wait_for_target("wk1", "127.0.42.2")
    failing_over = threading.Thread(target=patroni.fail_over, args=[machine])
    failing_over.start()
    try:
        agent.wait_for_target("wk1", "127.0.42.1", timeout_s=30)
        assert machine.server.is_in_recovery
    finally:
        gate.touch()
        failing_over.join()
    agent.wait_for_line("the local role is primary")


def test_a_restart_knows_the_members_that_only_patroni_knows(patroni: PatroniCluster) -> None:
    """A primary that is not in the configuration does not get its name fenced when the agent starts."""
    machine, discovered = patroni.machines["cn-1"], patroni.machines["wk1-2"]
    names = {
        name: {"nodes": nodes, "patroni": {"port": patroni.rest_port, "networks": ["127.0.42.0/24"]}}
        for name, nodes in {"cn": ["127.0.41.1", "127.0.41.2"], "wk1": ["127.0.42.1"]}.items()
    }
    agent = patroni.start_agent(machine, names=names)
    agent.wait_for_target("wk1", "127.0.42.1")
    patroni.switch_over(discovered)
    agent.wait_for_target("wk1", discovered.address)
    patroni.stop_agent(machine)
    agent = patroni.start_agent(machine, names=names)
    agent.wait_for_line(rf" wk1 → {discovered.address} \(primary")
    assert not any("fenced" in line for line in agent.lines)


def socket_of(agent_config: Path) -> str:
    """Return the control socket of an agent."""
    return client.socket_path(str(agent_config.parent / "run"))


@pytest.fixture
def on_standby(cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent) -> tuple[Agent, Path]:
    """Start an agent on the standby coordinator, and wait until its names point to standbys."""
    config = write_config(cluster["cn"].standby, cluster)
    agent = start_agent(config)
    agent.wait_for_line(f" wk1 → {cluster['wk1'].standby.address} ")
    return agent, config


def test_without_patroni_it_ends_when_the_server_streams_again(
    cluster: dict[str, Group], on_standby: tuple[Agent, Path]
) -> None:
    """A promotion that does not happen is over when the server streams from another primary."""
    cn, wk1 = cluster["cn"], cluster["wk1"]
    agent, config = on_standby
    cn.primary.stop()
    cn.standby.wait_until("SELECT count(*) = 0 FROM pg_stat_wal_receiver")
    answer = client.ask(socket_of(config), "pre-promote")
    assert (answer["written"], answer["flushed"], answer["misrouted"]) == (True, None, [])
    assert agent.target("wk1") == wk1.primary.address
    cn.primary.start()
    agent.wait_for_line(f"{OVER}the local PostgreSQL streams from a primary")
    agent.wait_for_target("wk1", wk1.standby.address)


def test_without_patroni_it_ends_with_the_promotion(cluster: dict[str, Group], on_standby: tuple[Agent, Path]) -> None:
    """The names point to primaries before and after it, and to nothing else in between."""
    cn, wk1 = cluster["cn"], cluster["wk1"]
    agent, config = on_standby
    cn.primary.kill()
    client.ask(socket_of(config), "pre-promote")
    announced = len(agent.lines)
    assert agent.target("wk1") == wk1.primary.address
    cn.standby.promote()
    agent.wait_for_line(f"{OVER}the local PostgreSQL was promoted")
    agent.wait_for_line("the local role is primary")
    assert not any(f"wk1 → {wk1.standby.address}" in line for line in agent.lines[announced:])


def test_on_a_primary_it_is_answered_when_all_is_done(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """On a server that is a primary already, the answer still waits for the file and the flush."""
    config = write_config(cluster["cn"].primary, cluster)
    start_agent(config).wait_for_line("keeps ")
    answer = client.ask(socket_of(config), "pre-promote")
    assert (answer["written"], answer["flushed"], answer["misrouted"]) == (True, None, [])


def test_a_start_under_pressure_does_not_wait_for_the_silent(
    cluster: dict[str, Group], on_standby: tuple[Agent, Path], start_agent: StartAgent, hosts_file: Path
) -> None:
    """The hook starts a stopped agent while the old coordinator is silent; it is still answered in time."""
    cn, wk1 = cluster["cn"], cluster["wk1"]
    first, config = on_standby
    first.stop()
    cn.primary.pause()
    agent = start_agent(config)
    agent.wait_for_line("keeps ")
    answer = client.ask(socket_of(config), "pre-promote")
    assert answer["took_ms"] < 2000
    assert answer["misrouted"] == []
    assert f"{wk1.primary.address}\twk1" in hosts_file.read_text()


def by_hand(config: Path, option: str) -> str:
    """Run the command by hand, and return what it prints."""
    command = [*PROGRAM, "pre-promote", option, "--socket", socket_of(config)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_check_changes_nothing(cluster: dict[str, Group], on_standby: tuple[Agent, Path]) -> None:
    """It shows which names would move, and where to; the file stays the same."""
    agent, config = on_standby
    before = agent.hosts_file.read_bytes()
    shown = by_hand(config, "--check").splitlines()
    assert shown[0] == "no promotion is announced; with one, these would move:"
    assert f"wk1 → {cluster['wk1'].primary.address} (primary, timeline " in "".join(shown)
    assert {line.split()[0] for line in shown[1:]} == {"wk1", "wk2"}
    assert agent.hosts_file.read_bytes() == before
    assert not any("announced" in line for line in agent.lines)


def test_an_announcement_is_taken_back(cluster: dict[str, Group], on_standby: tuple[Agent, Path]) -> None:
    """Without a restart the names go back to standbys, and the alert ends; its text names the command."""
    agent, config = on_standby
    wk1 = cluster["wk1"]
    assert by_hand(config, "--cancel") == "no promotion was announced\n"
    client.ask(socket_of(config), "pre-promote")
    agent.wait_for_target("wk1", wk1.primary.address)
    agent.wait_for_line("alert: a promotion .*`resolver-agent pre-promote --cancel` takes it back")
    assert by_hand(config, "--check") == "a promotion is announced\nno name would move\n"
    assert by_hand(config, "--cancel") == "the announced promotion is taken back\n"
    agent.wait_for_target("wk1", wk1.standby.address)
    agent.wait_for_line("the announced promotion is taken back by process [0-9]+ of user 0")
    agent.wait_for_line("over: a promotion of the local PostgreSQL was announced")
