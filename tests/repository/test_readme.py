"""The READMEs say what is so: keys and defaults, commands and options, messages, samples, files and links."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from resolver_agent import cli
from resolver_agent.config.load import ConfigError, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).parents[2]
FOLDERS = ("resolver_agent", "systemd", "tests", "vagrant")
READMES = [
    TOP / "README.md",
    *sorted(path for folder in FOLDERS for path in (TOP / folder).rglob("README.md")),
    *sorted(path for folder in FOLDERS for path in (TOP / folder).rglob("README.zh-CN.md")),
]
TEXTS = {path.relative_to(TOP).as_posix(): path.read_text(encoding="utf-8") for path in READMES}
MAIN = "README.md"
CHINESE = [name for name in TEXTS if name.endswith(".zh-CN.md")]


def prose(name: str) -> str:
    """Return a README without its samples."""
    return re.sub(r"^```.*?^```$", "", TEXTS[name], flags=re.MULTILINE | re.DOTALL)


SAMPLES = [
    one for text in TEXTS.values() for one in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
]


def code_of(name: str) -> list[str]:
    """Return what is code in a README, but for its samples: inline, and indented lines."""
    text, patterns = prose(name), (r"`([^`\n]+)`", r"^ {4,}(\S.*)$")
    return [code for pattern in patterns for code in re.findall(pattern, text, re.MULTILINE)]


CODE = [code for name in TEXTS for code in code_of(name)]
MINIMAL = "{fallback: none, names: {wk1: {nodes: [10.0.0.1], patroni: {port: 8008}}}}"
REQUIRED = "required"


def section(title: str) -> str:
    """Return what stands under a heading."""
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", TEXTS[MAIN], re.MULTILINE | re.DOTALL)
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
    """Return the arguments of every call of the agent in the READMEs."""
    calls = [part.split() for code in CODE for part in code.split("&&") if "resolver-agent" in part]
    return [call[1:] for call in calls if Path(call[0]).name == "resolver-agent"]


def test_every_key() -> None:
    """The table of the configuration names every key that the agent knows, once, and no other."""
    assert len(KEYS) == len(table("Configuration"))
    own = {"names.NAME.nodes", "names.NAME.patroni"}
    per_name = {key.rpartition(".")[2] for key in known_keys("names.wk1.") - own}
    maps = {"http", "log", "on_change", "queue"}
    assert set(KEYS) == (known_keys() - maps).union(own, *(known_keys(f"{key}.") for key in maps))
    assert {key.partition(".")[0] for key, row in KEYS.items() if row[0].endswith("*")} == per_name


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


def test_where_samples_are() -> None:
    """There are some of a file of its own, of a section of Patroni's, and of an application host."""
    kinds = {tuple(key for key in ("resolver_agent:", "local: off") if key in sample) for sample in SAMPLES}
    assert kinds == {(), ("resolver_agent:",), ("local: off",)}


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


@pytest.mark.parametrize("name", CHINESE)
def test_chinese_names_what_the_others_name(name: str) -> None:
    """What a Chinese README has as code is in the others, whose commands, options and keys are tested."""

    def words(text: str) -> set[str]:
        return {word.strip(".") for word in re.findall(r"[\w.-]*[A-Za-z][\w.-]*", text, re.ASCII)}

    named = words(" ".join(code_of(name)))
    assert {"resolver-agent", "pg_dist_node"} <= named
    assert named - words(" ".join(text for other, text in TEXTS.items() if other not in CHINESE)) == set()


def test_chinese_keys() -> None:
    """Each key under the Chinese heading of the configuration is one that the agent knows."""
    found = re.search(r"^## 配置$(.*?)^## ", TEXTS["systemd/README.zh-CN.md"], re.MULTILINE | re.DOTALL)
    assert found is not None
    named = set(re.findall(r"`([a-z]+(?:[_.][a-z]+)*)`", found[1]))
    assert named - {part for key in KEYS for part in (key, key.rpartition(".")[2])} == {
        "all",
        "none",
        "primary",
        "pg_dist_node",
    }


def test_exit_codes() -> None:
    """The table of commands has the exit codes of each, and those that its help gives."""
    rows = table("Command line")
    parser = cli.command_line()
    assert [name for name in parser.commands if not parser.commands[name].exits] == []
    for name, command in parser.commands.items():
        cells = [row[-1] for row in rows if re.search(rf"`resolver-agent {name}\b(?!-)", row[0])]
        codes = {int(code) for cell in cells for code in re.findall(r"(?:^|[,;] )(?:always )?(\d+)\b", cell)}
        assert codes == command.exits.keys(), name


def test_rows() -> None:
    """Each row of the decision tables has an id: a letter for its table, and its number there."""
    rows = [row[0] for row in table("When things fail")]
    numbered = {letter: itertools.count(1) for letter in "PSQMA"}
    assert [(row[0], int(row[1:])) for row in rows] == [(row[0], next(numbered[row[0]])) for row in rows]
    assert list(dict.fromkeys(row[0] for row in rows)) == list(numbered)


def named_files(name: str) -> Iterator[Path]:
    """Yield the files of the checkout that a README names: by their path, as a module, or as one of its folder."""
    here = (TOP / name).parent
    own = [path.name for path in here.iterdir() if path.is_dir() and here != TOP and path.name[0] not in "._"]
    for folder, base in [*((folder, TOP) for folder in (".github", *FOLDERS)), *((folder, here) for folder in own)]:
        yield from (base / path for path in re.findall(rf"(?<![\w/.-])(?:{folder})/[\w./-]*\w", TEXTS[name]))
    yield from (TOP / f"{path.replace('.', '/')}.py" for path in re.findall(r"-m (tests[\w.]+)", TEXTS[name]))
    for file in re.findall(r"`([\w.-]+\.(?:md|py|sh|sql|toml|yaml))`", TEXTS[name]):
        places = [path for folder in (here, TOP) for path in (folder / file, *folder.glob(f"*/{file}"))]
        yield next((path for path in places if path.exists()), here / file)


@pytest.mark.parametrize("name", TEXTS)
def test_files(name: str) -> None:
    """Every file of the checkout that a README names exists."""
    assert [path for path in named_files(name) if not path.exists()] == []


def test_which_files() -> None:
    """The names of files are found where they are."""
    assert {TOP / "systemd/role.sql", TOP / "tests/run", TOP / "tests/setup"} <= set(named_files(MAIN))
    assert {TOP / "tests/bench/failover.py", TOP / "pyproject.toml"} <= set(named_files("tests/README.md"))
    assert TOP / "vagrant/provision/install.sh" in named_files("vagrant/README.md")


def headings(name: str) -> set[str]:
    """Return the anchors of a README's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(name), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", TEXTS)
def test_links(name: str) -> None:
    """Every link leads to a file of the checkout, and to a heading in it if it names one."""
    for link in re.findall(r"\]\(([^)]*)\)", TEXTS[name]):
        if not link.startswith("https://"):
            file, _, heading = link.partition("#")
            target = ((TOP / name).parent / file).resolve() if file else TOP / name
            assert target.exists(), link
            found = target.relative_to(TOP).as_posix()
            assert not heading or heading in headings(found), link


def test_every_readme_is_found() -> None:
    """Whoever begins with the README finds all others by its links."""
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]*)\)", TEXTS[MAIN])} - {""}
    assert linked == set(TEXTS) - {MAIN}
