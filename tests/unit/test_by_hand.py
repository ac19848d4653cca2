"""What the operator is told: what a pin would come to is decided before it is taken."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from resolver_agent.by_hand import ByHand
from resolver_agent.config.model import Route
from resolver_agent.control import server
from resolver_agent.control.overrides import LONGEST_S, Overrides, path_of
from resolver_agent.routing.decision import Decision
from resolver_agent.routing.observation import Observations
from tests.unit.builders import Agent, config, dead, group, primary, standby
from tests.unit.patroni.builders import in_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from resolver_agent.config.model import Config
    from resolver_agent.observe.observer import Observer

CN, A, B, C = "10.0.0.1", "10.0.1.1", "10.0.1.2", "10.0.1.3"


class Seen:
    """An observer that has seen what an agent has."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.agent.config

    def observations(self) -> Observations:
        """Return what is known now."""
        agent = self.agent
        return Observations(nodes=dict(agent.states), local=agent.local, pins=dict(agent.pins), pause=agent.pause)

    def decidable(self, _decision: Decision, _seen: Observations) -> Config:
        """Return all names."""
        return self.agent.config


class Operator:
    """Somebody at the control socket of an agent beside a standby; wk1 has its primary at A."""

    def __init__(self, folder: Path) -> None:
        made = Agent(config(group("cn", CN), group("wk1", A, B, C)), now=1.0)
        made.see({CN: standby(), A: primary(), B: standby(), C: standby()})
        self.agent = made.see_local(standby(), address=CN).decide()
        self.kept = Overrides(path_of(str(folder / "state")), changed=asyncio.Event())
        self.by_hand = ByHand(
            self.kept,
            observer=cast("Observer", Seen(self.agent)),
            decision=lambda: self.agent.decision,
            written=lambda: True,
            until=self.round,
        )

    async def round(self, done: Callable[[], bool], _within_s: float) -> None:
        """Make one round of the agent, which must be enough."""
        self.agent.pins, self.agent.pause = dict(self.kept.pins), self.kept.pause
        self.agent.decide()
        assert done()

    async def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Return the answer."""
        if not self.kept.loaded:
            await self.kept.load()
        return await self.by_hand.handlers[command]({"peer": "process 42 of user 0", **arguments})

    async def pin(self, address: str, **arguments: object) -> dict[str, Any]:
        """Return the answer to a pin of wk1."""
        return await self.ask("pin", **{"name": "wk1", "address": address, "for_s": 60, "reason": "", **arguments})


@in_loop
async def test_a_pin(tmp_path: Path) -> None:
    """The name leads there when it is answered; a second pin takes its place, and unpin lets the name decide again."""
    one = Operator(tmp_path)
    told = await one.pin(C, reason="\x1b[1mrebuild\n")
    until = told.pop("until")
    reason = "\\x1b[1mrebuild"
    text = f"wk1 → {C} (pinned until {until} ({reason}))"
    assert told == {"kept": True, "written": True, "ignored": None, "target": text}
    [shown] = one.by_hand.pins(one.agent.decision)
    assert (shown.name, shown.address, shown.wanted_role, shown.until) == ("wk1", C, "standby", until)
    assert (shown.reason, shown.ignored) == (reason, None)
    assert (await one.pin(B, name="WK1."))["target"].startswith(f"wk1 → {B} (pinned until")
    one.agent.see({A: dead(), B: primary(timeline=8)})
    await one.round(lambda: True, 0)
    [shown] = one.by_hand.pins(one.agent.decision)
    assert shown.ignored == f"{B} was last seen as a primary, and `fallback` is none"
    assert await one.ask("unpin", name="wk1") == {"pinned": True, "kept": True, "target": f"wk1 → {C} (standby)"}
    assert await one.ask("unpin", name="wk1") == {"pinned": False, "kept": True, "target": f"wk1 → {C} (standby)"}
    assert await one.ask("unpin", name="\x1b") == {"pinned": False, "kept": True, "target": ""}
    await one.kept.close()


REFUSED: dict[str, tuple[str, dict[str, object], str]] = {
    "a primary": (A, {}, f"wk1 is not pinned to {A}: {A} was last seen as a primary, and `fallback` is none"),
    "by force, too": (A, {"force": True}, "was last seen as a primary"),
    "another name's server": (CN, {"force": True}, f"{CN} is a server of other names"),
    "the own name": (CN, {"name": "cn"}, "it is the local server's own name"),
    "no node": ("10.9.9.9", {}, f"10.9.9.9 is the address of none of its nodes ({A}, {B}, {C}); --force pins it"),
    "not the word for it": ("10.9.9.9", {"force": "yes"}, "--force pins it"),
    "no address": ("wk1-b", {}, "wk1-b is no address that a name can have"),
    "the fence": ("255.255.255.255", {"force": True}, "is no address that a name can have"),
    "no text": (cast("str", 7), {}, "nothing is no address that a name can have"),
    "no such name": (B, {"name": "wk7"}, "there is no name 'wk7': did you mean `wk1`?"),
    "no name": (B, {"name": None}, "there is no name '': expected one of cn, wk1"),
    **{
        f"no time: {wrong!r}": (B, {"for_s": wrong}, "the time must be from 1s to 168h")
        for wrong in (None, "30m", True, 0, -1, 0.5, LONGEST_S + 1, 10**400)
    },
}


@pytest.mark.parametrize(("address", "arguments", "why"), REFUSED.values(), ids=REFUSED)
def test_a_pin_that_is_refused(address: str, arguments: dict[str, object], why: str, tmp_path: Path) -> None:
    """Nothing is pinned, and the answer says why."""

    @in_loop
    async def check() -> None:
        one = Operator(tmp_path)
        told = await one.pin(address, **arguments)
        assert set(told) == {"error"}
        assert why in told["error"]
        assert (one.kept.pins, one.kept.alerts) == ({}, ())

    check()


@in_loop
async def test_a_pin_right_after_the_start(tmp_path: Path) -> None:
    """Nothing is known yet by which it could be judged."""
    one = Operator(tmp_path)
    one.agent.decision = Decision(groups={})
    assert await one.pin(C) == {"error": "wk1 is not pinned: its servers were not all asked yet; try again"}


@in_loop
async def test_a_pin_by_force(tmp_path: Path) -> None:
    """An address where no node is known may be right."""
    one = Operator(tmp_path)
    assert (await one.pin("10.9.9.9", force=True))["target"].startswith("wk1 → 10.9.9.9 (pinned until")
    await one.kept.close()


@in_loop
async def test_a_pause(tmp_path: Path) -> None:
    """Names stay from the answer on, until they are told to move again."""
    one = Operator(tmp_path)
    told = await one.ask("pause", for_s=3600, reason="new switches")
    assert (told["kept"], told["until"]) == (True, one.by_hand.pause and one.by_hand.pause.until)
    one.agent.see({B: dead()}).decide()
    assert one.agent.address("wk1") == B
    assert await one.ask("resume") == {"paused": True, "kept": True}
    assert one.agent.address("wk1") == C
    assert await one.ask("resume") == {"paused": False, "kept": True}
    assert await one.ask("pause", for_s="long") == {"error": "the time must be from 1s to 168h"}
    await one.kept.close()


@in_loop
async def test_a_state_folder_that_cannot_be_used(tmp_path: Path) -> None:
    """Each answer says that a restart would undo it."""
    one = Operator(tmp_path)
    assert (await one.pin(C))["kept"]
    assert (await one.ask("pause", for_s=60))["kept"]
    (tmp_path / "state").rename(tmp_path / "gone")
    (tmp_path / "state").touch()
    told = [await one.ask("unpin", name="wk1"), await one.ask("resume"), await one.pin(C)]
    assert [answer["kept"] for answer in told] == [False, False, False]
    await one.kept.close()


@in_loop
async def test_who_may(tmp_path: Path) -> None:
    """Only those who may announce a promotion may ask for any of it."""
    assert set(Operator(tmp_path).by_hand.handlers) <= server._GUARDED


@in_loop
async def test_before_the_file_was_read(tmp_path: Path) -> None:
    """Nothing can be changed before it is known what was decided by hand before: that would be lost."""
    one = Operator(tmp_path)
    for command in one.by_hand.handlers:
        answer = await one.by_hand.handlers[command]({"name": "wk1", "address": C, "for_s": 60, "peer": "process 42"})
        assert answer == {"error": "what was pinned or paused before has not been read yet: try again"}
    assert not (tmp_path / "state").exists()


@in_loop
async def test_a_pin_of_a_name_with_a_fixed_route(tmp_path: Path) -> None:
    """It wants its own role, also while it has no address yet."""
    one = Operator(tmp_path)
    only = config(group("cn", CN), group("wk1", A, B, C, route=Route.PRIMARY))
    one.agent.config = only
    one.agent.decide()
    assert (await one.pin(A))["target"].startswith(f"wk1 → {A} (pinned until")
    [shown] = one.by_hand.pins(one.agent.decision)
    assert (shown.wanted_role, shown.forced) == ("primary", False)
    await one.kept.close()
