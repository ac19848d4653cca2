"""The log: lines on standard error, one for each change and for each alert that begins or ends."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from resolver_agent.routing.state import AlertCode
from resolver_agent.system.foreign import printable, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resolver_agent.config.model import Node
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import NodeState, ProbeFailure, Role
    from resolver_agent.routing.state import Alert

_FIELDS = ("node", "name_", "address", "code", "alert")
"""The fields that a record may have in addition to its message."""


class _Text(logging.Formatter):
    """One line for each record, and indented ones for a traceback, whatever texts they hold."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{self.formatTime(record)} {record.levelname} {printable(record.getMessage())}"]
        if record.exc_info:
            lines += [f"  {printable(line)}" for line in self.formatException(record.exc_info).splitlines()]
        return "\n".join(lines)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {key.rstrip("_"): getattr(record, key) for key in _FIELDS if hasattr(record, key)}
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return to_json(line)


def configure(form: str, level: str) -> None:
    """Log everything of ``level`` and above to standard error; ``form`` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncio's debug messages are about itself.
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))


_log = logging.getLogger(__name__)


class ChangeLog:
    """Logs the differences between one round and the next.

    ``alerts`` are those that last, each with the time (seconds of CLOCK_BOOTTIME) at which it began.
    """

    def __init__(self) -> None:
        self.alerts: dict[str, tuple[Alert, float]] = {}
        self._nodes: dict[Node, Role | ProbeFailure] = {}
        self._said: dict[str, tuple[str, str]] = {}
        self._role: Role | None = None

    def nodes(self, states: Mapping[Node, NodeState]) -> None:
        """Log every node whose state has changed."""
        before, self._nodes = self._nodes, {node: state.latest.result for node, state in states.items() if state.latest}
        for node, kind in self._nodes.items():
            latest = states[node].latest
            if latest is None or before.get(node) is kind:
                continue
            detail = f" ({latest.detail})" if latest.detail else f" (timeline {latest.timeline})"
            _log.info("%s is %s%s", node, kind.value, detail, extra={"node": str(node)})

    def decision(self, decision: Decision, alerts: Iterable[Alert], now: float, *, written: bool) -> None:
        """Log the local role, the alerts that end and begin, and every name whose address or kind of reason is new.

        Names are logged once they are ``written``. A name is not logged a second time if an alert that begins has the
        same text.
        """
        if decision.role is not self._role and decision.role is not None:
            self._role = decision.role
            _log.info("the local role is %s", decision.role.value)
        begun = self._faults(alerts, now)
        if not written:
            return
        targets = {target.name: target for target in decision.targets}
        before, self._said = self._said, {name: (one.address, one.reason.code.value) for name, one in targets.items()}
        for name, (address, code) in self._said.items():
            if before.get(name) != (address, code) and str(targets[name]) not in begun:
                _log.info("%s", targets[name], extra={"name_": name, "address": address, "code": code})

    def _faults(self, alerts: Iterable[Alert], now: float) -> set[str]:
        """Log the alerts that end and those that begin, and return the texts of these."""
        before, self.alerts = self.alerts, {}
        begun = []
        for alert in alerts:
            if alert.key not in before and alert.key not in self.alerts:
                begun.append(alert)
            self.alerts[alert.key] = (alert, before[alert.key][1] if alert.key in before else now)
        for key, (alert, _) in before.items():
            if key not in self.alerts:
                _log.info("over: %s", alert.text, extra={"alert": key})
        for alert in begun:
            level = logging.WARNING if alert.code is AlertCode.QUEUED else logging.ERROR  # planned work is no fault
            _log.log(level, "alert: %s", alert.text, extra={"alert": alert.key})
        return {alert.text for alert in begun}
