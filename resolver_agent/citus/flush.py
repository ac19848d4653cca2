"""Flush: after a name moved, no session of the local server keeps a connection that Citus opened before (rule R5).

When ``citus.node_conninfo`` changes in a session, Citus marks the cached connections of that session for closing. It
compares only the text. So the same text with different white space at its end, which libpq ignores, makes every session
open new connections at its next command, and no client is disconnected. ``ALTER SYSTEM`` works on standbys too.

The new value stays in place: a session that is idle while it is set and reset would notice neither change. For the same
reason the white space is random: a counter would wrap around, or start over after a reset.

An administrator's own value stays in force. If it was set by ``ALTER SYSTEM``, ours contains it and marks it as kept;
otherwise ours follows the other files. A value that is removed from those files stays in force, with a warning: Patroni
loses it, because it does not take over what is set by ``ALTER SYSTEM`` when it starts while PostgreSQL runs
(``load_current_server_parameters``).

*Uncached*: while ``citus.max_cached_conns_per_worker`` is 0, a session keeps no connection from one command to the
next, so none is left from a command that ran right after the flush. That is dear, so it is given back as soon as it can
be. Only a caller that is ``alone()`` may leave it uncached. So a value of ours that anybody else finds was left by
an agent that was killed, or came with a copy of the data directory, and is given back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import threading
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors, sql
from psycopg.rows import class_row

from resolver_agent.citus import session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resolver_agent.config.model import Config

FUNCTION = "resolver_agent.node_conninfo"
"""Returns where the value comes from; only a superuser, or a superuser's function, may read that."""

_ASK = sql.SQL("SELECT * FROM resolver_agent.node_conninfo()")
# Any role may read this parameter, so it shows whether Citus is loaded even if the function is missing.
_CITUS_IS_LOADED = "SELECT current_setting('citus.shard_count', true) IS NOT NULL"
_SET = sql.SQL("ALTER SYSTEM SET citus.node_conninfo = {}")
_RESET = sql.SQL("ALTER SYSTEM RESET citus.node_conninfo")
_RELOAD = sql.SQL("SELECT pg_reload_conf()")

_CACHED = "citus.max_cached_conns_per_worker"
_CACHED_FUNCTION = "resolver_agent.max_cached_conns_per_worker"
_ASK_CACHED = sql.SQL("SELECT * FROM resolver_agent.max_cached_conns_per_worker()")
_SET_CACHED = sql.SQL("ALTER SYSTEM SET citus.max_cached_conns_per_worker = {}")
_RESET_CACHED = sql.SQL("ALTER SYSTEM RESET citus.max_cached_conns_per_worker")

_alone = threading.RLock()
_ALONE_S = 15.0

_CONFIRM_S = 1.0
_POLL_S = 0.01
FIRST_WITH_GRANT = 150000
"""The first PostgreSQL version in which ALTER SYSTEM can be granted for one parameter."""

STAMP_BITS = 30
_OURS = re.compile(rf"(?P<base>.*)(?P<kept>[ \t])[ \t]{{{STAMP_BITS}}} ", re.DOTALL)
_BLANK_OR_TAB = str.maketrans("01", " \t")


class FlushError(Exception):
    """Sessions may still keep old connections; the message has the reason and the fix."""


@dataclasses.dataclass(frozen=True, slots=True)
class Flushed:
    """The result of a flush.

    Attributes:
        base: the value in force, without the white space added at its end.
        done: a flush was due, and every session opens new connections.
        warning: what is wrong with the value, and the fix.
        cached: why sessions go on caching connections, although they were not to; None if they do not, or may.
        given_back: ``citus.max_cached_conns_per_worker`` had been left uncached, and was given back.
    """

    base: str
    done: bool = True
    warning: str | None = None
    cached: str | None = None
    given_back: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where the value of ``citus.node_conninfo`` comes from; ``systemd/role.sql`` explains the fields."""

    loaded: str | None = None
    altered: str | None = None
    configured: str | None = None
    boot: str | None = None
    on_command_line: bool = False
    faults: str | None = None

    @property
    def below(self) -> str:
        """The value that would be in force without any ``ALTER SYSTEM``."""
        return next((value for value in (self.configured, self.boot) if value is not None), "")


@dataclasses.dataclass(frozen=True, slots=True)
class Override:
    """A value set by the agent. ``kept``: ``base`` was an administrator's ``ALTER SYSTEM``, which a reset restores."""

    base: str
    kept: bool = False

    def stamped(self, stamp: int) -> str:
        """Return the value to set, with a stamp of ``STAMP_BITS`` bits. Its last character is always a blank."""
        return self.base + f"{self.kept:b}{stamp:0{STAMP_BITS}b}0".translate(_BLANK_OR_TAB)


