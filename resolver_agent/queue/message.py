"""What agents tell each other about planned work, as the payload of a NOTIFY: values in, values out.

Anybody who may connect may also NOTIFY, so ``parse`` is total. Whether the sender is an agent is checked elsewhere.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re

from resolver_agent.system.foreign import read_json

_VERSION = 1

LIMIT = 1024
"""The longest message, in characters; ``observe.talk`` passes no longer one on."""

_WAIT_LIMIT_S = 6.0
_NUMBER_LIMIT = (1 << 31) - 1
_ID = re.compile(r"[0-9a-f]{8,32}")
_NODE = re.compile(r"[0-9A-Za-z.:\[\]_-]{1,262}")


class Kind(enum.Enum):
    """What a message says; an ``id`` ties the messages about one stop together.

    The agent beside the server that stops says LEAVES (``node`` stops soon), OTHERS (all coordinators are clear: names
    on other servers may queue now) and STAYS (it does not stop). The other agents answer HELD (heard; wait for me) and
    CLEAR (nothing of mine is under way there any more).
    """

    LEAVES = "leaves"
    OTHERS = "others"
    STAYS = "stays"
    HELD = "held"
    CLEAR = "clear"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message.

    ``node`` is the server that stops, as configured, and ``wait_s`` how long its hook waits at most; both are in LEAVES
    alone. ``coordinator`` and ``later`` are in HELD: whether a coordinator's agent answers, and whether it begins
    later: it has to finish with another stop first, or has just started. ``left`` is in CLEAR: how many transactions
    were still under way when the time was up.
    """

    kind: Kind
    id: str
    node: str = ""
    wait_s: float = 0.0
    coordinator: bool = False
    later: bool = False
    left: int = 0


def render(message: Message) -> str:
    """Return a message as the payload of a NOTIFY."""
    said: dict[str, object] = {"v": _VERSION, "say": message.kind.value, "id": message.id}
    match message.kind:
        case Kind.LEAVES:
            said |= {"node": message.node, "wait_ms": round(message.wait_s * 1000)}
        case Kind.HELD:
            said |= {"coordinator": message.coordinator, "later": message.later}
        case Kind.CLEAR:
            said["left"] = message.left
        case _:
            pass
    return json.dumps(said)


def parse(payload: str) -> Message | None:
    """Return the message in a payload; None if it is none, or one of another version.

    Unknown keys are ignored, and so are those of another kind. Times are cut to their limits.
    """
    try:
        said = read_json(payload) if len(payload) <= LIMIT else None
        if not isinstance(said, dict) or said.get("v") != _VERSION or type(said["v"]) is not int:
            return None
        kind = Kind(said.get("say"))
    except ValueError:
        return None
    name, node, wait_ms = said.get("id"), said.get("node", ""), said.get("wait_ms", 0)
    coordinator, later, left = said.get("coordinator", False), said.get("later", False), said.get("left", 0)
    if not isinstance(name, str) or not _ID.fullmatch(name) or not isinstance(node, str):
        return None
    if (kind is Kind.LEAVES and not _NODE.fullmatch(node)) or not {type(coordinator), type(later)} <= {bool}:
        return None
    if not all(type(number) is int and 0 <= number <= _NUMBER_LIMIT for number in (wait_ms, left)):
        return None
    return Message(
        kind=kind,
        id=name,
        node=node if kind is Kind.LEAVES else "",
        wait_s=min(wait_ms / 1000, _WAIT_LIMIT_S) if kind is Kind.LEAVES else 0.0,
        coordinator=coordinator and kind is Kind.HELD,
        later=later and kind is Kind.HELD,
        left=left if kind is Kind.CLEAR else 0,
    )
