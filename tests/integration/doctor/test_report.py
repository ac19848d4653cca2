"""Doctor on real servers and files: its findings, what it reports where it cannot look, and that it writes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from resolver_agent.config.load import load
from resolver_agent.control import schema
from resolver_agent.doctor import gather
from resolver_agent.doctor import report as doctor_report
from tests.integration.support.citus_cluster import citus_version
from tests.integration.support.cluster import DATABASE
from tests.integration.support.machine import CHECKOUT
from tests.integration.support.patroni_cluster import patroni_version
from tests.integration.support.rest_api import rest_api

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.integration.conftest import Group
    from tests.integration.support.agent_process import Agent
    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import CitusPatroniCluster

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]

ANSWER = Draft202012Validator(schema.doctor())
PROGRAM = [sys.executable, "-m", "resolver_agent.cli"]
NODES = "SELECT nodename FROM pg_dist_node ORDER BY groupid"

# All is imported before the privileges are dropped, because the environment may be readable by root alone.
AS_NOBODY = [
    sys.executable,
    "-c",
    """import os, pwd, sys
import encodings.idna, encodings.utf_8_sig, python_hosts, tenacity
from resolver_agent import cli
from resolver_agent.doctor import report
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
sys.exit(cli.main())
""",
]

STAND_IN = """
CREATE TABLE pg_catalog.pg_dist_node
    (nodeid int, groupid int, nodename text, nodeport int, noderole text, isactive bool);
CREATE TABLE pg_catalog.pg_dist_local_group AS SELECT 1 AS groupid;
CREATE TABLE pg_catalog.pg_dist_poolinfo AS SELECT 1 AS nodeid;
GRANT SELECT ON pg_dist_node, pg_dist_local_group, pg_dist_poolinfo TO public;
CREATE SCHEMA resolver_agent;
CREATE ROLE owner;
CREATE FUNCTION resolver_agent.reached() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION resolver_agent.cleanup_orphaned_resources() RETURNS int LANGUAGE sql AS 'SELECT 1';
ALTER FUNCTION resolver_agent.cleanup_orphaned_resources() OWNER TO owner;
"""


def run(config: Path, *options: str, program: Sequence[str] = PROGRAM) -> subprocess.CompletedProcess[str]:
    """Run doctor to its end."""
    ran = subprocess.run(
        [*program, "doctor", "-c", config, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    assert "Traceback" not in ran.stderr
    return ran


def found(ran: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the texts of the findings of ``--json``, by key."""
    report = json.loads(ran.stdout)
    assert list(ANSWER.iter_errors(report)) == []
    assert ran.returncode == (0 if report["fit"] else 1)
    texts: dict[str, str] = {}
    for one in report["findings"]:
        texts[one["key"]] = texts.get(one["key"], "") + one["text"] + "\n"
    return texts


@pytest.fixture
def config(cluster: dict[str, Group], write_config: WriteConfig) -> Path:
    """Write the configuration of the primary coordinator."""
    return write_config(cluster["cn"].primary, cluster)


# --- What it says, and when


def test_with_a_running_agent(
    config: Path, cluster: dict[str, Group], start_agent: StartAgent, hosts_file: Path
) -> None:
    """The nodes, the file and the agent have no faults; and nothing is written."""
    start_agent(config).wait_for_line(" wk2 → ")
    before = [(path, path.stat().st_mtime_ns) for path in sorted(hosts_file.parent.iterdir())]
    assert not {"hosts", "agent", "alerts", "node", "own", "local", "primaries"} & {
        key.partition(":")[0] for key in found(run(config, "--json"))
    }
    assert [(path, path.stat().st_mtime_ns) for path in sorted(hosts_file.parent.iterdir())] == before
    cluster["wk1"].standby.kill()
    assert cluster["wk1"].standby.address in found(run(config, "--json"))["node"]


def test_without_an_agent(config: Path) -> None:
    """The finding is on one line with its fix on the next, and the exit code is 1."""
    ran = run(config)
    assert (ran.returncode, ran.stderr) == (1, "")
    lines = ran.stdout.splitlines()
    assert all(line.startswith(("error: ", "warning: ", "note: ", "HINT: ")) for line in lines)
    [at] = [index for index, line in enumerate(lines) if line.startswith("error: no agent runs here")]
    assert lines[at + 1].startswith("HINT: systemctl enable")


