"""Provisioning on CentOS 7, as far as a test without one can show: stand-ins for its package manager and uv."""

from __future__ import annotations

import configparser
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.lab import layers

if TYPE_CHECKING:
    from pathlib import Path

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
