"""Patroni's REST API over real sockets, well and unwell, with and without TLS; and a real Patroni with a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.config.load import parse
from resolver_agent.config.model import Config, Node, PatroniApi
from resolver_agent.patroni.client import ApiError, Reply, fetch
from resolver_agent.patroni.watch import PatroniWatch
from resolver_agent.routing.observation import PatroniStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from typing_extensions import Self

    from tests.integration.support.machine import Machine
    from tests.integration.support.patroni_cluster import PatroniCluster

HOST, OTHER = "127.0.50.1", "127.0.50.2"
TIMEOUT_S = 0.5
SOON_S = TIMEOUT_S + 2
"""Within so many seconds an error is there that takes all the time it may, on a busy machine too."""

BODY = json.dumps({"patroni": {"scope": "wk1"}}).encode()


class Api:
    """An HTTP server that answers every request alike; a context manager."""

    def __init__(self, host: str, *, status: int = 200, location: str = "", tls: ssl.SSLContext | None = None) -> None:
        api = self
        self.asked: list[tuple[str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.asked.append((self.path, self.headers["Host"]))
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(BODY)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server((host, 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = int(self.server.server_address[1])
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket, threading.Event], object]) -> Iterator[PatroniApi]:
    """Listen, and serve the one client that comes; the event says that it has seen enough."""
    with socket.create_server((HOST, 0)) as listener, contextlib.ExitStack() as stack:
        done = threading.Event()

        def run() -> None:
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                with client:
                    serve(client, done)

        thread = threading.Thread(target=run)
        thread.start()
        stack.callback(thread.join)
        stack.callback(done.set)
        yield PatroniApi(port=listener.getsockname()[1])


def drip(text: bytes, then: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Return who sends a text, and then the same few bytes again and again."""

    def serve(client: socket.socket, done: threading.Event) -> None:
        client.sendall(text)
        while not done.wait(0.02):
            client.sendall(then)

    return serve


