"""The managed block: rendered, read back and removed, with the rest of the file untouched."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver_agent.hosts import block as hosts_block
from resolver_agent.routing.observation import Role
from resolver_agent.routing.state import FENCE, Target, TargetKind
from tests.unit.builders import Agent, config, group, primary, rejecting, standby

if TYPE_CHECKING:
    from resolver_agent.routing.observation import Observation

P, S = Role.PRIMARY, Role.STANDBY
A, B = "10.0.0.3", "10.0.0.4"


def target(
    kind: TargetKind,
    wanted_role: Role | None,
    *,
    name: str = "wk1",
    address: str = A,
    primary: str | None = None,
    lost: bool = False,
    system: int | None = None,
    replaced: int | None = None,
) -> Target:
    """Return a target as a decision would have it."""
    return Target(
        name=name,
        address=address,
        kind=kind,
        wanted_role=wanted_role,
        primary=primary,
        primary_demoted=lost,
        system_id=system,
        replaced_id=replaced,
    )


def block(*lines: str, note: str = "") -> bytes:
    """Return the block with these lines."""
    begin = f"# BEGIN resolver-agent: managed, edits inside are overwritten{note}"
    return "".join(f"{line}\n" for line in (begin, *lines, "# END resolver-agent")).encode()


NOTE = " (the line above had no newline)"
ONE = target(TargetKind.STANDBY, S, primary=B)
ONE_LINE = f"{A}\twk1\t# standby; primary {B}"

COMMENTS = [
    (target(TargetKind.SELF, None), f"{A}\twk1\t# self"),
    (target(TargetKind.SELF, None, primary=B), f"{A}\twk1\t# self; primary {B}"),
    (target(TargetKind.SELF, None, primary=A), f"{A}\twk1\t# self; primary {A}"),
    (target(TargetKind.SELF, None, primary=A, lost=True), f"{A}\twk1\t# self; primary was {A}"),
    (target(TargetKind.STANDBY, S), f"{A}\twk1\t# standby"),
    (target(TargetKind.STANDBY, S, primary=B), f"{A}\twk1\t# standby; primary {B}"),
    (target(TargetKind.STANDBY, S, primary=B, lost=True), f"{A}\twk1\t# standby; primary was {B}"),
    (target(TargetKind.PRIMARY, P, primary=A), f"{A}\twk1\t# primary"),
    (target(TargetKind.PRIMARY, P, primary=B), f"{A}\twk1\t# primary; primary {B}"),
    (target(TargetKind.PRIMARY, P), f"{A}\twk1\t# primary; no primary"),
    (target(TargetKind.PRIMARY, S, primary=A), f"{A}\twk1\t# primary; wants standby"),
    (target(TargetKind.PRIMARY, S, primary=B), f"{A}\twk1\t# primary; wants standby; primary {B}"),
    (target(TargetKind.STANDBY, P), f"{A}\twk1\t# standby; wants primary"),
    (target(TargetKind.FALLBACK, P, primary=A), f"{A}\twk1\t# fallback; wants primary"),
    (target(TargetKind.FALLBACK, S, primary=A), f"{A}\twk1\t# fallback"),
    (target(TargetKind.SELF, None, primary=B, system=7123), f"{A}\twk1\t# self; primary {B}; system 7123"),
    (target(TargetKind.PRIMARY, P, primary=A, system=7123), f"{A}\twk1\t# primary; system 7123"),
    (
        target(TargetKind.FENCED, S, address=FENCE, system=7123, replaced=-1),
        f"{FENCE}\twk1\t# fenced; no standby; no primary; system 7123 in place of -1",
    ),
    (target(TargetKind.FALLBACK, S, primary=A, lost=True), f"{A}\twk1\t# fallback; primary was {A}"),
    (target(TargetKind.FENCED, P, address=FENCE), f"{FENCE}\twk1\t# fenced; no primary"),
    (target(TargetKind.FENCED, P, address=FENCE, primary=B), f"{FENCE}\twk1\t# fenced; primary {B}"),
    (
        target(TargetKind.FENCED, P, address=FENCE, primary=B, lost=True),
        f"{FENCE}\twk1\t# fenced; primary was {B}",
    ),
    (target(TargetKind.FENCED, S, address=FENCE), f"{FENCE}\twk1\t# fenced; no standby; no primary"),
    (target(TargetKind.FENCED, S, address=FENCE, primary=B), f"{FENCE}\twk1\t# fenced; no standby; primary {B}"),
    (
        target(TargetKind.FENCED, S, address=FENCE, primary=B, lost=True),
        f"{FENCE}\twk1\t# fenced; no standby; primary was {B}",
    ),
    (
        target(TargetKind.STANDBY, S, name="wk1-ro.example", address="fd00::3", primary="fd00::4"),
        "fd00::3\twk1-ro.example\t# standby; primary fd00::4",
    ),
]


@pytest.mark.parametrize(("decided", "line"), COMMENTS, ids=[line for _, line in COMMENTS])
def test_line_tells_all_that_is_remembered(decided: Target, line: str) -> None:
    """Each kind of target has its comment, and reading the line gives the same target."""
    rendered = hosts_block.render(b"", [decided])
    assert rendered == block(line)
    assert hosts_block.recall(rendered) == (decided,)


def test_a_line_of_an_earlier_version() -> None:
    """A block that was written before an upgrade is read, and written anew."""
    line = f"{FENCE}\twk1\t# fenced; primary was {B}"
    [read] = hosts_block.recall(block(f"{line}, now in recovery")) or []
    assert (read.primary, read.primary_demoted) == (B, True)
    assert hosts_block.render(b"", [read]) == block(line)


def test_comment_depends_on_nothing_that_passes() -> None:
    """Targets that differ only in reason, time or, for an own name, the wanted role give the same file."""
    own = target(TargetKind.SELF, Role.STANDBY, primary=B)
    later = dataclasses.replace(own, wanted_role=Role.PRIMARY, since=1234.5)
    assert hosts_block.render(b"", [own]) == hosts_block.render(b"", [later])


PLACES = [
    pytest.param(b"", block(ONE_LINE), id="empty"),
    pytest.param(b"1.2.3.4 a\n", b"1.2.3.4 a\n" + block(ONE_LINE), id="added at the end"),
    pytest.param(b"1.2.3.4 a", b"1.2.3.4 a\n" + block(ONE_LINE, note=NOTE), id="no final newline"),
    pytest.param(b"1.2.3.4 a\r\n", b"1.2.3.4 a\r\n" + block(ONE_LINE), id="CRLF"),
    pytest.param(b"1.2.3.4 a\r", b"1.2.3.4 a\r\n" + block(ONE_LINE, note=NOTE), id="CR at the end"),
    pytest.param(b"\xff\xfe\t#\x00\n\n\n", b"\xff\xfe\t#\x00\n\n\n" + block(ONE_LINE), id="no text"),
    pytest.param(
        b"a\n" + block("10.0.0.9\twk9\t# primary") + b"z", b"a\n" + block(ONE_LINE) + b"z", id="replaced where it is"
    ),
    pytest.param(b"a\n" + block(ONE_LINE)[:-1], b"a\n" + block(ONE_LINE), id="END without newline"),
    pytest.param(b"a\n" + block(note=NOTE) + b"z\n", b"a\n" + block(ONE_LINE, note=NOTE) + b"z\n", id="note is kept"),
    pytest.param(
        b"# BEGIN resolver-agent\nx\n# END resolver-agent\nz\n", block(ONE_LINE) + b"z\n", id="markers without the hint"
    ),
    pytest.param(
        b"# BEGIN resolver-agent: managed, edits inside are overwritten \t\r\nx\r\n# END resolver-agent\r\nz\n",
        block(ONE_LINE) + b"z\n",
        id="markers with trailing blanks and CR",
    ),
    *(
        pytest.param(
            b"# BEGIN " + mark + b"\n10.0.0.1 db-a\n# END " + mark + b"\n",
            b"# BEGIN " + mark + b"\n10.0.0.1 db-a\n# END " + mark + b"\n" + block(ONE_LINE),
            id=f"others' markers: {mark.decode()}",
        )
        for mark in (
            b"resolver-agent peers (ansible managed)",
            b"resolver-agent: managed by hand",
            b"resolver-agent2",
            b"my resolver-agent",
            b"ANSIBLE MANAGED BLOCK resolver-agent",
        )
    ),
]


@pytest.mark.parametrize(("content", "expected"), PLACES)
def test_block_is_put_in_its_place(content: bytes, expected: bytes) -> None:
    """The block replaces the old one or is appended; all other bytes stay."""
    assert hosts_block.render(content, [ONE]) == expected


def test_order_is_that_of_the_targets() -> None:
    """The lines have the order of the targets."""
    names = ["wk2", "cn", "wk10", "wk1"]
    rendered = hosts_block.render(b"", [dataclasses.replace(ONE, name=name) for name in names])
    assert [found.name for found in hosts_block.recall(rendered)] == names


def test_without_targets_no_block_is_added() -> None:
    """While nothing is known no block is added, and an existing block is emptied."""
    assert hosts_block.render(b"1.2.3.4 a", []) == b"1.2.3.4 a"
    assert hosts_block.render(block(ONE_LINE), []) == block()


BROKEN = [
    pytest.param(b"a\n# BEGIN resolver-agent\nb\n", "line 2: '# BEGIN resolver-agent' has no '# END", id="no END"),
    pytest.param(b"a\nb\n# END resolver-agent\n", "line 3: '# END resolver-agent' has no '# BEGIN", id="no BEGIN"),
    pytest.param(b"# END resolver-agent\n" + block(), "line 1: '# END resolver-agent' has no", id="END first"),
    pytest.param(b"# BEGIN resolver-agent\n" + block(), "line 1: '# BEGIN resolver-agent' has no", id="BEGIN twice"),
    pytest.param(block() + b"# END resolver-agent", "line 3: another marker", id="END twice"),
    pytest.param(block() + b"\n" + block(), "line 4: another marker", id="two blocks"),
    pytest.param(
        b"a\n" + block().replace(b"# END", b"\t# END"), "line 3: «# END resolver-agent» is an altered", id="indented"
    ),
    pytest.param(block().replace(b"# BEGIN", b"  # BEGIN"), "line 1: «# BEGIN resolver-agent: managed", id="BEGIN too"),
    pytest.param(block().upper(), "line 1: «# BEGIN RESOLVER-AGENT: MANAGED", id="upper case"),
    pytest.param(block().lower(), "line 1: «# begin resolver-agent: managed", id="lower case"),
    pytest.param(block().replace(b"# ", b"#"), "line 1: «#BEGIN resolver-agent: managed", id="no blank behind #"),
    pytest.param(b"\xef\xbb\xbf" + block(), "line 1: «\\ufeff# BEGIN resolver-agent", id="byte order mark"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_broken_markers_are_refused(content: bytes, message: str) -> None:
    """A file whose markers do not make exactly one block is neither read nor written; the error has the line."""
    for refused in (
        lambda: hosts_block.render(content, [ONE]),
        lambda: hosts_block.recall(content),
        lambda: hosts_block.remove(content),
        lambda: hosts_block.conflicts(content, ["wk1"]),
    ):
        with pytest.raises(hosts_block.BlockError, match=re.escape(message)):
            refused()


def held(name: str, address: str) -> Target:
    """Return the target of a line without its comment."""
    kind = TargetKind.FENCED if address == FENCE else TargetKind.STANDBY
    return target(kind, None, name=name, address=address)


CN = target(TargetKind.SELF, None, name="cn", address="10.0.0.8")

READ = [
    pytest.param(["", "# a comment", "  "], [], id="blank lines and comments"),
    pytest.param([f"{A}   wk1  # standby; primary {B} \r"], [ONE], id="other white space, CRLF"),
    pytest.param([f" \t{ONE_LINE}"], [ONE], id="indented"),
    pytest.param([f"{A} WK1 # standby; primary {B}"], [ONE], id="name in capitals"),
    pytest.param([f"{A} wk1. # standby; primary {B}"], [ONE], id="trailing dot"),
    pytest.param(
        ["FD00:0:0::3 wk1 # standby; primary FD00::0004"],
        [target(TargetKind.STANDBY, S, address="fd00::3", primary="fd00::4")],
        id="IPv6 in another spelling",
    ),
    pytest.param([f"{A} wk1"], [held("wk1", A)], id="no comment"),
    pytest.param([f"{FENCE} wk1"], [held("wk1", FENCE)], id="fenced, no comment"),
    pytest.param([f"  {A}\tWK1.\r"], [held("wk1", A)], id="no comment, and all else too"),
    pytest.param([f"{A} wk1 # elsewhere"], [held("wk1", A)], id="another comment"),
    pytest.param([f"{A} wk1 # STANDBY; PRIMARY {B}"], [held("wk1", A)], id="comment in capitals"),
    pytest.param([f"{A} wk1 # standby; primary"], [held("wk1", A)], id="half a comment"),
    pytest.param([f"{A} wk1 # standby; primary 10.0.0.400"], [held("wk1", A)], id="no address in the comment"),
    pytest.param([f"{A} wk1 # standby; system seven"], [held("wk1", A)], id="no system identifier in the comment"),
    pytest.param([f"{A} wk1 wk2 # standby"], [held("wk1", A), held("wk2", A)], id="merged"),
    pytest.param([f"{A} db3.example wk1"], [held("db3.example", A), held("wk1", A)], id="merged with another's"),
    pytest.param([f"wk1 {A}"], [held("wk1", A)], id="reordered"),
    pytest.param([f"{A} wk1", ONE_LINE], [ONE], id="twice, the comment counts"),
    pytest.param([ONE_LINE, f"{A} WK1"], [ONE], id="twice, whichever is first"),
    pytest.param([f"{A} wk9"], [held("wk9", A)], id="not in the configuration"),
    pytest.param(["# ask wk1's owner", f"# {A} wk9"], [], id="comments that are no line of a configured name"),
]


@pytest.mark.parametrize(("lines", "expected"), READ)
def test_what_other_tools_did_to_a_line_loses_no_name(lines: list[str], expected: list[Target]) -> None:
    """Each name in the block keeps its address; without its comment it counts as a standby, which R2 needs."""
    content = b"1.2.3.4 a\n" + block("10.0.0.8\tcn\t# self", *lines)
    found = hosts_block.recall(content, ["cn", "wk1", "wk2"])
    assert found == (CN, *expected)
    for one in found:
        assert (one.reason == hosts_block.COMMENT_LOST) == (one.wanted_role is None and one.kind is not TargetKind.SELF)


LOST = block("10.0.0.3 WK1", f"{FENCE} wk2")


@pytest.mark.parametrize(
    ("local", "address"), [pytest.param(primary(), FENCE, id="primary"), pytest.param(standby(), A, id="standby")]
)
def test_a_line_without_its_comment_is_safe_on_a_primary(local: Observation, address: str) -> None:
    """While no node answers the name keeps its address on a standby; on a primary it is fenced, by R2."""
    names = [group("wk1", A, B), group("wk2", "10.0.0.5")]
    agent = Agent(config(*names), hosts_block.recall(LOST, ["wk1", "wk2"]))
    agent.see({A: rejecting(), B: rejecting(), "10.0.0.5": rejecting()}).see_local(local).decide()
    assert (agent.address("wk1"), agent.address("wk2")) == (address, FENCE)
    agent.see({B: primary(), A: standby()}).decide()
    assert agent.address("wk1") == (B if address == FENCE else A)


UNREADABLE = [
    pytest.param("wk1", id="no address"),
    pytest.param(A, id="no name"),
    pytest.param("10.0.0.400 wk1 # standby", id="no valid address"),
    pytest.param(f"{A} {B} wk1", id="two addresses"),
    pytest.param(f"{A} wk\xe9 # standby", id="no ASCII"),
    pytest.param(f"{A}\0wk1", id="NUL"),
    pytest.param(f"{A} wk1=x", id="no host name"),
    pytest.param("fe80::1%eth0 wk1", id="scope"),
    pytest.param(f"#{A} wk1 # standby", id="commented out"),
    pytest.param(f"{A} cn # self {B} wk1 # standby", id="two lines in one"),
    pytest.param("<html>", id="anything"),
    pytest.param(f"{A}\t{'x' * 254}\t# standby", id="a name that is too long"),
    pytest.param(f"{A} wk1 {'x' * 254}", id="a name that is too long, without a comment"),
]


@pytest.mark.parametrize("line", UNREADABLE)
def test_a_line_that_cannot_be_read_is_refused(line: str) -> None:
    """It may be what a name is known by, so it is refused with its number, as a lost marker is."""
    content = b"1.2.3.4 a\n" + block("", "# note").replace(b"# END", line.encode("latin-1") + b"\n# END")
    with pytest.raises(hosts_block.BlockError, match=r"line 5: «.*» in resolver-agent's block cannot be read: correct"):
        hosts_block.recall(content, ["cn", "wk1"])


def test_two_addresses_of_a_name_are_refused() -> None:
    """Nothing tells which of them is right."""
    with pytest.raises(hosts_block.BlockError, match=r"line 3: WK1 has another address above it"):
        hosts_block.recall(block(ONE_LINE, f"{B} WK1"))


def test_without_a_configuration_names_are_as_in_the_file() -> None:
    """`status` without an agent shows what is there."""
    assert hosts_block.recall(block(f"{A} WK1")) == (held("WK1", A),)


def test_nothing_is_recalled_without_a_block() -> None:
    """A line outside the block is never read as a target."""
    assert hosts_block.recall(ONE_LINE.encode()) == ()


@pytest.mark.parametrize(
    "bad",
    [
        dataclasses.replace(ONE, name="wk1\n1.2.3.4 root"),
        dataclasses.replace(ONE, name="wk1 wk2"),
        dataclasses.replace(ONE, name="wk1#"),
        dataclasses.replace(ONE, name="wk\u00e9"),
        dataclasses.replace(ONE, name=""),
        dataclasses.replace(ONE, address=f"{A}\n"),
        dataclasses.replace(ONE, address="db.example"),
        dataclasses.replace(ONE, address="10.0.0"),
        dataclasses.replace(ONE, address="fe80::1%eth0"),
        dataclasses.replace(ONE, primary=f"{B}\n"),
        dataclasses.replace(ONE, primary="db.example"),
    ],
    ids=lambda bad: f"{bad.name!r} {bad.address!r} {bad.primary!r}",
)
def test_what_could_break_a_line_is_refused(bad: Target) -> None:
    """An invalid name or address never reaches the file."""
    with pytest.raises(ValueError, match="cannot be written to a hosts file"):
        hosts_block.render(b"", [bad])


@pytest.mark.parametrize(
    ("original", "after", "left"),
    [
        pytest.param(b"a", b"", b"a", id="to the byte"),
        pytest.param(b"a", b"b\n", b"a\nb\n", id="a line was appended: its newline stays"),
        pytest.param(b"a\n", b"b", b"a\nb", id="appended without newline"),
    ],
)
def test_remove_after_others_appended(original: bytes, after: bytes, left: bytes) -> None:
    """Removing the block leaves the original and the lines that others put below the block."""
    assert hosts_block.remove(hosts_block.render(original, [ONE]) + after) == left


CONFLICTS = [
    pytest.param(b"10.0.0.9 wk1\n", [1], id="plain"),
    pytest.param(b"\n\n10.0.0.9\twk1", [3], id="tab, no newline"),
    pytest.param(b"10.0.0.9 other.example wk1 # x", [1], id="alias"),
    pytest.param(b"10.0.0.9 WK1", [1], id="another case"),
    pytest.param(b"\x0b10.0.0.9\x0cwk1\r\n", [1], id="VT, FF, CR"),
    pytest.param(b"10.0.0.9 wk1#x", [1], id="comment right behind"),
    pytest.param(b"10.0.0.9 wk1\0x", [1], id="NUL ends a line"),
    pytest.param(b"\xff wk1", [1], id="address that glibc ignores"),
    pytest.param(b"10.0.0.9 wk1\n10.0.0.9 wk1 WK1\n", [1, 2], id="two lines"),
    pytest.param(b"a\n" + block(ONE_LINE) + b"10.0.0.9 wk1\n", [5], id="below the block"),
    pytest.param(b"#10.0.0.9 wk1", [], id="comment"),
    pytest.param(b"10.0.0.9 x # wk1", [], id="in a comment"),
    pytest.param(b"10.0.0.9 x\0 wk1", [], id="behind a NUL"),
    pytest.param(b"10.0.0.9 wk10 wk1.example xwk1 wk1.", [], id="other names"),
    pytest.param(b"wk1 10.0.0.9", [], id="in the address's place"),
    pytest.param(block(ONE_LINE), [], id="the block itself"),
    pytest.param(b"\x85wk1 \xa0wk1\xa0", [], id="no white space in C"),
]


@pytest.mark.parametrize(("content", "line_nos"), CONFLICTS)
def test_conflicts_are_found_as_glibc_reads(content: bytes, line_nos: list[int]) -> None:
    """Each active line outside the block that has one of our names is reported once, and no other line is."""
    found = hosts_block.conflicts(content, ["cn", "wk1"])
    assert [conflict.line_no for conflict in found] == line_nos
    assert all(conflict.name == "wk1" for conflict in found)


def test_very_many_conflicts() -> None:
    """The first lines of each name are reported, and a line that has a name very often once, in little time."""
    lines = b"".join(b"10.0.0.9 wk1 # %d\n" % number for number in range(30_000)) + b"10.0.0.9 wk2\n"
    found = [(one.line_no, one.name) for one in hosts_block.conflicts(lines, ["wk1", "wk2"])]
    assert found == [*((number, "wk1") for number in range(1, 11)), (30_001, "wk2")]
    begun = time.thread_time()
    assert len(hosts_block.conflicts(b"10.0.0.9" + b" wk1" * 100_000, ["wk1"])) == 1
    assert time.thread_time() - begun < 1


REVERSE = [
    pytest.param(block(ONE_LINE), "wk1", id="the block alone"),
    pytest.param(b"10.0.0.3 db3.example.com db3\n" + block(ONE_LINE), "db3.example.com", id="a line above the block"),
    pytest.param(block(ONE_LINE) + b"10.0.0.3 db3.example.com\n", "wk1", id="a line below the block"),
    pytest.param(b"# 10.0.0.3 x\n10.0.0.3\n10.0.0.30 y\n" + block(ONE_LINE), "wk1", id="lines that do not count"),
    pytest.param(b"10.0.0.3 db3.example.com # x\r\n", "db3.example.com", id="no block"),
    pytest.param(b"", None, id="no line"),
]


@pytest.mark.parametrize(("content", "name"), REVERSE)
def test_reverse_lookups_take_the_first_line(content: bytes, name: str | None) -> None:
    """So a line above the block keeps a host's own name, with which pg_hba.conf is compared."""
    assert hosts_block.reverse(content, [A]).get(A) == name


