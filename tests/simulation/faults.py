"""What goes wrong, and what operators do. Each kind is a function that begins it and returns what ends it, or None.

To add one: write the function, and name it in ``KINDS`` with its weight.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tests.simulation.citus import RECORDS
from tests.simulation.gate import NODES
from tests.simulation.judge import FOREIGN
from tests.simulation.world import GROUPS, Data

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.simulation.world import Host, World

    End = Callable[[], None] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when it begins, how long it lasts (seconds), its kind, and the numbers of two hosts."""

    at: float
    lasts: float
    kind: str
    host: int
    other: int

    def __str__(self) -> str:
        """Return it as the story and a regression test show it."""
        return f"Fault({self.at:.2f}, {self.lasts:.2f}, {self.kind!r}, {self.host}, {self.other})"


LEADERS = 0.7
"""The share of pins that lead to a primary."""


def _with_agent(world: World, host: Host) -> Host:
    """Return a host that has an agent: this one, or another one in its place."""
    return host if host in world.agents else world.agents[host.number % len(world.agents)]


def _insist(world: World, host: Host, command: str, **request: str) -> None:
    """Have an operator type a command until it is done."""
    over = [False]

    def done(well: bool) -> None:  # noqa: FBT001 -- an answer
        over[0] = over[0] or well

    def again() -> None:
        # An agent that was frozen may take in the command before this one only now; one that starts has yet to read it.
        process = host.process
        settled = process is not None and process.agent._overrides.loaded and not process.agent.is_by_hand
        if not over[0] or not settled:
            if process is not None:
                process.ask(command, done=done, **request)
            world.after(3.0, again)

    again()


def crash(world: World, host: Host, _other: Host) -> End:
    """PostgreSQL crashes."""
    if host.up:
        world.die(host, "it crashes")
    return None


def power_loss(world: World, host: Host, _other: Host) -> End:
    """A host loses its power."""
    world.power_off(host)
    return lambda: world.power_on(host)


def freeze_server(world: World, host: Host, _other: Host) -> End:
    """PostgreSQL is stopped by SIGSTOP."""
    if not host.server.up:
        return None
    host.server.stopped, run = True, host.server.run
    world.server_changed(host)
    world.tend(host.group)

    def end() -> None:
        world.judge.hindered(host)
        if host.server.run == run and host.server.stopped:
            host.server.stopped = False
            world.server_changed(host)
            world.tend(host.group)

    return end


def hang_patroni(world: World, host: Host, _other: Host) -> End:
    """Patroni hangs, and its server lives on."""
    host.patroni_hung = True
    world.patroni_changed(host)
    world.tend(host.group)

    def end() -> None:
        host.patroni_hung = False
        world.patroni_changed(host)
        world.tend(host.group)

    return end


def kill_patroni(world: World, host: Host, _other: Host) -> End:
    """Patroni is killed, and its server lives on."""
    host.patroni_up = False
    world.patroni_changed(host)
    world.tend(host.group)
    return lambda: world.start_patroni(host)


def lose_dcs(world: World, host: Host, _other: Host) -> End:
    """A Patroni does not reach the DCS."""
    host.dcs_ok = False
    world.tend(host.group)

    def end() -> None:
        host.dcs_ok = True
        world.tend(host.group)

    return end


def partition(world: World, host: Host, other: Host) -> End:
    """Nothing passes between two hosts."""
    return _block(world, {(host.number, other.number), (other.number, host.number)})


def partition_one_way(world: World, host: Host, other: Host) -> End:
    """Nothing passes from one host to another one; answers from there do."""
    return _block(world, {(host.number, other.number)})


def isolate(world: World, host: Host, _other: Host) -> End:
    """A host is cut off from all others and from the DCS."""
    pairs = {(host.number, one.number) for one in world.hosts if one is not host}
    back = _block(world, pairs | {(b, a) for a, b in pairs})
    dcs = lose_dcs(world, host, host)

    def end() -> None:
        for one in (back, dcs):
            if one is not None:
                one()

    return end


def _block(world: World, pairs: set[tuple[int, int]]) -> End:
    pairs = {pair for pair in pairs if pair[0] != pair[1] and pair not in world.blocked}
    world.blocked |= pairs
    world.network_changed()

    def end() -> None:
        world.blocked -= pairs
        world.network_changed()

    return end


def slow_path(world: World, host: Host, other: Host) -> End:
    """What one agent asks of a host is answered late, so that answers pass each other."""
    world.slow[host.number, other.number] = 2.2

    def end() -> None:
        world.slow.pop((host.number, other.number), None)

    return end


