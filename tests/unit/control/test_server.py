"""The agent's control socket: requests, answers, and who may ask."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from resolver_agent.control import client as control_client
from resolver_agent.control import server

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = NOGROUP = 65534
GROUP, UNKNOWN = 54321, 54322
DONE, REFUSED = "{'done': True}", "may not ask .*: do it as root, or as a member of the socket's group"
DEFECT = "it cannot answer (ZeroDivisionError): its log says more"
# Everything is imported before the privileges are dropped: the environment may be closed to other users.
AS_ANOTHER = """
import os, sys
from resolver_agent.control import client
os.chdir(sys.argv[1])
uid, gid, *groups = map(int, sys.argv[2:])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
try:
    print(client.ask("control.sock", "pre-promote"))
except client.ControlError as error:
    print(error)
"""


def fail(_request: dict[str, Any]) -> dict[str, Any]:
    """Raise an unexpected exception."""
    raise ZeroDivisionError("of no use")


async def fail_later(_request: dict[str, Any]) -> dict[str, Any]:
    """Raise an unexpected exception after a while."""
    await asyncio.sleep(0)
    raise ZeroDivisionError("of no use")


def without_peer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request as the client sent it."""
    return {key: value for key, value in request.items() if key != "peer"}


HANDLERS: server.Handlers = {
    "echo": lambda request: {"asked": without_peer(request)},
    "fail": fail,
    "fail-later": fail_later,
    "large": lambda _request: {"text": "x" * 3_000_000},
    "pre-promote": lambda _request: {"done": True},
    "who": lambda request: dataclasses.asdict(request["peer"]),
}


class Waiting:
    """A handler that waits until another request releases it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._go_on = asyncio.Event()

    @property
    def handlers(self) -> server.Handlers:
        """The handlers to serve."""
        return {**HANDLERS, "wait": self._wait, "go-on": self._tell}

    async def _wait(self, request: dict[str, Any]) -> dict[str, Any]:
        self.begun.set()
        await self._go_on.wait()
        return {"waited": without_peer(request)}

    def _tell(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._go_on.set()
        return {}


def served(client: Callable[[], Any], path: Path, handlers: server.Handlers | None = None, **settings: Any) -> Any:
    """Serve the socket, run ``client`` in a thread, and return what it returns."""

    async def serve() -> Any:
        async with server.serve(handlers or HANDLERS, path=str(path), **{"passed": None, **settings}):
            return await asyncio.to_thread(client)

    return asyncio.run(serve())


def raw(path: Path, request: bytes) -> Any:
    """Return the answer to arbitrary bytes, None for none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        line = connection.makefile("rb").readline()
    return json.loads(line) if line else None


def test_a_request_is_answered(tmp_path: Path) -> None:
    """The command's handler gets the arguments, and the client gets its answer."""
    path = tmp_path / "control.sock"
    answer = served(lambda: control_client.ask(str(path), "echo", text="é\n"), path)
    assert answer == {"asked": {"command": "echo", "text": "é\n"}}


def test_a_large_answer_arrives_whole(tmp_path: Path) -> None:
    """A report of a thousand names is one line like any other."""
    path = tmp_path / "control.sock"
    assert len(served(lambda: control_client.ask(str(path), "large"), path)["text"]) == 3_000_000


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        pytest.param(b"status\n", "expected one line of JSON", id="no JSON"),
        pytest.param(b"\xff\n", "expected one line of JSON", id="no text"),
        pytest.param(b"\n", "expected one line of JSON", id="nothing"),
        pytest.param(b"[" * 60_000 + b"\n", "expected one line of JSON", id="nested"),
        pytest.param(b'{"command": "echo", "at": NaN}\n', "expected one line of JSON", id="NaN"),
        pytest.param(b'{"command": "echo", "at": 1e999}\n', "expected one line of JSON", id="a number without end"),
        pytest.param(
            b"[]\n", "unknown command; known are echo, fail, fail-later, large, pre-promote, who", id="no object"
        ),
        pytest.param(
            b"{}\n", "unknown command; known are echo, fail, fail-later, large, pre-promote, who", id="no command"
        ),
        pytest.param(
            b'{"command": []}\n',
            "unknown command; known are echo, fail, fail-later, large, pre-promote, who",
            id="a list for a command",
        ),
        pytest.param(
            b'{"command": "stop"}\n',
            "unknown command; known are echo, fail, fail-later, large, pre-promote, who",
            id="unknown command",
        ),
        pytest.param(b'{"command": "fail"}\n', DEFECT, id="a defect"),
        pytest.param(b'{"command": "fail-later"}\n', DEFECT, id="a defect after a while"),
    ],
)
@pytest.mark.usefixtures("caplog")
def test_nonsense_is_answered_too(request_: bytes, error: str, tmp_path: Path) -> None:
    """A bad request gets an error, and the next client is answered all the same."""
    path = tmp_path / "control.sock"
    first, second = served(lambda: (raw(path, request_), control_client.ask(str(path), "echo")), path)
    assert first == {"error": error}
    assert second == {"asked": {"command": "echo"}}


