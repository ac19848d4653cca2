"""Completions for bash, zsh and fish, made from the parser: values in, scripts out.

What a value may be follows from the parser: one of a few words, or what its name in the help (``FILE``) stands for.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from resolver_agent.usage.parser import Parser

_FILES = {"FILE", "PATH"}
_NAMES = {"NAME"}
_NAMES_OF_BLOCK = (
    r"sed -n '/^# BEGIN resolver-agent/,/^# END resolver-agent/"
    r"s/^[0-9a-fA-F.:]\{1,\}[[:blank:]]\{1,\}\([A-Za-z0-9.-]\{1,\}\).*/\1/p' "
)
"""Prints the names in the agent's block of a hosts file; nothing in them is special to a shell."""

_BASH = """\
# bash completion for {prog}
_{function}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} command='' options='' words='' i
    COMPREPLY=()
    if [[ $word == '=' ]]; then # bash splits --option=value
        word=''
    elif [[ $before == '=' ]]; then
        before=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
{valued}        -* | =) ;;
        *)
            command=${{COMP_WORDS[i]}}
            break
            ;;
        esac
    done
    case "$command $before" in
{values}    esac
    case $command in
{words}    esac
    if [[ $word == -* || -z $words ]]; then
        words=$options
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -F _{function} {prog}
"""
_BASH_VALUE = """\
    {patterns})
        {compgen}
        return
        ;;
"""

