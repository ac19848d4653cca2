"""The lab where there is no Citus, and with three etcd."""

from __future__ import annotations

from tests.lab.lab import Lab


def test_standbys_serve_the_standby() -> None:
    """Real libpq, called by postgres_fdw, takes a coordinator's reads to workers of its own role."""
    with Lab(citus=False, etcd_nodes=3) as lab:
        for role, standby in ((lab.primary, False), (lab.standby, True)):
            assert lab.serving(role("cn")) == {role(group).name: standby for group in ("wk1", "wk2")}
            with lab.connect(role("cn")) as session:
                assert session.execute("SELECT count(*), sum(balance) FROM accounts").fetchall() == [(1000, 100_000)]
