"""The man pages, made from the parser and from the README: values in, roff out."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from resolver_agent.usage.roff import body, bold, heading, introduction, italic, item, literal, sections

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resolver_agent.usage.parser import Parser


def program(parser: Parser, *, version: str, date: str, readme: str, node_readme: str) -> str:
    """Return the page of the program, section 8.

    ``readme`` begins with what the program does; ``node_readme`` is ``systemd/README.md``, which lists the files.

    Raises:
        ValueError: that has no list of files.
    """
    what = (parser.description or "").rstrip(".")
    lines = [
        _title(parser.prog, 8, version, date),
        *(heading("NAME"), rf"{literal(parser.prog)} \- {literal(what[:1].lower() + what[1:])}"),
        *(heading("SYNOPSIS"), *_synopses(parser)),
        *(heading("DESCRIPTION"), *body(introduction(readme))),
        *(".PP", f"Every command also has the option {bold('--help')}."),
        *(heading("OPTIONS"), *_entries(parser)),
        heading("COMMANDS"),
    ]
    for name, command in parser.commands.items():
        lines += [heading(name, level=2), _synopsis(command), ".PP", literal(_sentence(command))]
        lines += _entries(command, without="--help")
    lines.append(heading("EXIT STATUS"))
    for name, command in parser.commands.items():
        meanings = [f"{bold(str(code))} {literal(meaning)}" for code, meaning in command.exits.items()]
        lines += item(bold(name), "; ".join(meanings))
    lines += [".PP", "Unless said otherwise, a wrong command line exits with 2, and Ctrl\\-C with 130."]
    [files] = sections(node_readme, "Files")
    lines += [heading("FILES"), *body(files)]
    lines += [heading("SEE ALSO"), *_references(f"{parser.prog}.yml(5)", "hosts(5)", "psql(1)", "systemctl(1)")]
    return "\n".join([*lines, ""])


def configuration(name: str, *, version: str, date: str, readme: str) -> str:
    """Return the page of the configuration file of a program, section 5; ``readme`` describes the keys.

    Raises:
        ValueError: it has no such sections.
    """
    keys, fallback = sections(readme, "Configuration", "Choosing fallback")
    lines = [
        _title(f"{name}.yml", 5, version, date),
        *(heading("NAME"), rf"{literal(name)}.yml \- {literal(f'configuration of {name}')}"),
        *(heading("SYNOPSIS"), italic(f"/etc/{name}.yml")),
        *(heading("DESCRIPTION"), *body(keys)),
        *(heading("CHOOSING FALLBACK"), *body(fallback)),
        *(heading("SEE ALSO"), *_references(f"{name}(8)", "hosts(5)")),
    ]
    return "\n".join([*lines, ""])


def _title(name: str, number: int, version: str, date: str) -> str:
    title = f'.TH {literal(name.upper())} {number} {date} "{literal(f"resolver-agent {version}")}"'
    return f"{title}\n.nh\n.ad l"  # a word that is broken in two could not be typed


def _references(*pages: str) -> list[str]:
    names = [page.partition("(") for page in pages]
    return [f".BR {literal(name)} ({number}{',' if name != names[-1][0] else ''}" for name, _, number in names]


def _sentence(command: Parser) -> str:
    text = (command.description or "").rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _synopses(parser: Parser) -> Iterator[str]:
    yield f"{_synopsis(parser)} {italic('COMMAND')} ..."
    for command in parser.commands.values():
        yield from (".br", _synopsis(command))


def _synopsis(parser: Parser) -> str:
    """Return a command with all that it takes, in one line; that every command has ``--help`` is not repeated."""
    options = [
        f"[{_option(one, one.option_strings[:1])}]" for one in parser.options if "--help" not in one.option_strings
    ]
    return " ".join([bold(parser.prog), *options, *(_argument(one) for one in parser.arguments)])


def _option(action: argparse.Action, names: Sequence[str]) -> str:
    """Return some names of an option, with what stands for its value."""
    value = "" if action.nargs == 0 else f" {_value(action)}"
    return ", ".join(f"{bold(name)}{value}" for name in names)


def _value(action: argparse.Action) -> str:
    if action.metavar is None and action.choices is not None:
        return "|".join(bold(str(one)) for one in action.choices)
    return italic(str(action.metavar or action.dest.upper()))


def _argument(action: argparse.Action) -> str:
    value = _value(action)
    several = f"{value} ..." if action.nargs in (argparse.ZERO_OR_MORE, argparse.ONE_OR_MORE) else value
    return f"[{several}]" if action.nargs in (argparse.OPTIONAL, argparse.ZERO_OR_MORE) else several


def _entries(parser: Parser, *, without: str = "") -> Iterator[str]:
    """Yield what a command takes, each with its help, but for one option."""
    for one in parser.arguments:
        yield from item(_argument(one), literal(parser.text_of(one)))
    for one in (one for one in parser.options if without not in one.option_strings):
        yield from item(_option(one, one.option_strings), literal(parser.text_of(one)))
