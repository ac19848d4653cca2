"""Proof that the simulation finds defects: the program with one defect put in, each time another one.

Run by hand it hunts for a seed that finds each mutation: `python -m tests.simulation.mutations`. A test runs each with
the seed that is known to find it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PACKAGE = Path(__file__).parents[2] / "resolver_agent"
_HUNT_S = 60.0


class Mutation(NamedTuple):
    """One defect: the module of ``resolver_agent``, what stands there, what is put in its place; and who finds it.

    ``seed`` is that of a world which breaks a rule because of it, with its own faults or with ``faults``: for each when
    it begins, how long it lasts, its kind, and two hosts.
    """

    name: str
    module: str
    old: str
    new: str
    seed: int
    faults: tuple[tuple[float, float, str, int, int], ...] | None = None


_SLOW_BESIDE = ((3, 200, "slow_path", 0, 1), (3, 200, "slow_path", 1, 0))
"""The coordinators' agents hear each other's server late."""

MUTATIONS = (
    # R1, evidence
    Mutation(
        "silence counts as death",
        "routing.observation",
        "self.seen_dead or observation.result is ProbeFailure.DEAD",
        "self.seen_dead or observation.result in (ProbeFailure.DEAD, ProbeFailure.UNREACHABLE)",
        3,
        ((5, 20, "freeze_server", 2, 0), (40, 20, "freeze_server", 3, 0)),
    ),
    Mutation(
        "a silent primary is fenced",
        "routing.primary",
        "if before.memory.primary is None or demoted or not foreign.isdisjoint(last_at):",
        "if True:",
        2,
    ),
    Mutation(
        "a silent standby is fenced",
        "routing.standby",
        "if not astray and (awaits or not (view.asked_all and (view.has_evidence_against or seen_primary))):",
        "if False:",
        3,
        ((5, 20, "freeze_server", 2, 0), (40, 20, "freeze_server", 3, 0)),
    ),
    Mutation(
        "nothing is remembered",
        "agent",
        "self._decision = resume(self._config, remembered, written_at=boottime() - age_s)",
        "pass",
        0,
    ),
    # R2: never on a standby
    Mutation(
        "a demoted primary is held",
        "routing.primary",
        "demoted = before.memory.primary is not None and (",
        "demoted = False and (",
        3,
        (
            (5, 5, "power_loss", 2, 0),
            (5, 5, "power_loss", 3, 0),
            (50, 5, "power_loss", 4, 0),
            (50, 5, "power_loss", 5, 0),
        ),
    ),
    Mutation(
        "names follow no role",
        "routing.local_server",
        "return Role.PRIMARY, local.identity",
        "return None, None",
        4,
    ),
    Mutation(
        "a pin counts on a server in recovery",
        "routing.pin",
        "if demoted or Role.STANDBY in roles:",
        "if False:",
        0,
    ),
    Mutation(
        "a pause keeps names on a server in recovery",
        "routing.pin",
        "if _evidence_against(view, wanted_role, address, fallback=fallback) is not None:\n        return choice",
        "if False:\n        return choice",
        29,
    ),
    Mutation(
        "the primary is any node that answers",
        "routing.primary",
        "[seen for seen in members.values() if seen.result is Role.PRIMARY]",
        "[*members.values()][:1]",
        0,
    ),
    # R3: own name, own address
    Mutation("the own name is like others", "routing.local_server", "return remembered | seen", "return {}", 0),
    Mutation(
        "the own name is forgotten with the server",
        "routing.local_server",
        "return remembered | seen",
        "return seen",
        1,
    ),
    # R4: before, not after
    Mutation("the hook announces nothing", "requests", "self._observer.announce()", "pass", 3),
    Mutation(
        "the hook is answered at once",
        "requests",
        "await self._until(self._ready_for_writes, _ANNOUNCED_S)",
        "pass",
        1,
    ),
    Mutation(
        "the hook does not wait for the flush",
        "requests",
        "written and self._maintenance.flushed)",
        "written)",
        1,
    ),
    Mutation("an announced promotion never ends", "observe.observer", "if ended is not None:", "if False:", 1),
    Mutation("an announced promotion ends at once", "observe.observer", "if ended is not None:", "if True:", 3),
    # R5: no session left behind
    Mutation("nothing is flushed", "citus.maintenance", "if not self.flushed:", "if False:", 0),
    Mutation(
        "a move counts as flushed",
        "citus.maintenance",
        "return self._flushed == self._wanted > 0",
        "return True",
        0,
    ),
    Mutation(
        "a new address is no reason to flush",
        "citus.maintenance",
        "said = (puts, *((target.name, target.address) for target in decision.targets))",
        "said = (puts, *(target.name for target in decision.targets))",
        0,
    ),
    Mutation(
        "a failed flush is not tried again",
        "citus.maintenance",
        'self._fault = f"cached connections are not flushed: {words}"\n            return',
        "self._flushed = self._under_way\n            return",
        2,
        ((4.9, 6, "freeze_server", 0, 0), (4.9, 6, "freeze_server", 1, 0), (5, 0.1, "switchover", 2, 0)),
    ),
    # R6: the preconditions of recovery
    Mutation(
        "recovery although pinned or paused",
        "citus.preconditions",
        '"names are paused" if decision.paused else next(iter(by_hand), None),',
        "",
        2,
        ((40, 60, "pause_names", 0, 0), (40, 60, "pause_names", 1, 0)),
    ),
    Mutation(
        "recovery on a primary that is not accepted",
        "citus.preconditions",
        "*(_own_blocker(group, decision, evidence) for group in own),",
        "",
        34,
        ((8, 40, "pause_patroni", 0, 0), (10, 0.1, "promote_by_hand", 0, 0), (10, 0.1, "promote_by_hand", 1, 0)),
    ),
    Mutation(
        "recovery without the leader lock",
        "citus.preconditions",
        "*(_lock_blocker(group, evidence) for group in own if group.patroni is not None),",
        "",
        1,
        ((3, 80, "hang_patroni", 0, 0), (3, 80, "partition", 0, 1)),
    ),
    Mutation(
        "recovery before the file is written",
        "citus.preconditions",
        'None if evidence.written else "the hosts file does not hold the last decision",',
        "",
        0,
        ((4.9, 30.0, "fill_disk", 0, 0), (4.9, 30.0, "fill_disk", 1, 0), (5.0, 0.1, "switchover", 0, 0)),
    ),
    Mutation(
        "recovery without preconditions",
        "citus.preconditions",
        "blockers = [",
        "return None\n    blockers = [",
        0,
        ((40, 50, "reject_logins", 2, 0), (40, 50, "reject_logins", 3, 0)),
    ),
    Mutation(
        "recovery never runs",
        "citus.maintenance",
        "elif now >= self._next_at:",
        "elif False:",
        1,
    ),
    Mutation(
        "recovery on answers from before it was blocked",
        "citus.maintenance",
        "self._asked_at = None\n            return\n        if self._asked_at",
        "return\n        if self._asked_at",
        1,
        (
            *_SLOW_BESIDE,
            *((at, 0.1, "switchover", 0, 0) for at in (5, 35, 65)),
            *(
                (at + 0.9 + 0.25 * number, 0.1, "edit_file", host, 0)
                for at in (5, 35, 65)
                for number in range(8)
                for host in (0, 1)
            ),
        ),
    ),
    Mutation(
        "recovery beside a server that has not answered again",
        "citus.preconditions",
        "if again is None or again.at < evidence.since:",
        "if False:",
        2,
        (*_SLOW_BESIDE, (5, 0.1, "switchover", 0, 0)),
    ),
    # R7: the file
    Mutation(
        "the lines below the block are lost",
        "hosts.block",
        'return head + _BEGIN + _HINT + note + b"\\n" + entries + _END + b"\\n" + parts.tail',
        'return head + _BEGIN + _HINT + note + b"\\n" + entries + _END + b"\\n"',
        0,
    ),
    Mutation(
        "a new block takes the place of the whole file",
        "hosts.block",
        "return head + _BEGIN",
        'head = head if parts.block else b""\n    return head + _BEGIN',
        0,
    ),
    Mutation(
        "a failed write is tried again late",
        "hosts.managed_block",
        "_FAILED_MAX_S, _TRAMPLED_MAX_S = 1.0, 30.0",
        "_FAILED_MAX_S, _TRAMPLED_MAX_S = 30.0, 30.0",
        16,
    ),
    Mutation(
        "a block that is gone is not put back",
        "hosts.managed_block",
        "return self._writer.signature() != self._on_disk.signature",
        "return False",
        2,
        ((5, 0.1, "edit_file", 0, 0), (5, 0.1, "edit_file", 1, 0)),
    ),
    Mutation(
        "a failed write is not tried again",
        "hosts.managed_block",
        "if not news and self._fault is None and not self.disturbed():",
        "if not news:",
        2,
        ((4.9, 30, "fill_disk", 0, 0), (4.9, 30, "fill_disk", 1, 0), (5, 0.1, "switchover", 2, 0)),
    ),
    # R8: say so
    Mutation(
        "a fenced name is no alert",
        "routing.decide",
        "    Code.FENCED: AlertCode.FENCED,\n",
        "",
        3,
        ((4, 40, "pause_patroni", 2, 0), (5, 0.1, "crash", 2, 0)),
    ),
    # which database cluster, which primary
    Mutation(
        "foreign servers are members",
        "routing.assess",
        "if seen.identity and seen.identity.system_id == system_id}",
        "if seen.identity}",
        34,
        ((5, 30, "foreign_server", 2, 0), (8, 20, "power_loss", 3, 0)),
    ),
    Mutation(
        "a foreign primary needs no word of Patroni",
        "routing.system_id",
        "led = group.patroni is None and any(",
        "led = any(",
        48,
        ((5, 30, "foreign_server", 3, 0), (8, 20, "power_loss", 2, 0)),
    ),
    Mutation(
        "the leader lock does not count",
        "routing.assess",
        "leader = trusted.leader",
        "leader = None",
        1,
        ((5.0, 90.0, "hang_patroni", 2, 0),),
    ),
    Mutation(
        "one of several primaries is taken",
        "routing.primary",
        "return _last_of(primaries, told, before, demoted=demoted), alerts",
        'return _accepted(primaries[-1], Code.PRIMARY, "one of them"), alerts',
        65,
    ),
    # standbys
    Mutation(
        "names do not return from the fallback",
        "routing.standby",
        "chosen = next((node for node in view.fit if node in view.healthy), current)",
        "chosen = current",
        0,
    ),
    # the queue
    Mutation("a stop that is announced is not heard", "queue.windows", "self._begin(over, message)", "pass", 1),
    Mutation(
        "no gate",
        "queue.windows",
        "stop.part = _Part.HOLD",
        "stop.part = _Part.ROOM",
        28,
    ),
    Mutation("rooms are not forwarded", "queue.windows", "self._rooms.forward(name, target.address)", "pass", 1),
    Mutation(
        "a room is closed before its name has moved",
        "queue.windows",
        "self._rooms.close(name, why, after_s=_LINGER_S)",
        "self._rooms.close(name, why)",
        28,
    ),
    Mutation("a stop is not announced", "queue.own_stop", "answer = await self._announce(begun, within_s)", "pass", 1),
    Mutation(
        "no stop counts as planned", "queue.evidence", "if state.in_recovery:\n        return None", 'return "no"', 1
    ),
    Mutation(
        "a stop waits for nobody",
        "queue.own_stop",
        "until = min(last, told_at + drain_s + _BEYOND_DRAIN_S)",
        "until = told_at",
        14,
    ),
    Mutation(
        "recovery before the flush",
        "citus.preconditions",
        'None if evidence.flushed else "cached connections are not flushed yet",',
        "",
        2,
        ((30, 80, "slow_server", 0, 0), (30, 80, "slow_server", 1, 0), (40, 60, "power_loss", 2, 0)),
    ),
    Mutation(
        "an answer counts for ever",
        "routing.observation",
        "if seen is None or self.seen_dead or not abs(now - seen.at) < max_age_s:",
        "if seen is None:",
        34,
        ((5, 70, "power_loss", 3, 0),),
    ),
    Mutation(
        "recovery on unconfirmed primaries",
        "citus.preconditions",
        "*(_name_blocker(group, decision) for group in others),",
        "",
        0,
        ((40, 50, "reject_logins", 2, 0), (40, 50, "reject_logins", 3, 0)),
    ),
    Mutation(
        "recovery on old answers",
        "citus.preconditions",
        "return at >= self.since and self.now - at < self.max_age_s",
        "return True",
        1,
        ((3, 80, "hang_patroni", 0, 0), (3, 80, "partition", 0, 1)),
    ),
    Mutation(
        "a new database cluster is never accepted",
        "routing.system_id",
        "if status.system_id is not None and status.system_id in ids.values():",
        "if False:",
        1,
        ((5, 3, "upgrade", 2, 0),),
    ),
    Mutation(
        "the holder of the lock is no primary to be",
        "routing.decide",
        "wanted = observations.assumed or (Role.PRIMARY if observations.holds_lock else role)",
        "wanted = observations.assumed or role",
        26,
        tuple((5 + 15 * number, 0.1, "switchover", 0, 0) for number in range(8)),
    ),
    Mutation(
        "a coordinator does not say that it is at work",
        "queue.windows",
        "self._say(stop, Kind.HELD, coordinator=bool(databases), later=bool(databases) and self._busy(stop))",
        "pass",
        55,
    ),
    Mutation(
        "a coordinator says at once that it is clear",
        "queue.windows",
        "if stop.cleared or (stop.part is _Part.HOLD and stop.held is None):\n            return",
        "if stop.cleared:\n            return\n        self._clear(stop)",
        49,
    ),
    Mutation(
        "names do not queue",
        "routing.queue",
        "return _wait(choice, room, stops)  # Q1",
        "return None",
        139,
    ),
    # the queue: a step left out, or out of its order
    Mutation(
        "connections stay cached while names come to queue",
        "queue.hold",
        "for step in (one.uncache, one.grow_out, one.close, one.drain):",
        "for step in (one.grow_out, one.close, one.drain):",
        43,
    ),
    Mutation(
        "nobody grows out",
        "queue.hold",
        "for step in (one.uncache, one.grow_out, one.close, one.drain):",
        "for step in (one.uncache, one.close, one.drain):",
        14,
    ),
    Mutation(
        "the gate closes after the drain",
        "queue.hold",
        "for step in (one.uncache, one.grow_out, one.close, one.drain):",
        "for step in (one.uncache, one.grow_out, one.drain, one.close):",
        43,
    ),
    Mutation(
        "the gate closes before connections are uncached",
        "queue.hold",
        "for step in (one.uncache, one.grow_out, one.close, one.drain):",
        "for step in (one.close, one.uncache, one.grow_out, one.drain):",
        32,
    ),
    Mutation(
        "connections are uncached after the grow out",
        "queue.hold",
        "for step in (one.uncache, one.grow_out, one.close, one.drain):",
        "for step in (one.grow_out, one.uncache, one.close, one.drain):",
        28,
    ),
    Mutation(
        "the gate has no keeper",
        "queue.hold",
        "gate.keep(within_s=deadline - time.monotonic())",
        "pass",
        14,
    ),
    Mutation(
        "a name leads to a room that is not open",
        "queue.windows",
        "ready = self._rooms.open(name, before=target.address) == target.address and ready",
        "ready = True",
        1,
    ),
    Mutation(
        "the flush comes before the file",
        "agent",
        "written = await self._block.put(decision.targets, begun, within_s=_WRITE_S)",
        "self._maintenance.tick(self._observer, decision, written=True, puts=self._block.trampled, now=begun)\n"
        "        written = await self._block.put(decision.targets, begun, within_s=_WRITE_S)",
        1,
        (
            (0, 100, "slow_disk", 0, 0),
            (0, 100, "slow_disk", 1, 0),
            (5, 0.1, "switchover", 0, 0),
            (45, 0.1, "switchover", 2, 0),
        ),
    ),
    # faults that once were there
    Mutation(
        "a pin that was overtaken counts again",
        "routing.decide",
        "if (one := pins.get(name)) is not None and pin.is_overtaken(view, one)",
        "if (one := pins.get(name)) is not None and False",
        2,
        ((3, 200, "pin", 1, 2), (6, 150, "power_loss", 2, 0), (60, 30, "power_loss", 3, 0)),
    ),
    Mutation(
        "a checkpoint's age counts from the question",
        "queue.evidence",
        "state.control_age_s - since_s < _CHECKPOINT_MAX_S",
        "state.control_age_s < _CHECKPOINT_MAX_S",
        1,
        (
            (0, 300, "slow_python", 2, 0),
            (0, 300, "slow_python", 3, 0),
            (5, 0.1, "switchover", 2, 0),
            (35, 0.1, "switchover", 2, 0),
        ),
    ),
    Mutation(
        "a killed agent gives its name the whole time again",
        "queue.windows",
        "until=now + max(0.0, limit_s - age_s),",
        "until=now + limit_s,",
        54,
        (
            (4, 40, "pause_patroni", 2, 0),
            (5, 0.1, "crash", 2, 0),
            (5, 0.1, "crash", 3, 0),
            (10, 0.1, "kill_agent", 0, 0),
            (10, 0.1, "kill_agent", 1, 0),
        ),
    ),
    Mutation(
        "with fallback all a name stays on a dead primary",
        "routing.standby",
        "fallen = target is not None and target.kind is TargetKind.FALLBACK and view.is_silent(target.address)",
        "fallen = target is not None and target.kind is TargetKind.FALLBACK",
        2,
        ((5, 100, "power_loss", 4, 0), (20, 60, "pause_patroni", 2, 0), (21, 0.1, "crash", 2, 0)),
    ),
    Mutation(
        "a standby that stopped never serves again",
        "routing.queue",
        "return window.node if state is None or _ends(window, state.role_seen) is None else None",
        "return window.node",
        1,
        ((5, 0.1, "restart", 3, 0),),
    ),
    Mutation(
        "a called off stop is noticed with the next change",
        "routing.assess",
        "        or group.name in observations.windows\n",
        "",
        1,
        ((5, 0.1, "call_off_stop", 2, 0),),
    ),
    Mutation(
        "no stop is called off",
        "routing.queue",
        "if seen.at >= window.called_off_at:",
        "if False:",
        1,
        ((5, 0.1, "call_off_stop", 2, 0),),
    ),
    # what else a server may say
    Mutation(
        "a refused login counts as death",
        "routing.observation",
        "seen_dead = self.seen_dead or observation.result is ProbeFailure.DEAD",
        "seen_dead = self.seen_dead or observation.result in (ProbeFailure.DEAD, ProbeFailure.REJECTING)",
        3,
        ((5, 30, "reject_logins", 2, 0), (5, 30, "reject_logins", 3, 0)),
    ),
    Mutation(
        "the limit of a lag does not count",
        "routing.standby",
        "if lag is not None and lag > limit:",
        "if False:",
        3,
        tuple((5, 40, "stall_replay", host, 0) for host in range(2, 6)),
    ),
    # intermediate results
    Mutation(
        "with fallback none a name goes to its primary",
        "routing.standby",
        "    if fallback is Fallback.NONE:\n",
        "    if False:\n",
        1,
        ((5, 40, "power_loss", 2, 0),),
    ),
    Mutation(
        "a standby coordinator counts as flushed",
        "citus.maintenance",
        "        server = local.role_seen.identity\n        if not self.flushed:",
        "        server = local.role_seen.identity\n        if local.role_seen.result is Role.STANDBY:\n"
        "            self._flushed = self._wanted\n        if not self.flushed:",
        26,
        ((5, 40, "stall_replay", 2, 0), (5, 40, "stall_replay", 3, 0)),
    ),
    # lost slots
    Mutation(
        "a standby behind the whole history has no lag",
        "routing.lag",
        "    if passed == len(lsns):",
        "    if passed in (0, len(lsns)):",
        3,
        tuple((5, 40, "lose_slot", host, 0) for host in range(2, 6)),
    ),
    # locks
    Mutation(
        "a pass of recovery that failed is the last one",
        "citus.maintenance",
        "self._next_at = now + (PERIOD_S if well else _RETRY_S)",
        "self._next_at = now + PERIOD_S if well else math.inf",
        0,
        ((30, 60, "lock_records", 0, 0),),
    ),
    Mutation(
        "a session waits for a lock for a minute",
        "citus.session",
        "LOCK_S = 2.0",
        "LOCK_S = 60.0",
        0,
        ((30, 60, "lock_nodes", 0, 0),),
    ),
    Mutation(
        "a planned stop waits for a lock for a minute",
        "citus.session",
        "LOCK_S = 2.0",
        "LOCK_S = 60.0",
        1,
        ((30, 60, "lock_nodes", 0, 0), (35, 0.1, "switchover", 2, 0)),
    ),
)

UNSEEN = (
    Mutation(
        "an announced promotion is no primary",
        "observe.observer",
        "assumed=assumed or (Role.PRIMARY if self.announced is not None else None),",
        "assumed=assumed,",
        1,
        ((5, 0.1, "switchover", 0, 0), (45, 0.1, "switchover", 0, 0)),
    ),
    Mutation(
        "rooms are forwarded to what is remembered",
        "queue.windows",
        "elif name in rooms and _takes(decision, target)",
        "elif name in rooms",
        0,
    ),
    Mutation(
        "names queue before the gate is closed",
        "queue.hold",
        "for step in (one.uncache, one.grow_out, one.close, one.drain):",
        "for step in (one.uncache, one.grow_out, to_room, one.close, one.drain):",
        139,
    ),
    Mutation(
        "all is given back before the names queue",
        "queue.hold",
        "for step in (one.uncache, one.grow_out, one.close, one.drain):",
        "for step in (one.uncache, one.grow_out, one.close, one.drain, one.undo):",
        1,
    ),
    Mutation(
        "a coordinator is clear before the file is written",
        "queue.windows",
        "in_rooms = written and all(",
        "in_rooms = all(",
        1,
    ),
    Mutation(
        "the gate opens before the file leads to the room",
        "queue.windows",
        "elif written and not any(self._leads(name, window) for name, window in windows):",
        "elif not any(self._leads(name, window) for name, window in windows):",
        1,
        (
            (0, 300, "slow_disk", 0, 0),
            (0, 300, "slow_disk", 1, 0),
            (5, 0.1, "switchover", 2, 0),
            (35, 0.1, "switchover", 4, 0),
        ),
    ),
    Mutation(
        "a coordinator is clear before it has flushed",
        "queue.windows",
        "if in_rooms and (unable or (moved and flushed)):",
        "if in_rooms and (unable or moved):",
        1,
    ),
    Mutation(
        "the drain is left out",
        "queue.hold",
        "for step in (one.uncache, one.grow_out, one.close, one.drain):",
        "for step in (one.uncache, one.grow_out, one.close):",
        1,
    ),
)
"""What no world has found, because another part makes up for it.

