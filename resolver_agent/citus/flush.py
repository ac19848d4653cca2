"""Flush: no session of the local server keeps a connection that Citus opened before a name moved (rule R5).

Citus marks the cached connections of a session for closing when ``citus.node_conninfo`` changes there, and compares no
more than the text. So the same text with other white space at its end, which libpq ignores, makes every session
connect anew, at its next command and without disconnecting anybody. ``ALTER SYSTEM`` works on standbys too.

The value is left in place: a session that idles through a change and its undoing would notice neither. For the same
reason the white space is random, as a count would come round again, or begin again after a reset.

An administrator's own value is never hidden. One set by ``ALTER SYSTEM`` is kept inside ours, which says so; else ours
follows the other files. A value that is gone from them stands, and that is said: Patroni loses it, since what is set by
``ALTER SYSTEM`` is not what it takes over when it starts beside a running server (``load_current_server_parameters``).
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
"""Tells where the value comes from; only a superuser, or a function of one, may know."""

_ASK = sql.SQL("SELECT * FROM resolver_agent.node_conninfo()")
# Any role may read this one, so it tells whether Citus is loaded where the function is missing.
_CITUS_IS_LOADED = "SELECT current_setting('citus.shard_count', true) IS NOT NULL"
_SET = sql.SQL("ALTER SYSTEM SET citus.node_conninfo = {}")
_RESET = sql.SQL("ALTER SYSTEM RESET citus.node_conninfo")
_RELOAD = sql.SQL("SELECT pg_reload_conf()")

_CONFIRM_S = 1.0
_POLL_S = 0.01
FIRST_WITH_GRANT = 150000
"""The PostgreSQL since which ALTER SYSTEM can be granted for one parameter."""

STAMP_BITS = 30
_OURS = re.compile(rf"(?P<base>.*)(?P<kept>[ \t])[ \t]{{{STAMP_BITS}}} ", re.DOTALL)
_BLANK_OR_TAB = str.maketrans("01", " \t")


class FlushError(Exception):
    """Sessions may still keep old connections; the message says why, and the fix."""


@dataclasses.dataclass(frozen=True, slots=True)
class Flushed:
    """What came of a flush.

    Attributes:
        base: the value in force, without what was put to its end.
        done: every session was told to connect anew, as that was due.
        warning: what is wrong with the value, and the fix.
    """

    base: str
    done: bool = True
    warning: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where the value of ``citus.node_conninfo`` comes from; ``systemd/role.sql`` tells what the fields are."""

    loaded: str | None = None
    altered: str | None = None
    configured: str | None = None
    boot: str | None = None
    on_command_line: bool = False
    faults: str | None = None

    @property
    def below(self) -> str:
        """What is in force without any ``ALTER SYSTEM``."""
        return next((value for value in (self.configured, self.boot) if value is not None), "")


@dataclasses.dataclass(frozen=True, slots=True)
class Override:
    """A value of ours. ``kept`` reports that ``base`` is an administrator's own ``ALTER SYSTEM``, to be put back."""

    base: str
    kept: bool = False

    def stamped(self, stamp: int) -> str:
        """Return the value to set, with a stamp of ``STAMP_BITS`` bits. Its last character is always a blank."""
        return self.base + f"{self.kept:b}{stamp:0{STAMP_BITS}b}0".translate(_BLANK_OR_TAB)


def recall(value: str | None) -> Override | None:
    """Return what a value of ours says, None for anybody else's."""
    found = _OURS.fullmatch(value or "")
    return Override(found["base"], found["kept"] == "\t") if found else None


def due(setting: Setting) -> Override:
    """Return what our value has to say now."""
    ours = recall(setting.altered)
    if ours is not None and (ours.kept or setting.configured is None):
        return ours
    if ours is None and setting.altered is not None:
        return Override(setting.altered, kept=True)
    return Override(setting.below)


