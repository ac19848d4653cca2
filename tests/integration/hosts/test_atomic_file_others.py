"""A write with other writers: their changes are kept and noticed."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resolver_agent.hosts import block
from resolver_agent.hosts.atomic_file import HostsFileWriter, State, WriteError
from tests.integration.support.hosts_file import OLD, TARGETS, Watched, with_block

if TYPE_CHECKING:
    from collections.abc import Callable


def test_an_edit_right_after_the_rename_is_not_taken_for_ours(hosts: Path) -> None:
    """The recorded signature is that of our own write, so an edit in the same moment is noticed."""
    renamed: list[bool] = []

    def edit_after_rename(function: object) -> None:
        if renamed == [True]:
            renamed.append(False)
            append(hosts)
        if function is os.rename:
            renamed.append(True)

    writer = HostsFileWriter(str(hosts), settle_s=0, system=Watched(edit_after_rename))
    outcome = writer.update(with_block)
    assert renamed == [True, False]
    assert outcome.snapshot.signature != writer.signature()


def append(path: Path) -> None:
    """Edit as ``echo … >>`` does."""
    with path.open("ab") as file:
        file.write(b"10.7.7.7\tmine\n")


def substitute(path: Path) -> None:
    """Edit as ``sed -i`` does: a new file in the old one's place."""
    new = path.with_name("sed")
    new.write_bytes(path.read_bytes().replace(b"other", b"mine"))
    new.rename(path)


def poke(path: Path) -> None:
    """Edit in place with the same size, a second later: some file systems have coarse timestamps."""
    with path.open("r+b") as file:
        file.seek(OLD.index(b"other"))
        file.write(b"mines")
    os.utime(path, (0, time.time() + 1))


def empty_and_write(path: Path) -> None:
    """Edit as ``cat new >`` does."""
    path.write_bytes(path.read_bytes().replace(b"other", b"mine"))


def retarget(path: Path) -> None:
    """Make the file a symbolic link to another."""
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_bytes(path.read_bytes() + b"10.7.7.7\tmine\n")
    path.unlink()
    path.symlink_to(elsewhere)


def steps_of_a_write(hosts: Path) -> list[object]:
    """Return the system calls of a write, and leave the file as it was."""
    calls: list[object] = []
    HostsFileWriter(str(hosts), settle_s=0, system=Watched(calls.append)).update(with_block)
    hosts.write_bytes(OLD)
    return calls


@pytest.mark.parametrize("edit", [append, substitute, poke, empty_and_write, retarget])
def test_edits_of_others_are_kept(hosts: Path, edit: Callable[[Path], None]) -> None:
    """An edit at any step of a write is in the file afterwards, and so is the block.

    One step is left out: an edit between the last check of the file and the rename cannot be noticed.
    """
    steps = steps_of_a_write(hosts)
    for step in range(len(steps)):
        if steps[step] is os.rename:
            continue
        for path in hosts.parent.iterdir():
            path.unlink()
        hosts.write_bytes(OLD)
        passed: list[object] = []

        def before(function: object, *, passed: list[object] = passed, step: int = step) -> None:
            passed.append(function)
            if len(passed) == step + 1:
                edit(hosts)

        HostsFileWriter(str(hosts), settle_s=0, system=Watched(before)).update(with_block)
        content = hosts.read_bytes()
        outside = block.remove(content)
        assert b"mine" in outside, f"lost at step {step}, {steps[step]}"
        assert outside.startswith(OLD[:20])
        assert content != outside
        assert block.render(content, TARGETS) == content


@pytest.mark.parametrize("step", [os.open, os.fsync])
def test_edit_during_a_write_in_place_is_kept(hosts: Path, step: object) -> None:
    """An edit before the file is opened for the write in place, or before it is read back, stays."""
    edits = [append]
    refused = []

    def before(function: object) -> None:
        if function is os.rename:
            refused.append(function)
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if function is step and refused and edits:
            edits.pop()(hosts)

    writer = HostsFileWriter(str(hosts), settle_s=0, system=Watched(before))
    outcome = writer.update(with_block)
    assert outcome.snapshot == writer.read()
    assert b"mine" in outcome.snapshot.content
    assert with_block(outcome.snapshot.content) == outcome.snapshot.content


def test_file_that_never_rests(hosts: Path) -> None:
    """A file that others change during every write keeps all their changes, and the error says so."""
    edits: list[object] = []

    def before(function: object) -> None:
        if function is os.fsync:
            append(hosts)
            edits.append(function)

    with pytest.raises(WriteError, match="was changed by somebody else during each of 20 writes"):
        HostsFileWriter(str(hosts), settle_s=0, system=Watched(before)).update(with_block)
    assert hosts.read_bytes() == OLD + b"10.7.7.7\tmine\n" * 20


@pytest.mark.parametrize("begun", [lambda path: path.write_bytes(b""), Path.unlink], ids=["emptied", "moved away"])
def test_half_written_file_is_waited_for(hosts: Path, begun: Callable[[Path], object]) -> None:
    """A file that was emptied or moved away a moment ago gets time until its writer has filled it."""

    def before(function: object) -> None:
        if function is time.sleep:
            hosts.write_bytes(with_block(OLD))

    writer = HostsFileWriter(str(hosts), settle_s=3600, system=Watched(before))
    writer.update(with_block)
    begun(hosts)
    assert writer.update(with_block).state is State.UNCHANGED
    assert hosts.read_bytes() == with_block(OLD)


def test_own_writes_are_not_waited_for(hosts: Path) -> None:
    """Consecutive changes do not wait as long as no other writer has touched the file."""
    slept: list[object] = []
    writer = HostsFileWriter(str(hosts), settle_s=3600, system=Watched(slept.append))
    writer.update(with_block)
    slept.clear()
    for _ in range(3):
        writer.update(lambda content: content + b"10.7.7.7\tmine\n")
    assert time.sleep not in slept


@pytest.mark.parametrize("edit", [append, substitute, poke, empty_and_write, retarget, Path.unlink])
def test_signature_tells_a_trampled_file(hosts: Path, edit: Callable[[Path], None]) -> None:
    """The signature is that of the last update until another writer changes the file in any way."""
    writer = HostsFileWriter(str(hosts))
    written = writer.update(with_block).snapshot
    assert writer.signature() == written.signature
    edit(hosts)
    assert writer.signature() != written.signature
