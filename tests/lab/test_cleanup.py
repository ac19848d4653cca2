"""However a test run ends, nothing of the lab is left but the journals of a failed test."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.support.systemd_host import CHECKOUT, cached_tree
from tests.lab.waiting import wait_while

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 20
RUN = """
import signal, sys
from tests.integration.support.systemd_host import Container
from tests.lab.ground import Ground
signal.signal(signal.SIGINT, signal.default_int_handler)  # it and the next are ignored where we are
signal.signal(signal.SIGTERM, signal.SIG_DFL)
moment, tree = sys.argv[1:]
with Ground("10.0.0.1/24") as ground:
    options = f"--directory={ground.lay('one', [tree])}", f"--bind-ro={ground.folder}:/srv", "--network-bridge=lab"
    with Container("one", *options, launcher=ground.launcher) as container:
        if moment != "starting":
            container.leader()
        if moment == "up":
            container.booted()
        print("ready", flush=True)
        signal.pause()
"""
# A suite like ours, with the lab's own fixtures and hooks, on labs of one host.
SUITE = """
import signal
import pytest
from tests.lab.conftest import Labs
from tests.lab.lab import Lab

class OneHost(Lab):
    def __init__(self):
        super().__init__(citus=False)
        self.nodes = {"cn1": self.nodes["cn1"]}

    def provision(self):
        return []

class Unfit(OneHost):
    def provision(self):
        raise RuntimeError("unfit")

@pytest.fixture(scope="session")
def labs():
    with Labs(OneHost) as labs:
        yield labs

def test_that_fails(lab):
    assert not lab.nodes["cn1"].is_on

def test_whose_lab_does_not_come_up():
    with Unfit():
        pass

def test_that_waits(lab):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("ready", flush=True)
    signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A test run's folder for temporary files; its containers, and their cgroups, are named after it."""
    path = tmp_path / "files"
    path.mkdir()
    return path


@contextlib.contextmanager
def started(folder: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Start a test run with its temporary files in this folder, as a shell does in the foreground."""
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            yield run
        finally:
            run.kill()


def end(run: subprocess.Popen[str], how: signal.Signals) -> int:
    """Send a signal, and return the run's exit code; Ctrl-C reaches its children as well."""
    (os.killpg if how == signal.SIGINT else os.kill)(run.pid, how)
    return run.wait(DEADLINE_S)


def traces(folder: Path, containers: set[str]) -> list[str]:
    """Return the traces of a test run: files, processes in and around its containers, cgroups.

    Namespaces, and the mounts in them, exist as long as processes in them.
    """
    found = [str(path) for path in folder.iterdir()]
    found += [str(path) for name in containers for path in Path("/sys/fs/cgroup").glob(f"*/{name}")]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if any(str(folder).encode() in (process / file).read_bytes() for file in ("environ", "mountinfo")):
                found.append((process / "comm").read_text().strip())
    return found


def wait_until_nothing_is_left(folder: Path, containers: set[str], mounts: str) -> None:
    """Wait until there are no traces of a test run, and no more mounts than there were."""
    wait_while(lambda: traces(folder, containers), timeout_s=DEADLINE_S)
    assert Path("/proc/self/mountinfo").read_text() == mounts


@pytest.mark.parametrize("moment", ["starting", "booting", "up"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_is_left(folder: Path, how: signal.Signals, moment: str) -> None:
    """A run that any signal ends at any moment of a container's boot leaves nothing."""
    tree = cached_tree()
    mounts = Path("/proc/self/mountinfo").read_text()
    with started(folder, "-c", RUN, moment, str(tree)) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        containers = {path.name for path in folder.glob("resolver-agent-*")}
        there = traces(folder, containers)
        assert end(run, how) == -how
    assert len(containers) == 2
    assert "sh" in there
    assert ("systemd-journal" in there) or moment != "up"
    wait_until_nothing_is_left(folder, containers, mounts)


@pytest.fixture
def suite(tmp_path: Path) -> list[str]:
    """The command line of pytest for the tests of a lab of one host."""
    path = tmp_path / "test_suite.py"
    path.write_text(SUITE)
    return ["-m", "pytest", "-q", "-p", "tests.lab.conftest", "-p", "no:cacheprovider", str(path)]


def test_nothing_is_left_of_a_lab(folder: Path, suite: list[str]) -> None:
    """Ctrl-C in the middle of a test ends the lab."""
    mounts = Path("/proc/self/mountinfo").read_text()
    with started(folder, *suite, "-s", "-k", "waits") as run:
        assert run.stdout is not None
        assert "ready\n" in iter(run.stdout.readline, "")
        containers = {path.name for path in folder.glob("resolver-agent-*")}
        assert "systemd-journal" in traces(folder, containers)
        assert end(run, signal.SIGINT) == pytest.ExitCode.INTERRUPTED
    wait_until_nothing_is_left(folder, containers, mounts)


def test_journals_are_kept(folder: Path, suite: list[str]) -> None:
    """When a test fails or a lab does not come up, the report has the path of the journals, and they are there."""
    with started(folder, *suite, "-k", "not waits") as run:
        report, _ = run.communicate()
    assert "2 failed" in report
    said = (r"^-+ the lab's journals -+\n(.*)$", "RuntimeError: the lab did not come up; its journals are in (.*)$")
    kept = {Path(found) for pattern in said for found in re.findall(pattern, report, re.MULTILINE)}
    assert len(kept) == 2
    assert set(folder.iterdir()) == kept
    assert all("systemd[1]: Reached target" in (each / "cn1.log").read_text() for each in kept)
