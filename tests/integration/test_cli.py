"""The commands as a shell runs them, with real servers: output, exit codes, and what they leave alone."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from resolver_agent import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]

SETTLED = r" wk2 → "
PROGRAM = [sys.executable, "-m", "resolver_agent.cli"]

# Everything is imported before the privileges are dropped: the environment may be closed to other users.
AS_NOBODY = [
    sys.executable,
    "-c",
    """import os, pwd, sys
import encodings.idna, encodings.utf_8_sig, python_hosts, tenacity
from resolver_agent import cli, once
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
    """Run a command line to its end; by default with all that it says caught."""
    defaults = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ran = subprocess.run([*program, *arguments], text=True, timeout=30, check=False, **(defaults | settings))
    assert "Traceback" not in (ran.stderr or "")
    return ran


def written(path: Path) -> tuple[int, int, int]:
    """Return what changes whenever a file is written or replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def targets(output: str) -> dict[str, str]:
    """Return where names lead by the lines that say so."""
    return dict(re.findall(r"^(\w+) → (\S+) \(", output, re.MULTILINE))


@pytest.fixture
def config(cluster: dict[str, Group], write_config: WriteConfig) -> Path:
    """Write the configuration of the primary coordinator."""
    return write_config(cluster["cn"].primary, cluster)


@pytest.fixture
def running(config: Path, start_agent: StartAgent) -> Agent:
    """Start the agent of the primary coordinator, and wait until its names are right."""
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    return agent


@pytest.fixture
def primaries(cluster: dict[str, Group]) -> dict[str, str]:
    """Where names lead on the primary coordinator."""
    return {name: group.primary.address for name, group in cluster.items()}


@pytest.fixture
def public(config: Path) -> Iterator[Path]:
    """Move the configuration, the hosts file and the runtime folder to where every user may look."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(config.with_name("hosts"), folder)
        settings = yaml.safe_load(config.read_text())
        moved = {"hosts_file": str(folder / "hosts"), "runtime_dir": str(folder / "run")}
        path = folder / config.name
        path.write_text(yaml.safe_dump(settings | moved, sort_keys=False))
        yield path


# --- once and --dry-run


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
    assert f"+{primaries['wk1']}\twk1\t# primary\n" in ran.stdout
    assert "\033" not in ran.stdout
    assert (written(hosts_file), sorted(hosts_file.parent.iterdir())) == (before, beside)


