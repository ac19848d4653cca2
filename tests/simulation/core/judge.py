"""What must be true of an agent's names at every moment, judged by what the agent was told.

The judge keeps that by itself, over restarts too, as far as the block has to remember it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from resolver_agent.citus.preconditions import Evidence, blocker
from resolver_agent.config.model import Fallback, Route
from resolver_agent.routing.observation import ProbeFailure, Role
from resolver_agent.routing.state import FENCE, AlertCode, TargetKind
from tests.simulation.core.world import NOTHING, WAL
from tests.simulation.judge import FOREIGN, UPGRADED, Told

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resolver_agent.config.model import Group as Named
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import Observation, Observations
    from resolver_agent.routing.state import GroupState, Target
    from tests.simulation.core.agent import Agent
    from tests.simulation.core.world import Group, Path, Server, World

_RECOVERY = 0.2
"""In this share of the rounds on a primary it is asked whether recovery may run."""
_TOLD_S = 0.1
_FLAP_S = 1.0
_HOOK_S = 0.15


@dataclasses.dataclass(slots=True)
class _Known:
    """What one run of an agent was told, and what the runs before it have left in the block (``carried``)."""

    states: list[Told]
    carried: dict[int, Role]
    remembered: frozenset[str | None] = frozenset()
    is_edited: bool = False
    """Whether another program has edited the block that it began with."""
    local: Told = dataclasses.field(default_factory=Told)
    told_at: list[float] = dataclasses.field(default_factory=list)
    unwritten: set[int] = dataclasses.field(default_factory=set)
    is_own: bool = False
    recognised: bool = False
    """Whether a decision was made while the node at the own address was seen as the local server."""
    was_primary: int | None = None
    wish: Role | None = None
    moves: dict[str, tuple[int, str | None, float]] = dataclasses.field(default_factory=dict)


class _Move(NamedTuple):
    """From where to where a name has moved, and what the block says of that."""

    before: str | None
    address: str | None
    kind: TargetKind | None


class Judge:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_address = {server.node.host: server for server in world.servers}
        self._by_name = {group.name: group for group in world.groups}
        self._known: dict[Agent, _Known] = {}
        self._carried: dict[Agent, dict[int, Role]] = {}
        self._edited: set[Agent] = set()
        self.broken: str | None = None
        self.moves = 0

    def _broken(self, text: str) -> None:
        if self.broken is None:
            self.broken = text
            self._world.tell(f"BROKEN: {text}")
            self._world.is_over = True

    # --- what agents are told

    def begun(self, agent: Agent, remembered: Iterable[Target]) -> None:
        """Take in that an agent starts, with these targets in its block."""
        told = frozenset(address for target in remembered for address in (target.address, target.primary))
        states = [Told() for _ in self._world.servers]
        edited = agent in self._edited
        self._edited.discard(agent)
        carried = self._carried.get(agent, {})
        self._known[agent] = _Known(states, carried, told, edited, told_at=[0.0] * len(states))

    def killed(self, agent: Agent) -> None:
        """Keep what the block of a killed agent has to remember: what it was told before its last write."""
        known = self._known[agent]
        roles = {number: told.last_role for number, told in enumerate(known.states) if number not in known.unwritten}
        self._carried[agent] = known.carried | {number: role for number, role in roles.items() if role is not None}
        for number in known.unwritten:
            self._carried[agent].pop(number, None)

    def forget(self, agent: Agent) -> None:
        """Take in that another program has edited the block."""
        self._carried[agent] = {}
        self._edited.add(agent)

    def told(self, agent: Agent, path: Path, seen: Observation) -> None:
        """Take in that an answer has come."""
        known, number = self._known[agent], path.server.number
        if path.is_local:
            known.local.take(seen, self._world.now)
        else:
            known.states[number].take(seen, self._world.now)
            known.told_at[number] = self._world.now
            known.unwritten.add(number)
        if path.server is agent.host:
            own, local = known.states[number].role_seen, known.local.role_seen
            if local is not None and local.identity is not None:
                known.is_own = own is not None and own.identity == local.identity
                if local.result is Role.PRIMARY or (known.is_own and own is not None and own.result is Role.PRIMARY):
                    known.was_primary = local.identity.started_us

    # --- what agents decide

    def _wish(self, agent: Agent, known: _Known) -> Role | None:
        """Return the role that the names of a host follow, None where that cannot be told."""
        local = known.local.role_seen
        if local is None or local.identity is None:
            return None
        if agent.announced is not None:
            return Role.PRIMARY
        if local.result is Role.PRIMARY or known.was_primary == local.identity.started_us:
            return Role.PRIMARY
        if agent.claim is None:
            return None if self._world.with_patroni else Role.STANDBY
        return None if agent.claim.leads else Role.STANDBY

    def decided(self, agent: Agent, before: Decision, decision: Decision, seen: Observations) -> None:
        """Judge a decision that is about to be written."""
        known = self._known[agent]
        known.unwritten.clear()
        known.recognised = known.recognised or known.is_own
        wish = self._wish(agent, known)
        same_wish = wish is not None and wish is known.wish
        known.wish = wish
        for named in agent.config.groups:
            name, state = named.name, decision.groups[named.name]
            address = state.target.address if state.target is not None else None
            old = before.groups.get(name)
            was = old.target.address if old is not None and old.target is not None else None
            if address != was:
                self._moved(agent, name, known, (was, address), state)
            if named.route is Route.FOLLOW and named.nodes[0] is agent.host.group.servers[0].node:
                if known.recognised and address != agent.host.node.host:
                    self._broken(f"R3: for {agent} its own name {name} is {address}")
                continue
            wanted = agent.wanted(named.route, wish)
            replaced = any(alert.code is AlertCode.REPLACED and alert.of == (name,) for alert in decision.alerts)
            self._judge_place(agent, named, known, address, wanted, is_replaced=replaced)
            if address == FENCE:
                fenced = any(alert.code is AlertCode.FENCED and alert.of == (name,) for alert in decision.alerts)
                if not fenced:
                    self._broken(f"R8: for {agent} {name} is fenced, and there is no alert")
            if address != was and wanted is not None and (same_wish or named.route is not Route.FOLLOW):
                kind = state.target.kind if state.target is not None else None
                self._judge_move(agent, named, _Move(was, address, kind), wanted)
        if wish is Role.PRIMARY and self._world.chance() < _RECOVERY:
            self._judge_recovery(agent, decision, known, seen)

    def _moved(
        self, agent: Agent, name: str, known: _Known, move: tuple[str | None, str | None], state: GroupState
    ) -> None:
        """Take in a move. No name goes and comes back at once without any news between."""
        before, address = move
        self.moves += 1
        if self._world.story is not None:
            self._world.tell(f"{agent}: {name} → {address} ({state.reason.text})")
        news, origin, moved_at = known.moves.get(name, (-1, None, 0.0))
        left = self._by_address.get(before or "")
        is_known = left is not None and self._knows(agent, left)  # it is no room, and its answer does not expire
        if news == agent.news and origin == address and is_known and self._world.now - moved_at < _FLAP_S:
            self._broken(f"flaps: for {agent} {name} returns to {address}, and nothing was seen")
        known.moves[name] = (agent.news, before, self._world.now)
        if address is None:
            self._broken(f"R1: for {agent} {name} is gone from the file")

    def _role(self, known: _Known, server: Server) -> Role | None:
        return known.states[server.number].last_role or known.carried.get(server.number)

    def _judge_place(
        self, agent: Agent, named: Named, known: _Known, address: str | None, wanted: Role | None, *, is_replaced: bool
    ) -> None:
        """Judge where a name is, however it came there: R2, A7, and the limits of lag."""
        server = self._by_address.get(address or "")
        if server is None:
            return
        name, told = named.name, known.states[server.number]
        if wanted is Role.PRIMARY and self._role(known, server) is Role.STANDBY:
            self._broken(f"R2: for {agent} {name} leads to {server}, which was last seen in recovery")
        if server.group is not self._group(named):
            self._broken(f"for {agent} {name} leads to {server}")
        is_foreign = told.system_id is not None and told.system_id >= FOREIGN and not (known.is_edited or is_replaced)
        if is_foreign and self._own_alive(known, server):
            self._broken(f"A7: for {agent} {name} leads to {server}, a foreign server")
        limit = named.max_lag_bytes
        if limit is not None and wanted is Role.STANDBY and server.recovery and server.lag > 2 * limit + 4 * WAL:
            leader = server.group.leader
            seen = leader is not None and leader.is_primary and self._sees(agent, leader)
            if seen and self._sees(agent, server):
                self._broken(f"lag: for {agent} {name} leads to {server}, which is {server.lag} bytes behind")

    def _group(self, named: Named) -> Group:
        return self._by_name[named.name.partition("-")[0]]

    def _sees(self, agent: Agent, server: Server) -> bool:
        """Report whether an agent has been told all there is to know of a server."""
        told = self._known[agent].states[server.number].latest
        paths = [path for path in agent.paths if path.server is server and not path.is_local]
        return isinstance(told, Role) and all(path.stale_since is None for path in paths)

    def _knows(self, agent: Agent, server: Server) -> bool:
        """Report whether an agent has known all there is to know of a server for a while."""
        return self._world.now - self._known[agent].told_at[server.number] >= _TOLD_S and self._sees(agent, server)

    def _own_alive(self, known: _Known, foreign: Server) -> bool:
        others = (known.states[one.number] for one in foreign.group.servers if one is not foreign)
        return any((one.system_id or FOREIGN) < FOREIGN and not one.serves_no_reads for one in others)

    def _judge_move(self, agent: Agent, named: Named, move: _Move, wanted: Role) -> None:
        """R1: judge whether there was evidence for a move."""
        known, place = self._known[agent], self._group(named)
        source = self._by_address.get(move.before or "")
        target = self._by_address.get(move.address or "")
        if named.name in agent.pins:
            return
        if move.address == FENCE and source is not None:
            self._judge_fence(agent, named.name, source, wanted)
        if target is None:
            return
        new = known.states[target.number]
        if new.role_seen is None:
            if move.address not in known.remembered:
                self._broken(f"R1: for {agent} {named.name} moves to {target}, of which nothing is known")
        elif wanted is Role.STANDBY:
            self._judge_standby(agent, named, target, is_standby=move.kind is TargetKind.STANDBY)
        elif source is not None and source is not target:
            leads = place.leader is source and source.is_primary and self._knows(agent, source)
            if leads and self._is_heard(agent, place):
                self._broken(f"P3: for {agent} {named.name} leaves {source}, which leads and is seen")

    def _judge_fence(self, agent: Agent, name: str, source: Server, wanted: Role) -> None:
        """R1: a server that is merely silent is held; a primary of another database cluster is not."""
        known, place = self._known[agent], source.group
        old = known.states[source.number]
        primaries = sum(known.states[one.number].last_role is Role.PRIMARY for one in place.servers)
        own = old.system_id == place.system_id and place.system_id < UPGRADED
        if wanted is Role.PRIMARY and old.last_role is Role.PRIMARY and primaries == 1 and own:
            self._broken(f"R1: for {agent} {name} is fenced although its primary was not seen in recovery")
        if wanted is Role.STANDBY and agent.config.fallback is Fallback.NONE and old.is_merely_silent:
            self._broken(f"R1: for {agent} {name} is fenced although its standby {source} is merely silent")

    def _judge_standby(self, agent: Agent, named: Named, target: Server, *, is_standby: bool) -> None:
        """S1 and S6: reads move to a server that serves them, and to a primary only where that is allowed."""
        new = self._known[agent].states[target.number]
        if new.last_role is Role.PRIMARY and agent.config.fallback is Fallback.NONE:
            self._broken(f"S6: for {agent} {named.name} moves to {target}, a primary, with fallback: none")
        if is_standby and new.serves_no_reads:
            self._broken(f"S1: for {agent} {named.name} moves to {target}, which serves no reads")
        if is_standby and target.node in agent.statuses.get(named.name, NOTHING).excluded:
            self._broken(f"S1: for {agent} {named.name} moves to {target}, which is excluded")

    def _is_heard(self, agent: Agent, group: Group) -> bool:
        """Report whether an agent knows who leads, as far as anybody says."""
        status = agent.statuses.get(group.name)
        leader = group.leader
        return not self._world.with_patroni or (
            status is not None and leader is not None and status.leader is leader.node
        )

    def promoted(self, server: Server) -> None:
        """R4: judge the names of a server that takes writes from now on, if its agent was told in time."""
        for agent in self._world.agents:
            announced = agent.announced
            if agent.host is server and agent.is_alive and agent.has_looked and announced is not None:
                in_time = self._world.now - announced.since > _HOOK_S
                if in_time and agent.decision.followed_role is not Role.PRIMARY:
                    self._broken(f"R4: {server} is promoted, and its names do not lead to primaries")

    def _judge_recovery(self, agent: Agent, decision: Decision, known: _Known, seen: Observations) -> None:
        """R6: judge whether recovery may run."""
        now = self._world.now
        claims = {group.name: agent.claim for group in agent.config.groups} if self._world.with_patroni else {}
        evidence = Evidence(
            now=now,
            since=now - 2.5,
            max_age_s=agent.config.max_age_s,
            local=seen.local,
            claims=claims,
            written=True,
            flushed=True,
        )
        if blocker(agent.config, decision, evidence) is not None:
            return
        if known.local.last_role is not Role.PRIMARY or known.local.seen_dead:
            self._broken(f"R6: recovery by {agent}, whose server was not just seen as a primary")
        if self._world.with_patroni and (agent.claim is None or not agent.claim.leads):
            self._broken(f"R6: recovery by {agent}, whose Patroni does not say that it leads")
        no_matter = {named.name for named in agent.config.groups if named.route is Route.STANDBY}
        no_matter.add(agent.host.group.name)
        lasting = {name for name, one in agent.pins.items() if now < one.until} - no_matter
        if lasting or (agent.pause is not None and now < agent.pause.until):
            self._broken(f"R6: recovery by {agent} while a name is pinned or all are paused")
        for named in agent.config.groups:
            state = decision.groups[named.name]
            own = named.nodes[0] is agent.host.group.servers[0].node and named.route is Route.FOLLOW
            if named.route is Route.STANDBY or state.target is None or state.target.address == FENCE:
                continue
            target = agent.host if own else self._by_address.get(state.target.address)
            told = known.states[target.number] if target is not None else Told()
            if target is None or told.last_role is not Role.PRIMARY or told.failure is ProbeFailure.DEAD:
                self._broken(f"R6: recovery by {agent} acts on {named.name}, not seen as a primary")
            leader = agent.statuses.get(self._group(named).name, NOTHING).leader
            if target not in (None, agent.host) and leader not in (None, target.node if target else None):
                self._broken(f"R6: recovery by {agent} acts on {target}, but {leader} leads")

    # --- the end

    def judge_end(self) -> None:
        """Judge the names after a quiet time without faults."""
        for group in self._world.groups:
            if group.leader is None or [server for server in group.servers if server.is_primary] != [group.leader]:
                raise AssertionError(f"the world does not settle: {group.name}")
        for agent in self._world.agents:
            if not agent.is_alive or not agent.has_looked:
                raise AssertionError(f"{agent} does not run")
            role = Role.STANDBY if agent.host.recovery else Role.PRIMARY
            for named in agent.config.groups:
                self._judge_name(agent, named, agent.wanted(named.route, role))
            alerts = agent.decision.alerts
            if alerts:
                self._broken(f"at the end {agent} has an alert: {alerts[0].text}")

    def _judge_name(self, agent: Agent, named: Named, wanted: Role | None) -> None:
        state, group = agent.decision.groups[named.name], self._group(named)
        if named.route is Route.FOLLOW and group is agent.host.group:
            right = agent.host
        elif wanted is Role.PRIMARY and group.leader is not None:
            right = group.leader
        else:
            right = next(server for server in group.servers if server.recovery)
        found = state.target.address if state.target is not None else None
        if found != right.node.host:
            self._broken(f"at the end {named.name} is {found} for {agent}, not {right}: {state.reason.text}")