@dataclasses.dataclass(frozen=True, slots=True)
class Cached:
    """Where the value of ``citus.max_cached_conns_per_worker`` comes from, as in ``Setting``."""

    loaded: str | None = None
    altered: str | None = None
    on_command_line: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Uncached:
    """A value set by the agent that means 0. ``base`` was an administrator's ``ALTER SYSTEM``; None is none.

    PostgreSQL rounds a fraction to an integer, and keeps its text in postgresql.auto.conf.
    """

    base: int | None

    @property
    def text(self) -> str:
        """The value to set."""
        return "0x0" if self.base is None else f"0.000{self.base}"


def recall_uncached(value: str | None) -> Uncached | None:
    """Return what a value of the agent contains, or None if the agent did not set it."""
    if value == Uncached(None).text:
        return Uncached(None)
    found = re.fullmatch(r"0\.000(0|[1-9][0-9]{0,9})", value or "")
    return Uncached(int(found[1])) if found else None


def uncached_from(value: str | None) -> Uncached | None:
    """Return what to set where this value is in postgresql.auto.conf; None if it could not be given back."""
    if value is None:
        return Uncached(None)
    number = re.fullmatch(r"0|[1-9][0-9]{0,9}", value.strip())
    return recall_uncached(value) or (Uncached(int(number[0])) if number else None)


def recall(value: str | None) -> Override | None:
    """Return what a value of the agent contains, or None if the agent did not set it."""
    found = _OURS.fullmatch(value or "")
    return Override(found["base"], found["kept"] == "\t") if found else None


def due(setting: Setting) -> Override:
    """Return what the agent's value has to contain now."""
    ours = recall(setting.altered)
    if ours is not None and (ours.kept or setting.configured is None):
        return ours
    if ours is None and setting.altered is not None:
        return Override(setting.altered, kept=True)
    return Override(setting.below)


def orphaned(setting: Setting) -> tuple[str, str] | None:
    """Return what is wrong, and the fix, if no file sets the value any more that ours was made from; else None."""
    ours = recall(setting.altered)
    if ours is None or ours.kept or setting.configured is not None or ours.base == setting.below:
        return None
    text = f"no configuration file sets citus.node_conninfo any more; its last value, {ours.base!r}, stays in force"
    fix = (
        "`patronictl reload` puts it back if Patroni left it out (as it does when it starts while PostgreSQL runs), "
        "otherwise add it to the file again; to give it up: ALTER SYSTEM RESET citus.node_conninfo; "
        "SELECT pg_reload_conf();"
    )
    return text, fix


def is_kept(setting: Setting) -> bool:
    """Report whether the agent's value is the one that is due and loaded, or the agent has set none."""
    ours = recall(setting.altered)
    return ours is None or (ours == due(setting) and setting.loaded == setting.altered)


@contextlib.contextmanager
def alone(within_s: float = _ALONE_S) -> Iterator[None]:
    """Keep every other thread from flushing: two flushes at once would replace each other's values.

    Raises:
        FlushError: another one is under way for longer than that.
    """
    if not _alone.acquire(timeout=within_s):
        raise FlushError(f"another flush has been under way for {within_s:g} s")
    try:
        yield
    finally:
        _alone.release()


