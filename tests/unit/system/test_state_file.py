"""Files that outlive a restart: written whole, read within bounds, and trusted only where nobody else may write."""

from __future__ import annotations

import os
import re
import resource
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from resolver_agent.system import state_file
from resolver_agent.system.state_file import StateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

WRITERS = [pytest.param(state_file.write, id="write"), pytest.param(state_file.append, id="append")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a file that does not exist, in a folder that does not exist."""
    return tmp_path / "lib" / "agent" / "file"


def read(path: Path) -> bytes:
    """Read up to 10 bytes."""
    return state_file.read(str(path), most_bytes=10)


def test_a_file_that_is_missing_is_empty(path: Path) -> None:
    """A first start is no fault, and reading makes nothing."""
    assert read(path) == b""
    assert not path.parent.exists()


def test_a_small_file_takes_little_memory(path: Path) -> None:
    """However much may be read, what is read counts."""
    state_file.write(str(path), b"old")
    tracemalloc.start()
    try:
        assert state_file.read(str(path), most_bytes=16 << 20) == b"old"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_is_replaced(path: Path) -> None:
    """The old file stays whole for those who read it, and no other file is left behind."""
    state_file.write(str(path), b"old")
    with path.open("rb") as before:
        state_file.write(str(path), b"new")
        assert before.read() == b"old"
    assert read(path) == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("save", WRITERS)
def test_everybody_may_read(save: Callable[[str, bytes], None], path: Path) -> None:
    """The file and the folders that are made have the same modes under any umask."""
    before = os.umask(0o077)
    try:
        save(str(path), b"x")
    finally:
        os.umask(before)
    modes = [one.stat().st_mode & 0o777 for one in (path, path.parent, path.parent.parent)]
    assert modes == [0o644, 0o755, 0o755]


def test_lines_are_added(path: Path) -> None:
    """What is there stays."""
    state_file.append(str(path), b"a\n")
    state_file.append(str(path), b"b\n")
    assert read(path) == b"a\nb\n"


def test_what_a_killed_agent_left_is_no_hindrance(path: Path) -> None:
    """The half of a new file is removed before the next write."""
    path.parent.mkdir(parents=True)
    path.with_name("file.new").write_bytes(b"ha")
    state_file.write(str(path), b"whole")
    assert list(path.parent.iterdir()) == [path]


def test_the_bound(path: Path) -> None:
    """A file at the bound is read; a larger one is refused, of whatever size."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 10)
    assert read(path) == b"x" * 10
    os.truncate(path, 1 << 40)
    with pytest.raises(StateError, match=r"file is larger than 10 bytes: delete it$"):
        read(path)


def pipe(path: Path) -> None:
    """Make a pipe that nobody writes to."""
    os.mkfifo(path)


def link(path: Path) -> None:
    """Make a link to another file."""
    path.with_name("other").write_bytes(b"theirs")
    path.symlink_to(path.with_name("other"))


def second_name(path: Path) -> None:
    """Make a second name of another file."""
    path.with_name("other").write_bytes(b"theirs")
    path.hardlink_to(path.with_name("other"))


def folder(path: Path) -> None:
    """Make a folder."""
    path.mkdir()


@pytest.mark.parametrize("make", [pipe, link, second_name, folder])
@pytest.mark.parametrize("use", [pytest.param(read, id="read"), pytest.param(None, id="append")])
def test_what_is_no_file_of_its_own(
    make: Callable[[Path], None], use: Callable[[Path], bytes] | None, path: Path
) -> None:
    """It is refused at once and not followed: a link would have root read or write another file."""
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(StateError, match=r"file is no regular file.*: delete it$"):
        use(path) if use is not None else state_file.append(str(path), b"ours")
    other = path.with_name("other")
    assert not other.exists() or other.read_bytes() == b"theirs"


@pytest.mark.parametrize("save", WRITERS)
def test_a_folder_that_cannot_be_made(save: Callable[[str, bytes], None], tmp_path: Path) -> None:
    """The message names the file, the fault and what to do."""
    (tmp_path / "lib").touch()
    fault = f"{tmp_path}/lib/file: Not a directory; make it usable for this user, or name another state_dir"
    with pytest.raises(StateError, match=f"^{re.escape(fault)}$"):
        save(str(tmp_path / "lib" / "file"), b"x")


def test_a_full_disk(path: Path) -> None:
    """The old file stays as it is."""
    state_file.write(str(path), b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        with pytest.raises(StateError, match="File too large"):
            state_file.write(str(path), b"too much")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read(path) == b"old"


@AS_ROOT
@pytest.mark.parametrize(
    ("uid", "mode"), [pytest.param(NOBODY, 0o644, id="another user's"), pytest.param(0, 0o666, id="for everybody")]
)
def test_root_trusts_no_file_that_others_may_change(uid: int, mode: int, path: Path) -> None:
    """They could tell root where a name should point."""
    state_file.write(str(path), b"x")
    os.chown(path, uid, -1)
    path.chmod(mode)
    who = "root" if uid == 0 else "nobody"
    for use in (read, lambda path: state_file.append(str(path), b"y")):
        with pytest.raises(StateError, match=rf"file belongs to {who} \(mode {mode:04o}\), expected .*: delete it$"):
            use(path)


@AS_ROOT
def test_root_uses_no_folder_that_others_may_write(path: Path) -> None:
    """The message has the key and the fix, and nothing is read or written."""
    state_file.write(str(path), b"x")
    os.chown(path.parent, NOBODY, -1)
    fault = f"state_dir {path.parent}: {path.parent} belongs to nobody, .*`chown root` it, or name another state_dir$"
    for use in (read, lambda path: state_file.write(str(path), b"y"), lambda path: state_file.append(str(path), b"y")):
        with pytest.raises(StateError, match=fault):
            use(path)
    assert path.read_bytes() == b"x"
