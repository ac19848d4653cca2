"""The daemon as a process, with real servers: what its names do, what stops it, what it says, and what it leaves."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import yaml

from resolver_agent.control import client
from tests.integration.support.machine import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from resolver_agent.demo.postgres import Postgres
    from tests.integration.conftest import Agent, Group
    from tests.integration.support.proxy import Proxy

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]

FENCE = "255.255.255.255"
SETTLED = r" wk2 → "


def status(config: Path) -> dict[str, Any]:
    """Return what the agent with this configuration says of itself."""
    runtime_dir = yaml.safe_load(config.read_text())["runtime_dir"]
    return client.ask(f"{runtime_dir}/control.sock", "status")


def alerts(config: Path) -> set[str]:
    """Return the keys of what is wrong, by the agent's own word."""
    return {alert["key"] for alert in status(config)["alerts"]}


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 10.0) -> Any:
    """Return what ``condition`` returns once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.01)
    return found


def written(path: Path) -> tuple[int, int, int]:
    """Return what changes whenever a file is written or replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def count(agent: Agent, pattern: str) -> int:
    """Return how many lines of the log match."""
    return sum(re.search(pattern, line) is not None for line in agent.lines)


def edit(config: Path, **settings: Any) -> None:
    """Change settings in a configuration file."""
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | settings, sort_keys=False))


def add_first(path: Path, text: str) -> None:
    """Put a line on top of a file."""
    replace(path, text + path.read_text())


def leads(agent: Agent) -> dict[str, str | None]:
    """Return where all names lead."""
    return {name: agent.target(name) for name in ("cn", "wk1", "wk2")}


@pytest.fixture
def settled(cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent) -> tuple[Agent, Path]:
    """Start an agent on the primary coordinator, and wait until its names are right."""
    config = write_config(cluster["cn"].primary, cluster)
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    return agent, config


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Yield a socket in the place of systemd's NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        yield receiver


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a file system for the hosts file alone: ``mounted("-t", "tmpfs", …)`` returns the file's path."""
    folder, image = tmp_path / "mnt", tmp_path / "image"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with contextlib.ExitStack() as mounts:

        def mount(*arguments: str) -> Path:
            subprocess.run(["mount", *arguments, image, folder], check=True)
            mounts.callback(lambda: subprocess.run(["umount", folder], check=True))
            path = folder / "hosts"
            path.write_text("127.0.0.1\tlocalhost\n")
            return path

        yield mount


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Have every write to the file system that a path is on hang."""
    subprocess.run(["fsfreeze", "--freeze", path.parent], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", path.parent], check=True)


# --- Names follow roles


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_names_have_the_role_of_the_local_server(
    role: str, cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """Beside a primary names lead to primaries, beside a standby to standbys, and one's own to oneself."""
    local = getattr(cluster["cn"], role)
    agent = start_agent(write_config(local, cluster))
    agent.wait_for_line(SETTLED)
    workers = {name: getattr(cluster[name], role).address for name in ("wk1", "wk2")}
    assert leads(agent) == {"cn": local.address, **workers}
    assert agent.hosts_file.read_text().startswith("127.0.0.1\tlocalhost\n# BEGIN resolver-agent")