Where the names of a coordinator queue too late, or it says too early that it is clear, the server that stops waits by
itself until no transaction of Citus is open on it, for as long as the drain may take (``own_stop``).
A name leaves its room for a server that is merely remembered only when its time is over, and then the room is closed:
whoever waits in it fails in either way.

An announced promotion makes names lead to primaries; so does the leader lock, which Patroni takes before it.
"""


OF_CORE = (
    Mutation(
        "a deposed primary takes names back",
        "routing.primary",
        "primaries = [seen for seen in claims if not _is_older(seen, led)]",
        "primaries = claims",
        0,
    ),
    Mutation(
        "a silent holder of the lock loses its names",
        "routing.primary",
        "_may_be(before.memory.primary, leader, states)",
        "False",
        0,
    ),
    Mutation(
        "Patroni's old word deposes a primary",
        "routing.primary",
        "return seen.timeline is not None and timeline is not None and seen.timeline < timeline",
        "return timeline is not None",
        0,
    ),
    Mutation(
        "the block forgets that a primary was demoted",
        "routing.decide",
        "primary_demoted=target.primary_demoted,",
        "primary_demoted=False,",
        0,
    ),
    Mutation(
        "the block does not say that a primary was demoted",
        "hosts.block",
        "if target.primary and target.primary_demoted:",
        "if False:",
        0,
    ),
    Mutation(
        "recovery is held by the pin of a standby's name",
        "citus.preconditions",
        "for group in others if group.name in decision.pins]",
        "for group in config.groups if group.name in decision.pins]",
        0,
    ),
    Mutation(
        "a standby is fit again below the limit of its lag",
        "routing.standby",
        "if lag is not None and before.lagging and lag >= limit / 2:",
        "if False:",
        0,
    ),
    Mutation("an excluded standby serves reads", "routing.assess", ", **trusted.excluded}", "}", 0),
    Mutation(
        "names do not return to the first standby",
        "routing.standby",
        "chosen = next(node for node in view.fit if node in view.healthy or node == current)",
        "chosen = current",
        0,
    ),
    # Where lag has a limit in seconds
    Mutation(
        "the limit of a lag in seconds does not count",
        "routing.standby",
        ", (lag_s, group.max_lag_s, False)):",
        ",):",
        0,
    ),
    Mutation(
        "the history is too short for a limit in seconds",
        "routing.lag",
        "2 * max(group.max_lag_s or 0.0, max_age_s)",
        "2 * max_age_s",
        0,
    ),
    Mutation(
        "the standby of an idle primary seems to fall behind",
        "routing.lag",
        "passed = bisect_right(lsns, seen.lsn, key=itemgetter(1))",
        "passed = bisect_right(lsns, seen.lsn - 1, key=itemgetter(1))",
        0,
    ),
    Mutation(
        "a lag in seconds includes the time before the primary went on",
        "routing.lag",
        "lag_s = max(0.0, seen.at - lsns[passed][0])",
        "lag_s = max(0.0, seen.at - lsns[passed - 1][0])",
        0,
    ),
    Mutation(
        "a lag in seconds is that since the agent's start",
        "routing.lag",
        "lag_s if passed or lag_s > group.max_lag_s else None",
        "lag_s",
        0,
    ),
    Mutation(
        "a standby whose lag in seconds is not known is fit",
        "routing.standby",
        " or (group.max_lag_s is not None and lag_s is None)",
        "",
        0,
    ),
    Mutation(
        "a lag in seconds is looked at with the next change",
        "routing.assess",
        "times_matter = is_limited(group)",
        "times_matter = group.max_lag_bytes is not None",
        0,
    ),
    # Where stops of standbys are announced
    Mutation(
        "a standby that stops is chosen for reads",
        "routing.queue",
        "if window is None or window.stage is not Stage.ROOM or window.role is not Role.STANDBY:",
        "if True:",
        0,
    ),
    Mutation(
        "reads do not wait for a standby that stops",
        "routing.queue",
        "if choice.address == FENCE and (choice.wanted_role is Role.STANDBY or not over):",
        "if False:",
        0,
    ),
    Mutation(
        "the stop of a standby is over while there is a primary",
        "routing.queue",
        "view.primary.seen if window.role is Role.PRIMARY else view.fresh.get(window.node)",
        "view.primary.seen",
        0,
    ),
    Mutation(
        "a window does not end with another run",
        "routing.queue",
        "if seen.identity != window.run:",
        "if False:",
        0,
    ),
)
"""Defects that are hunted in the small worlds alone."""

CORE: dict[str, int] = {
    "a silent holder of the lock loses its names": 471,
    "a deposed primary takes names back": 42,
    "Patroni's old word deposes a primary": 3,
    "silence counts as death": 0,
    "a silent standby is fenced": 0,
    "a silent primary is fenced": 0,
    "a demoted primary is held": 0,
    "names follow no role": 0,
    "a pin counts on a server in recovery": 57,
    "the primary is any node that answers": 0,
    "the own name is like others": 0,
    "the own name is forgotten with the server": 0,
    "recovery although pinned or paused": 96,
    "recovery on a primary that is not accepted": 0,
    "recovery without the leader lock": 12,
    "recovery without preconditions": 0,
    "the block forgets that a primary was demoted": 33,
    "the block does not say that a primary was demoted": 33,
    "an excluded standby serves reads": 77,
    "names do not return to the first standby": 44,
    "a pause keeps names on a server in recovery": 683,
    "a pin that was overtaken counts again": 454,
    "one of several primaries is taken": 444,
    "the leader lock does not count": 1,
    "an answer counts for ever": 382,
    "a refused login counts as death": 253,
    "a new database cluster is never accepted": 404,
    "a foreign primary needs no word of Patroni": 478,
    "the holder of the lock is no primary to be": 28,
    "names do not return from the fallback": 235,
    "with fallback all a name stays on a dead primary": 432,
    "the limit of a lag does not count": 656,
    "a standby is fit again below the limit of its lag": 656,
    "names do not queue": 392,
    "no stop is called off": 400,
    "a called off stop is noticed with the next change": 400,
    "recovery on unconfirmed primaries": 382,
    "recovery on old answers": 490,
    "recovery before the file is written": 170,
    "recovery before the flush": 170,
    "recovery is held by the pin of a standby's name": 468,
    "the lines below the block are lost": 321,
    "a new block takes the place of the whole file": 321,
    "a fenced name is no alert": 0,
    "foreign servers are members": 0,
    "the limit of a lag in seconds does not count": 95,
    "the history is too short for a limit in seconds": 207,
    "the standby of an idle primary seems to fall behind": 31,
    "a lag in seconds includes the time before the primary went on": 95,
    "a lag in seconds is that since the agent's start": 799,
    "a standby whose lag in seconds is not known is fit": 799,
    "a lag in seconds is looked at with the next change": 255,
    "a standby that stops is chosen for reads": 23,
    "reads do not wait for a standby that stops": 215,
    "the stop of a standby is over while there is a primary": 567,
    "a window does not end with another run": 23,
    "a standby that stopped never serves again": 39,
}
"""Those mutations that the small worlds around the pure core find, too, and the seed that does."""

WORLDS = 80
"""So many of the first worlds are in the tests, and break no rule by themselves."""

CORE_MODULES = ("routing.", "citus.preconditions", "hosts.block")
"""Where the pure core is."""


def _purge() -> None:
    for name in [*sys.modules]:
        if name.startswith(("resolver_agent", "tests.simulation")) and name != __name__:
            del sys.modules[name]


def _import(module: str, source: str, path: Path) -> None:
    """Import a module of the package from another source."""
    name = f"resolver_agent.{module}"
    parent, _, last = name.rpartition(".")
    package = importlib.import_module(parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    exec(compile(source, str(path), "exec"), made.__dict__)  # noqa: S102 -- our own source, but for one place
    setattr(package, last, made)


def find(
    mutation: Mutation | None, seeds: Sequence[int], *, within_s: float, of_core: bool = False
) -> tuple[int, str] | None:
    """Return the first seed whose world breaks a rule, and which one; None if none does in so much CPU time."""
    _purge()
    if mutation is not None:
        path = _PACKAGE / f"{mutation.module.replace('.', '/')}.py"
        source = path.read_text(encoding="utf-8")
        assert source.count(mutation.old) == 1, f"{mutation.name}: {source.count(mutation.old)} places"
        _import(mutation.module, source.replace(mutation.old, mutation.new), path)
    simulate = importlib.import_module(f"tests.simulation.{'core.' if of_core else ''}simulate")
    given = mutation.faults if mutation is not None and not of_core else None
    faults = None if given is None else [simulate.Fault(*one) for one in given]
    begun = time.process_time()
    for seed in seeds:
        if time.process_time() - begun > within_s:
            return None
        broken = simulate.run(seed, faults).broken
        if broken is not None:
            return seed, broken
    return None


def _hunt(mutations: Sequence[Mutation], *, of_core: bool) -> Iterator[str]:
    for one in mutations:
        begun = time.process_time()
        found = find(one, range(10_000), within_s=_HUNT_S, of_core=of_core)
        took_s = time.process_time() - begun
        where = f"seed {found[0]}: {found[1]}" if found is not None else "NOT FOUND"
        yield f"{one.name}: {where} ({took_s:.1f} s)"


def _check(mutations: Sequence[Mutation]) -> dict[str, tuple[int, str] | None]:
    """Return what the known seeds find."""
    found = {one.name: find(one, [one.seed], within_s=_HUNT_S) for one in mutations}
    for one in mutations:  # the program itself must break no rule there
        if (one.faults is not None or one.seed >= WORLDS) and find(
            one._replace(new=one.old), [one.seed], within_s=_HUNT_S
        ) is not None:
            found[one.name] = None
    return found


def _check_core(mutations: Sequence[Mutation]) -> dict[str, tuple[int, str] | None]:
    """Return what the known seeds of small worlds find."""
    return {
        one.name: find(one, [CORE[one.name]], within_s=_HUNT_S, of_core=True) for one in mutations if one.name in CORE
    }


def checked(*options: str) -> dict[str, str | None]:
    """Return what the known seeds find, in a process of its own: the mutations change the program."""
    command = [sys.executable, "-m", "tests.simulation.mutations", "--check", *options]
    output = subprocess.run(command, cwd=_PACKAGE.parent, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output))


def main(arguments: Sequence[str]) -> int:
    """Hunt, or check the known seeds and print what each finds as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutations")
    parser.add_argument("--check", action="store_true", help="run the known seeds alone")
    parser.add_argument("--core", action="store_true", help="in the small worlds around the pure core")
    parser.add_argument("--only", default="", metavar="WORDS", help="mutations whose names contain these words")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th from I on")
    options = parser.parse_args(arguments)
    those: tuple[Mutation, ...] = MUTATIONS if options.check else (*MUTATIONS, *UNSEEN)
    if options.core:
        those = tuple(one for one in (*OF_CORE, *MUTATIONS, *UNSEEN) if one.module.startswith(CORE_MODULES))
    mutations = [one for one in those if options.only in one.name][options.part[0] :: options.part[1]]
    if options.check:
        found = _check_core(mutations) if options.core else _check(mutations)
        json.dump({name: at[1] if at is not None else None for name, at in found.items()}, sys.stdout)
        return 0
    for line in _hunt(mutations, of_core=options.core):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
