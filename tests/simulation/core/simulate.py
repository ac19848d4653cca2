"""Runs one small world from its seed."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING

from resolver_agent.config.model import Config, Fallback, Group, PatroniApi, Queue, Route
from tests.simulation.core.agent import Agent
from tests.simulation.core.faults import BY_NAME, MAX_LAG, plan
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


@functools.lru_cache(maxsize=256)
def _config(
    names: tuple[tuple[str, tuple[Node, ...], Route], ...],
    fallback: Fallback,
    max_lag_bytes: int | None,
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
            max_lag_bytes=max_lag_bytes,
            max_lag_s=None,
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


def _begin(seed: int, chance: random.Random, *, is_told: bool) -> World:
    sizes = [2] * chance.choice((2, 2, 2, 2, 3))
    if chance.random() < 0.25:
        sizes[-1] = 3
    world = World(seed, tuple(sizes), with_patroni=chance.random() < 0.8, is_told=is_told)
    world.judge = Judge(world)
    names = [(group.name, tuple(server.node for server in group.servers), Route.FOLLOW) for group in world.groups]
    if chance.random() < 0.1:
        names += [("wk1-ro", names[1][1], Route.STANDBY), ("wk1-rw", names[1][1], Route.PRIMARY)]
    config = _config(
        tuple(names),
        chance.choice((Fallback.NONE, Fallback.NONE, Fallback.PRIMARY, Fallback.PRIMARY, Fallback.ALL)),
        chance.choice((None, None, None, MAX_LAG)),
        chance.choice((0.0, 15.0)),
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
    own = plan(chance)
    given = own if faults is None else tuple(faults)
    world = _begin(seed, chance, is_told=is_told)
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
            if server.rejects or server.lag:
                server.rejects, server.lag = False, 0
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