def test_reverse_lookups_of_ipv6_addresses() -> None:
    """Addresses are equal in every spelling, and are returned as they were given."""
    assert hosts_block.reverse(b"FD00:0::3 db3\n", ["fd00::3", "fd00::4"]) == {"fd00::3": "db3"}


def test_conflict_quotes_the_line() -> None:
    """The report shows the line in printable form, and the name as it was configured."""
    (found,) = hosts_block.conflicts(b" 10.0.0.9  wk1 # caf\xe9\r\n", ["WK1"])
    assert (found.name, found.text) == ("WK1", "10.0.0.9 wk1 # caf\\xe9")


def test_foreign_markers_survive_all_that_we_do() -> None:
    """Another program's block whose markers begin like ours is no block of ours, whatever is done to the file."""
    theirs = (
        b"# BEGIN resolver-agent peers (ansible managed)\n10.0.0.1 db-a\n# END resolver-agent peers (ansible managed)\n"
    )
    for before, after in ((theirs, b""), (b"", theirs), (theirs, b"a\n")):
        content = hosts_block.render(before, [ONE]) + after
        assert hosts_block.render(content, [ONE]) == content
        assert hosts_block.recall(content) == (ONE,)
        assert hosts_block.remove(content) == before + after
        assert [found.line_no for found in hosts_block.conflicts(content, ["db-a"])] == [
            content[: content.index(b"db-a")].count(b"\n") + 1
        ]


