"""What goes wrong in the small worlds, and what operators do. Each kind is a generator of steps.

To add one: write the generator, and name it in ``KINDS`` with its weight.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from resolver_agent.config.model import Route
from resolver_agent.routing.observation import Identity, Pause, Pin, Role, Stage, Window
from tests.simulation.core.agent import Death
from tests.simulation.core.world import LOOK_S, WAL, State
from tests.simulation.faults import Fault
from tests.simulation.judge import FOREIGN, UPGRADED

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Generator, Iterator

    from resolver_agent.routing.observation import Observation
    from tests.simulation.core.agent import Agent
    from tests.simulation.core.world import Group, Server, Steps, World

_PATIENCE = 8
_BLINK_S = 1.0
MAX_LAG = 20 * WAL
"""The limit of lag where there is one, in bytes: far more than a primary writes between two looks of an agent."""
MAX_LAG_S = 12.0
"""The limit of lag where there is one in seconds: few groups go for much longer without a failover."""
_CALLED_OFF_S = 10.0
"""So long it takes at the most until everybody knows that a stop does not happen."""
_LOOKS = 4
"""So many times at least an agent looks at a server that lags."""
_KILLED = 0.3
"""The share of standbys that lag while an agent is killed: it then does not know how far."""
_ALONE = 0.5
"""The share of standbys that lag while nobody fails over their group."""
_SAID = 0.5
"""The share of stops that are called off with a word."""
_STARTS = 0.3
"""The share of servers that are met while they start."""


def _group(world: World, fault: Fault) -> Group:
    return world.groups[fault.host % len(world.groups)]


def _agent(world: World, fault: Fault) -> Agent:
    return world.agents[fault.other % len(world.agents)]


def _standbys(group: Group) -> list[Server]:
    return [server for server in group.servers if server is not group.leader]


def _candidate(group: Group, choice: int) -> Server | None:
    fit = [server for server in group.servers if server.may_lead and server is not group.leader]
    return fit[choice % len(fit)] if fit else None


def _find_pair(world: World, fault: Fault) -> Generator[float, None, Group | None]:
    """Wait until a group has a primary and a standby that could take its place, and nobody else works on it."""
    count = len(world.groups)
    for _ in range(_PATIENCE):
        for number in range(fault.host, fault.host + count):
            if _is_ready(world.groups[number % count], fault.other):
                return world.groups[number % count]
        yield _BLINK_S
    return None


def _is_ready(group: Group, choice: int) -> bool:
    leader = group.leader
    return not group.is_busy and leader is not None and leader.is_primary and _candidate(group, choice) is not None


def _take_over(world: World, group: Group, old: Server, choice: int, *, hook: bool) -> Steps:
    """Promote a standby in the place of the old primary, if one is left; otherwise the old one returns."""
    new = _candidate(group, choice)
    if new is None:
        if not old.is_primary:
            world.boot(old, recovery=False)
        old.hangs = False
        world.lead(group, old)
        return
    world.lead(group, new)
    if hook:
        yield world.chance() * 0.1
        for agent in world.agents:
            if agent.host is new:
                agent.announce()
        yield 0.05 + world.chance() * 0.6
    if new.may_lead and group.leader is new:
        world.promote(new, "it has the lock")
    elif group.leader is new:
        yield from _take_over(world, group, old, choice, hook=hook)


def _rejoin(world: World, server: Server) -> Steps:
    """Let a server return as a standby."""
    if server.group.leader is server:
        return
    run = server.run
    if server.hangs:
        server.hangs = False
        world.patroni_changed(server.group)
    if server.state is State.UP and (server.is_primary or server.is_foreign):
        world.stop(server, "is stopped")
        yield world.chance() * 3.0
    if server.run != run or server.group.leader is server:
        return
    if server.state is not State.UP:
        if world.chance() < _STARTS:
            server.state = State.STARTING
            world.changed(server)
            yield world.chance() * 2.0
        if server.run == run and server.state is not State.UP and server.group.leader is not server:
            world.boot(server, recovery=True)


def _fail_over(world: World, fault: Fault, lose: Callable[[Server], Steps], *, hook: bool = True) -> Steps:
    group = yield from _find_pair(world, fault)
    if group is not None:
        yield from _replace(world, fault, group, lose, hook=hook)


def _replace(world: World, fault: Fault, group: Group, lose: Callable[[Server], Steps], *, hook: bool) -> Steps:
    """Lose a group's primary, promote another one, and let the lost one return."""
    group.is_busy = True
    old = group.leader
    assert old is not None
    world.tell(f"FAULT {fault.kind} of {old}")
    yield from lose(old)
    yield from _take_over(world, group, old, fault.other, hook=hook)
    group.is_busy = False
    yield fault.lasts / 4
    while group.is_busy:
        yield _BLINK_S
    yield from _rejoin(world, old)


