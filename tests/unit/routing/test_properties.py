"""Properties over arbitrary histories: the rules R1, R2 and R3, and the system identifier rule.

A history is a list of events: observations of all kinds on all nodes, roles of the local server, silence, time,
Patroni's answers, restarts that keep only the block, and reloads. A ledger records what an observer would know.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resolver_agent.config.model import Fallback, Route
from resolver_agent.hosts import block
from resolver_agent.routing.observation import Identity, NodeState, Observation, PatroniStatus, Role
from resolver_agent.routing.state import FENCE, Target, TargetKind
from tests.unit.builders import (
    FAILBACK_S,
    FOREIGN,
    MAX_AGE_S,
    OURS,
    Agent,
    config,
    dead,
    group,
    node,
    not_serving,
    primary,
    rejecting,
    standby,
    unreachable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from resolver_agent.config.model import Config

CN = ("10.0.0.1", "10.0.0.2")
WK1 = ("10.0.1.1", "10.0.1.2", "10.0.1.3")
WK2 = ("10.0.2.1", "10.0.2.2")
EVERYWHERE = CN + WK1 + WK2
HERE = CN[0]
OWN = "cn"


def variant(fallback: Fallback, *, lag: bool = False) -> Config:
    """Return a configuration with names of every route, three of them of the local server's own group."""
    return config(
        group("cn", *CN),
        group("cn-rw", *CN, route=Route.PRIMARY),
        group("cn-ro", *CN, route=Route.STANDBY),
        group("wk1", *WK1, max_lag_bytes=100 if lag else None, max_lag_s=2.0 if lag else None),
        group("wk1-ro", *WK1, route=Route.STANDBY),
        group("wk2", *WK2),
        group("wk2-rw", *WK2, route=Route.PRIMARY),
        fallback=fallback,
    )


@dataclasses.dataclass
class World:
    """An agent, and the ledger of an observer that forgets nothing when the agent restarts."""

    agent: Agent
    started: int = 0
    last_role: dict[str, Role] = dataclasses.field(default_factory=dict)
    local_role: Role | None = None

    def see(self, host: str, seen: Observation) -> None:
        """Probe one node; the local server is always the same over its node's address and its socket."""
        if host == HERE and seen.identity is not None:
            seen = dataclasses.replace(seen, identity=Identity(OURS, self.started))
        self.agent.see({host: seen})
        self._note(host, seen)
        if host == HERE and seen.identity is not None and self.agent.local.role_seen is not None:
            mine = self.agent.states[node(HERE)].role_seen
            if mine is not None and mine.identity == self.agent.local.role_seen.identity:
                self.local_role = self.last_role[host]

    def see_local(self, seen: Observation) -> None:
        """Probe the local server; the ledger counts that as an observation of its node too."""
        if seen.identity is not None:
            seen = dataclasses.replace(seen, identity=Identity(OURS, self.started))
            self.local_role = seen.role
        self.agent.see_local(seen, address=HERE)

    def _note(self, host: str, seen: Observation) -> None:
        if seen.role is not None:
            self.last_role[host] = seen.role

    def fresh(self, host: str) -> Observation | None:
        """Return the role of an observation that has not expired."""
        state = self.agent.states.get(node(host))
        return state.fresh(now=self.agent.now, max_age_s=MAX_AGE_S) if state else None


Event = tuple[object, ...]

SYSTEM_IDS = st.sampled_from([OURS, OURS, OURS, FOREIGN])
LSNS = st.sampled_from([1000, 950, 890])
SIGHTS = st.one_of(
    st.builds(primary, lsn=LSNS, system_id=SYSTEM_IDS, started=st.integers(0, 1)),
    st.builds(standby, lsn=LSNS, system_id=SYSTEM_IDS, started=st.integers(0, 1)),
    st.sampled_from([primary(), standby(), dead(), rejecting(), unreachable(), not_serving()]),
)
SILENT_SIGHTS = st.sampled_from([rejecting(), unreachable()])
WAITS = st.sampled_from([0.05, 1.0, 2.95, MAX_AGE_S, FAILBACK_S])
WORDS = st.builds(
    PatroniStatus,
    leader=st.none() | st.sampled_from([node(host) for host in WK1]),
    excluded=st.dictionaries(
        st.sampled_from([node(host) for host in WK1]), st.just("tagged noloadbalance"), max_size=1
    ),
    system_id=st.sampled_from([None, None, None, OURS, FOREIGN]),
)
CONFIGS = st.builds(variant, st.sampled_from(Fallback), lag=st.booleans())
SIGHT = st.tuples(st.just("see"), st.sampled_from([*WK1, *WK1, *WK2, *CN]), SIGHTS)
LOCAL = st.tuples(st.just("local"), SIGHTS)
TIME = st.tuples(st.just("wait"), WAITS)
RESTART = st.tuples(st.just("agent restarts"))
EVENTS = st.one_of(
    *[SIGHT] * 8,
    *[TIME] * 3,
    *[LOCAL] * 2,
    *[RESTART] * 2,
    st.tuples(st.just("patroni"), WORDS),
    st.tuples(st.just("lock"), st.booleans()),
    st.tuples(st.just("promoting"), st.booleans()),
    st.tuples(st.just("local restarts")),
    st.tuples(st.just("reload"), CONFIGS),
)


