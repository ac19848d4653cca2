"""The daemon: observe, decide, write, flush; round after round.

This module has the loop, signals and reloads. ``observe`` probes the nodes, ``routing`` decides, ``hosts`` writes the
file, ``citus`` flushes and recovers, and ``requests`` answers on the control socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
from typing import TYPE_CHECKING

from resolver_agent import __version__, log
from resolver_agent.changes import promotion
from resolver_agent.changes.changes import Changes
from resolver_agent.citus.maintenance import CitusMaintenance
from resolver_agent.config.difference import differences
from resolver_agent.config.load import ConfigError, load_again
from resolver_agent.control import client, overrides, server
from resolver_agent.control.overrides import Overrides
from resolver_agent.hosts.managed_block import HostsBlock
from resolver_agent.log import ChangeLog
from resolver_agent.metrics.figures import Figures
from resolver_agent.metrics.http import HttpServer
from resolver_agent.observe.observer import Observer
from resolver_agent.queue.message import parse
from resolver_agent.queue.own_stop import OwnStop
from resolver_agent.queue.windows import Windows
from resolver_agent.requests import AgentState, Requests
from resolver_agent.routing.decide import confirm, decide, resume
from resolver_agent.routing.decision import Decision
from resolver_agent.routing.state import Alert, AlertCode
from resolver_agent.system import lock
from resolver_agent.system.clock import boottime
from resolver_agent.system.foreign import plain
from resolver_agent.system.pacing import backoff_s
from resolver_agent.system.threads import BackgroundCall

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Sequence

    from resolver_agent.config.model import Config, Node
    from resolver_agent.system.systemd import Notifier

_log = logging.getLogger(__name__)

_BREATH_S = 1.0
"""How often, at least, a waiting start notifies the watchdog."""

_LAST_WRITE_S = 1.0
"""How long a stopping agent waits for the round under way."""

_SHORT_LOOK_S = 0.5
"""How long an announced promotion waits for nodes that have not been asked yet, right after the start."""

_EVIDENCE_S = 0.1
"""How soon after asking every node again a round looks at the answers."""


_WRITE_S = 0.5
"""How long a round waits for the hosts file. A write that takes longer goes on beside the rounds, and is an alert."""

_RELOAD_HUNG_S = 5.0

_FIRST_RETRY_S, _RETRY_MAX_S = 0.1, 2.0
"""The back-off after a round that failed."""

_QUIET_S = 3.0
"""How long after the last failure its alert lasts."""

_ERRORS_SHOWN = 10

_DESCRIPTORS = 65536
_DESCRIPTORS_BESIDE_NODES = 128
"""Most of them for the control socket; a node needs one, and a second one while it is asked for its silence."""


class Agent:
    """One agent, for one hosts file, from ``run()`` until a signal stops it."""

    def __init__(self, config: Config, *, notifier: Notifier, passed: socket.socket | None = None) -> None:
        self._config = config
        self._notifier = notifier
        self._passed = passed
        self._observer = Observer(on_local=self._look_at_file, on_message=self._hear)
        self._maintenance = CitusMaintenance(changed=self._observer.changed, ask_again=self._ask_again)
        self._block = HostsBlock(config.hosts_file)
        self._windows = Windows(self._observer)
        self._own_stop = OwnStop(self._observer, self._windows, decision=lambda: self._decision)
        self._change_log = ChangeLog()
        self._changes = Changes(config)
        self._promotions = promotion.Promotions()
        self._figures = Figures(boottime())
        self._overrides = Overrides(overrides.path_of(config.state_dir), changed=self._observer.changed)
        self._requests = Requests(
            self._state,
            decision=lambda: self._decision,
            observer=self._observer,
            block=self._block,
            maintenance=self._maintenance,
            windows=self._windows,
            stops=self._own_stop,
            changes=self._changes,
            figures=self._figures,
            overrides=self._overrides,
        )
        self._http = HttpServer(self._requests.over_http, changed=self._observer.changed.set)
        self._decision = Decision(groups={})
        self._reader = BackgroundCall(self._observer.changed)
        self._reload_begun = 0.0
        self._reload_fault: Alert | None = None
        self._defect: Alert | None = None
        self._noted_at = 0.0
        self._failures = 0
        self._work: asyncio.Task[None] | None = None
        self._stopping = False
        self._reloading = False

    async def run(self) -> None:
        """Keep the names right until SIGTERM or SIGINT; SIGHUP reads the configuration again.

        Raises:
            lock.LockedError: another agent runs with this hosts file or runtime folder.
            lock.LockUnavailableError, control.ControlError: the runtime folder cannot be used.
        """
        path = client.socket_path(self._config.runtime_dir)
        with lock.exclusive(self._config.runtime_dir, self._config.hosts_file):
            self._handle_signals()
            self._get_descriptors()
            async with server.serve(self._requests.handlers, path=path, passed=self._passed):
                _log.info(
                    "resolver-agent %s keeps %s; configuration: %s",
                    __version__,
                    self._config.hosts_file,
                    self._config.path,
                )
                self._changes.start()
                self._notifier.ready()
                self._http.listen(self._config.http)
                self._work = asyncio.get_running_loop().create_task(self._keep())
                try:
                    await self._work
                except asyncio.CancelledError:
                    if not self._stopping:
                        raise
                finally:
                    self._notifier.stopping()
                    await self._http.close()
                    await self._windows.stop()
                    await self._observer.close()
                    await self._changes.close()
                    await self._overrides.close()
            _log.info("stopped; %s stays as it is", self._config.hosts_file)

    async def _keep(self) -> None:
        self._observer.watch(self._config)
        for step in self._remember, self._first_look:
            while not self._stopping and not await self._done(step):
                pass
        _spare_the_collector()
        while not self._stopping:
            if await self._done(self._round):
                await self._pause()

    async def _done(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Report whether a step succeeded. A failure is an alert, and costs a while: the next try may succeed.

        Only rounds that succeed notify the watchdog. So an agent that goes on failing is started anew.
        """
        try:
            await step()
        except Exception as error:  # noqa: BLE001 -- a defect, or the system is short of something
            self._note(error, "the names are not kept up to date")
            self._failures += 1
            self._figures.failed_rounds += 1
            with contextlib.suppress(Exception):  # it may be what failed
                self._change_log.decision(self._decision, self._alerts(), boottime(), written=False)
            await asyncio.sleep(backoff_s(self._failures, first_s=_FIRST_RETRY_S, max_s=_RETRY_MAX_S))
            return False
        self._failures = 0
        if boottime() - self._noted_at > _QUIET_S:
            self._defect = None
        return True

    def _note(self, error: Exception, consequence: str) -> None:
        """Make an error an alert for a while, with one traceback in the log however often it comes."""
        text = f"{consequence}: {type(error).__name__}: {plain(str(error))}; it is tried again"
        if self._defect is None or self._defect.text != text:
            _log.error("something failed that should not", exc_info=error)
        self._defect, self._noted_at = Alert(AlertCode.DEFECT, text), boottime()

    async def _remember(self) -> None:
        """Resume from the block in the file.

        The agent decides nothing without the block, because it would forget what each held name points to.
        """
        while not self._stopping:
            remembered = await self._block.recall([group.name for group in self._config.groups])  # A10
            self._change_log.decision(self._decision, self._alerts(), boottime(), written=False)
            if remembered is not None:
                age_s = self._block.found_age_s
                self._decision = resume(self._config, remembered, written_at=boottime() - age_s)
                self._windows.resume(remembered, self._config, age_s=age_s)
                self._changes.resume(remembered)
                self._promotions.resume(self._decision)
                await self._overrides.load()
                return
            self._live()
            await asyncio.sleep(self._patience_s(_BREATH_S))

    async def _first_look(self) -> None:
        """Wait until every node was asked, and pins and a pause were read.

        A decision on half the evidence may have to be reversed.
        """
        left, due = 0, 0.0
        # A name may point to a node that only Patroni knows. The wait for Patroni is short: SQL alone has to do.
        patroni_until = boottime() + 2 * self._config.timeout_s
        while not self._stopping and not self._observer.pressed(_SHORT_LOOK_S):
            heard = self._observer.heard_all or boottime() > patroni_until
            if self._observer.asked_all and heard and not self._overrides.is_awaited:
                break
            self._observer.changed.clear()
            before, left = left, sum(state.latest is None for state in self._observer.nodes.values())
            if left != before:
                due = boottime() + self._config.timeout_s
            # Without progress the watchdog may end the process; the wait for the file of pins has an end of its own.
            if boottime() <= due or self._overrides.is_awaited:
                self._live()
            await self._observer.news_within(self._patience_s(_SHORT_LOOK_S))
            self._tick()
        first = decide(self._observer.config, self._observer.observations(), self._decision, boottime())
        await self._observer.ask_patroni(first, within_s=min(self._config.timeout_s, _SHORT_LOOK_S))

    def _tick(self) -> None:
        try:
            self._overrides.tick(self._decision.overtaken)
            self._observer.pins, self._observer.pause = self._overrides.pins, self._overrides.pause
            self._observer.tick()
            self._windows.tick()
        except Exception as error:  # noqa: BLE001 -- a defect that concerns one server; the others are observed
            self._note(error, "a server or its Patroni is not observed")

    async def _round(self) -> None:
        """One pass: from observations to a verified file, then to Citus and the log."""
        # What it is woken by came before now, unless time alone brings the change.
        seen_at = self._observer.changed.since if self._observer.changed.is_set() else boottime()
        self._observer.changed.clear()
        self._tick()
        self._reload()
        begun = boottime()
        seen = self._observer.observations()
        decision = decide(self._observer.decidable(self._decision, seen), seen, self._decision, begun)
        if not self._windows.prepare(decision):  # a name needs a waiting room that there cannot be
            seen = self._observer.observations()
            decision = decide(self._observer.decidable(self._decision, seen), seen, self._decision, begun)
        took_s = boottime() - begun
        written = await self._block.put(decision.targets, begun, within_s=_WRITE_S)
        # No await before the maintenance's tick: decision, file and what Citus is told must be of the same round.
        before, self._decision = self._decision, decision
        self._observer.track(decision)
        self._maintenance.tick(self._observer, decision, written=written, puts=self._block.trampled, now=boottime())
        self._windows.track(decision, written=written, flushed=self._maintenance.flushed)
        self._track_changes(seen_at, written=written)
        _log.debug("%s; decided in %.1f ms: %s", seen.nodes, took_s * 1000, decision.groups)
        self._change_log.nodes(seen.nodes)
        self._change_log.decision(decision, self._alerts(), begun, written=written)
        self._count(before, begun=begun)
        self._notifier.status(f"{len(self._config.groups)} names, {len(self._change_log.alerts)} alerts")
        self._live()
        await self._requests.round_over()
        # With many names a decision takes time: the probes get as much.
        await asyncio.sleep(took_s)

    def _track_changes(self, seen_at: float, *, written: bool) -> None:
        """Have the names that this round has moved told, and counted, and those that are flushed by now."""
        flush, now = self._maintenance.flush_status, boottime()
        self._changes.track(
            self._decision.targets, seen_at=seen_at, now=now, written=written, flushed=flush.flushed, citus=flush.citus
        )
        self._promotions.track(
            promotion.Round(
                decision=self._decision,
                seen_at=seen_at,
                now=now,
                announced_at=self._observer.announced_at,
                written=written,
                flushed=flush.flushed,
                citus=flush.citus if self._observer.config.citus else False,
                recovered_at=self._maintenance.recoverer.succeeded_at,
            )
        )

    def _count(self, before: Decision, *, begun: float) -> None:
        try:
            self._figures.take_round(before, self._decision, begun=begun, now=boottime())
        except Exception as error:  # noqa: BLE001 -- a defect that concerns the metrics alone
            self._note(error, "the metrics are wrong")

    def _live(self) -> None:
        """Note that a round or a step of the start has succeeded."""
        self._figures.alive_at = boottime()
        self._notifier.watchdog()

    def _ask_again(self) -> None:
        """Ask every node again, and look at the answers soon."""
        self._observer.refresh()
        asyncio.get_running_loop().call_later(_EVIDENCE_S, self._observer.changed.set)

    async def _pause(self) -> None:
        """Wait for an event, for the time at which the decision may change by itself, or for the file to change."""
        due = min(self._decision.recheck_at, boottime() + self._patience_s(self._config.interval_s))
        await self._observer.news_within(max(0.0, due - boottime()))

    def _hear(self, over: Node, pid: int, payload: str) -> None:
        """Take what another agent said over its session to ``over``, whose process is ``pid`` there."""
        message = parse(payload)
        if message is None:
            _log.debug("a message over %s is not understood: %s", over, plain(payload))
            return
        self._windows.hear(over, message)
        self._own_stop.hear(pid, message)

    def _look_at_file(self) -> None:
        if self._block.disturbed():
            self._observer.changed.set()

    def _patience_s(self, seconds: float) -> float:
        """Return ``seconds``, or less where the watchdog has to be notified sooner."""
        return min(seconds, self._notifier.watchdog_s / 2) if self._notifier.watchdog_s else seconds

    def _state(self) -> AgentState:
        return AgentState(
            config=self._config,
            decision=self._decision,
            alerts=tuple(self._alerts()),
            lasting=tuple(self._change_log.alerts.values()),
        )

    def _alerts(self) -> list[Alert]:
        return [
            *self._decision.alerts,
            *self._block.alerts,
            *self._observer.alerts,
            *self._maintenance.alerts,
            *self._changes.alerts,
            *self._overrides.alerts,
            *([self._http.alert] if self._http.alert is not None else []),
            *([self._defect] if self._defect is not None else []),
            *([self._reload_fault] if self._reload_fault is not None else []),
        ]

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._ask_reload)

    def _get_descriptors(self) -> None:
        """Raise the limit of file descriptors as far as is allowed, and say where it is too low."""
        limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit != resource.RLIM_INFINITY:
            limit = max(limit, _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS))
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        needed = _DESCRIPTORS_BESIDE_NODES + 2 * sum(len(group.nodes) for group in self._config.groups)
        if resource.RLIM_INFINITY != limit < needed:
            _log.warning("only %d file descriptors are allowed, and up to %d needed: raise LimitNOFILE", limit, needed)

    def _stop(self) -> None:
        self._stopping = True
        self._observer.changed.set()
        # A write that hangs does not delay the end: whenever it is killed, it leaves the old file or the new one.
        if self._work is not None:
            asyncio.get_running_loop().call_later(_LAST_WRITE_S, self._work.cancel)

    def _ask_reload(self) -> None:
        self._reloading = True
        self._observer.changed.set()

    def _reload(self) -> None:
        """Read the configuration again when asked to, off the event loop: its file may be one that hangs.

        A faulty one changes nothing, and is an alert until a valid one is read.
        """
        ended = self._reader.take()
        if ended is not None:
            self._take_config(ended)
            self._notifier.ready()
        hung = self._reader.under_way and boottime() - self._reload_begun > _RELOAD_HUNG_S
        if self._reloading and (hung or not self._reader.under_way):
            self._reloading = False
            self._notifier.reloading()
            self._reload_begun = boottime()
            self._reader.begin(load_again, self._config)
        elif hung:
            self._keep_config([f"{self._config.path}: it cannot be read within {_RELOAD_HUNG_S:g} s"])
            self._notifier.ready()

    def _take_config(self, ended: asyncio.Future[Config]) -> None:
        try:
            new = ended.result()
        except ConfigError as error:
            self._figures.take_reload(done=False)
            self._keep_config(error.errors)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the names have to be kept
            self._figures.take_reload(done=False)
            _log.error("the configuration cannot be read", exc_info=error)
            self._keep_config([f"{self._config.path}: {type(error).__name__}: {plain(str(error))}"])
        else:
            self._reload_fault = None
            self._figures.take_reload(done=True)
            if (new.log_format, new.log_level) != (self._config.log_format, self._config.log_level):
                log.configure(new.log_format, new.log_level)
            old, self._config = self._config, new
            self._observer.watch(new)
            self._http.listen(new.http)
            self._changes.configure(new)
            self._decision = confirm(self._decision)
            _log.info("read %s again: %s", new.path, "; ".join(differences(old, new)) or "nothing has changed")
            for warning in new.warnings:
                _log.warning("%s", warning)

    def _keep_config(self, errors: Sequence[str]) -> None:
        more = [f"and {len(errors) - _ERRORS_SHOWN} more errors"] if len(errors) > _ERRORS_SHOWN else []
        shown = (*errors[:_ERRORS_SHOWN], *more)
        # `of`: other errors begin another alert.
        self._reload_fault = Alert(AlertCode.CONFIG, f"the configuration stays as it was: {'; '.join(shown)}", of=shown)


def _spare_the_collector() -> None:
    """Exempt long-lived objects from Python's garbage collector, and run it rarely: there are hardly any cycles.

    With thousands of nodes it delayed a round now and then by a quarter of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
