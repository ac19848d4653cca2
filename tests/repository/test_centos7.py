"""What CentOS 7 has, as far as it can be told without one: its systemd reads our units, its bash our scripts."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).parents[2]
SCRIPTS = sorted((TOP / "vagrant/provision").glob("*.sh"))

LATER = (
    *("MemoryMax", "OOMPolicy", "ReadWritePaths", "StateDirectory", "RuntimeDirectoryPreserve"),
    *("PrivateIPC", "PrivateMounts", "ProcSubset", "ProtectClock", "ProtectControlGroups", "ProtectHostname"),
    *("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "RestrictNamespaces"),
    *("RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute"),
)
IGNORED = {
    "systemd/resolver-agent.service": {"Unit.StartLimitIntervalSec", *(f"Service.{name}" for name in LATER)},
    "systemd/local-off.conf": set(),
    "systemd/resolver-agent.socket": {"Socket.TriggerLimitIntervalSec"},
    "vagrant/provision/patroni.service": set(),
    "vagrant/provision/etcd-lab.conf": set(),
}
"""The units, and the directives of each that systemd 219 does not know: they only make the sandbox narrower, limit
memory, or have an older name beside them."""

UNITS = r"[\w@-]+\.(?:service|socket|target)"
SECONDS, PROGRAM, SWITCH, WORD = r"\d+", r"/.*", r"yes|no", r"\w+"
READ = {
    "Unit.Description": r".*",
    "Unit.Documentation": r"(?:man|https?|file|info):.*",
    **dict.fromkeys(("Unit.After", "Unit.Before", "Unit.Wants"), f"{UNITS}( {UNITS})*"),
    **dict.fromkeys(("Install.WantedBy", "Install.Also", "Service.Sockets"), UNITS),
    "Service.Type": r"simple|forking|oneshot|dbus|notify|idle",
    # Newer prefixes than - and @ would be a part of the path.
    **dict.fromkeys(("Service.ExecStart", "Service.ExecReload"), PROGRAM),
    "Service.Restart": r"no|on-success|on-failure|on-abnormal|on-watchdog|on-abort|always",
    **dict.fromkeys((f"Service.{name}Sec" for name in ("Restart", "Watchdog", "TimeoutStart", "TimeoutStop")), SECONDS),
    "Service.StartLimitInterval": r"0",
    "Service.KillMode": r"control-group|process|mixed|none",
    "Service.User": WORD,
    "Service.Nice": r"-?\d+",
    "Service.OOMScoreAdjust": r"-?\d+",
    **dict.fromkeys(("Service.LimitNOFILE", "Service.LimitCORE"), r"\d+"),
    **dict.fromkeys(("Service.UMask", "Socket.SocketMode"), r"0[0-7]{3}"),
    "Service.CapabilityBoundingSet": r"CAP_DAC_OVERRIDE",
    **dict.fromkeys((f"Service.{name}" for name in ("NoNewPrivileges", "PrivateDevices", "ProtectHome")), SWITCH),
    # `full` would make /etc read-only, and ReadWritePaths= is not known. Another word is ignored.
    "Service.ProtectSystem": r"strict",
    # A valid name would be removed at every stop, with the socket in it; one with a slash is ignored.
    "Service.RuntimeDirectory": r"[\w-]+/",
    "Service.RestrictAddressFamilies": r"AF_\w+( AF_\w+)*",
    "Service.SystemCallArchitectures": r"native",
    # It knows no groups of calls, and ignores them. A list of what is allowed would then allow nothing.
    "Service.SystemCallFilter": r"~.*",
    "Service.SystemCallErrorNumber": r"E[A-Z]+",
    "Socket.ListenStream": PROGRAM,
    "Socket.SocketGroup": WORD,
    "Socket.RemoveOnStop": SWITCH,
}
"""How the values must be written for systemd 219 to read them as meant; from its parsers (src/core/load-fragment.c)."""


def known() -> set[str]:
    """Return the directives that systemd 219 knows."""
    listed = configparser.ConfigParser()
    listed.read(Path(__file__).with_name("systemd_219.ini"))
    return {f"{name}.{word}" for name in listed.sections() for word in listed[name]["known"].split()}


def directives(unit: str) -> Iterator[tuple[str, str]]:
    """Yield the directives of a unit, with the section, and their values."""
    section = ""
    for line in (TOP / unit).read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = found[1]
        elif line and line[0] not in "#;":
            key, _, value = line.partition("=")
            yield f"{section}.{key}", value


def test_the_list_is_whole() -> None:
    """It has directives of each section, old ones and none that came later."""
    assert {"Unit.After", "Service.StartLimitInterval", "Socket.ListenStream", "Install.Also"} <= known()
    assert {"Unit.StartLimitIntervalSec", "Service.MemoryMax", "Service.RuntimeDirectoryPreserve"}.isdisjoint(known())
    assert len(known()) == 345


@pytest.mark.parametrize("unit", IGNORED)
def test_what_systemd_219_ignores(unit: str) -> None:
    """It does not know these directives, and knows all others."""
    assert {name for name, _ in directives(unit)} - known() == IGNORED[unit]


@pytest.mark.parametrize("unit", IGNORED)
def test_what_systemd_219_reads(unit: str) -> None:
    """What it knows has a value that it reads as it is meant, or ignores as it is meant."""
    misread = [
        f"{name}={value}"
        for name, value in directives(unit)
        if name in known() and not re.fullmatch(READ.get(name, "(?!)"), value)
    ]
    assert misread == []


NEWER = {
    # bash 4.2: its CHANGES and NEWS up to 5.2
    r"\$\{[\w@*\[\]]+@[QEPAKaUuL]\}": "${x@Q}",
    r"\b(?:declare|local|typeset) +-\w*n": "local -n x=y",
    r"\bwait +-[nfp]": "wait -n",
    r"\b(?:mapfile|readarray)\b.* -\w*d": "mapfile -t -d '' x",
    r"\[\[? +-R ": "[[ -R x ]]",
    r"-v +['\"]?\w+\[": "[[ -v x[1] ]]",
    r"^\s*\w+\[-\d+\]=": "x[-1]=y",
    r"\b(?:EPOCHSECONDS|EPOCHREALTIME|SRANDOM|BASH_ARGV0)\b": "$EPOCHSECONDS",
    r"\binherit_errexit\b|\blocalvar_inherit\b|\bassoc_expand_once\b": "shopt -s inherit_errexit",
    r"%\([^)]*\)T['\"]\s*$": "printf '%(%F)T'",
    r"\$\{[ |]": "${ date; }",
    # coreutils 8.22, sed 4.2, tar 1.26, curl 7.29, systemd 219
    r"\benv +-\w*[SCv]|\benv .*--(?:split-string|chdir|debug)": "env -S 'a b'",
    r"\b(?:cut|head|tail|comm|join|paste|nl) +-\w*z|--zero-terminated": "head -z",
    r"\btimeout +-\w*v": "timeout -v 5 true",
    r"\b(?:b2sum|basenc)\b": "b2sum x",
    r"\bwc +--total": "wc --total=only",
    r"\bcp\b.*--(?:keep-directory-symlink|update=)": "cp --update=none a b",
    r"\bsed +.*--(?:sandbox|debug)": "sed --sandbox s/a/b/",
    r"\btar\b.*--(?:sort|zstd|clamp-mtime|skip-old-files)": "tar --sort=name -c x",
    r"\bcurl\b.*--(?:fail-with-body|retry-all-errors|no-progress-meter|retry-connrefused|parallel)": (
        "curl --fail-with-body x"
    ),
    r"\bsystemctl\b.*--(?:value|wait|what|with-dependencies)\b": "systemctl show --value x",
    r"\bsystemctl +(?:clean|freeze|log-level|service-log-level)\b": "systemctl clean x",
    r"\bjournalctl\b.*--(?:grep|no-hostname|output-fields|facility|namespace)": "journalctl --grep=x",
    r"\bsystemd-run\b.*--(?:wait|pipe|collect)": "systemd-run --wait x",
}
"""What CentOS 7's tools do not have, each with a line that has it."""


@pytest.mark.parametrize(("pattern", "sample"), NEWER.items(), ids=NEWER.values())
def test_scripts_need_no_newer_tools(pattern: str, sample: str) -> None:
    """The provisioning's scripts use none of it."""
    assert re.search(pattern, sample)
    found = [
        f"{script.name}: {line}"
        for script in SCRIPTS
        for line in script.read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#") and re.search(pattern, line)
    ]
    assert found == []
