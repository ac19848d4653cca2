"""The parser of the command line: misspelt words, and what it says of itself."""

from __future__ import annotations

import pytest

from tests.unit.usage.builders import program


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("staus", "agent: error: unknown command: 'staus', did you mean `status`?"),
        ("version", "agent: error: unknown command: 'version', did you mean `--version`?"),
        ("xyzzy", "agent: error: unknown command: 'xyzzy', `agent --help` lists the commands"),
        ("--confg /etc/x.yml status", "agent: error: unknown option: '--confg', did you mean `--config`?"),
        ("--conf /etc/x.yml staus", "agent: error: unknown command: 'staus', did you mean `status`?"),
        ("-x status", "agent: error: unknown option: '-x', expected one of -h, --help, -c, --config, --version"),
        ("status --jsn", "agent status: error: unknown option: '--jsn', did you mean `--json`?"),
        ("status --confg=/x", "agent status: error: unknown option: '--confg', did you mean `--config`?"),
        (
            "status --odl",
            "agent status: error: unknown option: '--odl', expected one of -h, --help, -c, --config, --json",
        ),
        ("pin a wk1", "agent pin: error: unexpected argument: 'wk1'"),
        ("pin --way folow x", "agent pin: error: argument --way: invalid choice: 'folow', did you mean `follow`?"),
        ("pin --way up x", "agent pin: error: argument --way: invalid choice: 'up', expected one of follow, primary"),
        ("un-pin worker", "agent un-pin: error: argument name: invalid choice: 'worker', did you mean `worker1`?"),
        ("\x1b[2J", r"agent: error: unknown command: '\x1b[2J', `agent --help` lists the commands"),
        ("pin a \x1b[2J", r"agent pin: error: unexpected argument: '\x1b[2J'"),
        ("status --\x1b[2J", "agent status: error: unknown option: '--\\x1b[2J', expected one of"),
    ],
)
def test_a_word_that_is_not_known(line: str, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names what is near, or else what there is; the exit code is 2."""
    with pytest.raises(SystemExit) as ended:
        program().parse_args(line.split(" "))
    assert ended.value.code == 2
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize("line", ["-c f status --json", "status -c f --json", "--conf f status --js"])
def test_a_right_line(line: str) -> None:
    """Shared options may stand on both sides of the command, and be abbreviated."""
    found = program().parse_args(line.split())
    assert (found.config, found.json) == ("f", True)


def test_what_it_says_of_itself() -> None:
    """The commands, the options that are no secret, the arguments, and their help with values filled in."""
    parser = program()
    assert list(parser.commands) == ["status", "pin", "un-pin"]
    assert parser.arguments == []
    status, pin = parser.commands["status"], parser.commands["pin"]
    assert [one.option_strings[-1] for one in status.options] == ["--help", "--config", "--json"]
    assert [status.text_of(one) for one in status.options[1:]] == ["a file (agent status)", "100% JSON [a:b] \\n…"]
    assert [one.dest for one in pin.arguments] == ["name"]
    assert status.commands == {}


def test_exit_codes_in_the_help() -> None:
    """The help of a command ends with its exit codes."""
    parser = program()
    assert parser.commands["status"].exits == {0: "fit", 1: "alerts, or worse"}
    assert parser.commands["status"].format_help().endswith("\nexit code: 0 fit; 1 alerts, or worse\n")
    assert "exit code" not in parser.format_help()
