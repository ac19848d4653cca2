"""A status as text for people: counts, then what is wrong, then each name and node once. Standard library only."""

from __future__ import annotations

import collections
import dataclasses
import textwrap
from typing import TYPE_CHECKING

from resolver_agent.control.selection import is_well, problems
from resolver_agent.routing.lag import size
from resolver_agent.routing.observation import ProbeFailure, Role
from resolver_agent.routing.state import FENCE, Code, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from resolver_agent.control.report import AlertStatus, NameStatus, NodeStatus, QueueStatus, Status

_RED, _GREEN, _YELLOW, _BOLD = "31", "32", "33", "1"
_OF_SEVERITY = {Severity.CRITICAL.value: _RED, Severity.WARNING.value: _YELLOW, Severity.INFO.value: None}
"""The worst first."""

_OF_CODE = {
    **dict.fromkeys((Code.SELF, Code.STANDBY, Code.PRIMARY, Code.LEADER), _GREEN),
    **dict.fromkeys((Code.FENCED, Code.UNKNOWN), _RED),
}
_COLOUR_OF_CODE = {code.value: colour for code, colour in _OF_CODE.items()}

_SHORT = 40
"""The characters of a reason or a fault in the table of names."""

_LEAST = 24
"""The nodes of a name stand beside it as long as there is room for so many characters."""

_PAST = 3
"""So many windows that are over are shown without being asked for."""


_HOME, _END_OF_LINE, _END_OF_SCREEN = "\033[H\033[?7l", "\033[K", "\033[J\033[?7h"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """``width``: the columns of the terminal, None without a limit."""

    width: int | None = None
    colour: bool = False

    def paint(self, text: str, colour: str | None) -> str:
        """Return a text with the escape sequences of an SGR colour, if there is any."""
        return f"\033[{colour}m{text}\033[0m" if self.colour and colour else text

    def fits(self, length: int) -> bool:
        """Report whether a line of this length fits."""
        return self.width is None or length <= self.width


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """A word or cell, and its colour."""

    text: str
    colour: str | None = None


PLAIN = Style()


def as_text(status: Status, *, style: Style = PLAIN, details: bool = False, only_problems: bool = False) -> str:
    """Return a status as text.

    The table gives a reason in one word where an alert above it gives it in full. ``details`` shows all that is known
    of each name and node instead of the table; ``only_problems`` leaves out the names that are as they should be.
    """
    shown = problems(status) if only_problems else status
    names = _details(shown, style) if details else _table(shown, style)
    parts = [
        _head(status, style),
        _alerts(status, style),
        [] if status.written else [style.paint("THE HOSTS FILE DOES NOT SAY THIS YET.", _RED)],
        _open_windows(status.queue),
        names if shown.names else [],
        _past_windows(status.queue, all_of_them=details) if not only_problems else [],
    ]
    if only_problems and not status.alerts and not shown.names:
        parts.append(["nothing is wrong"])
    return "\n\n".join("\n".join(part) for part in parts if part)


def on_screen(text: str, *, rows: int) -> str:
    """Return a text as output for a terminal with so many rows, in the place of what is on its screen.

    The terminal breaks no lines meanwhile, so each takes one row; what finds no room is left out.
    """
    lines = text.split("\n")
    if len(lines) >= rows:
        lines[rows - 2 :] = [f"… {len(lines) - rows + 2} more lines"]
    return _HOME + "".join(f"{line}{_END_OF_LINE}\n" for line in lines) + _END_OF_SCREEN


def by_severity(alerts: Iterable[AlertStatus]) -> list[AlertStatus]:
    """Return the alerts, the worst first; a newer agent may have a severity that is not known here."""
    order = list(_OF_SEVERITY)
    return sorted(alerts, key=lambda alert: order.index(alert.severity) if alert.severity in order else -1)


def counts(status: Status) -> str:
    """Return how many names, nodes and alerts there are, and how many of each kind."""
    nodes = {node.node: node for node in status.nodes}
    kinds = {
        "name": _in_order((one.code for one in status.names), Code),
        "node": _in_order((node.kind for node in nodes.values()), (*Role, *ProbeFailure)),
        "alert": [alert.severity for alert in by_severity(status.alerts)],
    }
    return "; ".join(_of_kinds(what, of_each) for what, of_each in kinds.items())


def _in_order(kinds: Iterable[str], order: Iterable[Code | Role | ProbeFailure]) -> list[str]:
    """Return kinds in an order that is the same whatever the state; one that is not known here is last."""
    words = [one.value for one in order]
    return sorted(kinds, key=lambda kind: words.index(kind) if kind in words else len(words))


# --- counts


def _head(status: Status, style: Style) -> list[str]:
    trampled = status.trampled
    told = counts(status)
    first = [told] if style.fits(len(told)) else told.split("; ")
    lines = [
        _local(status),
        *_citus(status),
        f"resolver-agent {status.version}, process {status.pid}, {status.config}; {status.hosts_file}"
        + (f", put back {trampled} times" if trampled else ""),
    ]
    counted = [style.paint(line, _BOLD) for count in first for line in _wrapped(count, style, "  ")]
    return counted + [line for one in lines for line in _wrapped(one, style, "  ")]


