"""When the agent lets Citus work on other nodes (rule R6): a table of what blocks it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.citus.preconditions import Evidence, blocker
from resolver_agent.config.model import PatroniApi, Route
from resolver_agent.routing.observation import LockClaim, PatroniStatus
from resolver_agent.routing.state import Code
from tests.unit.builders import MAX_AGE_S, Agent, config, dead, group, node, primary, standby, unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

CN, WK1, RO = group("cn", "10.0.0.1", "10.0.0.2"), group("wk1", "10.0.0.3", "10.0.0.4"), "10.0.0.4"
ROOM = "127.77.0.2"


def fit(*, patroni: bool = False) -> Agent:
    """Return an agent on a coordinator primary where all preconditions hold."""
    cn = dataclasses.replace(CN, patroni=PatroniApi(port=8008)) if patroni else CN
    readers = group("wk1-ro", "10.0.0.3", "10.0.0.4", route=Route.STANDBY)
    agent = Agent(config(cn, WK1, readers))
    agent.see({"10.0.0.1": primary(), "10.0.0.2": standby(), "10.0.0.3": primary(), "10.0.0.4": standby()})
    return agent.see_local(primary(), address="10.0.0.1").decide()


def asked(agent: Agent, **changes: object) -> str | None:
    """Return the blocker, if any; all evidence is from now unless ``changes`` say otherwise."""
    evidence = Evidence(
        now=agent.now,
        since=agent.now,
        max_age_s=MAX_AGE_S,
        nodes=agent.states,
        local=agent.local,
        claims={"cn": LockClaim(agent.now, leads=True)},
        written=True,
        flushed=True,
    )
    return blocker(agent.config, agent.decision, dataclasses.replace(evidence, **changes))  # type: ignore[arg-type]


def look_again(agent: Agent) -> Agent:
    """Observe the local server and its group once more."""
    agent.see({"10.0.0.1": primary(), "10.0.0.2": standby()})
    return agent.see_local(primary(), address="10.0.0.1").decide()


@pytest.mark.parametrize("patroni", [False, True], ids=["SQL alone", "with Patroni"])
def test_nothing_forbids_it(patroni: bool) -> None:  # noqa: FBT001 -- a table's column
    """A coordinator primary among confirmed primaries may recover; the standby of a read-only name does not matter."""
    assert asked(fit(patroni=patroni)) is None


def test_a_fixed_route_of_the_own_group() -> None:
    """A second name of the local group that wants the primary must lead to the confirmed one, as others must."""
    agent = fit()
    names = (group("cn-rw", "10.0.0.1", "10.0.0.2", route=Route.PRIMARY), group("cn-ro", RO, route=Route.STANDBY))
    agent.config = dataclasses.replace(agent.config, groups=(*agent.config.groups, *names))
    assert asked(look_again(agent)) is None
    # It was told that another server is the primary, and that one does not answer any more.
    held = dataclasses.replace(agent.decision.groups["cn-rw"].reason, code=Code.HELD)
    groups = {**agent.decision.groups, "cn-rw": dataclasses.replace(agent.decision.groups["cn-rw"], reason=held)}
    agent.decision = dataclasses.replace(agent.decision, groups=groups)
    assert str(asked(agent)).startswith("no confirmed primary: cn-rw")


def test_a_fenced_name_does_not_hold_up_the_others() -> None:
    """A fence leads to no server, so Citus cannot draw a wrong conclusion from it."""
    agent = fit()
    agent.see({"10.0.0.3": standby(), "10.0.0.4": standby()}).decide()
    assert agent.address("wk1") == "255.255.255.255"
    assert asked(agent) is None


def test_what_the_operator_has_pinned_or_paused() -> None:
    """Nothing is resolved while a name in the metadata is pinned, even to where it would lead anyway, or is paused."""
    assert asked(fit().pin("10.0.0.3").decide()) == "wk1 is pinned"
    assert asked(fit().pin("10.0.0.4").decide()) == "wk1 is pinned"
    assert asked(fit().paused().decide()) == "names are paused"
    assert asked(fit().pin("10.0.0.3", "wk1-ro").pin("10.0.0.1", "cn").decide()) is None
    assert asked(look_again(fit().pin("10.0.0.3", for_s=1).wait(2).see({"10.0.0.3": primary()}))) is None


def test_a_leader_among_several_primaries_may() -> None:
    """Recovery goes on where Patroni says that the local server is the primary of its group."""
    agent = fit(patroni=True)
    agent.patroni = {"cn": PatroniStatus(leader=node("10.0.0.1"))}
    agent.see({"10.0.0.2": primary()}).decide()
    assert asked(agent) is None


def in_recovery(agent: Agent) -> None:
    """Make the local server a standby."""
    agent.see({"10.0.0.1": standby(), "10.0.0.2": primary()}).see_local(standby(), address="10.0.0.1").decide()


def down(agent: Agent) -> None:
    """Make the local server dead."""
    agent.see({"10.0.0.1": dead()}).see_local(dead()).decide()


def leader_to_come(agent: Agent) -> None:
    """Let a worker's standby hold the leader lock before its promotion, while the old primary still runs."""
    agent.patroni = {"wk1": PatroniStatus(leader=node("10.0.0.4"))}
    agent.decide()


def unknown_here(agent: Agent) -> None:
    """Make the local server none of the nodes."""
    agent.decision = Agent(agent.config).decision
    agent.see_local(primary(started=5)).decide()


def rival(agent: Agent) -> None:
    """Give the local group two primaries, with nothing to settle it."""
    agent.see({"10.0.0.2": primary()}).decide()


