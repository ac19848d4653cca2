"""Whether a stop may wait: Patroni runs its hook before planned stops and before forced ones, and does not say which.

A primary must stop at once when it has lost the leader lock, or when its Patroni does not reach the DCS: another node
becomes a primary soon, and a hook that waits prolongs the time of two primaries. So a primary waits only when all of
this was seen just now:

- PostgreSQL has completed a checkpoint a moment ago. Patroni orders one right before a planned stop (a switchover, a
  restart), and before no other. By itself that is no proof: one by the clock may just have ended.
- The local Patroni holds the leader lock (``GET /leader``). That alone is no proof either: without its DCS it says so
  until the lock has run out. A Patroni that is itself being stopped answers nothing any more.
- The DCS answers it (``GET /cluster``, for which Patroni asks the DCS).

The stop of a standby hurts nobody when it waits. There it is enough that Patroni answers, if there is one.
"""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from resolver_agent.citus import session
from resolver_agent.patroni import client
from resolver_agent.patroni.client import ApiError, Leadership
from resolver_agent.system import threads
from resolver_agent.system.clock import Deadline, boottime

if TYPE_CHECKING:
    from collections.abc import Callable

    from resolver_agent.config.model import Config, Node, PatroniApi
    from resolver_agent.observe.observer import Observer
    from resolver_agent.patroni.client import Fetch, Reply

_T = TypeVar("_T")

_CHECKPOINT_MAX_S = 3.0
"""The age of a checkpoint that was "just now" when the hook began: 2 s, and 1 s for the resolution of its time."""

_PATRONI_S = 0.5
"""How long Patroni may take to answer: one whose DCS is gone takes long, and its primary must stop at once."""

_CLOCK_STEP_S = 1.0
"""A checkpoint may seem to end this much later than now, and no more: else somebody has set the clock."""

# The control file of a primary is written at the end of a checkpoint. That of its beginning says nothing here: one that
# Patroni ordered may have taken long.
_STATE = """
SELECT pg_is_in_recovery(), extract(epoch FROM clock_timestamp() - pg_control_last_modified)::float8
  FROM pg_control_system()
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the local server says: is it in recovery, and how many seconds ago its control file was written."""

    in_recovery: bool
    control_age_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PatroniState:
    """What the local Patroni says: of the leader lock, and whether the DCS answers it; each may be why it is unknown.

    ``server_id`` is the system identifier of the local server, where that is known.
    """

    lock: Leadership | ApiError
    dcs: ApiError | None
    server_id: int | None


def against_server(state: ServerState | str, *, since_s: float) -> str | None:
    """Return why, by what the local server says, or why it says nothing, a stop must not wait; None if it may.

    ``since_s``: how long ago the hook began.
    """
    if isinstance(state, str):
        return f"the local PostgreSQL does not say whether the stop is planned: {state}"
    if state.in_recovery:
        return None
    if not (state.control_age_s >= -_CLOCK_STEP_S and state.control_age_s - since_s < _CHECKPOINT_MAX_S):
        return f"the stop is not planned: the last checkpoint was {state.control_age_s:.0f} s ago"
    return None


def against_patroni(state: PatroniState, *, in_recovery: bool) -> str | None:
    """Return why, by what the local Patroni says, a stop must not wait; None if it may."""
    lock = state.lock
    if isinstance(lock, ApiError):
        return f"the local Patroni does not answer: {lock}"
    if state.server_id is not None and lock.system_id not in (None, state.server_id):
        return "the Patroni that answers here is not that of the local PostgreSQL"
    if in_recovery:
        return None
    if not lock.leads or lock.in_doubt:
        return "the local Patroni does not hold the leader lock"
    return f"the local Patroni does not reach its DCS: {state.dcs}" if state.dcs is not None else None


async def why_not_planned(config: Config, *, within_s: float, hook_began_at: float) -> str | None:
    """Return why, by what the local server says alone, its stop must not wait; None if it may."""
    try:
        server = await _ask_server(config, Deadline(within_s))
    except TimeoutError:
        return _nothing_tells(within_s)
    return against_server(server, since_s=boottime() - hook_began_at)