def crash(world: World, fault: Fault) -> Steps:
    """The primary crashes, and its standby is promoted."""

    def lose(old: Server) -> Steps:
        world.stop(old, "crashes")
        yield world.chance() * 2.0

    yield from _fail_over(world, fault, lose)


def crash_without_hook(world: World, fault: Fault) -> Steps:
    """As a crash, and nobody tells the agent of the promotion."""

    def lose(old: Server) -> Steps:
        world.stop(old, "crashes")
        yield world.chance() * 0.5

    yield from _fail_over(world, fault, lose, hook=False)


def power_loss(world: World, fault: Fault) -> Steps:
    """The primary's host loses its power: nobody is told, and the lock expires."""

    def lose(old: Server) -> Steps:
        world.stop(old, "loses its power", State.SILENT)
        yield world.chance() * 20.0
        world.lead(old.group, None)
        yield world.chance()

    yield from _fail_over(world, fault, lose)


def _everywhere(world: World, fault: Fault, how: str, *, longest_s: float) -> Steps:
    """Lose the primaries of all groups that are ready."""
    takes_s = world.chance() * longest_s

    def lose(old: Server) -> Steps:
        world.stop(old, how)
        yield takes_s

    yield from _find_pair(world, fault)
    for group in world.groups:
        if _is_ready(group, fault.other):
            world.start(_replace(world, fault, group, lose, hook=True))


def lose_site(world: World, fault: Fault) -> Steps:
    """The primaries of all groups crash at once: they were on one site."""
    yield from _everywhere(world, fault, "crashes", longest_s=2.0)


def clear_site(world: World, fault: Fault) -> Steps:
    """An operator switches all groups over at once."""
    yield from _everywhere(world, fault, "is stopped for a switchover", longest_s=0.5)


def switchover(world: World, fault: Fault) -> Steps:
    """An operator switches over: the agents are told of the stop, where names queue."""

    def lose(old: Server) -> Steps:
        yield from _announce_stop(world, old)
        world.stop(old, "is stopped for a switchover")
        yield world.chance() * 0.5

    yield from _fail_over(world, fault, lose)


def depose(world: World, fault: Fault) -> Steps:
    """The primary's Patroni hangs: another one is promoted, and the old one lives on as a primary."""

    def lose(old: Server) -> Steps:
        old.hangs = True
        yield world.chance() * 5.0
        world.lead(old.group, None)
        yield world.chance()

    yield from _fail_over(world, fault, lose)


def _announce_stop(world: World, old: Server) -> Steps:
    if all(named.queue.planned_s == 0.0 for agent in world.agents for named in agent.config.groups):
        return
    told = [agent for agent in world.agents if not world.blocks.get((agent.host.number, old.number))]
    for stage in (Stage.DRAINING, Stage.ROOM):
        for agent in told:
            _open_windows(world, agent, old, stage)
        yield 0.05 + world.chance()


def _opened(world: World, server: Server, seen: Observation, role: Role) -> Window:
    """Return the window of a stop that is announced now, of a server as an agent has seen it."""
    return Window(
        id=f"{server.number}-{server.run}",
        node=server.node,
        address=server.node.host,
        run=seen.identity,
        role=role,
        since=world.now,
        until=world.now + 15.0,
        called_off_at=world.now + 6.0,
        stage=Stage.DRAINING,
    )


