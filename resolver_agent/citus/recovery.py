"""Runs Citus' recovery of prepared transactions and its clean-up of orphaned resources on the local server (rule R6).

Citus trusts whatever server a name resolves to. On a standby, recovery finds no prepared transactions, takes all of
them for resolved, and deletes its commit records: committed transactions are rolled back later. So each pass asks,
before and after and over connections that Citus itself makes, which servers are reached. Unless all of them were
primaries, it rolls back, which restores the records. The rollback is harmless: what was resolved on a primary stays
resolved, and the next pass finds it so. On the primary of another group nothing may be resolved at all, so a pass that
would reach one does not begin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from typing import TYPE_CHECKING, Any

import psycopg

from resolver_agent.citus import session
from resolver_agent.control.report import PreparedTransaction, RecoveredDatabase
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from psycopg.abc import QueryNoTemplate as Query
    from psycopg.errors import Diagnostic

    from resolver_agent.config.model import Config

    Look = Mapping[str, str | None]
    """The servers reached: for each node in ``pg_dist_node``, as ``name:port``, its role and identity, or None.

    An answer begins with "primary", "standby", or "stranger": a server of another group than the node's.
    """

    Still = Callable[[], str | None]
    """Returns why a pass must not go on, or None; called in other threads.

    A name that moved and came back since the pass began is a reason: the answers before and after do not show it.
    """

# Citus' messages, which it never translates. Recovery warns with the first for every node that it cannot connect to,
# and with the second as well for a node that does not answer at all.
_UNREACHED = re.compile(r"transaction recovery cannot connect to (\S+)")
_SLOW = re.compile(r"could not establish connection after \d+ ms")

_MISROUTED = {
    "standby": "a standby; see what `resolver-agent status` says about the name",
    "stranger": "a server of another group; see what `resolver-agent status` and `getent ahosts` say about the name",
}


def refusal(before: Look) -> str | None:
    """Return why recovery must not even begin, with the fix, or None.

    On a server of another group it would roll back what that group is about to commit, and that cannot be undone.
    Before Citus 11 workers do not know their group: two nodes that are one server show that one of them is misrouted.
    """
    by_server: dict[str, list[str]] = {}
    for node, answer in before.items():
        if _kind(answer) == "stranger":
            return f"{node} leads to {_MISROUTED['stranger']}"
        by_server.setdefault(answer or node, []).append(node)
    twice = next((nodes for nodes in by_server.values() if len(nodes) > 1), None)
    return f"{' and '.join(twice)} lead to the same server, so one to {_MISROUTED['stranger']}" if twice else None


def objection(before: Look, after: Look, warnings: Sequence[str]) -> str | None:
    """Return why a recovery must be rolled back, with the fix, or None if it may be committed.

    It may be committed if every node that answered was a primary and the same server both times, and recovery reached
    exactly those nodes and gave no other warning.

    Args:
        before: the servers reached just before.
        after: the servers reached just after.
        warnings: Citus' warnings between the two; the second line of each is its context.
    """
    if before.keys() != after.keys():
        return "pg_dist_node has changed during the pass; the next pass uses the new rows"
    if before and not any(before.values()):
        return "no node answered; see what `resolver-agent status` says about them"
    for node, answer in before.items():
        for kind, words in _MISROUTED.items():
            if kind in (_kind(answer), _kind(after[node])):
                return f"{node} led to {words}"
        if answer != after[node]:
            changed = "led to another server" if answer and after[node] else "answered only"
            return f"{node} {changed} {'afterwards' if after[node] else 'at first'}; the next pass tries again"
    silent = {node for node, answer in before.items() if answer is None}
    heads = {warning: warning.partition("\n")[0] for warning in warnings}
    unreached = {match[1] for head in heads.values() if (match := _UNREACHED.fullmatch(head))}
    if silent != unreached:
        return f"{', '.join(sorted(silent ^ unreached))} answered only now and then; the next pass tries again"
    other = [text for text, head in heads.items() if not (_UNREACHED.fullmatch(head) or _SLOW.fullmatch(head))]
    return f"Citus warned: {'; '.join(' '.join(text.split()) for text in other)}" if other else None


def _kind(answer: str | None) -> str:
    return (answer or "").partition(" ")[0]


LIMIT_S = 20.0
"""How long one statement may take. What a pass resolved until then stays resolved, and the next pass goes on."""

OLD_S = 180.0
"""A transaction that has been prepared for longer than this is not one that is just being committed."""

# The lock timeout. It is also the idle timeout of the transaction: a server that was frozen for longer ends it instead
# of executing what was sent meanwhile, because the preconditions may no longer hold.
_PATIENCE_S = 2.0

_LOOK_S = 0.5
"""How often the preconditions are checked while Citus is at work."""

FUNCTIONS = (
    "resolver_agent.reached",
    "resolver_agent.recover_prepared_transactions",
    "resolver_agent.cleanup_orphaned_resources",
)
"""The functions of ``systemd/role.sql`` that a pass calls."""

_LIMITS = """
SELECT set_config(name, value, false)
  FROM (VALUES ('client_min_messages', 'notice'), ('citus.node_connection_timeout', %(connect)s),
               ('statement_timeout', %(statement)s), ('lock_timeout', %(patience)s),
               ('idle_in_transaction_session_timeout', %(patience)s)) AS limits(name, value)
