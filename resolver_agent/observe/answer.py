"""The statement that a probe asks, and what its answer says, checked against what PostgreSQL can answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from resolver_agent.routing.observation import Identity, Observation, Role
from resolver_agent.system.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

# The statement works for a role with LOGIN and nothing else. Such a role sees only the process number of a WAL
# receiver, and only while that is connected. A primary's timeline comes from its WAL file name, since the control
# file's lags behind a promotion; a server never goes back into recovery, so the order of the two checks is safe.
# It is prepared once for each connection: planning it each time would cost the server twice as much as running it.
AGAIN = b"EXECUTE resolver_agent"
FIRST = (
    b"""\
PREPARE resolver_agent AS
SELECT r.standby,
       CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END
         OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn,
       CASE WHEN r.standby THEN pg_catalog.to_hex((SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))
            ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END,
       (SELECT system_identifier FROM pg_catalog.pg_control_system()),
       (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8,
       (SELECT pid FROM pg_catalog.pg_stat_get_wal_receiver())
  FROM (SELECT pg_catalog.pg_is_in_recovery() OFFSET 0) AS r(standby);
"""
    + AGAIN
)

COLUMNS = ("in recovery", "LSN", "timeline", "system identifier", "start time", "WAL receiver")

FRAME_BYTES = 224
"""What an answer takes besides its values: the names of the columns and the messages around the row."""

_ROLES = {b"t": Role.STANDBY, b"f": Role.PRIMARY}
_DECIMAL = re.compile(rb"-?[0-9]{1,20}")
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{1,8}")
_MAX_INT4, _MAX_INT8, _MAX_LSN = 2**31 - 1, 2**63 - 1, 2**64 - 1


def read(
    row: Sequence[bytes | None], *, at: float, address: str | None, answered_at: float | None = None
) -> Observation:
    """Return what a row of the answer says.

    Raises:
        ValueError: PostgreSQL cannot have given this row; the text says which value is wrong.
    """
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} columns instead of {len(COLUMNS)}")
    standby, lsn, timeline, *_, receiver = row
    if standby not in _ROLES:
        raise _wrong(0, standby)
    if timeline is None or not _HEXADECIMAL.fullmatch(timeline) or int(timeline, 16) == 0:
        raise _wrong(2, timeline)
    return Observation(
        result=_ROLES[standby],
        at=at,
        address=address,
        lsn=None if lsn is None else _integer(row, 1, at_least=0, at_most=_MAX_LSN),
        timeline=int(timeline, 16),
        identity=Identity(
            _integer(row, 3, at_least=-_MAX_INT8 - 1, at_most=_MAX_INT8),  # from 2038 on its highest bit is set
            _integer(row, 4, at_least=1, at_most=_MAX_INT8),
        ),
        receiver=None if receiver is None else _integer(row, 5, at_least=1, at_most=_MAX_INT4),
        answered_at=answered_at,
    )


def _integer(row: Sequence[bytes | None], column: int, *, at_least: int, at_most: int) -> int:
    value = row[column]
    if value is None or not _DECIMAL.fullmatch(value) or not at_least <= int(value) <= at_most:
        raise _wrong(column, value)
    return int(value)


def _wrong(column: int, value: bytes | None) -> ValueError:
    return ValueError(f"{COLUMNS[column]}: {'NULL' if value is None else plain(value, limit=40)}")
