"""Many worlds by hand: `python -m tests.simulation.campaign --seeds 10000`; or the story of one: `--story 4711`."""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import sys
import time
from typing import TYPE_CHECKING

from tests.simulation.simulate import run, shrink

if TYPE_CHECKING:
    from collections.abc import Sequence


def _one(seed: int) -> tuple[int, int, int, str | None]:
    try:
        result = run(seed)
    except Exception as error:  # noqa: BLE001 -- the next world all the same
        return seed, 0, 0, f"{type(error).__name__}: {error}"
    return seed, result.failovers, result.statements, result.broken


def _campaign(first: int, count: int, jobs: int) -> int:
    begun, failovers, statements = time.monotonic(), 0, 0
    found: dict[str, list[int]] = collections.defaultdict(list)
    with multiprocessing.Pool(jobs, maxtasksperchild=2000) as pool:
        for seed, moved, asked, broken in pool.imap_unordered(_one, range(first, first + count), chunksize=8):
            failovers += moved
            statements += asked
            if broken is not None:
                found[broken[:60]].append(seed)
                print(f"seed {seed}: {broken}", flush=True)
    took_s = time.monotonic() - begun
    print(f"{count} worlds, {failovers} failovers, {statements} statements in {took_s:.0f} s with {jobs} processes")
    for words, seeds in sorted(found.items(), key=lambda one: -len(one[1])):
        print(f"{len(seeds):6} times: {words}… e.g. {', '.join(map(str, seeds[:5]))}")
    return 1 if found else 0


def main(arguments: Sequence[str]) -> int:
    """Run worlds, and return 1 if a rule was broken in one of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.campaign")
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds to run (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="how many processes (default: one a core)"
    )
    parser.add_argument("--story", type=int, metavar="SEED", help="tell one world, and shrink it if a rule is broken")
    options = parser.parse_args(arguments)
    if options.story is None:
        return _campaign(options.first, options.seeds, options.jobs)
    result = run(options.story, is_told=True)
    if result.broken is not None:
        fewer = shrink(result.seed, result.faults)
        result = run(result.seed, fewer, is_told=True)
        print("\n".join(["faults:", *map(str, fewer)]))
    print("\n".join(result.story))
    return 0 if result.broken is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
