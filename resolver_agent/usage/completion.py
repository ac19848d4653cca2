"""Completions for bash, zsh and fish, made from the parser: values in, scripts out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from resolver_agent.usage.parser import Parser

_FILES = {"FILE", "PATH"}
"""What stands for the name of a file, where a value is not one of a few words."""

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


def _function(parser: Parser) -> str:
    return re.sub(r"\W", "_", parser.prog)


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def _is_file(action: argparse.Action) -> bool:
    return action.choices is None and action.metavar in _FILES


def _choices(action: argparse.Action) -> list[str]:
    return [str(one) for one in action.choices or ()]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", r"'\''") + "'"


def bash(parser: Parser) -> str:
    """Return the completions for bash."""
    values: dict[str, list[str]] = {}
    words = []
    for name, command in {"": parser, **parser.commands}.items():
        for option in filter(_takes_value, command.options):
            values.setdefault(_compgen(option), []).extend(_quoted(f"{name} {one}") for one in option.option_strings)
        options = " ".join(one for option in command.options for one in option.option_strings)
        others = [one for action in command.arguments for one in _choices(action)] if name else parser.commands
        words.append(f"    {_quoted(name)}) options={_quoted(options)} words={_quoted(' '.join(others))} ;;\n")
    valued = [one for option in filter(_takes_value, parser.options) for one in option.option_strings]
    return _BASH.format(
        prog=parser.prog,
        function=_function(parser),
        valued=f"        {' | '.join(valued)}) ((++i)) ;;\n" if valued else "",
        values="".join(_BASH_VALUE.format(patterns=" | ".join(one), compgen=how) for how, one in values.items()),
        words="".join(words),
    )


def _compgen(option: argparse.Action) -> str:
    """Return the commands that complete the value of an option."""
    if _is_file(option):
        return 'compopt -o filenames 2>/dev/null || :\n        mapfile -t COMPREPLY < <(compgen -f -- "$word")'
    return f'mapfile -t COMPREPLY < <(compgen -W {_quoted(" ".join(_choices(option)))} -- "$word")'


def zsh(parser: Parser) -> str:
    """Return the completions for zsh."""
    commands = "".join(
        f"        {_quoted(name.replace(':', chr(92) + ':') + ':' + (one.description or ''))}\n"
        for name, one in parser.commands.items()
    )
    rest = "".join(
        _ZSH_COMMAND.format(name=name, specs=_zsh_specs(one, indent=16)) for name, one in parser.commands.items()
    )
    return _ZSH.format(
        prog=parser.prog,
        function=_function(parser),
        commands=commands,
        options=_zsh_specs(parser, indent=8),
        rest=rest,
    )


def _zsh_specs(parser: Parser, *, indent: int) -> str:
    """Return the options and arguments of a command as words for ``_arguments``, one a line."""
    return "".join(f"{' ' * indent}{spec} \\\n" for spec in _specs(parser))


def _specs(parser: Parser) -> Iterator[str]:
    for option in parser.options:
        text, value = _escaped(parser.text_of(option)), _zsh_value(option) if _takes_value(option) else ""
        alone = f"({' '.join(option.option_strings)})"
        for name in option.option_strings:
            yield _quoted(f"{alone}{name}{'=' if value and name.startswith('--') else ''}[{text}]{value}")
    for action in parser.arguments:
        yield _quoted(f"{'*' if action.nargs in ('*', '+') else ''}{_zsh_value(action)}")


def _zsh_value(action: argparse.Action) -> str:
    """Return what a value is called, and how it is completed."""
    words = f"({' '.join(map(_escaped, _choices(action)))})" if action.choices else " "
    return f":{_escaped(str(action.metavar or action.dest))}:{'_files' if _is_file(action) else words}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\\[\]:()])", r"\\\1", text)


def fish(parser: Parser) -> str:
    """Return the completions for fish."""
    lines = [f"# fish completion for {parser.prog}", f"complete -c {parser.prog} -f"]
    lines += [_fish(parser, "__fish_use_subcommand", option) for option in parser.options]
    for name, command in parser.commands.items():
        lines.append(
            f"complete -c {parser.prog} -n __fish_use_subcommand -a {name} -d {_fish_quoted(command.description or '')}"
        )
        seen = f"__fish_seen_subcommand_from {name}"
        lines += [_fish(parser, seen, action) for action in (*command.options, *command.arguments)]
    return "\n".join([*lines, ""])


def _fish(parser: Parser, when: str, action: argparse.Action) -> str:
    """Return the line for an option or argument."""
    names = [f"-l {one[2:]}" if one.startswith("--") else f"-s {one[1:]}" for one in action.option_strings]
    words = f"-a {_fish_quoted(' '.join(_choices(action)))}"
    if _is_file(action):
        value = ["-r -F"] if names else ["-F"]
    elif _takes_value(action):
        value = ["-x", words] if names else [words]
    else:
        value = []
    text = f"-d {_fish_quoted(parser.text_of(action))}"
    return " ".join([f"complete -c {parser.prog} -n {_fish_quoted(when)}", *names, *value, text])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"
