"""What must be true in every world, judged by what is in the hosts files and by what clients meet.

The judge knows which answers an agent has been given, because they passed through it. Of the agent itself it takes but
what an operator or a hook has told it, and its alerts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.config.model import Fallback, Route
from resolver_agent.routing.observation import ProbeFailure, Role
from resolver_agent.routing.state import FENCE, AlertCode
from tests.simulation.gate import NO_RESULT
from tests.simulation.world import addresses

if TYPE_CHECKING:
    from resolver_agent.config.model import Config
    from resolver_agent.config.model import Group as ConfiguredGroup
    from resolver_agent.patroni.membership import Answer
    from resolver_agent.routing.observation import Identity, Observation
    from tests.simulation.citus import Session
    from tests.simulation.process import Process
    from tests.simulation.world import Group, Host, World

PROMOTION_S, STOP_S, FORCED_STOP_S = 2.6, 5.6, 2.0
"""So long the hooks of an agent at work may take: less than the 2.7 and 5.7 s after which they end by themselves."""
PATIENCE_S = 1.4
"""So long at least the agent tries to get ready for a promotion."""
TURNED_S = 15.0
"""After so long a name has left a dead server for another one, ``failback_delay`` included."""
FRESH_S = 2.0
EXPIRED_S = 1.5
"""So long after a question has remained without an answer, the answer before it counts no more: 3 s after it came."""
REFUSED_S = EXPIRED_S + 2.0
"""So long after a question was refused: that takes no time."""
CALLED_OFF_S = 9.0
"""So long a name waits for a stop that does not happen: its hook's time, and a little."""
QUEUED_S = 5.0
"""How much longer than its limit a name may lead to its room: while its agent is restarted, too."""
LED_S = 1.0
"""After so long names have followed the leader lock without a hook."""
LAGGED_S = 6.0
"""After so long beyond its limit a standby gets no more reads."""
WRITE_RETRY_S = 2.5
"""A file that could not be written is tried again after so long at the latest."""
ROUND_S = 0.03
"""How long after a move a pass of recovery is told of it: the round ends with that."""
FLUSHED_S = 0.2
"""A flush takes less."""
SETTLED_S = 10.0
"""So long after names have moved, or could have had to, no command is under way that began before it was flushed."""
PASS_S, HOLD_S = 8.0, 16.0
"""So long a pass of recovery and a hold at the gate may take at most, whatever an operator has locked."""
FIRST_LOOK_S = 6.0
"""How long an agent that starts may ask before it decides anything."""
UPGRADED = 7100
"""System identifiers from here on are those of groups that were upgraded."""
FOREIGN = 9000
"""System identifiers from here on are those of foreign servers."""
_BEGIN, _END = b"# BEGIN resolver-agent", b"# END resolver-agent"


@dataclasses.dataclass(slots=True)
class Told:
    """What one run of an agent has been told of one server. The judge keeps it by itself: the agent may be wrong."""

    latest: ProbeFailure | Role | None = None
    latest_since: float = 0.0
    """When the last answer first came out so."""
    role_seen: Observation | None = None
    seen_dead: bool = False
    failure: ProbeFailure | None = None
    since: float = 0.0
    """When it was last seen otherwise than before."""

    def take(self, seen: Observation, now: float) -> None:
        """Take one more answer."""
        before = (self.last_role, self.system_id, self.serves_no_reads)
        if seen.result is not self.latest:
            self.latest_since = now
        self._take(seen)
        if before != (self.last_role, self.system_id, self.serves_no_reads):
            self.since = now

    def _take(self, seen: Observation) -> None:
        self.latest = seen.result
        if isinstance(seen.result, Role):
            self.role_seen, self.seen_dead, self.failure = seen, False, None
        elif seen.result is not ProbeFailure.UNREACHABLE:
            self.failure = seen.result
            self.seen_dead = self.seen_dead or seen.result is ProbeFailure.DEAD

    @property
    def last_role(self) -> Role | None:
        """The role in which it was last seen."""
        seen = self.role_seen
        return seen.result if seen is not None and isinstance(seen.result, Role) else None

    @property
    def may_be_primary(self) -> bool:
        """Whether it was last seen as a primary, and not dead since."""
        return self.last_role is Role.PRIMARY and not self.seen_dead

    @property
    def identity(self) -> Identity | None:
        """The run of it that was last seen."""
        return self.role_seen.identity if self.role_seen is not None else None

    @property
    def system_id(self) -> int | None:
        """Its system identifier, as last seen."""
        identity = self.identity
        return identity.system_id if identity is not None else None

    @property
    def timeline(self) -> int:
        """Its timeline as last seen, 0 where that is not known."""
        return (self.role_seen.timeline or 0) if self.role_seen is not None else 0

    @property
    def is_merely_silent(self) -> bool:
        """Whether it is a standby of which nothing bad is known but that it no longer answers, or refuses the login."""
        cannot_tell = self.latest in (ProbeFailure.UNREACHABLE, ProbeFailure.REJECTING)
        silent = cannot_tell and not self.serves_no_reads
        return silent and self.last_role is Role.STANDBY

    @property
    def serves_no_reads(self) -> bool:
        """Whether it was seen dead, or not serving, since."""
        return self.seen_dead or self.failure is ProbeFailure.NOT_SERVING


