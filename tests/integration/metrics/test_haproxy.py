"""HAProxy, the real one, sends reads where the agent says that they are welcome."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.integration.support.agent_state import FENCE, SETTLED, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]

ADDRESS = "127.0.71.2"

# The backend is that of the README, with a place to go while no standby is fit.
CONFIG = """
defaults
    mode tcp
    timeout connect 2s
    timeout client 1m
    timeout server 1m
listen reads
    bind {address}:{port}
    option httpchk OPTIONS /read-only
    default-server inter 100ms fall 1 rise 2 on-marked-down shutdown-sessions
    server standby {standby} check addr {address} port {checked}
    server primary {primary} backup
"""


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def haproxy(folder: Path, **values: object) -> Iterator[None]:
    """Run HAProxy."""
    path = folder / "haproxy.cfg"
    path.write_text(CONFIG.format(**values))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", path], stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def serving(port: int) -> str | None:
    """Return the address of the server that a new session through HAProxy reads from, None for none."""
    try:
        with psycopg.connect(
            host=ADDRESS, port=port, user="postgres", dbname="postgres", connect_timeout=5
        ) as connection:
            [(address,)] = connection.execute("SELECT host(inet_server_addr())").fetchall()
            return str(address)
    except psycopg.Error:
        return None


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="there is no HAProxy")
def test_no_reads_for_a_standby_whose_name_is_fenced(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    """Its sessions end, and new ones go elsewhere, until the worker's standby is back."""
    standby, primary = cluster["cn"].standby, cluster["cn"].primary
    checked, port = free_port(), free_port()
    config = write_config(standby, cluster, http={"listen": f"{ADDRESS}:{checked}"})
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    where = {name: f"{one.address}:{one.port}" for name, one in (("standby", standby), ("primary", primary))}
    with haproxy(tmp_path, address=ADDRESS, port=port, checked=checked, **where):
        wait_until(lambda: serving(port) == standby.address)
        with psycopg.connect(host=ADDRESS, port=port, user="postgres", dbname="postgres", autocommit=True) as reader:
            reader.execute("SELECT 1")
            cluster["wk1"].standby.kill()
            agent.wait_for_target("wk1", FENCE)
            wait_until(lambda: serving(port) == primary.address)
            with pytest.raises(psycopg.OperationalError):
                reader.execute("SELECT 1")
        cluster["wk1"].standby.start()
        agent.wait_for_target("wk1", cluster["wk1"].standby.address)
        wait_until(lambda: serving(port) == standby.address)
        assert agent.stop() == 0
        wait_until(lambda: serving(port) == primary.address)
