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
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
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
    """

    base: str
    done: bool = True
    warning: str | None = None


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


def flush(config: Config) -> Flushed | None:
    """Make every session of the local server open new connections to other nodes; None if the server has no Citus.

    Raises:
        FlushError: the flush failed, or could not be confirmed.
    """
    with _session(config) as connection:
        setting = _read(connection)
        return _flush(config, connection, setting) if setting else None


def keep(config: Config) -> Flushed | None:
    """Flush again if the administrator's value has changed below ours, or if a flush was left half done.

    Return None if there was nothing to do and nothing is wrong.

    Raises:
        FlushError: a flush would fail, whether or not one is due now.
    """
    with _session(config) as connection:
        setting = _read(connection)
        if setting is None:
            return None
        if not is_kept(setting):
            return _flush(config, connection, setting)
        wrong = _warning(setting)
        return Flushed(due(setting).base, done=False, warning=wrong) if wrong else None


def reset(config: Config) -> None:
    """Remove the agent's value, and restore an administrator's value that was kept in it.

    Raises:
        FlushError: the reset failed, or could not be confirmed.
    """
    with _session(config) as connection:
        setting = _read(connection)
        ours = recall(setting.altered) if setting else None
        if setting is None or ours is None:
            return
        connection.execute(_SET.format(ours.base) if ours.kept else _RESET)
        connection.execute(_RELOAD)
        _confirm(config, ours.base if ours.kept else setting.below)


@contextlib.contextmanager
def _session(config: Config) -> Iterator[psycopg.Connection]:
    """Connect to the local server; turn an error into a FlushError with a fix."""
    try:
        with session.connect(config, limit_s=config.timeout_s + _CONFIRM_S) as connection:
            try:
                yield connection
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


def _flush(config: Config, connection: psycopg.Connection, setting: Setting) -> Flushed:
    while True:
        override = due(setting)
        value = override.stamped(secrets.randbits(STAMP_BITS))
        connection.execute(_SET.format(value))
        connection.execute(_RELOAD)
        setting = _confirm(config, value)
        if due(setting) == override:  # otherwise a file was changed while it was read
            return Flushed(override.base, warning=_warning(setting))


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
