"""The agent's pure core on one host: what is seen, ``decide()``, and the memory in the block, killed and started anew.

What ``agent.py`` and ``observe`` do around the core is here in a few lines; the whole of them is in the other worlds.
"""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING

from resolver_agent.config.model import Route
from resolver_agent.hosts.block import BlockError, recall, render
from resolver_agent.routing import local_server, queue
from resolver_agent.routing.decide import confirm, decide, resume
from resolver_agent.routing.decision import Decision
from resolver_agent.routing.observation import (
    LockClaim,
    NodeState,
    Observation,
    Observations,
    PatroniStatus,
    Pause,
    Pin,
    ProbeFailure,
    Role,
    Window,
    asked_all,
)
from tests.simulation.core.world import NOTHING, Path

if TYPE_CHECKING:
    from collections.abc import Callable

    from resolver_agent.config.model import Config, Node
    from resolver_agent.routing.state import Target
    from tests.simulation.core.world import Group, Server, World

OUTSIDE, BELOW = b"127.0.0.1\tlocalhost\n", b"192.0.2.1\tprinter\n"
_REFRESH_S = 1.9
"""An answer is renewed when it is so old: a server is asked every second, and one probe may be late."""
_RENEWED_S = 2.0
"""So long after a moment, a round knows an answer to a question that was asked after it."""
_PRESSED_S = 1.0
"""So long a promotion waits for the first look of an agent that starts."""
_INF = float("inf")


class Death(enum.Enum):
    """When an agent is killed in the round that moves a name."""

    BEFORE_WRITE = "before the file is written"
    IN_WRITE = "with its host, while the file is written in place"
    AFTER_WRITE = "after the file is written"


def torn(old: bytes, new: bytes, share: float) -> bytes:
    """Return a file of which so much was written over, as ``hosts.atomic_file`` writes in place."""
    length = max(len(old), len(new))
    cut = int(share * (length + 1))
    return new.ljust(length, b"\n")[:cut] + old.ljust(length, b"\n")[cut:]