def _open_windows(world: World, agent: Agent, old: Server, stage: Stage) -> None:
    if not agent.is_alive or not agent.has_looked:
        return
    seen = agent.nodes[old.node].role_seen
    for target in agent.decision.targets:
        window = agent.windows.get(target.name)
        if window is not None and stage is Stage.ROOM:
            agent.windows[target.name] = dataclasses.replace(window, stage=stage)
        elif window is None and target.address == old.node.host and agent.host is not old and seen is not None:
            agent.windows[target.name] = _opened(world, old, seen, Role.PRIMARY)
    agent.news += 1
    agent.wake()


def stop_standby(world: World, fault: Fault) -> Steps:
    """A standby stops as announced, and returns; or its stop is called off, with or without a word."""
    server = _standby_elsewhere(world, fault)
    if not server.may_lead:
        return
    world.tell(f"FAULT {fault.kind} of {server}")
    run = server.run
    for stage in (Stage.DRAINING, Stage.ROOM):
        for agent in world.agents:
            if stage is Stage.DRAINING:
                _open_standby_windows(world, agent, server)
            else:
                _change_windows(agent, server, stage=stage)
        yield 0.05 + world.chance()
    if server.run != run or not server.may_lead:
        return
    if fault.other % 3 == 0:
        world.tell(f"the stop of {server} is called off")
        if world.chance() < _SAID:
            for agent in world.agents:
                _change_windows(agent, server, called_off_at=world.now)
        return
    world.stop(server, "is stopped")
    yield fault.lasts
    yield from _rejoin(world, server)


def _open_standby_windows(world: World, agent: Agent, server: Server) -> None:
    """Open a window for each name of a standby's group, also for those that lead elsewhere."""
    if not agent.is_alive or not agent.has_looked or agent.host is server:
        return
    decision = agent.decision
    for named in agent.config.groups:
        view = decision.views.get(named.name)
        seen = view.fresh.get(server.node) if view is not None else None
        if view is None or seen is None or seen.role is not Role.STANDBY or view.primary.seen is None:
            continue  # it is told over the session to the primary
        is_own = decision.groups[named.name].own is not None and named.route is Route.FOLLOW
        if is_own or named.name in agent.windows or decision.by_hand(named.name):
            continue
        agent.windows[named.name] = _opened(world, server, seen, Role.STANDBY)
        world.judge.announced(agent, named.name, agent.windows[named.name])
    agent.news += 1
    agent.wake()


def _change_windows(agent: Agent, server: Server, **changes: Any) -> None:
    for name, window in agent.windows.items():
        if window.id == f"{server.number}-{server.run}" and window.role is Role.STANDBY:
            agent.windows[name] = dataclasses.replace(window, **changes)
            agent.world.judge.announced(agent, name, agent.windows[name])
    agent.news += 1
    agent.wake()


def promote_by_hand(world: World, fault: Fault) -> Steps:
    """Somebody promotes a standby beside the primary, and Patroni makes it a standby again."""
    group = yield from _find_pair(world, fault)
    new = _candidate(group, fault.other) if group is not None else None
    if group is None or new is None:
        return
    group.is_busy = True
    world.tell(f"FAULT {fault.kind} of {new}")
    world.promote(new, "somebody does that by hand")
    yield world.chance() * fault.lasts
    if group.leader is not new:
        yield from _rejoin(world, new)
    group.is_busy = False


def restart_primary(world: World, fault: Fault) -> Steps:
    """The primary crashes and comes back as what it was."""
    group = _group(world, fault)
    leader = group.leader
    if group.is_busy or leader is None or not leader.is_primary:
        return
    group.is_busy = True
    world.tell(f"FAULT {fault.kind} of {leader}")
    world.stop(leader, "crashes")
    yield world.chance() * 2.0
    leader.state = State.STARTING
    world.changed(leader)
    yield world.chance() * 2.0
    world.boot(leader, recovery=False)
    group.is_busy = False


def _lose_standby(world: World, fault: Fault, state: State) -> Steps:
    standbys = [server for server in _standbys(_group(world, fault)) if server.may_lead]
    if not standbys:
        return
    server = standbys[fault.other % len(standbys)]
    world.tell(f"FAULT {fault.kind} of {server}")
    world.stop(server, "is lost", state)
    yield fault.lasts
    yield from _rejoin(world, server)


def crash_standby(world: World, fault: Fault) -> Steps:
    """A standby crashes, and returns."""
    return _lose_standby(world, fault, State.DOWN)


