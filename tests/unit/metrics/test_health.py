"""The checks of load balancers: what is fit, and why not."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import Fallback, Route
from resolver_agent.metrics.health import CHECKS, Facts
from tests.unit.builders import Agent, config, dead, group, not_serving, primary, rejecting, standby, unreachable

if TYPE_CHECKING:
    from resolver_agent.routing.observation import Observation

A, B, C, D, E = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"


def agent(local: Observation, *, at: str = B, fallback: Fallback = Fallback.NONE, route: Route = Route.FOLLOW) -> Agent:
    """Return the agent of one of the servers of ``cn``, which observes that group and ``wk1``."""
    one = Agent(config(group("cn", A, B), group("wk1", C, D, route=route), fallback=fallback))
    one.see({A: primary(), B: standby(), C: primary(), D: standby()}).see_local(local, address=at)
    return one.decide()


def facts(one: Agent, **values: object) -> Facts:
    """Return what is known of an agent whose file is written, but for these values."""
    known = Facts(config=one.config, decision=one.decision, local=one.local, silent_s=0.5, written=True, leads=None)
    return dataclasses.replace(known, **values)  # type: ignore[arg-type]  # a test's own values


def fit(found: Facts) -> set[str]:
    """Return the checks that pass."""
    return {path for path, check in CHECKS.items() if check(found) is None}


def test_a_primary() -> None:
    """It takes writes, and reads of standbys are not its own."""
    assert fit(facts(agent(primary(), at=A))) == {"/liveness", "/readiness", "/primary"}


def test_a_standby_whose_names_lead_to_fit_standbys() -> None:
    """It serves reads."""
    assert fit(facts(agent(standby()))) == {"/liveness", "/readiness", "/read-only"}


@pytest.mark.parametrize(
    ("fallback", "seen", "why"),
    [
        pytest.param(Fallback.NONE, dead(), "wk1 → fenced (", id="fenced"),
        pytest.param(Fallback.PRIMARY, dead(), f"wk1 → {C} (", id="fallen back"),
        pytest.param(Fallback.NONE, rejecting(), f"wk1 → {D} (held", id="held"),
    ],
)
def test_a_standby_without_a_fit_standby(fallback: Fallback, seen: Observation, why: str) -> None:
    """Reads stop when a name is fenced, fallen back or held; the agent itself is well."""
    one = agent(standby(), fallback=fallback)
    one.wait(3.5).see({A: primary(), B: standby(), C: primary(), D: seen}).see_local(standby(), address=B).decide()
    found = facts(one)
    assert fit(found) == {"/liveness", "/readiness"}
    assert (CHECKS["/read-only"](found) or "").startswith(why)


@pytest.mark.parametrize(("fallback", "address", "passes"), [(Fallback.NONE, D, True), (Fallback.PRIMARY, C, False)])
def test_a_name_that_is_pinned(fallback: Fallback, address: str, passes: bool) -> None:  # noqa: FBT001 -- a table
    """The operator may choose the standby that serves reads; a primary is none."""
    one = agent(standby(), fallback=fallback).pin(address).decide()
    assert one.address() == address
    assert ("/read-only" in fit(facts(one))) is passes


def test_a_standby_whose_names_are_pinned_or_paused() -> None:
    """It serves reads as long as they lead to fit standbys, wherever they would lead otherwise."""
    one = Agent(config(group("cn", A, B), group("wk1", C, D, E)))
    one.see({A: primary(), B: standby(), C: primary(), D: standby(), E: standby()}).see_local(standby(), address=B)
    one.decide().pin(E).decide()
    assert (one.address(), "/read-only" in fit(facts(one))) == (E, True)
    one.pins.clear()
    one.paused().wait(10.5).see({A: primary(), B: standby(), C: primary(), D: standby(), E: standby()}).decide()
    assert one.leads().startswith(f"wk1 → {E} (held; paused")
    assert "/read-only" in fit(facts(one))
    one.see({E: dead()}).decide()
    assert (one.address(), "/read-only" in fit(facts(one))) == (E, False)


def test_names_with_a_fixed_route_do_not_count() -> None:
    """A name that leads to its primary by the operator's will keeps nobody from reading."""
    assert "/read-only" in fit(facts(agent(standby(), route=Route.PRIMARY)))


@pytest.mark.parametrize("seen", [dead(), not_serving()], ids=["dead", "not serving"])
@pytest.mark.parametrize("role", [primary(), standby()], ids=["primary", "standby"])
def test_a_local_server_that_is_down(role: Observation, seen: Observation) -> None:
    """Neither writes nor reads go to a server that was seen not to serve."""
    one = agent(role, at=A if role.lsn and role == primary() else B).see_local(seen).decide()
    found = facts(one)
    assert {"/primary", "/read-only"}.isdisjoint(fit(found))
    assert any("the local PostgreSQL is" in (CHECKS[path](found) or "") for path in ("/primary", "/read-only"))


def test_silence_is_no_evidence() -> None:
    """A local server that did not answer in time was not seen down."""
    assert "/primary" in fit(facts(agent(primary(), at=A).see_local(unreachable()).decide()))


@pytest.mark.parametrize(("leads", "passes"), [(None, True), (True, True), (False, False)])
def test_the_leader_lock(leads: bool | None, passes: bool) -> None:  # noqa: FBT001 -- a table
    """Where Patroni says that another server leads, nothing is written here."""
    assert ("/primary" in fit(facts(agent(primary(), at=A), leads=leads))) is passes


def test_a_file_that_is_not_written() -> None:
    """While the file is not as decided the agent lives, and nothing else passes."""
    assert fit(facts(agent(standby()), written=False)) == {"/liveness"}
    assert fit(facts(agent(primary(), at=A), written=False)) == {"/liveness"}


def test_a_name_that_is_left_out() -> None:
    """A name without an address is not resolved: the agent is not ready."""
    one = Agent(config(group("cn", A, B), group("wk1", C, D)))
    one.see({A: primary(), B: standby(), C: unreachable(), D: unreachable()}).see_local(standby(), address=B).decide()
    found = facts(one)
    assert fit(found) == {"/liveness"}
    assert CHECKS["/readiness"](found) == "left out: wk1"


def test_before_the_first_decision() -> None:
    """An agent that has decided nothing yet lives."""
    assert fit(facts(Agent(config(group("wk1", C, D))))) == {"/liveness"}


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(2.0, 10.0), (9.0, 30.0)])
def test_rounds_that_fail(timeout_s: float, limit_s: float) -> None:
    """An agent whose rounds do not succeed for three times as long as an answer counts, and 10 s, is not alive."""
    one = agent(standby())
    one.config = dataclasses.replace(one.config, timeout_s=timeout_s)
    assert "/liveness" in fit(facts(one, silent_s=limit_s - 0.1))
    assert "/liveness" not in fit(facts(one, silent_s=limit_s))


def test_without_a_local_server() -> None:
    """An application host serves no writes and no reads of its own, whatever its names lead to."""
    one = Agent(config(group("cn", A, B, route=Route.PRIMARY), has_local=False))
    found = facts(one.see({A: primary(), B: standby()}).decide())
    assert fit(found) == {"/liveness", "/readiness"}
    assert CHECKS["/primary"](found) == CHECKS["/read-only"](found) == "there is no local PostgreSQL (local: off)"
