"""Failovers of the coordinator under load, with real Citus under real Patroni: what is lost, and how long it takes.

Run as root, by hand: ``.venv/bin/python -m tests.bench.coordinator [FAILOVERS]``. Clients write on both workers in
each transaction all the time. Before each failover some transactions are committed while a worker cannot be told, and
sessions are opened on the coordinator's standby that stay through its promotion. Exit code 1 if an acknowledged row
is lost, a transaction is half there, a statement of the promoted coordinator reaches a standby, or its names are late.

``--without-hook`` shows the same with names that merely follow: no ``pre_promote``, no flush, and Citus' own recovery.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from typing import TYPE_CHECKING

from tests.bench.evidence import LOGGING, NamesWatch, ServerLog, explained, statements_of, wait
from tests.bench.failover_table import PATRONI_KILLED, POWER_LOSS, SWITCHOVER, Failover, line, report
from tests.bench.load import Ledger, Resident, quiet, writing
from tests.integration.support.citus_cluster import why_no_citus
from tests.integration.support.patroni_cluster import CitusPatroniCluster

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.integration.support.machine import Machine

_ORDER = (POWER_LOSS, SWITCHOVER, POWER_LOSS, SWITCHOVER, PATRONI_KILLED)
_WRITERS = 8
_RESIDENTS = 3
_CUT_OFF = (("wk1",), ("wk2",), ("wk1", "wk2"))
_PRIORITY = -10  # that of the systemd unit
_RECOVERY_S = 75.0  # longer than a period of recovery, the agent's and Citus' own
_SHOWN = 5
_TAIL = 30
_OWN_CLOCK = {"citus.recover_2pc_interval": "60s", "citus.defer_shard_delete_interval": "15s"}  # Citus' defaults


class Loaded(CitusPatroniCluster):
    """A Citus cluster under Patroni that acknowledges no commit before the coordinator's standby has it."""

    config = CitusPatroniCluster.config + LOGGING + "synchronous_standby_names = ''\nsynchronous_commit = on\n"


