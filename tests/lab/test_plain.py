"""The lab where there is no Citus, and with three etcd."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from tests.lab.cluster_scenarios import worker_switchover
from tests.lab.conftest import Labs
from tests.lab.lab import Lab
from tests.lab.scenarios import undergo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.account import Account


@pytest.fixture(scope="module")
def labs() -> Iterator[Labs]:
    """Yield a source of labs of that kind."""
    with Labs(functools.partial(Lab, citus=False, etcd_nodes=3)) as labs:
        yield labs


def test_standbys_serve_the_standby(lab: Lab) -> None:
    """Real libpq, called by postgres_fdw, connects a coordinator's reads to workers of its own role."""
    for role, standby in ((lab.primary, False), (lab.standby, True)):
        assert lab.serving(role("cn")) == {role(group).name: standby for group in ("wk1", "wk2")}
        with lab.connect(role("cn")) as session:
            assert session.execute("SELECT count(*), sum(balance) FROM accounts").fetchall() == [(1000, 100_000)]


def test_worker_switchover(lab: Lab, accounts: list[Account]) -> None:
    """It stays so when a worker's nodes swap their roles."""
    accounts.append(account := undergo(lab, worker_switchover))
    assert account.well, account
