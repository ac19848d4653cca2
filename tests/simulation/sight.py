"""What an agent sees of the world: the parts of ``observe.monitor`` and ``patroni.watch`` that stand for sockets.

A probe of a server that has not changed would only make an old answer younger, so there is no event for it: the time of
the last one is worked out when somebody asks. All other probes are events, each with its own way and its own delay.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.patroni.membership import Answer, find_status
from resolver_agent.routing.observation import LockClaim, NodeState, Observation, PatroniStatus, ProbeFailure, Role
from resolver_agent.system.histogram import Histogram
from resolver_agent.system.pacing import News

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from resolver_agent.config.model import Config, Node
    from resolver_agent.routing.state import Alert
    from tests.simulation.process import Process
    from tests.simulation.world import Host

_LOCAL_S, _UNSETTLED_S = 0.1, 0.02
_CALM_S = 5.0
_NOTICED_S = 0.002
_ROUND_TRIP_S = (0.0004, 0.004)
_NO_STATUS = PatroniStatus()


class _Link:
    """The probes of one server by one agent."""

    __slots__ = ("again", "host", "interval_s", "is_calm", "is_local", "lost", "pending", "phase", "seen", "state")

    def __init__(self, host: Host, *, interval_s: float, phase: float, is_local: bool = False) -> None:
        self.host = host
        self.interval_s = interval_s
        self.phase = phase
        self.is_local = is_local
        self.state = NodeState()
        self.seen: tuple[object, ...] | None = None
        self.is_calm = self.pending = self.again = self.lost = False


class SimulatedMonitor:
    """Stands for ``observe.monitor.Monitor``."""

    def __init__(
        self,
        process: Process,
        *,
        on_local: Callable[[], None] = lambda: None,
        on_message: Callable[[Node, int, str], None] = lambda _node, _pid, _payload: None,
    ) -> None:
        self.changed = News()
        self.probes: collections.Counter[str] = collections.Counter()
        self.probe_s = Histogram(0.1, 1.0)
        self.on_local = on_local
        self.on_message = on_message
        self._process = process
        self._world = process.world
        self._links: dict[Node, _Link] = {}
        self._local: _Link | None = None
        self._states: dict[Node, NodeState] = {}
        self._refreshed_at = -1.0
        self._timeout_s = 2.0
        process.monitor = self

    # --- the interface

    def watch(self, config: Config) -> None:
        """Watch the servers of a configuration."""
        world, process = self._world, self._process
        before, self._links = self._links, {}
        self._timeout_s = config.timeout_s
        if self._local is None:
            self._local = _Link(process.host, interval_s=_LOCAL_S, phase=world.between(0, 0.1), is_local=True)
            self._schedule(self._local, within_s=0.005)
        for node in dict.fromkeys(node for group in config.groups for node in group.nodes):
            link = before.get(node)
            if link is None:
                host = world.by_address[node.host]
                link = _Link(host, interval_s=config.interval_s, phase=world.between(0, config.interval_s))
                self._schedule(link, within_s=0.01)
            self._links[node] = link
        self._refreshed_at = -1.0

    @property
    def nodes(self) -> dict[Node, NodeState]:
        """What is known of every node now."""
        now = self._world.scheduler.now
        if now != self._refreshed_at:
            self._refreshed_at = now
            for link in self._links.values():
                if link.is_calm:
                    self._renew(link, now)
            self._states = {node: link.state for node, link in self._links.items()}
        return dict(self._states)

    @property
    def local(self) -> NodeState:
        """What is known of the local server now."""
        if self._local is None:
            return NodeState()
        if self._local.is_calm:
            self._renew(self._local, self._world.scheduler.now)
        return self._local.state

    @property
    def asked_all(self) -> bool:
        """Whether every server was asked."""
        return all(link.state.latest is not None for link in self._all())

    def expires_at(self, max_age_s: float) -> float:
        """Return when the next answer expires that no other one follows."""
        now = self._world.scheduler.now
        seen = (link.state.role_seen for link in self._links.values() if not link.is_calm)
        return min(
            (one.at + max_age_s for one in seen if one is not None and one.at + max_age_s > now), default=now + 10
        )

    def check(self) -> None:
        """Do nothing: no task can end."""

    def refresh(self) -> None:
        """Ask every server again now."""
        for link in self._all():
            self._schedule(link, within_s=0.001)

    def say(self, node: Node, payload: str) -> None:
        """Send a message to the agents that have a session on a primary."""
        link = self._links.get(node)
        if link is not None and self._hears(link):
            for host in self._world.agents:
                other = host.process
                if other is not None and other is not self._process:
                    other.told(link.host, self._process.pid, payload)

    async def peers(self, node: Node, *, within_s: float) -> frozenset[int] | None:
        """Return the process numbers of the other agents' sessions on a node."""
        await self._process.sleep(self._world.between(*_ROUND_TRIP_S))
        link = self._links.get(node)
        if link is None or not self._hears(link):
            return None
        del within_s
        others = (one.process for one in self._world.agents if one.process is not None)
        return frozenset(other.pid for other in others if other is not self._process and other.has_session(link.host))

    async def close(self) -> None:
        """Stop."""

    # --- the world's side

    def server_changed(self, host: Host, *, died: bool) -> None:
        """Notice that there is something to see, when the next probe does."""
        for link in self._all():
            if link.host is not host:
                continue
            if link.seen == self._world.sees(self._process.host, host) and not link.pending:
                continue
            self._settle(link)
            if died and link.is_calm and self._world.sees(self._process.host, host) != ("silent",):
                link.lost = True
                self._schedule(link, within_s=_NOTICED_S)
                if not link.is_local:
                    self._wake_group(host)
            else:
                self._schedule(link)
            link.is_calm = False

    def file_changed(self) -> None:
        """Notice that another program has written the hosts file, at the next probe of the local server."""
        self._process.call_after(self._world.between(0, _LOCAL_S), self.on_local)

    def has_session(self, host: Host) -> bool:
        """Report whether there is an open session on a server."""
        return any(link.is_calm and link.host is host for link in self._links.values())

    def told(self, host: Host, pid: int, payload: str) -> None:
        """Take a notification from a session on a server."""
        link = self._links.get(host.node)
        if link is not None and self._hears(link):
            delay_s = self._world.between(*_ROUND_TRIP_S) + self._delay_s(host)
            self._process.call_after(delay_s, self._hear, host.node, pid, payload)

    def _hear(self, node: Node, pid: int, payload: str) -> None:
        link = self._links.get(node)
        if link is not None and self._hears(link):  # the sender's session must still be there, too
            self.on_message(node, pid, payload)

    def _hears(self, link: _Link) -> bool:
        return link.is_calm and link.state.last_role is Role.PRIMARY

    # --- probes

    def _all(self) -> list[_Link]:
        return [*self._links.values(), *([self._local] if self._local is not None else [])]

    def _renew(self, link: _Link, now: float) -> None:
        """Have the last answer be as young as it would be."""
        seen = link.state.role_seen
        if seen is None:
            return
        at = now - (now - link.phase) % link.interval_s
        if at > seen.at:
            again = Observation(
                result=seen.result,
                at=at,
                address=seen.address,
                lsn=link.host.server.lsn(at),
                timeline=seen.timeline,
                identity=seen.identity,
                receiver=seen.receiver,
                answered_at=at,
            )
            link.state = NodeState(latest=again, role_seen=again, same_since=link.state.same_since)

    def _settle(self, link: _Link) -> None:
        """Work out the last answer before something changes."""
        if link.is_calm:
            self._renew(link, self._world.scheduler.now)

    def _wake_group(self, host: Host) -> None:
        for one in host.group.hosts:
            link = self._links.get(one.node)
            if link is not None:
                self._schedule(link, within_s=_NOTICED_S)

    def _schedule(self, link: _Link, *, within_s: float | None = None) -> None:
        if link.pending:
            link.again = True
            return
        link.pending = True
        if within_s is None:
            unsettled = not link.is_local and self._is_unsettled(link.host)
            within_s = _UNSETTLED_S if unsettled else link.interval_s
        self._process.call_after(self._world.between(0.0, within_s), self._sample, link)

    def _is_unsettled(self, host: Host) -> bool:
        links = [self._links[one.node] for one in host.group.hosts if one.node in self._links]
        return sum(link.state.last_role is Role.PRIMARY and not link.state.seen_dead for link in links) != 1

    def _delay_s(self, host: Host) -> float:
        extra = self._world.slow.get((self._process.host.number, host.number))
        return self._world.between(0.0, extra) if extra is not None else 0.0

    def _sample(self, link: _Link) -> None:
        """Ask: what the server is at this moment is what the answer will say, whenever it comes."""
        world, me = self._world, self._process.host
        if link.is_local and not me.up:
            return
        link.again = False
        kind = world.sees(me, link.host)
        seen = world.probe(me, link.host, is_local=link.is_local)
        delay_s = world.between(*_ROUND_TRIP_S) + (0.0 if link.is_local else self._delay_s(link.host))
        lost = me.number in world.lossy and not link.is_local and world.random.random() < 0.3
        if seen.result is ProbeFailure.UNREACHABLE or lost or delay_s >= self._timeout_s:
            seen = Observation(result=ProbeFailure.UNREACHABLE, at=world.now, detail="no answer within 2 s")
            delay_s, kind = self._timeout_s, kind if kind[0] in ("silent", "stopped") else ("lost",)
        self._process.call_after(delay_s, self._deliver, link, seen, kind)

    def _deliver(self, link: _Link, seen: Observation, kind: tuple[object, ...]) -> None:
        world = self._world
        link.pending = False
        late = link.lost and seen.role is not None  # it was on its way when the connection died
        if link.lost and not late:
            link.lost = False
            if seen.result in (ProbeFailure.UNREACHABLE, ProbeFailure.NOT_SERVING):
                seen = dataclasses.replace(seen, result=ProbeFailure.DEAD, detail=f"connection closed; {seen.detail}")
        before, link.state = link.state, link.state.after(seen)
        link.seen = kind
        self._refreshed_at = -1.0
        world.judge.observed(self._process.host, link.host, seen, is_local=link.is_local)
        now_kind = world.sees(self._process.host, link.host)
        link.is_calm = seen.role is not None and kind == now_kind
        if link.again or kind != now_kind:
            self._schedule(link, within_s=_NOTICED_S if late else None)
        if before.last_role is not link.state.last_role or before.seen_dead != link.state.seen_dead:
            self._wake_group(link.host)
        if before.change_key != link.state.change_key:
            self.changed.set()


