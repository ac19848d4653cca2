"""From the controller script of the well-known article to names in ``pg_dist_node``, and back, while clients work."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any

import yaml

from resolver_agent.config.patroni_import import convert_file
from tests.bench.traffic import KINDS, PRIMARY, STANDBY, WORKER, Data, Kind, Session, running, wait_for_all
from tests.integration.support import controller
from tests.integration.support.agent_state import wait_until
from tests.integration.support.citus_cluster import workers_have_metadata
from tests.integration.support.cluster import DATABASE, at_once
from tests.integration.support.doctor import mend, report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.support.citus_cluster import CitusCluster
    from tests.integration.support.machine import Machine

NODES = "SELECT nodename FROM pg_dist_node ORDER BY groupid"
SYNCED = "SELECT bool_and(metadatasynced OR NOT hasmetadata OR groupid = 0) FROM pg_dist_node"
CACHED = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^citus(_internal.*)?$'"
LOOP_S = 0.5
NAMES = ["cn", "wk1", "wk2"]
STANDBYS = {"wk1-2", "wk2-2"}
CHOSEN = {
    PRIMARY: (
        "SELECT one shard",
        "SELECT all shards",
        "SELECT prepared",
        "SELECT all, new session",
        "INSERT",
        "INSERT, new session",
        "UPDATE prepared",
        "UPDATE all shards",
        "DELETE one shard",
        "two workers",
        "two workers, thinking",
        "hot rows",
        "COPY in",
        "CTE that writes",
        "INSERT SELECT repartitioned",
        "repartition join",
        "reference table write",
        "procedure",
    ),
    STANDBY: ("SELECT one shard", "SELECT all shards", "SELECT all, new session"),
    WORKER: ("SELECT all shards", "INSERT"),
}


def other_way_round(session: Session, data: Data) -> None:
    """Write on the workers in the other order than the scripts lock them, and think in between."""
    number = data.number()
    with session.transaction():
        session.execute("INSERT INTO pairs VALUES (%s, %s)", [data.parts[1], number])
        time.sleep(0.1)
        session.execute("INSERT INTO pairs VALUES (%s, %s)", [data.parts[0], number])
    data.pairs.append(number)


# One client each, in no hurry: Citus keeps a connection to each worker in each session.
MIXED = [
    *(
        dataclasses.replace(kind, clients=1, pause_s=max(kind.pause_s, 0.5))
        for kind in KINDS
        if kind.name in CHOSEN[kind.side]
    ),
    Kind("two workers, other way round", PRIMARY, other_way_round),
]


class Controllers:
    """The controllers of both coordinators."""

    def __init__(self, cluster: CitusCluster) -> None:
        """Write a patroni.yml for each, with their section in it."""
        workers = [
            {"groupid": number, "nodes": [f"{one.address}:{cluster.site.port}" for one in cluster.groups[name]]}
            for number, name in ((1, "wk1"), (2, "wk2"))
        ]
        self.paths = {machine: machine.folder / "patroni.yml" for machine in cluster.groups["cn"]}
        for machine, path in self.paths.items():
            server = {
                "connect_address": f"{machine.address}:{cluster.site.port}",
                "authentication": {"superuser": {"username": "postgres", "password": "SUPERUSERS-PASSWORD"}},
            }
            section = {"loop_wait": LOOP_S, "databases": [DATABASE], "workers": workers}
            path.write_text(yaml.safe_dump({"scope": "cn", "postgresql": server, "citus": section}))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run them."""
        processes = []
        for machine, path in self.paths.items():
            self._log(machine).write_text("")
            command = (sys.executable, controller.__file__, path)
            processes.append(machine.start(*command, log=self._log(machine), as_postgres=True))
        try:
            yield
        finally:
            for process in processes:
                process.terminate()
                process.wait()

    def said(self, machine: Machine) -> list[str]:
        """Return what the controller of a machine has said since it was started, a line for each round and change."""
        return self._log(machine).read_text().splitlines()

    def _log(self, machine: Machine) -> Path:
        return machine.folder / "controller.log"


