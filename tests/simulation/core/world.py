"""Servers, their groups, Patroni and what lies between them and an agent: plain objects on a heap of events.

Only what an agent can see is modelled. The judge and the agents are told by ``Path``, never directly.
"""

from __future__ import annotations

import dataclasses
import enum
import heapq
import random
from typing import TYPE_CHECKING

from resolver_agent.config.model import Node
from resolver_agent.routing.observation import Identity, Observation, PatroniStatus, ProbeFailure, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tests.simulation.core.agent import Agent
    from tests.simulation.core.judge import Judge

    Steps = Generator[float, None, None]
    """What somebody does: it yields how long each step takes, in seconds."""

TIMEOUT_S = 2.0
NOTHING = PatroniStatus()
WAL = 1_000_000
"""How many bytes a primary writes in a second."""
LOOK_S = 2.0
"""So often an agent looks at servers that do not change, while somebody looks at their lag."""
PERIOD_S, BUSY_S = 60, 20
"""In some worlds primaries write for so many seconds of each period, and are idle for the rest of it."""


class State(enum.Enum):
    """What a probe of a server meets."""

    UP = "up"
    STARTING = "starting"
    DOWN = "down"
    SILENT = "silent"
    REJECTING = "rejecting"


_FAILS = {
    State.STARTING: (ProbeFailure.NOT_SERVING, "the database system is starting up"),
    State.DOWN: (ProbeFailure.DEAD, "Connection refused"),
    State.SILENT: (ProbeFailure.UNREACHABLE, "no answer within 2 s"),
    State.REJECTING: (ProbeFailure.REJECTING, "password authentication failed"),
}


@dataclasses.dataclass(slots=True, eq=False)
class Server:
    """One PostgreSQL server and its Patroni. ``run`` counts its starts."""

    number: int
    node: Node
    group: Group
    identity: Identity
    state: State = State.UP
    recovery: bool = True
    timeline: int = 1
    receiver: int | None = None
    lag: int = 0
    stalled_at: float | None = None
    """Since when it replays nothing."""
    run: int = 0
    rejects: bool = False
    is_foreign: bool = False
    hangs: bool = False
    """Its Patroni hangs: it lives on as it is, and its own Patroni says nothing new."""
    watchers: list[Path] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        """Return it as the story shows it."""
        return f"{self.group.name}/{self.node.host}"

    @property
    def is_primary(self) -> bool:
        """Whether it takes writes."""
        return self.state is State.UP and not self.recovery

    @property
    def may_lead(self) -> bool:
        """Whether Patroni may promote it."""
        return self.state is State.UP and self.recovery and not (self.is_foreign or self.hangs)

    def lsn_at(self, at: float) -> int:
        """Return its LSN at a moment; all primaries write at the same pace."""
        if self.stalled_at is not None:
            at = min(at, self.stalled_at)
        if self.group.idles:
            at = at // PERIOD_S * BUSY_S + min(at % PERIOD_S, BUSY_S)
        return int(at * WAL) - self.lag

    @property
    def falls_behind(self) -> bool:
        """Whether a fault keeps it behind its primary."""
        return self.lag > 0 or self.stalled_at is not None

    def behind(self, leader: Server, at: float) -> tuple[int, float]:
        """Return how far it is behind its primary, in bytes, and in seconds since that has gone on from its LSN."""
        lsn = self.lsn_at(at)
        lag_bytes = leader.lsn_at(at) - lsn
        if lag_bytes <= 0:
            return 0, 0.0
        written_s = lsn / WAL
        passed_at = written_s // BUSY_S * PERIOD_S + written_s % BUSY_S if self.group.idles else written_s
        return lag_bytes, at - passed_at

    def seen(self, at: float, answered_at: float) -> Observation:
        """Return what a probe of it sees."""
        state = State.REJECTING if self.rejects and self.state is State.UP else self.state
        if state is not State.UP:
            result, detail = _FAILS[state]
            return Observation(result=result, at=at, detail=detail)
        return Observation(
            result=Role.STANDBY if self.recovery else Role.PRIMARY,
            at=at,
            answered_at=answered_at,
            address=self.node.host,
            lsn=self.lsn_at(at),
            timeline=self.timeline,
            identity=self.identity,
            receiver=self.receiver,
        )


