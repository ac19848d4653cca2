"""Every parser of foreign input, each as a function of bytes, with what it may raise and what must hold of the result.

``test_targets`` runs them with hypothesis, and ``tests.bench.fuzz`` guided by coverage. The files in ``corpus/TARGET``
are the inputs to begin with, and those that once found a defect.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import functools
import ipaddress
import itertools
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import pq

from resolver_agent.changes import change, history_file, on_change
from resolver_agent.citus import flush, recovery
from resolver_agent.config import difference, load, patroni_yml, yaml12
from resolver_agent.config.model import PatroniApi
from resolver_agent.control import (
    before_stop,
    client,
    overrides,
    pre_promote,
    report,
    selection,
    server,
    status_text,
)
from resolver_agent.control.client import ControlError
from resolver_agent.doctor import gather_patroni, gather_postgres
from resolver_agent.doctor import report as doctor
from resolver_agent.doctor.facts import TextFile
from resolver_agent.hosts import block
from resolver_agent.metrics.http import Answer, HttpServer
from resolver_agent.observe import answer, libpq_error, startup
from resolver_agent.observe.talk import CHANNEL, Talk
from resolver_agent.patroni import client as patroni
from resolver_agent.patroni import membership
from resolver_agent.queue import message
from resolver_agent.routing.observation import ProbeFailure, Role
from resolver_agent.routing.state import TargetKind
from resolver_agent.system import dns, foreign, state_file, systemd
from tests.unit import builders
from tests.unit.doctor import builders as facts
from tests.unit.patroni.builders import API
from tests.unit.patroni.builders import group as patroni_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CORPUS = Path(__file__).parent / "corpus"
_KIB = 1 << 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser.

    ``parse`` calls it, and ``check`` asserts what must hold of its result. ``raises`` are the errors that it may raise;
    their messages are for people. ``words`` are words that it knows, to make inputs of. It may take ``calls`` function
    calls and ``peak_bytes`` of memory for each byte of its input, and ``some_bytes`` for an input of any length.
    ``size_bytes`` is the length of an input by which one sees how the time grows.
    """

    parse: Callable[[bytes], Any]
    check: Callable[[Any], None] = lambda _: None
    raises: tuple[type[Exception], ...] = ()
    words: Sequence[bytes] = ()
    calls: int = 60
    size_bytes: int = 32 * _KIB
    peak_bytes: int = 120
    some_bytes: int = 512 * _KIB

    def run(self, data: bytes) -> None:
        """Parse an input and check what comes of it."""
        try:
            found = self.parse(data)
        except self.raises as error:
            assert_shown(str(error), most=64 * _KIB)
        else:
            self.check(found)


def assert_shown(text: str, *, most: int = 4 * _KIB) -> None:
    """Assert that a text of lines can be shown on a terminal, and is not too long."""
    assert all(line.isprintable() for line in text.split("\n")), ascii(text)
    assert len(text) <= most, len(text)


