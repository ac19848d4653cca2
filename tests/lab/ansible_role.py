"""Ansible's role, played on hosts of the lab."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.integration.support.systemd_host import CHECKOUT
from tests.lab import layers

if TYPE_CHECKING:
    from tests.integration.support.systemd_host import SystemdHost

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What a play did: the tasks and handlers that changed something, whether one failed, and all that it printed."""

    changed: list[str]
    failed: bool
    said: str


def play(host: SystemdHost, folder: Path, *, check: bool = False, **variables: Any) -> Played:
    """Play the sample playbook on one node, with these variables of the role; ``folder`` is for Ansible's own files.

    With ``check`` it only tells what it would change.
    """
    # Its temporary files are in a folder of another user, as those of an operator who becomes root there.
    where = {
        "ansible_connection": "nsenter",
        "container_leader": host.leader,
        "ansible_become": False,
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_remote_tmp": "/var/lib/postgresql/.ansible/tmp",
    }
    offline = ["--no-index", f"--find-links={layers.WHEELS}", "--no-cache-dir"]
    given = {"resolver_agent_pip_options": offline} | variables
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps({"resolver_agent": {"hosts": {"node": where}, "vars": given}}))
    settings = {
        "ANSIBLE_CONNECTION_PLUGINS": str(_HERE / "connection"),
        "ANSIBLE_HOME": str(folder),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
    }
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, f"--inventory={inventory}", *["--check"] * check, CHECKOUT / "vagrant/ansible/site.yml"],
        env={key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")} | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = done.stdout
    changed = []
    for line in said.splitlines():
        if found := re.match(r"(?:TASK|RUNNING HANDLER) \[(?:resolver_agent : )?(.*)\] \*", line):
            task = found[1]
        elif line.startswith("changed: ["):
            changed.append(task)
    return Played(changed=list(dict.fromkeys(changed)), failed=done.returncode != 0, said=said)
