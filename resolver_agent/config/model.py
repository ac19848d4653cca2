"""A valid configuration: values only.

Everything is keyed by the name in Citus' metadata (``wk1``) or by ``Node`` (one server's address and port).
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Mapping

_OF_ONE_LOGIN = (
    ({"user", "oauth_issuer"}, {"oauth_client_secret"}),
    ({"user"}, {"password", "sslcert", "sslkey", "sslpassword"}),
    ({"passfile"}, {"password"}),
    ({"sslcert", "sslkey"}, {"sslcert", "sslkey", "sslpassword"}),
)
"""What a login does not take from the shared one where it has one of these keywords itself."""


NO_LOCAL = "there is no local PostgreSQL (local: off)"
"""Why something is not done, on a host without PostgreSQL."""


def with_login(shared: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return the libpq keywords ``own``, and of the ``shared`` ones those that it does not set.

    Two logins are never mixed: a password or key that belongs to another user, say, is left out.
    """
    others = {key for key, value in own.items() if value != shared.get(key)}
    left_out: set[str] = set().union(*(rest for some, rest in _OF_ONE_LOGIN if not some.isdisjoint(others)))
    return {**{key: value for key, value in shared.items() if key not in left_out}, **own}


class Route(enum.Enum):
    """How the operator wants a name routed."""

    FOLLOW = "follow"
    PRIMARY = "primary"
    STANDBY = "standby"


class Fallback(enum.Enum):
    """What a name that wants a standby does while none is fit."""

    NONE = "none"
    PRIMARY = "primary"
    ALL = "all"


class Node(NamedTuple):
    """One PostgreSQL server as configured: an IP address or a DNS name, and a TCP port.

    Most of what is known is kept by node. The hash of a tuple costs a tenth of a dataclass's.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PatroniApi:
    """Where Patroni's REST API listens on every node of a group, and the TLS files to reach it with.

    A member that is no configured node is watched only if its address is in one of ``networks``.
    """

    port: int
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """How long statements for a name may wait, in seconds; 0 is not at all.

    ``planned_s`` is for a stop that is announced, ``drain_s`` of it for what is under way on the server that stops.
    ``unplanned_s`` is for a primary that is lost.
    """

    planned_s: float = 15.0
    drain_s: float = 2.0
    unplanned_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OnChange:
    """A program and its arguments, which is run after changes of names and killed after ``timeout_s`` seconds."""

    command: tuple[str, ...] = dataclasses.field(repr=False)
    timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A managed name, in lower case, and the nodes behind it. A limit of None is no limit.

    ``postgresql`` are the libpq keywords that these nodes have of their own. It may hold passwords.
    """

    name: str
    nodes: tuple[Node, ...]
    route: Route
    max_lag_bytes: int | None
    max_lag_s: float | None
    failback_delay_s: float
    patroni: PatroniApi | None
    queue: Queue = Queue()
    postgresql: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, hash=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A valid configuration.

    ``groups`` are in the file's order. ``postgresql`` holds the libpq keywords for every node, without host and port,
    unless its group has others: see ``login``. ``local`` holds those for the server on this node, complete. All may
    hold passwords. Without ``has_local`` there is no such server: then no name follows, and ``local`` is empty.
    ``citus`` is False for ``off``, and where there is no local server. ``in_patronis_file`` tells a section of
    Patroni's file from a file of its own. ``http`` is where metrics and health are served, None for nowhere.
    """

    path: str
    fallback: Fallback
    groups: tuple[Group, ...]
    postgresql: Mapping[str, str] = dataclasses.field(repr=False)
    local: Mapping[str, str] = dataclasses.field(repr=False)
    interval_s: float
    timeout_s: float
    citus: bool
    hosts_file: str
    runtime_dir: str
    state_dir: str
    log_format: str
    log_level: str
    on_change: OnChange | None = None
    warnings: tuple[str, ...] = ()
    in_patronis_file: bool = False
    http: Node | None = None
    has_local: bool = True

    @property
    def max_age_s(self) -> float:
        """The age in seconds up to which an observation counts."""
        return self.interval_s + self.timeout_s

    def login(self, group: Group) -> dict[str, str]:
        """Return the libpq keywords for the nodes of a group, without host and port."""
        return with_login(self.postgresql, group.postgresql)

    def login_at(self, node: Node) -> dict[str, str]:
        """Return the libpq keywords for a node, without host and port; those of ``postgresql`` if it is in no group."""
        return next((self.login(group) for group in self.groups if node in group.nodes), dict(self.postgresql))
