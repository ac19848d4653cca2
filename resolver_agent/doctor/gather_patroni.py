"""Finds Patroni on this node, its configuration, and the programs of its hooks. Changes nothing.

Patroni's configuration is a file, or a folder whose files override each other in the order of their names, and
environment variables override both (Config in patroni/config.py). The first of these that gives a configuration counts:
the agent's own file, the processes that run, systemd's units, and the usual places.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resolver_agent.config import yaml12
from resolver_agent.config.model import PatroniApi
from resolver_agent.doctor import files, systemd
from resolver_agent.doctor.facts import Hook, Patroni, Unknown
from resolver_agent.doctor.hook import HOOKS, HookName, command_of, section
from resolver_agent.patroni.client import ApiError, fetch
from resolver_agent.system.foreign import plain, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SUFFIXES = (".yml", ".yaml")
_FILE_BYTES = 2**20
_SCRIPT_BYTES = 2**16
_MOST_PROCESSES = 16
_MOST_FILES = 100
_MOST_SCRIPTS = 16
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What systemd gives a service."""

_ABSOLUTE = re.compile(r"(?<![\w$}/.:-])/[\w+./@-]+")
_SECTIONS = {
    "restapi": ("listen", "connect_address", "certfile", "cafile"),
    "ctl": ("cacert", "certfile", "keyfile"),
    "citus": ("group", "database"),
}
_VERSION = re.compile(r"[0-9]{1,5}(\.[0-9]{1,5}){1,2}(?![0-9])")
_START_S = 5.0
"""A program that takes longer to start is ended by the `timeout` in the hook."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """Where a Patroni has its configuration from: a file or folder, and environment variables."""

    where: str
    path: Path | None
    environment: Mapping[str, str] | Unknown
    uid: int | None = None


def find(
    own: Path, *, root: Path, user: str | None, timeout_s: float, data_dir: str | None = None
) -> tuple[Patroni | Unknown, ...]:
    """Return every Patroni that is configured here.

    Args:
        own: the agent's own configuration, which may be Patroni's file.
        root: the folder below which all other files are looked for.
        user: the one that PostgreSQL runs as: Patroni's, if it does not run.
        timeout_s: the limit for its REST API, and for each program.
        data_dir: the data folder of the local server, where that is known: a Patroni of another one is left out.
    """
    mine = _configuration(own)
    if isinstance(mine, dict) and _is_patronis(mine):
        return (_patroni(str(own), mine, user=user, path=_PATH, timeout_s=timeout_s),)
    sources = list(_running(root)) or list(_units(root, timeout_s)) or list(_usual(root))
    each = {source.where: source for source in reversed(sources)}  # Patroni may have child processes
    found = (
        _of_source(source, user=user, timeout_s=timeout_s, data_dir=data_dir) for source in reversed(each.values())
    )
    return tuple(one for one in found if one is not None)


def _of_source(
    source: _Source, *, user: str | None, timeout_s: float, data_dir: str | None
) -> Patroni | Unknown | None:
    """Return a Patroni; None if it is another server's."""
    found = _configuration(source.path) if source.path is not None else {}
    if isinstance(found, Unknown):
        return found
    environment = source.environment
    if isinstance(environment, Unknown):
        if not found:
            return Unknown(f"{source.where}: {environment.why}")
        environment = {}
    if source.path is None and "PATRONI_CONFIGURATION" in environment:
        found = _yaml(environment["PATRONI_CONFIGURATION"], source.where)
        if isinstance(found, Unknown):
            return found
    else:
        found = _patched(found, _from_environment(environment))
    if not _is_patronis(found):
        return Unknown(f"{source.where} has no scope, or no section postgresql")
    theirs = section(found).get("data_dir")
    if data_dir is not None and isinstance(theirs, str) and os.path.realpath(theirs) != os.path.realpath(data_dir):
        return None
    try:
        user = pwd.getpwuid(source.uid).pw_name if source.uid is not None else user
    except KeyError:
        user = None
    return _patroni(source.where, found, user=user, path=environment.get("PATH", _PATH), timeout_s=timeout_s)


