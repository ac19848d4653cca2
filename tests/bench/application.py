"""How long an application host waits for the next primary of a coordinator, with the queue and without it.

    python -m tests.bench.application [ROUNDS]

On a host with an agent (``local: off``) loops connect anew all the time: one to the name itself, the others through a
PgBouncer each. Meanwhile real Patroni switches the coordinator over, or its primary loses its power.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import threading
import time
from typing import TYPE_CHECKING

from tests.integration.queue.test_switchover import prepare
from tests.integration.support.application_host import ApplicationHost
from tests.integration.support.patroni_cluster import PatroniCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.integration.support.application_host import Loop

_LOOPS: dict[str, Callable[[ApplicationHost], Loop]] = {
    "the name itself": lambda host: host.connect_anew(),
    "PgBouncer": lambda host: host.connect_over_pgbouncer(),
    "PgBouncer, dns_max_ttl = 1": lambda host: host.connect_over_pgbouncer(dns_max_ttl=1),
    "the same, server_login_retry = 1": lambda host: host.connect_over_pgbouncer(dns_max_ttl=1, server_login_retry=1),
    "PgBouncer, dns_max_ttl = 0": lambda host: host.connect_over_pgbouncer(dns_max_ttl=0),
}
_EVENTS: dict[str, Callable[[PatroniCluster], None]] = {
    "switchover": lambda cluster: cluster.switch_over(cluster.groups["cn"][1]),
    "power loss": lambda cluster: cluster.fail_over(cluster.groups["cn"][1]),
}
_QUEUES = {True: {"unplanned": "60s"}, False: {"planned": "0s"}}
_PATIENCE_S = 90.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one loop met in one round.

    Attributes:
        after_s: how long after the new primary took writes the first connection reached it.
        failed: how many attempts failed until then.
        longest_s: the longest attempt.
    """

    after_s: float
    failed: int
    longest_s: float


@contextlib.contextmanager
def _first_write(cluster: PatroniCluster, address: str) -> Iterator[Callable[[], float]]:
    """Watch when the server at ``address`` becomes a primary; the function returns that moment (CLOCK_MONOTONIC)."""
    machine = next(one for one in cluster.machines.values() if one.address == address)
    session = cluster.connect(machine, dbname="postgres")
    seen: list[float] = []

    def watch() -> None:
        while session.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
            time.sleep(0.002)
        seen.append(time.monotonic())

    def moment() -> float:
        watcher.join()
        return seen[0]

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield moment


def measure(cluster: PatroniCluster, event: Callable[[PatroniCluster], None], *, queue: bool) -> dict[str, Result]:
    """Return what each loop met in one round."""
    with cluster.as_made(), ApplicationHost(cluster) as host:
        prepare(cluster)
        host.start_agent(queue=_QUEUES[queue])
        loops = {name: start(host) for name, start in _LOOPS.items()}
        new = cluster.groups["cn"][1]
        with _first_write(cluster, new.address) as promoted:
            begun = time.monotonic()
            event(cluster)
            return {name: _result(loop, new.address, begun, promoted()) for name, loop in loops.items()}


def _result(loop: Loop, address: str, begun: float, promoted: float) -> Result:
    first = loop.reached(address, since=begun, timeout_s=_PATIENCE_S)
    attempts = [one for one in loop.attempts if one.ended >= begun and one.begun <= first.begun]
    return Result(
        after_s=first.ended - promoted,
        failed=sum(bool(one.error) for one in attempts),
        longest_s=max(one.ended - one.begun for one in attempts),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all of it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=3, metavar="ROUNDS")
    rounds = parser.parse_args(arguments).rounds
    with PatroniCluster(["cn", "wk1"]) as cluster:
        for queue in _QUEUES:
            for event, happen in _EVENTS.items():
                found = [measure(cluster, happen, queue=queue) for _ in range(rounds)]
                print(f"{event}, {'with' if queue else 'without'} the queue, {rounds} rounds", flush=True)
                for name in _LOOPS:
                    print(f"  {name:34}{_line([one[name] for one in found])}", flush=True)
    return 0


def _line(results: list[Result]) -> str:
    after = [one.after_s for one in results]
    failed = ", ".join(str(one.failed) for one in results)
    longest = max(one.longest_s for one in results)
    return f"after {statistics.median(after):.2f}, {max(after):.2f} s; failed {failed}; longest wait {longest:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