def flood(text: bytes, then: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Return who sends a text, and then more than anybody wants."""

    def serve(client: socket.socket, done: threading.Event) -> None:
        client.sendall(text)
        while not done.is_set():
            client.sendall(then)

    return serve


def hang_up(client: socket.socket, _: threading.Event) -> None:
    """Say nothing."""
    client.recv(1024)


def say(text: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Return who says a text and hangs up."""

    def serve(client: socket.socket, _: threading.Event) -> None:
        client.recv(1024)
        client.sendall(text)

    return serve


@pytest.mark.parametrize("status", [200, 503, 404])
def test_an_answer(status: int) -> None:
    """Status and body come whole, of the path that was asked for."""
    with Api(HOST, status=status) as api:
        assert fetch(HOST, PatroniApi(port=api.port), "/leader", 5.0) == Reply(status, BODY)
    assert api.asked == [("/leader", f"{HOST}:{api.port}")]


def test_an_answer_over_ipv6() -> None:
    """An IPv6 address is in brackets where a host and a port are one text."""
    with Api("::1") as api:
        assert fetch("::1", PatroniApi(port=api.port), "/leader", 5.0) == Reply(200, BODY)
    assert api.asked == [("/leader", f"[::1]:{api.port}")]


def test_a_redirect_is_not_followed() -> None:
    """Patroni does not redirect: whoever does sends us to somebody else."""
    with Api(OTHER) as other, Api(HOST, status=302, location=f"http://{OTHER}:{other.port}/leader") as api:
        assert fetch(HOST, PatroniApi(port=api.port), "/leader", 5.0).status == 302
    assert other.asked == []


def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says of proxies is not meant for the nodes of a cluster."""
    with Api(OTHER) as proxy, Api(HOST) as api:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{OTHER}:{proxy.port}")
        assert fetch(HOST, PatroniApi(port=api.port), "/leader", 5.0) == Reply(200, BODY)
    assert proxy.asked == []


HEAD = b"HTTP/1.0 200 OK\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SILENT = f"no answer within {TIMEOUT_S:g} s"
NO_HTTP = "the answer is not HTTP"
LONG_HEAD = "its headers are longer than 16 KiB"
LONG = "the answer is longer than 1 MiB"


def typed(content_type: bytes) -> bytes:
    """Return an answer with a type of content that is hard to read."""
    return HEAD + b"Content-Type: " + content_type + b"\r\n\r\n{}"


@pytest.mark.parametrize(
    ("serve", "fault"),
    [
        pytest.param(drip(b"", b""), SILENT, id="accepts and never answers"),
        pytest.param(drip(b"HTTP/1.0 2", b"0"), SILENT, id="trickling status line"),
        pytest.param(drip(HEAD, b"X: y\r\n"), SILENT, id="trickling headers"),
        pytest.param(drip(HEAD + b"\r\n", b" "), SILENT, id="trickling body"),
        pytest.param(drip(HEAD + b"Content-Length: 9999\r\n\r\n", b" "), SILENT, id="trickling body of a known length"),
        pytest.param(drip(CHUNKED, b"1\r\nx\r\n"), SILENT, id="trickling chunks"),
        pytest.param(drip(CHUNKED, b"0"), SILENT, id="trickling length of a chunk"),
        pytest.param(drip(CHUNKED + b"0\r\n", b"X: y\r\n"), SILENT, id="trickling trailers"),
        pytest.param(drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), SILENT, id="trickling 100 Continue"),
        pytest.param(flood(HEAD + b"\r\n", b"x" * 65536), LONG, id="a huge body"),
        pytest.param(flood(CHUNKED, b"FF\r\n%b\r\n" % (b"x" * 255)), LONG, id="very many chunks"),
        pytest.param(flood(CHUNKED + b"0\r\n", b"X: y\r\n" * 9999), LONG, id="very many trailers"),
        pytest.param(flood(CHUNKED + b"F" * 9 + b"\r\n", b"x" * 65536), LONG, id="a huge chunk"),
        pytest.param(flood(HEAD, b"x" * 65536), LONG_HEAD, id="a huge header"),
        pytest.param(flood(HEAD + b"X: y\r\n", b" z\r\n" * 9999), NO_HTTP, id="a header on very many lines"),
        pytest.param(flood(b"", b"HTTP/1.1 100 \r\n\r\n" * 9999), LONG_HEAD, id="a flood of 100 Continue"),
        pytest.param(hang_up, "it closed the connection without an answer", id="hangs up"),
        pytest.param(say(b"SSH-2.0-OpenSSH_9.2\r\n"), NO_HTTP, id="something else"),
        pytest.param(say(b"\x15\x03\x03\x00\x02\x02\x50"), NO_HTTP, id="TLS"),
        pytest.param(say(b'{"patroni": {"scope": "wk1"}}\r\n'), NO_HTTP, id="HTTP/0.9"),
        pytest.param(say(b"HTTP/2 200\r\n\r\n"), NO_HTTP, id="HTTP/2"),
        pytest.param(say(b"HTTP/1.0 twohundred OK\r\n\r\n"), NO_HTTP, id="a status in words"),
        pytest.param(say(b"HTTP/1.0 99999 OK\r\n\r\n"), NO_HTTP, id="a status of five digits"),
        pytest.param(say(CHUNKED + b"5\r\nx"), NO_HTTP, id="half a chunk"),
        pytest.param(say(CHUNKED + b"-5\r\nx"), NO_HTTP, id="a chunk of a negative length"),
        pytest.param(say(CHUNKED + b"F" * 60 + b"\r\nx"), NO_HTTP, id="a chunk of a length beyond all memory"),
        pytest.param(say(typed(b"multipart/x; boundary*0=a; boundary*=b")), NO_HTTP, id="a type that cannot be sorted"),
        pytest.param(say(typed(b"multipart/x; boundary*=\0'en'a")), NO_HTTP, id="a type in no encoding"),
        pytest.param(say(typed(b'multipart/x; x="' + b";" * 65536)), LONG_HEAD, id="a type that takes very long"),
    ],
)
def test_an_api_that_is_unwell(serve: Callable[[socket.socket, threading.Event], object], fault: str) -> None:
    """Whatever is at the port costs no more than the time limit, and is said in words."""
    with listening(serve) as api:
        begun = time.monotonic()
        with pytest.raises(ApiError) as raised:
            fetch(HOST, api, "/leader", TIMEOUT_S)
        assert time.monotonic() - begun < SOON_S
    assert str(raised.value) == fault


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(HEAD + b"\r\n" + BODY, id="no headers"),
        pytest.param(b"HTTP/1.1 200\r\n\r\n" + BODY, id="no reason"),
        pytest.param(HEAD + b"Content-Length: many\r\n\r\n" + BODY, id="a length in words"),
        pytest.param(HEAD + b"Content-Length: -1\r\n\r\n" + BODY, id="a negative length"),
        pytest.param(HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + BODY, id="a length beyond all memory"),
        pytest.param(HEAD + b"Content-Length: 1\r\n 2\r\n\r\n" + BODY, id="a length on two lines"),
        pytest.param(HEAD + b"\xff: \xff\r\nno colon\r\n: no name\r\n\r\n" + BODY, id="headers that are none"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\n" + BODY, id="100 Continue before it"),
        pytest.param(CHUNKED + b"%x;x=y\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(BODY), BODY), id="chunks"),
        pytest.param(typed(b'multipart/x; x="' + b";" * 8000).removesuffix(b"{}") + BODY, id="a type that takes long"),
        pytest.param(
            HEAD + b"Content-Type: message/rfc822\r\r" * 200 + b"\r\n\r\n" + BODY, id="a message in a message in a ..."
        ),
    ],
)
def test_an_answer_that_is_odd(text: bytes) -> None:
    """What is not needed of it does not matter, and takes no time."""
    with listening(say(text)) as api:
        begun = time.monotonic()
        assert fetch(HOST, api, "/leader", 5.0) == Reply(200, BODY)
        assert time.monotonic() - begun < SOON_S


def test_nobody_listens() -> None:
    """A port without a listener refuses at once."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ApiError, match=r"^Connection refused$"):
        fetch(HOST, PatroniApi(port=port), "/leader", 5.0)


def test_a_host_that_cannot_be_resolved() -> None:
    """The resolver's own words are passed on."""
    with pytest.raises(ApiError, match=r"not known|failure in name resolution"):
        fetch("no-such-host.invalid", PatroniApi(port=8008), "/leader", 5.0)


@dataclasses.dataclass(frozen=True)
class Tls:
    """A certificate authority, and what it has signed."""

    folder: Path

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.folder / name)

    def sign(self, name: str, san: str) -> None:
        """Make a key and a certificate for somebody."""
        self._openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", name=name
        )
        (self.folder / "san").write_text(f"subjectAltName={san}")
        ca = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san"]
        self._openssl("x509", "-req", "-in", f"{name}.csr", *ca, "-out", f"{name}.crt")

    def authorise(self, name: str) -> None:
        """Make an authority."""
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.crt", name=name
        )

    def encrypt(self, name: str, to: str) -> None:
        """Put a passphrase on a key."""
        self._openssl("rsa", "-in", f"{name}.key", "-aes256", "-passout", "pass:secret", "-out", f"{to}.key")

    def server(self, name: str, *, wants_client: bool = True) -> ssl.SSLContext:
        """Return what a server needs that has a certificate of this name, and wants one of its clients."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.path("ca.crt"))
        context.load_cert_chain(self.path(f"{name}.crt"), self.path(f"{name}.key"))
        context.verify_mode = ssl.CERT_REQUIRED if wants_client else ssl.CERT_NONE
        return context

    def _openssl(self, *arguments: str, name: str | None = None) -> None:
        subject = ["-subj", f"/CN={name}"] if name else []
        subprocess.run(["openssl", *arguments, *subject], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """An authority, a server's certificate for its address, one for another, and a client's."""
    made = Tls(tmp_path_factory.mktemp("tls"))
    for authority in ("ca", "stranger"):
        made.authorise(authority)
    made.sign("server", f"IP:{HOST}")
    made.sign("elsewhere", f"IP:{OTHER},DNS:server.example")
    made.sign("client", "DNS:client")
    made.encrypt("client", "locked")
    return made


def api_of(tls: Tls, port: int, **files: str | None) -> PatroniApi:
    """Return how a client reaches a server; without more said, as it should."""
    usual: dict[str, str | None] = {"cacert": "ca.crt", "cert": "client.crt", "key": "client.key"}
    paths = {key: tls.path(name) if name else None for key, name in (usual | files).items()}
    return PatroniApi(port=port, **paths)


def test_tls_with_a_client_certificate(tls: Tls) -> None:
    """Each side shows its certificate to the other."""
    with Api(HOST, tls=tls.server("server")) as api:
        assert fetch(HOST, api_of(tls, api.port), "/leader", 5.0) == Reply(200, BODY)


def test_tls_with_an_authority_alone(tls: Tls) -> None:
    """A client certificate is not needed where none is asked for."""
    with Api(HOST, tls=tls.server("server", wants_client=False)) as api:
        assert fetch(HOST, api_of(tls, api.port, cert=None, key=None), "/leader", 5.0) == Reply(200, BODY)


@pytest.mark.parametrize(
    ("server", "files", "fault"),
    [
        pytest.param(
            "server",
            {"cacert": "stranger.crt"},
            "its certificate is refused: self-signed certificate in certificate chain",
            id="another authority",
        ),
        pytest.param(
            "elsewhere",
            {},
            f"its certificate is refused: IP address mismatch, certificate is not valid for '{HOST}'.",
            id="another host's certificate",
        ),
        pytest.param("server", {"cert": None, "key": None}, "TLS: ", id="no client certificate"),
        pytest.param("server", {"cert": "server.crt"}, "cannot be used: KEY_VALUES_MISMATCH", id="another's key"),
        pytest.param("server", {"key": "locked.key"}, "cannot be used: ", id="a key with a passphrase"),
        pytest.param("server", {"cacert": "none.crt"}, "cannot be used: No such file or directory", id="no such file"),
        pytest.param("server", {"cacert": "san"}, "cannot be used: NO_CERTIFICATE_OR_CRL_FOUND", id="no certificate"),
        pytest.param("", {}, "TLS: ", id="a server without TLS"),
    ],
)
def test_tls_that_fails(tls: Tls, server: str, files: dict[str, str | None], fault: str) -> None:
    """Who is at the other end is always checked, and what is wrong is said; nobody is asked for a passphrase."""
    with Api(HOST, tls=tls.server(server) if server else None) as api:
        with pytest.raises(ApiError) as raised:
            fetch(HOST, api_of(tls, api.port, **files), "/leader", 5.0)
        assert fault in str(raised.value)
        assert api.asked == []


def test_a_tls_handshake_that_hangs(tls: Tls) -> None:
    """The time limit is that of the whole request, the handshake included."""
    with listening(drip(b"", b"")) as api:
        begun = time.monotonic()
        with pytest.raises(ApiError) as raised:
            fetch(HOST, api_of(tls, api.port), "/leader", TIMEOUT_S)
        assert time.monotonic() - begun < SOON_S
    assert str(raised.value) == SILENT


off_loop = asyncio.to_thread
"""Clusters block: whatever is done to one while a watch looks on is done in a thread."""

CALM_S, INTERVAL_S, API_TIMEOUT_S = 0.5, 0.2, 1.0


class Sight:
    """A watch over the group ``wk1`` of a cluster, of which the configuration has the first node alone."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.changed = asyncio.Event()
        self.watch = PatroniWatch(changed=self.changed, calm_s=CALM_S, gone_after_s=1.0, patience_s=0.0)
        self.watch.watch(config)

    @property
    def hosts(self) -> list[str]:
        """The hosts behind wk1, with those that joined."""
        return [one.host for one in self.watch.extended(self.config).groups[0].nodes]

    @property
    def status(self) -> PatroniStatus:
        """What Patroni says of wk1."""
        return self.watch.statuses.get("wk1", PatroniStatus())

    @property
    def leader(self) -> str | None:
        """Who leads wk1."""
        return self.status.leader.host if self.status.leader else None

    def leads(self, machine: Machine) -> bool | None:
        """Report what the Patroni on a machine said last of the leader lock."""
        claim = self.watch.claim(node_of(machine))
        return claim.leads if claim is not None else None

    async def until(self, condition: Callable[[], object], *, timeout_s: float = 30.0) -> None:
        """Wait until a condition holds; whatever makes it hold has to be told as a change."""
        while not condition():
            await asyncio.wait_for(self.changed.wait(), timeout_s)
            self.changed.clear()
            self.watch.check()

    async def until_alerts(self, *texts: str, timeout_s: float = 30.0) -> None:
        """Wait until these are the alerts. That one comes or goes need not be told as a change."""
        deadline = time.monotonic() + timeout_s
        while (found := [alert.text for alert in self.watch.alerts]) != list(texts):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.02)
            self.watch.check()


