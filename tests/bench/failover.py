"""How long after a promotion a name resolves to the new primary, compared with plain pollers.

Run as root, by hand: ``.venv/bin/python -m tests.bench.failover [PROMOTIONS]``. The time runs from the new primary's
first answer that it takes writes (asked every 0.5 ms) to when the real glibc resolves the name to it (asked every
0.5 ms).
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from resolver_agent.demo.postgres import Postgres, Site
from tests.bench.contestant import Agent, Resolver, poller, private_etc

if TYPE_CHECKING:
    from collections.abc import Sequence

POLLERS_S = {"1 s poller": 1.0, "10 s poller": 10.0}
CN = ("127.0.21.1", "127.0.21.2")
WK = ("127.0.22.1", "127.0.22.2")


def takes_writes(server: Postgres) -> float:
    """Return when (monotonic seconds) a server being promoted first reported that it takes writes."""
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
            time.sleep(0.0005)
        return time.monotonic()


def promote(old: Postgres, new: Postgres, how: str) -> float:
    """End the old primary and promote the new one; return when it takes writes."""
    if how == "kill -9":
        old.kill()
    else:
        old.stop()
    new.promote(wait=False)
    return takes_writes(new)


def row(what: str, seconds: Sequence[float]) -> None:
    """Print one line of the table, in milliseconds."""
    ms = sorted(1000 * one for one in seconds)
    print(f"| {what:45} | {len(ms):3} | {ms[0]:8.1f} | {statistics.median(ms):8.1f} | {ms[-1]:8.1f} |", flush=True)


def worker_promotions(site: Site, pair: list[Postgres], watched: dict[str, Resolver], count: int) -> None:
    """Promote a worker again and again, cleanly and by force in turn."""
    took: dict[str, list[float]] = {name: [] for name in watched}
    by_how: dict[str, list[float]] = {"clean": [], "kill -9": []}
    old, new = pair
    for number in range(count):
        how = "kill -9" if number % 2 else "clean"
        for resolver in watched.values():
            resolver.wait_for(old.address)
        # At a random moment of the slowest poller's period: otherwise each promotion would begin right after its poll.
        time.sleep(random.uniform(0, max(POLLERS_S.values())))  # noqa: S311 -- no secret
        at = promote(old, new, how)
        for name, resolver in watched.items():
            took[name].append(resolver.wait_for(new.address) - at)
        by_how[how].append(took["agent"][-1])
        site.rejoin(old, of=new)
        old, new = new, old
    for name, seconds in took.items():
        row(f"worker promoted: {name}", seconds)
    for how, seconds in by_how.items():
        row(f"  of these the agent's, {how}", seconds)


def coordinator_promotions(site: Site, cn: list[Postgres], wk: list[Postgres], folder: Path, count: int) -> None:
    """Promote the coordinator with the agent; then all its names have to move to the workers' primaries."""
    old, new = cn
    took = []
    for number in range(count):
        at_home = folder / f"cn-{number}"
        etc = private_etc(at_home)
        with agent_of(new, at_home, etc, site.port), Resolver("wk1", etc) as resolver:
            resolver.wait_for(wk[1].address)
            at = promote(old, new, "kill -9" if number % 2 else "clean")
            took.append(resolver.wait_for(wk[0].address) - at)
        site.rejoin(old, of=new)
        old, new = new, old
    row("coordinator promoted: its names (no hook)", took)


def lost_standbys(site: Site, cn: list[Postgres], wk: list[Postgres], folder: Path, count: int) -> None:
    """Kill a worker's standby under a coordinator standby, with ``fallback: primary``."""
    primary, standby = wk
    etc = private_etc(folder / "lost")
    took = []
    local = next(server for server in cn if server.is_in_recovery)
    with agent_of(local, folder / "lost", etc, site.port, failback_delay="0s"), Resolver("wk1", etc) as resolver:
        for _ in range(count):
            resolver.wait_for(standby.address)
            at = time.monotonic()
            standby.kill()
            took.append(resolver.wait_for(primary.address) - at)
            standby.start()
    row("worker standby killed: fallback (from the kill on)", took)


def agent_of(local: Postgres, folder: Path, etc: Path, port: int, **settings: object) -> Agent:
    """Return an agent on the node of ``local``."""
    names = {"cn": {"nodes": [*CN]}, "wk1": {"nodes": [*WK]}}
    return Agent(folder, etc / "hosts", names=names, port=port, local={"host": str(local.socket_dir)}, **settings)


def main(count: int) -> None:
    """Run all of it and print the table."""
    print(f"| {'from taking writes to resolving, in ms':45} | {'n':3} | {'min':8} | {'median':8} | {'max':8} |")
    print(f"|{'-' * 47}|{'-' * 5}|{'-' * 10}|{'-' * 10}|{'-' * 10}|")
    with Site() as site, tempfile.TemporaryDirectory() as top, contextlib.ExitStack() as stack:
        folder = Path(top)
        groups = site.groups({"cn": CN, "wk1": WK})
        cn, wk = groups["cn"], groups["wk1"]
        etc = private_etc(folder / "agent")
        stack.enter_context(agent_of(cn[0], folder / "agent", etc, site.port))
        watched = {"agent": stack.enter_context(Resolver("wk1", etc))}
        for name, period_s in POLLERS_S.items():
            etc = private_etc(folder / name)
            stack.enter_context(poller(etc / "hosts", "wk1", WK, port=site.port, period_s=period_s))
            watched[name] = stack.enter_context(Resolver("wk1", etc))
        worker_promotions(site, wk, watched, count + count % 2)
        stack.pop_all().close()
        coordinator_promotions(site, cn, wk, folder, count)
        lost_standbys(site, cn, wk, folder, count)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
