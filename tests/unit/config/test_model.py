"""What a configuration is as a value."""

from __future__ import annotations

from tests.unit.config.builders import MINIMAL, parse


def test_a_configuration_does_not_show_its_passwords() -> None:
    """What is logged of a configuration holds no secret."""
    assert "hunter2" not in repr(parse(f"{MINIMAL}postgresql: {{password: hunter2}}\n"))
