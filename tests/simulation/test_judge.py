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
from tests.simulation.world import Host, World

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
