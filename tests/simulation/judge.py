"""What must be true in every world, judged by what is in the hosts files and by what clients meet.

The judge knows which answers an agent has been given, because they passed through it, and never asks the agent.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.config.model import Route
from resolver_agent.routing.observation import NodeState, Role
from resolver_agent.routing.state import FENCE
from tests.simulation.world import addresses

if TYPE_CHECKING:
    from resolver_agent.config.model import Config
    from resolver_agent.patroni.membership import Answer
    from tests.simulation.world import Group, Host, World

PROMOTION_S, STOP_S, FORCED_STOP_S = 3.0, 6.0, 2.0
FIRST_LOOK_S = 6.0
"""How long an agent that starts may ask before it decides anything."""
FOREIGN = 9000
"""System identifiers from here on are those of foreign servers."""
_BEGIN, _END = b"# BEGIN resolver-agent", b"# END resolver-agent"


class Violation(Exception):  # noqa: N818 -- a rule was broken; the story is told with it
    """A rule was broken."""


@dataclasses.dataclass(slots=True)
class _Known:
    """What one run of an agent has been told."""

    states: dict[int, NodeState] = dataclasses.field(default_factory=dict)
    local: NodeState = dataclasses.field(default_factory=NodeState)
    claim: Answer | None = None
    recognised: bool = False
    was_primary: int | None = None
    """The run of the local server that was seen as a primary."""


class Judge:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[int, _Known] = {}
        self._acknowledged: list[int] = []
        self._ready: dict[int, int] = {}
        self._wishes: dict[int, Role | None] = {}
        self.moves = 0
        self.moved_at = 0.0
        self.statements = self.failures = 0
        self.is_certain = True
        """Whether acknowledged rows must survive: not after a server was promoted by hand."""

    def _broken(self, text: str) -> None:
        self._world.tell(f"BROKEN: {text}")
        raise Violation(text)

    def _of(self, host: Host) -> _Known:
        return self._known.setdefault(host.number, _Known())

    # --- what agents are told

    def agent_ended(self, host: Host) -> None:
        """Forget what a killed agent knew."""
        self._known.pop(host.number, None)
        self._ready.pop(host.number, None)

    def observed(self, host: Host, target: Host, state: NodeState, *, is_local: bool) -> None:
        """Take in that an answer has come."""
        known = self._of(host)
        if is_local:
            known.local = state
        else:
            known.states[target.number] = state
        own, local = known.states.get(host.number), known.local.role_seen
        seen = own.role_seen if own is not None else None
        if seen is not None and local is not None and local.identity is not None and seen.identity == local.identity:
            known.recognised = True
            if Role.PRIMARY in (seen.role, local.role):
                known.was_primary = local.identity.started_us
        if local is not None and local.role is Role.PRIMARY and local.identity is not None:
            known.was_primary = local.identity.started_us

    def claimed(self, host: Host, target: Host, answer: Answer) -> None:
        """Take in what a Patroni has answered."""
        if host is target:
            self._of(host).claim = answer

    # --- hooks

    def hook_answered(self, host: Host, name: str, *, well: bool) -> None:
        """Take in what a hook has said."""
        if name == "pre-promote" and well:
            self._ready[host.number] = host.server.run

    def promotion_held(self, host: Host, seconds: float) -> None:
        """Take in how long ``pre_promote`` has taken."""
        if seconds > PROMOTION_S:
            self._broken(f"R4: the promotion of {host} was held up for {seconds:.1f} s")

    def stop_held(self, host: Host, seconds: float) -> None:
        """Take in how long ``before_stop`` has taken before a planned stop."""
        if seconds > STOP_S:
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
        if local.role is Role.PRIMARY or known.was_primary == local.identity.started_us:
            return Role.PRIMARY
        if known.claim is None:
            return Role.STANDBY if host.group.hosts and not host.uses_patroni else None
        return None if known.claim.leads else Role.STANDBY

    def file_edited(self, host: Host) -> None:
        """Take in that another program has written the file."""

    def file_written(self, host: Host, before: bytes, after: bytes) -> None:
        """Judge what an agent has written."""
        if _outside(before) != _outside(after) and _BEGIN in before:
            self._broken(f"R7: the agent on {host} has changed lines that are not its own")
        process = host.process
        if process is None:
            return
        known, old, new = self._of(host), addresses(before), addresses(after)
        wish = self._wish(host, known)
        changed_wish = self._wishes.get(host.number) is not wish or wish is None
        self._wishes[host.number] = wish
        for group in process.agent._observer.config.groups:
            name, address = group.name, new.get(group.name)
            wanted = {Route.PRIMARY: Role.PRIMARY, Route.STANDBY: Role.STANDBY, Route.FOLLOW: wish}[group.route]
            own = group.route is Route.FOLLOW and host.group.name == self._world.group_of(name).name
            if address != old.get(name):
                self.moves += 1
                self.moved_at = self._world.now
                self._world.tell(f"{host}: {name} → {address} {_comment(after, name)}")
                if not own:
                    self._judge_move(host, name, (old.get(name), address), wanted, known, changed_wish=changed_wish)
            if own:
                if known.recognised and address != host.address:
                    self._broken(f"R3: on {host} its own name {name} is {address}")
                continue
            target = self._world.by_address.get(address or "")
            state = known.states.get(target.number) if target is not None else None
            if wanted is Role.PRIMARY and state is not None and state.last_role is Role.STANDBY:
                self._broken(f"R2: on {host} {name} leads to {target}, which was last seen in recovery")
            if state is not None and self._is_foreign(state, self._world.group_of(name), known):
                self._broken(f"A7: on {host} {name} leads to {target}, a foreign server")

    def _is_foreign(self, state: NodeState, group: Group, known: _Known) -> bool:
        seen = state.role_seen
        if seen is None or seen.identity is None or seen.identity.system_id < FOREIGN:
            return False
        others = (known.states.get(host.number) for host in group.hosts)
        return any(
            other is not None
            and other is not state
            and other.role_seen is not None
            and other.role_seen.identity is not None
            and other.role_seen.identity.system_id < FOREIGN
            and self._counts(other)
            for other in others
        )

    def _counts(self, state: NodeState) -> bool:
        seen = state.role_seen
        return seen is not None and not state.serves_no_reads

    def _judge_move(
        self,
        host: Host,
        name: str,
        move: tuple[str | None, str | None],
        wanted: Role | None,
        known: _Known,
        *,
        changed_wish: bool,
    ) -> None:
        """R1: judge whether there was evidence for a move."""
        before, address = move
        source, target = self._world.by_address.get(before or ""), self._world.by_address.get(address or "")
        old = known.states.get(source.number) if source is not None else None
        if address is None:
            self._broken(f"R1: on {host} {name} is gone from the file")
        if changed_wish or before is None or wanted is None:
            return
        if address == FENCE:
            alone = self._own_primaries(name, known) < 2
            if alone and wanted is Role.PRIMARY and old is not None and old.last_role is Role.PRIMARY:
                self._judge_fence(host, name, old)
            return
        if target is None:
            return
        new = known.states.get(target.number)
        if new is None or new.role_seen is None:
            self._broken(f"R1: on {host} {name} moves to {target}, of which nothing is known")
        elif wanted is Role.PRIMARY and new.last_role is not Role.PRIMARY:
            self._broken(f"R1: on {host} {name} moves to {target}, which was not seen as a primary")

    def _judge_fence(self, host: Host, name: str, last: NodeState) -> None:
        """R2: a primary that is silent, or dead, is held; only one of another database cluster is not."""
        seen = last.role_seen
        found = seen.identity.system_id if seen is not None and seen.identity is not None else None
        if found == self._world.group_of(name).system_id:
            self._broken(f"R1: on {host} {name} is fenced although its last primary was not seen in recovery")

    def _own_primaries(self, name: str, known: _Known) -> int:
        states = (known.states.get(host.number) for host in self._world.group_of(name).hosts)
        return sum(state is not None and state.last_role is Role.PRIMARY for state in states)

    # --- clients

    def is_primary(self, host: Host) -> None:
        """Take in that a server begins to take writes."""

    def acknowledged(self, number: int) -> None:
        """Take in that a client was told that its rows are there."""
        self._acknowledged.append(number)

    def failed(self, host: Host, why: str) -> None:
        """Take in that a statement failed."""
        self.failures += 1
        self._world.tell(f"{host}: a statement fails: {why}")

    def reached(self, host: Host, name: str, target: Host, *, was_cached: bool, writes: bool) -> None:
        """Judge where a statement has come to."""
        self.statements += 1
        world, process = self._world, host.process
        if target.group.name != name:
            self._broken(f"a statement on {host} for {name} reaches {target}")
        if process is None or host.server.recovery or not target.server.recovery:
            return
        if was_cached and self._ready.get(host.number) == host.server.run and writes:
            self._broken(
                f"R5: a session on {host} still has a connection to {target}, a standby, after a ready promotion"
            )
        state = self._of(host).states.get(target.number)
        address = world.lookup(host, name)
        knows = state is not None and state.last_role is Role.STANDBY and address == target.address
        knows = knows and world.now - process.begun > FIRST_LOOK_S
        if knows and not was_cached and not host.hosts_fails and not process.loop.is_stopped:
            wants_primary = self._wish(host, self._of(host)) is Role.PRIMARY
            if wants_primary and world.now - self._written_at(host) > 0.2:
                self._broken(f"R2: a statement on the primary {host} reaches {target}, which is known to be a standby")

    def _written_at(self, host: Host) -> float:
        return host.hosts_written_at - self._world.wall_offset_s

    def recovers(self, host: Host, name: str, target: Host) -> None:
        """Judge which servers 2PC recovery acts on."""
        if host.group.leader not in (None, host) and self.is_certain:
            leader = host.group.leader
            assert leader is not None
            if leader.server.is_primary:
                self._world.tell(f"2PC recovery of the deposed {host} acts on {name} ({target})")

    # --- the end

    def judge_end(self, config: Config, *, moves: int) -> None:
        """Judge the world after a quiet time, in which there were so many moves."""
        world = self._world
        for group in world.groups:
            primaries, standbys = group.primaries, [host for host in group.hosts if host.server.is_standby]
            if len(primaries) != 1 or len(standbys) != 1:
                raise AssertionError(f"the world does not settle: {group.name}: {primaries}, {standbys}")
        for host in world.agents:
            self._judge_agent(host, config)
        if moves:
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
            right = place.primaries[0] if wanted is Role.PRIMARY else place.other(place.primaries[0])
            if group.route is Route.FOLLOW and place is host.group:
                right = host
            if found.get(group.name) != right.address:
                self._broken(
                    f"at the end {group.name} on {host} is {found.get(group.name)}, not {right.address} ({right})"
                )
        if not process.agent._maintenance.flushed:
            self._broken(f"R5: at the end the last change on {host} is not flushed")
        kept = [alert for alert in process.agent._alerts() if alert.code.value != "replaced"]
        if kept:
            self._broken(f"at the end the agent on {host} has alerts: {kept[0].text}")

    def _judge_rows(self) -> None:
        workers = [self._world.group_of(name).primaries[0].server.data for name in ("wk1", "wk2")]
        for number in self._acknowledged:
            if not all(number in data.rows for data in workers):
                self._broken(f"row {number} was acknowledged and is lost on a worker")
        half = {number for data in workers for number in data.rows if not all(number in one.rows for one in workers)}
        if half:
            self._broken(f"R6: row {min(half)} is half there")
        left = [gid for data in workers for gid in data.prepared]
        if left:
            self._broken(f"R6: {left[0]} is still prepared at the end")


def _outside(content: bytes) -> bytes:
    head, _, rest = content.partition(_BEGIN)
    return head + rest.partition(_END)[2].lstrip(b"\n")


def _comment(content: bytes, name: str) -> str:
    for line in content.splitlines():
        fields = line.split(b"\t")
        if len(fields) == 3 and fields[1] == name.encode():
            return fields[2].decode()
    return ""