def test_the_handler_knows_who_asks(tmp_path: Path) -> None:
    """The peer's identity comes from the kernel, not from the client."""
    path = tmp_path / "control.sock"
    answer = served(lambda: control_client.ask(str(path), "who", peer="somebody else"), path)
    assert answer == {"pid": os.getpid(), "uid": os.geteuid(), "gid": os.getegid()}


def test_others_are_answered_while_one_waits(tmp_path: Path) -> None:
    """A slow handler delays no other client, and its own client is answered in the end."""
    path, waiting = tmp_path / "control.sock", Waiting()

    def clients() -> list[Any]:
        with ThreadPoolExecutor() as threads:
            slow = threads.submit(control_client.ask, str(path), "wait")
            assert waiting.begun.wait(5)
            quick = control_client.ask(str(path), "echo")
            assert not slow.done()
            control_client.ask(str(path), "go-on")
            return [quick, slow.result()]

    assert served(clients, path, waiting.handlers) == [{"asked": {"command": "echo"}}, {"waited": {"command": "wait"}}]


def test_one_computation_at_a_time(tmp_path: Path) -> None:
    """Of a handler that computes elsewhere there is one call at a time, also where its clients were dropped."""
    path, under_way, most, calls = tmp_path / "control.sock", 0, 0, 0
    go_on = threading.Event()

    async def compute() -> bytes:
        nonlocal under_way, most, calls
        under_way, calls = under_way + 1, calls + 1
        most = max(most, under_way)
        await asyncio.to_thread(go_on.wait, 10)
        under_way -= 1
        return b'{"computed": true}'

    def unread(connection: socket.socket) -> int:
        size = struct.Struct("i")
        return int(size.unpack(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(size.size)))[0])

    def flood() -> Any:
        with contextlib.ExitStack() as clients:
            for _ in range(100):  # a new one gets in at the cost of the oldest that has been read
                [connection] = connect_silently(path, 1)
                clients.enter_context(connection)
                connection.sendall(b'{"command": "compute"}\n')
                while unread(connection):
                    time.sleep(0.001)
            go_on.set()
            return control_client.ask(str(path), "compute")

    handlers: server.Handlers = {"compute": lambda _request: compute()}
    assert served(flood, path, handlers) == {"computed": True}
    assert most == 1
    assert calls > 1


def test_the_answer_may_take_longer_than_asking(tmp_path: Path) -> None:
    """A handler may take as long as it needs: the time limit is for clients that stall."""
    path, waiting = tmp_path / "control.sock", Waiting()

    def clients() -> Any:
        with ThreadPoolExecutor() as threads, socket.socket(socket.AF_UNIX) as silent, select.epoll() as ends:
            slow = threads.submit(control_client.ask, str(path), "wait")
            assert waiting.begun.wait(5)
            silent.connect(str(path))
            ends.register(silent, select.EPOLLHUP)
            assert ends.poll(5)  # by now the first one has waited as long
            control_client.ask(str(path), "go-on")
            return slow.result()

    answer = served(clients, path, waiting.handlers, ask_timeout_s=1.0)
    assert answer == {"waited": {"command": "wait"}}


