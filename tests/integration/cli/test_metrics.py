"""``resolver-agent metrics``: what it prints, and without an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.support.command_line import by_the_standard_library_alone, default_runtime_dir, run
from tests.unit.metrics.builders import Metrics

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Agent


def test_metrics(running: Agent, config: Path, primaries: dict[str, str]) -> None:
    """The text is what Prometheus reads, with an address for each name."""
    ran = run("metrics", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith("\n")
    found = Metrics(ran.stdout)
    assert {one["name"]: one["address"] for one in found.labels("name_info")} == primaries
    assert found.value("hosts_file_written") == 1
    assert (found.value("rounds_total", result="done") or 0) > 0
    assert running.process.poll() is None


def test_metrics_without_an_agent(config: Path) -> None:
    """There is nothing to print: exit code 2."""
    ran = run("metrics", "-c", config)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"resolver-agent: no agent runs in {config.with_name('run')}\n"


def test_metrics_need_the_standard_library_only(running: Agent, tmp_path: Path) -> None:
    """An agent at the default path is asked without importing any package: a collector may ask every few seconds."""
    told, imported = by_the_standard_library_alone("metrics", prepare=default_runtime_dir(tmp_path / "run"))
    assert Metrics(told).value("build_info") == 1
    assert "asyncio" not in imported
    assert running.process.poll() is None
