"""The daemon when something of the operating system is short: file descriptors, threads, an answer of a disk."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from resolver_agent.control import client
from tests.integration.conftest import Agent
from tests.integration.support.agent_state import SETTLED, count, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.conftest import Group

    WriteConfig = Callable[..., Path]

# Connects to a socket, again and again, and says nothing; a line says that it has done so 400 times.
SILENT = """
import collections, itertools, socket, sys, time
connections = collections.deque(maxlen=4000)
for number in itertools.count(1):
    connections.append(connection := socket.socket(socket.AF_UNIX))
    connection.settimeout(0.05)
    try:
        connection.connect(sys.argv[1])
    except OSError:
        pass
    if number == 400:
        print(flush=True)
    if number > 400:
        time.sleep(0.002)
"""


@contextlib.contextmanager
def silent_clients(path: str) -> Iterator[None]:
    """Have another process connect to a control socket all the time, and say nothing."""
    with subprocess.Popen([sys.executable, "-c", SILENT, path], stdout=subprocess.PIPE) as flood:
        assert flood.stdout is not None
        flood.stdout.readline()
        try:
            yield
        finally:
            flood.kill()


def test_silent_clients_do_not_use_up_the_descriptors(
    cluster: dict[str, Group], write_config: WriteConfig, hosts_file: Path, tmp_path: Path
) -> None:
    """With few descriptors and hundreds of silent clients a failover is written in time, and the hook is answered."""
    config = write_config(cluster["cn"].primary, cluster)
    path = client.socket_path(str(tmp_path / "run"))
    with Agent(config, hosts_file=hosts_file, launcher=["prlimit", "--nofile=64:80"]) as agent:
        agent.wait_for_line(r"WARNING only 80 file descriptors are allowed, and up to \d+ needed")
        agent.wait_for_line(SETTLED)
        with silent_clients(path):
            wk1 = cluster["wk1"]
            wk1.primary.stop()
            wk1.standby.promote()
            agent.wait_for_target("wk1", wk1.standby.address, timeout_s=3)
            answer = client.ask(path, "pre-promote")
            assert (answer["written"], answer["misrouted"]) == (True, [])
            assert status(config)["written"] is True


def test_a_client_of_the_hook_never_waits_for_silent_ones(
    cluster: dict[str, Group], write_config: WriteConfig, hosts_file: Path, tmp_path: Path
) -> None:
    """Each of many hooks is answered while others connect and say nothing."""
    path = client.socket_path(str(tmp_path / "run"))
    with Agent(write_config(cluster["cn"].primary, cluster), hosts_file=hosts_file) as agent:
        agent.wait_for_line(SETTLED)
        with silent_clients(path):
            for _ in range(20):
                assert client.ask(path, "pre-promote", timeout_s=2.5)["written"] is True


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("import threading; where, name = threading.Thread, 'start'", id="no thread"),
        pytest.param("import resolver_agent.agent as where; name = 'decide'", id="a defect in a round"),
    ],
)
def test_a_round_that_fails_is_tried_again(
    what: str,
    cluster: dict[str, Group],
    write_config: WriteConfig,
    start_agent: Callable[..., Agent],
    failing: Callable[..., tuple[dict[str, str], Path]],
) -> None:
    """A failure is an alert and is logged once; when its cause is gone, the names are written."""
    env, broken = failing(what)
    wk1 = cluster["wk1"]
    config = write_config(cluster["cn"].primary, cluster)
    agent = start_agent(config, env=env)
    agent.wait_for_line(SETTLED)
    broken.touch()
    wk1.primary.stop()
    wk1.standby.promote()
    agent.wait_for_line("alert: .*can't start new thread")
    assert not wait_for_exit(agent, 1.0)
    assert status(config)["alerts"]
    assert count(agent, "ERROR something failed that should not") <= 1
    broken.unlink()
    agent.wait_for_target("wk1", wk1.standby.address)
    agent.wait_for_line("over: .*can't start new thread")


def test_a_defect_in_observing_one_server_concerns_that_one(
    cluster: dict[str, Group],
    write_config: WriteConfig,
    start_agent: Callable[..., Agent],
    failing: Callable[..., tuple[dict[str, str], Path]],
) -> None:
    """While the probes of a server end in a defect the other names move at once, and it is probed again later."""
    wk1, wk2 = cluster["wk1"], cluster["wk2"]
    env, broken = failing(
        "from resolver_agent.observe.probe import Prober as where; name = 'connect'",
        f"arguments[0]._conninfo.get('host') == {wk2.standby.address!r}",
    )
    broken.touch()
    config = write_config(cluster["cn"].primary, cluster)
    agent = start_agent(config, env=env)
    agent.wait_for_line("alert: a server or its Patroni is not observed: RuntimeError")
    agent.wait_for_line(SETTLED)
    wk1.primary.stop()
    wk1.standby.promote()
    agent.wait_for_target("wk1", wk1.standby.address, timeout_s=2)
    assert count(agent, "ERROR something failed that should not") == 1
    broken.unlink()
    agent.wait_for_line(f"{wk2.standby.address}:[0-9]+ is standby")
    agent.wait_for_line("over: a server or its Patroni is not observed")


def wait_for_exit(agent: Agent, seconds: float) -> bool:
    """Report whether the agent ends within so many seconds."""
    try:
        agent.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
