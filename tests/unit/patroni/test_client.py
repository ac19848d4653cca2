"""How Patroni's answers are read, and which answers are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.patroni.client import (
    ApiError,
    Leadership,
    Reply,
    attempt,
    read_leadership,
    read_members,
    read_primary,
)
from resolver_agent.patroni.membership import Member
from resolver_agent.system.foreign import TEXT_LIMIT
from tests.unit.builders import node
from tests.unit.patroni.builders import SYSTEM_ID, A, B, cluster_body, leader_body, row

NO_OBJECT = "the answer is not Patroni's: no JSON object"
NOT_PATRONIS = "the answer is not Patroni's"
LEADER = b'{"patroni": {"scope": "wk1"}, "database_system_identifier": %b}'


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
        pytest.param(200, b"", NO_OBJECT, id="no body"),
        pytest.param(200, b"<html>", NO_OBJECT, id="HTML"),
        pytest.param(200, b"\xff\xfe", NO_OBJECT, id="bytes"),
        pytest.param(200, b"[" * 100_000, NO_OBJECT, id="deep"),
        pytest.param(200, b"[]", NO_OBJECT, id="a list"),
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
                "tags are text": row(B, tags="noloadbalance"),
                "host is a map": row(B) | {"host": {}},
                "host is missing": row(B) | {"host": None},
                "host cannot be printed": row(B) | {"host": "10.0.0.2\x1b[2J"},
                "host turns the writing direction": row(B) | {"host": "10.0.0.2\u202e"},
                "host is endless": row(B) | {"host": "a" * 401},
                "port is true": row(B, port=True),
                "port is negative": row(B, port=-5432),
                "port is fractional": row(B, port=5432.0),
                "port has 4,000 digits": row(B, port=int("9" * 4000)),
                "state is a list": row(B, state=["running"]),
                "state is endless": row(B, state="x" * 401),
            }.items()
        ),
        *(
            pytest.param(200, b'{"members": [%b]}' % wrong, "the list of members is not as Patroni writes it", id=name)
            for name, wrong in {
                "a member is a number": b"7",
                "a member is null": b"null",
                "a member is text": b'"host port"',
                "a member is a list": b'["host", "port"]',
            }.items()
        ),
        pytest.param(200, b'{"members": [' + b"[" * 100_000, NO_OBJECT, id="a deep member"),
        pytest.param(200, b'{"members": [], "lag": Infinity}', NO_OBJECT, id="infinity"),
        pytest.param(
            200,
            b'{"members": [%b{}]}' % (b"{}," * 99_999),
            "the list of members is missing, empty, or longer than 100",
            id="100,000 members",
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
        pytest.param(200, b"", NO_OBJECT, id="no body"),
        pytest.param(200, b"OK", NO_OBJECT, id="another server's answer"),
        pytest.param(200, b"{}", NOT_PATRONIS, id="no scope"),
        pytest.param(200, b'{"patroni": []}', NOT_PATRONIS, id="a list for a map"),
        pytest.param(200, leader_body("a\x1b[31m"), NOT_PATRONIS, id="a scope that cannot be printed"),
        pytest.param(
            200,
            leader_body(database_system_identifier=SYSTEM_ID),
            Leadership(leads=True, scope="wk1", system_id=SYSTEM_ID),
            id="an identifier that is a number",
        ),
        pytest.param(
            200,
            leader_body(patroni={"scope": "s" * TEXT_LIMIT}),
            Leadership(leads=True, scope="s" * TEXT_LIMIT, system_id=None),
            id="a long scope",
        ),
        pytest.param(200, leader_body("s" * (TEXT_LIMIT + 1)), NOT_PATRONIS, id="a scope that is too long"),
        pytest.param(200, leader_body(patroni={"scope": 7}), NOT_PATRONIS, id="a scope that is a number"),
        pytest.param(200, leader_body(patroni="wk1"), NOT_PATRONIS, id="text for a map"),
        *(
            pytest.param(
                200, leader_body(database_system_identifier=value), NOT_PATRONIS, id=f"identifier {value!r:.20}"
            )
            for value in ("x", "-1", "+1", " 1", "1_0", "\u0661", "9" * 21, "9" * 5000, -1, True, 1.5, [1], {"1": 1})
        ),
        *(
            pytest.param(200, LEADER % number, NO_OBJECT, id=f"identifier {number.decode():.20}")
            for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 100_000)
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


LEADS, FOLLOWS, IN_DOUBT, CANNOT_TELL = "leads", "follows", "in doubt", "cannot tell"
PAUSED, UNLOCKED = {"pause": True}, {"cluster_unlocked": True}


@pytest.mark.parametrize(
    ("status", "said", "meaning"),
    [
        pytest.param(200, {"role": "master"}, LEADS, id="a primary until 3.3"),
        pytest.param(200, {"role": "primary"}, LEADS, id="a primary since 4.0"),
        pytest.param(200, {}, LEADS, id="no role"),
        pytest.param(200, {"role": "promoted", "state": "starting"}, LEADS, id="being promoted, PostgreSQL is silent"),
        pytest.param(200, {"role": "primary", "state": "unknown"}, LEADS, id="PostgreSQL is silent"),
        pytest.param(200, {"role": "replica"}, IN_DOUBT, id="to be promoted, or a new standby leader"),
        pytest.param(200, {"role": "demoted", "state": "stopped"}, IN_DOUBT, id="a lock holder that was restarted"),
        pytest.param(200, {"role": "uninitialized"}, IN_DOUBT, id="a lock holder without data"),
        pytest.param(200, {"role": "word of a later Patroni"}, IN_DOUBT, id="an unknown role"),
        pytest.param(200, {"role": ["primary"]}, IN_DOUBT, id="a role that is a list"),
        pytest.param(200, {"role": "standby_leader"}, FOLLOWS, id="a standby leader"),
        pytest.param(200, {"role": "standby_leader", "state": "stopped"}, FOLLOWS, id="a standby leader that is down"),
        pytest.param(503, {"role": "replica"}, FOLLOWS, id="a replica"),
        pytest.param(503, {"role": "replica", "sync_standby": True}, FOLLOWS, id="a synchronous standby"),
        pytest.param(503, {"role": "replica", "quorum_standby": True}, FOLLOWS, id="a quorum standby"),
        pytest.param(503, {"role": "standby_leader"}, FOLLOWS, id="a standby leader without the lock"),
        pytest.param(503, {"role": "primary"}, FOLLOWS, id="a primary without the lock"),
        pytest.param(200, {"role": "primary", **PAUSED}, LEADS, id="paused"),
        pytest.param(200, {"role": "master", **PAUSED, **UNLOCKED}, CANNOT_TELL, id="paused without DCS until 3.3"),
        pytest.param(200, {"role": "primary", **PAUSED, **UNLOCKED}, CANNOT_TELL, id="paused without DCS since 4.0"),
        pytest.param(200, {"role": "standby_leader", **PAUSED, **UNLOCKED}, FOLLOWS, id="a standby leader, no DCS"),
        pytest.param(200, {"role": "replica", **PAUSED, **UNLOCKED}, IN_DOUBT, id="paused, has just taken the lock"),
        pytest.param(503, {"role": "primary", **PAUSED, **UNLOCKED}, FOLLOWS, id="paused, nobody has the lock"),
        pytest.param(200, {"role": "primary", **UNLOCKED}, LEADS, id="has taken the lock, yet to be read from the DCS"),
        pytest.param(200, {"role": "master", "cluster_unlocked": False, **PAUSED}, LEADS, id="2.1.0 says it always"),
        pytest.param(
            200, {"role": "primary", **UNLOCKED, "failsafe_mode_is_active": True}, LEADS, id="failsafe mode without DCS"
        ),
        pytest.param(
            200,
            {"role": "primary", "pending_restart": True, "dcs_last_seen": 0, "tags": {"nofailover": True}},
            LEADS,
            id="words that say nothing of the lock",
        ),
    ],
)
def test_words_of_patroni_about_the_lock(status: int, said: dict[str, Any], meaning: str) -> None:
    """What GET /leader answers in Patroni 2.1 to 4.1, and what the agent makes of it."""
    reply = Reply(status, leader_body(**said))
    if meaning == CANNOT_TELL:
        with pytest.raises(ApiError, match="cannot tell who holds the leader lock"):
            read_leadership(reply)
    else:
        told = read_leadership(reply)
        assert (told.leads, told.in_doubt) == (meaning in (LEADS, IN_DOUBT), meaning == IN_DOUBT)


@pytest.mark.parametrize(("status", "leads"), [(200, True), (503, False), (404, None), (301, None)])
def test_reading_who_is_primary(status: int, *, leads: bool | None) -> None:
    """The HTTP status is the answer; any other than Patroni's two is an error."""
    if leads is not None:
        assert read_primary(Reply(status, b"")) is leads
    else:
        with pytest.raises(ApiError, match=f"^HTTP status {status} to GET /primary$"):
            read_primary(Reply(status, b""))


