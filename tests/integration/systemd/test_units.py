"""The units on a Debian that boots systemd: start, sandbox, reload, stop, crash, watchdog and socket activation."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.integration.support.systemd_host import CHECKOUT, UNITS, SystemdHost, booted

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE, SOCKET = UNITS
SNIPPET = CHECKOUT / "systemd/patroni-hooks.yml"
LOCAL_OFF = CHECKOUT / "systemd/local-off.conf"
AGENT = "/opt/resolver-agent/bin/resolver-agent"
CONTROL = "/run/resolver-agent/control.sock"
HOSTS = "127.0.0.1\tlocalhost\r\n# kept to the byte: caf\xe9\t\n192.168.234.203 db3.example".encode("latin-1")
NAMED = rb"(?s).*\n192\.168\.234\.201\tcn\t# self.*\n192\.168\.234\.203\twk1\t# primary.*"

# Of these nodes only .201 (this one) and db3 (.203) have a server; packets to the others vanish.
CONFIG = """\
fallback: none
names:
  cn: {nodes: [192.168.234.201, 192.168.234.202]}
  wk1: {nodes: [db3.example, 192.168.234.204]}
postgresql: {user: resolver_agent, dbname: postgres}
local: {host: /run/postgresql}
"""
ALL_SILENT = """\
fallback: none
names:
  cn: {nodes: [192.168.234.202]}
  wk1: {nodes: [192.168.234.204, 192.168.234.205]}
