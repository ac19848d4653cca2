"""Finds what an alert or a symptom means and what to do about it, and shows it: as text, and as the READMEs' tables.

Standard library only: ``resolver-agent explain`` has to work where nothing else does.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from resolver_agent.control.explanations import ALERTS, OTHERS, Explanation, Remedy
from resolver_agent.system.suggestion import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

_WIDTH = 100
_LEAST_LETTERS = 3


class UnknownSymptomError(Exception):
    """Nothing is known about these words; the message suggests others."""


class _Match(NamedTuple):
    """A remedy, the alert that it is for, and the words by which it was found."""

    remedy: Remedy
    alert: Explanation | None
    words: str


def explain(about: str) -> str:
    """Return what is known about a code, an alert's key, a part of a symptom or a line of the log.

    If ``about`` is empty, return an overview.

    Raises:
        UnknownSymptomError: nothing is known about it.
    """
    asked = " ".join(about.split()).casefold()
    if not asked:
        return _overview()
    key = asked.rpartition(":")[2]
    codes = {key, *re.findall(r" \[(\w+)\]", asked)}  # a line of the log ends with it, or has it inside its JSON
    alert = next((one for one in ALERTS if one.code.value in codes), None)
    found = _find(asked)
    if alert is not None:
        said = [one for one in found if one.alert is alert and " " in asked]
        found = said or [_Match(remedy, alert, "") for remedy in alert.remedies]
    if found:
        return "\n\n".join(_sections(found))
    raise UnknownSymptomError(f"nothing is known about {about!r}: {_suggestion(key, asked)}")


def codes_table() -> str:
    """Return the table of the alerts, for the README."""
    rows = [(f"`{one.code.value}`", one.code.severity.value, one.about, one.meaning) for one in ALERTS]
    return _markdown(("code", "severity", "about", "what it means"), rows)


def symptoms_table() -> str:
    """Return the table of all symptoms, for the README."""
    rows = [
        (f"`{alert.code.value}`" if alert is not None else "", remedy.symptom, remedy.look, remedy.fix)
        for remedy, alert in _remedies()
    ]
    return _markdown(("alert", "symptom", "look", "fix"), rows)


def phrases(symptom: str) -> list[str]:
    """Return what the agent says in a symptom; "…" stands for what varies."""
    return re.findall("`([^`]+)`", symptom)


def _remedies() -> Iterable[tuple[Remedy, Explanation | None]]:
    yield from ((remedy, alert) for alert in ALERTS for remedy in alert.remedies)
    yield from ((remedy, None) for remedy in OTHERS)


def _find(asked: str) -> list[_Match]:
    """Return the remedies whose symptom has these words, and those whose phrases are in them, as in a line of the log.

    Where a phrase is a part of a longer one that was found, only the longer one counts.
    """
    found = []
    for remedy, alert in _remedies():
        said = [phrase.casefold() for phrase in phrases(remedy.symptom) if _is_said(phrase.casefold(), asked)]
        if len(asked) >= _LEAST_LETTERS and asked in remedy.symptom.replace("`", "").casefold():
            said.append(asked)
        if said:
            found.append(_Match(remedy, alert, max(said, key=len)))
    return [one for one in found if not any(one.words != other.words and one.words in other.words for other in found)]


def _is_said(phrase: str, text: str) -> bool:
    parts = ".*".join(re.escape(part) for part in phrase.split("…"))
    return re.search(rf"(?<!\w){parts}(?!\w)", text) is not None


def _suggestion(code: str, asked: str) -> str:
    words = {word for remedy, _ in _remedies() for word in re.findall(r"\w{6,}", remedy.symptom.casefold())}
    listed = "`resolver-agent explain` lists all codes and symptoms"
    return nearest(code, (one.code.value for one in ALERTS), otherwise=nearest(asked, sorted(words), otherwise=listed))


def _overview() -> str:
    width = max(len(one.code.value) for one in ALERTS) + 2
    alerts = [
        textwrap.fill(
            one.meaning,
            _WIDTH,
            initial_indent=f"{one.code.value:{width}}{one.code.severity.value:10}",
            subsequent_indent=" " * (width + 10),
        )
        for one in ALERTS
    ]
    return "\n".join(
        [
            "alerts (resolver-agent explain CODE):",
            *alerts,
            "",
            "other symptoms (resolver-agent explain WORDS):",
            *(textwrap.fill(remedy.symptom, _WIDTH, subsequent_indent="  ") for remedy in OTHERS),
        ]
    )


def _head(alert: Explanation) -> str:
    first = f"{alert.code.value}: severity {alert.code.severity.value}, about {alert.about}"
    return f"{first}\n{textwrap.fill(alert.meaning, _WIDTH)}"


def _remedy(remedy: Remedy) -> str:
    lines = {"symptom: ": remedy.symptom, "look:    ": remedy.look, "fix:     ": remedy.fix}
    return "\n".join(
        textwrap.fill(
            text, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines.items()
    )  # fmt: skip


def _sections(found: list[_Match]) -> Iterable[str]:
    """Yield what was found, each alert once above its remedies."""
    alert = None
    for one in found:
        if one.alert is not None and one.alert is not alert:
            yield _head(one.alert)
        alert = one.alert
        yield _remedy(one.remedy)


def _markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    lines.insert(1, f"|{'---|' * len(head)}")
    return "\n".join([*lines, ""])