def _patroni(where: str, local: dict[str, Any], *, user: str | None, path: str, timeout_s: float) -> Patroni:
    found = Patroni(
        path=plain(where),
        local=local,
        dynamic=_ask(local, "/config", timeout_s),
        version=_version(_ask(local, "/patroni", timeout_s)),
    )
    commands = {hook: command_of(hook, found) for hook in HOOKS}
    hooks = {
        hook.key: _hook(hook, command, user=user, path=path, timeout_s=timeout_s)
        for hook, command in commands.items()
        if isinstance(command, str)
    }
    return dataclasses.replace(found, hooks=hooks)


# --- Where it is configured


def _running(root: Path) -> Iterator[_Source]:
    """Yield the configurations of the Patronis that run."""
    found = 0
    for entry in sorted(root.glob("proc/[0-9]*")):
        words = _strings(entry / "cmdline")
        arguments = _arguments(words)
        if arguments is None or found == _MOST_PROCESSES or _elsewhere(entry):
            continue
        found += 1
        variables = _strings(entry / "environ")
        environment = (
            Unknown(f"its environment: {variables.why}")
            if isinstance(variables, Unknown)
            else dict(one.split("=", 1) for one in variables if "=" in one)
        )
        try:
            uid = entry.stat().st_uid
            path = (entry / "cwd").readlink() / arguments[0] if arguments else None
        except OSError:
            uid, path = None, Path(arguments[0]) if arguments else None
        where = str(path) if path is not None else f"the environment of Patroni (process {entry.name})"
        if path is None or path.is_absolute():
            yield _Source(where, path, environment, uid)


def _elsewhere(process: Path) -> bool:
    """Report whether a process is in another container. A service may have its own mounts without being in one."""
    try:
        return any(
            (process / "ns" / kind).readlink() != (process.parent / "self/ns" / kind).readlink()
            for kind in ("net", "pid")
        )
    except OSError:
        return False


def _strings(path: Path) -> list[str] | Unknown:
    text = files.read(path, limit_bytes=_FILE_BYTES).text
    if isinstance(text, str):
        return text.split("\0")[:-1]
    return text if text is not None else Unknown("the process has ended")


def _arguments(words: list[str] | Unknown) -> list[str] | None:
    """Return the arguments of a command line that runs Patroni; None if it runs something else."""
    if isinstance(words, Unknown):
        return None
    for index, word in enumerate(words[:4]):  # an interpreter and its options may come first
        if word == "-m" and words[index + 1 : index + 2] == ["patroni"]:
            return [one for one in words[index + 2 :] if not one.startswith("-")]
        if word.rpartition("/")[2] in ("patroni", "patroni.py", "patroni.exe"):
            return [one for one in words[index + 1 :] if not one.startswith("-")]
    return None


def _units(root: Path, timeout_s: float) -> Iterator[_Source]:
    """Yield the configurations in systemd's units, for a Patroni that does not run now."""
    found = systemd.show(
        root,
        ("Id", "ExecStart", "Environment", "EnvironmentFiles"),
        ("patroni.service", "patroni@*.service", "*patroni*.service"),
        timeout_s=timeout_s,
    )
    for unit in found if isinstance(found, list) else ():
        environment = dict(one.split("=", 1) for one in _split(unit.get("Environment", "")) if "=" in one)
        for name in re.findall(r"(/\S+) \(ignore_errors", unit.get("EnvironmentFiles", "")):
            environment |= _environment_file(root / name.lstrip("/"))
        started = re.search(r"argv\[\]=(.*?) ;", unit.get("ExecStart", ""))
        words = _split(started[1]) if started else []
        arguments = _arguments([environment.get(word.strip("${}"), word) for word in words])
        if arguments is not None:
            path = root / arguments[0].lstrip("/") if arguments else None
            where = str(path) if path is not None else f"the environment of {unit.get('Id', 'Patroni')}"
            yield _Source(where, path, environment)