SILENCE = st.one_of(
    st.tuples(st.just("see"), st.sampled_from(EVERYWHERE), SILENT_SIGHTS),
    st.tuples(st.just("local"), SILENT_SIGHTS),
    st.tuples(st.just("wait"), WAITS),
)


def happen(world: World, event: Event) -> None:
    """Apply one event."""
    agent = world.agent
    agent.wait(0.001)
    match event:
        case ("see", str(host), Observation() as seen):
            world.see(host, seen)
        case ("local", Observation() as seen):
            world.see_local(seen)
        case ("wait", float(seconds)):
            agent.wait(seconds)
        case ("patroni", PatroniStatus() as status):
            agent.patroni = {"wk1": status}
        case ("lock", bool(held)):
            agent.holds_lock = held
        case ("promoting", bool(promoting)):
            agent.assumed = Role.PRIMARY if promoting else None
        case ("local restarts",):
            world.started += 1
        case ("agent restarts",):
            agent.restart()
        case ("reload", changed):
            agent.config = changed  # type: ignore[assignment]
        case _:
            pytest.fail(f"unknown event {event}")


def live(world: World, history: Iterable[Sequence[Event]], check: Callable[[], None] = lambda: None) -> None:
    """Apply a history, with a decision and a check after each batch of events."""
    for batch in history:
        for event in batch:
            if event == ("agent restarts",):  # the block cannot hold an observation without a decision
                world.agent.decide()
                check()
            happen(world, event)
        world.agent.decide()
        check()


HISTORIES = st.lists(st.lists(EVENTS, min_size=1, max_size=3), min_size=4, max_size=12)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Return a world of any configuration, in which every node was asked, or none."""
    world = World(Agent(draw(CONFIGS)))
    if draw(st.booleans()):
        world.see_local(draw(st.sampled_from([primary(), standby()])))
        for host in EVERYWHERE:
            world.see(host, draw(st.sampled_from([primary(), standby(), dead(), rejecting()])))
        world.agent.decide()
    return world


WORLDS = worlds()


def addresses(agent: Agent) -> dict[str, str]:
    """Return every name's address."""
    return {target.name: target.address for target in agent.decision.targets}


@given(WORLDS, HISTORIES)
def test_never_misrouted(world: World, history: list[list[Event]]) -> None:
    """R2: names that want a primary never point to a node last seen in recovery, by this or an earlier run."""

    def check() -> None:
        agent = world.agent
        promoted = Role.PRIMARY in (world.local_role, agent.assumed) or agent.holds_lock
        for each in agent.config.groups:
            bound = each.route is Route.PRIMARY or (each.route is Route.FOLLOW and promoted)
            address = agent.address(each.name)
            if bound and address not in (None, FENCE) and each.name != OWN:
                assert world.last_role.get(str(address)) is not Role.STANDBY, agent.leads(each.name)

    live(world, history, check)


@given(WORLDS, HISTORIES)
def test_own_name_own_address(world: World, history: list[list[Event]]) -> None:
    """R3: once recognised, the local group's name points to the local server, through every restart."""
    world.see_local(standby())
    world.see(HERE, standby())
    world.agent.decide()

    def check() -> None:
        assert world.agent.leads(OWN) == f"{OWN} → {HERE} (this server)"

    live(world, history, check)


@given(WORLDS, HISTORIES, st.lists(st.lists(SILENCE, max_size=4), max_size=6))
def test_silence_moves_nothing_but_to_what_is_seen(
    world: World, history: list[list[Event]], silence: list[list[Event]]
) -> None:
    """R1: in silence a name may move only to a node that is seen in the wanted role, and none is fenced.

    The one exception in the table: several primaries remain of which none was known before. The name is fenced then.
    """
    live(world, history)
    not_asked = [host for host in EVERYWHERE if node(host) not in world.agent.states]
    world.agent.see(dict.fromkeys(not_asked, rejecting())).decide()
    before = addresses(world.agent)

    def check() -> None:
        nonlocal before
        after = addresses(world.agent)
        for target in world.agent.decision.targets:
            if before.get(target.name) == target.address:
                continue
            if target.address == FENCE:
                assert "several primaries" in target.reason.text
                continue
            seen = world.fresh(target.address)
            assert seen is not None, str(target)
            assert (target.kind is TargetKind.STANDBY) is (seen.role is Role.STANDBY), str(target)
        assert before.keys() <= after.keys()
        before = after

    live(world, silence, check)


