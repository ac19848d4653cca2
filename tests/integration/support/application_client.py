"""An application's loop, run as a program: connects anew each time, and says in a line of JSON what came of it.

It is given a connection string, and says for each attempt when it began and ended (CLOCK_MONOTONIC, which all processes
share), and the server that answered with its role, or the error.
"""

from __future__ import annotations

import json
import sys
import time

import psycopg

_PAUSE_S = 0.05


def main() -> None:
    """Connect and ask until the process is ended."""
    while True:
        begun = time.monotonic()
        found: dict[str, object] = {"begun": begun}
        try:
            with psycopg.connect(sys.argv[1], prepare_threshold=None) as session:
                row = session.execute("SELECT host(inet_server_addr()), pg_is_in_recovery()").fetchone()
            assert row is not None
            found |= {"server": row[0], "in_recovery": row[1]}
        except psycopg.Error as error:
            found["error"] = " ".join(str(error).split())
        print(json.dumps({**found, "ended": time.monotonic()}), flush=True)
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
