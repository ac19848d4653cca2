"""Planned stops of workers under every kind of statement, with real Citus under real Patroni: what fails, what waits.

Run as root, by hand: ``.venv/bin/python -m tests.bench.switchover [ROUNDS] [--mode MODE …] [--kind KIND]``. In
each round the primary of a worker, wk1 and wk2 by turns, is switched over, restarted, or loses its power. Clients ask
the primary coordinator, its standby and the primary of the other worker all the time, and retry nothing. Modes:

    queue     the agent with its queue
    names     the agent without it (``queue: {planned: 0s}``)
    patroni   no agent; Patroni's own ``citus:`` section

Exit code 1 if in the mode ``queue`` a statement failed that should not have, or if anywhere a row was acknowledged and
is not there, or a transaction is half there. After a kill, as many statements may fail as were under way.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.bench.evidence import LOGGING, ServerLog, explained, wait
from tests.bench.switchover_table import KILL, RESTART, STRIKES, SWITCHOVER, Result, Round, line, report, told
from tests.bench.traffic import PRIMARY, STANDBY, WORKER, Data, running
from tests.integration.support.citus_cluster import why_no_citus
from tests.integration.support.mpp_cluster import CitusMppCluster
from tests.integration.support.patroni_cluster import CitusPatroniCluster

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.traffic import Client
    from tests.integration.support.machine import Machine

QUEUE, NAMES, PATRONI = MODES = ("queue", "names", "patroni")

_CONFIG = """
synchronous_standby_names = ''
synchronous_commit = on
citus.prevent_incomplete_connection_establishment = off
"""
_QUIET_S = 4.0
_SETTLED_S = 4.0
_SETTLE_S = 60.0
_REST_TIMEOUT_S = 90.0
_PRIORITY = -10  # that of the systemd unit
_UNPLANNED = "30s"
_TAIL = 40
_SAID = re.compile(r"queue|waiting room|gate|hook|stop|forward|drain", re.IGNORECASE)


class Loaded(CitusPatroniCluster):
    """A Citus cluster under Patroni, with the settings of the README."""

    config = CitusPatroniCluster.config + LOGGING + _CONFIG


class LoadedMpp(CitusMppCluster):
    """The same under Patroni's own integration, and with Citus' own recovery."""

    config = Loaded.config + "citus.recover_2pc_interval = 60s\ncitus.defer_shard_delete_interval = 15s\n"


class Bench:
    """A cluster whose workers are stopped again and again, in one mode."""

    def __init__(self, cluster: CitusPatroniCluster, mode: str, strike: str) -> None:
        """Start the agents, set Patroni's hooks, and create the tables."""
        self._cluster, self._mode, self._strike = cluster, mode, strike
        self._logs = {
            name: ServerLog(cluster.config_path(one).with_name("log")) for name, one in cluster.machines.items()
        }
        if isinstance(cluster, CitusMppCluster):
            cluster.wait_for_addresses()
        else:
            for machine in cluster.machines.values():
                self._start_agent(machine)
                self._configure_patroni(machine)
        self._data = Data(cluster, cluster.groups["cn"][0])

    def run(self, rounds: int) -> Iterator[Round]:
        """Stop a worker's primary so often, and yield the results."""
        for _, (group, other) in zip(range(rounds), itertools.cycle([("wk1", "wk2"), ("wk2", "wk1")])):
            yield self._round(group, other)

    def finish(self, rounds: list[Round]) -> Result:
        """Look for what was acknowledged."""
        account = self._data.account(self._cluster, self._pair("cn")[0])
        return Result(mode=self._mode, rounds=rounds, account=account)

    def _round(self, group: str, other: str) -> Round:
        self._wait_until_whole()
        (coordinator, standby), (old, new) = self._pair("cn"), self._pair(group)
        asked = {PRIMARY: coordinator, STANDBY: standby, WORKER: self._pair(other)[0]}
        marks = {name: log.size() for name, log in self._logs.items()}
        heard = {name: len(agent.lines) for name, agent in self._cluster.agents.items()}
        with running(asked, self._cluster.site.port, self._data) as clients:
            time.sleep(_QUIET_S)
            now = Round(mode=self._mode, strike=self._strike, group=group, begun_at=time.time())
            serving = self._hit(now, old, new)
            now.unserved = _unserved_since(time.time(), clients)
            time.sleep(_SETTLED_S)
        self._read_logs(now, old, serving, marks)
        samples = [sample for client in clients for sample in client.samples]
        now.before = [one for one in samples if one.ended_at <= now.begun_at]
        now.since = [one for one in samples if one.ended_at > now.begun_at]
        moments = (now.begun_at, now.struck_at)
        now.under_way = sum(any(one.begun_at <= at <= one.ended_at for at in moments) for one in now.since)
        for name, agent in self._cluster.agents.items():
            said = agent.lines[heard.get(name, 0) :]
            now.agents_said += [f"{name}: {one}" for one in said if _SAID.search(one)]
        if self._mode == QUEUE:
            self._ask_for_windows(now, coordinator)
        if self._strike == KILL:
            if self._mode != PATRONI:
                self._start_agent(old)
            self._cluster.start_patroni(old)
        return now

    def _hit(self, now: Round, old: Machine, new: Machine) -> Machine:
        """Stop the server, and return the machine that serves then, once it does."""
        if self._strike == KILL:
            old.kill()
            now.struck_at = time.time()
            self._cluster.expire_lock(now.group)
            self._cluster.wait_for_primary(new)
            return new
        wanted, serving = {
            SWITCHOVER: ({"leader": old.name, "candidate": new.name}, new),
            RESTART: ({}, old),
        }[self._strike]
        status, answer = self._cluster.rest(old, "POST", f"/{self._strike}", wanted, timeout_s=_REST_TIMEOUT_S)
        assert status == 200, answer
        self._cluster.wait_for_primary(serving)
        return serving

    def _read_logs(self, now: Round, old: Machine, serving: Machine, marks: dict[str, int]) -> None:
        checkpoints = []
        for one in self._logs[old.name].lines(marks[old.name]):
            if one.at >= now.begun_at and one.text.startswith("checkpoint complete"):
                checkpoints.append(one.at)
            if one.text.startswith("received fast shutdown request"):
                now.stopping_at = one.at
                now.hook_s = one.at - checkpoints[-1] if checkpoints else None
                break
        sign = "database system is ready to accept conn" if self._strike == RESTART else "selected new timeline ID"
        now.serving_at = next(
            one.at
            for one in self._logs[serving.name].lines(marks[serving.name])
            if one.text.startswith(sign) and one.at >= now.begun_at
        )

    def _ask_for_windows(self, now: Round, coordinator: Machine) -> None:
        """Take in what the agent of the primary coordinator says of the last window of the group."""
        past = self._cluster.ask_agent(coordinator, "status").get("queue", {}).get("past", [])
        last: dict[str, Any] = next((one for one in reversed(past) if one["name"] == now.group), {})
        for word in ("drain_ms", "gate_ms"):
            if last.get(word):
                now.queued[word] = [float(last[word])]

    def _pair(self, group: str) -> tuple[Machine, Machine]:
        """Return a group's primary and standby."""
        primary = self._cluster.lock_holder(group)
        assert primary is not None
        [standby] = [one for one in self._cluster.groups[group] if one is not primary]
        return primary, standby

    def _wait_until_whole(self) -> None:
        """Wait until each group has a standby that may be promoted, and all names lead to the right servers."""
        pairs = {group: self._pair(group) for group in self._cluster.groups}
        for primary, standby in pairs.values():
            self._cluster.wait_for_standby(standby)
            wait(
                lambda primary=primary, standby=standby: (  # type: ignore[misc]
                    self._cluster.members(self._cluster.group_of(primary))[standby.name]["state"] == "streaming"
                ),
                f"Patroni does not see {standby!r} streaming",
            )
        if isinstance(self._cluster, CitusMppCluster):
            self._cluster.wait_for_addresses()
            return
        for group in self._cluster.groups:
            for number, machine in enumerate(pairs[group]):
                names = {name: pair[number].address for name, pair in pairs.items() if name != group}
                machine.wait_for_names(names, timeout_s=90)

    def _start_agent(self, machine: Machine) -> None:
        planned = {"planned": "15s"} if self._mode == QUEUE else {"planned": "0s"}
        unplanned = {"unplanned": _UNPLANNED} if self._mode == QUEUE and self._strike == KILL else {}
        agent = self._cluster.start_agent(machine, fallback="primary", queue=planned | unplanned)
        os.setpriority(os.PRIO_PROCESS, agent.process.pid, _PRIORITY)

    def _configure_patroni(self, machine: Machine) -> None:
        hooks = ("pre_promote", "before_stop") if self._mode == QUEUE else ("pre_promote",)
        settings: dict[str, Any] = {hook: self._cluster.hook(machine, hook) for hook in hooks}
        self._cluster.reconfigure(machine, postgresql=settings)


