"""What an agent remembers of its changes and tells of them: over a restart, without a folder, and to a command."""

from __future__ import annotations

import datetime as dt
import json
import signal
from typing import TYPE_CHECKING, Any

from tests.integration.support.agent_state import SETTLED, alerts, edit, status, wait_until
from tests.integration.support.command_line import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    StartAgent = Callable[..., Agent]
    WriteConfig = Callable[..., Path]


def history(config: Path, *names: str) -> list[dict[str, Any]]:
    """Return the recorded changes of some names, or of all."""
    ran = run("history", "--json", "-c", config, *names)
    assert ran.returncode == 0, ran.stderr
    changes: list[dict[str, Any]] = json.loads(ran.stdout)
    return changes


def since(config: Path) -> dict[str, dt.datetime]:
    """Return since when each name has had its address."""
    names = status(config)["names"]
    return {name["name"]: dt.datetime.strptime(name["since"], "%Y-%m-%dT%H:%M:%S%z") for name in names}


def test_a_promotion_is_recorded_and_outlives_a_restart(
    settled: tuple[Agent, Path], cluster: dict[str, Group], start_agent: StartAgent
) -> None:
    """Each name's first address, and a worker's new primary with its delay; ``since`` is the same after a restart."""
    agent, config = settled
    wk1 = cluster["wk1"]
    first = {one["name"]: (one["from"], one["to"]) for one in history(config)}
    assert first == {name: (None, group.primary.address) for name, group in cluster.items()}
    wk1.primary.stop()
    wk1.standby.promote()
    agent.wait_for_target("wk1", wk1.standby.address)
    agent.wait_for_line("wk1 → " + wk1.standby.address)
    before = since(config)
    assert agent.stop() == 0
    [_, moved] = history(config, "wk1")
    assert (moved["from"], moved["to"], moved["code"], moved["wanted_role"]) == (
        wk1.primary.address,
        wk1.standby.address,
        "primary",
        "primary",
    )
    assert 0 <= moved["written_ms"] < 5000
    assert moved["flushed_ms"] is None  # there is no Citus
    start_agent(config).wait_for_line(SETTLED)
    after = since(config)
    assert set(after) == set(cluster)
    # The history has the moment of the write, the agent itself that of the decision.
    assert all(abs(after[name] - before[name]) < dt.timedelta(seconds=5) for name in cluster)
    assert after["wk1"] == dt.datetime.fromisoformat(moved["time"]).replace(microsecond=0)
    assert [one["name"] for one in history(config, "wk1")] == ["wk1", "wk1"]


def test_a_folder_that_cannot_be_used(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    """It is no reason not to start: one alert for each file says so, and the names are kept all the same."""
    (tmp_path / "file").touch()
    config = write_config(cluster["cn"].primary, cluster, state_dir=str(tmp_path / "file" / "state"))
    agent = start_agent(config)
    agent.wait_for_line("alert: .*Not a directory.*the history of changes is kept in memory alone")
    agent.wait_for_target("wk1", cluster["wk1"].primary.address)
    wait_until(lambda: alerts(config) == {"history:state", "overrides:state"})
    assert agent.stop() == 0


def test_a_command_is_run_for_a_change(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    """A reload names the command; it is told the promotion, and a failure is an alert until the next change."""
    config = write_config(cluster["cn"].primary, cluster)
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    told, broken = tmp_path / "told", tmp_path / "broken"
    script = f'echo "$RESOLVER_AGENT_NAME $RESOLVER_AGENT_FROM $RESOLVER_AGENT_TO" >>{told}; ! cat {broken}'
    edit(config, on_change={"command": ["/bin/sh", "-c", script]})
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line(f"read {config} again")
    wk1, wk2 = cluster["wk1"], cluster["wk2"]
    wk1.primary.stop()
    wk1.standby.promote()
    agent.wait_for_target("wk1", wk1.standby.address)
    moved = f"wk1 {wk1.primary.address} {wk1.standby.address}"
    wait_until(lambda: told.exists() and moved in told.read_text().splitlines())
    assert alerts(config) == set()
    broken.write_text("out of order")
    wk2.primary.stop()
    wk2.standby.promote()
    agent.wait_for_line("alert: on_change: /bin/sh ended with exit code 1: out of order; it was run for wk2")
    assert agent.target("wk2") == wk2.standby.address
    assert alerts(config) == {"on_change"}
