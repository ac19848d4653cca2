"""The judge itself: what it must not see, and what it must."""

from __future__ import annotations

import dataclasses
import random
import types
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.routing.observation import Identity, Role
from tests.simulation.judge import FOREIGN, Judge
from tests.simulation.simulate import Setting, configuration
from tests.simulation.world import Data, Host, Shape, World

if TYPE_CHECKING:
    from resolver_agent.routing.observation import Observation

LINE = "# BEGIN resolver-agent\n{}\twk1\n# END resolver-agent\n"


class _Scene:
    """A coordinator that is a primary, whose agent was told of the two servers of a worker."""

    def __init__(self) -> None:
        self.world = world = World(0)
        self.judge = world.judge = Judge(world)
        leaders = [group.leader for group in world.groups if group.leader is not None]
        self.host, self.worker = leaders[0], leaders[1]
        setting = Setting.of(random.Random(0))  # noqa: S311 -- any will do
        observer = types.SimpleNamespace(announced=None, config=configuration(world, self.host, setting))
        process: Any = types.SimpleNamespace(agent=types.SimpleNamespace(_observer=observer))
        self.host.process = process
        self.told(self.host, world.probe(self.host, self.host, is_local=True), is_local=True)
        for target in self.worker.group.hosts:
            self.told(target, self.answer(target))

    def answer(self, target: Host) -> Observation:
        """Return what a probe says now."""
        return self.world.probe(self.host, target, is_local=False)

    def told(self, target: Host, seen: Observation, *, is_local: bool = False) -> None:
        """Have the agent told."""
        self.judge.observed(self.host, target, seen, is_local=is_local)


@pytest.mark.parametrize("comes", ["while it writes", "before it decides"])
@pytest.mark.parametrize("rule", ["R2", "A7"])
def test_an_answer_that_comes_while_the_file_is_written(rule: str, comes: str) -> None:
    """A write is judged by what was known when it was decided: an answer that comes meanwhile could not count."""
    scene = _Scene()
    seen = scene.answer(scene.worker)
    if rule == "R2":
        seen = dataclasses.replace(seen, result=Role.STANDBY)
    else:
        seen = dataclasses.replace(seen, identity=Identity(FOREIGN, 1))
    basis = scene.judge.basis(scene.host)
    scene.told(scene.worker, seen)
    if comes == "before it decides":
        basis = scene.judge.basis(scene.host)
    content = LINE.format(scene.worker.address).encode()
    scene.judge.file_written(scene.host, content, content, basis)
    broken = scene.judge.broken
    assert broken is None if comes == "while it writes" else broken is not None and broken.startswith(rule)


@pytest.mark.parametrize("why", ["it is late", "it is rolled back", "it is late, and another one rolled back"])
def test_rows_that_are_lost(why: str) -> None:
    """Asynchronous replication may lose what had not come to the promoted standby. It excuses no other row."""
    world = World(0, Shape(lags={"wk1": 2.0}))
    judge = world.judge = Judge(world)
    leaders = [group.leader for group in world.groups[1:] if group.leader is not None]
    rows = (1, 2)
    for host in leaders:
        for row in rows:
            world.change(host, row, Data.prepare, f"gid {row}", row)
    world.scheduler.run(world.now + 3.0)
    if "rolled back" in why:
        world.change(leaders[0], 2, Data.resolve, "gid 2", commit=False)
        world.scheduler.run(world.now + 3.0)
    for host in leaders:
        for row in host.server.data.prepared.copy().values():
            world.change(host, row, Data.resolve, f"gid {row}", commit=True)
    if "late" not in why:
        world.scheduler.run(world.now + 3.0)
    world.die(leaders[0], "it crashes")
    world.promote(leaders[0].group.others(leaders[0])[0], "it has the lock")
    for row in rows:
        judge.acknowledged(row)
        for group in world.groups[1:2]:  # as recovery does in the end
            world.change(group.primaries[0], row, Data.resolve, f"gid {row}", commit=False)
    judge._judge_rows()
    if why == "it is late":
        assert (judge.broken, judge.lost) == (None, len(rows))
    else:
        assert judge.broken == "row 2 was acknowledged and is lost on a worker"
