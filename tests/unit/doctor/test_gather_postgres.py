"""What doctor says of errors of the local PostgreSQL."""

from __future__ import annotations

import psycopg
import pytest

from resolver_agent.doctor import gather_postgres


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.errors.InsufficientPrivilege("permission denied"), "permission denied (SQLSTATE 42501)"),
        (
            psycopg.OperationalError('connection to server at "10.0.0.1", port 5432 failed: Connection refused'),
            "Connection refused",
        ),
    ],
)
def test_words(error: psycopg.Error, expected: str) -> None:
    """An error of the server has its SQLSTATE; a connection that failed has none."""
    assert gather_postgres._words(error) == expected
