"""A write on many file systems, sound and broken, with readers and with kills."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import resolver_agent
from resolver_agent.hosts import block
from resolver_agent.hosts.atomic_file import HostsFileWriter, State, WriteError
from tests.integration.support.hosts_file import OLD, Faulty, Stingy, Watched, with_block

if TYPE_CHECKING:
    from collections.abc import Callable


CHILD = Path(__file__).parents[1] / "support" / "atomic_file_child.py"


def in_namespace(folder: Path, setup: str, command: str) -> dict[str, Any]:
    """Run the child's ``command`` in ``folder`` after ``setup``, in namespaces whose mounts and processes end with it.

    ``setup`` may set ``$AS`` to a command that runs the child.
    """
    script = f"trap 'chattr -ia . hosts 2>/dev/null || :' EXIT\nAS=\n{setup}\n$AS {sys.executable} {CHILD} {command}"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(resolver_agent.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


def xattr(name: str, value: bytes, path: str = "hosts") -> str:
    """Return the shell command that sets an extended attribute."""
    return f'{sys.executable} -c \'import os; os.setxattr("{path}", "{name}", bytes.fromhex("{value.hex()}"))\''


def acl() -> bytes:
    """Return an ACL as the kernel stores it: mode 0644, plus write access for user 1234."""
    entries = [
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 6, 1234),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 6, 0xFFFFFFFF),
        (0x20, 4, 0xFFFFFFFF),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


POWERLESS = "AS='setpriv --bounding-set=-all --inh-caps=-all'"  # root's user id without root's capabilities
BIND = "mount --bind hosts hosts"
OTHER_DISK = "mount -t tmpfs none ../other; cp hosts ../other; mount --bind ../other/hosts hosts"
READ_ONLY_FOLDER = (
    "cp hosts ../writable; mount --bind . .; cd $PWD; mount --bind ../writable hosts; mount -o remount,bind,ro ."
)
FULL = (
    "mount -t tmpfs -o size=8k,mode=755 none ../other; cp hosts ../other; cd ../other; head -c 8k /dev/zero >fill || :"
)
FULL_IN_PLACE = (
    "yes '# padding' | head -c 8192 >hosts; mount -t tmpfs -o size=8k none ../other; cp hosts ../other;"
    "mount --bind ../other/hosts hosts"
)

REPLACED = [
    pytest.param(":", "", id="ordinary"),
    pytest.param("umask 077", "", id="umask 077"),
    pytest.param("chmod 444 hosts", "", id="read-only file"),
    pytest.param("chmod 555 .", "", id="folder read-only by mode"),
    pytest.param("chown 1234:4321 hosts; chmod 640 hosts", "", id="owner and mode"),
    pytest.param("chown 0:4321 .; chmod 2775 .", "", id="setgid folder"),
    pytest.param(xattr("user.note", b"x"), "", id="user xattr"),
    pytest.param(xattr("trusted.note", b"x"), "", id="trusted xattr"),
    pytest.param(xattr("security.selinux", b"system_u:object_r:net_conf_t:s0\0"), "", id="SELinux label"),
    pytest.param(xattr("system.posix_acl_access", acl()), "", id="ACL"),
    pytest.param(xattr("system.posix_acl_default", acl(), "."), "", id="default ACL of the folder"),
    pytest.param(f"{xattr('user.note', b'x')}; chown 1234 hosts; chmod 400 hosts", "", id="xattr of another owner's"),
    pytest.param("ln hosts ../twin", "its other hard links keep the old content", id="hard link"),
    pytest.param("mkdir ../real; mv hosts ../real/mine; ln -s ../real/mine hosts", "", id="symlink"),
    pytest.param("mv hosts c; ln -s c b; ln -s $PWD/b hosts", "", id="chain of symlinks"),
    pytest.param("seq -f '10.8.8.8 name%.0f' 100000 >hosts", "", id="100,000 lines"),
    pytest.param("printf '10.8.8.8 name' >hosts", "", id="no final newline"),
    pytest.param(": >hosts", "", id="empty file"),
]
CREATED = [
    pytest.param("rm hosts", id="missing"),
    pytest.param("rm hosts; umask 077", id="missing, umask 077"),
    pytest.param(f"{xattr('system.posix_acl_default', acl(), '.')}; rm hosts; umask 0", id="missing, umask 0"),
    pytest.param("rm hosts; mkdir ../real; ln -s ../real/mine hosts", id="dangling symlink"),
]
IN_PLACE = [
    pytest.param(BIND, "it cannot be replaced: Device or resource busy", id="bind mount"),
    pytest.param(OTHER_DISK, "it cannot be replaced: Device or resource busy", id="bind mount of another disk's"),
    pytest.param(READ_ONLY_FOLDER, "it cannot be replaced: Read-only file system", id="read-only folder"),
    pytest.param(f"chmod 555 .; {POWERLESS}", "it cannot be replaced: Permission denied", id="another user's folder"),
]
REFUSED = [
    pytest.param(
        "chattr +i hosts", "WriteError: hosts cannot be written: Operation not permitted; undo a chattr", id="+i"
    ),
    pytest.param(
        "chattr +a hosts", "WriteError: hosts cannot be written: Operation not permitted; undo a chattr", id="+a"
    ),
    pytest.param(
        "chattr +i .", "WriteError: hosts cannot be written: Operation not permitted; undo a chattr", id="folder +i"
    ),
    pytest.param(FULL, "WriteError: hosts cannot be written: No space left on device; free space", id="full disk"),
    pytest.param(
        FULL_IN_PLACE,
        "WriteError: hosts can be neither replaced (Device or resource busy) nor written in place: No space left",
        id="full disk behind a bind mount",
    ),
    pytest.param(
        "mount --bind . .; cd $PWD; mount -o remount,bind,ro .",
        "WriteError: hosts can be neither replaced (Read-only file system) nor written in place: Read-only file system;"
        " mount it writable",
        id="read-only disk",
    ),
    pytest.param(
        "rm hosts; mount --bind . .; cd $PWD; mount -o remount,bind,ro .",
        "WriteError: hosts cannot be written: Read-only file system; mount it writable",
        id="missing on a read-only disk",
    ),
    pytest.param(
        f"chmod 444 hosts; chmod 555 .; {POWERLESS}; chown 1234 hosts",
        "WriteError: hosts can be neither replaced (Permission denied) nor written in place: Permission denied; run as",
        id="nothing permitted",
    ),
    pytest.param(
        f"chown 1234 hosts; {POWERLESS}",
        "WriteError: hosts cannot be written: Operation not permitted; undo a chattr +i or +a on it or its folder, "
        "or run as its owner or as root (with CAP_CHOWN)",
        id="owner cannot be kept",
    ),
    pytest.param(
        f"chmod 0 hosts; chown 1234 hosts; {POWERLESS}", "ReadError: hosts cannot be read: Perm", id="unreadable"
    ),
    pytest.param(
        "rm hosts; ln -s ../nowhere/hosts hosts",
        "WriteError: hosts cannot be written: No such file or directory; create its folder",
        id="symlink into a missing folder",
    ),
    pytest.param(
        "rm hosts; ln -s hosts hosts", "ReadError: hosts cannot be looked up: Too many levels", id="symlink loop"
    ),
    pytest.param("rm hosts; mkdir hosts", "ReadError: hosts is no regular file", id="a folder in its place"),
    pytest.param("rm hosts; mkfifo hosts", "ReadError: hosts is no regular file", id="a pipe in its place"),
]


def write_in(hosts: Path, setup: str) -> dict[str, Any]:
    """Write the block in a file system made by ``setup``; check what holds for each: no temporary file stays."""
    (hosts.parent.parent / "other").mkdir()
    told = in_namespace(hosts.parent, setup, "write")
    siblings = told["after"].get("siblings", [])
    assert not [name for name in siblings if "resolver-agent" in name]
    if told["state"] != "error":
        assert told["after"]["content"] == told["expected"]
        assert (told["again"], told["signature_holds"]) == ("unchanged", True)
    return told


@pytest.mark.parametrize(("setup", "detail"), REPLACED)
def test_file_is_replaced(hosts: Path, setup: str, detail: str) -> None:
    """A new file replaces the old one and has its owner, mode, extended attributes and links."""
    told = write_in(hosts, setup)
    before, after = told["before"], told["after"]
    assert (told["state"], told["detail"]) == ("replaced", detail)
    assert after["inode"] != before["inode"]
    assert (after["kept"], after["link"], after["siblings"]) == (before["kept"], before["link"], before["siblings"])


@pytest.mark.parametrize("setup", CREATED)
def test_file_is_created(hosts: Path, setup: str) -> None:
    """A missing file is created, readable by every user whatever the umask; a symlink to it stays one."""
    told = write_in(hosts, setup)
    before, after = told["before"], told["after"]
    assert (told["state"], told["detail"]) == ("replaced", "")
    assert after["kept"]["mode"] == "0o100644"
    assert after["link"] == before["link"]


@pytest.mark.parametrize(("setup", "detail"), IN_PLACE)
def test_file_is_written_in_place(hosts: Path, setup: str, detail: str) -> None:
    """A file that cannot be replaced is written in place, and the reason is reported."""
    told = write_in(hosts, setup)
    assert (told["state"], told["detail"]) == ("written in place", detail)
    assert {**told["after"], "content": ""} == {**told["before"], "content": ""}


@pytest.mark.parametrize(("setup", "message"), REFUSED)
def test_file_is_left_alone(hosts: Path, setup: str, message: str) -> None:
    """Where neither works the old content stays to the byte, and the error has the file, the fault and the fix."""
    told = write_in(hosts, setup)
    assert told["state"] == "error"
    assert told["detail"].startswith(message)
    assert told["after"] == told["before"]


@pytest.mark.parametrize(
    ("setup", "kinds", "steps"),
    [
        pytest.param(":", {"old", "new"}, 40, id="replaced"),
        pytest.param("rm hosts", {"old", "new"}, 30, id="created"),
        pytest.param(BIND, {"old", "new", "old and blank lines", "new and blank lines"}, 60, id="in place"),
    ],
)
def test_killed_at_every_step(hosts: Path, setup: str, kinds: set[str], steps: int) -> None:
    """Whenever the writer is killed the file is old or new, and the next start removes all other traces."""
    found = in_namespace(hosts.parent, setup, "die")["found"]
    assert len(found) >= steps
    assert {step["left"] for step in found} == kinds
    assert all(step["goes_on"] for step in found)
    assert {name for step in found for name in step["siblings"]} <= {"hosts"}


def test_several_writers_at_once(hosts: Path) -> None:
    """Two agents and two administrators change one file: readers see it whole, and no temporary file stays."""
    told = in_namespace(hosts.parent, ":", "race")
    assert told["amiss"] == []
    assert told["looks"] > 100
    assert told["siblings"] == ["hosts"]


def test_reader_sees_every_name_during_1000_changes(tmp_path: Path) -> None:
    """Lookups by glibc in a tight loop always give one right address, for the first line, last line and block."""
    setup = "mkdir etc; cp -L /etc/ld.so.cache etc; echo 'hosts: files' >etc/nsswitch.conf; mount --bind etc /etc"
    told = in_namespace(tmp_path, setup, "resolve")
    assert told["states"] == ["replaced"]
    seen = told["seen"]
    assert seen.keys() == {"wk1 10.0.0.1", "wk1 10.100.100.100", "first 10.9.9.1", "last 10.9.9.2"}
    assert seen["last 10.9.9.2"] > 500


FAULTS = [
    pytest.param({(os.rename, 1): errno.EXDEV}, State.IN_PLACE, "it cannot be replaced: Invalid cross", id="EXDEV"),
    pytest.param({(os.rename, 1): errno.ENOENT}, State.REPLACED, "", id="temporary file swept away by another agent"),
    pytest.param({(os.listxattr, 0): errno.ENOTSUP}, State.REPLACED, "", id="no xattrs"),
    pytest.param(
        {(os.setxattr, 1): errno.EPERM},
        State.REPLACED,
        "its attribute user.note is lost: Operation not",
        id="label refused",
    ),
    pytest.param(
        {(os.fsync, 2): errno.EIO}, State.REPLACED, "a power cut may bring the old file back", id="folder not flushed"
    ),
    pytest.param({(os.pwrite, 1): errno.ENOSPC}, None, "free space on its file system", id="ENOSPC"),
    pytest.param({(os.pwrite, 1): errno.EDQUOT}, None, "raise the quota of its owner", id="EDQUOT"),
    pytest.param({(os.fsync, 1): errno.EIO}, None, "check the disk; the kernel's log says more", id="EIO"),
    pytest.param({(os.setxattr, 1): errno.ENOSPC}, None, "free space on its file system", id="ENOSPC for an xattr"),
    pytest.param({(os.fchmod, 1): errno.EPERM}, None, "run as its owner or as root", id="mode refused"),
    pytest.param(
        {(os.rename, 1): errno.EBUSY, (os.pwrite, 2): errno.ENOSPC},
        None,
        "free space",
        id="in place, ENOSPC when growing",
    ),
    pytest.param(
        {(os.rename, 1): errno.EBUSY, (os.pwrite, 3): errno.EIO},
        None,
        "check the disk",
        id="in place, EIO when writing",
    ),
    pytest.param(
        {(os.rename, 1): errno.EBUSY, (os.ftruncate, 1): errno.EIO},
        None,
        "check the disk",
        id="in place, EIO when cutting",
    ),
]


@pytest.mark.parametrize(("faults", "state", "words"), FAULTS)
def test_failing_call(
    hosts: Path, faults: dict[tuple[Callable[..., object], int], int], state: State, words: str
) -> None:
    """Whichever call fails, the file is new and the problem reported, or it is old and the error has the fix."""
    before = with_block(b"").replace(b"10.100.100.100", b"10.0.0.1") + OLD
    hosts.write_bytes(before)
    os.setxattr(hosts, "user.note", b"x")
    writer = HostsFileWriter(str(hosts), settle_s=0, system=Faulty(faults))
    if state:
        outcome = writer.update(with_block)
        assert outcome.state is state
        assert outcome.detail.startswith(words)
        assert hosts.read_bytes() == with_block(before)
    else:
        with pytest.raises(WriteError, match=words):
            writer.update(with_block)
        assert hosts.read_bytes() == before
    assert [path.name for path in hosts.parent.iterdir()] == ["hosts"]


def test_short_writes_are_gone_on_with(hosts: Path) -> None:
    """When the kernel takes only a part of the bytes, the rest follows, and the file is whole."""
    HostsFileWriter(str(hosts), settle_s=0, system=Stingy()).update(with_block)
    assert hosts.read_bytes() == with_block(OLD)


def test_new_file_is_closed_until_it_has_its_rights(hosts: Path) -> None:
    """Until it has the old file's mode and owner only its owner can open the new one."""
    hosts.chmod(0o640)
    modes: list[int] = []

    def before(function: object) -> None:
        if function is os.fchmod:
            modes.extend(path.stat().st_mode & 0o777 for path in hosts.parent.iterdir() if path != hosts)

    HostsFileWriter(str(hosts), settle_s=0, system=Watched(before)).update(with_block)
    assert modes == [0o600]


