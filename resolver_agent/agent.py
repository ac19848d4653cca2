"""The daemon: observe, decide, write, report; round after round.

Everything that decides is elsewhere (routing), as is everything that knows servers (monitor) or files (hostsblock).
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resolver_agent import __version__, config, control, lock, logs, status
from resolver_agent.hostsblock import HostsBlock
from resolver_agent.journal import Journal
from resolver_agent.model import Alert, Decision, Observations, Role
from resolver_agent.monitor import Monitor
from resolver_agent.probe import boottime
from resolver_agent.routing import decide, resume

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from resolver_agent.config import Config
    from resolver_agent.notify import Notifier

_log = logging.getLogger(__name__)

_BREATH_S = 1.0
"""How often the watchdog hears, at least, of a start that waits."""

_LAST_WRITE_S = 1.0
"""How long a stopping agent waits for the round under way."""


class Agent:
    """One agent, for one hosts file, from ``run()`` until it is told to stop."""

    def __init__(self, settings: Config, *, notifier: Notifier, passed: socket.socket | None = None) -> None:
        self._config = settings
        self._notifier = notifier
        self._passed = passed
        self._monitor = Monitor(on_local=self._look_at_file)
        self._block = HostsBlock(settings.hosts_file)
        self._journal = Journal()
        self._decision = Decision(groups={})
        self._reload_fault: Alert | None = None
        self._work: asyncio.Task[None] | None = None
        self._written = False
        self._stopping = False
        self._reloading = False

    async def run(self) -> None:
        """Keep the names right until SIGTERM or SIGINT; SIGHUP reads the configuration again.

        Raises:
            lock.LockedError: another agent keeps this file.
            lock.LockUnavailableError, control.ControlError: the runtime folder cannot be used.
        """
        handlers = {"status": self._status, "plan": self._plan, "refresh": self._refresh}
        path = str(Path(self._config.runtime_dir) / control.SOCKET_NAME)
        with lock.exclusive(self._config.runtime_dir):
            self._handle_signals()
            async with control.serve(handlers, path=path, passed=self._passed):
                _log.info("resolver-agent %s keeps %s, by %s", __version__, self._config.hosts_file, self._config.path)
                self._notifier.ready()
                self._work = asyncio.get_running_loop().create_task(self._keep())
                try:
                    await self._work
                except asyncio.CancelledError:
                    if not self._stopping:
                        raise
                finally:
                    self._notifier.stopping()
                    await self._monitor.close()
            _log.info("stopped; %s stays as it is", self._config.hosts_file)

    async def _keep(self) -> None:
        self._monitor.watch(self._config)
        await self._remember()
        await self._first_look()
        _spare_the_collector()
        while not self._stopping:
            await self._round()
            await self._pause()

    async def _remember(self) -> None:
        """Go on from what the block says. Without it nothing is decided: what a held name held would be forgotten."""
        while not self._stopping:
            remembered = self._block.recall()
            self._journal.decision(self._decision, self._alerts(), boottime(), written=False)
            if remembered is not None:
                self._decision = resume(self._config, remembered)
                return
            self._notifier.watchdog()
            await asyncio.sleep(self._patience_s(_BREATH_S))

    async def _first_look(self) -> None:
        """Wait until every node was asked: what is decided on half the evidence may have to be taken back."""
        left, due = 0, 0.0
        while not self._stopping and not self._monitor.asked_all:
            self._monitor.changed.clear()
            before, left = left, sum(state.latest is None for state in self._monitor.nodes.values())
            if left != before:
                due = boottime() + self._config.timeout_s
            if boottime() <= due:  # a look that gets on is alive, one that does not is for the watchdog to end
                self._notifier.watchdog()
            await self._news_within(self._patience_s(_BREATH_S))
            self._monitor.check()

    async def _round(self) -> None:
        """One pass from observations to a verified file."""
        self._monitor.changed.clear()
        self._monitor.check()
        if self._reloading:
            self._reload()
        begun = boottime()
        seen = self._observations()
        self._decision = decide(self._decidable(seen), seen, self._decision, begun)
        took_s = boottime() - begun
        self._written = await self._block.put(self._decision.targets, begun)
        _log.debug("%s; decided in %.1f ms: %s", seen.nodes, took_s * 1000, self._decision.groups)
        self._journal.nodes(seen.nodes)
        self._journal.decision(self._decision, self._alerts(), begun, written=self._written)
        self._notifier.status(f"{len(self._config.groups)} names, {len(self._journal.alerts)} alerts")
        self._notifier.watchdog()
        # With many names deciding takes its time: half of it is for the probes.
        await asyncio.sleep(took_s)

    async def _pause(self) -> None:
        """Wait for news, for the time at which the decision may change by itself, or for the file to change."""
        due = min(self._decision.recheck_at, boottime() + self._patience_s(self._config.interval_s))
        await self._news_within(max(0.0, due - boottime()))

    def _look_at_file(self) -> None:
        if self._block.disturbed():
            self._monitor.changed.set()

    def _patience_s(self, seconds: float) -> float:
        """Return ``seconds``, or less where the watchdog wants to hear sooner."""
        return min(seconds, self._notifier.watchdog_s / 2) if self._notifier.watchdog_s else seconds

    async def _news_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._monitor.changed.wait(), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            return False
        return True

    def _observations(self, assumed: Role | None = None) -> Observations:
        return Observations(nodes=self._monitor.nodes, local=self._monitor.local, assumed=assumed)

    def _decidable(self, seen: Observations) -> Config:
        """Return the configuration without the names that a reload brought and that have nodes yet to be asked."""
        groups = tuple(
            group
            for group in self._config.groups
            if group.name in self._decision.groups or all(seen.nodes[node].latest is not None for node in group.nodes)
        )
        return self._config if groups == self._config.groups else dataclasses.replace(self._config, groups=groups)

    def _alerts(self) -> list[Alert]:
        reload_fault = [self._reload_fault] if self._reload_fault is not None else []
        return [*self._decision.alerts, *self._block.alerts, *reload_fault]

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._ask_reload)

    def _stop(self) -> None:
        self._stopping = True
        self._monitor.changed.set()
        # A write that hangs does not hold up the end: killed at any moment it leaves the old file or the new one.
        if self._work is not None:
            asyncio.get_running_loop().call_later(_LAST_WRITE_S, self._work.cancel)

    def _ask_reload(self) -> None:
        self._reloading = True
        self._monitor.changed.set()

    def _reload(self) -> None:
        """Read the configuration again; a bad one changes nothing and is an alert until a good one comes."""
        self._reloading = False
        self._notifier.reloading()
        errors: Iterable[str] = ()
        try:
            new = config.load(self._config.path)
            fixed = [key for key in ("hosts_file", "runtime_dir") if getattr(new, key) != getattr(self._config, key)]
            errors = [f"{new.path}: {key}: changes at a restart only" for key in fixed]
        except config.ConfigError as error:
            errors = error.errors
        self._reload_fault = None
        if errors:
            text = "; ".join(errors)
            self._reload_fault = Alert(f"config:{text}", f"the configuration stays as it was: {text}")
        else:
            if (new.log_format, new.log_level) != (self._config.log_format, self._config.log_level):
                logs.configure(new.log_format, new.log_level)
            self._config = new
            self._monitor.watch(new)
            _log.info("read %s again", new.path)
            for warning in new.warnings:
                _log.warning("%s", warning)
        self._notifier.ready()

    def _status(self, _request: dict[str, Any]) -> dict[str, Any]:
        now = boottime()
        seen = self._observations()
        shown = decide(self._decidable(seen), seen, self._decision.afresh(), now)
        found = status.report(
            self._config.groups,
            shown,
            seen.nodes,
            local=seen.local,
            alerts=self._journal.alerts.values(),
            now=now,
        )
        return {
            "version": __version__,
            "pid": os.getpid(),
            "config": self._config.path,
            "hosts_file": self._config.hosts_file,
            "written": self._written,
            "trampled": self._block.trampled,
            **found,
        }

    def _plan(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer what would be decided now, for an assumed role where one is given."""
        if request.get("config") != fingerprint(self._config) or not self._monitor.asked_all:
            return {"look_yourself": True}
        assumed = next((role for role in Role if role.value == request.get("role")), None)
        decision = decide(self._config, self._observations(assumed), self._decision, boottime())
        return status.plan(decision, self._monitor.nodes, self._monitor.local)

    def _refresh(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._monitor.refresh()
        return {"refreshed": True}


def _spare_the_collector() -> None:
    """Keep Python's garbage collector from what stays, and from running often: of cycles there are next to none.

    With thousands of nodes it held up a round now and then for a quarter of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def fingerprint(settings: Config) -> str:
    """Return what tells whether two processes have the same configuration, without telling what it is."""
    values = [(key, str(getattr(settings, key))) for key in settings.__slots__ if key not in ("path", "warnings")]
    return hashlib.sha256(repr(values).encode()).hexdigest()
