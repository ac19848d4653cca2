"""``resolver-agent metrics``: what it prints, and without an agent."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.integration.support.command_line import run
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
    script = f"""
        mount -t tmpfs tmpfs /run && mkdir /run/resolver-agent && mount --bind {tmp_path}/run /run/resolver-agent
        exec {sys.executable} -c '
import sys
before = set(sys.modules)
from resolver_agent.cli import main
code = main(["metrics"])
print(*{{name.partition(".")[0] for name in sys.modules.keys() - before}}, file=sys.stderr)
sys.exit(code)'
    """
    ran = subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert Metrics(ran.stdout).value("build_info") == 1
    imported = set(ran.stderr.split())
    assert imported - sys.stdlib_module_names == {"resolver_agent"}
    assert "asyncio" not in imported
    assert running.process.poll() is None