class Bench:
    """A cluster that fails over again and again."""

    def __init__(self, cluster: Loaded, *, hook: bool) -> None:
        """Start the agents, and apply the settings of the README."""
        self._cluster = cluster
        self._hook = hook
        self._logs = {
            name: ServerLog(cluster.config_path(one).with_name("log")) for name, one in cluster.machines.items()
        }
        self._lost: frozenset[int] = frozenset()
        self._half: frozenset[int] = frozenset()
        self._known = 0
        for machine in cluster.machines.values():
            self._start_agent(machine)
        self._configure_patroni()
        coordinator = cluster.groups["cn"][0]
        self._ledger = Ledger(cluster, coordinator)
        [(self._node_id,)] = cluster.run_sql(coordinator, "SELECT nodeid FROM pg_dist_node WHERE groupid = 0")
        self._worker_standbys = [cluster.groups[name][1] for name in self._ledger.workers]
        for standby in self._worker_standbys:
            standby.server.run_sql("ALTER SYSTEM SET log_statement = 'all'")
            standby.server.run_sql("SELECT pg_reload_conf()")

    def run(self, kinds: Sequence[str]) -> Iterator[Failover]:
        """Fail over once for each kind, and yield the results."""
        with (
            NamesWatch(self._cluster.groups["cn"]) as self._names,
            writing(self._cluster, self._ledger, _WRITERS) as self._writers,
        ):
            self._get_ready()
            for kind in kinds:
                yield self._fail_over(kind)
            for resident in self._residents:
                resident.end()

    def _fail_over(self, kind: str) -> Failover:
        old, new, residents = self._primary, self._standby, self._residents
        for cut_off in _CUT_OFF:
            self._ledger.write_in_doubt(old, new, cut_off)
        marks = {name: log.size() for name, log in self._logs.items()}
        heard = len(self._cluster.agents[new.name].lines)
        now = Failover(kind=kind, begun_at=time.time())
        self._strike(kind, old, new)
        now.in_doubt = self._ledger.prepared_before(time.time())
        self._cluster.wait_for_primary(new)
        now.promoted_at = self._logs[new.name].when("selected new timeline ID", marks[new.name])
        self._wait_for_recovery(new, now.promoted_at)
        now.settled_at = time.time()
        idler, *others = residents
        wait(lambda: all(one.writes or one.lost for one in others), "sessions that stayed do not write")
        with quiet([*self._writers, *others]):
            idler.step()
            now.gap_s = self._ledger.longest_gap_s(now.begun_at, time.time())
            self._take_stock(now)
        now.names_at = self._names.right_since(new, self._names_on_primary(new))
        now.hook_ms = self._hook_ms(new, marks[new.name])
        now.agent_said = self._cluster.agents[new.name].lines[heard:]
        if kind != SWITCHOVER:  # what it logged until now it logged as a primary
            marks[old.name] = self._logs[old.name].size()
        self._bring_back(kind, old)
        self._get_ready()
        now.misrouted += self._misrouted_statements(now, old, marks)
        now.misrouted += [one for each in residents for one in each.misrouted]
        now.reads = sum(one.reads[worker.name] for one in residents for worker in self._worker_standbys)
        now.disconnected = sum(one.lost for one in residents)
        now.faults = [fault for one in residents for fault in one.faults]
        for resident in residents:
            resident.end()
        return now

    def _get_ready(self) -> None:
        """Wait until the coordinator has a standby that may be promoted, and open the sessions that are to stay."""
        primary = self._cluster.lock_holder("cn")
        assert primary is not None
        [standby] = [one for one in self._cluster.groups["cn"] if one is not primary]
        self._cluster.wait_for_standby(standby)
        reading = {name: self._cluster.groups[name][1].address for name in self._ledger.workers}
        standby.wait_for_names(reading, timeout_s=60)
        wait(
            lambda: self._cluster.members("cn")[standby.name]["role"] == "sync_standby",
            f"{standby!r} is not synchronous",
        )
        self._primary, self._standby = primary, standby
        self._residents = [Resident(self._cluster, self._ledger, standby) for _ in range(_RESIDENTS + 1)]
        for resident in self._residents[1:]:
            resident.start()

    def _strike(self, kind: str, old: Machine, new: Machine) -> None:
        if kind == POWER_LOSS:
            old.kill()
        elif kind == SWITCHOVER:
            wanted = {"leader": old.name, "candidate": new.name}
            status, answer = self._cluster.rest(old, "POST", "/switchover", wanted, timeout_s=60.0)
            assert status == 200, answer
        else:
            self._cluster.patronis[old.name].kill()

    def _bring_back(self, kind: str, old: Machine) -> None:
        if kind == POWER_LOSS:
            self._start_agent(old)
        if kind != SWITCHOVER:
            self._cluster.start_patroni(old)

    def _wait_for_recovery(self, new: Machine, promoted_at: float) -> None:
        """Wait until the transactions that were in doubt are resolved, as the agent and the workers report."""

        def recovered() -> bool:
            passes = self._cluster.ask_agent(new, "status")["recovery"]["databases"] if self._hook else []
            if self._hook and (not passes or any(one["fault"] for one in passes)):
                return False
            return self._ledger.prepared_before(promoted_at) == 0

        try:
            wait(recovered, "transactions are still in doubt", timeout_s=_RECOVERY_S)
        except TimeoutError:
            if self._hook:
                raise
            self._cluster.run_sql(new, "SELECT recover_prepared_transactions()")  # as an operator would in the end

    def _take_stock(self, now: Failover) -> None:
        wait(
            lambda: self._ledger.prepared_before(time.time()) == 0, "transactions stay prepared", timeout_s=_RECOVERY_S
        )
        account = self._ledger.account()
        now.lost, now.half = len(account.lost - self._lost), len(account.half - self._half)
        now.acknowledged = len(self._ledger.acknowledged) - self._known
        self._lost, self._half, self._known = account.lost, account.half, len(self._ledger.acknowledged)

    def _misrouted_statements(self, now: Failover, old: Machine, marks: Mapping[str, int]) -> Iterator[str]:
        """Yield statements on worker standbys after the promotion, except those of the old coordinator."""
        of_standby = {said.pid for said in self._logs[old.name].lines(marks[old.name])}
        of_standby |= {pid for (pid,) in old.server.run_sql("SELECT pid FROM pg_stat_activity")}
        for worker in self._worker_standbys:
            for said, pid in statements_of(self._node_id, self._logs[worker.name], marks[worker.name]):
                if said.at > now.promoted_at and pid not in of_standby:
                    after_ms = 1000 * (said.at - now.promoted_at)
                    yield f"{worker.name}, {after_ms:.0f} ms after the promotion, {said.application}: {said.text}"

    def _names_on_primary(self, machine: Machine) -> dict[str, str]:
        return {"cn": machine.address} | {name: one.address for name, one in self._ledger.workers.items()}

    def _hook_ms(self, new: Machine, since: int) -> float | None:
        found = self._logs[new.name].find(r"pre-promote: ready for the promotion \(after (\d+) ms\)", since)
        return float(found[1]) if found else None

    def _start_agent(self, machine: Machine) -> None:
        settings = {} if self._hook else {"citus": "off"}
        agent = self._cluster.start_agent(machine, **settings)
        os.setpriority(os.PRIO_PROCESS, agent.process.pid, _PRIORITY)

    def _configure_patroni(self) -> None:
        coordinators = self._cluster.groups["cn"]
        for machine in coordinators if self._hook else []:
            self._cluster.reconfigure(machine, postgresql={"pre_promote": self._cluster.hook(machine)})
        wanted = {
            "synchronous_mode": True,
            "postgresql": {"parameters": {} if self._hook else _OWN_CLOCK},
        }
        status, answer = self._cluster.rest(coordinators[0], "PATCH", "/config", wanted)
        assert status == 200, answer


def main(arguments: Sequence[str]) -> int:
    """Run it, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="tests.bench.coordinator")
    parser.add_argument("failovers", nargs="?", type=int, default=20)
    parser.add_argument("--without-hook", action="store_true", help="show what happens with names that merely follow")
    options = parser.parse_args(arguments)
    if reason := why_no_citus():
        sys.exit(reason)
    kinds = list(itertools.islice(itertools.cycle(_ORDER), options.failovers))
    failovers = []
    with Loaded() as cluster, explained(cluster, lines=_TAIL):
        cluster.restore()
        for number, one in enumerate(Bench(cluster, hook=not options.without_hook).run(kinds), start=1):
            failovers.append(one)
            seen = [*one.misrouted[:_SHOWN], *dict.fromkeys(one.faults), *([] if one.well else one.agent_said)]
            print(line(number, one), *seen, sep="\n   ", flush=True)
    print(*report(failovers), sep="\n")
    return 0 if all(one.well for one in failovers) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
