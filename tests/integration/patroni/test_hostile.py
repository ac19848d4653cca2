"""The watch over a sound Patroni next to each hostile one: what a hostile one answers is its own alert, no more."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest

from resolver_agent.config.load import parse
from resolver_agent.patroni.watch import PatroniWatch
from resolver_agent.system.clock import boottime
from tests.integration.support.hostile_rest import HOSTILE, SYSTEM_ID, Rest, sound

SOUND, PEER = "127.0.59.1", "127.0.59.2"
PORT = 5432
CALM_S, INTERVAL_S, TIMEOUT_S = 0.05, 0.02, 0.3
MOST_ALERTS = 15
STALL_S = 0.5
"""How long the event loop may be held up, on a busy machine too."""


@dataclasses.dataclass
class Pulse:
    """Measures for how long the event loop was held up at most."""

    worst_s: float = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            self.worst_s = max(self.worst_s, time.monotonic() - begun - 0.01)


async def watch_both(rest: Rest, hostile: Rest, *, lists: int) -> None:
    """Watch both nodes of a group until the hostile one was asked often enough, and check what came of it."""
    config = parse(
        f"""
        fallback: none
        names:
          wk1: {{nodes: [{SOUND}, {PEER}], patroni: {{port: {rest.port}, networks: [127.0.0.0/8]}}}}
        interval: {INTERVAL_S * 1000:.0f}ms
        timeout: {TIMEOUT_S * 1000:.0f}ms
        """,
        path="test",
        hostname="test",
    )
    sight, peer = config.groups[0].nodes
    pulse = Pulse()
    watch = PatroniWatch(changed=asyncio.Event(), calm_s=CALM_S, patience_s=0.0)
    watch.watch(config)
    watch.own([sight])  # so the other one is asked for the members
    measuring = asyncio.ensure_future(pulse.run())
    try:
        while hostile.asked.count("/leader") < 3 or hostile.asked.count("/cluster") < lists:
            await asyncio.sleep(0.02)
            watch.tick(boottime())
            watch.check()
        asked = len(rest.asked)
        while len(rest.asked) < asked + 3:
            await asyncio.sleep(0.02)
            watch.check()
        claim, status = watch.claim(sight), watch.statuses["wk1"]
        assert claim is not None
        assert claim.leads
        assert (status.leader, status.system_id) == (sight, SYSTEM_ID)
        for alert in watch.alerts:
            assert alert.text.isprintable()
            assert len(alert.text) < 1000
            assert str(sight) not in alert.of
        assert len(watch.alerts) < MOST_ALERTS
        nodes = watch.extended(config).groups[0].nodes
        assert nodes[:2] == (sight, peer)
        assert {node.host for node in nodes[2:]} <= {"127.0.59.9"}
        assert pulse.worst_s < STALL_S
    finally:
        measuring.cancel()
        await watch.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_patroni(name: str) -> None:
    """It costs the sound one nothing, nor the event loop; its alerts can be shown, and nobody else joins by it."""
    with (
        Rest(SOUND, 0, sound(SOUND, PEER, port=PORT, leads=True)) as rest,
        Rest(PEER, rest.port, HOSTILE[name]) as hostile,
    ):
        asyncio.run(asyncio.wait_for(watch_both(rest, hostile, lists=2 if name.startswith("members") else 0), 20))
