"""One booted Debian for tests of packages and of Ansible's role: PostgreSQL with a stand-in for Citus' metadata."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.integration.support.systemd_host import Container
from tests.lab import layers
from tests.lab.ground import Ground

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.integration.support.systemd_host import SystemdHost

CONFIG = b"""\
fallback: none
names:
  cn: {nodes: [127.0.0.2]}
postgresql: {user: resolver_agent, dbname: postgres}
local: {host: /run/postgresql, user: resolver_agent_local}
"""
# A stand-in for Citus' metadata, as this PostgreSQL has no Citus.
POSTGRES = """
set -e
bin=$(echo /usr/lib/postgresql/*/bin)
runuser -u postgres -- $bin/initdb --auth=trust --no-sync --pgdata=/var/lib/postgresql/cn >/dev/null
cd /var/lib/postgresql/cn
sed -i '1i local all resolver_agent_local peer map=resolver_agent' pg_hba.conf
echo 'resolver_agent root resolver_agent_local' >>pg_ident.conf
runuser -u postgres -- $bin/pg_ctl start --silent --wait --pgdata=. --log=log \\
    --options="-c fsync=off -c listen_addresses=127.0.0.2 -c allow_system_table_mods=on"
sql() {
    runuser -u postgres -- psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --host=/run/postgresql "$@"
}
sql --file=/usr/share/resolver-agent/role.sql
sql --command="CREATE TABLE pg_catalog.pg_dist_node (nodename text)" \\
    --command="GRANT SELECT ON pg_dist_node TO public" \\
    --command="INSERT INTO pg_dist_node VALUES ('cn')"
"""
TO_ADDRESSES = """
runuser -u postgres -- psql --quiet --host=/run/postgresql --command="UPDATE pg_dist_node SET nodename = '127.0.0.2'"
"""
STOP = "cd /; runuser -u postgres -- /usr/lib/postgresql/*/bin/pg_ctl stop --mode=fast --pgdata=/var/lib/postgresql/cn"


@contextlib.contextmanager
def booted(files: Sequence[Path], *options: str, tree: str | None = None) -> Iterator[SystemdHost]:
    """Boot a host without the agent, with these files in /srv, and options of systemd-nspawn.

    ``tree`` is as for ``layers.with_package_tools``.
    """
    with contextlib.ExitStack() as stack:
        ground = stack.enter_context(Ground("10.0.0.1/24"))
        ground.lay("host", layers.with_package_tools(tree))
        (ground.folder / layers.WHEELS.name).mkdir()  # where an option may mount the wheels
        for file in files:
            (ground.folder / file.name).write_bytes(file.read_bytes())
        given = ["--directory=/mnt/host/root", f"--bind-ro={ground.folder}:/srv", "--private-network", *options]
        container = stack.enter_context(Container("host", *given, launcher=ground.launcher))
        host = container.booted()
        host.run("rm", "-rf", "/opt/resolver-agent")
        yield host


def sh(host: SystemdHost, script: str) -> str:
    """Run a script on a host, and return what it prints."""
    return host.run("bash", "-c", script)
