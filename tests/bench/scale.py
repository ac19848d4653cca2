"""The agent's cost, calm and in a storm, with 6 nodes and with thousands.

Run as root, by hand: ``.venv/bin/python -m tests.bench.scale [NAMES …]`` (default: 3 200 1000; 3 are three real pairs).
Many names are two pairs of servers: nftables redirects four /16 of loopback addresses to them.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from resolver_agent.demo.postgres import Postgres, Site
from tests.bench.contestant import Agent, Resolver, private_etc
from tests.bench.failover import promote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_CALM_S = 60.0
_SCRAPE_S = 15
_HTTP = "127.0.35.1:8009"
_SINGLE = 10
_TABLE = "resolver_agent_bench"
_REAL = ["127.0.31.1", "127.0.31.2", "127.0.32.1", "127.0.32.2"]
_SETTINGS = "max_connections = 1100\n"


def main(sizes: list[int]) -> None:
    """Run the sizes one after the other."""
    for size in sizes:
        print(f"\n{size} names x 2 nodes", flush=True)
        with tempfile.TemporaryDirectory() as top, Site() as site:
            few(site, Path(top)) if size <= len(_REAL) else many(site, Path(top), size)


def few(site: Site, folder: Path) -> None:
    """Three real pairs: idle, and the one-shot diff."""
    addresses = {name: [f"127.0.{30 + i}.1", f"127.0.{30 + i}.2"] for i, name in enumerate(["cn", "wk1", "wk2"])}
    groups = site.groups(addresses)
    etc = private_etc(folder)
    names = {name: {"nodes": nodes} for name, nodes in addresses.items()}
    local = {"host": str(groups["cn"][0].socket_dir)}
    with Agent(folder, etc / "hosts", names=names, port=site.port, local=local, http={"listen": _HTTP}) as agent:
        wait_until(lambda: (etc / "hosts").read_text().count("# ") >= len(names))
        calm(agent)
    command = [sys.executable, "-m", "resolver_agent.cli", "--dry-run", "-c", str(agent.config)]
    took = []
    for _ in range(10):
        begun = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.monotonic() - begun)
    print(f"--dry-run without an agent: median {statistics.median(took):.3f} s, worst {max(took):.3f} s", flush=True)


def many(site: Site, folder: Path, size: int) -> None:
    """Half the names on each of two pairs, and one more name on a pair of its own."""
    groups = site.groups({"a": _REAL[:2], "b": _REAL[2:]}, config=_SETTINGS)
    home = site.primary("home", "127.0.34.1")
    single = site.groups({"one": ["127.0.33.1", "127.0.33.2"]})["one"]
    # Each name has an address of its own in the /16 of each of its two servers.
    networks = [groups["a"], groups["b"]]
    names: dict[str, dict[str, list[str]]] = {"one": {"nodes": [server.address for server in single]}}
    for i in range(size):
        pair = i * 2 // size
        low = f"{i // 250}.{1 + i % 250}"
        names[f"wk{i}"] = {"nodes": [f"127.{110 + 2 * pair + node}.{low}" for node in (0, 1)]}
    etc = private_etc(folder)
    with redirected({110 + n: server.address for n, server in enumerate([*networks[0], *networks[1]])}):
        local = {"host": str(home.socket_dir)}
        agent = Agent(folder, etc / "hosts", names=names, port=site.port, local=local, http={"listen": _HTTP})
        begun = time.monotonic()
        with agent, Resolver("one", etc) as resolver:
            wait_until(lambda: leads(etc, 110, 112) == size)
            print(f"all names right after {time.monotonic() - begun:.2f} s", flush=True)
            calm(agent)
            one_among_many(site, single, resolver)
            storm(agent, etc, groups["a"], size)


def one_among_many(site: Site, pair: list[Postgres], resolver: Resolver) -> None:
    """Promote one pair's standby while all else is calm."""
    old, new = pair
    took = []
    for number in range(_SINGLE):
        resolver.wait_for(old.address)
        at = promote(old, new, "kill -9" if number % 2 else "clean")
        took.append(1000 * (resolver.wait_for(new.address) - at))
        site.rejoin(old, of=new)
        old, new = new, old
    print(f"one promotion among them: median {statistics.median(took):.1f} ms, worst {max(took):.1f} ms", flush=True)


def storm(agent: Agent, etc: Path, pair: list[Postgres], size: int) -> None:
    """Half the groups fail over at once."""
    agent.gaps_s.clear()
    busy = agent.cpu_s()
    at = promote(pair[0], pair[1], "kill -9")
    wait_until(lambda: leads(etc, 111, 112) == size)
    took_s = time.monotonic() - at
    print(
        f"{size // 2} groups failed over: settled {took_s:.2f} s after the promotion; processor time "
        f"{agent.cpu_s() - busy:.2f} s; longest time without a round {max(agent.gaps_s, default=0):.2f} s",
        flush=True,
    )


def leads(etc: Path, *networks: int) -> int:
    """Return how many names point into these networks."""
    starts = tuple(f"127.{network}." for network in networks)
    return sum(line.startswith(starts) for line in (etc / "hosts").read_text().splitlines())


def calm(agent: Agent) -> None:
    """Measure a minute without changes, and more in which monitoring asks."""
    time.sleep(5)
    measure(agent, "calm")
    with asked({"/metrics": _SCRAPE_S}):
        measure(agent, f"calm, with a scrape every {_SCRAPE_S} s")
    with asked({"/metrics": _SCRAPE_S, "/readiness": 1}):
        measure(agent, f"calm, with a scrape every {_SCRAPE_S} s and a health check every second")


def measure(agent: Agent, what: str) -> None:
    """Print what an agent takes in a minute."""
    begun, used_s = time.monotonic(), agent.cpu_s()
    time.sleep(_CALM_S)
    share = (agent.cpu_s() - used_s) / (time.monotonic() - begun)
    print(f"{what}: {100 * share:.2f} % of a core, {agent.rss_mb():.1f} MB resident", flush=True)


@contextlib.contextmanager
def asked(paths: Mapping[str, int]) -> Iterator[None]:
    """Have the agent asked over HTTP, for each path every so many seconds."""
    over = threading.Event()

    def ask() -> None:
        host, _, port = _HTTP.rpartition(":")
        for second in itertools.count():
            for path in (path for path, period_s in paths.items() if second % period_s == 0):
                connection = http.client.HTTPConnection(host, int(port), timeout=10)
                connection.request("GET", path)
                size = len(connection.getresponse().read())
                connection.close()
                if second == 0:
                    print(f"{path}: {size} bytes", flush=True)
            if over.wait(1):
                return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
    """Poll a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.01)


@contextlib.contextmanager
def redirected(networks: dict[int, str]) -> Iterator[None]:
    """Redirect each 127.N.0.0/16 to one server's address, inside this machine."""
    rules = "\n".join(f"ip daddr 127.{n}.0.0/16 dnat to {address}" for n, address in networks.items())
    script = f"table ip {_TABLE} {{\nchain output {{\ntype nat hook output priority -100;\n{rules}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "ip", _TABLE], check=True)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [3, 200, 1000])
