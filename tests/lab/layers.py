"""The file trees under the lab's hosts: a Debian, and on it what provisioning installs, in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.support.systemd_host import CHECKOUT, cached_tree

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROVISION = CHECKOUT / "vagrant/provision"
SOURCES = Path("/srv/resolver-agent")
"""Where hosts find the checkout, as Vagrant's do."""

WHEELS = Path("/srv/wheels")
"""Where they find Python's packages, as they have no network; the rest is pip's environment."""

PIP = {"PIP_NO_CACHE_DIR": "1", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The lower folders, the one that is written to, a work folder, the wheels, a checkout, and a command.
_ENTER = f"""
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" /mnt
mount -t proc proc /mnt/proc
mkdir -p /mnt{WHEELS} /mnt{SOURCES}
mount -o bind,ro "$4" /mnt{WHEELS}
mount -o bind,ro "$5" /mnt{SOURCES}
mount -o bind,ro /etc/resolv.conf /mnt/etc/resolv.conf
shift 5
exec chroot /mnt "$@"
"""

# The lab needs more: a network that comes up by itself, journals that outlive a boot, and libcurl for Citus.
_BESIDES = """
systemctl enable --quiet systemd-networkd.service
mkdir -p /var/log/journal
apt-get install -qq --no-install-recommends libcurl4
apt-get clean
"""

# What shows that a package works on a host, and what Ansible needs there; without the first line man pages would not be
# unpacked.
_PACKAGE_TOOLS = """
rm -f /etc/dpkg/dpkg.cfg.d/*
apt-get update -qq
apt-get install -qq --no-install-recommends bash-completion man-db python3-apt python3-venv rpm
[ ! -d /etc/postgresql/*/main ] || pg_dropcluster "$(basename /etc/postgresql/*)" main
[ -e /etc/hosts ] || echo '127.0.0.1 localhost' >/etc/hosts
apt-get clean
"""


def own_root() -> Path | None:
    """Return the tree of another Debian that RESOLVER_AGENT_LAB_ROOT names, if it does."""
    path = os.environ.get("RESOLVER_AGENT_LAB_ROOT")
    return Path(path) if path else None


def installed() -> tuple[list[Path], Path]:
    """Return the folders that make a tree where ``install.sh`` has run, the upper one first, and the one of wheels.

    The agent in it may be that of an older checkout.
    """
    base = own_root() or cached_tree()
    [python] = [*base.glob("opt/python/lib/python3.*")] or base.glob("usr/lib/python3.*")
    wanted = _wanted()
    wheels = base.with_name(f"wheels-{_digest(python.name, *wanted)}")
    _once(wheels, lambda folder: _collect(folder, wanted, version=python.name.removeprefix("python")))
    layer = base.with_name(f"lab-{_digest(base.name, wheels.name, _BESIDES, (PROVISION / 'debian.sh').read_text())}")
    _once(layer, lambda folder: _install(folder, base, wheels))
    return [layer, base], wheels


def with_package_tools(tree: str | None = None) -> list[Path]:
    """Return the folders that make a tree with dpkg, rpm, man and bash-completion, the upper one first.

    ``tree`` is the path of what debootstrap has made, the codename of a Debian, or by default this machine's release.
    """
    base = Path(tree) if tree and "/" in tree else cached_tree(tree)
    layer = base.with_name(f"package-tools-{_digest(base.name, _PACKAGE_TOOLS)}")
    _once(layer, lambda folder: _run_in(folder, [base], CHECKOUT, CHECKOUT, "sh", "-ec", _PACKAGE_TOOLS))
    return [layer, base]


def centos7_wheels() -> Path:
    """Return the folder of the wheels that pip installs on the lab's CentOS 7, whose glibc is 2.17."""
    _, ours = installed()
    found = re.search(r"^python_version=(3\.\d+)", (PROVISION / "centos7.sh").read_text(), re.MULTILINE)
    assert found is not None
    wheels = ours.with_name(f"centos7-{_digest(ours.name, found[1])}")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--find-links={ours}")
    platforms = [f"--platform={name}_x86_64" for name in ("manylinux2014", "manylinux_2_17")]
    options = (*platforms, "--implementation=cp", f"--python-version={found[1]}")
    _once(wheels, lambda folder: _run(*pip, *options, f"--dest={folder}", *_wanted()))
    return wheels


def copy_checkout(folder: Path) -> Path:
    """Copy what provisioning takes from this checkout into a new folder, as a fixed state, and return the folder."""
    folder.mkdir()
    for name in ("README.md", "pyproject.toml", "resolver_agent", "systemd", "vagrant"):
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".vagrant"))
        else:
            shutil.copy(source, folder)
    return folder


def install(upper: Path, lower: Sequence[Path], *, wheels: Path, checkout: Path) -> str:
    """Run ``install.sh`` on a tree of these lower folders, keep its changes in an upper one, and return its output.

    Raises:
        RuntimeError: it failed; with all of its output.
    """
    return _run_in(upper, lower, wheels, checkout, "bash", str(SOURCES / "vagrant/provision/install.sh"))


def _wanted() -> list[str]:
    """Return what pip is asked for on a host of the lab, to build the agent too."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    return wanted + (PROVISION / "requirements.txt").read_text().splitlines()


def _install(upper: Path, base: Path, wheels: Path) -> None:
    install(upper, [base], wheels=wheels, checkout=CHECKOUT)
    _run_in(upper, [base], wheels, CHECKOUT, "sh", "-ec", _BESIDES)


def _run_in(upper: Path, lower: Sequence[Path], wheels: Path, checkout: Path, *command: str) -> str:
    upper.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=upper.parent) as work:
        folders = (":".join(map(str, lower)), upper, work, wheels, checkout)
        return _run(
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-ec", _ENTER, "sh", *map(str, folders)),
            *command,
            environment={"PATH": _PATH, "LANG": "C.UTF-8"} | PIP,
        )


def _collect(wheels: Path, wanted: Sequence[str], *, version: str) -> None:
    """Collect the wheels of these requirements: missing ones are built, version-specific ones are for ``version``."""
    wheels.mkdir()
    pip = (sys.executable, "-m", "pip")
    _run(*pip, "wheel", "--quiet", "--use-pep517", f"--wheel-dir={wheels}", *wanted)
    download = ("download", "--quiet", "--only-binary=:all:", f"--python-version={version}")
    _run(*pip, *download, f"--find-links={wheels}", f"--dest={wheels}", *wanted)


def _once(path: Path, make: Callable[[Path], object]) -> None:
    """Make what does not exist yet, completely or not at all, however many processes do so at a time."""
    if path.exists():
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as folder:
        make(Path(folder) / "made")
        try:
            (Path(folder) / "made").rename(path)
        except OSError:
            if not path.exists():
                raise


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment or os.environ,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} … exited with {done.returncode}:\n{done.stdout}")
    return done.stdout