def seeds(name: str) -> list[bytes]:
    """Return the inputs that a target begins with."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _parts(data: bytes, count: int) -> list[bytes]:
    """Return so many parts of an input, which lines of dashes separate."""
    return [*data.split(b"\n---\n"), *[b""] * count][:count]


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# --- a server's answers, as bytes of values and of the wire


def _row(data: bytes) -> Any:
    """Read a row: a value a line, as COPY writes them."""
    row = [None if value == rb"\N" else value for value in data.split(b"\n")]
    return answer.read(row, at=1.0, address="10.0.0.1")


def _check_row(seen: Any) -> None:
    assert 0 < seen.timeline < 1 << 32
    assert seen.lsn is None or 0 <= seen.lsn < 1 << 64
    assert -(1 << 63) <= seen.identity.system_id < 1 << 63
    written = [b"t" if seen.role is Role.STANDBY else b"f", rb"\N" if seen.lsn is None else b"%d" % seen.lsn]
    written += [b"%x" % seen.timeline, b"%d" % seen.identity.system_id, b"%d" % seen.identity.started_us]
    written.append(rb"\N" if seen.receiver is None else b"%d" % seen.receiver)
    assert _row(b"\n".join(written)) == seen


def _connect_failure(data: bytes) -> Any:
    text = data.decode(errors="backslashreplace")
    return *libpq_error.connect_failure(text), libpq_error.sent_by_server(text), libpq_error.connection_lost(text)


def _check_connect_failure(found: tuple[ProbeFailure, str, bool, bool]) -> None:
    kind, words, from_server, _ = found
    assert_shown(words, most=foreign.TEXT_LIMIT + 1)
    assert "\n" not in words
    assert kind is ProbeFailure.REJECTING or not from_server


def _sqlstate(data: bytes) -> str | None:
    """Ask a server that answers the first message with this, and then hangs up."""
    where = f"@fuzz-{os.getpid()}"

    async def ask() -> str | None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(data)
            writer.close()

        async with await asyncio.start_unix_server(serve, f"\0{where[1:]}/.s.PGSQL.1"):
            return await startup.sqlstate(where, "1", "fuzz")

    return asyncio.run(ask())


def _check_sqlstate(code: str | None) -> None:
    assert code is None or (len(code) == 5 and code.isascii() and code.isalnum())


# --- what agents tell each other, as anybody may with NOTIFY


def _check_message(found: message.Message | None) -> None:
    if found is not None:
        written = message.render(found)
        assert len(written) <= message.LIMIT
        assert written.isprintable()
        assert message.parse(written) == dataclasses.replace(found, wait_s=round(found.wait_s, 3))


class _Result:
    """A result of a statement, with the value of its one column or a SQLSTATE."""

    ntuples = nfields = 1

    def __init__(self, value: bytes | None, code: bytes | None) -> None:
        self.status = pq.ExecStatus.TUPLES_OK if code is None else pq.ExecStatus.FATAL_ERROR
        self._value, self._code = value, code

    def get_value(self, _row: int, _column: int) -> bytes | None:
        return self._value

    def error_field(self, _field: pq.DiagnosticField) -> bytes | None:
        return self._code


class _Heard(NamedTuple):
    messages: list[tuple[int, str]]
    senders: set[int]


def _talk(data: bytes) -> _Heard:
    """Hold a talk: the lines are notifications with their sender's number, and answers to our statements."""

    async def hold() -> _Heard:
        heard = _Heard([], set())
        talk = Talk("10.0.0.1:5432", lambda pid, text: heard.messages.append((pid, text)))
        talk.begin(1)
        for line in data.split(b"\n")[:2000]:
            kind, rest = line[:1], line[1:]
            statement = talk.following()
            if kind == b"N":
                number, _, extra = rest.partition(b" ")
                pid = int(number) if number.isdigit() and len(number) < 10 else 7
                if not talk.heard(pq.PGnotify(CHANNEL.encode(), pid, extra)):
                    talk.give_up("too many notifications")
                    talk.end()
            elif statement is not None:
                code = rest if kind == b"E" else None
                value = None if kind == b"0" else rest
                heard.senders.update(int(one) for one in rest.split() if one.isdigit() and len(one) < 11)
                assert talk.take(_Result(value, code)) <= len(rest)  # type: ignore[arg-type]  # as much of it as is used
                talk.done()
            await asyncio.sleep(0)
        return heard

    return asyncio.run(hold())


def _check_talk(heard: _Heard) -> None:
    assert {pid for pid, _ in heard.messages} <= heard.senders - {1}
    assert all(0 < len(text) <= message.LIMIT for _, text in heard.messages)


# --- Patroni


def _reply(data: bytes) -> patroni.Reply:
    """Return an answer over HTTP: its status on the first line."""
    first, _, body = data.partition(b"\n")
    return patroni.Reply(int(first) if first.isdigit() and len(first) < 5 else 200, body)


def _check_leadership(found: patroni.Leadership) -> None:
    assert_shown(found.scope, most=foreign.TEXT_LIMIT)
    assert found.leads or not found.in_doubt
    assert found.system_id is None or 0 < found.system_id < 10**20