def freeze_standby(world: World, fault: Fault) -> Steps:
    """A standby answers no longer, and returns after a restart."""
    return _lose_standby(world, fault, State.SILENT)


def freeze_primary(world: World, fault: Fault) -> Steps:
    """The primary answers no longer for a while, and goes on as the primary."""
    group = _group(world, fault)
    leader = group.leader
    if group.is_busy or leader is None or not leader.is_primary:
        return
    group.is_busy = True
    world.tell(f"FAULT {fault.kind} of {leader}")
    leader.state = State.SILENT
    world.changed(leader)
    yield fault.lasts
    leader.state = State.UP
    world.changed(leader)
    group.is_busy = False


def cut_off(world: World, fault: Fault) -> Steps:
    """Nothing passes from an agent to one server."""
    server, agent = world.servers[fault.host % len(world.servers)], _agent(world, fault)
    world.tell(f"FAULT {agent} is cut off from {server}")
    world.block(agent, server, 1)
    yield fault.lasts
    world.block(agent, server, -1)


def isolate(world: World, fault: Fault) -> Steps:
    """Nothing passes from an agent to any other server, nor to their Patronis."""
    agent = _agent(world, fault)
    others = [server for server in world.servers if server is not agent.host]
    world.tell(f"FAULT {agent} is isolated")
    for server in others:
        world.block(agent, server, 1)
    for group in world.groups:
        world.patroni_changed(group)
    yield fault.lasts
    for server in others:
        world.block(agent, server, -1)
    for group in world.groups:
        world.patroni_changed(group)


def reject(world: World, fault: Fault) -> Steps:
    """A server refuses the agents' login."""
    server = world.servers[fault.host % len(world.servers)]
    world.tell(f"FAULT {server} rejects")
    server.rejects = True
    world.changed(server)
    yield fault.lasts
    server.rejects = False
    world.changed(server)


def foreign_server(world: World, fault: Fault) -> Steps:
    """Another database cluster answers in the place of a standby, as a primary or in recovery."""
    standbys = [server for server in _standbys(_group(world, fault)) if server.may_lead]
    if not standbys:
        return
    server = standbys[fault.other % len(standbys)]
    world.tell(f"FAULT {server} is foreign")
    server.run += 1
    server.is_foreign, server.recovery, server.receiver = True, fault.other % 2 == 0, None
    server.identity = Identity(FOREIGN + server.number, int(world.now * 1e6))
    world.changed(server)
    yield fault.lasts
    if server.is_foreign:
        yield from _rejoin(world, server)


def upgrade(world: World, fault: Fault) -> Steps:
    """A group is upgraded with pg_upgrade: all its servers stop, and return with another system identifier."""
    group = _group(world, fault)
    leader = group.leader
    if group.is_busy or leader is None or not leader.is_primary:
        return
    group.is_busy = True
    world.tell(f"FAULT {group.name} is upgraded")
    for server in group.servers:
        world.stop(server, "is stopped for the upgrade")
    yield 3.0 + world.chance() * 3.0
    group.system_id = UPGRADED + (group.system_id + 10) % 1000
    world.boot(leader, recovery=False)
    world.patroni_changed(group)
    yield world.chance() * 2.0
    for server in _standbys(group):
        if server.state is not State.UP or server.identity.system_id != group.system_id:
            world.boot(server, recovery=True)
    group.is_busy = False
    yield 8.0
    for agent in world.agents:
        agent.reload()


def _standby_elsewhere(world: World, fault: Fault) -> Server:
    own = _agent(world, fault).host.group  # its name does not lead elsewhere, whatever happens to its servers
    groups = [group for group in world.groups if group is not own]
    standbys = _standbys(groups[fault.host % len(groups)])
    return standbys[fault.other % len(standbys)]


def fall_behind(world: World, fault: Fault) -> Steps:
    """A standby falls behind its primary; it stays between the two thresholds for a while, and catches up."""
    server = _standby_elsewhere(world, fault)
    if not server.may_lead:
        return
    world.tell(f"FAULT {server} falls behind")
    run = server.run
    for share in (0.1 + world.chance() * 3.0, 0.8 + world.chance() * 0.15):
        if server.run != run or not server.may_lead:
            break
        server.lag = int(share * MAX_LAG)
        world.changed(server)
        for _ in range(_LOOKS + int(fault.lasts / LOOK_S)):
            yield LOOK_S
            for agent in world.agents:
                if agent.config.groups[0].max_lag_bytes is not None:
                    agent.wake()
    server.lag = 0
    world.changed(server)