def hosts(cluster: CitusCluster, machine: Machine) -> list[str]:
    """Return the nodes' hosts in the metadata of a machine."""
    return [host for (host,) in cluster.run_sql(machine, NODES)]


def names_and_addresses(cluster: CitusCluster, controllers: Controllers) -> tuple[list[str], dict[str, Any]]:
    """Have the controllers put addresses into the metadata; return these, and the agents' imported settings."""
    cn1, cn2 = controllers.paths
    addresses = [cluster.groups[name][0].address for name in NAMES]
    [(node,)] = cluster.run_sql(cn1, "SELECT nodeid FROM pg_dist_node WHERE groupid = 0")
    cluster.run_sql(cn1, "SELECT citus_update_node(%s, %s, %s)", [node, cn1.address, cluster.site.port])
    with controllers.running():
        wait_until(lambda: hosts(cluster, cn1) == addresses and cluster.run_sql(cn1, SYNCED) == [(True,)], timeout_s=60)
        assert any("wk1 -> " in line for line in controllers.said(cn1))
    imported = yaml.safe_load(convert_file(str(controllers.paths[cn1])).replace("<ADDRESS>", cn2.address))
    return addresses, {key: imported[key] for key in ("fallback", "names")}  # no login needs a password here


def start_agents(cluster: CitusCluster, settings: dict[str, Any]) -> None:
    """Start the agents, in the place of those that run, and wait until each has flushed what is cached."""
    for agent in cluster.agents.values():
        assert agent.stop() == 0
    at_once(lambda machine: cluster.start_agent(machine, **settings), cluster.machines.values())
    for agent in cluster.agents.values():
        agent.wait_for_line("flushed the connections", timeout_s=120)


def cached(cluster: CitusCluster) -> int:
    """Return how many sessions of Citus the workers have."""
    return sum(cluster.run_sql(cluster.machines[name], CACHED)[0][0] for name in ("wk1-1", "wk2-1"))


def test_to_names_and_back(citus: CitusCluster) -> None:
    """No statement fails and no row is lost, in the order of steps that systemd/README.md gives."""
    (cn1, cn2), worker = citus.groups["cn"], citus.machines["wk2-1"]
    controllers = Controllers(citus)
    addresses, settings = names_and_addresses(citus, controllers)
    data, reader = Data(citus, cn1), citus.connect(cn2)
    start_agents(citus, settings)
    scripts = report(citus, cn1, **settings)
    asked, told = {PRIMARY: cn1, STANDBY: cn2}, [cn1, cn2]
    if workers_have_metadata():
        asked[WORKER] = worker
        told.append(worker)
    with running(asked, citus.site.port, data, kinds=MIXED) as clients:
        with controllers.running():
            wait_for_all(clients)
            assert hosts(citus, cn1) == addresses
        for key, expected in (("to_names", NAMES), ("to_addresses", addresses)):
            mend(citus, cn1, scripts[key])
            wait_for_all(clients)
            doubled = cached(citus)
            start_agents(citus, settings)
            wait_for_all(clients)
            assert cached(citus) < doubled
            assert all(hosts(citus, one) == expected for one in told)
            assert (citus.serving(reader) == STANDBYS) == (key == "to_names")
        with controllers.running():
            wait_until(lambda: all(controllers.said(one).count("done") > 2 for one in (cn1, cn2)), timeout_s=60)
            assert not any(" -> " in line for line in controllers.said(cn1))
            wait_for_all(clients)
    counted = collections.Counter(
        f"{one.side}, {one.kind}: {one.error}" for client in clients for one in client.samples if one.error
    )
    assert not counted, "\n".join(f"{count} x {error}" for error, count in counted.items())
    assert not data.account(citus, cn1)