def rival_leads(agent: Agent) -> None:
    """Give the local group two primaries; the other one holds the lock."""
    agent.patroni = {"cn": PatroniStatus(leader=node("10.0.0.2"))}
    rival(agent)


def worker_dies(agent: Agent) -> None:
    """Make a worker's primary dead: its name is held."""
    agent.see({"10.0.0.3": dead()}).decide()


def worker_splits(agent: Agent) -> None:
    """Give a worker two primaries."""
    agent.see({"10.0.0.4": primary()}).decide()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(in_recovery, "has not just been seen as a primary", id="the local server is a standby"),
        pytest.param(down, "has not just been seen as a primary", id="the local server is down"),
        pytest.param(unknown_here, "is not a node of any name", id="the local server is in no group"),
        pytest.param(rival, "not the accepted primary of cn (last known primary; several", id="two primaries"),
        pytest.param(rival_leads, "not the accepted primary of cn (holds the leader lock", id="another leads"),
        pytest.param(worker_dies, "no confirmed primary: wk1 → 10.0.0.3 (held", id="a worker is held"),
        pytest.param(leader_to_come, "wk1: 10.0.0.4 holds the leader lock", id="a worker's primary was deposed"),
        pytest.param(worker_splits, "no confirmed primary: wk1 → 10.0.0.3 (last known", id="a worker is split"),
    ],
)
def test_what_is_seen_forbids_it(change: Callable[[Agent], None], words: str) -> None:
    """A doubt about the local role, or about the target of any name, blocks it."""
    agent = fit()
    change(agent)
    assert words in str(asked(agent))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"written": False}, "the hosts file does not hold", id="not written"),
        pytest.param({"flushed": False}, "not flushed yet", id="not flushed"),
        pytest.param({"claims": {}}, "does not say that it leads cn", id="Patroni never answered"),
        pytest.param({"claims": {"cn": None}}, "does not say that it leads cn", id="Patroni is silent"),
        pytest.param({"claims": {"cn": LockClaim(99.0, leads=True)}}, "does not say", id="Patroni's status is too old"),
        pytest.param(
            {"claims": {"cn": LockClaim(100.0, leads=False)}}, "does not hold the leader lock", id="not leader"
        ),
        pytest.param({"since": 101.0}, "has not just been seen as a primary", id="nothing was asked since"),
    ],
)
def test_what_is_not_known_forbids_it(changes: dict[str, object], words: str) -> None:
    """Evidence that is missing or older than the request blocks it."""
    assert words in str(asked(fit(patroni=True), **changes))


def test_a_standby_that_may_be_the_primary_by_now_forbids_it() -> None:
    """The whole local group is asked again, but the agent does not wait for silent nodes."""
    agent = fit().wait(0.5)
    agent.see({"10.0.0.1": primary()}).see_local(primary(), address="10.0.0.1").decide()
    assert asked(agent) == "10.0.0.2 of cn has not answered again yet"
    agent.see({"10.0.0.2": standby()}).decide()
    assert asked(agent) is None
    agent.see({"10.0.0.2": unreachable()}).wait(MAX_AGE_S)
    agent.see({"10.0.0.1": primary(), "10.0.0.3": primary()}).see_local(primary(), address="10.0.0.1").decide()
    assert asked(agent) is None


def test_only_what_was_decided_on_counts() -> None:
    """The same answers again count without another decision; answers that differ do not."""
    agent = fit().wait(0.5)
    agent.see({"10.0.0.1": primary(), "10.0.0.2": standby()}).see_local(primary(), address="10.0.0.1")
    assert asked(agent) is None
    agent.see({"10.0.0.2": primary(timeline=8)})
    assert asked(agent) == "10.0.0.2 of cn has not answered again yet"
    agent.see({"10.0.0.1": standby(started=1), "10.0.0.2": standby()})
    assert asked(agent) == "the primary of cn has not just been seen"


def test_the_leader_of_a_worker_is_no_blocker() -> None:
    """It may run where Patroni and SQL agree on a worker, and where Patroni has no status for it."""
    agent = fit()
    agent.patroni = {"wk1": PatroniStatus(leader=node("10.0.0.3"))}
    assert asked(agent.decide()) is None
    agent.patroni = {"wk1": PatroniStatus(excluded={node("10.0.0.4"): "noloadbalance"})}
    assert asked(agent.decide()) is None


def test_a_word_grows_old() -> None:
    """The status of a Patroni that has hung since it was asked expires, however often the server itself answers."""
    agent = fit(patroni=True)
    claim = {"cn": LockClaim(agent.now, leads=True)}
    since = agent.now
    for _ in range(3):
        look_again(agent.wait(MAX_AGE_S / 2.5))
        agent.see({"10.0.0.3": primary(), "10.0.0.4": standby()}).decide()
    assert asked(agent, since=since, claims=claim) == "the local Patroni does not say that it leads cn"


def test_a_name_that_is_left_out_forbids_it() -> None:
    """The target of a name that is not in the file is unknown."""
    agent = Agent(config(CN, WK1))
    agent.see({"10.0.0.1": primary(), "10.0.0.2": standby()}).see_local(primary(), address="10.0.0.1").decide()
    assert asked(agent) == "wk1 is left out of the hosts file"


def test_a_name_that_queues_forbids_it() -> None:
    """A waiting room is no server, and what it forwards to is not confirmed; it may go on with the next primary."""
    agent = fit()
    agent.rooms = {"wk1": ROOM}
    agent.stops("10.0.0.3").decide()
    assert agent.address("wk1") == ROOM
    assert str(asked(agent)).startswith(f"no confirmed primary: wk1 → {ROOM}")
    agent.see({"10.0.0.3": standby(started=1), "10.0.0.4": primary(timeline=8)}).decide()
    assert asked(agent) is None
