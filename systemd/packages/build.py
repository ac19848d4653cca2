#!/usr/bin/env python3
"""Builds packages of the agent: ``systemd/packages/build.py TARGET``, for one of the targets below.

The first step fetches what a target needs into the folder of inputs, unless it is there: wheels, with a file of their
hashes. The second needs no network. The same inputs and commit give the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
SOURCES = ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "resolver_agent", "systemd")
NAME = "resolver-agent"
HOME = f"usr/lib/{NAME}"
SHARE = f"usr/share/{NAME}"
DOC = f"usr/share/doc/{NAME}"
UNITS = "usr/lib/systemd/system"
SUMMARY = "keep the names of a Citus cluster on the right servers"
DESCRIPTION = """\
A Citus cluster under Patroni knows its nodes by names. On each node the agent
keeps these names in /etc/hosts pointed at the right PostgreSQL servers, and
moves them before a promotion, without an error for clients where it can.
It comes with the Python packages that it needs. Nothing is started or
enabled by the installation."""
MAINTAINER = f"{NAME} <{NAME}@users.noreply.github.com>"

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""By the kernel's name: Debian's."""

PLATFORMS = ("manylinux2014", "manylinux_2_17")
"""The wheels that run on every target: glibc 2.17 is CentOS 7's."""

PATHS = {
    "ExecStart=/opt/resolver-agent/bin/resolver-agent": "ExecStart=/usr/bin/resolver-agent",
    "/usr/local/bin/resolver-agent": "/usr/bin/resolver-agent",
    "| `/etc/systemd/system/resolver-agent.service`, `/etc/systemd/system/resolver-agent.socket` |": (
        "| `/usr/lib/systemd/system/resolver-agent.service`, `/usr/lib/systemd/system/resolver-agent.socket` |"
    ),
    "| `/opt/resolver-agent` |": "| `/usr/lib/resolver-agent` |",
    "| `/usr/local/share` |": "| `/usr/share` |",
}
"""Where things are after an installation by hand, and where a package has them."""

UNUSED = (
    *("include", "share", "lib/pkgconfig", "lib/python3.*/site-packages", "lib/python3.*/dist-packages"),
    *(f"lib/python3.*/{name}" for name in ("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3")),
    *("lib/python3.*/config-*", "lib/*.a", "lib/tcl*", "lib/tk*", "lib/itcl*", "lib/thread*"),
)
"""What the agent needs of a standalone Python least."""


class BuildError(Exception):
    """The package cannot be built; the text says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What a package is for: its kind, the distribution's Python and the mark of the distribution in its version."""

    kind: str
    python: str | None
    release: str = ""


