"""Runs one small world from its seed."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, NamedTuple

from resolver_agent.config.model import Config, Fallback, Group, PatroniApi, Queue, Route
from tests.simulation.core.agent import Agent
from tests.simulation.core.faults import BY_NAME, MAX_LAG, MAX_LAG_S, STALLS, STOPS, TEARS, plan
from tests.simulation.core.judge import Judge
from tests.simulation.core.world import State, World
from tests.simulation.simulate import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resolver_agent.config.model import Node
    from tests.simulation.faults import Fault

REST_S = 30.0
"""So long after the last fault has begun, and after whatever it has begun, everything is mended."""
SETTLE_S = 20.0
"""So long after that everything has to be right: a look at all servers, and ``failback_delay``."""
QUIET_S = (1.0, 5.0, 60.0)
_API = PatroniApi(port=8008)
_LONGEST = 50
_SHAPES = 16
"""A seed's remainder by this tells the shape of its world; the seeds that find mutations of old have other remainders.
"""
_WITH_SECONDS, _WITH_STOPS, _WITH_TEARS = 15, 7, 5
_LIMITS = ((MAX_LAG_S, None), (MAX_LAG_S, MAX_LAG), (2 * MAX_LAG_S, MAX_LAG))


class Shape(NamedTuple):
    """What some worlds have: a limit of lag in seconds beside that in bytes, stops of standbys, torn writes."""

    max_lag_s: float | None = None
    max_lag_bytes: int | None = None
    has_stops: bool = False
    has_tears: bool = False

    @classmethod
    def of(cls, seed: int) -> Shape:
        """Return that of a seed."""
        rest = seed % _SHAPES
        max_lag_s, max_lag_bytes = _LIMITS[seed // _SHAPES % len(_LIMITS)] if rest == _WITH_SECONDS else (None, None)
        return cls(max_lag_s, max_lag_bytes, has_stops=rest == _WITH_STOPS, has_tears=rest == _WITH_TEARS)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of faults that only such worlds have."""
        stalls = STALLS if self.max_lag_s is not None else ()
        return stalls + (STOPS if self.has_stops else ()) + (TEARS if self.has_tears else ())


@functools.lru_cache(maxsize=256)
def _config(
    names: tuple[tuple[str, tuple[Node, ...], Route], ...],
    fallback: Fallback,
    limits: tuple[int | None, float | None],
    planned_s: float,
    unplanned_s: float,
    *,
    with_patroni: bool,
) -> Config:
    groups = tuple(
        Group(
            name=name,
            nodes=nodes,
            route=route,
            max_lag_bytes=limits[0],
            max_lag_s=limits[1],
            failback_delay_s=10.0,
            patroni=_API if with_patroni else None,
            queue=Queue(planned_s=planned_s, drain_s=2.0, unplanned_s=unplanned_s),
        )
        for name, nodes, route in names
    )
    return Config(
        path="/sim/resolver-agent.yml",
        fallback=fallback,
        groups=groups,
        postgresql={},
        local={},
        interval_s=1.0,
        timeout_s=2.0,
        citus=True,
        hosts_file="/sim/hosts",
        runtime_dir="/sim/run",
        state_dir="/sim/state",
        log_format="text",
        log_level="info",
    )


