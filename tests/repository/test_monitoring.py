"""The alert rules and the board: they ask for metrics that there are, and the rules fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.unit.metrics.builders import everything

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[2] / "systemd" / "monitoring"
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
NAMES = [rule["alert"] for rule in RULES]
TESTS = yaml.safe_load((FOLDER / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
BOARD = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]] + [
    one["expr"] for one in BOARD["annotations"]["list"]
]
METRICS = everything()

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool")


def promtool(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    return subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("query", [*(rule["expr"] for rule in RULES), *QUERIES])
def test_what_is_asked_for_is_there(query: str) -> None:
    """Each metric is one that the agent has, with each of the labels and values that are asked for."""
    asked = re.findall(r"(\w+)\{([^}]*)\}|(resolver_agent_\w+)", query)
    assert asked
    for with_labels, conditions, alone in asked:
        name = (with_labels or alone).removeprefix("resolver_agent_")
        if name == "up":  # Prometheus' own
            continue
        has = METRICS.labels(name)
        assert has, name
        for label, _, pattern in re.findall(r'(\w+)(!?=~?)"([^"]*)"', conditions):
            if label in ("job", "instance"):  # Prometheus' own
                continue
            values = {one[label] for one in has}
            if not pattern.startswith("$") and label not in ("wanted_role", "kind"):
                assert set(pattern.split("|")) <= values, (name, label)


def test_every_state_has_a_colour() -> None:
    """The board knows each state that a name or a server may have, and shows each as another value."""
    for metric in ("name_state", "node_state"):
        [panel] = [one for one in PANELS if one["type"] == "state-timeline" and metric in one["targets"][0]["expr"]]
        shown = dict(re.findall(r'state="(\w+)"\} == 1\) \* (\d+)', panel["targets"][0]["expr"]))
        assert shown.keys() == {one["state"] for one in METRICS.labels(metric)}
        [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
        assert sorted(shown.values()) == sorted(mapping["options"])


def test_every_rule_says_what_is_wrong() -> None:
    """Each rule has a severity and words, and the place that it is about."""
    assert len(set(NAMES)) == len(NAMES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert "{{ $labels." in rule["annotations"]["summary"]


def test_every_rule_is_seen_firing_and_silent() -> None:
    """The unit tests have each rule fire in one test, and not in one where all is well."""
    asked = [(one["alertname"], bool(one.get("exp_alerts"))) for test in TESTS for one in test["alert_rule_test"]]
    assert {name for name, fires in asked if fires} == {name for name, fires in asked if not fires} == set(NAMES)


@needs_promtool
def test_the_rules() -> None:
    """Prometheus takes the rules, and their unit tests pass."""
    ran = promtool("check", "rules", FOLDER / "alerts.yml")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ran = promtool("test", "rules", FOLDER / "alerts_test.yml")
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_promtool
@pytest.mark.parametrize("name", NAMES)
def test_without_a_rule_its_test_fails(name: str, tmp_path: Path) -> None:
    """No rule is there for nothing, and no test passes for nothing."""
    rules = [rule for rule in RULES if rule["alert"] != name]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "resolver-agent", "rules": rules}]}))
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    ran = promtool("test", "rules", tmp_path / "alerts_test.yml")
    assert ran.returncode != 0
    assert f"alertname: {name}," in ran.stdout + ran.stderr


@needs_promtool
def test_the_names_of_metrics() -> None:
    """Prometheus' own linter finds nothing."""
    ran = promtool("check", "metrics", stdin=METRICS.text)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@needs_promtool
def test_the_queries_of_the_board(tmp_path: Path) -> None:
    """Prometheus understands each of them."""
    queries = [query.replace("$__rate_interval", "5m") for query in QUERIES]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    ran = promtool("check", "rules", path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(queries)} rules found" in ran.stdout


def lost(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """Yield what is no longer there, or is another value."""
    if isinstance(before, dict) and isinstance(after, dict):
        yield from (f"{at}.{key}" for key in before.keys() - after.keys())
        for key in before.keys() & after.keys():
            yield from lost(before[key], after[key], f"{at}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{at}[{number}]")
    elif before != after:
        yield f"{at}: {after!r} in place of {before!r}"


def read_again(board: Any) -> Any:
    """Return what Grafana's own classes keep of a dashboard."""
    from grafana_foundation_sdk.cog import encoder, plugins  # noqa: PLC0415 -- it needs Python 3.11
    from grafana_foundation_sdk.models.dashboard import Dashboard  # noqa: PLC0415

    plugins.register_default_plugins()
    return json.loads(encoder.JSONEncoder().encode(Dashboard.from_json(board)))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Grafana's classes need Python 3.11")
def test_the_schema_of_the_board() -> None:
    """Grafana knows every key, here and in each kind of panel; a misspelt one would be lost."""
    assert list(lost(BOARD, read_again(BOARD))) == []
    broken = json.loads(json.dumps(BOARD))
    broken["panels"][1]["gridPoss"] = broken["panels"][1].pop("gridPos")
    assert list(lost(broken, read_again(broken))) == [".panels[1].gridPoss"]


def test_where_panels_are() -> None:
    """Each panel has a number and a place of its own, a title and a query, and asks the data source that is chosen."""
    places: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert cells.isdisjoint(places), panel["title"]
        places |= cells
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["targets"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
