"""Checks Patroni's settings: facts in, findings out."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with Patroni on this node, and with its answers about the groups."""
    for one in facts.host.patroni:
        yield from _patroni(one, queues=any(group.queue.planned_s > 0 for group in facts.config.groups))
    yield from _not_found(facts)
    yield from _lock(facts)
    if facts.host.hook_fault is not None and facts.host.patroni:
        fix = "Set SocketGroup= to the group of Patroni's user, in a drop-in for resolver-agent.socket."
        text = f"Patroni's hooks cannot ask the agent: {facts.host.hook_fault}"
        yield Finding(Severity.ERROR, "patroni:socket", text, fix)
    for place, why in facts.host.patroni_faults.items():
        fix = _CHECK_CA if "certificate is refused" in why else _CHECK_API
        yield Finding(Severity.WARNING, "patroni:api", f"{place} cannot be asked: {why}", fix)
    for alert in facts.alerts:
        yield Finding(Severity.WARNING, "patroni:word", alert.text, _CHECK_API)


def _patroni(found: Patroni | Unknown, *, queues: bool) -> Iterator[Finding]:
    if isinstance(found, Unknown):
        yield Finding(Severity.WARNING, "unchecked", f"could not be checked: {found.why}")
        return
    if found.local.get("citus"):
        text = f"{found.path} has a section citus: Patroni overwrites the names in pg_dist_node with addresses"
        yield Finding(Severity.ERROR, "patroni:citus", text, "Take that section out, and restart Patroni.")
    yield from hooks.pre_promote(found)
    if queues:
        yield from hooks.before_stop(found)


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
