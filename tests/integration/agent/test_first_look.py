"""What an agent waits for before its first decision."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import TYPE_CHECKING

import pytest

from resolver_agent import agent as agent_module
from resolver_agent.agent import Agent
from resolver_agent.control import overrides
from resolver_agent.control.report import PauseStatus
from resolver_agent.system.clock import boottime
from resolver_agent.system.systemd import Notifier
from tests.unit.builders import config, group
from tests.unit.patroni.builders import in_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOWHERE = "127.0.8.77"
OTHERS = "127.0.0.1\tlocalhost\n"


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = boottime() + 20
    while not condition():
        assert boottime() < deadline
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("is_announced", [False, True])
def test_it_waits_for_what_was_decided_by_hand(
    is_announced: bool,  # noqa: FBT001 -- a row of the table
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the disk does not answer no name is changed, unless a promotion is announced; then the pause counts."""
    answers = threading.Event()

    def read(_path: str) -> overrides.Kept:
        assert answers.wait(30)
        return overrides.Kept(pause=PauseStatus(until="2100-01-01T00:00:00+00:00", reason=""))

    monkeypatch.setattr(overrides, "read", read)
    monkeypatch.setattr(overrides, "_FILE_S", 0.05)
    monkeypatch.setattr(agent_module, "_spare_the_collector", lambda: None)
    hosts = tmp_path / "hosts"
    hosts.write_text(OTHERS)
    settings = dataclasses.replace(
        config(group("wk1", NOWHERE)),
        postgresql={"user": "nobody", "dbname": "postgres"},
        local={"host": str(tmp_path), "user": "nobody", "dbname": "postgres"},
        citus=False,
        hosts_file=str(hosts),
        state_dir=str(tmp_path / "state"),
    )

    @in_loop
    async def check() -> None:
        agent = Agent(settings, notifier=Notifier({}))
        keeping = asyncio.create_task(agent._keep())
        asked: set[float] = set()

        def asked_often() -> bool:
            asked.update(one.latest.at for one in agent._observer.nodes.values() if one.latest is not None)
            return bool(agent._overrides.alerts) and agent._observer.asked_all and len(asked) > 5

        await until(asked_often)
        assert agent._decision.made_for is None
        assert hosts.read_text() == OTHERS
        if is_announced:
            agent._observer.announce()
            await until(lambda: agent._decision.made_for is not None)
            assert not agent._decision.paused
        answers.set()
        await until(lambda: agent._decision.made_for is not None)
        if is_announced:
            await until(lambda: agent._decision.paused)
        assert agent._decision.paused
        keeping.cancel()
        await asyncio.wait({keeping})
        await agent._observer.close()

    check()