@pytest.mark.parametrize("shift", range(-30, 30))
def test_markers_are_found_across_pieces(shift: int) -> None:
    """A large file is searched in pieces, and a marker may lie across two of them."""
    head = b"#" * ((1 << 18) - 10 + shift) + b"\n"
    content = head + block(ONE_LINE) + b"z\n"
    assert hosts_block.recall(content) == (ONE,)
    assert hosts_block.remove(content) == head + b"z\n"


def test_diff_is_that_of_diff_u() -> None:
    """The diff has context, escapes what does not print, and marks a missing final newline."""
    old = b"caf\xe9\ncaf\xc3\xa9\x0b\r\n1.2.3.4 a"
    shown = hosts_block.unified_diff(old, hosts_block.render(old, [ONE]), path="/etc/hosts")
    assert shown.split("\n") == [
        "--- /etc/hosts",
        "+++ /etc/hosts (new)",
        "@@ -1,3 +1,6 @@",
        " caf\\xe9",
        " caf\u00e9\\x0b\\r",
        "-1.2.3.4 a",
        "\\ No newline at end of file",
        "+1.2.3.4 a",
        f"+# BEGIN resolver-agent: managed, edits inside are overwritten{NOTE}",
        f"+{ONE_LINE}",
        "+# END resolver-agent",
        "",
    ]
    assert hosts_block.unified_diff(old, old, path="/etc/hosts") == ""


