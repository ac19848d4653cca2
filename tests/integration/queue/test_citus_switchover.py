"""Planned work on servers of real Citus under a real Patroni, while clients run all kinds of statements."""

from __future__ import annotations

import collections
import contextlib
import functools
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.bench.traffic import KINDS, PRIMARY, STANDBY, WORKER, Data, Kind, running, wait_for_all
from tests.integration.support.agent_state import wait_until
from tests.integration.support.citus_cluster import workers_have_metadata
from tests.integration.support.cluster import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.traffic import Client
    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import CitusPatroniCluster

pytestmark = pytest.mark.usefixtures("before_stop")

ROOMS = "127.77."
SAID = re.compile("queue|room|gate|stop|wait")
PARAMETER = "citus.max_cached_conns_per_worker"
SETTINGS = {
    "synchronous_standby_names": "",
    "synchronous_commit": "on",
    "citus.prevent_incomplete_connection_establishment": "off",
    PARAMETER: "4",
}
CLOSED = (
    "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND NOT granted"
)
OPEN = "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND NOT granted"
GONE = "SELECT count(*) = 0 FROM pg_stat_activity WHERE query ~ 'resolver_agent.(close|keep)_gate' AND state = 'active'"
ALTERED = f"SELECT setting FROM pg_file_settings WHERE name = '{PARAMETER}' AND sourcefile ~ 'auto.conf'"  # noqa: S608 -- ours
GIVEN_BACK = f"SELECT ({ALTERED}) = '4'"
CHANGE = "UPDATE accounts SET balance = balance + 1"
CHANGE_ONE = "UPDATE accounts SET balance = balance + 1 WHERE id = %s"
IDLES = "SELECT state_change < clock_timestamp() - interval '1.5 s' FROM pg_stat_activity WHERE pid = %s"
OPENS_S = 12.0
"""When a gate has opened at the latest whose agent cannot open it: after drain + 6 s."""

KEEPS_S = 25.0
"""When the session that kept it from being granted has ended, too: after 20 s. It is in nobody's way."""

CHOSEN = {
    PRIMARY: (
        "SELECT one shard",
        "SELECT all shards",
        "SELECT, new session",
        "SELECT all, new session",
        "INSERT",
        "INSERT, new session",
        "UPDATE all shards",
        "two workers",
        "two workers, thinking",
        "hot rows",
        "COPY in",
        "INSERT SELECT repartitioned",
    ),
    STANDBY: ("SELECT one shard", "SELECT all shards", "SELECT all, new session"),
    WORKER: ("SELECT all shards", "INSERT"),
}
MIXED = [kind for kind in KINDS if kind.name in CHOSEN[kind.side]]
FEW = [kind for kind in MIXED if kind.name in ("SELECT all shards", "INSERT", "two workers", "hot rows")]


@pytest.fixture(scope="module")
def made(citus_patroni_servers: CitusPatroniCluster) -> Iterator[CitusPatroniCluster]:
    """A Citus cluster under Patroni with both hooks, in the state that the last test left; tests use ``cluster``."""

    def prepare(machine: Machine) -> None:
        for name, value in SETTINGS.items():
            machine.server.run_sql(f"ALTER SYSTEM SET {name} = '{value}'")
        hooks = {name: citus_patroni_servers.hook(machine, name) for name in ("pre_promote", "before_stop")}
        citus_patroni_servers.reconfigure(machine, postgresql=hooks)
        machine.server.reload()
        citus_patroni_servers.start_agent(machine, fallback="primary")

    with citus_patroni_servers.as_made():
        at_once(prepare, citus_patroni_servers.machines.values())
        for agent in citus_patroni_servers.agents.values():
            agent.wait_for_line("flushed the connections", timeout_s=60)
        yield citus_patroni_servers


@pytest.fixture(scope="module")
def data(made: CitusPatroniCluster) -> Data:
    """The tables of the clients."""
    return Data(made, made.machines["cn-1"])


