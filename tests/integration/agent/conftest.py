"""An agent whose names are right, a fake systemd manager, and file systems for a hosts file."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.support.agent_state import SETTLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


# Makes a function of the agent fail for as long as a file exists.
FAILING = """
import functools, pathlib
{what}
function = getattr(where, name)

@functools.wraps(function)
def failing(*arguments, **named):
    if pathlib.Path({broken!r}).exists() and ({only}):
        raise RuntimeError("can't start new thread")
    return function(*arguments, **named)

setattr(where, name, failing)
"""


@pytest.fixture
def failing(tmp_path: Path) -> Callable[..., tuple[dict[str, str], Path]]:
    """Break a function: ``failing("import os as where; name = 'stat'")`` returns the environment and the switch.

    The function raises RuntimeError while the switch, a file, exists, and a condition on its ``arguments`` is true.
    """

    def prepare(what: str, only: str = "True") -> tuple[dict[str, str], Path]:
        broken, folder = tmp_path / "broken", tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(FAILING.format(what=what, broken=str(broken), only=only))
        return {"PYTHONPATH": f"{folder}:{Path.cwd()}"}, broken

    return prepare