def addresses() -> st.SearchStrategy[str]:
    """Return a strategy for addresses as the kernel writes them."""
    return st.ip_addresses().map(str)


@st.composite
def targets(draw: st.DrawFn) -> Target:
    """Draw any target that a decision could have."""
    kind = draw(st.sampled_from(TargetKind))
    primary = draw(st.none() | addresses())
    return target(
        kind,
        None if kind is TargetKind.SELF else draw(st.sampled_from([P, S])),
        name=draw(st.from_regex(r"[A-Za-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)),
        address=FENCE if kind is TargetKind.FENCED else draw(addresses()),
        primary=primary,
        lost=primary is not None and draw(st.booleans()),
        system=(system := draw(st.none() | st.integers(-(2**63), 2**64 - 1))),
        replaced=None if system is None else draw(st.none() | st.integers(-(2**63), 2**64 - 1)),
    )


BLOCKS = st.lists(targets(), max_size=5, unique_by=lambda drawn: drawn.name.lower())
FOREIGN = (
    st.lists(st.binary(max_size=20) | st.sampled_from([b"\n", b"\r\n", b"127.0.0.1 localhost\n", b"#"]))
    .map(b"".join)
    .filter(lambda content: b" resolver-agent" not in content)
)


@given(content=FOREIGN, first=BLOCKS, second=BLOCKS)
def test_rendering_touches_nothing_else(content: bytes, first: list[Target], second: list[Target]) -> None:
    """In any file, applying twice changes nothing more, and removing an added block gives the original."""
    once = hosts_block.render(content, first)
    assert hosts_block.render(once, first) == once
    assert hosts_block.recall(once) == tuple(first)
    changed = hosts_block.render(once, second)
    assert hosts_block.remove(once) == hosts_block.remove(changed) == content


PARTS = st.sampled_from(
    [
        b"# BEGIN resolver-agent\n",
        b"# END resolver-agent\n",
        b"# end RESOLVER-AGENT",
        b"\xef\xbb\xbf",
        b"10.0.0.3",
        b" wk1 ",
        b"# standby; primary 10.0.0.4",
        b"\0",
        b"\r",
        b"\n",
        ONE_LINE.encode("utf-16"),
    ]
)


@given(content=st.lists(st.binary(max_size=12) | PARTS, max_size=12).map(b"".join))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """Whatever is in the file, each function returns a value or raises ``BlockError``, and never anything else."""
    for function in (
        lambda: hosts_block.render(content, [ONE]),
        lambda: hosts_block.recall(content, ["wk1"]),
        lambda: hosts_block.remove(content),
        lambda: hosts_block.conflicts(content, ["wk1"]),
        lambda: hosts_block.unified_diff(content, b"", path="hosts"),
    ):
        with contextlib.suppress(hosts_block.BlockError):
            assert isinstance(function(), (bytes, tuple, str))


@given(head=FOREIGN, tail=FOREIGN, first=BLOCKS, second=BLOCKS)
def test_block_in_the_middle_stays_there(head: bytes, tail: bytes, first: list[Target], second: list[Target]) -> None:
    """Lines of others around the block keep every byte when it changes and when it is removed."""
    head = head + b"\n" if head else head
    content = head + hosts_block.render(b"", [ONE]) + tail
    for chosen in (first, second):
        content = hosts_block.render(content, chosen)
        assert content.startswith(head + b"# BEGIN")
        assert content.endswith(b"# END resolver-agent\n" + tail)
    assert hosts_block.remove(content) == head + tail
