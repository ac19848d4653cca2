"""Patroni's REST API over real sockets, sound and faulty, with and without TLS."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.model import PatroniApi
from resolver_agent.patroni import client
from resolver_agent.patroni.client import ApiError, Reply, fetch
from resolver_agent.system.dns import Addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Self


HOST, OTHER = "127.0.50.1", "127.0.50.2"
TIMEOUT_S = 0.5
SOON_S = TIMEOUT_S + 2
"""An error that takes the whole time limit comes within this many seconds, on a busy machine too."""

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
    """Listen, and serve one client; the event says that the client is done."""
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
    """Return a handler that sends a text, and then the same few bytes again and again."""

    def serve(client: socket.socket, done: threading.Event) -> None:
        client.sendall(text)
        while not done.wait(0.02):
            client.sendall(then)

    return serve


def flood(text: bytes, then: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Return a handler that sends a text, and then bytes without end."""

    def serve(client: socket.socket, done: threading.Event) -> None:
        client.sendall(text)
        while not done.is_set():
            client.sendall(then)

    return serve


def hang_up(client: socket.socket, _: threading.Event) -> None:
    """Close the connection without an answer."""
    client.recv(1024)


def reset(client: socket.socket, _: threading.Event) -> None:
    """Close the connection so that the client's system drops what it has not read."""
    client.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def say(text: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Return a handler that sends a text and hangs up."""

    def serve(client: socket.socket, _: threading.Event) -> None:
        client.recv(1024)
        client.sendall(text)

    return serve


@pytest.mark.parametrize("status", [200, 503, 404])
def test_an_answer(status: int) -> None:
    """Status and body are complete, and come from the requested path."""
    with Api(HOST, status=status) as api:
        assert fetch(HOST, PatroniApi(port=api.port), "/leader", 5.0) == Reply(status, BODY)
    assert api.asked == [("/leader", f"{HOST}:{api.port}")]


def test_an_answer_over_ipv6() -> None:
    """An IPv6 address is in brackets in front of a port."""
    with Api("::1") as api:
        assert fetch("::1", PatroniApi(port=api.port), "/leader", 5.0) == Reply(200, BODY)
    assert api.asked == [("/leader", f"[::1]:{api.port}")]


def test_a_redirect_is_not_followed() -> None:
    """Patroni does not redirect, so a redirect comes from another server."""
    with Api(OTHER) as other, Api(HOST, status=302, location=f"http://{OTHER}:{other.port}/leader") as api:
        assert fetch(HOST, PatroniApi(port=api.port), "/leader", 5.0).status == 302
    assert other.asked == []


def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy variables of the environment do not apply to cluster nodes."""
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
    """Return an answer with a content type that is hard to parse."""
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
        pytest.param(reset, "Connection reset by peer", id="resets"),
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
    """Whatever is at the port costs no more than the time limit, and is described."""
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
    """Faults in parts that are not needed do not matter, and take no time."""
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
    """The resolver's own message is passed on."""
    with pytest.raises(ApiError, match=r"not known|failure in name resolution"):
        fetch("no-such-host.invalid", PatroniApi(port=8008), "/leader", 5.0)


@dataclasses.dataclass(frozen=True)
class Tls:
    """A certificate authority, and its certificates."""

    folder: Path

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.folder / name)

    def sign(self, name: str, san: str) -> None:
        """Make a key and a certificate."""
        self._openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", name=name
        )
        (self.folder / "san").write_text(f"subjectAltName={san}")
        ca = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san"]
        self._openssl("x509", "-req", "-in", f"{name}.csr", *ca, "-out", f"{name}.crt")

    def authorise(self, name: str) -> None:
        """Make a certificate authority."""
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.crt", name=name
        )

    def encrypt(self, name: str, to: str) -> None:
        """Add a passphrase to a key."""
        self._openssl("rsa", "-in", f"{name}.key", "-aes256", "-passout", "pass:secret", "-out", f"{to}.key")

    def server(self, name: str, *, wants_client: bool = True) -> ssl.SSLContext:
        """Return the TLS context of a server that has a certificate for this name and requires one of its clients."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.path("ca.crt"))
        context.load_cert_chain(self.path(f"{name}.crt"), self.path(f"{name}.key"))
        context.verify_mode = ssl.CERT_REQUIRED if wants_client else ssl.CERT_NONE
        return context

    def _openssl(self, *arguments: str, name: str | None = None) -> None:
        subject = ["-subj", f"/CN={name}"] if name else []
        subprocess.run(["openssl", *arguments, *subject], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """An authority, a server's certificate for its address, one for another address, and a client's."""
    made = Tls(tmp_path_factory.mktemp("tls"))
    for authority in ("ca", "stranger"):
        made.authorise(authority)
    made.sign("server", f"IP:{HOST}")
    made.sign("elsewhere", f"IP:{OTHER},DNS:server.example")
    made.sign("client", "DNS:client")
    made.encrypt("client", "locked")
    return made


def api_of(tls: Tls, port: int, **files: str | None) -> PatroniApi:
    """Return a client's settings for a server; the default is the right ones."""
    usual: dict[str, str | None] = {"cacert": "ca.crt", "cert": "client.crt", "key": "client.key"}
    cacert, cert, key = (tls.path(name) if name else None for name in (usual | files).values())
    return PatroniApi(port=port, cacert=cacert, cert=cert, key=key)


