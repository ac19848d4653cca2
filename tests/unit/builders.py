"""Builders for tests of routing: one agent, what it observes, how time passes, and what it decides."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.config.model import Config, Fallback, Group, Node, Queue, Route
from resolver_agent.hosts import block as hosts_block
from resolver_agent.routing.decide import decide, resume
from resolver_agent.routing.observation import (
    Identity,
    NodeState,
    Observation,
    Observations,
    PatroniStatus,
    Pause,
    Pin,
    ProbeFailure,
    Role,
    Stage,
    Window,
)
from resolver_agent.routing.state import Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resolver_agent.routing.decision import Decision

INTERVAL_S, TIMEOUT_S, FAILBACK_S = 1.0, 2.0, 10.0
MAX_AGE_S = INTERVAL_S + TIMEOUT_S
PORT = 5432
OURS, FOREIGN = 1, 2
"""System identifiers."""


def node(host: str) -> Node:
    """Return a node on the usual port."""
    return Node(host, PORT)


def group(
    name: str,
    *hosts: str,
    route: Route = Route.FOLLOW,
    max_lag_bytes: int | None = None,
    max_lag_s: float | None = None,
    port: int = PORT,
    unplanned_s: float = 0.0,
) -> Group:
    """Return a name and the nodes behind it."""
    return Group(
        name=name,
        nodes=tuple(Node(host, port) for host in hosts),
        route=route,
        max_lag_bytes=max_lag_bytes,
        max_lag_s=max_lag_s,
        failback_delay_s=FAILBACK_S,
        patroni=None,
        queue=Queue(unplanned_s=unplanned_s),
    )


def config(*groups: Group, fallback: Fallback = Fallback.NONE, has_local: bool = True) -> Config:
    """Return a configuration with these names."""
    return Config(
        path="/etc/resolver-agent.yml",
        fallback=fallback,
        groups=groups,
        postgresql={},
        local={},
        interval_s=INTERVAL_S,
        timeout_s=TIMEOUT_S,
        citus=has_local,
        hosts_file="/etc/hosts",
        runtime_dir="/run/resolver-agent",
        state_dir="/var/lib/resolver-agent",
        log_format="text",
        log_level="info",
        has_local=has_local,
    )


def primary(*, lsn: int | None = 1000, timeline: int = 7, system_id: int = OURS, started: int = 0) -> Observation:
    """Return an observation of a primary; ``started`` tells servers at one address from each other."""
    return Observation(result=Role.PRIMARY, at=0, lsn=lsn, timeline=timeline, identity=Identity(system_id, started))


def standby(*, lsn: int | None = 1000, system_id: int = OURS, started: int = 0) -> Observation:
    """Return an observation of a server in recovery."""
    return Observation(result=Role.STANDBY, at=0, lsn=lsn, timeline=7, identity=Identity(system_id, started))


def dead() -> Observation:
    """Return an observation of a refused connection."""
    return Observation(result=ProbeFailure.DEAD, at=0, detail="Connection refused")


def rejecting() -> Observation:
    """Return an observation of a refused login."""
    return Observation(result=ProbeFailure.REJECTING, at=0, detail="password authentication failed")


def not_serving() -> Observation:
    """Return an observation of a server that starts up."""
    return Observation(result=ProbeFailure.NOT_SERVING, at=0, detail="the database system is starting up")


def unreachable() -> Observation:
    """Return an observation of a probe that timed out."""
    return Observation(result=ProbeFailure.UNREACHABLE, at=0, detail="no answer within 2 s")


def remembered(
    address: str,
    kind: TargetKind,
    *,
    name: str = "wk1",
    wanted_role: Role | None = None,
    last: str | None = None,
    lost: bool = False,
) -> Target:
    """Return a line of the block; ``last`` is the last known primary. The wanted role follows from the kind."""
    wanted = {
        TargetKind.SELF: None,
        TargetKind.STANDBY: Role.STANDBY,
        TargetKind.FALLBACK: Role.STANDBY,
        TargetKind.PRIMARY: Role.PRIMARY,
        TargetKind.FENCED: Role.PRIMARY,
        TargetKind.QUEUED: Role.PRIMARY,
    }
    if kind in (TargetKind.PRIMARY, TargetKind.FALLBACK):
        last = last or address
    wanted_role = wanted_role or wanted[kind]
    return Target(name=name, address=address, kind=kind, wanted_role=wanted_role, primary=last, primary_demoted=lost)


class Agent:
    """What one agent has observed and decided, with a clock of its own."""

    def __init__(self, config: Config, block: Iterable[Target] = (), *, now: float = 100.0) -> None:
        self.config = config
        self.now = now
        self.assumed: Role | None = None
        self.holds_lock = False
        self.patroni: dict[str, PatroniStatus] = {}
        self.windows: dict[str, Window] = {}
        self.rooms: dict[str, str] = {}
        self.no_room: dict[str, str] = {}
        self.pins: dict[str, Pin] = {}
        self.pause: Pause | None = None
        self.states: dict[Node, NodeState] = {}
        self.local = NodeState()
        self.decision: Decision = resume(config, block)

    def see(self, seen: Mapping[str | Node, Observation]) -> Agent:
        """Record observations, by address or node; each is at its own address unless ``address`` is given."""
        for where, observation in seen.items():
            at = node(where) if isinstance(where, str) else where
            self.states[at] = self.states.get(at, NodeState()).after(self._stamped(observation, at.host))
        return self

    def see_local(self, observation: Observation, *, address: str = "local") -> Agent:
        """Record what the local probe just observed; with a node's address it is that node's server."""
        self.local = self.local.after(self._stamped(observation, address))
        return self

    def _stamped(self, observation: Observation, host: str) -> Observation:
        identity = observation.identity
        if identity is not None:  # no two servers start in the same microsecond
            place = sum(256**i * ord(letter) for i, letter in enumerate(host))
            identity = identity._replace(started_us=place * 1000 + identity.started_us)
        address = observation.address or (host if identity else None)
        return dataclasses.replace(observation, at=self.now, address=address, identity=identity)

    def wait(self, seconds: float) -> Agent:
        """Let time pass."""
        self.now += seconds
        return self

    def decide(self) -> Agent:
        """Make a decision now, without the pins that another primary has ended."""
        for name, address in self.decision.overtaken.items():
            if name in self.pins and self.pins[name].address == address:
                del self.pins[name]
        observations = Observations(
            nodes=dict(self.states),
            local=self.local,
            assumed=self.assumed,
            holds_lock=self.holds_lock,
            patroni=self.patroni,
            windows=dict(self.windows),
            rooms=dict(self.rooms),
            no_room=dict(self.no_room),
            pins=dict(self.pins),
            pause=self.pause,
        )
        self.decision = decide(self.config, observations, self.decision, self.now)
        return self

    def stops(self, host: str, name: str = "wk1", *, stage: Stage = Stage.ROOM) -> Agent:
        """Open a window: the server at ``host``, as last seen, was announced to stop, with a hook of 5 s at most."""
        seen = self.states[node(host)].role_seen
        assert seen is not None
        assert seen.role is not None
        group = next(one for one in self.config.groups if one.name == name)
        self.windows[name] = Window(
            id="00000000",
            node=node(host),
            address=seen.address or host,
            run=seen.identity,
            role=seen.role,
            since=self.now,
            until=self.now + group.queue.planned_s,
            called_off_at=self.now + 5,
            stage=stage,
        )
        return self

    def pin(self, address: str, name: str = "wk1", *, for_s: float = 600.0) -> Agent:
        """Pin a name to an address, for the role that it wants now; by force where none of its nodes is known."""
        target = self.target(name)
        wanted_role = (target.wanted_role if target is not None else None) or Role.PRIMARY
        forced = all(node.host != address for group in self.config.groups if group.name == name for node in group.nodes)
        self.pins[name] = Pin(address=address, wanted_role=wanted_role, until=self.now + for_s, forced=forced)
        return self

    def paused(self, *, for_s: float = 600.0) -> Agent:
        """Pause all names."""
        self.pause = Pause(until=self.now + for_s)
        return self

    def restart(self, *, written_at: float | None = None) -> Agent:
        """Forget everything but the block, pins and a pause."""
        written = hosts_block.render(b"", self.decision.targets)
        self.decision = resume(self.config, hosts_block.recall(written), written_at=written_at)
        self.states, self.local, self.patroni = {}, NodeState(), {}
        self.assumed, self.holds_lock = None, False
        self.windows, self.rooms, self.no_room = {}, {}, {}
        return self

    def target(self, name: str = "wk1") -> Target | None:
        """Return a name's target."""
        return self.decision.groups[name].target

    def leads(self, name: str = "wk1") -> str:
        """Return a name's address and the reason, as the log shows them."""
        state = self.decision.groups[name]
        return str(state.target) if state.target else f"{name} left out ({state.reason.text})"

    def address(self, name: str = "wk1") -> str | None:
        """Return a name's address, None where the name is left out."""
        target = self.target(name)
        return target.address if target else None

    @property
    def alerts(self) -> set[str]:
        """The keys of all alerts."""
        return {alert.key for alert in self.decision.alerts}
