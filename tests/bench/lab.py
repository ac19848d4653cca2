"""All scenarios of the lab, again and again in random order, while clients write and read.

Run as root, by hand: ``.venv/bin/python -m tests.bench.lab [ROUNDS]``. Exit code 1 if a write was lost, anything went
to a wrong role, or the lab did not settle. The seed that is printed at the start gives the same order again.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import TYPE_CHECKING

from tests.lab.account import table
from tests.lab.lab import Lab
from tests.lab.scenarios import SCENARIOS, undergo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.lab.account import Account


def campaign(lab: Lab, *, rounds: int, order: random.Random) -> Iterator[Account]:
    """Yield the result of each scenario, of all of them in each round."""
    for _ in range(rounds):
        for scenario in order.sample(SCENARIOS, len(SCENARIOS)):
            yield undergo(lab, scenario)


def main(arguments: Sequence[str]) -> int:
    """Run it, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="tests.bench.lab")
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--without-citus", action="store_true", help="as where there is none")
    parser.add_argument("--etcd-nodes", type=int, default=1)
    options = parser.parse_args(arguments)
    print(f"--seed {options.seed}", flush=True)
    accounts: list[Account] = []
    with Lab(citus=not options.without_citus, etcd_nodes=options.etcd_nodes) as lab:
        try:
            for account in campaign(lab, rounds=options.rounds, order=random.Random(options.seed)):  # noqa: S311 - no secret
                accounts.append(account)
                print(list(table([account]))[-1], *account.misrouted, sep="\n   ", flush=True)
        except Exception:
            print(f"the journals are in {lab.save_journals()}")
            raise
        finally:
            print(*table(accounts), sep="\n")
    return 0 if all(one.well for one in accounts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