def _members(data: bytes) -> Any:
    """Read a list of members, and decide twice which nodes they are: with and without the addresses of their names."""
    group = patroni_group()
    listed = patroni.read_members(_reply(data))
    members = membership.remember({}, listed, now=1.0, gone_after_s=10.0)
    hosts = membership.names_to_resolve([group], members.values())
    first = membership.place([group], {group.name: members.values()}, {}, before={})
    addresses = dict.fromkeys(hosts, frozenset({"10.0.0.9", "fd00::9"}))
    then = membership.place([group], {group.name: members.values()}, addresses, before=first)
    return listed, first[group.name], then[group.name]


def _check_members(found: tuple[Any, membership.Placement, membership.Placement]) -> None:
    listed, *placements = found
    assert 0 <= len(listed) <= membership.MOST_MEMBERS
    for member in listed:
        assert 0 < member.node.port < 1 << 16
        assert_shown(f"{member.fault} {member.exclusion} {member.node}")
    for placed in placements:
        for node in placed.joined:
            assert any(ipaddress.ip_address(node.host) in network for network in API.networks)
        assert len(placed.alerts) <= 11
        for alert in placed.alerts:
            assert_shown(alert.text)
            assert_shown(alert.key)


@contextlib.contextmanager
def _peer(data: bytes, where: str | tuple[str, int], family: socket.AddressFamily) -> Iterator[Any]:
    """Listen, and answer the first request with this; yield the address."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(data)

    with socket.socket(family) as listener:
        listener.bind(where)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _fetch(data: bytes) -> patroni.Reply:
    with _peer(data, ("127.0.0.1", 0), socket.AF_INET) as (host, port):
        return patroni.fetch(host, PatroniApi(port=port), "/leader", 5.0)


def _check_fetched(found: patroni.Reply) -> None:
    assert 100 <= found.status < 1000
    assert len(found.body) <= 1 << 20


# --- name lookups


def _look_up(data: bytes) -> Any:
    """Look a name up where the resolver returns whatever this JSON says."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return []

    def getaddrinfo(*_: object, **__: object) -> Any:
        return [tuple(one) if isinstance(one, list) else one for one in told] if isinstance(told, list) else told

    return dns.look_up("db.example.org", getaddrinfo)


def _check_look_up(found: Any) -> None:
    if not isinstance(found, Exception):
        assert len(found) == len(set(found)) <= 16
        assert all(map(ipaddress.ip_address, found))


# --- the hosts file

_NAMES = ("cn", "wk1", "WK2")


def _hosts(data: bytes) -> Any:
    targets = block.recall(data, _NAMES)
    return data, targets, block.conflicts(data, _NAMES), block.reverse(data, ["10.0.0.1", "fd00::1"])


def _check_hosts(found: Any) -> None:
    content, targets, conflicts, names = found
    for one in (*map(str, targets), *(f"{one.fault}: {one.fix}" for one in conflicts), *names.values()):
        assert_shown(one)
    without = block.remove(content)
    assert block.remove(without) == without
    kept = [target for target in targets if target.name.lower() in {"cn", "wk1", "wk2"}]
    if len(kept) < len(targets):
        return  # a name that was never ours may not be one that is written
    written = block.render(content, kept)
    assert block.render(written, kept) == written
    assert block.outside(written).replace(b"\n", b"") == block.outside(content).replace(b"\n", b"")
    read = {(one.name.lower(), one.address, one.kind, one.primary, one.system_id) for one in block.recall(written)}
    assert read == {(one.name.lower(), one.address, one.kind, one.primary, one.system_id) for one in kept}
    assert_shown(block.unified_diff(content, written, path="/etc/hosts").replace("\t", " "), most=1 << 20)


# --- the configuration


def _check_yaml(found: Any) -> None:
    value, faults = found
    for key, fault in faults.items():
        assert_shown(f"{key}: {fault}", most=64 * _KIB)
    left = [value]
    while left:
        one = left.pop()
        assert type(one) in {str, int, bool, type(None), list, dict}
        if isinstance(one, dict):
            assert all(type(key) is str for key in one)
            left += one.values()
        elif isinstance(one, list):
            left += one


