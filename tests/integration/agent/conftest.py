"""An agent whose names are right, a fake systemd manager, and file systems for a hosts file."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.integration.support.agent_state import SETTLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]


@pytest.fixture
def settled(cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent) -> tuple[Agent, Path]:
    """Start an agent on the primary coordinator, and wait until its names are right."""
    config = write_config(cluster["cn"].primary, cluster)
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    return agent, config


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Yield a socket that stands for systemd's NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        yield receiver


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a file system for the hosts file alone: ``mounted("-t", "tmpfs", …)`` returns the file's path."""
    folder, image = tmp_path / "mnt", tmp_path / "image"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with contextlib.ExitStack() as mounts:

        def mount(*arguments: str) -> Path:
            subprocess.run(["mount", *arguments, image, folder], check=True)
            mounts.callback(lambda: subprocess.run(["umount", folder], check=True))
            path = folder / "hosts"
            path.write_text("127.0.0.1\tlocalhost\n")
            return path

        yield mount
