"""Whether a stop may wait: what follows from what the local server and its Patroni say, row by row."""

from __future__ import annotations

import pytest

from resolver_agent.patroni.client import ApiError, Leadership
from resolver_agent.queue.evidence import PatroniState, ServerState, against_patroni, against_server

LEADS = Leadership(leads=True, scope="wk1", system_id=7, in_doubt=False)
DOES_NOT = Leadership(leads=False, scope="wk1", system_id=7, in_doubt=False)
IN_DOUBT = Leadership(leads=True, scope="wk1", system_id=7, in_doubt=True)
OTHER = Leadership(leads=True, scope="wk9", system_id=9, in_doubt=False)
UNNAMED = Leadership(leads=True, scope="wk1", system_id=None, in_doubt=False)
REFUSED, SILENT = ApiError("Connection refused"), ApiError("no answer within 0.3 s")

NO_ANSWER = "the local Patroni does not answer: Connection refused"
NO_LOCK = "the local Patroni does not hold the leader lock"
NO_DCS = "the local Patroni does not reach its DCS: no answer within 0.3 s"
ANOTHER = "the Patroni that answers here is not that of the local PostgreSQL"


@pytest.mark.parametrize(
    ("in_recovery", "age_s", "why"),
    [
        (False, 0.011, None),
        (False, 1.2, None),
        (False, 2.99, None),
        (False, 3.0, "the stop is not planned: the last checkpoint was 3 s ago"),
        (False, 11.7, "the stop is not planned: the last checkpoint was 12 s ago"),
        (False, 252.0, "the stop is not planned: the last checkpoint was 252 s ago"),
        (False, -0.9, None),
        (False, -3600.0, "the stop is not planned: the last checkpoint was -3600 s ago"),
        (False, float("nan"), "the stop is not planned: the last checkpoint was nan s ago"),
        (True, 65.0, None),
        (True, -3600.0, None),
    ],
)
def test_by_the_local_server(in_recovery: bool, age_s: float, why: str | None) -> None:  # noqa: FBT001 -- a table
    """A primary waits only right after a checkpoint; a standby always may."""
    assert against_server(ServerState(in_recovery=in_recovery, control_age_s=age_s), since_s=0.0) == why


@pytest.mark.parametrize(
    ("age_s", "since_s", "why"),
    [
        (5.1, 2.2, None),
        (5.3, 2.2, "the stop is not planned: the last checkpoint was 5 s ago"),
        (1.0, 4.0, None),
        (-3600.0, 4.0, "the stop is not planned: the last checkpoint was -3600 s ago"),
    ],
)
def test_a_hook_that_is_slow_to_start(age_s: float, since_s: float, why: str | None) -> None:
    """What counts is the age of the checkpoint when the hook began."""
    assert against_server(ServerState(in_recovery=False, control_age_s=age_s), since_s=since_s) == why


def test_a_server_that_says_nothing() -> None:
    """Without an answer of the server a stop does not wait."""
    assert against_server("no answer within 0.3 s", since_s=0.0) == (
        "the local PostgreSQL does not say whether the stop is planned: no answer within 0.3 s"
    )


@pytest.mark.parametrize(
    ("lock", "dcs", "primary_why", "standby_why"),
    [
        pytest.param(LEADS, None, None, None, id="a planned stop"),
        pytest.param(UNNAMED, None, None, None, id="no system identifier yet"),
        pytest.param(DOES_NOT, None, NO_LOCK, None, id="deposed"),
        pytest.param(IN_DOUBT, None, NO_LOCK, None, id="perhaps of a standby cluster"),
        pytest.param(LEADS, SILENT, NO_DCS, None, id="the DCS is gone"),
        pytest.param(REFUSED, REFUSED, NO_ANSWER, NO_ANSWER, id="Patroni is being stopped"),
        pytest.param(REFUSED, None, NO_ANSWER, NO_ANSWER, id="only half an answer"),
        pytest.param(OTHER, None, ANOTHER, ANOTHER, id="another server's Patroni"),
    ],
)
def test_by_the_local_patroni(
    lock: Leadership | ApiError, dcs: ApiError | None, primary_why: str | None, standby_why: str | None
) -> None:
    """A primary waits only with the lock and the DCS; a standby if Patroni answers."""
    state = PatroniState(lock=lock, dcs=dcs, server_id=7)
    assert against_patroni(state, in_recovery=False) == primary_why
    assert against_patroni(state, in_recovery=True) == standby_why


def test_a_server_whose_identity_is_unknown() -> None:
    """Before the agent knows the local server's identifier, Patroni's is not compared."""
    assert against_patroni(PatroniState(lock=OTHER, dcs=None, server_id=None), in_recovery=False) is None
