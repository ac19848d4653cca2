"""Facts for tests of doctor: those of a node without faults, and changes that add one fault each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from resolver_agent.citus import flush
from resolver_agent.citus.metadata import Row
from resolver_agent.config.model import PatroniApi, Route
from resolver_agent.control.report import AlertStatus, FlushStatus, NameStatus, RecoveryStatus, ServerStatus, Status
from resolver_agent.doctor import report as doctor_report
from resolver_agent.doctor.facts import Database, Facts, Host, Patroni, Server, Setting, TextFile, Unit, Unknown
from resolver_agent.doctor.finding import Severity
from resolver_agent.hosts import block
from resolver_agent.routing.observation import NodeState, Role
from resolver_agent.routing.state import TargetKind
from tests.unit.builders import PORT, config, group, node, primary, remembered, standby

if TYPE_CHECKING:
    from collections.abc import Callable

    from resolver_agent.routing.observation import Observation

    Change = Callable[[Facts], Facts]

ERROR, WARNING, NOTE = Severity
CN1, CN2, CN3 = "10.0.0.1", "10.0.0.2", "10.0.0.3"
WK1, WK2 = "10.0.1.1", "10.0.1.2"
GROUPS = (
    dataclasses.replace(group("cn", CN1, CN2), patroni=PatroniApi(port=8008)),
    group("wk1", WK1, WK2, max_lag_bytes=500),
    group("wk1-ro", WK1, WK2, route=Route.STANDBY),
)
SNIPPET = Path(__file__).parents[3] / "systemd" / "patroni-hooks.yml"
HOOKS = yaml.safe_load(SNIPPET.read_text(encoding="utf-8"))["postgresql"]
HOOK, STOP = HOOKS["pre_promote"], HOOKS["before_stop"]
PATRONI = {"scope": "cn", "postgresql": {"pre_promote": HOOK, "before_stop": STOP}}
VERSION = (4, 1, 5)
CONNINFO = "sslmode=require keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000"
UNITS = ("resolver-agent.service", "resolver-agent.socket")
BLOCK = block.render(
    b"127.0.0.1 localhost\n",
    [
        remembered(CN1, TargetKind.SELF, name="cn"),
        remembered(WK1, TargetKind.PRIMARY, name="wk1"),
        remembered(WK2, TargetKind.STANDBY, name="wk1-ro", wanted_role=Role.STANDBY),
    ],
).decode()


def state(host: str, observation: Observation) -> NodeState:
    """Return a node's state after one probe."""
    return NodeState().after(dataclasses.replace(observation, address=host))


def row(node_id: int, name: str, group_id: int | None = None, **values: Any) -> Row:
    """Return a row of pg_dist_node; the first is the coordinator's."""
    group_id = node_id - 1 if group_id is None else group_id
    return Row(node_id=node_id, name=name, group_id=group_id, **({"port": PORT} | values))


def fit() -> Facts:
    """Return the facts of a primary coordinator without faults."""
    settings = dataclasses.replace(config(*GROUPS), postgresql={"user": "resolver_agent", "dbname": "postgres"})
    database = Database(
        citus_version="13.2-1",
        group_id=0,
        rows=(row(1, "cn"), row(2, "wk1")),
        settings={
            "citus.recover_2pc_interval": Setting("-1", "configuration file"),
            "citus.defer_shard_delete_interval": Setting("-1", "configuration file"),
            "citus.use_secondary_nodes": Setting("never", "default"),
            "citus.local_hostname": Setting("localhost", "default"),
            "citus.writable_standby_coordinator": Setting("off", "default"),
            "citus.max_cached_conns_per_worker": Setting("1", "default"),
            "citus.node_connection_timeout": Setting("30s", "default"),
            "citus.prevent_incomplete_connection_establishment": Setting("off", ""),
        },
        faults=(),
        poolers=0,
    )
    server = Server(
        version=150000,
        user="resolver_agent_local",
        os_user="postgres",
        settings={
            "lock_timeout": Setting("0", "default"),
            "statement_timeout": Setting("0", "default"),
            "listen_addresses": Setting(f"127.0.0.1, {CN1}", "command line"),
            "max_connections": Setting("100", "configuration file"),
            "max_prepared_transactions": Setting("200", "configuration file"),
            "port": Setting(str(PORT), "command line"),
        },
        may_alter=True,
        may_reload=True,
        conninfo=flush.Setting(loaded=f"{CONNINFO} ", configured=CONNINFO),
        prepared={"citus_0_1_2_3 in database app": 0.5},
        databases={"app": database},
    )
    host = Host(
        hosts=TextFile("/etc/hosts", BLOCK),
        nsswitch=TextFile("/etc/nsswitch.conf", "passwd: files\nhosts: myhostname files [NOTFOUND=continue] dns\n"),
        nscd=None,
        cloud=(TextFile("/etc/cloud/cloud.cfg", "manage_etc_hosts: localhost\n"),),
        passfile=None,
        citus_passfile=TextFile("/var/lib/postgresql/.pgpass", None),
        agent=agent(wk1=WK1),
        units={name: Unit("loaded", "enabled", "active") for name in UNITS},
        patroni=(Patroni(path="/etc/patroni.yml", local=PATRONI, dynamic={}, version=VERSION),),
        patroni_faults={},
        hook_fault=None,
        somaxconn=4096,
    )
    seen = {CN1: primary(started=1), CN2: standby(started=2), WK1: primary(started=3, system_id=2, lsn=1000)}
    nodes = {node(host): state(host, observation) for host, observation in seen.items()}
    nodes[node(WK2)] = state(WK2, standby(started=4, system_id=2, lsn=900))
    return Facts(config=settings, nodes=nodes, local=nodes[node(CN1)], server=server, host=host)