def _config(data: bytes) -> Any:
    return load.parse(data, path="/etc/resolver-agent.yml", hostname="db7")


def _check_config(found: Any) -> None:
    assert difference.differences(found, found) == []
    assert load.fingerprint(found) == load.fingerprint(found)
    for group in found.groups:
        assert group.nodes
        line = builders.remembered("10.0.0.1", TargetKind.PRIMARY, name=group.name)
        assert [one.name for one in block.recall(block.render(b"", [line]))] == [group.name]
    addresses = [group.nodes[0].host for group in found.groups]
    assert all(address == address.lower() for address in addresses)


def _patronis(data: bytes) -> Any:
    try:
        told = yaml12.read(data)[0]
    except yaml12.YamlError:
        told = None
    return patroni_yml.local_server(told)


def _check_patronis(found: tuple[dict[str, str], dict[str, str]]) -> None:
    for one in found:
        assert all(type(value) is str and "\0" not in value for value in one.values())


# --- the control socket

_HANDLERS: server.Handlers = {
    "echo": lambda request: {"asked": {key: value for key, value in request.items() if key != "peer"}},
    "status": lambda _: {"names": []},
    "pre-promote": lambda _: {"ready": True},
}


def _request(data: bytes) -> bytes:
    """Send a request, and return the whole answer."""

    async def ask() -> bytes:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
            listener.bind(f"\0fuzz-control-{os.getpid()}")
            listener.listen()
            connection.setblocking(False)  # noqa: FBT003 -- the standard library's signature
            async with server.serve(_HANDLERS, path="", passed=listener):
                await loop.sock_connect(connection, listener.getsockname())
                with contextlib.suppress(OSError):  # it answers before it has read all
                    await loop.sock_sendall(connection, data[: 1 << 17])
                    connection.shutdown(socket.SHUT_WR)
                told = bytearray()
                with contextlib.suppress(ConnectionResetError):
                    while more := await loop.sock_recv(connection, 1 << 16):
                        told += more
                return bytes(told)

    return asyncio.run(ask())


def _check_answer(told: bytes) -> None:
    if told:
        assert told.endswith(b"\n")
        assert told.count(b"\n") == 1
        assert isinstance(json.loads(told), dict)


def _asked(data: bytes) -> Any:
    path = _folder() / "agent.sock"
    path.unlink(missing_ok=True)
    with _peer(data, str(path), socket.AF_UNIX):
        return client.ask(str(path), "status", timeout_s=5.0)


def _judge(data: bytes) -> Any:
    told = foreign.read_json(data)
    return [one.judge(told) for one in (pre_promote, before_stop)] if isinstance(told, dict) else []


def _check_judged(found: Any) -> None:
    for outcome in found:
        assert type(outcome.well) is bool
        assert type(outcome.text) is str


_KINDS = (report.Status, report.Plan, report.PinAnswer, report.PromotionCheck, report.StopCheck, overrides.Kept)


def _report(data: bytes) -> Any:
    """Read an answer as each kind that there is: the first line is the number of the kind."""
    first, _, rest = data.partition(b"\n")
    kind = _KINDS[int(first) % len(_KINDS) if first.isdigit() and len(first) < 5 else 0]
    return report.from_json(kind, foreign.read_json(rest))


def _check_report(found: Any) -> None:
    assert report.from_json(type(found), json.loads(json.dumps(report.as_json(found)))) == found
    if isinstance(found, report.Status):
        for details, only_problems in itertools.product((False, True), repeat=2):
            text = status_text.as_text(found, details=details, only_problems=only_problems)
            assert_shown(text, most=1 << 24)
        of_one = selection.of_names(found, [one.name for one in found.names[:1]])
        assert len(of_one.names) <= len(found.names)


# --- files of the agent's own that others may have written to


def _written(name: str, content: bytes) -> str:
    path = _folder() / name
    path.write_bytes(content)
    return str(path)


def _kept(data: bytes) -> Any:
    return overrides.read(_written("overrides.json", data))


def _check_kept(found: overrides.Kept) -> None:
    pins, _ = overrides.to_boottime(found)
    assert len(pins) <= overrides.PINS_MAX
    assert overrides.read(_written("overrides.json", json.dumps(report.as_json(found)).encode())) == found