def lose_answers(world: World, host: Host, _other: Host) -> End:
    """Every third answer to an agent is lost."""
    world.lossy.add(host.number)
    return lambda: world.lossy.discard(host.number)


def kill_agent(world: World, host: Host, _other: Host) -> End:
    """The agent is killed, and started again by systemd."""
    host = _with_agent(world, host)
    if host.process is not None:
        world.restart_agent(host, world.between(0.3, 3.0))
    return None


def kill_agent_before_write(world: World, host: Host, _other: Host) -> End:
    """The agent is killed right before it writes its file next."""
    host = _with_agent(world, host)
    host.kill_at_write = "before"
    return None


def kill_agent_after_write(world: World, host: Host, _other: Host) -> End:
    """The agent is killed right after it has written its file next: nothing is flushed yet."""
    host = _with_agent(world, host)
    host.kill_at_write = "after"
    return None


def freeze_agent(world: World, host: Host, _other: Host) -> End:
    """The agent is stopped by SIGSTOP."""
    host = _with_agent(world, host)
    process = host.process
    if process is None:
        return None
    process.stop()

    def end() -> None:
        world.judge.hindered(host)
        process.go_on()

    return end


def fill_disk(world: World, host: Host, _other: Host) -> End:
    """The hosts file cannot be written."""
    host = _with_agent(world, host)
    host.hosts_fails = True

    def end() -> None:
        world.judge.hindered(host)
        host.hosts_fails = False

    return end


def edit_file(world: World, host: Host, _other: Host) -> End:
    """Another program restores its own version of the hosts file: the block is gone."""
    world.edit_hosts(host, b"127.0.0.1\tlocalhost\n")
    return None


def edit_comments(world: World, host: Host, _other: Host) -> End:
    """Another program writes the file anew without comments; an agent that starts then has lost its memory."""
    begin = b"# BEGIN resolver-agent: managed, edits inside are overwritten\n"
    lines = [line.partition(b"\t# ")[0] + b"\n" for line in host.hosts.splitlines() if not line.startswith(b"#")]
    own = [line for line in lines if b"localhost" not in line]
    world.edit_hosts(host, b"127.0.0.1\tlocalhost\n" + begin + b"".join(own) + b"# END resolver-agent\n")
    return None


def reject_logins(world: World, host: Host, _other: Host) -> End:
    """A server ends the agents' sessions and lets them log in no more; Citus' own role still can."""
    if host.server.rejects:
        return None
    host.server.rejects = True
    world.server_changed(host)

    def end() -> None:
        host.server.rejects = False
        world.server_changed(host)

    return end


def stall_replay(world: World, host: Host, _other: Host) -> End:
    """A standby gets all that is written, and replays nothing."""
    server = host.server
    if not server.is_standby or server.stalled_at is not None:
        return None
    server.stalled_at = world.now
    world.server_changed(host)
    for one in world.hosts:
        if one.process is not None:
            one.process.decide()  # rounds that could change nothing were left out

    def end() -> None:
        server.stalled_at = None
        world.server_changed(host)

    return end


def lose_slot(world: World, host: Host, _other: Host) -> End:
    """A standby stops while its primary drops its slot: the WAL that it needs is gone, until it is initialised anew."""
    server, group = host.server, host.group
    if not server.is_standby or server.left_at is not None or host in (group.leader, group.promoting):
        return None
    world.die(host, "it stops, and its primary drops its slot")
    server.left_at = world.now
    return lambda: world.make_anew(host)


def lock_nodes(world: World, _host: Host, _other: Host) -> End:
    """An operator's transaction on the coordinator locks ``pg_dist_node``, as an update of Citus does."""
    return _lock(world, NODES)


def lock_records(world: World, _host: Host, _other: Host) -> End:
    """An operator's transaction locks the commit records, as ``citus_create_restore_point()`` does."""
    return _lock(world, RECORDS)


def _lock(world: World, relation: str) -> End:
    host = world.groups[0].leader
    if host is None or not host.server.is_primary or relation in host.server.locks:
        return None
    server, run = host.server, host.server.run
    server.locks.add(relation)

    def end() -> None:
        if server.run == run:
            server.locks.discard(relation)

    return end


def slow_server(_world: World, host: Host, _other: Host) -> End:
    """PostgreSQL takes up to a second to load its configuration files."""
    host.is_slow = True

    def end() -> None:
        host.is_slow = False

    return end


