"""``remove`` as a shell runs it, and when it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.support.agent_state import written
from tests.integration.support.command_line import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]


def test_remove_restores_the_file_to_the_byte(config: Path, hosts_file: Path) -> None:
    """The block is removed, and the temporary files of a killed writer as well."""
    original = b"127.0.0.1 localhost\r\n\xff\xfe mine\n\n10.0.0.1\tlast without a newline"
    hosts_file.write_bytes(original)
    assert run("once", "-c", config).returncode == 0
    assert hosts_file.read_bytes() != original
    left = hosts_file.with_name("hosts.resolver-agent.1.0a1b2c3d")
    left.touch()
    ran = run("remove", "-c", config)
    assert (ran.returncode, ran.stdout) == (0, f"{hosts_file} no longer has the block\n")
    assert hosts_file.read_bytes() == original
    assert not left.exists()
    again = run("remove", "-c", config)
    assert (again.returncode, again.stdout) == (0, f"{hosts_file} had no block\n")


def test_remove_refuses_while_pg_dist_node_holds_a_name(
    pair: Group, write_config: WriteConfig, hosts_file: Path
) -> None:
    """The names stay while Citus' metadata in any database uses one, in any case, unless --force is given."""
    config = write_config(pair.primary, {"wk1": pair})
    assert run("once", "-c", config).returncode == 0
    with_names = hosts_file.read_bytes()
    pair.primary.run_sql("ALTER SYSTEM SET allow_system_table_mods = on")
    pair.primary.stop()
    pair.primary.start()
    pair.primary.run_sql("CREATE DATABASE app")
    # A stand-in: Citus is in no package registry.
    pair.primary.run_sql("CREATE TABLE pg_catalog.pg_dist_node (nodename text)", dbname="app")
    pair.primary.run_sql("INSERT INTO pg_dist_node VALUES ('WK1'), ('10.0.0.1')", dbname="app")
    pair.primary.run_sql("GRANT SELECT ON pg_dist_node TO public", dbname="app")

    refused = run("remove", "-c", config)
    assert refused.returncode == 2
    assert "pg_dist_node still holds WK1 (database app)" in refused.stderr
    assert hosts_file.read_bytes() == with_names

    pair.primary.run_sql("DELETE FROM pg_dist_node WHERE nodename = 'WK1'", dbname="app")
    assert run("remove", "-c", config).returncode == 0
    assert b"resolver-agent" not in hosts_file.read_bytes()


def test_remove_refuses_while_nobody_can_say_who_uses_the_names(
    pair: Group, write_config: WriteConfig, hosts_file: Path
) -> None:
    """With the local PostgreSQL down only --force removes."""
    config = write_config(pair.primary, {"wk1": pair})
    assert run("once", "-c", config).returncode == 0
    pair.primary.stop()

    refused = run("remove", "-c", config)
    assert refused.returncode == 2
    assert "nothing was removed; --force removes without asking" in refused.stderr
    assert b"wk1" in hosts_file.read_bytes()

    assert run("remove", "--force", "-c", config).returncode == 0
    assert hosts_file.read_text() == "127.0.0.1\tlocalhost\n"


def test_remove_refuses_while_an_agent_runs(running: Agent, config: Path) -> None:
    """The agent would restore the names, so the error names the agent."""
    before = written(running.hosts_file)
    ran = run("remove", "-c", config)
    assert ran.returncode == 2
    assert f"held by another agent, process {running.process.pid}; nothing was removed" in ran.stderr
    assert written(running.hosts_file) == before
