"""A controller as the well-known article on Citus under Patroni has one: ``python controller.py PATRONI_YML``.

It runs beside each coordinator. Where the local server is a primary, it writes the address of each worker group's only
primary into ``pg_dist_node``, in every database of the section ``citus:``, every ``loop_wait`` seconds. It logs in as
the superuser of the section ``postgresql:``, and imports nothing of ours.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import yaml

IN_RECOVERY = "SELECT pg_is_in_recovery()"
NODES = "SELECT nodeid, nodename, nodeport FROM pg_dist_node WHERE groupid = %s AND noderole = 'primary'"
UPDATE = "SELECT {}(%s, %s, %s)"
HAS = "SELECT count(*) FROM pg_proc WHERE proname = 'citus_update_node'"


def look(config: dict[str, Any]) -> None:
    """Do what is done in one round."""
    superuser = config["postgresql"]["authentication"]["superuser"]
    login = {"user": superuser["username"], "password": superuser["password"], "connect_timeout": 2}
    host, port = config["postgresql"]["connect_address"].rsplit(":", 1)
    for database in config["citus"]["databases"]:
        with psycopg.connect(host=host, port=port, dbname=database, autocommit=True, **login) as local:
            if local.execute(IN_RECOVERY).fetchone() != (False,):
                return
            for worker in config["citus"]["workers"]:
                primaries = [node for node in worker["nodes"] if is_primary(node, database, login)]
                row = local.execute(NODES, [worker["groupid"]]).fetchone()
                if len(primaries) != 1 or row is None:
                    continue
                address, its_port = primaries[0].rsplit(":", 1)
                if row[1:] != (address, int(its_port)):
                    update = "citus_update_node" if local.execute(HAS).fetchone() != (0,) else "master_update_node"
                    local.execute(UPDATE.format(update), [row[0], address, int(its_port)])
                    print(f"group {worker['groupid']}: {row[1]} -> {address}", flush=True)


def is_primary(node: str, database: str, login: dict[str, Any]) -> bool:
    """Report whether a server says that it is a primary."""
    host, port = node.rsplit(":", 1)
    try:
        with psycopg.connect(host=host, port=port, dbname=database, autocommit=True, **login) as session:
            return session.execute(IN_RECOVERY).fetchone() == (False,)
    except psycopg.OperationalError:
        return False


def main() -> None:
    """Run until a signal."""
    config = yaml.safe_load(Path(sys.argv[1]).read_text())
    while True:
        try:
            look(config)
            print("done", flush=True)
        except psycopg.Error as error:
            print(error, flush=True)
        time.sleep(config["citus"]["loop_wait"])


if __name__ == "__main__":
    main()
