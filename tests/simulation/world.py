"""The world around the agents: hosts, PostgreSQL, Patroni, the DCS and the network.

Only what can be told from outside is here. ``tests/simulation/README.md`` says what is modelled, and which test on real
servers shows that it is so.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import random
from typing import TYPE_CHECKING, Any

from resolver_agent.config.model import Node
from resolver_agent.routing.observation import Identity, Observation, ProbeFailure, Role
from tests.simulation.loop import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from resolver_agent.config.model import Config
    from tests.simulation.citus import Session
    from tests.simulation.gate import Gate, Room
    from tests.simulation.judge import Basis, Judge
    from tests.simulation.process import Process

PORT = 5432
GROUPS = ("cn", "wk1", "wk2")
TTL_S, LOOP_S = 30.0, 10.0
SHAPES, ASYNCHRONOUS, LARGE = 16, (4, 10), (9, 10)
"""Seeds with these remainders are of worlds with asynchronous replication, and with groups of three servers."""
FURTHER_SHAPES, FURTHER = 32, (7, 19, 20, 25, 26)
"""Seeds with these remainders by 32 are of worlds with further faults, and with reads that connect late."""
LAGS_S, SHARE = (0.02, 0.3, 2.0), 0.6
"""How late an asynchronous standby gets a change at most, and the share of the groups of such a world."""
QUICK = 0.85
"""The share of promotions, and of plans, that are made at once."""
HOOK_S = 2.7
"""When the hooks of ``pre_promote`` and ``before_stop`` end by themselves: ``control.pre_promote``."""
STOP_HOOK_S = 5.7
ALIVE_S = 0.5
"""How long the hook before a stop waits for a first answer: ``control.before_stop``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """Which groups have three servers, and which replicate asynchronously: how late at most, in seconds.

    ``is_further``: there are further faults (``faults.FURTHER_KINDS``), and reads that connect late.
    """

    thirds: tuple[str, ...] = ()
    lags: dict[str, float] = dataclasses.field(default_factory=dict)
    is_further: bool = False

    @classmethod
    def of(cls, seed: int) -> Shape:
        """Return that of a seed. Most worlds are plain, so that the known seeds of mutations stay what they are."""
        rest = seed % SHAPES
        chance = random.Random(f"{seed}/shape")  # noqa: S311
        lags = {name: chance.choice(LAGS_S) for name in GROUPS if chance.random() < SHARE}
        thirds = [name for name in GROUPS if chance.random() < SHARE]
        return cls(
            thirds=tuple(thirds or GROUPS[:1]) if rest in LARGE else (),
            lags=(lags or {GROUPS[1]: LAGS_S[-1]}) if rest in ASYNCHRONOUS else {},
            is_further=seed % FURTHER_SHAPES in FURTHER,
        )


@dataclasses.dataclass(slots=True, eq=False)
class Data:
    """What a server has on disk: rows, prepared transactions, and Citus' commit records as (transaction, worker).

    ``changes`` are the numbers of all changes that have come here: its WAL.
    """

    rows: set[int] = dataclasses.field(default_factory=set)
    prepared: dict[str, int] = dataclasses.field(default_factory=dict)
    records: set[tuple[str, str]] = dataclasses.field(default_factory=set)
    changes: set[int] = dataclasses.field(default_factory=set)

    def copy(self) -> Data:
        """Return another server's data, from here on."""
        return Data(set(self.rows), dict(self.prepared), set(self.records), set(self.changes))

    def prepare(self, gid: str, row: int) -> None:
        """Prepare a transaction."""
        self.prepared[gid] = row

    def resolve(self, gid: str, *, commit: bool) -> None:
        """Commit a prepared transaction, or roll it back."""
        row = self.prepared.pop(gid, None)
        if row is not None and commit:
            self.rows.add(row)

    def record(self, records: set[tuple[str, str]]) -> None:
        """Add commit records."""
        self.records |= records

    def forget(self, records: set[tuple[str, str]]) -> None:
        """Drop commit records."""
        self.records -= records


_Change = tuple[int, "Callable[[Data], None]"]
"""The number of a change, and what it does."""


def _changed(what: Callable[..., None], arguments: tuple[Any, ...], named: dict[str, Any], data: Data) -> None:
    what(data, *arguments, **named)


def _apply(data: Data, change: _Change) -> None:
    number, do = change
    data.changes.add(number)
    do(data)


NOBODY = Identity(0, 0)


