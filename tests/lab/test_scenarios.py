"""The lab's scenarios while clients write and read: no write is lost, and nothing goes to a wrong role."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.cluster_scenarios import planned_work
from tests.lab.scenarios import SCENARIOS, undergo

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
