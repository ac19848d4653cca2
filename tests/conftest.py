"""Settings that every test runs with, and what tests of several folders share."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.integration.support.distribution import Packages

settings.register_profile("shared machine", deadline=None)
"""How long an example takes says nothing on a machine that others use too."""
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Return the source of packages for distributions."""
    return Packages(tmp_path_factory.mktemp("distribution"))
