"""The lab's mount and network namespaces, invisible to other processes, with its disks and its network."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

_BRIDGE = "lab"
_CLONE_NEWNET = 0x40000000
_DISK_SIZE = "2g"
DATA = "/var/lib/postgresql"
"""Where hosts have the second disk."""

# Takes the bridge's own address, and prints the folder. No packet goes between two addresses that are in the set `cut`.
# All of it lasts while standard input is open, and so while the test run lives.
_HOLD = f"""
folder=$(mktemp --directory --tmpdir resolver-agent-lab-XXXXXXXX)
trap 'rm -rf "$folder"' EXIT
mount -t tmpfs disks /mnt
mkdir -p /run/systemd/nspawn
mount -t tmpfs machines /run/systemd/nspawn
ip link set lo up
ip link add {_BRIDGE} type bridge
ip address add "$1" dev {_BRIDGE}
ip link set {_BRIDGE} up
nft '
    table bridge lab {{
        set cut {{ type ipv4_addr . ipv4_addr; }}
        chain forward {{
            type filter hook forward priority 0;
            ip saddr . ip daddr @cut drop
        }}
    }}
'
echo "$folder"
cat >/dev/null
"""

# Takes a name, and the folders under that disk. What databases write is on a disk of its own, as DBAs like it.
_LAY = f"""
mkdir "/mnt/$1"
mount -t tmpfs -o size={_DISK_SIZE} disk "/mnt/$1"
cd "/mnt/$1"
mkdir upper work root data
mount -t overlay overlay -o "lowerdir=$2,upperdir=upper,workdir=work" root
mount -t tmpfs -o size={_DISK_SIZE} data data
chown --reference="root{DATA}" data
"""


class Ground:
    """A place for containers; a context manager. Nothing is left of it, however the test run ends.

    Attributes:
        folder: for whatever is to go with it; at the same path in it and outside.
        launcher: what a command line begins with to be run in it.
    """

    def __init__(self, address: str) -> None:
        """Make it; we have this address (with a prefix length) in its network."""
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-ec", _HOLD, "sh", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self._namespaces = Path(f"/proc/{self._holder.pid}/ns")
        self.launcher = ("nsenter", f"--target={self._holder.pid}", "--mount", "--net")
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        folder = self._holder.stdout.readline().rstrip("\n")
        if not folder:
            self._holder.communicate()
            raise RuntimeError("the namespaces of the lab could not be set up: see above")
        self.folder = Path(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.communicate()

    def lay(self, disk: str, lower: Sequence[Path]) -> Path:
        """Make a disk on top of these folders, the upper one first, and return its path in here."""
        self.run("sh", "-ec", _LAY, "sh", disk, ":".join(map(str, lower)))
        return Path(f"/mnt/{disk}/root")

    def outside(self, path: Path) -> Path:
        """Return the outside path of a path in here."""
        return Path(f"/proc/{self._holder.pid}/root", *path.parts[1:])

    def plug(self, machine: str) -> None:
        """Connect a container to the network."""
        self.run("ip", "link", "set", f"vb-{machine}", "up")

    def unplug(self, machine: str) -> None:
        """Unplug a container from the network: nothing more arrives from it, not even the end of its connections."""
        self.run("ip", "link", "set", f"vb-{machine}", "down")

    def cut(self, one: str, other: str) -> None:
        """Drop all packets between two addresses."""
        self.run("nft", f"add element bridge lab cut {{ {one} . {other}, {other} . {one} }}")

    def reconnect(self, one: str, other: str) -> None:
        """Stop dropping them."""
        self.run("nft", f"delete element bridge lab cut {{ {one} . {other}, {other} . {one} }}")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Create this thread's sockets in the lab's network, for as long as they live."""
        with Path("/proc/thread-self/ns/net").open() as ours, (self._namespaces / "net").open() as theirs:
            _enter(theirs)
            try:
                yield
            finally:
                _enter(ours)

    def run(self, *command: str) -> str:
        """Run a command in here as root, and return what it prints.

        Raises:
            RuntimeError: it failed; with all of its output.
        """
        done = subprocess.run([*self.launcher, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[:2]} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout


def _enter(namespace: IO[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