def stall(world: World, fault: Fault) -> Steps:
    """A standby replays nothing for a while, then too little to come below half of the limit, and catches up."""
    server, limit_s = _standby_elsewhere(world, fault), world.agents[0].config.groups[0].max_lag_s
    if not server.may_lead or server.falls_behind or limit_s is None:
        return
    world.tell(f"FAULT {server} replays nothing")
    is_alone = not server.group.is_busy and world.chance() < _ALONE
    server.group.is_busy = server.group.is_busy or is_alone
    yield from _stalled(world, fault, server, limit_s)
    server.group.is_busy = server.group.is_busy and not is_alone


def _stalled(world: World, fault: Fault, server: Server, limit_s: float) -> Steps:
    run = server.run
    server.stalled_at = since = world.now
    world.changed(server)
    lasts_s, share = (0.1 + world.chance() * 2.4) * limit_s, world.chance()
    world.look_for(lasts_s + fault.lasts + _LOOKS * LOOK_S)
    yield share * lasts_s
    if world.chance() < _KILLED:
        yield from kill_agent(world, fault)
    yield (1.0 - share) * lasts_s
    if server.stalled_at == since and server.may_lead:  # it has not been started anew, promoted or mended
        server.lag, server.stalled_at = int((0.5 + world.chance() * 0.45) * limit_s * WAL), None
        world.changed(server)
        yield fault.lasts
    if server.lag and server.run == run and server.may_lead:
        world.tell(f"{server} has caught up")
        server.lag = 0
        world.changed(server)


def exclude(world: World, fault: Fault) -> Steps:
    """A standby is tagged noloadbalance for a while."""
    group = _group(world, fault)
    server = group.servers[fault.other % len(group.servers)]
    world.tell(f"FAULT {server} is tagged")
    group.excluded.add(server)
    world.patroni_changed(group)
    yield fault.lasts
    group.excluded.discard(server)
    world.patroni_changed(group)


def kill_agent(world: World, fault: Fault) -> Steps:
    """An agent is killed, and started anew."""
    agent = _agent(world, fault)
    agent.kill()
    yield min(fault.lasts, 5.0)
    agent.begin()


def kill_before_write(world: World, fault: Fault) -> Steps:
    """An agent is killed when it has decided on a move, and has not written it yet."""
    _agent(world, fault).dies = Death.BEFORE_WRITE
    yield 0.0


def kill_after_write(world: World, fault: Fault) -> Steps:
    """An agent is killed when it has just written a move."""
    _agent(world, fault).dies = Death.AFTER_WRITE
    yield 0.0


def tear_write(world: World, fault: Fault) -> Steps:
    """An agent's host loses its power while a move is written in place, as where the file is a bind mount."""
    _agent(world, fault).dies = Death.IN_WRITE
    yield 0.0


def edit_file(world: World, fault: Fault) -> Steps:
    """Another program edits the block while the agent is down."""
    agent = _agent(world, fault)
    agent.kill()
    agent.damage = DAMAGES[fault.host % len(DAMAGES)]
    yield min(fault.lasts, 5.0)
    agent.begin()


def jump_clock(world: World, _fault: Fault) -> Steps:
    """The wall clock jumps, which start times of servers are told by."""
    world.wall_offset_s += (world.chance() - 0.5) * 7200.0
    yield 0.0


def pin(world: World, fault: Fault) -> Steps:
    """An operator pins a name to one of its servers."""
    agent = _agent(world, fault)
    named = agent.config.groups[fault.host % len(agent.config.groups)]
    wanted = agent.wanted(named.route, agent.decision.role) or Role.PRIMARY
    node = named.nodes[int(world.chance() * len(named.nodes))]
    world.tell(f"FAULT {agent}: {named.name} is pinned to {node.host}")
    agent.pins[named.name] = Pin(address=node.host, wanted_role=wanted, until=world.now + fault.lasts)
    agent.news += 1
    agent.wake()
    yield fault.lasts
    agent.pins.pop(named.name, None)
    agent.news += 1
    agent.wake()