@pytest.fixture
def cluster(made: CitusPatroniCluster) -> CitusPatroniCluster:
    """The cluster, when each group is whole and all names are right; which server is primary, ``pair()`` tells."""
    for machine in made.machines.values():
        agent = made.agents.get(machine.name)
        if agent is not None:
            agent.process.send_signal(signal.SIGCONT)
        if agent is None or agent.process.poll() is not None:
            made.start_agent(machine, fallback="primary")
    pairs = {group: pair(made, group) for group in made.groups}
    for primary, standby in pairs.values():
        made.wait_for_standby(standby)
        group = made.group_of(primary)
        wait_until(lambda: made.members(group)[standby.name]["state"] == "streaming", timeout_s=60)  # noqa: B023
    for own in made.groups:
        for number, machine in enumerate(pairs[own]):
            names = {name: one[number].address for name, one in pairs.items() if name != own}
            machine.wait_for_names(names, timeout_s=60)
    return made


def pair(cluster: CitusPatroniCluster, group: str) -> tuple[Machine, Machine]:
    """Return a group's primary and standby."""
    primary = cluster.lock_holder(group)
    assert primary is not None
    [standby] = [one for one in cluster.groups[group] if one is not primary]
    return primary, standby


def switch_over(cluster: CitusPatroniCluster, group: str) -> Machine:
    """Make a group's standby its primary, and return it."""
    leader, standby = pair(cluster, group)
    wanted = {"leader": leader.name, "candidate": standby.name}
    status, answer = cluster.rest(leader, "POST", "/switchover", wanted, timeout_s=60)
    assert status == 200, answer
    cluster.wait_for_primary(standby)
    return standby


def restart(cluster: CitusPatroniCluster, group: str) -> Machine:
    """Restart a group's primary, and return it."""
    leader, _ = pair(cluster, group)
    status, answer = cluster.rest(leader, "POST", "/restart", {}, timeout_s=60)
    assert status == 200, answer
    cluster.wait_for_primary(leader)
    return leader


def lose_power(cluster: CitusPatroniCluster, group: str) -> Machine:
    """Make a group's standby its primary after a power loss, and return it; the old one comes back."""
    leader, standby = pair(cluster, group)
    cluster.fail_over(standby)
    cluster.start_agent(leader, fallback="primary")
    cluster.start_patroni(leader)
    return standby