@given(WORLDS, HISTORIES)
def test_restart_moves_nothing(world: World, history: list[list[Event]]) -> None:
    """R1: an agent that starts with only the block, and one that then asks in vain, hold all names."""
    live(world, history)
    forbidden = world.agent.config.fallback is Fallback.NONE  # by a reload, which the operator asked for
    assume(not (forbidden and any(target.kind is TargetKind.FALLBACK for target in world.agent.decision.targets)))
    before = addresses(world.agent)
    agent = world.agent.restart()
    assert addresses(agent) == before
    assert addresses(agent.decide()) == before
    for silent in (rejecting(), unreachable()):
        agent.wait(60).see(dict.fromkeys(EVERYWHERE, silent)).see_local(silent).decide()
        assert addresses(agent) == before


@given(WORLDS, HISTORIES)
def test_every_move_rests_on_evidence(world: World, history: list[list[Event]]) -> None:
    """R1: every target is seen in its role, remembered as the last primary, or unchanged."""
    before = {target.name: target for target in world.agent.decision.targets}
    known = {name: {state.memory.primary} for name, state in world.agent.decision.groups.items()}

    def check() -> None:
        for target in world.agent.decision.targets:
            old = before.get(target.name)
            before[target.name] = target
            if (old is not None and old.address == target.address) or target.name == OWN:
                continue
            seen = world.fresh(target.address)
            hosts = {"cn": CN, "wk1": WK1, "wk2": WK2}[target.name[:3].rstrip("-")]
            states = [state for host in hosts if (state := world.agent.states.get(node(host))) is not None]
            sights = [state for state in states if state.role_seen or state.serves_no_reads]
            if target.address == FENCE:
                assert sights or (old is not None and old.kind is TargetKind.STANDBY), str(target)
            elif target.kind is TargetKind.STANDBY:
                assert seen is not None
                assert seen.role is Role.STANDBY, str(target)
            elif seen is None or seen.role is not Role.PRIMARY:
                # The last known primary, for a name that had to move: its wanted role changed or its standby was lost.
                assert target.address in known[target.name], str(target)
                assert old is None or old.wanted_role is not target.wanted_role or old.kind is TargetKind.STANDBY, str(
                    target
                )
        for name, part in world.agent.decision.groups.items():
            known[name].add(part.memory.primary)

    live(world, history, check)


def members_or_strangers(strangers: set[str]) -> Callable[[Event], Event]:
    """Return a change to events that puts these nodes in another cluster, always, and all others in the group's."""

    def change(event: Event) -> Event:
        match event:
            case ("see", str(host), Observation() as seen) if seen.identity is not None:
                system_id = FOREIGN if host in strangers else OURS
                identity = seen.identity._replace(system_id=system_id)
                return ("see", host, dataclasses.replace(seen, identity=identity))
            case ("patroni", PatroniStatus() as status):
                return ("patroni", dataclasses.replace(status, system_id=None))
            case ("agent restarts",):
                return ("wait", 0.05)
            case _:
                return event

    return change


@given(WORLDS, HISTORIES, st.sets(st.sampled_from(WK1[1:] + WK2[1:]), min_size=1))
def test_foreign_node_is_never_a_target(world: World, history: list[list[Event]], strangers: set[str]) -> None:
    """A node that was foreign next to the group's own primary is never a target, however silent the others become."""
    change = members_or_strangers(strangers)
    for host in EVERYWHERE:
        happen(world, change(("see", host, primary() if host in (CN[0], WK1[0], WK2[0]) else standby())))
    world.agent.decide()

    def check() -> None:
        assert strangers.isdisjoint(addresses(world.agent).values())

    live(world, [[change(event) for event in batch] for batch in history], check)


