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
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

HOLD = """
import sys
from resolver_agent.system import lock
with lock.exclusive(sys.argv[1], sys.argv[2]):
    print(flush=True)
    sys.stdin.read()
"""


def exclusive(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of this runtime folder, and that of a hosts file in a folder of its own."""
    return lock.exclusive(str(folder), str(folder / "etc" / "hosts"))


def holder(folder: Path, hosts_file: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a process that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(folder), str(hosts_file or folder / "etc" / "hosts")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_the_folder_and_the_file_are_made(tmp_path: Path) -> None:
    """The lock file has the process id and mode 0600: a user who can open it can lock it."""
    before = os.umask(0)
    try:
        with exclusive(tmp_path / "a" / "run"):
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
            exclusive(tmp_path).__enter__()


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
    with exclusive(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_it_is_free_after_an_error(tmp_path: Path) -> None:
    """A holder that fails releases the lock."""
    with pytest.raises(RuntimeError), exclusive(tmp_path):
        raise RuntimeError
    assert not lock.is_held(str(tmp_path))


def test_a_full_disk_is_no_obstacle(tmp_path: Path) -> None:
    """The lock is held all the same; only its holder's process id is missing."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))  # no file may grow
    try:
        with exclusive(tmp_path):
            assert lock.is_held(str(tmp_path))
            with pytest.raises(lock.LockedError, match=r"process unknown$"):
                exclusive(tmp_path).__enter__()
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
        exclusive(tmp_path / "file" / "run").__enter__()


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files to other users")
NOBODY = 65534


def link_to(hosts: Path) -> Path:
    """Return a symbolic link to the hosts file, in another folder."""
    link = hosts.parent.parent / "link"
    link.symlink_to(hosts)
    return link


@pytest.mark.parametrize("path", [lambda hosts: hosts, link_to], ids=["the same path", "a symbolic link"])
def test_one_hosts_file_has_one_agent(path: Callable[[Path], Path], tmp_path: Path) -> None:
    """Another runtime folder does not help: the lock beside the hosts file tells the agents of each other."""
    hosts = tmp_path / "etc" / "hosts"
    hosts.parent.mkdir()
    hosts.touch()
    with holder(tmp_path / "one", hosts) as first:
        refused = lock.exclusive(str(tmp_path / "two"), str(path(hosts)))
        with pytest.raises(
            lock.LockedError, match=rf"etc/\.hosts\.\S+lock is held by another agent, process {first.pid}$"
        ):
            refused.__enter__()
        assert not lock.is_held(str(tmp_path / "two"))
        with lock.exclusive(str(tmp_path / "two"), str(hosts.with_name("other"))):
            pass


def test_the_lock_stays_when_the_hosts_file_is_replaced(tmp_path: Path) -> None:
    """Each write makes a new file; the lock beside it is still the same."""
    hosts = tmp_path / "hosts"
    hosts.touch()
    with holder(tmp_path / "one", hosts):
        hosts.unlink()
        hosts.touch()
        with pytest.raises(lock.LockedError):
            lock.exclusive(str(tmp_path / "two"), str(hosts)).__enter__()


def test_where_no_lock_can_be_beside_the_hosts_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The agent starts all the same, and says so; its writes fail with an alert of their own."""
    with lock.exclusive(str(tmp_path), str(tmp_path / "nowhere" / "hosts")):
        assert lock.is_held(str(tmp_path))
    assert "see to it that no other agent manages" in caplog.text


@pytest.mark.parametrize("place", ["run/lock", "etc/.hosts.resolver-agent.lock"])
@pytest.mark.parametrize(
    "make",
    [lambda lock, victim: lock.symlink_to(victim), lambda lock, victim: lock.hardlink_to(victim)],
    ids=["symbolic link", "hard link"],
)
def test_a_link_in_the_place_of_a_lock_harms_no_file(
    place: str, make: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """It is refused, and the file behind it keeps its content and mode."""
    victim = tmp_path / "shadow"
    victim.write_text("secret")
    victim.chmod(0o640)
    for folder in ("run", "etc"):
        (tmp_path / folder).mkdir()
    make(tmp_path / place, victim)
    with pytest.raises(lock.LockUnavailableError, match=r"lock is no regular file.*: delete it"):
        lock.exclusive(str(tmp_path / "run"), str(tmp_path / "etc" / "hosts")).__enter__()
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("secret", 0o640)


@AS_ROOT
def test_a_lock_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its owner could hold it, and so keep the agent from starting."""
    (tmp_path / "lock").touch()
    os.chown(tmp_path / "lock", NOBODY, -1)
    with pytest.raises(lock.LockUnavailableError, match=r"lock belongs to nobody, who could hold the lock: delete it"):
        exclusive(tmp_path).__enter__()


def given_away(folder: Path) -> None:
    """Give the folder to another user."""
    os.chown(folder, NOBODY, -1)


def opened_to(mode: int, gid: int = 0) -> Callable[[Path], None]:
    """Return a change of a folder's mode and group."""

    def change(folder: Path) -> None:
        os.chown(folder, -1, gid)
        folder.chmod(mode)

    return change


def linked(folder: Path) -> None:
    """Put another user's link in the folder's place."""
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")
    os.chown(folder, NOBODY, -1, follow_symlinks=False)


UNSAFE = [
    pytest.param(given_away, "a", "belongs to nobody, .*`chown root` it", id="folder above it of another user"),
    pytest.param(given_away, "a/b", "belongs to nobody, .*`chown root` it", id="another user's"),
    pytest.param(opened_to(0o777), "a/b", r"is writable by others \(mode 0777\), .*`chmod go-w` it", id="for all"),
    pytest.param(opened_to(0o1777), "a/b", r"is writable by others \(mode 1777\)", id="for all, sticky"),
    pytest.param(opened_to(0o2775, gid=4321), "a/b", r"is writable by others \(mode 2775\)", id="for a group"),
    pytest.param(opened_to(0o777), "a", r"is writable by others \(mode 0777\)", id="folder above it for all"),
    pytest.param(linked, "a", "belongs to nobody", id="another user's link"),
]


@AS_ROOT
@pytest.mark.parametrize("key", ["runtime_dir", "hosts_file"])
@pytest.mark.parametrize(("change", "where", "fault"), UNSAFE)
def test_root_uses_no_folder_that_others_may_write(
    key: str, change: Callable[[Path], None], where: str, fault: str, tmp_path: Path
) -> None:
    """Such a user could lead root to any file; the message has key, folder, owner and fix, and nothing is made."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    change(tmp_path / where)
    folders = {"runtime_dir": tmp_path / "run", "hosts_file": tmp_path / "etc"} | {key: tmp_path / "a" / "b"}
    with pytest.raises(lock.LockUnavailableError, match=rf"^{key} .*/{where} {fault}"):
        lock.exclusive(str(folders["runtime_dir"]), str(folders["hosts_file"] / "hosts")).__enter__()
    assert list((tmp_path / "a" / "b").iterdir()) == []


SAFE = [
    pytest.param(opened_to(0o1777), "a", id="sticky folder above it"),
    pytest.param(opened_to(0o775), "a/b", id="root's group"),
    pytest.param(opened_to(0o755, gid=4321), "a/b", id="another group that may not write"),
]


@AS_ROOT
@pytest.mark.parametrize(("change", "where"), SAFE)
def test_root_uses_what_is_roots(change: Callable[[Path], None], where: str, tmp_path: Path) -> None:
    """A folder in /tmp, and a group that may read, are no danger; nor is a hosts file that belongs to another user."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "hosts").touch()
    os.chown(folder / "hosts", NOBODY, -1)
    change(tmp_path / where)
    with lock.exclusive(str(folder), str(folder / "hosts")):
        assert lock.is_held(str(folder))


@AS_ROOT
def test_a_hosts_file_behind_a_link_into_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    """Every folder on the way counts, also that of a link which another link leads to."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "real").touch()
    (tmp_path / "theirs" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "hosts").symlink_to("theirs/link")
    os.chown(tmp_path / "theirs", NOBODY, -1)
    with pytest.raises(lock.LockUnavailableError, match=r"theirs belongs to nobody"):
        lock.exclusive(str(tmp_path / "run"), str(tmp_path / "hosts")).__enter__()