def _local(status: Status) -> str:
    local, role = status.local, status.role
    if local is None:
        return "no local PostgreSQL (local: off)"
    detail = f" ({local.detail})" if local.detail else ""
    return f"local PostgreSQL: {local.kind}{detail}" + (
        f", last seen as a {role}" if role and role != local.kind else ""
    )


def _of_kinds(what: str, kinds: Iterable[str]) -> str:
    """Return how many there are, and how many of each kind: ``3 names: 1 self, 2 standby``."""
    counted = collections.Counter(kinds)
    number = sum(counted.values())
    each = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counted.items())
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}{f': {each}' if each else ''}"


def _citus(status: Status) -> list[str]:
    """Return the line on flush and recovery, where there is Citus."""
    flush, recovery = status.flush, status.recovery
    if not flush.citus:
        return []
    told = "flushed" if flush.flushed else "not flushed yet"
    if recovery.age_s is not None:
        withdrawn = next((one.withdrawn for one in recovery.databases if one.withdrawn), None)
        recovered = f"last recovery {recovery.age_s:.0f} s ago"
        recovered += f", cut short: {withdrawn}" if withdrawn else ""
    else:
        recovered = f"no recovery: {recovery.blocked_by or 'not due yet'}"
    return [f"Citus: cached connections are {told}; {recovered}"]


# --- what is wrong


def _alerts(status: Status, style: Style) -> list[str]:
    """Return the alerts, and where to learn more about the worst."""
    alerts = by_severity(status.alerts)
    advice = [f"`resolver-agent explain {_code(alerts[0])}` says what to do"] if alerts else []
    return [line for alert in alerts for line in _alert(alert, style)] + advice


def _code(alert: AlertStatus) -> str:
    return alert.subject_and_code[1]


def _alert(alert: AlertStatus, style: Style) -> list[str]:
    """Return an alert: its severity and code, then its text, one clause a line if it does not fit on one."""
    since = f", since {alert.since}" if alert.since else ""
    head = f"{style.paint(alert.severity, _OF_SEVERITY.get(alert.severity))}: {_code(alert)}{since}"
    clauses = [alert.text] if style.fits(len(alert.text) + 2) else alert.text.replace("; ", ";\n").split("\n")
    first, *others = clauses
    return [
        head,
        *_wrapped(f"  {first}", style, "    "),
        *(line for clause in others for line in _wrapped(f"    {clause}", style, "      ")),
    ]


def _open_windows(queue: QueueStatus | None) -> list[str]:
    """Return a line for each name whose statements wait."""
    return [
        f"{one.name}: {one.node} stops; "
        + ("statements under way end" if one.stage == "draining" else f"{one.waiting} connections wait")
        + f", for {one.left_s:.1f} s at most"
        for one in (queue.open if queue else ())
    ]


def _past_windows(queue: QueueStatus | None, *, all_of_them: bool) -> list[str]:
    """Return a line for the last window of each name."""
    last = {one.name: one for one in (queue.past if queue else ())}.values()
    shown = sorted(last, key=(queue.past if queue else ()).index)
    return [f"last planned stop: {one}" for one in (shown if all_of_them else shown[-_PAST:])]


# --- names and nodes


def _table(status: Status, style: Style) -> list[str]:
    """Return a line for each name with its nodes; without times, and with the nodes on lines of their own, if narrow.

    The nodes of a name that has the same as an earlier one are not repeated.
    """
    alerted = {alert.subject_and_code for alert in status.alerts}
    ports = {_split(node.node)[1] for node in status.nodes}
    port = ports.pop() if len(ports) == 1 else None
    cells = [
        [
            _Piece(one.name),
            _Piece(_address(one)),
            _Piece(one.since or "-"),
            _Piece(_why(one, alerted), _COLOUR_OF_CODE.get(one.code, _YELLOW)),
        ]
        for one in status.names
    ]
    nodes = _nodes_of_names(status, port)
    rows = [[_Piece(word) for word in ("name", "address", "since", "why")], *cells]
    told = [[_Piece(f"nodes, port {port}" if port else "nodes")], *nodes]
    widths = [max(len(row[column].text) for row in rows) for column in range(len(rows[0]))]
    longest = max(_length(pieces) for pieces in told)
    if not style.fits(sum(widths) + 2 * len(widths) + longest):
        rows, widths = [[*row[:2], row[3]] for row in rows], [*widths[:2], widths[3]]
    lines = []
    for row, pieces in zip(rows, told, strict=True):
        left = "".join(
            style.paint(cell.text, cell.colour) + " " * (width - len(cell.text) + 2)
            for cell, width in zip(row, widths, strict=True)
        )
        lines += _beside(left, sum(widths) + 2 * len(widths), pieces, style)
    return lines