def _begin(seed: int, shape: Shape, chance: random.Random, *, is_told: bool) -> World:
    sizes = [2] * chance.choice((2, 2, 2, 2, 3))
    if chance.random() < 0.25:
        sizes[-1] = 3
    if shape.has_stops:  # a reader has somewhere to go
        sizes[1] = 3
    world = World(seed, tuple(sizes), with_patroni=chance.random() < 0.8, is_told=is_told)
    world.judge = Judge(world)
    if shape.max_lag_s is not None:
        for group in world.groups:
            group.idles = chance.random() < 0.5
    names = [(group.name, tuple(server.node for server in group.servers), Route.FOLLOW) for group in world.groups]
    if chance.random() < 0.1:
        names += [("wk1-ro", names[1][1], Route.STANDBY), ("wk1-rw", names[1][1], Route.PRIMARY)]
    fallback = chance.choice((Fallback.NONE, Fallback.NONE, Fallback.PRIMARY, Fallback.PRIMARY, Fallback.ALL))
    max_lag_bytes = chance.choice((None, None, None, MAX_LAG))
    planned_s = chance.choice((0.0, 15.0))
    config = _config(
        tuple(names),
        fallback,
        (max_lag_bytes, None) if shape.max_lag_s is None else (shape.max_lag_bytes, shape.max_lag_s),
        15.0 if shape.has_stops else planned_s,
        chance.choice((0.0, 0.0, 0.0, 10.0)),
        with_patroni=world.with_patroni,
    )
    hosts = chance.choice(((0,), (1,), (0,), (1,), (0,), (1,), (0,), (2,), (3,), (0, 1)))
    world.agents = [Agent(world, world.servers[number], config) for number in hosts]
    world.tell(f"seed {seed}: agents on {hosts}, {sizes}, {config.fallback}, {config.groups[0]}")
    for agent in world.agents:
        agent.begin()
    return world


def run(seed: int, faults: Sequence[Fault] | None = None, *, is_told: bool = False) -> Result:
    """Run the world of a seed, with its own faults or with these."""
    chance = random.Random(seed)  # noqa: S311
    shape = Shape.of(seed)
    own = plan(chance, shape.kinds)
    given = own if faults is None else tuple(faults)
    world = _begin(seed, shape, chance, is_told=is_told)
    last = world.now
    for fault in given:
        world.after(fault.at, _start, world, fault)
        last = max(last, world.now + fault.at + fault.lasts)
    world.run(last + REST_S)
    for _ in range(_LONGEST):
        if world.is_over or not any(group.is_busy for group in world.groups):
            break
        world.run(world.now + 1.0)
    if not world.is_over:
        _mend(world)
        if shape.max_lag_s is not None:  # one look does not tell such a lag
            world.look_for(SETTLE_S)
        world.run(world.now + SETTLE_S)
    if not world.is_over:
        _judge_end(world)
    return Result(
        seed=seed,
        faults=given,
        broken=world.judge.broken,
        failovers=world.failovers,
        statements=0,
        failures=0,
        moves=world.judge.moves,
        events=world.events,
        simulated_s=world.now - 1000.0,
        story=tuple(world.story or ()),
    )


def _start(world: World, fault: Fault) -> None:
    world.start(BY_NAME[fault.kind](world, fault))


def _mend(world: World) -> None:
    """Let all servers run in their roles, and all agents see them."""
    world.tell("everything is mended")
    for group in world.groups:
        group.excluded.clear()
        if group.leader is None:
            group.leader = group.servers[0]
        for server in group.servers:
            if server.rejects or server.falls_behind:
                server.rejects, server.lag, server.stalled_at = False, 0, None
                world.changed(server)
            server.hangs = False
            if server is group.leader:
                if not server.is_primary:
                    world.boot(server, recovery=False)
            elif server.state is not State.UP or not server.recovery or server.is_foreign:
                world.boot(server, recovery=True)
        world.lead(group, group.leader)
    for agent in world.agents:
        agent.dies, agent.pause = None, None
        if agent.is_blind:  # nothing may tell it how the promotion ended: the operator does
            agent.announced = None
        agent.pins.clear()
        agent.begin()
        agent.news += 1
        world.after(10.0, agent.reload)


def _judge_end(world: World) -> None:
    """Judge the end, and that nothing moves any more."""
    world.judge.judge_end()
    moves = world.judge.moves
    for pause_s in QUIET_S:
        world.run(world.now + pause_s)
        for agent in world.agents:
            agent.wake()
        world.run(world.now + _LONGEST / 1000)
    if world.judge.moves != moves and world.judge.broken is None:
        world.judge.broken = f"{world.judge.moves - moves} moves of names in the quiet time"
    world.judge.judge_end()