postgresql: {user: resolver_agent, dbname: postgres}
local: {host: /run/nowhere}
"""

# Each command line is one server: its name, its address and its socket folders.
SERVERS = """
set -e
ip link add nodes type veth peer name nowhere
ip link set nowhere up
ip address add 192.168.234.201/24 dev nodes
ip address add 192.168.234.203/24 dev nodes
ip link set nodes arp off up
bin=$(echo /usr/lib/postgresql/*/bin)
server() {
    runuser -u postgres -- $bin/initdb --auth=trust --no-sync --pgdata=/var/lib/postgresql/$1 >/dev/null
    cd /var/lib/postgresql/$1
    echo "host all all 192.168.234.0/24 trust" >>pg_hba.conf
    sed -i '1i local all resolver_agent peer map=agent' pg_hba.conf
    echo "agent root resolver_agent" >>pg_ident.conf
    runuser -u postgres -- $bin/pg_ctl start --silent --wait --pgdata=. --log=log \\
        --options="-c fsync=off -c listen_addresses=$2 -c unix_socket_directories=$3"
    runuser -u postgres -- psql --quiet --host="${3%%,*}" --command="CREATE ROLE resolver_agent LOGIN"
}
server cn 192.168.234.201 /run/postgresql,/tmp &
cn=$!
server wk1 192.168.234.203 /var/lib/postgresql
wait $cn
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[SystemdHost]:
    """Yield a booted host with this node's PostgreSQL and one worker's."""
    with booted() as host:
        host.run("sh", "-c", SERVERS)
        yield host


@pytest.fixture
def host(machine: SystemdHost) -> SystemdHost:
    """Return the host as it is before the first start: configured, and the agent not running."""
    machine.run("systemctl", "stop", SERVICE.name, SOCKET.name)
    machine.run(
        "rm", "-rf", "/run/systemd/system/resolver-agent.service.d", "/run/systemd/system/resolver-agent.socket.d"
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed")
    machine.write("/etc/hosts", HOSTS)
    machine.write("/etc/resolver-agent.yml", CONFIG.encode())
    machine.run("chown", "root:root", "/etc/hosts", "/etc/resolver-agent.yml")
    return machine


APPLICATION = """\
fallback: none
names:
  db: {nodes: [192.168.234.203], route: primary}
postgresql: {user: resolver_agent, dbname: postgres}
local: off
"""


def start(host: SystemdHost) -> str:
    """Start the agent, wait until it has written both names, and return the main process id."""
    mark = host.mark()
    host.run("systemctl", "start", SERVICE.name)
    host.wait_for("wk1 → 192.168.234.203", after=mark)
    return host.show(SERVICE.name, "MainPID")["MainPID"]


def drop_in(host: SystemdHost, unit: str, text: str) -> None:
    """Add lines to a unit, as an administrator would."""
    host.run("mkdir", "-p", f"/run/systemd/system/{unit}.d")
    host.write(f"/run/systemd/system/{unit}.d/test.conf", text.encode())
    host.run("systemctl", "daemon-reload")


def test_verified(machine: SystemdHost) -> None:
    """Systemd has no objection to the units."""
    units = [f"/etc/systemd/system/{unit.name}" for unit in UNITS]
    assert machine.run("systemd-analyze", "verify", "--man=no", *units) == ""


def test_exposure() -> None:
    """By systemd's own measure the sandbox leaves little exposed."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(SERVICE)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", shown)
    assert found is not None
    assert float(found[1]) <= 2.1


def test_priorities_in_the_journal(host: SystemdHost) -> None:
    """The journal knows the level of each line, and the time stands there only once."""
    mark = host.mark()
    start(host)
    host.write("/etc/resolver-agent.yml", b"fallback: maybe\n")
    host.run("systemctl", "reload", SERVICE.name)
    host.wait_for("alert: the configuration stays as it was", after=mark)
    journal = host.run("journalctl", f"--unit={SERVICE.name}", f"--since={mark}", "--output=json").splitlines()
    lines = {line["MESSAGE"]: line["PRIORITY"] for line in map(json.loads, journal) if line["_COMM"] != "systemd"}
    [alert] = [text for text in lines if text.startswith("alert: the configuration stays as it was")]
    [name] = [text for text in lines if text.startswith("wk1 → 192.168.234.203")]
    assert (lines[alert], lines[name]) == ("4", "6")
    assert not [text for text in lines if re.match(r"<|\d{4}-", text)]


def test_limits(host: SystemdHost) -> None:
    """The agent cannot take the node's memory, is not the first to be killed when there is none, and dumps no core."""
    start(host)
    limits = {"MemoryMax": str(512 * 1024**2), "OOMScoreAdjust": "-500", "LimitCORE": "0"}
    assert host.show(SERVICE.name, *limits) == limits


def test_ready_with_every_node_silent(host: SystemdHost) -> None:
    """The agent is ready and feeds the watchdog while no node answers; the hosts file stays as it is."""
    host.write("/etc/resolver-agent.yml", ALL_SILENT.encode())
    drop_in(host, SERVICE.name, "[Service]\nWatchdogSec=4\n")
    mark = host.mark()
    host.run("systemctl", "start", SERVICE.name, timeout_s=10)
    with pytest.raises(TimeoutError):
        host.wait_for("Watchdog timeout|Stopping|Failed", after=mark, timeout_s=9)
    assert host.show(SERVICE.name, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    assert host.read("/etc/hosts") == HOSTS


@pytest.mark.parametrize("folder", ["/run/postgresql", "/tmp"])  # noqa: S108 - where PostgreSQL's own default puts it
def test_names_are_written_inside_the_sandbox(host: SystemdHost, folder: str) -> None:
    """The file is replaced, not overwritten; postgres may own Patroni's; the socket may be in either folder."""
    section = "scope: cn\nresolver_agent:\n" + re.sub("(?m)^", "  ", CONFIG.replace("/run/postgresql", folder))
    host.write("/etc/resolver-agent.yml", section.encode())
    host.run("chown", "postgres:postgres", "/etc/resolver-agent.yml")
    host.run("chmod", "0600", "/etc/resolver-agent.yml")
    before = (host.root / "etc/hosts").stat()
    start(host)
    after = (host.root / "etc/hosts").stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert host.read("/etc/hosts").startswith(HOSTS)
    assert re.fullmatch(NAMED, host.read("/etc/hosts"))
    assert host.run("getent", "hosts", "cn", "wk1").split() == ["192.168.234.201", "cn", "192.168.234.203", "wk1"]


def test_hosts_file_of_another_owner(host: SystemdHost) -> None:
    """With the drop-in that the unit names, owner and group of a hosts file that is not root's are kept."""
    host.run("chown", "postgres:adm", "/etc/hosts")
    before = (host.root / "etc/hosts").stat()
    drop_in(host, SERVICE.name, "[Service]\nCapabilityBoundingSet=CAP_CHOWN\nSystemCallFilter=@chown\n")
    start(host)
    after = (host.root / "etc/hosts").stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


STATE = "/var/lib/resolver-agent"
AT_A_CHANGE = f"""#!/bin/bash
try() {{
    if "${{@:2}}" >/dev/null 2>&1; then echo "may $1"; else echo "may not $1"; fi
}}
exec >{STATE}/told.new 2>&1
echo $RESOLVER_AGENT_NAME
echo $RESOLVER_AGENT_TO
try "write to /tmp" touch /tmp/told
try "write to /etc" touch /etc/told
try "read any file" cat /var/lib/postgresql/cn/pg_hba.conf
try "see a home" ls /root/.profile
try "start a unit" systemctl start told.service
try "signal another user's process" kill -0 $(head -n 1 /var/lib/postgresql/cn/postmaster.pid)
try "become another user" setpriv --reuid=postgres --clear-groups true
try "connect by IP" bash -c ": </dev/tcp/192.168.234.203/5432"
try "see the agent's environment for systemd" test "$NOTIFY_SOCKET$WATCHDOG_USEC$LISTEN_FDS"
nice
mv {STATE}/told.new {STATE}/told
"""
SANDBOX = """\
cn wk1
192.168.234.201 192.168.234.203
may not write to /tmp
may write to /etc
may read any file
may not see a home
may start a unit
may not signal another user's process
may not become another user
may connect by IP
may not see the agent's environment for systemd
0
"""


def test_a_command_at_a_change_in_the_sandbox(host: SystemdHost) -> None:
    """The README says what it may do; the changes are in a history that everybody may read."""
    host.run("sh", "-c", f"rm -rf {STATE}/* /etc/told /run/told")
    host.write("/run/systemd/system/told.service", b"[Service]\nType=oneshot\nExecStart=touch /run/told\n")
    host.run("systemctl", "daemon-reload")
    host.write("/usr/local/bin/names-changed", AT_A_CHANGE.encode())
    host.run("chmod", "755", "/usr/local/bin/names-changed")
    host.write("/etc/resolver-agent.yml", f"{CONFIG}on_change: {{command: [/usr/local/bin/names-changed]}}\n".encode())
    start(host)
    host.run("sh", "-c", f"until [ -e {STATE}/told ]; do sleep 0.1; done", timeout_s=20)
    assert host.read(f"{STATE}/told").decode() == SANDBOX
    host.run("ls", "/run/told", "/etc/told")
    assert host.run("stat", "--format=%a %U", STATE, f"{STATE}/history.jsonl").split() == ["755", "root", "644", "root"]
    shown = host.run("runuser", "-u", "nobody", "--", AGENT, "history")
    assert [line.split()[1:5] for line in shown.splitlines()] == [
        ["cn", "-", "→", "192.168.234.201"],
        ["wk1", "-", "→", "192.168.234.203"],
    ]


def test_reload(host: SystemdHost) -> None:
    """A reload applies a good file, and keeps the last good one when the next is bad; the process stays the same."""
    host.write("/etc/resolver-agent.yml", re.sub(r"  wk1:.*\n", "", CONFIG).encode())
    mark = host.mark()
    host.run("systemctl", "start", SERVICE.name)
    host.wait_for("cn → 192.168.234.201", after=mark)
    pid = host.show(SERVICE.name, "MainPID")["MainPID"]

    host.write("/etc/resolver-agent.yml", CONFIG.encode())
    host.run("systemctl", "reload", SERVICE.name)
    host.wait_for("wk1 → 192.168.234.203", after=mark)
    named = host.read("/etc/hosts")

    host.write("/etc/resolver-agent.yml", CONFIG.replace("wk1:", "localhost:").encode())
    host.run("systemctl", "reload", SERVICE.name)
    host.wait_for("/etc/resolver-agent.yml.*localhost", after=mark)
    assert host.show(SERVICE.name, "ActiveState", "MainPID") == {"ActiveState": "active", "MainPID": pid}
    assert host.read("/etc/hosts") == named


def test_stop(host: SystemdHost) -> None:
    """Stopping takes less than 3 s, is no failure, and leaves the hosts file as it is."""
    start(host)
    named = host.read("/etc/hosts")
    begun = time.monotonic()
    host.run("systemctl", "stop", SERVICE.name)
    assert time.monotonic() - begun < 3
    assert host.show(SERVICE.name, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert host.read("/etc/hosts") == named


def test_killed(host: SystemdHost) -> None:
    """After kill -9 the agent is restarted, with the same socket in the same folder, and goes on from the file."""
    pid = start(host)
    named, socket = host.read("/etc/hosts"), (host.root / CONTROL.lstrip("/")).stat()
    mark = host.mark()
    host.run("systemctl", "kill", "--signal=KILL", SERVICE.name)
    host.wait_for("^Started", after=mark)
    assert host.show(SERVICE.name, "MainPID")["MainPID"] not in {pid, "0"}
    assert (host.root / CONTROL.lstrip("/")).stat().st_ino == socket.st_ino
    assert "192.168.234.203" in host.run(AGENT, "status")
    assert host.read("/etc/hosts") == named


def test_frozen(host: SystemdHost) -> None:
    """An agent that no longer completes rounds is killed by the watchdog and started again."""
    pid = start(host)
    mark = host.mark()
    host.run("systemctl", "kill", "--signal=STOP", SERVICE.name)
    host.wait_for("Watchdog timeout", after=mark)
    host.wait_for("^Started", after=mark)
    assert host.show(SERVICE.name, "MainPID")["MainPID"] not in {pid, "0"}


def test_no_start_limit(host: SystemdHost) -> None:
    """However often it failed to start, the agent starts by itself once its configuration is fixed."""
    host.write("/etc/resolver-agent.yml", b"names: 3\n")
    drop_in(host, SERVICE.name, "[Service]\nRestartSec=100ms\n")
    mark = host.mark()
    host.run("systemctl", "start", "--no-block", SERVICE.name)
    host.wait_for("restart counter is at 8", after=mark, timeout_s=90)
    host.write("/etc/resolver-agent.yml", CONFIG.encode())
    host.wait_for("wk1 → 192.168.234.203", after=mark)


def test_socket_starts_a_stopped_agent(host: SystemdHost) -> None:
    """A connection by the postgres user starts a stopped agent and is answered; other users are refused."""
    host.run("systemctl", "start", SOCKET.name)
    assert host.run("stat", "--format=%A %U %G", CONTROL).split() == ["srw-rw----", "root", "postgres"]
    connect = ["python3", "-c", f"import socket; socket.socket(socket.AF_UNIX).connect({CONTROL!r})"]
    with pytest.raises(RuntimeError, match="PermissionError"):
        host.run("runuser", "-u", "nobody", "--", *connect)
    assert host.show(SERVICE.name, "ActiveState")["ActiveState"] == "inactive"

    mark = host.mark()
    host.run("runuser", "-u", "postgres", "--", *connect)
    host.wait_for("^Started", after=mark)
    host.wait_for("wk1 → 192.168.234.203", after=mark)
    assert "192.168.234.203" in host.run("runuser", "-u", "postgres", "--", AGENT, "status")


@pytest.fixture
def standby(host: SystemdHost) -> Iterator[None]:
    """Make this node's PostgreSQL a standby for one test."""
    control = "cd /var/lib/postgresql/cn && runuser -u postgres -- /usr/lib/postgresql/*/bin/pg_ctl --pgdata=. --wait"
    host.run("runuser", "-u", "postgres", "--", "touch", "/var/lib/postgresql/cn/standby.signal")
    host.run("sh", "-c", f"{control} --log=log restart")
    yield
    host.run("sh", "-c", f"{control} promote")


@pytest.mark.usefixtures("standby")
def test_the_promotion_hook_starts_a_stopped_agent(host: SystemdHost) -> None:
    """Patroni's line, run as the postgres user, starts a stopped agent, and ends when the names are written."""
    host.write("/etc/resolver-agent.yml", re.sub(r", 192\.168\.234\.20[24]", "", CONFIG).encode())
    host.run("ln", "-sf", AGENT, "/usr/local/bin/")
    host.run("systemctl", "start", SOCKET.name)
    assert host.show(SERVICE.name, "ActiveState")["ActiveState"] == "inactive"

    settings = yaml.safe_load(SNIPPET.read_text(encoding="utf-8"))
    line = shlex.split(settings["postgresql"]["pre_promote"])
    begun = time.monotonic()
    said = host.run("runuser", "-u", "postgres", "--", "sh", "-c", 'exec "$@" 2>&1', "sh", *line)
    assert time.monotonic() - begun < 3
    assert re.fullmatch(r"resolver-agent pre-promote: ready for the promotion \(after \d+ ms\).*\n", said)
    assert re.fullmatch(NAMED, host.read("/etc/hosts"))


def test_no_group_for_the_socket(host: SystemdHost) -> None:
    """Where the socket's group does not exist the socket unit fails, and the agent serves a socket of its own."""
    drop_in(host, SOCKET.name, "[Socket]\nSocketGroup=nobody-has-this\n")
    start(host)
    assert host.show(SOCKET.name, "ActiveState")["ActiveState"] == "failed"
    assert "192.168.234.203" in host.run(AGENT, "status")


def test_before_patroni(host: SystemdHost) -> None:
    """When both are started together, Patroni waits until the agent is ready."""
    unit = f"[Unit]\nWants={SERVICE.name}\n[Service]\nExecStart=systemctl is-active {SERVICE.name}\n"
    host.write("/run/systemd/system/patroni.service", unit.encode())
    host.run("systemctl", "daemon-reload")
    mark = host.mark()
    host.run("systemctl", "start", "patroni.service")
    assert host.wait_for("^activ", after=mark, unit="patroni.service") == "active"


def test_before_an_instance_of_patroni(host: SystemdHost) -> None:
    """The drop-in that doctor gives orders Debian's instances behind the agent, and its finding is gone."""
    host.run("mkdir", "-p", "/run/systemd/system")
    command = f"sh -c 'systemctl is-active {SERVICE.name}; exec sleep 99'"
    unit = f"[Unit]\nWants={SERVICE.name}\n[Service]\nType=exec\nExecStart={command}\n"
    host.write("/run/systemd/system/patroni@.service", unit.encode())
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "patroni@15-main.service")

    def order() -> list[str]:
        report = json.loads(host.run("sh", "-c", f"{AGENT} doctor --json || :"))
        return [one["fix"] for one in report["findings"] if one["key"] == "systemd:order"]

    [fix] = order()
    host.run("sh", "-c", fix)
    assert order() == []
    host.run("systemctl", "stop", "patroni@15-main.service", SERVICE.name)
    mark = host.mark()
    host.run("systemctl", "start", "patroni@15-main.service")
    assert host.wait_for("activ", after=mark, unit="patroni@15-main.service") == "active"
    host.run("systemctl", "stop", "patroni@15-main.service")


def test_a_host_without_the_group_postgres(host: SystemdHost) -> None:
    """With its drop-in the socket needs no such group, and a connection starts the agent."""
    host.write("/etc/resolver-agent.yml", APPLICATION.encode())
    host.run("groupmod", "--new-name", "elsewhere", "postgres")
    try:
        with pytest.raises(RuntimeError):
            host.run("systemctl", "start", SOCKET.name)
        drop_in(host, SOCKET.name, LOCAL_OFF.read_text())
        host.run("systemctl", "reset-failed")
        host.run("systemctl", "start", SOCKET.name)
        assert host.run("stat", "--format=%U:%G %a", CONTROL).split() == ["root:root", "660"]
        mark = host.mark()
        host.run("sh", "-c", f"{AGENT} pre-promote")
        host.wait_for("db → 192.168.234.203", after=mark)
        assert "no local PostgreSQL (local: off)" in host.run(AGENT, "status")
    finally:
        host.run("groupmod", "--new-name", "postgres", "elsewhere")