def _unserved_since(at: float, clients: Sequence[Client]) -> list[str]:
    """Wait until every client was answered well in what it asked after ``at``; return those that were not in time."""

    def served(client: Client) -> bool:
        return any(one.error is None and one.begun_at > at for one in reversed(client.samples[-20:]))

    deadline = time.monotonic() + _SETTLE_S
    waiting = list(clients)
    while waiting and time.monotonic() < deadline:
        time.sleep(0.1)
        waiting = [client for client in waiting if not served(client)]
    return [f"{client.kind.side}, {client.kind.name}: not served for {_SETTLE_S:g} s" for client in waiting]


def measure(mode: str, strike: str, rounds: int, *, verbose: bool) -> Result:
    """Make a cluster, run so many rounds, print each, and return all."""
    done: list[Round] = []
    with LoadedMpp() if mode == PATRONI else Loaded() as cluster, explained(cluster, lines=_TAIL):
        cluster.restore()
        bench = Bench(cluster, mode, strike)
        for number, one in enumerate(bench.run(rounds), start=1):
            done.append(one)
            print(line(number, one), *told(one), *(one.agents_said if verbose else []), sep="\n   ", flush=True)
        return bench.finish(done)


def main(arguments: Sequence[str]) -> int:
    """Run it, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="tests.bench.switchover")
    parser.add_argument("rounds", nargs="?", type=int, default=4, help="stops in each mode")
    parser.add_argument("--mode", nargs="+", choices=[*MODES, "all"], default=["all"])
    parser.add_argument(
        "--kind", dest="strike", choices=STRIKES, default=SWITCHOVER, help="how the worker's primary is stopped"
    )
    parser.add_argument("--verbose", action="store_true", help="print what the agents say of the queue")
    options = parser.parse_args(arguments)
    if reason := why_no_citus():
        sys.exit(reason)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of each session that broke in a transaction
    modes = MODES if "all" in options.mode else options.mode
    results = [measure(mode, options.strike, options.rounds, verbose=options.verbose) for mode in modes]
    print(*report(results), sep="\n")
    return 0 if all(not one.account and (one.well or one.mode != QUEUE) for one in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
