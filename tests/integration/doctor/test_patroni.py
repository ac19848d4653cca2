"""Doctor finds Patroni on the node, however it is configured, and sees whether its hook can run."""

from __future__ import annotations

import json
import os
import pwd
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from resolver_agent.doctor import gather_patroni
from resolver_agent.doctor.checks import hooks as checks
from resolver_agent.doctor.facts import Patroni, Unknown
from resolver_agent.doctor.finding import Severity
from resolver_agent.doctor.hook import PRE_PROMOTE, command_of
from tests.integration.support.machine import CHECKOUT
from tests.integration.support.rest_api import rest_api

if TYPE_CHECKING:
    from pathlib import Path

HOOK = yaml.safe_load((CHECKOUT / "systemd/patroni-hooks.yml").read_text())["postgresql"]["pre_promote"]
WHOLE = {"scope": "cn", "postgresql": {"pre_promote": "/bin/true"}}
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder in which any user may look."""
    for one in (tmp_path, *tmp_path.parents[:2]):
        one.chmod(0o755)
    return tmp_path


def put(path: Path, content: object, mode: int = 0o644) -> Path:
    """Write a file, YAML unless it is text, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    path.chmod(mode)
    return path


def runs(root: Path, *words: str | Path, environment: dict[str, str] | None = None, pid: int = 42) -> None:
    """Make a process that /proc shows with this command line."""
    put(root / f"proc/{pid}/cmdline", "".join(f"{word}\0" for word in words))
    put(root / f"proc/{pid}/environ", "".join(f"{key}={value}\0" for key, value in (environment or {}).items()))
    (root / f"proc/{pid}/cwd").symlink_to(root)


def find(root: Path, *, user: str | None = None) -> tuple[Patroni | Unknown, ...]:
    """Return what is found below a folder, where the agent has a file of its own."""
    return gather_patroni.find(put(root / "ra.yml", {"fallback": "none"}), root=root, user=user, timeout_s=1.0)


def only(root: Path) -> Patroni:
    """Return the only Patroni below a folder."""
    [found] = find(root)
    assert isinstance(found, Patroni), found
    return found


# --- Where it is configured


def test_a_folder_of_parts(tmp_path: Path) -> None:
    """Without a process, a folder counts whose files make a configuration only together; later ones override."""
    put(tmp_path / "etc/patroni/00-base.yml", {"scope": "cn", "name": "a"})
    put(tmp_path / "etc/patroni/10-postgres.yml", {"postgresql": {"pre_promote": "x", "listen": "y"}})
    put(tmp_path / "etc/patroni/20-hook.yaml", {"name": None, "postgresql": {"pre_promote": HOOK}})
    put(tmp_path / "etc/patroni/30-old.yml.bak", {"scope": "other"})
    found = only(tmp_path)
    assert found.path == str(tmp_path / "etc/patroni")
    assert found.local == {"scope": "cn", "postgresql": {"pre_promote": HOOK, "listen": "y"}}


def test_debians_instances(tmp_path: Path) -> None:
    """Files that are complete by themselves are instances, and the others beside them are not."""
    put(tmp_path / "etc/patroni/15-main.yml", WHOLE)
    put(tmp_path / "etc/patroni/15-other.yml", {**WHOLE, "scope": "wk1"})
    put(tmp_path / "etc/patroni/dcs.yml", {"etcd3": {}})
    assert [one.local["scope"] for one in find(tmp_path) if isinstance(one, Patroni)] == ["cn", "wk1"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["/usr/bin/python3", "/usr/bin/patroni", "srv/p"], id="a script, and a relative path"),
        pytest.param(["python3", "-m", "patroni", "srv/p"], id="a module"),
        pytest.param(["/usr/bin/python3", "-OO", "/x/patroni.py", "--verbose", "srv/p"], id="options"),
        pytest.param(["patroni", "srv/p/a.yml"], id="a program, and a file"),
    ],
)
def test_a_process(words: list[str], tmp_path: Path) -> None:
    """A process that runs says where its configuration is, and files in the usual places do not count."""
    put(tmp_path / "etc/patroni.yml", {**WHOLE, "scope": "stale"})
    put(tmp_path / "srv/p/a.yml", WHOLE)
    runs(tmp_path, "postgres", "-D", "/d", pid=7)
    runs(tmp_path, *words)
    runs(tmp_path, *words, pid=43)  # its child
    assert only(tmp_path).local == WHOLE


