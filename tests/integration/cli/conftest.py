"""The primary coordinator's configuration, its agent, and its right targets."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.integration.support.agent_state import SETTLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]


@pytest.fixture
def config(cluster: dict[str, Group], write_config: WriteConfig) -> Path:
    """Write the configuration of the primary coordinator."""
    return write_config(cluster["cn"].primary, cluster)


@pytest.fixture
def running(config: Path, start_agent: StartAgent) -> Agent:
    """Start the agent of the primary coordinator, and wait until its names are right."""
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    return agent


@pytest.fixture
def primaries(cluster: dict[str, Group]) -> dict[str, str]:
    """The right targets on the primary coordinator."""
    return {name: group.primary.address for name, group in cluster.items()}


@pytest.fixture
def public(config: Path) -> Iterator[Path]:
    """Move the configuration, the hosts file and the agent's folders to a place that every user can read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(config.with_name("hosts"), folder)
        settings = yaml.safe_load(config.read_text())
        moved = {
            "hosts_file": str(folder / "hosts"),
            "runtime_dir": str(folder / "run"),
            "state_dir": str(folder / "state"),
        }
        path = folder / config.name
        path.write_text(yaml.safe_dump(settings | moved, sort_keys=False))
        yield path