def flush(config: Config, *, uncached: bool = False) -> Flushed | None:
    """Make every session of the local server open new connections to other nodes; None if the server has no Citus.

    ``uncached`` also makes it cache none, until the next flush: for a caller that is ``alone()`` until then. Where that
    is not possible the flush is done without it, and ``Flushed.cached`` says why.

    Raises:
        FlushError: the flush failed, or could not be confirmed.
    """
    with alone(), _session(config) as connection:
        setting = _read(connection)
        return _flush(config, connection, setting, uncached=uncached) if setting else None


def keep(config: Config) -> Flushed | None:
    """Flush again if the administrator's value has changed below ours, or if a flush was left half done or uncached.

    Return None if there was nothing to do and nothing is wrong.

    Raises:
        FlushError: a flush would fail, whether or not one is due now.
    """
    with alone(), _session(config) as connection:
        setting = _read(connection)
        if setting is None:
            return None
        if not is_kept(setting) or recall_uncached(_read_cached(connection)[0].altered):
            return _flush(config, connection, setting)
        wrong = _warning(setting)
        return Flushed(due(setting).base, done=False, warning=wrong) if wrong else None


def give_back(connection: psycopg.Connection) -> str | None:
    """Flush over a session that is open already, and let sessions cache again; return the value for ``confirm()``.

    It opens no session. None if the server has no Citus.

    Raises:
        FlushError: it failed.
    """
    with _explained(connection):
        setting = _read(connection)
        if setting is None:
            return None
        warning = _change_cached(connection, uncached=False)[1]
        value = due(setting).stamped(secrets.randbits(STAMP_BITS))
        connection.execute(_SET.format(value))
        connection.execute(_RELOAD)
        if warning is not None:
            raise FlushError(warning)
        return value


def confirm(config: Config, value: str) -> None:
    """Wait until every session gets a value of ``give_back()``.

    Raises:
        FlushError: it was not loaded in time.
    """
    try:
        _confirm(config, value)
    except psycopg.Error as error:
        raise FlushError(f"error on the local PostgreSQL: {session.words(error)}") from error


def reset(config: Config) -> None:
    """Remove the agent's values, and restore an administrator's values that were kept in them.

    Raises:
        FlushError: the reset failed, or could not be confirmed.
    """
    with alone(), _session(config) as connection:
        setting = _read(connection)
        if setting is None:
            return
        given_back, warning = _change_cached(connection, uncached=False)
        ours = recall(setting.altered)
        if ours is not None:
            connection.execute(_SET.format(ours.base) if ours.kept else _RESET)
        if ours is not None or given_back:
            connection.execute(_RELOAD)
        if ours is not None:
            _confirm(config, ours.base if ours.kept else setting.below)
        if warning is not None:
            raise FlushError(warning)


@contextlib.contextmanager
def _session(config: Config) -> Iterator[psycopg.Connection]:
    """Connect to the local server; turn an error into a FlushError with a fix."""
    try:
        with session.connect(config, limit_s=config.timeout_s + _CONFIRM_S) as connection, _explained(connection):
            yield connection
    except psycopg.Error as error:
        raise FlushError(f"error on the local PostgreSQL: {session.words(error)}") from error


@contextlib.contextmanager
def _explained(connection: psycopg.Connection) -> Iterator[None]:
    try:
        yield
    except errors.InsufficientPrivilege as error:
        raise FlushError(f"{session.words(error)}: {_fix(connection)}") from error
    except errors.FeatureNotSupported as error:  # PostgreSQL 17
        raise FlushError(f"{session.words(error)}: set allow_alter_system = on") from error
    except psycopg.Error as error:
        raise FlushError(f"error on the local PostgreSQL: {session.words(error)}") from error


def _warning(setting: Setting) -> str | None:
    wrong = orphaned(setting)
    return ": ".join(wrong) if wrong else None


def _fix(connection: psycopg.Connection) -> str:
    fix = (
        "run role.sql (resolver-agent show role.sql) on this group's primary, and log in as its comments say "
        "(local: user:)"
    )
    if connection.info.server_version >= FIRST_WITH_GRANT:
        return fix
    return f"{fix}, and give `local` a superuser's login, as the comments in that file say for PostgreSQL before 15"


