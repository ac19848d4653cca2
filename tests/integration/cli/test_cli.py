"""The rest of the command line: arguments, signals, and ``validate-config``."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from resolver_agent import __version__
from tests.integration.support.agent_state import written
from tests.integration.support.command_line import PROGRAM, connected, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Agent, Group


def test_validate_config(config: Path) -> None:
    """A consistent configuration is reported as valid, with its names."""
    ran = run("--validate-config", "-c", config)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{config}: nothing wrong; names: cn, wk1, wk2\n"


def test_a_process_ends_at_once(config: Path) -> None:
    """It says all that it has to, and is gone: while Python ends by itself, a thread that is in libpq may crash."""
    script = "import atexit; atexit.register(print, 'Python ends'); from resolver_agent import cli; cli.main()"
    ran = run("--validate-config", "-c", config, program=[sys.executable, "-c", script])
    assert (ran.returncode, ran.stdout) == (0, f"{config}: nothing wrong; names: cn, wk1, wk2\n")


def test_validate_config_reports_every_error(tmp_path: Path) -> None:
    """All errors are printed, one a line, with exit code 2."""
    config = tmp_path / "bad.yml"
    config.write_text("fallback: maybe\nnames: {}\ninterval: -1\nnmaes: 1\n")
    ran = run("--validate-config", "-c", config)
    assert (ran.returncode, ran.stdout) == (2, "")
    first, *errors = ran.stderr.splitlines()
    assert first == "resolver-agent: the configuration is not usable"
    assert len(errors) == 4
    assert all(error.startswith(f"{config}: ") for error in errors)


def test_validate_config_tries_the_tls_files(config: Path, tmp_path: Path) -> None:
    """TLS files for Patroni that cannot be used are errors, each with the name it belongs to."""
    settings = yaml.safe_load(config.read_text())
    (tmp_path / "ca.pem").write_text("-")
    (tmp_path / "empty.pem").touch()
    for name, file in (("wk1", "ca.pem"), ("wk2", "empty.pem")):
        settings["names"][name]["patroni"] = {"port": 8008, "cacert": str(tmp_path / file)}
    config.write_text(yaml.safe_dump(settings))
    ran = run("--validate-config", "-c", config)
    assert (ran.returncode, ran.stdout) == (2, "")
    _, *faults = ran.stderr.splitlines()
    for name, file, fault in zip(("wk1", "wk2"), ("ca.pem", "empty.pem"), faults, strict=True):
        words = (
            f"{config}: names.{name}.patroni: {tmp_path}/{file} cannot be used: it holds no certificate in PEM format"
        )
        assert fault.startswith(words)


def test_validate_config_warns_of_a_readable_password(config: Path) -> None:
    """A password that every user can read is no error but a warning."""
    settings = yaml.safe_load(config.read_text())
    settings["postgresql"] |= {"password": "secret"}
    config.write_text(yaml.safe_dump(settings))
    config.chmod(0o644)
    ran = run("--validate-config", "-c", config)
    assert ran.returncode == 0
    assert ran.stderr.startswith("warning: ")
    assert "secret" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["--version"], 0, f"resolver-agent {__version__}\n", id="--version"),
        pytest.param(["--help"], 0, "usage: resolver-agent ", id="--help"),
        pytest.param(["status", "--help"], 0, "usage: resolver-agent status ", id="help of a command"),
        pytest.param([], 2, "resolver-agent: no command given: ", id="nothing"),
        pytest.param(["help"], 0, "usage: resolver-agent [", id="help"),
        pytest.param(["help", "status"], 0, "usage: resolver-agent status ", id="help COMMAND"),
        pytest.param(["help", "pre-promote"], 0, "usage: resolver-agent pre-promote ", id="help of a hook"),
        pytest.param(["-v", "help", "before-stop"], 0, "usage: resolver-agent before-stop ", id="help after an option"),
        pytest.param(["help", "demos"], 2, "did you mean `demo`?", id="help of an unknown command"),
        pytest.param(["restart"], 2, "unknown command: 'restart'", id="unknown command"),
        pytest.param(["staus"], 2, "did you mean `status`?", id="misspelt command"),
        pytest.param(["status", "--jsn"], 2, "did you mean `--json`?", id="misspelt option"),
        pytest.param(["show", "unti"], 2, "did you mean `unit`?", id="misspelt file"),
        pytest.param(["demo", "--config", "x"], 2, "unknown option: '--config'", id="an option that does not count"),
        pytest.param(["--dry-run", "run"], 2, "--dry-run takes no command but `once`", id="--dry-run run"),
        pytest.param(["--dry-run", "remove"], 2, "--dry-run takes no command but `once`", id="--dry-run remove"),
        pytest.param(["--validate-config", "once"], 2, "--validate-config takes none", id="--validate-config once"),
        pytest.param(["once", "--role", "leader"], 2, "invalid choice: 'leader'", id="unknown role"),
        pytest.param(["run", "-c", "/nowhere.yml"], 2, "/nowhere.yml: No such file or directory", id="no file"),
        pytest.param(
            ["status", "-c", "/nowhere.yml"], 2, "/nowhere.yml: No such file or directory", id="status, no file"
        ),
    ],
)
def test_arguments(arguments: list[str], code: int, said: str) -> None:
    """Requested output goes to standard output, errors to standard error."""
    ran = run(*arguments)
    assert ran.returncode == code
    assert said in (ran.stdout if code == 0 else ran.stderr)
    assert (ran.stderr if code == 0 else ran.stdout) == ""


def test_a_runtime_dir_that_cannot_be_used(config: Path, tmp_path: Path) -> None:
    """A folder that cannot be made, or is too long for a socket's path, is named with a fix and no traceback."""
    settings = yaml.safe_load(config.read_text())
    (tmp_path / "file").touch()
    for runtime_dir, fault in (("file/run", "Not a directory"), ("long" * 40, "AF_UNIX path too long")):
        config.write_text(yaml.safe_dump(settings | {"runtime_dir": str(tmp_path / runtime_dir)}))
        ran = run("run", "-c", config)
        assert ran.returncode == 2
        assert fault in ran.stderr


@pytest.mark.parametrize("arguments", [["run"], ["--dry-run"], ["once"]], ids=" ".join)
def test_ctrl_c_prints_no_traceback(
    arguments: list[str], config: Path, cluster: dict[str, Group], hosts_file: Path
) -> None:
    """The operator gets the prompt back, and the file is unchanged."""
    silent = cluster["wk1"].standby
    silent.pause()
    before = written(hosts_file)
    with connected(silent.address, silent.port, [*PROGRAM, *arguments, "-c", str(config)]) as process:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=3)
    assert process.returncode == (0 if arguments == ["run"] else 130)
    assert "Traceback" not in output
    assert "never retrieved" not in output
    assert written(hosts_file) == before


@pytest.mark.parametrize("command", ["--dry-run", "status"])
def test_a_reader_that_leaves_is_no_trouble_to_tell(command: str, running: Agent, config: Path) -> None:
    """A closed pipe is not reported."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = run(command, "-c", config, stdout=writing, env={**os.environ, "PYTHONUNBUFFERED": ""})
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (2, "")
    assert running.process.poll() is None
