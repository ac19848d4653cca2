"""The log: lines on standard error, one for each change and for each alert that begins or ends."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from typing import TYPE_CHECKING

from resolver_agent.routing.state import Severity
from resolver_agent.system import systemd
from resolver_agent.system.foreign import printable, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resolver_agent.config.model import Node
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import NodeState, ProbeFailure, Role
    from resolver_agent.routing.state import Alert, Target

_FIELDS = (
    *("name_", "node", "address", "kind", "wanted_role", "code", "severity", "reason", "detail"),
    *("timeline", "key", "of", "alert", "promotion"),
)
"""The fields that a record may have in addition to its message, each called as in the answer to ``status``.

``alert`` is what ``key`` was called before.
"""

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.CRITICAL,
}

_WAITING_MAX = 1 << 20
"""How many characters may wait to be written; of a line each counts, and some for its own cost."""

_LINE_COSTS = 100
_FLUSH_S = 0.5
_DROPPED = "%d messages were dropped here: whoever reads the log did not take them in time"


class _Text(logging.Formatter):
    """One line for each record, and indented ones for a traceback, whatever texts they hold.

    The ``journal`` gets the level of each line in its own way, and has the time of its own.
    """

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        head = "" if self._journal else f"{_rfc3339(record)} {record.levelname} "
        lines = [f"{head}{printable(record.getMessage())}"]
        if record.exc_info:
            lines += [f"  {printable(line)}" for line in self.formatException(record.exc_info).splitlines()]
        prefix = systemd.priority(record.levelno) if self._journal else ""
        return "\n".join(f"{prefix}{line}" for line in lines)


class _Json(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

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
        return f"{systemd.priority(record.levelno) if self._journal else ''}{to_json(line)}"


def _rfc3339(record: logging.LogRecord) -> str:
    """Return the local time of a record, in milliseconds."""
    moment = time.localtime(record.created)
    zone = time.strftime("%z", moment)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.msecs):03}{zone[:-2]}:{zone[-2:]}"


class _Background(logging.Handler):
    """Has a thread write the lines to a descriptor: whoever logs never waits for its reader.

    What is logged while too much waits is dropped, and counted in a line in its place. ``flush()`` waits a while until
    all is written. ``logging`` does that when the process ends; nothing is written through ``sys.stderr``, whose lock
    would be held by then where nobody reads.

    Raises:
        RuntimeError: no thread can be started.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._encoding = encoding
        self._news = threading.Condition()
        self._waiting: list[str] = []
        self._length = self._dropped = 0
        self._busy = False
        threading.Thread(target=self._keep, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 -- whoever logs must not fail; handleError() would wait for the reader
            line = None
        with self._news:
            if line is None or (self._waiting and self._length + len(line) > _WAITING_MAX):
                self._dropped += 1
                return
            self._waiting.append(line)
            self._length += len(line) + _LINE_COSTS
            self._news.notify_all()

    def flush(self) -> None:
        with self._news:
            self._news.wait_for(lambda: not (self._busy or self._waiting), _FLUSH_S)

    def _keep(self) -> None:
        while True:
            with self._news:
                self._busy = False
                self._news.notify_all()
                self._news.wait_for(lambda: self._waiting)
                lines, self._waiting, self._length = self._waiting, [], 0
                dropped, self._dropped = self._dropped, 0
                self._busy = True
            try:
                if dropped:  # after all these, and before whatever is logged from now on
                    lines.append(self.format(_record_of_dropped(dropped)))
                self._write("".join(f"{line}\n" for line in lines).encode(self._encoding, "backslashreplace"))
            except Exception:  # noqa: BLE001 -- the reader has gone, a disk is full, or memory is short: later lines count
                with self._news:
                    self._dropped += dropped + len(lines)

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # noqa: PERF203 -- another process has made it so
                select.select([], [self._descriptor], [])


def _record_of_dropped(number: int) -> logging.LogRecord:
    fields = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": _DROPPED, "args": (number,)}
    return logging.makeLogRecord({"name": __name__, **fields})


def configure(form: str, level: str) -> None:
    """Log everything of ``level`` and above to standard error; ``form`` is text or json."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Background) for handler in root.handlers):
        root.handlers[:] = [logging.StreamHandler(sys.stderr)]
    journal = systemd.is_journal(sys.stderr, os.environ)
    for handler in root.handlers:
        handler.setFormatter(_Json(journal=journal) if form == "json" else _Text(journal=journal))
    root.setLevel(level.upper())
    # asyncio's debug messages are about itself.
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))


def write_in_background() -> None:
    """Never wait for the reader of standard error from now on: a journal that hangs must not delay a round.

    Nothing changes where standard error is closed, or no thread can be started.
    """
    root = logging.getLogger()
    try:
        handler = _Background(sys.stderr.fileno(), sys.stderr.encoding)
    except (AttributeError, OSError, RuntimeError, ValueError):
        return
    handler.setFormatter(root.handlers[0].formatter)
    root.handlers[:] = [handler]


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
            fields = {"node": str(node), "kind": kind.value, "detail": latest.detail, "timeline": latest.timeline}
            _log.info("%s is %s%s", node, kind.value, detail, extra=fields)

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
        for name, said in self._said.items():
            if before.get(name) != said and str(targets[name]) not in begun:
                _log.info("%s", targets[name], extra=_fields_of(targets[name]))

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
                _log.info("over: %s [%s]", alert.text, alert.code.value, extra=_fields_of_alert(alert))
        for alert in begun:
            level = _LEVELS[alert.severity]
            _log.log(level, "alert: %s [%s]", alert.text, alert.code.value, extra=_fields_of_alert(alert))
        return {alert.text for alert in begun}


def _fields_of(target: Target) -> dict[str, str | None]:
    return {
        "name_": target.name,
        "address": target.address,
        "kind": target.kind.value,
        "wanted_role": target.wanted_role and target.wanted_role.value,
        "code": target.reason.code.value,
        "reason": target.reason.text,
    }


def _fields_of_alert(alert: Alert) -> dict[str, object]:
    return {
        "key": alert.key,
        "code": alert.code.value,
        "of": alert.of,
        "severity": alert.severity.value,
        "alert": alert.key,
    }
