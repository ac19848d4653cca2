"""The README says what is so: keys and defaults, commands and options, messages, samples and files."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path

import pytest
import yaml

from resolver_agent import cli
from resolver_agent.config.load import ConfigError, parse

TOP = Path(__file__).parents[2]
TEXT = (TOP / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
SAMPLES = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
CODE = [*re.findall(r"`([^`\n]+)`", PROSE), *re.findall(r"^ {4,}(\S.*)$", PROSE, re.MULTILINE)]
MINIMAL = "{fallback: none, names: {wk1: {nodes: [10.0.0.1], patroni: {port: 8008}}}}"
REQUIRED = "required"


def section(title: str) -> str:
    """Return what stands under a heading."""
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def table(title: str) -> list[list[str]]:
    """Return the rows of a section's tables, without their heads."""
    lines = section(title).splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for before, line in itertools.pairwise(lines)
        if line.startswith("| ") and before.startswith("|")
    ]


KEYS = {re.sub("[` *]", "", row[0]): row for row in table("Configuration")}


def nested(key: str, value: object) -> dict[str, object]:
    """Return a map in which a dotted key has a value."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def errors(settings: object) -> str:
    """Return all that is wrong with a configuration."""
    with pytest.raises(ConfigError) as caught:
        parse(yaml.safe_dump(settings), path="agent.yml", hostname="db7")
    return str(caught.value)


def known_keys(below: str = "") -> set[str]:
    """Return the keys that the agent knows in one map of the configuration, by its answer to one that it does not."""
    found = re.search(r"unknown key, expected one of (.*)", errors(nested(f"{below}xyzzy", 1)))
    assert found is not None
    return {below.replace("wk1", "NAME") + key for key in found[1].split(", ")}


def usage(*command: str) -> str:
    """Return what a command says of itself."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    return shown.getvalue()


def options(text: str) -> set[str]:
    """Return the options that a text names."""
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))


COMMANDS = re.findall(r"^    ([\w-]+)  ", usage(), re.MULTILINE)


def invocations() -> list[list[str]]:
    """Return the arguments of every call of the agent in the README."""
    calls = [part.split() for code in CODE for part in code.split("&&") if "resolver-agent" in part]
    return [call[1:] for call in calls if Path(call[0]).name == "resolver-agent"]


def test_every_key() -> None:
    """The table of the configuration names every key that the agent knows, and no other."""
    own = {"names.NAME.nodes", "names.NAME.patroni"}
    per_name = {key.rpartition(".")[2] for key in known_keys("names.wk1.") - own}
    assert set(KEYS) == known_keys() - {"log"} | known_keys("log.") | own
    assert {key for key, row in KEYS.items() if row[0].endswith("*")} == per_name


def test_keys_of_patronis_api() -> None:
    """The keys of a map in the table are given there too."""
    below = "names.NAME.patroni"
    assert {f"{below}.{key}" for key in re.findall(r"`(\w+)`", KEYS[below][1])} == known_keys("names.wk1.patroni.")


def test_defaults() -> None:
    """Every default in the table is what the agent takes where nothing is said."""
    settings = yaml.safe_load(MINIMAL)
    for key, (_, _, default, _) in KEYS.items():
        if default != REQUIRED and not key.startswith("names."):
            top, _, below = key.partition(".")
            value = yaml.safe_load(default.strip("`"))
            settings[top] = {**settings.get(top, {}), below: value} if below else value
    said = parse(yaml.safe_dump(settings), path="agent.yml", hostname="db7")
    assert said == parse(MINIMAL, path="agent.yml", hostname="db7")


def test_required_keys() -> None:
    """The agent refuses a configuration without a key that is required, and without no other."""
    missing = re.findall(r"agent.yml: (\S+): missing", errors({}) + "\n" + errors({"names": {"wk1": {}}}))
    assert {key.replace("wk1", "NAME") for key in missing} == {key for key, row in KEYS.items() if row[2] == REQUIRED}


@pytest.mark.parametrize("sample", SAMPLES)
def test_samples(sample: str) -> None:
    """Nothing is wrong with the sample configurations."""
    assert parse(sample, path="agent.yml", hostname="db7").groups


def test_every_command() -> None:
    """The section on the command line names every command, and every option of every command."""
    text = section("Command line")
    assert "status" in COMMANDS
    assert options(usage()) <= options(text)
    for command in COMMANDS:
        calls = re.findall(rf"`resolver-agent {command}\b([^`]*)`", text)
        assert calls
        assert options(usage(command)) - options(usage("run")) <= options(" ".join(calls)), command


@pytest.mark.parametrize("call", invocations(), ids=" ".join)
def test_no_other_command(call: list[str]) -> None:
    """Every call of the agent is one that it understands."""
    command = [word for word in call if not word.startswith("-")][:1]
    assert set(command) <= set(COMMANDS)
    assert options(" ".join(call)) <= options(usage(*command))


def test_symptoms() -> None:
    """Whoever looks up a message finds it in the words that the agent uses."""
    source = "".join(path.read_text(encoding="utf-8") for path in (TOP / "resolver_agent").rglob("*.py"))
    symptoms = [words for row in table("Symptom, look, mend") for words in re.findall(r"`([^`]+)`", row[0])]
    assert len(symptoms) > 10
    assert [words for words in symptoms if words not in source] == []


def test_files() -> None:
    """Every file of the checkout that the README names exists."""
    named = re.findall(r"(?<![\w/.])(?:systemd|tests|resolver_agent)/[\w./-]*\w", TEXT)
    assert {"systemd/role.sql", "tests/run", "tests/setup"} <= set(named)
    assert [name for name in named if not (TOP / name).exists()] == []


def test_links() -> None:
    """Every link within the README leads to a heading."""
    headings = {
        title.lower().replace(",", "").replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PROSE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= headings
