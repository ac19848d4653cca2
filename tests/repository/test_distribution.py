"""What systemd/packages/build.py builds: the same bytes each time, what Debian and rpm want, and a bundle for pip."""

from __future__ import annotations

import gzip
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resolver_agent import __version__
from tests.integration.support.distribution import EPOCH

if TYPE_CHECKING:
    from tests.integration.support.distribution import Packages

TOP = Path(__file__).parents[2]
RECIPES = TOP / "systemd/packages"
HOME = "usr/lib/resolver-agent"
SHARED = ["monitoring/alerts.yml", "monitoring/alerts_test.yml", "monitoring/grafana.json", "patroni-hooks.yml"]
SHARED += ["doctor.schema.json", "local-off.conf", "resolver-agent.yml", "role.sql", "status.schema.json"]
INSTALLED = {
    "usr/bin/resolver-agent",
    f"{HOME}/maintain",
    *(f"usr/lib/systemd/system/{path.name}" for path in (TOP / "systemd").glob("*.s[eo][rc]*")),
    "usr/share/bash-completion/completions/resolver-agent",
    "usr/share/fish/vendor_completions.d/resolver-agent.fish",
    "usr/share/man/man5/resolver-agent.yml.5.gz",
    "usr/share/man/man8/resolver-agent.8.gz",
    *(f"usr/share/resolver-agent/{name}" for name in SHARED),
    *(f"usr/share/doc/resolver-agent/{name}" for name in ("README.md", "systemd/README.md", "systemd/README.zh-CN.md")),
    *(f"usr/share/doc/resolver-agent/examples/{name}" for name in ("patroni-hooks.yml", "resolver-agent.yml")),
}
OF_DEB = {
    *(f"usr/share/doc/resolver-agent/{name}" for name in ("changelog.gz", "changelog.Debian.gz", "copyright")),
    "usr/share/lintian/overrides/resolver-agent",
    "usr/share/zsh/vendor-completions/_resolver-agent",
}
OF_RPM = {
    "usr/share/doc/resolver-agent/CHANGELOG.md",
    *(f"usr/share/licenses/resolver-agent/{name}" for name in ("LICENSE", "copyright")),
    "usr/share/zsh/site-functions/_resolver-agent",
}

AARCH64 = (183).to_bytes(2, "little")
"""In the header of an ELF file."""

# What rpm 4.11 of CentOS 7 can do, of what a package can ask of rpm itself.
OLD_RPM = {
    "rpmlib(CompressedFileNames)",
    "rpmlib(FileDigests)",
    "rpmlib(PayloadFilesHavePrefix)",
    "rpmlib(PayloadIsXz)",
    "rpmlib(TildeInVersions)",
}


def run(*command: str | Path) -> str:
    """Run a program, and return what it prints."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def extracted(package: Path, folder: Path) -> Path:
    """Extract a .deb or an .rpm into a new folder, and return it."""
    folder.mkdir()
    unpack = "dpkg-deb --fsys-tarfile -" if package.suffix == ".deb" else "rpm2archive --nocompression -"
    run("sh", "-ec", f'{unpack} <"$1" | tar --extract --directory="$2"', "sh", package, folder)
    return folder


@pytest.fixture(scope="module")
def deb(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what the .deb installs."""
    return extracted(packages.get("debian12"), tmp_path_factory.mktemp("extracted") / "deb")


@pytest.fixture(scope="module")
def rpm(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what the .rpm installs."""
    return extracted(packages.get("el9"), tmp_path_factory.mktemp("extracted") / "rpm")


def files(folder: Path) -> set[str]:
    """Return all files and links in a folder, but the modules."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    return {path for path in found if not path.startswith(f"{HOME}/packages/")}


def test_files(deb: Path, rpm: Path) -> None:
    """Units, pages, completions and samples are where the distribution has such files, and there are no others."""
    assert files(deb) == INSTALLED | OF_DEB
    assert files(rpm) == INSTALLED | OF_RPM


def test_shown(deb: Path) -> None:
    """The installed program prints the files of the package: no link leads nowhere."""
    for name in SHARED:
        linked = deb / HOME / "packages/resolver_agent/systemd" / name
        assert linked.resolve() == deb / "usr/share/resolver-agent" / name
    assert not [path for path in deb.rglob("*") if not path.exists()]


def test_paths(deb: Path, rpm: Path) -> None:
    """Units, hooks and hints name the program where the package has it; nothing of this machine is named."""
    for folder in (deb, rpm):
        unit = (folder / "usr/lib/systemd/system/resolver-agent.service").read_text(encoding="utf-8")
        assert "\nExecStart=/usr/bin/resolver-agent run\n" in unit
        texts = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".so"}
        pages = {path: gzip.decompress(text) for path, text in texts.items() if path.suffix == ".gz"}
        named = (b"/usr/local/bin/resolver-agent", b"ExecStart=/opt", str(TOP).encode(), b"/root/", b"/tmp/tmp")
        assert not [(path, name) for path, text in (texts | pages).items() for name in named if name in text]
        page = pages[folder / "usr/share/man/man8/resolver-agent.8.gz"].replace(b"\\", b"")
        assert b"/usr/lib/systemd/system/resolver-agent.socket" in page
        assert b"/opt/" not in page


