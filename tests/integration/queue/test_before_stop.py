"""Stops by a real Patroni: the hook waits for none that must be quick, and knows the planned ones."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.integration.support.hook import agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.support.agent_process import Agent
    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import PatroniCluster

pytestmark = pytest.mark.usefixtures("before_stop")

NO_CHECKPOINT = r"the stop is not planned: the last checkpoint was \d+ s ago"
NO_LOCK = "the local Patroni does not hold the leader lock"
NO_DCS = "the local Patroni does not reach its DCS: .*"
NO_PATRONI = "the local Patroni does not answer: .*"
UNFIT = "is not planned|whether the stop is planned|local Patroni|local PostgreSQL"

QUICK_S = 4.0
"""It takes 0.1 s, 0.6 s at most, where the machine has nothing else to do; a hook that waits in vain takes 5.5 s."""

OLD = "SELECT clock_timestamp() - pg_control_last_modified > '3 s' FROM pg_control_system()"


class Stop:
    """The machines of wk1, with the hook on the first; and what the hook did there."""

    def __init__(self, patroni: PatroniCluster) -> None:
        self.patroni = patroni
        self.primary, self.standby = patroni.groups["wk1"]
        self._notes: dict[str, str] = {}
        for machine in self.primary, self.standby:
            self._set_hook(machine)

    def _set_hook(self, machine: Machine) -> None:
        """Have Patroni run our line, and record in a file when it began, what it said, and when it ended."""
        note = self.patroni.config_path(machine).with_name("note")
        script = note.with_name("before-stop")
        line = self.patroni.hook(machine, "before_stop")
        script.write_text(f"date +%s.%N >>{note}\n{line} 2>>{note}\ndate +%s.%N >>{note}\n")
        self.patroni.reconfigure(machine, postgresql={"before_stop": f"sh {script}"})

    def start_agent(self, machine: Machine) -> Agent:
        """Start an agent that knows which node the local server is, and has heard its Patroni."""
        started = self.patroni.start_agent(machine)
        started.wait_for_line("the local role is ", timeout_s=60)
        return started

    def ran(self, machine: Machine) -> tuple[str, float]:
        """Return what the hook said, once it has ended, and the seconds that it took."""
        self.patroni.wait_for_log(machine, "before_stop script .* exited with 0")
        begun, said, ended = self.patroni.config_path(machine).with_name("note").read_text().splitlines()[:3]
        return said, float(ended) - float(begun)


@pytest.fixture
def stop(patroni: PatroniCluster) -> Stop:
    """Two servers under Patroni, with the hook."""
    return Stop(patroni)


@contextlib.contextmanager
def checkpoints(machine: Machine) -> Iterator[None]:
    """Have a checkpoint complete over and over, as one by the clock may at any moment."""
    over = threading.Event()

    def order() -> None:
        with contextlib.suppress(psycopg.Error):
            while not over.wait(0.2):
                machine.server.run_sql("CHECKPOINT")

    thread = threading.Thread(target=order)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def depose(stop: Stop) -> None:
    """Let another take the lock while Patroni hangs and its server lives."""
    stop.patroni.pause_patroni(stop.primary)
    stop.patroni.expire_lock("wk1")
    stop.patroni.wait_for_primary(stop.standby)
    stop.patroni.resume_patroni(stop.primary)


def lose_dcs(stop: Stop) -> None:
    """Kill etcd."""
    stop.patroni.etcd.kill()


def terminate(stop: Stop) -> None:
    """End Patroni, and the server with it."""
    stop.patroni.patronis[stop.primary.name].terminate()


def require_watchdog(stop: Stop) -> None:
    """Have Patroni find that it must not be a primary: without the watchdog that it needs."""
    stop.patroni.reconfigure(stop.primary, watchdog={"mode": "required", "device": "/nowhere/watchdog"})


@pytest.mark.parametrize(
    ("force", "checkpointing", "why"),
    [
        pytest.param(depose, False, NO_CHECKPOINT, id="deposed"),
        pytest.param(depose, True, NO_LOCK, id="deposed, right after a checkpoint"),
        pytest.param(lose_dcs, False, NO_CHECKPOINT, id="no DCS"),
        pytest.param(lose_dcs, True, NO_DCS, id="no DCS, right after a checkpoint"),
        pytest.param(terminate, False, NO_CHECKPOINT, id="SIGTERM"),
        pytest.param(terminate, True, NO_PATRONI, id="SIGTERM, right after a checkpoint"),
        pytest.param(require_watchdog, False, NO_CHECKPOINT, id="immediate"),
    ],
)
def test_forced_stops(force: Callable[[Stop], None], checkpointing: bool, why: str, stop: Stop) -> None:  # noqa: FBT001 -- a table
    """A primary that must go is not kept, whatever its Patroni believes."""
    started = stop.start_agent(stop.primary)
    with checkpoints(stop.primary) if checkpointing else contextlib.nullcontext():
        if not checkpointing:
            stop.primary.server.wait_until(OLD)
        force(stop)
        said, took_s = stop.ran(stop.primary)
    answer = re.search(r"answered after (\d+) ms", started.wait_for_line("before-stop answered after "))
    assert answer is not None
    assert re.search(f"resolver-agent before-stop: did not wait: {why}$", said)
    assert int(answer[1]) < 700
    assert took_s < QUICK_S


def switch_over(stop: Stop) -> Machine:
    """Switch over in Patroni's orderly way."""
    stop.patroni.switch_over(stop.standby)
    return stop.primary