def _environment_file(path: Path) -> dict[str, str]:
    text = files.read(path, limit_bytes=_FILE_BYTES).text
    lines = (line.strip().split("=", 1) for line in (text if isinstance(text, str) else "").splitlines())
    return {line[0]: line[1].strip("'\"") for line in lines if line[1:] and line[0][:1] not in "#;"}


def _usual(root: Path) -> Iterator[_Source]:
    """Yield what is in the usual places: files that are complete by themselves, or else a folder of parts."""
    folder = root / "etc/patroni"
    alone = {
        path: _configuration(path) for path in (root / "etc/patroni.yml", *_parts(folder)) if os.path.lexists(path)
    }
    complete = [path for path, found in alone.items() if isinstance(found, Unknown) or _is_patronis(found)]
    whole = _configuration(folder)
    if not complete and isinstance(whole, dict) and _is_patronis(whole):
        complete = [folder]
    for path in complete:
        yield _Source(str(path), path, {})


def _parts(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIXES))[:_MOST_FILES]
    except OSError:
        return []


def _is_patronis(document: Mapping[str, Any]) -> bool:
    return {"scope", "postgresql"}.issubset(document)


def _configuration(path: Path) -> dict[str, Any] | Unknown:
    """Return the content of Patroni's file, or of its folder."""
    parts = _parts(path) or [path]
    whole: dict[str, Any] = {}
    for part in parts:
        text = files.read(part, limit_bytes=_FILE_BYTES).text
        if not isinstance(text, str):
            return Unknown(f"{plain(str(part))}: {text.why if text is not None else 'there is no such file'}")
        found = _yaml(text, str(part))
        if isinstance(found, Unknown):
            return found
        whole = _patched(whole, found)
    return whole


def _yaml(text: str, where: str) -> dict[str, Any] | Unknown:
    try:
        document, _ = yaml12.read(text)
    except yaml12.YamlError as error:
        return Unknown(plain(f"{where}: {error}"))
    return document if isinstance(document, dict) else {}