class SimulatedPatroniWatch:
    """Stands for ``patroni.watch.PatroniWatch``: the leader locks, without members that join."""

    def __init__(self, process: Process, *, changed: News) -> None:
        self._process = process
        self._world = process.world
        self._changed = changed
        self._config: Config | None = None
        self._answers: dict[Node, Answer] = {}
        self._calm: set[Node] = set()
        self._pending: set[Node] = set()
        self._own: frozenset[Node] = frozenset()
        self._hurried: frozenset[str] = frozenset()
        self._asked: set[Node] = set()
        self._statuses: dict[str, PatroniStatus] = {}
        process.patroni = self

    # --- the interface

    def watch(self, config: Config) -> None:
        """Watch the groups of a configuration."""
        self._config = config
        for group in config.groups:
            if group.patroni is None:
                continue
            for node in group.nodes:
                if node not in self._asked and node not in self._pending:
                    self._poll_in(node, self._world.between(0, 0.3))

    def extended(self, config: Config) -> Config:
        """Return the configuration: no member joins."""
        return config

    @property
    def heard_all(self) -> bool:
        """Whether every Patroni was asked."""
        config = self._config
        return config is not None and all(
            node in self._asked for group in config.groups if group.patroni is not None for node in group.nodes
        )

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Nothing."""
        return ()

    @property
    def up(self) -> dict[Node, bool]:
        """Which answer."""
        return dict.fromkeys(self._answers, True)

    @property
    def statuses(self) -> dict[str, PatroniStatus]:
        """What Patroni says now, by name."""
        now = self._world.scheduler.now
        self._renew(now)
        found = {}
        for group in self._config.groups if self._config is not None else ():
            if group.patroni is None:
                continue
            answers = {node: self._answers[node] for node in group.nodes if node in self._answers}
            scope = self._world.by_address[group.nodes[0].host].group.name
            status = find_status(answers, scope, {}, now=now)
            before = self._statuses.get(group.name, _NO_STATUS)
            status = before if status == before else status
            self._statuses[group.name] = status
            if status != _NO_STATUS:
                found[group.name] = status
        return found

    def claim(self, node: Node) -> LockClaim | None:
        """Return the last answer of a node's own Patroni about the leader lock."""
        self._renew(self._world.scheduler.now)
        answer = self._answers.get(node)
        return None if answer is None else LockClaim(answer.at, answer.leads, answer.system_id)

    def tick(self, _now: float) -> None:
        """Do nothing: ``statuses`` looks at the time."""

    def check(self) -> None:
        """Do nothing."""

    def own(self, nodes: Collection[Node]) -> None:
        """Ask these every ``interval``."""
        self._own = self._faster(self._own, frozenset(nodes))

    def hurry(self, names: Collection[str]) -> None:
        """Ask the nodes of these groups every ``interval``."""
        before, self._hurried = self._hurried, frozenset(names)
        for group in self._config.groups if self._config is not None and self._hurried - before else ():
            if group.name in self._hurried - before:
                for node in group.nodes:
                    self._poll_in(node, 0.001)

    def _faster(self, before: frozenset[Node], after: frozenset[Node]) -> frozenset[Node]:
        for node in sorted(after - before):
            self._poll_in(node, 0.001)
        return after

    def refresh_own(self) -> None:
        """Ask the own nodes now."""
        for node in sorted(self._own):
            self._poll_in(node, 0.001)

    async def ask_own(self, *, within_s: float) -> None:
        """Ask the own nodes now, and wait for the answer."""
        self.refresh_own()
        await self._process.sleep(min(within_s, 0.01))

    async def close(self) -> None:
        """Stop."""

    # --- the world's side

    def patroni_changed(self, host: Host) -> None:
        """Notice it at the next request."""
        if host.node in self._asked or host.node in self._pending:
            self._renew(self._world.scheduler.now)
            self._calm.discard(host.node)
            self._poll_in(host.node, self._world.between(0, self._pace_s(host.node)))

    def _pace_s(self, node: Node) -> float:
        config = self._config
        if config is None or node in self._own:
            return 1.0
        hurried = any(group.name in self._hurried and node in group.nodes for group in config.groups)
        return 1.0 if hurried else _CALM_S

    def _renew(self, now: float) -> None:
        for node in self._calm:
            answer, pace_s = self._answers[node], self._pace_s(node)
            if now - answer.at > pace_s:
                at = now - (now * 7.3 + node.port) % pace_s
                self._answers[node] = dataclasses.replace(answer, at=at, until=at + pace_s + 2.0)

    def _poll_in(self, node: Node, seconds: float) -> None:
        self._pending.add(node)
        self._process.call_after(seconds, self._poll, node)

    def _poll(self, node: Node) -> None:
        """Ask one Patroni."""
        world, me = self._world, self._process.host
        host = world.by_address[node.host]
        if not (host.patroni_answers and world.talks(me, host)):
            self._process.call_after(2.0, self._take, node, None)
            return
        pace_s = self._pace_s(node)
        answer = Answer(
            at=world.now,
            until=world.now + pace_s + 2.0,
            leads=host.leads,
            scope=host.group.name,
            system_id=host.group.system_id,
        )
        self._process.call_after(world.between(0.001, 0.01), self._take, node, answer)

    def _take(self, node: Node, answer: Answer | None) -> None:
        self._pending.discard(node)
        self._asked.add(node)
        host, before = self._world.by_address[node.host], self._answers.get(node)
        if answer is None:
            self._calm.discard(node)
            self._world.judge.claimed(self._process.host, host, None)
            if before is not None:
                self._process.call_after(max(0.0, before.until - self._world.now) + 0.001, self._changed.set)
            self._changed.set()
            return
        if before is not None and before.at > answer.at:
            return
        self._answers[node] = answer
        works = host.patroni_answers and self._world.talks(self._process.host, host)
        if works and (answer.leads, answer.system_id) == (host.leads, host.group.system_id):
            self._calm.add(node)
        else:
            self._poll_in(node, self._world.between(0, self._pace_s(node)))
        self._world.judge.claimed(self._process.host, host, answer)
        if before is None or before.leads != answer.leads or before.system_id != answer.system_id:
            self._changed.set()
