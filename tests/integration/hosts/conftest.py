"""A hosts file for one test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.support.hosts_file import OLD

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """Return a hosts file in a folder of its own."""
    path = tmp_path / "etc" / "hosts"
    path.parent.mkdir()
    path.write_bytes(OLD)
    path.chmod(0o644)
    return path