@pytest.mark.parametrize(("encoding", "marks"), [("utf-8", ("✓", "✗", "-")), ("ascii", ("[ok]", "[!!]", "[--]"))])
def test_verbose(encoding: str, marks: tuple[str, str, str], config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check has a mark that the terminal can show; the findings are as without, and nothing is logged."""
    right, wrong, unchecked = marks
    brief = run(config).stdout
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    ran = run(config, "--verbose")
    assert (ran.returncode, ran.stderr) == (1, "")
    listed, _, findings = ran.stdout.partition("\n\n")
    assert findings == brief
    checks = listed.splitlines()
    assert {line.partition(" ")[0] for line in checks} == set(marks)
    assert {f"{right} every node answers", f"{wrong} the agent runs, and has no alerts"} <= set(checks)
    assert f"{unchecked} the agent's password file has an entry for each node" in listed


def test_with_postgresql_down(config: Path, cluster: dict[str, Group]) -> None:
    """One finding covers all checks that need the server, and the rest is checked."""
    cluster["cn"].primary.kill()
    texts = found(run(config, "--json"))
    assert "cannot be asked: Connection refused; not checked" in texts["local"]
    assert cluster["cn"].primary.address in texts["node"]
    assert "agent" in texts
    assert "own" not in texts


@pytest.mark.parametrize("victim", ["the local server", "another node"])
def test_with_a_server_that_hangs(config: Path, cluster: dict[str, Group], victim: str) -> None:
    """A server that accepts connections and does not answer costs seconds, and is named."""
    server = cluster["cn"].primary if victim == "the local server" else cluster["wk2"].standby
    server.pause()
    begun = time.monotonic()
    texts = found(run(config, "--json"))
    assert time.monotonic() - begun < 15
    assert ("local" in texts) == (victim == "the local server")
    assert f"{server.address}:{server.port} does not answer" in texts["node"]


def test_an_unusable_configuration(tmp_path: Path) -> None:
    """Every error is printed, as by --validate-config, with exit code 2."""
    config = tmp_path / "bad.yml"
    config.write_text("fallback: maybe\nnames: {}\n")
    ran = run(config)
    validated = subprocess.run(
        [*PROGRAM, "--validate-config", "-c", config], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == validated.stderr
    assert "fallback" in ran.stderr


def test_for_somebody_else(config: Path, start_agent: StartAgent) -> None:
    """A user other than root is told which checks were skipped."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        passfile = folder / "pgpass"
        passfile.touch(mode=0o600)
        settings = yaml.safe_load(config.read_text()) | {
            "runtime_dir": str(folder / "run"),
            "state_dir": str(folder / "state"),
        }
        settings["postgresql"]["passfile"] = str(passfile)
        public = folder / "resolver-agent.yml"
        public.write_text(yaml.safe_dump(settings))
        start_agent(public).wait_for_line(" wk2 → ")
        texts = found(run(public, "--json", program=AS_NOBODY))
    assert f"{passfile}: Permission denied" in texts["unchecked"]
    assert "you may not ask the agent" in texts["unchecked"]
    assert "Permission denied" in texts["unchecked"].partition("hosts: ")[2]


@pytest.mark.parametrize("option", ["--to-addresses", "--way-back"])
def test_no_way_back_without_citus(option: str, config: Path) -> None:
    """Without a coordinator's metadata there is nothing to change back, under either name of the option."""
    ran = run(config, option)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "no pg_dist_node of a coordinator" in ran.stderr


# --- What it finds on the machine


def put(path: Path, text: str) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def look(config: Path, root: Path) -> dict[str, str]:
    """Return the texts and fixes of the findings for the files below ``root``, by key."""
    report = doctor_report.report(asyncio.run(gather.gather(load(str(config)), root=root)))
    return {one.key: f"{one.text}; {one.fix}" for one in report.findings}


def test_files_of_the_machine(config: Path, tmp_path: Path) -> None:
    """Files in their usual places are read, and judged together."""
    root = tmp_path / "root"
    put(root / "etc/nsswitch.conf", "hosts: dns files\n")
    put(root / "etc/nscd.conf", "enable-cache hosts yes\n")
    put(root / "etc/cloud/cloud.cfg", "manage_etc_hosts: false\n")
    put(root / "etc/cloud/cloud.cfg.d/90_x.cfg", "manage_etc_hosts: template\n")
    put(root / "etc/patroni/dcs.yml", "etcd3: {}\n")
    put(root / "etc/patroni/15-main.yml", "scope: 15-main\npostgresql: {}\nrestapi: {listen: '127.0.0.1:1'}\n")
    (root / "var/run/nscd").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as nscd:
        nscd.bind(str(root / "var/run/nscd/socket"))
        nscd.listen()
        texts = look(config, root)
    assert "dns is asked for host names before the hosts file" in texts["nsswitch"]
    assert str(root / "etc/nscd.conf") in texts["nscd"]
    assert "90_x.cfg: manage_etc_hosts: template" in texts["cloud-init"]
    assert "15-main.yml has no pre_promote" in texts["unchecked"]
    assert "Connection refused" in texts["unchecked"]


def test_nscd_and_cloud_init_that_do_not_run(config: Path, tmp_path: Path) -> None:
    """The configuration of a service that does not run is no fault."""
    root = tmp_path / "root"
    put(root / "etc/nsswitch.conf", "hosts: files dns\n")
    put(root / "etc/nscd.conf", "enable-cache hosts yes\n")
    put(root / "etc/cloud/cloud.cfg", "manage_etc_hosts: true\n")
    put(root / "etc/cloud/cloud-init.disabled", "")
    (root / "var/run/nscd").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as nscd:
        nscd.bind(str(root / "var/run/nscd/socket"))  # it has ended, and left its socket
    assert {"nsswitch", "nscd", "cloud-init", "systemd", "unchecked"}.isdisjoint(look(config, root))


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "no text", "huge"])
def test_odd_files(kind: str, config: Path, tmp_path: Path) -> None:
    """Whatever is where a file should be, doctor ends soon, says so, and checks the rest."""
    root = tmp_path / "root"
    for path in (root / "etc/nsswitch.conf", root / "etc/cloud/cloud.cfg", root / "etc/patroni.yml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "a FIFO":
            os.mkfifo(path)
        elif kind == "a folder":
            path.mkdir()
        elif kind == "no text":
            path.write_bytes(b"hosts: dns\x1b[31m\0 files\n\xff\xfe: [\n")
        else:
            path.touch()
            os.truncate(path, 2**40)
    texts = look(config, root)
    assert all(text.isprintable() for text in texts.values())
    assert "agent" in texts
    if kind == "no text":
        assert "is asked for host names before" in texts["nsswitch"]
    else:
        assert "nsswitch" not in texts
        assert "could not be checked" in texts["unchecked"]


def test_patroni(config: Path, cluster: dict[str, Group], tmp_path: Path) -> None:
    """The agent's own file may be Patroni's, the hook may be in the dynamic configuration, and each API is tried."""
    hook = "/bin/sh -c 'timeout -k 1 5 resolver-agent pre-promote || :'"
    section = yaml.safe_load(config.read_text())
    node = cluster["wk1"].primary.address
    with rest_api({"/config": {"postgresql": {"pre_promote": hook}}}) as port:
        section["names"]["wk1"] |= {"patroni": {"port": port}}
        document = {
            "scope": "cn",
            "restapi": {"listen": f"127.0.0.1:{port}"},
            "postgresql": {},
            "resolver_agent": section,
            "citus": {"group": 0, "database": "app"},
        }
        own = put(tmp_path / "patroni.yml", yaml.safe_dump(document))
        texts = look(own, tmp_path)
    assert str(own) in texts["patroni:citus"]
    assert not {"patroni:hook", "patroni:guard", "unchecked"} & texts.keys()
    assert "wk1: Patroni on " in texts["patroni:api"]
    assert node in texts["patroni:api"] or cluster["wk1"].standby.address in texts["patroni:api"]


def test_units(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd runs, the state of both units comes from it."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    systemctl = put(
        tmp_path / "bin/systemctl",
        "#!/bin/sh\nprintf 'LoadState=loaded\\nActiveState=active\\nUnitFileState=disabled\\n\\n'\n"
        "printf 'LoadState=not-found\\nActiveState=inactive\\nUnitFileState=\\n'\n",
    )
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(systemctl.parent), prepend=os.pathsep)
    report = doctor_report.report(asyncio.run(gather.gather(load(str(config)), root=tmp_path)))
    assert [one.text for one in report.findings if one.key == "systemd"] == [
        "resolver-agent.service is disabled: the agent does not start at the next boot",
        "systemd does not know resolver-agent.socket",
    ]


