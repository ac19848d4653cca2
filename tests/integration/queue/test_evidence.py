"""Whether a stop may wait, asked of a real server; Patroni is a fake here, and real in test_before_stop."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from resolver_agent.config.load import load
from resolver_agent.config.model import Node
from resolver_agent.patroni.client import Reply
from resolver_agent.queue import evidence
from resolver_agent.routing.observation import NodeState
from resolver_agent.system.clock import boottime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from resolver_agent.config.model import Config, PatroniApi
    from resolver_agent.demo.postgres import Postgres
    from tests.integration.conftest import Group

    WriteConfig = Callable[..., Path]

OLD = "SELECT clock_timestamp() - pg_control_last_modified > '3 s' FROM pg_control_system()"
ABOUT_WK1 = {"patroni": {"scope": "wk1"}, "role": "primary"}


@dataclasses.dataclass
class Observed:
    """What the agent knows of the local server: which node it is, and nothing else."""

    own: dict[str, Node]
    local: NodeState = dataclasses.field(default_factory=NodeState)


class Patroni:
    """Answers each path with a status, or never, and notes what it was asked."""

    def __init__(self, leader: int | None = 200, cluster: int | None = 200) -> None:
        self.asked: list[str] = []
        self._statuses = {"/leader": leader, "/cluster": cluster}
        self._never = threading.Event()

    def fetch(self, _host: str, _api: PatroniApi, path: str, timeout_s: float) -> Reply:
        """Answer one request."""
        self.asked.append(path)
        status = self._statuses[path]
        if status is None:
            self._never.wait(timeout_s + 5)
            raise AssertionError("nobody waits for this")
        member = {"host": "127.0.2.1", "port": 5432, "state": "running"}
        return Reply(status, json.dumps(ABOUT_WK1 if path == "/leader" else {"members": [member]}).encode())


@pytest.fixture
def ask(cluster: dict[str, Group], write_config: WriteConfig) -> Callable[..., tuple[str | None, float]]:
    """Return a function that asks about a server of wk1: the reason, and the seconds that it took."""

    def ask(
        server: Postgres, patroni: Patroni, *, configured: bool = True, known: bool = True, within_s: float = 5.0
    ) -> tuple[str | None, float]:
        nodes = {"nodes": [one.address for one in cluster["wk1"].nodes]}
        names = {"wk1": nodes | ({"patroni": {"port": 8008}} if configured else {})}
        config: Config = load(str(write_config(server, cluster, names=names)))
        observed = Observed({"wk1": Node(server.address, server.port)} if known else {})
        begun, hook_began_at = time.monotonic(), boottime()
        why = asyncio.run(
            evidence.why_not_wait(
                config, cast("Any", observed), within_s=within_s, hook_began_at=hook_began_at, fetch=patroni.fetch
            )
        )
        return why, time.monotonic() - begun

    return ask


def test_right_after_a_checkpoint(cluster: dict[str, Group], ask: Callable[..., Any]) -> None:
    """A primary waits right after a checkpoint, if its Patroni has the lock and the DCS."""
    cluster["wk1"].primary.run_sql("CHECKPOINT")
    patroni = Patroni()
    assert ask(cluster["wk1"].primary, patroni)[0] is None
    assert patroni.asked == ["/leader", "/cluster"]


def test_long_after_a_checkpoint(cluster: dict[str, Group], ask: Callable[..., Any]) -> None:
    """Without a recent checkpoint a primary does not wait, and Patroni is not even asked; a standby does wait."""
    primary, standby = cluster["wk1"].primary, cluster["wk1"].standby
    for server in primary, standby:
        server.wait_until(OLD)
    patroni = Patroni()
    why, _ = ask(primary, patroni)
    assert why.startswith("the stop is not planned: the last checkpoint was ")
    assert patroni.asked == []
    assert ask(standby, Patroni(503))[0] is None


@pytest.mark.parametrize(
    ("patroni", "why", "asked"),
    [
        pytest.param(Patroni(503, None), "the local Patroni does not hold the leader lock", ["/leader"], id="deposed"),
        pytest.param(
            Patroni(200, 503),
            "the local Patroni does not reach its DCS: HTTP status 503 to GET /cluster",
            ["/leader", "/cluster"],
            id="no DCS",
        ),
        pytest.param(
            Patroni(500),
            "the local Patroni does not answer: HTTP status 500 to GET /leader",
            ["/leader"],
            id="Patroni is broken",
        ),
    ],
)
def test_a_forced_stop_right_after_a_checkpoint(
    patroni: Patroni, why: str, asked: list[str], cluster: dict[str, Group], ask: Callable[..., Any]
) -> None:
    """A checkpoint by the clock may just have ended: Patroni's word counts as well."""
    cluster["wk1"].primary.run_sql("CHECKPOINT")
    assert ask(cluster["wk1"].primary, patroni)[0] == why
    assert patroni.asked == asked


@pytest.mark.parametrize("patroni", [Patroni(None), Patroni(200, None)], ids=["/leader", "/cluster"])
def test_a_patroni_that_hangs(patroni: Patroni, cluster: dict[str, Group], ask: Callable[..., Any]) -> None:
    """It costs the time that was given, and no more."""
    cluster["wk1"].primary.run_sql("CHECKPOINT")
    why, took_s = ask(cluster["wk1"].primary, patroni, within_s=0.5)
    assert "no answer within 0." in why
    assert took_s < 1.5


def test_a_server_that_hangs(cluster: dict[str, Group], ask: Callable[..., Any]) -> None:
    """A server that accepts no session costs the time that was given, and no more."""
    cluster["wk1"].primary.pause()
    why, took_s = ask(cluster["wk1"].primary, Patroni(), within_s=0.5)
    assert why == "nothing tells within 0.5 s whether the stop is planned"
    assert took_s < 1.5


def test_a_server_that_is_gone(cluster: dict[str, Group], ask: Callable[..., Any]) -> None:
    """A server that has stopped already keeps nobody."""
    cluster["wk1"].standby.stop()
    why, _ = ask(cluster["wk1"].standby, Patroni())
    assert why.startswith("the local PostgreSQL does not say whether the stop is planned: ")


def test_no_time(cluster: dict[str, Group], ask: Callable[..., Any]) -> None:
    """A hook without any time left is answered at once."""
    assert ask(cluster["wk1"].primary, Patroni(), within_s=0.0)[0] == (
        "nothing tells within 0 s whether the stop is planned"
    )


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"configured": False}, "without `patroni` for its group nothing tells whether the stop is planned"),
        ({"known": False}, "it is not known which node the local PostgreSQL is"),
    ],
    ids=["no patroni", "no node"],
)
def test_without_patroni(how: dict[str, bool], why: str, cluster: dict[str, Group], ask: Callable[..., Any]) -> None:
    """Where no Patroni can be asked a primary never waits; the stop of a standby hurts nobody."""
    cluster["wk1"].primary.run_sql("CHECKPOINT")
    assert ask(cluster["wk1"].primary, Patroni(), **how)[0] == why
    assert ask(cluster["wk1"].standby, Patroni(), **how)[0] is None