def test_a_worker_promotion_is_followed_and_said_once(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """The name of the group moves to the new primary, with one line that says why; the others stay."""
    agent, config = settled
    before, since = leads(agent), len(agent.lines)
    worker = cluster["wk1"]
    worker.primary.stop()
    agent.wait_for_line("alert: wk1 → .*held", since=since)
    worker.standby.promote()
    agent.wait_for_target("wk1", worker.standby.address)
    assert leads(agent) == before | {"wk1": worker.standby.address}
    line = agent.wait_for_line(f" wk1 → {worker.standby.address} ", since=since)
    assert re.search(r"\(primary, timeline \d+\)", line)
    agent.wait_for_line("over: wk1 → .*held", since=since)
    assert count(agent, f"INFO wk1 → {worker.standby.address} ") == 1
    [said] = [name for name in status(config)["names"] if name["name"] == "wk1"]
    assert (said["address"], said["code"]) == (worker.standby.address, "primary")


def test_a_coordinator_promotion_flips_all_names(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """When the local standby is promoted every name leads to a primary in one write; its own name stays."""
    local = cluster["cn"].standby
    agent = start_agent(write_config(local, cluster))
    agent.wait_for_line(SETTLED)
    cluster["cn"].primary.stop()
    local.promote()
    agent.wait_for_target("wk1", cluster["wk1"].primary.address)
    assert leads(agent) == {
        "cn": local.address,
        "wk1": cluster["wk1"].primary.address,
        "wk2": cluster["wk2"].primary.address,
    }
    agent.wait_for_line("the local role is primary")


@pytest.mark.parametrize(
    ("fallback", "roles"),
    [
        pytest.param("none", ("fence", "standby"), id="none: the name is fenced"),
        pytest.param("primary", ("primary", "standby"), id="primary: this name goes to its primary"),
        pytest.param("all", ("primary", "primary"), id="all: every name goes to its primary"),
    ],
)
def test_a_lost_worker_standby(
    fallback: str, roles: tuple[str, str], cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """Each kind of fallback does what it says, is an alert while it lasts, and ends when the standby is back."""
    lost = cluster["wk1"].standby
    config = write_config(cluster["cn"].standby, cluster, fallback=fallback, failback_delay="0s")
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    before, since = leads(agent), len(agent.lines)
    lost.kill()
    fallen = {
        name: FENCE if role == "fence" else getattr(cluster[name], role).address
        for name, role in zip(("wk1", "wk2"), roles, strict=True)
    }
    for name, address in fallen.items():
        agent.wait_for_target(name, address)
    assert leads(agent) == before | fallen
    code = "fenced" if fallback == "none" else "fallback"
    agent.wait_for_line(f"ERROR alert: wk1 → .*no fit standby: .*{lost.address} is dead", since=since)
    assert f"wk1:{code}" in alerts(config)

    lost.start()
    for name in ("wk1", "wk2"):
        agent.wait_for_target(name, cluster[name].standby.address)
    agent.wait_for_line("ERROR over: wk1 → ", since=since)
    agent.wait_for_line(f"INFO wk1 → {lost.address} ", since=since)
    wait_until(lambda: not alerts(config))
    told = [line for line in agent.lines[since:] if re.search(r"(INFO|alert:) wk1 → (?!.*held)", line)]
    assert len(told) == 2, told


def test_nothing_is_written_before_every_node_has_answered_or_timed_out(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, hosts_file: Path
) -> None:
    """While one node keeps silent the file stays as it was, however much is known of the others."""
    silent = cluster["wk2"].standby
    silent.pause()
    config = write_config(cluster["cn"].primary, cluster)
    before = written(hosts_file)
    agent = start_agent(config)
    agent.wait_for_line("keeps")

    def unknown() -> list[str]:
        return [node["node"] for node in status(config)["nodes"] if node["kind"] == "unknown"]

    assert wait_until(lambda: unknown() == [f"{silent.address}:{silent.port}"])
    wait_until(lambda: written(hosts_file) != before)
    assert unknown() == []
    agent.wait_for_line(f"{silent.address}:{silent.port} is unreachable \\(no answer within 2 s\\)")


def test_a_node_that_a_reload_brings_is_asked_before_anything_is_written(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """A new name is decided on all of its nodes, as at the start; status knows it meanwhile."""
    silent, answering = cluster["wk2"].primary, cluster["wk2"].standby
    config = write_config(cluster["cn"].standby, {name: cluster[name] for name in ("cn", "wk1")})
    agent = start_agent(config)
    agent.wait_for_line(" wk1 → ")
    silent.pause()
    full = yaml.safe_load(config.read_text())
    edit(config, names=full["names"] | {"wk2": {"nodes": [silent.address, answering.address]}})
    agent.process.send_signal(signal.SIGHUP)

    def asked() -> list[str]:
        return [node["kind"] for node in status(config)["nodes"] if node["name"] == "wk2"]

    assert wait_until(lambda: asked() == ["unknown", "standby"])
    assert [name["code"] for name in status(config)["names"]] == ["self", "standby", "unknown"]
    agent.wait_for_target("wk2", answering.address)
    assert asked() == ["unreachable", "standby"]
    agent.wait_for_line(f"INFO wk2 → {answering.address} ")
    assert count(agent, "alert: ") == 0


def test_a_silent_node_that_a_reload_brings_delays_no_other(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """While a new name waits for its nodes the others follow what happens: here a promotion of the coordinator."""
    local, silent = cluster["cn"].standby, cluster["wk2"]
    config = write_config(local, {name: cluster[name] for name in ("cn", "wk1")})
    agent = start_agent(config)
    agent.wait_for_line(" wk1 → ")
    for node in silent.nodes:
        node.pause()
    names = yaml.safe_load(config.read_text())["names"]
    edit(config, names=names | {"wk2": {"nodes": [node.address for node in silent.nodes]}}, timeout="30s")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("read .* again")
    cluster["cn"].primary.stop()
    local.promote()
    agent.wait_for_target("wk1", cluster["wk1"].primary.address)
    assert {node["kind"] for node in status(config)["nodes"] if node["name"] == "wk2"} == {"unknown"}


# --- Start, stop, reload


class Rest(http.server.BaseHTTPRequestHandler):
    """The API of a Patroni that leads, and knows of a member that no configuration does."""

    system_id = 0
    members: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        """Answer."""
        own = {"patroni": {"scope": "wk1"}, "database_system_identifier": str(self.system_id)}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"members": self.members} if self.path == "/cluster" else own).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_a_member_that_patroni_knows_of(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """A replica that no configuration has is read from, and is shown like any other node."""
    primary, standby = cluster["wk1"].primary, cluster["wk1"].standby
    [(Rest.system_id,)] = primary.run_sql("SELECT system_identifier FROM pg_control_system()")
    Rest.members = [{"host": one.address, "port": one.port, "state": "streaming"} for one in (primary, standby)]
    with http.server.ThreadingHTTPServer((primary.address, 0), Rest) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        names = {
            "cn": {"nodes": [node.address for node in cluster["cn"].nodes]},
            "wk1": {"nodes": [primary.address], "patroni": {"port": server.server_port}},
        }
        config = write_config(cluster["cn"].standby, cluster, names=names)
        start_agent(config).wait_for_target("wk1", standby.address)
        nodes = [node["node"] for node in status(config)["nodes"] if node["name"] == "wk1"]
        assert nodes == [f"{one.address}:{one.port}" for one in (primary, standby)]
        server.shutdown()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_leaves_the_file(settled: tuple[Agent, Path], signum: signal.Signals) -> None:
    """It ends within 3 s, in order, and the file stays as it is to the byte."""
    agent, _ = settled
    before = written(agent.hosts_file)
    agent.process.send_signal(signum)
    assert agent.wait(timeout_s=3) == 0
    assert written(agent.hosts_file) == before
    assert "stopped" in agent.lines[-1]
    assert not any("Traceback" in line for line in agent.lines)


def test_a_hung_node_does_not_hold_up_the_stop(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """With probes and a reconnect under way to a node that does not answer it ends within 3 s all the same."""
    agent, _ = settled
    cluster["wk1"].standby.pause()
    agent.wait_for_line(f"{cluster['wk1'].standby.address}:.* is unreachable")
    before = agent.hosts_file.read_bytes()
    agent.process.send_signal(signal.SIGTERM)
    assert agent.wait(timeout_s=3) == 0
    assert agent.hosts_file.read_bytes() == before


def test_a_stop_during_the_first_look(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, hosts_file: Path
) -> None:
    """An agent that is stopped before it has seen every node has written nothing."""
    cluster["wk1"].primary.pause()
    before = written(hosts_file)
    agent = start_agent(write_config(cluster["cn"].primary, cluster))
    agent.wait_for_line("keeps")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.wait(timeout_s=3) == 0
    assert written(hosts_file) == before


def test_a_name_server_that_hangs_does_not_hold_up_the_stop(
    cluster: dict[str, Group], write_config: WriteConfig, hosts_file: Path, tmp_path: Path
) -> None:
    """Lookups of nodes that are given by name cannot be broken off; neither a write nor the stop waits for them."""
    config = write_config(cluster["cn"].primary, cluster)
    names = yaml.safe_load(config.read_text())["names"]
    edit(config, names=names | {"wk3": {"nodes": [f"db{i}.example" for i in range(40)]}})
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.78\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.78", 53))
        script = f'mount --bind {resolv_conf} /etc/resolv.conf && exec "$0" -m resolver_agent.cli run -c "$1"'
        process = subprocess.Popen(["unshare", "-m", "sh", "-c", script, sys.executable, config])
        try:
            wait_until(lambda: f"{cluster['wk2'].primary.address}\twk2" in hosts_file.read_text())
            process.terminate()
            assert process.wait(3) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("local", ["up", "down"])
def test_a_killed_agent_goes_on_from_the_block(
    local: str, cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """After kill -9 the role and the own name come from the file, also while the local PostgreSQL is down."""
    config = write_config(cluster["cn"].standby, cluster)
    first = start_agent(config)
    first.wait_for_line(SETTLED)
    before = leads(first)
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    if local == "down":
        cluster["cn"].standby.stop()
    content = first.hosts_file.read_bytes()
    second = start_agent(config)
    second.wait_for_line(SETTLED)
    assert leads(second) == before
    assert second.hosts_file.read_bytes() == content
    assert status(config)["role"] == "standby"
    assert ("local" in alerts(config)) == (local == "down")


def test_a_second_agent_refuses_to_start(settled: tuple[Agent, Path], start_agent: StartAgent) -> None:
    """It names the first one's process, ends with exit code 2, and leaves the first one's socket alone."""
    first, config = settled
    second = start_agent(config)
    assert second.wait() == 2
    [line] = second.lines
    assert f"lock is held by another agent, process {first.process.pid}" in line
    assert status(config)["pid"] == first.process.pid


def test_a_good_reload_takes_effect(settled: tuple[Agent, Path]) -> None:
    """SIGHUP reads the configuration again: a name that is gone leaves the block, the log changes its format."""
    agent, config = settled
    names = yaml.safe_load(config.read_text())["names"]
    del names["wk2"]
    edit(config, names=names, log={"format": "json"})
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line('"message": "read .* again"')
    wait_until(lambda: agent.target("wk2") is None)
    assert agent.target("wk1") is not None


def test_a_bad_reload_keeps_the_old_configuration(settled: tuple[Agent, Path]) -> None:
    """It is one alert with every error, until a good file is read."""
    agent, config = settled
    good, before = config.read_text(), leads(agent)
    config.write_text(good.replace("fallback: none", "fallback: maybe\ninterval: -1"))
    for _ in range(2):
        agent.process.send_signal(signal.SIGHUP)
    line = agent.wait_for_line("alert: the configuration stays as it was")
    assert "fallback: " in line
    assert "interval: " in line
    assert leads(agent) == before
    assert any(key.endswith("config") for key in alerts(config))

    replace(config, good)  # the second of the two may be heeded only now
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("over: the configuration stays as it was")
    assert count(agent, "alert: the configuration") == 1
    assert alerts(config) == set()


def test_another_fault_in_the_configuration_is_said_too(settled: tuple[Agent, Path]) -> None:
    """Whoever mends one error and makes another hears of that one."""
    agent, config = settled
    good = config.read_text()
    for fault in ("fallback: maybe", "fallback: [none]"):
        config.write_text(good.replace("fallback: none", fault))
        since = len(agent.lines)
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for_line("alert: the configuration stays as it was", since=since)


@pytest.mark.parametrize("key", ["hosts_file", "runtime_dir"])
def test_a_reload_cannot_move_the_file(key: str, settled: tuple[Agent, Path], tmp_path: Path) -> None:
    """The file and the lock are the running agent's for good; the alert says when the change takes effect."""
    agent, config = settled
    good = config.read_text()
    edit(config, **{key: str(tmp_path / "elsewhere")})
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line(f"alert: the configuration stays as it was: .*{key}: changes at a restart only")
    assert not (tmp_path / "elsewhere").exists()
    config.write_text(good)
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("over: the configuration")


# --- Blind


def test_without_a_login_nothing_changes(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, hosts_file: Path
) -> None:
    """An agent that no server lets in holds what the block says, and says so for every node."""
    config = write_config(cluster["cn"].standby, cluster)
    seeing = start_agent(config)
    seeing.wait_for_line(SETTLED)
    assert seeing.stop() == 0
    before = written(hosts_file)
    edit(config, postgresql={"user": "nobody"})
    agent = start_agent(config)
    agent.wait_for_line("alert: wk2 → .*held")
    assert written(hosts_file) == before
    nodes = {f"{node.address}:{node.port}:rejecting" for group in cluster.values() for node in group.nodes}
    assert nodes | {"local", "wk1:held", "wk2:held"} <= alerts(config)
    wait_until(lambda: count(agent, 'cannot be asked: .*role "nobody" does not exist') >= len(nodes))


def test_without_slots_nothing_changes(
    cluster: dict[str, Group], pair: Group, write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """A primary that has no connection left for us keeps its name, whatever its standby says meanwhile."""
    config = write_config(cluster["cn"].primary, {"cn": cluster["cn"]})
    wk1 = {"nodes": [node.address for node in pair.nodes], "port": pair.primary.port}
    edit(config, names=yaml.safe_load(config.read_text())["names"] | {"wk1": wk1})
    agent = start_agent(config)
    agent.wait_for_line(" wk1 → ")
    before, node = agent.hosts_file.read_bytes(), f"{pair.primary.address}:{pair.primary.port}"
    pair.primary.run_sql("ALTER ROLE resolver_agent CONNECTION LIMIT 0")
    pair.primary.run_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'resolver_agent'")
    agent.wait_for_line(f"alert: {node} cannot be asked: too many connections for role")
    held = f"wk1 → {pair.primary.address} (held; no primary; {pair.primary.address} cannot be asked"
    wait_until(lambda: any(alert["text"].startswith(held) for alert in status(config)["alerts"]))
    assert agent.hosts_file.read_bytes() == before
    pair.primary.run_sql("ALTER ROLE resolver_agent CONNECTION LIMIT -1")
    agent.wait_for_line(f"over: {node} cannot be asked: too many connections for role")
    agent.wait_for_line(f"over: wk1 → {pair.primary.address} .held")
    assert agent.hosts_file.read_bytes() == before


def test_without_a_network_nothing_changes(
    cluster: dict[str, Group],
    write_config: WriteConfig,
    start_agent: StartAgent,
    start_proxy: Callable[[str, Postgres], Proxy],
) -> None:
    """When all nodes fall silent at once every name stays, with one alert for each that ends with the silence."""
    proxies = {
        name: [start_proxy(f"127.0.8.{number + place}", node) for place, node in enumerate(cluster[name].nodes)]
        for number, name in ((10, "wk1"), (20, "wk2"))
    }
    config = write_config(cluster["cn"].primary, cluster)
    names = yaml.safe_load(config.read_text())["names"]
    edit(config, names=names | {name: {"nodes": [one.address for one in ends]} for name, ends in proxies.items()})
    agent = start_agent(config)
    agent.wait_for_line(SETTLED)
    before = agent.hosts_file.read_bytes()
    for proxy in (one for ends in proxies.values() for one in ends):
        proxy.freeze()
    for name in ("wk1", "wk2"):
        agent.wait_for_line(f"alert: {name} → .*held; no primary; ")
    assert agent.hosts_file.read_bytes() == before
    for proxy in (one for ends in proxies.values() for one in ends):
        proxy.thaw()
    for name in ("wk1", "wk2"):
        agent.wait_for_line(f"over: {name} → .*held; no primary; ")
        assert count(agent, f"alert: {name} → ") == 1
    assert agent.hosts_file.read_bytes() == before
    wait_until(lambda: not alerts(config))


# --- The file


def test_trampling_is_repaired_and_counted(settled: tuple[Agent, Path]) -> None:
    """Lines of ours that somebody changes are put back, and their own are kept."""
    agent, config = settled
    content = agent.hosts_file.read_text()
    changed = "# mine\n" + content.replace(str(agent.target("wk1")), "10.9.9.9")
    agent.hosts_file.write_text(changed)
    wait_until(lambda: agent.hosts_file.read_text() == "# mine\n" + content)
    agent.wait_for_line("WARNING .*somebody else changed resolver-agent's lines; they are put back")
    assert status(config)["trampled"] == 1
    agent.hosts_file.unlink()
    wait_until(lambda: agent.hosts_file.exists() and agent.hosts_file.read_text() in content)
    wait_until(lambda: status(config)["trampled"] == 2)


def test_repeated_trampling_is_met_ever_later_and_is_an_alert(settled: tuple[Agent, Path]) -> None:
    """A fight over the file is not fought as fast as the disk allows, and is said once."""
    agent, config = settled
    wanted = str(agent.target("wk1"))
    healed_at = []
    for _ in range(6):
        agent.hosts_file.write_text(agent.hosts_file.read_text().replace(f"{wanted}\twk1", "10.9.9.9\twk1"))
        begun = time.monotonic()
        agent.wait_for_target("wk1", wanted)
        healed_at.append(time.monotonic() - begun)
    assert max(healed_at[4:]) > 2 * min(healed_at[:3])
    agent.wait_for_line("alert: .*somebody else keeps changing resolver-agent's lines")
    assert alerts(config) == {"file:trampled"}
    assert count(agent, "resolver-agent's lines") == 4


def test_other_edits_are_kept_and_no_trampling(settled: tuple[Agent, Path]) -> None:
    """A change outside the block is nobody's fault."""
    agent, config = settled
    content = agent.hosts_file.read_bytes()
    agent.hosts_file.write_bytes(b"\xff\tmine\r\n" + content + b"10.0.0.1 last")
    add_first(config, "# for the next round\n")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("read .* again")
    assert agent.hosts_file.read_bytes() == b"\xff\tmine\r\n" + content + b"10.0.0.1 last"
    assert status(config)["trampled"] == 0


def test_a_line_of_others_with_a_managed_name_is_an_alert(settled: tuple[Agent, Path]) -> None:
    """It is named by its number, left alone, and the alert ends with it."""
    agent, config = settled
    content = agent.hosts_file.read_text()
    add_first(agent.hosts_file, "10.0.0.1\tother WK1\n")
    line = agent.wait_for_line("alert: .*line 1 also names wk1")
    assert "other WK1" in line
    assert agent.hosts_file.read_text() == "10.0.0.1\tother WK1\n" + content
    add_first(agent.hosts_file, "# one down\n")
    wait_until(lambda: "line 2 also" in status(config)["alerts"][0]["text"])
    agent.hosts_file.write_text(content)
    agent.wait_for_line("over: .*also names wk1")
    assert count(agent, "alert: ") == 1


def test_damaged_markers_stop_every_change(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """With BEGIN but no END nothing is written until that is mended; then the names are put right at once."""
    agent, config = settled
    content = agent.hosts_file.read_text()
    damaged = content.replace("# END resolver-agent\n", "")
    agent.hosts_file.write_text(damaged)
    agent.wait_for_line("alert: .*hosts: line 2: '# BEGIN resolver-agent' has no '# END resolver-agent' below it")
    worker = cluster["wk1"]
    worker.primary.stop()
    worker.standby.promote()
    wait_until(lambda: [n["address"] for n in status(config)["names"]][1] == worker.standby.address)
    assert agent.hosts_file.read_text() == damaged
    agent.hosts_file.write_text(content)
    agent.wait_for_target("wk1", worker.standby.address)
    agent.wait_for_line("over: .*has no '# END")
    assert count(agent, "alert: .*has no '# END") == 1
    assert status(config)["trampled"] == 0


def test_damaged_markers_at_the_start(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, hosts_file: Path
) -> None:
    """An agent that cannot read its memory says so once, does nothing, and goes on when the line is mended."""
    damaged = "127.0.0.1\tlocalhost\n# BEGIN resolver-agent\n"
    hosts_file.write_text(damaged)
    config = write_config(cluster["cn"].primary, cluster)
    agent = start_agent(config)
    agent.wait_for_line("alert: .*hosts: line 2: '# BEGIN resolver-agent' has no .* nothing is done before that")
    wait_until(lambda: "unknown" not in [node["kind"] for node in status(config)["nodes"]])
    assert "file" in alerts(config)
    assert hosts_file.read_text() == damaged
    hosts_file.write_text(damaged + "# END resolver-agent\n")
    agent.wait_for_target("wk1", cluster["wk1"].primary.address)
    agent.wait_for_line("over: .*has no")
    assert count(agent, "alert: ") == 1


def test_an_immutable_file_is_an_alert(settled: tuple[Agent, Path], cluster: dict[str, Group]) -> None:
    """What cannot be written is said once, tried again, and said once more when it works."""
    agent, config = settled
    before = agent.hosts_file.read_bytes()
    subprocess.run(["chattr", "+i", agent.hosts_file], check=True)
    try:
        cluster["wk1"].primary.stop()
        cluster["wk1"].standby.promote()
        agent.wait_for_line("alert: .*hosts cannot be written: Operation not permitted; undo a chattr")
        assert agent.hosts_file.read_bytes() == before
        wait_until(lambda: [name["address"] for name in status(config)["names"]][1] == cluster["wk1"].standby.address)
        assert status(config)["written"] is False
        assert count(agent, f"INFO wk1 → {cluster['wk1'].standby.address}") == 0
        assert "file" in alerts(config)
    finally:
        subprocess.run(["chattr", "-i", agent.hosts_file], check=True)
    agent.wait_for_target("wk1", cluster["wk1"].standby.address)
    agent.wait_for_line("over: .*Operation not permitted")
    assert count(agent, "alert: .*Operation not permitted") == 1


def test_a_full_disk_is_an_alert(
    cluster: dict[str, Group], write_config: WriteConfig, mounted: Callable[..., Path], start_agent: StartAgent
) -> None:
    """Without space the old file stays whole, and the names are written as soon as there is some."""
    hosts_file = mounted("-t", "tmpfs", "-o", "size=16k")
    filler = hosts_file.with_name("filler")
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:  # noqa: PT012 -- one act
        while True:
            file.write(bytes(4096))
            file.flush()
    agent = start_agent(write_config(cluster["cn"].primary, cluster, hosts_file=str(hosts_file)))
    agent.wait_for_line("alert: .*cannot be written: No space left on device; free space")
    assert hosts_file.read_text() == "127.0.0.1\tlocalhost\n"
    filler.unlink()
    agent.wait_for_line("over: .*No space left on device")
    assert f"{cluster['wk1'].primary.address}\twk1" in hosts_file.read_text()
    assert count(agent, "alert: ") == 1


def test_what_is_being_written_is_not_said_to_be_written(
    cluster: dict[str, Group], write_config: WriteConfig, mounted: Callable[..., Path], start_agent: StartAgent
) -> None:
    """While a write hangs in a frozen file system the status tells where names should lead, and that none does yet."""
    hosts_file = mounted("-t", "ext4", "-o", "loop")
    config = write_config(cluster["cn"].primary, cluster, hosts_file=str(hosts_file))

    def moved() -> dict[str, Any] | None:
        said = status(config)
        return said if said["names"][1]["address"] == cluster["wk1"].standby.address else None

    start_agent(config).wait_for_line(SETTLED)
    wait_until(lambda: status(config)["written"])
    with frozen(hosts_file):
        cluster["wk1"].primary.stop()
        cluster["wk1"].standby.promote()
        assert wait_until(moved)["written"] is False
    wait_until(lambda: status(config)["written"])
    assert f"{cluster['wk1'].standby.address}\twk1" in hosts_file.read_text()


# --- systemd


def test_it_is_ready_before_any_node_has_answered(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, manager: socket.socket
) -> None:
    """Patroni waits for READY, and may be what makes the nodes answer."""
    for node in (node for group in cluster.values() for node in group.nodes):
        node.pause()
    config = write_config(cluster["cn"].primary, cluster)
    start_agent(config, env={"NOTIFY_SOCKET": manager.getsockname()})
    assert manager.recv(4096) == b"READY=1"
    assert {node["kind"] for node in status(config)["nodes"]} == {"unknown"}


def test_the_watchdog_is_fed_by_completed_rounds_only(
    cluster: dict[str, Group],
    write_config: WriteConfig,
    manager: socket.socket,
    mounted: Callable[..., Path],
    start_agent: StartAgent,
) -> None:
    """A round that hangs in a write to a frozen file system feeds no watchdog, though the loop runs and answers."""
    hosts_file = mounted("-t", "ext4", "-o", "loop")
    config = write_config(cluster["cn"].primary, cluster, hosts_file=str(hosts_file), interval="100ms")
    agent = start_agent(config, env={"NOTIFY_SOCKET": manager.getsockname()})
    agent.wait_for_line(SETTLED)
    with frozen(hosts_file):
        cluster["wk1"].primary.stop()
        cluster["wk1"].standby.promote()
        wait_until(lambda: [n["address"] for n in status(config)["names"]][1] == cluster["wk1"].standby.address)
        heard(manager)
        assert not select.select([manager], [], [], 1.0)[0]
    while manager.recv(4096) != b"WATCHDOG=1":
        pass
    assert f"{cluster['wk1'].standby.address}\twk1" in hosts_file.read_text()
    heard(manager)
    agent.process.send_signal(signal.SIGTERM)
    while manager.recv(4096) != b"STOPPING=1":
        pass
    agent.wait()


@pytest.mark.parametrize("setting", ["timeout", "interval"])
def test_a_long_setting_does_not_starve_the_watchdog(
    setting: str,
    cluster: dict[str, Group],
    write_config: WriteConfig,
    start_agent: StartAgent,
    manager: socket.socket,
) -> None:
    """Waiting for a slow node, or for the next probe, longer than the watchdog allows is no reason to be killed."""
    if setting == "timeout":
        cluster["wk1"].standby.pause()
    config = write_config(cluster["cn"].primary, cluster, **{setting: "60s"})
    env = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000000"}
    agent = start_agent(config, env=env)
    unknown = 1 if setting == "timeout" else 0
    wait_until(lambda: manager.recv(4096) == b"READY=1")
    wait_until(lambda: [node["kind"] for node in status(config)["nodes"]].count("unknown") == unknown)
    if setting == "interval":
        agent.wait_for_line(SETTLED)
    heard(manager)
    manager.settimeout(2)
    for _ in range(2):
        while manager.recv(4096) != b"WATCHDOG=1":
            pass


def heard(manager: socket.socket) -> list[str]:
    """Return what was said so far."""
    found = []
    while select.select([manager], [], [], 0)[0]:
        found.append(manager.recv(4096).decode())
    return found


# --- What it says


def test_a_json_log_is_one_object_a_line(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """Every line has time, level and message, and what it is about in fields of its own."""
    agent = start_agent(write_config(cluster["cn"].standby, cluster, log={"format": "json"}))
    agent.wait_for_line('"name": "wk2"')
    cluster["wk1"].standby.kill()
    agent.wait_for_line('"alert": "wk1:fenced"')
    assert agent.stop() == 0
    lines = [json.loads(line) for line in agent.lines]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    [wk2] = [line for line in lines if line.get("name") == "wk2"]
    assert (wk2["address"], wk2["code"], wk2["level"]) == (cluster["wk2"].standby.address, "standby", "info")
    [fault] = [line for line in lines if line.get("alert") == "wk1:fenced"]
    assert fault["level"] == "error"


def test_verbosity_survives_a_reload(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent
) -> None:
    """The debug line has what a round saw and decided, also after SIGHUP."""
    config = write_config(cluster["cn"].primary, cluster, log={"level": "debug"})
    agent = start_agent(config)
    agent.wait_for_line("DEBUG .*decided in .* ms")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_line("read .* again")
    agent.wait_for_line("DEBUG .*decided in .* ms", since=len(agent.lines))


def test_the_control_socket_is_for_owner_and_group(settled: tuple[Agent, Path], tmp_path: Path) -> None:
    """Nobody else may ask; it is gone when the agent is."""
    agent, _ = settled
    path = tmp_path / "run" / "control.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    agent.stop()
    assert [left.name for left in path.parent.iterdir()] == ["lock"]
