"""Prometheus, the real one, scrapes an agent, evaluates the alert rules, and answers the board's queries."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.integration.support.agent_state import SETTLED, wait_until
from tests.integration.support.machine import CHECKOUT, http_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.conftest import Agent, Group

    WriteConfig = Callable[..., Path]
    StartAgent = Callable[..., Agent]

ADDRESS = "127.0.71.3"
MONITORING = CHECKOUT / "systemd" / "monitoring"


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """A Prometheus that scrapes one agent every second."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, **arguments: str) -> Any:
        """Return the data of an answer of its API, None while it starts."""
        where = f"/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            status, text = http_request(ADDRESS, self._port, "GET", where, timeout_s=10)
        except OSError:
            return None
        if status == 503:
            return None
        answer = json.loads(text)
        assert answer["status"] == "success", (arguments, answer)
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the series that an expression gives now."""
        found: list[Any] = (self.ask("query", query=expression) or {"result": []})["result"]
        return found

    def alerts(self) -> set[str]:
        """Return the alerts that fire, or are about to."""
        return {one["labels"]["alertname"] for one in (self.ask("alerts") or {"alerts": []})["alerts"]}


@contextlib.contextmanager
def prometheus(folder: Path, scraped: str) -> Iterator[Prometheus]:
    """Run Prometheus."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yml")],
        "scrape_configs": [{"job_name": "resolver-agent", "static_configs": [{"targets": [scraped]}]}],
    }
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    arguments = [f"--config.file={path}", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *arguments, f"--web.listen-address={ADDRESS}:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield Prometheus(port)
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no Prometheus")
def test_an_agent_is_watched(
    cluster: dict[str, Group], write_config: WriteConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    """Alerts begin with what they are about and end with it, and no query of the board fails."""
    where = f"{ADDRESS}:{free_port()}"
    agent = start_agent(write_config(cluster["cn"].standby, cluster, http={"listen": where}))
    agent.wait_for_line(SETTLED)
    with prometheus(tmp_path, where) as watcher:
        wait_until(lambda: watcher.query('up{job="resolver-agent"} == 1'), timeout_s=30)
        wait_until(lambda: watcher.query("count(resolver_agent_rounds_total)"), timeout_s=30)
        wait_until(lambda: watcher.ask("rules")["groups"][0]["lastEvaluation"] > "1", timeout_s=30)
        assert watcher.alerts() == set()
        board = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "10s")
                for variable in ("$job", "$instance", "$name"):
                    query = query.replace(variable, ".*")
                found = watcher.query(query)
                assert found or panel["type"] not in ("state-timeline", "table", "stat"), panel["title"]
        cluster["wk1"].standby.kill()
        wait_until(lambda: "ResolverAgentFenced" in watcher.alerts(), timeout_s=30)
        cluster["wk1"].standby.start()
        wait_until(lambda: watcher.alerts() == set(), timeout_s=60)
        assert agent.stop() == 0
        wait_until(lambda: watcher.alerts() == {"ResolverAgentDown"}, timeout_s=30)
