"""What ``explain`` finds: by a code, a key, words of a message, or a whole line of the log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from resolver_agent import cli
from resolver_agent.config.model import Fallback
from resolver_agent.control.explain import UnknownSymptomError, explain
from resolver_agent.control.explanations import ALERTS, OTHERS
from resolver_agent.routing.state import AlertCode
from tests.unit.builders import Agent, config, dead, group, primary, rejecting, standby

if TYPE_CHECKING:
    from resolver_agent.routing.state import Alert

A, B = "10.0.0.1", "10.0.0.2"


def sections(about: str) -> list[str]:
    """Return the first line of each part of an explanation."""
    return [part.partition("\n")[0] for part in explain(about).split("\n\n")]


HELD = ["held: severity warning, about a name", "symptom: `held`"]
ALTERED = ["file: severity critical, about the hosts file", "symptom: `is an altered marker`"]


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        pytest.param("scopes", ["scopes: severity warning, about a name"], id="a code"),
        pytest.param("NOT_SERVING", ["not_serving: severity warning, about a node"], id="in capitals"),
        pytest.param("wk1:held", HELD, id="a key"),
        pytest.param("10.0.0.1:5432:rejecting", ["rejecting: severity warning, about a node"], id="a node's key"),
        pytest.param("altered", ALTERED, id="a part of a symptom"),
        pytest.param("Altered   MARKER", ALTERED, id="in other letters and spaces"),
        pytest.param("/etc/hosts: line 3: «# Begin» is an altered marker: write …", ALTERED, id="a message"),
        pytest.param("container", ["symptom: a container resolves old addresses"], id="no alert at all"),
    ],
)
def test_what_is_found(about: str, expected: list[str]) -> None:
    """The alert comes first, then its symptoms; what is no alert stands alone."""
    assert sections(about)[: len(expected)] == expected


def test_a_code_brings_all_its_symptoms() -> None:
    """A message brings only the symptom that it is."""
    assert len(sections("file")) > len(sections("file: cannot be written: No space left on device")) == 2


def test_the_longer_phrase_counts() -> None:
    """Patroni that cannot be asked is not mistaken for a server that cannot be asked."""
    text = "Patroni at 10.0.0.3 cannot be asked: timed out"
    assert sections(text) == [
        "patroni: severity warning, about a node or a name",
        "symptom: `Patroni at … cannot be asked`",
    ]


def test_a_line_of_json() -> None:
    """The code in the message counts, not words that are also in it."""
    text = "alert: the configuration stays as it was: a.yml: fallback: missing [config]"
    line = json.dumps({"level": "warning", "message": text, "code": "config", "key": "a.yml: fallback: missing:config"})
    assert sections(line)[0] == "config: severity warning, about the configuration"


def alerts() -> list[Alert]:
    """Return alerts as the agent gives them."""
    made: list[Alert] = []
    for nodes, local, fallback in [
        ({A: dead(), B: standby()}, primary(), Fallback.NONE),  # held
        ({A: primary(), B: dead()}, standby(), Fallback.NONE),  # fenced
        ({A: primary(), B: dead()}, standby(), Fallback.PRIMARY),  # fallback
        ({A: primary(), B: primary()}, primary(), Fallback.NONE),  # several primaries
        ({A: rejecting()}, rejecting(), Fallback.NONE),
    ]:
        agent = Agent(config(group("wk1", A, B), fallback=fallback)).see({A: primary(), B: standby()})
        agent.see_local(local).decide().wait(1)
        for node, seen in nodes.items():
            agent.see({node: seen})
        agent.see_local(local).decide()
        made += agent.decision.alerts
    return made


def test_alerts_are_found_by_key_and_by_line() -> None:
    """Whatever an operator has at hand, a key of the JSON or a line of the log, leads to the alert."""
    found = alerts()
    assert {AlertCode.HELD, AlertCode.FENCED, AlertCode.FALLBACK, AlertCode.PRIMARIES, AlertCode.REJECTING} <= {
        alert.code for alert in found
    }
    for alert in found:
        heads = [f"{alert.code.value}: severity {alert.severity.value}, about"]
        for about in (alert.key, f"CRITICAL alert: {alert.text} [{alert.code.value}]"):
            assert [part.rpartition(" a ")[0] or part.rpartition(" the ")[0] for part in sections(about)][:1] == heads


@pytest.mark.parametrize(
    ("about", "suggested"),
    [
        pytest.param("hled", "did you mean `held`?", id="a code"),
        pytest.param("wk1:fencd", "did you mean `fenced`?", id="in a key"),
        pytest.param("unreachabel", "did you mean `unreachable`?", id="a word of a symptom"),
        pytest.param("qwertz", "`resolver-agent explain` lists all", id="nothing near"),
    ],
)
def test_what_is_not_found(about: str, suggested: str) -> None:
    """A misspelt word brings the one that it is near to."""
    with pytest.raises(UnknownSymptomError, match=suggested):
        explain(about)


def test_the_overview_has_everything() -> None:
    """Without a word, every code and every other symptom is listed."""
    lines = explain("").splitlines()
    assert {alert.code.value for alert in ALERTS} <= {line.partition(" ")[0] for line in lines}
    listed = " ".join(explain("").split())
    assert [remedy.symptom for remedy in OTHERS if remedy.symptom not in listed] == []
    assert max(map(len, lines)) <= 100


def test_explain_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Words need no quotes; what is not known is trouble."""
    assert cli.main(["explain", "lookups", "return", "both", "addresses"]) == 0
    assert capsys.readouterr().out.startswith("conflict: severity critical, ")
    assert cli.main(["explain", "a", "promotion", "was", "announced", "(pre-promote)"]) == 2
    assert cli.main(["explain", "pre-promote", "before-stop"]) == 2, "it ran a hook"
    assert cli.main(["explain", "hled"]) == 2
    assert "did you mean `held`?" in capsys.readouterr().err
