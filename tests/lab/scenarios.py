"""All scenarios of the lab, and its clients' results during them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.lab import cluster_scenarios, host_scenarios
from tests.lab.health import settle
from tests.lab.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.account import Account
    from tests.lab.lab import Lab

SCENARIOS = (
    cluster_scenarios.worker_switchover,
    cluster_scenarios.worker_power_loss,
    cluster_scenarios.worker_standby_stopped,
    cluster_scenarios.worker_standby_power_loss,
    cluster_scenarios.worker_restarted,
    cluster_scenarios.coordinator_switchover,
    cluster_scenarios.coordinator_power_loss,
    cluster_scenarios.network_cut,
    cluster_scenarios.etcd_lost,
    cluster_scenarios.patroni_restarted,
    cluster_scenarios.split_brain,
    cluster_scenarios.reboots,
    cluster_scenarios.power_cut,
    cluster_scenarios.shut_down,
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


def undergo(lab: Lab, scenario: Callable[[Lab], None], **settings: Any) -> Account:
    """Run a scenario on a healthy lab while clients write and read, and return their results; for ``Traffic``."""
    settle(lab)
    event = scenario.__name__ if lab.citus else f"{scenario.__name__}, without Citus"
    with Traffic(lab, event, **settings) as traffic:
        scenario(lab)
    return traffic.account
