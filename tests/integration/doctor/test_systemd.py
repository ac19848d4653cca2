"""What doctor makes of systemd's answers, whatever they are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from resolver_agent.doctor import systemd
from resolver_agent.doctor.facts import Unknown

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the script that takes the place of systemctl, where systemd runs."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path / "bin/systemctl"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(r"printf 'Id=a=b\nAfter=\n\nId=c\nodd\n'", [{"Id": "a=b", "After": ""}, {"Id": "c"}], id="two"),
        pytest.param("exit 0", [], id="none"),
        pytest.param(r"printf '\0\377\n'", [{}], id="no text"),
        pytest.param(r"printf 'no \033[31mbus\n' >&2; exit 1", Unknown(r"no \x1b[31mbus"), id="a failure"),
        pytest.param("exit 3", Unknown("systemctl show ended with 3"), id="a silent failure"),
        pytest.param("exec sleep 60", Unknown("systemctl show did not end within 0.3 s"), id="a hang"),
    ],
)
def test_answers(script: str, expected: object, answer: Path, tmp_path: Path) -> None:
    """Each unit is a dictionary; what cannot be had is a value with the reason."""
    answer.write_text(f"#!/bin/sh\n{script}\n")
    answer.chmod(0o755)
    assert systemd.show(tmp_path, ["Id", "After"], ["a", "c"], timeout_s=0.3) == expected


def test_without_systemd(answer: Path, tmp_path: Path) -> None:
    """Where another init runs, systemctl is not asked, should it be installed."""
    answer.write_text("#!/bin/sh\necho Id=a\n")
    answer.chmod(0o755)
    assert systemd.show(tmp_path / "elsewhere", ["Id"], ["a"], timeout_s=0.3) is None
