"""How long an announced promotion of the local server counts, and when the leader lock makes a standby a primary."""

from __future__ import annotations

import pytest

from resolver_agent.routing.local_server import Announced, believable, holds_lock, how_it_ended
from resolver_agent.routing.observation import Claim, Identity, Kind, NodeState, Observation

ANNOUNCED = Announced(since=100.0, receiver=7)
MAX_AGE_S = 3.0


def local(kind: Kind, at: float, receiver: int | None = None) -> NodeState:
    """Return what is known of the local server after one probe."""
    return NodeState().after(Observation(kind=kind, at=at, receiver=receiver))


STANDBY = local(Kind.STANDBY, 101.0)
KNOWN = NodeState().after(Observation(kind=Kind.STANDBY, at=101.0, identity=Identity(1, 5)))
PRIMARY = "the local PostgreSQL was promoted"
NO_LOCK = "the local Patroni does not hold the leader lock"
STREAMS = "the local PostgreSQL streams from a primary"


@pytest.mark.parametrize(
    ("state", "claim", "expected"),
    [
        pytest.param(NodeState(), None, None, id="nothing known"),
        pytest.param(STANDBY, None, None, id="still in recovery, be it for minutes"),
        pytest.param(local(Kind.STANDBY, 1e6), Claim(1e6, leads=True), None, id="no clock ends it"),
        pytest.param(local(Kind.PRIMARY, 101.0), None, PRIMARY, id="promoted"),
        pytest.param(local(Kind.PRIMARY, 101.0), Claim(101.0, leads=True), PRIMARY, id="promoted, with Patroni"),
        pytest.param(local(Kind.PRIMARY, 99.0), None, None, id="primary before it was announced"),
        pytest.param(STANDBY, Claim(101.0, leads=False), NO_LOCK, id="the lock is another's"),
        pytest.param(STANDBY, Claim(99.0, leads=False), None, id="the lock was another's before"),
        pytest.param(STANDBY, Claim(101.0, leads=True), None, id="holds the lock"),
        pytest.param(local(Kind.STANDBY, 101.0, 7), None, None, id="the WAL receiver is the one of before"),
        pytest.param(local(Kind.STANDBY, 101.0, 8), None, STREAMS, id="a new WAL receiver"),
        pytest.param(local(Kind.STANDBY, 99.0, 8), None, None, id="a WAL receiver of before"),
        pytest.param(local(Kind.STANDBY, 101.0, 8), Claim(99.0, leads=False), None, id="Patroni's word is awaited"),
        pytest.param(local(Kind.DEAD, 101.0), None, None, id="the server is down"),
    ],
)
def test_how_it_ended(state: NodeState, claim: Claim | None, expected: str | None) -> None:
    """It lasts until the promotion is seen, or what speaks against it; not by time."""
    assert how_it_ended(ANNOUNCED, local=state, claim=claim, primary_at=101.0) == expected


@pytest.mark.parametrize(
    ("announced", "primary_at", "expected"),
    [
        pytest.param(Announced(since=100.0), 101.0, STREAMS, id="there was none"),
        pytest.param(Announced(since=100.0), 99.0, None, id="no primary was seen since"),
        pytest.param(Announced(since=100.0), None, None, id="no primary was ever seen"),
        pytest.param(Announced(since=100.0, receiver_known=False), 101.0, None, id="whether there was one is unknown"),
    ],
)
def test_a_receiver_is_new_by_what_is_known_of_before(
    announced: Announced, primary_at: float | None, expected: str | None
) -> None:
    """A server that had lost its primary and streams again from one that is seen is not about to be promoted."""
    state = local(Kind.STANDBY, 101.0, 1)
    assert how_it_ended(announced, local=state, claim=None, primary_at=primary_at) == expected


def test_the_receiver_of_before_is_the_first_one_seen() -> None:
    """An agent that was started by the announcement learns only then what it was."""
    announced = Announced(since=100.0, receiver_known=False).after(NodeState())
    assert not announced.receiver_known
    announced = announced.after(local(Kind.STANDBY, 100.5, 3))
    assert announced == Announced(since=100.0, receiver=3)
    assert announced.after(local(Kind.STANDBY, 100.6, 4)) == announced


@pytest.mark.parametrize(
    ("state", "claim", "expected"),
    [
        pytest.param(STANDBY, None, False, id="no Patroni"),
        pytest.param(STANDBY, Claim(99.0, leads=False), False, id="not the leader"),
        pytest.param(STANDBY, Claim(99.0, leads=True), True, id="the leader"),
        pytest.param(local(Kind.STANDBY, 101.0, 8), Claim(99.0, leads=True), True, id="the leader a moment ago"),
        pytest.param(STANDBY, Claim(10.0, leads=True), True, id="silent since, and not connected to a primary"),
        pytest.param(local(Kind.STANDBY, 101.0, 8), Claim(10.0, leads=True), False, id="silent since, and streams"),
        pytest.param(
            local(Kind.STANDBY, 100.5, 8).after(Observation(kind=Kind.DEAD, at=101.0)),
            Claim(10.0, leads=True),
            True,
            id="silent since, and streamed before it died",
        ),
    ],
)
def test_holds_lock(state: NodeState, claim: Claim | None, expected: bool) -> None:  # noqa: FBT001 -- a table's column
    """Patroni's last word stands while it is silent, unless the server streams from a primary."""
    assert holds_lock(claim, local=state, now=101.0, max_age_s=MAX_AGE_S) is expected


@pytest.mark.parametrize(
    ("state", "system_id", "expected"),
    [
        pytest.param(NodeState(), 2, True, id="the local server was never seen"),
        pytest.param(KNOWN, 1, True, id="of its cluster"),
        pytest.param(KNOWN, None, True, id="Patroni does not say"),
        pytest.param(KNOWN, 2, False, id="of another cluster"),
    ],
)
def test_whose_claim_it_is(state: NodeState, system_id: int | None, expected: bool) -> None:  # noqa: FBT001 -- as above
    """What another server's Patroni says neither calls a promotion off nor makes a primary."""
    claim = Claim(101.0, leads=True, system_id=system_id)
    assert believable(claim, local=state) == (claim if expected else None)
