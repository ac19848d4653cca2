"""Doctor tries whether waiting rooms can be opened, beside a real server, and is never in that server's way."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from resolver_agent.config.load import load
from resolver_agent.demo.postgres import free_port
from resolver_agent.doctor import gather, rooms
from resolver_agent.doctor import report as doctor_report
from resolver_agent.routing.queue import room_address

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Group

    WriteConfig = Callable[..., Path]

EVERYWHERE = "0.0.0.0"


def found(config: Path, root: Path) -> dict[str, str]:
    """Return the texts of doctor's findings about the queue, by key."""
    report = doctor_report.report(asyncio.run(gather.gather(load(str(config)), root=root)))
    return {one.key: f"{one.text}; {one.fix}" for one in report.findings if one.key.startswith("queue:")}


def test_postgresql_listens_everywhere(pair: Group, write_config: WriteConfig, tmp_path: Path) -> None:
    """The finding's fix makes room."""
    server = pair.primary
    names = {"wk1": {"nodes": [node.address for node in pair.nodes]}, "wk2": {"nodes": ["127.0.9.3"]}}
    config = write_config(server, {}, names=names)
    assert found(config, tmp_path) == {}
    pair.standby.stop()  # another server at the port would keep this one from starting
    for listen, keys in (("*", {"queue:listen"}), (f"127.0.0.1,{server.address}", set())):
        server.stop()
        server.start(listen_addresses=listen)
        texts = found(config, tmp_path)
        assert texts.keys() == keys
        if keys:
            assert "statements for wk2 fail" in texts["queue:listen"]
            assert f"listen_addresses = '127.0.0.1,{server.address}" in texts["queue:listen"]
            room = (room_address(1), server.port)
            assert rooms.faults({"wk2": room}) == {"wk2": "Address already in use (EADDRINUSE)"}


def test_another_process_at_the_port(pair: Group, write_config: WriteConfig, tmp_path: Path) -> None:
    """It is found while PostgreSQL runs; a room that is open already is none."""
    port = free_port()
    names = {"wk1": {"nodes": [pair.primary.address]}, "wk2": {"nodes": ["127.0.9.3"], "port": port}}
    config = write_config(pair.primary, {}, names=names)
    with socket.create_server((EVERYWHERE, port)):
        texts = found(config, tmp_path)
        assert texts.keys() == {"queue:room"}
        assert (
            f"wk2: the waiting room cannot be opened at {room_address(1)}:{port}: Address already"
            in texts["queue:room"]
        )
        pair.primary.kill()
        assert found(config, tmp_path) == {}
    with socket.create_server((room_address(1), port)):
        assert rooms.faults({"wk2": (room_address(1), port)}) == {}


@pytest.mark.parametrize("address", [EVERYWHERE, room_address(0)])
def test_it_is_in_nobodys_way(address: str) -> None:
    """While doctor holds the address a server can begin to listen there."""
    port = free_port()
    with rooms.bound(room_address(0), port), socket.create_server((address, port)) as server:
        socket.create_connection((room_address(0), port)).close()
        server.accept()[0].close()


def test_no_such_address() -> None:
    """The reason is the kernel's."""
    assert rooms.faults({"wk1": ("192.0.2.1", free_port())}) == {
        "wk1": "Cannot assign requested address (EADDRNOTAVAIL)"
    }


def test_somaxconn(pair: Group, write_config: WriteConfig, tmp_path: Path) -> None:
    """The kernel's limit is read, and what is no number is none."""
    config = write_config(pair.primary, {"wk1": pair}, names={"wk1": {"nodes": ["127.0.9.1"]}, "x": {"nodes": ["::1"]}})
    file = tmp_path / "proc/sys/net/core/somaxconn"
    file.parent.mkdir(parents=True)
    for text, keys in (("128\n", {"queue:somaxconn"}), ("4096\n", set()), ("x\n", set()), ("9" * 5000, set())):
        file.write_text(text)
        assert found(config, tmp_path).keys() == keys
