"""The daemon and the hosts file: changes by others, and faults that keep it from writing."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.support.agent_state import SETTLED, add_first, alerts, count, frozen, status, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]


def test_trampling_is_repaired_and_counted(settled: tuple[Agent, Path]) -> None:
    """Changed lines of ours are restored, and lines of others are kept."""
    agent, config = settled
    content = agent.hosts_file.read_text()
    changed = "# mine\n" + content.replace(str(agent.target("wk1")), "10.9.9.9")
    agent.hosts_file.write_text(changed)
    wait_until(lambda: agent.hosts_file.read_text() == "# mine\n" + content)
    agent.wait_for_line("WARNING .*somebody else changed resolver-agent's lines; they are put back")
    assert status(config)["trampled"] == 1
    agent.hosts_file.unlink()
    wait_until(lambda: agent.hosts_file.exists() and agent.hosts_file.read_text() in content)
    wait_until(lambda: status(config)["trampled"] == 2)


def test_repeated_trampling_is_met_ever_later_and_is_an_alert(settled: tuple[Agent, Path]) -> None:
    """When others keep changing the block, the agent backs off and reports it once."""
    agent, config = settled
    wanted = str(agent.target("wk1"))
    healed_at = []
    for _ in range(6):
        agent.hosts_file.write_text(agent.hosts_file.read_text().replace(f"{wanted}\twk1", "10.9.9.9\twk1"))
        begun = time.monotonic()
        agent.wait_for_target("wk1", wanted)
        healed_at.append(time.monotonic() - begun)
    assert max(healed_at[4:]) > 2 * min(healed_at[:3])
    agent.wait_for_line("alert: .*somebody else keeps changing resolver-agent's lines")
    assert alerts(config) == {"file:trampled"}
    assert count(agent, "resolver-agent's lines") == 4


def test_other_edits_are_kept_and_no_trampling(settled: tuple[Agent, Path]) -> None:
    """A change outside the block is no fault."""
    agent, config = settled
    content = agent.hosts_file.read_bytes()
    agent.hosts_file.write_bytes(b"\xff\tmine\r\n" + content + b"10.0.0.1 last")
    add_first(config, "# for the next round\n")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("read .* again")
    assert agent.hosts_file.read_bytes() == b"\xff\tmine\r\n" + content + b"10.0.0.1 last"
    assert status(config)["trampled"] == 0


def test_a_line_of_others_with_a_managed_name_is_an_alert(settled: tuple[Agent, Path]) -> None:
    """The alert has the line number; the line is left alone, and the alert ends with it."""
    agent, config = settled
    content = agent.hosts_file.read_text()
    add_first(agent.hosts_file, "10.0.0.1\tother WK1\n")
    line = agent.wait_for_line("alert: .*line 1 also names wk1")
    assert "other WK1" in line
    assert agent.hosts_file.read_text() == "10.0.0.1\tother WK1\n" + content
    add_first(agent.hosts_file, "# one down\n")
    wait_until(lambda: "line 2 also" in status(config)["alerts"][0]["text"])
    agent.hosts_file.write_text(content)
    agent.wait_for_line("over: .*also names wk1")
    assert count(agent, "alert: ") == 1


def test_damaged_markers_stop_every_change(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """With BEGIN but no END nothing is written until that is fixed; then the names are corrected at once."""
    agent, config = settled
    content = agent.hosts_file.read_text()
    damaged = content.replace("# END resolver-agent\n", "")
    agent.hosts_file.write_text(damaged)
    agent.wait_for_line("alert: .*hosts: line 2: '# BEGIN resolver-agent' has no '# END resolver-agent' below it")
    worker = cluster["wk1"]
    worker.primary.stop()
    worker.standby.promote()
    wait_until(lambda: [n["address"] for n in status(config)["names"]][1] == worker.standby.address)
    assert agent.hosts_file.read_text() == damaged
    agent.hosts_file.write_text(content)
    agent.wait_for_target("wk1", worker.standby.address)
    agent.wait_for_line("over: .*has no '# END")
    assert count(agent, "alert: .*has no '# END") == 1
    assert status(config)["trampled"] == 0


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(("", "line 2: '# BEGIN resolver-agent' has no"), id="marker"),
        pytest.param(("wk1\n# END resolver-agent\n", "line 3: «wk1» in resolver-agent's block cannot be"), id="line"),
    ],
)
def test_a10_a_damaged_block_at_the_start(
    damage: tuple[str, str],
    cluster: dict[str, Group],
    write_config: WriteConfig,
    start_agent: StartAgent,
    hosts_file: Path,
) -> None:
    """An agent that cannot read the block reports it once, does nothing, and goes on when the line is fixed."""
    rest, fault = damage
    begin = "127.0.0.1\tlocalhost\n# BEGIN resolver-agent\n"
    damaged = begin + rest
    hosts_file.write_text(damaged)
    config = write_config(cluster["cn"].primary, cluster)
    agent = start_agent(config)
    agent.wait_for_line(f"alert: .*hosts: {fault} .* the agent does nothing until that")
    wait_until(lambda: "unknown" not in [node["kind"] for node in status(config)["nodes"]])
    assert "file" in alerts(config)
    assert hosts_file.read_text() == damaged
    hosts_file.write_text(begin + "# END resolver-agent\n")
    agent.wait_for_target("wk1", cluster["wk1"].primary.address)
    agent.wait_for_line(f"over: .*{fault}")
    assert count(agent, "alert: ") == 1


def test_an_immutable_file_is_an_alert(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """A failed write is reported once, retried, and reported once more when it works."""
    agent, config = settled
    before = agent.hosts_file.read_bytes()
    subprocess.run(["chattr", "+i", agent.hosts_file], check=True)
    try:
        cluster["wk1"].primary.stop()
        cluster["wk1"].standby.promote()
        agent.wait_for_line("alert: .*hosts cannot be written: Operation not permitted; undo a chattr")
        assert agent.hosts_file.read_bytes() == before
        wait_until(lambda: [name["address"] for name in status(config)["names"]][1] == cluster["wk1"].standby.address)
        assert status(config)["written"] is False
        assert count(agent, f"INFO wk1 → {cluster['wk1'].standby.address}") == 0
        assert "file" in alerts(config)
    finally:
        subprocess.run(["chattr", "-i", agent.hosts_file], check=True)
    agent.wait_for_target("wk1", cluster["wk1"].standby.address)
    agent.wait_for_line("over: .*Operation not permitted")
    assert count(agent, "alert: .*Operation not permitted") == 1


def test_a_full_disk_is_an_alert(
    cluster: dict[str, Group], write_config: WriteConfig, mounted: Callable[..., Path], start_agent: StartAgent
) -> None:
    """Without space the old file stays whole, and the names are written as soon as there is space."""
    hosts_file = mounted("-t", "tmpfs", "-o", "size=16k,mode=755")
    filler = hosts_file.with_name("filler")
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:  # noqa: PT012 -- one act
        while True:
            file.write(bytes(4096))
            file.flush()
    agent = start_agent(write_config(cluster["cn"].primary, cluster, hosts_file=str(hosts_file)))
    agent.wait_for_line("alert: .*cannot be written: No space left on device; free space")
    assert hosts_file.read_text() == "127.0.0.1\tlocalhost\n"
    filler.unlink()
    agent.wait_for_line("over: .*No space left on device")
    assert f"{cluster['wk1'].primary.address}\twk1" in hosts_file.read_text()
    assert count(agent, "alert: ") == 1


def test_what_is_being_written_is_not_said_to_be_written(
    cluster: dict[str, Group], write_config: WriteConfig, mounted: Callable[..., Path], start_agent: StartAgent
) -> None:
    """While a write hangs, status shows the new targets, and that none is in the file yet."""
    hosts_file = mounted("-t", "ext4", "-o", "loop")
    config = write_config(cluster["cn"].primary, cluster, hosts_file=str(hosts_file))

    def moved() -> dict[str, Any] | None:
        said = status(config)
        return said if said["names"][1]["address"] == cluster["wk1"].standby.address else None

    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    wait_until(lambda: status(config)["written"])
    with frozen(hosts_file):
        cluster["wk1"].primary.stop()
        cluster["wk1"].standby.promote()
        assert wait_until(moved)["written"] is False
        agent.wait_for_line("alert: .*hosts is still being written: its disk does not answer")
    wait_until(lambda: status(config)["written"])
    agent.wait_for_line("over: .*hosts is still being written")
    assert f"{cluster['wk1'].standby.address}\twk1" in hosts_file.read_text()
