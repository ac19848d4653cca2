"""The packages on a booted Debian: installed, configured, run, upgraded and removed by dpkg and by rpm."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resolver_agent import __version__
from tests.integration.support.systemd_host import Container, SystemdHost
from tests.lab import layers
from tests.lab.ground import Ground

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.support.distribution import Packages

LATER = "9.0.0"
OTHERS = ("/var/cache/man/", "/var/lib/dpkg/")
"""Where other programs keep what they know of a package."""
SERVICE, SOCKET = "resolver-agent.service", "resolver-agent.socket"
CONFIG = b"""\
fallback: none
names:
  cn: {nodes: [127.0.0.2]}
postgresql: {user: resolver_agent, dbname: postgres}
local: {host: /run/postgresql, user: resolver_agent_local}
"""
# A stand-in for Citus' metadata, as this PostgreSQL has no Citus.
POSTGRES = """
set -e
bin=$(echo /usr/lib/postgresql/*/bin)
runuser -u postgres -- $bin/initdb --auth=trust --no-sync --pgdata=/var/lib/postgresql/cn >/dev/null
cd /var/lib/postgresql/cn
sed -i '1i local all resolver_agent_local peer map=resolver_agent' pg_hba.conf
echo 'resolver_agent root resolver_agent_local' >>pg_ident.conf
runuser -u postgres -- $bin/pg_ctl start --silent --wait --pgdata=. --log=log \\
    --options="-c fsync=off -c listen_addresses=127.0.0.2 -c allow_system_table_mods=on"
sql() {
    runuser -u postgres -- psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --host=/run/postgresql "$@"
}
sql --file=/usr/share/resolver-agent/role.sql
sql --command="CREATE TABLE pg_catalog.pg_dist_node (nodename text)" \\
    --command="GRANT SELECT ON pg_dist_node TO public" \\
    --command="INSERT INTO pg_dist_node VALUES ('cn')"
"""
TO_ADDRESSES = "UPDATE pg_dist_node SET nodename = '127.0.0.2'"
STOP = "cd /; runuser -u postgres -- /usr/lib/postgresql/*/bin/pg_ctl stop --mode=fast --pgdata=/var/lib/postgresql/cn"
COMPLETED = """
. /usr/share/bash-completion/bash_completion
_completion_loader resolver-agent
complete -p resolver-agent
COMP_WORDS=(resolver-agent stat) COMP_CWORD=1 COMP_LINE='resolver-agent stat' COMP_POINT=19
$(complete -p resolver-agent | sed 's/.*-F \\([^ ]*\\).*/\\1/') resolver-agent stat resolver-agent
echo "${COMPREPLY[@]}"
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """A package manager: what its package is for, and its commands."""

    target: str
    install: str
    upgrade: str
    remove: str
    purge: str
    refused: str


DPKG = Manager(
    target="debian12",
    install="dpkg --install",
    upgrade="dpkg --install",
    remove="dpkg --remove resolver-agent",
    purge="dpkg --purge resolver-agent",
    refused="installed resolver-agent package pre-removal script subprocess returned error exit status 1",
)
# Debian's rpm has no database of what dpkg has installed.
RPM = Manager(
    target="el9",
    install="rpm --force-debian --nodeps --install",
    upgrade="rpm --force-debian --nodeps --upgrade",
    remove="rpm --erase resolver-agent",
    purge="rm -r /etc/resolver-agent.yml /var/lib/resolver-agent /etc/.hosts.resolver-agent.lock",
    refused="error: resolver-agent-",
)


@pytest.fixture(params=[DPKG, RPM], ids=["dpkg", "rpm"])
def manager(request: pytest.FixtureRequest) -> Manager:
    """Return each package manager."""
    assert isinstance(request.param, Manager)
    return request.param


@pytest.fixture
def host(manager: Manager, packages: Packages) -> Iterator[SystemdHost]:
    """Yield a booted host with both versions of the package in /srv, and neither installed."""
    files = [packages.get(manager.target), packages.get(manager.target, version=LATER)]
    with contextlib.ExitStack() as stack:
        ground = stack.enter_context(Ground("10.0.0.1/24"))
        ground.lay("host", layers.with_package_tools())
        folder = ground.folder
        for file in files:
            (folder / file.name).write_bytes(file.read_bytes())
        options = ["--directory=/mnt/host/root", f"--bind-ro={folder}:/srv", "--private-network"]
        container = stack.enter_context(Container("host", *options, launcher=ground.launcher))
        host = container.booted()
        host.run("rm", "-r", "/opt/resolver-agent")
        yield host


def sh(host: SystemdHost, script: str) -> str:
    """Run a script on a host, and return what it prints."""
    return host.run("bash", "-c", script)


def states(host: SystemdHost) -> dict[str, tuple[str, str]]:
    """Return whether each unit is enabled, and whether it is active."""
    shown = {unit: host.show(unit, "UnitFileState", "ActiveState") for unit in (SERVICE, SOCKET)}
    return {unit: (each["UnitFileState"], each["ActiveState"]) for unit, each in shown.items()}


def test_life(manager: Manager, host: SystemdHost, packages: Packages) -> None:
    """Installed, it starts nothing; it runs, is upgraded, refuses to go while its names are in use, and then goes."""
    sh(host, f"{manager.install} /srv/{packages.get(manager.target).name}")
    assert states(host) == dict.fromkeys([SERVICE, SOCKET], ("disabled", "inactive"))
    assert not Path(host.root / "etc/resolver-agent.yml").exists()
    assert host.run("resolver-agent", "--version") == f"resolver-agent {__version__}\n"
    assert "resolver-agent - keep" in host.run("man", "--pager=cat", "resolver-agent")
    assert "status" in sh(host, COMPLETED).splitlines()[-1]
    assert host.run("systemd-analyze", "verify", "--man=no", SERVICE, SOCKET) == ""

    sh(host, POSTGRES)
    host.write("/etc/resolver-agent.yml", CONFIG)
    mark = host.mark()
    host.run("systemctl", "--quiet", "enable", "--now", SOCKET, SERVICE)
    host.wait_for("cn → 127.0.0.2", after=mark)
    assert host.run("getent", "hosts", "cn").startswith("127.0.0.2 ")
    assert f"resolver-agent {__version__}" in sh(host, "resolver-agent status || :")

    named = host.read("/etc/hosts")
    before = host.show(SERVICE, "MainPID")
    sh(host, f"{manager.upgrade} /srv/{packages.get(manager.target, version=LATER).name}")
    assert states(host) == dict.fromkeys([SERVICE, SOCKET], ("enabled", "active"))
    assert host.show(SERVICE, "MainPID") != before
    assert f"resolver-agent {LATER}" in sh(host, "resolver-agent status || :")
    assert host.read("/etc/hosts") == named

    with pytest.raises(RuntimeError) as refused:
        sh(host, manager.remove)
    assert "pg_dist_node still holds cn" in str(refused.value)
    assert "HINT: Give pg_dist_node addresses first" in str(refused.value)
    assert manager.refused in str(refused.value)
    assert states(host) == dict.fromkeys([SERVICE, SOCKET], ("enabled", "active"))
    assert host.read("/etc/hosts") == named

    host.run("runuser", "-u", "postgres", "--", "psql", "--quiet", "--host=/run/postgresql", "--command", TO_ADDRESSES)
    sh(host, manager.remove)
    assert b"resolver-agent" not in host.read("/etc/hosts")
    assert host.read("/etc/resolver-agent.yml") == CONFIG
    assert sh(host, "systemctl list-unit-files --no-legend 'resolver-agent*' || :") == ""
    assert sh(host, "pgrep -f '[r]esolver-agent run' || :") == ""
    sh(host, manager.purge)
    found = sh(host, "find / -xdev -name '*resolver*agent*' -not -path '/proc/*'").splitlines()
    assert [path for path in found if not path.startswith(OTHERS)] == []


def test_without_an_answer(manager: Manager, host: SystemdHost, packages: Packages) -> None:
    """While PostgreSQL does not say who uses the names it refuses; what its hint says removes it all the same."""
    sh(host, f"{manager.install} /srv/{packages.get(manager.target).name}")
    sh(host, POSTGRES)
    host.write("/etc/resolver-agent.yml", CONFIG)
    mark = host.mark()
    host.run("systemctl", "start", SERVICE)
    host.wait_for("cn → 127.0.0.2", after=mark)
    sh(host, STOP)
    with pytest.raises(RuntimeError, match="--force removes without asking") as refused:
        sh(host, manager.remove)
    hint = str(refused.value).partition("metadata:\n")[2].splitlines()[:3]
    sh(host, "set -e\n" + "\n".join(hint))
    sh(host, manager.remove)
    assert b"resolver-agent" not in host.read("/etc/hosts")


def test_never_used(manager: Manager, host: SystemdHost, packages: Packages) -> None:
    """Without a configuration and without names there is nothing to refuse for."""
    sh(host, f"{manager.install} /srv/{packages.get(manager.target).name}")
    sh(host, manager.remove)
    assert not Path(host.root / "usr/lib/resolver-agent").exists()
