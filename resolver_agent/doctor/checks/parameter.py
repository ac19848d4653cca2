"""Says how a parameter of PostgreSQL is set on this node: facts in, words out."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

from resolver_agent.citus import metadata
from resolver_agent.doctor.facts import Patroni, Setting
from resolver_agent.doctor.hook import section

if TYPE_CHECKING:
    from resolver_agent.doctor.facts import Facts


def how_to_set(facts: Facts, name: str, value: str, setting: Setting | None = None) -> str:
    """Return how to set a parameter on this node: where it is set now, through Patroni, or by ALTER SYSTEM.

    Patroni's own file overrides the dynamic configuration, and ALTER SYSTEM overrides both.
    """
    literal = metadata.literal(value).strip()
    source = setting.source if setting is not None else ""
    patroni = next((one for one in facts.host.patroni if isinstance(one, Patroni)), None)
    if source in ("database", "user", "database user", "command line"):
        return f"Set {name} = {literal} where it is set now: for the {source}."
    if patroni is None or "postgresql.auto.conf" in source:
        return f"ALTER SYSTEM SET {name} = {literal}; SELECT pg_reload_conf();"
    parameters = section(patroni.local).get("parameters")
    yaml = value if re.fullmatch(r"-?[0-9]+", value) else json.dumps(value)
    if isinstance(parameters, dict) and name in parameters:
        reload = f"patronictl reload {patroni.local.get('scope')}"
        return f"Under postgresql.parameters in {patroni.path} write the following, then run {reload}: {name}: {yaml}"
    return f"patronictl edit-config --force -p {shlex.quote(f'{name}={yaml}')}"
