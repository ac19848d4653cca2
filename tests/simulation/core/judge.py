"""What must be true of an agent's names at every moment, judged by what the agent was told.

The judge keeps that by itself, over restarts too, as far as the block has to remember it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from resolver_agent.citus.preconditions import Evidence, blocker
from resolver_agent.config.model import Fallback, Route
from resolver_agent.routing.observation import ProbeFailure, Role, Stage
from resolver_agent.routing.state import FENCE, AlertCode, TargetKind
from tests.simulation.core.world import NOTHING, TIMEOUT_S, WAL
from tests.simulation.judge import FOREIGN, Told

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resolver_agent.config.model import Group as Named
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import Observation, Observations, PatroniStatus, Pin, Window
    from resolver_agent.routing.state import GroupState, Target
    from tests.simulation.core.agent import Agent
    from tests.simulation.core.world import Group, Path, Server, World

_RECOVERY = 0.2
"""In this share of the rounds on a primary it is asked whether recovery may run."""
_TOLD_S = 0.1
_FLAP_S = 1.0
_HOOK_S = 0.16
"""A round comes 0.152 s after the news at the latest, and the hook waits for it."""
_EXPIRED_S = 1.1
"""So long after silence was noticed, the answer before it counts no more; its question was asked before that."""
_ASKED_S = 2.5
"""Recovery counts answers to questions that were asked so long ago."""
_INF = float("inf")
_LAGGED_S, _LAGGED = 4.0, 6 * WAL
"""An agent knows of a lag that is so much beyond a limit for so long: between two looks the primary writes on."""
_LOOK_S = 2.5
"""An agent that looks no more often does not know how far a standby is behind in seconds."""
_NEAR = 0.4
"""A standby that lagged does no longer with this share of the limit."""
_STILL_LAGGED_S = 5.0
"""A standby that lagged still does with half of the limit, and with what is written between two looks beside that."""
_SERVES_S = 6.0
"""So long after a standby is seen to serve reads, where they have limits of lag, names do not do without it."""
_CALLED_OFF_S = 3.5
"""So long after a stop must have happened, an agent has noticed that it has not."""


@dataclasses.dataclass(slots=True)
class _Known:
    """What one run of an agent was told, and what the runs before it have left in the block (``carried``)."""

    states: list[Told]
    carried: dict[int, Role]
    remembered: frozenset[str | None] = frozenset()
    local: Told = dataclasses.field(default_factory=Told)
    told_at: list[float] = dataclasses.field(default_factory=list)
    unwritten: set[int] = dataclasses.field(default_factory=set)
    statuses: dict[str, PatroniStatus] = dataclasses.field(default_factory=dict)
    primary: dict[str, Server] = dataclasses.field(default_factory=dict)
    """The last primary of each group that nobody disputed, and that was not seen in recovery since."""
    accepted: dict[str, Server | None] = dataclasses.field(default_factory=dict)
    """Those of them that answer now."""
    led: dict[str, int] = dataclasses.field(default_factory=dict)
    """The timeline of each group's last holder of the leader lock, the oldest where that cannot be told."""
    may_have_led: dict[str, int] = dataclasses.field(default_factory=dict)
    """The newest where it cannot: a holder that is silent may count for a while."""
    strangers: dict[str, set[Server]] = dataclasses.field(default_factory=dict)
    """The servers of each group that were of another cluster while one of its own answered."""
    lagging: set[Server] = dataclasses.field(default_factory=set)
    """Standbys that it must know to have lagged beyond the limit, and not to be below half of it again."""
    unknown: set[Server] = dataclasses.field(default_factory=set)
    """Standbys beyond the limit, of which it cannot know how far they lag: they were so when it started."""
    looked_at: float = 0.0
    looks_since: float = 0.0
    """Since when it has looked at servers that do not change, again and again."""
    serves: dict[Server, float] = dataclasses.field(default_factory=dict)
    """Since when it must know of a standby that it serves reads; only where lag has a limit in seconds."""
    stops: dict[str, Window] = dataclasses.field(default_factory=dict)
    """The stops of standbys that were announced to it, by name."""
    is_own: bool = False
    recognised: bool = False
    """Whether a decision was made while the node at the own address was seen as the local server."""
    was_primary: int | None = None
    wish: Role | None = None
    moves: dict[str, tuple[int, str | None, float, bool]] = dataclasses.field(default_factory=dict)


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
        self._clusters: dict[Agent, dict[str, int]] = {}
        """The system identifier of each group, as the block has to remember it; none where that cannot be told."""
        self._replaced: dict[Agent, set[str]] = {}
        """The groups of another identifier than before that nobody has confirmed: it may give way to the old one."""
        self._overtaken: dict[tuple[Agent, str], Pin] = {}
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
        carried = self._carried.get(agent, {})
        self._known[agent] = _Known(states, carried, told, told_at=[0.0] * len(states))

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
        self._clusters[agent] = {}
        self._replaced.pop(agent, None)

    def rendered(self, agent: Agent, content: bytes, above: bytes, below: bytes) -> None:
        """R7: judge the lines around a block that is rendered once more."""
        if not (content.startswith(above) and content.endswith(below)):
            self._broken(f"R7: {agent} changes lines outside its block")

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

    def announced(self, agent: Agent, name: str, window: Window) -> None:
        """Take in that an agent is told of a standby's stop, or more of it."""
        self._known[agent].stops[name] = window

    # --- what agents decide

    def _wish(self, agent: Agent, known: _Known) -> Role | None:
        """Return the role that the names of a host follow, None where that cannot be told."""
        local = known.local.role_seen
        if local is None or local.identity is None:
            return None
        if agent.announced is not None or local.result is Role.PRIMARY:
            return Role.PRIMARY
        if known.was_primary == local.identity.started_us:
            # Over the network it may have been seen as a primary and restarted since the last decision.
            return Role.PRIMARY if known.is_own else None
        claim = agent.claim
        if claim is None:
            return None if self._world.with_patroni else Role.STANDBY
        if not claim.leads:
            return Role.STANDBY
        is_clear = claim.system_id == local.identity.system_id and self._world.now - claim.at < TIMEOUT_S
        return Role.PRIMARY if is_clear else None

    def _learn(self, agent: Agent, known: _Known) -> None:
        """Take in what the answers since the last decision say of each group's database cluster and primary."""
        clusters = self._clusters.setdefault(agent, {})
        news = {self._world.servers[number].group for number in known.unwritten}
        for group in self._world.groups:
            status = agent.statuses.get(group.name, NOTHING)
            if group in news or status is not known.statuses.get(group.name):
                known.statuses[group.name] = status
                before = clusters.get(group.name)
                self._learn_cluster(known, clusters, group, status)
                if before not in (None, clusters.get(group.name)):
                    self._replaced.setdefault(agent, set()).add(group.name)
                    known.led.pop(group.name, None)
                    known.may_have_led.pop(group.name, None)
                self._learn_primary(known, clusters.get(group.name), group, status)
        known.unwritten.clear()
        named = agent.config.groups[0]
        if named.max_lag_bytes is not None or named.max_lag_s is not None:
            if self._world.now - known.looked_at > _LOOK_S:
                known.looks_since = self._world.now
            for server in self._world.servers:
                self._learn_lag(agent, known, server, named)
            known.looked_at = self._world.now

    def _learn_cluster(self, known: _Known, clusters: dict[str, int], group: Group, status: PatroniStatus) -> None:
        """Another cluster takes a group over by Patroni's word, or when nobody is left with the old identifier.

        Without that word a server that was foreign beside the group's own ones does not.
        """
        told = [known.states[server.number] for server in group.servers]
        present = {one.system_id for one in told if isinstance(one.latest, Role)} - {None}
        primaries = [one.system_id for one in told if one.latest is Role.PRIMARY]
        agree = len(present) == 1 and all(isinstance(one.latest, Role) for one in told)
        ours = clusters.get(group.name)
        is_left = ours not in present and all(
            one.failure is ProbeFailure.DEAD or one.system_id not in (None, ours) for one in told
        )
        strangers = known.strangers.setdefault(group.name, set())
        answer = {one for one in group.servers if isinstance(known.states[one.number].latest, Role)}
        own = {one for one in answer if known.states[one.number].system_id == ours}
        if own:
            strangers |= answer
            strangers -= own
        may_replace = is_left and not answer <= strangers
        found = None
        if status.system_id in present:
            found = status.system_id
        elif agree and (primaries if ours is None else may_replace):
            found = next(iter(present))
        elif ours is not None and may_replace and primaries and len(present) == 1 and not self._world.with_patroni:
            found = primaries[0]
        if found is not None and found != ours:
            clusters[group.name] = found
            strangers.clear()

    def _learn_primary(self, known: _Known, system_id: int | None, group: Group, status: PatroniStatus) -> None:
        """One primary is that; of several it is the one with the leader lock."""
        found = [
            server
            for server in group.servers
            for told in [known.states[server.number]]
            if told.latest is Role.PRIMARY and told.system_id == system_id
        ]
        holder = next((server for server in group.servers if server.node is status.leader), None)
        leading = [server for server in found if server is holder and status.system_id == system_id]
        if holder is not None and known.states[holder.number].system_id == status.system_id:
            self._learn_leader(known, group, known.states[holder.number])
        last = known.primary.get(group.name)
        if last is not None and known.states[last.number].last_role is Role.STANDBY:
            del known.primary[group.name]
        is_silent = holder is not None and holder not in found and known.states[holder.number].may_be_primary
        if is_silent and last in (None, holder):
            known.accepted[group.name] = None  # it holds the lock, and was the primary for all that can be told
            return
        led = known.may_have_led.get(group.name, 0)
        accepted = leading or [one for one in found if known.states[one.number].timeline >= led]
        known.accepted[group.name] = accepted[0] if len(accepted) == 1 else None
        if len(accepted) == 1:
            # One that shuts down counts until it is seen dead, or in recovery.
            others = [known.states[one.number] for one in group.servers if one is not accepted[0]]
            if leading or not any(one.may_be_primary for one in others):
                known.primary[group.name] = accepted[0]
            else:
                known.primary.pop(group.name, None)

    def _learn_leader(self, known: _Known, group: Group, leader: Told) -> None:
        """Only what is on the timeline of the last holder of the leader lock, or on a newer one, is to be followed."""
        if leader.latest is Role.PRIMARY:
            known.led[group.name] = known.may_have_led[group.name] = leader.timeline
        elif leader.may_be_primary:
            known.led[group.name] = min(known.led.get(group.name, 0), leader.timeline)
            known.may_have_led[group.name] = max(known.may_have_led.get(group.name, 0), leader.timeline)

    def confirmed(self, agent: Agent) -> None:
        """Take in that the operator confirms what an agent sees."""
        known = self._known[agent]
        self._replaced.pop(agent, None)
        known.led.clear()
        known.may_have_led.clear()
        known.statuses.clear()  # the next decision looks again who leads

    def _accepted(self, agent: Agent, group: Group) -> Server | None:
        """Return the server that an agent must take for a group's primary, None where that cannot be told."""
        known, now = self._known[agent], self._world.now
        server = known.accepted.get(group.name)
        if server is None or not self._sees(agent, server):
            return None
        status = known.statuses[group.name]
        if status.leader is server.node and status.system_id == known.states[server.number].system_id:
            return server
        for one in group.servers:
            told = known.states[one.number]
            may_count = one is not server and told.may_be_primary
            if may_count and now - told.latest_since < _EXPIRED_S + TIMEOUT_S:
                return None
        return server

    def decided(self, agent: Agent, before: Decision, decision: Decision, seen: Observations) -> None:
        """Judge a decision that is about to be written."""
        known = self._known[agent]
        self._learn(agent, known)
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
            self._judge_place(agent, named, known, address, wanted)
            self._judge_alert(agent, name, address, decision)
            if wanted is Role.PRIMARY:
                self._judge_primary(agent, named, address)
            elif wanted is Role.STANDBY:
                self._judge_reads(agent, named, state.target)
            if agent.windows:
                self._judge_window(agent, named, was, address)
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
        news, origin, moved_at, followed = known.moves.get(name, (-1, None, 0.0, False))
        left = self._by_address.get(before or "")
        # It is no room, its answer does not expire, and it does not fall behind without any news.
        is_known = left is not None and self._knows(agent, left) and not left.falls_behind
        # With `fallback: all` the silence of another group moves it, too, and so does its end (S8).
        kind = state.target.kind if state.target is not None else None
        follows = agent.config.fallback is Fallback.ALL and kind is TargetKind.FALLBACK
        soon = self._world.now - moved_at < _FLAP_S
        if news == agent.news and origin == address and is_known and soon and not (follows or followed):
            self._broken(f"flaps: for {agent} {name} returns to {address}, and nothing was seen")
        known.moves[name] = (agent.news, before, self._world.now, follows)
        if address is None:
            self._broken(f"R1: for {agent} {name} is gone from the file")

    def _role(self, known: _Known, server: Server) -> Role | None:
        return known.states[server.number].last_role or known.carried.get(server.number)

    def _judge_place(self, agent: Agent, named: Named, known: _Known, address: str | None, wanted: Role | None) -> None:
        """Judge where a name is, however it came there: R2, A7, and the limits of lag."""
        server = self._by_address.get(address or "")
        if server is None:
            return
        name, told = named.name, known.states[server.number]
        if wanted is Role.PRIMARY and self._role(known, server) is Role.STANDBY:
            self._broken(f"R2: for {agent} {name} leads to {server}, which was last seen in recovery")
        if server.group is not self._group(named):
            self._broken(f"for {agent} {name} leads to {server}")
        ours = self._clusters[agent].get(server.group.name)
        if told.system_id is not None and told.system_id >= FOREIGN and ours not in (None, told.system_id):
            self._broken(f"A7: for {agent} {name} leads to {server}, a foreign server")
        by_hand = name in agent.pins or agent.pause is not None
        if wanted is Role.STANDBY and server in known.lagging and not by_hand:
            self._broken(f"lag: for {agent} {name} leads to {server}, which lags too much")
        if wanted is Role.STANDBY and server in known.unknown and not by_hand:
            self._broken(f"lag: for {agent} {name} leads to {server}, of whose lag it knows nothing")

    def _judge_alert(self, agent: Agent, name: str, address: str | None, decision: Decision) -> None:
        if address == FENCE and not any(one.code is AlertCode.FENCED and one.of == (name,) for one in decision.alerts):
            self._broken(f"R8: for {agent} {name} is fenced, and there is no alert")

    def _learn_lag(self, agent: Agent, known: _Known, server: Server, named: Named) -> None:
        """Tell whether an agent knows that a standby lags too much, or lagged so and is not below half of the limit.

        In seconds it knows no more than how long it has looked: until then it does not know of a standby that it has
        met beyond the limit.
        """
        now, leader = self._world.now, server.group.leader
        told = known.states[server.number]
        sees_leader = leader is not None and isinstance(known.states[leader.number].latest, Role)
        is_standby = server is not leader and isinstance(told.latest, Role)
        if leader is None or not (sees_leader and leader.is_primary and is_standby):
            if not (sees_leader and told.is_merely_silent):
                known.lagging.discard(server)
            known.unknown.discard(server)
            known.serves.pop(server, None)
            return
        lag_bytes, lag_s = server.behind(leader, now)
        max_bytes, max_s = named.max_lag_bytes or _INF, named.max_lag_s or _INF
        if lag_bytes < max_bytes / 2 + _STILL_LAGGED_S * WAL and lag_s < max_s / 2 + _STILL_LAGGED_S:
            known.lagging.discard(server)
        if lag_bytes > max_bytes + _LAGGED or lag_s > max_s + _LAGGED / WAL:
            since = max(known.told_at[leader.number], known.told_at[server.number])
            if lag_bytes <= max_bytes + _LAGGED:
                since = max(since, known.looks_since) + max_s
            sees_both = self._sees(agent, server) and self._sees(agent, leader)
            if sees_both and now - since > _LAGGED_S:
                known.lagging.add(server)
            is_read = any(one.address == server.node.host for one in agent.written)
            if sees_both and not known.looked_at and not is_read:
                known.unknown.add(server)
        else:
            known.unknown.discard(server)
        if named.max_lag_s is not None:
            is_near = lag_bytes < _NEAR * max_bytes and lag_s < _NEAR * max_s
            is_told = not lag_s or now - lag_s > known.told_at[leader.number] + TIMEOUT_S  # of when it was passed
            if is_near and is_told and self._is_fit(agent, known, server) and self._sees(agent, leader):
                known.serves.setdefault(server, now)
            else:
                known.serves.pop(server, None)

    def _lags(self, named: Named, server: Server, leader: Server) -> bool:
        lag_bytes, lag_s = server.behind(leader, self._world.now)
        return lag_bytes > (named.max_lag_bytes or _INF) / 2 or lag_s > (named.max_lag_s or _INF) / 2

    def _is_fit(self, agent: Agent, known: _Known, server: Server) -> bool:
        """Report whether an agent sees that a standby serves reads, whatever its lag is, and does not stop."""
        told, place = known.states[server.number], server.group.name
        if told.latest is not Role.STANDBY or told.system_id != self._clusters[agent].get(place):
            return False
        is_excluded = server.node in agent.statuses.get(place, NOTHING).excluded
        return not is_excluded and self._sees(agent, server) and not self._leaves(known, server)

    def _leaves(self, known: _Known, server: Server) -> bool:
        """Report whether an agent may still take a standby for one that stops as announced."""
        seen = known.states[server.number].role_seen
        return any(
            one.node == server.node
            and seen is not None
            and seen.identity == one.run
            and self._world.now < max(one.called_off_at, known.told_at[server.number]) + _CALLED_OFF_S
            for one in known.stops.values()
        )

    def _judge_primary(self, agent: Agent, named: Named, address: str | None) -> None:
        """P1, P2 and M4: a name that wants the primary leads to the one that is seen, if nobody has pinned it."""
        group, lasting = self._group(named), agent.pins.get(named.name)
        seen = self._known[agent].accepted.get(group.name)
        pinned = lasting is not None and lasting.address == address
        if seen is None or (seen.node.host == address and lasting is None):
            accepted = None
        else:
            accepted = self._accepted(agent, group)
        if lasting is not None and lasting.wanted_role is Role.PRIMARY and self._world.now < lasting.until:
            if accepted is not None and lasting.address != accepted.node.host:
                self._overtaken[agent, named.name] = lasting
            elif pinned and accepted is None and self._overtaken.get((agent, named.name)) is lasting:
                self._broken(f"M4: for {agent} {named.name} is pinned to {address} again")
        if accepted is None or accepted.node.host == address or agent.pause is not None or lasting is not None:
            return
        told = [self._known[agent].states[one.number].latest for one in group.servers]
        if address is None and None in told:
            return  # nothing tells it whose database cluster that is: the name was not in its block
        if named.name not in agent.windows or address in self._by_address or address == FENCE:
            self._broken(f"P1: for {agent} {named.name} is {address}, and {accepted} is seen as the primary")

    def _judge_reads(self, agent: Agent, named: Named, target: Target | None) -> None:
        """S1 and S4: a name that wants a standby does not do without one that is seen.

        It is not fenced, nor on a dead server, and does not wait for one that stops. Where lag has a limit in seconds
        it does not stay on its fallback either.
        """
        if named.name in agent.pins or agent.pause is not None or target is None:
            return
        known, group, window = self._known[agent], self._group(named), agent.windows.get(named.name)
        if named.name in known.stops:
            self._judge_stop(agent, named, known.stops[named.name], target)
        server, with_all = self._by_address.get(target.address), agent.config.fallback is Fallback.ALL
        is_dead = server is not None and known.states[server.number].seen_dead
        waits = target.kind is TargetKind.QUEUED and window is not None and not with_all
        if waits and window is not None:  # one that was promoted instead is waited for until its stop is called off
            waits = known.states[self._by_address[window.address].number].last_role is not Role.PRIMARY
        is_served = not (waits or is_dead or target.address == FENCE)
        if not is_served and window is not None and window.role is Role.PRIMARY:
            return
        found: Sequence[Server] = ()
        if named.max_lag_s is not None:
            if not is_served or (target.kind is TargetKind.FALLBACK and not with_all):
                since = self._world.now - _SERVES_S - (named.failback_delay_s if is_served else 0.0)
                found = [one for one in group.servers if max(known.serves.get(one, _INF), known.looks_since) < since]
        elif named.max_lag_bytes is None and not is_served:
            found = [one for one in group.servers if self._is_fit(agent, known, one)]
        if found:
            self._broken(f"S1: for {agent} {named.name} is {target.address}, and {found[0]} is seen as a standby")

    def _judge_stop(self, agent: Agent, named: Named, window: Window, target: Target) -> None:
        """Q1, Q2 and S7: judge what becomes of the readers of a standby that stops as announced."""
        if window.stage is not Stage.ROOM:
            return
        server, now, address = self._by_address[window.address], self._world.now, target.address
        seen = self._known[agent].states[server.number].role_seen
        is_same = seen is not None and seen.identity == window.run and seen.role is Role.STANDBY
        if not is_same or now >= min(window.called_off_at, window.until):
            return
        if address == window.address and self._sees(agent, server):
            self._broken(f"Q1: for {agent} {named.name} leads to {server}, which stops as announced")
        if address == FENCE:
            self._broken(f"Q2: for {agent} {named.name} is fenced, and {server} stops as announced")
        primary = self._accepted(agent, server.group)
        if target.kind is TargetKind.QUEUED and primary is not None and agent.config.fallback is not Fallback.NONE:
            self._broken(f"S7: for {agent} {named.name} waits, and {primary} is seen as the primary")

    def _judge_window(self, agent: Agent, named: Named, was: str | None, address: str | None) -> None:
        """Q1 and Q5: a name waits while its server stops as announced, and no longer when it does not."""
        window = agent.windows.get(named.name)
        if window is None or named.name in agent.pins or agent.pause is not None or window.stage is not Stage.ROOM:
            return
        server, now = self._by_address[window.address], self._world.now
        seen = self._known[agent].states[server.number].role_seen
        if seen is None or seen.identity != window.run or not self._sees(agent, server):
            return
        if address == window.address and now < min(window.called_off_at, window.until):
            self._broken(f"Q1: for {agent} {named.name} leads to {server}, which stops as announced")
        told_at = self._known[agent].told_at[server.number]  # it may have been cut off until then
        is_late = now > max(window.called_off_at, told_at) + _CALLED_OFF_S
        if is_late and was not in self._by_address and was != FENCE and seen.role is window.role:
            self._broken(f"Q5: for {agent} {named.name} waits for {server}, which has not stopped")

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

    def _judge_move(self, agent: Agent, named: Named, move: _Move, wanted: Role) -> None:
        """R1: judge whether there was evidence for a move."""
        known, place = self._known[agent], self._group(named)
        source = self._by_address.get(move.before or "")
        target = self._by_address.get(move.address or "")
        if named.name in agent.pins:
            return
        if move.address == FENCE and source is not None:
            self._judge_fence(agent, named, source, wanted)
        if target is None:
            return
        new = known.states[target.number]
        if new.role_seen is None:
            if move.address not in known.remembered:
                self._broken(f"R1: for {agent} {named.name} moves to {target}, of which nothing is known")
        elif wanted is Role.STANDBY:
            self._judge_standby(agent, named, target, is_standby=move.kind is TargetKind.STANDBY)
        elif new.timeline < known.led.get(place.name, 0) and known.statuses[place.name].leader is not target.node:
            self._broken(f"P1: for {agent} {named.name} moves to {target}, a primary that was deposed")
        elif source is not None and source is not target:
            self._judge_leaving(agent, named, source)

    def _judge_leaving(self, agent: Agent, named: Named, source: Server) -> None:
        """P3: a name does not leave the primary that leads for another one, unless there is evidence against it."""
        known, place = self._known[agent], source.group
        if known.primary.get(place.name) is not source or not self._is_heard(agent, place):  # merely pinned
            return
        if place.leader is source and source.is_primary and self._knows(agent, source):
            self._broken(f"P3: for {agent} {named.name} leaves {source}, which leads and is seen")
        elif known.statuses[place.name].leader is source.node and known.states[source.number].may_be_primary:
            self._broken(f"P3: for {agent} {named.name} leaves {source}, which is silent and has the lock")

    def _judge_fence(self, agent: Agent, named: Named, source: Server, wanted: Role) -> None:
        """R1: a server that is merely silent is held, but not where another database cluster took its group's place.

        A primary that was overtaken by another one is not held either: a pin may have led there.
        """
        known, place, name = self._known[agent], source.group, named.name
        old = known.states[source.number]
        if old.system_id != self._clusters[agent].get(place.name) or place.name in self._replaced.get(agent, ()):
            return
        primaries = sum(known.states[one.number].last_role is Role.PRIMARY for one in place.servers)
        was_last = old.last_role is Role.PRIMARY and known.primary.get(place.name) is source
        if wanted is Role.PRIMARY and was_last and primaries == 1:
            self._broken(f"R1: for {agent} {name} is fenced although its primary was not seen in recovery")
        excluded = agent.statuses.get(name, NOTHING).excluded
        silent = old.is_merely_silent and source.node not in excluded
        lags = place.leader is not None and self._lags(named, source, place.leader)  # so it may have said before
        if wanted is Role.STANDBY and agent.config.fallback is Fallback.NONE and silent and not lags:
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
            since=now - _ASKED_S,
            max_age_s=agent.config.max_age_s,
            nodes=seen.nodes,
            local=seen.local,
            claims=claims,
            written=self._world.events % 8 != 0,
            flushed=self._world.events % 8 != 1,
        )
        no_matter = {named.name for named in agent.config.groups if named.route is Route.STANDBY}
        no_matter.add(agent.host.group.name)
        lasting = {name for name, one in agent.pins.items() if now < one.until} - no_matter
        by_hand = bool(lasting) or (agent.pause is not None and now < agent.pause.until)
        if blocker(agent.config, decision, evidence) is not None:
            unpinned = dataclasses.replace(decision, pins={})
            if decision.pins and not by_hand and blocker(agent.config, unpinned, evidence) is None:
                self._broken(f"R6: recovery by {agent} is held by the pin of a name that does not matter")
            return
        if not (evidence.written and evidence.flushed):
            self._broken(f"R6: recovery by {agent} before a move is written and flushed")
        own = known.states[agent.host.number]
        if known.local.last_role is not Role.PRIMARY or known.local.seen_dead:
            self._broken(f"R6: recovery by {agent}, whose server was not just seen as a primary")
        if self._is_silent(known.local) or self._is_silent(own):
            self._broken(f"R6: recovery by {agent}, whose server does not answer")
        claim = agent.claim
        if self._world.with_patroni and (claim is None or not claim.leads or now - claim.at > _ASKED_S):
            self._broken(f"R6: recovery by {agent}, whose Patroni does not say that it leads")
        if by_hand:
            self._broken(f"R6: recovery by {agent} while a name is pinned or all are paused")
        self._judge_recovered(agent, decision, known)

    def _judge_recovered(self, agent: Agent, decision: Decision, known: _Known) -> None:
        """R6: judge the servers that recovery acts on."""
        for named in agent.config.groups:
            state = decision.groups[named.name]
            own = named.nodes[0] is agent.host.group.servers[0].node and named.route is Route.FOLLOW
            if named.route is Route.STANDBY or state.target is None or state.target.address == FENCE:
                continue
            target = agent.host if own else self._by_address.get(state.target.address)
            told = known.states[target.number] if target is not None else Told()
            if target is None or told.last_role is not Role.PRIMARY or told.failure is ProbeFailure.DEAD:
                self._broken(f"R6: recovery by {agent} acts on {named.name}, not seen as a primary")
            if self._is_silent(told):
                self._broken(f"R6: recovery by {agent} acts on {named.name}, which does not answer")
            leader = agent.statuses.get(self._group(named).name, NOTHING).leader
            if target not in (None, agent.host) and leader not in (None, target.node if target else None):
                self._broken(f"R6: recovery by {agent} acts on {target}, but {leader} leads")

    def _is_silent(self, told: Told) -> bool:
        """Report whether a server has not answered for so long that what it said before counts no more."""
        return told.latest is ProbeFailure.UNREACHABLE and self._world.now - told.latest_since > _EXPIRED_S

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
