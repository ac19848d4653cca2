"""The configuration as a value."""

from __future__ import annotations

from tests.unit.config.builders import MINIMAL, parse


def test_a_configuration_does_not_show_its_passwords() -> None:
    """A logged configuration shows no secret."""
    assert "hunter2" not in repr(parse(f"{MINIMAL}postgresql: {{password: hunter2}}\n"))
