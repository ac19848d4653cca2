"""Checks Patroni's settings: facts in, findings out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resolver_agent.doctor.check import Check, without_citus, without_local, without_patroni, without_server
from resolver_agent.doctor.checks import hooks
from resolver_agent.doctor.facts import Patroni, Server, Unknown
from resolver_agent.doctor.finding import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.doctor.facts import Facts

_CHECK_API = "Check `patroni` under that name in the configuration: the port, and with TLS cacert, cert and key."
_CHECK_CA = (
    "Set patroni.cacert under that name to the file of the CA that signed the certificate in Patroni's "
    "restapi.certfile; the certificate must be valid for the address in `nodes`."
)


def _read(facts: Facts) -> Iterator[Finding]:
    """Yield the Patronis of this node whose configuration could not be read, or that none was found."""
    for one in facts.host.patroni:
        if isinstance(one, Unknown):
            yield Finding(Severity.WARNING, "unchecked", f"could not be checked: {one.why}")
    yield from _not_found(facts)


def _known(facts: Facts) -> list[Patroni]:
    return [one for one in facts.host.patroni if isinstance(one, Patroni)]


def _section(facts: Facts) -> Iterator[Finding]:
    """Yield that Patroni itself writes pg_dist_node."""
    for found in _known(facts):
        if found.local.get("citus"):
            text = f"{found.path} has a section citus: Patroni overwrites the names in pg_dist_node with addresses"
            yield Finding(Severity.ERROR, "patroni:citus", text, "Take that section out, and restart Patroni.")


def _pre_promote(facts: Facts) -> Iterator[Finding]:
    for found in _known(facts):
        yield from hooks.pre_promote(found)


def _before_stop(facts: Facts) -> Iterator[Finding]:
    for found in _known(facts):
        yield from hooks.before_stop(found)


def _socket(facts: Facts) -> Iterator[Finding]:
    """Yield that Patroni's user may not use the agent's socket."""
    if facts.host.hook_fault is not None:
        fix = "Set SocketGroup= to the group of Patroni's user, in a drop-in for resolver-agent.socket."
        text = f"Patroni's hooks cannot ask the agent: {facts.host.hook_fault}"
        yield Finding(Severity.ERROR, "patroni:socket", text, fix)


def _answers(facts: Facts) -> Iterator[Finding]:
    """Yield the REST APIs that do not answer, and the answers that do not count."""
    for place, why in facts.host.patroni_faults.items():
        fix = _CHECK_CA if "certificate is refused" in why else _CHECK_API
        yield Finding(Severity.WARNING, "patroni:api", f"{place} cannot be asked: {why}", fix)
    for alert in facts.alerts:
        yield Finding(Severity.WARNING, "patroni:word", alert.text, _CHECK_API)


def _not_found(facts: Facts) -> Iterator[Finding]:
    """Yield that no configuration of Patroni was found on a node where there should be one."""
    groups = facts.config.groups if facts.own is None else (facts.own,)
    asked = [group.name for group in groups if group.patroni is not None]
    if asked and not facts.host.patroni:
        text = (
            f"could not be checked: Patroni's hooks and its section citus: Patroni is configured for {asked[0]}, but "
            "on this node neither a process of it, nor a unit, nor a file in /etc/patroni was found"
        )
        fix = "Start Patroni, and run doctor as root, outside of a container."
        yield Finding(Severity.WARNING, "patroni:unfound", text, fix)


def _lock(facts: Facts) -> Iterator[Finding]:
    """Yield that the agent does not ask the local Patroni whether the local server has been deposed."""
    found = next((one for one in facts.host.patroni if isinstance(one, Patroni)), None)
    citus = isinstance(facts.server, Server) and facts.server.with_citus
    if found is not None and citus and facts.own is not None and facts.own.patroni is None:
        text = (
            f"{facts.own.name}: the agent does not ask Patroni ({found.path}) who has the leader lock: on a primary "
            "that was deposed but still runs, 2PC recovery could roll back what the new primary commits"
        )
        restapi = found.local.get("restapi")
        listen = restapi.get("listen") if isinstance(restapi, dict) else None
        port = str(listen or ":8008").rpartition(":")[2]
        fix = f"Write to the configuration: names.{facts.own.name}.patroni: {{port: {port}}}"
        yield Finding(Severity.WARNING, "patroni:lock", text, fix)


def _without_any(facts: Facts) -> str | None:
    asked = any(group.patroni is not None for group in facts.config.groups)
    return without_local(facts) or (None if asked else without_patroni(facts))


def _without_known(facts: Facts) -> str | None:
    """Return why no configuration of Patroni is known here; None if one is."""
    if _known(facts):
        return None
    return without_patroni(facts) or "its configuration could not be read"


def _without_group(facts: Facts) -> str | None:
    own = None if facts.own is not None else "it is not known which group the local PostgreSQL belongs to"
    return _without_known(facts) or without_citus(facts) or own


def _without_user(facts: Facts) -> str | None:
    """Return why it is not known whether that user may; None if it is."""
    if isinstance(facts.server, Server) and facts.server.os_user is None:
        return "it is not known as which user the local PostgreSQL runs"
    return without_patroni(facts) or without_server(facts)


def _without_queue(facts: Facts) -> str | None:
    if all(group.queue.planned_s == 0 for group in facts.config.groups):
        return "no name queues (queue.planned)"
    return _without_known(facts)


def _without_apis(facts: Facts) -> str | None:
    asked = any(group.patroni is not None for group in facts.config.groups)
    return None if asked or facts.alerts else "the configuration has no `patroni`"


CHECKS = (
    Check("the configuration of Patroni on this node could be read", _read, _without_any),
    Check("Patroni leaves pg_dist_node alone", _section, _without_known),
    Check("Patroni announces a promotion to the agent (pre_promote)", _pre_promote, _without_known),
    Check("Patroni announces a stop to the agent (before_stop)", _before_stop, _without_queue),
    Check("the agent asks Patroni who has the leader lock", _lock, _without_group),
    Check("Patroni's user may use the agent's socket", _socket, _without_user),
    Check("Patroni's REST APIs answer", _answers, _without_apis),
)
