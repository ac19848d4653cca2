"""Many worlds by hand: `python -m tests.simulation.campaign --seeds 10000`; or the story of one: `--story 4711`.

With `--core` they are the small worlds around the pure core of the program; with `--compiled` that core, its agents and
their judge are compiled first, by mypyc, which takes about 80 seconds and needs a C compiler and Python's headers.
"""

from __future__ import annotations

import argparse
import collections
import functools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation import simulate
from tests.simulation.core import simulate as core

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TOP = Path(__file__).parents[2]
_COMPILED = ("resolver_agent/config/model.py", "resolver_agent/routing/*.py")
_COMPILED_TOO = ("tests/simulation/core/agent.py", "tests/simulation/core/judge.py", "tests/simulation/judge.py")
"""These are compiled as they are: at run time some of them could not import each other."""
_INTERPRETED = ("__init__.py", "state.py")
"""mypyc does not take the enumeration of ``routing.state``."""
_PIECE = 16
"""So many worlds one process runs before it reports them."""


class Ended(NamedTuple):
    """How one world ended; ``cpu_s`` is its time of a processor."""

    seed: int
    failovers: int
    statements: int
    cpu_s: float
    broken: str | None


def _one(seed: int, *, of_core: bool) -> Ended:
    begun = time.process_time()
    try:
        result = (core.run if of_core else simulate.run)(seed)
    except Exception as error:  # noqa: BLE001 -- the next world all the same
        return Ended(seed, 0, 0, time.process_time() - begun, f"{type(error).__name__}: {error}")
    return Ended(seed, result.failovers, result.statements, time.process_time() - begun, result.broken)


def worlds(first: int, count: int, *, jobs: int, of_core: bool) -> Iterator[Ended]:
    """Run the worlds of so many seeds in so many processes, and yield how each ended, as they come."""
    with multiprocessing.Pool(jobs, maxtasksperchild=2000) as pool:
        one = functools.partial(_one, of_core=of_core)
        yield from pool.imap_unordered(one, range(first, first + count), chunksize=_PIECE)


def _campaign(first: int, count: int, jobs: int, *, of_core: bool) -> int:
    begun, failovers, statements, cpu_s = time.monotonic(), 0, 0, 0.0
    found: dict[str, list[int]] = collections.defaultdict(list)
    for ended in worlds(first, count, jobs=jobs, of_core=of_core):
        failovers += ended.failovers
        statements += ended.statements
        cpu_s += ended.cpu_s
        if ended.broken is not None:
            found[ended.broken[:60]].append(ended.seed)
            print(f"seed {ended.seed}: {ended.broken}", flush=True)
    took_s = time.monotonic() - begun
    print(f"{count} worlds, {failovers} failovers, {statements} statements in {took_s:.0f} s with {jobs} processes")
    print(f"{failovers / cpu_s:.0f} failovers a second of processor time")
    for words, seeds in sorted(found.items(), key=lambda one: -len(one[1])):
        print(f"{len(seeds):6} times: {words}… e.g. {', '.join(map(str, seeds[:5]))}")
    return 1 if found else 0


def _compiled(arguments: Sequence[str]) -> int:
    """Do the same in a copy of the checkout whose core is compiled."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("resolver_agent", "tests"):
            shutil.copytree(_TOP / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        core = [path for paths in _COMPILED for path in Path(folder).glob(paths) if path.name not in _INTERPRETED]
        for path in core:  # a compiled dataclass needs the types of its fields at run time
            path.write_text(path.read_text().replace("if TYPE_CHECKING:", "if True:"))
        modules = [*map(str, core), *_COMPILED_TOO]
        mypyc = [sys.executable, "-m", "mypyc", "--ignore-missing-imports", "--explicit-package-bases", *modules]
        built = subprocess.run(mypyc, cwd=folder, check=False, capture_output=True, text=True)
        if built.returncode != 0:
            print(built.stdout + built.stderr, file=sys.stderr)
            return built.returncode
        again = [sys.executable, "-m", "tests.simulation.campaign", *arguments]
        return subprocess.run(again, cwd=folder, check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """Run worlds, and return 1 if a rule was broken in one of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.campaign", allow_abbrev=False)
    parser.add_argument("--core", action="store_true", help="the small worlds around the pure core")
    parser.add_argument("--compiled", action="store_true", help="compile the program's core first, for a long campaign")
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds to run (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="how many processes (default: one a core)"
    )
    parser.add_argument("--story", type=int, metavar="SEED", help="tell one world, and shrink it if a rule is broken")
    options = parser.parse_args(arguments)
    if options.compiled:
        return _compiled([one for one in arguments if one != "--compiled"])
    if options.story is None:
        return _campaign(options.first, options.seeds, options.jobs, of_core=options.core)
    run = core.run if options.core else simulate.run
    result = run(options.story, is_told=True)
    if result.broken is not None:
        fewer = simulate.shrink(result.seed, result.faults, run)
        result = run(result.seed, fewer, is_told=True)
        print("\n".join(["faults:", *map(str, fewer)]))
    print("\n".join(result.story))
    return 0 if result.broken is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
