"""Settings that every test runs with."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
"""How long an example takes says nothing on a machine that others use too."""
settings.load_profile("shared machine")
