"""What happens to the lab while clients write and read: no write is lost, and nothing goes to a wrong role."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import host_scenarios, scenarios
from tests.lab.health import settle
from tests.lab.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.account import Account
    from tests.lab.lab import Lab

SCENARIOS = (
    scenarios.worker_switchover,
    scenarios.worker_power_loss,
    scenarios.worker_standby_stopped,
    scenarios.worker_standby_power_loss,
    scenarios.coordinator_switchover,
    scenarios.coordinator_power_loss,
    scenarios.network_cut,
    scenarios.etcd_lost,
    scenarios.split_brain,
    scenarios.reboots,
    scenarios.power_cut,
    scenarios.shut_down,
    host_scenarios.agent_killed,
    host_scenarios.agent_stopped,
    host_scenarios.agent_reloaded,
    host_scenarios.agent_upgraded,
    host_scenarios.promotion_without_agent,
    host_scenarios.hosts_trampled,
    host_scenarios.hosts_immutable,
    host_scenarios.disk_full,
    host_scenarios.clock_jump,
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(lab: Lab, accounts: list[Account], scenario: Callable[[Lab], None]) -> None:
    """Names lead where they should and the right servers answer, before and after; clients lose nothing."""
    settle(lab)
    with Traffic(lab, scenario.__name__) as traffic:
        scenario(lab)
    accounts.append(traffic.account)
    assert traffic.account.well, traffic.account
