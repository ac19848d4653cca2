"""Writes the files of one machine from lab.yml: render.py FOLDER MACHINE --help."""  # noqa: INP001 - a script

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

import yaml

_CHECKOUT = Path(__file__).resolve().parents[2]
_LAB = _CHECKOUT / "vagrant/lab.yml"
_HOOKS = _CHECKOUT / "systemd/patroni-hooks.yml"
# Without the keepalives and the timeout, a statement waits for a machine without power as long as the kernel: hours.
_NODE_CONNINFO = "sslmode=prefer keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000"
_GRANTABLE = 15  # the first PostgreSQL in which ALTER SYSTEM on one parameter can be granted: systemd/role.sql


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """One machine of the lab, and the paths and versions on its operating system."""

    lab: dict[str, Any]
    name: str
    etcd: list[str]
    bin_dir: str
    home: str
    release: int
    citus: bool

    @property
    def group(self) -> str:
        """The name in pg_dist_node that the machine is behind."""
        return next(str(group) for group, members in self.lab["names"].items() if self.name in members)

    @property
    def addresses(self) -> dict[str, str]:
        """The addresses of all machines."""
        return {name: address for members in self.lab["names"].values() for name, address in members.items()}

    @property
    def address(self) -> str:
        """Its own address."""
        return self.addresses[self.name]

    @property
    def agent_is_superuser(self) -> bool:
        """Whether the agent has to log in as a superuser on its own machine, to flush cached connections."""
        return self.citus and self.release < _GRANTABLE

    def files(self) -> dict[str, str]:
        """Return the text of each file."""
        port, password = self.lab["port"], self.lab["password"]
        found = {
            "patroni.yml": _yaml(self._patroni()),
            "resolver-agent.yml": _yaml(self._agent()),
            "resolver-agent.pgpass": f"*:{port}:postgres:resolver_agent:{password}\n",
            "postgres.pgpass": f"*:{port}:*:*:{password}\n",
            "lab.sh": "".join(self._shell()),
        }
        if self.name in self.etcd:
            found["etcd.conf"] = "".join(f'ETCD_{key}="{value}"\n' for key, value in self._etcd().items())
        return found

    def _patroni(self) -> dict[str, Any]:
        listen, rest = f"{self.address}:{self.lab['port']}", f"{self.address}:8008"
        password = self.lab["password"]
        return {
            "scope": self.group,
            "name": self.name,
            "etcd3": {"hosts": [f"{self.addresses[name]}:2379" for name in self.etcd]},
            "restapi": {"listen": rest, "connect_address": rest},
            "bootstrap": {
                "dcs": {
                    "ttl": 20,
                    "loop_wait": 2,
                    "retry_timeout": 5,
                    "synchronous_mode": True,  # committed transactions survive the loss of the primary
                    "postgresql": {
                        "use_pg_rewind": True,
                        # Patroni takes these from the dynamic configuration only.
                        "parameters": {
                            "max_connections": 100,
                            "max_prepared_transactions": 100,
                            "max_worker_processes": 16,
                            "wal_level": "logical",
                        },
                    },
                },
                "initdb": ["data-checksums", {"encoding": "UTF8"}, {"locale": "C"}],
            },
            "postgresql": {
                "listen": listen,
                "connect_address": listen,
                "use_unix_socket": True,
                "bin_dir": self.bin_dir,
                "data_dir": f"{self.home}/lab",
                "pgpass": f"{self.home}/.pgpass.patroni",
                "authentication": {
                    "superuser": {"username": "postgres", "password": password},
                    "replication": {"username": "replicator", "password": password},
                },
                "parameters": self._parameters(),
                "pg_hba": self._pg_hba(),
                "pg_ident": self._pg_ident(),
                **yaml.safe_load(_HOOKS.read_text(encoding="utf-8"))["postgresql"],
            },
        }

    def _parameters(self) -> dict[str, Any]:
        parameters = {
            # A client that connects while PostgreSQL stops, and sends nothing, delays the stop for this long.
            "authentication_timeout": "10s",
            "password_encryption": "scram-sha-256",
            "shared_buffers": "64MB",
            "unix_socket_directories": "/var/run/postgresql",
        }
        if not self.citus:
            return parameters
        return parameters | {
            "shared_preload_libraries": "citus",
            "citus.recover_2pc_interval": -1,
            "citus.defer_shard_delete_interval": -1,
            # Otherwise a finished statement waits for connections that it needs no more, in a waiting room too.
            "citus.prevent_incomplete_connection_establishment": "off",
            "citus.local_hostname": self.group,
            "citus.node_conninfo": _NODE_CONNINFO,
        }

    def _pg_hba(self) -> list[str]:
        agent = "postgres" if self.agent_is_superuser else "resolver_agent_local"
        network = self.lab["network"]
        return [
            f"local all {agent} peer map=resolver_agent",
            *(() if self.agent_is_superuser else (f"host all {agent} all reject",)),
            "local all all peer",
            f"host postgres resolver_agent {network} scram-sha-256",
            f"host replication replicator {network} scram-sha-256",
            f"host all all {network} scram-sha-256",
        ]

    def _pg_ident(self) -> list[str]:
        if self.agent_is_superuser:
            return ["resolver_agent root postgres", "resolver_agent postgres postgres"]
        return ["resolver_agent root resolver_agent_local"]

    def _agent(self) -> dict[str, Any]:
        user = "postgres" if self.agent_is_superuser else "resolver_agent_local"
        return {
            "fallback": "none",
            "names": {
                group: {"nodes": list(members.values()), "patroni": {"port": 8008}}
                for group, members in self.lab["names"].items()
            },
            "postgresql": {
                "user": "resolver_agent",
                "dbname": "postgres",
                "passfile": "/etc/resolver-agent.pgpass",
            },
            "local": {"host": "/var/run/postgresql", "user": user},
            "port": self.lab["port"],
        }

    def _etcd(self) -> dict[str, str]:
        client, peer = f"http://{self.address}:2379", f"http://{self.address}:2380"
        return {
            "NAME": self.name,
            "DATA_DIR": "/var/lib/etcd/lab",
            "LISTEN_CLIENT_URLS": client,
            "ADVERTISE_CLIENT_URLS": client,
            "LISTEN_PEER_URLS": peer,
            "INITIAL_ADVERTISE_PEER_URLS": peer,
            "INITIAL_CLUSTER": ",".join(f"{name}=http://{self.addresses[name]}:2380" for name in self.etcd),
            "INITIAL_CLUSTER_STATE": "new",
        }

    def _shell(self) -> list[str]:
        lab = self.lab
        words = {key: lab[key] for key in ("port", "database", "password")}
        lists = {"names": lab["names"], "etcd": self.etcd}
        hosts = {group: ",".join(members.values()) for group, members in lab["names"].items()}
        return [
            *(f"{key}={shlex.quote(str(value))}\n" for key, value in words.items()),
            *(f"{key}=({shlex.join(value)})\n" for key, value in lists.items()),
            f"declare -A hosts=({' '.join(f'[{group}]={shlex.quote(value)}' for group, value in hosts.items())})\n",
        ]