def test_a_process_that_has_only_an_environment(tmp_path: Path) -> None:
    """Patroni then has no file, and its hook can only be in the dynamic configuration."""
    runs(
        tmp_path,
        "patroni",
        environment={
            "PATRONI_SCOPE": "cn",
            "PATRONI_POSTGRESQL_LISTEN": "127.0.0.1:5432",
            "PATRONI_RESTAPI_CONNECT_ADDRESS": "127.0.0.1:1",
            "PATRONI_CITUS_GROUP": "0",
        },
    )
    found = only(tmp_path)
    assert found.path == "the environment of Patroni (process 42)"
    assert found.local["citus"] == {"group": "0"}
    assert isinstance(found.dynamic, Unknown)
    assert "Connection refused" in found.dynamic.why


def test_a_whole_file_in_the_environment(tmp_path: Path) -> None:
    """PATRONI_CONFIGURATION is the text of the file."""
    runs(tmp_path, "patroni", environment={"PATRONI_CONFIGURATION": json.dumps(WHOLE)})
    assert only(tmp_path).local == WHOLE


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    """As in Patroni itself."""
    put(tmp_path / "p.yml", {**WHOLE, "restapi": {"listen": "127.0.0.1:2"}})
    runs(tmp_path, "patroni", "p.yml", environment={"PATRONI_RESTAPI_LISTEN": "127.0.0.1:1", "PATRONI_SCOPE": "x"})
    assert only(tmp_path).local == {**WHOLE, "scope": "x", "restapi": {"listen": "127.0.0.1:1"}}


def test_a_process_in_a_container(tmp_path: Path) -> None:
    """What runs in another container is not this node's Patroni."""
    put(tmp_path / "p.yml", WHOLE)
    runs(tmp_path, "patroni", "p.yml")
    for pid, namespace in (("42", "net:[2]"), ("self", "net:[1]")):
        (tmp_path / f"proc/{pid}/ns").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/ns/pid").symlink_to("pid:[1]")
        (tmp_path / f"proc/{pid}/ns/net").symlink_to(namespace)
    assert find(tmp_path) == ()
    (tmp_path / "proc/self/ns/net").unlink()
    (tmp_path / "proc/self/ns/net").symlink_to("net:[2]")
    assert only(tmp_path).local == WHOLE


def test_the_patroni_of_another_server(tmp_path: Path) -> None:
    """Of several Patronis, the local server's counts: the one with its data folder."""
    for pid, name in enumerate(("a", "b"), 10):
        put(tmp_path / f"{name}.yml", {"scope": name, "postgresql": {"data_dir": f"/data/{name}"}})
        runs(tmp_path, "patroni", f"{name}.yml", pid=pid)
    own = tmp_path / "ra.yml"
    [found] = gather_patroni.find(own, root=tmp_path, user=None, timeout_s=1.0, data_dir="/data/b")
    assert isinstance(found, Patroni)
    assert found.local["scope"] == "b"


