"""The .rpm for CentOS 7 and for EL 8, each in a root of its own, where its scripts run."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from resolver_agent import __version__
from tests.lab import layers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.support.distribution import Packages

LATER = "9.0.0"
# Takes the lower folders of a tree, an empty folder, two packages, the interpreter that runs the agent there, and what
# to delete before.
IN_A_ROOT = """
mkdir "$2/upper" "$2/work"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" /mnt
mount --bind /dev/null /mnt/dev/null
cd /mnt
rm -r opt/resolver-agent $6
in_root() {
    rpm --root=/mnt "$@"
}
program() {
    chroot /mnt /usr/bin/resolver-agent "$@"
}
in_root --initdb
in_root --force-debian --nodeps --install "$3"
program --version
program show role.sql | cmp - /mnt/usr/share/resolver-agent/role.sql
chroot /mnt "$5" -IS -c '
import sys
sys.path.insert(0, "/usr/lib/resolver-agent/packages")
import psycopg, psycopg.pq, python_hosts, resolver_agent.agent, ssl, tenacity, yaml
print("libpq:", psycopg.pq.__impl__, "yaml:", yaml.__with_libyaml__, flush=True)
import subprocess
from resolver_agent.demo import steps
subprocess.run([*steps._AGENT, "--version"], check=True)
'
find /mnt/usr/lib/resolver-agent/packages -name '*.py' | wc --lines
find /mnt/usr/lib/resolver-agent/packages -name '*.pyc' | wc --lines
in_root --nodeps --verify resolver-agent
in_root --force-debian --nodeps --upgrade "$4"
program --version
echo '# BEGIN resolver-agent' >>/mnt/etc/hosts
if in_root --erase resolver-agent; then exit 9; fi
program --version
sed -i /resolver-agent/d /mnt/etc/hosts
in_root --erase resolver-agent
find /mnt -xdev -name '*resolver*agent*' -not -path '/mnt/srv/*'
"""


# CentOS 7 has no Python that is new enough. That of EL 8 has the version of this Debian's.
OWN, GIVEN = "/usr/lib/resolver-agent/python/bin/python3.11", "/usr/bin/python3.11"


@pytest.mark.parametrize(
    ("target", "python", "without"),
    [("el7", OWN, "usr/bin/python3* usr/lib/python3*"), ("el8", GIVEN, "")],
    ids=["el7", "el8"],
)
def test_life(packages: Packages, tmp_path: Path, target: str, python: str, without: str) -> None:
    """The .rpm runs with the Python that it brings or that is there, is upgraded, and leaves nothing."""
    lower = ":".join(map(str, layers.with_package_tools()))
    files = map(str, [packages.get(target), packages.get(target, version=LATER)])
    command = ["unshare", "--mount", "sh", "-ec", IN_A_ROOT, "sh", lower, str(tmp_path), *files, python, without]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    first, libraries, demonstrated, modules, compiled, later, *refused, still = (
        line
        for line in done.stdout.splitlines()
        if not line.startswith("rpm: ")  # Debian's warnings
    )
    assert first == demonstrated == f"resolver-agent {__version__}"
    assert libraries == "libpq: binary yaml: True"
    assert modules == compiled != "0"
    assert later == still == f"resolver-agent {LATER}"
    assert refused[0] == "resolver-agent: there is no /etc/resolver-agent.yml, and /etc/hosts has names of the agent"
    assert "resolver-agent: the package is not removed, for the reason above." in refused