@dataclasses.dataclass(slots=True, eq=False)
class Server:
    """PostgreSQL on one host. A standby that streams has an ``upstream``; ``pending`` is what has not come from there.

    ``rejects``: agents of other hosts cannot log in. ``stalled_at``: since when a standby replays nothing.
    ``left_at``: since when it gets nothing any more, because its primary no longer has the WAL that it needs.
    ``needs_sync``: a commit waits for the standby. ``active`` are the transactions of sessions that are at work here.
    ``sessions`` are those that run a command now. ``flushed`` counts the flushes that sessions must have seen before
    their next command, ``uncached`` says whether they are to cache no connections then. ``results`` are the
    intermediate results that are here, by the role and the number of the transaction: the session that wrote it last.
    ``locks`` are the relations that an operator has locked: others who need them wait.
    """

    system_id: int
    data: Data
    up: bool = True
    serving: bool = True
    recovery: bool = True
    stopped: bool = False
    rejects: bool = False
    stalled_at: float | None = None
    left_at: float | None = None
    run: int = 0
    timeline: int = 1
    receiver: int | None = None
    needs_sync: bool = False
    upstream: Host | None = None
    pending: collections.deque[_Change] = dataclasses.field(default_factory=collections.deque)
    behind_s: float = 0.0
    active: set[str] = dataclasses.field(default_factory=set)
    sessions: list[Session] = dataclasses.field(default_factory=list)
    flushed: int = 0
    uncached: bool = False
    flushed_at: float = 0.0
    identity: Identity = NOBODY
    results: dict[tuple[str, int], Session] = dataclasses.field(default_factory=dict)
    locks: set[str] = dataclasses.field(default_factory=set)

    @property
    def is_primary(self) -> bool:
        """Whether it takes writes."""
        return self.up and self.serving and not self.recovery

    @property
    def is_standby(self) -> bool:
        """Whether it takes reads alone."""
        return self.up and self.serving and self.recovery

    @property
    def behind_since(self) -> float | None:
        """Since when a standby replays nothing, for whatever reason."""
        return min((at for at in (self.stalled_at, self.left_at) if at is not None), default=None)

    @property
    def kind(self) -> tuple[object, ...]:
        """All that a probe can tell, but for LSN and time."""
        if self.stopped:
            return ("stopped", self.run)
        told = (self.identity, self.timeline, self.receiver is None, self.rejects, self.behind_since is None)
        return (self.up, self.serving, self.recovery, *told)

    def lsn(self, at: float) -> int:
        """Return how far it has written or replayed: a busy primary writes 1,000 bytes a second."""
        if not self.recovery:
            return int(at * 1000)
        since = self.behind_since
        return int(((at if since is None else min(at, since)) - self.behind_s) * 1000)


class Host:
    """One machine: PostgreSQL, Patroni, a hosts file and an agent."""

    def __init__(self, number: int, group: Group, letter: str) -> None:
        self.number = number
        self.letter = letter
        self.group = group
        self.address = f"10.0.0.{number + 1}"
        self.node = Node(self.address, PORT)
        self.server = Server(system_id=group.system_id, data=Data())
        self.up = True
        self.patroni_up = True
        self.patroni_hung = False
        self.dcs_ok = True
        self.is_foreign = False
        self.process: Process | None = None
        self.gate: Gate | None = None
        self.no_rooms = self.is_slow = self.disk_is_slow = self.python_is_slow = False
        self.uses_patroni = True
        self.checkpoint_at = 0.0
        self.hosts = b"127.0.0.1\tlocalhost\n"
        self.moved_at = 0.0
        self.hosts_version = 0
        self.hosts_written_at = 0.0
        self.hosts_fails = False
        self.kill_at_write: str | None = None
        self.demoting = self.starting = False

    def __repr__(self) -> str:
        """Return how the story names it."""
        return f"{self.group.name}{self.letter}"

    @property
    def patroni_works(self) -> bool:
        """Whether its Patroni renews or takes the leader lock."""
        return self.up and self.patroni_up and not self.patroni_hung and self.dcs_ok and not self.is_foreign

    @property
    def patroni_answers(self) -> bool:
        """Whether its REST API answers."""
        return self.up and self.patroni_up and not self.patroni_hung

    @property
    def leads(self) -> bool:
        """Whether its Patroni says that it has the leader lock."""
        return self.group.leader is self