def node_of(machine: Machine) -> Node:
    """Return the node that a machine's server is."""
    return Node(machine.address, machine.server.port)


@contextlib.asynccontextmanager
async def watching(patroni: PatroniCluster) -> AsyncIterator[Sight]:
    """Watch ``wk1``, given by its first node."""
    first, _ = patroni.groups["wk1"]
    text = f"""
        fallback: none
        names: {{wk1: {{nodes: [{first.address}], patroni: {{port: {patroni.rest_port}}}}}}}
        port: {first.server.port}
        interval: {INTERVAL_S * 1000:.0f}ms
        timeout: {API_TIMEOUT_S * 1000:.0f}ms
    """
    sight = Sight(parse(text, path="test", hostname="test"))
    try:
        yield sight
    finally:
        await sight.watch.close()


def in_loop(test: Callable[[PatroniCluster], Coroutine[Any, Any, None]]) -> Callable[[PatroniCluster], None]:
    """Run a test in an event loop of its own, and see to it that it leaves no task behind."""

    @functools.wraps(test)
    def run(patroni: PatroniCluster) -> None:
        async def guarded() -> None:
            await asyncio.wait_for(test(patroni), 120)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(guarded())

    return run


def forget(patroni: PatroniCluster, machine: Machine) -> None:
    """Let a member expire now, as it does ``ttl`` after it was last heard of."""
    patroni.etcd.delete(f"/service/wk1/members/{machine.name}")


