"""Text and Markdown for man pages: nothing is taken for a macro, and nothing is lost."""

from __future__ import annotations

import pytest

from resolver_agent.usage.roff import body, heading, literal, prose, sections


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--dry-run", r"\-\-dry\-run"),
        (".TH is no macro here", r"\&.TH is no macro here"),
        ("'quoted'", r"\(aqquoted\(aq"),
        (r"C:\n", r"C:\en"),
        ('say "so" `now`', r"say \(dqso\(dq \(ganow\(ga"),
        ("→ …", r"\[u2192] \[u2026]"),
        ("", ""),
    ],
)
def test_literal(text: str, expected: str) -> None:
    """What roff would interpret is escaped."""
    assert literal(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a `b-c` and\n  **d**", r"a \fBb\-c\fR and \fBd\fR"),
        ("see [the `queue`](#the-queue) there", r"see the \fBqueue\fR there"),
        ("`.a`.", r"\fB.a\fR."),
        (".a", r"\&.a"),
        ("`a` * b", r"\fBa\fR * b"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("names move *before* it", r"names move \fIbefore\fR it"),
    ],
)
def test_prose(text: str, expected: str) -> None:
    """Bold and code are bold, and of a link the text is kept."""
    assert prose(text) == expected


DOCUMENT = """\
# Title

## First

Text that
goes on.

```yaml
a: 1

.b: 2
```

- one
- two
  more

## Second

| key | type | default | meaning |
|---|---|---|---|
| `a` * | size | `1` | what it is |

| choice | then | safe when |
|---|---|---|
| `none` | stops | always |

| file | |
|---|---|
| `/x` | it |
"""


def test_sections() -> None:
    """What stands under a heading ends at the next one; one that is missing is an error, and no empty page."""
    first, second = sections(DOCUMENT, "First", "Second")
    assert first.startswith("\nText")
    assert "## " not in first
    assert second.endswith("| it |\n")
    with pytest.raises(ValueError, match="no heading 'Third'"):
        sections(DOCUMENT, "First", "Third")


def test_body() -> None:
    """Paragraphs, samples and lists keep their order; a sample keeps its lines."""
    [first] = sections(DOCUMENT, "First")
    sample = [".PP", ".RS 4", ".nf", "a: 1", "", r"\&.b: 2", ".fi", ".RE"]
    assert body(first) == ["Text that goes on.", *sample, r".IP \(bu 2", "one", r".IP \(bu 2", "two more"]


def test_tables() -> None:
    """A row is an entry: its first cell the tag, the short cells in one line, then the text."""
    [second] = sections(DOCUMENT, "Second")
    assert body(second) == [
        *(".TP", r"\fBa\fR *", r"type: size; default: \fB1\fR", ".IP", "what it is"),
        *(".TP", r"\fBnone\fR", "then: stops", ".IP", "safe when: always"),
        *(".TP", r"\fB/x\fR", "it"),
    ]


def test_headings() -> None:
    """Two levels."""
    assert (heading("A B"), heading("dry-run", level=2)) == (".SH A B", r".SS dry\-run")