@given(WORLDS, HISTORIES)
def test_another_identifier_needs_evidence_or_patroni(world: World, history: list[list[Event]]) -> None:
    """A known identifier changes only when no node can have it, Patroni reports another, or the old one is back.

    That holds through restarts, for every name that is in the file.
    """
    before: dict[str, tuple[int | None, int | None]] = {}

    def check() -> None:
        agent = world.agent
        for name, state in agent.decision.groups.items():
            memory = state.memory
            found = (memory.system_id, memory.replaced_id)
            known, replaced = before.get(name, (None, None))
            before[name] = found if state.target is not None else (None, None)
            if known in (None, memory.system_id):
                continue
            if agent.patroni.get(name, PatroniStatus()).system_id == memory.system_id:
                continue
            hosts = {"cn": CN, "wk1": WK1, "wk2": WK2}[name[:3].rstrip("-")]
            fresh = [one.identity.system_id for host in hosts if (one := world.fresh(host)) and one.identity]
            assert known not in fresh
            assert memory.system_id in fresh
            if memory.system_id == replaced:
                continue
            for host in hosts:
                node_state = agent.states.get(node(host), NodeState())
                seen = node_state.role_seen.identity if node_state.role_seen is not None else None
                assert node_state.dead or (seen is not None and seen.system_id != known), host

    live(world, history, check)


ROLES = st.sampled_from([primary(), standby()])


@st.composite
def calms(draw: st.DrawFn) -> dict[str, Observation]:
    """Return an observation of every node, with one primary in each group: otherwise an agent's past decides."""
    calm = {}
    for hosts in (CN, WK1, WK2):
        leader = draw(st.sampled_from(hosts))
        for host in hosts:
            calm[host] = primary() if host == leader else draw(st.sampled_from([standby(), dead()]))
    return calm


@given(WORLDS, WORLDS, st.tuples(HISTORIES, HISTORIES), calms(), ROLES)
def test_hosts_agree(
    one: World,
    other: World,
    histories: tuple[list[list[Event]], list[list[Event]]],
    calm: dict[str, Observation],
    role: Observation,
) -> None:
    """Agents with any past, on servers of the same role, give the same targets once they see the same calm cluster."""
    calm = {**calm, HERE: role, CN[1]: standby() if role.role is Role.PRIMARY else primary()}
    ours = members_or_strangers(set())
    for world, history in zip((one, other), histories, strict=True):
        live(world, [[ours(event) for event in batch] for batch in history])
        world.agent.config = one.agent.config
        world.agent.patroni, world.agent.assumed, world.agent.holds_lock = {}, None, False
        world.started += 1  # a primary becomes a standby only by a restart
        for _ in range(2 + int(FAILBACK_S)):
            world.see_local(role)
            for host, seen in calm.items():
                world.see(host, seen)
            world.agent.wait(1).decide()
    assert addresses(one.agent) == addresses(other.agent)
    first = next((host for host in WK1 if calm[host].role is Role.STANDBY), None)
    if role.role is Role.STANDBY and first is not None and one.agent.config.fallback is not Fallback.ALL:
        assert one.agent.address("wk1") == first


@given(WORLDS, HISTORIES)
def test_deciding_again_changes_nothing(world: World, history: list[list[Event]]) -> None:
    """The same observations a second time give the same targets, reasons and lasting alerts."""
    live(world, history)
    once = world.agent.decision
    twice = world.agent.decide().decision
    assert addresses_of(once.targets) == addresses_of(twice.targets)
    assert once.role == twice.role
    assert twice == world.agent.decide().decision


class Forgetful(Agent):
    """An agent that computes every group's view anew each time."""

    def decide(self) -> Agent:
        """Decide from the remembered state alone."""
        self.decision = self.decision.afresh()
        return super().decide()


@given(WORLDS, HISTORIES)
def test_looking_only_where_something_happened_changes_nothing(world: World, history: list[list[Event]]) -> None:
    """An agent that reuses views gives the same targets, reasons and alerts as one that never does."""
    other = copy.deepcopy(world)
    other.agent.__class__ = Forgetful
    seen: list[list[object]] = []
    for one in (world, other):
        decisions: list[object] = []

        def check(agent: Agent = one.agent, decisions: list[object] = decisions) -> None:
            made = agent.decision
            decisions.append((made.targets, [t.reason for t in made.targets], made.role, made.alerts, made.recheck_at))

        live(one, history, check)
        seen.append(decisions)
    assert seen[0] == seen[1]


def addresses_of(targets: Iterable[Target]) -> list[tuple[str, str]]:
    """Return names and addresses in order."""
    return [(target.name, target.address) for target in targets]


@given(WORLDS, HISTORIES)
def test_block_remembers_all_that_counts(world: World, history: list[list[Event]]) -> None:
    """Every decision can be written, and read back as the same targets."""
    live(world, history)
    targets = world.agent.decision.targets
    back = block.recall(block.render(b"", targets))
    assert back == targets
