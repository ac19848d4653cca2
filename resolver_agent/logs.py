"""Log lines on standard error, as text or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time

_FIELDS = ("node", "name_", "address", "code", "alert")
"""The fields that a record may have besides its message."""


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {key.rstrip("_"): getattr(record, key) for key in _FIELDS if hasattr(record, key)}
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(form: str, level: str) -> None:
    """Send everything of ``level`` and above to standard error; ``form`` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncio's debug messages are about itself.
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))