def _beside(left: str, start: int, pieces: Sequence[_Piece], style: Style) -> list[str]:
    """Return ``left``, which is ``start`` columns wide, and the pieces beside it, or below it if there is no room."""
    lines, indent = [left], start
    if not style.fits(start + max([_LEAST, *(len(one.text) for one in pieces)])):
        indent = 4
        lines += [" " * indent] if pieces else []
    at = indent
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        length = len(piece.text) + (0 if last else 1)
        if at > indent and not style.fits(at + 1 + length):
            lines.append(" " * indent)
            at = indent
        space = " " if at > indent else ""
        lines[-1] += space + style.paint(piece.text, piece.colour) + ("" if last else ",")
        at += len(space) + length
    return [line.rstrip() for line in lines]


def _length(pieces: Sequence[_Piece]) -> int:
    return sum(len(one.text) + 2 for one in pieces) - 2


def _nodes_of_names(status: Status, port: str | None) -> list[list[_Piece]]:
    """Return the nodes of each name, in the order of the names."""
    nodes, found = _by_name(status.nodes), dict[tuple[_Piece, ...], str]()
    rows = []
    for one in status.names:
        pieces = tuple(_node(node, port) for node in nodes[one.name])
        same = found.setdefault(pieces, one.name)
        rows.append(list(pieces) if same == one.name else [_Piece(f"as {same}")])
    return rows


def _by_name(nodes: Iterable[NodeStatus]) -> Mapping[str, list[NodeStatus]]:
    found: dict[str, list[NodeStatus]] = collections.defaultdict(list)
    for node in nodes:
        found[node.name].append(node)
    return found


def _node(node: NodeStatus, port: str | None) -> _Piece:
    label = _split(node.node)[0] if port else node.node
    words = f"{label} {node.kind}"
    if node.kind == Role.STANDBY.value:
        words += "" if node.lag_bytes is None else f" {size(node.lag_bytes)}"
        words += ": not fit" if node.fit is False else ""
    elif node.detail:
        words += f": {_short(node.detail)}"
    return _Piece(words, None if is_well(node) else _YELLOW if node.kind == Role.STANDBY.value else _RED)


def _split(node: str) -> tuple[str, str]:
    host, _, port = node.rpartition(":")
    return host, port


def _address(name: NameStatus) -> str:
    return "fenced" if name.address == FENCE else name.address or "-"


def _why(name: NameStatus, alerted: set[tuple[str, str]]) -> str:
    code = name.code.replace("_", " ")
    return f"{code}, see above" if (name.name, name.code) in alerted else _short(name.reason)


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


# --- one name in full


def _details(status: Status, style: Style) -> list[str]:
    """Return all that is known of each name and its nodes, a paragraph for each name."""
    nodes, lines = _by_name(status.nodes), list[str]()
    for one in status.names:
        address, code = _address(one) if one.address else "left out", one.code.replace("_", " ")
        told = "" if code == address else f" ({code})"
        since = f", since {one.since}" if one.since else ""
        known = [
            f"wants a {one.wanted_role}" if one.wanted_role else "",
            f"the last known primary is {one.primary}" if one.primary else "",
            "which was seen in recovery since" if one.primary_demoted else "",
        ]
        lines += [
            *([""] if lines else []),
            f"{one.name} → {style.paint(address, _COLOUR_OF_CODE.get(one.code, _YELLOW))}{told}{since}",
            *_wrapped(f"  {one.reason}", style, "  "),
            *_wrapped(f"  {', '.join(filter(None, known))}", style, "  "),
            *_node_table(nodes[one.name], style),
        ]
    return lines


def _node_table(nodes: Sequence[NodeStatus], style: Style) -> list[str]:
    head = ["node", "state", "timeline", "LSN", "lag", "asked", ""]
    rows = [
        [
            node.node,
            node.kind + (", not fit" if node.kind == Role.STANDBY.value and node.fit is False else ""),
            str(node.timeline or "-"),
            node.lsn or "-",
            _lag(node),
            "never" if node.age_s is None else f"{node.age_s:.1f} s ago",
            _remarks(node),
        ]
        for node in nodes
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head) - 1)]
    lines = []
    for row in [head, *rows]:
        told = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        beside = style.fits(len(told) + len(row[-1]) + 4)
        lines.append(f"  {told}  {row[-1] if beside else ''}".rstrip())
        lines += [] if beside else _wrapped(f"    {row[-1]}", style, "    ")
    return lines


def _remarks(node: NodeStatus) -> str:
    told = [
        node.detail,
        f"last seen as a {node.role}" if node.role and node.role != node.kind else "",
        node.unfit if node.unfit and node.kind == Role.STANDBY.value else "",
    ]
    return ", ".join(filter(None, told))


def _lag(node: NodeStatus) -> str:
    if node.lag_bytes is None:
        return "-"
    return size(node.lag_bytes) + (f", {node.lag_s:.1f} s" if node.lag_s is not None else "")


def _wrapped(line: str, style: Style, indent: str) -> list[str]:
    """Return a line, broken where it is too long; what follows is indented."""
    if style.fits(len(line)) or style.width is None:
        return [line] if line.strip() else []
    return textwrap.wrap(
        line,
        max(style.width, 2 * _LEAST),
        subsequent_indent=indent,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )
