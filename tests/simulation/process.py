"""One process of the agent in a simulated world: the real ``Agent`` with other sockets, files, threads and clocks.

``replaced()`` makes the replacements, each at the one place where the program calls what is replaced. All code that
decides, waits, writes, flushes, recovers and talks is the program's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import types
from typing import TYPE_CHECKING, Any
from unittest import mock

from resolver_agent import agent as agent_module
from resolver_agent import by_hand
from resolver_agent.agent import Agent
from resolver_agent.citus.maintenance import Flusher, Recoverer
from resolver_agent.control import before_stop, pre_promote
from resolver_agent.control import overrides as overrides_module
from resolver_agent.hosts import managed_block
from resolver_agent.hosts.atomic_file import Outcome, Snapshot, State, WriteError
from resolver_agent.hosts.managed_block import HostsBlock
from resolver_agent.observe import observer as observer_module
from resolver_agent.queue import evidence, own_stop
from resolver_agent.queue import name_rooms as name_rooms_module
from resolver_agent.system import clock, state_file, threads
from tests.simulation.blocking import Worker
from tests.simulation.citus import flush, recover_all
from tests.simulation.gate import SimulatedRooms, ask_patroni, look_at_server, queue_replacements
from tests.simulation.loop import ProcessLoop
from tests.simulation.sight import SimulatedMonitor, SimulatedPatroniWatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from resolver_agent.citus.flush import Flushed
    from resolver_agent.config.model import Config
    from resolver_agent.hosts.atomic_file import Signature
    from resolver_agent.hosts.block import Conflict
    from resolver_agent.routing.state import Target
    from tests.simulation.judge import Basis
    from tests.simulation.world import Host, World

_DISK_S = (0.0005, 0.003)
_SLOW_DISK = 80
"""By so much a slow disk is slower."""


_PYTHON_S, _SLOW_PYTHON_S = (0.02, 0.1), (3.05, 3.4)
"""How long Python takes to start, for a hook."""
ASK_MS = 5500
"""When the hook before a stop asks no more: ``control.before_stop``."""


class _Writer:
    """Stands for ``hosts.atomic_file.HostsFileWriter``: the file of one simulated host."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def signature(self) -> Signature | None:
        """Return what changes with each write."""
        host = self._process.host
        return (0, host.hosts_version, len(host.hosts), int(host.hosts_written_at * 1e9), 0)

    def read(self) -> Snapshot:
        """Return the file."""
        return Snapshot(self._process.host.hosts, self.signature())

    read_settled = read

    def sweep(self) -> tuple[str, ...]:
        """Find nothing that a killed writer left."""
        return ()

    def update(self, transform: Callable[[bytes], bytes]) -> Outcome:
        """Replace the content; a killed writer leaves the old file or the new one."""
        host, world = self._process.host, self._process.world
        if host.hosts_fails:
            raise WriteError("/etc/hosts", "cannot be written", OSError(28, "No space left on device"))
        new = transform(host.hosts)
        if new == host.hosts:
            return Outcome(State.UNCHANGED, self.read())
        at, host.kill_at_write = host.kill_at_write, None
        if at == "before":
            self._process.die("right before it writes the hosts file")
            raise OSError
        world.write_hosts(host, new, self._process.basis)
        if at == "after":
            self._process.die("right after it has written the hosts file")
            raise OSError
        return Outcome(State.REPLACED, self.read())


class _Block(HostsBlock):
    """The block, of which the judge is told what was known when a write began."""

    def __init__(self, path: str, process: Process) -> None:
        super().__init__(path)
        self._process = process
        self._bases: dict[tuple[Target, ...], Basis | None] = {}

    async def put(self, targets: Sequence[Target], now: float, *, within_s: float = 1.0) -> bool:
        """Write, or wait for the write under way and then write."""
        wanted = tuple(targets)
        if self._write is None:
            self._bases.clear()
        if self._write is None or wanted != self._wanted:
            self._bases[wanted] = self._process.world.judge.basis(self._process.host)
        return await super().put(targets, now, within_s=within_s)

    def _update(self, wanted: tuple[Target, ...]) -> tuple[Outcome, tuple[Conflict, ...]]:
        self._process.basis = self._bases.get(wanted)
        return super()._update(wanted)


class _Notifier:
    """Stands for systemd."""

    watchdog_s = None

    def ready(self) -> None:
        """Take it in."""

    stopping = reloading = watchdog = ready

    def status(self, _text: str) -> None:
        """Take it in."""


