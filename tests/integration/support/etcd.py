"""A real etcd with one member, and helpers to read and write in it."""

from __future__ import annotations

import base64
import json
import shutil
import time
from typing import TYPE_CHECKING, Any

from tests.integration.support.machine import Machine, http_request

if TYPE_CHECKING:
    import subprocess

    from resolver_agent.demo.postgres import Site

_ADDRESS = "127.0.40.1"
_PEER_ADDRESS = "127.0.40.2"  # its clients' port is that of the site, and so is this one's
_DEADLINE_S = 30.0


class Etcd:
    """One etcd, on a machine of its own. It ends with its ``Site``.

    Attributes:
        endpoint: where clients find it, as ``address:port``.
        machine: to ``pause()`` and ``resume()`` it.
    """

    def __init__(self, site: Site) -> None:
        self.endpoint = f"{_ADDRESS}:{site.port}"
        self.machine = Machine("etcd", _ADDRESS, site=site)
        self._port = site.port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, anew: bool = False) -> None:
        """Start it with its data, or with none."""
        if anew:
            shutil.rmtree(self.machine.folder / "data", ignore_errors=True)
        url, peer_url = f"http://{self.endpoint}", f"http://{_PEER_ADDRESS}:{self._port}"
        self._process = self.machine.start(
            *("etcd", "--name=one", "--data-dir=data", "--log-level=error", f"--initial-cluster=one={peer_url}"),
            *("--election-timeout=50", "--heartbeat-interval=10"),
            *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}"),
            *(f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={peer_url}"),
            log=self.machine.folder / "log",
        )
        deadline = time.monotonic() + _DEADLINE_S
        while not self._is_healthy():
            assert time.monotonic() < deadline, (self.machine.folder / "log").read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it (SIGKILL); its data stays."""
        self.machine.kill()
        if self._process is not None:
            self._process.wait()
            self._process = None

    def get(self, key: str) -> str | None:
        """Return the value of a key."""
        found = self._call("range", key=key).get("kvs", [])
        return base64.b64decode(found[0]["value"]).decode() if found else None

    def put(self, key: str, value: str) -> None:
        """Set a key."""
        self._call("put", key=key, value=value)

    def delete(self, key: str) -> None:
        """Delete a key."""
        self._call("deleterange", key=key)

    def _is_healthy(self) -> bool:
        try:
            return http_request(_ADDRESS, self._port, "GET", "/health", timeout_s=2.0)[0] == 200
        except OSError:
            return False

    def _call(self, what: str, **fields: str) -> Any:
        body = {name: base64.b64encode(value.encode()).decode() for name, value in fields.items()}
        status, text = http_request(_ADDRESS, self._port, "POST", f"/v3/kv/{what}", body, timeout_s=10.0)
        assert status == 200, text
        return json.loads(text)
