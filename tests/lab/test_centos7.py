"""Provisioning on CentOS 7, as far as a test without one can show: stand-ins for its package manager and uv."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.lab import layers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.support.distribution import Packages

REPOSITORIES = "vault.centos.org", "archives.fedoraproject.org", "yum-archive.postgresql.org"
WORDS = 'words=; for word in "$@"; do case $word in -*) ;; *) words="$words $word" ;; esac; done'
PROGRAMS = {
    "rpm": f"""
        {WORDS}
        for word in $words; do grep -xF "$word" /var/lib/stand-in/packages || exit 1; done
    """,
    "yum": f"""
        echo "$*" >>/var/lib/stand-in/yum
        {WORDS}
        printf '%s\\n' $words >>/var/lib/stand-in/packages
    """,
    "curl": "tar -cz -C /var/lib/stand-in uv-x86_64-unknown-linux-musl",
    "systemctl": "[ $1 != is-active ]",
    "setenforce": 'echo "$1" >>/var/lib/stand-in/setenforce',
    # CentOS 7's own, if it has one: 2.7 or 3.6. Nothing may call it.
    **dict.fromkeys(("python", "python2", "python3"), 'echo "$0 is too old" >&2; exit 1'),
}
UV = """
case $2 in
    find) cat /var/lib/stand-in/python ;;
    install) echo /usr/bin/python3 >/var/lib/stand-in/python ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return the upper folder of a tree that takes itself for CentOS 7."""
    upper = tmp_path / "upper"
    stand_in = upper / "var/lib/stand-in"
    texts = {upper / "usr/local/bin" / name: text for name, text in PROGRAMS.items()}
    texts[stand_in / "uv-x86_64-unknown-linux-musl/uv"] = UV
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    (stand_in / "packages").touch()
    (upper / "etc/selinux").mkdir(parents=True)
    (upper / "etc/selinux/config").write_text("SELINUX=enforcing\nSELINUXTYPE=targeted\n")
    (upper / "usr/lib").mkdir(parents=True)
    (upper / "usr/lib/os-release").write_text('ID="centos"\nVERSION_ID="7"\n')
    return upper


def test_installed_once(machine: Path, tmp_path: Path) -> None:
    """Packages come from the archives only, those for HTTPS first; no other Python is called; twice changes nothing."""
    lower, wheels = layers.installed()
    checkout = layers.copy_checkout(tmp_path / "checkout")
    said = layers.install(machine, lower, wheels=wheels, checkout=checkout)
    assert "changed: packages: postgresql12-server postgresql12-contrib citus_12 etcd\n" in said
    assert "changed: Python 3." in said
    first, second = (shlex.split(line) for line in (machine / "var/lib/stand-in/yum").read_text().splitlines())
    assert "--disablerepo=*" in first
    assert "--disablerepo=*" in second
    assert first[-6:] == ["--enablerepo=lab-os,lab-updates", "update", "ca-certificates", "curl", "nss", "openssl"]
    assert second[-6:-4] == ["--enablerepo=lab-*", "install"]

    assert (machine / "etc/selinux/config").read_text() == "SELINUX=permissive\nSELINUXTYPE=targeted\n"
    assert (machine / "var/lib/stand-in/setenforce").read_text() == "0\n"

    repositories = configparser.ConfigParser(interpolation=None)
    repositories.read(machine / "etc/yum.repos.d/lab.repo")
    hosts = {repositories[name]["baseurl"].split("/")[2] for name in repositories.sections()}
    assert hosts == set(REPOSITORIES)
    assert {repositories[name]["gpgcheck"] for name in repositories.sections()} == {"1"}

    again = layers.install(machine, lower, wheels=wheels, checkout=checkout)
    assert again.endswith("install.sh: done, nothing changed\n")


def test_no_other_release(machine: Path, tmp_path: Path) -> None:
    """On another CentOS nothing is tried, and nothing is left."""
    (machine / "usr/lib/os-release").write_text('ID="centos"\nVERSION_ID="9"\n')
    lower, wheels = layers.installed()
    checkout = layers.copy_checkout(tmp_path / "checkout")
    with pytest.raises(RuntimeError, match=r"(?m)^install\.sh: failed in the step: start$") as caught:
        layers.install(machine, lower, wheels=wheels, checkout=checkout)
    assert "install.sh: centos 9 is not supported" in str(caught.value)
    assert not (machine / "etc/yum.repos.d").exists()
    assert list((machine / "tmp").iterdir()) == []


NEWEST = {"GLIBC": (2, 17), "GLIBCXX": (3, 4, 19), "CXXABI": (1, 3, 7), "GCC": (4, 8, 0)}
"""The newest symbol versions of CentOS 7's own libraries, as in PEP 599 (manylinux2014)."""

LIBRARIES = {
    *("ld-linux-x86-64.so.2", "libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0"),
    *("libresolv.so.2", "librt.so.1", "libstdc++.so.6", "libutil.so.1"),
    "libz.so.1",
}
"""What may be taken from there: of the list in PEP 599, and zlib, which rpm itself needs."""


def lacking(folder: Path) -> tuple[int, list[str]]:
    """Return the number of programs and libraries in a folder, and what they need that CentOS 7 does not have."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes().startswith(b"\x7fELF")]
    there = LIBRARIES | {path.name for path in files}
    found = []
    for path in files:
        command = ["readelf", "--wide", "--dynamic", "--version-info", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        needs = set(re.findall(r"\(NEEDED\) +Shared library: \[(.*)\]", said)) - there
        for library, version in set(re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI|GCC)_(\S+)", said)):
            numbers = tuple(map(int, version.split("."))) if re.fullmatch(r"[\d.]+", version) else (99,)
            if numbers > NEWEST[library]:
                needs.add(f"{library}_{version}")
        found += [f"{path.relative_to(folder)}: {need}" for need in sorted(needs)]
    return len(files), found


def test_what_is_lacking_is_seen(tmp_path: Path) -> None:
    """A program of this machine needs more than CentOS 7 has: symbols, and a library."""
    shutil.copy("/bin/bash", tmp_path)
    count, found = lacking(tmp_path)
    assert count == 1
    assert re.search(r"bash: GLIBC_2\.[2-9]\d", "\n".join(found))
    assert "bash: libtinfo.so.6" in found


def test_wheels(tmp_path: Path) -> None:
    """What pip installs there, for the agent and for Patroni, runs with glibc 2.17."""
    for wheel in layers.centos7_wheels().iterdir():
        shutil.unpack_archive(wheel, tmp_path, "zip")
    assert [path.name for path in tmp_path.glob("psycopg_binary/pq*.so")]
    count, found = lacking(tmp_path)
    assert count > 10
    assert found == []


def test_package(packages: Packages, tmp_path: Path) -> None:
    """So does what the package for CentOS 7 brings, but its Python: here that is made of Debian's."""
    unpack = 'rpm2archive --nocompression - <"$1" | tar -x -C "$2"'
    subprocess.run(["sh", "-ec", unpack, "sh", str(packages.get("el7")), str(tmp_path)], check=True)
    count, found = lacking(tmp_path / "usr/lib/resolver-agent/packages")
    assert count > 10
    assert found == []
