"""Every alert is explained, and the READMEs' tables are those that the code gives.

``python -m tests.repository.test_alerts`` writes the tables anew.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from resolver_agent.control import explain
from resolver_agent.control.explanations import ALERTS, OTHERS
from resolver_agent.routing.state import AlertCode

TOP = Path(__file__).parents[2]
TABLES = {"README.md": explain.codes_table, "systemd/README.md": explain.symptoms_table}
REMEDIES = [*(remedy for alert in ALERTS for remedy in alert.remedies), *OTHERS]


def found(text: str, table: str) -> str:
    """Return the table of a README that has the same head."""
    head = table.partition("\n")[0]
    match = re.search(rf"^{re.escape(head)}\n(?:\|.*\n)*", text, re.MULTILINE)
    assert match is not None, head
    return match[0]


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str) -> None:
    """Whoever adds a code or a symptom writes the tables anew, as the module says."""
    table = TABLES[name]()
    assert found((TOP / name).read_text(encoding="utf-8"), table) == table


def test_every_code_is_explained() -> None:
    """There is one explanation for each code, in their order, with at least one symptom."""
    assert [alert.code for alert in ALERTS] == list(AlertCode)
    assert all(alert.remedies for alert in ALERTS)


def test_no_symptom_comes_twice() -> None:
    """Each symptom has one place, and a cell of a table has no bar and no line break."""
    symptoms = [remedy.symptom for remedy in REMEDIES]
    assert len(set(symptoms)) == len(symptoms)
    cells = [cell for one in REMEDIES for cell in (one.symptom, one.look, one.fix)]
    assert [cell for cell in cells if not cell or "|" in cell or "\n" in cell] == []


def test_phrases() -> None:
    """Whoever looks up a message finds it in the words that the agent uses."""
    explaining = {"explain.py", "explanations.py"}
    sources = [path for path in (TOP / "resolver_agent").rglob("*.py") if path.name not in explaining]
    source = "".join(path.read_text(encoding="utf-8") for path in sources)
    said = [phrase for remedy in REMEDIES for phrase in explain.phrases(remedy.symptom)]
    assert len(said) > len(ALERTS)
    assert [phrase for phrase in said if any(part not in source for part in phrase.split("…"))] == []


def warnings() -> list[str]:
    """Return what the log says as a warning or an error, with "x" for what varies, but for texts from elsewhere."""
    said = []
    for path in (TOP / "resolver_agent").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        for call in calls:
            if re.fullmatch(r"_log\.(log|warning|error|critical|exception)", ast.unparse(call.func)):
                texts = (part.value for part in call.args if isinstance(part, ast.Constant))
                said += [re.sub(r"%[.\d]*[a-z]", "x", text) for text in texts if isinstance(text, str)]
    return [text for text in said if len(text.split()) > len(re.findall(r"\bx\b", text)) + 1]


@pytest.mark.parametrize("line", warnings())
def test_warnings(line: str) -> None:
    """Whoever meets a warning or an error in the log is told what to do about it."""
    assert explain.explain(line)


def test_which_warnings() -> None:
    """Lines are found where they are."""
    assert len(warnings()) > 15
    assert "x: there is no waiting room: x" in warnings()


if __name__ == "__main__":
    for file, make in TABLES.items():
        path = TOP / file
        written = path.read_text(encoding="utf-8")
        path.write_text(written.replace(found(written, make()), make()), encoding="utf-8")