def _history(data: bytes) -> Any:
    return history_file.read(_written("history.jsonl", data))


def _check_history(found: Any) -> None:
    changes, lines, _ = found
    assert len(changes) <= min(lines, history_file.KEPT)
    for one in changes:
        assert change.from_line(change.to_line(one)) == one
        assert_shown(change.as_text([one]), most=8 * _KIB)
    if changes:
        env = on_change.environment(changes[:50], {})
        assert all("\0" not in value for value in env.values())


# --- over HTTP


async def _ready() -> Answer:
    return Answer(200, b"ready\n", "text/plain")


def _http(data: bytes) -> bytes:
    """Send a request to the HTTP server, and return the whole answer."""

    async def ask() -> bytes:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)  # noqa: FBT003
            web = HttpServer({"/ready": _ready}, changed=lambda: None)
            web._take(ours)
            told = bytearray()
            with contextlib.suppress(OSError):
                await loop.sock_sendall(theirs, data[: 1 << 15])
                theirs.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while more := await loop.sock_recv(theirs, 1 << 16):
                    told += more
            await web.close()
            return bytes(told)

    return asyncio.run(ask())


def _check_http(told: bytes) -> None:
    if told:
        head, found, content = told.partition(b"\r\n\r\n")
        assert found
        assert head.split()[:2] in [[b"HTTP/1.1", code] for code in (b"200", b"400", b"404", b"405", b"431")]
        assert content in (b"", b"ready\n") or head.split()[1] != b"200"


# --- the environment


def _environment(data: bytes) -> Any:
    """Read systemd's variables: ``NAME=VALUE``, as in ``/proc/PID/environ``."""
    pairs = (one.split("=", 1) for one in _text(data).split("\0") if "=" in one)
    environ = {name: value for name, value in pairs if not (name == "LISTEN_PID" and value == str(os.getpid()))}
    notifier = systemd.Notifier(environ)
    notifier.ready()
    notifier.status(_text(data))
    return environ, notifier, systemd.listen_sockets(environ), systemd.is_journal(sys.stderr, environ)


def _check_environment(found: Any) -> None:
    environ, notifier, passed, _ = found
    assert notifier.watchdog_s is None or 0 < notifier.watchdog_s < 10**18
    assert passed == []
    made = gather_patroni._from_environment(environ)
    assert all(type(key) is str for key in made)


# --- doctor's files, and the answers of servers and programs


def _node_files(data: bytes) -> Any:
    """Judge the node's files: nsswitch.conf, nscd.conf, cloud-init's, the password files, the hosts file."""
    nsswitch, nscd, cloud, passfile, citus, hosts = map(_text, _parts(data, 6))
    changed = facts.host(
        nsswitch=TextFile("/etc/nsswitch.conf", nsswitch),
        nscd=TextFile("/etc/nscd.conf", nscd),
        cloud=(TextFile("/etc/cloud/cloud.cfg", cloud),),
        passfile=facts.file(passfile),
        citus_passfile=facts.file(citus),
        hosts=TextFile("/etc/hosts", hosts or facts.BLOCK),
    )
    return doctor.report(changed(facts.fit()))


def _check_doctor(found: Any) -> None:
    for one in found.findings:
        assert_shown(str(one), most=16 * _KIB)
    assert_shown(found.as_text(), most=1 << 20)
    json.dumps(found.as_json())