class SimulatedAgent(Agent):
    """The agent, without the rounds that could change nothing because no server has said anything new."""

    def __init__(self, config: Config, process: Process) -> None:
        notifier: Any = _Notifier()
        with (
            mock.patch.object(observer_module, "Monitor", lambda **given: SimulatedMonitor(process, **given)),
            mock.patch.object(observer_module, "PatroniWatch", lambda **given: SimulatedPatroniWatch(process, **given)),
            mock.patch.object(managed_block, "HostsFileWriter", return_value=_Writer(process)),
            mock.patch.object(agent_module, "HostsBlock", lambda path: _Block(path, process)),
            mock.patch.object(name_rooms_module, "Rooms", return_value=SimulatedRooms(process)),
        ):
            super().__init__(config, notifier=notifier)
        self._process = process
        changed = self._observer.changed

        async def do_flush(_config: Config) -> Flushed | None:
            return await flush(process)

        self._maintenance.flusher = Flusher(
            changed=changed,
            do_flush=do_flush,  # type: ignore[arg-type]
            do_keep=lambda _config: None,
        )
        self._maintenance.recoverer = Recoverer(
            changed=changed,
            ask_again=self._ask_again,
            do_recover=lambda _config, still: recover_all(process, still),  # type: ignore[arg-type,return-value]
        )

    async def keep(self) -> None:
        """Work until killed."""
        await self._keep()

    async def ask(self, command: str, **request: Any) -> dict[str, Any]:
        """Return the answer to a request on the control socket."""
        answer: Any = self._requests.handlers[command]({"peer": "Patroni", **request})
        return await answer if inspect.isawaitable(answer) else answer  # type: ignore[no-any-return]

    def reload(self) -> None:
        """Take a SIGHUP."""
        self._ask_reload()

    @property
    def is_by_hand(self) -> bool:
        """Whether the operator has pinned or paused something."""
        return bool(self._overrides.pins) or self._overrides.pause is not None

    @property
    def hosts_file_is_disturbed(self) -> Callable[[], None]:
        """What a probe of the local server calls."""
        return self._look_at_file

    async def _pause(self) -> None:
        """Wait as the agent does, but not for answers that only say the same again."""
        decision, now = self._decision, self._process.world.now
        due = min(decision.recheck_at, now + self._config.interval_s)
        waits = self._observer.windows or self._observer.announced is not None or self._decision.paused
        recovery = self._maintenance.recoverer.status(now)
        tries = recovery.under_way or recovery.blocked_by not in (None, "the local PostgreSQL is not a primary")
        lags = any(one.server.behind_since is not None for one in self._process.world.hosts)
        if not (waits or tries or lags) and self._block.says(decision.targets) and self._maintenance.flushed:
            views = decision.views.values()
            lost = any(view.memory.lost_at is not None for view in views)
            later = (now + (1.0 if lost else 10.0), *(view.pending_until for view in views if view.pending_until > now))
            due = min(*later, self._process.monitor.expires_at(self._config.max_age_s))
        await self._observer.news_within(max(0.001, due - now))  # virtual time does not pass by itself