def _yaml(data: dict[str, Any]) -> str:
    return "# Rendered from vagrant/lab.yml.\n" + yaml.safe_dump(data, sort_keys=False, width=120)


def main() -> None:
    """Write the files into a folder; only their owner may read them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write the files")
    parser.add_argument("machine", help="whose files")
    parser.add_argument("--etcd-nodes", type=int, default=1, help="on how many machines etcd runs")
    parser.add_argument("--bin-dir", required=True, help="where PostgreSQL's programs are")
    parser.add_argument("--home", required=True, help="the home folder of PostgreSQL's user")
    parser.add_argument("--release", required=True, type=int, help="PostgreSQL's major release")
    parser.add_argument("--citus", action="store_true", help="PostgreSQL has Citus")
    given = parser.parse_args()
    lab = yaml.safe_load(_LAB.read_text(encoding="utf-8"))
    if not 1 <= given.etcd_nodes <= len(lab["etcd"]):
        parser.error(f"etcd runs on 1 to {len(lab['etcd'])} machines")
    machine = Machine(
        lab=lab,
        name=given.machine,
        etcd=lab["etcd"][: given.etcd_nodes],
        bin_dir=given.bin_dir,
        home=given.home,
        release=given.release,
        citus=given.citus,
    )
    if machine.name not in machine.addresses:
        parser.error(f"{machine.name} is not a machine of the lab: {', '.join(machine.addresses)}")
    for name, text in machine.files().items():
        path = given.folder / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
