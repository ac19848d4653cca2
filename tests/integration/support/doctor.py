"""Doctor on a machine of a cluster, and psql as an operator runs what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.integration.support.machine import CHECKOUT

if TYPE_CHECKING:
    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine

DOCTOR = [sys.executable, "-m", "resolver_agent.cli", "doctor", "--json"]


def report(citus: CitusCluster, machine: Machine, **settings: Any) -> dict[str, Any]:
    """Return what doctor says on a machine, as plain data."""
    ran = subprocess.run(
        [*machine.launcher, *DOCTOR, "-c", citus.configure(machine, **settings)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    assert ran.returncode in (0, 1), ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def psql(citus: CitusCluster, machine: Machine, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with psql as an operator would: as a superuser with a password that opens any server."""
    where = ["-h", str(machine.server.socket_dir), "-p", str(citus.site.port), "-U", "postgres", "-d", "postgres"]
    command = [*machine.as_postgres, str(citus.site.binaries.folder / "psql"), "-X", "-q", "-w", *where]
    return subprocess.run(
        command,
        input=script,
        cwd=machine.folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PGPASSWORD": "SUPERUSERS-PASSWORD"},
    )


def mend(citus: CitusCluster, machine: Machine, script: str) -> str:
    """Run a script that must succeed, and return its output."""
    ran = psql(citus, machine, script)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout
