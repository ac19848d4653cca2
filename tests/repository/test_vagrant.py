"""The Vagrantfile, and the files that are rendered for each machine of the lab."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from resolver_agent.config.load import parse

if TYPE_CHECKING:
    from collections.abc import Callable

TOP = Path(__file__).parents[2]
VAGRANT = TOP / "vagrant"
LAB = yaml.safe_load((VAGRANT / "lab.yml").read_text())
GROUPS: dict[str, dict[str, str]] = LAB["names"]
MACHINES = {name: address for members in GROUPS.values() for name, address in members.items()}
ROLE_SQL = " ".join((TOP / "systemd/role.sql").read_text().replace("192.168.234.0/24", LAB["network"]).split())
SYSTEMS = {
    "CentOS 7": ["--home=/var/lib/pgsql", "--release=12", "--citus"],
    "Debian": ["--home=/var/lib/postgresql", "--release=15", "--citus"],
    "Debian without Citus": ["--home=/var/lib/postgresql", "--release=15"],
}

# Stands in for Vagrant: it writes down every call, with the names of the machine and of the section that it is in.
RECORDER = """
require "json"
module Vagrant
  class Calls < BasicObject
    def initialize(path) = @path = path
    def respond_to_missing?(*) = true
    def method_missing(name, *given, **options, &block)
      $calls << [@path + [name], given, options]
      inner = Calls.new(@path + [name] + given.grep(::String))
      block ? block.call(inner) : inner
    end
  end
  def self.configure(_version) = yield(Calls.new([]))
end
$calls = []
load ARGV[0]
puts JSON.generate($calls)
"""


@pytest.fixture
def render(tmp_path: Path) -> Callable[..., Path]:
    """Write the files of a machine: ``render("cn1", "Debian", "--etcd-nodes=3")`` returns their folder."""

    def write(machine: str, system: str = "Debian", *options: str) -> Path:
        folder = tmp_path / machine
        folder.mkdir(exist_ok=True)
        (bin_dir, *_) = Path("/usr/lib/postgresql").glob("*/bin")
        command = [sys.executable, str(VAGRANT / "provision/render.py"), str(folder), machine, f"--bin-dir={bin_dir}"]
        subprocess.run([*command, *SYSTEMS[system], *options], check=True, capture_output=True, text=True)
        return folder

    return write


def patroni(folder: Path) -> Any:
    """Return Patroni's configuration, parsed."""
    return yaml.safe_load((folder / "patroni.yml").read_text())


def calls(etcd_nodes: str | None = None) -> list[tuple[list[str], list[Any], dict[str, Any]]]:
    """Return what the Vagrantfile asks of Vagrant: where, with which arguments and which options."""
    environment = {key: value for key, value in os.environ.items() if key != "ETCD_NODES"}
    if etcd_nodes is not None:
        environment["ETCD_NODES"] = etcd_nodes
    command = ["ruby", "-e", RECORDER, str(VAGRANT / "Vagrantfile")]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return [(where, given, options) for where, given, options in json.loads(said)]


def test_vagrant_accepts_the_vagrantfile(tmp_path: Path) -> None:
    """Vagrant finds nothing wrong with it."""
    homes = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "state")}
    command = ["vagrant", "validate", "--ignore-provider"]
    done = subprocess.run(command, cwd=VAGRANT, env=os.environ | homes, capture_output=True, text=True, check=False)
    assert "validated successfully" in done.stdout, done.stdout + done.stderr


def test_machines_have_their_addresses() -> None:
    """Each machine is called what lab.yml calls it, and has the address that it has there."""
    found = {where[2]: options["ip"] for where, _, options in calls() if where[-1] == "network"}
    assert found == MACHINES


@pytest.mark.parametrize("etcd_nodes", [None, "3"])
def test_machines_run_the_scripts(etcd_nodes: str | None) -> None:
    """Each machine is installed and configured, and then the last one makes the cluster; the scripts are there."""
    found: dict[str, list[str]] = {}
    for where, _, options in calls(etcd_nodes):
        if where[-1] == "provision":
            found.setdefault(where[2], []).append(options["inline"])
    folder = "bash /srv/resolver-agent/vagrant/provision"
    wanted = {name: [f"{folder}/install.sh", f"{folder}/configure.sh {name} {etcd_nodes or 1}"] for name in MACHINES}
    wanted[list(MACHINES)[-1]].append(f"{folder}/cluster.sh")
    assert found == wanted
    scripts = {command.split()[1].removeprefix("/srv/resolver-agent/") for each in found.values() for command in each}
    assert all(os.access(TOP / script, os.X_OK) for script in scripts)


