"""Address and login of the local PostgreSQL, as the ``postgresql:`` section of Patroni's own configuration gives them.

What the section does not set is left out. Patroni reports faults in it; this module reports none.
"""

from __future__ import annotations

from typing import Any

DEFAULT_SOCKET_DIR = "/var/run/postgresql"
"""The default of Debian and Red Hat; the libpq in psycopg's wheel has another one compiled in."""

_ALSO_LOCALHOST = {"*", "localhost", "0.0.0.0", "127.0.0.1"}  # noqa: S104 - compared with, not bound to


def local_server(postgresql: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return address and login as libpq's keywords, as Patroni itself uses them.

    Patroni connects over TCP unless ``use_unix_socket`` is set. Its login may work only over that connection, so the
    agent uses the same (ConfigHandler.resolve_connection_addresses in patroni/postgresql/config.py).
    """
    section = _map(postgresql)
    address: dict[str, str] = {}
    if listen := section.get("listen") or section.get("connect_address"):
        hosts, port = [*str(listen).rsplit(":", 1), "5432"][:2]
        listening = [host.strip(" []") for host in hosts.split(",")]
        address = {"host": listening[0] if _ALSO_LOCALHOST.isdisjoint(listening) else "localhost", "port": port}
    if str(section.get("use_unix_socket")).lower() in ("true", "yes", "on"):
        folders = str(_map(section.get("parameters")).get("unix_socket_directories", DEFAULT_SOCKET_DIR)).split(",")
        absolute = [folder.strip() for folder in folders if folder.strip().startswith("/")]
        if absolute:
            address["host"] = absolute[0]
    superuser = _map(_map(section.get("authentication")).get("superuser"))
    login = {"user" if key == "username" else key: str(value) for key, value in superuser.items() if value is not None}
    return address, login if "user" in login else {}


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