def test_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Patroni does not run, its unit says where the configuration is: variables and their files included."""
    put(tmp_path / "srv/a.yml", WHOLE)
    put(tmp_path / "etc/p.env", "# x\nPATRONI_SCOPE='from-file'\n")
    put(tmp_path / "run/systemd/system/x", "")
    said = (
        "Id=patroni@15-main.service\nEnvironment=PATRONI_CONFIG_LOCATION=/srv/a.yml\n"
        "EnvironmentFiles=/etc/p.env (ignore_errors=yes)\n"
        "ExecStart={ path=/usr/bin/patroni ; argv[]=/usr/bin/patroni ${PATRONI_CONFIG_LOCATION} ; ignore_errors=no }\n"
    )
    put(tmp_path / "bin/systemctl", f"#!/bin/sh\nprintf %s {shlex.quote(said)}\n", 0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert only(tmp_path).local == {**WHOLE, "scope": "from-file"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param("scope: [\n", "line 2", id="no YAML"),
        pytest.param("- 1\n", "has no scope", id="a list"),
        pytest.param("a: " + "[" * 5000, "nested more than 50 levels deep", id="deep"),
        pytest.param("\0", "character", id="a zero byte"),
        pytest.param("x" * (2**20 + 1), "larger than", id="huge"),
    ],
)
def test_an_odd_file(content: str, why: str, tmp_path: Path) -> None:
    """What cannot be read is said, and is no exception."""
    put(tmp_path / "p.yml", content)
    runs(tmp_path, "patroni", "p.yml")
    [found] = find(tmp_path)
    assert isinstance(found, Unknown)
    assert why in found.why
    assert found.why.isprintable()


def test_odd_things_in_its_place(tmp_path: Path) -> None:
    """A FIFO does not hang doctor, and a folder without parts or a file that is gone is named."""
    os.mkfifo(tmp_path / "p.yml")
    (tmp_path / "empty").mkdir()
    for pid, name in enumerate(("p.yml", "empty", "gone"), 10):
        runs(tmp_path, "patroni", name, pid=pid)
    whys = [one.why.rpartition(": ")[2] for one in find(tmp_path) if isinstance(one, Unknown)]
    assert whys == ["it is not a regular file", "Is a directory (EISDIR)", "there is no such file"]


# --- Whether its hook can run


def judged(command: str, root: Path, user: str = NOBODY.pw_name) -> list[tuple[Severity, str, str]]:
    """Return the findings about a hook that a user has to run."""
    document: dict[str, Any] = {"scope": "cn", "postgresql": {"pre_promote": command}}
    found = gather_patroni.find(put(root / "p.yml", document), root=root, user=user, timeout_s=1.0)
    [one] = found
    assert isinstance(one, Patroni)
    assert command_of(PRE_PROMOTE, one) == command
    return [(finding.severity, finding.key, finding.text) for finding in checks.pre_promote(one)]


def program(path: Path, *, interpreter: str = "/bin/sh") -> Path:
    """Write a program that takes the place of the agent's."""
    return put(path, f"#!{interpreter}\ntest \"$*\" = 'pre-promote --help'\n", 0o755)


def hook_with(path: Path) -> str:
    """Return our hook with the program at another path."""
    return str(HOOK).replace("/usr/local/bin/resolver-agent", str(path))


def test_a_hook_that_can_run(folder: Path) -> None:
    """Nothing is said of it."""
    assert judged(hook_with(program(folder / "bin/resolver-agent")), folder) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can see what another user may do")
def test_a_hook_in_a_closed_folder(folder: Path) -> None:
    """A program in root's home cannot be run by Patroni's user, and the guard hides that at every promotion."""
    path = program(folder / "home/bin/resolver-agent")
    (folder / "home").chmod(0o700)
    [(severity, key, text)] = judged(hook_with(path), folder)
    assert (severity, key) == (Severity.ERROR, "patroni:program")
    assert "(nobody) cannot run" in text
    assert "Permission denied" in text
    assert "every promotion then goes without it" in text
    (folder / "home").chmod(0o755)  # the fix: a place where that user may run it
    assert judged(hook_with(path), folder) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can see what another user may do")
def test_a_hook_whose_interpreter_is_in_a_closed_folder(folder: Path) -> None:
    """The program itself may be open to all, while the Python of its first line is not."""
    (folder / "home").mkdir(mode=0o700)
    (folder / "home/sh").symlink_to("/bin/sh")
    path = program(folder / "bin/resolver-agent", interpreter=str(folder / "home/sh"))
    [(_, key, text)] = judged(hook_with(path), folder)
    assert key == "patroni:program"
    assert "Permission denied" in text


def test_a_hook_that_does_not_exist(folder: Path) -> None:
    """Without a shell to guard it Patroni does not promote."""
    [(severity, key, text), *_] = judged(str(folder / "gone.sh"), folder)
    assert (severity, key) == (Severity.ERROR, "patroni:program")
    assert text.endswith("Patroni does not promote")