@pytest.mark.parametrize("system", SYSTEMS)
def test_patroni_accepts_its_configuration(render: Callable[..., Path], system: str) -> None:
    """Patroni finds nothing wrong with what is rendered."""
    command = [sys.executable, "-m", "patroni", "--validate-config", "--ignore-listen-port"]
    path = render("wk1a", system) / "patroni.yml"
    done = subprocess.run([*command, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("system", SYSTEMS)
def test_agents_accept_their_configuration(render: Callable[..., Path], system: str) -> None:
    """The agent takes what is rendered, and it is the same on every machine: the groups of lab.yml."""
    texts = {(render(machine, system) / "resolver-agent.yml").read_text() for machine in MACHINES}
    (text,) = texts
    settings = parse(text, path="resolver-agent.yml", hostname="cn1")
    assert settings.warnings == ()
    assert {group.name: [node.host for node in group.nodes] for group in settings.groups} == {
        name: list(members.values()) for name, members in GROUPS.items()
    }
    assert all(group.patroni is not None for group in settings.groups)


def test_patroni_runs_the_hooks(render: Callable[..., Path]) -> None:
    """Patroni announces promotions and stops by the very lines of the snippet."""
    snippet = yaml.safe_load((TOP / "systemd/patroni-hooks.yml").read_text())
    assert snippet["postgresql"].keys() == {"pre_promote", "before_stop"}
    assert patroni(render("cn1"))["postgresql"].items() >= snippet["postgresql"].items()


def test_silent_clients_do_not_outlast_a_stop(render: Callable[..., Path]) -> None:
    """A connection without a login holds PostgreSQL up no longer than systemd waits before it kills Patroni."""
    timeout = patroni(render("cn1"))["postgresql"]["parameters"]["authentication_timeout"]
    limit = re.search(r"^TimeoutStopSec=(\d+)$", (VAGRANT / "provision/patroni.service").read_text(), re.MULTILINE)
    assert limit is not None
    assert int(timeout.removesuffix("s")) <= int(limit[1]) / 4


@pytest.mark.parametrize(
    ("system", "value"), [("CentOS 7", -1), ("Debian", -1), ("Debian without Citus", None)], ids=SYSTEMS
)
def test_citus_does_nothing_by_its_own_clock(render: Callable[..., Path], system: str, value: int | None) -> None:
    """Where there is Citus, both its intervals are off; elsewhere nothing is said of it."""
    parameters = patroni(render("cn1", system))["postgresql"]["parameters"]
    assert parameters.get("citus.recover_2pc_interval") == value
    assert parameters.get("citus.defer_shard_delete_interval") == value
    assert ("citus" in str(parameters)) == (value is not None)


@pytest.mark.parametrize(
    ("system", "user", "line"),
    [
        ("CentOS 7", "postgres", "local all postgres peer map=resolver_agent"),
        ("Debian", "resolver_agent_local", "local all resolver_agent_local peer map=resolver_agent"),
        ("Debian without Citus", "resolver_agent_local", "local all resolver_agent_local peer map=resolver_agent"),
    ],
    ids=SYSTEMS,
)
def test_agents_are_let_in(render: Callable[..., Path], system: str, user: str, line: str) -> None:
    """The agent logs in as role.sql says: as itself, but with Citus as a superuser before PostgreSQL 15."""
    folder = render("cn1", system)
    agent = yaml.safe_load((folder / "resolver-agent.yml").read_text())
    assert agent["local"].get("user") == user
    settings = patroni(folder)["postgresql"]
    network_line = f"host postgres resolver_agent {LAB['network']} scram-sha-256"
    assert settings["pg_hba"][0] == line
    assert network_line in settings["pg_hba"]
    for each in (line, network_line, *settings["pg_ident"]):
        assert each in ROLE_SQL


@pytest.mark.parametrize("count", [1, 3])
def test_etcd_runs_on_some(render: Callable[..., Path], count: int) -> None:
    """Etcd is configured where it is to run and nowhere else, and everybody knows its members."""
    members = LAB["etcd"][:count]
    clients = [f"{MACHINES[name]}:2379" for name in members]
    for machine in MACHINES:
        folder = render(machine, "Debian", f"--etcd-nodes={count}")
        assert patroni(folder)["etcd3"]["hosts"] == clients
        path = folder / "etcd.conf"
        assert path.exists() == (machine in members)
        if machine in members:
            (found,) = re.findall(r'^ETCD_INITIAL_CLUSTER="(.*)"$', path.read_text(), re.MULTILINE)
            assert found == ",".join(f"{name}=http://{MACHINES[name]}:2380" for name in members)


def test_secrets_are_kept(render: Callable[..., Path]) -> None:
    """Nobody but their owner can read the files."""
    modes = {path.stat().st_mode & 0o777 for path in render("cn1").iterdir()}
    assert modes == {0o600}


@pytest.mark.parametrize(
    ("machine", "option", "fault"),
    [
        pytest.param("cn3", "--etcd-nodes=1", "cn3 is not a machine of the lab", id="unknown machine"),
        pytest.param("cn1", "--etcd-nodes=0", "etcd runs on 1 to 3 machines", id="no etcd"),
        pytest.param("cn1", "--etcd-nodes=4", "etcd runs on 1 to 3 machines", id="too many"),
    ],
)
def test_what_cannot_be_is_refused(render: Callable[..., Path], machine: str, option: str, fault: str) -> None:
    """A wrong machine or number is an error that says so, and nothing is written."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(machine, "Debian", option)
    assert fault in caught.value.stderr
