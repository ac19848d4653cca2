"""A Debian container that boots systemd as PID 1: the units run as on a real machine.

The file tree is built once and kept in the user's cache folder; each boot has a volatile overlay over it, with the
package and the units of this checkout bound in. Needs root, and Debian's debootstrap and systemd-container.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import os
import re
import secrets
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Self

CHECKOUT = Path(__file__).parents[3]
UNITS = (CHECKOUT / "systemd/resolver-agent.service", CHECKOUT / "systemd/resolver-agent.socket")
# Takes a folder and cgroups. When the test run has ended, even by a kill, this ends what is left: a container
# lives on when its systemd-nspawn is killed.
_GUARD = """
cat >/dev/null
rm -rf "$1"
shift
for group in "$@"; do
    for attempt in $(seq 100); do
        find "$group" -name cgroup.procs -exec cat {} + | xargs -r kill -KILL
        find "$group" -depth -type d -exec rmdir {} +
        [ -e "$group" ] || break
        sleep 0.1
    done
done 2>/dev/null
"""
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@dataclasses.dataclass(frozen=True, slots=True)
class SystemdHost:
    """A booted container. ``root`` is its file system as seen from outside."""

    leader: int
    root: Path

    def run(self, *command: str, timeout_s: float = 60) -> str:
        """Run a command inside as root and return what it prints.

        Raises:
            RuntimeError: it failed; with all of its output.
        """
        # Ended from inside: killing nsenter would leave its child.
        limit = ("timeout", "--kill-after=1", str(timeout_s))
        return _run("nsenter", "--target", str(self.leader), "--all", *limit, *command, env=_ENVIRONMENT)

    def read(self, path: str) -> bytes:
        """Return the content of a file inside."""
        return (self.root / path.lstrip("/")).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        """Write a file inside."""
        (self.root / path.lstrip("/")).write_bytes(content)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit, by name."""
        lines = self.run("systemctl", "show", unit, f"--property={','.join(properties)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def mark(self) -> str:
        """Return the current time, for ``wait_for``."""
        return f"@{time.time():.6f}"

    def wait_for(self, pattern: str, *, after: str, unit: str = "resolver-agent.service", timeout_s: float = 30) -> str:
        """Wait for a journal line of a unit that matches, later than the mark ``after``, and return it.

        Raises:
            TimeoutError: none came; with all that did.
        """
        # Not by cursor: systemd 252 then leaves out the unit's first line, where the cursor is at another unit's.
        journal = ["journalctl", f"--unit={unit}", f"--since={after}", "--no-tail", "--follow", "--output=cat"]
        command = ["nsenter", "--target", str(self.leader), "--all", *journal]
        seen = []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT, start_new_session=True
        ) as reader:
            alarm = threading.Timer(timeout_s, os.killpg, [reader.pid, signal.SIGKILL])
            alarm.start()
            try:
                for line in reader.stdout or ():
                    seen.append(line)
                    if re.search(pattern, line):
                        return line.rstrip("\n")
            finally:
                alarm.cancel()
                os.killpg(reader.pid, signal.SIGKILL)
        raise TimeoutError(f"no line matched {pattern!r} within {timeout_s} s; the journal of {unit}:\n{''.join(seen)}")