_ZSH = """\
#compdef {prog}
_{function}_names() {{
    local -a names=(${{(f)"$({names})"}})
    compadd "$@" -a names
}}
_{function}() {{
    local curcontext="$curcontext" state line
    typeset -A opt_args
    local -a commands=(
{commands}    )
    _arguments -C \\
{options}        '1: :->command' '*:: :->rest' && return
    case $state in
    command) _describe -t commands command commands ;;
    rest)
        case $words[1] in
{rest}        esac
        ;;
    esac
}}
_{function} "$@"
"""
_ZSH_COMMAND = """\
        {name})
            _arguments \\
{specs}                && return
            ;;
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """The completions of a program.

    ``words`` are the values that a name in the help stands for, e.g. ``CODE``, where the parser does not list them.
    ``hosts_file`` has the block with the agent's names.
    """

    parser: Parser
    words: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    hosts_file: str = "/etc/hosts"

    @property
    def _prog(self) -> str:
        return self.parser.prog

    @property
    def _function(self) -> str:
        return re.sub(r"\W", "_", self._prog)

    @property
    def _names(self) -> str:
        """The command that prints the names of the agent."""
        return f"{_NAMES_OF_BLOCK}{_quoted(self.hosts_file)} 2>/dev/null"

    def _choices(self, action: argparse.Action) -> list[str]:
        return [str(one) for one in action.choices or self.words.get(str(action.metavar), ())]

    def bash(self) -> str:
        """Return the completions for bash."""
        values: dict[str, list[str]] = {}
        words = []
        for name, command in {"": self.parser, **self.parser.commands}.items():
            for option in filter(_takes_value, command.options):
                patterns = [_quoted(f"{name} {one}") for one in option.option_strings]
                values.setdefault(self._compgen(option), []).extend(patterns)
            options = [one for option in command.options for one in option.option_strings]
            others = [self._bash_words(one) for one in command.arguments] if name else [_joined(self.parser.commands)]
            joined = "' '".join(others)  # a blank in quotes between words in quotes
            words.append(f"    {_quoted(name)}) options={_joined(options)} words={joined or _quoted('')} ;;\n")
        valued = [one for option in filter(_takes_value, self.parser.options) for one in option.option_strings]
        return _BASH.format(
            prog=self._prog,
            function=self._function,
            valued=f"        {' | '.join(valued)}) ((++i)) ;;\n" if valued else "",
            values="".join(_BASH_VALUE.format(patterns=" | ".join(one), compgen=how) for how, one in values.items()),
            words="".join(words),
        )

    def _bash_words(self, action: argparse.Action) -> str:
        """Return the words for an argument, quoted for bash."""
        return f'"$({self._names} || :)"' if _is_name(action) else _joined(self._choices(action))

    def _compgen(self, option: argparse.Action) -> str:
        """Return the commands that complete the value of an option."""
        if _is_file(option):
            return 'compopt -o filenames 2>/dev/null || :\n        mapfile -t COMPREPLY < <(compgen -f -- "$word")'
        return f'mapfile -t COMPREPLY < <(compgen -W {self._bash_words(option)} -- "$word")'

    def zsh(self) -> str:
        """Return the completions for zsh."""
        commands = self.parser.commands.items()
        return _ZSH.format(
            prog=self._prog,
            function=self._function,
            names=self._names,
            commands="".join(f"        {_quoted(f'{name}:{one.description or str()}')}\n" for name, one in commands),
            options=self._zsh_specs(self.parser, indent=8),
            rest="".join(
                _ZSH_COMMAND.format(name=name, specs=self._zsh_specs(one, indent=16)) for name, one in commands
            ),
        )

    def _zsh_specs(self, parser: Parser, *, indent: int) -> str:
        """Return what a command takes as words for ``_arguments``, one a line."""
        return "".join(f"{' ' * indent}{_quoted(spec)} \\\n" for spec in self._specs(parser))

    def _specs(self, parser: Parser) -> Iterator[str]:
        for option in parser.options:
            text, value = _escaped(parser.text_of(option)), self._zsh_value(option) if _takes_value(option) else ""
            for name in option.option_strings:
                sign = "=" if value and name.startswith("--") else ""
                yield f"({' '.join(option.option_strings)}){name}{sign}[{text}]{value}"
        for action in parser.arguments:
            yield f"{'*' if action.nargs in ('*', '+') else ''}{self._zsh_value(action)}"

    def _zsh_value(self, action: argparse.Action) -> str:
        """Return what a value is called, and how it is completed."""
        if _is_file(action):
            how = "_files"
        elif _is_name(action):
            how = f"_{self._function}_names"
        else:
            how = f"({' '.join(map(_escaped, self._choices(action)))})" if self._choices(action) else " "
        return f":{_escaped(str(action.metavar or action.dest))}:{how}"

    def fish(self) -> str:
        """Return the completions for fish."""
        lines = [
            f"# fish completion for {self._prog}",
            f"function __{self._function}_names; {self._names}; end",
            f"complete -c {self._prog} -f",
            *(self._fish("__fish_use_subcommand", option) for option in self.parser.options),
        ]
        for name, command in self.parser.commands.items():
            about = _fish_quoted(command.description or "")
            lines.append(f"complete -c {self._prog} -n __fish_use_subcommand -a {name} -d {about}")
            seen = f"__fish_seen_subcommand_from {name}"
            lines += [self._fish(seen, action) for action in (*command.options, *command.arguments)]
        return "\n".join([*lines, ""])

    def _fish(self, when: str, action: argparse.Action) -> str:
        """Return the line for an option or argument."""
        names = [f"-l {one[2:]}" if one.startswith("--") else f"-s {one[1:]}" for one in action.option_strings]
        if _is_file(action):
            value = ["-r -F"] if names else ["-F"]
        elif _takes_value(action):
            words = f"(__{self._function}_names)" if _is_name(action) else " ".join(self._choices(action))
            value = [*(["-x"] if names else []), f"-a {_fish_quoted(words)}"]
        else:
            value = []
        text = f"-d {_fish_quoted(self.parser.text_of(action))}"
        return " ".join([f"complete -c {self._prog} -n {_fish_quoted(when)}", *names, *value, text])


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def _is_file(action: argparse.Action) -> bool:
    return action.choices is None and action.metavar in _FILES


def _is_name(action: argparse.Action) -> bool:
    return action.choices is None and action.metavar in _NAMES


def _quoted(text: str) -> str:
    return "'" + text.replace("'", r"'\''") + "'"


def _joined(words: Iterable[str]) -> str:
    return _quoted(" ".join(words))


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"


def _escaped(text: str) -> str:
    """Escape what ``_arguments`` of zsh would interpret."""
    return re.sub(r"([\\\[\]:()])", r"\\\1", text)
