"""Fuzzes the parsers of foreign input, guided by coverage, with atheris: which finds what random changes do not.

    python -m tests.bench.fuzz TARGET [SECONDS]     TARGET is a name in tests/unit/fuzz/targets.py, or all

An input that fails is written to the target's corpus, where ``tests/unit/fuzz`` repeats it. The exit code is 1 then.
"""

from __future__ import annotations

import logging
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.unit.fuzz.targets import Target

_SECONDS = 60
_MOST_BYTES = 1 << 14
_TIMEOUT_S = 60
_MEMORY_MB = 1024
_TAIL = 30


class _Found(NamedTuple):
    """What a run came to."""

    executions: int
    inputs: int
    memory_mb: int
    failed: bool


def main() -> int:
    """Fuzz one target, or each in turn."""
    if sys.argv[1] == "--one":
        _fuzz(sys.argv[2], sys.argv[3:])
    wanted, seconds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else _SECONDS
    from tests.unit.fuzz.targets import CORPUS, TARGETS  # noqa: PLC0415 -- in the child it is imported with hooks

    names = list(TARGETS) if wanted == "all" else [wanted]
    print(f"| target | executions | new inputs that reach more | memory in MB | |\n|{'---|' * 5}")
    failed = False
    for name in names:
        found = _run(name, seconds, CORPUS / name)
        print(
            f"| {name} | {found.executions:,} | {found.inputs} | {found.memory_mb} | {'FAILED' * found.failed} |",
            flush=True,
        )
        failed = failed or found.failed
    return int(failed)


def _run(name: str, seconds: int, corpus: Path) -> _Found:
    """Fuzz a target in a process of its own: it ends with the first failure."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        new = Path(folder, "new")
        new.mkdir()
        limits = [f"-max_total_time={seconds}", f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_MEMORY_MB}"]
        options = [*limits, f"-max_len={_MOST_BYTES}", "-print_final_stats=1", f"-artifact_prefix={corpus}/found-"]
        ran = subprocess.run(
            [sys.executable, "-m", "tests.bench.fuzz", "--one", name, *options, new, corpus],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env=os.environ | {"TMPDIR": folder},  # libFuzzer ends the process without any clean-up
        )
        inputs = len(list(new.iterdir()))
    if ran.returncode != 0:
        print("\n".join(ran.stdout.splitlines()[-_TAIL:]), file=sys.stderr)

    def number(what: str) -> int:
        told = re.search(rf"{what}:\s+(\d+)", ran.stdout)
        return int(told[1]) if told else 0

    return _Found(number("number_of_executed_units"), inputs, number("peak_rss_mb"), ran.returncode != 0)


def _fuzz(name: str, options: list[str]) -> None:
    """Fuzz a target in this process, with libFuzzer's options; it ends the process."""
    import atheris  # noqa: PLC0415 -- it has no wheels for some Pythons, and nothing else needs it

    with atheris.instrument_imports(include=["resolver_agent", "python_hosts"]):
        from tests.unit.fuzz.mutation import mutated  # noqa: PLC0415
        from tests.unit.fuzz.targets import TARGETS, seeds  # noqa: PLC0415
    logging.disable(logging.CRITICAL)
    target: Target = TARGETS[name]
    known = seeds(name)

    def changed(data: bytes, most_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)  # noqa: S311 -- to repeat it
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, most_bytes))
        return mutated(data, chance, others=known, words=target.words)[:most_bytes]

    atheris.Setup([sys.argv[0], *options], target.run, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