"""
_IN_RECOVERY = "SELECT pg_is_in_recovery()"
_NOT_OFF = """
SELECT string_agg(name || ' is ' || coalesce(current_setting(name, true), 'not known'), ', ')
  FROM (VALUES ('citus.recover_2pc_interval'), ('citus.defer_shard_delete_interval')) AS intervals(name)
 WHERE current_setting(name, true) IS DISTINCT FROM '-1'
"""
_REACHED = "SELECT node, CASE WHEN success THEN result END FROM resolver_agent.reached()"
_RECOVER = "SELECT resolver_agent.recover_prepared_transactions()"
_CLEAN_UP = "SELECT resolver_agent.cleanup_orphaned_resources()"
_LEFT = r"""
SELECT (SELECT count(*) FROM pg_dist_transaction), gid, EXTRACT(epoch FROM clock_timestamp() - prepared)::float8
  FROM (VALUES (1)) AS always
  LEFT JOIN pg_prepared_xacts ON database = current_database() AND gid LIKE 'citus\_%'
 ORDER BY prepared LIMIT 1
"""

# Citus' messages, which it never translates; before Citus 11.1 only shards are cleaned up.
_CLEANED = re.compile(r"cleaned up (\d+) orphaned (?:resources|shards)")
_NOT_CLEANED = re.compile(r"(?:failed to clean up|Failed to drop) (\d+) orphaned (?:resources|shards)")


class UnaskedError(Exception):
    """The local server did not say which databases it has; the message says why."""


class _StoppedError(Exception):
    """The pass must not go on; the message has the reason and the fix."""


class _WithdrawnError(_StoppedError):
    """A precondition stopped holding while the pass was under way; the message says which."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A transaction that another node has prepared on the local server, and its age in seconds."""

    gid: str
    age_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What one pass did in one database.

    ``fault`` is what went wrong, with the fix. ``withdrawn`` is the precondition that stopped holding during the pass,
    if nothing went wrong. ``recovered`` is the number of transactions resolved on other nodes, in either case.
    ``cleaned`` and ``not_cleaned`` are numbers of orphaned resources. ``not_reached`` are the nodes that did not
    answer, as ``name:port``: their transactions wait. ``records`` is the number of commit records that are left.
    ``oldest`` is the oldest of Citus' transactions that are prepared on the local server. Both are None if the pass
    could not look; where ``records`` is a number, ``oldest`` is None if there is none.
    """

    database: str
    fault: str | None = None
    withdrawn: str | None = None
    recovered: int = 0
    cleaned: int = 0
    not_cleaned: int = 0
    not_reached: tuple[str, ...] = ()
    records: int | None = None
    oldest: Prepared | None = None

    def __str__(self) -> str:
        text = f"{self.database}: {self.recovered} prepared transactions resolved"
        text += f", {self.cleaned} orphaned resources cleaned up"
        text += f", {self.not_cleaned} not yet" if self.not_cleaned else ""
        return text + (f"; waits for {', '.join(self.not_reached)}" if self.not_reached else "")

    @property
    def old_words(self) -> str | None:
        """The alert about a transaction that has been prepared on the local server for too long."""
        if self.oldest is None or self.oldest.age_s < OLD_S:
            return None
        return (
            f"{self.oldest.gid} in database {self.database} has been prepared for {self.oldest.age_s:.0f} s, and holds "
            "its locks until the node that it came from recovers it: look at the alerts of the agent there"
        )

    @property
    def status(self) -> RecoveredDatabase:
        """The same for ``status``."""
        oldest = self.oldest
        return RecoveredDatabase(
            database=self.database,
            fault=self.fault,
            withdrawn=self.withdrawn,
            recovered=self.recovered,
            cleaned=self.cleaned,
            not_cleaned=self.not_cleaned,
            not_reached=self.not_reached,
            records=self.records,
            oldest=None if oldest is None else PreparedTransaction(gid=oldest.gid, age_s=oldest.age_s),
        )


def recover_all(config: Config, still: Still) -> list[Recovered]:
    """Make a pass over every database of the local server that has Citus.

    Errors are in the results, also for databases that could not be asked. ``still`` is as for ``recover``.

    Raises:
        UnaskedError: the local server did not say which databases it has.
    """
    try:
        found = session.databases(config)
    except psycopg.Error as error:
        raise UnaskedError(f"the local PostgreSQL cannot be asked for its databases: {_words(error)}") from error
    return [
        *(recover(config, name, still=still) for name in found.with_citus),
        *(
            Recovered(database=name, fault=f"cannot find out whether it has Citus: {why}")
            for name, why in found.faults.items()
        ),
    ]


def recover(config: Config, database: str, *, still: Still, limit_s: float = LIMIT_S) -> Recovered:
    """Make a pass over one database in a session of its own. Errors are in the result.

    Args:
        config: tells how to reach the local server, which must be a primary.
        database: one that has Citus.
        still: called before and while other nodes are changed, and right before the commit here; a reason ends the
            pass.
        limit_s: how long one statement may take, in seconds. Three times that is the limit of the pass.
    """
    limits = {"connect": config.timeout_s, "statement": limit_s, "patience": min(limit_s, _PATIENCE_S)}
    done: dict[str, Any] = {}
    try:
        with session.connect(config, dbname=database, limit_s=3 * limit_s) as connection:
            connection.execute(_LIMITS, {name: f"{round(1000 * limit)}ms" for name, limit in limits.items()})
            try:
                _Pass(connection, still, done).run()
            except (psycopg.Error, _StoppedError) as error:
                if connection.closed:
                    raise  # session.connect() knows whether it hit the limit
                done |= _told(error)
            done |= _left(connection)
    except (psycopg.Error, _StoppedError) as error:
        done = _told(error) | done
    return Recovered(database=database, **done)


class _Pass:
    """One pass, in a session where every statement has a timeout. ``done`` collects fields of ``Recovered``."""

    def __init__(self, connection: psycopg.Connection, still: Still, done: dict[str, Any]) -> None:
        self._connection = connection
        self._still = still
        self._done = done
        self._warnings: list[str] = []
        self._notices: list[str] = []
        connection.add_notice_handler(self._hear)

    def run(self) -> None:
        """Recover and clean up; raise _StoppedError or psycopg.Error if that must not be or fails."""
        self._check_the_server()
        with self._connection.transaction():
            self._recover()
        self._check_preconditions()
        self._clean_up()

    def _check_the_server(self) -> None:
        if self._ask(_IN_RECOVERY) == [(True,)]:
            raise _StoppedError("off: the local server is in recovery")
        [(not_off,)] = self._ask(_NOT_OFF)
        if not_off is not None:
            raise _StoppedError(f"off: {not_off}; set both to -1 and reload, otherwise Citus does it without any check")
        for function in FUNCTIONS:
            fault = session.fault_of(self._connection, function)
            if fault is not None:
                raise _StoppedError(f"off: {fault}")

    def _check_preconditions(self) -> None:
        reason = self._still()
        if reason is not None:
            raise _WithdrawnError(reason)

    @contextlib.contextmanager
    def _while_preconditions_hold(self) -> Iterator[None]:
        """Cancel the statement when a precondition stops holding: from then on it may reach the wrong servers."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_LOOK_S):
                if self._still() is not None:
                    with contextlib.suppress(psycopg.Error):
                        self._connection.cancel_safe(timeout=_PATIENCE_S)
                    return

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        except psycopg.errors.QueryCanceled:
            self._check_preconditions()
            raise
        finally:
            ended.set()

    def _recover(self) -> None:
        before = self._look()
        reason = refusal(before)
        if reason is not None:
            raise _StoppedError(f"not begun: {reason}")
        self._check_preconditions()
        with self._while_preconditions_hold():
            [(self._done["recovered"],)] = self._ask(_RECOVER)
        after = self._look()
        self._done["not_reached"] = tuple(sorted(node for node, answer in after.items() if answer is None))
        found = objection(before, after, self._warnings)
        if found is not None:
            raise _StoppedError(f"rolled back: {found}")
        self._check_preconditions()

    def _clean_up(self) -> None:
        with self._while_preconditions_hold():
            self._ask(_CLEAN_UP)
        for key, pattern in (("cleaned", _CLEANED), ("not_cleaned", _NOT_CLEANED)):
            matches = (pattern.match(text) for text in (*self._notices, *self._warnings))
            self._done[key] = sum(int(match[1]) for match in matches if match)

    def _look(self) -> Look:
        return dict(self._ask(_REACHED))

    def _ask(self, statement: Query) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement).fetchall()

    def _hear(self, said: Diagnostic) -> None:
        (self._warnings if said.severity_nonlocalized == "WARNING" else self._notices).append(_text(said))