def test_tls_with_a_client_certificate(tls: Tls) -> None:
    """Each side shows its certificate to the other."""
    with Api(HOST, tls=tls.server("server")) as api:
        assert fetch(HOST, api_of(tls, api.port), "/leader", 5.0) == Reply(200, BODY)


def test_tls_with_an_authority_alone(tls: Tls) -> None:
    """No client certificate is needed where the server requires none."""
    with Api(HOST, tls=tls.server("server", wants_client=False)) as api:
        assert fetch(HOST, api_of(tls, api.port, cert=None, key=None), "/leader", 5.0) == Reply(200, BODY)


@pytest.mark.parametrize(
    ("server", "files", "fault"),
    [
        pytest.param(
            "server",
            {"cacert": "stranger.crt"},
            "its certificate is refused: self-signed certificate in certificate chain (no authority that this node "
            "trusts has signed it: give the one that has as `cacert`)",
            id="another authority",
        ),
        pytest.param(
            "elsewhere",
            {},
            f"its certificate is refused: IP address mismatch, certificate is not valid for '{HOST}'.",
            id="another host's certificate",
        ),
        pytest.param("server", {"cert": None, "key": None}, "TLS: ", id="no client certificate"),
        pytest.param("", {}, "TLS: ", id="a server without TLS"),
    ],
)
def test_tls_that_fails(tls: Tls, server: str, files: dict[str, str | None], fault: str) -> None:
    """The server's certificate is always verified, and a fault is reported; no passphrase is asked for."""
    with Api(HOST, tls=tls.server(server) if server else None) as api:
        with pytest.raises(ApiError) as raised:
            fetch(HOST, api_of(tls, api.port, **files), "/leader", 5.0)
        assert fault in str(raised.value)
        assert api.asked == []


