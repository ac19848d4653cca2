"""Citus on the simulated coordinators: sessions with cached connections, two-phase commit, flush and recovery."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.citus.flush import Flushed, FlushError
from resolver_agent.citus.recovery import Recovered, objection, refusal
from resolver_agent.citus.session import LOCK_S
from resolver_agent.routing.state import FENCE
from tests.simulation.gate import NO_RESULT, NODES, is_closed
from tests.simulation.world import QUICK, Data

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tests.simulation.process import Process
    from tests.simulation.world import Host, World

    Steps = Generator[float, None, None]
    """What a client does: it yields how long each step takes, in seconds."""

WORKERS = ("wk1", "wk2")
RECORDS = "pg_dist_transaction"
"""What else an operator may lock: who writes needs it, and recovery."""
COPY, LATE, LONG, WIDE = 0.15, 0.25, (0.3, 0.4), 0.85
"""Which writes, by a number by chance, are made by COPY, come to the workers late, take long there, and need a second
connection to each."""
_WAIT_S = 30.0
"""``citus.node_connection_timeout``."""
_POLL_S = 0.02
_PLAN_S = 0.01
"""How long after its begin a command comes to the gate, at most."""
_LONG_S, _ROW_S = 0.7, 0.3
LATE_READS = 0.3
"""The share of reads that connect late, in worlds where there are any."""
_SILENCE_S = 2.0
_WRITER, _READER = "writer", "reader on {}"
"""The database roles of clients: those who read on standbys have their own, as README advises."""
_ALONE_S = 15.0


class Failed(Exception):  # noqa: N818 -- what a client gets
    """A statement failed; the client is told."""


@dataclasses.dataclass(slots=True, eq=False)
class Session:
    """A client's session on a coordinator, and the connections that it keeps: by name the host and the server's run.

    ``inside``: its command, begun at ``begun_at``, has passed the gate. ``open_on`` are the workers on which it has a
    transaction open. ``caches``: it keeps its connections at the end of the command.

    ``sent`` is where its command has sent an intermediate result, by name: the host and the server's run. It is found
    there by the ``role`` of the command and the ``number`` of its transaction. Each coordinator counts from 1, so two
    of them may have the same number: here those of clients with the same number always have. ``rivals`` are those
    whose results were in the same place. ``on_standby``: the command began in recovery.
    """

    host: Host
    run: int
    pid: int = 0
    number: int = 0
    role: str = ""
    on_standby: bool = False
    sent: dict[str, tuple[Host, int]] = dataclasses.field(default_factory=dict)
    rivals: dict[Host, Session] = dataclasses.field(default_factory=dict)
    flushed: int = 0
    caches: bool = True
    is_busy: bool = False
    begun_at: float = 0.0
    inside: bool = False
    open_on: set[Host] = dataclasses.field(default_factory=set)
    cache: dict[str, tuple[Host, int]] = dataclasses.field(default_factory=dict)


def _hop(world: World) -> float:
    return world.between(0.0005, 0.004)


@contextlib.contextmanager
def command(world: World, session: Session) -> Iterator[None]:
    """Run a command: the configuration is read again before it, and at no other time (R5)."""
    server = session.host.server
    if session.flushed != server.flushed:
        session.flushed = server.flushed
        session.cache.clear()
    session.caches = not server.uncached
    session.begun_at = world.now
    session.on_standby = server.recovery
    session.role = _READER.format(session.host) if server.recovery and not world.readers_share else _WRITER
    server.sessions.append(session)
    try:
        yield
    finally:
        if session in server.sessions:
            server.sessions.remove(session)
        session.inside = False
        session.open_on.clear()
        _take_results_away(session)
        if not session.caches:
            session.cache.clear()


def _pass_the_gate(world: World, session: Session) -> Steps:
    """Take the lock on ``pg_dist_node`` that every distributed statement needs, and keep it to the end."""
    yield world.between(0.0, _PLAN_S if world.random.random() < QUICK else 10 * _PLAN_S)
    while (is_closed(session.host, world.now) or NODES in session.host.server.locks) and _alive(session):
        yield _POLL_S
    session.inside = True


def _alive(session: Session) -> bool:
    server = session.host.server
    return session.host.up and server.up and server.run == session.run


def _connection(
    world: World, session: Session, name: str, *, is_copy: bool = False, is_new: bool = False
) -> Generator[float, None, tuple[Host, int, bool]]:
    """Return a connection to a worker: the cached one, or a new one to what the name resolves to now.

    COPY fails on a cached one whose server has ended meanwhile. ``is_new``: the session needs another one beside it.
    """
    cached = session.cache.get(name) if not is_new else None
    if cached is not None:
        target, run = cached
        if target.up and target.server.up and target.server.run == run and world.talks(session.host, target):
            return target, run, True
        del session.cache[name]
        if is_copy:
            raise Failed(f"{target}: the cached connection is lost")
    since, address = world.now, world.lookup(session.host, name)
    if address is not None and address.startswith("127."):
        target_in_room = yield from _wait_in_room(world, session, name, address, since)
        address = target_in_room
    if address is None or address == FENCE:
        raise Failed(f"{name} is fenced")
    target = world.by_address[address]
    yield _hop(world)
    if not _alive(session):
        raise Failed("the coordinator has gone")
    if not world.talks(session.host, target) or target.server.stopped:
        yield _SILENCE_S
        raise Failed(f"{name}: no answer")
    if not (target.server.up and target.server.serving):
        raise Failed(f"{name}: refused")
    session.cache[name] = (target, target.server.run)
    return target, target.server.run, False


def _wait_in_room(
    world: World, session: Session, name: str, address: str, since: float
) -> Generator[float, None, str | None]:
    """Wait in a waiting room, and return whom it forwards to."""
    while world.now - since < _WAIT_S:
        if not _alive(session):
            raise Failed("the coordinator has gone")
        room = world.room(session.host, name, address)
        if room is None:
            world.judge.waited(session.host, name, world.now - since)
            raise Failed(f"{name}: nobody listens in the waiting room")
        if room.target is not None:
            world.judge.waited(session.host, name, world.now - since)
            return room.target
        yield _POLL_S
    world.judge.waited(session.host, name, world.now - since)
    raise Failed(f"{name}: waited in vain")


def _committed(world: World, host: Host, run: int) -> Generator[float, None, None]:
    """Wait until a commit on a server is acknowledged."""
    waited_s = 0.0
    while True:
        server = host.server
        if not (host.up and server.up and server.run == run and not server.recovery):
            raise Failed("the server has gone")
        if world.commits(host):
            return
        if waited_s > _WAIT_S:
            raise Failed("no standby has confirmed it")
        pause_s = max(0.05, waited_s / 4)
        yield pause_s
        waited_s += pause_s


def write(world: World, session: Session) -> Steps:
    """Write one row to each worker, in one distributed transaction."""
    host, server = session.host, session.host.server
    number = world.new_number()
    gid = f"citus_0_{session.pid}_{number}"
    chance = world.random.random()
    parts: list[tuple[str, Host, int]] = []
    with command(world, session):
        yield from _pass_the_gate(world, session)
        if not _alive(session) or server.recovery or server.stopped:
            return
        server.active.add(gid)
        try:
            yield from _reach_workers(world, session, chance, parts)
            yield from _prepare_and_commit(world, session, gid, number, parts)
        except Failed as why:
            world.judge.failed(host, str(why))
            for _, target, run in parts:
                usable = target.server.run == run and world.talks(host, target) and target.server.is_primary
                if _alive(session) and usable and not any(record[0] == gid for record in server.data.records):
                    _resolve(world, target, gid, commit=False)
        finally:
            if server.run == session.run:
                server.active.discard(gid)


def _reach_workers(world: World, session: Session, chance: float, parts: list[tuple[str, Host, int]]) -> Steps:
    """Open a transaction on each worker: at once, late, by COPY, for long, over more than one connection."""
    if chance < COPY:  # its first row decides which connections it uses
        yield world.between(0.0, _ROW_S)
    elif chance < LATE:
        yield world.between(0.1, _LONG_S)
    for name in WORKERS:
        target, run, was_cached = yield from _connection(world, session, name, is_copy=chance < COPY)
        world.judge.reached(session.host, name, target, was_cached=was_cached, writes=True)
        if target.server.recovery:
            session.cache.pop(name, None)
            raise Failed(f"{name}: {target} is in recovery")
        session.open_on.add(target)
        _send_result(session, name, target)
        parts.append((name, target, run))
    if LONG[0] <= chance < LONG[1]:
        yield world.between(0.1, _LONG_S)
    for name, target, _ in parts if chance < WIDE else ():
        _read_result(world, session, name, target)
    for name in WORKERS if chance >= WIDE else ():
        target, _, _ = yield from _connection(world, session, name, is_new=True)
        _read_result(world, session, name, target)
    _use_own_result(world, session)


def _prepare_and_commit(
    world: World, session: Session, gid: str, number: int, parts: list[tuple[str, Host, int]]
) -> Steps:
    host, server = session.host, session.host.server
    for _, target, run in parts:
        yield _hop(world)
        if not _alive(session):
            raise Failed("the coordinator has gone")
        if target.server.run != run or not target.server.is_primary or not world.reaches(host, target):
            raise Failed(f"{target}: the connection is lost")
        world.change(target, number, Data.prepare, gid, number)
        yield from _committed(world, target, run)
        if not world.reaches(target, host):
            raise Failed(f"{target}: no answer")
    while RECORDS in server.locks and _alive(session):
        yield _POLL_S
    if not _alive(session) or server.recovery:
        raise Failed("the coordinator has gone")
    world.change(host, number, Data.record, {(gid, name) for name, _, _ in parts})
    yield from _committed(world, host, session.run)
    for _, target, run in parts:
        yield _hop(world)
        if not _alive(session):
            return
        if target.server.run == run and target.server.is_primary and world.reaches(host, target):
            _resolve(world, target, gid, commit=True)
    world.judge.acknowledged(number)


def _resolve(world: World, target: Host, gid: str, *, commit: bool) -> bool:
    """End a prepared transaction. While no standby confirms that, it is seen as prepared by everybody else."""
    number = target.server.data.prepared.get(gid) if world.commits(target) else None
    if number is not None:
        world.change(target, number, Data.resolve, gid, commit=commit)
    return number is not None


def read(world: World, session: Session) -> Steps:
    """Read from each worker."""
    host = session.host
    with command(world, session):
        yield from _pass_the_gate(world, session)
        if not _alive(session) or host.server.stopped:
            return
        try:
            for name in WORKERS:
                target, run, was_cached = yield from _connection(world, session, name)
                session.open_on.add(target)
                world.judge.reached(host, name, target, was_cached=was_cached, writes=False)
                _send_result(session, name, target)
                yield _hop(world)
                if not (target.server.up and target.server.run == run):
                    raise Failed(f"{target}: the connection is lost")  # noqa: TRY301 -- as all other failures
            is_late = world.further is not None and world.further.random() < LATE_READS
            if is_late:
                yield world.between(0.1, _LONG_S)
            for name in WORKERS:
                yield from _read(world, session, name, is_late=is_late)
            _use_own_result(world, session)
        except Failed as why:
            world.judge.failed(host, str(why))


def _read(world: World, session: Session, name: str, *, is_late: bool) -> Steps:
    """Read what the result that was sent to a worker is joined with, over the same connection or another one."""
    target, run = session.sent[name]
    if not (target.server.up and target.server.run == run):
        raise Failed(f"{target}: the connection is lost")
    if is_late:
        target, _, _ = yield from _connection(world, session, name, is_new=True)
    _read_result(world, session, name, target)


# --- intermediate results


def _send_result(session: Session, name: str, target: Host) -> None:
    """Send the intermediate result of a command to a node: another one of the same role and number is overwritten."""
    session.sent[name] = (target, target.server.run)
    if not _alive(session):
        return
    results, place = target.server.results, (session.role, session.number)
    other = results.get(place)
    if other is not None and other.host is not session.host and _alive(other):  # else that connection is closed
        session.rivals[target], other.rivals[target] = other, session
    results[place] = session


def _read_result(world: World, session: Session, name: str, target: Host) -> None:
    """Read it on a node. A worker that has none says so, and the statement fails; that of another one looks the same.

    Of two in the same place, whoever ends first takes both away. Where the server that it was sent to has ended, the
    connection is lost, and the command fails for that.
    """
    sent_to, run = session.sent[name]
    if sent_to.server.run != run or not _alive(session):
        return
    found = target.server.results.get((session.role, session.number))
    if found is session:
        return
    if target in session.rivals:
        world.judge.mixed_up(session, session.rivals[target], target)
    else:
        world.judge.lacks_result(session, name, target)
    if found is None:
        raise Failed(f"{target}: {NO_RESULT}")


def _take_results_away(session: Session) -> None:
    """Remove the results of a command that ends."""
    for target, run in session.sent.values():
        results, place = target.server.results, (session.role, session.number)
        found = results.get(place)
        is_there = found is session or (target in session.rivals and _alive(session))
        if found is not None and is_there and target.server.run == run:
            del results[place]
            if found is not session:
                found.rivals[target] = session
    session.sent.clear()
    session.rivals.clear()


def _use_own_result(world: World, session: Session) -> None:
    """Send it to the own name, and read it here: without it the rows are missing, and nothing fails."""
    host, name = session.host, session.host.group.name
    if not _alive(session):
        return
    target, run = session.cache.get(name, (None, 0))
    if target is None or not target.server.up or target.server.run != run:
        address = world.lookup(host, name)
        target = world.by_address.get(address or "")
        if target is None:
            raise Failed(f"{name} is fenced")
        if not (world.talks(host, target) and target.server.up and target.server.serving):
            raise Failed(f"{name}: refused")
        session.cache[name] = (target, target.server.run)
    if target is not host:
        world.judge.reads_no_own_result(session, target)


# --- what the agent calls instead of sessions on its local server


async def flush(process: Process) -> Flushed | None:
    """Stand for ``citus.flush.flush``."""
    world, host = process.world, process.host
    server = host.server
    run = server.run
    until = world.now + _ALONE_S
    while process.flushes_alone:
        if world.now > until:
            raise FlushError("another flush has been under way for 15 s")
        await process.sleep(0.01)
    if server.stopped:
        await process.sleep(_SILENCE_S)
        raise FlushError("no answer within 2 s")
    await process.sleep(world.between(0.002, 0.03) if not host.is_slow else world.between(0.2, 1.1))
    if not (server.up and server.serving and server.run == run):
        raise FlushError("error on the local PostgreSQL: Connection refused")
    server.flushed += 1
    server.uncached = False
    server.flushed_at = world.now
    await process.sleep(world.between(0.002, 0.01))
    return Flushed(base="")


def _reached(world: World, host: Host) -> dict[str, tuple[str | None, Host | None]]:
    """Return which servers Citus reaches from a coordinator, as ``resolver_agent.reached()`` says, and their hosts."""
    found: dict[str, tuple[str | None, Host | None]] = {}
    for name in WORKERS:
        address = world.lookup(host, name)
        target = world.by_address.get(address or "")
        silent = target is None or not world.talks(host, target) or target.server.stopped
        if target is None or silent or not (target.server.up and target.server.serving):
            found[f"{name}:5432"] = None, None
        else:
            kind = "standby" if target.server.recovery else "primary"
            if target.group.name != name:
                kind = "stranger"
            identity = target.server.identity
            found[f"{name}:5432"] = f"{kind} {identity.system_id} {identity.started_us}", target
    return found


class _Pass:
    """One pass of 2PC recovery on a coordinator."""

    def __init__(self, process: Process, still: Callable[[], str | None]) -> None:
        self._process = process
        self._world = process.world
        self._host = process.host
        self._still = still
        self._run = process.host.server.run
        self.recovered = 0

    async def run(self) -> None:
        """Recover, or raise ``_EndedError`` and change nothing here."""
        await self._wait_for(NODES)
        await self._step()
        before = {node: answer for node, (answer, _) in _reached(self._world, self._host).items()}
        if (why := refusal(before)) is not None:
            raise _EndedError("fault", f"not begun: {why}")
        self._check()
        await self._wait_for(RECORDS)
        removed: set[tuple[str, str]] = set()
        warnings = []
        for name in WORKERS:
            await self._step()
            self._check()
            target = _reached(self._world, self._host)[f"{name}:5432"][1]
            if target is None:
                warnings.append(f"transaction recovery cannot connect to {name}:5432")
            else:
                removed |= self._resolve_on(name, target)
        await self._step()
        after = {node: answer for node, (answer, _) in _reached(self._world, self._host).items()}
        if (why := objection(before, after, warnings)) is not None:
            raise _EndedError("fault", f"rolled back: {why}")
        self._check()
        if not self._world.commits(self._host):
            raise _EndedError("fault", "the local PostgreSQL does not commit")
        if removed:
            self._world.change(self._host, None, Data.forget, removed)

    def _resolve_on(self, name: str, target: Host) -> set[tuple[str, str]]:
        """Resolve what is prepared on a worker, and return the commit records that are no longer needed.

        On a standby ``pg_prepared_xacts`` is empty: whoever reads it there takes every transaction for resolved.
        """
        server = self._host.server
        found = {} if target.server.recovery else dict(target.server.data.prepared)
        self._world.judge.recovers(self._host, name, target)
        if found and not self._world.commits(target):
            raise _EndedError("fault", "canceling statement due to statement timeout")
        for gid in found:
            if (gid, name) in server.data.records:
                self.recovered += _resolve(self._world, target, gid, commit=True)
            elif gid not in server.active:
                self.recovered += _resolve(self._world, target, gid, commit=False)
        records = {record for record in server.data.records if record[1] == name}
        return {record for record in records if record[0] in found or record[0] not in server.active}

    async def _step(self) -> None:
        await self._process.sleep(_hop(self._world) if not self._host.is_slow else self._world.between(0.02, 0.1))
        server = self._host.server
        if not (server.is_primary and server.run == self._run) or server.stopped:
            raise _EndedError("fault", "the local PostgreSQL has gone")

    async def _wait_for(self, relation: str) -> None:
        """Wait until no operator has locked it."""
        until = self._world.now + LOCK_S
        while relation in self._host.server.locks:
            if self._world.now > until:
                raise _EndedError("fault", "canceling statement due to lock timeout")
            await self._process.sleep(_POLL_S)

    def _check(self) -> None:
        if (why := self._still()) is not None:
            raise _EndedError("withdrawn", why)


class _EndedError(Exception):
    """A pass has ended early: the field of ``Recovered`` that says so, and why."""


async def recover_all(process: Process, still: Callable[[], str | None]) -> list[Recovered]:
    """Stand for ``citus.recovery.recover_all``: a pass, with the program's own ``refusal`` and ``objection``."""
    if process.host.group.name != "cn":
        await process.sleep(0.003)
        return []
    one, begun = _Pass(process, still), process.world.now
    try:
        await one.run()
    except _EndedError as why:
        kind, words = why.args
        return [Recovered(database="citus", recovered=one.recovered, **{kind: words})]
    finally:
        process.world.judge.pass_ended(process.host, process.world.now - begun)
    return [Recovered(database="citus", recovered=one.recovered)]