def agent(*, alerts: int = 0, severity: str = "warning", **addresses: str | None) -> Status:
    """Return the status of an agent with these targets."""
    return Status(
        version="1",
        pid=42,
        config="/etc/resolver-agent.yml",
        hosts_file="/etc/hosts",
        written=True,
        trampled=0,
        role=None,
        local=ServerStatus(kind="standby", detail="", address=None, role=None, timeline=None, lsn=None, age_s=None),
        names=tuple(NameStatus(name=name, address=one, code="", reason="") for name, one in addresses.items()),
        nodes=(),
        alerts=tuple(
            AlertStatus(key=f"wk{number}:held", severity=severity, text="", since=None) for number in range(alerts)
        ),
        flush=FlushStatus(citus=True, flushed=True, fault=None),
        recovery=RecoveryStatus(under_way=False, blocked_by=None, age_s=None, databases=()),
    )


def host(**facts: Any) -> Change:
    """Return a change of the host's facts."""
    return lambda fit: dataclasses.replace(fit, host=dataclasses.replace(fit.host, **facts))


def server(**facts: Any) -> Change:
    """Return a change of the local PostgreSQL's facts."""
    return lambda fit: dataclasses.replace(fit, server=dataclasses.replace(known(fit.server), **facts))


def database(**facts: Any) -> Change:
    """Return a change of the facts of the database with Citus."""

    def change(fit: Facts) -> Facts:
        before = known(fit.server).databases["app"]
        assert isinstance(before, Database)
        return server(databases={"app": dataclasses.replace(before, **facts)})(fit)

    return change


def citus(name: str, value: str, source: str = "configuration file") -> Change:
    """Return a change of one of Citus' parameters."""

    def change(fit: Facts) -> Facts:
        settings = known(fit.server).with_citus["app"].settings
        return database(settings={**settings, name: Setting(value, source)})(fit)

    return change


def parameter(name: str, value: str, source: str = "configuration file") -> Change:
    """Return a change of a parameter of the server."""

    def change(fit: Facts) -> Facts:
        return server(settings={**known(fit.server).settings, name: Setting(value, source)})(fit)

    return change


def settings(**values: Any) -> Change:
    """Return a change of the configuration."""
    return lambda fit: dataclasses.replace(fit, config=dataclasses.replace(fit.config, **values))


def queue(**times: float) -> Change:
    """Return a change of the times of the queue, for every name."""

    def change(fit: Facts) -> Facts:
        groups = tuple(
            dataclasses.replace(one, queue=dataclasses.replace(one.queue, **times)) for one in fit.config.groups
        )
        return settings(groups=groups)(fit)

    return change


WITHOUT_PATRONI = settings(groups=tuple(dataclasses.replace(one, patroni=None) for one in GROUPS))
"""A change of the configuration: no Patroni is asked."""


def probed(**observations: Observation) -> Change:
    """Return a change of the probes' observations; nodes are given as ``cn1``, ``wk2`` and so on."""
    names = {"cn1": CN1, "cn2": CN2, "wk1": WK1, "wk2": WK2}

    def change(fit: Facts) -> Facts:
        states = {node(names[name]): state(names[name], one) for name, one in observations.items()}
        nodes = {**fit.nodes, **states}
        return dataclasses.replace(fit, nodes=nodes, local=states.get(node(CN1), fit.local))

    return change


def both(*changes: Change) -> Change:
    """Return several changes as one."""

    def change(fit: Facts) -> Facts:
        for one in changes:
            fit = one(fit)
        return fit

    return change


def known(server: Server | Unknown | None) -> Server:
    """Return the server, which must have answered."""
    assert isinstance(server, Server)
    return server


def file(text: str, mode: int = 0o600) -> TextFile:
    """Return a password file."""
    return TextFile("/etc/x.pgpass", text, mode)


def patroni(**section: Any) -> Change:
    """Return a change of patroni.yml; ``dynamic`` is for the dynamic configuration, and ``version`` for Patroni's.

    Unless ``postgresql`` says otherwise before_stop is ours.
    """
    dynamic, version = section.pop("dynamic", {}), section.pop("version", VERSION)
    section["postgresql"] = {"before_stop": STOP} | section.get("postgresql", {})
    found = Patroni(path="/etc/patroni.yml", local={"scope": "cn", **section}, dynamic=dynamic, version=version)
    return host(patroni=(found,))


def hook(command: str) -> Change:
    """Return a change of Patroni's pre_promote."""
    return patroni(postgresql={"pre_promote": command})


def hosts(text: str) -> Change:
    """Return a change of the hosts file."""
    return host(hosts=TextFile("/etc/hosts", text))


def nsswitch(line: str) -> Change:
    """Return a change of the line of nsswitch.conf."""
    return host(nsswitch=TextFile("/etc/nsswitch.conf", line + "\n"))


def units(**states: Unit) -> Change:
    """Return a change of the units, given as ``service`` and ``socket``."""

    def change(fit: Facts) -> Facts:
        assert isinstance(fit.host.units, dict)
        return host(units=fit.host.units | {f"resolver-agent.{name}": one for name, one in states.items()})(fit)

    return change


def assert_alone(change: Change, severity: Severity, key: str, text: str, fix: str) -> None:
    """Assert that this is the only finding, with its fix; notes alone leave the node fit."""
    report = doctor_report.report(change(fit()))
    assert [(one.severity, one.key) for one in report.findings] == [(severity, key)]
    [found] = report.findings
    assert text in found.text
    assert fix in found.fix
    assert bool(fix) <= bool(found.fix)
    assert report.fit is (severity is NOTE)
    lines = [f"{severity.value}: {found.text}", *([f"HINT: {found.fix}"] if found.fix else [])]
    assert report.as_text().splitlines()[: len(lines)] == lines