def test_a_wrapper(folder: Path) -> None:
    """A script is read, and the scripts that it names: ours in it must be one that Patroni's user can run."""
    ours = program(folder / "bin/resolver-agent")
    inner = put(folder / "inner.sh", f"#!/bin/sh\ntimeout 5 {ours} pre-promote || :\n", 0o755)
    outer = put(folder / "outer.sh", f"#!/bin/sh\nexec {inner}\n", 0o755)
    [(severity, key, text)] = judged(str(outer), folder)
    assert (severity, key) == (Severity.NOTE, "patroni:unchecked")
    assert f"{inner}, which Patroni runs" in text
    ours.chmod(0o600)
    assert "patroni:program" in [key for _, key, _ in judged(str(outer), folder)]


def test_a_wrapper_without_ours(folder: Path) -> None:
    """It is an error, and gone when the line of the fix is in the script."""
    script = put(folder / "fence.sh", "#!/bin/sh\nfence\n", 0o755)
    assert [key for _, key, _ in judged(str(script), folder)] == ["patroni:hook"]
    ours = program(folder / "bin/resolver-agent")
    script.write_text(f"#!/bin/sh\ntimeout -k 1 5 {ours} pre-promote || :\nfence\n")
    assert [severity for severity, _, _ in judged(str(script), folder)] == [Severity.NOTE]


def test_a_hook_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not end costs doctor a bounded time, and is a finding."""
    monkeypatch.setattr(gather_patroni, "_START_S", 0.2)
    path = put(folder / "bin/resolver-agent", "#!/bin/sh\nexec sleep 60\n", 0o755)
    [(_, key, text)] = judged(hook_with(path), folder)
    assert key == "patroni:program"
    assert "does not end" in text


def test_an_unknown_user(folder: Path) -> None:
    """What cannot be seen is said."""
    path = program(folder / "bin/resolver-agent")
    found = judged(hook_with(path), folder, user="no-such-user")
    assert {(severity, key) for severity, key, _ in found} == {(Severity.NOTE, "patroni:unchecked")}
    assert "that user is not known" in found[0][2]


# --- Its version and before_stop


NO_VERSION: list[object] = [
    {"patroni": {"version": "x"}},
    {"patroni": {"version": "9" * 5000}},
    {"patroni": {"version": [4]}},
    {"patroni": "4.1.5"},
    {"state": "running"},
    [],
    None,
]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param({"patroni": {"version": "4.1.5", "scope": "cn"}}, (4, 1, 5), id="4.1.5"),
        pytest.param({"patroni": {"version": "3.0.2"}}, (3, 0, 2), id="3.0.2"),
        pytest.param({"patroni": {"version": "5.0rc1"}}, (5, 0), id="a candidate"),
        *[pytest.param(answer, None, id=json.dumps(answer)[:40]) for answer in NO_VERSION],
    ],
)
def test_its_version(answer: object, expected: tuple[int, ...] | None, tmp_path: Path) -> None:
    """It comes from the REST API, which may answer anything."""
    with rest_api({"/patroni": answer}) as port:
        put(tmp_path / "etc/patroni.yml", {**WHOLE, "restapi": {"listen": f"127.0.0.1:{port}"}})
        version = only(tmp_path).version
    assert (None if isinstance(version, Unknown) else version) == expected


def test_before_stop_is_tried(folder: Path) -> None:
    """An agent's program that is too old for before-stop is found before the first stop."""
    ours = put(
        folder / "bin/resolver-agent", '#!/bin/sh\ntest "$1" = pre-promote || { echo odd >&2; exit 2; }\n', 0o755
    )
    line = str(HOOK).replace("/usr/local/bin/resolver-agent", str(ours)).replace("pre-promote", "before-stop")
    put(folder / "etc/patroni.yml", {"scope": "cn", "postgresql": {"before_stop": line}})
    [found] = find(folder, user=NOBODY.pw_name)
    assert isinstance(found, Patroni)
    [(severity, key, text)] = [(one.severity, one.key, one.text) for one in checks.before_stop(found) if one.fix]
    assert (severity, key) == (Severity.WARNING, "patroni:program")
    assert "odd: planned work on this node then fails statements" in text
    put(ours, "#!/bin/sh\ntest \"$*\" = 'before-stop --help'\n", 0o755)
    [found] = find(folder, user=NOBODY.pw_name)
    assert isinstance(found, Patroni)
    assert [one.text for one in checks.before_stop(found) if one.fix] == []
