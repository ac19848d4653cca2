"""The completions in real shells: what Tab makes of a line."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from resolver_agent import cli
from resolver_agent.usage.completion import Completion

PARSER = cli.command_line()
CODES = ["held", "fenced", "file"]
BLOCK = """\
127.0.0.1 localhost
# BEGIN resolver-agent: do not edit
10.0.0.3 wk1 # primary; system 7
fd00::5\twk2
255.255.255.255 wk2-ro # fenced
10.0.0.9 $(touch${IFS}owned) # nobody writes this
# END resolver-agent
10.0.0.7 other
"""
LIMIT_S = 30


def needs(shell: str) -> pytest.MarkDecorator:
    """Skip a test where a shell is missing; ``tests/run`` installs it."""
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell}")


def completions(folder: Path) -> Completion:
    """Return the completions, with a hosts file in a folder."""
    (folder / "hosts").write_text(BLOCK)
    return Completion(PARSER, words={"CODE": CODES}, hosts_file=str(folder / "hosts"))


@pytest.fixture
def bash_script(tmp_path: Path) -> Path:
    """Return a file with the completions for bash."""
    script = tmp_path / "resolver-agent.bash"
    script.write_text(completions(tmp_path).bash())
    return script


@pytest.fixture
def fish_script(tmp_path: Path) -> Path:
    """Return a file with the completions for fish."""
    script = tmp_path / "resolver-agent.fish"
    script.write_text(completions(tmp_path).fish())
    return script


def bash(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last word of a line."""
    code = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _resolver_agent
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    ran = subprocess.run(
        ["bash", "-euc", code, "bash", script, "resolver-agent", *words], capture_output=True, text=True, check=True
    )
    assert ran.stderr == ""
    return ran.stdout.split()


def fish(script: Path, line: str) -> list[str]:
    """Return what fish offers for the last word of a line."""
    code = 'source $argv[1]; complete -C "resolver-agent $argv[2]"'
    ran = subprocess.run(
        ["fish", "--no-config", "-c", code, script, line],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": str(script.parent)},
    )
    assert ran.stderr == ""
    return [one.partition("\t")[0] for one in ran.stdout.splitlines()]


def typed(shell: list[str], setup: Path, line: str) -> str:
    """Return the line as it stands in an interactive shell after a Tab; ``setup`` shows it at Ctrl-X."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        shell,
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "HISTFILE": "/dev/null"},
    )
    os.close(end)
    try:
        os.write(terminal, f"source {setup}\n".encode())
        answer(terminal, rb"READY")
        os.write(terminal, f"{line}\t\x18".encode())
        return answer(terminal, rb"LINE<([^<>]*)>").decode()
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def answer(terminal: int, pattern: bytes) -> bytes:
    """Return the last group of a pattern, once the terminal shows it."""
    shown, until = b"", time.monotonic() + LIMIT_S
    while (found := re.search(pattern, shown)) is None:
        ready, _, _ = select.select([terminal], [], [], until - time.monotonic())
        assert ready, shown
        shown += os.read(terminal, 65536)
    return found[found.lastindex or 0]


def test_bash_offers_the_commands(bash_script: Path) -> None:
    """At first there are all commands; before a dash the options of the program."""
    assert bash(bash_script, "") == list(PARSER.commands)
    assert bash(bash_script, "-v", "sta") == ["status"]
    assert bash(bash_script, "--vers") == ["--version"]


@pytest.mark.parametrize("command", PARSER.commands)
def test_bash_offers_the_options_of_a_command(command: str, bash_script: Path) -> None:
    """Each command has those options that its help shows, also after options of the program."""
    options = [name for one in PARSER.commands[command].options for name in one.option_strings]
    assert bash(bash_script, command, "-") == options
    assert bash(bash_script, "-c", "/etc/x.yml", "-v", command, "-") == options


def test_bash_offers_values(bash_script: Path, tmp_path: Path) -> None:
    """A value is one of its few words, or a file; so is an argument."""
    assert bash(bash_script, "once", "--role", "") == ["auto", "primary", "standby"]
    assert bash(bash_script, "once", "--role", "=", "pri") == ["primary"]
    assert bash(bash_script, "once", "--role", "=") == ["auto", "primary", "standby"]
    assert bash(bash_script, "show", "so") == ["socket"]
    assert bash(bash_script, "help", "pre-p") == ["pre-promote"]
    (tmp_path / "agent.yml").touch()
    for before in (["-c"], ["status", "--config"]):
        assert bash(bash_script, *before, f"{tmp_path}/ag") == [f"{tmp_path}/agent.yml"]
    assert bash(bash_script, "explain", "fen") == ["fenced"]


def test_bash_offers_names(bash_script: Path, tmp_path: Path) -> None:
    """A name is one of those in the agent's block, if there is one; nothing in the file is run."""
    assert bash(bash_script, "status", "wk") == ["wk1", "wk2", "wk2-ro"]
    assert bash(bash_script, "status", "--problems", "") == ["wk1", "wk2", "wk2-ro"]
    assert not [path for path in (tmp_path / "owned", Path("owned")) if path.exists()]
    (tmp_path / "hosts").unlink()
    assert bash(bash_script, "status", "wk") == []


