"""Helpers that query a running agent and its files, and that change the files."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

import yaml

from resolver_agent.control import client
from tests.integration.support.machine import replace
from tests.unit.metrics.builders import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.conftest import Agent

FENCE = "255.255.255.255"
SETTLED = r" wk2 → "


def status(config: Path) -> dict[str, Any]:
    """Return the status of the agent with this configuration."""
    runtime_dir = yaml.safe_load(config.read_text())["runtime_dir"]
    return client.ask(f"{runtime_dir}/control.sock", "status")


def metrics(config: Path) -> Metrics:
    """Return the metrics of the agent with this configuration: at most a second old."""
    runtime_dir = yaml.safe_load(config.read_text())["runtime_dir"]
    return Metrics(client.ask(f"{runtime_dir}/control.sock", "metrics")["text"])


def alerts(config: Path) -> set[str]:
    """Return the keys of the agent's current alerts."""
    return {alert["key"] for alert in status(config)["alerts"]}


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 10.0) -> Any:
    """Return what ``condition`` returns once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.01)
    return found


def written(path: Path) -> tuple[int, int, int]:
    """Return values that change whenever a file is written or replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def count(agent: Agent, pattern: str) -> int:
    """Return how many lines of the log match."""
    return sum(re.search(pattern, line) is not None for line in agent.lines)


def edit(config: Path, **settings: Any) -> None:
    """Change settings in a configuration file."""
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | settings, sort_keys=False))


def add_first(path: Path, text: str) -> None:
    """Put a line on top of a file."""
    replace(path, text + path.read_text())


def leads(agent: Agent) -> dict[str, str | None]:
    """Return every name's address."""
    return {name: agent.target(name) for name in ("cn", "wk1", "wk2")}


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Have every write to the file system that a path is on hang."""
    subprocess.run(["fsfreeze", "--freeze", path.parent], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", path.parent], check=True)
