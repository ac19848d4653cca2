"""The parser of the command line: it suggests what a misspelt word may mean, and says what each command takes.

Whatever describes the command line (help, man page, completions) asks the parser, so nothing is listed a second time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from resolver_agent.system.suggestion import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping


class Parser(argparse.ArgumentParser):
    """A parser for the program or for one of its commands.

    ``exits`` says what each exit code of the command means; ``misused`` is that of a wrong command line.
    """

    def __init__(self, *args: Any, exits: Mapping[int, str] | None = None, **settings: Any) -> None:
        self.exits = dict(exits or {})
        self.misused = 2
        self._words: list[str] = []
        if self.exits:
            settings["epilog"] = f"exit code: {exit_codes(self.exits)}"
        super().__init__(*args, **settings)

    @property
    def commands(self) -> dict[str, Parser]:
        """The parsers of the commands, by name, in the order of the help."""
        actions = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001 -- argparse has no public name for it
        return {name: parser for action in actions for name, parser in action.choices.items()}

    @property
    def options(self) -> list[argparse.Action]:
        """The options that the help shows."""
        return [one for one in self._actions if one.option_strings and one.help is not argparse.SUPPRESS]

    @property
    def arguments(self) -> list[argparse.Action]:
        """What the command takes besides options; a command itself is none."""
        return [one for one in self._actions if not one.option_strings and one.nargs != argparse.PARSER]

    def text_of(self, action: argparse.Action) -> str:
        """Return the help of an option or argument."""
        return (action.help or "") % {**vars(action), "prog": self.prog}

    def error(self, message: str) -> NoReturn:
        """Exit with an error in the command line."""
        self.print_usage(sys.stderr)
        self.exit(self.misused, f"{self.prog}: error: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, and refuse what is not known: here, as the error should name the options of the command."""
        self._words = [*(sys.argv[1:] if args is None else args)]
        found, others = super().parse_known_args(args, namespace)
        if others:
            self._refuse(others[0])
        return found, others

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if action.nargs != argparse.PARSER:
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}, {nearest(value, action.choices)}")
        before = itertools.takewhile(lambda word: word != value, self._words)
        odd = next((word for word in before if word.startswith("--") and not self._is_option(word)), None)
        if odd is not None:  # the word after it is its value, and no command
            self._refuse(odd)
        known = [*action.choices, *self._option_string_actions]
        near = nearest(value, known, otherwise=f"`{self.prog} --help` lists the commands")
        raise argparse.ArgumentError(None, f"unknown command: {value!r}, {near}")

    def _is_option(self, word: str) -> bool:
        return any(option.startswith(word.partition("=")[0]) for option in self._option_string_actions)

    def _refuse(self, word: str) -> NoReturn:
        """Exit with the error that a word is not known."""
        if not word.startswith("-"):
            self.error(f"unexpected argument: {word!r}")
        shown = [option for action in self.options for option in action.option_strings]
        self.error(f"unknown option: {word.partition('=')[0]!r}, {nearest(word.partition('=')[0], shown)}")


def exit_codes(exits: Mapping[int, str]) -> str:
    """Return in words what exit codes mean."""
    return "; ".join(f"{code} {meaning}" for code, meaning in exits.items())