def test_once_puts_the_names_right(config: Path, hosts_file: Path, primaries: dict[str, str]) -> None:
    """It writes, says so with exit code 0, and has nothing left to do; --dry-run agrees with exit code 0."""
    ran = run("once", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert targets(ran.stdout) == primaries
    assert f"{primaries['wk1']}\twk1\t# primary\n" in hosts_file.read_text()
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
    """The names are those of that role, but for the own one, whether an agent is asked or not."""
    if agent != "alone":
        request.getfixturevalue("running")
    ran = run("once", "--dry-run", "--role", role, "-c", config)
    wanted = "standby" if role == "standby" else "primary"
    assert targets(ran.stdout) == {
        "cn": cluster["cn"].primary.address,
        **{name: getattr(cluster[name], wanted).address for name in ("wk1", "wk2")},
    }
    assert ran.returncode == (1 if agent == "alone" or role == "standby" else 0)


@pytest.mark.usefixtures("running")
def test_dry_run_asks_a_running_agent(config: Path, cluster: dict[str, Group]) -> None:
    """An agent with the same configuration is asked what it sees; with any other the nodes are asked anew."""
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
    """Half the evidence is no plan: the nodes are asked once more."""
    cluster["wk1"].standby.pause()
    config.write_text(config.read_text() + "timeout: 3s\n")
    agent = start_agent(config)
    agent.wait_for_line("keeps")
    ran = run("--dry-run", "-c", config)
    assert ran.returncode == 2
    address = f"{cluster['wk1'].standby.address}:{cluster['wk1'].standby.port}"
    assert f"could not be asked: {address}: no answer within 3 s\n" in ran.stderr


def test_once_beside_an_agent(running: Agent, config: Path) -> None:
    """With nothing to change it is fine; what would change the agent's file is refused, and the agent named."""
    before = written(running.hosts_file)
    assert run("once", "-c", config).returncode == 0
    ran = run("once", "--role", "standby", "-c", config)
    assert ran.returncode == 2
    assert f"held by another agent, process {running.process.pid}" in ran.stderr
    assert written(running.hosts_file) == before


def test_dry_run_works_as_any_user(public: Path, primaries: dict[str, str]) -> None:
    """Whoever may read the files may look; a write is refused."""
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
    """A login that is refused is no evidence: nothing would change, each server is named, and the exit code is 2."""
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


def test_a_hung_node_is_waited_for_once(config: Path, hosts_file: Path, cluster: dict[str, Group]) -> None:
    """The others' names are right, the silent node is named, and the exit code says that this is not all."""
    cluster["wk1"].standby.pause()
    ran = run("--dry-run", "-c", config)
    assert ran.returncode == 2
    assert targets(ran.stdout)["wk1"] == cluster["wk1"].primary.address
    assert f"could not be asked: {cluster['wk1'].standby.address}:" in ran.stderr
    assert ran.stderr.count("could not be asked") == 1
    assert hosts_file.read_text() == "127.0.0.1\tlocalhost\n"


def test_colour_is_for_terminals(config: Path) -> None:
    """On a terminal what goes is red and what comes is green."""
    shown = on_a_terminal([*PROGRAM, "--dry-run", "-c", str(config)])
    assert re.search(rb"\033\[32m\+127\.0\.2\.\d\twk1\t# primary\033\[0m", shown)


def test_names_are_said_in_any_locale(config: Path) -> None:
    """An encoding without arrows is no reason to fail."""
    ran = run("--dry-run", "-c", config, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ran.returncode, ran.stderr) == (1, "")
    assert r"wk1 \u2192 127.0.2." in ran.stdout


@pytest.mark.parametrize("lines", [["# BEGIN resolver-agent"], ["# END resolver-agent"]], ids=["BEGIN", "END"])
def test_damaged_markers_are_named(lines: list[str], config: Path, hosts_file: Path) -> None:
    """Every command that would write names the line and changes nothing."""
    hosts_file.write_text("127.0.0.1\tlocalhost\n" + "\n".join(lines) + "\n")
    before = written(hosts_file)
    for form in (["--dry-run"], ["once"], ["remove"]):
        ran = run(*form, "-c", config)
        assert ran.returncode == 2
        assert f"{hosts_file}: line 2: " in ran.stderr
    assert written(hosts_file) == before


# --- status


def test_status_of_a_healthy_agent(running: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """Names with target, time and reason, nodes with state, timeline, lag and age; exit code 0."""
    ran = run("status", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (
        f"resolver-agent {__version__}, process {running.process.pid}, {config}; {running.hosts_file}\n" in ran.stdout
    )
    assert "local PostgreSQL: primary\n" in ran.stdout
    worker, moment = cluster["wk1"], r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"
    assert re.search(rf"^cn +{cluster['cn'].primary.address} +{moment} +this server$", ran.stdout, re.MULTILINE)
    assert re.search(rf"^wk1 +{worker.primary.address} +{moment} +primary, timeline \d+$", ran.stdout, re.MULTILINE)
    address = f"{worker.standby.address}:{worker.standby.port}"
    assert re.search(rf"^wk1 +{address} +standby +\d+ +\d+ B +\d\.\d s ago$", ran.stdout, re.MULTILINE)
    assert "alert" not in ran.stdout


def test_status_as_json(running: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """The same for programs."""
    ran = run("status", "--json", "-c", config)
    assert ran.returncode == 0
    found = json.loads(ran.stdout)
    assert (found["pid"], found["role"], found["alerts"], found["trampled"]) == (running.process.pid, "primary", [], 0)
    assert [(name["name"], name["address"], name["code"]) for name in found["names"]] == [
        ("cn", cluster["cn"].primary.address, "self"),
        ("wk1", cluster["wk1"].primary.address, "primary"),
        ("wk2", cluster["wk2"].primary.address, "primary"),
    ]
    assert all(name["since"] and name["reason"] for name in found["names"])
    roles = {node["node"]: (node["role"], node["fit"]) for node in found["nodes"]}
    assert roles == {
        f"{node.address}:{node.port}": ("primary", False) if node is group.primary else ("standby", True)
        for group in cluster.values()
        for node in group.nodes
    }
    assert all(node["timeline"] >= 1 and 0 <= node["age_s"] < 3 and "/" in node["lsn"] for node in found["nodes"])
    assert {node["lag_bytes"] is None for node in found["nodes"] if node["role"] == "standby"} == {False}


def test_status_with_alerts(running: Agent, config: Path, cluster: dict[str, Group]) -> None:
    """Exit code 1, with a word in the table and the whole text below, clause by clause."""
    cluster["wk1"].primary.kill()
    running.wait_for_line("alert: wk1 → ")
    ran = run("status", "-c", config)
    assert ran.returncode == 1
    address = cluster["wk1"].primary.address
    assert re.search(rf"^wk1 +{address} +\S+ +held, see below$", ran.stdout, re.MULTILINE)
    assert re.search(rf"^alert since \S+:\n  wk1 → {address} \(held;\n    no primary;\n    ", ran.stdout, re.MULTILINE)
    assert run("status", "--json", "-c", config).returncode == 1


@pytest.mark.parametrize(
    "state",
    [
        pytest.param("never", id="no agent was ever there"),
        pytest.param("stopped", id="the agent was stopped"),
        pytest.param("killed", id="a killed agent left its socket behind"),
    ],
)
def test_status_without_an_agent(state: str, config: Path, start_agent: StartAgent, primaries: dict[str, str]) -> None:
    """It says that there is none, and what the file says; exit code 2."""
    assert run("once", "-c", config).returncode == 0
    if state != "never":
        agent = start_agent(config)
        agent.wait_for_line(SETTLED)
        agent.process.send_signal(signal.SIGTERM if state == "stopped" else signal.SIGKILL)
        agent.wait()
    assert config.with_name("run").joinpath("control.sock").exists() == (state == "killed")
    ran = run("status", "-c", config)
    assert (ran.returncode, targets(ran.stdout)) == (2, primaries)
    assert ran.stderr == (
        f"resolver-agent: no agent runs in {config.with_name('run')}; the names are those in "
        f"{config.with_name('hosts')}\n"
    )
    found = json.loads(run("status", "--json", "-c", config).stdout)
    assert {name["name"]: name["address"] for name in found["names"]} == primaries
    assert "no agent runs" in found["error"]


def test_status_of_an_agent_that_hangs(running: Agent, config: Path) -> None:
    """A socket that answers nobody gets its own message, and exit code 2."""
    running.process.send_signal(signal.SIGSTOP)
    ran = run("status", "-c", config)
    assert ran.returncode == 2
    assert "control.sock: the agent does not answer; see its log" in ran.stderr


def test_status_for_those_who_may_not_ask(public: Path, start_agent: StartAgent, primaries: dict[str, str]) -> None:
    """A refused socket gets the mend; the file says the rest."""
    start_agent(public).wait_for_line(SETTLED)
    ran = run("status", "-c", public, program=AS_NOBODY)
    assert ran.returncode == 2
    assert "control.sock: you may not ask the agent: do it as root, or as a member of the socket's group" in ran.stderr
    assert targets(ran.stdout) == primaries


@pytest.mark.parametrize("program", ["PROGRAM", "AS_NOBODY"])
def test_looking_does_not_start_a_stopped_agent(program: str, public: Path) -> None:
    """A socket that systemd holds for a stopped agent is left alone, whoever asks and whatever the umask."""
    agent = subprocess.Popen([*PROGRAM, "run", "-c", public], umask=0o077, stderr=subprocess.PIPE, text=True)
    assert agent.stderr is not None
    assert "keeps" in agent.stderr.readline()
    agent.terminate()
    agent.communicate(timeout=10)
    runtime_dir = public.with_name("run")
    runtime_dir.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as systemd:
        systemd.bind(str(runtime_dir / "control.sock"))
        (runtime_dir / "control.sock").chmod(0o666)
        systemd.listen()
        ran = run("status", "-c", public, program=globals()[program])
        assert ran.returncode == 2
        assert "no agent runs" in ran.stderr
        assert run("--dry-run", "-c", public, program=globals()[program]).returncode in (0, 1)
        assert not select.select([systemd], [], [], 0)[0]


def test_status_needs_the_standard_library_only(running: Agent, tmp_path: Path) -> None:
    """Where the agent is in its usual place it is asked without any package, and so within a blink."""
    script = f"""
        mount -t tmpfs tmpfs /run && mkdir /run/resolver-agent && mount --bind {tmp_path}/run /run/resolver-agent
        exec {sys.executable} -c '
import sys
before = set(sys.modules)
from resolver_agent.cli import main
code = main(["status"])
print(*{{name.partition(".")[0] for name in sys.modules.keys() - before}}, file=sys.stderr)
sys.exit(code)'
    """
    ran = subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert f"process {running.process.pid}" in ran.stdout
    imported = set(ran.stderr.split())
    assert imported - sys.stdlib_module_names == {"resolver_agent"}
    assert "asyncio" not in imported


def test_status_finds_the_agent_where_the_configuration_puts_it(running: Agent, config: Path) -> None:
    """Without -c, and without an agent in the usual place, the usual configuration says where to look."""
    script = f"""
        mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /etc && cp {config} /etc/resolver-agent.yml
        exec {sys.executable} -m resolver_agent.cli status
    """
    ran = subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert f"process {running.process.pid}" in ran.stdout


# --- remove


def test_remove_restores_the_file_to_the_byte(config: Path, hosts_file: Path) -> None:
    """What was put in is taken out, and what a killed writer left beside the file as well."""
    original = b"127.0.0.1 localhost\r\n\xff\xfe mine\n\n10.0.0.1\tlast without a newline"
    hosts_file.write_bytes(original)
    assert run("once", "-c", config).returncode == 0
    assert hosts_file.read_bytes() != original
    left = hosts_file.with_name("hosts.resolver-agent.1.0a1b2c3d")
    left.touch()
    ran = run("remove", "-c", config)
    assert (ran.returncode, ran.stdout) == (0, f"{hosts_file} is as it was without us\n")
    assert hosts_file.read_bytes() == original
    assert not left.exists()
    again = run("remove", "-c", config)
    assert (again.returncode, again.stdout) == (0, f"{hosts_file} had no names of ours\n")


def test_remove_refuses_while_pg_dist_node_holds_a_name(
    pair: Group, write_config: WriteConfig, hosts_file: Path
) -> None:
    """The names stay as long as Citus' metadata in any database uses one, unless it is forced."""
    config = write_config(pair.primary, {"wk1": pair})
    assert run("once", "-c", config).returncode == 0
    with_names = hosts_file.read_bytes()
    pair.primary.run_sql("ALTER SYSTEM SET allow_system_table_mods = on")
    pair.primary.stop()
    pair.primary.start()
    pair.primary.run_sql("CREATE DATABASE app")
    # A stand-in: Citus is in no package registry.
    pair.primary.run_sql("CREATE TABLE pg_catalog.pg_dist_node (nodename text)", dbname="app")
    pair.primary.run_sql("INSERT INTO pg_dist_node VALUES ('wk1'), ('10.0.0.1')", dbname="app")
    pair.primary.run_sql("GRANT SELECT ON pg_dist_node TO public", dbname="app")

    refused = run("remove", "-c", config)
    assert refused.returncode == 2
    assert "pg_dist_node still holds wk1 (database app)" in refused.stderr
    assert hosts_file.read_bytes() == with_names

    pair.primary.run_sql("DELETE FROM pg_dist_node WHERE nodename = 'wk1'", dbname="app")
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
    """The agent would put the names back: it is named instead."""
    before = written(running.hosts_file)
    ran = run("remove", "-c", config)
    assert ran.returncode == 2
    assert f"held by another agent, process {running.process.pid}; nothing was removed" in ran.stderr
    assert written(running.hosts_file) == before


# --- The rest of the command line


def test_validate_config(config: Path) -> None:
    """A configuration that fits together is said to, with the names in it."""
    ran = run("--validate-config", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{config}: nothing wrong; names: cn, wk1, wk2\n"


def test_validate_config_reports_every_error(tmp_path: Path) -> None:
    """All of them at once, one a line, with exit code 2."""
    config = tmp_path / "bad.yml"
    config.write_text("fallback: maybe\nnames: {}\ninterval: -1\nnmaes: 1\n")
    ran = run("--validate-config", "-c", config)
    assert (ran.returncode, ran.stdout) == (2, "")
    first, *errors = ran.stderr.splitlines()
    assert first == "resolver-agent: the configuration is not usable"
    assert len(errors) == 4
    assert all(error.startswith(f"{config}: ") for error in errors)


def test_validate_config_warns_of_a_readable_password(config: Path) -> None:
    """A password that everybody can read is no error, but said."""
    settings = yaml.safe_load(config.read_text())
    settings["postgresql"] |= {"password": "secret"}
    config.write_text(yaml.safe_dump(settings))
    config.chmod(0o644)
    ran = run("--validate-config", "-c", config)
    assert ran.returncode == 0
    assert ran.stderr.startswith("warning: ")
    assert "secret" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["--version"], 0, f"resolver-agent {__version__}\n", id="--version"),
        pytest.param(["--help"], 0, "usage: resolver-agent ", id="--help"),
        pytest.param(["status", "--help"], 0, "usage: resolver-agent status ", id="help of a command"),
        pytest.param([], 2, "resolver-agent: say what to do: ", id="nothing"),
        pytest.param(["restart"], 2, "invalid choice: 'restart'", id="unknown command"),
        pytest.param(["--dry-run", "run"], 2, "--dry-run and --validate-config change nothing", id="--dry-run run"),
        pytest.param(["--dry-run", "remove"], 2, "--dry-run and --validate-config", id="--dry-run remove"),
        pytest.param(["--validate-config", "once"], 2, "--dry-run and --validate-config", id="--validate-config once"),
        pytest.param(["once", "--role", "leader"], 2, "invalid choice: 'leader'", id="unknown role"),
        pytest.param(["run", "-c", "/nowhere.yml"], 2, "/nowhere.yml: No such file or directory", id="no file"),
        pytest.param(
            ["status", "-c", "/nowhere.yml"], 2, "/nowhere.yml: No such file or directory", id="status, no file"
        ),
    ],
)
def test_arguments(arguments: list[str], code: int, said: str) -> None:
    """What is asked for goes to standard output, trouble to standard error."""
    ran = run(*arguments)
    assert ran.returncode == code
    assert said in (ran.stdout if code == 0 else ran.stderr)
    assert (ran.stderr if code == 0 else ran.stdout) == ""


def test_a_runtime_dir_that_cannot_be_used(config: Path, tmp_path: Path) -> None:
    """A folder that cannot be made, or is too long for a socket's path, is named with a mend and no traceback."""
    settings = yaml.safe_load(config.read_text())
    (tmp_path / "file").touch()
    for runtime_dir, fault in (("file/run", "Not a directory"), ("long" * 40, "AF_UNIX path too long")):
        config.write_text(yaml.safe_dump(settings | {"runtime_dir": str(tmp_path / runtime_dir)}))
        ran = run("run", "-c", config)
        assert ran.returncode == 2
        assert fault in ran.stderr


@pytest.mark.parametrize("arguments", [["run"], ["--dry-run"], ["once"]], ids=" ".join)
def test_ctrl_c_prints_no_traceback(
    arguments: list[str], config: Path, cluster: dict[str, Group], hosts_file: Path
) -> None:
    """An operator who has waited long enough gets the prompt back, and the file is as it was."""
    silent = cluster["wk1"].standby
    silent.pause()
    before = written(hosts_file)
    with connected(silent.address, silent.port, [*PROGRAM, *arguments, "-c", str(config)]) as process:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=3)
    assert process.returncode == (0 if arguments == ["run"] else 130)
    assert "Traceback" not in output
    assert "never retrieved" not in output
    assert written(hosts_file) == before


@pytest.mark.parametrize("command", ["--dry-run", "status"])
def test_a_reader_that_leaves_is_no_trouble_to_tell(command: str, running: Agent, config: Path) -> None:
    """Into a closed pipe nothing is said, of this least of all."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = run(command, "-c", config, stdout=writing, env={**os.environ, "PYTHONUNBUFFERED": ""})
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (2, "")
    assert running.process.poll() is None


@contextlib.contextmanager
def no_new_logins(group: Group) -> Iterator[None]:
    """Let nobody log in to a group as the agent does."""
    group.primary.run_sql("ALTER ROLE resolver_agent NOLOGIN")
    group.standby.wait_for_replay(of=group.primary)
    try:
        yield
    finally:
        group.primary.run_sql("ALTER ROLE resolver_agent LOGIN")
        group.standby.wait_for_replay(of=group.primary)


def on_a_terminal(command: list[str]) -> bytes:
    """Return what a command shows on a terminal."""
    terminal, end = pty.openpty()
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as screen:
            while chunk := screen.read(65536):
                shown += chunk
    assert process.returncode == 1
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
