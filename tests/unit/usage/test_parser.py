"""The parser of the command line: misspelt words, and what it says of itself."""

from __future__ import annotations

import argparse

import pytest

from resolver_agent.usage.parser import Parser


def program() -> Parser:
    """Return the parser of a program with three commands."""
    shared = Parser(add_help=False)
    shared.add_argument("-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help="a file (%(prog)s)")
    parser = Parser(prog="agent", parents=[shared])
    parser.add_argument("--version", action="version", version="1")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    status = commands.add_parser("status", exits={0: "fit", 1: "alerts, or worse"}, parents=[shared])
    status.add_argument("--json", action="store_true", help="100%% JSON")
    status.add_argument("--old", action="store_true", help=argparse.SUPPRESS)
    pin = commands.add_parser("pin")
    pin.add_argument("--way", choices=["follow", "primary"])
    pin.add_argument("name")
    commands.add_parser("unpin").add_argument("name", choices=["worker1", "cn"])
    return parser


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
        ("status wk1", "agent status: error: unexpected argument: 'wk1'"),
        ("pin --way folow x", "agent pin: error: argument --way: invalid choice: 'folow', did you mean `follow`?"),
        ("pin --way up x", "agent pin: error: argument --way: invalid choice: 'up', expected one of follow, primary"),
        ("unpin worker", "agent unpin: error: argument name: invalid choice: 'worker', did you mean `worker1`?"),
        ("\x1b[2J", r"agent: error: unknown command: '\x1b[2J', `agent --help` lists the commands"),
        ("status \x1b[2J", r"agent status: error: unexpected argument: '\x1b[2J'"),
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
    assert list(parser.commands) == ["status", "pin", "unpin"]
    assert parser.arguments == []
    status, pin = parser.commands["status"], parser.commands["pin"]
    assert [one.option_strings[-1] for one in status.options] == ["--help", "--config", "--json"]
    assert [status.text_of(one) for one in status.options[1:]] == ["a file (agent status)", "100% JSON"]
    assert [one.dest for one in pin.arguments] == ["name"]
    assert status.commands == {}


def test_exit_codes_in_the_help() -> None:
    """The help of a command ends with its exit codes."""
    parser = program()
    assert parser.commands["status"].exits == {0: "fit", 1: "alerts, or worse"}
    assert parser.commands["status"].format_help().endswith("\nexit code: 0 fit; 1 alerts, or worse\n")
    assert "exit code" not in parser.format_help()
