"""How Patroni's answers are read, and which answers are refused."""

from __future__ import annotations

from typing import Any

import pytest

from resolver_agent.patroni.client import ApiError, Leadership, Reply, read_leadership, read_members
from resolver_agent.patroni.membership import Member
from tests.unit.builders import node
from tests.unit.patroni.builders import SYSTEM_ID, A, B, cluster_body, leader_body, row


@pytest.mark.parametrize(
    ("listed", "members"),
    [
        pytest.param([row(A)], [Member(node(A), "streaming")], id="usual"),
        pytest.param(
            [row(A, tags={"noloadbalance": True})], [Member(node(A), "streaming", noloadbalance=True)], id="tag"
        ),
        pytest.param([row(A, tags={"noloadbalance": False})], [Member(node(A), "streaming")], id="tagged with false"),
        pytest.param([row(A, tags={"nofailover": True})], [Member(node(A), "streaming")], id="another tag"),
        pytest.param([row(A, tags=None)], [Member(node(A), "streaming")], id="no tags"),
        pytest.param([row("FD00:0::1")], [Member(node("fd00::1"), "streaming")], id="the usual spelling of an address"),
        pytest.param([row("PG-1.example.com")], [Member(node("pg-1.example.com"), "streaming")], id="and of a name"),
        pytest.param(
            [row("0.0.0.0")],
            [
                Member(
                    node("0.0.0.0"),
                    "streaming",
                    fault="'0.0.0.0' is no server's address, expected one that can be connected to",
                )
            ],
            id="an invalid host",
        ),
        pytest.param(
            [row(A), {"name": "new", "role": "replica", "state": "creating replica"}],
            [Member(node(A), "streaming")],
            id="a member without an address",
        ),
    ],
)
def test_reading_members(listed: list[dict[str, Any]], members: list[Member]) -> None:
    """Members are read from Patroni's list, in the agent's own spelling."""
    assert read_members(Reply(200, cluster_body(*listed))) == tuple(members)


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        pytest.param(503, b"", "HTTP status 503 to GET /cluster", id="503"),
        pytest.param(302, cluster_body(row(A)), "HTTP status 302 to GET /cluster", id="a redirect"),
        pytest.param(200, b"", "the answer is not Patroni's: no JSON object", id="no body"),
        pytest.param(200, b"<html>", "the answer is not Patroni's: no JSON object", id="HTML"),
        pytest.param(200, b"\xff\xfe", "the answer is not Patroni's: no JSON object", id="bytes"),
        pytest.param(200, b"[" * 100_000, "the answer is not Patroni's: no JSON object", id="deep"),
        pytest.param(200, b"[]", "the answer is not Patroni's: no JSON object", id="a list"),
        pytest.param(200, b"{}", "the list of members is missing, empty, or longer than 100", id="no list"),
        pytest.param(200, b'{"members": {}}', "the list of members is missing, empty, or longer than 100", id="a map"),
        pytest.param(200, cluster_body(), "the list of members is missing, empty, or longer than 100", id="empty"),
        pytest.param(
            200,
            cluster_body(*[row(A)] * 101),
            "the list of members is missing, empty, or longer than 100",
            id="endless",
        ),
        *(
            pytest.param(200, cluster_body(row(A), wrong), "the list of members is not as Patroni writes it", id=name)
            for name, wrong in {
                "host is a number": row(B) | {"host": 3},
                "port is text": row(B, port="5432"),
                "port is too high": row(B, port=65536),
                "no state": {key: value for key, value in row(B).items() if key != "state"},
                "state cannot be printed": row(B, state="run\nning"),
                "half a character": row(B, state="\ud800"),
                "tags are a list": row(B, tags=["noloadbalance"]),
            }.items()
        ),
        pytest.param(
            200, b'{"members": [7]}', "the list of members is not as Patroni writes it", id="a member is a number"
        ),
    ],
)
def test_nonsense_instead_of_members(status: int, body: bytes, fault: str) -> None:
    """An answer in another form than Patroni's is no list and changes nothing."""
    with pytest.raises(ApiError) as raised:
        read_members(Reply(status, body))
    assert str(raised.value) == fault


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        pytest.param(
            200,
            leader_body(database_system_identifier=str(SYSTEM_ID)),
            Leadership(leads=True, scope="wk1", system_id=SYSTEM_ID),
            id="holds it",
        ),
        pytest.param(503, leader_body(), Leadership(leads=False, scope="wk1", system_id=None), id="does not"),
        pytest.param(
            503,
            leader_body(database_system_identifier=""),
            Leadership(leads=False, scope="wk1", system_id=None),
            id="no database yet",
        ),
        pytest.param(404, leader_body(), "HTTP status 404 to GET /leader", id="404"),
        pytest.param(301, leader_body(), "HTTP status 301 to GET /leader", id="a redirect"),
        pytest.param(200, b"", "the answer is not Patroni's: no JSON object", id="no body"),
        pytest.param(200, b"OK", "the answer is not Patroni's: no JSON object", id="another server's answer"),
        pytest.param(200, b"{}", "the answer is not Patroni's", id="no scope"),
        pytest.param(200, b'{"patroni": []}', "the answer is not Patroni's", id="a list for a map"),
        pytest.param(200, leader_body("a\x1b[31m"), "the answer is not Patroni's", id="a scope that cannot be printed"),
        pytest.param(
            200,
            leader_body(database_system_identifier="x"),
            "the answer is not Patroni's",
            id="an invalid identifier",
        ),
    ],
)
def test_reading_the_leader_lock(status: int, body: bytes, told: Leadership | str) -> None:
    """The HTTP status says who has the lock, but only with a body from Patroni."""
    if isinstance(told, Leadership):
        assert read_leadership(Reply(status, body)) == told
    else:
        with pytest.raises(ApiError) as raised:
            read_leadership(Reply(status, body))
        assert str(raised.value) == told