@dataclasses.dataclass(slots=True)
class _Known:
    """What one run of an agent has been told."""

    states: dict[int, Told] = dataclasses.field(default_factory=dict)
    local: Told = dataclasses.field(default_factory=Told)
    claim: Answer | None = None
    claim_since: float = 0.0
    """When the local Patroni first said what it said last."""
    claim_lost_at: float | None = None
    """Since when it says nothing."""
    recognised: bool = False
    was_primary: int | None = None
    """The run of the local server that was seen as a primary."""


@dataclasses.dataclass(frozen=True, slots=True)
class Basis:
    """What an agent had been told when it decided what it then wrote: an answer may come while it writes."""

    known: _Known
    wish: Role | None
    config: Config


class Judge:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[int, _Known] = {}
        self._acknowledged: list[int] = []
        self._ready: dict[int, int] = {}
        self._queued_at: dict[tuple[int, str], float] = {}
        """When each name on a host last moved."""
        self._left_at: dict[int, float] = {}
        """When a file was last written before its agent ended: the next one knows no more of how long names wait."""
        self._wishes: dict[int, Role | None] = {}
        self.broken: str | None = None
        self._promoted_at: dict[int, float] = {}
        self._hindered_at: dict[int, float] = {}
        self.moves = 0
        self.moved_at = 0.0
        self.statements = self.failures = 0
        self.lost = 0
        """Acknowledged rows that asynchronous replication has lost, as it may."""
        self.is_planned = False
        """Whether nothing goes wrong in this world but what operators have planned: then no statement fails."""
        self.is_certain = True
        """Whether acknowledged rows must survive: not after a promotion by hand, nor on a server that is accepted
        in the place of a dead group."""

    def _broken(self, text: str) -> None:
        if self.broken is None:
            self.broken = text
            self._world.tell(f"BROKEN: {text}")
            self._world.scheduler.end()  # an exception would be the agent's own to handle

    def _of(self, host: Host) -> _Known:
        return self._known.setdefault(host.number, _Known())

    # --- what agents are told

    def agent_ended(self, host: Host) -> None:
        """Forget what a killed agent knew."""
        self._left_at[host.number] = self._written_at(host)
        self._known.pop(host.number, None)
        self._wishes.pop(host.number, None)
        self._ready.pop(host.number, None)

    def observed(self, host: Host, target: Host, seen: Observation, *, is_local: bool) -> None:
        """Take in that an answer has come."""
        known = self._of(host)
        told = dataclasses.replace(known.local if is_local else known.states.get(target.number) or Told())
        told.take(seen, self._world.now)
        if is_local:
            known.local = told
        else:
            known.states[target.number] = told
        own, local = known.states.get(host.number), known.local.role_seen
        other = own.role_seen if own is not None else None
        if other is not None and local is not None and local.identity is not None and other.identity == local.identity:
            known.recognised = True
            if Role.PRIMARY in (other.result, local.result):
                known.was_primary = local.identity.started_us
        if local is not None and local.result is Role.PRIMARY and local.identity is not None:
            known.was_primary = local.identity.started_us

    def claimed(self, host: Host, target: Host, answer: Answer | None) -> None:
        """Take in what a Patroni has answered, None if nothing."""
        known = self._of(host)
        if host is not target:
            return
        if answer is None:
            known.claim_lost_at = known.claim_lost_at or self._world.now
            return
        if known.claim is None or known.claim.leads is not answer.leads:
            known.claim_since = self._world.now
        known.claim, known.claim_lost_at = answer, None

    # --- hooks

    def hook_answered(self, host: Host, name: str, *, well: bool, took_s: float) -> None:
        """Take in what a hook has said, and how long the agent has taken for that."""
        process = host.process
        if name != "pre-promote" or process is None:
            return
        if well and host.server.recovery:  # an answer after the promotion comes too late for what began before it
            self._ready[host.number] = host.server.run
        elif not well and took_s < PATIENCE_S and self._is_able(host) and process.agent._observer.announced is not None:
            self._broken(f"R4: the hook on {host} gives up after {took_s:.2f} s")

    def promotion_held(self, host: Host, seconds: float) -> None:
        """Take in how long ``pre_promote`` has taken."""
        if seconds > PROMOTION_S and self._is_able(host) and self._world.now - self._able_since(host) > FIRST_LOOK_S:
            self._broken(f"R4: the promotion of {host} was held up for {seconds:.1f} s")

    def stop_held(self, host: Host, seconds: float) -> None:
        """Take in how long ``before_stop`` has taken before a planned stop."""
        if seconds > STOP_S and self._is_able(host) and self._world.now - self._able_since(host) > FIRST_LOOK_S:
            self._broken(f"the stop of {host} was held up for {seconds:.1f} s")

    def forced_stop_held(self, host: Host, seconds: float) -> None:
        """Take in how long ``before_stop`` has taken where the server has to stop at once."""
        process = host.process
        if seconds > FORCED_STOP_S and process is not None and not process.loop.is_stopped:
            self._broken(f"the forced stop of {host} was held up for {seconds:.1f} s")

    # --- the file

    def _wish(self, host: Host, known: _Known) -> Role | None:
        """Return the role that the names of a host follow, None where that cannot be told."""
        process, local = host.process, known.local.role_seen
        if process is None or local is None or local.identity is None:
            return None
        if process.agent._observer.announced is not None:
            return Role.PRIMARY
        if local.result is Role.PRIMARY or known.was_primary == local.identity.started_us:
            return Role.PRIMARY
        if known.claim is None:
            return Role.STANDBY if host.group.hosts and not host.uses_patroni else None
        return None if known.claim.leads else Role.STANDBY

    def basis(self, host: Host) -> Basis | None:
        """Return what the agent on a host has been told by now, for ``file_written()``; None if there is none."""
        if host.process is None:
            return None
        known = self._of(host)
        told = dataclasses.replace(known, states=dict(known.states))
        return Basis(told, self._wish(host, told), host.process.agent._observer.config)

    def file_written(self, host: Host, before: bytes, after: bytes, basis: Basis | None) -> None:
        """Judge what an agent has written, by what it had been told when it decided that."""
        kept = _outside(before)
        if _outside(after) not in (kept, kept + b"\n"):  # a newline that is missing before a new block is added
            self._broken(f"R7: the agent on {host} has changed lines that are not its own")
        if basis is None:
            return
        known, wish, old, new = basis.known, basis.wish, addresses(before), addresses(after)
        changed_wish = self._wishes.get(host.number) is not wish or wish is None
        self._wishes[host.number] = wish
        for group in basis.config.groups:
            name, address = group.name, new.get(group.name)
            wanted = {Route.PRIMARY: Role.PRIMARY, Route.STANDBY: Role.STANDBY, Route.FOLLOW: wish}[group.route]
            own = group.route is Route.FOLLOW and host.group.name == self._world.group_of(name).name
            if address != old.get(name):
                self._note_move(host, group, old.get(name), f"{address} {_comment(after, name)}")
                if not own:
                    move = (old.get(name), address)
                    self._judge_move(host, name, move, wanted, basis, changed_wish=changed_wish, content=before)
            if own:
                if known.recognised and address != host.address:
                    self._broken(f"R3: on {host} its own name {name} is {address}")
                continue
            target = self._world.by_address.get(address or "")
            state = known.states.get(target.number) if target is not None else None
            if wanted is Role.PRIMARY and state is not None and state.last_role is Role.STANDBY:
                self._broken(f"R2: on {host} {name} leads to {target}, which was last seen in recovery")
            if state is not None and self._is_foreign(state, self._world.group_of(name), basis):
                self._broken(f"A7: on {host} {name} leads to {target}, a foreign server")

    def _note_move(self, host: Host, group: ConfiguredGroup, before: str | None, words: str) -> None:
        name = group.name
        if before is not None and before.startswith("127."):
            self._judge_queued(host, name, max(group.queue.planned_s, group.queue.unplanned_s))
        self._queued_at[host.number, name] = self.moved_at = self._world.now
        self.moves += 1
        self._world.tell(f"{host}: {name} → {words}")

    def _is_foreign(self, state: Told, group: Group, basis: Basis) -> bool:
        """Report whether a server is foreign while one of the group's own is seen that the agent is to watch."""
        if state.system_id is None or state.system_id < FOREIGN:
            return False
        watched = _watched(basis.config)
        others = (basis.known.states.get(one.number) for one in group.hosts if one.address in watched)
        own = [one for one in others if one is not None and one is not state and (one.system_id or FOREIGN) < FOREIGN]
        return any(not one.serves_no_reads for one in own)

    def _judge_move(
        self,
        host: Host,
        name: str,
        move: tuple[str | None, str | None],
        wanted: Role | None,
        basis: Basis,
        *,
        changed_wish: bool,
        content: bytes,
    ) -> None:
        """R1: judge whether there was evidence for a move; ``content`` is the file before it, which remembers."""
        known, (before, address) = basis.known, move
        source, target = self._world.by_address.get(before or ""), self._world.by_address.get(address or "")
        old = known.states.get(source.number) if source is not None else None
        if address is None:
            self._broken(f"R1: on {host} {name} is gone from the file")
        if changed_wish or before is None or wanted is None or len(_watched(basis.config)) < len(self._world.hosts):
            return
        if address == FENCE:
            alone = self._own_primaries(name, known) < 2
            if alone and wanted is Role.PRIMARY and old is not None and old.last_role is Role.PRIMARY:
                self._judge_fence(host, name, old)
            none = basis.config.fallback is Fallback.NONE
            if wanted is Role.STANDBY and none and old is not None and old.is_merely_silent:
                self._broken(f"R1: on {host} {name} is fenced although its standby {source} is merely silent")
            return
        if target is None:
            return
        new = known.states.get(target.number)
        if source is not None and source.group is target.group and wanted is Role.PRIMARY and source is not target:
            self._judge_leaving(host, name, source, target, known)
        remembered = address is not None and address.encode() in content
        if (new is None or new.role_seen is None) and not remembered:
            self._broken(f"R1: on {host} {name} moves to {target}, of which nothing is known")
        elif new is not None and wanted is Role.PRIMARY and new.last_role is Role.STANDBY:
            self._broken(f"R1: on {host} {name} moves to {target}, which was not seen as a primary")

    def _judge_going_back(self, host: Host, name: str, source: Host, target: Host, known: _Known) -> None:
        """R1: a name does not go back from a primary that is silent to one that was seen as that earlier."""
        states = known.states
        old, new = states.get(source.number), states.get(target.number)
        if old is None or new is None or isinstance(new.latest, Role) or old.last_role is not Role.PRIMARY:
            return
        if old.role_seen is not None and new.role_seen is not None and new.role_seen.at < old.role_seen.at:
            self._broken(f"R1: on {host} {name} goes back from {source} to {target}, which is not seen")

    def _judge_leaving(self, host: Host, name: str, source: Host, target: Host, known: _Known) -> None:
        """P2 and P3: a name does not leave the primary that leads, and that is seen, for another primary."""
        self._judge_going_back(host, name, source, target, known)
        old = known.states.get(source.number)
        leads = source.group.leader is source and source.server.is_primary and not source.server.stopped
        if leads and old is not None and old.latest is Role.PRIMARY and self._world.talks(host, source):
            self._broken(f"P3: on {host} {name} leaves {source}, which leads and is seen")

    def _judge_fence(self, host: Host, name: str, last: Told) -> None:
        """R2: a primary that is silent, or dead, is held; only one of another database cluster is not."""
        was_upgraded = self._world.group_of(name).system_id >= UPGRADED
        if last.system_id == self._world.group_of(name).system_id and not was_upgraded:
            self._broken(f"R1: on {host} {name} is fenced although its last primary was not seen in recovery")

    def _own_primaries(self, name: str, known: _Known) -> int:
        states = (known.states.get(host.number) for host in self._world.group_of(name).hosts)
        return sum(state is not None and state.last_role is Role.PRIMARY for state in states)

    # --- clients

    def _is_able(self, host: Host) -> bool:
        """Report whether an agent has had all it needs for a while: time, its file, its server, a free hand."""
        process = host.process
        return (
            process is not None
            and not process.loop.is_stopped
            and self._world.now - process.begun > 2 * FIRST_LOOK_S
            and not (host.hosts_fails or host.server.stopped or process.agent.is_by_hand)
        )

    def promoted(self, host: Host, *, by_hand: bool) -> None:
        """R4: judge what the file says at the moment when a server begins to take writes, and what is flushed."""
        known = self._of(host)
        self._promoted_at[host.number] = self._world.now
        if by_hand or not self._is_able(host) or self._world.now - self._able_since(host) < FIRST_LOOK_S:
            return
        for name, address in addresses(host.hosts).items():
            target = self._world.by_address.get(address)
            state = known.states.get(target.number) if target is not None else None
            if target in (None, host) or name.endswith("-ro") or state is None:
                continue
            expected = self._world.is_hooked or self._has_long_led(known)
            if state.last_role is Role.STANDBY and expected:
                self._broken(f"R4: {host} is promoted while {name} leads to {target}, a standby")
        ready = self._ready.get(host.number) == host.server.run
        if ready and host.server.flushed_at < host.moved_at and self._world.now - host.moved_at > FLUSHED_S:
            self._broken(f"R4: {host} is promoted before the names that moved are flushed")

    def _has_long_led(self, known: _Known) -> bool:
        """Report whether the local Patroni has said for a while that it holds the leader lock."""
        claim = known.claim
        return claim is not None and claim.leads and self._world.now - known.claim_since > LED_S

    def _able_since(self, host: Host) -> float:
        """Return when something last kept an agent from its work."""
        return self._hindered_at.get(host.number, -WRITE_RETRY_S)

    def hindered(self, host: Host) -> None:
        """Take in that an agent was stopped or could not write for a while."""
        self._hindered_at[host.number] = self._world.now

    def acknowledged(self, number: int) -> None:
        """Take in that a client was told that its rows are there."""
        self._acknowledged.append(number)

    def failed(self, host: Host, why: str) -> None:
        """Take in that a statement failed."""
        self.failures += 1
        process = host.process
        if why.endswith("is fenced") and process is not None and self._is_able(host):
            name = why.split(maxsplit=1)[0]
            fenced = addresses(host.hosts).get(name) == FENCE
            told = {alert.of for alert in process.agent._decision.alerts if alert.code.value in ("fenced", "queued")}
            settled_at = max(host.moved_at + FLUSHED_S, self._able_since(host) + WRITE_RETRY_S)
            if fenced and (name,) not in told and self._world.now > settled_at:
                self._broken(f"R8: {name} on {host} is fenced, and there is no alert")
        if why.endswith("refused") and self._is_able(host):
            self._judge_dead(host, why.partition(":")[0])
        if why.endswith("no answer") and self._is_able(host):
            self._judge_silent(host, why.partition(":")[0])
        if self.is_planned and why != "the coordinator has gone" and not why.endswith(NO_RESULT):
            self._broken(f"Q: a statement on {host} fails in planned work: {why}")
        self._world.tell(f"{host}: a statement fails: {why}")

    def _judge_deposed(self, host: Host, name: str, target: Host) -> None:
        """P2: no statement goes to a primary that was deposed a while ago, or promoted by hand."""
        world, leader = self._world, target.group.leader
        if leader is None or not leader.server.is_primary or leader.server.stopped or host.number in world.removed:
            return
        since = world.now - TURNED_S
        told = self._of(host).states.get(leader.number)
        seen = told is not None and told.last_role is Role.PRIMARY and told.since < since
        works = leader.patroni_works and world.talks(host, leader) and self._is_able(host)
        if seen and works and max(self._promoted_at.get(leader.number, 0.0), self._able_since(host)) < since:
            self._broken(f"P2: a statement on {host} for {name} reaches {target}, but {leader} leads")

    def _judge_dead(self, host: Host, name: str) -> None:
        """A name does not stay on a server that is dead while another one has its role for a while."""
        world, known = self._world, self._of(host)
        wish, since = self._wish(host, known), world.now - TURNED_S
        target = world.by_address.get(world.lookup(host, name) or "")
        if target is None or wish is None or host.server.is_primary is not (wish is Role.PRIMARY):
            return
        dead = known.states.get(target.number)
        if dead is None or not dead.seen_dead or max(dead.since, self._able_since(host)) > since:
            return
        for other, alive in self._others(host, target):
            fits = alive.last_role is wish and alive.latest is wish and alive.system_id == target.group.system_id
            if fits and alive.since <= since and not alive.serves_no_reads and world.talks(host, other):
                self._broken(f"S1: on {host} {name} stays on {target}, which is dead, beside {other}")

    def _judge_silent(self, host: Host, name: str) -> None:
        """P1: a name that wants a primary does not stay on a silent one while another is seen as that for a while."""
        world, known = self._world, self._of(host)
        target = world.by_address.get(world.lookup(host, name) or "")
        if target is None or self._wish(host, known) is not Role.PRIMARY or not host.server.is_primary:
            return
        since, silent = world.now - TURNED_S, known.states.get(target.number)
        if silent is None or max(silent.latest_since, self._able_since(host)) > since:
            return
        for other, alive in self._others(host, target):
            seen = alive.latest is Role.PRIMARY and alive.system_id == target.group.system_id
            works = seen and alive.latest_since <= since and world.talks(host, other)
            if silent.latest is ProbeFailure.UNREACHABLE and works:
                self._broken(f"P1: on {host} {name} stays on {target}, which is silent, beside {other}")

    def _others(self, host: Host, target: Host) -> list[tuple[Host, Told]]:
        """Return the other servers of a group that an agent is to watch, and what it was told of them."""
        states, removed = self._of(host).states, self._world.removed.get(host.number)
        others = [one for one in target.group.others(target) if one.address != removed]
        return [(one, states[one.number]) for one in others if one.number in states]

    def reached(self, host: Host, name: str, target: Host, *, was_cached: bool, writes: bool) -> None:
        """Judge where a statement has come to."""
        self.statements += 1
        world, process = self._world, host.process
        if target.is_foreign and writes:  # it was accepted in the place of a group that is dead: see ``system_id``
            self.is_certain = False
        if target.group.name != name:
            self._broken(f"a statement on {host} for {name} reaches {target}")
        if writes and host.uses_patroni and target.group.leader not in (None, target) and target.server.is_primary:
            self._judge_deposed(host, name, target)
        if not writes and self._is_able(host) and world.lookup(host, name) == target.address:
            self._judge_lag(host, name, target)
        if process is None or host.server.recovery or not target.server.recovery:
            return
        if was_cached and self._ready.get(host.number) == host.server.run and writes:
            self._broken(
                f"R5: a session on {host} still has a connection to {target}, a standby, after a ready promotion"
            )
        state = self._of(host).states.get(target.number)
        address = world.lookup(host, name)
        knows = state is not None and state.last_role is Role.STANDBY and address == target.address
        knows = knows and world.now - self._able_since(host) > WRITE_RETRY_S
        if knows and not was_cached and self._is_able(host):
            wants_primary = self._wish(host, self._of(host)) is Role.PRIMARY
            if wants_primary and state is not None and world.now - max(self._written_at(host), state.since) > FLUSHED_S:
                self._broken(f"R2: a statement on the primary {host} reaches {target}, which is known to be a standby")

    def waited(self, host: Host, name: str, seconds: float) -> None:
        """Q: nobody waits in a room while a server of the wanted role is seen, nor for longer than he may."""
        known, world = self._of(host), self._world
        wish, since = self._wish(host, known), world.now - min(seconds, CALLED_OFF_S)
        if not self._is_able(host) or self._able_since(host) > world.now - seconds - FIRST_LOOK_S:
            return
        told = [known.states[one.number] for one in world.group_of(name).hosts if one.number in known.states]
        ours = [one for one in told if one.system_id is not None and one.system_id < FOREIGN]
        seen = any(one.latest is wish and max(one.since, one.latest_since) < since for one in ours)
        if seconds > CALLED_OFF_S and seen and not host.server.stopped:
            self._broken(f"Q: on {host} somebody has waited {seconds:.0f} s for {name}, whose server is seen")

    def _judge_queued(self, host: Host, name: str, limit_s: float) -> None:
        """Q: a name leads to its room for a limited time, also where the agent is killed again and again."""
        since = self._queued_at.get((host.number, name), self._world.now)
        queued_s = self._world.now - max(since, self._left_at.get(host.number, 0.0))
        if queued_s > limit_s + QUEUED_S and self._able_since(host) < self._world.now - queued_s:
            self._broken(f"Q: on {host} {name} has led to its room for {queued_s:.0f} s")

    def _judge_lag(self, host: Host, name: str, target: Host) -> None:
        """No read on a standby comes to one that has lagged more than its limit allows, for a while."""
        stalled_at, limit_s, now = target.server.behind_since, self._world.max_lag_s, self._world.now
        if stalled_at is None or limit_s is None or not (host.server.recovery and target.server.recovery):
            return
        if len(target.group.primaries) != 1:
            return
        primary, known = target.group.primaries[0], self._of(host).states
        told = [known.get(one.number) for one in (target, primary)]
        tells = [one is not None and one.latest for one in told] == [Role.STANDBY, Role.PRIMARY]
        both = primary.server.is_primary and self._world.talks(host, primary) and self._world.talks(host, target)
        since = max(stalled_at + limit_s, self._able_since(host))
        if both and tells and now - since > LAGGED_S:
            self._broken(f"L1: a read on {host} for {name} reaches {target}, {now - stalled_at:.0f} s behind")

    def _written_at(self, host: Host) -> float:
        return host.hosts_written_at - self._world.wall_offset_s

    # --- intermediate results

    def reads_no_own_result(self, session: Session, target: Host) -> None:
        """R3: a result that is sent to the own name is read on the own server: else rows are missing, silently."""
        if self._is_settled(session) and self._of(session.host).recognised:
            self._broken(f"R3: a statement on {session.host} reads no rows: its own name leads to {target}")

    def lacks_result(self, session: Session, name: str, target: Host) -> None:
        """Take in that a statement does not find its result: a name moved while it was under way.

        That costs no statement on a coordinator that waits for those before a planned stop.
        """
        host = session.host
        is_held = self.is_planned and not session.on_standby
        if is_held or self._is_settled(session):
            self._broken(f"a statement on {host} for {name} finds no intermediate result on {target}")

    def mixed_up(self, session: Session, other: Session, target: Host) -> None:
        """A statement reads another coordinator's result, or lacks its own: a reader must not be where a writer is."""
        readers = [one for one in (session, other) if one.on_standby]
        for reader in readers if len(readers) == 1 else ():
            told = self._of(reader.host).states.get(target.number)
            knows = told is not None and told.latest is Role.PRIMARY
            since = self._world.now if told is None else max(told.since, told.latest_since)
            follows = self._wish(reader.host, self._of(reader.host)) is Role.STANDBY
            if knows and follows and self._is_settled(reader, since):
                text = f"intermediate results of {session.host} and {other.host} are mixed up on {target}"
                self._broken(f"{text}, which is a primary")

    def _is_settled(self, session: Session, since: float = 0.0) -> bool:
        """Report whether a command began so late that all names had moved and were flushed."""
        host = session.host
        since = max(since, self._able_since(host), self._written_at(host), host.moved_at, host.server.flushed_at)
        return self._is_able(host) and session.begun_at - since > SETTLED_S

    # --- the operator's locks

    def pass_ended(self, host: Host, took_s: float) -> None:
        """No pass of recovery waits for longer than its limits."""
        if took_s > PASS_S:
            self._broken(f"R6: a pass of recovery on {host} has taken {took_s:.0f} s")

    def hold_ended(self, host: Host, took_s: float) -> None:
        """Nor does what a coordinator does before another server's planned stop."""
        if took_s > HOLD_S:
            self._broken(f"Q: statements on {host} were held for {took_s:.0f} s")

    def gate_granted(self, host: Host) -> None:
        """The request that closes the gate must never be granted: standbys replay that lock, and hang."""
        self._broken(f"Q: on {host} the request that closes the gate was granted")

    def recovers(self, host: Host, name: str, target: Host) -> None:
        """R6: judge by what the agent was told whether 2PC recovery may act on a server."""
        process, known, now = host.process, self._of(host), self._world.now
        if process is None or process.loop.is_stopped:
            return
        if process.agent.is_by_hand:
            self._broken(f"R6: 2PC recovery on {host} while a name is pinned or all are paused")
        state, own = known.states.get(target.number), known.states.get(host.number)
        self._judge_claim(host, known)
        if any(one is not None and self._is_unseen(one) for one in (own, state)):
            self._broken(f"R6: 2PC recovery on {host} acts on {target}, but {name} or itself is not seen of late")
        if own is None or own.last_role is not Role.PRIMARY or own.seen_dead:
            self._broken(f"R6: 2PC recovery on {host}, which was not seen as a primary over the network")
        if state is None or state.last_role is not Role.PRIMARY or state.failure is ProbeFailure.DEAD:
            self._broken(f"R6: 2PC recovery on {host} acts on {target}, which is not seen as a primary")
        for one, place in ((host, host.group), (target, target.group)):
            rivals = [known.states.get(other.number) for other in place.hosts if other is not one]
            both = any(rival is not None and self._is_fresh_primary(rival, place) for rival in rivals)
            if both and place.leader is not one and not host.uses_patroni:
                self._broken(f"R6: 2PC recovery on {host} acts on {name} although {place.name} has two primaries")
        self._judge_rivals(host, process)
        if host.server.flushed_at < host.moved_at < now - ROUND_S:
            self._broken(f"R6: 2PC recovery on {host} before the names that moved are flushed")
        wanted = {one.name: one.address for one in process.agent._decision.targets}
        if addresses(host.hosts).get(name) != wanted.get(name) and now - host.moved_at > FLUSHED_S:
            self._broken(f"R6: 2PC recovery on {host} although its file does not say what was decided")

    def _judge_rivals(self, host: Host, process: Process) -> None:
        """R6: after names have moved the other servers of the own group have answered again: one may lead by now."""
        now, nodes = self._world.now, process.monitor.nodes
        for other, _ in self._others(host, host):
            state = nodes.get(other.node)
            seen = state.role_seen if state is not None and not state.seen_dead else None
            if seen is None or seen.identity is None or seen.identity.system_id != host.group.system_id:
                continue
            if now - FRESH_S < seen.at < host.moved_at < now - ROUND_S:
                self._broken(f"R6: 2PC recovery on {host} on an answer of {other} from before its names moved")

    def _is_unseen(self, state: Told) -> bool:
        after_s = EXPIRED_S if state.latest is ProbeFailure.UNREACHABLE else REFUSED_S
        return not isinstance(state.latest, Role) and self._world.now - state.latest_since > after_s

    def _judge_claim(self, host: Host, known: _Known) -> None:
        """R6: 2PC recovery runs only where the local Patroni says that it leads, and has just said so."""
        claim, lost_at = known.claim, known.claim_lost_at
        if host.uses_patroni and (claim is None or not claim.leads):
            self._broken(f"R6: 2PC recovery on {host}, whose Patroni does not say that it leads")
        if host.uses_patroni and lost_at is not None and self._world.now - lost_at > EXPIRED_S:
            self._broken(f"R6: 2PC recovery on {host}, whose Patroni has not answered of late")

    def _is_fresh_primary(self, state: Told, group: Group) -> bool:
        seen = state.role_seen
        if seen is None or state.seen_dead or state.last_role is not Role.PRIMARY:
            return False
        return self._world.now - seen.at < FRESH_S and state.system_id == group.system_id

    # --- the end

    def judge_end(self, config: Config, *, moves: int) -> None:
        """Judge the world after a quiet time, in which there were so many moves."""
        world = self._world
        for group in world.groups:
            primaries, standbys = group.primaries, [host for host in group.hosts if host.server.is_standby]
            if len(primaries) != 1 or len(standbys) != len(group.hosts) - 1:
                raise AssertionError(f"the world does not settle: {group.name}: {primaries}, {standbys}")
        for host in world.agents:
            self._judge_agent(host, config)
        if self.broken is None and moves:
            self._broken(f"{moves} moves of names in the quiet time")
        if self.is_certain:
            self._judge_rows()

    def _judge_agent(self, host: Host, config: Config) -> None:
        process = host.process
        if process is None:
            raise AssertionError(f"there is no agent on {host}")
        for defect in process.defects:
            self._broken(f"the agent on {host} has a defect: {defect}")
        found = addresses(host.hosts)
        for group in config.groups:
            place = self._world.group_of(group.name)
            role = Role.STANDBY if host.server.recovery else Role.PRIMARY
            wanted = {Route.PRIMARY: Role.PRIMARY, Route.STANDBY: Role.STANDBY, Route.FOLLOW: role}[group.route]
            standbys = (one for one in place.hosts if one.server.is_standby)  # the first one in the configuration
            right = place.primaries[0] if wanted is Role.PRIMARY else next(standbys)
            if group.route is Route.FOLLOW and place is host.group:
                right = host
            if found.get(group.name) != right.address:
                self._broken(
                    f"at the end {group.name} on {host} is {found.get(group.name)}, not {right.address} ({right})"
                )
        if host.server.flushed_at < host.moved_at or not process.agent._maintenance.flushed:
            self._broken(f"R5: at the end the last change on {host} is not flushed")
        # Without Patroni an upgrade has to be confirmed by a reload.
        kept = [one for one in process.agent._alerts() if host.uses_patroni or one.code is not AlertCode.REPLACED]
        if kept:
            self._broken(f"at the end the agent on {host} has alerts: {kept[0].text}")

    def _judge_rows(self) -> None:
        workers = [self._world.group_of(name).primaries[0].server.data for name in ("wk1", "wk2")]
        lost = self._lost_by_postgresql()
        for number in self._acknowledged:
            if all(number in data.rows for data in workers):
                continue
            if number in lost:
                self.lost += 1
            else:
                self._broken(f"row {number} was acknowledged and is lost on a worker")
        rows = {number for data in workers for number in data.rows} - lost
        half = {number for number in rows if not all(number in one.rows for one in workers)}
        if half:
            self._broken(f"R6: row {min(half)} is half there")
        left = [gid for data in workers for gid in data.prepared]
        if left:
            self._broken(f"R6: {left[0]} is still prepared at the end")

    def _lost_by_postgresql(self) -> set[int]:
        """Return the rows that asynchronous replication may lose: a change of theirs has not come to the next primary.

        The change may have been made by 2PC recovery, long after the row was acknowledged.
        """
        found = set()
        for group in self._world.groups:
            kept = group.primaries[0].server.data.changes
            late = group.changes.items() if group.lag_s else ()
            found |= {row for number, row in late if row is not None and number not in kept}
        return found


def _watched(config: Config) -> set[str]:
    return {node.host for group in config.groups for node in group.nodes}


def _outside(content: bytes) -> bytes:
    head, _, rest = content.partition(_BEGIN)
    return head + rest.partition(_END)[2].lstrip(b"\n")


def _comment(content: bytes, name: str) -> str:
    for line in content.splitlines():
        fields = line.split(b"\t")
        if len(fields) == 3 and fields[1] == name.encode():
            return fields[2].decode()
    return ""