def restart(stop: Stop) -> Machine:
    """Restart the primary."""
    assert stop.patroni.rest(stop.primary, "POST", "/restart")[0] == 200
    return stop.primary


def restart_standby(stop: Stop) -> Machine:
    """Restart the standby."""
    assert stop.patroni.rest(stop.standby, "POST", "/restart")[0] == 200
    return stop.standby


@pytest.mark.parametrize("plan", [switch_over, restart, restart_standby])
def test_planned_stops(plan: Callable[[Stop], Machine], stop: Stop) -> None:
    """A planned stop is known as one, of a primary and of a standby."""
    for machine in stop.primary, stop.standby:
        stop.start_agent(machine)
    stop.primary.server.wait_until(OLD)
    said, took_s = stop.ran(plan(stop))
    assert said.startswith("resolver-agent before-stop: ")
    assert not re.search(UNFIT, said)
    assert took_s < QUICK_S  # nobody else is here to be waited for


# --- agents that fail


def test_no_agent(stop: Stop) -> None:
    """A stopped agent is not started, and costs no time."""
    restart(stop)
    said, took_s = stop.ran(stop.primary)
    assert "does not wait for the other nodes: no agent runs in " in said
    assert took_s < QUICK_S


def test_an_agent_that_hangs(stop: Stop) -> None:
    """An agent stopped by SIGSTOP costs half a second."""
    stop.start_agent(stop.primary).process.send_signal(signal.SIGSTOP)
    restart(stop)
    said, took_s = stop.ran(stop.primary)
    assert "the agent does not answer" in said
    assert took_s < QUICK_S


@pytest.mark.parametrize("what", ["agent", "hook"])
def test_killed_in_the_middle(what: str, stop: Stop) -> None:
    """When the agent or the hook is killed while the stop waits, the stop goes on at once."""
    path = stop.patroni.control_path(stop.primary)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as threads, contextlib.ExitStack() as running:
        asked = running.enter_context(agent(path, None))
        os.chown(path, 0, stop.primary.server.binaries.credentials["group"])
        restarting = threads.submit(restart, stop)
        assert asked.wait(20)
        begun = time.monotonic()
        if what == "hook":
            os.kill(hook_process(path), signal.SIGKILL)
        else:
            running.close()
        stop.patroni.wait_for_log(stop.primary, "before_stop script .* exited with 0")
        assert time.monotonic() - begun < 2
        assert restarting.result(30) is stop.primary


def hook_process(socket: Path) -> int:
    """Return the process of the hook that asks at this socket."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if words[1:3] == ["-m", "resolver_agent.cli"] and str(socket) in words:
                return int(path.parent.name)
    raise AssertionError("there is no such process")
