"""Alerts as values: their keys and severities."""

from __future__ import annotations

import pytest

from resolver_agent.routing.state import Alert, AlertCode, Severity


@pytest.mark.parametrize(
    ("code", "severity"),
    [
        pytest.param(AlertCode.QUEUED, Severity.INFO, id="planned work"),
        pytest.param(AlertCode.NOTE, Severity.INFO, id="a bind-mounted file"),
        pytest.param(AlertCode.HELD, Severity.WARNING, id="held"),
        pytest.param(AlertCode.FALLBACK, Severity.WARNING, id="on the fallback"),
        pytest.param(AlertCode.FENCED, Severity.CRITICAL, id="clients fail"),
        pytest.param(AlertCode.FILE, Severity.CRITICAL, id="no name can move"),
    ],
)
def test_an_alert_has_the_severity_of_its_code(code: AlertCode, severity: Severity) -> None:
    """What is as planned is info, what clients notice is critical."""
    assert Alert(code, "why").severity is severity


def test_a_code_is_one_word_for_programs() -> None:
    """The value of a code is a word without the colon that separates the parts of a key, and leads back to the code."""
    for code in AlertCode:
        assert AlertCode(code.value) is code
        assert code.value.replace("_", "").isalpha()
        assert Alert(code, "why", of=("10.0.0.1:5432",)).key == f"10.0.0.1:5432:{code.value}"
