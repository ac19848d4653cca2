"""A parser for tests: that of a program with three commands."""

from __future__ import annotations

import argparse

from resolver_agent.usage.parser import Parser


def program() -> Parser:
    """Return the parser."""
    shared = Parser(add_help=False)
    shared.add_argument("-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help="a file (%(prog)s)")
    parser = Parser(prog="agent", description="Keeps names, through /etc/hosts.", parents=[shared])
    parser.add_argument("--version", action="version", version="1")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    status = commands.add_parser(
        "status", description="show 'names'", exits={0: "fit", 1: "alerts, or worse"}, parents=[shared]
    )
    status.add_argument("--json", action="store_true", help="100%% JSON [a:b] \\n…")
    status.add_argument("--old", action="store_true", help=argparse.SUPPRESS)
    status.add_argument("names", nargs="*", metavar="NAME", help=".hidden")
    pin = commands.add_parser("pin", description="pin a name")
    pin.add_argument("--way", choices=["follow", "primary"], help="a way")
    pin.add_argument("--for", metavar="TIME", help="how long")
    pin.add_argument("name", help="a name")
    commands.add_parser("un-pin", description="unpin").add_argument("name", choices=["worker1", "cn"], help="it")
    return parser
