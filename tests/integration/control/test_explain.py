"""``explain`` where nothing else works."""

from __future__ import annotations

from tests.integration.support.command_line import by_the_standard_library_alone


def test_explain_needs_the_standard_library_only() -> None:
    """It works where the agent's other packages are broken or missing."""
    told, imported = by_the_standard_library_alone("explain", prepare="")
    assert "\nfenced " in told
    assert "asyncio" not in imported