@dataclasses.dataclass(slots=True, eq=False)
class Group:
    """The servers behind one name, and Patroni's leader lock; ``lease`` counts its holders."""

    name: str
    servers: list[Server]
    system_id: int
    timeline: int = 1
    leader: Server | None = None
    lease: int = 0
    is_busy: bool = False
    idles: bool = False
    """Its primary is idle now and then."""
    excluded: set[Server] = dataclasses.field(default_factory=set)

    def status(self) -> PatroniStatus:
        """Return what Patroni says of it."""
        leader = self.leader
        return PatroniStatus(
            leader=None if leader is None else leader.node,
            excluded={server.node: "it is tagged noloadbalance" for server in self.excluded},
            system_id=self.system_id,
        )


@dataclasses.dataclass(slots=True, eq=False)
class Path:
    """How one run of an agent sees one server: late by ``delay_s``, cut off while ``blocks`` is not 0.

    ``stale_since`` is when the server was changed otherwise than the agent has been told, None while it knows all.
    """

    agent: Agent
    life: int
    server: Server
    is_local: bool
    delay_s: float
    phase_s: float
    blocks: int = 0
    changes: int = 0
    stale_since: float | None = None
    is_asked: bool = False
    arrived_at: float = 0.0


class World:
    """One world: its time, its chance, its servers and its agents."""

    def __init__(self, seed: int, sizes: tuple[int, ...], *, with_patroni: bool, is_told: bool) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)  # noqa: S311
        self.chance = self.random.random
        self.with_patroni = with_patroni
        self.failovers = 0
        self.events = 0
        self.is_over = False
        self.story: list[str] | None = [] if is_told else None
        self.wall_offset_s = 0.0
        self.judge: Judge
        self.agents: list[Agent] = []
        self.blocks: dict[tuple[int, int], int] = {}
        self.looks_until = 0.0
        self._is_looking = False
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        self.groups: list[Group] = []
        self.servers: list[Server] = []
        for place, size in enumerate(sizes):
            group = Group(name="cn" if place == 0 else f"wk{place}", servers=[], system_id=7000 + place)
            for _ in range(size):
                number = len(self.servers)
                node = _NODES[number]
                server = Server(number, node, group, Identity(group.system_id, 1_000_000 + number))
                group.servers.append(server)
                self.servers.append(server)
            group.leader = group.servers[0]
            group.leader.recovery = False
            for server in group.servers[1:]:
                server.receiver = 100 + server.number
            self.groups.append(group)

    def tell(self, line: str) -> None:
        """Add a line to the story, if somebody wants to read it."""
        if self.story is not None:
            self.story.append(f"{self.now - 1000.0:9.3f}  {line}")

    # --- time

    def after(self, delay_s: float, what: Callable[..., None], *arguments: object) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, what, arguments))

    def start(self, steps: Steps) -> None:
        """Take one step after the other."""
        for pause_s in steps:
            self.after(pause_s, self.start, steps)
            return

    def run(self, until: float) -> None:
        """Let everything happen that happens until then."""
        heap, pop = self._heap, heapq.heappop
        while heap and not self.is_over and heap[0][0] <= until:
            self.now, _, what, arguments = pop(heap)
            self.events += 1
            what(*arguments)
        if not self.is_over:
            self.now = max(self.now, until)

    # --- what agents see

    def changed(self, server: Server) -> None:
        """Let all who watch a server find out that it is not as before."""
        for path in server.watchers:
            self.ask(path)

    def ask(self, path: Path) -> None:
        """Let an agent find out what a server is like now."""
        path.changes += 1
        if path.stale_since is None:
            path.stale_since = self.now
        if not path.is_asked:
            path.is_asked = True
            chance = self.chance()
            self.after(chance * (0.1 if path.is_local else chance * chance), self._probe, path)

    def _probe(self, path: Path) -> None:
        path.is_asked = False
        if path.life != path.agent.life:
            return
        now = self.now
        if path.blocks or path.server.state is State.SILENT:
            seen, arrives_at = Observation(result=ProbeFailure.UNREACHABLE, at=now, detail="no answer"), now + TIMEOUT_S
        else:
            # The answer is of now; its question was sent before, and it arrives later.
            waited_s = path.delay_s * self.chance()
            arrives_at = now + path.delay_s - waited_s
            seen = path.server.seen(now - waited_s, arrives_at)
        if arrives_at <= now and path.arrived_at <= now:
            path.agent.take(path, seen, path.changes)
        else:
            path.arrived_at = arrives_at = max(arrives_at, path.arrived_at)
            self.after(arrives_at - now, self._deliver, path, seen, path.changes)

    def _deliver(self, path: Path, seen: Observation, changes: int) -> None:
        if path.life == path.agent.life:
            path.agent.take(path, seen, changes)

    def look_for(self, lasts_s: float) -> None:
        """Let all agents look at servers that do not change, for so long from now on."""
        self.looks_until = max(self.looks_until, self.now + lasts_s)
        if not self._is_looking:
            self._is_looking = True
            self._look()

    def _look(self) -> None:
        for agent in self.agents:
            agent.wake()
        self._is_looking = self.now < self.looks_until
        if self._is_looking:
            self.after(LOOK_S, self._look)

    def patroni_changed(self, group: Group) -> None:
        """Let all agents hear what a group's Patroni says now, each in its time."""
        if self.with_patroni:
            for agent in self.agents:
                self.after(self.chance() ** 2, agent.hear, group)

    def block(self, agent: Agent, server: Server, by: int) -> None:
        """Cut an agent off from a server, or end that."""
        key = (agent.host.number, server.number)
        self.blocks[key] = self.blocks.get(key, 0) + by
        for path in server.watchers:
            if path.agent is agent and not path.is_local:
                path.blocks = self.blocks[key]
                self.ask(path)

    # --- what servers do

    def stop(self, server: Server, why: str, state: State = State.DOWN) -> None:
        """End a server's run, or its host's."""
        self.tell(f"{server}: {why}")
        server.state = state
        server.receiver = None
        self.changed(server)

    def boot(self, server: Server, *, recovery: bool) -> None:
        """Start a server; a standby follows the present timeline."""
        group = server.group
        server.run += 1
        server.state, server.recovery, server.is_foreign = State.UP, recovery, False
        server.lag, server.stalled_at = 0, None
        server.identity = Identity(group.system_id, int((self.now + self.wall_offset_s) * 1e6) + server.number)
        if recovery:
            server.timeline = group.timeline
            server.receiver = 100 + server.run if group.leader is not None else None
        self.tell(f"{server} starts as a {'standby' if recovery else 'primary'}")
        self.changed(server)

    def promote(self, server: Server, why: str) -> None:
        """Make a standby a primary."""
        group = server.group
        group.timeline += 1
        server.timeline, server.recovery, server.receiver = group.timeline, False, None
        server.lag, server.stalled_at = 0, None
        self.failovers += 1
        self.tell(f"{server} is promoted: {why}")
        self.judge.promoted(server)
        self.changed(server)
        for other in group.servers:
            if other is not server and other.state is State.UP and other.recovery and not other.is_foreign:
                other.timeline, other.receiver = group.timeline, 1000 + self.failovers
                self.changed(other)

    def lead(self, group: Group, server: Server | None) -> None:
        """Give the leader lock to a server, or to none."""
        group.leader = server
        group.lease += 1
        self.patroni_changed(group)


_NODES = tuple(Node(f"10.0.{number // 2}.{number % 2 + 1}", 5432) for number in range(16))