def test_the_end_of_the_agent_ends_the_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the agent ends, a waiting client learns at once that no answer will come."""
    path, waiting = tmp_path / "control.sock", Waiting()
    with ThreadPoolExecutor() as threads:

        def client() -> Future[Any]:
            slow = threads.submit(control_client.ask, str(path), "wait")
            assert waiting.begun.wait(5)
            return slow

        slow = served(client, path, waiting.handlers)
        with pytest.raises(control_client.ControlError, match="the agent ended before it answered"):
            slow.result()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("mode", "identity", "answer"),
    [
        pytest.param(0o600, (0, 0), DONE, id="root"),
        pytest.param(0o660, (NOBODY, NOGROUP), REFUSED, id="a stranger"),
        pytest.param(0o660, (NOBODY, GROUP), DONE, id="of the socket's group"),
        pytest.param(0o660, (NOBODY, NOGROUP, GROUP), DONE, id="also of the socket's group"),
        pytest.param(0o666, (NOBODY, NOGROUP), REFUSED, id="a stranger, and the socket is open to all"),
        pytest.param(0o666, (NOBODY, GROUP), DONE, id="of the socket's group, and the socket is open to all"),
        pytest.param(0o666, (UNKNOWN, UNKNOWN), REFUSED, id="a user without a name, and the socket is open to all"),
    ],
)
def test_who_may_announce_a_promotion(
    mode: int, identity: tuple[int, ...], answer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Root, the agent's user and the socket's group may; others are told how, and the agent logs its refusals."""
    path = tmp_path / "control.sock"
    tmp_path.chmod(0o755)

    def client() -> str:
        os.chown(path, 0, GROUP)
        path.chmod(mode)
        command = [sys.executable, "-c", AS_ANOTHER, str(tmp_path), *map(str, identity)]
        return subprocess.check_output(command, text=True)

    assert re.search(answer, served(client, path))
    refused = answer == REFUSED and mode == 0o666  # otherwise the kernel refuses
    assert len(caplog.records) == refused
    assert all(f"of user {identity[0]} may not ask for pre-promote" in record.message for record in caplog.records)


