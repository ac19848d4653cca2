"""What every name resolves to: the value that a round decides, writes and reports."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resolver_agent.config.model import Fallback
    from resolver_agent.routing.observation import Identity, Role
    from resolver_agent.routing.state import Alert, GroupState, Target
    from resolver_agent.routing.view import GroupView


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What every name resolves to.

    ``role`` is the last known local role, ``primary_run`` the run of the local server that was last seen as a primary.
    ``recheck_at`` is when the decision may change without a new observation. ``made_for`` is the role that the names
    followed, and the fallback. ``pins`` are the names with a pin that lasts, each with the reason why it does not
    count, None where it does; ``overtaken`` are the addresses of the pins that another primary has ended. ``paused``
    reports that a pause lasts. ``views`` are the views that it was decided from, by name.
    """

    groups: Mapping[str, GroupState]
    role: Role | None = None
    primary_run: Identity | None = None
    alerts: tuple[Alert, ...] = ()
    recheck_at: float = float("inf")
    made_for: tuple[Role | None, Fallback] | None = None
    pins: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    overtaken: Mapping[str, str] = dataclasses.field(default_factory=dict)
    paused: bool = False
    views: Mapping[str, GroupView] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def followed_role(self) -> Role | None:
        """The role that the names with ``route: follow`` followed."""
        return self.made_for[0] if self.made_for is not None else None

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets of all names that have one, in the order of the configuration."""
        return tuple(state.target for state in self.groups.values() if state.target is not None)

    def by_hand(self, name: str) -> bool:
        """Report whether the operator has decided where a name stays, by a pin that counts or a pause."""
        return self.paused or (name in self.pins and self.pins[name] is None)

    def afresh(self) -> Decision:
        """Return the same without its views, so that the next decision assesses every group anew.

        That changes only times and LSNs.
        """
        return dataclasses.replace(self, views={})