def test_the_socket_is_for_the_user_of_postgresql(
    config: Path, cluster: dict[str, Group], start_agent: StartAgent, tmp_path: Path
) -> None:
    """Patroni's hook runs as that user: a socket it cannot use is a finding, where there is a Patroni."""
    put(tmp_path / "etc/patroni.yml", "scope: cn\npostgresql: {}\n")
    start_agent(config).wait_for_line(" wk2 → ")
    path = tmp_path / "run/control.sock"
    assert "patroni:socket" in look(config, tmp_path)
    os.chown(path, -1, cluster["cn"].primary.binaries.credentials["group"])
    assert "patroni:socket" not in look(config, tmp_path)


# --- What it finds in PostgreSQL


def test_host_names_in_pg_hba(config: Path, cluster: dict[str, Group], start_agent: StartAgent) -> None:
    """A reverse look-up finds our name before others': a finding, and with an address in its place it is gone."""
    server = cluster["cn"].primary
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    start_agent(config).wait_for_line(" wk2 → ")
    hba.write_text(f"{before}host all all db3.example scram-sha-256\nhost a, b c 10.0.0.0/8 trust # host x y z\n")
    assert "pg_hba.conf has host names (db3.example): " in found(run(config, "--json"))["pg_hba"]
    hba.write_text(f"{before}host all all 10.0.0.3/32 scram-sha-256\n")
    assert not {"pg_hba", "pg_hba:unchecked"} & found(run(config, "--json")).keys()
    hba.write_text(before)


