"""The cluster of ``demo``: six throw-away servers, and an agent for each of the two coordinators.

Servers, agents and files are in the folder of a ``Site``. However the owner ends, the folder is removed, and every
process that works in it is killed.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import yaml
from psycopg import sql

from resolver_agent.control import client
from resolver_agent.control.report import Status, from_json
from resolver_agent.routing.state import FENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from resolver_agent.demo.postgres import Postgres, Site

ADDRESSES = {
    "cn": ["127.0.1.1", "127.0.1.2"],
    "wk1": ["127.0.2.1", "127.0.2.2"],
    "wk2": ["127.0.3.1", "127.0.3.2"],
}
_ROLE = "resolver_agent"
_POLL_S = 0.001
_LOG_TAIL = 10


class NotShownError(Exception):
    """The expected outcome of a step did not come; the text describes the state instead."""


class Coordinator:
    """One coordinator, its agent, and the address that each name should have in its hosts file (``expected``)."""

    def __init__(self, server: Postgres, folder: Path, agent: Sequence[str]) -> None:
        """Start the agent, whose command line is ``agent``, in ``folder``."""
        self.server = server
        self.expected: dict[str, str] = {}
        self._folder = folder
        self._hosts_file = folder / "hosts"
        self._command = agent
        folder.mkdir()
        self._hosts_file.write_text("127.0.0.1\tlocalhost\n")
        self.configure(fallback="none")
        self.start_agent()

    def __str__(self) -> str:
        return self.server.name

    def configure(self, *, fallback: str) -> None:
        """Write the agent's configuration."""
        settings = {
            "fallback": fallback,
            "names": {name: {"nodes": addresses} for name, addresses in ADDRESSES.items()},
            "port": self.server.port,
            "failback_delay": "1s",
            "postgresql": {"user": _ROLE, "dbname": "postgres", "passfile": str(self.server.passfile)},
            "local": {"host": str(self.server.socket_dir)},
            "hosts_file": str(self._hosts_file),
            "runtime_dir": str(self._folder),
            "state_dir": str(self._folder / "state"),
        }
        (self._folder / "agent.yml").write_text(yaml.safe_dump(settings, sort_keys=False))

    def start_agent(self) -> None:
        """Start the agent."""
        with (self._folder / "log").open("ab") as log:
            self.agent = self.start("run", output=log.fileno())

    def start(self, *arguments: str, output: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a command of the agent with our ``sys.path``, in its folder: so it cannot outlive the site."""
        return subprocess.Popen(
            [*self._command, *arguments, "-c", "agent.yml"],
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def kill_agent(self) -> None:
        """Kill the agent (SIGKILL)."""
        self.agent.kill()
        self.agent.wait()

    def names(self) -> dict[str, str]:
        """Return the address of each name in the hosts file, read as a resolver would."""
        lines = [line.partition("#")[0].split() for line in self._hosts_file.read_text().splitlines()]
        return {fields[1]: fields[0] for fields in lines if fields and fields[1] in ADDRESSES}

    def alerts(self) -> list[str]:
        """Return the agent's alerts, or none if it does not answer yet."""
        with contextlib.suppress(client.ControlError):
            answer = client.ask(client.socket_path(str(self._folder)), "status")
            return [alert.text for alert in from_json(Status, answer).alerts]
        return []

    def describe(self) -> str:
        """Describe the state, to help to find out why an expectation was not met."""
        ended = "" if self.agent.poll() is None else f"; its agent has ended with {self.agent.returncode}"
        log = (self._folder / "log").read_text(errors="replace").splitlines()[-_LOG_TAIL:]
        return "\n    ".join([f"  {self} has {self.names()}, expected {self.expected}{ended}; the agent's log:", *log])


class Cluster:
    """A coordinator pair and two worker pairs; the first server of each pair is the primary at the start."""

    def __init__(self, site: Site, agent: Sequence[str], *, deadline_s: float) -> None:
        """Start everything; each wait may take ``deadline_s`` seconds.

        Raises:
            ThrowawayError: a server could not be started.
        """
        self.site = site
        self._deadline_s = deadline_s
        self.cn, self.wk1, self.wk2 = site.groups(ADDRESSES).values()
        self.servers = [*self.cn, *self.wk1, *self.wk2]
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(_ROLE), sql.Literal(site.password))
        for primary, standby in (self.cn, self.wk1, self.wk2):
            primary.run_sql(create)
            standby.wait_for_replay(of=primary)
        self.agents_started_at = time.monotonic()
        self.coordinators = [Coordinator(one, site.folder / f"agent-{one.name}", agent) for one in self.cn]

    def close(self) -> None:
        """End the agents; the site ends the rest."""
        for one in self.coordinators:
            one.kill_agent()

    def expect(
        self, since: float, event: str, *, cn1: Mapping[str, str] | None = None, cn2: Mapping[str, str] | None = None
    ) -> str:
        """Wait until these names have their new addresses and all others have not changed; return that as text.

        Args:
            since: when the event was complete, on the monotonic clock.
            event: what happened, in words that continue "5 ms after".
            cn1: the names that change on the first coordinator, with their new addresses.
            cn2: the same on the second.

        Raises:
            NotShownError: that did not happen in time.
        """
        changes = dict(zip(self.coordinators, (cn1 or {}, cn2 or {}), strict=True))
        took_s: dict[Coordinator, float] = {}
        for one, changed in changes.items():
            one.expected |= changed

        def arrived() -> bool:
            right = [one for one in self.coordinators if one.names() == one.expected]
            for one in right:
                took_s.setdefault(one, time.monotonic() - since)
            return right == self.coordinators

        self.wait(arrived, f"the names are not as they should be after {event}")
        times = [
            f"{one}: {', '.join(changed)} {math.ceil(took_s[one] * 1000)} ms after {event}"
            for one, changed in changes.items()
            if changed
        ]
        return "\n".join([*self._table(), *times])

    def wait(self, condition: Callable[[], bool], fault: str) -> None:
        """Wait until ``condition()`` is true.

        Raises:
            NotShownError: it did not become true in time, or an agent has ended; the text begins with ``fault``.
        """
        deadline = time.monotonic() + self._deadline_s
        while not condition():
            if time.monotonic() > deadline or any(one.agent.poll() is not None for one in self.coordinators):
                raise NotShownError("\n".join([fault, *(one.describe() for one in self.coordinators)]))
            time.sleep(_POLL_S)

    def reload_agents(self, *, fallback: str) -> None:
        """Give both agents another configuration, and make them read it."""
        for one in self.coordinators:
            one.configure(fallback=fallback)
            one.agent.send_signal(signal.SIGHUP)

    def alter_role(self, right: str) -> None:
        """Give an attribute to the agents' database role, or take it away, on all servers."""
        for primary, standby in (sorted(g, key=lambda one: one.is_in_recovery) for g in (self.cn, self.wk1, self.wk2)):
            primary.run_sql(f"ALTER ROLE {_ROLE} {right}")
            standby.wait_for_replay(of=primary)

    def _table(self) -> list[str]:
        roles = {server.address: _role(server) for server in self.servers}
        rows = [["", *ADDRESSES]]
        for one in self.coordinators:
            addresses = [one.expected[name] for name in ADDRESSES]
            rows.append([str(one), *("fenced" if a == FENCE else f"{a} {roles[a]}" for a in addresses)])
        return [f"{first:6}{''.join(f'{cell:20}' for cell in cells)}".rstrip() for first, *cells in rows]


def promote(server: Postgres) -> float:
    """Promote a standby, and return when it was last seen in recovery: the start of the time to measure."""
    server.promote(wait=False)
    promoted_at = time.monotonic()
    while server.is_in_recovery:
        promoted_at = time.monotonic()
    return promoted_at


def _role(server: Postgres) -> str:
    if not server.is_running:
        return "down"
    return "standby" if server.is_in_recovery else "primary"
