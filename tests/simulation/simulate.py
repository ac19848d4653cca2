"""Runs one world from its seed, tells its story, and makes the story of a failure short."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING

from resolver_agent.config.model import Config, Fallback, Group, PatroniApi, Queue, Route
from tests.simulation import citus
from tests.simulation.faults import BY_NAME, PLANNED_KINDS, Fault, further, plan, planned_work
from tests.simulation.judge import Judge
from tests.simulation.process import Process, replaced
from tests.simulation.world import GROUPS, Shape, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.simulation.citus import Steps
    from tests.simulation.world import Host

SETTLE_S = 45.0
"""How long after the last fault everything has to be right: a ttl, a restart, ``failback_delay``."""
QUIET_S = 70.0
"""How long it then has to stay so; 2PC recovery comes once a minute."""

PLANNED = 0.15
"""The share of worlds in which nothing goes wrong, and operators work: there no statement may fail."""

EARLY_S, LATE_S, DENSE_S = 0.2, (8.0, 2.0), (0.03, 0.2)
"""Clients are busy from so long before a fault until so long after it (in worlds with planned work alone: the second),
and how long they then pause there."""

_API = PatroniApi(port=8008)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How a world ended: what was broken, if anything, and its figures.

    ``lost`` are the acknowledged rows that asynchronous replication has lost.
    """

    seed: int
    faults: tuple[Fault, ...]
    broken: str | None
    failovers: int
    statements: int
    failures: int
    moves: int
    events: int
    simulated_s: float
    lost: int = 0
    story: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """The configuration of one world."""

    fallback: Fallback
    with_patroni: bool
    planned_s: float
    unplanned_s: float
    extra: bool
    agents: tuple[int, ...]
    no_rooms: bool
    is_planned: bool
    is_hooked: bool = True
    max_lag_s: float | None = None

    @classmethod
    def of(cls, random: random.Random) -> Setting:
        """Return one by chance."""
        if random.random() < PLANNED:
            fallback = random.choice((Fallback.NONE, Fallback.PRIMARY, Fallback.ALL))
            return cls(
                fallback=fallback,
                with_patroni=True,
                planned_s=15.0,
                unplanned_s=0.0,
                extra=False,
                agents=tuple(range(6)),
                no_rooms=False,
                is_planned=True,
            )
        agents = [0, 1, *(number for number in range(2, 6) if random.random() < 0.35)]
        return cls(
            fallback=random.choice((Fallback.NONE, Fallback.PRIMARY, Fallback.ALL)),
            with_patroni=random.random() < 0.85,
            planned_s=random.choice((0.0, 15.0, 15.0)),
            unplanned_s=random.choice((0.0, 0.0, 10.0)),
            extra=random.random() < 0.2,
            agents=tuple(agents),
            no_rooms=random.random() < 0.1,
            is_planned=False,
            is_hooked=random.random() < 0.9,
            max_lag_s=random.choice((None, None, 5.0)),
        )


def configuration(world: World, host: Host, setting: Setting) -> Config:
    """Return the configuration of the agent on a host."""
    removed = world.removed.get(host.number)
    names = [(name, name, Route.FOLLOW) for name in GROUPS]
    if setting.extra:
        names += [("wk1-ro", "wk1", Route.STANDBY), ("wk1-rw", "wk1", Route.PRIMARY)]
    groups = tuple(
        Group(
            name=name,
            nodes=tuple(one.node for one in world.group_of(place).hosts if one.address != removed),
            route=route,
            max_lag_bytes=None,
            max_lag_s=setting.max_lag_s,
            failback_delay_s=10.0,
            patroni=_API if setting.with_patroni else None,
            queue=Queue(planned_s=setting.planned_s, drain_s=2.0, unplanned_s=setting.unplanned_s),
        )
        for name, place, route in names
    )
    return Config(
        path=f"/sim/{host.number}/resolver-agent.yml",
        fallback=setting.fallback,
        groups=groups,
        postgresql={},
        local={},
        interval_s=1.0,
        timeout_s=2.0,
        citus=True,
        hosts_file=f"/sim/{host.number}/hosts",
        runtime_dir=f"/sim/{host.number}/run",
        state_dir=f"/sim/{host.number}/state",
        log_format="text",
        log_level="info",
    )


class _Clients:
    """Clients on both coordinators, each in a session that lives as long as its server's run."""

    def __init__(self, world: World, faults: Sequence[Fault], begun: float) -> None:
        self._world = world
        self._sessions: dict[int, citus.Session] = {}
        planned = world.judge.is_planned
        self._busy = [
            (begun + one.at - EARLY_S, begun + one.at + one.lasts + LATE_S[planned])
            for one in faults
            if one.lasts < SETTLE_S
        ]
        self._pace_s = DENSE_S if planned else (0.15, 0.8)

    def begin(self, until: float) -> None:
        """Work until then."""
        for host in self._world.groups[0].hosts:
            for number in range(2):
                self._world.after(self._world.between(1.0, 2.0), self._turn, host, number, until)

    def _turn(self, host: Host, number: int, until: float) -> None:
        world, server = self._world, host.server
        if world.now > until:
            return
        world.after(self._pause_s(), self._turn, host, number, until)
        if not (host.up and server.up and server.serving) or server.stopped:
            return
        key = 2 * host.number + number
        session = self._sessions.get(key)
        if session is None or session.run != server.run:
            session = self._sessions[key] = citus.Session(host, server.run, self._world.new_number(), number)
        if not session.is_busy:
            session.is_busy = True
            self._step(session, citus.read(world, session) if server.recovery else citus.write(world, session))

    def _pause_s(self) -> float:
        """Return how long a client pauses: hardly while something happens."""
        world, now = self._world, self._world.now
        if any(begin <= now < end for begin, end in self._busy):
            return world.between(*self._pace_s)
        next_at = min((begin for begin, _ in self._busy if begin > now), default=now + 6.0)
        return min(world.between(2.0, 6.0), next_at - now + world.between(0.0, EARLY_S))

    def _step(self, session: citus.Session, steps: Steps) -> None:
        pause_s = next(steps, None)
        if pause_s is not None:
            self._world.after(pause_s, self._step, session, steps)
        else:
            session.is_busy = False


