"""The packages on a booted Debian: installed, configured, run, upgraded and removed by dpkg and by rpm."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resolver_agent import __version__
from tests.lab.one_host import CONFIG, POSTGRES, STOP, TO_ADDRESSES, booted, sh

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.support.distribution import Packages
    from tests.integration.support.systemd_host import SystemdHost

LATER = "9.0.0"
ELSEWHERE = ("/var/cache/man/", "/var/lib/dpkg/")
"""Where other programs keep what they know of a package."""
SERVICE, SOCKET = "resolver-agent.service", "resolver-agent.socket"
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
    """A package manager: what its package is for, its commands, and the tree of its release.

    That is a folder, the codename of a Debian, or by default this machine's release.
    """

    target: str
    install: str
    upgrade: str
    remove: str
    purge: str
    refused: str
    tree: str | None = None


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


OTHERS = [
    dataclasses.replace(DPKG, target=target, tree=tree)
    for target, _, tree in (word.partition("=") for word in os.environ.get("RESOLVER_AGENT_RELEASES", "").split())
]


@pytest.fixture(params=[DPKG, RPM, *OTHERS], ids=["dpkg", "rpm", *(each.target for each in OTHERS)])
def manager(request: pytest.FixtureRequest) -> Manager:
    """Return each package manager, and that of each other release that the environment names."""
    assert isinstance(request.param, Manager)
    return request.param


@pytest.fixture
def host(manager: Manager, packages: Packages) -> Iterator[SystemdHost]:
    """Yield a booted host with both versions of the package in /srv, and neither installed."""
    files = [packages.get(manager.target), packages.get(manager.target, version=LATER)]
    with booted(files, tree=manager.tree) as host:
        yield host


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

    sh(host, TO_ADDRESSES)
    sh(host, manager.remove)
    assert b"resolver-agent" not in host.read("/etc/hosts")
    assert host.read("/etc/resolver-agent.yml") == CONFIG
    assert sh(host, "systemctl list-unit-files --no-legend 'resolver-agent*' || :") == ""
    assert sh(host, "pgrep -f '[r]esolver-agent run' || :") == ""
    sh(host, manager.purge)
    found = sh(host, "find / -xdev -name '*resolver*agent*' -not -path '/proc/*'").splitlines()
    assert [path for path in found if not path.startswith(ELSEWHERE)] == []


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
