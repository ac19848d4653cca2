"""Says what happened: each change once, each lasting fault once when it begins and once when it ends (rule R8)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resolver_agent.model import Alert, Decision, Node, NodeState, Role

_log = logging.getLogger(__name__)


class Journal:
    """Logs the differences between one round and the next.

    ``alerts`` are those that last, each with the time (seconds of CLOCK_BOOTTIME) at which it began.
    """

    def __init__(self) -> None:
        self.alerts: dict[str, tuple[Alert, float]] = {}
        self._nodes: dict[Node, str] = {}
        self._said: dict[str, tuple[str | None, str]] = {}
        self._role: Role | None = None

    def nodes(self, states: Mapping[Node, NodeState]) -> None:
        """Log every node that is not as it was."""
        for node, state in states.items():
            latest = state.latest
            if latest is None or self._nodes.get(node) == latest.kind.value:
                continue
            self._nodes[node] = latest.kind.value
            detail = f" ({latest.detail})" if latest.detail else f" (timeline {latest.timeline})"
            _log.info("%s is %s%s", node, latest.kind.value, detail, extra={"node": str(node)})

    def decision(self, decision: Decision) -> None:
        """Log the local role and every name whose address or kind of reason is not as it was."""
        if decision.role is not self._role and decision.role is not None:
            self._role = decision.role
            _log.info("the local PostgreSQL is %s", decision.role.value)
        for name, state in decision.groups.items():
            said = (state.target.address if state.target else None, state.reason.code.value)
            if self._said.get(name) == said:
                continue
            self._said[name] = said
            if state.target is not None:
                fields = {"name_": name, "address": said[0], "code": said[1]}
                _log.info("%s", state.target, extra=fields)

    def faults(self, alerts: Iterable[Alert], now: float) -> None:
        """Log the alerts that begin and those that end."""
        present = {alert.key: alert for alert in alerts}
        for key in self.alerts.keys() - present.keys():
            alert, _ = self.alerts.pop(key)
            _log.error("over: %s", alert.text, extra={"alert": key})
        for key, alert in present.items():
            if key not in self.alerts:
                _log.error("alert: %s", alert.text, extra={"alert": key})
            self.alerts[key] = (alert, self.alerts[key][1] if key in self.alerts else now)
