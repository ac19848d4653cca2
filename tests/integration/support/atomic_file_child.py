"""Child processes of test_atomic_file.py, for a mount namespace of their own or to be killed.

Each prints one JSON object. They start in the folder of the file, which is called ``hosts`` there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from resolver_agent.hosts import block
from resolver_agent.hosts.atomic_file import HostsFileError, HostsFileWriter, System, WriteError
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")

PATH = "hosts"
SHORT, LONG = "10.0.0.1", "10.100.100.100"


def pointing_to(address: str) -> Callable[[bytes], bytes]:
    """Return the change that points wk1 to ``address``."""
    targets = [Target(name="wk1", address=address, kind=TargetKind.STANDBY, wanted_role=Role.STANDBY)]
    return lambda content: block.render(content, targets)


def state_of(path: Path) -> dict[str, Any]:
    """Return all that must survive a write, and the content."""
    if not path.exists():
        return {"exists": False, "link": path.is_symlink() and str(path.readlink())}
    status = path.stat()
    readable = path.is_file() and os.access(path, os.R_OK)
    return {
        "exists": True,
        "link": path.is_symlink() and str(path.readlink()),
        "content": path.read_bytes().decode("latin-1") if readable else None,
        "inode": status.st_ino,
        "kept": {
            "mode": oct(status.st_mode),
            "owner": [status.st_uid, status.st_gid],
            "xattrs": {name: os.getxattr(path, name).hex() for name in os.listxattr(path)},
        },
        "siblings": sorted(found.name for found in path.resolve().parent.iterdir()),
    }


def write() -> dict[str, Any]:
    """Write the block twice, and report the results."""
    path = Path(PATH)
    writer = HostsFileWriter(PATH)
    before = state_of(path)
    told: dict[str, Any] = {"before": before}
    try:
        first = writer.update(pointing_to(LONG))
        second = writer.update(pointing_to(LONG))
        told |= {"state": first.state.value, "detail": first.detail, "again": second.state.value}
        told["signature_holds"] = first.snapshot == second.snapshot == writer.read()
    except HostsFileError as error:
        told |= {"state": "error", "detail": f"{type(error).__name__}: {error}"}
    told["after"] = state_of(path)
    if told["state"] != "error":
        told["expected"] = pointing_to(LONG)(before.get("content", "").encode("latin-1")).decode("latin-1")
    return told


class Mortal(System):
    """Kills its process at the n-th system call, before making it."""

    def __init__(self, last: int) -> None:
        self.left = last

    def call(self, function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Make the call unless it is the n-th."""
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().call(function, *args, **kwargs)


def write_and_die(change: Callable[[bytes], bytes], last: int) -> bool:
    """Write in a child that is killed at its n-th system call; return whether it was."""
    child = os.fork()
    if not child:
        HostsFileWriter(PATH, settle_s=0, system=Mortal(last)).update(change)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def kind_of(content: bytes, *, old: bytes, new: bytes) -> str:
    """Describe the files that a killed writer left."""
    for name, whole in (("old", old), ("new", new)):
        if content == whole:
            return name
        if content.startswith(whole) and not content[len(whole) :].strip(b"\n"):
            return f"{name} and blank lines"
    return f"torn: {content!r}"


def die() -> dict[str, Any]:
    """Change the file back and forth, killed at every step, and report the state after each."""
    path = Path(PATH)
    missing = not path.exists()
    found = []
    for address in (LONG, SHORT):  # the file grows, then shrinks
        change = pointing_to(address)
        killed, step = True, 0
        while killed:
            step += 1
            old = b"" if missing else path.read_bytes()
            new = change(old)
            killed = write_and_die(change, step)
            left = path.read_bytes() if path.exists() else b""
            HostsFileWriter(PATH).sweep()
            siblings = sorted(child.name for child in Path().iterdir())
            HostsFileWriter(PATH, settle_s=0).update(change)
            goes_on = path.read_bytes() == change(left)
            found.append({"left": kind_of(left, old=old, new=new), "siblings": siblings, "goes_on": goes_on})
            if missing:
                path.unlink()
            elif killed:
                path.write_bytes(old)
    return {"found": found}


def resolve_until_stopped(report: int) -> None:
    """Look up names as fast as possible until SIGTERM, then write the answers and their number to ``report``."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    seen: Counter[str] = Counter()
    while not stopped:
        for name in ("wk1", "first", "last"):
            try:
                addresses = sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None)})
            except OSError as error:
                addresses = [str(error)]
            seen[" ".join([name, *addresses])] += 1
        if seen.total() == len(seen):
            os.write(report, b"\n")  # the first round is done
    os.write(report, json.dumps(seen).encode())


def resolve() -> dict[str, Any]:
    """Make 1,000 changes to /etc/hosts while another process resolves, and report what it saw."""
    filler = "".join(f"10.8.{i >> 8}.{i & 255} filler{i}\n" for i in range(500))
    Path("/etc/hosts").write_text(f"10.9.9.1 first\n{filler}10.9.9.2 last\n", encoding="ascii")
    writer = HostsFileWriter("/etc/hosts", settle_s=0)
    writer.update(pointing_to(SHORT))
    reading, writing = os.pipe()
    reader = os.fork()
    if not reader:
        with contextlib.suppress(BaseException):
            resolve_until_stopped(writing)
        os._exit(0)
    os.close(writing)
    os.read(reading, 1)
    states = [writer.update(pointing_to((SHORT, LONG)[i % 2])).state.value for i in range(1, 1001)]
    os.kill(reader, signal.SIGTERM)
    with os.fdopen(reading) as report:
        seen = json.loads(report.read())
    os.waitpid(reader, 0)
    return {"states": sorted(set(states)), "seen": seen}


def change_often(address: str) -> None:
    """Change the block 200 times, as an agent."""
    writer = HostsFileWriter(PATH, settle_s=0)
    for i in range(200):
        with contextlib.suppress(WriteError):  # the others left it no chance
            writer.update(pointing_to((address, SHORT)[i % 2]))


def edit_often(name: str) -> None:
    """Replace the file 200 times, as an administrator with ``sed -i``."""
    new = Path(name)
    for _ in range(200):
        new.write_bytes(Path(PATH).read_bytes() + b"# edited\n")
        new.rename(PATH)


def race() -> dict[str, Any]:
    """Run agents and administrators on one file, and report the faults that a reader saw."""
    path = Path(PATH)
    head = path.read_bytes()
    children = []
    for work, argument in (
        (change_often, LONG),
        (change_often, "10.0.0.2"),
        (edit_often, "sed1"),
        (edit_often, "sed2"),
    ):
        child = os.fork()
        if not child:
            work(argument)
            os._exit(0)
        children.append(child)
    amiss, looks = set(), 0
    while children:
        looks += 1
        content = path.read_bytes()
        if not content.startswith(head):
            amiss.add(f"outside: {content!r}")
        try:
            block.recall(content)
        except block.BlockError as error:
            amiss.add(str(error))
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            children.remove(child)
            amiss |= {f"a writer failed: {status}"} if status else set()
    return {"amiss": sorted(amiss), "looks": looks, "siblings": sorted(found.name for found in Path().iterdir())}


if __name__ == "__main__":
    print(json.dumps({"write": write, "die": die, "race": race, "resolve": resolve}[sys.argv[1]]()))
