"""The program as a shell runs it, and as another user would."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.integration.conftest import Group

PROGRAM = [sys.executable, "-m", "resolver_agent.cli"]

# Everything is imported before the privileges are dropped: the environment may be closed to other users.
AS_NOBODY = [
    sys.executable,
    "-c",
    """import os, pwd, sys
import encodings.idna, encodings.utf_8_sig, python_hosts, tenacity
from resolver_agent import cli, once
from resolver_agent.changes import history_file
from resolver_agent.control import report
from resolver_agent.hosts import block
from resolver_agent.system import lock
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
os.environ["HOME"] = nobody.pw_dir
sys.exit(cli.main())
""",
]


def run(*arguments: str | Path, program: Sequence[str] = PROGRAM, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end; by default with all output captured."""
    defaults = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ran = subprocess.run([*program, *arguments], text=True, timeout=30, check=False, **(defaults | settings))
    assert "Traceback" not in (ran.stderr or "")
    return ran


def by_the_standard_library_alone(command: str, *, prepare: str) -> tuple[str, set[str]]:
    """Return the output of a command that succeeds without any package, and the top-level modules that it imports.

    ``prepare`` is run by a shell before it, in a mount namespace of its own.
    """
    script = f"""
        {prepare}
        exec {sys.executable} -c '
import sys
before = set(sys.modules)
from resolver_agent.cli import main
code = main(["{command}"])
print(*{{name.partition(".")[0] for name in sys.modules.keys() - before}}, file=sys.stderr)
sys.exit(code)'
    """
    ran = subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    imported = set(ran.stderr.split())
    assert imported - sys.stdlib_module_names == {"resolver_agent"}
    return ran.stdout, imported


def default_runtime_dir(folder: Path) -> str:
    """Return what makes a folder the default runtime folder, for a shell in a mount namespace of its own."""
    return f"mount -t tmpfs tmpfs /run && mkdir /run/resolver-agent && mount --bind {folder} /run/resolver-agent"


def targets(output: str) -> dict[str, str]:
    """Return the targets in the lines that have them."""
    return dict(re.findall(r"^(\w+) → (\S+) \(", output, re.MULTILINE))


@contextlib.contextmanager
def no_new_logins(group: Group) -> Iterator[None]:
    """Keep the agent's role from logging in to a group."""
    group.primary.run_sql("ALTER ROLE resolver_agent NOLOGIN")
    group.standby.wait_for_replay(of=group.primary)
    try:
        yield
    finally:
        group.primary.run_sql("ALTER ROLE resolver_agent LOGIN")
        group.standby.wait_for_replay(of=group.primary)


def on_a_terminal(command: list[str], *, code: int = 1) -> bytes:
    """Return a command's output on a terminal; it ends with this exit code."""
    terminal, end = pty.openpty()
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as screen:
            while chunk := screen.read(65536):
                shown += chunk
    assert process.returncode == code
    return shown


@contextlib.contextmanager
def connected(address: str, port: int, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and go on when it has connected to a server that will not answer."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wanted = ["ss", "-Htn", "state", "established", f"dst {address}:{port}"]
        while not subprocess.run(wanted, capture_output=True, check=True).stdout:
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()