@contextlib.contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread, and raise what it raises."""
    with ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(work)
        yield
        under_way.result()


@contextlib.contextmanager
def gate_closed(cluster: CitusPatroniCluster, group: str) -> Iterator[None]:
    """Begin the switchover of a worker with a transaction under way there that holds it up, and wait for the gate."""
    coordinator, _ = pair(cluster, "cn")
    session, over = cluster.connect(coordinator), threading.Event()

    def go_on() -> None:
        with contextlib.suppress(psycopg.Error), session.transaction():
            session.execute(CHANGE)
            while not over.wait(0.05):
                session.execute(CHANGE_ONE, [1])

    with meanwhile(lambda: switch_over(cluster, group)), meanwhile(go_on):
        try:
            coordinator.server.wait_until(CLOSED, timeout_s=30)
            yield
        finally:
            over.set()


def assert_nothing_failed(cluster: CitusPatroniCluster, clients: Sequence[Client]) -> None:
    """Assert that every statement was answered well; if not, say what the agents said of the stops."""
    counted = collections.Counter(
        f"{one.side}, {one.kind}: {one.error}" for client in clients for one in client.samples if one.error
    )
    told = [f"{name}: {one}" for name, agent in cluster.agents.items() for one in agent.lines if SAID.search(one)]
    assert not counted, "\n".join([*(f"{count} x {error}" for error, count in counted.items()), *told])


def windows(cluster: CitusPatroniCluster, machine: Machine, name: str) -> list[dict[str, Any]]:
    """Return what an agent says of the windows of a name that are over."""
    found = cluster.ask_agent(machine, "status", timeout_s=30)["queue"]["past"]
    return [one for one in found if one["name"] == name]


def wait_for_window(cluster: CitusPatroniCluster, machine: Machine, name: str, *, after: int) -> dict[str, Any]:
    """Wait until a window of a name is over, after so many others, and return what the agent says of it."""
    [one] = wait_until(lambda: windows(cluster, machine, name)[after:], timeout_s=30)
    found: dict[str, Any] = one
    return found


def assert_nothing_is_left(machine: Machine) -> None:
    """Assert that the parameter is as the administrator had it, and that no session of a gate is left.

    Patroni may end the sessions of a server that has just come back: it restarts one that it has to rewind.
    """
    for query, timeout_s in ((GIVEN_BACK, 20.0), (GONE, KEEPS_S)):
        wait_until(functools.partial(answers_true, machine, query), timeout_s=timeout_s)


def answers_true(machine: Machine, query: str) -> bool:
    """Report whether a server answers a question with true; one that ends the session does not."""
    try:
        return machine.server.run_sql(query) == [(True,)]
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize(("work", "group"), [(switch_over, "wk1"), (restart, "wk2")])
def test_no_statement_fails(
    cluster: CitusPatroniCluster, data: Data, work: Callable[[CitusPatroniCluster, str], Machine], group: str
) -> None:
    """A worker is switched over or restarted: nothing fails, nothing is lost, and the parameter is given back."""
    coordinator, standby = pair(cluster, "cn")
    other = "wk2" if group == "wk1" else "wk1"
    asked = {PRIMARY: coordinator, STANDBY: standby}
    if workers_have_metadata():
        asked[WORKER] = pair(cluster, other)[0]
    before = len(windows(cluster, coordinator, group))
    with running(asked, cluster.site.port, data, kinds=MIXED) as clients:
        wait_for_all(clients)
        serving = work(cluster, group)
        wait_for_all(clients)
        coordinator.wait_for_names({group: serving.address}, timeout_s=30)
    assert_nothing_failed(cluster, clients)
    window = wait_for_window(cluster, coordinator, group, after=before)
    assert (window["failed"], window["left"]) == (0, [])
    assert window["gate_ms"] > 0
    assert not data.account(cluster, coordinator)
    assert_nothing_is_left(coordinator)


def test_a_session_that_idles_in_a_transaction(cluster: CitusPatroniCluster, data: Data) -> None:
    """It is not waited for: it alone fails, and ``status`` names it."""
    coordinator, _ = pair(cluster, "cn")
    leader, _ = pair(cluster, "wk1")
    before = len(windows(cluster, coordinator, "wk1"))
    since = len(cluster.agents[leader.name].lines)
    idle = cluster.connect(coordinator)
    idle.execute("BEGIN")
    idle.execute(CHANGE)
    with running({PRIMARY: coordinator}, cluster.site.port, data, kinds=FEW) as clients:
        wait_for_all(clients)
        coordinator.server.wait_until(IDLES, [idle.info.backend_pid])
        switch_over(cluster, "wk1")
        wait_for_all(clients)
    assert_nothing_failed(cluster, clients)
    with pytest.raises(psycopg.Error):
        idle.execute(CHANGE)
    window = wait_for_window(cluster, coordinator, "wk1", after=before)
    if workers_have_metadata():  # before that, nothing tells whose a session on a worker is, so it is waited for
        assert [f"process {idle.info.backend_pid} idles" in one for one in window["left"]] == [True]
    answered = cluster.agents[leader.name].wait_for_line("before-stop answered after", since=since)
    found = re.search(r"after (\d+) ms", answered)
    assert found is not None
    assert int(found[1]) < 5000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_agent_ends_while_the_gate_is_closed(
    cluster: CitusPatroniCluster, data: Data, number: signal.Signals
) -> None:
    """The gate opens by itself; nothing hangs or is lost, and the agent gives the parameter back when it is there."""
    coordinator, _ = pair(cluster, "cn")
    process = cluster.agents[coordinator.name].process
    with running({PRIMARY: coordinator}, cluster.site.port, data, kinds=FEW) as clients:
        wait_for_all(clients)
        with gate_closed(cluster, "wk1"):
            process.send_signal(number)
            coordinator.server.wait_until(OPEN, timeout_s=OPENS_S)
        assert coordinator.server.run_sql(ALTERED) != [("4",)]
        if number is signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
        else:
            cluster.start_agent(coordinator, fallback="primary")
        wait_for_all(clients)
    assert not data.account(cluster, coordinator)
    assert_nothing_is_left(coordinator)


def test_the_agent_is_killed_while_the_name_queues(cluster: CitusPatroniCluster, data: Data) -> None:
    """Its successor leads the name to the new primary; nothing hangs or is lost."""
    coordinator, _ = pair(cluster, "cn")
    with running({PRIMARY: coordinator}, cluster.site.port, data, kinds=FEW) as clients:
        wait_for_all(clients)
        with meanwhile(lambda: switch_over(cluster, "wk1")):
            wait_until(lambda: coordinator.names["wk1"].startswith(ROOMS), timeout_s=30)
            cluster.start_agent(coordinator, fallback="primary")
        coordinator.wait_for_names({"wk1": pair(cluster, "wk1")[0].address}, timeout_s=30)
        wait_for_all(clients)
    assert not data.account(cluster, coordinator)
    assert_nothing_is_left(coordinator)


def test_two_workers(cluster: CitusPatroniCluster, data: Data) -> None:
    """Both workers are switched over at the same time: still nothing fails."""
    coordinator, standby = pair(cluster, "cn")
    with running({PRIMARY: coordinator, STANDBY: standby}, cluster.site.port, data, kinds=MIXED) as clients:
        wait_for_all(clients)
        at_once(lambda group: switch_over(cluster, group), ["wk1", "wk2"])
        wait_for_all(clients)
    assert_nothing_failed(cluster, clients)
    assert not data.account(cluster, coordinator)
    assert_nothing_is_left(coordinator)


def write_region(session: psycopg.Connection[Any], _data: Data) -> None:
    """Write a reference table, of which the coordinator has a copy, too."""
    session.execute("UPDATE regions SET name = name || '' WHERE id = 1")


def test_the_coordinator_is_switched_over(cluster: CitusPatroniCluster, data: Data) -> None:
    """Statements of workers that need the coordinator wait; what it acknowledged before its stop is there."""
    if not workers_have_metadata():
        pytest.skip("before Citus 11 no worker has the metadata, or runs a statement that needs the coordinator")
    coordinator, _ = pair(cluster, "cn")
    worker, _ = pair(cluster, "wk1")
    kinds = [*FEW, Kind("regions", WORKER, write_region)]
    before = len(windows(cluster, worker, "cn"))
    with running({PRIMARY: coordinator, WORKER: worker}, cluster.site.port, data, kinds=kinds) as clients:
        there = [one for one in clients if one.kind.side == WORKER]
        wait_for_all(clients)
        serving = switch_over(cluster, "cn")
        wait_for_all(there)
        worker.wait_for_names({"cn": serving.address}, timeout_s=30)
    assert_nothing_failed(cluster, there)
    assert wait_for_window(cluster, worker, "cn", after=before)["failed"] == 0
    assert not data.account(cluster, serving)


@pytest.mark.parametrize("work", [switch_over, lose_power])
def test_the_coordinator_ends_while_its_gate_is_closed(
    cluster: CitusPatroniCluster, data: Data, work: Callable[[CitusPatroniCluster, str], Machine]
) -> None:
    """The gate ends with it; the next coordinator's names lead to the worker's next primary, and nothing is lost."""
    coordinator, _ = pair(cluster, "cn")
    with running({PRIMARY: coordinator}, cluster.site.port, data, kinds=FEW) as clients:
        wait_for_all(clients)
        with gate_closed(cluster, "wk1"):
            serving = work(cluster, "cn")
    serving.wait_for_names({"wk1": pair(cluster, "wk1")[0].address}, timeout_s=30)
    with running({PRIMARY: serving}, cluster.site.port, data, kinds=FEW) as clients:
        wait_for_all(clients)
    assert not data.account(cluster, serving)
    cluster.wait_for_standby(coordinator)
    for machine in (coordinator, serving):
        assert_nothing_is_left(machine)