def orphaned(setting: Setting) -> tuple[str, str] | None:
    """Return what is wrong where our value alone still says what a file once said, and the fix; else None."""
    ours = recall(setting.altered)
    if ours is None or ours.kept or setting.configured is not None or ours.base == setting.below:
        return None
    text = f"no configuration file sets citus.node_conninfo any more; its last value, {ours.base!r}, stands"
    fix = (
        "put it back (Patroni forgets it when it starts beside a running PostgreSQL: `patronictl reload`), or give it "
        "up: ALTER SYSTEM RESET citus.node_conninfo; SELECT pg_reload_conf();"
    )
    return text, fix


def is_kept(setting: Setting) -> bool:
    """Report whether there is no value of ours, or the one that is due, and sessions have it."""
    ours = recall(setting.altered)
    return ours is None or (ours == due(setting) and setting.loaded == setting.altered)


def flush(config: Config) -> Flushed | None:
    """Make every session of the local server connect anew to other nodes; None where the server has no Citus.

    Raises:
        FlushError: it could not be done, or not be confirmed.
    """
    with _session(config) as connection:
        setting = _read(connection)
        return _flush(config, connection, setting) if setting else None


def keep(config: Config) -> Flushed | None:
    """Flush again if the administrator's value has changed below ours, or if a flush was left half done.

    None where there was nothing to do and nothing is wrong.

    Raises:
        FlushError: a flush would not succeed, whether or not one is due now.
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
    """Take our value away, and put back an administrator's that was kept in it.

    Raises:
        FlushError: it could not be done, or not be confirmed.
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
    """Connect to the local server, and say in an operator's words what goes wrong there."""
    try:
        with session.connect(config, limit_s=config.timeout_s + _CONFIRM_S) as connection:
            try:
                yield connection
            except errors.InsufficientPrivilege as error:
                raise FlushError(f"{session.words(error)}: {_fix(connection)}") from error
            except errors.FeatureNotSupported as error:  # PostgreSQL 17
                raise FlushError(f"{session.words(error)}: set allow_alter_system = on") from error
    except psycopg.Error as error:
        raise FlushError(f"the local PostgreSQL could not be told to flush: {session.words(error)}") from error


def _warning(setting: Setting) -> str | None:
    wrong = orphaned(setting)
    return ": ".join(wrong) if wrong else None


def _fix(connection: psycopg.Connection) -> str:
    fix = "run systemd/role.sql on this group's primary"
    if connection.info.server_version >= FIRST_WITH_GRANT:
        return fix
    return f"{fix}, and give `local` a superuser's login, as that file says for PostgreSQL before 15"


def read_setting(connection: psycopg.Connection) -> Setting:
    """Return where the value of ``citus.node_conninfo`` comes from, by a function that may be called.

    Raises:
        psycopg.Error: it could not be asked.
    """
    [setting] = connection.cursor(row_factory=class_row(Setting)).execute(_ASK)
    return setting


def _read(connection: psycopg.Connection) -> Setting | None:
    """Return where the value comes from, None without Citus."""
    fault = session.fault_of(connection, FUNCTION)
    if fault is not None:
        if connection.execute(_CITUS_IS_LOADED).fetchone() == (False,):
            return None
        raise FlushError(fault)
    setting = read_setting(connection)
    if setting.loaded is None:
        return None
    if setting.faults is not None:  # then `altered` may be missing, and setting anything could hide a value
        raise FlushError(f"PostgreSQL refuses to load its configuration files: {setting.faults}")
    if setting.on_command_line:
        raise FlushError(
            "citus.node_conninfo is set on the command line of the local PostgreSQL, above all files: "
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
        if due(setting) == override:  # else a file was just being written when it was read
            return Flushed(override.base, warning=_warning(setting))


def _confirm(config: Config, value: str) -> Setting:
    """Wait until a fresh session has the value, and return all that it says.

    The value is then every session's: the postmaster, once it has loaded the files, signals all its children before it
    starts another, and a child that was signalled loads the files before its next command.
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
