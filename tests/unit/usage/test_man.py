"""The man pages have what the parser and the README have."""

from __future__ import annotations

import pytest

from resolver_agent.usage import man
from tests.unit.usage.builders import program

NODE = "## Files\n\n| file | |\n|---|---|\n| `/etc/x` | it |\n"
README = "# agent\n\n[中文](zh.md), [a lab](b.md#c)\n\nIt keeps `names`.\n\n    a diagram\n\n## Heading\n"


def lines(node_readme: str = NODE) -> list[str]:
    """Return the lines of the program's page."""
    page = man.program(program(), version="1.0", date="2026-01-02", readme=README, node_readme=node_readme)
    return page.splitlines()


def test_title() -> None:
    """The name, section and date, then what the program is for."""
    page = lines()
    assert page[0] == '.TH AGENT 8 2026-01-02 "resolver\\-agent 1.0"'
    assert page[page.index(".SH NAME") + 1] == r"agent \- keeps names, through /etc/hosts"


def test_synopsis() -> None:
    """A line for each command has what it takes, without what is secret and what all have."""
    page = lines()
    found = page[page.index(".SH SYNOPSIS") + 1 : page.index(".SH DESCRIPTION")]
    assert [one for one in found if one != ".br"] == [
        r"\fBagent\fR [\fB\-c\fR \fIFILE\fR] [\fB\-\-version\fR] \fICOMMAND\fR ...",
        r"\fBagent status\fR [\fB\-c\fR \fIFILE\fR] [\fB\-\-json\fR] [\fINAME\fR ...]",
        r"\fBagent pin\fR [\fB\-\-way\fR \fBfollow\fR|\fBprimary\fR] [\fB\-\-for\fR \fITIME\fR] \fINAME\fR",
        r"\fBagent un\-pin\fR \fBworker1\fR|\fBcn\fR",
    ]


def test_description() -> None:
    """It is how the README begins, up to its first diagram, without links to other pages."""
    page = lines()
    found = page[page.index(".SH DESCRIPTION") + 1 : page.index(".SH OPTIONS")]
    assert found == [r"It keeps \fBnames\fR.", ".PP", r"Every command also has the option \fB\-\-help\fR."]


def test_commands() -> None:
    """Each command is described with its arguments and options."""
    page = lines()
    found = page[page.index(".SS status") : page.index(".SS pin")]
    assert r"Show \(aqnames\(aq." in found
    assert found[-9:] == [
        *(".TP", r"[\fINAME\fR ...]", r"\&.hidden"),
        *(".TP", r"\fB\-c\fR \fIFILE\fR, \fB\-\-config\fR \fIFILE\fR", "a file (agent status)"),
        *(".TP", r"\fB\-\-json\fR", r"100% JSON [a:b] \en\[u2026]"),
    ]
    assert "old" not in "\n".join(page)


def test_exit_codes() -> None:
    """They are in one place, by command."""
    page = lines()
    found = page[page.index(".SH EXIT STATUS") : page.index(".SH FILES")]
    assert found[1:4] == [".TP", r"\fBstatus\fR", r"\fB0\fR fit; \fB1\fR alerts, or worse"]


def test_files() -> None:
    """The files are those of the README; without them there is no page."""
    page = lines()
    assert page[page.index(".SH FILES") + 1 : page.index(".SH SEE ALSO")] == [".TP", r"\fB/etc/x\fR", "it"]
    with pytest.raises(ValueError, match="no heading 'Files'"):
        lines("# nothing\n")


def test_configuration() -> None:
    """The page of the configuration has the keys and how to choose fallback."""
    readme = (
        "## Configuration\n\n| key | meaning |\n|---|---|\n| `a` | b |\n\n## Choosing fallback\n\nSo.\n\n## X\n\ny\n"
    )
    page = man.configuration("agent", version="1.0", date="2026-01-02", readme=readme)
    assert page.splitlines() == [
        *('.TH AGENT.YML 5 2026-01-02 "resolver\\-agent 1.0"', ".nh", ".ad l"),
        *(".SH NAME", r"agent.yml \- configuration of agent"),
        *(".SH SYNOPSIS", r"\fI/etc/agent.yml\fR"),
        *(".SH DESCRIPTION", ".TP", r"\fBa\fR", "b"),
        *(".SH CHOOSING FALLBACK", "So."),
        *(".SH SEE ALSO", ".BR agent (8),", ".BR hosts (5)"),
    ]
