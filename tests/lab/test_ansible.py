"""Ansible's role with a package, a bundle and a wheel, one after another on a booted host."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from resolver_agent import __version__
from tests.integration.support.systemd_host import CHECKOUT
from tests.lab import layers
from tests.lab.ansible_role import play
from tests.lab.one_host import CONFIG, POSTGRES, TO_ADDRESSES, booted, sh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.support.distribution import Packages
    from tests.integration.support.systemd_host import SystemdHost
    from tests.lab.ansible_role import Played

LATER = "9.0.0"
SERVICE = "resolver-agent.service"
GIVEN: dict[str, Any] = {"resolver_agent_config": yaml.safe_load(CONFIG)}
WRITE = "Write the configuration, if the agent finds nothing wrong with it"
LEFT = "find / -xdev -name '*resolver*agent*' -not -path '/proc/*' -not -path '/srv/*' -not -path '/var/lib/dpkg/*'"


@pytest.fixture(scope="module")
def host() -> Iterator[SystemdHost]:
    """Yield a booted host without the agent, whose PostgreSQL has the name ``cn`` in its metadata."""
    with booted([CHECKOUT / "systemd/role.sql"], f"--bind-ro={layers.installed()[1]}:{layers.WHEELS}") as host:
        host.run("mkdir", "/usr/share/resolver-agent")
        host.run("cp", "/srv/role.sql", "/usr/share/resolver-agent/")
        sh(host, POSTGRES)
        host.run("rm", "-r", "/usr/share/resolver-agent")
        yield host


def running(host: SystemdHost) -> tuple[str, int]:
    """Return the version and the process number of the running agent."""
    status = json.loads(sh(host, "resolver-agent status --json || :"))
    return status["version"], status["pid"]


def well(played: Played) -> list[str]:
    """Return what a play changed, when none of it failed."""
    assert not played.failed, played.said
    return played.changed


def wheel_in(bundle: Path, folder: Path) -> Path:
    """Return the agent's own wheel out of a bundle."""
    folder.mkdir()
    subprocess.run(["tar", "-xf", bundle, "-C", folder], check=True)  # Debian 12's tarfile has no filters
    [wheel] = folder.glob("*/resolver_agent-*.whl")
    return wheel


def test_package(host: SystemdHost, packages: Packages, tmp_path: Path) -> None:
    """A .deb is installed and upgraded, and nothing else is changed; it stays while its names are in use."""
    first, later = (GIVEN | {"resolver_agent_package": str(packages.get("debian12", version=v))} for v in (None, LATER))
    well(play(host, tmp_path, **first))
    assert running(host)[0] == __version__
    assert well(play(host, tmp_path, **later)) == ["Copy it there", "Install a .deb", "Restart the agent"]
    assert running(host)[0] == LATER

    refused = play(host, tmp_path, resolver_agent_state="absent", **later)
    assert refused.failed
    assert "pg_dist_node still holds cn" in refused.said
    assert running(host)[0] == LATER
    sh(host, TO_ADDRESSES)
    well(play(host, tmp_path, resolver_agent_state="absent", **later))
    assert b"resolver-agent" not in host.read("/etc/hosts")
    assert sh(host, LEFT) == ""


def test_pip(host: SystemdHost, packages: Packages, tmp_path: Path) -> None:
    """A bundle is installed, and a wheel in its place; another service unit restarts the agent, and it alone."""
    first, later = (packages.get("bundle-3.11", version=version) for version in (None, LATER))
    bundle = GIVEN | {"resolver_agent_source": str(first), "resolver_agent_pip_options": []}
    wheel = GIVEN | {"resolver_agent_source": str(wheel_in(later, tmp_path / "bundle"))}
    assert WRITE in well(play(host, tmp_path, check=True, **bundle))
    assert sh(host, LEFT) == ""
    well(play(host, tmp_path, **bundle))
    version, pid = running(host)
    assert version == __version__

    unit = f"/etc/systemd/system/{SERVICE}"
    host.write(unit, host.read(unit) + b"# Another one.\n")
    assert well(play(host, tmp_path, **bundle)) == ["Install the service unit", "Restart the agent"]
    assert running(host)[1] != pid

    assert "Restart the agent" in well(play(host, tmp_path, **wheel))
    assert running(host)[0] == LATER
    sh(host, TO_ADDRESSES)
    well(play(host, tmp_path, resolver_agent_state="absent"))
    assert sh(host, LEFT) == ""
