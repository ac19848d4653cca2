"""``status`` as a shell runs it, with an agent and without."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from jsonschema import Draft202012Validator

from resolver_agent import __version__
from resolver_agent.control import schema
from tests.integration.support.agent_state import SETTLED, wait_until
from tests.integration.support.command_line import (
    AS_NOBODY,
    PROGRAM,
    by_the_standard_library_alone,
    default_runtime_dir,
    on_a_terminal,
    run,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    StartAgent = Callable[..., Agent]

ANSWER = Draft202012Validator(schema.status())
"""Accepts what ``status --json`` prints."""


@pytest.fixture
def settled(running: Agent, config: Path) -> Agent:
    """Return the agent once the lag of every standby is known: its primary was asked before it."""

    def known() -> bool:
        nodes = json.loads(run("status", "--json", "-c", config).stdout)["nodes"]
        return all(node["lag_bytes"] is not None for node in nodes if node["role"] == "standby")

    wait_until(known)
    return running


def test_status_of_a_healthy_agent(settled: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """Counts, and a line for each name with its target, time, reason and nodes; exit code 0."""
    ran = run("status", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("3 names: 1 self, 2 primary; 6 nodes: 3 primary, 3 standby; no alerts\n")
    assert (
        f"resolver-agent {__version__}, process {settled.process.pid}, {config}; {settled.hosts_file}\n" in ran.stdout
    )
    assert "local PostgreSQL: primary\n" in ran.stdout
    worker = cluster["wk1"]
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
    assert re.search(rf"^cn +{cluster['cn'].primary.address} +{moment} +this server +", ran.stdout, re.MULTILINE)
    line = re.search(
        rf"^wk1 +{worker.primary.address} +{moment} +primary, timeline \d+ +(.*)$", ran.stdout, re.MULTILINE
    )
    assert line is not None
    states = {re.sub(r"\d+ \w*B$", "LAG", state) for state in line[1].split(", ")}
    assert states == {f"{worker.primary.address} primary", f"{worker.standby.address} standby LAG"}


def test_status_of_a_name(settled: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """All that is known of its nodes, and nothing of other names, also as JSON."""
    ran = run("status", "wk1", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("1 name: 1 primary; 2 nodes: 1 primary, 1 standby; no alerts\n")
    standby = cluster["wk1"].standby
    line = rf"^  {standby.address}:{standby.port} +standby +\d+ +\w+/\w+ +\d+ \w?B +\d\.\d s ago$"
    assert re.search(line, ran.stdout, re.MULTILINE)
    assert "wk2" not in ran.stdout
    found = json.loads(run("status", "wk1", "--json", "-c", config).stdout)
    assert (found["pid"], {one["name"] for one in found["nodes"]}) == (settled.process.pid, {"wk1"})


@pytest.mark.usefixtures("running")
def test_status_of_a_name_that_is_not_there(config: Path) -> None:
    """The agent's names are listed, with exit code 2."""
    ran = run("status", "wk1", "wk7", "-c", config)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "resolver-agent: the agent has no name wk7; it has cn, wk1, wk2\n"


