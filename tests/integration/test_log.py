"""The daemon's log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from typing import TYPE_CHECKING

from resolver_agent.control import client
from tests.integration.conftest import Agent
from tests.integration.support.agent_state import status, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]


def test_a_json_log_is_one_object_a_line(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """Every line has time, level and message, and its subject in fields of its own."""
    agent = start_agent(write_config(cluster["cn"].standby, cluster, log={"format": "json"}))
    agent.wait_for_line('"name": "wk2"')
    cluster["wk1"].standby.kill()
    agent.wait_for_line('"key": "wk1:fenced"')
    assert agent.stop() == 0
    lines = [json.loads(line) for line in agent.lines]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    [wk2] = [line for line in lines if line.get("name") == "wk2"]
    assert (wk2["address"], wk2["code"], wk2["level"]) == (cluster["wk2"].standby.address, "standby", "info")
    [fault] = [line for line in lines if line.get("key") == "wk1:fenced"]
    assert (fault["level"], fault["severity"], fault["of"]) == ("critical", "critical", ["wk1"])


def test_verbosity_survives_a_reload(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """The debug line has a round's observations and decision, also after SIGHUP."""
    config = write_config(cluster["cn"].primary, cluster, log={"level": "debug"})
    agent = start_agent(config)
    agent.wait_for_line("DEBUG .*decided in .* ms")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("read .* again")
    agent.wait_for_line("DEBUG .*decided in .* ms", since=len(agent.lines))


class Journal:
    """A pipe that the agent says its log into. Nobody reads it but by ``read()``."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        self.launcher = ["sh", "-c", f'exec "$@" 2>{path}', "sh"]
        self.said = ""

    def fill(self) -> None:
        """Leave no room in it."""
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._writer, b"\n")

    def read(self) -> str:
        """Take what is in it, and return all that was said until now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said += os.read(self._reader, 1 << 20).decode()
        return self.said

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self._writer)


def test_a_journal_that_hangs_delays_nothing(
    cluster: dict[str, Group], write_config: WriteConfig, hosts_file: Path, tmp_path: Path
) -> None:
    """Where nobody reads the log a failover is written in time, requests are answered, and a stop is as short as ever.

    Once somebody reads again, there is what was said at first, and how much is missing.
    """
    config, wk1 = write_config(cluster["cn"].primary, cluster, log={"level": "debug"}), cluster["wk1"]
    with contextlib.closing(Journal(tmp_path / "journal")) as journal:
        journal.fill()
        with Agent(config, hosts_file=hosts_file, launcher=journal.launcher) as agent:
            agent.wait_for_target("wk2", cluster["wk2"].primary.address)
            for _ in range(500):  # each brings a round, and so some lines
                client.ask(str(tmp_path / "run" / "control.sock"), "pre-promote")
            wk1.primary.stop()
            wk1.standby.promote()
            agent.wait_for_target("wk1", wk1.standby.address, timeout_s=3)
            wait_until(lambda: status(config)["written"], timeout_s=3)
            wait_until(lambda: re.search(r"WARNING [1-9]\d* messages were dropped here", journal.read()))
            assert re.search(r"INFO resolver-agent .* keeps .*\n(.*\n)*.*INFO wk2 → ", journal.said)
            journal.fill()
            assert agent.stop() == 0
