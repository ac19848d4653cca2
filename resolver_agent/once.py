"""A single pass: what ``once`` and ``--dry-run`` do, with the agent's own code from observations to the file."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from resolver_agent.citus import flush
from resolver_agent.config.load import fingerprint
from resolver_agent.control import client, overrides, report
from resolver_agent.hosts import block
from resolver_agent.hosts.atomic_file import HostsFileWriter
from resolver_agent.observe.observer import Observer
from resolver_agent.routing.decide import decide, resume
from resolver_agent.system import lock
from resolver_agent.system.clock import boottime
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from resolver_agent.config.model import Config
    from resolver_agent.routing.observation import Role
    from resolver_agent.routing.state import Target

_AGAIN_S = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """What one pass found: the targets of the names, how the file would change, and what was wrong.

    ``unasked`` are the nodes that could not be asked, with the reason; ``left_out`` the names that get no address.
    """

    targets: tuple[Target, ...]
    old: bytes
    new: bytes
    alerts: tuple[str, ...]
    unasked: tuple[str, ...]
    left_out: tuple[str, ...]


def look(config: Config, *, role: Role | None) -> Pass:
    """Return what a pass would do, for the local role or the one given, and change nothing.

    A running agent with the same configuration is asked for its plan; otherwise every node is asked once, and again for
    a moment where one answer does not tell the lag of a standby.

    Raises:
        HostsFileError: the hosts file cannot be read.
        BlockError: the markers in it do not make one block.
    """
    old = HostsFileWriter(config.hosts_file).read().content
    plan = _ask_agent(config, role) or asyncio.run(_look_alone(config, role, old))
    targeted = {target.name for target in plan.targets}
    left_out = tuple(group.name for group in config.groups if group.name not in targeted)
    return Pass(plan.targets, old, block.render(old, plan.targets), plan.alerts, plan.unasked, left_out)


def write(config: Config, found: Pass) -> None:
    """Write what the pass found to the file, and flush the connections that Citus has cached (R5).

    Raises:
        lock.LockedError: an agent runs with this hosts file or runtime folder.
        lock.LockUnavailableError: the runtime folder cannot be used.
        HostsFileError: the file cannot be written.
        FlushError: the file is written, but sessions may keep old connections.
    """
    with lock.exclusive(config.runtime_dir, config.hosts_file):
        HostsFileWriter(config.hosts_file).update(lambda content: block.render(content, found.targets))
        if config.citus:
            flush.flush(config)


def _ask_agent(config: Config, role: Role | None) -> report.Plan | None:
    """Return what a running agent would decide; None if none runs, or it has another configuration or no plan yet."""
    try:
        answer = client.ask_running(config.runtime_dir, "plan", role=role and role.value, config=fingerprint(config))
        return report.from_json(report.Plan, answer)
    except client.ControlError:
        return None


async def _look_alone(config: Config, role: Role | None, content: bytes) -> report.Plan:
    observer = Observer()
    faults: tuple[str, ...] = ()
    try:
        observer.pins, observer.pause = overrides.to_boottime(overrides.read(overrides.path_of(config.state_dir)))
    except OSError as error:
        faults = (f"{plain(str(error))}; no name is pinned or paused",)
    observer.watch(config)
    try:
        await observer.look()
        # A single pass does not know for how long a node has been healthy, so it applies no delay.
        groups = tuple(dataclasses.replace(group, failback_delay_s=0.0) for group in observer.config.groups)
        at_once = dataclasses.replace(observer.config, groups=groups)
        decision = resume(at_once, block.recall(content, [group.name for group in config.groups]))
        for _ in range(2):  # only the first decision tells which Patroni is the local one
            seen = observer.observations(role)
            decision = decide(at_once, seen, decision, boottime())
            await observer.ask_patroni(decision, within_s=config.timeout_s)
        until = boottime() + config.max_age_s
        while any(view.awaits_lag for view in decision.views.values()) and boottime() < until:
            observer.refresh()
            await observer.news_within(_AGAIN_S)
            observer.changed.clear()
            seen = observer.observations(role)
            decision = decide(at_once, seen, decision, boottime())
        plan = report.plan(decision, seen.nodes, seen.local if config.has_local else None)
        return dataclasses.replace(plan, alerts=(*plan.alerts, *faults))
    finally:
        await observer.close()
