"""Packages for distributions, built from this checkout with ``systemd/packages/build.py``.

Their inputs are fetched once and kept in the user's cache folder. The builds have no network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.integration.support.systemd_host import CHECKOUT, cached_tree

SOURCES = ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "resolver_agent", "systemd")
EPOCH = "1700000000"


class Packages:
    """Builds each package once, into folders of its own."""

    def __init__(self, folder: Path) -> None:
        recipe = (CHECKOUT / "pyproject.toml").read_bytes() + (CHECKOUT / "systemd/packages/build.py").read_bytes()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resolver-agent-tests"
        self.inputs = cache / f"inputs-{hashlib.sha256(recipe).hexdigest()[:12]}"
        self.folder = folder
        self._built: dict[tuple[str, str | None], Path] = {}

    def get(self, target: str, *, version: str | None = None) -> Path:
        """Return the package for a target, of this checkout or of another version of it."""
        key = (target, version)
        if key not in self._built:
            checkout = self._copy(version) if version else CHECKOUT
            self._built[key] = self.build(target, checkout=checkout, output=self.folder / f"of-{version}")
        return self._built[key]

    def build(self, target: str, *, output: Path, checkout: Path = CHECKOUT, arch: str | None = None) -> Path:
        """Build a package without network, once its inputs are there; by default for this machine's architecture."""
        script = [sys.executable, str(checkout / "systemd/packages/build.py"), target, f"--inputs={self.inputs}"]
        script += [f"--python={self._standalone()}"] if target == "el7" else []
        script += [f"--arch={arch}"] if arch else []
        _run(*script, "--fetch")
        return Path(_run("unshare", "--net", *script, f"--output={output}").strip())

    def _copy(self, version: str) -> Path:
        """Copy this checkout, and give it another version."""
        folder = self.folder / f"checkout-{version}"
        if folder.exists():
            return folder
        folder.mkdir()
        for name in SOURCES:
            source = CHECKOUT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        (folder / "resolver_agent/__init__.py").write_text(f'"""Later."""\n\n__version__ = "{version}"\n')
        return folder

    def _standalone(self) -> Path:
        """Return a .tar.gz with a Python that runs from any folder, made of Debian's."""
        folder, packed = self.folder / "python", self.folder / "python.tar.gz"
        if not packed.exists():
            tree = cached_tree()
            [program] = tree.glob("usr/bin/python3.*[0-9]")
            (folder / "bin").mkdir(parents=True)
            shutil.copy(program, folder / "bin")
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(tree / "usr/lib" / program.name, folder / "lib" / program.name, ignore=ignored)
            shutil.make_archive(str(folder), "gztar", self.folder, folder.name)
        return packed


def _run(*command: str) -> str:
    environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout
