"""The .rpm for CentOS 7 in a root of its own, whose scripts run there."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from resolver_agent import __version__
from tests.lab import layers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.support.distribution import Packages

LATER = "9.0.0"
# Takes the lower folders of a tree, an empty folder, and two packages. Debian has /usr/bin/python3, CentOS 7 none that
# is new enough.
IN_A_ROOT = """
mkdir "$2/upper" "$2/work"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" /mnt
mount --bind /dev/null /mnt/dev/null
rm -r /mnt/opt/resolver-agent /mnt/usr/bin/python3* /mnt/usr/lib/python3*
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
python=$(echo /mnt/usr/lib/resolver-agent/python/bin/python3.*)
chroot /mnt "${python#/mnt}" -IS -c '
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


def test_own_python(packages: Packages, tmp_path: Path) -> None:
    """In a root without Python the .rpm for CentOS 7 runs with the one it brings, is upgraded, and leaves nothing."""
    lower = ":".join(map(str, layers.with_package_tools()))
    files = [packages.get("el7"), packages.get("el7", version=LATER)]
    command = ["unshare", "--mount", "sh", "-ec", IN_A_ROOT, "sh", lower, str(tmp_path), *map(str, files)]
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