class Container:
    """A container that boots a file tree; a context manager.

    It ends with the thread that made it, at the latest, and leaves nothing behind.
    """

    def __init__(self, machine: str, *options: str, launcher: Sequence[str] = ()) -> None:
        """Start systemd-nspawn with these options, and a command line that begins with ``launcher``.

        The name of the machine is free where it has a network, and a /run/systemd/nspawn, to itself.
        """
        self._leader: int | None = None
        with contextlib.ExitStack() as stack:
            folder = Path(tempfile.gettempdir(), f"resolver-agent-{secrets.token_hex(4)}")
            groups: list[Path] = []
            if not Path("/run/systemd/system").is_dir():  # no systemd outside that could give it a scope
                groups = _cgroups(folder.name)
            guard = subprocess.Popen(
                ["sh", "-c", _GUARD, "sh", str(folder), *map(str, groups)],
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the test run, which then ends the container in order
            )
            stack.callback(guard.communicate)
            for path in (folder, *groups):
                path.mkdir(mode=0o700)
            self._manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self._manager.bind(str(folder / "notify"))
            self._console = stack.enter_context(tempfile.TemporaryFile("w+"))
            command = [*launcher, "setpriv", "--pdeathsig", "TERM", "systemd-nspawn", "--boot", "--register=no"]
            command += ["--quiet", "--notify-ready=yes", "--console=pipe", "--resolv-conf=off", "--timezone=off"]
            command += ["--link-journal=no", f"--machine={machine}", *options]
            if groups:
                join = 'for group in $0; do echo $$ > "$group/cgroup.procs"; done; exec "$@"'
                command = ["sh", "-ec", join, " ".join(map(str, groups)), *command, "--keep-unit"]
            self._nspawn = subprocess.Popen(
                command,
                env=os.environ | {"NOTIFY_SOCKET": str(folder / "notify")},
                stdin=subprocess.DEVNULL,
                stdout=self._console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._nspawn_fd = os.pidfd_open(self._nspawn.pid)
            stack.callback(os.close, self._nspawn_fd)
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def runs(self) -> bool:
        """Whether it is still running."""
        return self._nspawn.poll() is None

    def leader(self, *, timeout_s: float = 60) -> int:
        """Return the process id of its systemd, as soon as there is one: the network is set up by then."""
        if self._leader is None:
            self._leader = int(self._hear(r"^X_NSPAWN_LEADER_PID=(\d+)$", timeout_s=timeout_s))
            self._leader_fd = os.pidfd_open(self._leader)
            self._closing.callback(os.close, self._leader_fd)
        return self._leader

    def booted(self, *, timeout_s: float = 60) -> SystemdHost:
        """Wait until all that starts at its boot has started."""
        leader = self.leader(timeout_s=timeout_s)
        self._hear("^(READY=1)$", timeout_s=timeout_s)
        self._manager.close()  # otherwise it would block on its further output
        return SystemdHost(leader=leader, root=Path(f"/proc/{leader}/root"))

    def wait(self, *, timeout_s: float = 60) -> None:
        """Wait until it has shut down."""
        self._nspawn.wait(timeout_s)
        self._closing.close()

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._manager.close()
        if self.runs:
            # With its systemd everything inside ends, and then systemd-nspawn, which cleans up.
            signal.pidfd_send_signal(self._nspawn_fd if self._leader is None else self._leader_fd, signal.SIGKILL)
            self._nspawn.wait()
        self._closing.close()

    def _hear(self, pattern: str, *, timeout_s: float) -> str:
        """Wait until it says something that matches, and return the first group.

        Raises:
            RuntimeError: it ended, or did not say so in time; with its console.
        """
        deadline = time.monotonic() + timeout_s
        descriptors = [self._manager.fileno(), self._nspawn_fd]
        while descriptors[0] in select.select(descriptors, [], [], max(0, deadline - time.monotonic()))[0]:
            if found := re.search(pattern, self._manager.recv(4096).decode(), re.MULTILINE):
                return found[1]
        self._console.seek(0)
        raise RuntimeError(f"the container ended, or took more than {timeout_s} s to boot:\n{self._console.read()}")


@contextlib.contextmanager
def booted(*, package: Path = CHECKOUT / "resolver_agent") -> Iterator[SystemdHost]:
    """Boot a host with the agent installed but not started; it ends with the context, however that is left."""
    tree = cached_tree()
    (site_packages,) = tree.glob("opt/resolver-agent/lib/python3*/site-packages")
    options = [f"--directory={tree}", "--read-only", "--volatile=overlay", "--private-network"]
    options += [f"--bind-ro={package}:/{site_packages.relative_to(tree)}/resolver_agent"]
    options += [f"--bind-ro={unit}:/etc/systemd/system/{unit.name}" for unit in UNITS]
    with Container(f"resolver-agent-{secrets.token_hex(4)}", *options) as container:
        yield container.booted()


def cached_tree(release: str | None = None) -> Path:
    """Return the file tree of the host: Debian with PostgreSQL, and the agent's dependencies in /opt/resolver-agent.

    ``release`` is Debian's codename, by default this machine's.
    """
    dependencies = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    mirror, own = _debian_source()
    codename = release or own
    recipe = "\n".join([inspect.getsource(_build), codename, *dependencies])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resolver-agent-tests"
    tree = cache / f"debian-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not tree.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as folder:
            _build(Path(folder) / "tree", mirror, codename, dependencies)
            try:
                (Path(folder) / "tree").rename(tree)
            except OSError:
                if not tree.is_dir():  # otherwise another run was quicker
                    raise
    return tree


def _build(tree: Path, mirror: str, codename: str, dependencies: list[str]) -> None:
    packages = "systemd,systemd-sysv,dbus,iproute2,procps,python3,postgresql"
    # In a mount namespace, so that what debootstrap mounts is gone before anybody deletes a half-built tree.
    debootstrap = ("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={packages}")
    _run(*debootstrap, codename, str(tree), mirror)
    (cluster,) = tree.glob("etc/postgresql/*/main")
    chroot = ("chroot", str(tree))
    _run(*chroot, "pg_dropcluster", cluster.parent.name, cluster.name)
    _run(*chroot, "python3", "-m", "venv", "--without-pip", "/opt/resolver-agent")
    (site_packages,) = tree.glob("opt/resolver-agent/lib/python3*/site-packages")
    version = site_packages.parent.name.removeprefix("python")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", f"--python-version={version}")
    _run(*pip, f"--target={site_packages}", *dependencies)
    program = tree / "opt/resolver-agent/bin/resolver-agent"
    program.write_text(
        "#!/opt/resolver-agent/bin/python3\nimport sys\n\nfrom resolver_agent.cli import main\n\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    (tree / "etc/hosts").write_text("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n")


def _debian_source() -> tuple[str, str]:
    """Return the mirror and the release that this machine's own apt is set up with."""
    listed = _run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages")
    return next((uri, name) for uri, name in map(str.split, listed.splitlines()) if "-" not in name)


def _cgroups(name: str) -> list[Path]:
    """Return the path of a cgroup of this name in each hierarchy that systemd uses."""
    top = Path("/sys/fs/cgroup")
    return [h / name for h in (top / "systemd", top / "unified", top) if (h / "cgroup.procs").exists()]


def _run(*command: str, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
