"""``once`` and ``--dry-run`` as a shell runs them: output, exit codes, and what they leave alone."""

from __future__ import annotations

import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest
import yaml

from tests.integration.support.agent_state import written
from tests.integration.support.command_line import AS_NOBODY, PROGRAM, no_new_logins, on_a_terminal, run, targets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    StartAgent = Callable[..., Agent]


@pytest.mark.parametrize("form", [["--dry-run"], ["once", "--dry-run"], ["--dry-run", "once"]], ids=" ".join)
def test_dry_run_shows_the_difference_and_writes_nothing(
    form: list[str], config: Path, hosts_file: Path, primaries: dict[str, str]
) -> None:
    """The diff comes with the reasons and exit code 1; the file and its folder stay as they are."""
    before, beside = written(hosts_file), sorted(hosts_file.parent.iterdir())
    ran = run(*form, "-c", config)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert targets(ran.stdout) == primaries
    assert f"--- {hosts_file}\n+++ {hosts_file} (new)\n@@ -1 +1,6 @@\n 127.0.0.1\tlocalhost\n" in ran.stdout
    assert re.search(rf"\+{primaries['wk1']}\twk1\t# primary; system \d+\n", ran.stdout)
    assert "\033" not in ran.stdout
    assert (written(hosts_file), sorted(hosts_file.parent.iterdir())) == (before, beside)


def test_once_puts_the_names_right(config: Path, hosts_file: Path, primaries: dict[str, str]) -> None:
    """It writes, reports it with exit code 0, and has nothing left to do; --dry-run agrees with exit code 0."""
    ran = run("once", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert targets(ran.stdout) == primaries
    assert re.search(rf"{primaries['wk1']}\twk1\t# primary; system \d+\n", hosts_file.read_text())
    after = written(hosts_file)
    assert run("once", "-c", config).returncode == 0
    again = run("--dry-run", "-c", config)
    assert (again.returncode, targets(again.stdout), "@@" in again.stdout) == (0, primaries, False)
    assert written(hosts_file) == after


@pytest.mark.parametrize("role", ["primary", "standby", "auto"])
@pytest.mark.parametrize("agent", ["alone", "beside an agent"])
def test_a_role_may_be_assumed(
    role: str, agent: str, config: Path, cluster: dict[str, Group], request: pytest.FixtureRequest
) -> None:
    """The names are those of that role, except the own one, whether an agent is asked or not."""
    if agent != "alone":
        request.getfixturevalue("running")
    ran = run("once", "--dry-run", "--role", role, "-c", config)
    wanted = "standby" if role == "standby" else "primary"
    assert targets(ran.stdout) == {
        "cn": cluster["cn"].primary.address,
        **{name: getattr(cluster[name], wanted).address for name in ("wk1", "wk2")},
    }
    assert ran.returncode == (1 if agent == "alone" or role == "standby" else 0)


def test_a_lag_that_one_answer_does_not_tell(config: Path, cluster: dict[str, Group]) -> None:
    """Nodes are asked again until it is known how far a standby is behind a primary that goes on writing."""
    wk1, over = cluster["wk1"], threading.Event()
    wk1.primary.run_sql("CREATE TABLE written (at timestamptz)")
    wk1.standby.set(recovery_min_apply_delay="400ms")

    def write() -> None:
        with psycopg.connect(wk1.primary.conninfo, autocommit=True) as session:
            while not over.wait(0.01):
                session.execute("INSERT INTO written VALUES (now())")

    config.write_text(config.read_text() + "max_lag_seconds: 30s\n")
    with ThreadPoolExecutor(1) as threads:
        writes = threads.submit(write)
        try:
            wk1.standby.wait_until("SELECT count(*) > 10 FROM written")
            ran = run("once", "--dry-run", "--role", "standby", "-c", config)
        finally:
            over.set()
            writes.result()
            wk1.standby.set(recovery_min_apply_delay="0")
            wk1.primary.run_sql("DROP TABLE written")
    assert targets(ran.stdout)["wk1"] == wk1.standby.address, ran.stderr


@pytest.mark.usefixtures("running")
def test_dry_run_asks_a_running_agent(config: Path, cluster: dict[str, Group]) -> None:
    """An agent with the same configuration is asked; with any other the nodes are probed anew."""
    other = config.with_name("other.yml")
    shutil.copy(config, other)
    with no_new_logins(cluster["wk1"]):  # the agent's open connections go on
        for path in (config, other):
            ran = run("--dry-run", "-c", path)
            assert (ran.returncode, ran.stderr) == (0, "")
        other.write_text(config.read_text().replace("fallback: none", "fallback: all"))
        ran = run("--dry-run", "-c", other)
        assert ran.returncode == 2
        assert len(re.findall("^could not be asked: .*is not permitted to log in$", ran.stderr, re.MULTILINE)) == 2


def test_an_agent_that_has_not_seen_every_node_is_not_asked(
    config: Path, cluster: dict[str, Group], start_agent: StartAgent
) -> None:
    """Partial evidence gives no plan: the nodes are probed again."""
    cluster["wk1"].standby.pause()
    config.write_text(config.read_text() + "timeout: 3s\n")
    agent = start_agent(config)
    agent.wait_for_line("keeps")
    ran = run("--dry-run", "-c", config)
    assert ran.returncode == 2
    address = f"{cluster['wk1'].standby.address}:{cluster['wk1'].standby.port}"
    assert f"could not be asked: {address}: no answer within 3 s\n" in ran.stderr


def test_once_with_a_running_agent(running: Agent, config: Path) -> None:
    """It succeeds with nothing to change; a change of the agent's file is refused, and the agent named."""
    before = written(running.hosts_file)
    assert run("once", "-c", config).returncode == 0
    ran = run("once", "--role", "standby", "-c", config)
    assert ran.returncode == 2
    assert f"held by another agent, process {running.process.pid}" in ran.stderr
    assert written(running.hosts_file) == before


def test_dry_run_works_as_any_user(public: Path, primaries: dict[str, str]) -> None:
    """A user who can read the files can run it; a write is refused."""
    hosts_file = public.with_name("hosts")
    before = written(hosts_file)
    ran = run("--dry-run", "-c", public, program=AS_NOBODY)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert targets(ran.stdout) == primaries
    refused = run("once", "-c", public, program=AS_NOBODY)
    assert refused.returncode == 2
    assert "Permission denied" in refused.stderr
    assert written(hosts_file) == before


def test_nodes_that_could_not_be_asked_are_named(config: Path, hosts_file: Path, cluster: dict[str, Group]) -> None:
    """A refused login is no evidence: nothing would change, each server is named, and the exit code is 2."""
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(settings | {"postgresql": {"user": "nobody"}}, sort_keys=False))
    before = written(hosts_file)
    for form in (["--dry-run"], ["once"]):
        ran = run(*form, "-c", config)
        assert (ran.returncode, ran.stdout) == (2, "")
        for node in (node for group in cluster.values() for node in group.nodes):
            assert f'could not be asked: {node.address}:{node.port}: role "nobody" does not exist\n' in ran.stderr
            assert ran.stderr.count(f"{node.address}:{node.port}") == 1
        assert "could not be asked: the local PostgreSQL: " in ran.stderr
    assert written(hosts_file) == before