def test_digest_of_the_old_content_is_not_copied(hosts: Path) -> None:
    """With the kernel's digest of the old content the new file would be refused."""
    os.setxattr(hosts, "security.ima", b"\x01" + bytes(20))
    assert HostsFileWriter(str(hosts)).update(with_block).detail == ""
    assert "security.ima" not in os.listxattr(hosts)


def test_transform_that_refuses(hosts: Path) -> None:
    """An error of the transform itself is raised, and the file is left alone."""
    hosts.write_bytes(b"# BEGIN resolver-agent\n")
    with pytest.raises(block.BlockError):
        HostsFileWriter(str(hosts)).update(with_block)
    assert hosts.read_bytes() == b"# BEGIN resolver-agent\n"


def test_nothing_to_do_writes_nothing(hosts: Path) -> None:
    """An update without a change touches neither file nor folder; a missing file is not created."""
    before = (hosts.stat().st_ctime_ns, hosts.parent.stat().st_ctime_ns)
    assert HostsFileWriter(str(hosts)).update(lambda content: content).state is State.UNCHANGED
    assert (hosts.stat().st_ctime_ns, hosts.parent.stat().st_ctime_ns) == before
    missing = hosts.with_name("missing")
    assert HostsFileWriter(str(missing)).update(lambda content: content).snapshot.signature is None
    assert not missing.exists()