@pytest.mark.parametrize(
    ("said", "exclusion"),
    [
        *(
            pytest.param({"role": role}, "", id=role)
            for role in ("leader", "standby_leader", "replica", "sync_standby", "quorum_standby")
        ),
        pytest.param({"state": "running"}, "", id="running, as all until 3.0.3 and non-streaming ones since"),
        pytest.param({"state": "streaming", "pending_restart": True}, "", id="streaming, and to be restarted"),
        pytest.param({"lag": "unknown", "timeline": None}, "", id="lag unknown"),
        *(
            pytest.param({"tags": {tag: value}}, "", id=f"{tag} {value!r}")
            for tag in ("nofailover", "nosync", "nostream", "clonefrom", "replicatefrom", "failover_priority")
            for value in (True, 1, "true")
        ),
        *(
            pytest.param({"tags": {"noloadbalance": value}}, f"{B} is tagged noloadbalance", id=f"tagged {value!r}")
            for value in (True, 1, "true", "false", [0])
        ),
        *(
            pytest.param({"tags": {"noloadbalance": value}}, "", id=f"tagged {value!r}")
            for value in (False, 0, "", None)
        ),
        *(
            pytest.param({"state": state}, f"{B} is {state}, says Patroni", id=state)
            for state in ("in archive recovery", "restart failed (starting)", "initalizing new cluster", "crashed")
        ),
    ],
)
def test_words_of_patroni_about_a_member(said: dict[str, Any], exclusion: str) -> None:
    """What GET /cluster says of a member in Patroni 2.1 to 4.1, and whether it excludes the member from reads."""
    (member,) = read_members(Reply(200, cluster_body(row(B, **said))))
    assert member.exclusion == exclusion