def test_status_as_json(settled: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """The JSON has the same facts, and is as the schema says."""
    ran = run("status", "--json", "-c", config)
    assert ran.returncode == 0
    found = json.loads(ran.stdout)
    assert list(ANSWER.iter_errors(found)) == []
    assert (found["pid"], found["role"], found["alerts"], found["trampled"]) == (settled.process.pid, "primary", [], 0)
    assert [(name["name"], name["address"], name["code"]) for name in found["names"]] == [
        ("cn", cluster["cn"].primary.address, "self"),
        ("wk1", cluster["wk1"].primary.address, "primary"),
        ("wk2", cluster["wk2"].primary.address, "primary"),
    ]
    assert all(name["since"] and name["reason"] for name in found["names"])
    roles = {node["node"]: (node["role"], node["fit"]) for node in found["nodes"]}
    assert roles == {
        f"{node.address}:{node.port}": ("primary", False) if node is group.primary else ("standby", True)
        for group in cluster.values()
        for node in group.nodes
    }
    assert all(node["timeline"] >= 1 and 0 <= node["age_s"] < 3 and "/" in node["lsn"] for node in found["nodes"])
    assert {node["lag_bytes"] is None for node in found["nodes"] if node["role"] == "standby"} == {False}


def test_status_with_alerts(running: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """The exit code is 1, unless other names are asked for; the whole text is above the table, clause by clause."""
    cluster["wk1"].primary.kill()
    running.wait_for_line("alert: wk1 → ")
    ran = run("status", "-c", config)
    assert ran.returncode == 1
    address = cluster["wk1"].primary.address
    assert re.search(rf"^warning: held, since \S+\n  wk1 → {address} \(held; no primary; ", ran.stdout, re.MULTILINE)
    assert re.search(rf"^wk1 +{address} +\S+ +held, see above  ", ran.stdout, re.MULTILINE)
    assert run("status", "--json", "-c", config).returncode == 1
    assert run("status", "wk2", "-c", config).returncode == 0


def test_status_of_problems(running: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """Only the names with which something is wrong are shown; a standby that is down is no alert, and is shown."""
    cluster["wk1"].standby.kill()
    wait_until(lambda: " dead" in run("status", "-c", config).stdout)
    ran = run("status", "--problems", "-c", config)
    assert (ran.returncode, running.process.poll()) == (0, None)
    assert ran.stdout.startswith("3 names: ")
    assert re.findall(r"^(?:cn|wk\d)\b", ran.stdout, re.MULTILINE) == ["wk1"]


def test_watch_over_a_restart(running: Agent, config: Path, start_agent: StartAgent) -> None:
    """``--watch`` goes on without an agent, shows the next one, and ends at Ctrl-C."""
    command = [*PROGRAM, "status", "--watch", "--json", "-c", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["pid"] == running.process.pid
        assert running.stop() == 0
        assert any("no agent runs" in json.loads(line).get("error", "") for line in watch.stdout)
        following = start_agent(config)
        assert any(json.loads(line).get("pid") == following.process.pid for line in watch.stdout)
        watch.send_signal(signal.SIGINT)
        _, said = watch.communicate(timeout=10)
    assert (watch.returncode, said) == (130, "")


def test_watch_on_a_terminal(running: Agent, config: Path) -> None:
    """Each look takes the place of the last one; Ctrl-C at the terminal ends it."""
    terminal, end = pty.openpty()
    command = ["setsid", "-c", *PROGRAM, "status", "--watch", "-c", str(config)]
    environment = os.environ | {"TERM": "xterm", "NO_COLOR": ""}
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment) as process:
        os.close(end)
        shown = b""
        while shown.count(b"\x1b[H") < 2 or not shown.endswith(b"\x1b[?7h"):
            shown += os.read(terminal, 65536)
        os.write(terminal, b"\x03")
        process.wait(timeout=10)
    os.close(terminal)
    assert process.returncode == 130
    assert f"process {running.process.pid}".encode() in shown
    assert b"\x1b[32mprimary, timeline " in shown


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        pytest.param({"TERM": "xterm", "NO_COLOR": ""}, True, id="a terminal"),
        pytest.param({"TERM": "xterm", "NO_COLOR": "1"}, False, id="NO_COLOR"),
        pytest.param({"TERM": "dumb", "NO_COLOR": ""}, False, id="a dumb terminal"),
    ],
)
def test_colours(environment: dict[str, str], coloured: bool, config: Path) -> None:  # noqa: FBT001 -- a table's column
    """Text has colours on a terminal, unless its user wants none."""
    command = [
        "env",
        *(f"{name}={value}" for name, value in environment.items()),
        *PROGRAM,
        "status",
        "-c",
        str(config),
    ]
    shown = on_a_terminal(command, code=0)
    assert b"local PostgreSQL: primary" in shown
    assert (b"\x1b[" in shown) == coloured


def test_status_of_a_bind_mounted_file(config: Path, hosts_file: Path, start_agent: StartAgent) -> None:
    """In a container the file is written in place, which is told, and is no reason to exit with 1."""
    subprocess.run(["mount", "--bind", hosts_file, hosts_file], check=True)
    try:
        start_agent(config).wait_for_line("it cannot be replaced")
        ran = run("status", "--json", "-c", config)
        [alert] = json.loads(ran.stdout)["alerts"]
        assert (alert["key"], alert["severity"], ran.returncode) == ("file:note", "info", 0)
    finally:
        subprocess.run(["umount", hosts_file], check=True)


@pytest.mark.parametrize(
    "state",
    [
        pytest.param("never", id="no agent was ever there"),
        pytest.param("stopped", id="the agent was stopped"),
        pytest.param("killed", id="a killed agent left its socket behind"),
    ],
)
def test_status_without_an_agent(state: str, config: Path, start_agent: StartAgent, primaries: dict[str, str]) -> None:
    """It reports that there is no agent, shows the file's targets, and ends with exit code 2."""
    assert run("once", "-c", config).returncode == 0
    if state != "never":
        agent = start_agent(config)
        agent.wait_for_line(SETTLED)
        agent.process.send_signal(signal.SIGTERM if state == "stopped" else signal.SIGKILL)
        agent.wait()
    assert config.with_name("run").joinpath("control.sock").exists() == (state == "killed")
    ran = run("status", "-c", config)
    assert (ran.returncode, targets(ran.stdout)) == (2, primaries)
    assert ran.stderr == (
        f"resolver-agent: no agent runs in {config.with_name('run')}; the names are those in "
        f"{config.with_name('hosts')}\n"
    )
    found = json.loads(run("status", "--json", "-c", config).stdout)
    assert list(ANSWER.iter_errors(found)) == []
    assert {name["name"]: name["address"] for name in found["names"]} == primaries
    assert "no agent runs" in found["error"]


def test_status_with_a_faulty_file(running: Agent, config: Path) -> None:
    """The running agent is asked all the same, where the file says, and the fault is told; exit code 1."""
    config.write_text(config.read_text() + "intervall: 1s\n")
    ran = run("status", "-c", config)
    assert ran.returncode == 1
    assert ran.stderr == (
        f"resolver-agent: the configuration is not usable\n{config}: intervall: unknown key, did you mean `interval`?\n"
    )
    assert f"process {running.process.pid}" in ran.stdout


def test_status_waits_for_no_pipe(config: Path, hosts_file: Path) -> None:
    """A pipe in the place of the hosts file is named; to read it would take for ever."""
    hosts_file.unlink()
    os.mkfifo(hosts_file)
    ran = run("status", "-c", config)
    assert ran.returncode == 2
    assert f"{hosts_file} is no regular file" in ran.stderr


def test_status_of_an_agent_that_hangs(running: Agent, config: Path) -> None:
    """A socket that does not answer gets its own message, and exit code 2."""
    running.process.send_signal(signal.SIGSTOP)
    ran = run("status", "-c", config)
    assert ran.returncode == 2
    assert "control.sock: the agent does not answer; see its log" in ran.stderr


def test_status_for_those_who_may_not_ask(public: Path, start_agent: StartAgent, primaries: dict[str, str]) -> None:
    """A refused connection is reported with the fix; the rest comes from the file."""
    start_agent(public).wait_for_line(SETTLED)
    ran = run("status", "-c", public, program=AS_NOBODY)
    assert ran.returncode == 2
    assert "control.sock: you may not ask the agent: do it as root, or as a member of the socket's group" in ran.stderr
    assert targets(ran.stdout) == primaries


@pytest.mark.parametrize("program", ["PROGRAM", "AS_NOBODY"])
def test_looking_does_not_start_a_stopped_agent(program: str, public: Path) -> None:
    """A socket that systemd holds for a stopped agent is left alone, for any user and umask."""
    agent = subprocess.Popen([*PROGRAM, "run", "-c", public], umask=0o077, stderr=subprocess.PIPE, text=True)
    assert agent.stderr is not None
    assert "keeps" in agent.stderr.readline()
    agent.terminate()
    agent.communicate(timeout=10)
    runtime_dir = public.with_name("run")
    runtime_dir.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as systemd:
        systemd.bind(str(runtime_dir / "control.sock"))
        (runtime_dir / "control.sock").chmod(0o666)
        systemd.listen()
        ran = run("status", "-c", public, program=globals()[program])
        assert ran.returncode == 2
        assert "no agent runs" in ran.stderr
        assert run("--dry-run", "-c", public, program=globals()[program]).returncode in (0, 1)
        assert not select.select([systemd], [], [], 0)[0]


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        pytest.param("status", "3 names: ", id="status"),
        pytest.param("check", "RESOLVER-AGENT OK - 3 names: ", id="check"),
    ],
)
def test_what_asks_needs_the_standard_library_only(command: str, said: str, tmp_path: Path) -> None:
    """An agent at the default path is asked without importing any package, which keeps these commands fast."""
    told, imported = by_the_standard_library_alone(command, prepare=default_runtime_dir(tmp_path / "run"))
    assert told.startswith(said)
    assert "asyncio" not in imported


def test_status_finds_the_agent_where_the_configuration_puts_it(running: Agent, config: Path) -> None:
    """Without -c, and with no agent at the default path, the default configuration says where to look."""
    script = f"""
        mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /etc && cp {config} /etc/resolver-agent.yml
        exec {sys.executable} -m resolver_agent.cli status
    """
    ran = subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert f"process {running.process.pid}" in ran.stdout
