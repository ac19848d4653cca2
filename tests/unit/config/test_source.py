"""Who may change the configuration besides root, and what root then does not take from it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.load import ConfigError, load
from tests.unit.config.builders import MINIMAL

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root must not act on what others may change")

NOBODY = 65534
SECTION = "scope: wk1\nresolver_agent:\n  fallback: none\n  names: {wk1: {nodes: [10.0.0.1]}}\n"


def refusal(path: Path) -> str | None:
    """Return why root does not take a configuration, without the file name in front; None if it does."""
    try:
        load(str(path))
    except ConfigError as error:
        return "\n".join(error.errors).removeprefix(f"{path}: ")
    return None


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration in a folder of its own."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    path = folder / "agent.yml"
    path.write_text(MINIMAL)
    path.chmod(0o644)
    return path


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (0o644, None),
        (0o600, None),
        (0o664, "is writable for its group (owner root, mode 0664)"),
        (0o666, "is writable for everybody (owner root, mode 0666)"),
    ],
)
def test_a_file_that_others_may_write_is_refused(config: Path, mode: int, words: str | None) -> None:
    """The error has the file, its owner and mode, and the command that fixes it."""
    config.chmod(mode)
    fault = f"{config} {words}, expected a file and folders that only root may change: chmod go-w {config}"
    assert refusal(config) == (words and fault)


@pytest.mark.parametrize("part", ["the file", "its folder", "the target of a link", "a link in a sticky folder"])
def test_a_part_of_the_path_that_belongs_to_another_user_is_refused(config: Path, part: str) -> None:
    """Whoever owns the file, or a folder or link on the way to it, could put another one there."""
    asked = changed = config
    if part == "its folder":
        changed = config.parent
    elif part == "the target of a link":
        asked = config.parent.parent / "link.yml"
        asked.symlink_to("etc/agent.yml")
    elif part == "a link in a sticky folder":
        sticky = config.parent.parent / "tmp"
        sticky.mkdir()
        sticky.chmod(0o1777)
        asked = changed = sticky / "link.yml"
        asked.symlink_to(config)
    assert refusal(asked) is None
    os.chown(changed, NOBODY, -1, follow_symlinks=False)
    found = refusal(asked)
    assert found is not None
    assert found.startswith(f"{changed} belongs to nobody (mode ")
    assert found.endswith(f"chown -h root {changed}")


@pytest.mark.parametrize(
    ("lines", "keys"),
    [
        ("", []),
        ("  hosts_file: /etc/hosts\n  runtime_dir: /run/resolver-agent\n", []),
        ("  hosts_file: /etc/sudoers\n", ["hosts_file"]),
        ("  runtime_dir: /var/run/postgresql\n", ["runtime_dir"]),
        ("  state_dir: /var/lib/postgresql\n", ["state_dir"]),
        ("  on_change: {command: [/bin/true]}\n", ["on_change.command"]),
        ("  on_change: {timeout: 1s}\n", []),
        ("  postgresql: {sslrootcert: /etc/passwd, password: x}\n", []),
        ("  postgresql: {passfile: /etc/shadow}\n", ["postgresql.passfile"]),
        ("  local: {sslkey: /etc/shadow}\n", ["local.sslkey"]),
    ],
)
@pytest.mark.parametrize("who", ["owner", "group"])
def test_patronis_file_may_not_lead_root_to_other_files(config: Path, who: str, lines: str, keys: list[str]) -> None:
    """Patroni's file may belong to the postgres user, if the section in it keeps to the files that are everybody's."""
    config.write_text(SECTION + lines)
    if who == "owner":
        os.chown(config, NOBODY, -1)
    else:
        config.chmod(0o660)
    found = refusal(config)
    assert [line.split("resolver_agent.")[1].partition(": ")[0] for line in (found or "").splitlines()] == keys
    assert not keys or "put the section into a file of its own that belongs to root" in str(found)


@pytest.mark.parametrize("owner", [0, NOBODY])
@pytest.mark.parametrize("part", ["the file", "its folder"])
def test_patronis_file_is_not_everybodys(config: Path, part: str, owner: int) -> None:
    """A section that everybody may write is refused altogether, whoever owns it."""
    config.write_text(SECTION)
    os.chown(config, owner, -1)
    (config if part == "the file" else config.parent).chmod(0o777)
    assert "is writable for everybody" in str(refusal(config))


def test_another_user_may_use_files_of_their_own(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root refuses: everybody else acts with the rights of whoever wrote the file, at most."""
    config.chmod(0o666)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    assert refusal(config) is None


@pytest.mark.parametrize(
    ("mode", "uid", "words"),
    [
        pytest.param(0o755, 0, None, id="root's"),
        pytest.param(0o775, 0, "is writable for its group (owner root, mode 0775)", id="for a group"),
        pytest.param(0o755, NOBODY, "belongs to nobody (mode 0755)", id="another user's"),
        pytest.param(0o644, 0, "not a program that can be run: chmod +x it", id="not executable"),
    ],
)
def test_root_runs_no_program_that_others_may_change(config: Path, mode: int, uid: int, words: str | None) -> None:
    """Whoever may write the command at a change would be root."""
    program = config.with_name("notify")
    program.touch()
    os.chown(program, uid, -1)
    program.chmod(mode)
    config.write_text(f"{MINIMAL}on_change: {{command: [{program}]}}\n")
    found = refusal(config)
    assert (found is None) == (words is None)
    assert words is None or str(found).startswith(f"on_change.command: {program}: ")
    assert (words or "") in str(found)
