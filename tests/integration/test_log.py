"""The daemon's log."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

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
