"""Machines: each a loopback address with an /etc of its own, which every process that is started on it sees.

A process on a machine runs in a mount namespace where a private /etc lies over the real one. So what resolves names
there, PostgreSQL's own code included, reads a hosts file that can be replaced as on a real host. Everything else in it,
except nsswitch.conf, links to the real one.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from resolver_agent.demo import reaper
from resolver_agent.demo.postgres import environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from resolver_agent.demo.postgres import Postgres, Site

CHECKOUT = Path(__file__).parents[3]
PATRONI = os.environ.get("RESOLVER_AGENT_PATRONI", sys.executable)
"""The interpreter of a virtual environment that has Patroni: ours, or the one that this variable names."""
_LOCALHOST = "127.0.0.1\tlocalhost\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files\n"


def replace(path: Path, text: str) -> None:
    """Give a file another content at once, as an editor does: by another file in its place."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


class Machine:
    """One machine. It ends with the ``Site`` in whose folder it is.

    Attributes:
        name: unique in its site.
        address: its loopback address.
        folder: the working directory of what is started here, by which it is found and ended.
        hosts_file: its /etc/hosts, as seen from outside.
        launcher: what a command line begins with to be run here, as root.
        as_postgres: the same, to be run as the user of the PostgreSQL servers. Both keep the process id.
    """

    def __init__(self, name: str, address: str, *, site: Site) -> None:
        """Make it in the folder of ``site``; a server there of the same name runs on it."""
        self.name = name
        self.address = address
        self.folder = site.folder / f"machine-{name}"
        self._site = site
        etc = self.folder / "etc"
        etc.mkdir(parents=True)
        outside = self.folder / "etc-outside"
        outside.mkdir()
        for path in Path("/etc").iterdir():
            if path.name not in ("hosts", "nsswitch.conf"):
                (etc / path.name).symlink_to(outside / path.name)
        (etc / "nsswitch.conf").write_text(_NSSWITCH)
        self.hosts_file = etc / "hosts"
        self.lead({})
        self.launcher = ["unshare", "--mount", "sh", "-ec", "\n".join(_entrance(self.folder)), name]
        user, group = site.binaries.credentials["user"], site.binaries.credentials["group"]
        self.as_postgres = [*self.launcher, "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"

    @property
    def server(self) -> Postgres:
        """The PostgreSQL server that runs here, in a folder of its own."""
        return self._site.servers[self.name]

    @property
    def names(self) -> dict[str, str]:
        """What the hosts file says now: the address of each name."""
        lines = [line.partition("#")[0].split() for line in self.hosts_file.read_text().splitlines()]
        return {name: address for address, *names in filter(None, lines) for name in names}

    def lead(self, names: Mapping[str, str]) -> None:
        """Replace the hosts file atomically by one that points these names, and localhost, to addresses."""
        replace(self.hosts_file, _LOCALHOST + "".join(f"{address}\t{name}\n" for name, address in names.items()))

    def resolve(self, name: str) -> list[str]:
        """Return a name's addresses there, from the C library."""
        found = self.run("sh", "-c", 'getent ahostsv4 "$1" || :', "sh", name)
        return list(dict.fromkeys(line.split()[0] for line in found.splitlines()))

    def wait_for_names(self, names: Mapping[str, str], *, timeout_s: float = 10) -> None:
        """Wait until the hosts file has these addresses for these names."""
        deadline = time.monotonic() + timeout_s
        while not names.items() <= (seen := self.names).items():
            assert time.monotonic() < deadline, f"on {self!r} the names are {seen}, not {dict(names)}"
            time.sleep(0.002)

    def run(self, *command: str | Path, as_postgres: bool = False, timeout_s: float = 30) -> str:
        """Run a command here and return what it prints on standard output.

        Raises:
            RuntimeError: it failed; with all of its output.
        """
        ran = subprocess.run(
            [*(self.as_postgres if as_postgres else self.launcher), *command],
            cwd=self.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if ran.returncode != 0:
            raise RuntimeError(f"{command} on {self!r} exited with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def start(
        self, *command: str | Path, log: Path, as_postgres: bool = False, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command here that outlives neither the machine nor the site; its output is added to ``log``."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [*(self.as_postgres if as_postgres else self.launcher), *command],
                cwd=self.folder,
                env=environment() | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill everything that runs here at once, like a power loss (SIGKILL)."""
        self.pause()
        reaper.kill_server(self.folder)
        if self.name in self._site.servers:
            self.server.kill()

    def pause(self) -> None:
        """Freeze everything that runs here: connections stay open, and nothing answers (SIGSTOP)."""
        for folder in self._folders():
            reaper.pause_all(folder)

    def resume(self) -> None:
        """Let a paused machine go on."""
        for folder in self._folders():
            reaper.signal_all(folder, signal.SIGCONT)

    def _folders(self) -> list[Path]:
        return [self.folder, *([self.server.folder] if self.name in self._site.servers else [])]


def _entrance(folder: Path) -> Iterator[str]:
    """Yield the shell script that turns a new mount namespace into the machine, and runs its arguments there.

    On a machine everybody can run our interpreter and Patroni's, and read this checkout. Where these are in a folder
    that only we may enter, as root's home is, a copy of that folder hides it there, with nothing in it but what
    everybody needs.
    """
    yield _bind("/etc", folder / "etc-outside")
    yield _bind(folder / "etc", "/etc")
    hidden: dict[Path, list[Path]] = {}
    patroni = Path(PATRONI)
    everybodys = (sys.base_prefix, sys.prefix, CHECKOUT, patroni.parents[1], patroni.resolve().parents[1])
    for path in dict.fromkeys(Path(one).resolve() for one in everybodys):
        closed = next((one for one in reversed(path.parents) if not one.stat().st_mode & stat.S_IXOTH), None)
        if closed is not None:
            hidden.setdefault(closed, []).append(path)
    for number, (closed, paths) in enumerate(hidden.items()):
        spare = folder / f"open-{number}"
        for path in paths:
            (spare / path.relative_to(closed)).mkdir(parents=True, exist_ok=True)
            yield _bind(path, spare / path.relative_to(closed))
        yield _bind(spare, closed)
    yield 'exec "$@"'


def _bind(what: Path | str, where: Path | str) -> str:
    return f"mount --rbind {shlex.quote(str(what))} {shlex.quote(str(where))}"


def http_request(
    host: str, port: int, method: str, path: str, body: object = None, *, timeout_s: float
) -> tuple[int, str]:
    """Send a request, with ``body`` as JSON, and return the status and the text of the answer.

    Raises:
        OSError: no answer.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request(method, path, body=None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except http.client.HTTPException as error:
        raise ConnectionError(f"{host}:{port} ended before it answered") from error
    finally:
        connection.close()