class Process:
    """One run of the agent on a host, from its start until it is killed."""

    monitor: SimulatedMonitor
    patroni: SimulatedPatroniWatch
    rooms: SimulatedRooms

    def __init__(self, world: World, host: Host, config: Config) -> None:
        self.world = world
        self.host = host
        self.pid = world.new_number()
        self.begun = world.now
        self.flushes_alone = False
        self.basis: Basis | None = None
        """What was known when the write of the hosts file that is under way was decided."""
        self._workers: list[Worker] = []
        self.loop = ProcessLoop(world.scheduler, disk_is_slow=lambda: host.disk_is_slow)  # type: ignore[abstract]  # asyncio calls no more of it
        self.agent = SimulatedAgent(config, self)
        self.loop.create_task(self.agent.keep())

    # --- for what runs in it

    def call_after(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        """Call something in this process later."""
        scheduler = self.world.scheduler
        scheduler.at(scheduler.now + seconds, call, *arguments, of=self.loop)

    async def in_thread(self, function: Callable[[], Any]) -> Any:
        """Run what blocks a thread, and return its result."""
        worker = Worker(self, function)
        self._workers.append(worker)
        return await worker.future

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        future = self.loop.create_future()
        self.call_after(seconds, _set_result, future, None)
        await future

    # --- for the world

    def server_changed(self, host: Host, *, died: bool) -> None:
        """Something can be told of a server that was not so before."""
        if self.loop.is_stopped:
            self.call_after(0.0, lambda: self.monitor.server_changed(host, died=died))
        else:
            self.monitor.server_changed(host, died=died)

    def patroni_changed(self, host: Host) -> None:
        """Something can be told by a Patroni that was not so before."""
        if self.loop.is_stopped:
            self.call_after(0.0, self.patroni.patroni_changed, host)
        else:
            self.patroni.patroni_changed(host)

    def has_session(self, host: Host) -> bool:
        """Report whether it has an open session on a server."""
        return self.monitor.has_session(host)

    def told(self, host: Host, pid: int, payload: str) -> None:
        """Take a notification from a session on a server."""
        self.monitor.told(host, pid, payload)

    def before_promotion(self, done: Callable[[str], None]) -> None:
        """Run the ``pre_promote`` hook."""
        start_s = self.world.between(*_PYTHON_S)
        self._run_hook(pre_promote.judge, lambda: self.agent.ask("pre-promote"), done, "pre-promote", start_s)

    def before_stop(self, done: Callable[[str], None]) -> None:
        """Run the ``before_stop`` hook."""
        start_s = self.world.between(*(_SLOW_PYTHON_S if self.host.python_is_slow else _PYTHON_S))
        since_ms = round(1000 * start_s)

        def ask() -> Awaitable[dict[str, Any]]:
            return self.agent.ask("before-stop", within_ms=ASK_MS - since_ms, since_ms=since_ms)

        self._run_hook(before_stop.judge, ask, done, "before-stop", start_s)

    def _run_hook(
        self,
        judge: Callable[[dict[str, Any]], Any],
        ask: Callable[[], Awaitable[dict[str, Any]]],
        done: Callable[[str], None],
        name: str,
        start_s: float,
    ) -> None:
        async def run() -> None:
            await self.sleep(start_s)
            begun = self.world.now
            outcome = judge(await ask())
            self.world.judge.hook_answered(self.host, name, well=outcome.well, took_s=self.world.now - begun)
            self.world.scheduler.after(0.001, done, f"{name}: {outcome.text}")

        self.call_after(0.0, lambda: self.loop.create_task(run()))

    def ask(self, command: str, *, done: Callable[[bool], None] = lambda _: None, **request: Any) -> None:
        """Have an operator type a command; ``done`` is called with whether it was."""

        async def run() -> None:
            answer = await self.agent.ask(command, **request)
            self.world.tell(f"{self.host}: {command}: {answer.get('error') or 'done'}")
            done(not answer.get("error"))

        self.call_after(0.0, lambda: self.loop.create_task(run()))

    def reload(self) -> None:
        """Send SIGHUP."""
        self.call_after(0.0, self.agent.reload)

    def file_changed(self) -> None:
        """Another program has written the hosts file."""
        self.call_after(self.world.between(0.0, 0.1), self.agent.hosts_file_is_disturbed)

    def decide(self) -> None:
        """Have it decide soon."""
        self.call_after(0.0, self.agent._observer.changed.set)

    def stop(self) -> None:
        """Send SIGSTOP."""
        self.loop.is_stopped = True

    def go_on(self) -> None:
        """Send SIGCONT."""
        self.loop.go_on()

    def kill(self) -> None:
        """Send SIGKILL."""
        self.loop.kill()
        for worker in self._workers:
            worker.kill()
        self.rooms.process_ended()

    def die(self, where: str) -> None:
        """Be killed at this step of its own, and start anew as systemd does."""
        self.world.tell(f"the agent on {self.host} is killed {where}")
        self.world.restart_agent(self.host, self.world.between(0.3, 2.0))

    @property
    def defects(self) -> list[str]:
        """What went wrong that should not."""
        defect = self.agent._defect
        return [*self.loop.defects, *([defect.text] if defect is not None else [])]


def _start(function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
    """Stand for ``system.threads.start``: what would take a thread is done a little later, and at once."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ProcessLoop)
    future = loop.create_future()
    takes_s = _DISK_S[1] * ((loop.scheduler.now * 1e3) % 1.0) + _DISK_S[0]
    if loop.disk_is_slow() and not inspect.iscoroutinefunction(function):
        takes_s *= _SLOW_DISK
    loop.call_later(takes_s, _do, loop, future, function, arguments)
    return future


def _do(
    loop: ProcessLoop, future: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    try:
        result = function(*arguments)
    except Exception as error:  # noqa: BLE001 -- it is raised where the future is awaited
        _set_exception(future, error)
        return
    if inspect.iscoroutine(result):
        loop.create_task(result).add_done_callback(lambda task: _settle(future, task))
    else:
        _set_result(future, result)


def _settle(future: asyncio.Future[Any], task: asyncio.Task[Any]) -> None:
    error = task.exception()
    if isinstance(error, Exception):
        _set_exception(future, error)
    else:
        _set_result(future, task.result())


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _set_result(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


class _Worlds:
    """The world that runs now."""

    current: World


@contextlib.contextmanager
def replaced(world: World) -> Iterator[None]:
    """Give the program this world's clock, threads and disk, and no log."""
    _Worlds.current = world
    kept: dict[str, bytes] = {}

    def now(_clock: int = 0) -> float:
        return world.scheduler.now

    def wall() -> float:
        return world.scheduler.now + world.wall_offset_s

    steady = types.SimpleNamespace(clock_gettime=now, monotonic=now, CLOCK_BOOTTIME=0, time=wall)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        for where, name, stand_in in (
            (clock, "time", steady),
            (managed_block, "time", steady),
            (overrides_module, "time", steady),
            (by_hand, "time", steady),
            (
                own_stop,
                "secrets",
                types.SimpleNamespace(token_hex=lambda _count: f"{world.random.getrandbits(64):016x}"),
            ),
            (threads, "start", _start),
            (agent_module, "load_again", world.reread),
            (agent_module, "_spare_the_collector", lambda: None),
            (state_file, "read", lambda path, *, most_bytes: kept.get(path, b"")[:most_bytes]),
            (state_file, "write", kept.__setitem__),
            *queue_replacements(world),
            (evidence, "_look", look_at_server(world)),
            (evidence, "_ask", ask_patroni(world)),
        ):
            stack.enter_context(mock.patch.object(where, name, stand_in))
        try:
            yield
        finally:
            logging.disable(before)