async def why_not_wait(
    config: Config, observer: Observer, *, within_s: float, hook_began_at: float, fetch: Fetch = client.fetch
) -> str | None:
    """Return why the local server's stop must not wait, found out within so many seconds; None if it may wait.

    ``hook_began_at`` is in seconds of CLOCK_BOOTTIME.
    """
    deadline = Deadline(within_s)
    try:
        server = await _ask_server(config, deadline)
        fault = against_server(server, since_s=boottime() - hook_began_at)
        if fault is not None or isinstance(server, str):
            return fault
        deadline = Deadline(min(deadline.left_s(), _PATRONI_S))
        return await _ask_patroni(config, observer, deadline, fetch, in_recovery=server.in_recovery)
    except TimeoutError:
        return _nothing_tells(within_s)


def _nothing_tells(within_s: float) -> str:
    return f"nothing tells within {within_s:g} s whether the stop is planned"


async def _ask_server(config: Config, deadline: Deadline) -> ServerState | str:
    """Ask the local server over a session of its own; one that hangs costs the time, and no more."""
    asking = threads.start(_look, config, deadline.left_s())
    await _ended(asking, deadline)
    try:
        return asking.result()
    except threads.NoThreadError as error:
        return str(error)


def _look(config: Config, limit_s: float) -> ServerState | str:
    """Return the error and do not raise it: the caller may have stopped waiting."""
    try:
        with session.connect(config, limit_s=limit_s) as connection:
            row = connection.execute(_STATE).fetchone()
    except psycopg.Error as error:
        return session.words(error)
    except OSError as error:
        return str(error)
    match row:
        case (bool() as in_recovery, float() as age_s):
            return ServerState(in_recovery=in_recovery, control_age_s=age_s)
    return "it answers what PostgreSQL does not"


async def _ask_patroni(
    config: Config, observer: Observer, deadline: Deadline, fetch: Fetch, *, in_recovery: bool
) -> str | None:
    """Ask the local server's own Patroni: one, unless the names of its group have different ones."""
    patroni = {group.name: group.patroni for group in config.groups}
    apis = {(node, api): None for name, node in observer.own.items() if (api := patroni.get(name)) is not None}
    if not apis and not in_recovery:
        return (
            "without `patroni` for its group nothing tells whether the stop is planned"
            if observer.own
            else "it is not known which node the local PostgreSQL is"
        )
    seen = observer.local.role_seen
    server_id = seen.identity.system_id if seen is not None and seen.identity is not None else None
    for node, api in apis:
        ask = partial(_ask, node, api, deadline=deadline, fetch=fetch)
        lock = await ask("/leader", client.read_leadership)
        # A Patroni without its DCS may take long to say so: it is not asked where that makes no difference.
        members = None
        if not in_recovery and isinstance(lock, Leadership) and lock.leads:
            members = await ask("/cluster", client.read_members)
        dcs = members if isinstance(members, ApiError) else None
        state = PatroniState(lock=lock, dcs=dcs, server_id=server_id)
        if (fault := against_patroni(state, in_recovery=in_recovery)) is not None:
            return fault
    return None


async def _ask(
    node: Node, api: PatroniApi, path: str, read: Callable[[Reply], _T], *, deadline: Deadline, fetch: Fetch
) -> _T | ApiError:
    """Return the answer to one request, or why there is none."""
    left_s = deadline.left_s()
    asking = threads.start(client.attempt, partial(fetch, node.host, api, path, left_s), read)
    try:
        await _ended(asking, deadline)
        return asking.result()
    except TimeoutError:
        return client.silence(round(left_s, 1))
    except threads.NoThreadError as error:
        return ApiError(str(error))


async def _ended(call: asyncio.Future[Any], deadline: Deadline) -> None:
    """Wait for the end of a call.

    Raises:
        TimeoutError: it has not ended in time.
    """
    await asyncio.wait({call}, timeout=deadline.left_s())
    if not call.done():
        raise TimeoutError