def test_a_stand_in_for_citus(pair: Group, write_config: WriteConfig) -> None:
    """Metadata and functions are read in every database that has them, as the agent's role, on any PostgreSQL."""
    config = write_config(pair.primary, {"wk1": pair})
    server = pair.primary
    server.set(allow_system_table_mods="on", max_prepared_transactions="0")
    server.stop()
    server.start()
    server.run_sql("CREATE DATABASE app")
    server.run_sql("CREATE DATABASE closed")
    server.run_sql("REVOKE CONNECT ON DATABASE closed FROM public")
    for statement in filter(str.strip, STAND_IN.split(";\n")):
        server.run_sql(statement, dbname="app")
    row = "INSERT INTO pg_dist_node VALUES (%s, %s, %s, %s, 'primary', true)"
    server.run_sql(row, [1, 0, "10.9.9.9", 5432], dbname="app")
    server.run_sql(row, [2, 1, "wk1", server.port + 1], dbname="app")
    texts = found(run(config, "--json"))
    assert 'permission denied for database "closed"' in texts["unchecked"]
    assert "pg_dist_node (database app) has 10.9.9.9:5432, which is neither" in texts["metadata:unknown"]
    assert f"has port {server.port + 1} for wk1" in texts["metadata:port"]
    assert "database app" in texts["pg_dist_poolinfo"]
    assert "role resolver_agent may not change citus.node_conninfo" in texts["role.sql"]
    assert "resolver_agent.node_conninfo() does not exist in database postgres" in texts["role.sql"]
    assert "resolver_agent.reached() must not be called by role resolver_agent" in texts["role.sql"]
    assert "cleanup_orphaned_resources() does not belong to a superuser" in texts["role.sql"]
    assert "recover_prepared_transactions() does not exist" in texts["role.sql"]
    assert "max_prepared_transactions" in texts


