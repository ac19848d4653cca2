"""The lab's scenarios while clients write and read: no write is lost, and nothing goes to a wrong role."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.cluster_scenarios import planned_work
from tests.lab.health import settle
from tests.lab.migration import Migration
from tests.lab.scenarios import SCENARIOS, undergo
from tests.lab.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.account import Account
    from tests.lab.lab import Lab


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(lab: Lab, accounts: list[Account], scenario: Callable[[Lab], None]) -> None:
    """Names and answers are right before and after; clients lose nothing."""
    accounts.append(account := undergo(lab, scenario))
    assert account.well, account


def test_planned_work(lab: Lab, accounts: list[Account]) -> None:
    """With Citus no statement fails while workers are switched over and restarted, if clients have the patience."""
    accounts.append(account := undergo(lab, planned_work, patience_s=60.0))
    assert account.well, account
    assert not (lab.citus and account.failed)


def test_migration(lab: Lab, accounts: list[Account]) -> None:
    """No statement fails when the agents take the place of the controller of the well-known article, and back."""
    if not lab.citus:
        pytest.skip("there is no Citus, and so no pg_dist_node")
    settle(lab)
    migration = Migration(lab)
    with Traffic(lab, "names_to_controller", patience_s=60.0, by_role=False) as back:
        migration.to_controllers()
    migration.follow()
    with Traffic(lab, "controller_to_names", patience_s=60.0, by_role=False) as forth:
        migration.to_names()
    settle(lab)
    accounts += (back.account, forth.account)
    assert back.account.well, back.account
    assert forth.account.well, forth.account
    assert not (*back.account.failed, *forth.account.failed)
