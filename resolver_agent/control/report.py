"""What the agent says of itself: a report as plain data for ``--json``, and the same as text.

Standard library only, so that ``resolver-agent status`` starts quickly.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from resolver_agent.routing.observation import ProbeFailure, Role
from resolver_agent.routing.state import FENCE, AlertCode, Code, GroupState, Reason, Standing, Target

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from resolver_agent.config.model import Group, Node
    from resolver_agent.routing.decision import Decision
    from resolver_agent.routing.observation import NodeState
    from resolver_agent.routing.state import Alert

_NOTHING = GroupState()  # a name that a reload has just brought
_UNASKED = (ProbeFailure.REJECTING, ProbeFailure.UNREACHABLE)


def target_to_json(target: Target) -> dict[str, Any]:
    """Return a target as plain data."""
    return {
        "name": target.name,
        "address": target.address,
        "standing": target.standing.value,
        "wish": target.wish and target.wish.value,
        "primary": target.primary,
        "primary_lost": target.primary_lost,
        "code": target.reason.code.value,
        "reason": target.reason.text,
    }


def target_from_json(data: Mapping[str, Any]) -> Target:
    """Return what ``target_to_json`` was given."""
    return Target(
        name=data["name"],
        address=data["address"],
        standing=Standing(data["standing"]),
        wish=Role(data["wish"]) if data["wish"] else None,
        primary=data["primary"],
        primary_lost=data["primary_lost"],
        reason=Reason(Code(data["code"]), data["reason"]),
    )


def plan(decision: Decision, nodes: Mapping[Node, NodeState], local: NodeState) -> dict[str, Any]:
    """Return where the names of a decision lead, and what stood in its way, as plain data.

    ``unasked`` are the servers that could not be asked, each with the reason in words; ``alerts`` are all others.
    """
    return {
        "targets": [target_to_json(target) for target in decision.targets],
        "alerts": [alert.text for alert in decision.alerts if alert.code is not AlertCode.REJECTING],
        "unasked": [
            f"{server}: {state.latest.detail if state.latest else 'not asked yet'}"
            for server, state in [*nodes.items(), ("the local PostgreSQL", local)]
            if state.latest is None or state.latest.result in _UNASKED
        ],
    }


def promotion(decision: Decision, *, written: bool, care: Mapping[str, Any], alerts: Iterable[Alert]) -> dict[str, Any]:
    """Return what whoever announced a promotion has to know, as plain data.

    ``astray`` are the names that do not lead as a primary's must; ``flushed`` is None where there is no Citus. That the
    promotion was announced is no news to it.
    """
    made_for = decision.made_for[0] if decision.made_for is not None else None
    told = [one.text for one in alerts if one.code is not AlertCode.ANNOUNCED]
    # Of a primary's names only those wish for a standby that always do (`route: standby`).
    astray = [] if made_for is Role.PRIMARY else [one for one in decision.targets if one.wish is Role.STANDBY]
    waited_for = {
        "the names are still a standby's": made_for is not Role.PRIMARY,
        "the hosts file could not be written yet": not written,
        "cached connections are not flushed yet": not care["flush"]["flushed"],
    }
    return {
        "written": written,
        "flushed": None if care["flush"]["citus"] is False else care["flush"]["flushed"],
        "astray": [str(one) for one in astray],
        "why": "; ".join([words for words, waits in waited_for.items() if waits] + told),
    }


def report(
    groups: Sequence[Group],
    decision: Decision,
    nodes: Mapping[Node, NodeState],
    *,
    local: NodeState,
    alerts: Iterable[tuple[Alert, float]],
    now: float,
) -> dict[str, Any]:
    """Return names, nodes and alerts as plain data; ``now`` in seconds of CLOCK_BOOTTIME."""

    def wall(at: float) -> str | None:
        """Return a moment of CLOCK_BOOTTIME by the clock on the wall; None if it was before this run."""
        return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - (now - at))) if at else None

    def name(group: Group) -> dict[str, Any]:
        state = decision.groups.get(group.name, _NOTHING)
        if state.target is None:
            return {"name": group.name, "address": None, "code": state.reason.code.value, "reason": state.reason.text}
        return {**target_to_json(state.target), "since": wall(state.target.since)}

    return {
        "role": decision.role and decision.role.value,
        "local": _node(local, now=now),
        "names": [name(group) for group in groups],
        "nodes": [
            {"name": group.name, "node": str(node), **_node(nodes[node], now=now), **_fitness(decision, group, node)}
            for group in groups
            for node in group.nodes
        ],
        "alerts": [{"key": alert.key, "text": alert.text, "since": wall(since)} for alert, since in alerts],
    }


def as_text(status: Mapping[str, Any]) -> str:
    """Return a report as an operator reads it: what an alert says at length, the tables say in a word."""
    alerted = {alert["key"] for alert in status["alerts"]}
    names = [
        [
            one["name"],
            "fenced" if one["address"] == FENCE else one["address"] or "-",
            one.get("since") or "-",
            _why(one, alerted),
        ]
        for one in status["names"]
    ]
    nodes = [
        [one["name"], one["node"], one["kind"], str(one["timeline"] or "-"), _lag(one), _age(one), one["detail"]]
        for one in status["nodes"]
    ]
    local, role, trampled = status["local"], status["role"], status["trampled"]
    lines = [
        f"resolver-agent {status['version']}, process {status['pid']}, {status['config']}; {status['hosts_file']}"
        + (f", put back {trampled} times" if trampled else ""),
        f"local PostgreSQL: {local['kind']}"
        + (f" ({local['detail']})" if local["detail"] else "")
        + (f", known as {role}" if role and role != local["kind"] else ""),
        *_citus_lines(status),
        "",
        *_table(["name", "leads to", "since", "reason"], names),
        *([] if status["written"] else ["", "THE HOSTS FILE DOES NOT SAY THIS YET."]),
        "",
        *_table(["name", "node", "state", "timeline", "lag", "asked", ""], nodes),
    ]
    for alert in status["alerts"]:
        clauses = alert["text"].replace("; ", ";\n    ")
        lines += ["", f"alert since {alert['since']}:", f"  {clauses}"]
    return "\n".join(lines)


def _citus_lines(status: Mapping[str, Any]) -> list[str]:
    """Say how Citus is looked after, where there is Citus."""
    flush, recovery = status["flush"], status["recovery"]
    if not flush["citus"]:
        return []
    told = "flushed" if flush["flushed"] else "not flushed yet"
    if recovery["age_s"] is not None:
        withdrawn = next((one["withdrawn"] for one in recovery["databases"] if one["withdrawn"]), None)
        recovered = f"last recovery {recovery['age_s']:.0f} s ago"
        recovered += f", not to its end: {withdrawn}" if withdrawn else ""
    else:
        recovered = f"no recovery: {recovery['hindered'] or 'not due yet'}"
    return [f"Citus: cached connections are {told}; {recovered}"]


def _node(state: NodeState, *, now: float) -> dict[str, Any]:
    latest, seen = state.latest, state.role_seen
    return {
        "kind": latest.result.value if latest else "unknown",
        "detail": latest.detail if latest else "not asked yet",
        "address": seen.address if seen else None,
        "role": state.last_role and state.last_role.value,
        "timeline": seen.timeline if seen else None,
        "lsn": f"{seen.lsn >> 32:X}/{seen.lsn & 0xFFFFFFFF:X}" if seen and seen.lsn is not None else None,
        "age_s": round(now - latest.at, 3) if latest else None,
    }


def _fitness(decision: Decision, group: Group, node: Node) -> dict[str, Any]:
    fitness = decision.groups.get(group.name, _NOTHING).memory.fitness.get(node)
    if fitness is None:
        return {"fit": None, "lag_bytes": None, "lag_s": None}
    return {"fit": fitness.fit_since is not None, "lag_bytes": fitness.lag_bytes, "lag_s": fitness.lag_s}


def _why(name: Mapping[str, Any], alerted: Collection[str]) -> str:
    return f"{name['code']}, see below" if f"{name['name']}:{name['code']}" in alerted else str(name["reason"])


def _age(node: Mapping[str, Any]) -> str:
    return "never" if node["age_s"] is None else f"{node['age_s']:.1f} s ago"


def _lag(node: Mapping[str, Any]) -> str:
    if node["lag_bytes"] is None:
        return "-"
    return f"{node['lag_bytes']} B" + (f", {node['lag_s']:.1f} s" if node["lag_s"] is not None else "")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
