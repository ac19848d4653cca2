"""The alert about overdue recovery while the agent does not know whether the server has Citus."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.citus.maintenance import CitusMaintenance
from resolver_agent.routing.observation import LockClaim, NodeState, Role
from tests.unit.builders import Agent, config, group, primary, standby

if TYPE_CHECKING:
    from pathlib import Path

    from resolver_agent.config.model import Config, Node


@dataclasses.dataclass
class Observer:
    """The part of the observer that the maintenance reads."""

    config: Config
    nodes: dict[Node, NodeState]
    local: NodeState
    claims: dict[str, LockClaim | None] = dataclasses.field(default_factory=dict)
    max_age_s: float = 3.0


def test_recovery_is_overdue_where_nothing_can_be_flushed(tmp_path: Path) -> None:
    """A primary where no flush works may have Citus, so overdue recovery is an alert there as well."""
    settings = dataclasses.replace(
        config(group("cn", "10.0.0.1", "10.0.0.2")), local={"host": str(tmp_path), "dbname": "postgres"}
    )
    agent = Agent(settings).see({"10.0.0.1": primary(), "10.0.0.2": standby()})
    agent.see_local(primary(), address="10.0.0.1").decide()
    assert agent.decision.role is Role.PRIMARY

    async def play() -> list[str]:
        changed = asyncio.Event()
        maintenance = CitusMaintenance(changed=changed, ask_again=lambda: None)
        observer = Observer(settings, agent.states, agent.local)
        for at in (agent.now, agent.now + 182):
            changed.clear()
            for _ in range(2):
                maintenance.tick(observer, agent.decision, written=True, puts=0, now=at)  # type: ignore[arg-type]
                await asyncio.wait_for(changed.wait(), 10)
        return [alert.key for alert in maintenance.alerts]

    assert asyncio.run(play()) == ["flush", "recovery"]