ODD_ROWS = {
    "INSERT INTO pg_dist_node (nodeid) VALUES (1)": "a row of pg_dist_node lacks a value",
    "ALTER TABLE pg_dist_node DROP COLUMN nodename": 'column "nodename" does not exist',
    "INSERT INTO pg_dist_node SELECT i, i, i, i, 'primary', true FROM generate_series(1, 5001) i": (
        "pg_dist_node has more than 5000 rows"
    ),
    "TRUNCATE pg_dist_local_group": "pg_dist_local_group is empty",
    "INSERT INTO pg_dist_local_group VALUES (2)": "more than one row",
}
LONG = r"""
INSERT INTO pg_dist_node VALUES (1, -7, E'x\033[2J\n; DROP TABLE t' || repeat('y', 100000), -5, 'primary', true)
"""


def test_odd_metadata(pair: Group, write_config: WriteConfig) -> None:
    """Whatever is in the catalog becomes a finding, in one line without control characters."""
    config = write_config(pair.primary, {"wk1": pair})
    server = pair.primary
    server.set(allow_system_table_mods="on")
    server.stop()  # before PostgreSQL 13 a reload does not change it
    server.start()
    server.run_sql("CREATE DATABASE app")
    for statement in filter(str.strip, STAND_IN.split(";\n")):
        server.run_sql(statement, dbname="app")
    server.run_sql(LONG, dbname="app")
    [line] = [line for line in run(config).stdout.splitlines() if "which is neither a name" in line]
    assert line.isprintable()
    assert r"x\x1b[2J ; DROP TABLE t" in line
    assert len(line) < 1000
    for statement, why in ODD_ROWS.items():
        for part in ("DROP DATABASE IF EXISTS odd", "CREATE DATABASE odd TEMPLATE app"):
            server.run_sql(part)
        server.run_sql(statement, dbname="odd")
        assert f"database odd: {why}" in found(run(config, "--json"))["unchecked"]


