"""One agent at a time: who gets the lock, who is refused, and that checking it disturbs no agent."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from resolver_agent.system import lock

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from resolver_agent.system import lock
with lock.exclusive(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_the_folder_and_the_file_are_made(tmp_path: Path) -> None:
    """The lock file has the process id and mode 0600: a user who can open it can lock it."""
    before = os.umask(0)
    try:
        with lock.exclusive(str(tmp_path / "a" / "run")):
            path = tmp_path / "a" / "run" / "lock"
            assert path.read_text() == f"{os.getpid()}\n"
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_second_holder_is_refused_by_name(tmp_path: Path) -> None:
    """The message has the first holder's process id."""
    with holder(tmp_path) as first:
        assert lock.is_held(str(tmp_path))
        with pytest.raises(lock.LockedError, match=f"lock is held by another agent, process {first.pid}$"):
            lock.exclusive(str(tmp_path)).__enter__()


@pytest.mark.parametrize("end", ["kill", "close"])
def test_the_lock_ends_with_its_holder(end: str, tmp_path: Path) -> None:
    """However the holder ends, the next one gets the lock, and the file then has its process id."""
    with holder(tmp_path) as first:
        if end == "kill":
            first.kill()
        else:
            first.communicate()
        first.wait()
    assert not lock.is_held(str(tmp_path))
    with lock.exclusive(str(tmp_path)):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_it_is_free_after_an_error(tmp_path: Path) -> None:
    """A holder that fails releases the lock."""
    with pytest.raises(RuntimeError), lock.exclusive(str(tmp_path)):
        raise RuntimeError
    assert not lock.is_held(str(tmp_path))


def test_a_full_disk_is_no_obstacle(tmp_path: Path) -> None:
    """The lock is held all the same; only its holder's process id is missing."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))  # no file may grow
    try:
        with lock.exclusive(str(tmp_path)):
            assert lock.is_held(str(tmp_path))
            with pytest.raises(lock.LockedError, match=r"process unknown$"):
                lock.exclusive(str(tmp_path)).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    """Checking creates no file."""
    assert not lock.is_held(str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_who_may_not_look_is_told_that_it_is_held(tmp_path: Path) -> None:
    """Asking the agent in vain is better than reporting that there is none."""
    (tmp_path / "file").touch()
    assert lock.is_held(str(tmp_path / "file"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The message has the file, the fault and the fix."""
    (tmp_path / "file").touch()
    with pytest.raises(lock.LockUnavailableError, match=r"file/run/lock: Not a directory; .*runtime_dir"):
        lock.exclusive(str(tmp_path / "file" / "run")).__enter__()