_KEYS = ("members", "patroni", "scope", "role", "pause", "cluster_unlocked", "database_system_identifier", "tags")
_ROW_KEYS = ("host", "port", "state", "tags", "noloadbalance", "name")
_WORDS = ("wk1", "streaming", "10.0.0.3", "fd00::1", "pg-3", "0.0.0.0", "1e5", "9" * 30, "\ud800", "a\n", "\u202e")
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(_WORDS)
    | st.sampled_from([5432, 0, -1, 65536, 10**400]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_KEYS + _ROW_KEYS) | st.text(), inner, max_size=6)
        | st.fixed_dictionaries(dict.fromkeys(("host", "port", "state"), inner), optional={"tags": inner})
        | st.fixed_dictionaries({"patroni": st.fixed_dictionaries({"scope": inner})}, optional={_KEYS[6]: inner})
    ),
)


@given(status=st.sampled_from([200, 503]), told=ANY_JSON | st.fixed_dictionaries({"members": st.lists(ANY_JSON)}))
def test_any_json_is_a_value_or_an_error(status: int, told: object) -> None:
    """Whatever JSON a Patroni answers, and what Python takes for JSON, is read or refused; texts can be logged."""
    reply = Reply(status, json.dumps(told).encode())
    for read in (read_leadership, read_members):
        found = attempt(lambda: reply, read)
        assert str(found).isprintable()


@given(body=st.binary())
def test_any_bytes_are_a_value_or_an_error(body: bytes) -> None:
    """No body is an error of another kind."""
    for read in (read_leadership, read_members):
        with pytest.raises(ApiError):
            read(Reply(200, body))
