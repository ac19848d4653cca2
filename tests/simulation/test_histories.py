"""Histories with a name: combinations of faults that once were, or easily could be, a defect."""

from __future__ import annotations

import pytest

from resolver_agent.routing import decide, standby
from tests.simulation.faults import Fault
from tests.simulation.judge import Judge
from tests.simulation.simulate import run

HISTORIES = {
    "both servers of a worker crash at once": (Fault(3.0, 0.1, "crash", 2, 0), Fault(3.0, 0.1, "crash", 3, 0)),
    "a deposed coordinator lives on, and its Patroni hangs": (Fault(3.0, 60.0, "hang_patroni", 0, 0),),
    "the other coordinator is deposed and lives on": (Fault(3.0, 60.0, "hang_patroni", 1, 0),),
    "the agent is killed after it has written, before it has flushed": (
        Fault(2.0, 0.1, "kill_agent_after_write", 0, 0),
        Fault(2.0, 0.1, "kill_agent_after_write", 1, 0),
        Fault(3.0, 0.1, "switchover", 0, 0),
    ),
    "a worker is upgraded while a coordinator is cut off": (
        Fault(5.0, 20.0, "isolate", 1, 0),
        Fault(8.0, 0.1, "upgrade", 3, 0),
    ),
    "a worker is switched over while the disk is full": (
        Fault(5.0, 20.0, "fill_disk", 1, 0),
        Fault(5.5, 0.1, "switchover", 4, 0),
    ),
    "a coordinator and a worker are lost together": (
        Fault(5.0, 30.0, "power_loss", 0, 0),
        Fault(5.0, 30.0, "power_loss", 2, 0),
    ),
    "a foreign server takes the place of a standby, whose primary then crashes": (
        Fault(5.0, 30.0, "foreign_server", 2, 0),
        Fault(5.0, 30.0, "foreign_server", 3, 0),
        Fault(9.0, 0.1, "crash", 2, 0),
        Fault(9.0, 0.1, "crash", 3, 0),
    ),
    "a frozen agent misses a switchover of its own server": (
        Fault(4.9, 4.0, "freeze_agent", 0, 0),
        Fault(4.9, 4.0, "freeze_agent", 1, 0),
        Fault(5.0, 0.1, "switchover", 0, 0),
    ),
    "another program removes the block during a switchover": (
        Fault(5.0, 0.1, "switchover", 2, 0),
        Fault(5.2, 0.1, "edit_file", 0, 0),
        Fault(5.2, 0.1, "edit_comments", 1, 0),
        Fault(5.3, 0.1, "kill_agent", 1, 0),
    ),
    "a pin is overtaken by a promotion, and the new primary falls silent": (
        Fault(3.0, 90.0, "pin", 1, 2),
        Fault(6.0, 80.0, "power_loss", 2, 0),
        Fault(50.0, 20.0, "power_loss", 3, 0),
    ),
    "servers refuse the agents' login while recovery is due": (
        Fault(40.0, 50.0, "reject_logins", 2, 0),
        Fault(40.0, 50.0, "reject_logins", 3, 0),
    ),
    "a stop is announced and called off": (Fault(5.0, 0.1, "call_off_stop", 2, 0),),
    "the standbys of both workers lose their slots, and one has no other server": (
        *(Fault(5.0, 60.0, "lose_slot", host, 0) for host in range(2, 6)),
        Fault(12.0, 20.0, "power_loss", 2, 0),
        Fault(40.0, 0.1, "crash", 3, 0),
    ),
    "an operator updates Citus while a worker and the coordinator are switched over": (
        Fault(4.0, 20.0, "lock_nodes", 0, 0),
        Fault(5.0, 0.1, "switchover", 2, 0),
        Fault(30.0, 5.0, "lock_nodes", 0, 0),
        Fault(32.0, 0.1, "switchover", 0, 0),
    ),
    "an operator makes a restore point while both workers are switched over": (
        Fault(4.0, 20.0, "lock_records", 0, 0),
        Fault(5.0, 0.1, "switchover", 2, 0),
        Fault(6.0, 0.1, "switchover", 4, 0),
        Fault(40.0, 30.0, "lock_records", 0, 0),
    ),
}
LARGE_AND_LATE = 42
"""A world whose coordinator and first worker have three servers, and whose first worker replicates 2 s late."""
LIMITED = 3
"""A plain world whose standbys may lag for 5 s."""
LATE = 36
"""A plain world, but its first worker replicates 2 s late."""


A_THIRD_SERVER_GOES = (
    Fault(3.0, 30.0, "remove_member", 6, 0),
    Fault(8.0, 0.1, "crash", 0, 0),
    Fault(8.0, 0.1, "crash", 1, 0),
    Fault(14.0, 0.1, "switchover", 0, 0),
)


@pytest.mark.parametrize("faults", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("seed", [2, 3, 5, LARGE_AND_LATE])
def test_a_history(faults: tuple[Fault, ...], seed: int) -> None:
    """No rule is broken."""
    assert run(seed, faults).broken is None


def test_a_command_begins_right_after_the_flush() -> None:
    """It is waited for before the other server stops."""
    assert run(139).broken is None


def test_the_only_standby_that_answers_was_the_primary() -> None:
    """An agent is killed while a name queues, and the primary comes back as a standby: no read waits beside it."""
    assert run(300076).broken is None


@pytest.mark.parametrize("seed", [LATE, LARGE_AND_LATE])
def test_asynchronous_replication_loses_rows_at_a_crash_alone(seed: int) -> None:
    """What the promoted standby had not received is lost, and nothing else is wrong; a switchover loses nothing."""
    crashes = run(seed, [Fault(5.0 + 20.0 * number, 0.1, "crash", 2 + number % 2, 0) for number in range(4)])
    assert crashes.broken is None
    assert crashes.lost > 0
    planned = run(seed, [Fault(5.0 + 15.0 * number, 0.1, "switchover", 2 * number, 0) for number in range(3)])
    assert (planned.broken, planned.lost) == (None, 0)
    assert planned.failovers == len(planned.faults)


def test_reads_leave_a_standby_that_lost_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never catches up, and only the limit of its lag tells."""
    slots = [Fault(5.0, 40.0, "lose_slot", host, 0) for host in range(2, 6)]
    assert run(LIMITED, slots).broken is None
    monkeypatch.setattr(standby, "_lagging", lambda *_, **__: (False, ""))
    assert str(run(LIMITED, slots).broken).startswith("L1: a read on ")


def test_a_coordinator_whose_own_name_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its statements read no rows of their intermediate results, also where nobody looks at its file (R3)."""
    monkeypatch.setattr(Judge, "file_written", lambda *_: None)
    assert run(0).broken is None
    monkeypatch.setattr(decide, "own_addresses", lambda *_: {})
    assert str(run(0).broken).startswith("R3: a statement on ")


def test_a_third_server_is_taken_out_and_put_back() -> None:
    """Its group fails over meanwhile, and no rule is broken."""
    assert run(LARGE_AND_LATE, A_THIRD_SERVER_GOES).broken is None