LINES = [
    ("sta", "status "),
    ("once --ro", "once --role"),
    ("once --role pri", "once --role primary "),
    ("once --role=pri", "once --role=primary "),
    ("-v show un", "-v show unit "),
    ("status wk2-", "status wk2-ro "),
    ("explain fen", "explain fenced "),
    ("status -c {}/agent.y", "status -c {}/agent.yml "),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_tab_in_bash(line: str, expected: str, bash_script: Path, tmp_path: Path) -> None:
    """Tab completes a word in an interactive bash."""
    (tmp_path / "agent.yml").touch()
    setup = tmp_path / "setup"
    setup.write_text(f"""source {bash_script}
bind -x '"\\C-x":printf "LINE<%s>" "$READLINE_LINE"'
echo READY
""")
    found = typed(["bash", "--norc", "-i"], setup, f"resolver-agent {line.format(tmp_path)}")
    assert found.rstrip() == f"resolver-agent {expected.format(tmp_path)}".rstrip()


@needs("zsh")
@pytest.mark.parametrize(("line", "expected"), LINES)
def test_tab_in_zsh(line: str, expected: str, tmp_path: Path) -> None:
    """Tab completes a word in an interactive zsh."""
    (tmp_path / "agent.yml").touch()
    (tmp_path / "_resolver-agent").write_text(completions(tmp_path).zsh())
    setup = tmp_path / "setup"
    setup.write_text(f"""fpath=({tmp_path} $fpath)
autoload -Uz compinit && compinit -u -D
show() {{ print -rn -- "LINE<$BUFFER>" }}
zle -N show
bindkey '^X' show
print READY
""")
    found = typed(["zsh", "-f", "-i"], setup, f"resolver-agent {line.format(tmp_path)}")
    assert found.rstrip(" =") == f"resolver-agent {expected.format(tmp_path)}".rstrip(" =")


@needs("fish")
def test_fish_offers_the_commands(fish_script: Path) -> None:
    """At first there are all commands, and nothing else."""
    assert set(fish(fish_script, "")) == set(PARSER.commands)


@needs("fish")
@pytest.mark.parametrize("command", PARSER.commands)
def test_fish_offers_the_options_of_a_command(command: str, fish_script: Path) -> None:
    """Each command has those options that its help shows."""
    options = {name for one in PARSER.commands[command].options for name in one.option_strings}
    assert {one.rstrip("=") for one in fish(fish_script, f"{command} -")} == options


@needs("fish")
def test_fish_offers_values(fish_script: Path, tmp_path: Path) -> None:
    """A value is one of its few words, or a file; so is an argument."""
    assert set(fish(fish_script, "once --role ")) == {"auto", "primary", "standby"}
    assert fish(fish_script, "show so") == ["socket"]
    assert fish(fish_script, "status wk") == ["wk1", "wk2", "wk2-ro"]
    assert fish(fish_script, "explain fen") == ["fenced"]
    (tmp_path / "agent.yml").touch()
    assert fish(fish_script, f"status -c {tmp_path}/agent.y") == [f"{tmp_path}/agent.yml"]


def test_no_fault_in_the_script_for_bash(bash_script: Path) -> None:
    """Shellcheck finds nothing."""
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck")
    ran = subprocess.run(["shellcheck", "--shell=bash", bash_script], capture_output=True, text=True, check=False)
    assert ran.stdout == ""