@pytest.mark.parametrize("end", [hang_up, reset])
def test_tls_that_ends_before_the_answer(tls: Tls, end: Callable[[socket.socket, threading.Event], object]) -> None:
    """A server that refuses a client may take its own last words with it, so the fault says what to look for."""
    with listening(end) as api, pytest.raises(ApiError) as raised:
        fetch(HOST, api_of(tls, api.port), "/leader", 5.0)
    closed = "TLS: it closed the connection without an answer (it has no TLS, or it requires a client certificate)"
    assert str(raised.value) == closed


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        pytest.param(
            {"cert": "server.crt"},
            "client.key cannot be used: it is not the key of the certificate in ",
            id="another's",
        ),
        pytest.param({"key": None}, "client.crt cannot be used: it holds no private key", id="no key at all"),
        pytest.param(
            {"key": "client.crt"}, "client.crt cannot be used: it holds no private key", id="no key in the file"
        ),
        pytest.param({"key": "locked.key"}, "locked.key cannot be used: the key in it is encrypted", id="a passphrase"),
        pytest.param({"cert": "san"}, "san cannot be used: it holds no certificate in PEM format", id="no certificate"),
        pytest.param({"cacert": "san"}, "san cannot be used: it holds no certificate in PEM format", id="no authority"),
        *(
            pytest.param({key: "none"}, "none cannot be used: No such file or directory", id=f"no file as {key}")
            for key in ("cacert", "cert", "key")
        ),
        pytest.param({"cacert": "."}, " cannot be used: Is a directory", id="a folder"),
    ],
)
def test_tls_files_that_cannot_be_used(tls: Tls, files: dict[str, str | None], fault: str) -> None:
    """The file at fault is named, before anything is sent."""
    with pytest.raises(ApiError) as raised:
        client.check_files(api_of(tls, 1, **files))
    assert str(raised.value).startswith(tls.path(fault) if not fault.startswith(" ") else tls.path("") + fault)
    with pytest.raises(ApiError) as raised_again:
        fetch(HOST, api_of(tls, 1, **files), "/leader", 5.0)
    assert str(raised_again.value) == str(raised.value)


def test_sound_tls_files(tls: Tls) -> None:
    """Files that belong together pass."""
    client.check_files(api_of(tls, 1))
    client.check_files(PatroniApi(port=1))


HELLO_REQUEST = b"\x16\x03\x03\x00\x04\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("serve", "fault"),
    [
        pytest.param(drip(b"", HELLO_REQUEST), SILENT, id="trickling messages without data"),
        pytest.param(flood(b"", HELLO_REQUEST * 7000), LONG, id="messages without data"),
        pytest.param(drip(b"\x16\x03\x03\x40\x00\x02", b"\0"), SILENT, id="a trickling message"),
    ],
)
def test_a_tls_handshake_without_end(
    tls: Tls, serve: Callable[[socket.socket, threading.Event], object], fault: str
) -> None:
    """OpenSSL takes what it is sent for as long as it is sent: the limits of time and size end that too."""
    with listening(serve) as api:
        begun = time.monotonic()
        with pytest.raises(ApiError) as raised:
            fetch(HOST, api_of(tls, api.port), "/leader", TIMEOUT_S)
        assert time.monotonic() - begun < SOON_S
    assert str(raised.value) == fault


def test_a_host_whose_first_address_swallows_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address gets its share of the time; from then on the one that answered comes first."""
    with Api(HOST) as api, socket.create_server((OTHER, api.port)) as swallows:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in (OTHER, HOST)]
        monkeypatch.setattr(client, "_addresses", Addresses(getaddrinfo=lambda *_, **__: found))
        for _ in range(3):
            assert fetch("pg-1", PatroniApi(port=api.port), "/leader", TIMEOUT_S) == Reply(200, BODY)
        swallows.settimeout(0)
        swallows.accept()[0].close()
        with pytest.raises(BlockingIOError):
            swallows.accept()
    assert {host for _, host in api.asked} == {f"pg-1:{api.port}"}


def test_a_host_none_of_whose_addresses_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault names each address."""
    with socket.create_server((OTHER, 0)) as swallows:
        port = swallows.getsockname()[1]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in (OTHER, HOST)]
        monkeypatch.setattr(client, "_addresses", Addresses(getaddrinfo=lambda *_, **__: found))
        with pytest.raises(ApiError) as raised:
            fetch("pg-1", PatroniApi(port=port), "/leader", TIMEOUT_S)
    assert str(raised.value) == f"{SILENT} (at {OTHER}); Connection refused (at {HOST})"


def test_a_tls_handshake_that_hangs(tls: Tls) -> None:
    """The time limit covers the whole request, the handshake included."""
    with listening(drip(b"", b"")) as api:
        begun = time.monotonic()
        with pytest.raises(ApiError) as raised:
            fetch(HOST, api_of(tls, api.port), "/leader", TIMEOUT_S)
        assert time.monotonic() - begun < SOON_S
    assert str(raised.value) == SILENT
