"""What the command line says, and its exit codes, where no server is needed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from resolver_agent import cli
from resolver_agent.control import pre_promote, report
from resolver_agent.control.client import socket_path
from resolver_agent.routing.state import Severity
from resolver_agent.system import lock
from tests.unit.doctor.builders import agent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def answering(runtime_dir: Path, answer: object) -> Iterator[None]:
    """Stand in for an agent that gives one answer, whatever it is asked."""

    def give() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4096)
            client.sendall(json.dumps(answer).encode() + b"\n")

    with lock.exclusive(str(runtime_dir), str(runtime_dir / "hosts")), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path(str(runtime_dir)))
        listener.listen()
        giver = threading.Thread(target=give, daemon=True)
        giver.start()
        yield
        giver.join()


@pytest.mark.parametrize(
    ("alerts", "severity", "code"),
    [
        pytest.param(0, Severity.INFO, 0, id="no alert"),
        pytest.param(2, Severity.INFO, 0, id="only information"),
        pytest.param(1, Severity.WARNING, 1, id="a warning"),
        pytest.param(1, Severity.CRITICAL, 1, id="a critical alert"),
    ],
)
def test_status_exits_with_1_for_what_wants_attention(
    alerts: int, severity: Severity, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Information is shown, and is no reason to wake anybody."""
    config = tmp_path / "agent.yml"
    config.write_text(
        f"{{fallback: none, names: {{wk1: {{nodes: [10.0.0.1]}}}}, "
        f"runtime_dir: {tmp_path / 'run'}, hosts_file: {tmp_path / 'hosts'}}}"
    )
    answer = report.as_json(agent(alerts=alerts, severity=severity.value))
    with answering(tmp_path / "run", answer):
        assert cli.main(["status", "-c", str(config)]) == code
    assert capsys.readouterr().out.splitlines().count(f"{severity.value}: held") == alerts


def test_check_with_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Monitoring must not take a misspelt option for a critical service."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "--warn", "5"])
    assert ended.value.code == 3
    assert "unknown option: '--warn'" in capsys.readouterr().err


def test_check_without_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody answers, nor can the configuration be read: the state is not known, and the line says why."""
    assert cli.main(["check", "-c", str(tmp_path / "agent.yml")]) == 3
    assert re.fullmatch(r"RESOLVER-AGENT UNKNOWN - no agent runs in .*agent\.yml: .*\n", capsys.readouterr().out)


def test_the_journal_learns_what_is_trouble(tmp_path: Path) -> None:
    """A service that cannot start says so with the priority of an error, on each line."""
    config = tmp_path / "agent.yml"
    config.write_text("{fallback: maybe}")
    read, write = os.pipe()
    stream = os.fstat(write)
    with open(read, encoding="utf-8") as journal:  # noqa: PTH123 -- a descriptor
        ran = subprocess.run(
            [sys.executable, "-m", "resolver_agent.cli", "run", "-c", config],
            env={**os.environ, "JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"},
            stderr=write,
            check=False,
        )
        os.close(write)
        lines = journal.read().splitlines()
    assert ran.returncode == 2
    assert lines[0] == "<3>resolver-agent: the configuration is not usable"
    assert len(lines) == 3
    assert all(line.startswith(f"<3>{config}: ") for line in lines[1:])


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("pre-promote", True),
        ("pre-promote postgresql", True),
        ("-c agent.yml pre-promote", True),
        ("--config=agent.yml -v pre-promote", True),
        ("--sock /run/agent.sock pre-promote", True),
        ("--no-such-option value pre-promote", True),
        ("hook pre-promote", True),
        ("-c status pre-promote", True),
        ("--config=agent.yml explain pre-promote", False),
        ("-cagent.yml help pre-promote", False),
        ("--verb status pre-promote", False),
        ("pause --reason pre-promote", False),
        ("-v pause --reason pre-promote", False),
        ("-c agent.yml pin wk1 10.0.0.1 --reason pre-promote", False),
        ("status pre-promote", False),
        ("explain pre-promote", False),
        ("help pre-promote", False),
    ],
)
def test_which_command_is_the_hook(line: str, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 -- a table
    """A hook runs whatever else is wrong with its options, and never for a word of another command."""

    def run(*_: object, **_more: object) -> None:
        raise KeyError

    monkeypatch.setattr(pre_promote, "run", run)
    monkeypatch.setattr(cli, "_forget_environment", lambda: sys.exit(9))
    with pytest.raises(KeyError if runs else SystemExit):
        cli.main(line.split())


def test_the_commands_besides_the_hooks() -> None:
    """They are known before the parser is made."""
    assert {*cli.command_line().commands} == cli._COMMANDS | {"pre-promote", "before-stop"}


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints is a configuration as soon as it is filled in; Patroni's file stays as it is."""
    patronis, ours, passfile = (tmp_path / name for name in ("patroni.yml", "agent.yml", "pgpass"))
    passfile.touch()
    text = "{postgresql: {connect_address: '10.0.0.1'}, citus: {workers: [{groupid: 1, nodes: ['10.0.0.3:5432']}]}}"
    patronis.write_text(text)
    assert cli.main(["import", str(patronis)]) == 0
    printed = capsys.readouterr().out
    ours.write_text(printed)
    assert cli.main(["--validate-config", "-c", str(ours)]) == 2
    ours.write_text(printed.replace("<ADDRESS>", "10.0.0.2").replace("/etc/resolver-agent.pgpass", str(passfile)))
    assert cli.main(["--validate-config", "-c", str(ours)]) == 0
    assert capsys.readouterr().out == f"{ours}: nothing wrong; names: cn, wk1\n"
    assert patronis.read_text() == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "No such file or directory, expected a configuration file that can be read"),
        ("scope: cn", "citus: missing"),
    ],
)
def test_import_of_a_faulty_file(
    text: str | None, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints no half of a configuration, and says what is wrong, with the file."""
    path = tmp_path / "patroni.yml"
    if text is not None:
        path.write_text(text)
    assert cli.main(["import", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"resolver-agent: the file cannot be converted\n{path}: {fault}")