@pytest.mark.parametrize("left", [b"", None], ids=["emptied", "moved away"])
def test_a_file_that_is_just_written_is_read_afterwards(hosts: Path, left: bytes | None) -> None:
    """Who acts on the content waits for the other program; a file that nobody has changed lately is read at once."""
    other, waits = hosts.with_name("other"), []

    def before(function: object) -> None:
        if function is time.sleep:  # the other program finishes meanwhile
            waits.append(function)
            other.write_bytes(with_block(OLD))
            os.utime(other, (1e9, 1e9))
            other.rename(hosts)

    writer = HostsFileWriter(str(hosts), settle_s=30, system=Watched(before))
    hosts.unlink()
    if left is not None:
        hosts.write_bytes(left)
    assert writer.read_settled().content == with_block(OLD)
    assert len(waits) == 1
    assert writer.read_settled().content == with_block(OLD)
    assert len(waits) == 1


def test_sweep_takes_our_leftovers_only(hosts: Path) -> None:
    """Temporary files of killed writers, next to the real file, are removed; similar names of others stay."""
    real = hosts.parent.parent / "real"
    real.mkdir()
    (real / "mine").write_bytes(OLD)
    hosts.unlink()
    hosts.symlink_to(real / "mine")
    ours = ["hosts.resolver-agent.1.0123abcd", "hosts.resolver-agent.4711.ffffffff"]
    theirs = [
        "hosts.bak",
        "hosts.resolver-agent",
        "hosts.resolver-agent.1.0123abcd.old",
        "hosts.resolver-agent.x.0123abcd",
    ]
    for name in (*ours, *theirs):
        (real / name).touch()
    assert HostsFileWriter(str(hosts)).sweep() == tuple(ours)
    assert sorted(path.name for path in real.iterdir()) == [*theirs, "mine"]
    assert HostsFileWriter(str(hosts.with_name("no") / "where")).sweep() == ()
