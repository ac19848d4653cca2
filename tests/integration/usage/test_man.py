"""The man pages of this checkout, as groff and mandoc read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from resolver_agent import build, cli
from resolver_agent.usage.roff import sections

TOP = Path(__file__).parents[3]
README, NODE = ((TOP / path).read_text(encoding="utf-8") for path in ("README.md", "systemd/README.md"))
PAGES = {path: text for path, text in build.files(README, NODE, date="2026-01-02").items() if "/man/" in path}
LINTS = {"mandoc": ["mandoc", "-T", "lint", "-W", "warning"], "groff": ["groff", "-man", "-Tutf8", "-wall", "-z"]}


def shown(page: str) -> str:
    """Return a page as a wide terminal shows it, without bold and underlined letters."""
    ran = subprocess.run(
        ["groff", "-man", "-Tutf8", "-P-cbou", "-rLL=500n"], input=page, capture_output=True, text=True, check=True
    )
    return ran.stdout


@pytest.mark.parametrize("lint", LINTS)
@pytest.mark.parametrize("path", PAGES)
def test_no_warning(path: str, lint: str) -> None:
    """Both formatters read the pages without a warning."""
    if shutil.which(lint) is None:
        pytest.skip(f"no {lint}")
    ran = subprocess.run(LINTS[lint], input=PAGES[path], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", "", 0)


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_every_command_and_option() -> None:
    """The page of the program names each of them, as it is typed."""
    page = shown(PAGES["share/man/man8/resolver-agent.8"])
    for name, command in cli.command_line().commands.items():
        part = re.search(rf"^   {name}\n(.*?)(?=^   \S|^[A-Z])", page, re.MULTILINE | re.DOTALL)
        assert part is not None, name
        for option in command.options[1:]:
            assert set(option.option_strings) <= set(re.findall(r"(?<!\S)--?[\w-]+", part[1])), option


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_every_key() -> None:
    """The page of the configuration has each key of the README's table at the beginning of a line."""
    page = shown(PAGES["share/man/man5/resolver-agent.yml.5"])
    [part] = sections(README, "Configuration")
    keys = re.findall(r"^\| `([\w.]+)`", part, re.MULTILINE)
    assert len(keys) > 20
    for key in keys:
        assert re.search(rf"^ +{re.escape(key)}(?: \*)?(?: |$)", page, re.MULTILINE), key
