"""``pin``, ``unpin``, ``pause`` and ``resume`` as a shell runs them, with real servers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from resolver_agent.control import schema
from tests.integration.support.agent_state import FENCE, SETTLED, alerts, status, wait_until
from tests.integration.support.command_line import AS_NOBODY, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    StartAgent = Callable[..., Agent]
    WriteConfig = Callable[..., Path]

MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"


@pytest.fixture
def on_standby(cluster: dict[str, Group], write_config: WriteConfig) -> Path:
    """Write the configuration of the standby coordinator, which may read from primaries."""
    return write_config(cluster["cn"].standby, cluster, fallback="primary")


def sample(metrics: str, name: str) -> str:
    """Return the value of a metric."""
    found = re.search(rf"^resolver_agent_{name} (\S+)$", metrics, re.MULTILINE)
    assert found is not None, name
    return found[1]


def test_a_pin_over_a_restart(on_standby: Path, cluster: dict[str, Group], start_agent: StartAgent) -> None:
    """The name leads there from the answer on, also in the next run; it is an alert, a metric and in JSON; it ends."""
    agent, wk1 = start_agent(on_standby), cluster["wk1"]
    agent.wait_for_line(SETTLED)
    ran = run("pin", "wk1", wk1.primary.address, "--for", "1h", "--reason", "rebuild", "-c", on_standby)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(
        rf"wk1 → {wk1.primary.address} \(pinned until ({MOMENT}) \(rebuild\)\)\n"
        r"2PC recovery waits meanwhile\n",
        ran.stdout,
    )
    assert agent.target("wk1") == wk1.primary.address
    agent.wait_for_line(rf"alert: wk1 is pinned to {wk1.primary.address} until {MOMENT} \(rebuild\); ")
    assert agent.stop() == 0
    again = start_agent(on_standby)
    again.wait_for_line(SETTLED)
    assert again.target("wk1") == wk1.primary.address
    ran = run("status", "--json", "-c", on_standby)
    assert ran.returncode == 1
    found = json.loads(ran.stdout)
    assert list(Draft202012Validator(schema.status()).iter_errors(found)) == []
    [pin] = found["pins"]
    assert (pin["name"], pin["address"], pin["reason"], pin["ignored"]) == ("wk1", wk1.primary.address, "rebuild", None)
    assert [(one["key"], one["severity"]) for one in found["alerts"]] == [("wk1:pinned", "warning")]
    told = run("metrics", "-c", on_standby).stdout
    assert [sample(told, rf'name_pinned{{name="{name}"}}') for name in ("wk1", "wk2")] == ["1", "0"]
    ran = run("unpin", "wk1", "-c", on_standby)
    assert (ran.returncode, ran.stderr) == (0, "")
    again.wait_for_line("over: wk1 is pinned to")
    again.wait_for_target("wk1", wk1.standby.address)
    assert run("unpin", "wk1", "-c", on_standby).stdout == "wk1 is not pinned\n"


@pytest.mark.usefixtures("running")
def test_writes_are_not_pinned_to_a_standby(config: Path, cluster: dict[str, Group]) -> None:
    """R2: it is refused with the reason and exit code 2, by force as well, and nothing moves."""
    address = cluster["wk1"].standby.address
    for force in ([], ["--force"]):
        ran = run("pin", "wk1", address, *force, "-c", config)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert f"wk1 is not pinned to {address}: {address} was last seen in recovery" in ran.stderr
    assert (alerts(config), status(config)["pins"]) == (set(), [])


def test_a_pin_ends_where_its_server_is_no_primary(running: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """A failover goes on as without a pin, and ends it for good."""
    wk1 = cluster["wk1"]
    assert run("pin", "wk1", wk1.primary.address, "-c", config).returncode == 0
    wk1.primary.kill()
    running.wait_for_line(f"{wk1.primary.address}:{wk1.primary.port} is dead")
    assert running.target("wk1") == wk1.primary.address
    wk1.standby.promote()
    running.wait_for_target("wk1", wk1.standby.address)
    running.wait_for_line(f"the pin of wk1 to {wk1.primary.address} has ended: another server is the primary")
    wait_until(lambda: alerts(config) == set())
    assert status(config)["pins"] == []
    assert run("unpin", "wk1", "-c", config).stdout == "wk1 is not pinned\n"


def test_it_ends_by_itself(on_standby: Path, cluster: dict[str, Group], start_agent: StartAgent) -> None:
    """When the time is over, reads return to the standby."""
    agent, wk1 = start_agent(on_standby), cluster["wk1"]
    agent.wait_for_line(SETTLED)
    assert run("pin", "wk1", wk1.primary.address, "--for", "1s", "-c", on_standby).returncode == 0
    agent.wait_for_line("over: wk1 is pinned to")
    agent.wait_for_target("wk1", wk1.standby.address, timeout_s=20)
    assert status(on_standby)["pins"] == []


def test_a_pause(cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent) -> None:
    """No name is fenced for want of a standby meanwhile, also in the next run; then it is."""
    config, wk1 = write_config(cluster["cn"].standby, cluster), cluster["wk1"]
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    ran = run("pause", "--reason", "new switches", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(rf"names are paused until {MOMENT}\n2PC recovery waits meanwhile\n", ran.stdout)
    agent.wait_for_line(rf"alert: names are paused until {MOMENT} \(new switches\): none moves that does not have to")
    wk1.standby.kill()
    agent.wait_for_line("alert: wk1 → .*held; paused, otherwise fenced: no fit standby")
    assert agent.target("wk1") == wk1.standby.address
    assert agent.stop() == 0
    again = start_agent(config)
    again.wait_for_line(SETTLED)
    again.wait_for_line("alert: wk1 → .*held")
    assert again.target("wk1") == wk1.standby.address
    assert alerts(config) == {"paused", "wk1:held"}
    assert sample(run("metrics", "-c", config).stdout, "paused") == "1"
    ran = run("resume", "-c", config)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "names move again\n", "")
    again.wait_for_target("wk1", FENCE)
    assert run("resume", "-c", config).stdout == "names are not paused\n"


def test_a_promotion_in_a_pause(cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent) -> None:
    """R2, R4: when the coordinator is promoted, its names leave the standbys all the same."""
    local = cluster["cn"].standby
    config = write_config(local, cluster)
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    assert run("pause", "-c", config).returncode == 0
    cluster["cn"].primary.stop()
    local.promote()
    for name in ("wk1", "wk2"):
        agent.wait_for_target(name, cluster[name].primary.address)


def test_what_is_refused(running: Agent, public: Path, start_agent: StartAgent, cluster: dict[str, Group]) -> None:
    """A wrong time or name, no agent, and whoever may not ask: exit code 2, and the reason."""
    wk1 = cluster["wk1"].primary.address
    assert running.stop() == 0
    ran = run("pin", "wk1", wk1, "-c", public)
    assert (ran.returncode, "no agent runs in" in ran.stderr) == (2, True)
    start_agent(public).wait_for_line(SETTLED)
    for arguments, words in (
        (("pin", "wk7", wk1), "there is no name 'wk7': did you mean `wk"),
        (("pin", "wk1", "10.9.9.9", "--force"), f"wk1 is not pinned to 10.9.9.9: {wk1} is the primary"),
        (("pause", "--for", "8d"), "--for: '8d' found"),
        (("pause", "--for", "0s"), "'0s' found, expected 1s to 168h"),
    ):
        ran = run(*arguments, "-c", public)
        assert (ran.returncode, words in ran.stderr) == (2, True), ran.stderr
    ran = run("pause", "-c", public, program=AS_NOBODY)
    assert (ran.returncode, "you may not ask the agent" in ran.stderr) == (2, True)


def test_a_dry_run_without_an_agent(
    on_standby: Path, cluster: dict[str, Group], start_agent: StartAgent, tmp_path: Path
) -> None:
    """``once`` does what the agent would do with its pins, and says where it cannot know them."""
    agent, wk1 = start_agent(on_standby), cluster["wk1"]
    agent.wait_for_line(SETTLED)
    assert run("pin", "wk1", wk1.primary.address, "-c", on_standby).returncode == 0
    assert agent.stop() == 0

    def dry_run() -> Any:
        return run("dry-run", "-c", on_standby)

    assert f"wk1 → {wk1.primary.address} (pinned until" in dry_run().stdout
    (tmp_path / "state" / "overrides.json").write_text("{")
    ran = dry_run()
    assert f"wk1 → {wk1.standby.address} (standby)" in ran.stdout
    assert "overrides.json cannot be read" in ran.stderr