def _left(connection: psycopg.Connection) -> dict[str, Any]:
    [(records, gid, age_s)] = connection.execute(_LEFT)
    return {"records": records, "oldest": None if gid is None else Prepared(gid=gid, age_s=age_s)}


def _text(said: Diagnostic) -> str:
    """Return a message and, on the next line, its context, in which Citus names the node."""
    return "\n".join(map(plain, [said.message_primary or "", *(said.context or "").splitlines()[:1]]))


def _told(error: psycopg.Error | _StoppedError) -> dict[str, str]:
    """Return why a pass ended early, as a field of ``Recovered``."""
    if isinstance(error, psycopg.Error):
        return {"fault": _words(error)}
    if isinstance(error, _WithdrawnError):
        return {"withdrawn": str(error)}
    return {"fault": " ".join(str(error).split())}


def _words(error: psycopg.Error) -> str:
    """Return what went wrong in one line, with the fix if the login may not call the functions of role.sql."""
    context = error.diag.context
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and not context:
        fix = "run role.sql (resolver-agent show role.sql) in this database, on this group's primary"
        return f"{session.words(error)}: {fix}"
    # libpq's further lines are guesses.
    first = [part.splitlines()[0] for part in (error.diag.message_primary or str(error), context) if part]
    return ", ".join(map(plain, first))
