"""The JSON Schemas of what ``status --json`` and ``doctor --json`` print, made from the dataclasses of ``report``."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from typing import Any

from resolver_agent.control import report
from resolver_agent.system.foreign import to_json

_STATUS = (
    "What the agent answers; or what the hosts file says, where no agent can be asked. A later version may have more "
    "keys, and more words for a kind, a code or a severity, under the same schema_version. Times are as in RFC 3339."
)
_DOCTOR = (
    "What is wrong on a node. A later version may have more keys, findings and checks, and more words for a severity "
    "or a state, under the same schema_version."
)
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}


def as_text(schema: dict[str, Any]) -> str:
    """Return a schema as the text of its file in ``systemd``."""
    return f"{to_json(schema, indent=2)}\n"


def status() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a ``Status``, or of a ``FileStatus`` where no agent can be asked.

    Objects may have more keys than it names.
    """
    answers, definitions = _schemas(report.Status, report.FileStatus, version=report.SCHEMA_VERSION)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:resolver-agent:status:{report.SCHEMA_VERSION}",
        "title": "resolver-agent status --json",
        "description": _STATUS,
        "oneOf": answers,
        "$defs": definitions,
    }


def doctor() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a ``DoctorStatus``. Objects may have more keys than it names."""
    [answer], definitions = _schemas(report.DoctorStatus, version=report.DOCTOR_SCHEMA_VERSION)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:resolver-agent:doctor:{report.DOCTOR_SCHEMA_VERSION}",
        "title": "resolver-agent doctor --json",
        "description": _DOCTOR,
        **answer,
        "$defs": definitions,
    }


def _schemas(*kinds: type, version: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the schemas of answers, each with the version first, and the definitions that they need."""
    definitions: dict[str, Any] = {}
    answers = [_of(kind, definitions) for kind in kinds]
    for kind in kinds:
        answer = definitions[kind.__name__]
        answer["properties"] = {"schema_version": {"const": version}, **answer["properties"]}
        answer["required"] = ["schema_version", *answer["required"]]
    return answers, dict(sorted(definitions.items()))


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field's type, and add those of the dataclasses in it to ``definitions``."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in {types.UnionType, typing.Union}:  # always of one type and None
        known = _of(arguments[0], definitions)
        return {**known, "type": [known["type"], "null"]} if "type" in known else {"anyOf": [known, {"type": "null"}]}
    if typing.get_origin(kind) is typing.Annotated:
        name, value = arguments[1]
        return {**_of(arguments[0], definitions), name: list(value) if isinstance(value, tuple) else value}
    if typing.get_origin(kind) is tuple:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if kind in _TYPES:
        return {"type": _TYPES[kind]}
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # one that is under way is not begun again
        definitions[kind.__name__] |= _of_class(kind, definitions)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _of_class(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    properties = {one.name: _of(hints[one.name], definitions) for one in dataclasses.fields(kind)}
    if kind in report.WITH_OLD_WORDS:
        properties |= {
            old: {**properties[new], "description": f"the old name of `{new}`", "deprecated": True}
            for new, old in report.OLD_WORDS.items()
            if new in properties
        }
    return {
        "type": "object",
        "description": " ".join(str(inspect.getdoc(kind)).replace("``", "`").replace("None", "null").split()),
        "properties": properties,
        "required": list(properties),
    }