def jump_clock(world: World, host: Host, _other: Host) -> End:
    """The clock on the wall jumps, by hours."""
    world.wall_offset_s += 7200.0 if host.number % 2 else -7200.0
    return None


def foreign_server(world: World, host: Host, _other: Host) -> End:
    """Another database cluster answers at a node's address, as a primary."""
    if not host.up or host.group.leader is host or host.group.promoting is host:
        return None
    host.is_foreign = True
    world.die(host, "another database cluster takes its place")
    host.server.system_id = FOREIGN + host.number
    host.server.data = Data()
    host.server.timeline, host.server.left_at = 1, None
    world.start(host, recovery=False)

    def end() -> None:
        world.die(host, "the foreign server is stopped")
        host.is_foreign = False
        world.tend(host.group)

    return end


def slow_disk(_world: World, host: Host, _other: Host) -> End:
    """What an agent reads and writes takes up to a quarter of a second."""
    host.disk_is_slow = True

    def end() -> None:
        host.disk_is_slow = False

    return end


def slow_python(_world: World, host: Host, _other: Host) -> End:
    """The hook before a stop takes three seconds to start."""
    host.python_is_slow = True

    def end() -> None:
        host.python_is_slow = False

    return end


def call_off_stop(world: World, host: Host, _other: Host) -> End:
    """A planned stop is announced, and does not happen."""
    world.call_off(host)
    return None


def switchover(world: World, host: Host, _other: Host) -> End:
    """An operator switches over."""
    world.switch_over(host.group)
    return None


def restart(world: World, host: Host, _other: Host) -> End:
    """An operator restarts a server."""
    world.restart(host)
    return None


def reload(_world: World, host: Host, _other: Host) -> End:
    """An operator reloads an agent."""
    if host.process is not None:
        host.process.reload()
    return None


def remove_node(world: World, host: Host, other: Host) -> End:
    """An operator takes a node out of an agent's configuration, and later puts it back; not the agent's own."""
    if other is host:
        return None
    world.removed[host.number] = other.address
    if host.process is not None:
        host.process.reload()

    def end() -> None:
        world.removed.pop(host.number, None)
        world.judge.hindered(host)
        if host.process is not None:
            host.process.reload()

    return end


def remove_member(world: World, host: Host, _other: Host) -> End:
    """Operators take one of three servers out of all configurations but its own, and later put it back."""
    group = host.group
    if len(group.hosts) < 3 or host in (group.leader, group.promoting):
        return None
    agents = [one for one in world.agents if one is not host]

    def again(one: Host, address: str | None) -> None:
        world.removed.pop(one.number, None)
        if address is not None:
            world.removed[one.number] = address
        world.judge.hindered(one)
        if one.process is not None:
            one.process.reload()

    for one in agents:
        world.after(world.between(0.0, 3.0), again, one, host.address)

    def end() -> None:
        for one in agents:
            world.after(3.0 + world.between(0.0, 3.0), again, one, None)

    return end


def pin(world: World, host: Host, other: Host) -> End:
    """An operator pins a name to a server."""
    host = _with_agent(world, host)
    if host.process is None:
        return None
    name, leader = other.group.name, other.group.leader
    address = leader.address if leader is not None and world.random.random() < LEADERS else other.address
    host.process.ask("pin", name=name, address=address, for_s=3600)

    def end() -> None:
        world.judge.hindered(host)
        _insist(world, host, "unpin", name=name)

    return end


def pause_names(world: World, host: Host, _other: Host) -> End:
    """An operator pauses all names of an agent."""
    host = _with_agent(world, host)
    if host.process is None:
        return None
    host.process.ask("pause", for_s=3600)

    def end() -> None:
        world.judge.hindered(host)
        _insist(world, host, "resume")

    return end


def pause_patroni(world: World, host: Host, _other: Host) -> End:
    """An operator pauses Patroni."""
    host.group.paused = True

    def end() -> None:
        host.group.paused = False
        world.tend(host.group)

    return end


def promote_by_hand(world: World, host: Host, _other: Host) -> End:
    """Somebody runs ``pg_ctl promote`` on a standby, beside a primary that lives."""
    if host.server.is_standby and host.group.leader is not host and host.group.promoting is None:
        world.promote(host, "by hand")
        world.tend(host.group)
    return None


