"""Flushes, their failures, and 2PC recovery with real Citus, as metrics show them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.integration.support.agent_state import wait_until
from tests.unit.metrics.builders import Metrics

if TYPE_CHECKING:
    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine

CHARGE = "UPDATE accounts SET balance = balance + 1"


def metrics(citus: CitusCluster, machine: Machine) -> Metrics:
    """Return the metrics of a machine's agent."""
    return Metrics(citus.ask_agent(machine, "metrics", timeout_s=10)["text"])


def test_a_recovery(citus: CitusCluster) -> None:
    """What a pass has resolved is counted, when it ended is known, and no record is left."""
    cn1 = citus.machines["cn-1"]
    citus.run_sql(cn1, "SELECT recover_prepared_transactions()")
    citus.commit_in_doubt(cn1, CHARGE)
    cn1.kill()
    cn1.server.start()
    in_doubt = sum(len(citus.prepared(citus.machines[f"{name}-1"])) for name in ("wk1", "wk2"))
    assert in_doubt > 0
    begun = time.time()
    citus.start_agent(cn1)
    found = wait_until(
        lambda: (now := metrics(citus, cn1)).value("recoveries_total", result="done") == 1 and now, timeout_s=60
    )
    assert found.value("recovered_transactions_total") == in_doubt
    assert found.value("commit_records", database="app") == 0
    assert begun < (found.value("recovery_last_success_timestamp_seconds") or 0) <= time.time()
    assert found.value("oldest_prepared_age_seconds", database="app") == 0


def test_a_flush(citus: CitusCluster) -> None:
    """A change of a name is flushed and timed; a flush that fails is counted, and is pending until it succeeds."""
    cn1 = citus.machines["cn-1"]
    citus.start_agent(cn1)
    wait_until(lambda: metrics(citus, cn1).value("flush_pending") == 0, timeout_s=60)
    before = metrics(citus, cn1)
    assert (before.value("flushes_total", result="done") or 0) >= 1
    assert before.value("flushes_total", result="failed") == 0
    auto = cn1.server.data / "postgresql.auto.conf"
    with auto.open("a") as file:
        file.write("nonsense\n")
    old, new = citus.groups["wk1"]
    old.kill()
    new.server.promote()
    cn1.wait_for_names({"wk1": new.address})
    found = wait_until(
        lambda: (now := metrics(citus, cn1)).value("flushes_total", result="failed") and now, timeout_s=30
    )
    assert found.value("flush_pending") == 1
    assert found.value("alerts", code="flush", severity="critical") == 1
    auto.write_text(auto.read_text().replace("nonsense\n", ""))
    found = wait_until(lambda: (now := metrics(citus, cn1)).value("flush_pending") == 0 and now, timeout_s=30)
    assert (found.value("flushes_total", result="done") or 0) > (before.value("flushes_total", result="done") or 0)
    assert (found.value("change_flushed_seconds_count") or 0) > (before.value("change_flushed_seconds_count") or 0)