class Group:
    """The hosts behind one name, and what the DCS has of them; ``lag_s``: they replicate asynchronously, so late."""

    def __init__(self, name: str, system_id: int, *, lag_s: float) -> None:
        self.name = name
        self.system_id = system_id
        self.lag_s = lag_s
        self.changes: dict[int, int | None] = {}
        """The row that each change concerns, wherever it was made: PostgreSQL may lose some where it is late."""
        self.hosts: list[Host] = []
        self.leader: Host | None = None
        self.last: Host | None = None
        self.sync: Host | None = None
        self.paused = False
        self.promoting: Host | None = None
        self.timeline = 1
        self.lease = 0
        """Counts what has happened to the lock: what was planned for an earlier lease is void."""
        self.unhealthy = False

    def others(self, host: Host) -> list[Host]:
        """Return the hosts that are not this one."""
        return [one for one in self.hosts if one is not host]

    @property
    def primaries(self) -> list[Host]:
        """The hosts whose server takes writes."""
        return [host for host in self.hosts if host.up and host.server.is_primary]


class World:
    """Everything but the agents' own code."""

    def __init__(self, seed: int, shape: Shape | None = None, *, is_told: bool = False) -> None:
        shape = shape if shape is not None else Shape()
        self.random = random.Random(seed)  # noqa: S311 -- the point is that it repeats
        self.replication = random.Random(f"{seed}/replication")  # noqa: S311
        self.further = random.Random(f"{seed}/further") if shape.is_further else None  # noqa: S311
        self.scheduler = Scheduler()
        self.story: list[str] = []
        self.removed: dict[int, str] = {}
        """The address that the configuration of an agent leaves out, by the number of its host."""
        self.begin_agent: Callable[[Host], None]
        self.reread: Callable[[Config], Config]
        self.is_told = is_told
        self.is_hooked = True
        """Whether Patroni runs ``pre_promote``."""
        self.readers_share = False
        """Whether clients read on a standby coordinator with the database role of those who write."""
        self.max_lag_s: float | None = None
        self.judge: Judge
        self.failovers = 0
        self.wall_offset_s = 1_700_000_000.0
        self.blocked: set[tuple[int, int]] = set()
        self.slow: dict[tuple[int, int], float] = {}
        self.lossy: set[int] = set()
        self._runs = self._changes = 0
        self.groups = [
            Group(name, 7000 + number, lag_s=shape.lags.get(name, 0.0)) for number, name in enumerate(GROUPS)
        ]
        self.hosts: list[Host] = []
        for group in self.groups:
            for letter in "ab":
                host = Host(len(self.hosts), group, letter)
                group.hosts.append(host)
                self.hosts.append(host)
        thirds = [Host(6 + number, self.group_of(name), "c") for number, name in enumerate(shape.thirds)]
        self.hosts += thirds
        self.by_address = {host.address: host for host in self.hosts}
        self.agents: list[Host] = []
        """The hosts that have an agent."""
        for group in self.groups:
            first, second = group.hosts if self.random.random() < 0.5 else group.hosts[::-1]
            for host in group.hosts:
                self.new_run(host.server)
                if self.random.random() < 0.5:
                    host.hosts += b"# BEGIN resolver-agent\n# END resolver-agent\n10.9.9.9\tprinter\n"
            first.server.recovery = False
            first.server.needs_sync = not group.lag_s
            group.leader, group.last, group.sync = first, first, None if group.lag_s else second
            self._follow(second, first)
        for host in thirds:
            host.group.hosts.insert(self.replication.randrange(3), host)
            self.new_run(host.server)
            if host.group.leader is not None:
                self._follow(host, host.group.leader)

    # --- small things

    @property
    def now(self) -> float:
        """The time, in seconds."""
        return self.scheduler.now

    def between(self, low: float, high: float) -> float:
        """Return a number by chance."""
        return low + (high - low) * self.random.random()

    def after(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        """Do something later."""
        self.scheduler.at(self.scheduler.now + seconds, call, *arguments)

    def tell(self, text: str) -> None:
        """Add a line to the story."""
        if self.is_told:
            self.story.append(f"{self.now - 1000:9.3f}  {text}")

    def new_number(self) -> int:
        """Return a number that nothing else has."""
        self._runs += 1
        return self._runs

    def new_run(self, server: Server) -> None:
        """Start PostgreSQL: sessions are gone, and so is what only they knew."""
        server.run = self.new_number()
        server.identity = Identity(server.system_id, server.run)
        server.active.clear()
        server.sessions.clear()
        server.results.clear()
        server.locks.clear()
        server.receiver = None

    def group_of(self, name: str) -> Group:
        """Return the group that a name leads to: ``wk1-ro`` leads to wk1, too."""
        place = name.partition("-")[0]
        return next(group for group in self.groups if group.name == place)

    def uses_patroni(self, *, with_patroni: bool) -> None:
        """Say whether agents ask Patroni."""
        for host in self.hosts:
            host.uses_patroni = with_patroni

    # --- the network

    def reaches(self, source: Host, target: Host) -> bool:
        """Report whether a packet from one host comes to another one."""
        return source.up and target.up and (source.number, target.number) not in self.blocked

    def talks(self, one: Host, other: Host) -> bool:
        """Report whether questions and answers pass."""
        return one is other or (self.reaches(one, other) and self.reaches(other, one))

    def probe(self, source: Host, target: Host, *, is_local: bool) -> Observation:
        """Return what a probe that begins now will see; ``is_local``: over the local socket, as another role."""
        now, server = self.scheduler.now, target.server
        if server.stopped or not self.talks(source, target):
            return Observation(result=ProbeFailure.UNREACHABLE, at=now, detail="no answer within 2 s")
        if not server.up:
            return Observation(result=ProbeFailure.DEAD, at=now, detail="Connection refused")
        if not server.serving:
            return Observation(result=ProbeFailure.NOT_SERVING, at=now, detail="the database system is starting up")
        if server.rejects and not is_local:
            return Observation(result=ProbeFailure.REJECTING, at=now, detail="password authentication failed")
        return Observation(
            result=Role.STANDBY if server.recovery else Role.PRIMARY,
            at=now,
            address=target.address,
            lsn=server.lsn(now),
            timeline=server.timeline,
            identity=server.identity,
            receiver=server.receiver if server.recovery else None,
        )

    def sees(self, source: Host, target: Host) -> tuple[object, ...]:
        """Return what could be told now: a probe has to be made anew when that has changed."""
        if source is not target and not self.talks(source, target):
            return ("silent",)
        return target.server.kind

    # --- what changes

    def server_changed(self, host: Host, *, died: bool = False) -> None:
        """Let those who watch a server notice."""
        for one in self.agents:
            if one.process is not None:
                one.process.server_changed(host, died=died)

    def patroni_changed(self, host: Host) -> None:
        """Let those who watch a Patroni notice."""
        for one in self.agents:
            if one.process is not None:
                one.process.patroni_changed(host)

    def network_changed(self) -> None:
        """Let everybody notice."""
        for host in self.hosts:
            self.server_changed(host)
            self.patroni_changed(host)
        for group in self.groups:
            self.tend(group)

    # --- PostgreSQL

    def die(self, host: Host, why: str, *, at_once: bool = True) -> None:
        """End a server: its sessions end, and what was not replicated is on its disk alone.

        Not ``at_once``: PostgreSQL stops in order, and has by then sent everything to the standbys that stream.
        """
        server = host.server
        if not server.up:
            return
        for standby in host.group.others(host) if not at_once else ():
            if standby.server.upstream is host and self._can_stream(standby, host):
                while standby.server.pending:
                    self._receive(standby, host)
        self.tell(f"PostgreSQL on {host} ends: {why}")
        server.up = server.stopped = False
        self._leave_stream(host)
        server.receiver = None
        server.active.clear()
        server.sessions.clear()
        self.server_changed(host, died=host.up)
        self.tend(host.group)

    def start(self, host: Host, *, recovery: bool) -> None:
        """Start a server: it says 57P03 for a while."""
        server = host.server
        if server.up or not host.up:
            return
        server.up, server.serving, server.recovery = True, False, recovery
        self.new_run(server)
        self.server_changed(host)
        self.after(self.between(0.05, 1.0), self._serve, host, server.run)

    def _serve(self, host: Host, run: int) -> None:
        server = host.server
        if not server.up or server.run != run:
            return
        server.serving = True
        self.tell(f"PostgreSQL on {host} serves, {'in recovery' if server.recovery else 'as a primary'}")
        self.server_changed(host)
        self.tend(host.group)

    def change(self, host: Host, row: int | None, what: Callable[..., None], *arguments: Any, **named: Any) -> None:
        """Change a server's data, and that of the standbys that stream from it: at once, or a little later."""
        self._changes += 1
        change = (self._changes, functools.partial(_changed, what, arguments, named))
        host.group.changes[self._changes] = row
        _apply(host.server.data, change)
        for standby in host.group.hosts:
            if standby.server.upstream is host:
                standby.server.pending.append(change)
                if host.group.lag_s:
                    self.after(self.replication.uniform(0.0, host.group.lag_s), self._receive, standby, host)
                else:
                    self._receive(standby, host)

    def _receive(self, standby: Host, primary: Host) -> None:
        """Have a standby get the next change."""
        if standby.server.upstream is primary and standby.server.pending:
            _apply(standby.server.data, standby.server.pending.popleft())

    def _follow(self, standby: Host, primary: Host) -> None:
        """Have a standby stream from a primary; it has what that has."""
        server = standby.server
        server.data = primary.server.data.copy()
        server.upstream, server.behind_s = primary, standby.group.lag_s
        server.pending.clear()
        server.timeline = primary.server.timeline
        server.receiver = self.new_number()

    def _leave_stream(self, host: Host) -> None:
        """End the streams from and to a server: what has not come through is lost there."""
        for one in host.group.hosts:
            if one is host or one.server.upstream is host:
                one.server.upstream = None
                one.server.pending.clear()

    def commits(self, host: Host) -> bool:
        """Report whether a commit on a server is acknowledged now."""
        server = host.server
        if not (host.up and server.is_primary) or server.stopped:
            return False
        sync = host.group.sync
        return not server.needs_sync or (sync is not None and self._streams(sync, host))

    def _streams(self, standby: Host, primary: Host) -> bool:
        """Report whether what a primary commits comes to a standby."""
        return standby.server.upstream is primary and self._can_stream(standby, primary)

    def _can_stream(self, standby: Host, primary: Host) -> bool:
        return (
            standby.up
            and primary.up
            and standby.server.is_standby
            and not standby.server.stopped
            and not primary.server.stopped
            and standby.server.left_at is None
            and primary.server.is_primary
            and standby.server.system_id == primary.server.system_id
            and self.talks(standby, primary)
        )

    def promote(self, host: Host, why: str) -> None:
        """Make a primary of a server in recovery."""
        server, group = host.server, host.group
        if not server.is_standby or server.stopped:
            return
        self._leave_stream(host)
        group.timeline += 1
        server.recovery, server.timeline, server.receiver, server.stalled_at = False, group.timeline, None, None
        server.needs_sync, server.left_at = False, None
        self.failovers += 1
        self.tell(f"PostgreSQL on {host} is promoted ({why}), timeline {server.timeline}")
        self.judge.promoted(host, by_hand=why == "by hand")
        self.server_changed(host)

    # --- Patroni

    def tend(self, group: Group) -> None:
        """Do what the Patronis of a group do next; called whenever something has changed."""
        leader = group.leader
        if leader is not None:
            self._tend_leader(group, leader)
        elif group.promoting is None:
            self.after(self.between(0.1, 1.0), self._elect, group, group.lease)
        for host in group.hosts:
            if host is not group.leader:
                self._tend_follower(host)
        self._tend_streams(group)

    def _tend_leader(self, group: Group, leader: Host) -> None:
        if not leader.patroni_works:
            if not group.unhealthy:
                group.unhealthy = True
                self.after(self.between(TTL_S - LOOP_S, TTL_S), self._expire, group, group.lease)
                if leader.up and leader.patroni_answers and not leader.dcs_ok:
                    self.after(self.between(5.0, 10.0), self._demote_without_dcs, leader, group.lease)
            return
        group.unhealthy = False
        if not leader.server.up and not leader.starting and group.promoting is None and not group.paused:
            leader.starting = True
            if self.random.random() < 0.4:
                self.after(self.between(0.5, 3.0), self._start_leader, leader, group.lease)
            else:
                self.after(self.between(0.2, 2.0), self._give_lock_back, leader, group.lease)
        elif leader.server.is_standby and group.promoting is None:  # a leader that came back read-only
            self._begin_promotion(group, leader, "it has the lock")

    def _start_leader(self, leader: Host, lease: int) -> None:
        leader.starting = False
        if leader.group.lease == lease and leader.patroni_works and not leader.server.up:
            self.start(leader, recovery=False)
        else:
            self.tend(leader.group)

    def _give_lock_back(self, leader: Host, lease: int) -> None:
        leader.starting = False
        group = leader.group
        if group.lease == lease and leader.patroni_works and not leader.server.up:
            self._set_leader(group, None, f"{leader} gives the lock back")
        self.tend(group)

    def _expire(self, group: Group, lease: int) -> None:
        if group.lease != lease or not group.unhealthy or group.leader is None:
            return
        if group.leader.patroni_works:
            group.unhealthy = False
            return
        self._set_leader(group, None, "the leader lock runs out")
        self.tend(group)

    def _demote_without_dcs(self, host: Host, lease: int) -> None:
        if host.group.lease == lease and not host.dcs_ok and host.patroni_answers and host.server.is_primary:
            self._stop_by_patroni(host, "its Patroni does not reach the DCS")

    def _set_leader(self, group: Group, host: Host | None, why: str) -> None:
        before, group.leader = group.leader, host
        group.lease += 1
        group.unhealthy = False
        self.tell(f"{group.name}: {why}; leader: {host}")
        for one in (before, host):
            if one is not None:
                self.patroni_changed(one)

    def _elect(self, group: Group, lease: int) -> None:
        if group.lease != lease or group.leader is not None or group.paused or group.promoting is not None:
            return
        fit = [host for host in group.hosts if host.patroni_works and host.server.up and host.server.serving]
        fit = [host for host in fit if not host.server.stopped and host.server.system_id == group.system_id]
        fit = [host for host in fit if host.server.left_at is None]
        if group.lag_s and self.replication.random() < QUICK:  # else the most advanced one is not heard of
            fit.sort(key=lambda host: (host is not group.last, -len(host.server.data.changes)))
        found = next((host for host in fit if host.server.is_primary and self._has_all(host)), None)
        if found is not None:
            self._set_leader(group, found, "takes the lock, being a primary")
            self.tend(group)
            return
        found = next((host for host in fit if host.server.is_standby and self._has_all(host)), None)
        if found is not None:
            self._set_leader(group, found, "takes the lock")
            self._begin_promotion(group, found, "it has the lock")

    def _has_all(self, host: Host) -> bool:
        """Report whether a server has all that was acknowledged: the last primary, its synchronous one; or may lead."""
        return host.group.lag_s > 0 or host in (host.group.last, host.group.sync)

    def _begin_promotion(self, group: Group, host: Host, why: str) -> None:
        """Run ``pre_promote``, wait for it, and promote."""
        group.promoting = host
        begun, lease, over = self.now, group.lease, [False]

        def done(line: str) -> None:
            if over[0]:
                return
            over[0] = True
            self.tell(f"{host}: {line}")
            self.judge.promotion_held(host, self.now - begun)
            most_s = 0.5 if self.random.random() < QUICK else 4.0
            self.after(self.between(0.01, most_s), self._promote, group, host, lease, why)

        self.tell(f"Patroni on {host} is about to promote")
        if host.process is not None and self.is_hooked:
            self.after(HOOK_S, done, "pre-promote: no answer in time")
            host.process.before_promotion(done)
        else:
            self.after(self.between(0.05, 0.3), done, "pre-promote: no agent" if self.is_hooked else "no hook")

    def _promote(self, group: Group, host: Host, lease: int, why: str) -> None:
        if group.promoting is not host:
            return
        group.promoting = None
        if group.lease == lease and host.up and host.patroni_up and not host.patroni_hung:
            self.promote(host, why)
            group.sync, group.last = None, host
        self.tend(group)

    def _tend_follower(self, host: Host) -> None:
        group, server = host.group, host.server
        if not (host.up and host.patroni_up and not host.patroni_hung and not host.is_foreign):
            return
        if not server.up and not host.starting and not group.paused:
            host.starting = True
            self.after(self.between(0.5, 4.0), self._start_follower, host)
        elif server.is_primary and group.leader is not None and not host.demoting and not group.paused and host.dcs_ok:
            host.demoting = True
            self.after(self.between(0.1, 2.0), self._demote, host)

    def _start_follower(self, host: Host) -> None:
        host.starting = False
        if host.server.up or host.group.leader is host or not host.patroni_answers or host.is_foreign:
            self.tend(host.group)
            return
        if host.server.system_id != host.group.system_id:
            own = [one for one in host.group.primaries if one.server.system_id == host.group.system_id]
            primary = next((one for one in own if one is not host and self.talks(host, one)), None)
            if primary is None:
                self.after(2.0, self.tend, host.group)  # there is nobody to clone
                return
            host.server.system_id, host.server.data = host.group.system_id, primary.server.data.copy()
        self.start(host, recovery=True)

    def _demote(self, host: Host) -> None:
        host.demoting = False
        if host.group.leader not in (None, host) and host.server.is_primary and host.patroni_answers:
            self._stop_by_patroni(host, "it was deposed")

    def _stop_by_patroni(self, host: Host, why: str) -> None:
        """Stop a server at once: the hook may not hold that up for long, but it is run."""
        begun, over, run = self.now, [False], host.server.run

        def done(line: str) -> None:
            if over[0]:
                return
            over[0] = True
            self.tell(f"{host}: {line}")
            self.judge.forced_stop_held(host, self.now - begun)
            if host.server.run == run:
                self.die(host, why, at_once=False)

        self._run_stop_hook(host, done)

    def _tend_streams(self, group: Group) -> None:
        """Let a standby follow its primary, and a primary go on without one that does not."""
        for host in group.hosts:
            upstream = host.server.upstream
            if upstream is not None and not self._can_stream(host, upstream):
                self._leave_stream(host)
            if not any(self._can_stream(host, one) for one in group.others(host)):
                self._break_stream(host)
        leader = group.leader
        if leader is None:
            return
        able = [one for one in group.others(leader) if self._can_stream(one, leader)]
        has_sync = group.sync in able and group.sync.server.upstream is leader
        for standby in able:
            if standby.server.upstream is not leader:
                self.after(self.between(0.1, 1.0), self._join_stream, standby)
            elif not has_sync and not group.lag_s:
                self.after(self.between(0.1, 1.0), self._set_sync, standby)
        if not able and leader.server.needs_sync:
            self.after(self.between(1.0, 3.0), self._go_on_alone, leader)

    def _break_stream(self, host: Host) -> None:
        """Tell those who watch a standby that its stream has ended."""
        if host.server.receiver is not None and not host.server.stopped:
            host.server.receiver = None
            self.server_changed(host)

    def _join_stream(self, standby: Host) -> None:
        primary = standby.group.leader
        if primary is None or not self._can_stream(standby, primary) or standby.server.upstream is primary:
            return
        self._follow(standby, primary)
        self.server_changed(standby)
        if not standby.group.lag_s:
            self.after(self.between(0.1, 1.0), self._set_sync, standby)

    def _set_sync(self, standby: Host) -> None:
        group, primary = standby.group, standby.group.leader
        if primary is None or not (primary.patroni_works and self._streams(standby, primary)):
            return
        if group.sync not in (None, standby) and self._streams(group.sync, primary):
            return
        primary.server.needs_sync = True
        if group.sync is not standby:
            group.sync = standby
            self.tell(f"{standby} is the synchronous standby of {primary}")

    def _go_on_alone(self, primary: Host) -> None:
        group = primary.group
        may = group.leader is primary and primary.patroni_works and primary.server.is_primary
        alone = not any(self._can_stream(one, primary) for one in group.others(primary))
        if may and primary.server.needs_sync and alone:
            group.sync = None
            primary.server.needs_sync = False
            self.tell(f"{primary} goes on without a synchronous standby")

    # --- operators

    def make_anew(self, host: Host) -> None:
        """Initialise a standby anew that cannot catch up, as ``patronictl reinit`` does, as soon as that can be."""
        server, primary = host.server, host.group.leader
        if server.left_at is None:
            return
        able = primary is not None and primary is not host and primary.server.is_primary and host.patroni_answers
        if primary is None or not able or host.starting or primary.server.stopped or not self.talks(host, primary):
            self.after(2.0, self.make_anew, host)
            return
        self.die(host, "it is initialised anew")
        server.left_at, server.data = None, primary.server.data.copy()
        self.tend(host.group)

    def switch_over(self, group: Group) -> None:
        """Switch over, as ``patronictl switchover`` does: checkpoint, hook, stop, promotion of the other one."""
        leader = group.leader
        if leader is None or group.promoting is not None or not leader.server.is_primary or not leader.patroni_works:
            return
        fit = [one for one in group.others(leader) if one.patroni_works and self._streams(one, leader)]
        fit = [one for one in fit if group.lag_s or group.sync is one]
        if not fit:
            return
        other = fit[0] if len(fit) == 1 else self.replication.choice(fit)
        self.tell(f"switchover of {group.name} from {leader} to {other}")
        self._stop_gracefully(leader, lambda: self._hand_over(group, leader, other))

    def _hand_over(self, group: Group, leader: Host, other: Host) -> None:
        if group.leader is not leader:
            return
        self.die(leader, "switchover", at_once=False)
        if not (other.patroni_works and other.server.is_standby and (group.lag_s or group.sync is other)):
            return
        self._set_leader(group, other, "takes the lock")
        self._begin_promotion(group, other, "switchover")

    def restart(self, host: Host) -> None:
        """Restart a server, as ``patronictl restart`` does."""
        if not host.server.up or not host.patroni_works or host.group.promoting is not None or host.server.stopped:
            return
        recovery = host.server.recovery
        if not recovery and host.group.leader is not host:
            return
        self.tell(f"restart of PostgreSQL on {host}")

        def go_on() -> None:
            if not host.up or not host.server.up:
                return
            host.starting = True
            self.die(host, "restart", at_once=False)
            host.starting = False
            self.start(host, recovery=recovery)

        self._stop_gracefully(host, go_on)

    def call_off(self, host: Host) -> None:
        """Announce a planned stop that then does not happen."""
        if not host.server.is_primary or not host.patroni_works or host.group.promoting is not None:
            return
        if host.group.leader is host and not host.server.stopped:
            self.tell(f"a stop of {host} is announced, and called off")
            self._stop_gracefully(host, lambda: None)

    def _stop_gracefully(self, host: Host, go_on: Callable[[], None]) -> None:
        begun, over, run = self.now, [False], host.server.run
        host.checkpoint_at = self.now

        def done(line: str) -> None:
            if over[0]:
                return
            over[0] = True
            self.tell(f"{host}: {line}")
            self.judge.stop_held(host, self.now - begun)
            if host.server.run == run and host.server.up and host.up:
                go_on()

        self._run_stop_hook(host, done)

    def _run_stop_hook(self, host: Host, done: Callable[[str], None]) -> None:
        if host.process is None:
            done("before-stop: no agent")
        elif host.process.loop.is_stopped:
            self.after(ALIVE_S, done, "before-stop: the agent does not answer")
        else:
            self.after(STOP_HOOK_S, done, "before-stop: no answer in time")
            host.process.before_stop(done)

    # --- power

    def power_off(self, host: Host) -> None:
        """Take a host's power away: nobody is told."""
        if not host.up:
            return
        self.tell(f"power loss of {host}")
        self.kill_agent(host)
        host.up = host.patroni_up = False
        server = host.server
        server.up = server.stopped = False
        self._leave_stream(host)
        server.receiver = None
        server.active.clear()
        server.sessions.clear()
        host.starting = host.demoting = False
        self.server_changed(host)
        self.patroni_changed(host)
        self.tend(host.group)

    def power_on(self, host: Host) -> None:
        """Give it back."""
        if host.up:
            return
        self.tell(f"power of {host} is back")
        host.up, host.patroni_hung = True, False
        self.judge.hindered(host)
        self.server_changed(host)
        self.after(self.between(0.5, 3.0), self.start_patroni, host)
        self.after(self.between(0.3, 2.0), self.start_agent, host)

    def start_patroni(self, host: Host) -> None:
        """Start Patroni."""
        if host.up and not host.patroni_up:
            host.patroni_up = True
            self.patroni_changed(host)
            self.tend(host.group)

    # --- the agent's process and its file

    def kill_agent(self, host: Host) -> None:
        """End the agent's process at once."""
        if host.process is not None:
            if host.process.loop.is_stopped:
                self.judge.hindered(host)
            host.process.kill()
            host.process = None
            self.judge.agent_ended(host)

    def restart_agent(self, host: Host, within_s: float) -> None:
        """Kill the agent, and have systemd start it again."""
        self.kill_agent(host)
        self.after(within_s, self.start_agent, host)

    def start_agent(self, host: Host) -> None:
        """Start it, if the host is to have one."""
        if host in self.agents and host.up and host.process is None:
            self.begin_agent(host)

    def write_hosts(self, host: Host, content: bytes, basis: Basis | None) -> None:
        """Take a new hosts file from the agent, which decided it on this basis."""
        before, host.hosts = host.hosts, content
        host.hosts_version += 1
        host.hosts_written_at = self.now + self.wall_offset_s
        if addresses(before) != addresses(content):
            host.moved_at = self.now
        self.judge.file_written(host, before, content, basis)

    def edit_hosts(self, host: Host, content: bytes) -> None:
        """Take a new hosts file from another program."""
        host.hosts = content
        host.hosts_version += 1
        host.hosts_written_at = self.now + self.wall_offset_s
        if host.process is not None:
            host.process.file_changed()

    def lookup(self, host: Host, name: str) -> str | None:
        """Return the first address that a name has in a host's file."""
        return addresses(host.hosts).get(name)

    def room(self, host: Host, name: str, address: str) -> Room | None:
        """Return the waiting room at an address of a host, if somebody listens there."""
        return host.process.rooms.find(name, address) if host.process is not None else None


@functools.lru_cache(maxsize=512)
def addresses(content: bytes) -> dict[str, str]:
    """Return what each name in a hosts file resolves to."""
    lines = (line.partition("#")[0].split() for line in content.decode("ascii", "replace").splitlines())
    found: dict[str, str] = {}
    for fields in lines:
        for name in fields[1:]:
            found.setdefault(name, fields[0])
    return found