def test_a_defect_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets one line; the log has the traceback."""
    path = tmp_path / "control.sock"
    with pytest.raises(control_client.ControlError, match=f"the agent answered: {re.escape(DEFECT)}"):
        served(lambda: control_client.ask(str(path), "fail"), path)
    [record] = caplog.records
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)


@pytest.mark.parametrize("request_", [b"", b"x" * 100_000], ids=["nothing", "an endless line"])
def test_a_client_that_asks_nothing_is_let_go(request_: bytes, tmp_path: Path) -> None:
    """Neither a silent client nor a flood keeps others from being answered."""
    path = tmp_path / "control.sock"

    def both() -> Any:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            silent.sendall(request_)
            return control_client.ask(str(path), "echo")

    assert served(both, path) == {"asked": {"command": "echo"}}


@pytest.mark.parametrize("text", [b"[", b'{"command": ', b"\x1b"], ids=["nested", "an object", "no text"])
def test_a_flood_is_cut_off(text: bytes, tmp_path: Path) -> None:
    """Of a line that does not end no more is read than a request may have."""
    path = tmp_path / "control.sock"

    def pour() -> Any:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 10_000_000:
                    sent += client.send(text * 10_000)
            return sent

    assert served(pour, path) < 1_000_000


def connect_silently(path: Path, number: int) -> list[socket.socket]:
    """Return so many connections that say nothing."""
    silent = []
    for _ in range(number):
        silent.append(connection := socket.socket(socket.AF_UNIX))
        connection.settimeout(5)
        connection.connect(str(path))
    return silent


def test_silent_clients_are_bounded(tmp_path: Path) -> None:
    """However many connect and say nothing, the agent keeps a few of them, the latest, and answers others."""
    path = tmp_path / "control.sock"

    def flood() -> tuple[Any, int]:
        silent = connect_silently(path, 300)
        answer = control_client.ask(str(path), "echo")
        held = len(descriptors(path))
        for connection in silent:
            connection.close()
        return answer, held

    def descriptors(path: Path) -> list[str]:
        table = Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()
        inodes = {f"socket:[{line.split()[6]}]" for line in table if line.endswith(f"{path}.{os.getpid()}")}
        links = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
        return [link for link in links if link in inodes]

    answer, held = served(flood, path, ask_timeout_s=60.0)
    assert answer == {"asked": {"command": "echo"}}
    assert 1 < held <= 20  # the listener, and a user's share


def test_a_promotion_is_not_dropped_for_silent_clients(tmp_path: Path) -> None:
    """A hook that waits for its answer gets it, whoever connects meanwhile."""
    path, waiting = tmp_path / "control.sock", Waiting()
    handlers = {**waiting.handlers, "pre-promote": waiting.handlers["wait"]}

    def flood() -> Any:
        with ThreadPoolExecutor() as threads, contextlib.ExitStack() as silent:
            hook = threads.submit(control_client.ask, str(path), "pre-promote")
            assert waiting.begun.wait(5)
            for connection in connect_silently(path, 100):
                silent.enter_context(connection)
            control_client.ask(str(path), "go-on")
            return hook.result()

    assert served(flood, path, handlers, ask_timeout_s=60.0) == {"waited": {"command": "pre-promote"}}


def test_more_promotions_than_connections_are_refused_in_words(tmp_path: Path) -> None:
    """Where every connection of a user waits for a promotion, a further client is told so at once."""
    path, waiting = tmp_path / "control.sock", Waiting()
    handlers = {**waiting.handlers, "pre-promote": waiting.handlers["wait"]}

    def flood() -> Any:
        with contextlib.ExitStack() as end:
            hooks = []
            for _ in range(40):
                [hook] = connect_silently(path, 1)
                hooks.append(end.enter_context(hook))
                with contextlib.suppress(OSError):  # it was refused already
                    hook.sendall(b'{"command": "pre-promote"}\n')
            return json.loads(hooks[-1].recv(4096))

    assert served(flood, path, handlers) == {"error": "too many requests at a time: try again"}


def test_no_descriptor_for_a_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the process has no file descriptor left a client waits, without spinning, and is then answered."""
    path = tmp_path / "control.sock"
    script = f"""
import asyncio, os, resource, sys, time
from resolver_agent.control import server

async def main():
    async with server.serve({{"who": lambda request: {{}}}}, path={str(path)!r}, passed=None):
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            print(flush=True)
        begun = time.process_time()
        await asyncio.sleep(0.5)
        print(time.process_time() - begun, flush=True)
        os.close(taken.pop())
        await asyncio.sleep(10)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as serving:
        assert serving.stdout is not None
        serving.stdout.readline()
        assert control_client.ask(str(path), "who") == {}
        busy_s = float(serving.stdout.readline())
        serving.kill()
    assert busy_s < 0.25
    assert caplog.records == []


@pytest.mark.parametrize("request_", [b"", b'{"command": "large"}\n'], ids=["asks nothing", "reads nothing"])
def test_a_client_that_stalls_is_cut_off(request_: bytes, tmp_path: Path) -> None:
    """The agent keeps neither the connection of a stalled client nor the answer it does not read."""
    path = tmp_path / "control.sock"

    def stall() -> bool:
        with socket.socket(socket.AF_UNIX) as client, select.epoll() as ends:
            client.connect(str(path))
            client.sendall(request_)
            ends.register(client, select.EPOLLHUP)  # what arrives meanwhile stays unread
            return ends.poll(5) != []

    assert served(stall, path, ask_timeout_s=1.0, read_timeout_s=1.0)


def test_the_socket_is_for_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    """Other users have no access, and nothing is left in the folder."""
    path = tmp_path / "control.sock"
    assert served(lambda: path.stat().st_mode & 0o777, path) == 0o660
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    """A stale socket is replaced."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert served(lambda: control_client.ask(str(path), "echo"), path) == {"asked": {"command": "echo"}}


def test_a_socket_of_systemd_is_used_and_left(tmp_path: Path) -> None:
    """The agent creates no socket of its own then, and systemd's socket outlives the agent."""
    path = tmp_path / "systemd.sock"
    with socket.socket(socket.AF_UNIX) as systemd:
        systemd.bind(str(path))
        systemd.listen()
        passed = systemd.dup()
        answer = served(lambda: control_client.ask(str(path), "echo"), tmp_path / "control.sock", passed=passed)
        assert answer == {"asked": {"command": "echo"}}
        assert [left.name for left in tmp_path.iterdir()] == ["systemd.sock"]


def test_a_path_that_cannot_be_a_socket(tmp_path: Path) -> None:
    """The message has the path and the fault, and nothing is left."""
    (tmp_path / "control.sock").mkdir()
    with pytest.raises(
        control_client.ControlError, match=r"control\.sock: the control socket cannot be made: Is a directory"
    ):
        served(lambda: None, tmp_path / "control.sock")
    assert [left.name for left in tmp_path.iterdir()] == ["control.sock"]