@pytest.mark.parametrize("target", ["debian12", "el9", "bundle-3.11"])
def test_same_bytes(packages: Packages, target: str, tmp_path: Path) -> None:
    """A second build gives the same bytes."""
    again = packages.build(target, output=tmp_path)
    assert again.name == packages.get(target).name
    assert again.read_bytes() == packages.get(target).read_bytes()


def test_altered_input(packages: Packages, tmp_path: Path) -> None:
    """A wheel that is not the one that was fetched is refused."""
    packages.get("debian12")
    inputs = tmp_path / "inputs"
    shutil.copytree(packages.inputs, inputs)
    wheel = next(inputs.glob(f"python3.11-{platform.machine()}/tenacity-*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b" ")
    script = str(RECIPES / "build.py")
    command = [sys.executable, script, "debian12", f"--inputs={inputs}", f"--output={tmp_path}"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert f"{wheel} is not the file that was fetched" in done.stderr


def test_lintian(packages: Packages) -> None:
    """Lintian has nothing to say."""
    assert run("lintian", "--allow-root", "--fail-on=error,warning", packages.get("debian12")) == ""


@pytest.mark.parametrize("target", ["el9", "el8", "el7"])
def test_rpmlint(packages: Packages, target: str) -> None:
    """Rpmlint has nothing to say."""
    said = run("rpmlint", f"--config={RECIPES / 'rpmlint.toml'}", packages.get(target))
    assert "0 errors, 0 warnings" in said


@pytest.mark.parametrize("target", ["el9", "el8", "el7"])
def test_old_rpm(packages: Packages, target: str) -> None:
    """A package asks nothing of rpm that CentOS 7's does not have, and asks for Python where it brings none."""
    required = run("rpm", "--query", "--requires", "--package", packages.get(target)).splitlines()
    words = {line.split()[0] for line in required}
    assert {word for word in words if word.startswith("rpmlib(")} <= OLD_RPM
    python = set() if target == "el7" else {"/usr/bin/python3.11"}
    assert {word for word in words if not word.startswith("rpmlib(")} == {"/bin/sh", "glibc", *python}


@pytest.mark.parametrize("target", ["debian12", "el8"])
def test_other_architecture(packages: Packages, target: str, tmp_path: Path) -> None:
    """A package for aarch64 is built here: it says so, and has machine code for aarch64 alone."""
    package = packages.build(target, arch="aarch64", output=tmp_path)
    if package.suffix == ".deb":
        assert run("dpkg-deb", "--field", package, "Architecture") == "arm64\n"
    else:
        assert run("rpm", "--query", "--queryformat=%{arch}", "--package", package) == "aarch64"
    paths = (path for path in extracted(package, tmp_path / "tree").rglob("*") if path.is_file())
    contents = {path.name: path.read_bytes() for path in paths}
    machines = {name: content[18:20] for name, content in contents.items() if content.startswith(b"\x7fELF")}
    assert set(machines.values()) == {AARCH64}
    assert [name for name in machines if name.startswith("_psycopg.")]


def test_bundle(packages: Packages, tmp_path: Path) -> None:
    """The two lines of the README install the bundle without a network, held to its hashes."""
    [lines] = re.findall(r"^    (tar -xf .*)\n    (/opt.*)$", (TOP / "systemd/README.md").read_text(), re.MULTILINE)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    script = "\n".join(lines).replace("/opt/resolver-agent", str(venv)).replace("3.11", version)
    bundle = packages.get(f"bundle-{version}")
    run("sh", "-ec", f"cd {bundle.parent}\nexec unshare --net sh -exc '{script}'")
    assert run(venv / "bin/resolver-agent", "--version") == f"resolver-agent {__version__}\n"
    assert run(venv / "bin/pip", "check") == "No broken requirements found.\n"
    for wheel in (bundle.parent / f"resolver-agent-{__version__}").glob("tenacity*.whl"):
        wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(AssertionError, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        run("sh", "-ec", f"cd {bundle.parent}\n{script.splitlines()[1]} --force-reinstall")