def test_a_name_whose_nodes_are_all_down(pair: Group, write_config: Callable[..., Path], hosts_file: Path) -> None:
    """A name of which nothing was ever known is named, is not in the file, and makes the exit code 2."""
    for node in pair.nodes:
        node.kill()
    config = write_config(pair.primary, {"wk1": pair})
    for form in (["--dry-run"], ["once"]):
        ran = run(*form, "-c", config)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert "has no address: wk1\n" in ran.stderr
    assert hosts_file.read_text() == "127.0.0.1\tlocalhost\n"


def test_a_hung_node_is_waited_for_once(config: Path, hosts_file: Path, cluster: dict[str, Group]) -> None:
    """The other names are right, the silent node is named, and the exit code says that the result is incomplete."""
    cluster["wk1"].standby.pause()
    ran = run("--dry-run", "-c", config)
    assert ran.returncode == 2
    assert targets(ran.stdout)["wk1"] == cluster["wk1"].primary.address
    assert f"could not be asked: {cluster['wk1'].standby.address}:" in ran.stderr
    assert ran.stderr.count("could not be asked") == 1
    assert hosts_file.read_text() == "127.0.0.1\tlocalhost\n"


def test_colour_is_for_terminals(config: Path) -> None:
    """On a terminal removed lines are red and added lines are green."""
    shown = on_a_terminal([*PROGRAM, "--dry-run", "-c", str(config)])
    assert re.search(rb"\033\[32m\+127\.0\.2\.\d\twk1\t# primary; system \d+\033\[0m", shown)


def test_names_are_said_in_any_locale(config: Path) -> None:
    """An encoding without arrows does not make it fail."""
    ran = run("--dry-run", "-c", config, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ran.returncode, ran.stderr) == (1, "")
    assert r"wk1 \u2192 127.0.2." in ran.stdout


@pytest.mark.parametrize(
    "lines",
    [
        ["# BEGIN resolver-agent"],
        ["# END resolver-agent"],
        ["# BEGIN resolver-agent", "wk1", "# END resolver-agent"],
    ],
    ids=["BEGIN", "END", "line"],
)
def test_a_damaged_block_is_named(lines: list[str], config: Path, hosts_file: Path) -> None:
    """Every command that would write names the line and changes nothing."""
    hosts_file.write_text("127.0.0.1\tlocalhost\n" + "\n".join(lines) + "\n")
    before = written(hosts_file)
    for form in (["--dry-run"], ["once"], ["remove"]):
        ran = run(*form, "-c", config)
        assert ran.returncode == 2
        assert re.search(rf"{hosts_file}: line [23]: ", ran.stderr)
    assert written(hosts_file) == before


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"PGHOSTADDR": "127.0.0.9", "PGPORT": "1"}, id="another address"),
        pytest.param({"PGOPTIONS": "-c default_transaction_read_only=bogus"}, id="options"),
        pytest.param({"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nowhere"}, id="TLS"),
        pytest.param({"PGTARGETSESSIONATTRS": "standby"}, id="another role"),
        pytest.param({"PGSERVICE": "nowhere"}, id="a service"),
        pytest.param({"PGREQUIREAUTH": "gss", "PGCONNECT_TIMEOUT": "nonsense"}, id="a way to log in"),
    ],
)
def test_libpqs_variables_of_the_caller_count_for_nothing(
    environment: dict[str, str], cluster: dict[str, Group], write_config: Callable[..., Path]
) -> None:
    """Every command sees the same servers, whoever calls it."""
    config = write_config(cluster["cn"].primary, cluster)
    expected = run("--dry-run", "-c", config)
    ran = run("--dry-run", "-c", config, env={**os.environ, **environment})
    assert (ran.returncode, targets(ran.stdout), ran.stderr) == (1, targets(expected.stdout), expected.stderr)
    assert targets(ran.stdout)["wk1"] == cluster["wk1"].primary.address
