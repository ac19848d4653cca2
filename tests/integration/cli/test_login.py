"""Which logins a node can ask of the agent: none that gives the password away."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.support.command_line import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.conftest import Group

    WriteConfig = Callable[..., Path]


def certificates(folder: Path) -> tuple[str, str]:
    """Make a certificate that is the server's, the client's and its own authority, and its key; return their paths."""
    certificate, key = folder / "own.crt", folder / "own.key"
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=resolver_agent", "-days", "1"]
    subprocess.run([*making, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    key.chmod(0o600)
    return str(certificate), str(key)


@pytest.mark.parametrize(
    ("method", "encryption", "settings", "fault"),
    [
        pytest.param("scram-sha-256", "scram-sha-256", {}, None, id="SCRAM"),
        pytest.param("trust", "scram-sha-256", {}, None, id="trust"),
        pytest.param("cert", "scram-sha-256", {}, None, id="certificate"),
        pytest.param("password", "scram-sha-256", {}, "server requested a cleartext password", id="in clear"),
        pytest.param("md5", "md5", {}, "server requested a hashed password", id="MD5"),
        pytest.param(
            "password", "scram-sha-256", {"require_auth": "password"}, None, id="in clear, if the operator says so"
        ),
    ],
)
def test_a_password_is_given_by_scram_alone(
    *,
    method: str,
    encryption: str,
    settings: dict[str, Any],
    fault: str | None,
    pair: Group,
    write_config: WriteConfig,
    tmp_path: Path,
) -> None:
    """Whoever sits at a node's address gets no password in clear or by MD5 unless the operator allows it."""
    pair.primary.run_sql(f"SET password_encryption = '{encryption}'; ALTER ROLE resolver_agent PASSWORD 'hunter2'")
    pair.standby.wait_for_replay(of=pair.primary)
    login = {"user": "resolver_agent", "dbname": "postgres", "password": "hunter2", **settings}
    line = f"local all all trust\nhost replication all all trust\nhost all all all {method}\n"
    if method == "cert":
        certificate, key = certificates(tmp_path)
        login |= {"sslcert": certificate, "sslkey": key, "sslmode": "require"}
        line = line.replace("host all", "hostssl all")
    for node in pair.nodes:
        (node.data / "pg_hba.conf").write_text(line)
        if method == "cert":
            for name in ("own.crt", "own.key"):
                copy, owner = node.data / name, node.data.stat()
                shutil.copy(tmp_path / name, copy)
                copy.chmod(0o600)
                shutil.chown(copy, owner.st_uid, owner.st_gid)
            node.set(ssl="on", ssl_cert_file="own.crt", ssl_key_file="own.key", ssl_ca_file="own.crt")
        node.reload()
    config = write_config(pair.primary, {"wk1": pair}, postgresql=login)
    config.chmod(0o600)
    ran = run("--dry-run", "-c", config)
    asked = f"could not be asked: {pair.standby.address}:"
    if fault is None:
        assert (ran.returncode, ran.stderr) == (1, "")
    else:
        assert ran.returncode == 2
        assert asked in ran.stderr
        assert fault in ran.stderr
    assert "hunter2" not in ran.stdout + ran.stderr