@in_loop
async def test_a_replica_comes_and_goes(patroni: PatroniCluster) -> None:
    """A replica becomes a node without an edit when Patroni knows it, is benched by its tag, and goes in the end."""
    first, second = patroni.groups["wk1"]
    [(system_id,)] = first.server.run_sql("SELECT system_identifier FROM pg_control_system()")
    async with watching(patroni) as sight:
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        await sight.until(lambda: sight.status == PatroniStatus(leader=node_of(first), system_id=system_id))

        await off_loop(lambda: patroni.reconfigure(second, tags={"noloadbalance": True}))
        excluded = {node_of(second): f"{second.address} is tagged noloadbalance"}
        await sight.until(lambda: sight.status.excluded == excluded)
        await off_loop(lambda: patroni.reconfigure(second, tags={"noloadbalance": False}))
        await sight.until(lambda: not sight.status.excluded)

        await off_loop(patroni.stop_patroni, second)
        await sight.until(
            lambda: sight.status.excluded == {node_of(second): f"{second.address} is stopped, says Patroni"}
        )
        await off_loop(forget, patroni, second)
        await sight.until(lambda: sight.hosts == [first.address])
        assert sight.leader == first.address

        await off_loop(patroni.start_patroni, second)
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        await sight.until(lambda: not sight.status.excluded)


