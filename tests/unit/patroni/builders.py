"""Answers of Patroni's REST API, and a watch over fake APIs."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import ipaddress
import json
import threading
from typing import TYPE_CHECKING, Any, ParamSpec

from resolver_agent.config.model import Config, Group, PatroniApi, Route
from resolver_agent.patroni.client import ApiError, Reply
from resolver_agent.patroni.watch import PatroniWatch
from resolver_agent.routing.observation import PatroniStatus
from tests.unit import builders
from tests.unit.builders import node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

_P = ParamSpec("_P")

A, B, C, D = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"
NETWORKS = tuple(map(ipaddress.ip_network, ("10.0.0.0/16", "127.0.0.0/8", "fd00::/64")))
API = PatroniApi(port=8008, networks=NETWORKS)
SYSTEM_ID = 7300000000000000001


def group(name: str = "wk1", *hosts: str, route: Route = Route.FOLLOW, patroni: bool = True) -> Group:
    """Return a name, the nodes behind it, and whether they have Patroni."""
    made = builders.group(name, *(hosts or (A, B)), route=route)
    return dataclasses.replace(made, patroni=API if patroni else None)


def cluster_body(*members: Mapping[str, Any]) -> bytes:
    """Return what GET /cluster answers."""
    return json.dumps({"members": members, "scope": "wk1"}).encode()


def row(host: str, **more: Any) -> dict[str, Any]:
    """Return a member as Patroni 4.1 lists it."""
    return {
        "name": host,
        "role": "replica",
        "state": "streaming",
        "api_url": f"http://{host}:8008/patroni",
        "host": host,
        "port": 5432,
        "timeline": 1,
        "lag": 0,
        **more,
    }


def leader_body(scope: str = "wk1", **more: Any) -> bytes:
    """Return what GET /leader answers."""
    return json.dumps({"state": "running", "patroni": {"version": "4.1.5", "scope": scope}, **more}).encode()


class Rest:
    """The REST APIs of some nodes, with the interface of ``fetch``. Tests may change all of it at any time."""

    def __init__(self, *members: str, leader: str | None = None) -> None:
        self.leaders = {leader}
        self.members = [row(host) for host in members]
        self.scopes: dict[str, str] = {}
        self.said: dict[str, dict[str, Any]] = {}
        self.is_standby_cluster = False
        self.down: set[str] = set()
        self.no_list: set[str] = set()
        self.hung: dict[str, threading.Event] = {}
        self.asked: list[tuple[str, str]] = []
        self.at_once: collections.Counter[str] = collections.Counter()
        self.most_at_once = 0
        self.timeouts_s = [TIMEOUT_S]
        self.apis = [API]
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def __call__(self, host: str, api: PatroniApi, path: str, timeout_s: float) -> Reply:
        """Answer a request."""
        assert threading.current_thread() is not threading.main_thread()
        assert api in self.apis
        assert timeout_s in self.timeouts_s
        self.asked.append((host, path))
        self.at_once[host] += 1
        self.most_at_once = max(self.most_at_once, self.at_once[host])
        try:
            self._loop.call_soon_threadsafe(self._news.set)
            if host in self.hung:
                assert self.hung[host].wait(10)
            return self._answer(host, path)
        finally:
            self.at_once[host] -= 1

    def _answer(self, host: str, path: str) -> Reply:
        if host in self.down or (path == "/cluster" and host in self.no_list):
            raise ApiError("Connection refused")
        if path == "/cluster":
            return Reply(200, cluster_body(*self.members))
        leads = host in self.leaders and not (path == "/primary" and self.is_standby_cluster)
        said = {"database_system_identifier": str(SYSTEM_ID), **self.said.get(host, {})}
        body = leader_body(self.scopes.get(host, "wk1"), **said)
        return Reply(200 if leads else 503, body)

    async def until_asked(self, host: str, path: str, *, times: int = 1) -> None:
        """Wait until a node has been asked this many times from now on."""
        since = len(self.asked)
        while self.asked[since:].count((host, path)) < times:
            await self.until_asked_anybody()

    async def until_asked_anybody(self, *, times: int = 1) -> None:
        """Wait until this many requests have been made to any node from now on."""
        until = len(self.asked) + times
        while len(self.asked) < until:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 5)


INTERVAL_S, TIMEOUT_S, CALM_S = 0.02, 1.0, 0.05
LEISURE_S = 3600.0


class Sight:
    """A watch and its fake APIs."""

    def __init__(self, rest: Rest, config: Config, **settings: Any) -> None:
        self.config = config
        self.changed = asyncio.Event()
        self.watch = PatroniWatch(changed=self.changed, fetch=rest, **{"calm_s": CALM_S, **settings})
        self.watch.watch(config)

    @property
    def hosts(self) -> list[str]:
        """The hosts of wk1, members that joined included."""
        return [one.host for one in self.watch.extended(self.config).groups[0].nodes]

    @property
    def leader(self) -> str | None:
        """The leader of wk1."""
        status = self.watch.statuses.get("wk1", PatroniStatus())
        return status.leader.host if status.leader else None

    def claims(self, host: str) -> bool | None:
        """Return what a node's own Patroni last said about the leader lock."""
        claim = self.watch.claim(node(host))
        return claim.leads if claim is not None else None

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds; its change must set the event."""
        while not condition():
            await asyncio.wait_for(self.changed.wait(), 5)
            self.changed.clear()
            self.watch.check()


def config(*groups: Group) -> Config:
    """Return a configuration with short intervals."""
    made = builders.config(*(groups or (group(),)))
    return dataclasses.replace(made, interval_s=INTERVAL_S, timeout_s=TIMEOUT_S)


@contextlib.asynccontextmanager
async def watching(rest: Rest, *groups: Group, **settings: Any) -> AsyncIterator[Sight]:
    """Watch some groups, by default wk1 alone, with its nodes A and B."""
    sight = Sight(rest, config(*groups), **settings)
    try:
        yield sight
        sight.watch.check()
    finally:
        for hung in rest.hung.values():
            hung.set()
        await sight.watch.close()


def in_loop(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """Run a test in an event loop of its own, and check that it leaves no task behind."""

    @functools.wraps(test)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        async def guarded() -> None:
            await asyncio.wait_for(test(*args, **kwargs), 30)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(guarded())

    return run
