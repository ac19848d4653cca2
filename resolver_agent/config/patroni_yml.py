"""Address and login of the local PostgreSQL, as the ``postgresql:`` section of Patroni's own configuration gives them.

What the section does not set is left out. Patroni reports faults in it; this module reports none.
"""

from __future__ import annotations

import re
from typing import Any

DEFAULT_SOCKET_DIR = "/var/run/postgresql"
"""The default of Debian and Red Hat; the libpq in psycopg's wheel has another one compiled in."""

_LOGIN = {
    "username": "user",
    **dict.fromkeys(("password", "sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslcrldir")),
    **dict.fromkeys(("gssencmode", "channel_binding", "sslnegotiation")),
}
"""The keys that Patroni passes on to libpq (_AUTH_ALLOWED_PARAMETERS), and libpq's keyword where it is another."""
_ALSO_LOCALHOST = {"*", "localhost", "0.0.0.0", "127.0.0.1"}  # noqa: S104 - compared with, not bound to


def local_server(postgresql: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return address and login as libpq's keywords, as Patroni itself uses them.

    Patroni connects over TCP unless ``use_unix_socket`` is set. Its login may work only over that connection, so the
    agent uses the same (ConfigHandler.resolve_connection_addresses in patroni/postgresql/config.py).
    """
    section = _map(postgresql)
    address: dict[str, str] = {}
    if listen := _text(section.get("listen")) or _text(section.get("connect_address")):
        hosts, port = [*listen.rsplit(":", 1), "5432"][:2]
        listening = [host.strip(" []") for host in hosts.split(",")]
        host = listening[0] if _ALSO_LOCALHOST.isdisjoint(listening) else "localhost"
        if host and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16:
            address = {"host": host, "port": port}
    if str(section.get("use_unix_socket")).lower() in ("true", "yes", "on"):
        folder = socket_folder(section)
        if folder is not None:
            address["host"] = folder
    superuser = _map(_map(section.get("authentication")).get("superuser"))
    login = {_LOGIN[key] or key: text for key, value in superuser.items() if key in _LOGIN and (text := _text(value))}
    return address, login if "user" in login else {}


def socket_folder(postgresql: Any) -> str | None:
    """Return the first folder for sockets that is an absolute path, or None."""
    parameters = _map(_map(postgresql).get("parameters"))
    folders = _text(parameters.get("unix_socket_directories", DEFAULT_SOCKET_DIR)).split(",")
    return next((folder.strip() for folder in folders if folder.strip().startswith("/")), None)


def _text(value: Any) -> str:
    """Return text or a number as libpq takes it, and anything else as empty."""
    return str(value) if type(value) in (str, int) and "\0" not in str(value) else ""


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