def pause(world: World, fault: Fault) -> Steps:
    """An operator wants no name to move."""
    agent = _agent(world, fault)
    world.tell(f"FAULT {agent} is paused")
    agent.pause = Pause(until=world.now + fault.lasts)
    agent.news += 1
    agent.wake()
    yield fault.lasts
    agent.pause = None
    agent.news += 1
    agent.wake()


def call_off(world: World, fault: Fault) -> Steps:
    """A promotion of an agent's server is announced, or the stop of a primary, and does not happen."""
    if fault.other % 4 > 1:
        yield from _call_off_stop(world, fault)
        return
    agent = _agent(world, fault)
    host = agent.host
    if host.group.is_busy or host.group.leader is host or host.state is not State.UP:
        return
    agent.announce()
    yield 0.5 + world.chance()
    if host.receiver is not None:
        host.receiver += 10_000
        world.changed(host)


def _call_off_stop(world: World, fault: Fault) -> Steps:
    group = _group(world, fault)
    leader = group.leader
    if group.is_busy or leader is None or not leader.is_primary:
        return
    group.is_busy = True
    world.tell(f"FAULT the stop of {leader} is called off")
    yield from _announce_stop(world, leader)
    yield _CALLED_OFF_S
    group.is_busy = False


def _without_comments(content: bytes) -> bytes:
    return b"".join(
        line.partition(b"\t# ")[0] + b"\n" if b"\t# " in line else line for line in content.splitlines(keepends=True)
    )


def _without_last_line(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(lines[:-2] + lines[-1:])


def _without_block(content: bytes) -> bytes:
    return content.partition(b"# BEGIN")[0]


def _without_end(content: bytes) -> bytes:
    return content.rpartition(b"# END")[0]


DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    _without_comments,
    _without_last_line,
    _without_block,
    _without_end,
    bytes.upper,
)

KINDS: dict[Callable[[World, Fault], Steps], int] = {
    crash: 14,
    crash_without_hook: 10,
    power_loss: 8,
    switchover: 20,
    lose_site: 30,
    clear_site: 30,
    depose: 8,
    promote_by_hand: 5,
    restart_primary: 4,
    crash_standby: 4,
    freeze_standby: 3,
    freeze_primary: 3,
    cut_off: 4,
    isolate: 2,
    reject: 2,
    foreign_server: 3,
    upgrade: 1,
    fall_behind: 2,
    exclude: 2,
    kill_agent: 3,
    kill_before_write: 2,
    kill_after_write: 2,
    edit_file: 1,
    jump_clock: 1,
    pin: 2,
    pause: 1,
    call_off: 2,
}
STALLS, STOPS, TEARS = ("stall",), ("stop_standby",), ("tear_write",)
"""What goes wrong in some worlds alone, in ``OWN`` of the places of other faults."""
OWN = 0.15
BY_NAME = {kind.__name__: kind for kind in (*KINDS, stall, stop_standby, tear_write)}
_NAMES = [kind.__name__ for kind in KINDS]
_WEIGHTS = [*KINDS.values()]


def plan(random: random.Random, own: tuple[str, ...] = ()) -> tuple[Fault, ...]:
    """Return what goes wrong in one world; ``own`` are the kinds that it has beside those of all worlds."""
    faults = tuple(_faults(random, random.randint(20, 120)))
    if not own:
        return faults
    return tuple(dataclasses.replace(one, kind=random.choice(own)) if random.random() < OWN else one for one in faults)


def _faults(random: random.Random, count: int) -> Iterator[Fault]:
    at, pace = 3.0, random.choice((0.5, 3.0, 6.0))
    for kind in random.choices(_NAMES, _WEIGHTS, k=count):
        lasts = random.choice((0.1, 1.0, 4.0, 15.0)) * (0.5 + random.random())
        yield Fault(round(at, 3), round(lasts, 3), kind, random.randrange(12), random.randrange(12))
        at += pace * random.choice((0.02, 1.0, 4.0)) * random.random() * 2.0