class Agent:
    """One host's agent. ``life`` counts its starts; ``written`` is what its file says."""

    def __init__(self, world: World, host: Server, config: Config) -> None:
        self.world, self.host, self.config = world, host, config
        self.life = 0
        self.is_alive = False
        self.written: tuple[Target, ...] = ()
        self.damage: Callable[[bytes], bytes] | None = None
        """What happens to the file before the next start: another program edits it, or a write of it was torn."""
        self.dies: Death | None = None
        """It is killed in the next round that moves a name."""
        self.pins: dict[str, Pin] = {}
        self.pause: Pause | None = None
        self._reset()

    def __str__(self) -> str:
        """Return it as the story shows it."""
        return f"the agent on {self.host}"

    def _reset(self) -> None:
        self.nodes: dict[Node, NodeState] = {}
        self.local = NodeState()
        self.statuses: dict[str, PatroniStatus] = {}
        self.claim: LockClaim | None = None
        self.windows: dict[str, Window] = {}
        self.announced: local_server.Announced | None = None
        self.is_blind = False
        """It could not ask its server when a promotion was announced, and has not seen it dead since."""
        self.decision = Decision(groups={})
        self.paths: list[Path] = []
        self.has_looked = False
        self.news = 0
        """Counts what it was told, but for times and LSNs."""
        self._is_due = False
        self._due_at = _INF

    # --- life

    def begin(self) -> None:
        """Start it: it remembers what its block says."""
        if self.is_alive:
            return
        world, content = self.world, render(OUTSIDE, self.written)
        world.judge.rendered(self, render(content + BELOW, self.written), OUTSIDE, BELOW)
        if self.damage is not None:
            content, self.damage = self.damage(content), None
            self.world.judge.forget(self)
        try:
            remembered = recall(content, [group.name for group in self.config.groups])
        except BlockError:
            self.written = ()  # the operator takes the block out
            world.after(5.0, self.begin)
            return
        self._reset()
        self.written = remembered
        self.is_alive = True
        self.life += 1
        self.decision = resume(self.config, remembered)
        self.world.judge.begun(self, remembered)
        for server in world.servers:
            self.nodes[server.node] = NodeState()
            self._watch(server, is_local=False)
        self._watch(self.host, is_local=True)
        if world.with_patroni:
            for group in world.groups:
                world.after(world.chance() * 0.3, self.hear, group)

    def _watch(self, server: Server, *, is_local: bool) -> None:
        world = self.world
        late = 0.0 if is_local else world.chance()
        path = Path(
            agent=self,
            life=self.life,
            server=server,
            is_local=is_local,
            delay_s=0.0 if late < 0.8 else (late - 0.8) * (1.5 if late < 0.97 else 9.0),
            phase_s=world.chance(),
            blocks=0 if is_local else world.blocks.get((self.host.number, server.number), 0),
        )
        server.watchers = [one for one in server.watchers if one.life == one.agent.life or one.agent is not self]
        server.watchers.append(path)
        self.paths.append(path)
        world.ask(path)

    def kill(self) -> None:
        """End it at once."""
        if self.is_alive:
            self.world.tell(f"{self} is killed")
            self.is_alive = False
            self.life += 1
            self.world.judge.killed(self)
            for server in self.world.servers:
                server.watchers = [path for path in server.watchers if path.agent is not self]

    # --- what it is told

    def take(self, path: Path, seen: Observation, changes: int) -> None:
        """Take the answer of a server, as it was after so many changes."""
        state = self.local if path.is_local else self.nodes[path.server.node]
        if seen.role is None:
            state = self._renewed(path, state)  # it was asked until it changed
        state = state.after(seen)
        if path.is_local:
            self.local = state
            self.is_blind = self.is_blind and seen.result is not ProbeFailure.DEAD
        else:
            self.nodes[path.server.node] = state
        if changes == path.changes:
            path.stale_since = None
        self.news += 1
        self.world.judge.told(self, path, seen)
        self.wake()

    def _renewed(self, path: Path, state: NodeState) -> NodeState:
        """Return a state as if its server had been asked every second until it changed, or until now."""
        seen = state.role_seen
        if seen is None or state.latest is not seen:
            return state
        stale = path.stale_since
        at = (self.world.now if stale is None else stale) - path.phase_s
        if at <= seen.at:
            return state
        renewed = Observation(
            result=seen.result,
            at=at,
            answered_at=at,
            address=seen.address,
            lsn=path.server.lsn_at(at),
            timeline=seen.timeline,
            identity=seen.identity,
            receiver=seen.receiver,
        )
        return state.after(renewed)

    def hear(self, group: Group) -> None:
        """Take what a group's Patroni says, and whether the own one holds the leader lock."""
        if not self.is_alive:
            return
        world = self.world
        reached = any(
            not server.hangs and not world.blocks.get((self.host.number, server.number)) for server in group.servers
        )
        status = group.status() if reached else NOTHING
        is_new = self.statuses.get(group.name) != status
        if is_new:
            for named in self.config.groups:
                if named.name.partition("-")[0] == group.name:
                    self.statuses[named.name] = status
        if group is self.host.group and not self.host.hangs:
            leads = group.leader is self.host
            is_new = is_new or self.claim is None or self.claim.leads is not leads
            self.claim = LockClaim(at=world.now, leads=leads, system_id=group.system_id)
        if is_new:
            self.news += 1
            self.wake()

    def announce(self) -> None:
        """Take in that Patroni is about to promote the local server."""
        if not self.is_alive:
            return
        self.announced = local_server.Announced(since=self.world.now, receiver_known=False).after(self.local)
        self.is_blind = not self.announced.receiver_known
        self.news += 1
        self.world.tell(f"{self}: a promotion is announced")
        self.wake()
        self.world.after(_PRESSED_S, self.wake)

    def reload(self) -> None:
        """Read the configuration again, by which the operator confirms a new database cluster."""
        if self.is_alive:
            self.decision = confirm(self.decision)
            self.world.judge.confirmed(self)
            self.news += 1
            self.wake()

    # --- what it decides

    def wake(self) -> None:
        """Decide soon."""
        if not self._is_due:
            self._is_due = True
            chance = self.world.chance()
            self.world.after(0.002 + 0.15 * chance * chance, self.round, self.life)

    def _wake_at(self, at: float) -> None:
        if self._due_at == at:
            self.round(self.life)

    def round(self, life: int) -> None:
        """One pass, from what was seen to the file."""
        if life != self.life or not self.is_alive:
            return
        self._is_due = False
        world, now = self.world, self.world.now
        if not self.has_looked:
            pressed = self.announced is not None and now - self.announced.since >= _PRESSED_S
            if not pressed and (not asked_all(self.nodes) or self.local.latest is None):
                return
            self.has_looked = True
        self._renew()
        self._review_announcement()
        seen = self.observations()
        before, decision = self.decision, decide(self.config, seen, self.decision, now)
        targets = decision.targets
        moved = before.targets != targets
        dies = self.dies if moved else None
        if dies is Death.BEFORE_WRITE:
            self._die_and_return(dies)
            return
        self.decision = decision
        world.judge.decided(self, before, decision, seen)
        self.written = targets
        for name, address in decision.overtaken.items():
            if name in self.pins and self.pins[name].address == address:
                del self.pins[name]
        if dies is not None:
            if dies is Death.IN_WRITE:
                self.damage = functools.partial(torn, render(OUTSIDE, before.targets), share=world.chance())
            self._die_and_return(dies)
            return
        if self.windows:
            self._review_windows()
        self._set_due(decision)

    def _die_and_return(self, death: Death) -> None:
        self.dies = None
        self.world.tell(f"{self} ends {death.value}")
        self.kill()
        self.world.after(0.1 + 3.0 * self.world.chance(), self.begin)

    def observations(self) -> Observations:
        """Return what is known now."""
        claim = self.claim and local_server.believable(self.claim, local=self.local)
        return Observations(
            nodes=self.nodes,
            local=self.local,
            assumed=Role.PRIMARY if self.announced is not None else None,
            holds_lock=local_server.holds_lock(
                claim, local=self.local, now=self.world.now, max_age_s=self.config.max_age_s
            ),
            patroni=self.statuses,
            windows=self.windows,
            pins=self.pins,
            pause=self.pause,
        )

    def _renew(self) -> None:
        now = self.world.now
        for path in self.paths:
            state = self.local if path.is_local else self.nodes[path.server.node]
            seen = state.role_seen
            if seen is not None and now - seen.at > _REFRESH_S and state.latest is seen:
                if path.is_local:
                    self.local = self._renewed(path, state)
                else:
                    self.nodes[path.server.node] = self._renewed(path, state)
        claim, host = self.claim, self.host
        if claim is not None and claim.at < now - 1.0 and not host.hangs and claim.leads == (host.group.leader is host):
            self.claim = LockClaim(at=now - 0.5, leads=claim.leads, system_id=claim.system_id)

    def _review_announcement(self) -> None:
        if self.announced is None:
            return
        self.announced = self.announced.after(self.local)
        own = local_server.own_nodes(self.config, self.decision, self.nodes)
        primary_at = local_server.rival_seen_at(self.config, own, self.nodes)
        claim = self.claim and local_server.believable(self.claim, local=self.local)
        ended = local_server.how_it_ended(self.announced, local=self.local, claim=claim, primary_at=primary_at)
        if ended is not None:
            self.world.tell(f"{self}: the announced promotion is over: {ended}")
            self.announced = None
            self.news += 1

    def _review_windows(self) -> None:
        """End the windows that are over; the next round knows."""
        for name, window in [*self.windows.items()]:
            if self.world.now >= window.until + 1.0 or queue.ended(window, self.decision.views[name]) is not None:
                del self.windows[name]
                self.news += 1
                self.wake()

    def _set_due(self, decision: Decision) -> None:
        """Decide anew when something changes by itself: an answer expires, a standby has been fit for long enough."""
        now = self.world.now
        times = [one.until for one in self.pins.values()]
        if self.pause is not None:
            times.append(self.pause.until)
        if self.announced is not None:  # Patroni and the server are asked again
            times.append(now + 1.0)
        for view in decision.views.values():
            times.append(view.pending_until)
            if self.windows or view.memory.lost_at is not None:
                times += queue.rechecks(view, self.windows.get(view.group.name))
        # The answer that calls a stop off may be to the question after that moment.
        times += [window.called_off_at + _RENEWED_S for window in self.windows.values()]
        for path in self.paths:
            state = self.local if path.is_local else self.nodes[path.server.node]
            seen = state.role_seen
            if seen is not None and (path.stale_since is not None or state.latest is not seen):
                times.append(seen.at + self.config.max_age_s)
        due = min([at for at in times if at > now], default=_INF)
        if due != self._due_at:
            self._due_at = due
            if due < _INF:
                self.world.after(max(0.0, due - now) + 0.001, self._wake_at, due)

    def wanted(self, group_route: Route, wish: Role | None) -> Role | None:
        """Return the role that a name with this route wants."""
        if group_route is Route.FOLLOW:
            return wish
        return Role.PRIMARY if group_route is Route.PRIMARY else Role.STANDBY
