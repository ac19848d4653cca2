"""The text format, as Prometheus' own parser reads it."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from resolver_agent.metrics.exposition import Family, render
from resolver_agent.system.histogram import Histogram


def test_help_type_and_labels() -> None:
    """A metric has its prefix, its meaning, its type, and a line for each value."""
    text = render([Family("alerts", "gauge", "Alerts now.", (({"code": "held"}, 2), ({"code": "file"}, 0.5)))])
    assert text == (
        "# HELP resolver_agent_alerts Alerts now.\n"
        "# TYPE resolver_agent_alerts gauge\n"
        'resolver_agent_alerts{code="held"} 2\n'
        'resolver_agent_alerts{code="file"} 0.5\n'
    )


@pytest.mark.parametrize("hostile", ['a"b', "a\\b", "a\nb", '\\"\n', 'x"} 1\nresolver_agent_up{a="', "é → \u202e"])
def test_whatever_a_label_says(hostile: str) -> None:
    """A label's value and a help text come back as they were, and make no line of their own."""
    text = render([Family("info", "gauge", hostile, (({"name": hostile}, 1),))])
    [family] = text_string_to_metric_families(text)
    assert [(one.labels, one.value) for one in family.samples] == [({"name": hostile}, 1.0)]
    assert text.count("\n") == 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "1"),
        (0, "0"),
        (-3.0, "-3"),
        (0.1, "0.1"),
        (1764323836.25, "1764323836.25"),
        (1e300, "1e+300"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    """Whole numbers have no point, and there is a word for each of the special ones."""
    text = render([Family("a", "gauge", "A.", (({}, value),))])
    assert text.splitlines()[-1] == f"resolver_agent_a {shown}"
    [family] = text_string_to_metric_families(text)
    assert family.samples[0].value == pytest.approx(float(value), nan_ok=True)


def test_a_histogram() -> None:
    """It has a line for each bound, one for all values, their sum and their number."""
    histogram = Histogram(0.25, 1)
    for value in (0.25, 0.5, 2.0):
        histogram.observe(value)
    text = render([Family("a_seconds", "histogram", "A.", (({"x": "y"}, histogram.snapshot()),))])
    assert text.splitlines()[2:] == [
        'resolver_agent_a_seconds_bucket{x="y",le="0.25"} 1',
        'resolver_agent_a_seconds_bucket{x="y",le="1"} 2',
        'resolver_agent_a_seconds_bucket{x="y",le="+Inf"} 3',
        'resolver_agent_a_seconds_sum{x="y"} 2.75',
        'resolver_agent_a_seconds_count{x="y"} 3',
    ]
    [family] = text_string_to_metric_families(text)
    assert family.type == "histogram"


def test_a_metric_without_a_value() -> None:
    """What nothing is known of has not even a name."""
    assert render([Family("a", "gauge", "A.", ())]) == ""
