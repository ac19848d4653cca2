"""What happens to the lab while clients write and read: no write is lost, and nothing goes to a wrong role."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.health import settle
from tests.lab.scenarios import SCENARIOS
from tests.lab.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.account import Account
    from tests.lab.lab import Lab


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(lab: Lab, accounts: list[Account], scenario: Callable[[Lab], None]) -> None:
    """Names lead where they should and the right servers answer, before and after; clients lose nothing."""
    settle(lab)
    with Traffic(lab, scenario.__name__) as traffic:
        scenario(lab)
    accounts.append(traffic.account)
    assert traffic.account.well, traffic.account