def _patched(below: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with another one over it, as Patroni's patch_config() does: null removes a key."""
    result = dict(below)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _patched(result[key], value)
        else:
            result[key] = value
    return result


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what Patroni takes from its environment, as far as doctor needs it; hooks cannot be set there."""
    variables = {key: value for key, value in environment.items() if key.startswith("PATRONI_") and value}
    found: dict[str, Any] = {}
    if "PATRONI_SCOPE" in variables:
        found["scope"] = variables["PATRONI_SCOPE"]
    if any(key.startswith("PATRONI_POSTGRESQL_") for key in variables):
        data_dir = variables.get("PATRONI_POSTGRESQL_DATA_DIR")
        found["postgresql"] = {"data_dir": data_dir} if data_dir else {}
    for key, names in _SECTIONS.items():
        given = {name: variables.get(f"PATRONI_{key}_{name}".upper()) for name in names}
        if set_ := {name: value for name, value in given.items() if value}:
            found[key] = set_
    return found


def _ask(document: Mapping[str, Any], path: str, timeout_s: float) -> dict[str, Any] | Unknown:
    """Return the answer of the REST API of the local Patroni."""
    restapi, ctl = (one if isinstance(one := document.get(key), dict) else {} for key in ("restapi", "ctl"))
    try:
        host, port = str(restapi.get("connect_address") or restapi["listen"]).rsplit(":", 1)
        secure = bool(restapi.get("certfile"))  # otherwise Patroni serves plain HTTP
        api = PatroniApi(
            port=int(port),
            cacert=_file(ctl.get("cacert") or restapi.get("cafile") or restapi["certfile"]) if secure else None,
            cert=_file(ctl.get("certfile")) if secure else None,
            key=_file(ctl.get("keyfile")) if secure else None,
        )
        answer = read_json(fetch(host.strip("[]"), api, path, timeout_s).body)
    except ApiError as error:
        return Unknown(f"its REST API: {plain(str(error))}")
    except (KeyError, ValueError):
        return Unknown("it has no usable restapi.connect_address, or its REST API returned no JSON")
    return answer if isinstance(answer, dict) else Unknown(f"its REST API returned no object at {path}")


def _version(answer: dict[str, Any] | Unknown) -> tuple[int, ...] | Unknown:
    """Return the version in the answer to ``GET /patroni``."""
    if isinstance(answer, Unknown):
        return answer
    about = answer.get("patroni")
    text = about.get("version") if isinstance(about, dict) else None
    found = _VERSION.match(text) if isinstance(text, str) else None
    return tuple(map(int, found[0].split("."))) if found else Unknown("its REST API gives no version")


def _file(value: object) -> str | None:
    return value if isinstance(value, str) and "\0" not in value else None


# --- The programs of the hook


def _hook(hook: HookName, command: str, *, user: str | None, path: str, timeout_s: float) -> Hook:
    """Return what is known of the programs of a command."""
    scripts = _scripts(command)
    words = _split(command)
    calls = [program for text in (command, *scripts.values()) for program in hook.calls(text)]
    programs = {
        **({words[0]: None} if words else {}),
        **{one: (hook.command, "--help") for one in calls if one.endswith("resolver-agent") and "$" not in one},
    }
    faults, unchecked = [], []
    for program, arguments in programs.items():
        fault = _cannot_run(program, arguments, user=user, path=path, timeout_s=timeout_s)
        if isinstance(fault, Unknown):
            unchecked.append(fault.why)
        elif fault is not None:
            faults.append(fault)
    return Hook(scripts=scripts, faults=tuple(faults), unchecked=tuple(dict.fromkeys(unchecked)))


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return []


def _scripts(command: str) -> dict[str, str]:
    """Return the scripts that a command names by their absolute path, and those that these name."""
    scripts: dict[str, str] = {}
    wanted = _ABSOLUTE.findall(command)
    while wanted and len(scripts) < _MOST_SCRIPTS:
        path = wanted.pop(0)
        text = files.read(Path(path), limit_bytes=_SCRIPT_BYTES).text if path not in scripts else None
        if isinstance(text, str) and text.startswith("#!") and not path.endswith("/resolver-agent"):
            scripts[path] = text
            wanted += _ABSOLUTE.findall(text)[:_MOST_FILES]
    return scripts


def _cannot_run(
    program: str, arguments: tuple[str, ...] | None, *, user: str | None, path: str, timeout_s: float
) -> str | Unknown | None:
    """Return why a user cannot run a program, or None if it can.

    Our own program is run, to see that it finds its modules; of any other one it is only seen that it may be executed.
    """
    who = f"Patroni's user ({user})"
    try:
        entry = pwd.getpwnam(user or "")
    except KeyError:
        return Unknown(f"whether Patroni's user can run {plain(program)}: that user is not known")
    if os.geteuid() not in (0, entry.pw_uid):
        return Unknown(f"whether {who} can run {plain(program)}: doctor does not run as root")
    test = ["/bin/sh", "-c", 'command -v -- "$0" >/dev/null && test -x "$(command -v -- "$0")"', program]
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
    try:
        ran = subprocess.run(
            [program, *arguments] if arguments is not None else test,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=max(_START_S, timeout_s),
            check=False,
            start_new_session=True,  # without our terminal, which its user could otherwise write to
            cwd="/",
            env={"PATH": path, "HOME": entry.pw_dir},
            **identity,
        )
    except subprocess.TimeoutExpired:
        return f"{plain(program)} does not end when {who} runs it"
    except (OSError, ValueError) as error:
        return f"{who} cannot run {plain(program)}: {files.why(error)}"
    if ran.returncode == 0:
        return None
    reason = (
        plain(ran.stderr.strip().splitlines()[-1]) if ran.stderr.strip() else "it may not, or there is no such file"
    )
    return f"{who} cannot run {plain(program)}: {reason}"
