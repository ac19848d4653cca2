"""What is built from the checkout: an sdist and a wheel with exactly the files that are meant to be in them."""

from __future__ import annotations

import dataclasses
import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from resolver_agent import __version__, build
from resolver_agent.cli import _SHOWN as SHOWN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from email.message import Message

TOP = Path(__file__).parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((TOP / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((TOP / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
NAME = f"resolver_agent-{__version__}"
MODULES = {path.relative_to(TOP).as_posix() for path in (TOP / "resolver_agent").rglob("*.py")}
NODE = {
    f"resolver_agent/{path.relative_to(TOP)}"
    for path in (TOP / "systemd").rglob("*")
    if path.is_file() and TOP / "systemd/packages" not in path.parents
}
"""What a node is installed with besides the program: not the recipes of packages, which need a checkout."""

PACKAGE = {*MODULES, *NODE, "resolver_agent/py.typed"}
SHARED = {
    "share/bash-completion/completions/resolver-agent",
    "share/doc/resolver-agent/CHANGELOG.md",
    "share/fish/vendor_completions.d/resolver-agent.fish",
    "share/man/man5/resolver-agent.yml.5",
    "share/man/man8/resolver-agent.8",
    "share/zsh/site-functions/_resolver-agent",
}
"""What is installed outside the package."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The names of all files in the sdist and in the wheel, the wheel's file and its metadata."""

    file: Path
    sdist: set[str]
    wheel: set[str]
    metadata: Message


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the sdist from a copy of the checkout that was used before, and the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("packages")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in ("resolver_agent", "systemd", "vagrant"):
        ignored = shutil.ignore_patterns("__pycache__", ".vagrant")
        shutil.copytree(TOP / name, checkout / name, ignore=ignored, symlinks=True)
    for name in ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "tests/run"):
        (checkout / name).parent.mkdir(exist_ok=True)
        shutil.copy(TOP / name, checkout / name)
    left_over = checkout / "build/lib/resolver_agent/gone.py"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(checkout)]
    subprocess.run(command, check=True, capture_output=True)
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as packed:
        in_sdist = {member.name for member in packed.getmembers() if member.isfile()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if not name.endswith("/")}
        metadata = email.message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))
    return Built(file=wheel, sdist=in_sdist, wheel=in_wheel, metadata=metadata)


def test_wheel(built: Built) -> None:
    """The wheel has every module of the package, what a node is installed with, what is made, and no other file."""
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    assert built.wheel == {
        *PACKAGE,
        *(f"{NAME}.data/data/{path}" for path in SHARED),
        *(f"{NAME}.dist-info/{name}" for name in about),
    }


def test_sdist(built: Built) -> None:
    """The sdist has the same, what the wheel is made from, and what setuptools always adds."""
    project = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"}
    about = {"PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt", "top_level.txt"}
    added = {"PKG-INFO", "setup.cfg", *(f"resolver_agent.egg-info/{name}" for name in about)}
    assert built.sdist == {f"{NAME}/{name}" for name in PACKAGE | project | added}


def test_show(built: Built, tmp_path: Path) -> None:
    """The installed program prints every file of the folder but its READMEs and a test, to the byte."""
    kept = {f"resolver_agent/systemd/{name}" for name in ("README.md", "README.zh-CN.md", "monitoring/alerts_test.yml")}
    assert {f"resolver_agent/systemd/{name}" for name in SHOWN.values()} == NODE - kept
    shutil.unpack_archive(built.file, tmp_path, "zip")
    for name, file in SHOWN.items():
        ran = subprocess.run(
            [sys.executable, "-m", "resolver_agent.cli", "show", name], cwd=tmp_path, capture_output=True, check=True
        )
        assert ran.stdout == (TOP / "systemd" / file).read_bytes()


def test_what_is_made(built: Built) -> None:
    """The man pages and completions in the wheel are those of this checkout, with the day of the build."""
    with zipfile.ZipFile(built.file) as archive:
        shipped = {path: archive.read(f"{NAME}.data/data/{path}").decode() for path in SHARED if "doc" not in path}
    [date] = set(re.findall(r"^\.TH .* (\d{4}-\d\d-\d\d) ", "\n".join(shipped.values()), re.MULTILINE))
    readmes = [(TOP / path).read_text(encoding="utf-8") for path in ("README.md", "systemd/README.md")]
    assert shipped == build.files(*readmes, date=date)


def test_what_is_made_needs_no_dependency() -> None:
    """A build has setuptools alone, so the parser of the command line can be made without any other package."""
    names = [re.split(r"[\[<>=]", one)[0] for one in (*PROJECT["dependencies"], "yaml", "python_hosts")]
    code = f"import sys; sys.modules.update(dict.fromkeys({names})); from resolver_agent import cli; cli.command_line()"
    subprocess.run([sys.executable, "-c", code], cwd=TOP, check=True)


def test_metadata(built: Built) -> None:
    """The version is the package's own, and the description is the README."""
    assert built.metadata["Version"] == __version__
    assert built.metadata["Requires-Python"] == PROJECT["requires-python"]
    assert built.metadata["License-Expression"] == "MIT"
    assert str(built.metadata.get_payload()).startswith("# resolver-agent\n")


def pythons() -> list[str]:
    """Return the versions of Python that the workflow runs the tests on."""
    [job] = WORKFLOW["jobs"].values()
    return list(job["strategy"]["matrix"]["python"])


def test_workflow() -> None:
    """The workflow runs all tests, on the oldest Python that the project promises and on the newest that it names."""
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert pythons() == [named[0], named[-1]]
    assert PROJECT["requires-python"] == f">={named[0]}"
    [job] = WORKFLOW["jobs"].values()
    assert "tests/run" in [step.get("run") for step in job["steps"]]
    assert "${{ matrix.python }}" in job["container"]["image"]


def test_commit_hooks() -> None:
    """Each hook is a step of tests/run, so that a commit is checked by the same programs."""
    steps = re.findall(r'^step "\$bin/(.*)$', (TOP / "tests/run").read_text(encoding="utf-8"), re.MULTILINE)
    hooks = [hook for repo in HOOKS["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy"}
    for hook in hooks:
        program, *arguments = hook["entry"].removeprefix(".venv/bin/").split()
        assert " ".join([f'{program}"', *arguments]) in steps
        assert hook["entry"].startswith(".venv/bin/")
        assert not hook["pass_filenames"]
