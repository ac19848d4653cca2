"""A session on a local server that is none: it ends in time, and is one error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from resolver_agent.citus import session
from resolver_agent.config.load import parse
from tests.integration.support.hostile_postgres import PEERS, FakeServer, scram

if TYPE_CHECKING:
    from pathlib import Path

PORT = 25432
CONFIG = """
fallback: none
names: {{wk1: {{nodes: [127.0.94.1]}}}}
port: {port}
timeout: 500ms
local: {{host: {folder}, user: nobody, password: secret}}
"""
AT_START = [name for name in PEERS if name in ("silent", "trickle", "escapes") or name.startswith("start")]


@pytest.mark.parametrize("name", AT_START)
def test_a_hostile_local_server_is_one_error_in_time(name: str, tmp_path: Path) -> None:
    """Whatever answers at the socket, the call ends, with words in one line without control characters."""
    config = parse(CONFIG.format(port=PORT, folder=tmp_path), path="test", hostname="h")
    with FakeServer(tmp_path, PORT, PEERS[name].behaviour):
        begun = time.monotonic()
        with pytest.raises(psycopg.OperationalError) as raised, session.connect(config, limit_s=1):
            pytest.fail("there is a session")
        assert time.monotonic() - begun < 4
    words = session.words(raised.value)
    assert words.isprintable()
    assert len(words) < 500


def test_a_computation_without_end_is_begun_once(tmp_path: Path) -> None:
    """Libpq cannot be stopped while it computes, and other threads go on meanwhile; a second session says so."""
    config = parse(CONFIG.format(port=PORT, folder=tmp_path), path="test", hostname="h")
    with FakeServer(tmp_path, PORT, scram(20_000_000)):
        for words in ("no answer within 2 s", ".*has not finished the log-in.*"):
            begun = time.monotonic()
            with pytest.raises(psycopg.OperationalError, match=words), session.connect(config, limit_s=1):
                pytest.fail("there is a session")
            assert time.monotonic() - begun < 4