TARGETS = {
    "debian12": Target("deb", "3.11", "1~deb12"),
    "debian13": Target("deb", "3.13", "1~deb13"),
    "ubuntu22.04": Target("deb", "3.10", "1~ubuntu22.04"),
    "ubuntu24.04": Target("deb", "3.12", "1~ubuntu24.04"),
    "el7": Target("rpm", None, "1.el7"),
    "el8": Target("rpm", "3.11", "1.el8"),
    "el9": Target("rpm", "3.11", "1.el9"),
    **{f"bundle-{version}": Target("bundle", version) for version in ("3.10", "3.11", "3.12", "3.13")},
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One build.

    Attributes:
        python: the version of Python that the package is for, such as ``3.11``.
        standalone: the folder of a Python that the package brings, or None: the distribution's.
        arch: as the kernel calls it.
        epoch: the time of all files, in seconds since 1970.
        version: the agent's, as packages spell it.
        work: an empty folder.
    """

    target: Target
    python: str
    standalone: Path | None
    arch: str
    epoch: int
    version: str
    inputs: Path
    output: Path
    work: Path

    @property
    def interpreter(self) -> str:
        """The path of Python on a host."""
        return f"/{HOME}/python/bin/python{self.python}" if self.standalone else f"/usr/bin/python{self.python}"

    @property
    def wheels(self) -> Path:
        """The folder of the wheels of what the agent needs."""
        return self.inputs / f"python{self.python}-{self.arch}"

    @property
    def build_wheels(self) -> Path:
        """The folder of the wheels of what builds the agent's own."""
        return self.inputs / "build"


def main() -> int:
    """Build what the command line says, and print the path of the package."""
    parser = argparse.ArgumentParser(description="Build a package of resolver-agent.")
    parser.add_argument("target", choices=TARGETS, metavar="TARGET", help=", ".join(TARGETS))
    folder = CHECKOUT / "build"
    parser.add_argument("--inputs", type=Path, default=folder / "inputs", help="the folder of fetched wheels")
    parser.add_argument("--output", type=Path, default=folder / "packages", help="the folder for the package")
    parser.add_argument("--arch", choices=ARCHITECTURES, default=platform.machine())
    parser.add_argument(
        "--python", type=Path, metavar="PATH", help="the folder or .tar file of a standalone Python to bring along"
    )
    parser.add_argument("--fetch", action="store_true", help="only fetch the inputs")
    options = parser.parse_args()
    os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory() as work:
            job = _job(options, Path(work))
            fetch(job)
            if not options.fetch:
                print(build(job))
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


def _job(options: argparse.Namespace, work: Path) -> Job:
    target = TARGETS[options.target]
    standalone = None
    if options.python:
        if target.kind == "bundle":
            raise BuildError("a bundle brings no Python: pip installs it into one that is there")
        standalone = _standalone(options.python.resolve(), work / "standalone")
    elif target.python is None:
        raise BuildError(f"{options.target} has no Python that is new enough: name a standalone one with --python")
    found = re.search(r'__version__ = "(.+)"', (CHECKOUT / "resolver_agent/__init__.py").read_text(encoding="utf-8"))
    if found is None:
        raise BuildError("the checkout does not say its version")
    return Job(
        target=target,
        python=_python_version(standalone) if standalone else str(target.python),
        standalone=standalone,
        arch=options.arch,
        epoch=_epoch(),
        version=re.sub(r"\.?(a|b|rc|dev)(\d+)", r"~\1\2", found[1]),
        inputs=options.inputs.resolve(),
        output=options.output.resolve(),
        work=work,
    )


def _epoch() -> int:
    """Return the time that files are given: SOURCE_DATE_EPOCH, the last commit's, or without git pyproject.toml's."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    command = ["git", "-C", str(CHECKOUT), "log", "-1", "--format=%ct"]
    has_git = shutil.which("git") is not None
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() if has_git else ""
    return int(told) if told else int((CHECKOUT / "pyproject.toml").stat().st_mtime)


def _standalone(given: Path, folder: Path) -> Path:
    """Return the folder of a Python that was given as one or as a .tar file."""
    if given.is_dir():
        return given
    folder.mkdir(parents=True, exist_ok=True)
    _run("tar", "--extract", f"--file={given}", f"--directory={folder}")
    return next((path.parents[1] for path in sorted(folder.rglob("bin/python3*"))), folder)


def _python_version(standalone: Path) -> str:
    found = [path.name for path in standalone.glob("bin/python3.*") if re.fullmatch(r"python3\.\d+", path.name)]
    if len(found) != 1:
        raise BuildError(f"{standalone} is not the folder of one Python: it has {found or 'no bin/python3.N'}")
    return found[0].removeprefix("python")


def fetch(job: Job) -> None:
    """Fetch the inputs that are not there yet. Hashes that are there already are held to."""
    project: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    _fetch(job.build_wheels, project["build-system"]["requires"])
    # pip judges "python_version <" by the Python that it runs on, so what older ones need is named here.
    wanted = [*project["project"]["dependencies"], "typing-extensions"]
    platforms = [f"--platform={name}_{job.arch}" for name in PLATFORMS]
    _fetch(job.wheels, wanted, "--implementation=cp", f"--python-version={job.python}", *platforms)


def _fetch(folder: Path, wanted: list[str], *options: str) -> None:
    lock = folder / "requirements.txt"
    if lock.exists() and all((folder / name).exists() for name in _locked(lock).values()):
        return
    given = ["--require-hashes", f"--requirement={lock}", "--no-deps"] if lock.exists() else wanted
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:")
    # In a folder of its own until all is there: what an interrupted fetch leaves is no input.
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _run(*pip, f"--dest={part}", *options, *given)
    new = lock.read_text(encoding="utf-8") if lock.exists() else _requirements(sorted(part.glob("*.whl")))
    (part / lock.name).write_text(new, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _requirements(wheels: list[Path]) -> str:
    """Return what pip reads as the list of these wheels; the name of each is in a comment."""
    lines = []
    for wheel in wheels:
        name, version, *_ = wheel.name.split("-")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"# {wheel.name}\n{name.replace('_', '-')}=={version} --hash=sha256:{digest}\n")
    return "".join(lines)


def _locked(lock: Path) -> dict[str, str]:
    """Return the names of the wheels that were fetched, by their hashes."""
    found = re.findall(r"^# (\S+)\n\S+ --hash=sha256:(\w+)$", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return {digest: name for name, digest in found}


def _verified(folder: Path) -> list[Path]:
    """Return the wheels that were fetched into a folder, with the hashes that they had then."""
    wheels = []
    for digest, name in _locked(folder / "requirements.txt").items():
        wheels.append(folder / name)
        if hashlib.sha256(wheels[-1].read_bytes()).hexdigest() != digest:
            raise BuildError(f"{wheels[-1]} is not the file that was fetched: its hash differs from requirements.txt")
    return sorted(wheels)


def build(job: Job) -> Path:
    """Build the package, and return its path."""
    job.output.mkdir(parents=True, exist_ok=True)
    wheels = _verified(job.wheels)
    sources = _copy_sources(job)
    if job.target.kind == "bundle":
        return _bundle(job, [*wheels, _own_wheel(job, sources)])
    _name_package_paths(sources)
    tree = job.work / "tree"
    _stage(job, tree, [*wheels, _own_wheel(job, sources)], sources)
    return {"deb": _deb, "rpm": _rpm}[job.target.kind](job, tree)


def _copy_sources(job: Job) -> Path:
    """Copy what the agent's wheel is made of: the checkout may hold what older builds left."""
    folder = job.work / "sources"
    folder.mkdir()
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


def _name_package_paths(sources: Path) -> None:
    """Have units, hooks, hints and man pages name the paths that a package has."""
    for path in sorted(sources.rglob("*")):
        if path.is_file() and not path.is_symlink() and HERE.name not in path.relative_to(sources).parts:
            before = after = path.read_text(encoding="utf-8")
            for by_hand, packaged in PATHS.items():
                after = after.replace(by_hand, packaged)
            if after != before:
                path.write_text(after, encoding="utf-8")


def _own_wheel(job: Job, sources: Path) -> Path:
    """Build the agent's own wheel, with nothing but the inputs."""
    folder, backend = job.work / "wheel", job.work / "backend"
    for wheel in _verified(job.build_wheels):
        _unpack(wheel, backend, backend)
    call = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    _run(sys.executable, "-c", call, epoch=job.epoch, cwd=sources, environment={"PYTHONPATH": str(backend)})
    [built] = folder.glob("*.whl")
    return built


def _stage(job: Job, tree: Path, wheels: list[Path], sources: Path) -> None:
    """Make the tree of what a package installs."""
    packages = tree / HOME / "packages"
    for wheel in wheels:
        _unpack(wheel, packages, tree / "usr")
    if job.standalone:
        _bring_python(job.standalone, tree / HOME / "python", program=f"python{job.python}")
    launcher = (
        f'import sys\n\nsys.path.insert(0, "/{HOME}/packages")\n\n'
        "from resolver_agent.cli import main\n\nsys.exit(main())\n"
    )
    # -I: the caller's environment and folder do not count. -S: nor do the packages of that Python.
    _write(tree / "usr/bin" / NAME, f"#!{job.interpreter} -IS\n{launcher}", executable=True)
    script = (HERE / "maintain").read_text(encoding="utf-8").replace("@PYTHON@", job.interpreter)
    _write(tree / HOME / "maintain", script, executable=True)
    shipped = packages / "resolver_agent/systemd"
    _write(tree / DOC / "README.md", (sources / "README.md").read_text(encoding="utf-8"))
    for readme in sorted(shipped.glob("README*.md")):
        _write(tree / DOC / "systemd" / readme.name, readme.read_text(encoding="utf-8"))
        readme.unlink()
    _share(tree, shipped)
    for page in sorted((tree / "usr/share/man").rglob("*.[58]")):
        _gzip(page)


def _unpack(wheel: Path, packages: Path, prefix: Path) -> None:
    """Install a wheel without its list of files, which names paths that are no more."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            folder, _, rest = entry.filename.partition(".data/")
            kind, _, below = rest.partition("/")
            if rest and kind != "data":
                raise BuildError(f"{wheel.name} has {kind}: no target installs that")
            path = prefix / below if rest else packages / folder
            if not entry.is_dir() and path.name != "RECORD":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(entry))


def _bring_python(standalone: Path, folder: Path, *, program: str) -> None:
    """Copy a standalone Python without what the agent does not need."""
    unused = {str(path) for pattern in UNUSED for path in standalone.glob(pattern)}

    def ignored(parent: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "__pycache__" or f"{parent}/{name}" in unused]

    for name in ("bin", "lib"):
        shutil.copytree(standalone / name, folder / name, symlinks=True, ignore=ignored)
    for path in (folder / "bin").iterdir():
        if path.name != program:
            path.unlink()


def _share(tree: Path, shipped: Path) -> None:
    """Put the files that a node is installed with where a distribution has such files, and link to them."""
    for path in sorted(shipped.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(shipped)
        is_unit = path.suffix in {".service", ".socket"}
        place = tree / UNITS / name if is_unit else tree / SHARE / name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
        _link(path, place)
        if path.suffix == ".yml" and path.parent == shipped:
            _link(tree / DOC / "examples" / name, place)


def _link(path: Path, to: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(to, path.parent))


def _write(path: Path, text: str, *, executable: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755 if executable else 0o644)


def _gzip(path: Path) -> None:
    """Compress a file, the same at any time."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


def _settle(job: Job, tree: Path) -> None:
    """Give each file in a tree the mode and the time that it has in a package."""
    for path in sorted(tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (job.epoch, job.epoch), follow_symlinks=False)
    tree.chmod(0o755)
    os.utime(tree, (job.epoch, job.epoch))


def _deb(job: Job, tree: Path) -> Path:
    """Build the .deb from a tree."""
    version, arch = f"{job.version}-{job.target.release}", ARCHITECTURES[job.arch]
    completions = tree / "usr/share/zsh/vendor-completions"
    (tree / "usr/share/zsh/site-functions").rename(completions)
    (tree / DOC / "CHANGELOG.md").rename(tree / DOC / "changelog")
    _gzip(tree / DOC / "changelog")
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(job.epoch))
    changes = f"  * Changes are in /{DOC}/changelog.gz.\n\n -- {MAINTAINER}  {date}\n"
    _write(tree / DOC / "changelog.Debian", f"{NAME} ({version}) stable; urgency=medium\n\n{changes}")
    _gzip(tree / DOC / "changelog.Debian")
    _write(tree / DOC / "copyright", (HERE / "copyright").read_text(encoding="utf-8"))
    overrides = (HERE / "deb/lintian-overrides").read_text(encoding="utf-8")
    _write(tree / "usr/share/lintian/overrides" / NAME, overrides)
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files]  # noqa: S324
    _write(tree / "DEBIAN/md5sums", "".join(sums))
    for script in ("postinst", "prerm", "postrm"):
        _write(tree / "DEBIAN" / script, (HERE / "deb" / script).read_text(encoding="utf-8"), executable=True)
    depends = ["libc6 (>= 2.17)"] if job.standalone else [f"python{job.python}", "libc6 (>= 2.17)"]
    control = {
        "Package": NAME,
        "Version": version,
        "Architecture": arch,
        "Maintainer": MAINTAINER,
        "Installed-Size": sum(-(-path.stat().st_size // 1024) for path in files),
        "Depends": ", ".join(depends),
        "Section": "database",
        "Priority": "optional",
        "Homepage": f"https://github.com/{NAME}/{NAME}",
        "Description": "\n ".join([SUMMARY, *DESCRIPTION.splitlines()]),
    }
    _write(tree / "DEBIAN/control", "".join(f"{key}: {value}\n" for key, value in control.items()))
    _settle(job, tree)
    package = job.output / f"{NAME}_{version}_{arch}.deb"
    _run("dpkg-deb", "--root-owner-group", "-Zxz", "-z2", "--build", str(tree), str(package), epoch=job.epoch)
    return package


def _rpm(job: Job, tree: Path) -> Path:
    """Build the .rpm from a tree."""
    _write(tree / "usr/share/licenses" / NAME / "LICENSE", (CHECKOUT / "LICENSE").read_text(encoding="utf-8"))
    _write(tree / "usr/share/licenses" / NAME / "copyright", (HERE / "copyright").read_text(encoding="utf-8"))
    _settle(job, tree)
    manifest = job.work / "manifest"
    _write(manifest, "".join(map(_manifest_line, _owned(tree))))
    changes = time.strftime(f"* %a %b %d %Y {MAINTAINER} - {job.version}-{job.target.release}", time.gmtime(job.epoch))
    spec = job.work / f"{NAME}.spec"
    words = {
        "VERSION": job.version,
        "RELEASE": job.target.release,
        "SUMMARY": SUMMARY.capitalize(),
        "DESCRIPTION": DESCRIPTION,
        "PACKAGER": MAINTAINER,
        "REQUIRES": "glibc >= 2.17" if job.standalone else f"glibc >= 2.17, {job.interpreter}",
        "TREE": str(tree),
        "MANIFEST": str(manifest),
        "CHANGES": f"{changes}\n- Changes are in /{DOC}/CHANGELOG.md.",
    }
    template = (HERE / f"{NAME}.spec").read_text(encoding="utf-8")
    _write(spec, re.sub(r"@(\w+)@", lambda found: words[found[1]], template))
    macros = {
        "_topdir": job.work / "rpmbuild",
        "_buildhost": "localhost",
        "_binary_payload": "w2.xzdio",  # the newest compression that rpm of CentOS 7 reads
        "use_source_date_epoch_as_buildtime": 1,
        "clamp_mtime_to_source_date_epoch": 1,
    }
    defined = (word for key, value in macros.items() for word in ("--define", f"{key} {value}"))
    _run("rpmbuild", "-bb", "--quiet", f"--target={job.arch}-linux", *defined, str(spec), epoch=job.epoch)
    [built] = (job.work / "rpmbuild/RPMS").rglob("*.rpm")
    return Path(shutil.move(built, job.output / built.name))


def _owned(tree: Path) -> list[str]:
    """Return the paths in a tree that the package owns, and not the distribution; folders end with a slash."""
    shared = ("usr/share/doc", "usr/share/licenses", "usr/share", "usr/lib")
    own = [tree / folder / NAME for folder in shared]
    return [
        f"/{path.relative_to(tree)}{'/' * (path.is_dir() and not path.is_symlink())}"
        for path in sorted(tree.rglob("*"))
        if not path.is_dir() or path.is_symlink() or any(path.is_relative_to(folder) for folder in own)
    ]


def _manifest_line(path: str) -> str:
    """Return the line of a path in the list of files that rpmbuild reads."""
    if path.endswith("/"):
        return f"%dir {path}\n"
    if path.startswith("/usr/share/licenses/"):
        return f"%license {path}\n"
    return f"%doc {path}\n" if path.startswith(f"/{DOC}/") else f"{path}\n"


def _bundle(job: Job, wheels: list[Path]) -> Path:
    """Put wheels and their hashes into one file."""
    name = f"{NAME}-{job.version}"
    folder = job.work / "bundle"
    folder.mkdir()
    for wheel in wheels:
        shutil.copy(wheel, folder)
    _write(folder / "requirements.txt", _requirements(sorted(wheels, key=lambda wheel: wheel.name)))
    _settle(job, folder)

    def by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    package = job.output / f"{name}-python{job.python}-{job.arch}.tar"
    with tarfile.open(package, "w") as packed:
        packed.add(folder, name, filter=by_root)  # sorted
    return package


def _run(
    *command: str, epoch: int | None = None, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Run a program of the build.

    Raises:
        BuildError: it failed or is missing; with its output.
    """
    variables = {"LC_ALL": "C.UTF-8", "TZ": "UTC"} | ({} if epoch is None else {"SOURCE_DATE_EPOCH": str(epoch)})
    environment = {**os.environ, **variables, **(environment or {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is missing: install it (rpmbuild is in rpm-build, on Debian in rpm)") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command[:4])} exited with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
