"""A small valid configuration, and text that several errors share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.load import ConfigError
from resolver_agent.config.load import parse as parse_config

if TYPE_CHECKING:
    from resolver_agent.config.model import Config

NAMES = "names: {wk1: {nodes: [10.0.0.1, 10.0.0.2]}}\n"
MINIMAL = "fallback: none\n" + NAMES

HOST_NAME = "is not a host name, expected letters, digits and inner hyphens in labels separated by dots"
DURATION = "a duration such as 500ms, 10s, 2m or 1h"
DURATION_UNIT = f"found, expected a number with its unit (ms, s, m, min, h): {DURATION}"
SIZE = "a size such as 16kB, 64MB or 1GB"
SIZE_UNIT = f"found, expected a number with its unit (B, kB, MB, GB, TB): {SIZE}"
FALLBACK = (
    "fallback: missing, there is no default, expected none (reads through a name stop while it has no fit standby), "
    "primary (that name then resolves to its primary: only where readers on standbys use a database role of their own) "
    "or all (as primary, with every name at once)"
)
SAFELY = {"require_auth": "scram-sha-256,gss,none"}
SOME_NAMES = "expected the names in pg_dist_node, e.g. wk1: {nodes: [192.168.234.203, 192.168.234.204]}"


def parse(text: str | bytes, *, hostname: str = "db7") -> Config:
    """Read a configuration as the host db7 would."""
    return parse_config(text, path="agent.yml", hostname=hostname)


def errors(text: str | bytes, *, hostname: str = "db7") -> list[str]:
    """Return the errors of a bad configuration, without the file name in front of each."""
    with pytest.raises(ConfigError) as caught:
        parse(text, hostname=hostname)
    assert all(error.startswith("agent.yml: ") for error in caught.value.errors)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return [error.removeprefix("agent.yml: ") for error in caught.value.errors]


def names(text: str) -> str:
    """Return a configuration with these names."""
    return "fallback: none\nnames: {" + text + "}\n"


def nodes(text: str) -> str:
    """Return a configuration with these nodes behind one name."""
    return names("wk1: {nodes: [" + text + "]}")