def doctor_on(
    machine: Machine, citus: CitusCluster, *options: str, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Run doctor on a machine, with its agent's configuration."""
    return run(citus.configure(machine, **settings), *options, program=[*machine.launcher, *PROGRAM])


def psql(citus: CitusCluster, machine: Machine, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with psql on a machine, as an operator would."""
    where = ["-h", str(machine.server.socket_dir), "-p", str(citus.site.port), "-U", "postgres", "-d", "postgres"]
    command = [*machine.as_postgres, str(citus.site.binaries.folder / "psql"), "-X", "-q", *where]
    return subprocess.run(command, input=script, cwd=machine.folder, capture_output=True, text=True, check=False)


def names(citus: CitusCluster, machine: Machine) -> list[str]:
    """Return the nodes' names in the metadata on a machine."""
    return [name for (name,) in citus.run_sql(machine, NODES)]


def script(citus: CitusCluster, which: str) -> str:
    """Return one of doctor's scripts."""
    return str(json.loads(doctor_on(citus.machines["cn-1"], citus, "--json").stdout)[which])


FIT = {"citus.local_hostname", "citus.node_conninfo:keepalives"}
"""What doctor finds on every node of the cluster of the tests."""

PREVENT = "citus.prevent_incomplete_connection_establishment"
"""The default of Citus is wrong for the queue, on coordinators."""


def test_a_fit_citus_node(citus: CitusCluster) -> None:
    """With the role's SQL and the agent running the only findings are these servers' own settings."""
    for name in ("cn-1", "cn-2", "wk1-1"):
        machine = citus.machines[name]
        citus.start_agent(machine).wait_for_line(" wk2 → ")
        assert found(doctor_on(machine, citus, "--json")).keys() - {PREVENT} == FIT, name


def test_what_the_queue_needs_of_citus(citus: CitusCluster) -> None:
    """Wrong settings of a real Citus are found, roles' own included, and are gone with the fix."""
    machine = citus.machines["cn-1"]
    assert PREVENT in found(doctor_on(machine, citus, "--json"))
    machine.server.run_sql("CREATE ROLE pool LOGIN")
    for statement in (
        "ALTER ROLE pool SET citus.max_cached_conns_per_worker = 5",
        f"ALTER ROLE pool IN DATABASE {DATABASE} SET statement_timeout = '3s'",
        f"ALTER DATABASE {DATABASE} SET citus.max_cached_conns_per_worker = 2",
        "ALTER DATABASE postgres SET citus.max_cached_conns_per_worker = 3",  # it has no Citus
        "ALTER ROLE resolver_agent SET statement_timeout = '1s'",
    ):
        machine.server.run_sql(statement)
    machine.server.set(**{PREVENT: "off", "citus.node_connection_timeout": "5s", "lock_timeout": "100ms"})
    machine.server.wait_until("SELECT current_setting('lock_timeout') = '100ms'")
    texts = found(doctor_on(machine, citus, "--json", queue={"unplanned": "20s"}))
    assert PREVENT not in texts
    own = "has citus.max_cached_conns_per_worker"
    assert f"role pool {own} = 5 of its own" in texts["citus.max_cached_conns_per_worker"]
    assert f"database {DATABASE} {own} = 2 of its own" in texts["citus.max_cached_conns_per_worker"]
    assert "= 3 of its own" not in texts["citus.max_cached_conns_per_worker"]
    assert "citus.node_connection_timeout is 5s (" in texts["citus.node_connection_timeout"]
    assert "the queue lasts up to 20 s" in texts["citus.node_connection_timeout"]
    assert f"role pool in database {DATABASE} has statement_timeout = 3s: " in texts["queue:statement_timeout"]
    assert "resolver_agent" not in texts["queue:statement_timeout"]
    assert "lock_timeout is 100ms (" in texts["queue:lock_timeout"]
    assert "max_connections is 100, " in texts["queue:max_connections"]

    report = json.loads(doctor_on(machine, citus, "--json").stdout)
    wrong = {"citus.max_cached_conns_per_worker", "citus.node_connection_timeout"}
    for one in report["findings"]:
        if one["key"] in wrong:
            for statement in filter(str.strip, one["fix"].split(";")):
                machine.server.run_sql(statement)
    machine.server.wait_until("SELECT current_setting('citus.node_connection_timeout') = '30s'")
    assert wrong.isdisjoint(found(doctor_on(machine, citus, "--json")))


def test_what_is_wrong_with_citus(citus: CitusCluster) -> None:
    """Faults in settings, metadata and functions of a real Citus are found, from its own catalog."""
    if citus.site.binaries.version < 15:
        pytest.skip("the right that it revokes came with PostgreSQL 15")
    machine = citus.machines["cn-1"]
    citus.run_sql(machine, f"ALTER DATABASE {DATABASE} SET citus.local_hostname = 'wk1'")
    citus.run_sql(machine, "INSERT INTO pg_dist_poolinfo VALUES (2, 'port=6432')")
    citus.run_sql(machine, "UPDATE pg_dist_node SET isactive = false WHERE nodename = 'wk2'")
    for function in ("reached", "keep_gate"):
        citus.run_sql(machine, f"DROP FUNCTION resolver_agent.{function}()")
    machine.server.run_sql("DROP FUNCTION resolver_agent.max_cached_conns_per_worker()")
    machine.server.run_sql("REVOKE ALTER SYSTEM ON PARAMETER citus.node_conninfo FROM resolver_agent_local")
    settings = {
        "recover_2pc_interval": "60s",
        "use_secondary_nodes": "always",
        "node_conninfo": "host=x sslmode=prefer",
    }
    machine.server.set(**{f"citus.{name}": value for name, value in settings.items()})
    machine.server.wait_until("SELECT current_setting('citus.node_conninfo') LIKE 'host=x%'")
    texts = found(doctor_on(machine, citus, "--json"))
    assert texts.keys() - {"agent"} == {
        "citus.local_hostname",
        "citus.node_conninfo",
        PREVENT,
        "citus.recover_2pc_interval",
        "citus.use_secondary_nodes",
        "metadata:inactive",
        "pg_dist_poolinfo",
        "role.sql",
    }
    assert "is 1min (configuration file)" in texts["citus.recover_2pc_interval"]
    assert "citus.local_hostname is wk1: Citus connects to itself by that name" in texts["citus.local_hostname"]
    for function in ("reached", "keep_gate", "max_cached_conns_per_worker"):
        assert f"resolver_agent.{function}() does not exist: " in texts["role.sql"]


def test_from_addresses_to_names_and_back(citus: CitusCluster) -> None:
    """The scripts work with a real Citus: to names, and back to the addresses of the current primaries."""
    cn, standby = citus.machines["cn-1"], citus.machines["cn-2"]
    session, on_standby = citus.connect(cn), citus.connect(standby)
    for one in (session, on_standby):
        one.execute("PREPARE p AS SELECT count(*) FROM accounts")
        assert one.execute("EXECUTE p").fetchone() == (400,)

    back = doctor_on(cn, citus, "--to-addresses")
    assert back.returncode == 0
    ran = psql(citus, cn, back.stdout)
    assert (ran.returncode, ran.stderr) == (0, "")
    addresses = [pair[0].address for pair in citus.groups.values()]
    machines = [cn, citus.machines["wk1-1"]] if citus_version() >= (11,) else [cn]  # which have the metadata
    assert [names(citus, machine) for machine in machines] == [addresses] * len(machines)
    assert citus.serving(session) == {"wk1-1", "wk2-1"}
    standby.server.wait_for_replay(of=cn.server)
    assert citus.serving(on_standby) == {"wk1-1", "wk2-1"}

    ran = doctor_on(cn, citus)
    assert "\n\n-- From addresses to names" in ran.stdout
    assert f"note: pg_dist_node (database app) has no names yet: standbys are not used: {addresses[0]} (of cn)" in (
        ran.stdout
    )
    ran = psql(citus, cn, script(citus, "to_names"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [names(citus, machine) for machine in machines] == [["cn", "wk1", "wk2"]] * len(machines)
    standby.server.wait_for_replay(of=cn.server)
    assert citus.serving(session) == {"wk1-1", "wk2-1"}
    assert citus.serving(on_standby) == {"wk1-2", "wk2-2"}
    for one in (session, on_standby):
        assert one.execute("EXECUTE p").fetchone() == (400,)


def test_the_scripts_wait_until_the_workers_are_told(citus: CitusCluster) -> None:
    """Citus syncs the workers after the commit, which may be delayed; a script ends when all have the change."""
    if citus_version() < (11,):
        pytest.skip("before Citus 11 no worker has the metadata")
    cn, worker = citus.machines["cn-1"], citus.machines["wk2-1"]
    back = script(citus, "to_addresses")
    holder = citus.connect(worker)
    holder.execute("BEGIN")
    holder.execute("SELECT FROM pg_dist_node WHERE nodename = 'wk1' FOR UPDATE")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(psql, citus, cn, back)
        worker.server.wait_until("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        assert "wk1" not in names(citus, cn)
        assert "wk1" in names(citus, worker)
        assert not running.done()
        holder.execute("ROLLBACK")
        ran = running.result()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "|f" not in ran.stdout.replace(" ", "")
    assert names(citus, worker) == names(citus, cn)


def test_the_scripts_wait_for_nobody_who_needs_not_be_told(citus: CitusCluster) -> None:
    """The coordinator has the change at once, and before Citus 11 its row does not say so."""
    cn = citus.machines["cn-1"]
    citus.run_sql(cn, "UPDATE pg_dist_node SET metadatasynced = false WHERE groupid = 0")
    try:
        ran = psql(citus, cn, script(citus, "to_addresses"))
    finally:
        citus.run_sql(cn, "UPDATE pg_dist_node SET metadatasynced = true WHERE groupid = 0")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "|f" not in ran.stdout.replace(" ", "")


def test_the_way_back_follows_failovers(citus: CitusCluster) -> None:
    """The addresses are those of the current primaries, not of those before the names."""
    old, new = citus.groups["wk1"]
    old.kill()
    new.server.promote()
    citus.machines["cn-1"].lead({name: pair[0].address for name, pair in citus.groups.items()} | {"wk1": new.address})
    ran = psql(citus, citus.machines["cn-1"], script(citus, "to_addresses"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert names(citus, citus.machines["cn-1"])[1] == new.address


def test_no_names_where_a_node_does_not_know_them(citus: CitusCluster) -> None:
    """Every node tries every name before any change: where one is unknown, nothing is changed."""
    if citus_version() < (11,):
        pytest.skip("before Citus 11 no node can be asked to try a name")
    assert psql(citus, citus.machines["cn-1"], script(citus, "to_addresses")).returncode == 0
    citus.machines["wk2-1"].lead({"cn": citus.machines["cn-1"].address, "wk2": citus.machines["wk2-1"].address})
    ran = psql(citus, citus.machines["cn-1"], script(citus, "to_names"))
    assert ran.returncode == 3
    assert "not reached: from node 3: wk1" in ran.stderr
    assert "wk1" not in names(citus, citus.machines["cn-1"])


def test_names_wait_for_writers_and_give_up(citus: CitusCluster) -> None:
    """While a transaction writes the script tries again and again; in the end it gives up without a change."""
    cn = citus.machines["cn-1"]
    assert psql(citus, cn, script(citus, "to_addresses")).returncode == 0
    before = names(citus, cn)
    writer = citus.connect(cn)
    writer.execute("BEGIN")
    writer.execute("UPDATE accounts SET balance = balance + 1")
    ran = psql(citus, cn, script(citus, "to_names").replace("1..1000", "497..505"))  # both without and with a wait
    assert ran.returncode == 3
    assert "transactions that write are in the way all the time" in ran.stderr
    assert names(citus, cn) == before
    writer.execute("COMMIT")
    assert psql(citus, cn, script(citus, "to_names")).returncode == 0
    assert writer.execute("SELECT sum(balance) FROM accounts").fetchone() == (400 * 101,)


# --- The fixes, carried out under a real Patroni


def fixes(machine: Machine, citus: CitusPatroniCluster) -> dict[str, str]:
    """Return doctor's fixes on a machine, by key; the Patronis of the other machines run here, too."""
    report = json.loads(doctor_on(machine, citus, "--json").stdout)
    own = str(citus.config_path(machine))
    return {
        one["key"]: one["fix"]
        for one in report["findings"]
        if not one["key"].startswith("patroni:") or own in one["text"]
    }


def test_fixes_with_patronictl(citus_patroni: CitusPatroniCluster) -> None:
    """Each command that doctor gives for Patroni's configuration works as it is, and its finding is gone."""
    cluster, machine = citus_patroni, citus_patroni.machines["cn-1"]
    wrong = {
        "citus.recover_2pc_interval": "60s",
        "citus.defer_shard_delete_interval": "15s",
        "citus.use_secondary_nodes": "always",
        "citus.writable_standby_coordinator": "on",
        "citus.local_hostname": "wk1",
        "citus.node_conninfo": "sslmode=prefer",
    }
    before = fixes(machine, cluster)
    status, _ = cluster.rest(machine, "PATCH", "/config", {"postgresql": {"parameters": wrong}})
    assert status == 200
    for name, value in wrong.items():
        machine.server.wait_until(f"SELECT current_setting('{name}') IN ('{value}', '1min')")
    found = fixes(machine, cluster)
    keys = {*wrong, "citus.node_conninfo:keepalives", "patroni:hook"} - {"citus.node_conninfo"}
    if patroni_version() >= (3, 0, 3):  # older ones have no before_stop
        keys.add("patroni:before_stop")
    assert keys <= found.keys()
    for key in sorted(keys):
        assert found[key].startswith("patronictl edit-config --force "), key
        ran = subprocess.run(
            [*machine.launcher, "sh", "-c", found[key]],
            env=os.environ
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PATRONICTL_CONFIG_FILE": str(cluster.config_path(machine)),
                "LC_ALL": "C.UTF-8",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Configuration changed" in ran.stdout, ran
    for name, value in wrong.items():
        machine.server.wait_until(f"SELECT current_setting('{name}') NOT IN ('{value}', '1min')")
    after = fixes(machine, cluster)
    assert not keys & after.keys() - {"citus.local_hostname"}  # these servers do not listen on localhost
    assert after.keys() <= before.keys() | {"patroni:program"}  # this checkout is not installed in /usr/local/bin
