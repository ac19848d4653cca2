"""A configuration, and a server that tests of this folder may configure freely."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.config.load import load as load_config
from tests.integration.conftest import ROLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from resolver_agent.config.model import Config
    from resolver_agent.demo.postgres import Postgres, Site

    Load = Callable[..., Config]


@pytest.fixture
def load(write_config: Callable[..., Path]) -> Load:
    """Make a configuration: ``load(local_server, {name: [host, …]}, **settings)``."""

    def load(server: Postgres, /, names: Mapping[str, list[str]], **settings: Any) -> Config:
        nodes = {"names": {name: {"nodes": hosts} for name, hosts in names.items()}}
        return load_config(str(write_config(server, {}, **(nodes | settings))))

    return load


@pytest.fixture(scope="module")
def lone(site: Site, request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server that tests may configure freely if they undo it. Its database ``barred`` refuses probes."""
    server = site.primary(f"lone-{request.path.stem}", "127.0.4.1", config="password_encryption = 'scram-sha-256'\n")
    server.run_sql(f"CREATE ROLE {ROLE} LOGIN; CREATE ROLE locked LOGIN PASSWORD 'right'; CREATE ROLE alien LOGIN")
    server.run_sql("CREATE DATABASE barred")
    server.run_sql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC", dbname="barred")
    (server.data / "pg_hba.conf").write_text(
        f"local all,replication all trust\nhost all locked all scram-sha-256\nhost all {ROLE},postgres all trust\n"
    )
    server.reload()
    yield server
    server.kill()