def read_setting(connection: psycopg.Connection) -> Setting:
    """Return where the value of ``citus.node_conninfo`` comes from; the caller has checked the function.

    Raises:
        psycopg.Error: the query failed.
    """
    [setting] = connection.cursor(row_factory=class_row(Setting)).execute(_ASK)
    return setting


def _read(connection: psycopg.Connection) -> Setting | None:
    """Return where the value comes from, or None without Citus."""
    fault = session.fault_of(connection, FUNCTION)
    if fault is not None:
        if connection.execute(_CITUS_IS_LOADED).fetchone() == (False,):
            return None
        raise FlushError(fault)
    setting = read_setting(connection)
    if setting.loaded is None:
        return None
    if setting.faults is not None:  # then `altered` may be missing, and a new value could replace an administrator's
        raise FlushError(f"PostgreSQL refuses to load its configuration files: {setting.faults}")
    if setting.on_command_line:
        raise FlushError(
            "citus.node_conninfo is set on the command line of the local PostgreSQL, which overrides all files: "
            "set it in postgresql.conf instead, and restart PostgreSQL"
        )
    return setting


def _read_cached(connection: psycopg.Connection) -> tuple[Cached, str | None]:
    """Return where ``citus.max_cached_conns_per_worker`` comes from, or why that cannot be told (an older role.sql)."""
    faults = session.faults_of(connection, [_CACHED_FUNCTION], privileges=True)
    if faults:
        return Cached(), f"{faults[0]}: {_fix(connection)}"
    [cached] = connection.cursor(row_factory=class_row(Cached)).execute(_ASK_CACHED)
    if cached.loaded is None:
        return cached, f"Citus has no {_CACHED}"
    return cached, f"{_CACHED} is set on the command line" if cached.on_command_line else None


def _change_cached(connection: psycopg.Connection, *, uncached: bool) -> tuple[bool, str | None]:
    """Set the value that makes sessions cache nothing, or give back a value of ours, without a reload.

    Return whether it was changed, and why not.
    """
    cached, fault = _read_cached(connection)
    if uncached:
        new = uncached_from(cached.altered)
        if fault is not None or new is None:
            return False, fault or f"the value of {_CACHED} in postgresql.auto.conf is no number: {cached.altered!r}"
        statement: sql.SQL | sql.Composed = _SET_CACHED.format(new.text)
    else:
        ours = recall_uncached(cached.altered)
        if ours is None:
            return False, None
        statement = _RESET_CACHED if ours.base is None else _SET_CACHED.format(str(ours.base))
    try:
        connection.execute(statement)
    except errors.InsufficientPrivilege as error:
        left = "" if uncached else f", and the agent's {cached.altered!r} stays in force"
        return False, f"{session.words(error)}{left}: {_fix(connection)}"
    return True, None


def _flush(config: Config, connection: psycopg.Connection, setting: Setting, *, uncached: bool = False) -> Flushed:
    # Before the other one: whoever has the new value of that has this one, too.
    changed, fault = _change_cached(connection, uncached=uncached)
    while True:
        override = due(setting)
        value = override.stamped(secrets.randbits(STAMP_BITS))
        connection.execute(_SET.format(value))
        connection.execute(_RELOAD)
        setting = _confirm(config, value)
        if due(setting) == override:  # otherwise a file was changed while it was read
            break
    warning = _warning(setting)
    if uncached:
        return Flushed(override.base, warning=warning, cached=fault)
    return Flushed(override.base, warning=warning or fault, given_back=changed)


def _confirm(config: Config, value: str) -> Setting:
    """Wait until a new session has the value, and return where it comes from there.

    Then every session gets it: once the postmaster has loaded the files, it signals all its children before it starts
    another one, and a child that was signalled loads the files before its next command.
    """
    deadline = time.monotonic() + _CONFIRM_S
    while True:
        with session.connect(config, limit_s=_CONFIRM_S) as fresh:
            setting = _read(fresh)
        if setting is not None and setting.loaded == value:
            return setting
        if time.monotonic() > deadline:
            raise FlushError(f"the local PostgreSQL has not loaded its configuration files within {_CONFIRM_S:g} s")
        time.sleep(_POLL_S)