def upgrade(world: World, host: Host, _other: Host) -> End:
    """pg_upgrade: both servers of a group come back as another database cluster, with the same data."""
    group = host.group
    if group.leader is None or group.promoting is not None or not all(one.up for one in group.hosts):
        return None
    if any(one.server.system_id != group.system_id or not one.patroni_works for one in group.hosts):
        return None  # nor while one has yet to be cloned
    group.paused = True
    for one in group.hosts:
        world.die(one, "pg_upgrade", at_once=False)
    group.system_id += 100
    for one in group.hosts:
        one.server.system_id, one.server.left_at = group.system_id, None
        world.patroni_changed(one)

    def end() -> None:
        group.paused = False
        world.tend(group)

    return end


KINDS: dict[Callable[[World, Host, Host], End], int] = {
    crash: 10,
    power_loss: 6,
    freeze_server: 4,
    hang_patroni: 5,
    kill_patroni: 3,
    lose_dcs: 4,
    partition: 4,
    partition_one_way: 4,
    isolate: 4,
    slow_path: 4,
    lose_answers: 3,
    kill_agent: 6,
    kill_agent_before_write: 4,
    kill_agent_after_write: 4,
    freeze_agent: 4,
    fill_disk: 3,
    slow_server: 4,
    slow_disk: 3,
    slow_python: 0,  # a forced stop is then held up for longer, as README says
    call_off_stop: 3,
    reject_logins: 3,
    stall_replay: 3,
    edit_file: 2,
    edit_comments: 2,
    jump_clock: 1,
    foreign_server: 4,
    switchover: 24,
    restart: 6,
    reload: 2,
    remove_node: 2,
    remove_member: 0,  # beside a reload, where there are three
    pin: 6,
    pause_names: 4,
    pause_patroni: 2,
    promote_by_hand: 4,
    upgrade: 2,
    lose_slot: 0,  # these are in FURTHER_KINDS
    lock_nodes: 0,
    lock_records: 0,
}
BY_NAME = {kind.__name__: kind for kind in KINDS}
_NAMES = [*BY_NAME]
_WEIGHTS = [*KINDS.values()]


FURTHER_KINDS = (lose_slot, lock_nodes, lock_records)
"""What goes wrong, or is in the way, in worlds of that shape."""
FURTHER_SHARE = 0.3
"""Beside such a share of the other faults."""

PLANNED_KINDS = tuple(kind.__name__ for kind in (switchover, restart, call_off_stop, slow_disk, slow_python))
"""Where there are no others no statement may fail."""
_OPERATORS = (switchover, switchover, switchover, restart, restart, call_off_stop)


def planned_work(random: random.Random, hosts: int) -> tuple[Fault, ...]:
    """Return what operators do with so many servers of one world in which nothing goes wrong."""
    gaps = [random.uniform(20.0, 40.0) for _ in range(random.randint(2, 6))]
    ends = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    work = [Fault(round(at, 3), 0.01, random.choice(_OPERATORS).__name__, random.randrange(hosts), 0) for at in ends]
    slow = [
        Fault(0.0, 300.0, kind.__name__, random.randrange(hosts), 0)
        for kind, share in ((slow_disk, 0.5), (slow_python, 0.3))
        if random.random() < share
    ]
    return (*slow, *work)


def plan(random: random.Random, hosts: int) -> tuple[Fault, ...]:
    """Return what goes wrong in one world of so many hosts."""
    faults, at = [], random.uniform(1.0, 5.0)
    for _ in range(random.randint(4, 30)):
        kind = random.choices(_NAMES, _WEIGHTS)[0]
        lasts = random.choice((0.05, 0.5, 2.0, 5.0, 12.0, 35.0)) * random.uniform(0.5, 1.5)
        faults.append(Fault(round(at, 3), round(lasts, 3), kind, random.randrange(hosts), random.randrange(hosts)))
        if kind == "reload" and hosts > len(GROUPS) * 2:
            faults.append(Fault(round(at, 3), round(lasts, 3), "remove_member", random.randrange(6, hosts), 0))
        at += random.choice((0.02, 0.3, 2.0, 8.0, 20.0)) * random.uniform(0.2, 1.5)
    return tuple(faults)


def further(random: random.Random, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Return what goes wrong in a world of further faults, each a little before or after another fault."""
    return tuple(
        Fault(
            round(max(0.5, one.at + random.uniform(-4.0, 1.0)), 3),
            round(random.choice((0.5, 3.0, 12.0, 35.0)) * random.uniform(0.5, 1.5), 3),
            random.choice(FURTHER_KINDS).__name__,
            one.host,
            0,
        )
        for one in faults
        if random.random() < FURTHER_SHARE
    )