@in_loop
async def test_the_lock_at_a_switchover(patroni: PatroniCluster) -> None:
    """The word and each node's own claim follow the leader lock."""
    first, second = patroni.groups["wk1"]
    async with watching(patroni) as sight:
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        sight.watch.own([node_of(first), node_of(second)])
        await sight.until(lambda: (sight.leads(first), sight.leads(second)) == (True, False))
        await off_loop(patroni.switch_over, second)
        await sight.until(lambda: (sight.leads(first), sight.leads(second)) == (False, True))
        await sight.until(lambda: sight.leader == second.address and not sight.status.excluded)


@in_loop
async def test_two_primaries(patroni: PatroniCluster) -> None:
    """A primary that was deposed but lives on, its Patroni hung, claims nothing: the word is its successor's."""
    first, second = patroni.groups["wk1"]
    async with watching(patroni) as sight:
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        await sight.until(lambda: sight.leader == first.address)
        await off_loop(patroni.pause_patroni, first)
        await off_loop(patroni.expire_lock, "wk1")
        await off_loop(patroni.wait_for_primary, second)
        assert not first.server.is_in_recovery
        sight.watch.hurry(["wk1"])
        await sight.until(lambda: sight.leader == second.address)
        await sight.until_alerts(f"Patroni at {first.address} cannot be asked: no answer within {API_TIMEOUT_S:g} s")

        await off_loop(patroni.resume_patroni, first)
        await off_loop(patroni.wait_for_standby, first)
        await sight.until(lambda: not sight.status.excluded)
        await sight.until_alerts()
        assert sight.leader == second.address


@in_loop
async def test_patroni_away(patroni: PatroniCluster) -> None:
    """While no Patroni answers there is no word, and the nodes stay; they have it again when it is back."""
    first, second = patroni.groups["wk1"]
    async with watching(patroni) as sight:
        await sight.until(lambda: sight.hosts == [first.address, second.address])
        await sight.until(lambda: sight.leader == first.address)
        for machine in (first, second):
            patroni.pause_patroni(machine)
        await sight.until(lambda: not sight.watch.statuses)
        assert sight.hosts == [first.address, second.address]
        for machine in (first, second):
            patroni.resume_patroni(machine)
        await sight.until(lambda: sight.leader is not None)