def _node_patroni(data: bytes) -> Any:
    """Find a Patroni with this configuration and these environment variables, and judge it."""
    config, environ, script = _parts(data, 3)
    root = _folder() / "root"
    process = root / "proc/7"
    (root / "etc").mkdir(parents=True, exist_ok=True)
    process.mkdir(parents=True, exist_ok=True)
    (process / "cmdline").write_bytes(b"python3\0-m\0patroni\0/etc/patroni.yml\0" if script else environ)
    (process / "environ").write_bytes(environ)
    (root / "etc/patroni.yml").write_bytes(config)
    (root / "etc/hook").write_bytes(script)
    variables = dict(one.split("=", 1) for one in _text(environ).split("\0") if "=" in one)
    found_here = gather_patroni._configuration(root / "etc/patroni.yml")
    below = found_here if isinstance(found_here, dict) else {}
    whole = gather_patroni._patched(below, gather_patroni._from_environment(variables))
    whole = {key: value for key, value in whole.items() if key != "restapi"}  # which would be asked
    found = gather_patroni._patroni("/etc/patroni.yml", whole, user=None, path="", timeout_s=0.1)
    words = gather_patroni._arguments(_text(environ).split("\0"))
    assert words is None or all(isinstance(word, str) for word in words)
    for path in (root / "etc/hook", process / "environ"):
        assert isinstance(gather_patroni._environment_file(path), dict)
    hooks = {
        name: dataclasses.replace(hook, scripts={"/etc/hook": _text(script)}) for name, hook in found.hooks.items()
    }
    return doctor.report(facts.host(patroni=(dataclasses.replace(found, hooks=hooks),))(facts.fit()))


def _node_postgres(data: bytes) -> Any:
    """Judge parameters, rows of pg_dist_node, and the text of a pg_hba.conf."""
    settings, rows, hba = _parts(data, 3)
    values = dict(one.split("=", 1) for one in _text(settings).split("\n") if "=" in one)
    changed = [facts.server(hba_names=gather_postgres.host_names(gather_postgres.read_hba(_text(hba))))]
    changed += [facts.citus(key, value) for key, value in values.items() if key.startswith("citus.")]
    names = [one for one in _text(rows).split("\n") if one]
    if names:
        changed.append(facts.database(rows=tuple(facts.row(number, name) for number, name in enumerate(names[:50], 1))))
    return doctor.report(facts.both(*changed)(facts.fit()))


def _conninfo(data: bytes) -> Any:
    text = data.decode("utf-8", "replace")
    return text, flush.recall(text), flush.uncached_from(text)


def _check_conninfo(found: Any) -> None:
    text, ours, uncached = found
    if ours is not None:
        assert text.startswith(ours.base)
        assert flush.recall(ours.stamped(5)) == ours
    if uncached is not None:
        assert flush.recall_uncached(uncached.text) == uncached


def _recovery(data: bytes) -> Any:
    """Judge a recovery by what the nodes answered before and after, and by Citus' warnings."""
    before, after, warnings = _parts(data, 3)

    def look(text: bytes) -> Mapping[str, str | None]:
        pairs = (line.partition("=") for line in text.decode("utf-8", "replace").split("\n") if line)
        return {node: told or None for node, _, told in pairs}

    said = warnings.decode("utf-8", "replace").split("\n\n")
    return recovery.refusal(look(before)), recovery.objection(look(before), look(after), said)


def _check_recovery(found: Any) -> None:
    assert all(one is None or one for one in found)


# --- text and JSON of all kinds


def _foreign(data: bytes) -> Any:
    value = foreign.read_json(data)
    return value, foreign.to_json(value, indent=2)


def _check_foreign(found: Any) -> None:
    value, text = found
    assert_shown(text, most=1 << 24)
    assert json.loads(text) == value


def _check_plain(found: tuple[str, str, str]) -> None:
    of_bytes, of_text, whole = found
    for one in (of_bytes, of_text):
        assert one.isprintable()
        assert len(one) <= foreign.TEXT_LIMIT + 1
        assert foreign.plain(one, limit=2 * foreign.TEXT_LIMIT) == one
    assert whole.isprintable()


