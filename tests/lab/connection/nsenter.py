"""Ansible's way into a container, as root: through its namespaces. Nothing is needed inside but Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: nsenter
short_description: Enters the namespaces of a container
options:
  leader:
    description: the process id of its systemd
    type: int
    vars:
      - name: container_leader
"""


class Connection(ConnectionBase):
    """What Ansible wants of a connection."""

    transport = "nsenter"

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, *_: Any, **__: Any) -> tuple[int, bytes, bytes]:
        """Run a command inside, and return its exit code and what it prints."""
        enter = ("nsenter", "--target", str(self.get_option("leader")), "--all")
        done = subprocess.run(
            [*enter, "sh", "-c", cmd], input=in_data or b"", capture_output=True, check=False, env={"PATH": _PATH}
        )
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file into it."""
        shutil.copy(in_path, self._inside(out_path))

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file out of it."""
        shutil.copy(self._inside(in_path), out_path)

    def close(self) -> None:
        """Do nothing: each command enters by itself."""

    def _inside(self, path: str) -> Path:
        return Path(f"/proc/{self.get_option('leader')}/root", path.lstrip("/"))


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
