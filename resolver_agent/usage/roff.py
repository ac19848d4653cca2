"""Text for man pages, in the man(7) macros that groff and mandoc both know: text and Markdown in, roff out."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPAN = re.compile(
    r"\*\*(?P<bold>[^*]+)\*\*|`(?P<code>[^`]+)`|\[(?P<link>[^\]]+)\]\([^)]*\)|(?<!\S)\*(?P<stressed>[^\s*][^*]*)\*"
)
_SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
_FENCE = "```"


def literal(text: str) -> str:
    """Return text that is shown as it is: no sign in it is taken for a macro or made typographic."""
    return _no_macro(_escaped(text))


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(one, one) if one.isascii() else f"\\[u{ord(one):04X}]" for one in text)


def _no_macro(line: str) -> str:
    return rf"\&{line}" if line.startswith(".") else line


def bold(text: str) -> str:
    """Return text in bold."""
    return rf"\fB{_escaped(text)}\fR"


def italic(text: str) -> str:
    """Return text in italics: what stands for a value."""
    return rf"\fI{_escaped(text)}\fR"


def heading(title: str, *, level: int = 1) -> str:
    """Return a heading of the first or second level."""
    return f"{'.SH' if level == 1 else '.SS'} {literal(title)}"


def item(tag: str, *paragraphs: str) -> list[str]:
    """Return an entry of a list: its tag, and below it the paragraphs; all of them are roff already."""
    first, *others = paragraphs
    return [".TP", tag, first, *(part for text in others for part in (".IP", text))]


def prose(text: str) -> str:
    """Return text of Markdown in one line, with what is bold, code or stressed, and of links the text."""
    words, parts, end = " ".join(text.split()), [], 0
    for found in _SPAN.finditer(words):
        parts.append(_escaped(words[end : found.start()]))
        if found["link"]:
            parts.append(prose(found["link"]))
        else:
            parts.append(italic(found["stressed"]) if found["stressed"] else bold(found["bold"] or found["code"]))
        end = found.end()
    return _no_macro("".join([*parts, _escaped(words[end:])]))


def sections(markdown: str, *titles: str) -> list[str]:
    """Return what stands under some headings of a document.

    Raises:
        ValueError: there is no such heading.
    """
    found = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", markdown, re.MULTILINE | re.DOTALL))
    missing = [title for title in titles if title not in found]
    if missing:
        raise ValueError(f"no heading {missing[0]!r}")
    return [found[title] for title in titles]


def introduction(markdown: str) -> str:
    """Return what a document says between its title and the first heading or sample, but for a line of links alone."""
    text = re.sub(r"^(?:\[[^]]*\]\([^)]*\)(?:, )?)+$", "", markdown.partition("\n## ")[0], flags=re.MULTILINE)
    return re.split(rf"^(?:    |{_FENCE})", text, flags=re.MULTILINE)[0].partition("\n")[2]


def body(markdown: str) -> list[str]:
    """Return the lines of what stands under a heading: paragraphs, lists, tables and samples."""
    lines: list[str] = []
    for number, part in enumerate(re.split(rf"^{_FENCE}.*\n", markdown, flags=re.MULTILINE)):
        if number % 2:
            lines += [".PP", ".RS 4", ".nf", *map(literal, part.splitlines()), ".fi", ".RE"]
        else:
            for block in filter(None, re.split(r"\n\s*\n", part.strip("\n"))):
                lines += _block(block)
    return lines[1:] if lines[:1] == [".PP"] else lines


def _block(text: str) -> Iterator[str]:
    if text.startswith("|"):
        head, _, *rows = (_cells(row) for row in text.splitlines())
        for tag, *cells in rows:
            yield from _row(tag, dict(itertools.zip_longest(head[1:], cells, fillvalue="")))
    elif text.startswith("- "):
        for one in re.split(r"^- ", text, flags=re.MULTILINE)[1:]:
            yield from (r".IP \(bu 2", prose(one))
    else:
        yield from (".PP", prose(text))


def _row(tag: str, cells: dict[str, str]) -> list[str]:
    """Return a row of a table; its last cell is text, and the others are short."""
    *short, (title, text) = cells.items()
    about = "; ".join(f"{name}: {cell}" for name, cell in short)
    words = text if title in ("", "meaning") else f"{title}: {text}"
    return item(prose(tag), *(prose(one) for one in (about, words) if one))


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]