TARGETS: dict[str, Target] = {
    "answer": Target(parse=_row, check=_check_row, raises=(ValueError,), words=[rb"\N", b"t", b"f"]),
    "libpq-error": Target(
        parse=_connect_failure,
        check=_check_connect_failure,
        words=[b"FATAL:  ", b" failed: ", b"Connection refused", b"\n", b": ", b"timeout expired"],
    ),
    "sqlstate": Target(
        parse=_sqlstate,
        check=_check_sqlstate,
        raises=(ConnectionError,),
        words=[b"E\0\0\0\x10", b"C57P03\0", b"\0", b"S", b"N"],
    ),
    "message": Target(
        parse=lambda data: message.parse(data.decode("utf-8", "replace")),
        check=_check_message,
        words=[b'"leaves"', b'"held"', b'"clear"', b'"wait_ms"', b'"node"', b'"later"', b"true"],
    ),
    "talk": Target(
        parse=_talk, check=_check_talk, words=[b"\nN7 ", b"\nP7 8", b"\nE57P01", b"\n0", b"\nN9 {}"], calls=400
    ),
    "leader": Target(
        parse=lambda data: patroni.read_leadership(_reply(data)),
        check=_check_leadership,
        raises=(patroni.ApiError,),
        words=[b"200\n", b"503\n", b'"role"', b'"pause"', b'"cluster_unlocked"', b'"standby_leader"', b'"master"'],
    ),
    "primary": Target(parse=lambda data: patroni.read_primary(_reply(data)), raises=(patroni.ApiError,)),
    "members": Target(
        parse=_members,
        check=_check_members,
        raises=(patroni.ApiError,),
        words=[
            b'"host"',
            b'"port"',
            b"5432",
            b'"fd00::1"',
            b'"10.0.0.1"',
            b'"tags"',
            b'"noloadbalance"',
            b'"wk1"',
            b'"db.x"',
        ],
        calls=200,
    ),
    "http-answer": Target(
        parse=_fetch,
        check=_check_fetched,
        raises=(patroni.ApiError,),
        words=[
            b"HTTP/1.1 200 OK\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Length: 5\r\n",
            b"\r\n\r\n",
            b"5\r\n",
        ],
        some_bytes=3 << 20,  # http.client's own
    ),
    "dns": Target(parse=_look_up, check=_check_look_up, words=[b'["10.0.0.1", 0]', b'"fe80::1%eth0"', b"[2, 1, 6]"]),
    "hosts": Target(
        parse=_hosts,
        check=_check_hosts,
        raises=(block.BlockError,),
        words=[
            b"# BEGIN resolver-agent\n",
            b"# END resolver-agent\n",
            b"# BEGIN resolver-agent: managed, edits inside are overwritten\n",
            b" (the line above had no newline)",
            b"\twk1\t# standby; primary 10.0.0.1",
            b"; system 7000000000000000001",
            b" in place of 1",
            b"; no standby",
            b"; wants primary",
            b"255.255.255.255",
            b"fd00::1",
            b" wk1",
            b"10.0.0.9 wk1\n",
            b"\r",
        ],
        peak_bytes=600,
    ),
    "yaml": Target(
        parse=yaml12.read,
        check=_check_yaml,
        raises=(yaml12.YamlError,),
        words=[
            b"&a ",
            b"*a",
            b"<<: ",
            b"!!python/object ",
            b"? ",
            b"- ",
            b"[",
            b"{",
            b"|\n",
            b">-\n",
            b"---\n",
            b"%YAML 1.1\n",
            b"# ",
        ],
        calls=600,
        peak_bytes=2000,
    ),
    "config": Target(
        parse=_config,
        check=_check_config,
        raises=(load.ConfigError,),
        words=[
            b"names:",
            b"nodes:",
            b"patroni:",
            b"queue:",
            b"10s",
            b"64MB",
            b"follow",
            b"standby",
            b"passfile:",
            b"resolver_agent:",
        ],
        calls=1200,
        peak_bytes=2500,
    ),
    "patroni-yml": Target(
        parse=_patronis,
        check=_check_patronis,
        words=[
            b"listen:",
            b"use_unix_socket: true",
            b"unix_socket_directories:",
            b"authentication:",
            b"superuser:",
            b"*:5432",
        ],
        calls=600,
        peak_bytes=2000,
    ),
    "request": Target(
        parse=_request,
        check=_check_answer,
        words=[b'{"command": "echo"}', b'"command"', b'"pre-promote"', b'"peer"', b"\n"],
        peak_bytes=400,
    ),
    "agents-answer": Target(parse=_asked, raises=(ControlError,), words=[b'"error"', b"\n"], peak_bytes=200),
    "judge": Target(
        parse=_judge,
        check=_check_judged,
        raises=(ValueError,),
        words=[
            b'"misrouted"',
            b'"astray"',
            b'"written"',
            b'"flushed"',
            b'"why"',
            b'"waited_for"',
            b'"left"',
            b'"took_ms"',
        ],
    ),
    "report": Target(
        parse=_report,
        check=_check_report,
        raises=(ValueError, ControlError),
        words=[b'"names"', b'"nodes"', b'"alerts"', b'"queue"', b'"pins"', b'"since"', b'"of"', b'"open"', b'"kind"'],
        calls=400,
        peak_bytes=600,
    ),
    "overrides": Target(
        parse=_kept,
        check=_check_kept,
        raises=(state_file.StateError,),
        words=[b'"pins"', b'"pause"', b'"until"', b'"2026-11-28T12:00:00+00:00"', b'"wanted_role"', b'"forced"'],
        calls=300,
        peak_bytes=400,
    ),
    "history": Target(
        parse=_history,
        check=_check_history,
        raises=(state_file.StateError,),
        words=[
            b'"time"',
            b'"from"',
            b'"to"',
            b'"written_ms"',
            b'"flushed_ms"',
            b"9998-12-31T23:59:59.999+14:00",
            b"\n",
        ],
        calls=300,
        peak_bytes=400,
    ),
    "http-request": Target(
        parse=_http,
        check=_check_http,
        words=[b"GET /ready HTTP/1.1\r\n", b"HEAD ", b"OPTIONS ", b"http://x", b"\r\n\r\n", b"?a=b", b"HTTP/1.0"],
        peak_bytes=400,
    ),
    "environment": Target(
        parse=_environment,
        check=_check_environment,
        words=[
            b"\0WATCHDOG_USEC=",
            b"\0LISTEN_FDS=3",
            b"\0LISTEN_PID=",
            b"\0NOTIFY_SOCKET=@",
            b"\0PATRONI_SCOPE=",
            b"=",
        ],
    ),
    "node-files": Target(
        parse=_node_files,
        check=_check_doctor,
        words=[
            b"\n---\n",
            b"hosts: files dns",
            b"[NOTFOUND=return]",
            b"enable-cache hosts yes",
            b"manage_etc_hosts: true",
            b"*:*:*:*:x",
        ],
        calls=1000,
        peak_bytes=2500,
    ),
    "node-patroni": Target(
        parse=_node_patroni,
        check=_check_doctor,
        words=[
            b"\n---\n",
            b"resolver-agent pre-promote",
            b"resolver-agent ",
            b"timeout 5 ",
            b"|| :",
            b"pre_promote:",
            b"sh -c",
            b"'",
            b"\0PATRONI_SCOPE=x",
        ],
        calls=1200,
        some_bytes=3 << 20,  # that of reading a file
        peak_bytes=2500,
    ),
    "node-postgres": Target(
        parse=_node_postgres,
        check=_check_doctor,
        words=[
            b"\n---\n",
            b"citus.node_connection_timeout=",
            b"30s",
            b"host all all ",
            b"wk1",
            b"'",
            b'"',
            b"10.0.1.1",
        ],
        calls=1000,
        peak_bytes=1500,
    ),
    "conninfo": Target(parse=_conninfo, check=_check_conninfo, words=[b"\t" * 30 + b" ", b" " * 32, b"0.0001", b"0x0"]),
    "recovery": Target(
        parse=_recovery,
        check=_check_recovery,
        words=[
            b"\n---\n",
            b"wk1:5432=",
            b"primary 1 2 3",
            b"stranger ",
            b"transaction recovery cannot connect to wk1:5432",
        ],
    ),
    "json": Target(
        parse=_foreign, check=_check_foreign, raises=(ValueError,), words=[b"NaN", b"Infinity", b"[[", b"\\ud800"]
    ),
    "text": Target(
        parse=lambda data: (foreign.plain(data), foreign.plain(_text(data)), foreign.printable(_text(data))),
        check=_check_plain,
    ),
}
"""The parsers by name."""