def run(seed: int, faults: Sequence[Fault] | None = None, *, is_told: bool = False) -> Result:
    """Run the world of a seed, with its own faults or with these."""
    chance = random.Random(seed)  # noqa: S311
    setting = Setting.of(chance)
    shape = Shape.of(seed)
    world = World(seed, shape, is_told=is_told)
    count = len(world.hosts)
    own = planned_work(chance, count) if setting.is_planned else plan(chance, count)
    if world.further is not None and not setting.is_planned:
        own = (*own, *further(world.further, own))
    given = own if faults is None else tuple(faults)
    with_agent = [host.number for host in world.hosts[6:] if setting.is_planned or host.group.name == "cn"]
    setting = dataclasses.replace(setting, agents=(*setting.agents, *with_agent))
    world.judge = Judge(world)
    world.judge.is_planned = setting.is_planned and all(one.kind in PLANNED_KINDS for one in given)
    world.is_hooked, world.max_lag_s = setting.is_hooked, setting.max_lag_s
    world.readers_share = setting.fallback is Fallback.NONE and len(world.groups[0].hosts) == 2
    world.tell(f"seed {seed}: {setting}, {shape}")
    world.uses_patroni(with_patroni=setting.with_patroni)

    def begin_agent(host: Host) -> None:
        host.process = Process(world, host, configuration(world, host, setting))

    world.begin_agent = begin_agent
    world.reread = lambda config: configuration(world, world.hosts[int(config.path.split("/")[2])], setting)
    world.agents = [world.hosts[number] for number in setting.agents]
    with replaced(world):
        try:
            _run(world, setting, given)
        finally:
            for host in world.agents:
                if host.process is not None:
                    host.process.kill()
    return Result(
        seed=seed,
        faults=given,
        broken=world.judge.broken,
        failovers=world.failovers,
        statements=world.judge.statements,
        failures=world.judge.failures,
        moves=world.judge.moves,
        events=world.scheduler.events,
        lost=world.judge.lost,
        simulated_s=world.now - 1000.0,
        story=tuple(world.story),
    )


def _run(world: World, setting: Setting, faults: Sequence[Fault]) -> None:
    for host in world.agents:
        host.no_rooms = setting.no_rooms
        world.after(world.between(0.0, 0.5), world.start_agent, host)
    begun = world.now + 3.0
    last = begun
    for fault in faults:
        world.scheduler.at(begun + fault.at, _begin, world, fault)
        if fault.lasts < SETTLE_S * 4:
            last = max(last, begun + fault.at + fault.lasts)
    clients = _Clients(world, faults, begun)
    clients.begin(last + SETTLE_S / 2)
    world.scheduler.run(last + SETTLE_S)
    before = world.judge.moves
    world.tell("the quiet time begins")
    world.scheduler.run(last + SETTLE_S + QUIET_S)
    if world.judge.broken is not None:
        return
    world.judge.judge_end(configuration(world, world.hosts[0], setting), moves=world.judge.moves - before)


def _begin(world: World, fault: Fault) -> None:
    host, other = world.hosts[fault.host], world.hosts[fault.other]
    if fault.kind == "promote_by_hand":
        world.judge.is_certain = False
    world.tell(f"FAULT {fault.kind} of {host}{f', {other}' if other is not host else ''} for {fault.lasts:.2f} s")
    end = BY_NAME[fault.kind](world, host, other)
    if end is not None:
        world.after(fault.lasts, _end, world, fault, end)


def _end(world: World, fault: Fault, end: object) -> None:
    world.tell(f"over: {fault.kind} of {world.hosts[fault.host]}")
    assert callable(end)
    end()


def tell_shortest(result: Result, run: Callable[..., Result] = run) -> str:
    """Return what is broken in a world, by which few faults, and the story of those."""
    fewer = shrink(result.seed, result.faults, run)
    story = "\n".join(run(result.seed, fewer, is_told=True).story)
    return f"seed {result.seed}: {result.broken}\nfaults: {', '.join(map(str, fewer))}\n{story}"


def shrink(seed: int, faults: Sequence[Fault], run: Callable[..., Result] = run) -> tuple[Fault, ...]:
    """Return as few of the faults as still break a rule of the same letter; ``run`` is that of the kind of world."""
    first = run(seed, faults)
    rule = _rule(first.broken)
    kept = [*faults]
    size = max(1, len(kept) // 2)
    while size:
        at = 0
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            if rule is not None and _rule(run(seed, fewer).broken) == rule:
                kept = fewer
            else:
                at += size
        size //= 2
    return tuple(kept)


def _rule(broken: str | None) -> str | None:
    return None if broken is None else broken.partition(":")[0][:12]
